"""Questions for other name servers: who is asked when, what is believed, and how much at once."""

from __future__ import annotations

import errno
import struct
from socket import AF_INET, AF_INET6
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyvpn.errors import VPNError
from pyvpn.service.dnscache import AnswerCache, ttl_places
from tests.service.dnsmessages import (
    AA,
    AAAA,
    AD,
    CD,
    FORMERR,
    HTTPS,
    NOTIMP,
    NXDOMAIN,
    QR,
    RA,
    RD,
    REFUSED,
    SERVFAIL,
    SOA,
    TC,
    A,
    FakeSocket,
    flags_of,
    opt,
    query,
    record,
    reply_to,
    wire_name,
)
from tests.service.test_nameserver import CLIENT, ServerCase

ONE, TWO, THREE, FOUR = "192.0.2.1", "192.0.2.2", "2001:db8::3", "192.0.2.4"
ANSWER = record("example.com", A, b"\1\2\3\4", ttl=300)


class ForwardCase(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.upstream = [ONE, TWO]
        self.replies: list[bytes] = []

    def send(self, message: bytes, source: str = CLIENT, tcp: bool = False) -> None:
        self.server.received(message, source, self.replies.append, tcp)

    @property
    def port(self) -> FakeSocket:
        """The one UDP port that is open."""
        [port] = [port for port in self.clock.sockets if port.open]
        return port

    def asked(self) -> list[Any]:
        """The servers that were asked by UDP, in order."""
        return [port.remote[0] for port in self.clock.sockets if port.remote is not None]

    def rcodes(self) -> list[int]:
        """The codes of the replies since the last time."""
        found = [flags_of(reply) & 0xF for reply in self.replies]
        self.replies.clear()
        return found

    def assertIdle(self) -> None:
        self.assertEqual([port for port in self.clock.sockets if port.open], [])
        self.assertEqual([one for one in self.clock.connectors if one.open], [])
        self.assertEqual([*self.clock.getDelayedCalls(), *self.clock.readers], [])


class AnsweredTests(ForwardCase):
    def test_as_it_is(self) -> None:
        """The answer is handed on octet by octet, with the number of who asked."""
        asked = query("Example.COM", HTTPS, number=0x1234)
        self.send(asked)
        [sent] = self.port.sent
        self.assertEqual(sent[2:], asked[2:])
        records = (record("x", HTTPS, b"\0\1\0"), record("com", SOA, b"anything"))
        self.port.receive(reply_to(sent, *records, authority=1))
        self.assertEqual(self.replies, [reply_to(asked, *records, authority=1)])
        self.assertEqual(self.server.counters, {"forwarded": 1})
        self.assertIdle()

    def test_number(self) -> None:
        """Each question goes out from a port of its own, with a number that does not follow."""
        numbers = set()
        for _ in range(50):
            self.send(query("example.com", number=7))
            numbers.add(self.port.sent[0][:2])
            self.port.receive(reply_to(self.port.sent[0], rcode=NXDOMAIN))
        self.assertGreater(len(numbers), 45)
        self.assertEqual(len(self.clock.sockets), 50)

    def test_flags(self) -> None:
        """RD, AD and CD are asked on, nothing else; the code and AA come back."""
        self.send(query("example.com", flags=RD | AD | CD | TC | AA | RA))
        self.assertEqual(flags_of(self.port.sent[0]), RD | AD | CD)
        self.port.receive(reply_to(self.port.sent[0], rcode=NXDOMAIN, flags=RA | AA))
        [reply] = self.replies
        self.assertEqual(flags_of(reply), QR | AA | RD | RA | AD | CD | NXDOMAIN)

    def test_edns(self) -> None:
        """Size and DO are asked on; options are not, as they are between neighbours."""
        self.send(query("example.com", edns=opt(4096, flags=0x8000, data=b"\0\12\0\2ab")))
        [sent] = self.port.sent
        self.assertEqual(sent[2:], query("example.com", edns=opt(1232, flags=0x8000))[2:])
        big = record("example.com", 16, bytes(700))
        self.port.receive(reply_to(sent, big))
        self.assertEqual(len(self.replies[0]), 12 + 17 + len(big))

    def test_too_long(self) -> None:
        """An answer longer than who asked can take is cut to the question, with TC and OPT."""
        asked = query("example.com")
        self.send(asked)
        self.port.receive(reply_to(self.port.sent[0], record("example.com", 16, bytes(600))))
        self.assertEqual(self.replies, [reply_to(asked, flags=RA | TC)])
        asked = query("example.com", edns=opt(600))
        self.send(asked)
        self.port.receive(reply_to(self.port.sent[0], record("example.com", 16, bytes(600))))
        cut = reply_to(asked, flags=RA | TC)
        self.assertEqual(self.replies[1], cut[:11] + b"\1" + cut[12:] + opt(1232))

    def test_only_the_answer(self) -> None:
        """What has another number, question, kind or operation is not believed."""
        self.send(query("example.com"))
        [sent] = self.port.sent
        good = reply_to(sent, ANSWER)
        number = (int.from_bytes(sent[:2], "big") ^ 1).to_bytes(2, "big")
        bad = [
            b"",
            good[:12],
            good[:28],
            number + good[2:],
            reply_to(number + query("example.org")[2:], ANSWER),
            sent[:2] + reply_to(query("example.org"), ANSWER)[2:],
            sent[:2] + reply_to(query("example.com", AAAA), ANSWER)[2:],
            sent[:2] + reply_to(query("example.com", cls=3), ANSWER)[2:],
            sent,
            reply_to(sent, ANSWER, flags=4 << 11),
            good[:5] + b"\2" + good[6:],
        ]
        for message in bad:
            self.port.receive(message)
            self.assertEqual(self.replies, [])
        self.assertEqual(self.server.counters["upstream_unexpected"], len(bad))
        self.port.receive(good)
        self.assertEqual(len(self.replies), 1)

    def test_case(self) -> None:
        """A server that writes the question in other letters is believed."""
        self.send(query("ExAmPle.com"))
        [sent] = self.port.sent
        self.port.receive(sent[:2] + reply_to(query("example.COM"), ANSWER)[2:])
        self.assertEqual(len(self.replies), 1)

    @settings(deadline=None)
    @given(st.binary(max_size=100), st.booleans())
    @example(b"\xff" * 40, True)
    def test_any_reply(self, data: bytes, echo: bool) -> None:
        """No octets from a server lead to an exception or to two replies."""
        self.setUp()
        self.send(query("example.com"))
        [sent] = self.port.sent
        self.port.receive(sent[:2] + (reply_to(sent)[2:] + data if echo else data))
        self.clock.pump([2.0] * 3)
        self.assertEqual(len(self.replies), 1)
        self.assertNotIn("exception", self.server.counters)
        self.send(query("example.com"))


class ServersTests(ForwardCase):
    def test_silent(self) -> None:
        """Each server has two seconds; after the last one comes SERVFAIL."""
        self.send(query("example.com"))
        self.clock.advance(1.9)
        self.assertEqual(self.asked(), [ONE])
        self.clock.advance(0.1)
        self.assertEqual(self.asked(), [ONE, TWO])
        self.clock.advance(1.9)
        self.assertEqual(self.replies, [])
        self.clock.advance(0.1)
        self.assertEqual(self.rcodes(), [SERVFAIL])
        self.assertEqual(self.server.counters["upstream_silent"], 2)
        self.assertEqual(self.server.counters["unanswered"], 1)
        self.assertIdle()

    def test_one_server(self) -> None:
        """A server that is the only one is asked twice: one datagram may be lost."""
        self.upstream = [ONE]
        self.send(query("example.com"))
        self.clock.advance(2)
        self.port.receive(reply_to(self.port.sent[0], ANSWER))
        self.assertEqual(self.asked(), [ONE, ONE])
        self.assertEqual(self.rcodes(), [0])

    def test_three_servers(self) -> None:
        """Three servers are asked, not more, by their family."""
        self.upstream = [ONE, TWO, THREE, FOUR]
        self.send(query("example.com"))
        self.clock.pump([2.0] * 3)
        self.assertEqual(self.asked(), [ONE, TWO, THREE])
        self.assertEqual([port.family for port in self.clock.sockets], [AF_INET, AF_INET, AF_INET6])
        self.assertEqual(self.rcodes(), [SERVFAIL])

    def test_late(self) -> None:
        """An answer that comes after the next server was asked is not waited for any more."""
        self.send(query("example.com"))
        first = self.port
        sent = first.sent[0]
        self.clock.advance(2)
        self.assertFalse(first.open)
        self.port.receive(reply_to(sent, ANSWER))
        self.assertEqual(self.replies, [])
        self.port.receive(reply_to(self.port.sent[0], ANSWER))
        self.assertEqual(self.rcodes(), [0])

    def test_silent_last(self) -> None:
        """A silent server is asked after the others for half a minute."""
        self.send(query("a.example"))
        self.clock.advance(2)
        self.port.receive(reply_to(self.port.sent[0], ANSWER))
        for name, seconds, first in (("b.example", 29, TWO), ("c.example", 1, ONE)):
            self.clock.advance(seconds)
            self.send(query(name))
            self.assertEqual(self.asked()[-1], first)
            self.port.receive(reply_to(self.port.sent[0], ANSWER))

    def test_refusing(self) -> None:
        """A server that cannot answer is passed over, and stays first for other questions."""
        for rcode in (SERVFAIL, REFUSED, NOTIMP):
            self.send(query(f"{rcode}.example"))
            self.port.receive(reply_to(self.port.sent[0], rcode=rcode))
            self.assertEqual(self.asked()[-2:], [ONE, TWO])
            self.port.receive(reply_to(self.port.sent[0], ANSWER))
            self.assertEqual(self.rcodes(), [0])
        self.assertEqual(self.server.counters["upstream_refused"], 3)

    def test_all_refusing(self) -> None:
        """If none can, the last one's own words are handed on; other codes are at once."""
        asked = query("example.com")
        self.send(asked)
        self.port.receive(reply_to(self.port.sent[0], rcode=REFUSED))
        self.port.receive(reply_to(self.port.sent[0], ANSWER, rcode=SERVFAIL))
        self.assertEqual(self.replies, [reply_to(asked, ANSWER, rcode=SERVFAIL)])
        self.send(query("example.com"))
        self.port.receive(reply_to(self.port.sent[0], rcode=FORMERR))
        self.assertEqual(self.rcodes(), [SERVFAIL, FORMERR])

    def test_unreachable(self) -> None:
        """A server that there is no way to, or that ICMP says no for, costs no time."""
        self.upstream = [THREE, ONE, TWO]
        self.clock.unreachable = {AF_INET6}
        self.send(query("example.com"))
        self.assertEqual(self.asked(), [ONE])
        self.port.receive(OSError(errno.ECONNREFUSED, "Connection refused"))
        self.assertEqual(self.asked(), [ONE, TWO])
        self.port.receive(reply_to(self.port.sent[0], ANSWER))
        self.assertEqual(self.server.counters["upstream_unreachable"], 2)
        self.assertEqual(self.rcodes(), [0])
        self.assertIdle()

    def test_port_failed(self) -> None:
        """Errors of any kind lead to the next server, also those that the reactor finds."""
        self.send(query("example.com"))
        self.port.receive(OSError(errno.EHOSTUNREACH, "No route to host"))
        self.assertEqual(self.asked(), [ONE, TWO])
        [reader] = self.clock.readers
        reader.connectionLost(None)
        self.assertEqual(self.rcodes(), [SERVFAIL])
        self.assertIdle()

    def test_nothing_to_read(self) -> None:
        """A socket that was woken for nothing goes on waiting."""
        self.send(query("example.com"))
        self.port.receive()
        self.port.receive(reply_to(self.port.sent[0], ANSWER))
        self.assertEqual(self.rcodes(), [0])

    def test_no_sockets(self) -> None:
        """When no socket can be had the answer is SERVFAIL, at once."""
        self.clock.full = True
        self.send(query("example.com"))
        self.assertEqual(self.rcodes(), [SERVFAIL])
        self.assertIdle()

    def test_changed(self) -> None:
        """Other servers are used five seconds later, none means refused, and back."""
        self.send(query("example.com"))
        self.port.receive(reply_to(self.port.sent[0], rcode=NXDOMAIN))
        self.upstream = [FOUR]
        self.clock.advance(5)
        self.send(query("example.com"))
        self.assertEqual(self.asked(), [ONE, FOUR])
        self.port.receive(reply_to(self.port.sent[0], rcode=NXDOMAIN))
        self.upstream = ["not.an.address", ""]
        self.clock.advance(5)
        self.send(query("example.com"))
        self.assertEqual(self.rcodes(), [NXDOMAIN, NXDOMAIN, REFUSED])

    def test_unknown(self) -> None:
        """When it cannot be told which servers there are, that is as none."""
        self.trouble = VPNError("nobody owns resolv.conf")
        self.send(query("example.com"))
        self.trouble = OSError(13, "Permission denied")
        self.clock.advance(5)
        self.send(query("example.com"))
        self.assertEqual(self.rcodes(), [REFUSED, REFUSED])


class BoundsTests(ForwardCase):
    def test_same_question(self) -> None:
        """The same question of many is asked once, and each gets the answer."""
        for number in range(3):
            self.send(query("example.com", number=number), f"10.10.0.{number}")
        self.port.receive(reply_to(self.port.sent[0], ANSWER))
        self.assertEqual([reply[:2] for reply in self.replies], [b"\0\0", b"\0\1", b"\0\2"])
        self.assertEqual({reply[2:] for reply in self.replies}, {self.replies[0][2:]})

    def test_client(self) -> None:
        """One client has 64 questions open, others still have room; then it has again."""
        for number in range(65):
            self.send(query(f"{number}.example"))
        self.assertEqual(self.rcodes(), [SERVFAIL])
        self.assertEqual(self.server.counters["busy"], 1)
        self.send(query("other.example"), "10.10.0.8")
        self.assertEqual(len(self.clock.sockets), 65)
        port = self.clock.sockets[0]
        port.receive(reply_to(port.sent[0], ANSWER))
        self.send(query("again.example"))
        self.assertEqual(self.rcodes(), [0])
        self.assertEqual(len(self.clock.sockets), 66)

    def test_all(self) -> None:
        """512 are open at most, also when all wait for the same; own names are answered then."""
        for number in range(512):
            self.send(query("one.example"), f"10.10.0.{number % 200}")
        self.assertEqual(self.rcodes(), [])
        self.send(query("one.example"), "10.10.0.250")
        self.assertEqual(self.rcodes(), [SERVFAIL])
        self.send(query("hub.pyvpn"), "10.10.0.250")
        self.assertEqual(self.rcodes(), [0])
        self.clock.pump([2.0] * 2)
        self.assertEqual(self.rcodes(), [SERVFAIL] * 512)
        self.send(query("one.example"), "10.10.0.250")
        self.assertEqual(self.rcodes(), [])

    def test_close(self) -> None:
        """Closing ends all questions and leaves no port and no timer."""
        self.send(query("a.example"))
        self.send(query("b.example"), tcp=True)
        self.server.close()
        self.assertEqual(self.rcodes(), [SERVFAIL, SERVFAIL])
        self.assertIdle()


class StreamTests(ForwardCase):
    def test_answer(self) -> None:
        """Who asks by TCP is asked for by TCP, whatever the length."""
        asked = query("example.com", number=9)
        self.send(asked, tcp=True)
        self.assertEqual(self.clock.sockets, [])
        [connector] = self.clock.connectors
        self.assertEqual(connector.remote, (ONE, 53))
        connector.accept()
        sent = b"".join(connector.sent)
        self.assertEqual(sent[:2], (len(sent) - 2).to_bytes(2, "big"))
        reply = reply_to(sent[2:], record("example.com", 16, bytes(5000)))
        wire = len(reply).to_bytes(2, "big") + reply
        connector.protocol.dataReceived(wire[:100])
        connector.protocol.dataReceived(wire[100:])
        self.assertEqual(self.replies, [asked[:2] + reply[2:]])
        self.assertIdle()

    def test_failures(self) -> None:
        """A server that cannot be reached, hangs up or is silent is followed by the next one."""
        self.upstream = [ONE, TWO, FOUR]
        self.send(query("example.com"), tcp=True)
        self.clock.connectors[0].fail()
        self.clock.connectors[1].accept()
        self.clock.connectors[1].factory.clientConnectionLost(self.clock.connectors[1], None)
        self.clock.connectors[1].open = False
        self.clock.connectors[2].accept()
        self.assertEqual([one.remote[0] for one in self.clock.connectors], self.upstream)
        self.clock.advance(2)
        self.assertEqual(self.rcodes(), [SERVFAIL])
        self.assertEqual(self.server.counters["upstream_unreachable"], 2)
        self.assertEqual(self.server.counters["upstream_silent"], 1)
        self.assertIdle()


class CachedTests(ForwardCase):
    def ask_and_answer(self, message: bytes, *records: bytes, **more: Any) -> bool:
        """Tell whether somebody else had to be asked, and what the answer's TTL was."""
        ports = len(self.clock.sockets)
        self.send(message)
        asked = len(self.clock.sockets) > ports
        if asked:
            self.port.receive(reply_to(self.port.sent[0], *records, **more))
        return asked

    def test_kept(self) -> None:
        """An answer is kept for the shortest of its TTLs, which run down meanwhile."""
        records = (ANSWER, record("example.com", A, b"\5\6\7\10", ttl=20))
        asked = query("example.com")
        self.assertTrue(self.ask_and_answer(asked, *records))
        self.clock.advance(19.5)
        self.assertFalse(self.ask_and_answer(asked))
        left = (
            record("example.com", A, b"\1\2\3\4", 281),
            record("example.com", A, b"\5\6\7\10", 1),
        )
        self.assertEqual(self.replies[-1], reply_to(asked, *left))
        self.clock.advance(0.5)
        self.assertTrue(self.ask_and_answer(asked, *records))

    def test_other_question(self) -> None:
        """Another type, flag, size or spelling is another question."""
        self.ask_and_answer(query("example.com"), ANSWER)
        for other in (
            query("example.com", AAAA),
            query("example.com", flags=RD | CD),
            query("example.com", edns=opt()),
            query("example.COM"),
        ):
            self.assertTrue(self.ask_and_answer(other, ANSWER))
        self.assertFalse(self.ask_and_answer(query("example.com", number=99), ANSWER))

    def test_not_kept(self) -> None:
        """Failures, what is cut or broken, and a "no" that does not say for how long: not kept."""
        for records, more in (
            ((), {}),
            ((), {"rcode": NXDOMAIN}),
            ((ANSWER,), {"rcode": FORMERR}),
            ((ANSWER,), {"flags": TC}),
            ((record("example.com", A, b"\1\2\3\4", ttl=0),), {}),
            ((record("example.com", A, b"\1\2\3\4", ttl=1 << 31),), {}),
            ((ANSWER[:-1],), {}),
            ((ANSWER, b"\xc0"), {}),
        ):
            for _ in range(2):
                self.assertTrue(self.ask_and_answer(query("example.com"), *records, **more))
        soa = record("com", SOA, bytes(22), ttl=60)
        self.ask_and_answer(query("example.com"), soa, rcode=NXDOMAIN, authority=1)
        self.assertFalse(self.ask_and_answer(query("example.com")))

    def test_longest(self) -> None:
        """An hour is the longest that an answer is kept."""
        forever = record("example.com", A, b"\1\2\3\4", ttl=1 << 30)
        self.ask_and_answer(query("example.com"), forever)
        self.clock.advance(3599)
        self.assertFalse(self.ask_and_answer(query("example.com")))
        self.clock.advance(1)
        self.assertTrue(self.ask_and_answer(query("example.com"), forever))

    def test_bound(self) -> None:
        """2,000 answers are kept, the youngest."""
        cache = AnswerCache(lambda: 0.0)
        for number in range(2001):
            asked = query(f"{number}.example")
            cache.put(asked[2:], reply_to(asked, ANSWER)[2:], len(asked) - 12)
        self.assertIsNone(cache.find(query("0.example")[2:]))
        for number in (1, 2000):
            self.assertIsNotNone(cache.find(query(f"{number}.example")[2:]))
        asked = query("long.example")
        long = reply_to(asked, record("long.example", 16, bytes(4200)))
        cache.put(asked[2:], long[2:], len(asked) - 12)
        self.assertIsNone(cache.find(asked[2:]))

    def test_opt(self) -> None:
        """The field of OPT in the place of a TTL is left alone."""
        asked = query("example.com", edns=opt())
        reply = reply_to(asked[:29], ANSWER)
        reply = reply[:11] + b"\1" + reply[12:] + opt(1232, flags=0x8000)
        cache = AnswerCache(self.clock.seconds)
        cache.put(asked[2:], reply[2:], 17)
        self.clock.advance(100)
        found = cache.find(asked[2:])
        assert found is not None
        self.assertTrue(found.endswith(opt(1232, flags=0x8000)))
        self.assertIn(struct.pack("!I", 200), found)

    @given(st.lists(st.tuples(st.binary(max_size=20), st.integers(0, 1 << 31)), max_size=5))
    def test_places(self, records: list[tuple[bytes, int]]) -> None:
        """The places found are those of the TTLs, behind names in full and by reference."""
        message = reply_to(query("example.com"))[:12] + query("example.com")[12:]
        places, ttls = [], []
        for number, (data, ttl) in enumerate(records):
            name = wire_name("a.b") if number % 2 else b"\1x\xc0\x0c"
            places.append(len(message) - 2 + len(name) + 4)
            ttls.append(ttl)
            message += name + struct.pack("!HHIH", 16, 1, ttl, len(data)) + data
        message = message[:6] + struct.pack("!3H", len(records), 0, 0) + message[12:]
        self.assertEqual(ttl_places(message[2:], 17), places)
        found = [struct.unpack_from("!I", message[2:], place)[0] for place in places]
        self.assertEqual(found, ttls)
