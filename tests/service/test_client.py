"""What a client does between its core and Linux: the TUN set up in order, names, its identity."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_interface, ip_network
from pathlib import Path
from typing import Any
from unittest import mock

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from pyvpn.config import ClientConfig
from pyvpn.core.control import Config
from pyvpn.core.events import Configured, MTUFound, ResolveServer, StampUsed
from pyvpn.errors import CommandFailed, ConfigError
from pyvpn.linux.desired import Route, SystemState
from pyvpn.linux.firewall import TABLES
from pyvpn.linux.privsep import Answer
from pyvpn.service import networksetup
from pyvpn.service.base import Surroundings
from pyvpn.service.client import NOT_APPLIED, ClientService
from pyvpn.service.resolver import Resolved
from pyvpn.token import NetworkToken
from tests.service.test_steps import PipeTUN, RecordingChild


class SlowChild(RecordingChild):
    """A child that answers when the test lets it."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(log)
        self.asked: list[SystemState] = []
        self.ours, self._theirs = socket.socketpair()
        self._answers: list[Answer] = []
        self.closed = False

    def begin(self, state: SystemState) -> int:
        self.asked.append(state)
        return len(self.asked)

    def fileno(self) -> int:
        return self.ours.fileno()

    def answer(self, error: CommandFailed | None = None) -> None:
        """Say what became of the last request."""
        self._answers.append(Answer(len(self.asked), [], error))
        self._theirs.send(b"x")

    def take_answers(self) -> list[Answer]:
        self.ours.recv(1)
        taken, self._answers = self._answers, []
        return taken

    def close(self) -> list[str]:
        self.closed = True
        self.ours.close()
        self._theirs.close()
        return super().close()


