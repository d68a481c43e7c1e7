"""The hub's stock peers in a running service: by command, by wg, and after a restart."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import fail, maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from pyvpn.config import ServerConfig
from pyvpn.core.wireguarddevice import WireGuardDevice
from pyvpn.errors import CommandFailed, StoreError
from pyvpn.linux.desired import SystemState
from pyvpn.linux.privsep import Answer
from pyvpn.service.base import Surroundings
from pyvpn.service.server import ServerService
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.timer import boottime
from tests.service.test_steps import PipeTUN, RecordingChild, _free_port

KEY = b"\x01" * 32
TEXT = "AQEB" * 10 + "AQE="
USER_KEY = b"\x07" * 32


class AnsweringChild(RecordingChild):
    """A privileged child that keeps what it was told, and says that it is so, or why not.

    :ivar states: all that it was told, the newest last.
    :ivar refusal: what it says to the next ones, None if all is well.
    """

    def __init__(self) -> None:
        super().__init__([])
        self.states: list[SystemState] = []
        self.refusal: CommandFailed | None = None
        self._ours, self._theirs = socket.socketpair()
        self._answers: list[Answer] = []

    def apply(self, state: SystemState) -> list[str]:
        self.states.append(state)
        return super().apply(state)

    def begin(self, state: SystemState) -> int:
        self.states.append(state)
        number = len(self.states)
        self._answers.append(Answer(number, [f"state {number}"], self.refusal))
        self._theirs.send(b".")
        return number

    def fileno(self) -> int:
        return self._ours.fileno()

    def take_answers(self) -> list[Answer]:
        self._ours.recv(100)
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> list[str]:
        self._ours.close()
        self._theirs.close()
        return super().close()


class ServerCase(TestCase):
    """A hub on fakes of TUN and child, with its sockets in a directory of the test's own."""

    timeout = 30

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"pyvpn-{os.getpid()}-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.port = _free_port()
        self.logged: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: LogEvent) -> None:
        self.logged.append(formatEvent(event))

    async def start(self, **options: Any) -> ServerService:
        config = ServerConfig(
            port=self.port,
            state_dir=self.directory / "state",
            run_dir=self.directory / "run",
            **options,
        )
        self.child = child = AnsweringChild()
        surroundings = Surroundings(
            open_tun=lambda name: PipeTUN([], name),  # type: ignore[arg-type,return-value]
            child=lambda path: child,  # type: ignore[arg-type,return-value]
        )
        service = ServerService(config, None, surroundings, uapi_directory=self.directory / "wg")
        self.addCleanup(lambda: maybeDeferred(service.stopService))
        service.startService()
        return service

    async def restart(self, service: ServerService) -> ServerService:
        await maybeDeferred(service.stopService)
        return await self.start()

    async def wg(self, *lines: str) -> str:
        """The answer to one request, as wg makes it."""

        def ask() -> str:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(str(self.directory / "wg" / "leamit0.sock"))
                connection.sendall("".join(f"{line}\n" for line in (*lines, "")).encode())
                answer = b""
                while not answer.endswith(b"\n\n"):
                    answer += connection.recv(1 << 16)
                return answer.decode()

        return await deferToThread(ask)

    async def rows(self, service: ServerService) -> list[dict[str, Any]]:
        answer = await service._command("peer_list", {})
        rows: list[dict[str, Any]] = answer["peers"]
        return rows


