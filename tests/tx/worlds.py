"""Where the port tests run: the memory network, the loopback of this machine, a namespace."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.burst import Buffer, Burst
from pyvpn.testing.memory import MemoryHost, MemoryNetwork
from pyvpn.testing.reactor import MemoryReactor
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.udp import UDPPort
from tests.tx.namespace import Namespace

# Long enough for a machine under load; a condition that holds ends the wait at once.
PATIENCE = 10.0


class Receiver:
    """Notes what a UDPPort tells; sends back what it got if ``echo``."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.port: UDPPort
        self.bursts: list[tuple[bytes, int, UDPEndpoint]] = []
        self.calls: list[str] = []
        self.fail = False
        self._answers: list[Burst] = []

    def burstReceived(self, memory: Buffer, size: int, endpoint: UDPEndpoint) -> None:
        buffer = bytes(memory)  # which is good until we return
        self.calls.append("burst")
        self.bursts.append((buffer, size, endpoint))
        if self.fail:
            raise RuntimeError("planted")
        if self.echo:
            self._answers += [
                burst_of(endpoint, [buffer[start : start + size]])
                for start in range(0, len(buffer), size)
            ]

    def turnEnded(self) -> None:
        self.calls.append("turn")
        answers, self._answers = self._answers, []
        if answers:
            self.port.writeBursts(answers)

    def sendingPaused(self) -> None:
        self.calls.append("paused")

    def sendingResumed(self) -> None:
        self.calls.append("resumed")

    def udpConnectionLost(self, reason: Failure) -> None:
        self.calls.append("lost")

    def datagrams(self) -> list[bytes]:
        """All datagrams, bursts taken apart."""
        return [
            buffer[start : start + size]
            for buffer, size, _ in self.bursts
            for start in range(0, len(buffer), size)
        ]


def burst_of(endpoint: UDPEndpoint, datagrams: list[bytes], fragment: bool = False) -> Burst:
    """A burst as the core makes it: a head of up to 16 bytes and a body for each datagram."""
    buffers: list[Any] = []
    for datagram in datagrams:
        buffers += [datagram[:16], memoryview(datagram)[16:]]
    return Burst(endpoint, buffers, len(datagrams[0]), fragment)


class World:
    """A network with a hub that has several addresses, and a client.

    :cvar unreachable: an address that the client cannot send to and the errno it draws.
    """

    hub_addresses: ClassVar[list[str]]
    client_addresses: ClassVar[dict[int, str]]
    unreachable: ClassVar[tuple[str, str]]

    def __init__(self, test: SynchronousTestCase) -> None:
        raise NotImplementedError

    def system(self, side: str, ipv6: bool = True) -> Any:
        """The ``system=`` of a port on "hub" or "client"."""
        raise NotImplementedError

    def until(self, condition: Callable[[], bool]) -> None:
        """Let things happen until the condition holds; fail if it does not."""
        raise NotImplementedError

    def inside(self, side: str) -> Any:
        """A context in which ports of that side may be opened."""
        return nullcontext()

    def port(
        self,
        test: SynchronousTestCase,
        receiver: Receiver,
        side: str,
        port: int = 0,
        interface: str = "",
        pin_source: bool = True,
        ipv6: bool = True,
        reading: bool = True,
    ) -> UDPPort:
        """A bound port, closed with the test."""
        made = UDPPort(port, receiver, interface, self.reactor, self.system(side, ipv6), pin_source)
        receiver.port = made
        with self.inside(side):
            made.bind()
        test.addCleanup(made.close)
        if reading:
            made.startReading()
        return made

    reactor: Any


class MemoryWorld(World):
    """Everything in memory."""

    hub_addresses: ClassVar[list[str]] = [
        "192.0.2.1",
        "192.0.2.2",
        "2001:db8::1",
        "2001:db8::2",
    ]
    client_addresses: ClassVar[dict[int, str]] = {4: "198.51.100.7", 6: "2001:db8:7::7"}
    unreachable: ClassVar[tuple[str, str]] = ("203.0.113.1", "EHOSTUNREACH")

    def __init__(self, test: SynchronousTestCase) -> None:
        self.network = MemoryNetwork()
        self.reactor = MemoryReactor(self.network)
        self.hosts = {
            "hub": MemoryHost(self.network, self.hub_addresses),
            "client": MemoryHost(self.network, self.client_addresses.values()),
        }
        self.hosts["client"].unreachable[self.unreachable[0]] = errno.EHOSTUNREACH

    def system(self, side: str, ipv6: bool = True) -> Any:
        self.hosts[side].ipv6 = ipv6
        return self.hosts[side]

    def until(self, condition: Callable[[], bool]) -> None:
        self.reactor.settle()
        assert condition(), "the network came to rest and the condition does not hold"