class ClientTests(TestCase):
    """A client that serves, with a core that nobody answers, and a child of the test's."""

    def setUp(self) -> None:
        for name, value in (("private_lans", []), ("other_full_tunnel", None)):
            self.patch(networksetup.uplink, name, mock.Mock(return_value=value))
        self.patch(networksetup.socket, "if_nametoindex", mock.Mock(return_value=7))
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.child = SlowChild([])
        self.told: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        self.service = self.make("192.0.2.1:9")

    def observe(self, event: LogEvent) -> None:
        self.told.append(str(event.get("log_format", "")).format(**event))

    def make(self, *servers: str) -> ClientService:
        config = ClientConfig(
            servers=servers,
            user="kiwi",
            token=NetworkToken(15, 8, 1, bytes(range(32)), bytes(32), bytes(16)),
            port=0,
            state_dir=self.directory / "client",
            run_dir=self.directory / "run",
        )
        surroundings = Surroundings(
            open_tun=lambda name: PipeTUN([], name),  # type: ignore[arg-type,return-value]
            child=lambda path: self.child,  # type: ignore[arg-type,return-value]
            mark=0,
        )
        service = ClientService(config, "correct horse", None, surroundings)
        self.addCleanup(lambda: maybeDeferred(service.stopService))
        return service

    def start(self) -> Any:
        """Start it, less the login; what the core is told then is recorded."""
        with mock.patch.object(ClientService, "_log_in"):
            self.service.startService()
        for name in ("config_applied", "server_resolved", "set_routes"):
            self.patch(self.service.core, name, mock.Mock())
        self.patch(self.service._network, "_route", self.service.core.set_routes)
        return self.service

    async def until(self, condition: Any) -> None:
        """Let the reactor run until it is so; trial bounds the wait."""
        while not condition():
            await deferLater(reactor, 0)

    def configured(self, revision: int, *addresses: str, routes: Sequence[str] = ()) -> None:
        known = tuple(
            interface
            for interface in map(ip_interface, addresses)
            if isinstance(interface, IPv4Interface | IPv6Interface)
        )
        config = Config(addresses=known, routes=tuple(map(ip_network, routes)))
        self.service._event(Configured(config, revision))

    def test_order(self) -> Deferred[None]:
        """The child is asked for one state at a time, in order, and the core told after each."""

        async def run() -> None:
            service = self.start()
            with mock.patch("pyvpn.service.networksetup.subnet_free"):
                self.configured(1, "10.10.0.2/24")
                service._event(MTUFound(1300))
                self.configured(2, "10.10.0.3/24")
            for number, mtu in enumerate((1416, 1300, 1300), 1):
                await self.until(lambda number=number: len(self.child.asked) == number)
                self.assertEqual(self.child.asked[-1].links[0].mtu, mtu)
                revisions = [call.args[0] for call in service.core.config_applied.mock_calls]
                self.assertEqual(revisions, [1] if number > 1 else [])
                self.child.answer()
            await self.until(lambda: service.core.config_applied.call_count == 2)
            self.assertEqual(service.status()["addresses"], ["10.10.0.3/24"])

        return Deferred.fromCoroutine(run())

    def test_networks_are_checked_once(self) -> Deferred[None]:
        """This machine is asked about the hub's networks when they are new, not at each login."""

        async def run() -> None:
            service = self.start()
            with mock.patch("pyvpn.service.networksetup.subnet_free") as check:
                applied = service.core.config_applied
                for revision, (address, checks) in enumerate(
                    [("10.10.0.2/24", 1), ("10.10.0.9/24", 1), ("10.11.0.2/24", 2)], 1
                ):
                    self.configured(revision, address)
                    self.child.answer()
                    await self.until(lambda number=revision: applied.call_count == number)
                    self.assertEqual(check.call_count, checks, address)

        return Deferred.fromCoroutine(run())

    def test_failures_end_it(self) -> Deferred[None]:
        """A network that is in use here and a refused change end the client with their line."""

        async def run() -> None:
            self.start()
            used = ConfigError("10.10.0.0/24 overlaps")
            with mock.patch("pyvpn.service.networksetup.subnet_free", side_effect=used):
                self.configured(1, "10.10.0.2/24")
            self.assertEqual(self.child.asked, [])
            await self.until(lambda: self.child.closed)
            self.assertIn("setting up the TUN failed: 10.10.0.0/24 overlaps", self.told)
            self.child = SlowChild([])
            self.service = self.make("192.0.2.1:9")
            self.start()
            with mock.patch("pyvpn.service.networksetup.subnet_free"):
                self.configured(1, "10.10.0.2/24")
            failed = CommandFailed(["ip", "address"], 2, "no")
            self.child.answer(failed)
            await self.until(lambda: self.child.closed)
            self.assertIn(f"setting up the TUN failed: {failed}", self.told)

        return Deferred.fromCoroutine(run())

    def test_news_that_cannot_be(self) -> Deferred[None]:
        """News that cannot be applied are told to people and to the hub; what was stays, and the
        next news that can be are applied."""

        async def run() -> None:
            service = self.start()
            applied, routed = service.core.config_applied, service.core.set_routes
            with mock.patch("pyvpn.service.networksetup.subnet_free"):
                self.configured(1, "10.10.0.2/24", routes=["192.168.7.0/24"])
                self.child.answer()
                await self.until(lambda: applied.call_count == 1)
                service.core.hub.endpoint = service._udp.endpoint("198.51.100.2", 5)
                self.configured(2, "10.10.0.2/24", routes=["198.51.100.0/24"])
                await self.until(lambda: applied.call_count == 2)
                self.assertEqual(applied.call_args.args[0], 2)
                self.assertEqual(applied.call_args.args[2:], (NOT_APPLIED,))
                self.assertEqual(len(self.child.asked), 1)
                self.configured(3, "10.10.0.2/24", routes=["192.168.8.0/24"])
                self.child.answer(CommandFailed(["ip", "route"], 2, "no"))
                await self.until(lambda: applied.call_count == 3)
                self.assertEqual(applied.call_args.args[2:], (NOT_APPLIED,))
                self.assertEqual(list(routed.call_args.args[0]), [ip_network("192.168.7.0/24")])
                self.assertIn("no", service.status()["problem"])
                self.configured(4, "10.10.0.2/24", routes=["192.168.8.0/24"])
                self.child.answer()
                await self.until(lambda: applied.call_count == 4)
            self.assertEqual(applied.call_args.args[2:], ())
            self.assertEqual(service.status()["problem"], "")
            self.assertEqual(service.status()["routes"], ["192.168.8.0/24"])
            self.assertFalse(self.child.closed)
            told = [line for line in self.told if line.startswith("what the hub says now")]
            self.assertEqual(len(told), 2)
            self.assertIn("198.51.100.2", told[0])

        return Deferred.fromCoroutine(run())

    def test_a_flood_of_news(self) -> Deferred[None]:
        """Of news that come faster than Linux takes them only the newest waits, and a thousand
        that change nothing leave a client that goes on."""

        async def run() -> None:
            service = self.start()
            applied = service.core.config_applied
            with mock.patch("pyvpn.service.networksetup.subnet_free"):
                for revision in range(1, 1001):
                    self.configured(revision, "10.10.0.2/24", routes=[f"10.{revision % 99}.0.0/16"])
                self.assertEqual(len(self.child.asked), 1)
                self.child.answer()
                await self.until(lambda: len(self.child.asked) == 2)
                self.child.answer()
                await self.until(lambda: applied.call_count == 2)
                self.assertEqual([call.args[0] for call in applied.mock_calls], [1, 1000])
                for revision in range(1001, 3001):
                    self.configured(revision, "10.10.0.2/24", routes=["10.10.0.0/16"])
                self.child.answer()
                await self.until(lambda: applied.call_args.args[0] == 3000)
            self.assertEqual(service.status()["routes"], ["10.10.0.0/16"])

        return Deferred.fromCoroutine(run())

    def test_another_mtu_where_it_cannot_be(self) -> Deferred[None]:
        """In a network that forbids what was set up before, news about the path end nothing, and
        what was set up is held to."""

        async def run() -> None:
            service = self.start()
            applied = service.core.config_applied
            with mock.patch("pyvpn.service.networksetup.subnet_free"):
                self.configured(1, "10.10.0.2/24", routes=["172.20.5.0/24"])
                self.child.answer()
                await self.until(lambda: applied.call_count == 1)
                networksetup.uplink.private_lans.return_value = [
                    ("eth0", ip_network("172.20.0.0/16"))
                ]
                service._event(MTUFound(1300))
                said = "the MTU stays as it is: the hub's route 172.20.5.0/24 is in the network"
                await self.until(lambda: any(line.startswith(said) for line in self.told))
                service._settling.now()
                self.child.answer()
                await self.until(lambda: len(self.child.asked) == 2)
            self.assertEqual(*self.child.asked)
            self.assertFalse(self.child.closed)

        return Deferred.fromCoroutine(run())

    def test_traffic(self) -> Deferred[None]:
        """'traffic' switches all traffic on and off, waits until it is so, and says what cannot
        be; nothing has changed then."""

        async def run() -> None:
            service = self.start()
            applied = service.core.config_applied
            with mock.patch("pyvpn.service.networksetup.subnet_free"):
                self.configured(1, "10.10.0.2/24", routes=["0.0.0.0/0"])
                self.child.answer()
                await self.until(lambda: applied.call_count == 1)
                self.assertEqual(service.status()["all_traffic"], [])
                for what, families in (("all", [4]), ("vpn", [])):
                    answer = service._command("traffic", {"what": what})
                    self.assertNotEqual(service.status()["all_traffic"], families)
                    self.child.answer()
                    await answer
                    self.assertEqual(service.status()["all_traffic"], families)
                self.configured(2, "10.10.0.2/24")
                await self.until(lambda: applied.call_count == 2)
                answer = service._command("traffic", {"what": "all"})
                with self.assertRaises(ConfigError) as caught:
                    await answer
                self.assertIn("--internet", str(caught.exception))
            self.assertEqual(len(self.child.asked), 3)
            with self.assertRaises(ConfigError):
                service._command("traffic", {"what": "some"})
            self.assertEqual(service.status()["all_traffic"], [])

        return Deferred.fromCoroutine(run())

    def test_another_network_around(self) -> Deferred[None]:
        """When this machine's networks have changed, what follows from that is done; and what
        was asked of Linux is asked again, since others may have changed it, too."""

        async def run() -> None:
            service = self.start()
            applied = service.core.config_applied
            with mock.patch("pyvpn.service.networksetup.subnet_free"):
                service._network.wishes = evolve(service._network.wishes, all_traffic=True)
                self.configured(1, "10.10.0.2/24", routes=["0.0.0.0/0"])
                self.child.answer()
                await self.until(lambda: applied.call_count == 1)
                service._settling.now()
                self.child.answer()
                await self.until(lambda: len(self.child.asked) == 2)
                self.assertEqual(*self.child.asked)
                networksetup.uplink.private_lans.return_value = [
                    ("eth0", ip_network("192.168.1.0/24"))
                ]
                service._settling.now()
                self.child.answer()
                await self.until(lambda: len(self.child.asked) == 3)
            lan = Route("192.168.1.0/24", "leamit0", TABLES + 7, "throw")
            self.assertIn(lan, self.child.asked[-1].routes)
            self.assertNotIn(lan, self.child.asked[0].routes)

        return Deferred.fromCoroutine(run())

    def test_servers_before(self) -> None:
        """Asked for the hub's name are the name servers of before, the hub's not among them; but
        one that is both, if there is no other."""
        service = self.start()
        service._network.told = Config(dns=(IPv4Address("9.9.9.9"),))
        there = ["192.168.1.1", "9.9.9.9"]

        def upstream(without: Sequence[str] = ()) -> list[str]:
            return [server for server in there if server not in without]

        with mock.patch("pyvpn.service.networksetup.upstream", upstream):
            self.assertEqual(service._servers_before(), ["192.168.1.1"])
            del there[0]
            self.assertEqual(service._servers_before(), ["9.9.9.9"])

    def test_stop_while_setting_up(self) -> Deferred[None]:
        """A stop does not wait for the child's answer, and is no failure."""

        async def run() -> None:
            service = self.start()
            with mock.patch("pyvpn.service.networksetup.subnet_free"):
                self.configured(1, "10.10.0.2/24")
            self.assertEqual(len(self.child.asked), 1)
            await maybeDeferred(service.stopService)
            self.assertEqual([line for line in self.told if "failed" in line], [])
            service.core.config_applied.assert_not_called()

        return Deferred.fromCoroutine(run())

    def test_names(self) -> Deferred[None]:
        """Names are asked for once at a time; one without an address is told, and tried again."""

        async def run() -> None:
            self.service = self.make("a.example:5", "b.example:6")
            service = self.start()
            answer: Deferred[Resolved] = Deferred()
            with mock.patch.object(service._resolver, "resolve", return_value=answer) as ask:
                service._event(ResolveServer())
                service._event(ResolveServer())
                ask.assert_called_once_with([("a.example", 5), ("b.example", 6)])
            answer.callback(Resolved([], ["cannot resolve a.example: x", "cannot resolve b"]))
            self.assertIn("cannot resolve a.example: x; trying on", self.told)
            self.assertEqual(service.core.server_resolved.call_args.args[0], [])
            found = Deferred[Resolved]()
            with mock.patch.object(service._resolver, "resolve", return_value=found):
                service._event(ResolveServer())
            found.callback(Resolved([("192.0.2.7", 6)], ["cannot resolve a.example: y"]))
            (endpoint,) = service.core.server_resolved.call_args.args[0]
            self.assertEqual(endpoint, service._udp.endpoint("192.0.2.7", 6))
            self.assertNotIn("cannot resolve a.example: y; trying on", self.told)

        return Deferred.fromCoroutine(run())

    def test_names_in_another_network(self) -> None:
        """A question that is open when the network changes is asked anew; the old one's answer
        does not count any more."""
        self.service = self.make("a.example:5")
        service = self.start()
        answers = [Deferred[Resolved](), Deferred[Resolved]()]
        with mock.patch.object(service._resolver, "resolve", side_effect=answers) as ask:
            service._settling.now()
            self.assertEqual(ask.call_count, 0)
            service._event(ResolveServer())
            service._settling.now()
            self.assertEqual(ask.call_count, 2)
        answers[0].callback(Resolved([], ["cannot resolve a.example: x"]))
        service.core.server_resolved.assert_not_called()
        answers[1].callback(Resolved([("192.0.2.7", 5)], []))
        (endpoint,) = service.core.server_resolved.call_args.args[0]
        self.assertEqual(endpoint, service._udp.endpoint("192.0.2.7", 5))

    def test_numeric_server(self) -> None:
        """A server given by its address is known at once."""
        service = self.start()
        service._event(ResolveServer())
        (endpoint,) = service.core.server_resolved.call_args.args[0]
        self.assertEqual(endpoint, service._udp.endpoint("192.0.2.1", 9))

    def test_unwritable_identity(self) -> None:
        """A stamp that cannot be kept is told, and the login goes on."""
        service = self.start()
        path = service._identity.path
        service._event(StampUsed(10**18))
        self.assertIn(f"{10**18}", path.read_text())
        path.unlink()
        path.mkdir()
        service._event(StampUsed(10**18 + 1))
        self.assertIn(f"{path}: cannot write it: Is a directory", self.told)
