"""Segment frames against an oracle: cut by the sender, lost on the way, joined, cut by a kernel.

PROTOCOL 5 and docs/protocol.rst, "Segment frames"; ``segmentmodel.py`` is the oracle.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import segments
from pyvpn.core.burst import Buffer
from pyvpn.errors import LocalProtocolError
from tests.core import badsegments
from tests.core import segmentmodel as model
from tests.core.badrows import Case
from tests.core.segmentmodel import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    VIRTIO_SIZE,
    Flow,
    Virtio,
)

HEADER4, HEADER6 = 20, 40
MTU = 1416
LONGEST = 65_535

ADDRESSES = {
    4: (ip_address("10.10.0.2"), ip_address("10.10.0.1")),
    6: (ip_address("fd6e:a1::2"), ip_address("fd6e:a1::1")),
}


def flow(version: int = 4, protocol: int = TCP, **options: object) -> Flow:
    return Flow(*ADDRESSES[version], protocol, **options)  # type: ignore[arg-type]


def octets(count: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(count)


def received(plaintexts: list[bytes]) -> list[bytes]:
    """What the TUN is given for the segment frames of one turn."""
    frames, place = [], 0
    while place < len(plaintexts):
        run = segments.join(plaintexts, place)
        assert 1 <= run.packets <= len(plaintexts) - place
        place += run.packets
        frames.append(b"".join(run.frame))
        assert run.octets == sum(map(len, model.cut_by_kernel(frames[-1])))
    return frames


def delivered(plaintexts: list[bytes]) -> list[bytes]:
    """The packets that the receiver's kernel makes of them."""
    return [packet for frame in received(plaintexts) for packet in model.cut_by_kernel(frame)]


def options(most: int) -> st.SearchStrategy[bytes]:
    return st.integers(0, most // 4).map(lambda words: b"\1" * (4 * words))


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    """Any flow that may be cut: all that a header may hold and that must go through unchanged."""
    version, protocol = draw(st.sampled_from([4, 6])), draw(st.sampled_from([TCP, UDP]))
    flags = draw(st.sets(st.sampled_from([FIN, PSH, ECE, CWR])))
    return flow(
        version,
        protocol,
        flags=ACK | sum(flags),
        sequence=draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32 - 5000])),
        identification=draw(st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 0xFFF0])),
        tos=draw(st.integers(0, 255)),
        df=draw(st.booleans()),
        ip_options=draw(options(40)) if version == 4 else b"",
        tcp_options=draw(options(40)) if protocol == TCP else b"",
    )


