"""TUN → UDP → TUN in memory: real ports and protocols around the real cores, no kernel, no wait."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network, ip_address

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.client import (
    VPNClient,
)
from pyvpn.core.clientstate import (
    State,
)
from pyvpn.core.events import (
    Configured,
    LeaseRequested,
    LoginRequested,
    ResolveServer,
)
from pyvpn.core.leases import AddressPool
from pyvpn.core.login import LoginFlags, NetworkKeys
from pyvpn.core.noise import KeyPair
from pyvpn.core.server import (
    VPNServer,
)
from pyvpn.testing.memory import Datagram, MemoryHost, MemoryNetwork, MemoryTUN
from pyvpn.testing.reactor import MemoryReactor
from pyvpn.testing.simulation import ip_packet
from pyvpn.tx.protocol import VPNClientProtocol, VPNProtocol, VPNServerProtocol
from pyvpn.tx.tun import TUNPort
from pyvpn.tx.udp import UDPPort

HUB, KIWI, PA = "198.51.100.2", "203.0.113.2", "2001:db8:3::2"
NETWORK4, NETWORK6 = IPv4Network("10.10.0.0/24"), IPv6Network("fd00::/64")


def packet_of(source: str, destination: str, payload: bytes) -> bytes:
    return ip_packet(ip_address(source), ip_address(destination), payload)


class Machine:
    """One host with its TUN, its port and its protocol."""

    def __init__(self, world: World, addresses: list[str]) -> None:
        self.world = world
        self.host = MemoryHost(world.network, addresses)
        self.tun = MemoryTUN(world.network)

    def run(self, protocol: VPNProtocol, port: int) -> None:
        reactor = self.world.reactor
        self.protocol = protocol
        self.udp = UDPPort(port, protocol, reactor=reactor, system=self.host)
        self.udp.bind()
        tun = TUNPort(self.tun, protocol, reactor=reactor, system=self.host)
        protocol.attach(tun, self.udp)
        self.udp.startReading()
        tun.startReading()

    def packets(self) -> list[bytes]:
        """Return and forget the packets that came out of the tunnel."""
        packets = [frame[10:] for frame in self.tun.written]
        self.tun.written.clear()
        return packets


class World:
    """A hub, and clients that log in with the right key."""

    def __init__(self, aes: bool) -> None:
        self.network = MemoryNetwork()
        self.reactor = MemoryReactor(self.network)
        self.aes = aes
        login_key = KeyPair.of(os.urandom(32))
        self.keys = NetworkKeys.derive(login_key.public, os.urandom(32))
        self.pool = AddressPool(NETWORK4, NETWORK6)
        self.core = VPNServer(
            keys=self.keys,
            login_key=login_key,
            network4=NETWORK4,
            network6=NETWORK6,
            inner_mtu=1416,
            aes=aes,
            wall_clock=self.reactor.wall_clock,
            random_bytes=os.urandom,
        )
        self.hub = Machine(self, [HUB, "2001:db8:1::2"])
        shell = VPNServerProtocol(
            self.core, self._decide, self.reactor.boottime, self.reactor.timer
        )
        self.hub.run(shell, 5050)

    def _decide(self, event: object) -> None:
        now = self.reactor.boottime()
        if isinstance(event, LoginRequested):
            self.core.login_decided(event.id, True, now)
        elif isinstance(event, LeaseRequested):
            holder = event.user, event.device
            lease = self.pool.lease(holder, event.wanted4, event.wanted6, 0, lambda _: False)
            self.core.lease_decided(event.id, lease, now)

    def join(self, user: str, address: str, server: str) -> tuple[Machine, VPNClient]:
        static = KeyPair.of(os.urandom(32))
        self.core.set_user(user, static.public, self.reactor.boottime())
        client = VPNClient(
            keys=self.keys,
            user=user,
            device=os.urandom(16),
            device_name=user,
            last_stamp=0,
            flags=LoginFlags.AES_256_GCM if self.aes else LoginFlags(0),
            inner_mtu=1416,
            wall_clock=self.reactor.wall_clock,
            random_bytes=os.urandom,
        )
        machine = Machine(self, [address])

        def told(event: object) -> None:
            if isinstance(event, ResolveServer):
                client.server_resolved(
                    [machine.udp.endpoint(server, 5050)], self.reactor.boottime()
                )
            elif isinstance(event, Configured):
                client.config_applied(event.revision, self.reactor.boottime())

        machine.run(
            VPNClientProtocol(client, told, self.reactor.boottime, self.reactor.timer), 12000
        )
        client.start(static, self.reactor.boottime())
        machine.protocol.transmit()
        self.reactor.settle()
        return machine, client


class TunnelTests(SynchronousTestCase):
    """What goes into one TUN comes out of the other, whole, in order, once."""

    def test_there_and_back(self) -> None:
        """Packets of all sizes pass each way, with either cipher, over IPv4 and IPv6 outside."""
        for aes in (False, True):
            for address, server in ((KIWI, HUB), (PA, "2001:db8:1::2")):
                world = World(aes)
                kiwi, client = world.join("kiwi", address, server)
                self.assertIs(client.state, State.UP)
                up = [packet_of("10.10.0.2", "10.10.0.1", os.urandom(n * 7)) for n in range(190)]
                down = [packet_of("fd00::1", "fd00::2", os.urandom(n * 7)) for n in range(190)]
                for packet in up:
                    kiwi.tun.inject(packet)
                for packet in down:
                    world.hub.tun.inject(packet)
                world.reactor.settle()
                self.assertEqual(world.hub.packets(), up)
                self.assertEqual(kiwi.packets(), down)
                for datagram in world.network.captured:
                    for packet in (up[100], down[100]):
                        self.assertNotIn(packet[40:80], datagram.payload)

    def test_loss_and_recovery(self) -> None:
        """A cable that was cut for two minutes carries again by itself, nothing twice."""
        world = World(aes=False)
        kiwi, client = world.join("kiwi", KIWI, HUB)
        cut: list[Datagram] = []
        world.network.passes.append(lambda datagram: bool(cut.append(datagram)))
        world.reactor.advance(120)
        self.assertGreater(len(cut), 10)
        world.network.passes.clear()
        world.reactor.advance(40)
        self.assertIs(client.state, State.UP)
        packet = packet_of("10.10.0.2", "10.10.0.1", b"after the cut")
        kiwi.tun.inject(packet)
        world.reactor.settle()
        self.assertEqual(world.hub.packets(), [packet])

    def test_forged_source(self) -> None:
        """A client cannot send from an address that is not its own; its own passes."""
        world = World(aes=False)
        kiwi, _ = world.join("kiwi", KIWI, HUB)
        kiwi.tun.inject(packet_of("10.10.0.9", "10.10.0.1", b"not mine"))
        kiwi.tun.inject(packet_of("10.10.0.2", "10.10.0.1", b"mine"))
        world.reactor.settle()
        self.assertEqual(len(world.hub.packets()), 1)
        self.assertEqual(world.core.counters["inner_source_not_allowed"], 1)
