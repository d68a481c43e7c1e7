"""UDPPort against what only the kernel can show: link-local addresses, a socket that is full."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.tx.endpoint import UDPEndpoint
from tests.tx.worlds import NamespaceWorld, Receiver, burst_of

# The kernel accounts a datagram of 1,000 bytes with about 2 KiB, so this is full after a few.
SMALL_SEND_BUFFER = 16 * 1024


class KernelUDPPortTests(SynchronousTestCase):
    """Two namespaces joined by a veth (root)."""

    def setUp(self) -> None:
        self.world = NamespaceWorld(self)
        self.hub = Receiver(echo=True)
        self.client = Receiver()
        self.hub_port = self.world.port(self, self.hub, "hub")
        self.client_port = self.world.port(self, self.client, "client", pin_source=False)

    def test_link_local(self) -> None:
        """Two ends on one link talk by link-local addresses, each named with its scope."""
        hub, client = self.world.namespaces["hub"], self.world.namespaces["client"]
        hub.ip("address add fe80::1:1/64 dev tov1 nodad")
        hub.ip("address add fe80::1:2/64 dev tov1 nodad")
        client.ip("address add fe80::2:1/64 dev tov0 nodad")
        with client.inside():
            index = socket.if_nametoindex("tov0")
            by_name = self.client_port.endpoint("fe80::1:1%tov0", 1)
        self.assertEqual(by_name.remote, ("fe80::1:1", 1, 0, index))
        for host in ("fe80::1:1", "fe80::1:2"):
            to_hub = self.client_port.endpoint(f"{host}%{index}", self.hub_port.localPort)
            self.client.bursts.clear()
            self.client_port.writeBursts([burst_of(to_hub, [b"question"])])
            self.world.until(lambda: bool(self.client.bursts))
            self.assertEqual(self.client.bursts[0][2], to_hub)
        self.assertEqual(self.hub_port.counters, {})

    def test_link_local_asked_from_a_global_address(self) -> None:
        """Who asks our link-local address from a global one is answered: the link is kept."""
        hub, client = self.world.namespaces["hub"], self.world.namespaces["client"]
        hub.ip("address add fe80::1:1/64 dev tov1 nodad")
        client.ip("address add fe80::2:1/64 dev tov0 nodad")
        with client.inside():
            asking = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            index = socket.if_nametoindex("tov0")
        self.addCleanup(asking.close)
        asking.bind(("2001:db8:7::7", 0))
        asking.setblocking(False)
        asking.sendto(b"question", ("fe80::1:1", self.hub_port.localPort, 0, index))
        self.world.until(lambda: bool(self.hub.bursts))
        self.assertEqual(self.hub_port.counters, {})
        data, source = asking.recvfrom(100)
        self.assertEqual(data, b"question")
        self.assertEqual(source, ("fe80::1:1", self.hub_port.localPort, 0, index))

    def test_address_removed_while_talking(self) -> None:
        """When the asked address is taken from the machine, answers leave from another one."""
        hub = self.world.namespaces["hub"]
        for number, address in enumerate(("192.0.2.1", "2001:db8::1")):
            to_hub = self.client_port.endpoint(address, self.hub_port.localPort)
            self.client.bursts.clear()
            self.client_port.writeBursts([burst_of(to_hub, [b"question"])])
            self.world.until(lambda: bool(self.client.bursts))
            prefix = 128 if ":" in address else 32
            hub.ip(f"address del {address}/{prefix} dev lo")
            self.client.bursts.clear()
            endpoint = self.hub.bursts[-1][2]
            self.hub_port.writeBursts([burst_of(endpoint, [b"later"])])
            self.world.until(lambda: self.client.datagrams() == [b"later"])
            self.assertNotEqual(self.client.bursts[0][2], to_hub)
            self.assertEqual(self.hub_port.counters, {"source_gone": number + 1})

    def test_back_pressure(self) -> None:
        """A slow link fills the socket: the rest waits and arrives whole and in order."""
        self.hub.echo = False
        client = self.world.namespaces["client"]
        client.run("tc qdisc add dev tov0 root tbf rate 80mbit burst 20000 limit 10000000")
        with socket.socket(fileno=socket.dup(self.client_port.fileno())) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_SEND_BUFFER)
        to_hub = self.client_port.endpoint("192.0.2.1", self.hub_port.localPort)
        sent = [b"%05d" % n + bytes(995) for n in range(900)]
        for start in range(0, len(sent), 30):
            run = sent[start : start + 30]
            self.client_port.writeBursts([burst_of(to_hub, run)])
        self.assertEqual(self.client.calls, ["paused"])
        self.assertEqual(self.client_port.counters, {"EAGAIN": 1})
        self.world.until(lambda: len(self.hub.datagrams()) == len(sent))
        self.assertEqual(self.hub.datagrams(), sent)
        self.assertEqual(self.client.calls, ["paused", "resumed"])

    def test_nobody_listens(self) -> None:
        """ICMP errors for what we sent never take the reader out of the reactor."""
        nobody = self.client_port.endpoint("192.0.2.2", 9)
        nobody6 = self.client_port.endpoint("2001:db8::2", 9)
        for _ in range(20):
            self.client_port.writeBursts([burst_of(nobody, [b"x"]), burst_of(nobody6, [b"x"])])
            self.world.reactor.doIteration(0.005)
        to_hub = self.client_port.endpoint("192.0.2.1", self.hub_port.localPort)
        self.client_port.writeBursts([burst_of(to_hub, [b"alive"])])
        self.world.until(lambda: self.client.datagrams() == [b"alive"])
        self.assertEqual(self.client_port.counters, {})

    def test_local_address_is_opaque_but_equal(self) -> None:
        """Two datagrams from one socket to one address have equal endpoints, also after others."""
        to_hub = self.client_port.endpoint("192.0.2.1", self.hub_port.localPort)
        other = self.client_port.endpoint("192.0.2.2", self.hub_port.localPort)
        for number, target in enumerate((to_hub, other, to_hub)):
            self.client_port.writeBursts([burst_of(target, [b"x"])])
            self.world.until(lambda number=number: len(self.hub.bursts) == number + 1)
        first, second, third = (endpoint for _, _, endpoint in self.hub.bursts)
        self.assertEqual(first, third)
        self.assertNotEqual(first, second)
        self.assertIsInstance(first, UDPEndpoint)