@st.composite
def superpackets(draw: st.DrawFn, most: int = 64) -> tuple[Flow, bytes, int]:
    """A flow, a payload and the size to cut it at: ``most`` pieces at most."""
    of = draw(flows())
    longest = LONGEST - of.size
    size = draw(st.integers(1, 64) | st.integers(1, 1500) | st.integers(1, longest))
    count = min(draw(st.integers(1, 4) | st.integers(1, most)), longest // size)
    assume(count)
    last = draw(st.integers(1, size) | st.sampled_from([1, size]))
    return of, octets((count - 1) * size + last, draw(st.integers(0, 9))), size


class Split(SynchronousTestCase):
    """What a sender makes of a super-packet."""

    @given(superpackets())
    @settings(deadline=None, max_examples=200)
    def test_layout(self, case: tuple[Flow, bytes, int]) -> None:
        """Prefix, headers unchanged, piece; only the last is padded, and never above the others."""
        of, payload, size = case
        plaintexts = segments.split(of.superpacket(payload, size), LONGEST)
        self.assertEqual(plaintexts, model.segment_frames(of.packet(payload), size))

    @given(superpackets(most=1500), st.integers(100, 9000))
    @settings(deadline=None, max_examples=200)
    def test_room(self, case: tuple[Flow, bytes, int], room: int) -> None:
        """However many pieces, and however small the peer's MTU: no datagram is too long, but for
        UDP, which is never cut at another size, and nothing is lost on the way.
        """
        of, payload, size = case
        room = max(room, of.size + 1 + len(payload) // 1500)
        if of.protocol == TCP:
            cut_at = min(size, room - of.size)
            longest = room
        else:
            cut_at, longest = size, of.size + size
        plaintexts = segments.split(of.superpacket(payload, size), room)
        self.assertLessEqual(max(map(len, plaintexts)), longest + 4)
        self.assertEqual(
            {len(plaintext) for plaintext in plaintexts[1:-1]} - {len(plaintexts[0])}, set()
        )
        self.assertLessEqual(len(plaintexts[-1]), len(plaintexts[0]))
        self.assertEqual(delivered(plaintexts), model.segments_of(of.packet(payload), cut_at))

    @given(superpackets(), st.integers(100, 9000), st.integers(0, 255))
    @settings(deadline=None, max_examples=100)
    def test_cost(self, case: tuple[Flow, bytes, int], room: int, hdr_len: int) -> None:
        """What it costs of a poll's credit is known beforehand: never less than it will take, and
        for what fits exactly its datagrams and at most 15 bytes more.
        """
        of, payload, size = case
        room = max(room, of.size + 1 + len(payload) // 250)
        frame = of.superpacket(payload, size)
        # The kernel's own idea of how long the headers are counts for nothing.
        frame = Virtio.of(frame)._replace(hdr_len=hdr_len).pack() + frame[VIRTIO_SIZE:]
        plaintexts = segments.split(frame, room)
        count, total = segments.cost(frame, room)
        self.assertGreaterEqual(count, len(plaintexts))
        self.assertGreaterEqual(total, sum(map(len, plaintexts)))
        if of.protocol == TCP or of.size + size <= room:
            self.assertEqual(count, len(plaintexts))
            self.assertLessEqual(total, sum(map(len, plaintexts)) + 15)

    def test_far_end_with_mss_48(self) -> None:
        """1,361 pieces are more than an index can tell: they travel as several super-packets."""
        of = flow(flags=ACK | PSH | FIN)
        payload = octets(1361 * 48 - 20)
        plaintexts = segments.split(of.superpacket(payload, 48), MTU)
        self.assertEqual(len(plaintexts), 1361)
        self.assertEqual([p[1] for p in plaintexts], [number % 256 for number in range(1361)])
        self.assertEqual(delivered(plaintexts), model.segments_of(of.packet(payload), 48))
        frames = received(plaintexts)
        self.assertEqual(len(frames), 6)

    def test_128_udp_pieces(self) -> None:
        """A kernel sends 128 UDP pieces and takes 64 of a sender: they travel as two."""
        for version in (4, 6):
            for count in (64, 65, 127, 128):
                of = flow(version, UDP)
                payload = octets(count * 500 - 1)
                plaintexts = segments.split(of.superpacket(payload, 500), MTU)
                self.assertEqual(len(plaintexts), count)
                self.assertEqual(len(received(plaintexts)), -(-count // 64))
                expected = model.segments_of(of.packet(payload), 500)
                self.assertEqual(delivered(plaintexts), expected)

    def test_one_piece(self) -> None:
        """A super-packet of one piece makes one datagram, which no kernel needs to cut."""
        for version in (4, 6):
            for protocol in (TCP, UDP):
                of = flow(version, protocol)
                (plaintext,) = segments.split(of.superpacket(b"piece", 1000), MTU)
                (frame,) = received([plaintext])
                self.assertEqual(Virtio.of(frame).gso_type, 0)
                self.assertEqual(delivered([plaintext]), model.segments_of(of.packet(b"piece"), 9))

    def test_256_pieces(self) -> None:
        """256 pieces of TCP are one super-packet, 257 are two."""
        for count, runs in ((256, 1), (257, 2)):
            plaintexts = segments.split(flow().superpacket(octets(count * 9), 9), MTU)
            self.assertEqual(len(received(plaintexts)), runs)

    def test_complete_instead(self) -> None:
        """What no segment frame may carry leaves as complete packets, as to a stock peer."""
        payload = octets(5000)
        for version, changes in (
            (6, {"extended": True}),
            (6, {"extended": True, "protocol": UDP}),
            (4, {"flags": SYN}),
            (4, {"flags": ACK | RST}),
            (6, {"flags": ACK | URG}),
        ):
            of = flow(version, **changes)
            plaintexts = segments.split(of.superpacket(payload, 1000), MTU)
            packets = list(map(model.trimmed, plaintexts))
            self.assertEqual(packets, model.segments_of(of.packet(payload), 1000))
        control = segments.split(flow().superpacket(payload, 1000), MTU)
        self.assertEqual({plaintext[0] for plaintext in control}, {0x11})

    def test_lengths_that_disagree(self) -> None:
        """So does what says another length than was read, and what asks for a checksum elsewhere:
        if it can be cut at all.
        """
        of, payload = flow(), octets(5000)
        frame = of.superpacket(payload, 1000)
        damaged = bytearray(frame)
        struct.pack_into("!H", damaged, VIRTIO_SIZE + 2, 5039)
        # Cut as what was read: its length, its sum of the pseudo-header made anew.
        packets = list(map(model.trimmed, segments.split(bytes(damaged), MTU)))
        self.assertEqual(packets, model.segments_of(of.packet(payload), 1000))
        for virtio in (
            Virtio.of(frame)._replace(csum_offset=6),
            Virtio.of(frame)._replace(csum_offset=8),
            Virtio.of(frame)._replace(csum_start=16),
            Virtio.of(frame)._replace(csum_start=5041),
            Virtio.of(frame)._replace(csum_start=65_535),
            Virtio.of(frame)._replace(gso_size=0),
        ):
            odd = virtio.pack() + frame[VIRTIO_SIZE:]
            self.assertRaises(LocalProtocolError, segments.split, odd, MTU)

    def test_nothing_to_cut(self) -> None:
        """A super-packet without payload is none: nothing would leave of it."""
        for version in (4, 6):
            for protocol in (TCP, UDP):
                frame = flow(version, protocol).superpacket(b"", 100)
                self.assertRaises(LocalProtocolError, segments.split, frame, MTU)
                self.assertRaises(LocalProtocolError, segments.complete, frame, MTU)

    def test_pieces_that_no_packet_holds(self) -> None:
        """A size that no piece can have makes no segment frame: the receiver would drop it."""
        for version in (4, 6):
            of = flow(version, UDP)
            frame = of.superpacket(b"short", LONGEST - of.size + 1)
            (plaintext,) = segments.split(frame, MTU)
            expected = model.segments_of(of.packet(b"short"), 9)
            self.assertEqual([model.trimmed(plaintext)], expected)
            frame = of.superpacket(b"short", LONGEST - of.size)  # control
            self.assertEqual(delivered(segments.split(frame, MTU)), expected)

    def test_headers_too_short_for_a_checksum(self) -> None:
        """Nor is one whose TCP header ends before its checksum (regression: an exception)."""
        frame = bytearray(flow().superpacket(octets(100), 10))
        frame[VIRTIO_SIZE + HEADER4 + 12] = 0x40
        self.assertRaises(LocalProtocolError, segments.split, bytes(frame), MTU)
        frame[VIRTIO_SIZE + HEADER4 + 12] = 0x50  # control
        self.assertEqual(len(segments.split(bytes(frame), MTU)), 10)


class Complete(SynchronousTestCase):
    """What a peer gets that takes no segment frames."""

    @given(superpackets(most=300), st.integers(100, 9000))
    @settings(deadline=None, max_examples=200)
    def test_any(self, case: tuple[Flow, bytes, int], room: int) -> None:
        """Whole packets with right checksums: those that a kernel would make."""
        of, payload, size = case
        room = max(room, of.size + 1 + len(payload) // 500)
        cut_at = min(size, room - of.size) if of.protocol == TCP else size
        plaintexts = segments.complete(of.superpacket(payload, size), room)
        packets = list(map(model.trimmed, plaintexts))
        for packet in packets:
            model.check(packet)
        self.assertEqual(packets, model.segments_of(of.packet(payload), cut_at))
        self.assertLessEqual(max(map(len, plaintexts)), of.size + cut_at)
        self.assertEqual({len(p) for p in plaintexts[:-1]} - {of.size + cut_at}, set())


class Join(SynchronousTestCase):
    """What a receiver makes of segment frames."""

    @given(superpackets(most=256))
    @settings(deadline=None, max_examples=200)
    def test_nothing_lost(self, case: tuple[Flow, bytes, int]) -> None:
        """join(split(p)) == p, and the virtio header that we make is the kernel's own."""
        of, payload, size = case
        assume(of.protocol == TCP or len(payload) <= 64 * size)
        frame = of.superpacket(payload, size)
        plaintexts = segments.split(frame, LONGEST)
        (joined,) = received(plaintexts)
        self.assertEqual(joined[VIRTIO_SIZE:], frame[VIRTIO_SIZE:])
        if len(plaintexts) > 1:
            self.assertEqual(Virtio.of(joined), Virtio.of(frame))

    @given(superpackets(), st.data())
    @settings(deadline=None, max_examples=300)
    def test_any_of_them(self, case: tuple[Flow, bytes, int], data: st.DataObject) -> None:
        """Whichever arrive and in whatever order, those segments reach the receiver and no others,
        each as its sender's kernel would have made it.
        """
        of, payload, size = case
        plaintexts = segments.split(of.superpacket(payload, size), LONGEST)
        expected = model.segments_of(of.packet(payload), size)
        places = st.integers(0, len(plaintexts) - 1)
        lost = data.draw(st.sets(places))
        kept = [place for place in range(len(plaintexts)) if place not in lost]
        for order in (kept, data.draw(st.lists(places, max_size=80))):
            packets = delivered([plaintexts[place] for place in order])
            for packet in packets:
                model.check(packet)
            self.assertEqual(packets, [expected[place] for place in order])

    def test_a_gap_ends_a_run(self) -> None:
        """What lies between two losses is one write: a lost datagram costs one segment."""
        plaintexts = segments.split(flow().superpacket(octets(44_000), 1000), MTU)
        frames = received([p for place, p in enumerate(plaintexts) if place not in (10, 30)])
        sizes = [len(frame) - VIRTIO_SIZE - 40 for frame in frames]
        self.assertEqual(sizes, [10_000, 19_000, 13_000])
        whole = received(plaintexts)
        self.assertEqual(len(whole), 1)  # control

    def test_flags(self) -> None:
        """FIN and PSH belong to the last segment alone and CWR to the first, ECE to each."""
        of = flow(flags=ACK | FIN | PSH | CWR | ECE)
        plaintexts = segments.split(of.superpacket(octets(300), 100), MTU)
        for part, flags in (
            (plaintexts, ACK | FIN | PSH | CWR | ECE),
            (plaintexts[:2], ACK | CWR | ECE),
            (plaintexts[1:2], ACK | ECE),
            (plaintexts[1:], ACK | FIN | PSH | ECE),
        ):
            (frame,) = received(part)
            self.assertEqual(frame[VIRTIO_SIZE + HEADER4 + 13], flags)

    def test_another_one_between(self) -> None:
        """A run is not continued by what has other headers, though its index follows."""
        one = segments.split(flow().superpacket(octets(3000), 1000), MTU)
        two = segments.split(flow(sequence=5).superpacket(octets(3000), 1000), MTU)
        mixed = [one[0], two[1], one[2], two[0], one[1], two[2]]
        self.assertEqual(len(received(mixed)), 6)
        expected = [
            model.segments_of(f.packet(octets(3000)), 1000) for f in (flow(), flow(sequence=5))
        ]
        want = [expected[0][0], expected[1][1], expected[0][2]]
        want += [expected[1][0], expected[0][1], expected[1][2]]
        self.assertEqual(delivered(mixed), want)
        self.assertEqual(len(received([*one, *two])), 2)  # control


class Turn(SynchronousTestCase):
    """What one read brings, to either end: good and bad, of several flows, in any order."""

    def hear(self, plaintexts: list[bytes], *, for_hub: bool) -> tuple[list[bytes], dict[str, int]]:
        """What is written to the TUN, cut by the kernel, and what is counted."""
        case = Case(for_hub=for_hub)
        before = dict(case.node.core.counters)
        buffers = case.session.seal_burst(plaintexts)
        datagrams = [bytes(a) + bytes(b) for a, b in zip(buffers[::2], buffers[1::2], strict=True)]
        frames: list[list[Buffer]] = []
        source = (case.client if for_hub else case.hub).endpoint
        for size, run in itertools.groupby(datagrams, key=len):
            frames += case.node.core.datagrams_received(b"".join(run), size, source, case.now)
        counters = case.node.core.counters
        counted = {name: n - before.get(name, 0) for name, n in counters.items()}
        written = [packet for frame in frames for packet in model.cut_by_kernel(b"".join(frame))]
        self.assertLessEqual(len(written), len(plaintexts))
        return written, {name: n for name, n in counted.items() if n}

    def flows(self, *, for_hub: bool) -> Iterator[Flow]:
        case = Case(for_hub=for_hub)
        for version in (4, 6):
            for protocol in (TCP, UDP):
                yield badsegments.flow_of(case, version, protocol)

    def test_mixed(self) -> None:
        """What breaks a rule ends a run, is counted, and takes nothing good with it."""
        for for_hub in (True, False):
            for of in self.flows(for_hub=for_hub):
                payload = octets(600)
                good = model.segment_frames(of.packet(payload), 100)
                right = model.segments_of(of.packet(payload), 100)
                other = model.segment_frames(evolve(of, tos=4).packet(payload), 100)
                apart = model.segments_of(evolve(of, tos=4).packet(payload), 100)
                bad = "segment_malformed"
                short, long = good[2][:-1], good[2] + b"x"
                for sent, written, counted in (
                    (good[::-1], right[::-1], {}),
                    ([good[0]] * 3 + good[1:], [right[0]] * 3 + right[1:], {}),
                    ([*good[:2], short, *good[3:]], [*right[:2], *right[3:]], {bad: 1}),
                    ([*good[:2], long, *good[3:]], [*right[:2], *right[3:]], {bad: 1}),
                    ([*good[:5], good[5][:-9]], right[:5], {bad: 1}),
                    ([*good[:5], good[5] + bytes(16)], right[:5], {bad: 1}),
                    ([*good, good[5][:1] + b"\6" + good[5][2:]], right, {bad: 1}),
                    ([good[0], other[1], good[2]], [right[0], apart[1], right[2]], {}),
                    ([*other[:3], *good[3:]], [*apart[:3], *right[3:]], {}),
                    ([good[0], b"", good[1]], [right[0], right[1]], {}),
                    ([good[0], right[3], good[1]], [right[0], right[3], right[1]], {}),
                    ([good[0], b"\x0f" + bytes(15), good[1]], right[:2], {"control_unknown": 1}),
                    ([good[0], b"\x21" + bytes(15), good[1]], right[:2], {"inner_unknown": 1}),
                    (good, right, {}),  # the control
                ):
                    got = self.hear(sent, for_hub=for_hub)
                    self.assertEqual(got, (written, counted))

    def test_foreign(self) -> None:
        """A whole run from an address that is not the sender's is counted by its datagrams."""
        for for_hub in (True, False):
            for of in self.flows(for_hub=for_hub):
                stranger = ip_address("192.0.2.9" if of.source.version == 4 else "2001:db8::9")
                foreign = evolve(of, source=stranger)
                sent = model.segment_frames(foreign.packet(octets(600)), 100)
                own = model.segment_frames(of.packet(octets(600)), 100)
                got, counted = self.hear([*sent, *own], for_hub=for_hub)
                self.assertEqual(counted, {"inner_source_not_allowed": 6})
                self.assertEqual(got, model.segments_of(of.packet(octets(600)), 100))

    def test_the_longest_run(self) -> None:
        """256 pieces are one run; what follows the last, with index 0 again, is another."""
        for for_hub in (True, False):
            of = next(self.flows(for_hub=for_hub))
            plaintexts = model.segment_frames(of.packet(octets(2560)), 10)
            right = model.segments_of(of.packet(octets(2560)), 10)
            got = self.hear([*plaintexts, *plaintexts[:2]], for_hub=for_hub)
            self.assertEqual(got, ([*right, *right[:2]], {}))

    def test_of_two_sessions(self) -> None:
        """Pieces that came in one read, sealed on two sessions, are two runs."""
        for for_hub in (True, False):
            case = Case(for_hub=for_hub)
            of = badsegments.flow_of(case, 4, TCP)
            plaintexts = model.segment_frames(of.packet(octets(600)), 100)
            old = case.session
            case.simulation.advance(126)  # a rekey
            self.assertIsNot(case.session, old)
            sealed = [*old.seal_burst(plaintexts[:3]), *case.session.seal_burst(plaintexts[3:5])]
            source = (case.client if for_hub else case.hub).endpoint
            size = len(plaintexts[0]) + 32
            frames = case.node.core.datagrams_received(
                b"".join(map(bytes, sealed)), size, source, case.now
            )
            cut = [model.cut_by_kernel(b"".join(frame)) for frame in frames]
            right = model.segments_of(of.packet(octets(600)), 100)
            self.assertEqual(cut, [right[:3], right[3:5]])


class PieceByPiece(SynchronousTestCase):
    """What a kernel gets that cuts no UDP."""

    @given(superpackets(), st.data())
    @settings(deadline=None, max_examples=200)
    def test_cut(self, case: tuple[Flow, bytes, int], data: st.DataObject) -> None:
        """A frame cut by us is what a kernel would have made of it, one write a piece."""
        of, payload, size = case
        plaintexts = segments.split(of.superpacket(payload, size), LONGEST)
        first = data.draw(st.integers(0, len(plaintexts) - 1))
        last = data.draw(st.integers(first, len(plaintexts) - 1))
        run = segments.join(plaintexts[: last + 1], first)
        cut = [b"".join(piece) for piece in segments.cut(run.frame)]
        self.assertEqual({Virtio.of(piece).gso_type for piece in cut}, {0})
        self.assertEqual(len(cut), run.packets)
        packets = [packet for piece in cut for packet in model.cut_by_kernel(piece)]
        self.assertEqual(packets, model.cut_by_kernel(b"".join(run.frame)))

    def test_what_needs_no_cut(self) -> None:
        """A packet that is no super-packet stays as it is."""
        frame: list[Buffer] = [bytes(10), flow().packet(b"x")]
        self.assertEqual(segments.cut(frame), [frame])


class Unfinished(SynchronousTestCase):
    """Packets that are no super-packets, with a checksum that the kernel left to others."""

    @given(flows(), st.integers(0, 1400), st.integers(0, 40))
    @settings(deadline=None, max_examples=200)
    def test_any(self, of: Flow, size: int, padding: int) -> None:
        """It travels unfinished to who takes that, and its kernel finishes it; else we do."""
        frame = of.unfinished(octets(size))
        (expected,) = model.cut_by_kernel(
            Virtio.of(frame)._replace(hdr_len=of.size).pack() + frame[VIRTIO_SIZE:]
        )
        model.check(expected)
        plaintext = segments.lone(frame)
        self.assertEqual(plaintext, model.segment_frame(0, 0, frame[VIRTIO_SIZE:]))
        self.assertEqual(delivered([plaintext + bytes(padding)]), [expected])
        self.assertEqual(segments.finished(frame), expected)
        count, total = segments.cost(frame, MTU)
        self.assertEqual(count, 1)
        self.assertGreaterEqual(total, len(plaintext))

    def test_finished_already(self) -> None:
        """One with nothing to finish has no prefix."""
        packet = flow().packet(b"x")
        self.assertEqual(segments.lone(bytes(10) + packet), packet)
        self.assertEqual(segments.finished(bytes(10) + packet), packet)

    def test_finished_by_the_sender(self) -> None:
        """What the receiver's kernel could not be asked to finish, the sender finishes."""
        fragment = bytearray(flow(protocol=UDP, df=False).unfinished(octets(100)))
        fragment[VIRTIO_SIZE + 6] |= 0x20
        for name, frame, start, offset in (
            ("extension headers", flow(6, extended=True).unfinished(octets(99)), 48, 16),
            ("a fragment", bytes(fragment), 20, 6),
            ("ICMPv6", self.icmp(), 40, 2),
        ):
            packet = segments.lone(frame)
            self.assertEqual(len(packet), len(frame) - VIRTIO_SIZE, name)
            # The field held the pseudo-header's sum: less that, what is there sums to nothing.
            held = frame[VIRTIO_SIZE + start + offset :][:2]
            self.assertEqual(model.word_sum(packet[start:], held), 0xFFFF, name)
            self.assertEqual(segments.finished(frame), packet, name)

    @staticmethod
    def icmp() -> bytes:
        packet = bytearray(flow(6, UDP).packet(octets(50)))
        packet[6] = 58
        return Virtio(1, 0, 0, 0, 40, 2).pack() + bytes(packet)

    def test_udp_checksum_of_zero(self) -> None:
        """A UDP checksum that comes out as 0 is written as 0xFFFF: 0 says that there is none."""
        for version in (4, 6):
            of = flow(version, UDP)
            frame = of.unfinished(b"\0\0")
            total = model.word_sum(frame[VIRTIO_SIZE + of.transport :])
            frame = of.unfinished((total ^ 0xFFFF).to_bytes(2, "big"))
            for packet in (segments.finished(frame), *delivered([segments.lone(frame)])):
                self.assertEqual(packet[of.transport + 6 :][:2], b"\xff\xff")
                model.check(packet)
            # The same in a super-packet.
            frame = of.superpacket((total ^ 0xFFFF).to_bytes(2, "big") * 2, 2)
            for packet in map(model.trimmed, segments.complete(frame, MTU)):
                self.assertEqual(packet[of.transport + 6 :][:2], b"\xff\xff")

    def test_places_that_are_none(self) -> None:
        """A checksum past the end of the packet is an error of the kernel, counted as such."""
        packet = flow().packet(b"")
        for start, offset in ((40, 0), (39, 0), (20, 19), (65_535, 65_535)):
            frame = Virtio(1, 0, 0, 0, start, offset).pack() + packet
            self.assertRaises(LocalProtocolError, segments.lone, frame)
            self.assertRaises(LocalProtocolError, segments.finished, frame)
        frame = Virtio(1, 0, 0, 0, 20, 18).pack() + packet  # control: the last two bytes
        self.assertEqual(len(segments.lone(frame)), len(packet))


class Alike(SynchronousTestCase):
    """Unfinished UDP packets of one flow and size, which go to the TUN in one write."""

    def both(self, flows: list[Flow], sizes: list[int], padding: int = 0) -> list[list[bytes]]:
        """What each write becomes, of packets that are sent one behind the other."""
        payloads = [octets(size, seed) for seed, size in enumerate(sizes)]
        frames = [of.unfinished(payload) for of, payload in zip(flows, payloads, strict=True)]
        plaintexts = [segments.lone(frame) + bytes(padding) for frame in frames]
        written = [model.cut_by_kernel(frame) for frame in received(plaintexts)]
        packets = [packet for cut in written for packet in cut]
        self.assertEqual(len(packets), len(frames))
        for packet, of, payload in zip(packets, flows, payloads, strict=True):
            model.check(packet)
            expected = of.finished(payload)
            # The identification means nothing in what is not to be fragmented (RFC 6864, 4.1).
            if of.source.version == 4 and of.df:
                packet, expected = (
                    packet[:4] + packet[6:10] + packet[12:],
                    (expected[:4] + expected[6:10] + expected[12:]),
                )
            self.assertEqual(packet, expected)
        return written

    @given(
        st.sampled_from([4, 6]),
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 64, 65]), st.booleans())),
        st.integers(0, 20),
    )
    @settings(deadline=None, max_examples=200)
    def test_any(self, version: int, kinds: list[tuple[int, int, bool]], padding: int) -> None:
        """Whatever comes behind whatever, each leaves the kernel as it was, in its place."""
        flows = [
            flow(version, UDP, tos=tos, df=df, identification=number * 7777 % 65_536)
            for number, (tos, _, df) in enumerate(kinds)
        ]
        self.both(flows, [size for _, size, _ in kinds], padding)

    def test_joined(self) -> None:
        """Those alike are one write, up to 64 of them and the longest IP packet."""
        for version in (4, 6):
            of = flow(version, UDP)
            for count, size, runs in (
                (2, 100, [2]),
                (64, 9, [64]),
                (65, 9, [64, 1]),
                (130, 9, [64, 64, 2]),
                (50, 1400, [46, 4]),
                (3, 40_000, [1, 1, 1]),
                (2, 0, [1, 1]),
            ):
                written = self.both([of] * count, [size] * count)
                self.assertEqual([len(cut) for cut in written], runs, (count, size))
            self.assertEqual(len(self.both([of] * 2, [100, 100], padding=9)), 1)

    def test_apart(self) -> None:
        """What differs in any other field, or may be fragmented, or is TCP, stays a write each."""
        here, there = ADDRESSES[4]
        four, six = flow(4, UDP), flow(6, UDP)
        for one, other in (
            (four, evolve(four, tos=1)),
            (four, evolve(four, df=False)),
            (evolve(four, df=False), evolve(four, df=False)),
            (four, evolve(four, source=there)),
            (four, evolve(four, destination=here)),
            (four, six),
            (six, evolve(six, tos=1)),
            (six, evolve(six, destination=six.source)),
            (four, flow(4)),
            (flow(4), flow(4)),
            (flow(6), flow(6)),
            (evolve(four, ip_options=bytes(20)), evolve(four, ip_options=bytes(20))),
            (evolve(four, ip_options=bytes(4)), evolve(four, ip_options=bytes(4))),
        ):
            self.assertEqual(len(self.both([one, other], [100, 100])), 2, (one, other))
        self.assertEqual(len(self.both([four, four], [100, 99])), 2)
        self.assertEqual(len(self.both([four, four], [100, 100])), 1)  # control

    def test_other_ports(self) -> None:
        """A port, or a checksum field, that differs makes another flow."""
        frame = flow(6, UDP).unfinished(octets(100))
        plaintext = segments.lone(frame)
        for place in range(44, 52):
            wrong = bytearray(plaintext)
            wrong[place] ^= 1
            self.assertEqual(segments.join([plaintext, bytes(wrong)], 0).packets, 1, place)
        self.assertEqual(segments.join([plaintext, plaintext], 0).packets, 2)  # control


class TheOracle(SynchronousTestCase):
    """The oracle finds what it is for."""

    def test_a_spoilt_byte(self) -> None:
        """A byte of the packet or of the virtio header that is wrong is found in the segments."""
        of, payload = flow(), octets(300)
        (frame,) = received(segments.split(of.superpacket(payload, 100), MTU))
        right = model.cut_by_kernel(frame)
        for place in range(len(frame)):
            # A hint, and the checksum of the header that is made anew for each segment.
            if place in (2, 3, VIRTIO_SIZE + 10, VIRTIO_SIZE + 11):
                continue
            wrong = bytearray(frame)
            wrong[place] ^= 1
            try:
                cut = model.cut_by_kernel(bytes(wrong))
            except AssertionError:
                continue
            self.assertNotEqual(cut, right, place)

    def test_a_spoilt_checksum(self) -> None:
        """The checker tells a right packet from one with any bit of its sums or data flipped."""
        for version in (4, 6):
            for protocol in (TCP, UDP):
                (packet,) = model.segments_of(flow(version, protocol).packet(octets(9)), 9)
                model.check(packet)
                for place in range(len(packet)):
                    if version == 6 and place in (0, 1, 2, 3, 7):
                        continue  # flow label, hop limit: in no checksum
                    wrong = bytearray(packet)
                    wrong[place] ^= 4
                    self.assertRaises(AssertionError, model.check, bytes(wrong))

    def test_published_sums(self) -> None:
        """The sum of RFC 1071, section 3, and an IPv4 header with its known checksum."""
        self.assertEqual(model.word_sum(bytes.fromhex("0001f203f4f5f6f7")), 0xDDF2)
        header = bytes.fromhex("4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7")
        self.assertEqual(model.word_sum(header), 0xFFFF)
