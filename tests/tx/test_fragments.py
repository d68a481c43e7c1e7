"""DF on all that a UDPPort sends, but for bursts that may be fragmented."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.udp import UDPPort
from tests.tx.namespace import Namespace
from tests.tx.test_udp_bulk import socket_of
from tests.tx.worlds import MemoryWorld, NamespaceWorld, Receiver, World, burst_of

# linux/in.h, in6.h: (level, option) and values.
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = (0, 10), (41, 23)
DONT, PROBE, OMIT = 0, 3, 5


class FragmentMixin:
    """Where the client's interface carries 1280 bytes and the hub is behind it."""

    make_world: type[World]

    def setUp(self) -> None:
        self.world: Any = self.make_world(self)
        self.narrow()
        self.hub = Receiver()
        self.client = Receiver()
        self.hub_port = self.world.port(self, self.hub, "hub")
        self.client_port = self.world.port(self, self.client, "client", pin_source=False)

    def to_hub(self, address: str) -> UDPEndpoint:
        return self.client_port.endpoint(address, self.hub_port.localPort)

    def test_what_may_be_fragmented_passes(self) -> None:
        """1400 bytes on a path of 1280: with ``fragment`` they arrive, else they draw EMSGSIZE."""
        for number, address in enumerate(("192.0.2.1", "2001:db8::1")):
            to_hub = self.to_hub(address)
            run = [bytes([value]) * 1400 for value in range(3)]
            self.hub.bursts.clear()
            self.client_port.writeBursts(
                [
                    burst_of(to_hub, [b"x" * 1400]),
                    burst_of(to_hub, run, fragment=True),
                    burst_of(to_hub, [b"y" * 1400]),
                    burst_of(to_hub, [b"end"]),
                ]
            )
            self.world.until(lambda: b"end" in self.hub.datagrams())
            self.assertEqual(self.hub.datagrams(), [*run, b"end"])
            self.assertEqual(self.client_port.counters, {"EMSGSIZE": 2 * number + 2})

    def test_what_fits_passes_whole(self) -> None:
        """The control: datagrams of exactly 1280 bytes of IP packet need no fragments."""
        for address, headers in (("192.0.2.1", 28), ("2001:db8::1", 48)):
            run = [bytes(1280 - headers)] * 3
            self.hub.bursts.clear()
            self.client_port.writeBursts([burst_of(self.to_hub(address), run)])
            self.world.until(lambda: len(self.hub.datagrams()) == 3)
            self.assertEqual(self.client_port.counters, {})


class MemoryFragmentTests(FragmentMixin, SynchronousTestCase):
    """In memory, where each datagram's DF can be seen."""

    make_world = MemoryWorld
    world: MemoryWorld

    def narrow(self) -> None:
        self.world.hosts["client"].mtu = 1280

    def test_only_that_burst(self) -> None:
        """DF is off for the bursts that allow it and on again behind them, in both families."""
        for address in ("192.0.2.1", "2001:db8::1"):
            self.world.network.captured.clear()
            to_hub = self.to_hub(address)
            self.client_port.writeBursts(
                [burst_of(to_hub, [b"x"] * 2, fragment=fragment) for fragment in (0, 1, 0)]
            )
            self.assertEqual(
                [datagram.fragment for datagram in self.world.network.captured],
                [False, False, True, True, False, False],
            )
        options = socket_of(self.world, self.client_port).options
        self.assertEqual(options[IP_MTU_DISCOVER], PROBE)
        self.assertEqual(options[IPV6_MTU_DISCOVER], PROBE)

    def test_as_one(self) -> None:
        """Fragmentable ones that fit the first link leave in one call, others in one each."""
        self.world.hosts["client"].mtu = 1500
        sender = socket_of(self.world, self.client_port)
        burst = burst_of(self.to_hub("192.0.2.1"), [b"x" * 1400] * 3, fragment=True)
        sends = sender.sends
        self.client_port.writeBursts([burst])
        self.assertEqual(sender.sends - sends, 1)
        self.narrow()
        self.client_port.writeBursts([burst])
        self.assertEqual(sender.sends - sends, 1 + 3)
        self.assertEqual([d.fragment for d in self.world.network.captured], [True] * 6)
        self.assertEqual(self.client_port.counters, {})

    def test_the_device_is_full(self) -> None:
        """ENOBUFS costs a fragmentable burst, counted, and it is not tried again."""
        self.world.hosts["client"].mtu = 1500
        sender = socket_of(self.world, self.client_port)
        sender.send_errors.append(errno.ENOBUFS)
        burst = burst_of(self.to_hub("192.0.2.1"), [b"x" * 1400] * 3, fragment=True)
        self.client_port.writeBursts([burst])
        self.assertEqual(self.world.network.captured, [])
        self.assertEqual(self.client_port.counters, {"ENOBUFS": 3})

    def test_socket_full_amid_a_fragmentable_burst(self) -> None:
        """What waits for room is still allowed to be fragmented, and DF is on meanwhile."""
        sender = socket_of(self.world, self.client_port)
        sender.room = 1
        burst = burst_of(self.to_hub("192.0.2.1"), [b"x" * 1400] * 3, fragment=True)
        self.client_port.writeBursts([burst])
        self.assertEqual(sender.options[IP_MTU_DISCOVER], PROBE)
        self.assertEqual(len(self.world.network.captured), 1)
        sender.room = None
        self.world.reactor.settle()
        self.assertEqual([d.fragment for d in self.world.network.captured], [True] * 3)
        self.assertEqual(self.client_port.counters, {"EAGAIN": 1})

    def test_switching_fails(self) -> None:
        """If DF cannot be lifted the datagram is sent as it is; what it draws is counted."""
        sender = socket_of(self.world, self.client_port)
        sender.option_errors[IP_MTU_DISCOVER] = errno.EPERM
        to_hub = self.to_hub("192.0.2.1")
        for size in (1400, 1000):
            self.client_port.writeBursts([burst_of(to_hub, [bytes(size)], fragment=True)])
        self.world.reactor.settle()
        self.assertEqual([len(datagram) for datagram in self.hub.datagrams()], [1000])
        self.assertEqual(self.client_port.counters, {"EPERM": 4, "EMSGSIZE": 1})


