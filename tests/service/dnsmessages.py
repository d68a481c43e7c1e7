"""DNS messages as octets, for the tests of the hub's name server, and servers to ask."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import DatagramProtocol, Protocol, ServerFactory
from twisted.names import dns

from pyvpn.testing.clock import ClockTimer, VirtualClock

# RFC 1035 4.1.1 and RFC 6891 6.1.2, retyped.
A, NS, SOA, PTR, HINFO, AAAA, OPT, HTTPS, AXFR, ANY = 1, 2, 6, 12, 13, 28, 41, 65, 252, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x80, 0x20, 0x10


def wire_name(text: str) -> bytes:
    """A name as it stands in a message."""
    labels = [part.encode() for part in text.split(".") if part]
    return b"".join(bytes((len(part),)) + part for part in labels) + b"\0"


def opt(size: int = 1232, version: int = 0, flags: int = 0, data: bytes = b"") -> bytes:
    """An OPT record."""
    return b"\0" + struct.pack("!HHBBHH", OPT, size, 0, version, flags, len(data)) + data


def query(
    name: str, kind: int = A, flags: int = RD, edns: bytes = b"", number: int = 7, cls: int = 1
) -> bytes:
    """A query with one question."""
    header = struct.pack("!6H", number, flags, 1, 0, 0, 1 if edns else 0)
    return header + wire_name(name) + struct.pack("!HH", kind, cls) + edns


def record(name: str, kind: int, data: bytes, ttl: int = 300) -> bytes:
    """A resource record."""
    return wire_name(name) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def reply_to(
    asked: bytes, *records: bytes, rcode: int = 0, flags: int = RA, authority: int = 0
) -> bytes:
    """A reply that repeats number, flags and question; the last of ``records`` are authority."""
    number, old = struct.unpack_from("!HH", asked)
    head = struct.pack("!HH", number, QR | old | flags | rcode)
    counts = struct.pack("!4H", 1, len(records) - authority, authority, 0)
    end = 12
    while asked[end]:
        end += asked[end] + 1
    return head + counts + asked[12 : end + 5] + b"".join(records)


def flags_of(message: bytes) -> int:
    """The second word of the header."""
    flags: int = struct.unpack_from("!H", message, 2)[0]
    return flags


def read(message: bytes) -> dns.Message:
    """What twisted.names understands of it."""
    found = dns.Message()
    found.fromStr(message)
    return found


class FakeSocket:
    """A UDP socket of :class:`NetworkClock`.

    :ivar remote: whom it is connected to.
    :ivar waiting: what :meth:`recv` gives next, or raises.
    """

    def __init__(self, clock: NetworkClock, family: int) -> None:
        self._clock, self.family = clock, family
        self.remote: tuple[str, int] | None = None
        self.sent: list[bytes] = []
        self.waiting: list[bytes | OSError] = []
        self.open = True

    def fileno(self) -> int:
        return id(self)

    def connect(self, place: tuple[str, int]) -> None:
        if self.family in self._clock.unreachable:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        self.remote = place

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def recv(self, size: int) -> bytes:
        if not self.waiting:
            raise BlockingIOError
        found = self.waiting.pop(0)
        if isinstance(found, OSError):
            raise found
        return found[:size]

    def close(self) -> None:
        assert self.fileno() not in [reader.fileno() for reader in self._clock.readers]
        self.open = False

    def receive(self, *events: bytes | OSError) -> None:
        """Have the reactor tell that there is something to read."""
        self.waiting += events
        [reader] = [one for one in self._clock.readers if one.fileno() == self.fileno()]
        reader.doRead()


class FakeConnector:
    """A TCP connection of :class:`NetworkClock` to a server."""

    def __init__(self, place: tuple[str, int], factory: Any) -> None:
        self.remote, self.factory = place, factory
        self.sent: list[bytes] = []
        self.open = True
        self.protocol: Any = None

    def accept(self) -> None:
        self.protocol = self.factory.buildProtocol(None)
        self.protocol.makeConnection(self)

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def disconnect(self) -> None:
        self.open = False

    def fail(self) -> None:
        self.open = False
        self.factory.clientConnectionFailed(self, None)


class Listener:
    """A port of :class:`NetworkClock` that listens.

    :ivar what: the protocol or factory.
    """

    def __init__(self, what: Any) -> None:
        self.what = what

    def getHost(self) -> IPv4Address:
        return IPv4Address("UDP", "10.10.0.1", 53)

    def stopListening(self) -> None:
        pass


class NetworkClock(VirtualClock):
    """A clock with sockets that go nowhere.

    :ivar sockets: all UDP sockets that were opened.
    :ivar connectors: all TCP connections that were begun.
    :ivar listeners: all ports that were opened to listen on.
    :ivar full: no more sockets can be had.
    :ivar unreachable: address families without a way to anywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sockets: list[FakeSocket] = []
        self.connectors: list[FakeConnector] = []
        self.readers: list[Any] = []
        self.listeners: list[Listener] = []
        self.full = False
        self.unreachable = set[int]()

    def timer(self, callback: Callable[[], None]) -> ClockTimer:
        return ClockTimer(callback, self)

    def open_socket(self, family: int) -> Any:
        if self.full:
            raise OSError(errno.EMFILE, "Too many open files")
        self.sockets.append(FakeSocket(self, family))
        return self.sockets[-1]

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def listenUDP(self, port: int, protocol: Any, interface: str, maxPacketSize: int) -> Listener:
        self.listeners.append(Listener(protocol))
        return self.listeners[-1]

    def listenTCP(self, port: int, factory: Any, backlog: int, interface: str) -> Listener:
        self.listeners.append(Listener(factory))
        return self.listeners[-1]

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30) -> FakeConnector:
        connector = FakeConnector((host, port), factory)
        self.connectors.append(connector)
        return connector


class Upstream(DatagramProtocol):
    """A name server.

    :ivar answer: makes the reply from the query and whether it came by TCP; None is silence.
    :ivar asked: the queries, and whether they came by TCP.
    """

    noisy = False

    answer: Callable[[bytes, bool], bytes | None]

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bool]] = []
        self.factory = ServerFactory()
        self.factory.noisy = False
        self.factory.buildProtocol = lambda _: _UpstreamStream(self)  # type: ignore[method-assign]

    def datagramReceived(self, data: bytes, address: Any) -> None:
        self.asked.append((data, False))
        reply = self.answer(data, False)
        if reply is not None:
            assert self.transport is not None
            self.transport.write(reply, address)


class _UpstreamStream(Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = b""

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        size = int.from_bytes(self._buffer[:2], "big")
        if len(self._buffer) < size + 2:
            return
        asked = self._buffer[2:]
        self._upstream.asked.append((asked, True))
        reply = self._upstream.answer(asked, True)
        assert self.transport is not None and reply is not None
        self.transport.write(len(reply).to_bytes(2, "big") + reply)
