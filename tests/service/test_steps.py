"""A start that fails, at each of its steps in turn, leaves the system as it was."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from pyvpn.config import ClientConfig, ServerConfig
from pyvpn.core.noise import KeyPair
from pyvpn.errors import CommandFailed, StartError, StoreError
from pyvpn.linux.desired import SystemState
from pyvpn.service.base import Surroundings, VPNService
from pyvpn.service.client import ClientService
from pyvpn.service.server import ServerService
from pyvpn.state.directory import StateDirectory
from pyvpn.token import NetworkToken


class PipeTUN:
    """A TUN whose frames nobody takes; ``open`` lists those that are not closed."""

    def __init__(self, log: list[str], name: str) -> None:
        self.name = name
        self._log = log
        self._ends: list[int] = list(os.pipe2(os.O_NONBLOCK))
        log.append("open tun")

    def fileno(self) -> int:
        return self._ends[0] if self._ends else -1

    def close(self) -> None:
        if self._ends:
            self._log.append("close tun")
        for end in self._ends:
            os.close(end)
        self._ends = []


class RecordingChild:
    """A privileged child that changes nothing and notes what it was told."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def start(self) -> list[str]:
        self._log.append("start child")
        return []

    def apply(self, state: SystemState) -> list[str]:
        self._log.append("apply")
        return [f"would set {link.name}" for link in state.links]

    def close(self) -> list[str]:
        self._log.append("close child")
        return []


class StepsMixin:
    """For a service: the calls that may fail in its start, and what must be closed after."""

    steps: list[str]

    def make(self) -> VPNService:
        raise NotImplementedError

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)  # type: ignore[attr-defined]
        self.directory = Path(directory.name)
        self.log: list[str] = []
        self.port = _free_port()
        StateDirectory(self.directory / "state").prepare(os.urandom)

    def surroundings(self) -> Surroundings:
        return Surroundings(
            open_tun=lambda name: PipeTUN(self.log, name),  # type: ignore[arg-type,return-value]
            child=lambda path: RecordingChild(self.log),  # type: ignore[arg-type,return-value]
        )

    def assertNothingLeft(self) -> None:
        """Every descriptor, lock and file of a running service is gone."""
        test: Any = self
        test.assertEqual(self.log.count("open tun"), self.log.count("close tun"), self.log)
        probe = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        probe.bind(("::", self.port))
        probe.close()
        state = StateDirectory(self.directory / "state")
        state.lock()
        state.unlock()
        test.assertEqual(list((self.directory / "run").glob("*")), [])
        test.assertEqual(list((self.directory / "wireguard").glob("*")), [])
        ours = [reader for reader in reactor.getReaders() if "pyvpn" in type(reader).__module__]
        test.assertEqual(ours, [])

    def test_each_step_in_turn(self) -> Deferred[None]:
        """Whichever call fails, its error comes out and nothing stays open."""

        async def fail_each() -> None:
            for step in self.steps:
                service = self.make()
                error = StartError(f"planted in {step}")
                with mock.patch(step, side_effect=error):
                    started = _start(service)
                test: Any = self
                test.assertIs(started, error, step)
                # The store's thread ends in the reactor's own time.
                await maybeDeferred(service.stopService)
                self.assertNothingLeft()

        return Deferred.fromCoroutine(fail_each())

    def test_start_and_stop(self) -> Deferred[None]:
        """The control: without a planted error it starts, holds everything, and lets go of it."""

        async def run() -> None:
            test: Any = self
            service = self.make()
            test.assertIsNone(_start(service))
            test.assertIn("open tun", self.log)
            test.assertNotIn("close tun", self.log)
            test.assertNotEqual(list((self.directory / "run").glob("*.sock")), [])
            with test.assertRaises(OSError):
                self.assertPortFree()
            await maybeDeferred(service.stopService)
            self.assertNothingLeft()
            test.assertEqual(self.log[-2:], ["close child", "close tun"])

        return Deferred.fromCoroutine(run())

    def assertPortFree(self) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", self.port))


