"""What answers of name servers come to, however they are made up."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from itertools import pairwise
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.service.lookup import Questions, Verdict, judge

SERVER = ("192.0.2.53", 53)
NUMBER = b"\x12\x34"
NAME = b"hub.example"
TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "TXT": 16, "AAAA": 28, "OPT": 41}
POINTER = b"\xc0\x0c"  # to the question's name

NO_ADDRESS = Verdict([], "knows no address of it", True)


def label(name: bytes) -> bytes:
    """A name on the wire, not compressed."""
    parts = name.split(b".") if name else []
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def record(name: bytes, kind: str, data: bytes, ttl: int = 60, cls: int = 1) -> bytes:
    """A record; the name as it stands on the wire if it is a pointer."""
    owner = name if name == POINTER else label(name)
    return owner + struct.pack("!HHIH", TYPES[kind], cls, ttl, len(data)) + data


def address(name: bytes, text: str, **fields: Any) -> bytes:
    packed = ip_address(text).packed
    return record(name, "A" if len(packed) == 4 else "AAAA", packed, **fields)


def alias(name: bytes, target: bytes, **fields: Any) -> bytes:
    return record(name, "CNAME", label(target), **fields)


def answer(*records: bytes, kind: int = 1, flags: int = 0x8180, more: int = 0) -> bytes:
    """A whole answer; ``more`` are records that are announced and not there."""
    head = struct.pack("!HHHHH", flags, 1, len(records) + more, 0, 0)
    return NUMBER + head + label(NAME) + struct.pack("!HH", kind, 1) + b"".join(records)


def heard(datagram: bytes, kind: int = 1) -> list[dns.Message]:
    """What is taken for an answer to a question for NAME."""
    messages: list[dns.Message] = []
    questions = Questions(lambda size: NUMBER)
    questions.makeConnection(mock.Mock())
    questions.ask(dns.Query(NAME, kind), SERVER, messages.append)
    questions.datagramReceived(datagram, SERVER)
    return messages


class JudgeTests(SynchronousTestCase):
    def judge(self, *records: bytes, kind: int = 1, **fields: int) -> Verdict:
        (message,) = heard(answer(*records, kind=kind, **fields), kind)
        return judge(message, NAME, kind)

    def test_addresses(self) -> None:
        """Addresses of the kind that was asked for, in the order of the answer, none twice."""
        both = [address(POINTER, text) for text in ("192.0.2.7", "2001:db8::7", "192.0.2.6")]
        v4 = self.judge(*both, both[0], address(b"HUB.Example", "192.0.2.5"))
        self.assertEqual(v4, Verdict(["192.0.2.7", "192.0.2.6", "192.0.2.5"]))
        self.assertEqual(self.judge(*both, kind=28), Verdict(["2001:db8::7"]))

    def test_other_records(self) -> None:
        """Records of other names, types and classes, in whatever shape, are passed over."""
        good = address(POINTER, "192.0.2.7")
        table = [
            address(b"other.example", "192.0.2.66"),
            address(POINTER, "192.0.2.66", cls=3),
            address(POINTER, "2001:db8::66"),
            record(POINTER, "A", b"\xc0\x00\x02"),
            record(POINTER, "A", b""),
            record(POINTER, "A", b"\xc0\x00\x02\x42\x42"),
            record(POINTER, "A", ip_address("2001:db8::66").packed),
            alias(POINTER, b"other.example", cls=3),
            record(POINTER, "TXT", b"\xff"),
            record(POINTER, "SOA", b"\x01"),
            record(b"", "OPT", b"\x00\x0a\xff\xff"),
            record(POINTER, "NS", b""),
            address(b"h\xfcb.example", "192.0.2.66"),
        ]
        for other in table:
            self.assertEqual(self.judge(other, good), Verdict(["192.0.2.7"]), other)
            self.assertEqual(self.judge(good, other), Verdict(["192.0.2.7"]), other)
            self.assertEqual(self.judge(other), NO_ADDRESS)

    def test_no_host_has_it(self) -> None:
        """Addresses that no host can have are none; private and loopback ones are."""
        for text in ("0.0.0.0", "224.0.0.1", "255.255.255.255"):
            self.assertEqual(self.judge(address(POINTER, text)), NO_ADDRESS)
        for text in ("::", "ff02::1", "fe80::1"):
            self.assertEqual(self.judge(address(POINTER, text), kind=28), NO_ADDRESS)
        for text in ("10.0.0.1", "127.0.0.1", "240.0.0.1"):
            self.assertEqual(self.judge(address(POINTER, text)), Verdict([text]))
        for text in ("fd00::1", "::1"):
            self.assertEqual(self.judge(address(POINTER, text), kind=28), Verdict([text]))

    def test_aliases(self) -> None:
        """Up to eight aliases are followed, in any order of records and case of names."""
        for count in range(12):
            names = [NAME, *(b"n%d.example" % number for number in range(1, count + 1))]
            pairs = pairwise(names)
            records = [alias(name, target.upper()) for name, target in pairs]
            verdict = self.judge(address(names[-1], "192.0.2.7"), *reversed(records))
            if count <= 8:
                self.assertEqual(verdict, Verdict(["192.0.2.7"]), count)
            else:
                self.assertEqual(verdict, Verdict([], "answered with aliases without end"), count)

    def test_alias_to_nowhere(self) -> None:
        """An alias that the answer has no address for is no address."""
        other = address(b"other.example", "192.0.2.66")
        self.assertEqual(self.judge(alias(POINTER, b"gate.example"), other), NO_ADDRESS)

    def test_alias_loops(self) -> None:
        """Aliases in a circle end, and are a failure, after which another server is asked."""
        endless = Verdict([], "answered with aliases without end", settled=False)
        self.assertEqual(self.judge(alias(POINTER, NAME)), endless)
        back = [alias(POINTER, b"a.example"), alias(b"a.example", NAME)]
        self.assertEqual(self.judge(*back), endless)

    def test_ttl(self) -> None:
        """No time to live makes an address better or worse."""
        for ttl in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            verdict = self.judge(address(POINTER, "192.0.2.7", ttl=ttl))
            self.assertEqual(verdict, Verdict(["192.0.2.7"]))

    def test_cut_short(self) -> None:
        """Of an answer that did not fit, what is there is taken; nothing there is a failure."""
        good = address(POINTER, "192.0.2.7")
        self.assertEqual(self.judge(good, flags=0x8380), Verdict(["192.0.2.7"]))
        self.assertEqual(self.judge(good, flags=0x8180, more=3), Verdict(["192.0.2.7"]))
        self.assertEqual(self.judge(flags=0x8380), Verdict([], "answered more than fits"))
        whole = answer(good, address(POINTER, "192.0.2.8"))
        for cut in range(len(answer(good)), len(whole)):
            (message,) = heard(whole[:cut])
            self.assertEqual(judge(message, NAME, 1), Verdict(["192.0.2.7"]))

    def test_many(self) -> None:
        """64 addresses are kept."""
        records = [address(POINTER, f"192.0.2.{last}") for last in range(1, 101)]
        expected = [f"192.0.2.{last}" for last in range(1, 65)]
        self.assertEqual(self.judge(*records), Verdict(expected))

    def test_codes(self) -> None:
        """A denial stands, whatever addresses come with it; other codes are failures."""
        good = address(POINTER, "192.0.2.7")
        denied = Verdict([], "knows no such name", True)
        self.assertEqual(self.judge(good, flags=0x8183), denied)
        for code, word in ((1, "FORMERR"), (2, "SERVFAIL"), (4, "NOTIMP"), (5, "REFUSED")):
            verdict = self.judge(good, flags=0x8180 | code)
            self.assertEqual(verdict, Verdict([], f"answered {word}"))
        self.assertEqual(self.judge(good, flags=0x818F), Verdict([], "answered 15"))


class AnyBytesTests(SynchronousTestCase):
    @given(st.binary(max_size=512), st.sampled_from([1, 28]))
    @settings(deadline=None)
    def test_after_the_question(self, junk: bytes, kind: int) -> None:
        """Whatever follows the right question comes to addresses or to words, and no error."""
        for message in heard(answer(junk, kind=kind, more=5)[:512], kind):
            verdict = judge(message, NAME, kind)
            self.assertNotEqual(bool(verdict.addresses), bool(verdict.said))
            version = {4 if kind == 1 else 6}
            self.assertLessEqual({ip_address(one).version for one in verdict.addresses}, version)

    @given(st.binary(max_size=512))
    @settings(deadline=None)
    def test_after_the_number(self, junk: bytes) -> None:
        """Whatever comes under the right number is an answer to the question or nothing."""
        for message in heard(NUMBER + junk):
            judge(message, NAME, 1)
        self.assertEqual(len(heard(answer(address(POINTER, "192.0.2.7")))), 1)
