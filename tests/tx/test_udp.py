"""UDPPort: one mixin on the memory network, on the loopback, and in a namespace."""

from __future__ import annotations

import errno
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent, globalLogPublisher

from pyvpn.core.burst import Burst
from pyvpn.errors import StartError
from pyvpn.testing.memory import Datagram, MemorySocket
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.lonereads import MOST_TURNS
from pyvpn.tx.udp import MOST_UNSENT, TURN_DATAGRAMS
from tests.tx.worlds import (
    LoopbackWorld,
    MemoryWorld,
    NamespaceWorld,
    Ports,
    Receiver,
    burst_of,
)

# Source addresses of nobody, as in6_pktinfo.
FOREIGN_PKTINFO = {
    4: bytes(10) + b"\xff\xff" + ip_address("192.0.2.99").packed + bytes(4),
    6: ip_address("2001:db8::99").packed + bytes(4),
}


class UDPPortMixin:
    """What must hold on every network."""

    def setUp(self) -> None:
        self.make_ports()

    def send(self, *datagrams: bytes, address: str = "") -> None:
        """The client sends."""
        to_hub = self.to_hub(address)
        self.client_port.writeBursts([burst_of(to_hub, [datagram]) for datagram in datagrams])

    def test_answers_leave_from_the_address_asked(self) -> None:
        """A client and its NAT know the hub by one address: that is where answers come from."""
        for address in self.world.hub_addresses:
            self.client.bursts.clear()
            self.send(b"question", address=address)
            self.world.until(lambda: bool(self.client.bursts))
            [(buffer, size, endpoint)] = self.client.bursts
            self.assertEqual((buffer, size), (b"question", 8))
            self.assertEqual(endpoint, self.to_hub(address))
            asked = self.to_hub(address).wire_address()[:16]
            # No interface index: routing chooses the way back.
            self.assertEqual(self.hub.bursts[-1][2].local, asked + bytes(4))

    def test_answers_without_the_pinned_source(self) -> None:
        """The control of the test above: left to the kernel, some answer leaves from elsewhere."""
        self.hub.echo = False
        sources = set()
        for address in self.world.hub_addresses:
            self.client.bursts.clear()
            self.hub.bursts.clear()
            self.send(b"question", address=address)
            self.world.until(lambda: bool(self.hub.bursts))
            asked = self.hub.bursts[0][2]
            self.hub_port.writeBursts([burst_of(UDPEndpoint(asked.remote), [b"answer"])])
            self.world.until(lambda: bool(self.client.bursts))
            sources.add(self.client.bursts[0][2].host)
        self.assertLess(len(sources), len(self.world.hub_addresses))

    def test_endpoint_tells_the_sender(self) -> None:
        """The hub sees the client's address and port, IPv4 through the same socket."""
        for number, address in enumerate(self.world.hub_addresses):
            self.send(b"x", address=address)
            self.world.until(lambda number=number: len(self.hub.bursts) == number + 1)
            endpoint = self.hub.bursts[-1][2]
            version = ip_address(address).version
            self.assertEqual(endpoint.port, self.client_port.localPort)
            self.assertEqual(endpoint.host, self.world.client_addresses[version])
            self.assertEqual(str(endpoint.remote[0]).startswith("::ffff:"), version == 4)

    def test_a_run_is_one_burst(self) -> None:
        """Equal datagrams of a sender go up as one burst; a shorter one ends it, as with GRO."""
        run = [bytes([n]) * 100 for n in range(5)]
        self.hub_port.stopReading()
        self.send(*run, b"short", *run, b"longer" * 50)
        self.hub_port.startReading()
        self.world.until(lambda: len(self.hub.datagrams()) == 12)
        self.assertEqual(
            [(len(buffer), size) for buffer, size, _ in self.hub.bursts],
            [(505, 100), (500, 100), (300, 300)],
        )
        self.assertEqual(self.hub.datagrams(), [*run, b"short", *run, b"longer" * 50])
        endpoints = [endpoint for _, _, endpoint in self.hub.bursts]
        self.assertIs(endpoints[0], endpoints[2], "a run of one sender makes no new object")

    def test_two_senders_are_two_bursts(self) -> None:
        """Datagrams of different senders never share a burst, nor an endpoint."""
        other = self.world.port(self, Receiver(), "client", pin_source=False)
        self.hub_port.stopReading()
        self.send(b"one")
        other.writeBursts([burst_of(self.to_hub(), [b"two"])])
        self.send(b"one")
        self.hub_port.startReading()
        self.world.until(lambda: len(self.hub.bursts) == 2)
        self.assertEqual(
            [(buffer, endpoint.port) for buffer, _, endpoint in self.hub.bursts],
            [(b"oneone", self.client_port.localPort), (b"two", other.localPort)],
        )

    def test_two_addresses_asked_are_two_bursts(self) -> None:
        """One sender that asks two of our addresses in one turn is answered from each."""
        asked = self.world.hub_addresses[:2]
        self.hub_port.stopReading()
        for address in (*asked, *asked):
            self.send(address.encode().ljust(20), address=address)
        self.hub_port.startReading()
        self.world.until(lambda: len(self.client.datagrams()) == 4)
        self.assertEqual(len(self.hub.bursts), 2)
        for buffer, size, endpoint in self.client.bursts:
            for start in range(0, len(buffer), size):
                self.assertEqual(endpoint.host, buffer[start : start + size].decode().rstrip())

    def test_a_turn_is_bounded(self) -> None:
        """A flood leaves room for timers: one turn takes its bound, then says that it ended."""
        self.hub_port.stopReading()
        sent = [b"%05d" % n for n in range(3 * TURN_DATAGRAMS)]
        self.send(*sent)
        self.hub.echo = False
        self.hub_port.doRead()
        self.assertEqual(self.hub.datagrams(), sent[:TURN_DATAGRAMS])
        self.assertEqual(self.hub.calls.index("turn"), len(self.hub.calls) - 1)
        self.hub_port.startReading()
        self.world.until(lambda: len(self.hub.datagrams()) == len(sent))
        self.assertEqual(self.hub.datagrams(), sent)

    def test_order_and_shapes(self) -> None:
        """Bursts arrive whole and in order: many datagrams, a short last, an empty body."""
        datagrams = [[b"a" * 64] * 10 + [b"b" * 20], [b"c" * 16], [b"d"] * 40]
        self.client_port.writeBursts([burst_of(self.to_hub(), run) for run in datagrams])
        expected = [datagram for run in datagrams for datagram in run]
        self.world.until(lambda: len(self.hub.datagrams()) == len(expected))
        self.assertEqual(self.hub.datagrams(), expected)

    def test_unreachable(self) -> None:
        """What the network refuses is counted by its errno name; the next datagram goes out."""
        address, name = self.world.unreachable
        nowhere = self.client_port.endpoint(address, 9)
        self.client_port.writeBursts(
            [burst_of(nowhere, [b"lost"] * 3), burst_of(self.to_hub(), [b"arrives"])]
        )
        self.world.until(lambda: self.hub.datagrams() == [b"arrives"])
        self.assertEqual(self.client_port.counters, {name: 3})

    def test_refusals_are_logged_seldom(self) -> None:
        """A dead network fails every datagram: one line in ten seconds tells it."""
        address, name = self.world.unreachable
        lines: list[LogEvent] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        nowhere = self.client_port.endpoint(address, 9)
        self.client_port.writeBursts([burst_of(nowhere, [b"lost"] * 50)] * 2)
        self.assertEqual(self.client_port.counters, {name: 100})
        self.assertEqual([line.get("name") for line in lines], [name])

    def test_too_long(self) -> None:
        """A datagram that UDP cannot carry is counted, not raised."""
        self.client_port.writeBursts(
            [
                Burst(self.to_hub(), [b"head", bytes(70_000)], 70_004),
                burst_of(self.to_hub(), [b"y"]),
            ]
        )
        self.world.until(lambda: self.hub.datagrams() == [b"y"])
        self.assertEqual(self.client_port.counters, {"EMSGSIZE": 1})

    def test_longest(self) -> None:
        """The longest datagram of UDP arrives whole, in fragments if it has to."""
        longest = bytes(range(256)) * 255 + bytes(65_507 - 255 * 256)
        self.client_port.writeBursts([burst_of(self.to_hub(), [longest], fragment=True)])
        self.world.until(lambda: bool(self.hub.bursts))
        self.assertEqual(self.hub.bursts[0][:2], (longest, 65_507))

    def test_empty_datagram(self) -> None:
        """A datagram of no bytes is no burst (its size would divide by zero) but is counted."""
        self.client_port.writeBursts([Burst(self.to_hub(), [b"", b""], 0)])
        self.send(b"something")
        self.world.until(lambda: bool(self.hub.bursts))
        self.assertEqual(self.hub.datagrams(), [b"something"])
        self.assertEqual(self.hub_port.counters, {"empty_datagram": 1})

    def test_source_address_gone(self) -> None:
        """When the address that was asked is ours no more, the answer leaves from another."""
        for number, address in enumerate(self.world.hub_addresses):
            self.client.bursts.clear()
            self.send(b"question", address=address)
            self.world.until(lambda: bool(self.client.bursts))
            asked = self.hub.bursts[-1][2]
            self.client.bursts.clear()
            foreign = FOREIGN_PKTINFO[ip_address(address).version]
            self.hub_port.writeBursts(
                [burst_of(UDPEndpoint(asked.remote, foreign), [b"one", b"two"])]
            )
            self.world.until(lambda: len(self.client.datagrams()) == 2)
            self.assertEqual(self.client.datagrams(), [b"one", b"two"])
            self.assertEqual(self.hub_port.counters, {"source_gone": 2 * number + 2})

    def test_exception_above(self) -> None:
        """A bug above does not take the reader out of the reactor; it is counted and logged."""
        self.hub.fail = True
        self.send(b"first")
        self.world.until(lambda: self.hub_port.counters.get("exception") == 1)
        self.hub.fail = False
        self.send(b"second")
        self.world.until(lambda: self.client.datagrams() == [b"second"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_port_in_use(self) -> None:
        """A busy port is one line with the remedy, and leaves the other program's alone."""
        taken = self.hub_port.localPort
        error = self.assertRaises(StartError, self.world.port, self, Receiver(), "hub", port=taken)
        self.assertEqual(
            str(error),
            f"UDP port {taken} is in use by another program; choose another with --port, "
            "or stop it",
        )
        self.send(b"still here")
        self.world.until(lambda: self.client.datagrams() == [b"still here"])

    def test_not_our_address(self) -> None:
        """An address of somebody else, or no address, is one line."""
        for interface, words in (
            ("192.0.2.77", "192.0.2.77 is not an address of this machine"),
            ("2001:db8::77", "2001:db8::77 is not an address of this machine"),
            ("localhost", "'localhost' does not appear to be an IPv4 or IPv6 address"),
        ):
            error = self.assertRaises(
                StartError, self.world.port, self, Receiver(), "hub", interface=interface
            )
            self.assertIn(words, str(error))
            self.assertNotIn("\n", str(error))

    def test_one_interface(self) -> None:
        """Bound to one address the port hears and answers there alone."""
        for number, address in enumerate(self.world.hub_addresses):
            other = self.world.hub_addresses[number - 1]
            receiver = Receiver(echo=True)
            bound = self.world.port(self, receiver, "hub", interface=address)
            for target in (other, address):
                to_bound = self.client_port.endpoint(target, bound.localPort)
                self.client_port.writeBursts([burst_of(to_bound, [target.encode()])])
            self.world.until(lambda: bool(self.client.bursts))
            self.assertEqual(receiver.datagrams(), [address.encode()])
            self.assertEqual(receiver.bursts[0][2].local, b"")
            self.assertEqual(self.client.bursts[0][2], to_bound)
            self.client.bursts.clear()

    def test_kernel_without_ipv6(self) -> None:
        """Where the kernel has no IPv6 the port is an IPv4 one and pins its source as well."""
        receiver = Receiver(echo=True)
        port = self.world.port(self, receiver, "hub", ipv6=False)
        for address in self.world.hub_addresses:
            if ":" in address:
                self.assertRaises(ValueError, port.endpoint, address, 1)
                continue
            to_port = self.client_port.endpoint(address, port.localPort)
            self.client.bursts.clear()
            self.client_port.writeBursts([burst_of(to_port, [b"four"])])
            self.world.until(lambda: bool(self.client.bursts))
            self.assertEqual(self.client.bursts[0][2], to_port)
            endpoint = receiver.bursts[-1][2]
            self.assertEqual(endpoint.remote, (endpoint.host, self.client_port.localPort))
            self.assertEqual(endpoint.wire_address()[:12], bytes(10) + b"\xff\xff")

    def test_closed(self) -> None:
        """A closed port takes nothing, says so by a counter, and frees its number."""
        number = self.hub_port.localPort
        self.hub_port.close()
        self.hub_port.close()
        self.assertEqual(self.hub_port.localPort, 0)
        self.hub_port.writeBursts([burst_of(self.to_hub(), [b"x"])])
        self.hub_port.startReading()
        self.hub_port.doWrite()
        self.assertEqual(self.hub_port.counters, {"closed": 1})
        again = Receiver(echo=True)
        self.hub_port = self.world.port(self, again, "hub", port=number)
        self.send(b"again")
        self.world.until(lambda: self.client.datagrams() == [b"again"])
        self.assertEqual(self.hub.bursts, [])

    def test_closed_by_what_was_delivered(self) -> None:
        """A service may stop in the middle of a turn."""
        self.hub_port.stopReading()
        self.send(b"aa", b"b" * 3, b"c" * 4)
        self.hub.burstReceived = lambda *args: self.hub_port.close()  # type: ignore[method-assign]
        self.hub_port.startReading()
        self.world.until(lambda: self.hub_port.localPort == 0)
        self.assertEqual(self.hub_port.counters, {})


class MemoryUDPPortTests(UDPPortMixin, Ports):
    """On the memory network, and what only it can provoke at will."""

    make_world = MemoryWorld
    world: MemoryWorld

    def client_socket(self) -> MemorySocket:
        found = self.world.network.descriptors[self.client_port.fileno()]
        assert isinstance(found, MemorySocket)
        return found

    def hub_socket(self) -> MemorySocket:
        found = self.world.network.descriptors[self.hub_port.fileno()]
        assert isinstance(found, MemorySocket)
        return found

    def test_back_pressure(self) -> None:
        """A full socket holds the rest back, says so once, and sends it first once it has room."""
        self.hub.echo = False
        socket = self.client_socket()
        socket.room = 3
        first = [b"%02d" % n for n in range(12)]
        self.client_port.writeBursts(
            [burst_of(self.to_hub(), first[start : start + 4]) for start in (0, 4, 8)]
        )
        self.send(b"12", b"13")
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), first[:4])
        self.assertEqual(self.client.calls, ["paused"])
        socket.room = 2
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), first[:8])
        self.assertEqual(self.client.calls, ["paused"])
        socket.room = 100
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), [*first, b"12", b"13"])
        self.assertEqual(self.client.calls, ["paused", "resumed"])
        self.assertEqual(self.client_port.counters, {"EAGAIN": 1})
        self.assertEqual(self.world.reactor.getWriters(), [])

    @given(
        st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=12),
        st.lists(st.integers(0, 7), max_size=40),
    )
    @settings(deadline=None, max_examples=60)
    def test_back_pressure_loses_nothing(self, lists: list[list[int]], rooms: list[int]) -> None:
        """However the room comes and goes, every datagram leaves once and in order."""
        self.world = MemoryWorld(self)
        self.hub, self.client = Receiver(), Receiver()
        self.hub_port = self.world.port(self, self.hub, "hub")
        self.client_port = self.world.port(self, self.client, "client")
        socket = self.client_socket()
        sent: list[bytes] = []
        room = iter(rooms)
        for runs in lists:
            socket.room = (socket.room or 0) + next(room, 0)
            bursts = []
            for length in runs:
                run = [b"%06d" % (len(sent) + n) for n in range(length)]
                sent += run
                bursts.append(burst_of(self.to_hub(), run))
            self.client_port.writeBursts(bursts)
            self.world.reactor.settle()
            self.assertEqual(self.hub.datagrams(), sent[: len(self.hub.datagrams())])
        for more in room:
            socket.room += more
            self.world.reactor.settle()
        socket.room = None
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), sent)
        calls = [call for call in self.client.calls if call in ("paused", "resumed")]
        self.assertEqual(calls, ["paused", "resumed"] * (len(calls) // 2))

    def test_back_pressure_is_bounded(self) -> None:
        """What does not fit in the bound is dropped and counted; the rest keeps its order."""
        self.hub.echo = False
        socket = self.client_socket()
        socket.room = 0
        sent = [b"%05d" % n for n in range(MOST_UNSENT + 50)]
        self.send(*sent[:10])
        self.send(*sent[10:])
        self.assertEqual(self.client_port.counters, {"EAGAIN": 1, "send_queue_full": 50})
        socket.room = None
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), sent[:MOST_UNSENT])

    def test_back_pressure_then_an_error(self) -> None:
        """A datagram that fails while the rest is sent does not hold up those behind it."""
        self.hub.echo = False
        socket = self.client_socket()
        socket.room = 0
        nowhere = self.client_port.endpoint(self.world.unreachable[0], 9)
        self.send(b"before")
        self.client_port.writeBursts([burst_of(nowhere, [b"lost"])])
        self.send(b"behind")
        socket.room = None
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), [b"before", b"behind"])
        self.assertEqual(self.client.calls, ["paused", "resumed"])

    def test_full_while_the_source_is_gone(self) -> None:
        """The second try, from another address, may find the socket full: nothing is lost."""
        self.send(b"question")
        self.world.reactor.settle()
        lost = UDPEndpoint(self.hub.bursts[0][2].remote, FOREIGN_PKTINFO[4])
        self.client.bursts.clear()
        self.hub_socket().room = 1
        self.hub_port.writeBursts([burst_of(lost, [b"one", b"two"])])
        self.world.reactor.settle()
        self.assertEqual(self.client.datagrams(), [b"one"])
        self.hub_socket().room = None
        self.world.reactor.settle()
        self.assertEqual(self.client.datagrams(), [b"one", b"two"])

    def test_closed_while_full(self) -> None:
        """Closing a full port takes its writer out of the reactor."""
        self.client_socket().room = 0
        self.send(b"never")
        self.assertEqual(self.world.reactor.getWriters(), [self.client_port])
        self.client_port.close()
        self.assertEqual(self.world.reactor.getWriters(), [])

    def test_errors_of_reading(self) -> None:
        """An error that the kernel reports on a read is counted and reading goes on."""
        self.hub_socket().receive_errors.extend([errno.ECONNREFUSED, errno.EHOSTUNREACH])
        self.send(b"behind")
        self.world.until(lambda: self.client.datagrams() == [b"behind"])
        self.assertEqual(self.hub_port.counters, {"ECONNREFUSED": 1, "EHOSTUNREACH": 1})

    def test_source_port_zero(self) -> None:
        """Nobody can be answered at port 0: such a datagram is dropped and counted."""
        here = ip_address(self.world.hub_addresses[0])
        there = ip_address(self.world.client_addresses[4])
        for source_port in (0, 7):
            self.world.network.carry(
                Datagram(there, source_port, here, self.hub_port.localPort, b"%d" % source_port)
            )
        self.world.until(lambda: self.hub.datagrams() == [b"7"])
        self.assertEqual(self.hub_port.counters, {"source_port_zero": 1})

    def test_lone_datagrams_need_one_read(self) -> None:
        """A ping costs no second read, but for a probe every few turns."""
        self.hub.echo = False
        socket = self.hub_socket()
        for _ in range(10 * MOST_TURNS):
            self.send(b"ping")
            self.world.reactor.settle()
        lone = socket.receives
        self.assertLess(lone, 10 * MOST_TURNS * 1.15)
        for _ in range(10):
            self.send(b"x" * 1400)
            self.world.reactor.settle()
        self.assertEqual(socket.receives - lone, 20, "the control: bulk is probed for more")

    def test_many_after_lone_ones(self) -> None:
        """A burst after lone datagrams is drained in few turns, in order."""
        self.hub.echo = False
        for _ in range(100):
            self.send(b"ping")
            self.world.reactor.settle()
        self.hub.bursts.clear()
        self.hub.calls.clear()
        sent = [b"%04d" % n for n in range(200)]
        self.send(*sent)
        self.world.reactor.settle()
        self.assertEqual(self.hub.datagrams(), sent)
        self.assertLess(self.hub.calls.count("turn"), MOST_TURNS + 6)

    def test_few_after_lone_ones(self) -> None:
        """Where several small datagrams come at a time each turn drains them all."""
        self.hub.echo = False
        for _ in range(100):
            self.send(b"ping")
            self.world.reactor.settle()
        for _ in range(MOST_TURNS):
            self.send(b"one", b"two", b"three")
            self.world.reactor.settle()
        self.hub.calls.clear()
        for _ in range(20):
            self.send(b"one", b"two", b"three")
            self.world.reactor.settle()
        self.assertEqual(self.hub.calls.count("turn"), 20)

    def test_descriptor_lost(self) -> None:
        """If the reactor gives the socket up, the owner hears of it once."""
        from twisted.internet.main import CONNECTION_LOST
        from twisted.python.failure import Failure

        self.hub_port.connectionLost(Failure(CONNECTION_LOST))
        self.hub_port.connectionLost(Failure(CONNECTION_LOST))
        self.assertEqual(self.hub.calls, ["lost"])
        self.assertEqual(self.hub_port.counters, {"connection_lost": 1})


class LoopbackUDPPortTests(UDPPortMixin, Ports):
    """On the kernel, without privilege."""

    make_world = LoopbackWorld


class NamespaceUDPPortTests(UDPPortMixin, Ports):
    """On the kernel, with several addresses of both families (root)."""

    make_world = NamespaceWorld
