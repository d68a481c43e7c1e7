"""Whole packets, joined, against an oracle: what a kernel cuts of it is what came.

``segmentmodel.py`` is the oracle: it cuts what a flow sends, and cuts what was joined again.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from random import Random

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import coalesce
from pyvpn.core.segments import Run
from pyvpn.core.wordsum import word_sum, word_sums
from tests.core import segmentmodel as model
from tests.core.segmentmodel import ACK, CWR, ECE, FIN, PSH, RST, SYN, TCP, UDP, URG, Flow

ADDRESSES = {
    4: (ip_address("10.10.0.2"), ip_address("10.10.0.1")),
    6: (ip_address("fd6e:a1::2"), ip_address("fd6e:a1::1")),
}
KINDS = tuple(itertools.product((4, 6), (TCP, UDP)))
KEEPALIVE, CONTROL, SEGMENT = b"", b"\x01" + bytes(31), b"\x11" + bytes(79)


def flow(version: int = 4, protocol: int = TCP, **options: object) -> Flow:
    return Flow(*ADDRESSES[version], protocol, **options)  # type: ignore[arg-type]


def octets(count: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(count)


def padded(packet: bytes, most: int = 1420) -> bytes:
    return packet + bytes(max(min(-len(packet) % 16, most - len(packet)), 0))


def sent(flow: Flow, payload: bytes, size: int) -> list[bytes]:
    """What a stock peer seals of what its kernel sends at once."""
    return [padded(packet) for packet in model.segments_of(flow.packet(payload), size)]


def parted(flow: Flow, payload: bytes, sizes: Iterable[int]) -> list[bytes]:
    """What it seals of packets that carry so much each, each of its own making."""
    packets = []
    for number, size in enumerate(sizes):
        piece, payload = payload[:size], payload[size:]
        later = evolve(flow, identification=(flow.identification + number) % 65_536)
        packets.append(padded(later.finished(piece)))
        flow = evolve(flow, sequence=(flow.sequence + size) % 2**32)
    return packets


def length_of(plaintext: bytes) -> int:
    """The length that an IP header declares, 0 if it is not right."""
    version = plaintext[0] >> 4 if plaintext else 0
    if version == 4 and len(plaintext) >= 20:
        length, least = model.u16(plaintext, 2), (plaintext[0] & 15) * 4
    elif version == 6 and len(plaintext) >= 40:
        length, least = 40 + model.u16(plaintext, 4), 40
    else:
        return 0
    return length if 20 <= least <= length <= len(plaintext) else 0


def equal(packet: bytes, other: bytes) -> bool:
    """Whether packets are the same; with DF their identification says nothing (RFC 6864)."""
    if packet == other:
        return True
    if not packet[0] == other[0] == 0x45 or not packet[6] & other[6] & 0x40:
        return False
    if model.word_sum(packet[:20]) != 0xFFFF or model.word_sum(other[:20]) != 0xFFFF:
        return False
    return packet[:4] + packet[6:10] + packet[12:] == other[:4] + other[6:10] + other[12:]


def written(runs: Iterable[Run]) -> list[bytes]:
    """The packets that the kernel makes of runs."""
    packets: list[bytes] = []
    for run in runs:
        made = model.cut_by_kernel(b"".join(run.frame))
        assert run.packets == len(made), "packets"
        assert run.octets == sum(map(len, made)), "octets"
        assert {model.source_of(packet).packed for packet in made} == {coalesce.source(run)}
        packets += made
    return packets


def joined(plaintexts: list[bytes], exactly: bool = True) -> list[Run]:
    """What is joined of packets in order, of which none is lost, and each comes out as it was."""
    runs, others = coalesce.join_all(plaintexts)
    assert not others, "not known as packets"
    expected = [plaintext[: length_of(plaintext)] for plaintext in plaintexts]
    made = written(runs)
    assert len(made) == len(expected), "lost, or one too many"
    if exactly:
        assert made == expected, "changed"
    assert all(map(equal, made, expected)), "changed"
    return runs


def counts(runs: list[Run]) -> list[int]:
    return [run.packets for run in runs]


def changed(packet: bytes, at: int, new: bytes) -> bytes:
    return packet[:at] + new + packet[at + len(new) :]


def ip_right(packet: bytes) -> bytes:
    """With the checksum of an IPv4 header without options as it should be."""
    zero = changed(packet, 10, b"\0\0")
    return changed(zero, 10, struct.pack("!H", model.word_sum(zero[:20]) ^ 0xFFFF))


class Bulk(SynchronousTestCase):
    """What one flow sends at once."""

    def test_all_of_it(self) -> None:
        """What the far kernel cut is one super-packet again: both versions, TCP and UDP."""
        for version, protocol in KINDS:
            whole = flow(version, protocol, tcp_options=bytes(12) * (protocol == TCP))
            for size, length in (
                (1340, 1340 * 40),
                (1340, 1340 * 40 + 1),
                (501, 501 * 30 + 500),
                (33, 33 * 2),
                (8900, 8900 * 6 + 20),
                (1, 2),
            ):
                self.assertEqual(len(joined(sent(whole, octets(length), size))), 1, size)

    @settings(deadline=None, max_examples=150)
    @given(
        st.sampled_from(KINDS),
        st.integers(1, 3000),
        st.integers(1, 70),
        st.integers(0, 2999),
        st.sampled_from((0, 12, 40)),
        st.sampled_from((ACK, ACK | PSH, ACK | FIN, ACK | ECE, ACK | PSH | FIN)),
        st.sampled_from((0, 2**32 - 5000)),
        st.sampled_from((0, 0xFFFD)),
    )
    def test_any(
        self,
        kind: tuple[int, int],
        size: int,
        count: int,
        tail: int,
        options: int,
        flags: int,
        sequence: int,
        identification: int,
    ) -> None:
        """Any cut of any payload that is within the bounds is joined into one."""
        version, protocol = kind
        whole = flow(
            version,
            protocol,
            flags=flags,
            sequence=sequence,
            identification=identification,
            tcp_options=octets(options) * (protocol == TCP),
        )
        count = min(count, (65_535 - whole.size) // size, 64)
        payload = octets(count * size - tail % size)
        self.assertEqual(len(joined(sent(whole, payload, size))), 1)

    def test_what_ends_it(self) -> None:
        """PSH and FIN end a super-packet, and so does a shorter packet; then another begins."""
        for flags, tail in ((PSH, 1000), (FIN, 1000), (PSH | FIN, 700), (0, 700)):
            first = flow(flags=ACK | flags)
            later = {"sequence": first.sequence + 2000 + tail, "identification": 0xFFF3}
            second = evolve(first, **later)
            packets = sent(first, octets(2000 + tail), 1000) + sent(second, octets(3000), 1000)
            self.assertEqual(counts(joined(packets)), [3, 3], (flags, tail))
        for version in (4, 6):
            packets = parted(flow(version, UDP), octets(900), (200, 200, 100, 200, 200))
            self.assertEqual(counts(joined(packets)), [3, 2])

    def test_ends_that_begin(self) -> None:
        """A packet with PSH or FIN has none joined to it, and a longer one is joined to none."""
        whole = flow(flags=ACK | PSH)
        packets = parted(whole, octets(3000), (1000, 1000, 1000))
        self.assertEqual(counts(joined(packets)), [1, 1, 1])
        for protocol in (TCP, UDP):
            packets = parted(flow(protocol=protocol), octets(2303), (100, 101, 1001, 1101))
            self.assertEqual(counts(joined(packets)), [1, 1, 1, 1])

    def test_header_checksum_of_zero(self) -> None:
        """An IPv4 header checksum counts down past 0, which stands for 0xFFFF, too."""
        packets = parted(flow(identification=0), octets(4000), [1000] * 4)
        first = model.u16(packets[0], 10)
        packets = parted(flow(identification=first - 1), octets(5000), [1000] * 5)
        checks = [model.u16(packet, 10) for packet in packets]
        self.assertEqual(checks, [1, 0, 0xFFFE, 0xFFFD, 0xFFFC])
        self.assertEqual(counts(joined(packets)), [5])

    def test_bounds(self) -> None:
        """64 UDP packets, 256 of TCP, 65,535 bytes: what is more begins another."""
        for version, protocol, size, count, expected in (
            (4, UDP, 10, 150, [64, 64, 22]),
            (6, UDP, 1340, 100, [48, 48, 4]),
            (4, TCP, 10, 600, [256, 256, 88]),
            (6, TCP, 1340, 100, [48, 48, 4]),
            (4, TCP, 30_000, 4, [2, 2]),
            (4, TCP, 40_000, 2, [1, 1]),
        ):
            packets = parted(flow(version, protocol), octets(size * count), [size] * count)
            self.assertEqual(counts(joined(packets)), expected)

    def test_identification(self) -> None:
        """It counts up by one, or with DF is always the same; else each goes alone."""
        for protocol, df in itertools.product((TCP, UDP), (True, False)):
            counting = parted(flow(protocol=protocol, df=df), octets(4000), [1000] * 4)
            self.assertEqual(counts(joined(counting)), [4])
            fixed = [ip_right(changed(packet, 4, b"\0\7")) for packet in counting]
            runs = joined(fixed, exactly=not df)
            self.assertEqual(counts(runs), [4] if df else [1, 1, 1, 1])
            any_other = [
                ip_right(changed(p, 4, bytes((0, n * n)))) for n, p in enumerate(counting, 5)
            ]
            self.assertEqual(counts(joined(any_other)), [1, 1, 1, 1])
            mixed = [*fixed[:2], ip_right(changed(counting[2], 4, b"\0\x08")), fixed[3]]
            runs = joined(mixed, exactly=not df)
            self.assertEqual(counts(runs), [2, 1, 1] if df else [1, 2, 1])


class Differences(SynchronousTestCase):
    """What no super-packet of a kernel can have."""

    def test_headers_that_differ(self) -> None:
        """Another window, acknowledgement, option, ToS, TTL, DF … ends a super-packet."""
        for version in (4, 6):
            base = flow(version, tcp_options=bytes(12), identification=7)
            packets = parted(base, octets(4000), [1000] * 4)
            at = base.transport
            places = {
                "acknowledgement": at + 8,
                "NS": at + 12,
                "window": at + 14,
                "urgent pointer": at + 18,
                "option": at + 23,
                "flow label or ToS": 1,
                "TTL or hop limit": 8 if version == 4 else 7,
                "DF": 6 if version == 4 else 7,
                "ECE": at + 13,
            }
            for name, place in places.items():
                flip = {"DF": 0x40, "ECE": ECE}.get(name, 1)
                other = [
                    rectified(changed(packet, place, bytes((packet[place] ^ flip,))))
                    for packet in packets
                ]
                self.assertEqual(counts(joined(other)), [4], name)
                self.assertEqual(counts(joined(packets[:2] + other[2:])), [2, 2], name)
                self.assertEqual(counts(joined([*packets[:3], other[3]])), [3, 1], name)

    def test_flags(self) -> None:
        """SYN, RST, URG, CWR go alone, wherever they are."""
        for flag in (SYN, RST, URG, CWR):
            packets = parted(flow(), octets(5000), [1000] * 5)
            for place in range(5):
                some = list(packets)
                some[place] = rectified(changed(some[place], 33, bytes((ACK | flag,))))
                runs = joined(some)
                self.assertEqual(counts(runs), [n for n in (place, 1, 4 - place) if n], flag)
            every = parted(flow(flags=ACK | flag), octets(3000), [1000] * 3)
            self.assertEqual(counts(joined(every)), [1, 1, 1])

    def test_gaps(self) -> None:
        """A packet that is lost, doubled or late ends a super-packet."""
        for version in (4, 6):
            packets = parted(flow(version), octets(6000), [1000] * 6)
            self.assertEqual(counts(joined(packets[:3] + packets[4:])), [3, 2])
            self.assertEqual(counts(joined(packets[:3] + packets[2:])), [3, 4])
            self.assertEqual(counts(joined(packets[3:] + packets[:3])), [3, 3])

    def test_what_is_no_plain_segment(self) -> None:
        """Fragments, IP options, IPv6 extension headers, no checksum, no payload: alone."""
        packets = parted(flow(protocol=UDP), octets(4000), [1000] * 4)
        for change in ((6, b"\x20\0"), (6, b"\0\1"), (6, b"\x80\0")):
            fragments = [ip_right(changed(packet, *change)) for packet in packets]
            self.assertEqual(counts(joined(fragments)), [1] * 4, change)
        unsummed = [changed(packet, 26, b"\0\0") for packet in packets]
        self.assertEqual(counts(joined(unsummed)), [1] * 4)
        shorter = [changed(packet, 24, struct.pack("!H", 1007)) for packet in packets]
        for number, packet in enumerate(shorter):
            check = struct.pack("!H", model.u16(packet, 26) % 0xFFFF + 1)
            shorter[number] = changed(packet, 26, check)
        self.assertEqual(counts(joined(shorter)), [1] * 4)
        for other in (flow(ip_options=b"\1\1\1\0"), flow(6, extended=True)):
            self.assertEqual(counts(joined(parted(other, octets(3000), [1000] * 3))), [1] * 3)
        for version, protocol in KINDS:
            empty = parted(flow(version, protocol), b"", [0] * 3)
            self.assertEqual(counts(joined(empty)), [1] * 3)
        self.assertEqual(counts(joined(packets)), [4])  # control

    def test_no_checksum_that_would_fit(self) -> None:
        """A UDP packet without checksum stays so, even if 0 is what its words add up to."""
        packets = [model.trimmed(p) for p in parted(flow(protocol=UDP), octets(3000), [1000] * 3)]
        packets[1] = changed(packets[1], 26, b"\0\0")
        rest = model.word_sum(pseudo(packets[1]), packets[1][20:])
        word = (model.u16(packets[1], 100) + (rest ^ 0xFFFF)) % 0xFFFF
        packets[1] = changed(packets[1], 100, struct.pack("!H", word))
        self.assertEqual(model.word_sum(pseudo(packets[1]), packets[1][20:]), 0xFFFF)
        self.assertEqual(counts(joined(packets)), [1, 1, 1])

    def test_padding(self) -> None:
        """Padding is cut off, and what is not zero there is not joined."""
        packets = parted(flow(), octets(3000), [1000] * 3)
        self.assertEqual(counts(joined([packet + bytes(15) for packet in packets])), [3])
        packets[1] += b"x"
        self.assertEqual(counts(joined(packets)), [1, 1, 1])


def pseudo(packet: bytes) -> bytes:
    return model.pseudo_header(packet, model.place_of(packet))


def rectified(packet: bytes) -> bytes:
    """With the checksums as they should be."""
    packet = packet[: length_of(packet)]
    if packet[0] == 0x45:
        packet = ip_right(packet)
    place = model.place_of(packet)
    at = place.transport + (16 if place.protocol == TCP else 6)
    packet = changed(packet, at, b"\0\0")
    total = model.word_sum(pseudo(packet), packet[place.transport :]) ^ 0xFFFF
    return padded(changed(packet, at, struct.pack("!H", total or 0xFFFF)))


class Damage(SynchronousTestCase):
    """What has a fault comes out with it, and what stands beside it is not touched."""

    def bits(self, version: int, protocol: int, count: int, place: int) -> Iterator[list[Run]]:
        base = flow(version, protocol, identification=9, tcp_options=bytes(4) * (protocol == TCP))
        packets = parted(base, octets(32 * count), [32] * count)
        for at in range(len(packets[place])):
            for bit in range(8):
                some = list(packets)
                some[place] = changed(some[place], at, bytes((some[place][at] ^ 1 << bit,)))
                runs, others = coalesce.join_all(some)
                good = [packet[: length_of(packet)] for packet in some if length_of(packet)]
                made = written(runs)
                # The damaged one may have become another flow's, or no packet at all.
                self.assertEqual(sorted(made), sorted(good), (at, bit))
                self.assertEqual(others, [packet for packet in some if not length_of(packet)])
                yield runs

    def test_any_bit(self) -> None:
        """Three packets, and one bit of one of them is wrong: each comes out as it is."""
        for version, protocol in KINDS:
            for place in range(3):
                for runs in self.bits(version, protocol, 3, place):
                    self.assertLess(max(counts(runs)), 3)

    def test_beside_it(self) -> None:
        """What came before and after the damaged one is joined."""
        for version, protocol in KINDS:
            packets = parted(flow(version, protocol), octets(9000), [1000] * 9)
            for place in (0, 1, 4, 8):
                some = list(packets)
                some[place] = changed(some[place], 500, octets(2, place))
                expected = [number for number in (place, 1, 8 - place) if number]
                self.assertEqual(counts(joined(some)), expected)
            some = [changed(packet, 500, octets(2, n)) for n, packet in enumerate(packets)]
            self.assertEqual(counts(joined(some)), [1] * 9)

    def test_faults_that_cancel(self) -> None:
        """Faults that add up to nothing are seen all the same, as each has its own sum."""
        packets = parted(flow(), bytes(2000), [1000] * 2)
        packets[0] = changed(packets[0], 100, b"\0\1")
        packets[1] = changed(packets[1], 100, b"\xff\xfe")
        self.assertEqual(counts(joined(packets)), [1, 1])
        self.assertEqual(counts(joined(list(map(rectified, packets)))), [2])  # control

    def test_faults_of_header_and_payload_that_cancel(self) -> None:
        """An IPv4 header checksum that is wrong stays so, whatever the payload makes up for."""
        for last in (1000, 500):
            packets = parted(flow(), bytes(1000 + last), [1000, last])
            for place in (0, 1):
                some = list(packets)
                for number, each in enumerate(some):
                    if number >= place:
                        wrong = struct.pack("!H", model.u16(each, 10) - 1)
                        some[number] = changed(changed(each, 10, wrong), 100, b"\0\1")
                self.assertEqual(counts(joined(some)), [1, 1])
            self.assertEqual(counts(joined(packets)), [2])  # control

    def test_cut_off(self) -> None:
        """Of a packet that is cut off anywhere nothing is written, and the others are."""
        for version, protocol in KINDS:
            packets = parted(flow(version, protocol), octets(600), [100] * 6)
            for place, size in itertools.product(range(6), range(length_of(packets[0]))):
                some = list(packets)
                some[place] = some[place][:size]
                runs, others = coalesce.join_all(some)
                self.assertEqual(others, [some[place]])
                self.assertEqual(sum(counts(runs)), 5)


class Turn(SynchronousTestCase):
    """All that came at once."""

    def test_flows_mixed(self) -> None:
        """Packets of several flows that came by turns are a super-packet each."""
        flows = [
            Flow(ip_address(f"10.10.0.{host}"), ADDRESSES[4][1], protocol)
            for host, protocol in ((2, TCP), (3, TCP), (4, UDP))
        ]
        flows.append(flow(6))
        each = [sent(one, octets(12_000, number), 1000) for number, one in enumerate(flows)]
        runs, others = coalesce.join_all([p for four in zip(*each, strict=True) for p in four])
        self.assertEqual((counts(runs), others), ([12] * 4, []))
        self.assertEqual(written(runs), [p[: length_of(p)] for p in itertools.chain(*each)])

    def test_same_ports(self) -> None:
        """TCP and UDP of the same addresses and ports are not taken for one."""
        for version in (4, 6):
            first = sent(flow(version, TCP), octets(3000), 1000)
            port = flow(version).transport + 2
            second = [
                rectified(changed(packet, port, first[0][port : port + 2]))
                for packet in sent(flow(version, UDP), octets(3000), 1000)
            ]
            self.assertEqual(counts(joined(first + second))[0], 3)
            self.assertEqual(counts(joined(second + first))[0], 3)
            self.assertEqual(counts(joined([first[0], second[0], *first[1:]])), [1, 1, 2])

    def test_nothing_overtakes(self) -> None:
        """What came behind a packet that was not looked into is not written before it."""
        packets = sent(flow(), octets(4000), 1000)
        for between in (
            padded(flow(ip_options=b"\1\1\1\0").finished(b"x")),
            padded(ip_right(changed(packets[0], 0, b"\x46"))),
            b"\x60\0\0\0\0\0\x3a\x40" + bytes(32),
        ):
            runs = joined([*packets[:2], between, *packets[2:]])
            self.assertEqual(counts(runs), [2, 1, 2])

    def test_order_within_a_flow(self) -> None:
        """An acknowledgement between two super-packets of its flow stays between them."""
        data = parted(flow(identification=1), octets(4000), [1000, 1000, 0, 1000, 1000])
        self.assertEqual(counts(joined(data)), [2, 1, 2])

    def test_what_is_none(self) -> None:
        """What is no packet comes back, in order, alone or among packets."""
        packets = sent(flow(), octets(2000), 1000)
        short = packets[0][:19]
        none = [KEEPALIVE, CONTROL, SEGMENT, short, b"\x45", b"\x60" + bytes(38)]
        for one in none:
            self.assertEqual(coalesce.join_all([one]), ([], [one]))
        mixed = [none[0], packets[0], *none[1:], packets[1]]
        runs, others = coalesce.join_all(mixed)
        self.assertEqual((counts(runs), others), ([1, 1], none))
        self.assertEqual(coalesce.join_all([]), ([], []))

    def test_one(self) -> None:
        """A packet alone is written as it is, right or not, without its padding."""
        packet = flow().packet(octets(99))  # the checksum is not finished
        ((run,), others) = coalesce.join_all([padded(packet)])
        self.assertEqual((b"".join(run.frame), others), (bytes(10) + packet, []))
        self.assertEqual((run.packets, run.octets), (1, len(packet)))
        self.assertEqual(coalesce.source(run), ADDRESSES[4][0].packed)


class Sums(SynchronousTestCase):
    """word_sum against adding words."""

    @settings(deadline=None)
    @given(st.integers(0, 9000), st.integers(0, 2**32))
    def test_any(self, size: int, seed: int) -> None:
        """It is what the words add up to, modulo 65,535, of bytes and of a bytearray."""
        data = octets(size, seed)
        for part in (data, bytearray(data)):
            self.assertEqual(word_sum(part) % 0xFFFF, model.word_sum(data) % 0xFFFF)

    def test_every_length_of_the_largest_bytes(self) -> None:
        """Nothing is lost where all bytes are 255, and 0 comes of zeros alone."""
        for size in (*range(1700), 3072, 3073, 65_535):
            data = b"\xff" * size
            self.assertEqual(word_sum(data) % 0xFFFF, model.word_sum(data) % 0xFFFF, size)
            self.assertEqual(bool(word_sum(data)), bool(size))
            self.assertEqual(word_sum(bytes(size)), 0)

    def test_several(self) -> None:
        """Of several of any length, each has its own."""
        parts = [octets(size) for size in (0, 1, 700, 5, 1536, 20)]
        for some in (parts, [*parts, octets(1537), b""], [octets(5), b"", octets(8)]):
            expected = [model.word_sum(part) % 0xFFFF for part in some]
            self.assertEqual([number % 0xFFFF for number in word_sums(some)], expected)