class RefusedTests(SynchronousTestCase):
    """Kernels that do not know the options."""

    def opened(self, *unknown: tuple[int, int], ipv6: bool = True) -> Any:
        self.world = MemoryWorld(self)
        self.world.hosts["client"].unknown.update(unknown)
        return self.world.port(self, Receiver(), "client", pin_source=False, ipv6=ipv6)

    def test_no_df(self) -> None:
        """Without either option the port works, says that DF is off, and counts it once."""
        for option in (IP_MTU_DISCOVER, IPV6_MTU_DISCOVER):
            port = self.opened(option)
            self.assertFalse(port.df)
            self.assertEqual(port.counters, {"df_refused": 1})
            address = "192.0.2.1" if option == IP_MTU_DISCOVER else "2001:db8::1"
            port.writeBursts([burst_of(port.endpoint(address, 9), [b"x"], fragment=True)])
            [datagram] = self.world.network.captured
            self.assertTrue(datagram.fragment)
        self.assertTrue(self.opened().df, "the control")
        self.assertTrue(self.opened(ipv6=False).df)

    def test_no_omit(self) -> None:
        """Kernels before 3.13 know DONT alone, which is as good for a path that we do not track."""
        world = self.world = MemoryWorld(self)
        original = world.hosts["client"].socket

        def without_omit(family: int, type: int) -> Any:
            sock = original(family, type)
            known = sock.setsockopt
            self.values: list[tuple[int, int, int]] = []

            def setsockopt(level: int, option: int, value: int) -> None:
                self.values.append((level, option, value))
                if (level, option) == IP_MTU_DISCOVER and value == OMIT:
                    raise OSError(errno.EINVAL, "planted")
                known(level, option, value)

            sock.setsockopt = setsockopt
            return sock

        world.hosts["client"].socket = without_omit
        port = world.port(self, Receiver(), "client", pin_source=False)
        self.assertTrue(port.df)
        self.values.clear()
        port.writeBursts([burst_of(port.endpoint("192.0.2.1", 9), [b"x"], fragment=True)])
        self.assertIn((*IP_MTU_DISCOVER, DONT), self.values)
        self.assertIn((*IPV6_MTU_DISCOVER, DONT), self.values)
        self.assertTrue(world.network.captured[0].fragment)
        self.assertEqual(port.counters, {})


class KernelFragmentTests(FragmentMixin, SynchronousTestCase):
    """On the kernel, over a veth of 1280 bytes (root)."""

    make_world = NamespaceWorld

    def narrow(self) -> None:
        for side, device in (("client", "tov0"), ("hub", "tov1")):
            self.world.namespaces[side].ip(f"link set {device} mtu 1280")

    def test_a_narrow_hop_behind_a_wide_one(self) -> None:
        """A router's 1280-byte link: IPv4 is cut there, IPv6 here once the router has told us."""
        far = self.far_behind_a_narrow_link()
        for address in ("10.9.0.2", "2001:db8:9::2"):
            to_far = self.client_port.endpoint(address, far.port.localPort)
            far.bursts.clear()
            self.client_port.writeBursts([burst_of(to_far, [b"lost" * 350])])

            def arrived(to_far: UDPEndpoint = to_far) -> bool:
                self.client_port.writeBursts([burst_of(to_far, [b"x" * 1400], fragment=True)])
                return b"x" * 1400 in far.datagrams()

            self.world.until(arrived)
            self.assertEqual(set(far.datagrams()), {b"x" * 1400}, "the first is the control")
            self.assertEqual(self.client_port.counters, {})

    def far_behind_a_narrow_link(self) -> Receiver:
        """A port on a third machine; the hub's is the router, its link there carries 1280."""
        client, hub = self.world.namespaces["client"], self.world.namespaces["hub"]
        far = Namespace()
        self.addCleanup(far.close)
        client.ip("link set tov0 mtu 1500")
        hub.ip("link set tov1 mtu 1500")
        hub.ip(f"link add tov2 mtu 1280 type veth peer name tov3 mtu 1280 netns {far.path()}")
        for side, device, host in ((hub, "tov2", 1), (far, "tov3", 2)):
            side.ip(f"address add 10.9.0.{host}/24 dev {device}")
            side.ip(f"address add 2001:db8:9::{host}/64 dev {device} nodad")
            side.ip(f"link set {device} up")
        far.ip("route add default via 10.9.0.1")
        far.ip("route add default via 2001:db8:9::1")
        client.ip("route add 10.9.0.0/24 via 198.51.100.1")
        client.ip("route add 2001:db8:9::/64 via 2001:db8:7::1")
        with hub.inside():
            for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                Path("/proc/sys/net", switch).write_text("1", encoding="ascii")
        receiver = Receiver()
        with far.inside():
            receiver.port = UDPPort(0, receiver, reactor=self.world.reactor)
            receiver.port.bind()
        self.addCleanup(receiver.port.close)
        receiver.port.startReading()
        return receiver
