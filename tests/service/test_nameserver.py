"""The hub's name server: its own names, what it refuses, and real questions over loopback."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Generator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.names import client
from twisted.names.error import DNSNameError, DNSQueryRefusedError
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from pyvpn.core.hostnames import Host, host_names
from pyvpn.errors import StartError
from pyvpn.service.nameserver import NameServer
from tests.service.dnsmessages import (
    AA,
    AAAA,
    ANY,
    AXFR,
    BADVERS,
    CD,
    HINFO,
    HTTPS,
    NOERROR,
    NOTIMP,
    NS,
    NXDOMAIN,
    PTR,
    QR,
    RA,
    RD,
    REFUSED,
    SOA,
    TC,
    A,
    NetworkClock,
    Upstream,
    flags_of,
    opt,
    query,
    read,
    record,
    reply_to,
    wire_name,
)

CLIENT = "10.10.0.7"
NETWORKS = (ip_network("10.10.0.0/24"), ip_network("fd00::/64"))
HUB = (ip_address("10.10.0.1"), ip_address("fd00::1"))
HOSTS = (
    Host("alice", "Laptop", (ip_address("10.10.0.2"), ip_address("fd00::2")), True, 1),
    Host("bob", "phone", (ip_address("10.10.0.3"),), True, 1),
)
LAPTOP6 = ".".join(reversed("fd00" + 27 * "0" + "2")) + ".ip6.arpa"


class ServerCase(SynchronousTestCase):
    """A server without sockets, on a virtual clock."""

    def setUp(self) -> None:
        self.clock = NetworkClock()
        self.names: Mapping[str, Any] = host_names(HOSTS, HUB)
        self.read_names, self.naming = 0, 0.0
        self.upstream: list[str] = []
        self.trouble: Exception | None = None
        self.server = self.make()

    def make(self, networks: Any = NETWORKS, **more: Any) -> NameServer:
        def names() -> Mapping[str, Any]:
            self.read_names += 1
            self.clock.rightNow += self.naming
            return self.names

        more["open_socket"], more["timer_factory"] = self.clock.open_socket, self.clock.timer
        more["clock"] = self.clock.boottime

        def upstream() -> list[str]:
            if self.trouble is not None:
                raise self.trouble
            return self.upstream

        return NameServer(names, upstream, networks, self.clock, **more)

    def ask(self, message: bytes, source: str = CLIENT, tcp: bool = False) -> list[bytes]:
        replies: list[bytes] = []
        self.server.received(message, source, replies.append, tcp)
        return replies

    def reply(self, message: bytes, tcp: bool = False) -> bytes:
        replies = self.ask(message, tcp=tcp)
        self.assertEqual(len(replies), 1, self.server.counters)
        self.assertEqual(replies[0][:2], message[:2])
        return replies[0]

    def answers(self, name: str, kind: int) -> list[Any]:
        """What an authoritative answer without error holds."""
        reply = self.reply(query(name, kind))
        self.assertEqual(flags_of(reply) & ~RA, QR | AA | RD, name)
        return [found.payload for found in read(reply).answers]

    def assertNone(self, name: str, kind: int, rcode: int, zone: str) -> None:
        """There is nothing, and a SOA of the zone says for how long (RFC 2308 2)."""
        reply = self.reply(query(name, kind))
        self.assertEqual(flags_of(reply) & ~RA, QR | AA | RD | rcode, name)
        message = read(reply)
        self.assertEqual(message.answers, [])
        [soa] = message.authority
        self.assertEqual((soa.type, str(soa.name)), (SOA, zone))
        self.assertEqual(soa.ttl, soa.payload.minimum)  # type: ignore[union-attr]
        self.assertTrue(5 <= soa.ttl <= 30)


class OwnNamesTests(ServerCase):
    def test_addresses(self) -> None:
        """Names lead to their addresses of the family asked for, whatever their case."""
        for name in ("laptop.alice.pyvpn", "Alice.PYVPN", "laptop.pyvpn"):
            [found] = self.answers(name, A)
            self.assertEqual(found.dottedQuad(), "10.10.0.2")
            [found] = self.answers(name, AAAA)
            self.assertEqual(socket.inet_ntop(socket.AF_INET6, found.address), "fd00::2")
        for name in ("hub.pyvpn", "pyvpn"):
            self.assertEqual([found.dottedQuad() for found in self.answers(name, A)], ["10.10.0.1"])

    def test_question_repeated(self) -> None:
        """The question comes back letter by letter, and the answer's TTL is short."""
        asked = query("lApToP.aLiCe.pYvPn")
        reply = self.reply(asked)
        self.assertEqual(reply[12 : len(asked)], asked[12:])
        [answer] = read(reply).answers
        self.assertEqual(str(answer.name), "lApToP.aLiCe.pYvPn")
        self.assertTrue(5 <= answer.ttl <= 30)

    def test_no_such_type(self) -> None:
        """A name that exists has no error, only nothing of that type (RFC 2308 2.2)."""
        self.assertNone("phone.bob.pyvpn", AAAA, NOERROR, "pyvpn")
        self.assertNone("phone.bob.pyvpn", HTTPS, NOERROR, "pyvpn")
        self.assertNone("phone.bob.pyvpn", 4711, NOERROR, "pyvpn")

    def test_no_such_name(self) -> None:
        """A name of the domain that nobody has does not exist, and no other server is asked."""
        self.upstream = ["192.0.2.1"]
        for name in ("x.pyvpn", "x.alice.pyvpn", "www.example.com.pyvpn", "\xff.pyvpn"):
            self.assertNone(name, A, NXDOMAIN, "pyvpn")
        self.assertEqual(self.clock.sockets, [])
        self.ask(query("x.notpyvpn"))
        self.assertEqual(len(self.clock.sockets), 1)

    def test_empty_between(self) -> None:
        """A name with nothing but names below it exists (RFC 8020 2)."""
        self.names = {"a.b.c.pyvpn": HUB}
        self.assertNone("b.c.pyvpn", A, NOERROR, "pyvpn")
        self.assertNone("c.pyvpn", A, NOERROR, "pyvpn")
        self.assertNone("x.c.pyvpn", A, NXDOMAIN, "pyvpn")
        self.assertEqual(len(self.answers("A.B.C.PYVPN", A)), 1)

    def test_zone(self) -> None:
        """The domain and the reverse zones have SOA and NS."""
        for zone in ("pyvpn", "0.10.10.in-addr.arpa", "0." * 12 + "0.0.d.f.ip6.arpa"):
            [soa] = self.answers(zone, SOA)
            self.assertEqual(str(soa.mname), "hub.pyvpn")
            [server] = self.answers(zone, NS)
            self.assertEqual(str(server.name), "hub.pyvpn")
        self.assertNone("laptop.pyvpn", SOA, NOERROR, "pyvpn")

    def test_reverse(self) -> None:
        """Addresses lead to the full name of their machine."""
        for name in ("2.0.10.10.in-addr.arpa", "2.0.10.10.IN-ADDR.ARPA", LAPTOP6):
            [found] = self.answers(name, PTR)
            self.assertEqual(str(found.name), "laptop.alice.pyvpn")
        [found] = self.answers("1.0.10.10.in-addr.arpa", PTR)
        self.assertEqual(str(found.name), "hub.pyvpn")

    def test_reverse_nothing(self) -> None:
        """Free addresses do not exist; other types, and names above addresses, are only empty."""
        zone, zone6 = "0.10.10.in-addr.arpa", "0." * 12 + "0.0.d.f.ip6.arpa"
        self.assertNone("99.0.10.10.in-addr.arpa", PTR, NXDOMAIN, zone)
        self.assertNone("2.0.10.10.in-addr.arpa", A, NOERROR, zone)
        self.assertNone("0.10.10.in-addr.arpa", PTR, NOERROR, zone)
        for odd in ("256", "01", "x", "1.2", "-1", "1.x", "\xb2"):
            self.assertNone(f"{odd}.0.10.10.in-addr.arpa", PTR, NXDOMAIN, zone)
        self.assertNone("3" + LAPTOP6[1:], PTR, NXDOMAIN, zone6)
        self.assertNone("x" + LAPTOP6[1:], PTR, NXDOMAIN, zone6)
        self.assertNone("00" + LAPTOP6[1:], PTR, NXDOMAIN, zone6)
        self.assertNone("0.0." + zone6, PTR, NOERROR, zone6)

    def test_reverse_slices(self) -> None:
        """Networks that are not whole octets are answered for in slices, and no further."""
        for network, ours, others in (
            ("10.8.0.0/22", ["9.3.8.10", "3.8.10"], ["9.4.8.10", "4.8.10", "8.10"]),
            ("10.8.0.0/16", ["9.3.8.10", "3.8.10", "8.10"], ["9.10", "10"]),
            ("10.8.0.0/25", ["9.0.8.10", "0.8.10"], ["129.0.8.10", "8.10"]),
            ("10.0.0.0/8", ["9.0.8.10", "10"], ["11", "9.0.8.11"]),
        ):
            self.server = self.make([ip_network(network), *NETWORKS])
            for name in ours:
                self.assertTrue(flags_of(self.reply(query(f"{name}.in-addr.arpa", PTR))) & AA, name)
            for name in others:
                reply = self.reply(query(f"{name}.in-addr.arpa", PTR))
                self.assertEqual(flags_of(reply) & 0xF, REFUSED, name)

    def test_names_change(self) -> None:
        """New names are there after a second; until then nobody is asked for them again."""
        self.assertNone("new.alice.pyvpn", A, NXDOMAIN, "pyvpn")
        self.names = {"new.alice.pyvpn": HUB}
        self.assertNone("new.alice.pyvpn", A, NXDOMAIN, "pyvpn")
        self.assertEqual(self.read_names, 1)
        self.clock.advance(1)
        self.assertEqual(len(self.answers("new.alice.pyvpn", A)), 1)
        self.assertNone("laptop.alice.pyvpn", A, NXDOMAIN, "pyvpn")
        [found] = self.answers("1.0.10.10.in-addr.arpa", PTR)
        self.assertEqual(str(found.name), "new.alice.pyvpn")

    def test_names_slow(self) -> None:
        """What takes long to name is named at 2 % of the time, but every ten seconds anyway."""
        for naming, pause in ((0.1, 5), (9.0, 10)):
            self.naming = naming
            self.clock.advance(10)
            self.reply(query("hub.pyvpn"))
            before = self.read_names
            self.clock.advance(pause - 0.5)
            self.reply(query("hub.pyvpn"))
            self.assertEqual(self.read_names, before)
            self.clock.advance(1)
            self.reply(query("hub.pyvpn"))
            self.assertEqual(self.read_names, before + 1)

    def test_domain(self) -> None:
        """The domain is what it is told to be."""
        self.names = {"a.vpn.example": HUB}
        self.server = self.make(domain="vpn.example")
        self.assertEqual(len(self.answers("a.vpn.example", A)), 1)
        self.assertNone("b.vpn.example", A, NXDOMAIN, "vpn.example")
        self.assertEqual(flags_of(self.reply(query("a.pyvpn"))) & 0xF, REFUSED)

    def test_any(self) -> None:
        """Who asks for all records gets one small one instead (RFC 8482 4.2)."""
        [found] = self.answers("pyvpn", ANY)
        self.assertEqual((found.TYPE, found.cpu), (HINFO, b"RFC8482"))
        self.assertNone("x.pyvpn", ANY, NXDOMAIN, "pyvpn")


