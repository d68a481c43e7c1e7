"""Control frames against the layouts of PROTOCOL 6, retyped here as bytes."""

from __future__ import annotations

import struct
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import control
from pyvpn.core.control import (
    Bye,
    ByeReason,
    Config,
    ConfigAck,
    ConfigAssembler,
    ConfigPart,
    Hello,
    PathChallenge,
    PathResponse,
    Poll,
    Reply,
    config_parts,
    parse,
)
from pyvpn.errors import LocalProtocolError, RemoteProtocolError

STAMP = bytes(range(12))
STAMP2 = bytes(range(100, 112))
NONCE = bytes(range(200, 216))
MAPPED = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7])


def frame(kind: int, body: bytes, flags: int = 0) -> bytes:
    """kind u8, flags u8, length u16 little-endian, body, zeros up to a multiple of 16."""
    whole = bytes([kind, flags]) + len(body).to_bytes(2, "little") + body
    return whole + bytes(-len(whole) % 16)


# Every kind once, its bytes written out from the table of PROTOCOL 6.
LAYOUTS = [
    (
        Poll(STAMP, 0x01020304, 0x11121314, 0x2122),
        frame(1, STAMP + b"\x04\x03\x02\x01" + b"\x14\x13\x12\x11" + b"\x22\x21"),
        32,
    ),
    (
        Reply(STAMP, STAMP2, 5, 0x10000, MAPPED, 5050),
        frame(2, STAMP + STAMP2 + b"\5\0\0\0" + b"\0\0\1\0" + MAPPED + b"\xba\x13"),
        64,
    ),
    (PathChallenge(NONCE), frame(3, NONCE), 32),
    (PathResponse(NONCE), frame(4, NONCE), 32),
    (ConfigPart(7, 1, 3, b"\x06\x02\x00\x88\x05"), frame(5, b"\7\0\0\0\1\3\6\2\0\x88\5"), 16),
    (ConfigAck(7, 1), frame(6, b"\7\0\0\0\1"), 16),
    (Bye(5, "tāken"), frame(7, b"\5" + "tāken".encode()), 16),
    (
        Hello(IPv4Address("10.10.0.2"), None, "kiwi"),
        frame(8, b"\x0a\x0a\x00\x02" + bytes(16) + b"\4kiwi"),
        32,
    ),
    (
        Hello(None, IPv6Address("fd00::2"), ""),
        frame(8, bytes(4) + b"\xfd" + bytes(14) + b"\2" + b"\0"),
        32,
    ),
]


_ACK = frame(6, b"\7\0\0\0\1")
#: Headers that are wrong, by what is wrong.
BAD_HEADERS = {
    "empty": b"",
    "cut header": _ACK[:3],
    "flags": frame(6, b"\7\0\0\0\1", flags=1),
    "length beyond the end": _ACK[:2] + b"\x0d\x00" + _ACK[4:],
    "length far beyond the end": _ACK[:2] + b"\xff\xff" + _ACK[4:],
    "big-endian length": _ACK[:2] + b"\x00\x05" + _ACK[4:],
    "padding": _ACK[:-1] + b"\1",
    "first byte of padding": _ACK[:9] + b"\1" + _ACK[10:],
}

