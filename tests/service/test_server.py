"""The hub's stock peers in a running service: by command, by wg, and after a restart."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import tempfile
import time
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from pyvpn.config import ServerConfig
from pyvpn.core.assignments import Subnets
from pyvpn.core.configtlv import Pushed
from pyvpn.core.events import ConfigRefused
from pyvpn.core.server import VPNServer
from pyvpn.core.wireguarddevice import WireGuardDevice
from pyvpn.errors import CommandFailed, ConfigError, StartError, StoreError
from pyvpn.linux.desired import SystemState
from pyvpn.linux.firewall import HubFirewall
from pyvpn.linux.inuse import NetworksInUse
from pyvpn.linux.privsep import Answer
from pyvpn.service import livenetwork
from pyvpn.service.base import Surroundings
from pyvpn.service.server import ServerService
from pyvpn.state.interface import Device
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


class FakeNameServer:
    """A name server that only notes where it would listen.

    :cvar busy: what it says when it shall listen, None if it can.
    """

    busy: StartError | None = None
    running: ClassVar[list[FakeNameServer]] = []

    def __init__(self, names: Any, upstream: Any, networks: Any, reactor: Any) -> None:
        self.names = names
        self.counters: dict[str, int] = {}
        self.addresses: list[str] = []

    def listen(self, addresses: list[str]) -> None:
        if FakeNameServer.busy is not None:
            raise FakeNameServer.busy
        self.addresses = addresses
        self.running.append(self)

    def close(self) -> Deferred[None]:
        if self in self.running:
            self.running.remove(self)
        return succeed(None)


class NetworkTests(ServerCase):
    """What clients are offered, from the start on and while they are there."""

    def setUp(self) -> None:
        super().setUp()
        self.in_use = NetworksInUse()
        FakeNameServer.busy = None
        FakeNameServer.running = []
        self.patch(livenetwork, "NameServer", FakeNameServer)
        self.patch(livenetwork, "nft_available", lambda system: True)
        self.patch(livenetwork, "hub_lines", self.hub_lines)
        self.patch(NetworksInUse, "read", lambda system, without: self.in_use)
        self.told: list[Pushed] = []
        tell = VPNServer.set_network

        def note(core: VPNServer, pushed: Pushed, subnets: Subnets, now: float) -> None:
            self.told.append(pushed)
            tell(core, pushed, subnets, now)

        self.patch(VPNServer, "set_network", note)

    def hub_lines(
        self, system: object, port: int, tun: str, internet: bool, dns: bool
    ) -> list[str]:
        """A firewall that blocks all that it can."""
        words = {"UDP": True, "the internet": internet, "names": dns}
        return [f"ufw blocks {what} of {tun}" for what, asked in words.items() if asked]

    async def alice(self, service: ServerService) -> bytes:
        """Put alice and a device of hers there; its id."""
        await service._command("user_add", {"name": "alice", "public_key": USER_KEY.hex()})
        device = bytes(range(16))
        lease = service._pool.lease(("alice", device), None, None, 1, lambda holder: False)
        service.core.restore_device("alice", device, "laptop", bytes(12), lease)
        record = Device("alice", device, "laptop", bytes(12), str(lease.ipv4), None, 1)
        await service._store.put_devices([record])
        return device

    def firewall(self) -> HubFirewall:
        firewall = self.child.states[-1].firewall
        assert isinstance(firewall, HubFirewall)
        return firewall

    def routes(self) -> list[str]:
        return [route.destination for route in self.child.states[-1].routes]

    async def refused(self, service: ServerService, line: str, command: str, **given: str) -> None:
        """Refused with this line, and nothing is other than before."""
        before = (service.status()["network"], len(self.told))
        with self.assertRaises(ConfigError) as raised:
            await service._command(command, given)
        self.assertEqual(line, str(raised.exception))
        self.assertEqual(before, (service.status()["network"], len(self.told)))

    async def test_start(self) -> None:
        """The first state has rules and forwarding; the hub answers on its own addresses, and
        clients are told so."""
        service = await self.start(internet=True, route=(ip_network("10.20.0.0/16"),))
        (state,) = self.child.states
        self.assertEqual(
            (True, True, ("10.20.0.0/16",)),
            (self.firewall().internet, self.firewall().client_to_client, self.firewall().reachable),
        )
        self.assertEqual("1", state.sysctls["net/ipv4/ip_forward"])
        (server,) = FakeNameServer.running
        self.assertEqual(["10.10.0.1", str(service._pool.hub6)], server.addresses)
        shown = service.status()["network"]
        self.assertEqual((["pyvpn"], server.addresses), (shown["search"], shown["dns"]))
        self.assertEqual("10.20.0.0/16", shown["routes"][0]["network"])
        (pushed,) = self.told
        self.assertEqual(["10.20.0.0/16", "0.0.0.0/0", "::/0"], list(map(str, pushed.routes)))
        await maybeDeferred(service.stopService)
        self.assertEqual([], FakeNameServer.running)

    async def test_live(self) -> None:
        """A change reaches Linux, then the core, and is there after a restart."""
        service = await self.start()
        device = await self.alice(service)
        await service._command("network_set", {"internet": "on", "client_to_client": "off"})
        self.assertEqual(
            (True, False), (self.firewall().internet, self.firewall().client_to_client)
        )
        self.assertEqual(["0.0.0.0/0", "::/0"], list(map(str, self.told[-1].routes)))
        await service._command("route_add", {"network": "10.30.0.0/16", "via": "alice/laptop"})
        self.assertEqual(["10.30.0.0/16"], self.routes())
        self.assertIn(ip_network("10.30.0.0/16"), self.told[-1].routes)
        peer = service.core.peer("alice", device)
        assert peer is not None
        self.assertIs(peer, service.core._allowed.lookup(ip_address("10.30.7.7").packed))
        self.assertIn("state 3", self.logged)
        service = await self.restart(service)
        self.assertEqual((["10.30.0.0/16"], True), (self.routes(), self.firewall().internet))
        peer = service.core.peer("alice", device)
        self.assertIs(peer, service.core._allowed.lookup(ip_address("10.30.7.7").packed))
        await service._command("user_remove", {"name": "alice"})
        self.assertEqual([], self.routes())
        self.assertIsNone(service.core._allowed.lookup(ip_address("10.30.7.7").packed))

    async def test_linux_refuses(self) -> None:
        """What Linux refuses is told, kept nowhere, and no client hears of it."""
        service = await self.start(dns="none")
        self.child.refusal = CommandFailed(["nft", "-f", "-"], 1, "no")
        line = "Linux refuses it, all is as it was: 'nft -f -' failed with status 1: no"
        await self.refused(service, line, "network_set", internet="on")
        self.assertIsNone(service._store.setting("network_settings"))
        self.child.refusal = None
        await service._command("network_set", {"internet": "on"})
        self.assertTrue(service.status()["network"]["internet"])

    async def test_machine(self) -> None:
        """A route to where this machine is, or where clients reach it, is refused; a stored one is
        left out at the start, with a line; one of an option keeps the hub from starting."""
        service = await self.start()
        await self.alice(service)
        await service._command("endpoint_set", {"endpoint": "203.0.113.7"})
        lan = (ip_address("192.168.1.5"), ip_network("192.168.1.0/24"), "eth1")
        self.in_use = NetworksInUse((lan,))
        await self.refused(
            service,
            "192.168.1.0/24 overlaps 192.168.1.5/24 of interface eth1",
            "route_add",
            network="192.168.1.0/24",
            via="alice",
        )
        await self.refused(
            service,
            "203.0.113.0/24 holds 203.0.113.7, where clients reach this hub",
            "route_add",
            network="203.0.113.0/24",
        )
        await service._command("route_add", {"network": "10.30.0.0/16", "via": "alice"})
        clash = (ip_address("10.30.0.5"), ip_network("10.30.0.0/24"), "eth2")
        self.in_use = NetworksInUse((lan, clash))
        await service._command("network_set", {"dns": "none"})  # is not about routes
        service = await self.restart(service)
        self.assertEqual([], self.routes())
        problem = "10.30.0.0/16 overlaps 10.30.0.5/24 of interface eth2"
        self.assertIn(f"{problem}; left out", self.logged)
        (row,) = (await service._command("route_list", {}))["routes"]
        self.assertEqual(problem, row["problem"])
        await maybeDeferred(service.stopService)
        with self.assertRaises(StartError) as raised:
            await self.start(route=(ip_network("203.0.113.0/24"),))
        self.assertEqual(
            "--route: 203.0.113.0/24 holds 203.0.113.7, where clients reach this hub",
            str(raised.exception),
        )

    async def test_firewalls(self) -> None:
        """What a firewall of the machine will block of news is a warning, once; at the start what
        comes from the store is in the log."""
        service = await self.start(dns="none")
        line = "ufw blocks the internet of leamit0"
        answer = await service._command("network_set", {"internet": "on"})
        self.assertEqual([line], answer["warnings"])
        answer = await service._command("network_set", {"exclude": "192.168.0.0/16"})
        self.assertEqual([], answer["warnings"])
        self.assertNotIn(line, self.logged)
        service = await self.restart(service)
        self.assertIn(line, self.logged)

    async def test_private_address(self) -> None:
        """The LAN of the hub may be offered; without an endpoint there is a warning."""
        service = await self.start()
        lan = (ip_address("192.168.1.5"), ip_network("192.168.1.0/24"), "eth1")
        self.in_use = NetworksInUse((lan,))
        answer = await service._command("route_add", {"network": "192.168.1.0/24"})
        warning, blocked = answer["warnings"]
        self.assertEqual("ufw blocks the internet of leamit0", blocked)
        self.assertIn("192.168.1.0/24 holds this hub's own address 192.168.1.5 (eth1)", warning)
        self.assertEqual(("192.168.1.0/24",), self.firewall().reachable)

    async def test_peers(self) -> None:
        """What is behind stock peers is routed, by command and by wg, and no more when they go."""
        service = await self.start()
        await self.wg("set=1", f"public_key={KEY.hex()}", "allowed_ip=192.168.7.0/24")
        self.assertEqual(["192.168.7.0/24"], self.routes())
        self.assertIn(ip_network("192.168.7.0/24"), self.told[-1].routes)
        arguments = {
            "name": "office",
            "psk": "",
            "keepalive": "0",
            "public_key": "AgIC" * 10 + "AgI=",
        }
        await service._command("peer_add", {**arguments, "allowed_ips": "10.50.0.0/16"})
        self.assertEqual(["10.50.0.0/16", "192.168.7.0/24"], sorted(self.routes()))
        count = len(self.child.states)
        await self.wg("set=1", f"public_key={KEY.hex()}", "persistent_keepalive_interval=25")
        self.assertEqual(count, len(self.child.states))  # nothing to do for Linux
        await service._command("peer_disable", {"name": "office"})
        self.assertEqual(["192.168.7.0/24"], self.routes())
        await self.wg("set=1", f"public_key={KEY.hex()}", "remove=true")
        self.assertEqual([], self.routes())
        self.assertEqual((), self.told[-1].routes)

    async def test_peers_left_out(self) -> None:
        """A network of a peer that cannot be routed is told of, and the peer is there."""
        service = await self.start()
        lan = (ip_address("192.168.1.5"), ip_network("192.168.1.0/24"), "eth1")
        self.in_use = NetworksInUse((lan,))
        arguments = {"name": "office", "psk": "", "keepalive": "0", "public_key": TEXT}
        networks = {"allowed_ips": "192.168.1.0/24,10.50.0.0/16"}
        answer = await service._command("peer_add", {**arguments, **networks})
        problem = "192.168.1.0/24 overlaps 192.168.1.5/24 of interface eth1"
        self.assertEqual([f"{problem}; no route leads there"], answer["warnings"])
        self.assertEqual(["10.50.0.0/16"], self.routes())

    async def test_peers_and_linux(self) -> None:
        """If Linux refuses a peer's route, the peer is there, and it is tried again."""
        service = await self.start()
        self.child.refusal = CommandFailed(["ip", "-batch", "-"], 2, "File exists")
        arguments = {"name": "office", "psk": "", "keepalive": "0", "public_key": TEXT}
        answer = await service._command("peer_add", {**arguments, "allowed_ips": "10.50.0.0/16"})
        (warning,) = answer["warnings"]
        self.assertTrue(warning.startswith("no routes were changed: Linux refuses it"), warning)
        self.child.refusal = None
        await service._command("peer_enable", {"name": "office"})
        self.assertEqual(["10.50.0.0/16"], self.routes())

    async def test_no_name_server(self) -> None:
        """Where port 53 is taken the hub says so, goes on, and tells clients no server; other
        changes still work, and when the port is free again it is taken."""
        FakeNameServer.busy = StartError("port 53 of 10.10.0.1 is in use by dnsmasq")
        service = await self.start(internet=True)
        line = "port 53 of 10.10.0.1 is in use by dnsmasq"
        self.assertIn(f"{line}; clients are told no name server", self.logged)
        (pushed,) = self.told
        self.assertEqual(((), ()), (pushed.dns, pushed.search))
        await service._command("network_set", {"exclude": "192.168.0.0/16"})
        await service._command("network_set", {"dns": "none"})
        await self.refused(service, f"{line}; or start the hub anew", "network_set", dns="hub")
        FakeNameServer.busy = None
        await service._command("network_set", {"dns": "hub"})
        self.assertEqual(("pyvpn",), self.told[-1].search)
        self.assertEqual(1, len(FakeNameServer.running))
        await service._command("network_set", {"dns": "9.9.9.9"})
        self.assertEqual([], FakeNameServer.running)
        self.assertEqual((ip_address("9.9.9.9"),), self.told[-1].dns)

    async def test_names(self) -> None:
        """The names are those of devices with a lease and of peers, as they are by now."""
        service = await self.start()
        (server,) = FakeNameServer.running
        before = server.names()
        self.assertIs(before, server.names())
        self.assertEqual({"hub.pyvpn", "pyvpn"}, set(before))
        await self.alice(service)
        arguments = {"name": "office", "psk": "", "keepalive": "0", "public_key": TEXT}
        await service._command("peer_add", {**arguments, "allowed_ips": ""})
        wanted = {"laptop.alice.pyvpn", "alice.pyvpn", "laptop.pyvpn", "office.pyvpn"}
        self.assertEqual(wanted, set(server.names()) - set(before))
        await service._command("user_disable", {"name": "alice"})
        await service._command("peer_disable", {"name": "office"})
        self.assertEqual(set(before), set(server.names()))

    async def test_no_nft(self) -> None:
        """Without nft there are no rules, which is said; what needs them is refused, also at the
        start."""
        self.patch(livenetwork, "nft_available", lambda system: False)
        service = await self.start()
        self.assertIsNone(self.child.states[-1].firewall)
        unguarded = "nft does not work here: what clients send beyond the VPN is not kept back"
        self.assertIn(f"{unguarded}; install nftables", self.logged)
        self.assertFalse(service.status()["network"]["guarded"])
        line = (
            "nft does not work here, and without it there is no internet for clients (--internet)"
        )
        await self.refused(service, line, "network_set", internet="on")
        await maybeDeferred(service.stopService)
        with self.assertRaises(StartError):
            await self.start(internet=True)

    async def test_relay(self) -> None:
        """With --relay clients cannot be kept apart, live or from the store."""
        service = await self.start()
        await service._command("network_set", {"client_to_client": "off"})
        await maybeDeferred(service.stopService)
        with self.assertRaises(StartError) as raised:
            await self.start(relay=True)
        self.assertIn("--relay", str(raised.exception))
        service = await self.start()
        await service._command("network_set", {"client_to_client": "on"})
        await maybeDeferred(service.stopService)
        service = await self.start(relay=True)
        line = (
            "--no-client-to-client: clients reach each other all the same with --relay, which goes"
            " past the kernel and its rules; leave one of the two out"
        )
        await self.refused(service, line, "network_set", client_to_client="off")

    async def test_config_refused(self) -> None:
        """A client that could not apply what it was told is in the log."""
        service = await self.start()
        service._event(ConfigRefused("alice", bytes(16), 1))
        (line,) = [line for line in self.logged if "could not apply" in line]
        self.assertIn("alice", line)
