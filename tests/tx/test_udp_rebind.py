"""A UDP port that goes on at another port number, and marks what it sends."""

from __future__ import annotations

import errno
import socket

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import StartError
from pyvpn.tx.udp import UDPPort
from tests.tx.worlds import LoopbackWorld, MemoryWorld, NamespaceWorld, Receiver, World, burst_of

SO_MARK = 36
MARK = 0x8000_0001  # as a signed int it is negative


class RebindMixin:
    """What must hold on every network."""

    make_world: type[World]

    def setUp(self) -> None:
        self.world = self.make_world(self)
        self.hub = Receiver(echo=True)
        self.client = Receiver()
        self.hub_port = self.world.port(self, self.hub, "hub")
        self.client_port = self.world.port(self, self.client, "client", pin_source=False)

    def rebind(self, port: UDPPort, side: str, number: int = 0) -> None:
        with self.world.inside(side):
            port.rebind(number)

    def ask(self, question: bytes) -> None:
        """The client asks the hub, which answers."""
        to_hub = self.client_port.endpoint(self.world.hub_addresses[0], self.hub_port.localPort)
        self.client.bursts.clear()
        self.client_port.writeBursts([burst_of(to_hub, [question])])
        self.world.until(lambda: self.client.datagrams() == [question])

    def test_goes_on(self) -> None:
        """After a move either side receives and answers at its new port, and is known by it."""
        self.ask(b"first")
        before = self.hub_port.localPort
        self.rebind(self.hub_port, "hub")
        self.assertNotIn(self.hub_port.localPort, (0, before))
        self.ask(b"second")
        before = self.client_port.localPort
        self.rebind(self.client_port, "client")
        self.assertNotEqual(self.client_port.localPort, before)
        self.ask(b"third")
        ports = [endpoint.port for _, _, endpoint in self.hub.bursts]
        self.assertEqual(ports, [before, before, self.client_port.localPort])
        self.assertEqual(self.hub.calls.count("lost"), 0)
        self.assertEqual(self.hub_port.counters, {})

    def test_the_old_port_is_free(self) -> None:
        """Somebody else may have the old port at once."""
        before = self.hub_port.localPort
        other = UDPPort(before, Receiver(), "", self.world.reactor, self.world.system("hub"))
        self.addCleanup(other.close)
        with self.world.inside("hub"):
            self.assertRaises(StartError, other.bind)
        self.rebind(self.hub_port, "hub")
        with self.world.inside("hub"):
            other.bind()
        self.assertEqual(other.localPort, before)

    def test_taken(self) -> None:
        """A port that is taken is refused, and the old one goes on."""
        other = self.world.port(self, Receiver(), "hub")
        before = self.hub_port.localPort
        with self.world.inside("hub"):
            error = self.assertRaises(StartError, self.hub_port.rebind, other.localPort)
        self.assertIn(str(other.localPort), str(error))
        self.assertEqual(error.__cause__.errno, errno.EADDRINUSE)
        self.assertEqual(self.hub_port.localPort, before)
        self.ask(b"still there")

    def test_the_same(self) -> None:
        """Moving to where it is keeps the socket."""
        before = self.hub_port.fileno()
        self.rebind(self.hub_port, "hub", self.hub_port.localPort)
        self.assertEqual(self.hub_port.fileno(), before)
        self.ask(b"still there")

    def test_not_reading(self) -> None:
        """A port that was told not to read stays so."""
        self.hub_port.stopReading()
        self.rebind(self.hub_port, "hub")
        self.assertFalse(self.hub_port.reading)
        self.assertNotIn(self.hub_port, self.world.reactor.getReaders())
        self.hub_port.startReading()
        self.ask(b"now")

    def test_before_bind(self) -> None:
        """Before it is open a move says where to open; after it is closed nothing opens."""
        other = self.world.port(self, Receiver(), "hub")
        free = other.localPort
        other.close()
        later = UDPPort(0, Receiver(), "", self.world.reactor, self.world.system("hub"))
        self.addCleanup(later.close)
        self.rebind(later, "hub", free)
        self.assertEqual(later.localPort, 0)
        with self.world.inside("hub"):
            later.bind()
        self.assertEqual(later.localPort, free)
        later.close()
        self.rebind(later, "hub", free)
        self.assertEqual(later.localPort, 0)


class MemoryRebindTests(RebindMixin, SynchronousTestCase):
    make_world = MemoryWorld

    def sockets(self) -> list:
        return self.world.hosts["client"].sockets

    def test_what_waits_is_sent(self) -> None:
        """What a full socket held back leaves from the new one, in order, and all is resumed."""
        self.sockets()[0].room = 1
        to_hub = self.client_port.endpoint(self.world.hub_addresses[0], self.hub_port.localPort)
        sent = [b"%d" % number for number in range(5)]
        self.client_port.writeBursts([burst_of(to_hub, [each]) for each in sent])
        self.assertEqual(self.client.calls, ["paused"])
        self.client_port.rebind(0)
        self.world.until(lambda: self.hub.datagrams() == sent)
        self.world.reactor.settle()
        self.assertEqual(self.client.calls.count("resumed"), 1)
        self.assertEqual(self.world.reactor.getWriters(), [])
        self.assertEqual(len({endpoint.port for _, _, endpoint in self.hub.bursts}), 2)

    def test_the_mark_is_kept(self) -> None:
        """A mark is set on the socket of now, and on each that comes after it."""
        later = UDPPort(0, Receiver(), "", self.world.reactor, self.world.system("client"))
        self.addCleanup(later.close)
        later.set_mark(MARK)
        later.bind()
        self.assertEqual(self.sockets()[-1].options[socket.SOL_SOCKET, SO_MARK], MARK - 2**32)
        later.set_mark(7)
        self.assertEqual(self.sockets()[-1].options[socket.SOL_SOCKET, SO_MARK], 7)
        later.rebind(0)
        self.assertEqual(self.sockets()[-1].options[socket.SOL_SOCKET, SO_MARK], 7)
        later.set_mark(0)
        self.assertEqual(self.sockets()[-1].options[socket.SOL_SOCKET, SO_MARK], 0)
        later.rebind(0)
        self.assertNotIn((socket.SOL_SOCKET, SO_MARK), self.sockets()[-1].options)

    def test_no_privilege(self) -> None:
        """A mark that the kernel refuses changes nothing."""
        self.sockets()[0].option_errors[socket.SOL_SOCKET, SO_MARK] = errno.EPERM
        self.assertRaises(PermissionError, self.client_port.set_mark, 7)
        self.assertEqual(self.client_port.mark, 0)


class LoopbackRebindTests(RebindMixin, SynchronousTestCase):
    make_world = LoopbackWorld


class NamespaceRebindTests(RebindMixin, SynchronousTestCase):
    make_world = NamespaceWorld

    def test_mark(self) -> None:
        """Rules that look at the mark see it, also after a move, until it is taken away."""
        client = self.world.namespaces["client"]
        client.ip(f"rule add fwmark {MARK} unreachable")
        self.ask(b"unmarked")
        with self.world.inside("client"):
            self.client_port.set_mark(MARK)
        to_hub = self.client_port.endpoint(self.world.hub_addresses[0], self.hub_port.localPort)
        for number in (1, 2):
            self.client_port.writeBursts([burst_of(to_hub, [b"marked"])])
            self.assertEqual(self.client_port.counters, {"ENETUNREACH": number})
            self.rebind(self.client_port, "client")
        self.client_port.set_mark(0)
        self.ask(b"unmarked again")