class ServerStepsTests(StepsMixin, TestCase):
    """The hub."""

    steps = [
        "pyvpn.state.directory.StateDirectory.lock",
        "pyvpn.state.directory.StateDirectory.prepare",
        "pyvpn.state.sqlite.SQLiteStore.open",
        "pyvpn.tx.udp.UDPPort.bind",
        "tests.service.test_steps.PipeTUN.__init__",
        "pyvpn.service.server.ServerService._restore",
        "pyvpn.service.wireguardcontrol.WireGuardControl.__init__",
        "tests.service.test_steps.RecordingChild.start",
        "tests.service.test_steps.RecordingChild.apply",
        "pyvpn.tx.protocol.VPNProtocol.attach",
        "pyvpn.tx.tun.TUNPort.startReading",
        "pyvpn.service.uapisocket.UAPISocket.serve",
        "pyvpn.service.controlsocket.ControlSocket.listen",
    ]

    def make(self) -> VPNService:
        config = ServerConfig(
            port=self.port, state_dir=self.directory / "state", run_dir=self.directory / "run"
        )
        return ServerService(
            config, None, self.surroundings(), uapi_directory=self.directory / "wireguard"
        )

    def test_errors_of_people(self) -> Deferred[None]:
        """A failed command and a store in use come out as they are, for the person to read."""

        async def run() -> None:
            failed = CommandFailed(["ip", "link"], 1, "no")
            service = self.make()
            with mock.patch.object(RecordingChild, "apply", side_effect=failed):
                self.assertIs(_start(service), failed)
            await maybeDeferred(service.stopService)
            holder = StateDirectory(self.directory / "state")
            holder.lock()
            self.addCleanup(holder.unlock)
            self.assertIsInstance(_start(self.make()), StoreError)

        return Deferred.fromCoroutine(run())


class ClientStepsTests(StepsMixin, TestCase):
    """A client."""

    steps = [
        "pyvpn.state.identity.ClientIdentity.load",
        "pyvpn.tx.udp.UDPPort.bind",
        "tests.service.test_steps.PipeTUN.__init__",
        "tests.service.test_steps.RecordingChild.start",
        "pyvpn.service.controlsocket.ControlSocket.listen",
        "pyvpn.tx.protocol.VPNProtocol.attach",
        "pyvpn.tx.tun.TUNPort.startReading",
        "pyvpn.tx.linkmonitor.LinkMonitor.__init__",
    ]

    def make(self) -> VPNService:
        # The cheapest key that a token may ask for.
        token = StateDirectory(self.directory / "state").token
        quick = NetworkToken(
            15, 8, 1, token.login_public, token.network_secret, token.password_salt
        )
        config = ClientConfig(
            servers=("127.0.0.1:9",),
            user="kiwi",
            token=quick,
            port=self.port,
            port_explicit=True,
            state_dir=self.directory / "client",
            run_dir=self.directory / "run",
        )
        return ClientService(config, "correct horse", None, self.surroundings())

    def test_no_key(self) -> Deferred[None]:
        """A key that cannot be made fails the start with a line, before anything is served."""

        async def run() -> None:
            for error, why in ((ValueError("memory limit exceeded"),) * 2, (MemoryError(),) * 2):
                service = self.make()
                with mock.patch("pyvpn.service.client.password_key", side_effect=error):
                    started = _start(service)
                self.assertIsInstance(started, StartError)
                line = f"making the key of the password failed: {str(why) or 'MemoryError'}"
                self.assertEqual(str(started), line)
                await maybeDeferred(service.stopService)
                self.assertNothingLeft()

        return Deferred.fromCoroutine(run())

    def test_start_again(self) -> Deferred[None]:
        """A service that was stopped starts again, with the key that it made the first time."""

        async def run() -> None:
            service = self.make()
            made = KeyPair.of(bytes(range(32)))
            keys = mock.patch("pyvpn.service.client.password_key", side_effect=[made.private])
            with keys, mock.patch("pyvpn.core.client.VPNClient.start") as begin:
                for _ in range(2):
                    self.assertIsNone(_start(service))
                    await deferLater(reactor, 0)  # it logs in when the reactor runs
                    self.assertEqual(begin.call_args.args[0].public, made.public)
                    await maybeDeferred(service.stopService)
                    self.assertNothingLeft()
            self.assertEqual(begin.call_count, 2)

        return Deferred.fromCoroutine(run())


def _start(service: VPNService) -> Exception | None:
    """Start as twistd does; return what was raised."""
    start: Callable[[], None]
    for start in (service.privilegedStartService, service.startService):
        try:
            start()
        except Exception as error:
            return error
    return None


def _free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port