class SpecialNamesTests(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.upstream = ["192.0.2.1"]

    def test_localhost(self) -> None:
        """localhost and what is below it is the loopback address (RFC 6761 6.3)."""
        for name in ("localhost", "a.b.LocalHost"):
            self.assertEqual([found.dottedQuad() for found in self.answers(name, A)], ["127.0.0.1"])
            [found] = self.answers(name, AAAA)
            self.assertEqual(found.address, bytes(15) + b"\1")
        self.assertNone("localhost", NS, NOERROR, "localhost")
        self.assertEqual(self.clock.sockets, [])

    def test_never_forwarded(self) -> None:
        """Names without a meaning in the DNS do not leave the hub; similar ones do."""
        for name, zone in (
            ("printer.local", "local"),
            ("LOCAL", "local"),
            ("x.invalid", "invalid"),
            ("abc.onion", "onion"),
            ("x.alt", "alt"),
            ("1.0.0.127.in-addr.arpa", "127.in-addr.arpa"),
            ("_dns.resolver.arpa", "resolver.arpa"),
            ("use-application-dns.net", "use-application-dns.net"),
        ):
            self.assertNone(name, A, NXDOMAIN, zone)
        self.assertEqual(self.clock.sockets, [])
        for name in ("local.example", "notlocal", "1.0.0.126.in-addr.arpa", "application-dns.net"):
            self.assertEqual(self.ask(query(name)), [])
        self.assertEqual(len(self.clock.sockets), 4)


class RefusalTests(ServerCase):
    def rcode(self, message: bytes) -> int:
        return flags_of(self.reply(message)) & 0xF

    def test_no_upstream(self) -> None:
        """Without servers to ask, other names are refused and no recursion is offered."""
        for kind in (A, AAAA, HTTPS):
            reply = self.reply(query("example.com", kind))
            self.assertEqual(flags_of(reply), QR | RD | REFUSED)
        self.assertEqual(flags_of(self.reply(query("hub.pyvpn"))), QR | AA | RD)
        self.upstream = ["192.0.2.1"]
        self.clock.advance(5)
        self.assertEqual(flags_of(self.reply(query("hub.pyvpn"))), QR | AA | RD | RA)

    def test_no_recursion_wanted(self) -> None:
        """Who does not ask for recursion is not forwarded."""
        self.upstream = ["192.0.2.1"]
        self.assertEqual(self.rcode(query("example.com", flags=0)), REFUSED)
        self.assertEqual(self.clock.sockets, [])

    def test_not_done(self) -> None:
        """Zone transfers, other classes, any types at once elsewhere and other operations: no."""
        self.upstream = ["192.0.2.1"]
        self.assertEqual(self.rcode(query("pyvpn", AXFR)), REFUSED)
        self.assertEqual(self.rcode(query("version.bind", 16, cls=3)), REFUSED)
        self.assertEqual(self.rcode(query("hub.pyvpn", A, cls=255)), REFUSED)
        self.assertEqual(self.rcode(query("example.com", ANY)), NOTIMP)
        self.assertEqual(self.reply(query("pyvpn", flags=4 << 11 | RD))[2:], b"\xa1\4" + bytes(8))
        self.assertEqual(self.clock.sockets, [])
        self.assertEqual(self.server.counters, {"refused": 5})

    def test_outside(self) -> None:
        """Who is not of the VPN gets no answer at all."""
        for source in ("192.0.2.1", "10.10.1.1", "2001:db8::1", "127.0.0.1"):
            self.assertEqual(self.ask(query("hub.pyvpn"), source), [])
        self.assertEqual(self.server.counters, {"outside": 4})
        for source in (CLIENT, "fd00::7"):
            self.assertEqual(len(self.ask(query("hub.pyvpn"), source)), 1)

    def test_malformed(self) -> None:
        """What is no query gets no answer and is counted, replies above all."""
        good = query("hub.pyvpn")
        header = struct.pack("!6H", 7, RD, 1, 0, 0, 0)
        bad = [
            b"",
            good[:11],
            good[:12],
            good[:-1],
            query("hub.pyvpn", flags=RD | QR),
            struct.pack("!6H", 7, RD, 0, 0, 0, 0),
            struct.pack("!6H", 7, RD, 2, 0, 0, 0) + 2 * good[12:],
            struct.pack("!6H", 7, RD, 1, 1, 0, 0) + good[12:] + record("a", A, bytes(4)),
            header + b"\3a.b\5pyvpn\0" + b"\0\1\0\1",
            header + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
            header + b"\xc0\x0c\0\1\0\1",
            header + b"\3hub\xc0\x0c\0\1\0\1",
            query(".".join(["a" * 63] * 3 + ["b" * 62])),
            query("hub.pyvpn", edns=opt()[:-1]),
            query("hub.pyvpn", edns=opt())[:11] + b"\2" + good[12:] + 2 * opt(),
            query("hub.pyvpn", edns=b"\1a" + opt()),
            query("hub.pyvpn", edns=opt(data=bytes(600))),
        ]
        for count, message in enumerate(bad, 1):
            self.assertEqual(self.ask(message), [], message)
            self.assertEqual(self.server.counters, {"malformed": count}, message)
        self.assertEqual(len(self.ask(good)), 1)
        self.assertEqual(self.rcode(query(".".join(["a" * 63] * 3 + ["b" * 61]))), REFUSED)
        self.assertEqual(self.rcode(query("")), REFUSED)

    def test_broken_names(self) -> None:
        """An exception in what the names come from is counted and logged, and goes no further."""
        self.names = {"\xe9.pyvpn": HUB}
        self.assertEqual(self.ask(query("hub.pyvpn")), [])
        self.assertEqual(self.server.counters, {"exception": 1})
        self.assertEqual(len(self.flushLoggedErrors(UnicodeEncodeError)), 1)

    @settings(deadline=None)
    @given(st.binary(max_size=600), st.booleans())
    @example(b"\0" * 4 + b"\0\1" + b"\0" * 6 + b"\x3f" * 500, False)
    def test_any_bytes(self, message: bytes, tcp: bool) -> None:
        """No bytes lead to an exception, to two replies, or to a reply longer than the query."""
        self.setUp()
        for data in (message, query("hub.pyvpn")[:12] + message):
            replies = self.ask(data, tcp=tcp)
            self.assertNotIn("exception", self.server.counters)
            self.assertEqual(len(replies), 1 - self.server.counters.pop("malformed", 0))
            if replies:
                self.assertEqual(replies[0][:2], data[:2])
                self.assertTrue(flags_of(replies[0]) & QR)

    @settings(deadline=None)
    @given(
        st.lists(st.binary(min_size=1, max_size=63), max_size=4),
        st.sampled_from(["", "pyvpn", "alice.pyvpn", "0.10.10.in-addr.arpa", "d.f.ip6.arpa"]),
        st.integers(0, 0xFFFF),
        st.one_of(st.just(b""), st.builds(opt, st.integers(0, 0xFFFF), st.integers(0, 2))),
    )
    def test_any_question(self, labels: list[bytes], ending: str, kind: int, edns: bytes) -> None:
        """Every question is answered or is malformed, and the reply has the question in it."""
        self.setUp()
        name = b"".join(bytes((len(part),)) + part for part in labels) + wire_name(ending)
        asked = name + struct.pack("!HH", kind, 1)
        header = struct.pack("!6H", 7, RD, 1, 0, 0, 1 if edns else 0)
        replies = self.ask(header + asked + edns)
        malformed = len(name) > 255 or any(b"." in part for part in labels)
        self.assertEqual(len(replies), 0 if malformed else 1)
        for reply in replies:
            self.assertEqual(reply[12 : 12 + len(asked)], asked)
            read(reply)


class SizeTests(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        many = tuple(ip_address(f"10.10.0.{number}") for number in range(1, 61))
        self.names = {"few.pyvpn": many[:20], "some.pyvpn": many[:40], "many.pyvpn": many * 2}

    def sized(self, name: str, edns: bytes = b"", tcp: bool = False) -> tuple[int, bool]:
        """How many records came, and whether there should have been more."""
        reply = self.reply(query(name, edns=edns), tcp=tcp)
        message = read(reply)
        self.assertEqual(len(message.additional), 1 if edns else 0)
        self.assertLessEqual(len(reply), 0xFFFF if tcp else 1232 if edns else 512)
        return len(message.answers), bool(flags_of(reply) & TC)

    def test_truncated(self) -> None:
        """Who says no size gets 512 bytes by UDP, else none of the records and TC."""
        self.assertEqual(self.sized("few.pyvpn"), (20, False))
        self.assertEqual(self.sized("some.pyvpn"), (0, True))
        self.assertEqual(self.sized("many.pyvpn"), (0, True))

    def test_edns_size(self) -> None:
        """With EDNS it is as many as are said, but 512 at least and 1,232 at most."""
        self.assertEqual(self.sized("some.pyvpn", opt(1232)), (40, False))
        self.assertEqual(self.sized("some.pyvpn", opt(600)), (0, True))
        self.assertEqual(self.sized("few.pyvpn", opt(0)), (20, False))
        self.assertEqual(self.sized("many.pyvpn", opt(4096)), (0, True))

    def test_tcp_size(self) -> None:
        """By TCP all of them come."""
        self.assertEqual(self.sized("many.pyvpn", tcp=True), (120, False))
        self.assertEqual(self.sized("many.pyvpn", opt(512), tcp=True), (120, False))

    def test_edns(self) -> None:
        """OPT is answered with OPT: our size, DO as it was, and none of the options."""
        reply = self.reply(query("few.pyvpn", edns=opt(4096, flags=0xFFFF, data=b"\0\12\0\2ab")))
        self.assertTrue(reply.endswith(opt(1232, flags=0x8000)))

    def test_edns_version(self) -> None:
        """Other versions of EDNS are told so (RFC 6891 6.1.3)."""
        reply = self.reply(query("few.pyvpn", edns=opt(version=1)))
        self.assertEqual(flags_of(reply) & 0xF, BADVERS & 0xF)
        self.assertTrue(reply.endswith(b"\0\0\x29\x04\xd0\1\0\0\0\0\0"))
        self.assertEqual(read(reply).answers, [])

    def test_checking_disabled(self) -> None:
        """CD is repeated (RFC 4035 3.1.6)."""
        self.assertTrue(flags_of(self.reply(query("few.pyvpn", flags=RD | CD))) & CD)


class DatagramTransport:
    """Sends, unless it may not."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self.error: OSError | None = None

    def write(self, data: bytes, address: Any) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((data, address))


class SocketsTests(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.server.listen(["10.10.0.1"])
        udp, tcp = self.clock.listeners
        self.datagrams, self.streams = udp.what, tcp.what

    def connect(self, host: str = CLIENT) -> tuple[StringTransport, Any]:
        """A connection from a client: the server's end, and its protocol."""
        transport = StringTransport(peerAddress=IPv4Address("TCP", host, 40000))
        protocol = self.streams.buildProtocol(None)
        protocol.makeConnection(transport)
        return transport, protocol

    def test_datagrams(self) -> None:
        """A reply goes to where the query came from; what cannot be sent is counted by name."""
        transport, place = DatagramTransport(), (CLIENT, 40000)
        self.datagrams.makeConnection(transport)
        self.datagrams.datagramReceived(query("hub.pyvpn"), place)
        [(_, address)] = transport.sent
        self.assertEqual(address, place)
        transport.error = OSError(errno.ENOBUFS, "No buffer space available")
        self.datagrams.datagramReceived(query("hub.pyvpn"), place)
        self.assertEqual(self.server.counters, {"answered": 2, "ENOBUFS": 1})

    def test_datagrams_closed(self) -> None:
        """A reply that comes when the port is closed already goes nowhere."""
        self.upstream = ["192.0.2.1"]
        self.datagrams.makeConnection(DatagramTransport())
        self.datagrams.datagramReceived(query("example.com"), (CLIENT, 40000))
        self.datagrams.doStop()
        [opened] = self.clock.sockets
        opened.receive(reply_to(opened.sent[0]))
        self.assertEqual(self.server.counters, {"forwarded": 1})

    def test_idle(self) -> None:
        """A connection is closed ten seconds after its last question."""
        transport, protocol = self.connect()
        message = query("hub.pyvpn")
        wire = len(message).to_bytes(2, "big") + message
        self.clock.advance(9)
        protocol.dataReceived(wire)
        self.clock.advance(9)
        protocol.dataReceived(wire[:-1])
        self.assertFalse(transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost(None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_does_not_read(self) -> None:
        """Who does not read the answers is not read from until it does."""
        transport, _ = self.connect()
        self.assertIs(transport.producer, transport)
        self.assertTrue(transport.streaming)

    def test_many_connections(self) -> None:
        """There are 128 connections at most."""
        open_ones = [self.connect(f"10.10.0.{number}") for number in range(128)]
        self.assertFalse(any(transport.disconnecting for transport, _ in open_ones))
        self.assertTrue(self.connect("10.10.0.200")[0].disconnecting)
        open_ones[0][1].connectionLost(None)
        self.assertFalse(self.connect("10.10.0.200")[0].disconnecting)


@implementer(IReadDescriptor)
class Reader:
    """Waits for one datagram, without a word in the log."""

    def __init__(self, opened: socket.socket, done: Deferred[bytes]) -> None:
        self._socket, self._done = opened, done

    def fileno(self) -> int:
        return self._socket.fileno()

    def doRead(self) -> None:
        self._done.callback(self._socket.recv(4096))

    def stop(self, result: Any) -> Any:
        reactor.removeReader(self)  # type: ignore[attr-defined]
        return result

    def logPrefix(self) -> str:
        return "test"

    def connectionLost(self, reason: Any) -> None:
        pass


class LoopbackTests(TestCase):
    """Real sockets on 127.0.0.1 and ::1, with twisted.names to ask, and a server to be asked."""

    def setUp(self) -> None:
        self.upstream: list[str] = []
        self.other = Upstream()
        self.other.answer = lambda asked, tcp: reply_to(
            asked, record("example.com", A, b"\1\2\3\4")
        )
        [udp, tcp] = self.listen_other()
        self.addCleanup(udp.stopListening)
        self.addCleanup(tcp.stopListening)
        self.server = NameServer(
            lambda: host_names(HOSTS, HUB),
            lambda: self.upstream,
            [*NETWORKS, ip_network("127.0.0.0/8"), ip_network("::1/128")],
            reactor,
            upstream_port=udp.getHost().port,
        )
        self.addCleanup(self.server.close)
        self.server.listen(["127.0.0.1"], 0)
        self.udp, self.tcp = self.server.ports
        self.resolver = client.Resolver(servers=[self.udp], timeout=(5,))

    def listen_other(self) -> list[Any]:
        """The same port by UDP and TCP."""
        for _ in range(20):
            udp: Any = reactor.listenUDP(0, self.other, "127.0.0.1")  # type: ignore[attr-defined]
            port = udp.getHost().port
            try:
                return [udp, reactor.listenTCP(port, self.other.factory, 5, "127.0.0.1")]  # type: ignore[attr-defined]
            except CannotListenError:
                udp.stopListening()
        raise AssertionError("no port is free for UDP and TCP")

    @inlineCallbacks
    def by_tcp(self, *messages: bytes) -> Generator[Any, Any, list[bytes]]:
        """Send messages on one connection; returns what came until each had an answer."""
        done: Deferred[bytes] = Deferred()

        class Stream(Protocol):
            received = b""

            def dataReceived(self, data: bytes) -> None:
                self.received += data
                found, rest = [], self.received
                while len(rest) >= 2 and len(rest) >= 2 + int.from_bytes(rest[:2], "big"):
                    size = 2 + int.from_bytes(rest[:2], "big")
                    found.append(rest[2:size])
                    rest = rest[size:]
                if len(found) == len(messages) and not done.called:
                    done.callback(found)

            def connectionLost(self, reason: Any = None) -> None:
                if not done.called:
                    done.callback([])

        endpoint = TCP4ClientEndpoint(reactor, *self.tcp)
        stream = yield connectProtocol(endpoint, Stream())
        stream.transport.write(b"".join(len(m).to_bytes(2, "big") + m for m in messages))
        found = yield done.addTimeout(10, reactor)  # type: ignore[arg-type]
        stream.transport.abortConnection()
        return found

    @inlineCallbacks
    def test_udp(self) -> Generator[Any, Any, None]:
        """twisted.names' client gets addresses, names of addresses, and what there is not."""
        [found], _, _ = yield self.resolver.lookupAddress("laptop.alice.pyvpn")
        self.assertEqual(found.payload.dottedQuad(), "10.10.0.2")
        self.assertTrue(found.auth)
        [found], _, _ = yield self.resolver.lookupPointer("3.0.10.10.in-addr.arpa")
        self.assertEqual(str(found.payload.name), "phone.bob.pyvpn")
        self.assertEqual((yield self.resolver.lookupIPV6Address("phone.bob.pyvpn"))[0], [])
        yield self.assertFailure(self.resolver.lookupAddress("x.pyvpn"), DNSNameError)
        yield self.assertFailure(self.resolver.lookupAddress("example.com"), DNSQueryRefusedError)

    @inlineCallbacks
    def test_forwarded(self) -> Generator[Any, Any, None]:
        """Another name is asked of the other server once, and then known for its TTL."""
        self.upstream = ["127.0.0.1"]
        for _ in range(2):
            [found], _, _ = yield self.resolver.lookupAddress("example.com")
            self.assertEqual(found.payload.dottedQuad(), "1.2.3.4")
        self.assertEqual(len(self.other.asked), 1)

    @inlineCallbacks
    def test_quiet(self) -> Generator[Any, Any, None]:
        """Questions leave nothing in the log, answered here or elsewhere; closing does."""
        self.upstream = ["127.0.0.1"]
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for name in ("hub.pyvpn", "example.com", "x.pyvpn"):
            yield self.by_udp(query(name))
            yield self.by_tcp(query(name))
        self.assertEqual([tcp for _, tcp in self.other.asked], [False])
        ours = [event for event in events if "OneShotFactory" not in event["log_namespace"]]
        self.assertEqual(ours, [])
        yield self.server.close()
        closed = [event for event in events if "Closed" in event.get("log_text", "")]
        self.assertEqual(len(closed), 2)

    @inlineCallbacks
    def test_bad_datagram(self) -> Generator[Any, Any, None]:
        """Datagrams that are no queries, or too long for one, get nothing; the next one does."""
        padded = query("hub.pyvpn", edns=opt(data=bytes(474)))
        self.assertEqual(len(padded), 512)
        self.assertEqual((yield self.by_udp(b"rubbish", padded + b"\0", padded))[:2], padded[:2])
        self.assertEqual(self.server.counters, {"malformed": 2, "answered": 1})

    def by_udp(self, *messages: bytes) -> Deferred[bytes]:
        """Send datagrams; fires with the first that comes back."""
        done: Deferred[bytes] = Deferred()
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(opened.close)
        opened.setblocking(False)
        for message in messages:
            opened.sendto(message, self.udp)
        reader = Reader(opened, done)
        reactor.addReader(reader)  # type: ignore[attr-defined]
        done.addBoth(reader.stop)
        return done.addTimeout(10, reactor)  # type: ignore[arg-type]

    @inlineCallbacks
    def test_truncated(self) -> Generator[Any, Any, None]:
        """What does not fit comes by TCP, from the other server too."""
        self.upstream = ["127.0.0.1"]
        many = [record("example.com", A, bytes((1, 2, 3, n))) for n in range(100)]

        def answer(asked: bytes, tcp: bool) -> bytes:
            return reply_to(asked, *many) if tcp else reply_to(asked, flags=TC)

        self.other.answer = answer
        asked = query("example.com")
        [whole] = yield self.by_tcp(asked)
        self.assertEqual(whole, reply_to(asked, *many))
        self.assertEqual([tcp for _, tcp in self.other.asked], [True])

    @inlineCallbacks
    def test_tcp(self) -> Generator[Any, Any, None]:
        """A connection takes several questions."""
        asked = [query("hub.pyvpn", number=n) for n in range(100)]
        found = yield self.by_tcp(*asked)
        self.assertEqual([reply[:2] for reply in found], [message[:2] for message in asked])
        self.assertEqual({reply[2:] for reply in found}, {found[0][2:]})

    @inlineCallbacks
    def test_tcp_malformed(self) -> Generator[Any, Any, None]:
        """A connection with something else than queries on it is closed."""
        self.assertEqual((yield self.by_tcp(query("hub.pyvpn")[:-1])), [])
        self.assertEqual((yield self.by_tcp(bytes(513))), [])
        self.assertEqual(self.server.counters, {"malformed": 2})
        self.assertEqual(len((yield self.by_tcp(query("hub.pyvpn")))), 1)

    @inlineCallbacks
    def test_tcp_many(self) -> Generator[Any, Any, None]:
        """One client has eight connections at most; when one ends there is room again."""
        endpoint = TCP4ClientEndpoint(reactor, *self.tcp)
        streams = yield gatherResults([connectProtocol(endpoint, Protocol()) for _ in range(8)])
        self.assertEqual((yield self.by_tcp(query("hub.pyvpn"))), [])
        self.assertEqual(self.server.counters, {"busy": 1})
        for stream in streams:
            stream.transport.abortConnection()
        for _ in range(100):
            if (yield self.by_tcp(query("hub.pyvpn"))):
                break
            yield deferLater(reactor, 0.01)  # type: ignore[arg-type]
        else:
            self.fail("no room again")

    @inlineCallbacks
    def test_ipv6(self) -> Generator[Any, Any, None]:
        """It answers on an IPv6 address just so."""
        server = NameServer(lambda: host_names(HOSTS, HUB), list, [ip_network("::1/128")], reactor)
        self.addCleanup(server.close)
        server.listen(["::1"], 0)
        resolver = client.Resolver(servers=[server.ports[0]], timeout=(5,))
        [found], _, _ = yield resolver.lookupAddress("hub.pyvpn")
        self.assertEqual(found.payload.dottedQuad(), "10.10.0.1")

    @inlineCallbacks
    def test_close(self) -> Generator[Any, Any, None]:
        """Closed, it leaves its ports and connections, and may be closed again."""
        endpoint = TCP4ClientEndpoint(reactor, *self.tcp)
        lost: Deferred[Any] = Deferred()
        stream = Protocol()
        stream.connectionLost = lambda reason: lost.callback(None)  # type: ignore[assignment]
        yield connectProtocol(endpoint, stream)
        yield self.by_tcp(query("hub.pyvpn"))
        yield self.server.close()
        yield lost
        yield self.server.close()
        self.assertEqual(self.server.ports, [])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(self.udp)

    @inlineCallbacks
    def test_taken(self) -> Generator[Any, Any, None]:
        """A port that is taken: one line says by whom, and nothing stays open."""
        server = NameServer(dict, list, NETWORKS, reactor)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("127.0.0.2", 0))
            port = holder.getsockname()[1]
            with self.assertRaises(StartError) as caught:
                server.listen(["127.0.0.1", "127.0.0.2"], port)
            self.assertRegex(
                str(caught.exception),
                rf"^cannot answer DNS on 127\.0\.0\.2 port {port}: .+, pid \d+, has it; stop that",
            )
            self.assertEqual(server.ports, [])
            yield deferLater(reactor, 0)  # type: ignore[arg-type]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
                free.bind(("127.0.0.1", port))

    def test_not_ours(self) -> None:
        """An address that this machine does not have is told as the system tells it."""
        server = NameServer(dict, list, NETWORKS, reactor)
        with self.assertRaises(StartError) as caught:
            server.listen(["192.0.2.77"], 0)
        line = "cannot answer DNS on 192.0.2.77 port 0: Cannot assign requested address"
        self.assertEqual(str(caught.exception), line)

    @inlineCallbacks
    def test_not_itself(self) -> Generator[Any, Any, None]:
        """It never asks itself, whatever resolv.conf says."""
        port = self.udp[1]
        server = NameServer(
            dict, lambda: self.upstream, [ip_network("127.0.0.0/8")], reactor, upstream_port=port
        )
        self.addCleanup(server.close)
        yield self.server.close()
        server.listen(["127.0.0.1"], port)
        self.upstream = ["127.0.0.1"]
        yield self.assertFailure(self.resolver.lookupAddress("example.com"), DNSQueryRefusedError)
        self.assertEqual(server.counters, {"refused": 1})