class LoopbackWorld(World):
    """Kernel sockets on the loopback of this machine; the reactor is the real one."""

    hub_addresses: ClassVar[list[str]] = ["127.0.0.2", "127.0.0.3", "::1"]
    client_addresses: ClassVar[dict[int, str]] = {4: "127.0.0.1", 6: "::1"}
    # Without SO_BROADCAST.
    unreachable: ClassVar[tuple[str, str]] = ("255.255.255.255", "EACCES")

    def __init__(self, test: SynchronousTestCase) -> None:
        self.reactor = reactor_for(test)

    def system(self, side: str, ipv6: bool = True) -> Any:
        return socket if ipv6 else KernelWithoutIPv6

    def until(self, condition: Callable[[], bool]) -> None:
        run_until(self.reactor, condition)


class NamespaceWorld(LoopbackWorld):
    """Kernel sockets in two namespaces.

    ::

        client                             hub
        198.51.100.7, 2001:db8:7::7        198.51.100.1, 2001:db8:7::1 (the kernel's choice)
                     tov0 ---------------- tov1
                                           lo: 192.0.2.1, 192.0.2.2, 2001:db8::1, 2001:db8::2
    """

    hub_addresses: ClassVar[list[str]] = [
        "192.0.2.1",
        "192.0.2.2",
        "198.51.100.1",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:7::1",
    ]
    client_addresses: ClassVar[dict[int, str]] = {4: "198.51.100.7", 6: "2001:db8:7::7"}
    unreachable: ClassVar[tuple[str, str]] = ("203.0.113.1", "ENETUNREACH")

    def __init__(self, test: SynchronousTestCase) -> None:
        self.namespaces = {"hub": Namespace(), "client": Namespace()}
        hub, client = self.namespaces["hub"], self.namespaces["client"]
        test.addCleanup(hub.close)
        test.addCleanup(client.close)
        client.ip(f"link add tov0 type veth peer name tov1 netns {hub.path()}")
        client.ip("address add 198.51.100.7/24 dev tov0")
        client.ip("address add 2001:db8:7::7/64 dev tov0 nodad")
        hub.ip("address add 198.51.100.1/24 dev tov1")
        hub.ip("address add 2001:db8:7::1/64 dev tov1 nodad")
        for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"):
            hub.ip(f"address add {address} dev lo")
        hub.ip("link set tov1 up")
        client.ip("link set tov0 up")
        client.ip("route add 192.0.2.0/24 via 198.51.100.1")
        client.ip("route add 2001:db8::/64 via 2001:db8:7::1")
        super().__init__(test)

    def inside(self, side: str) -> Any:
        return self.namespaces[side].inside()


class KernelWithoutIPv6:
    """The ``socket`` module of a kernel that was started with ipv6.disable=1."""

    @staticmethod
    def socket(family: int, type: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return socket.socket(family, type)


def reactor_for(test: SynchronousTestCase) -> EPollReactor:
    """An epoll reactor of the test's own, not installed; its descriptors end with the test."""
    reactor = EPollReactor()

    def end() -> None:
        reactor.removeAll()
        reactor.waker.connectionLost(None)
        reactor._poller.close()

    test.addCleanup(end)
    return reactor


def run_until(reactor: EPollReactor, condition: Callable[[], bool]) -> None:
    """Run the reactor until the condition holds.

    :raises AssertionError: it does not within PATIENCE.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition does not hold after {PATIENCE} s")
        reactor.runUntilCurrent()
        reactor.doIteration(0.0 if reactor.getDelayedCalls() else 0.05)


class Ports(SynchronousTestCase):
    """A hub that echoes and a client in one world."""

    make_world: type[World]

    def make_ports(self) -> None:
        self.world: Any = self.make_world(self)
        self.hub = Receiver(echo=True)
        self.client = Receiver()
        self.hub_port = self.world.port(self, self.hub, "hub")
        self.client_port = self.world.port(self, self.client, "client", pin_source=False)

    def to_hub(self, address: str = "") -> UDPEndpoint:
        return self.client_port.endpoint(
            address or self.world.hub_addresses[0], self.hub_port.localPort
        )

    def exchange(self, *runs: list[bytes], address: str = "") -> None:
        """Send the runs to the hub; all of it must come back, in order."""
        self.client.bursts.clear()
        self.client_port.writeBursts([burst_of(self.to_hub(address), run) for run in runs])
        expected = [datagram for run in runs for datagram in run]
        self.world.until(lambda: len(self.client.datagrams()) >= len(expected))
        self.assertEqual(self.client.datagrams(), expected)