_config = struct.Struct("<IBB").pack
_hello = bytes(20)
#: Bodies at their bounds, and such as are beyond them.
GOOD_BODIES = {
    "last part": frame(5, _config(1, 31, 32)),
    "largest part": frame(5, _config(1, 0, 1) + bytes(1100)),
    "longest text": frame(7, b"\0" + b"x" * 200),
    "no text": frame(7, b"\0"),
    "longest name": frame(8, _hello + b"\xff" + b"x" * 255),
}
BAD_BODIES = {
    "part of none": frame(5, _config(1, 0, 0)),
    "part beyond the last": frame(5, _config(1, 3, 3)),
    "33 parts": frame(5, _config(1, 0, 33)),
    "part too large": frame(5, _config(1, 0, 1) + bytes(1101)),
    "config cut": frame(5, bytes(5)),
    "text too long": frame(7, b"\0" + b"x" * 201),
    "text too long in bytes": frame(7, b"\0" + "ā".encode() * 101),
    "text not UTF-8": frame(7, b"\0\xff"),
    "text with an escape": frame(7, b"\0\x1b[2J"),
    "text with a line break": frame(7, b"\0one\ntwo"),
    "bye without reason": frame(7, b""),
    "hello cut": frame(8, bytes(19)),
    "hello without a length": frame(8, _hello),
    "name shorter than said": frame(8, _hello + b"\5kiwi"),
    "name longer than said": frame(8, _hello + b"\3kiwi"),
    "name not UTF-8": frame(8, _hello + b"\2\xc3("),
    "name with NUL": frame(8, _hello + b"\2a\0"),
    "name with a line separator": frame(8, _hello + b"\3" + "\u2028".encode()),
}