class WgTests(ServerCase):
    """What wg sees and changes."""

    async def test_kept(self) -> None:
        """A peer that wg adds is there after a restart, with all that wg said, and has a name."""
        service = await self.start()
        answer = await self.wg(
            "set=1",
            f"public_key={KEY.hex()}",
            f"preshared_key={'02' * 32}",
            "endpoint=[2001:db8::7]:99",
            "persistent_keepalive_interval=25",
            "allowed_ip=10.10.0.77/32",
            "allowed_ip=192.168.7.0/24",
        )
        self.assertEqual("errno=0\n\n", answer)
        before = await self.wg("get=1")
        for line in (
            f"listen_port={self.port}\n",
            f"public_key={KEY.hex()}\npreshared_key={'02' * 32}\n",
            "endpoint=[2001:db8::7]:99\n",
            "persistent_keepalive_interval=25\n",
            "allowed_ip=10.10.0.77/32\nallowed_ip=192.168.7.0/24\n",
        ):
            self.assertIn(line, before)
        (row,) = await self.rows(service)
        self.assertEqual(("wg-AQEBAQEB", ["10.10.0.77/32"]), (row["name"], row["addresses"]))
        service = await self.restart(service)
        self.assertEqual(before, await self.wg("get=1"))

    async def test_commands_are_seen(self) -> None:
        """wg sees what commands do at once; who is disabled it does not see, nor touch."""
        service = await self.start()
        for name, key in (("a", TEXT), ("b", "AgIC" * 10 + "AgI=")):
            arguments = {"name": name, "public_key": key, "psk": "", "allowed_ips": ""}
            await service._command("peer_add", {**arguments, "keepalive": "0"})
        self.assertEqual(2, (await self.wg("get=1")).count("public_key="))
        await service._command("peer_disable", {"name": "b"})
        shown = await self.wg("get=1")
        self.assertEqual((1, 1), (shown.count("public_key="), shown.count(KEY.hex())))
        self.assertEqual("errno=0\n\n", await self.wg("set=1", "replace_peers=true"))
        self.assertEqual(
            [("b", False)], [(r["name"], r["enabled"]) for r in await self.rows(service)]
        )
        service = await self.restart(service)
        self.assertNotIn("public_key=", await self.wg("get=1"))
        await service._command("peer_enable", {"name": "b"})
        self.assertIn(f"public_key={'02' * 32}", await self.wg("get=1"))

    async def test_guard(self) -> None:
        """The hub's key, port and mark, and what is a password user's, are not wg's to change."""
        service = await self.start()
        await service._command("user_add", {"name": "alice", "public_key": USER_KEY.hex()})
        device = service._pool.lease(("alice", bytes(16)), None, None, 1, lambda holder: False)
        service.core.restore_device("alice", bytes(16), "", bytes(12), device)
        before = await self.wg("get=1")
        private = before.split("\n")[0].removeprefix("private_key=")
        self.assertEqual(bytes.fromhex(private), service._state.wireguard_private)
        peer = f"public_key={KEY.hex()}"
        # errno.h: EPERM 1, EINVAL 22, EADDRINUSE 98
        for code, lines in (
            (-1, ["private_key=" + "05" * 32]),
            (-1, ["private_key=" + "00" * 32]),
            (-1, ["listen_port=1"]),
            (-1, ["listen_port=0"]),
            (-1, ["fwmark=7", peer]),
            (-22, [peer, f"public_key={USER_KEY.hex()}", "allowed_ip=10.10.0.9/32"]),
            (-98, [peer, "allowed_ip=10.10.0.1/32"]),
            (-98, [peer, f"allowed_ip={service._pool.hub6}/128"]),
        ):
            self.assertEqual(f"errno={code}\n\n", await self.wg("set=1", *lines))
            self.assertEqual(before, await self.wg("get=1"), lines)
        self.assertEqual([], await self.rows(service))
        same = [f"private_key={private}", f"listen_port={self.port}", "fwmark=0"]
        self.assertEqual("errno=0\n\n", await self.wg("set=1", *same, peer))
        self.assertEqual(1, len(await self.rows(service)))
        taking = [peer, f"allowed_ip={device.ipv4}/32", "allowed_ip=192.168.7.0/24"]
        self.assertEqual("errno=-98\n\n", await self.wg("set=1", *taking))
        (row,) = await self.rows(service)
        self.assertEqual(([], ["192.168.7.0/24"]), (row["addresses"], row["allowed_ips"]))

    async def test_users_are_not_shown(self) -> None:
        """A user's key, which is a verifier of the password, is never shown to wg."""
        service = await self.start()
        await service._command("user_add", {"name": "alice", "public_key": USER_KEY.hex()})
        await self.wg("set=1", f"public_key={KEY.hex()}")
        shown = await self.wg("get=1")
        self.assertIn(KEY.hex(), shown)  # positive control
        self.assertNotIn(USER_KEY.hex(), shown)

    async def test_disk(self) -> None:
        """What the store cannot keep is told to wg as EIO, and to the log."""
        service = await self.start()
        full = mock.patch.object(
            service._store, "put_peers", lambda records: fail(StoreError("the disk is full"))
        )
        with full:
            self.assertEqual("errno=-5\n\n", await self.wg("set=1", f"public_key={KEY.hex()}"))
        self.assertIn("the disk is full; trying on", self.logged)
        self.assertEqual("errno=0\n\n", await self.wg("set=1", f"public_key={'02' * 32}"))

    async def test_no_socket(self) -> None:
        """Where the socket cannot be made the hub says so and works."""
        (self.directory / "wg").write_text("in the way")
        service = await self.start()
        path = self.directory / "wg" / "leamit0.sock"
        (line,) = [line for line in self.logged if "wg will not show this hub" in line]
        self.assertTrue(line.startswith(f"{path}, where wg would look, cannot be made"), line)
        self.assertEqual([], await self.rows(service))


class EventTests(ServerCase):
    """What is told of a connection."""

    async def test_session(self) -> None:
        """A handshake and its end are in the log by the peer's name; the status shows the peer."""
        service = await self.start()
        arguments = {"name": "phone", "psk": "", "allowed_ips": "", "keepalive": "0"}
        device = WireGuardDevice(wall_clock=time.time_ns, random_bytes=os.urandom)
        device.wireguard.set_private_key(bytes(range(32)), 0.0)
        assert device.wireguard.identity is not None
        text = base64.b64encode(device.wireguard.identity.public).decode()
        added = await service._command("peer_add", {**arguments, "public_key": text})
        self.assertEqual([], service.status()["wireguard_sessions"])
        hub_key = base64.b64decode(added["hub_public_key"])
        peer = device.wireguard.add(hub_key, 0.0)
        here = UDPEndpoint(("::ffff:192.0.2.7", 99, 0, 0))
        device.wireguard.set_endpoint(peer, here, 0.0)
        device.wireguard.connect(peer, 0.0)
        for _ in range(2):  # initiation, response, the first packet on the new keys
            for burst in device.datagrams_to_send(boottime()):
                service.core.datagrams_received(
                    b"".join(burst.buffers), burst.size, here, boottime()
                )
            for burst in service.core.datagrams_to_send(boottime()):
                device.datagrams_received(b"".join(burst.buffers), burst.size, here, boottime())
        service.protocol.transmit()
        self.assertIn("WireGuard peer phone is connected from 192.0.2.7:99", self.logged)
        (shown,) = service.status()["wireguard_sessions"]
        self.assertEqual(
            ("phone", ["10.10.0.2"], "192.0.2.7:99"),
            (shown["name"], shown["addresses"][:1], shown["endpoint"]),
        )
        (row,) = await self.rows(service)
        self.assertEqual("192.0.2.7:99", row["endpoint"])
        self.assertLess(abs(time.time() - row["last_handshake"]), 60)
        await service._command("peer_disable", {"name": "phone"})
        self.assertIn("WireGuard peer phone is disconnected: removed", self.logged)
        self.assertEqual([], service.status()["wireguard_sessions"])