def uint(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def octets(count: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=count, max_size=count)


def texts(limit: int) -> st.SearchStrategy[str]:
    letters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
    return st.text(letters, max_size=limit).filter(lambda text: len(text.encode()) <= limit)


CONFIG_PARTS = st.builds(
    lambda revision, parts, part, tlvs: ConfigPart(revision, part % parts, parts, tlvs),
    uint(32),
    st.integers(1, 32),
    uint(8),
    st.binary(max_size=1100),
)
FRAMES = st.one_of(
    st.builds(Poll, octets(12), uint(32), uint(32), uint(16)),
    st.builds(Reply, octets(12), octets(12), uint(32), uint(32), octets(16), uint(16)),
    st.builds(PathChallenge, octets(16)),
    st.builds(PathResponse, octets(16)),
    CONFIG_PARTS,
    st.builds(ConfigAck, uint(32), uint(8)),
    st.builds(Bye, uint(8), texts(200)),
    st.builds(
        Hello,
        st.none() | st.integers(1, 2**32 - 1).map(IPv4Address),
        st.none() | st.integers(1, 2**128 - 1).map(IPv6Address),
        texts(255),
    ),
)


class FrameTests(SynchronousTestCase):
    def refused(self, plaintext: bytes, reason: str) -> None:
        error = self.assertRaises(RemoteProtocolError, parse, plaintext)
        self.assertEqual(error.reason, reason)

    def test_layouts(self) -> None:
        """Each kind has exactly the bytes of PROTOCOL 6, both ways."""
        for value, packed, size in LAYOUTS:
            with self.subTest(type(value).__name__):
                self.assertEqual(value.pack(), packed)
                self.assertEqual(len(packed), size)
                self.assertEqual(parse(packed), value)

    def test_every_kind_is_among_the_layouts(self) -> None:
        """The table above leaves no kind of 1 to 8 out."""
        self.assertEqual({packed[0] for _, packed, _ in LAYOUTS}, set(range(1, 9)))

    def test_first_nibble_is_zero(self) -> None:
        """Every frame starts below 0x10: that is how a type 4's plaintext tells it (PROTOCOL 5)."""
        for value, _, _ in LAYOUTS:
            self.assertLess(value.pack()[0], 0x10)

    def test_padded_challenge(self) -> None:
        """A challenge padded to a size is the MTU probe and parses like a short one."""
        challenge = PathChallenge(NONCE)
        for size in (32, 33, 1416):
            probe = challenge.pack(size)
            self.assertEqual(len(probe), size)
            self.assertEqual(probe.rstrip(b"\0"), challenge.pack().rstrip(b"\0"))
            self.assertEqual(parse(probe), challenge)
        self.assertEqual(len(challenge.pack(5)), 32)

    def test_unknown_kinds(self) -> None:
        """A kind that PROTOCOL 6 does not name is ``control_unknown``."""
        for kind in (0, *range(9, 16), 0x10, 0x45, 0xFF):
            self.refused(frame(kind, bytes(28)), "control_unknown")

    def test_malformed_headers(self) -> None:
        """No header, flags, a length beyond the end or padding that is not zero is malformed."""
        self.assertEqual(parse(_ACK), ConfigAck(7, 1))
        for name, plaintext in BAD_HEADERS.items():
            with self.subTest(name):
                self.refused(plaintext, "control_malformed")

    def test_fixed_bodies_have_one_length(self) -> None:
        """A body one byte short or long is malformed, for every kind of fixed size."""
        for kind, size in ((1, 22), (2, 50), (3, 16), (4, 16), (6, 5)):
            parse(frame(kind, bytes(size)))
            self.refused(frame(kind, bytes(size - 1)), "control_malformed")
            self.refused(frame(kind, bytes(size + 1)), "control_malformed")
            self.refused(frame(kind, b""), "control_malformed")

    def test_malformed_bodies(self) -> None:
        """Bounds of parts, texts and names hold for what arrives, at the border and beyond it."""
        for name, plaintext in GOOD_BODIES.items():
            with self.subTest(name):
                self.assertEqual(parse(plaintext).pack(), plaintext)
        for name, plaintext in BAD_BODIES.items():
            with self.subTest(name):
                self.refused(plaintext, "control_malformed")

    def test_zero_address_is_no_wish(self) -> None:
        """A wanted address of zeros means any (PROTOCOL 6)."""
        self.assertEqual(parse(frame(8, bytes(20) + b"\1k")), Hello(None, None, "k"))

    def test_later_bye_reasons_pass(self) -> None:
        """A reason that this version does not know still ends the session: it is not refused."""
        self.assertEqual(parse(frame(7, b"\xc8")), Bye(200, ""))

    def test_bye_reasons(self) -> None:
        """The reasons have the numbers of PROTOCOL 6."""
        names = "STOPPED RESTARTING DISABLED EXPIRED QUOTA ADDRESS_TAKEN TOO_MANY_DEVICES POOL_FULL"
        for number, name in enumerate(names.split()):
            self.assertEqual(ByeReason[name], number)
            self.assertEqual(getattr(control, f"BYE_{name}"), number)
        self.assertEqual(len(ByeReason), 8)

    def test_misuse_is_ours(self) -> None:
        """A value that does not fit its field is our own bug, found where it is made."""
        for make, arguments in (
            (Poll, (STAMP[:-1], 0, 0, 0)),
            (Poll, (STAMP, 2**32, 0, 0)),
            (Poll, (STAMP, 0, -1, 0)),
            (Poll, (STAMP, 0, 0, 2**16)),
            (Poll, (STAMP, 0, 2**32, 0)),
            (Reply, (STAMP, STAMP, 0, 0, b"\x7f\0\0\1", 1)),
            (Reply, (STAMP, STAMP, 2**32, 0, MAPPED, 1)),
            (Reply, (STAMP, STAMP, 0, 2**32, MAPPED, 1)),
            (Reply, (STAMP, STAMP, 0, 0, MAPPED, 2**16)),
            (ConfigPart, (2**32, 0, 1, b"")),
            (ConfigPart, (0, -1, 1, b"")),
            (ConfigAck, (2**32, 0)),
            (ConfigAck, (0, 256)),
            (PathChallenge, (b"",)),
            (PathResponse, (bytes(17),)),
            (ConfigPart, (0, 1, 1, b"")),
            (ConfigPart, (0, 0, 33, b"")),
            (ConfigPart, (0, 0, 1, bytes(1101))),
            (Bye, (256, "")),
            (Bye, (0, "x" * 201)),
            (Hello, (None, None, "a\tb")),
            (Hello, (None, None, "x" * 256)),
        ):
            self.assertRaises(LocalProtocolError, make, *arguments)

    @given(FRAMES)
    @settings(deadline=None, max_examples=400)
    def test_parse_undoes_pack(self, value: control.Frame) -> None:
        """parse(pack(m)) == m for every frame, and the padding is the least that fills 16."""
        packed = value.pack()
        self.assertEqual(parse(packed), value)
        length = 4 + int.from_bytes(packed[2:4], "little")
        self.assertEqual(len(packed), (length + 15) // 16 * 16)

    @given(
        st.one_of(
            st.binary(max_size=120),
            st.builds(frame, st.integers(0, 9), st.binary(max_size=80)),
        )
    )
    @settings(deadline=None, max_examples=500)
    def test_any_bytes(self, plaintext: bytes) -> None:
        """Any bytes are a frame or a named drop; what is a frame packs to the same bytes again."""
        try:
            value = parse(plaintext)
        except RemoteProtocolError as error:
            self.assertIn(error.reason, ("control_malformed", "control_unknown"))
            return
        self.assertEqual(value.pack().rstrip(b"\0"), plaintext.rstrip(b"\0"))


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "little") + value


def one(*tlvs: bytes, revision: int = 1) -> ConfigPart:
    """A configuration of one part."""
    return ConfigPart(revision, 0, 1, b"".join(tlvs))


def v4(text: str) -> bytes:
    return ip_address(text).packed


FULL = Config(
    addresses=(IPv4Interface("10.10.0.2/24"), IPv6Interface("fd00::2/64")),
    routes=(IPv4Network("10.20.0.0/16"), IPv6Network("fd01::/48"), IPv4Network("0.0.0.0/0")),
    excluded=(IPv4Network("192.0.2.1/32"),),
    dns=(IPv4Address("10.10.0.1"), IPv6Address("fd00::1")),
    search=("example.org", "x-1"),
    mtu=1416,
    poll_interval=0.25,
    token=bytes(range(92)),
)
# The same, item by item, as PROTOCOL 6 lays it out.
FULL_TLVS = (
    tlv(1, v4("10.10.0.2") + b"\x18")
    + tlv(1, v4("fd00::2") + b"\x40")
    + tlv(2, v4("10.20.0.0") + b"\x10")
    + tlv(2, v4("fd01::") + b"\x30")
    + tlv(2, bytes(5))
    + tlv(3, v4("192.0.2.1") + b"\x20")
    + tlv(4, v4("10.10.0.1"))
    + tlv(4, v4("fd00::1"))
    + tlv(5, b"example.org")
    + tlv(5, b"x-1")
    + tlv(6, b"\x88\x05")
    + tlv(7, b"\xfa\x00")
    + tlv(8, bytes(range(92)))
)


_label = b"a" * 63
_domain = b".".join((_label, _label, _label, b"b" * 61))
#: Items of a CONFIG at the bounds of what a client takes, and such as are beyond them.
GOOD_ITEMS = {
    "longest domain": tlv(5, _domain),
    "capitals": tlv(5, b"Example.ORG"),
    "lowest MTU": tlv(6, (1280).to_bytes(2, "little")),
    "highest MTU": tlv(6, b"\xff\xff"),
    "largest IPv4 subnet": tlv(1, v4("10.10.0.2") + b"\x08"),
    "largest IPv6 subnet": tlv(1, v4("fd00::2") + b"\x20"),
    "IPv4 host route": tlv(2, v4("10.0.0.1") + b"\x20"),
    "IPv6 host route": tlv(2, v4("fd00::1") + b"\x80"),
}
BAD_ITEMS = {
    "cut header": b"\x06\x02",
    "value beyond the part": b"\x06\x03\x00\x88\x05",
    "empty address": tlv(1, b""),
    "address without prefix": tlv(1, v4("10.10.0.2")),
    "address of 5 bytes": tlv(1, bytes(5) + b"\x18"),
    "IPv4 default route by stealth": tlv(1, v4("10.10.0.2") + b"\x00"),
    "IPv4 prefix 7": tlv(1, v4("10.10.0.2") + b"\x07"),
    "IPv6 default route by stealth": tlv(1, v4("fd00::2") + b"\x00"),
    "IPv6 prefix 31": tlv(1, v4("fd00::2") + b"\x1f"),
    "IPv4 prefix 33": tlv(1, v4("10.10.0.2") + b"\x21"),
    "IPv6 prefix 129": tlv(1, v4("fd00::2") + b"\x81"),
    "no address": tlv(1, v4("0.0.0.0") + b"\x18"),
    "loopback address": tlv(1, v4("127.0.0.1") + b"\x18"),
    "multicast address": tlv(1, v4("224.0.0.1") + b"\x18"),
    "IPv6 loopback address": tlv(1, v4("::1") + b"\x80"),
    "mapped address": tlv(1, MAPPED + b"\x80"),
    "route with host bits": tlv(2, v4("10.20.0.1") + b"\x10"),
    "IPv6 route with host bits": tlv(2, v4("fd00::1") + b"\x40"),
    "route prefix 33": tlv(2, v4("10.20.0.0") + b"\x21"),
    "empty route": tlv(2, b""),
    "loopback route": tlv(2, v4("127.0.0.0") + b"\x08"),
    "excluded with host bits": tlv(3, v4("10.20.0.1") + b"\x10"),
    "DNS of 5 bytes": tlv(4, bytes(5)),
    "DNS nowhere": tlv(4, bytes(4)),
    "empty domain": tlv(5, b""),
    "domain of 254 bytes": tlv(5, _domain + b"b"),
    "label of 64": tlv(5, b"a" * 64),
    "empty label": tlv(5, b"a..b"),
    "dot at the end": tlv(5, b"example.org."),
    "hyphen first": tlv(5, b"-a.org"),
    "hyphen last": tlv(5, b"a-.org"),
    "underscore": tlv(5, b"_tcp.org"),
    "blank": tlv(5, b"a b"),
    "line break": tlv(5, b"a.org\n"),
    "option of resolv.conf": tlv(5, b"a\nnameserver 192.0.2.1"),
    "domain not ASCII": tlv(5, "kākāpō.nz".encode()),
    "superscript digit": tlv(5, "a²".encode("latin-1")),
    "MTU too low": tlv(6, (1279).to_bytes(2, "little")),
    "MTU of one byte": tlv(6, b"\x88"),
    "MTU of three bytes": tlv(6, b"\x88\x05\x00"),
    "two MTUs": tlv(6, b"\x88\x05") * 2,
    "interval of four bytes": tlv(7, bytes(4)),
    "short token": tlv(8, bytes(91)),
    "long token": tlv(8, bytes(93)),
    "two tokens": tlv(8, bytes(92)) * 2,
    "17 addresses": b"".join(tlv(1, bytes([10, 0, 0, n, 24])) for n in range(1, 18)),
}


def interfaces() -> st.SearchStrategy[IPv4Interface | IPv6Interface]:
    # Away from loopback, multicast and the like, which have their own tests.
    return st.one_of(
        st.builds(lambda n, p: IPv4Interface((0x0A000000 | n, p)), uint(24), st.integers(8, 32)),
        st.builds(
            lambda n, p: IPv6Interface((0xFD << 120 | n, p)), uint(120), st.integers(32, 128)
        ),
    )


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NETWORKS = interfaces().map(lambda interface: interface.network)
CONFIGS = st.builds(
    Config,
    addresses=st.lists(interfaces(), max_size=16, unique=True).map(tuple),
    routes=st.lists(NETWORKS, max_size=200, unique=True).map(tuple),
    excluded=st.lists(NETWORKS, max_size=60, unique=True).map(tuple),
    dns=st.lists(interfaces().map(lambda i: i.ip), max_size=16, unique=True).map(tuple),
    search=st.lists(
        st.lists(LABELS, min_size=1, max_size=4).map(".".join), max_size=16, unique=True
    ).map(tuple),
    mtu=st.none() | st.integers(1280, 65535),
    poll_interval=st.none() | st.integers(50, 25_000).map(lambda ms: ms / 1000),
    token=st.none() | octets(92),
)


class ConfigTests(SynchronousTestCase):
    def assemble(self, *parts: ConfigPart) -> Config | None:
        assembler = ConfigAssembler()
        result = None
        for part in parts:
            self.assertIsNone(result)
            result = assembler.add(part)
        return result

    def test_layout(self) -> None:
        """Each item has the type, length and value of PROTOCOL 6, both ways."""
        self.assertEqual(config_parts(9, FULL), [one(FULL_TLVS, revision=9)])
        self.assertEqual(self.assemble(one(FULL_TLVS)), FULL)

    def test_empty(self) -> None:
        """A hub with nothing to say sends one empty part, and that is a configuration."""
        self.assertEqual(config_parts(1, Config()), [one()])
        self.assertEqual(self.assemble(one()), Config())

    def test_unknown_types_are_ignored(self) -> None:
        """Items of a later version do not disturb the known ones (PROTOCOL 6)."""
        part = one(tlv(0, b""), tlv(9, b"later"), tlv(6, b"\x88\x05"), tlv(255, bytes(300)))
        self.assertEqual(self.assemble(part), Config(mtu=1416))

    def test_duplicates_are_dropped(self) -> None:
        """A route named twice is one route: adding it twice would be a failing command."""
        route = tlv(2, v4("10.20.0.0") + b"\x10")
        config = self.assemble(one(route, route))
        assert config is not None
        self.assertEqual(config.routes, (IPv4Network("10.20.0.0/16"),))

    def test_interval_is_clamped(self) -> None:
        """An interval out of range becomes the nearest allowed one instead of a refusal."""
        for milliseconds, seconds in (
            (0, 0.05),
            (49, 0.05),
            (50, 0.05),
            (1000, 1.0),
            (25_000, 25.0),
            (25_001, 25.0),
            (65_535, 25.0),
        ):
            config = self.assemble(one(tlv(7, milliseconds.to_bytes(2, "little"))))
            assert config is not None
            self.assertEqual(config.poll_interval, seconds)

    def test_refused(self) -> None:
        """What a client must not take from a hub is refused as ``config_invalid``."""
        for name, tlvs in GOOD_ITEMS.items():
            with self.subTest(name):
                self.assertIsNotNone(self.assemble(one(tlvs)))
        for name, tlvs in BAD_ITEMS.items():
            with self.subTest(name):
                error = self.assertRaises(RemoteProtocolError, self.assemble, one(tlvs))
                self.assertEqual(error.reason, "config_invalid")

    def test_number_of_routes(self) -> None:
        """1,024 routes are taken, one more is refused, the excluded ones counted with them."""
        networks = tuple(ip_network((0x0A000000 + n, 32)) for n in range(1025))
        parts = config_parts(1, Config(routes=networks[:1000], excluded=networks[1000:1024]))
        self.assertIsNotNone(self.assemble(*parts))
        extra = tlv(3, networks[1024].network_address.packed + b"\x20")
        last = ConfigPart(1, len(parts) - 1, len(parts), parts[-1].tlvs + extra)
        error = self.assertRaises(RemoteProtocolError, self.assemble, *parts[:-1], last)
        self.assertEqual(error.reason, "config_invalid")
        self.assertRaises(LocalProtocolError, config_parts, 1, Config(routes=networks))

    def test_hub_sends_nothing_that_clients_refuse(self) -> None:
        """A configuration that is against the rules fails at the hub, as our own mistake."""
        for config in (
            Config(mtu=1279),
            Config(mtu=65536),
            Config(mtu=-1),
            Config(poll_interval=66.0),
            Config(poll_interval=float("nan")),
            Config(poll_interval=float("inf")),
            Config(token=b""),
            Config(search=("kākāpō.nz",)),
            Config(search=("x" * 70_000,)),
            Config(search=("a b",)),
            Config(dns=(IPv4Address(0),)),
        ):
            self.assertRaises(LocalProtocolError, config_parts, 1, config)

    @given(CONFIGS, uint(32), st.randoms(use_true_random=False))
    @settings(deadline=None, max_examples=60)
    def test_assembling_undoes_cutting(self, config: Config, revision: int, random: Random) -> None:
        """Parts in any order, repeated, packed and parsed, give the configuration again."""
        parts = config_parts(revision, config)
        self.assertLessEqual(len(parts), 32)
        for part in parts:
            self.assertLessEqual(len(part.tlvs), 1100)
        shuffled = parts[:]
        random.shuffle(shuffled)
        assembler = ConfigAssembler()
        for part in shuffled[:-1]:
            for _ in range(2):
                self.assertIsNone(assembler.add(parse(part.pack())))
        self.assertEqual(assembler.applied, -1)
        self.assertEqual(assembler.add(parse(shuffled[-1].pack())), config)
        self.assertEqual(assembler.applied, revision)
        self.assertIsNone(assembler.add(shuffled[0]))

    @given(st.binary(max_size=60))
    @settings(deadline=None, max_examples=300)
    def test_any_items(self, tlvs: bytes) -> None:
        """Any bytes as items are a configuration or ``config_invalid``, nothing else."""
        try:
            self.assertIsInstance(self.assemble(one(tlvs)), Config)
        except RemoteProtocolError as error:
            self.assertEqual(error.reason, "config_invalid")


class ConfigAssemblerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.assembler = ConfigAssembler()

    def test_newer_replaces_unfinished(self) -> None:
        """A newer revision drops the unfinished older one, whose late parts change nothing."""
        mtu = tlv(6, b"\x88\x05")
        self.assertIsNone(self.assembler.add(ConfigPart(1, 0, 2, mtu)))
        self.assertIsNone(self.assembler.add(ConfigPart(2, 0, 2, b"")))
        self.assertIsNone(self.assembler.add(ConfigPart(1, 1, 2, b"")))
        self.assertEqual(self.assembler.add(ConfigPart(2, 1, 2, b"")), Config())

    def test_older_and_repeated_are_ignored(self) -> None:
        """After a revision is complete, its repetitions and older ones give nothing."""
        self.assertEqual(self.assembler.add(one(revision=5)), Config())
        for revision in (5, 4, 0):
            self.assertIsNone(self.assembler.add(one(tlv(6, b"\x88\x05"), revision=revision)))
        self.assertEqual(self.assembler.add(one(tlv(6, b"\x88\x05"), revision=6)), Config(mtu=1416))

    def test_contradiction(self) -> None:
        """Parts of one revision that disagree about their number or content are invalid."""
        for second in (ConfigPart(1, 1, 3, b""), ConfigPart(1, 0, 2, tlv(6, b"\x88\x05"))):
            assembler = ConfigAssembler()
            assembler.add(ConfigPart(1, 0, 2, b""))
            error = self.assertRaises(RemoteProtocolError, assembler.add, second)
            self.assertEqual(error.reason, "config_invalid")
            # The hub's next repetition starts from nothing, and can succeed.
            self.assertIsNone(assembler.add(ConfigPart(1, 1, 2, b"")))
            self.assertEqual(assembler.add(ConfigPart(1, 0, 2, b"")), Config())

    def test_invalid_is_forgotten(self) -> None:
        """After an invalid revision the next one works, and so does a good copy of the same."""
        self.assertRaises(RemoteProtocolError, self.assembler.add, one(tlv(6, b"\0\0")))
        self.assertEqual(self.assembler.applied, -1)
        self.assertEqual(self.assembler.add(one(tlv(6, b"\x88\x05"))), Config(mtu=1416))
        self.assertRaises(RemoteProtocolError, self.assembler.add, one(b"\1", revision=2))
        self.assertEqual(self.assembler.add(one(revision=3)), Config())

    def test_items_stay_inside_their_part(self) -> None:
        """An item cut by the border of a part is invalid, though the parts joined would be good."""
        item = tlv(6, b"\x88\x05")
        self.assembler.add(ConfigPart(1, 0, 2, item[:4]))
        self.assertRaises(RemoteProtocolError, self.assembler.add, ConfigPart(1, 1, 2, item[4:]))
