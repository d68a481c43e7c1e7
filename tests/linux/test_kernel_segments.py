"""What join makes, written to a real TUN: the kernel takes it and cuts it as the oracle says.

::

      we write ── in0 (offloads) ── the kernel forwards ── out0 (none: it has to cut) ── we read

So it is also shown that ``tests/core/segmentmodel.py``, against which all else is held, is right.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from random import Random
from unittest import SkipTest

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import segments
from pyvpn.errors import RemoteProtocolError
from pyvpn.linux.tun import open_tun
from tests.core import segmentmodel as model
from tests.core.segmentmodel import ACK, CWR, ECE, FIN, PSH, TCP, UDP, VIRTIO_SIZE, Flow
from tests.core.test_fuzz_segments import any_plaintexts
from tests.tx.namespace import Namespace

ENDS = {
    4: (ip_address("10.10.0.2"), ip_address("10.10.1.2")),
    6: (ip_address("fd6e:a1::2"), ip_address("fd6e:a2::2")),
}
SETUP = """link set in0 up
link set out0 mtu 65535 txqueuelen 2000 up
address add 10.10.0.1/24 dev in0
address add fd6e:a1::1/64 dev in0 nodad
address add 10.10.1.1/24 dev out0
address add fd6e:a2::1/64 dev out0 nodad"""
SECONDS = 5.0


def hop(packet: bytes) -> bytes:
    """A packet after one router."""
    new = bytearray(packet)
    if packet[0] >> 4 == 6:
        new[7] -= 1
        return bytes(new)
    new[8] -= 1
    new[10:12] = b"\0\0"
    header = bytes(new[: (new[0] & 15) * 4])
    new[10:12] = (model.word_sum(header) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(new)


class Kernel(SynchronousTestCase):
    def setUp(self) -> None:
        namespace = Namespace()
        self.addCleanup(namespace.close)
        with namespace.inside():
            for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                Path(f"/proc/sys/net/{path}").write_text("1", encoding="ascii")
            self.entry, self.exit = open_tun("in0", offload=True), open_tun("out0", offload=False)
        self.addCleanup(self.entry.close)
        self.addCleanup(self.exit.close)
        for line in SETUP.splitlines():
            namespace.ip(line)
        if not self.entry.offloads.uso:
            raise SkipTest("this kernel's TUN has no USO: the core writes UDP piece by piece")

    def write(self, frame: list[segments.Buffer]) -> None:
        os.writev(self.entry.fileno(), frame)

    def read(self, count: int) -> list[bytes]:
        """So many TCP or UDP packets out of the TUN that has no offloads."""
        packets: list[bytes] = []
        while len(packets) < count and select.select([self.exit.fileno()], [], [], SECONDS)[0]:
            frame = os.read(self.exit.fileno(), 70_000)
            self.assertEqual(frame[:VIRTIO_SIZE], bytes(VIRTIO_SIZE))
            # The kernel has things of its own to say, on IPv6.
            if frame[VIRTIO_SIZE + (9 if frame[VIRTIO_SIZE] < 0x50 else 6)] in (TCP, UDP):
                packets.append(frame[VIRTIO_SIZE:])
        return packets

    def flows(self, random: Random) -> Iterator[tuple[Flow, bytes, int]]:
        for version in (4, 6):
            for protocol in (TCP, UDP):
                flags = random.sample([FIN, PSH, ECE, CWR], random.randrange(4))
                flow = Flow(
                    *ENDS[version],
                    protocol,
                    flags=ACK | sum(flags),
                    tos=random.choice((0, 2, 0xB8)),
                    df=random.random() < 0.5,
                    tcp_options=b"\1" * random.choice((0, 12, 40)) if protocol == TCP else b"",
                )
                size = random.choice((1, 15, 100, 536, 1360, 9000, 30_000))
                most = min(64 if protocol == UDP else 256, (65_535 - flow.size) // size)
                count = random.randint(1, most)
                payload = random.randbytes((count - 1) * size + random.randint(1, size))
                yield flow, payload, size

    def test_cut(self) -> None:
        """Whatever of a super-packet arrives, its segments leave the kernel as the oracle's."""
        for seed in range(15):
            random = Random(seed)
            for flow, payload, size in self.flows(random):
                plaintexts = segments.split(flow.superpacket(payload, size), 65_535)
                expected = model.segments_of(flow.packet(payload), size)
                kept = [p for p in range(len(plaintexts)) if seed % 3 == 0 or random.random() < 0.8]
                place, sent = 0, [plaintexts[p] for p in kept]
                while place < len(sent):
                    run = segments.join(sent, place)
                    self.write(run.frame)
                    got = self.read(run.packets)
                    right = [hop(expected[p]) for p in kept[place : place + run.packets]]
                    self.assertEqual(got, right, f"{flow}, {size}, seed {seed}")
                    place += run.packets

    def test_unfinished(self) -> None:
        """A packet whose checksum is left to it, the kernel finishes."""
        for flow, payload, _ in self.flows(Random(99)):
            plain = evolve(flow, identification=7)
            self.write(segments.join([segments.lone(plain.unfinished(payload[:1000]))], 0).frame)
            (expected,) = model.segments_of(plain.packet(payload[:1000]), 2000)
            self.assertEqual(self.read(1), [hop(expected)])

    def test_alike(self) -> None:
        """UDP packets that are written as one leave as they were, but for what counts them."""
        for version in (4, 6):
            flow = Flow(*ENDS[version], UDP, identification=65_530)
            payloads = [bytes([number]) * 300 for number in range(20)]
            run = segments.join([segments.lone(flow.unfinished(each)) for each in payloads], 0)
            self.assertEqual(run.packets, 20)
            self.write(run.frame)
            counted = [
                evolve(flow, identification=(65_530 + number) % 65_536) for number in range(20)
            ]
            expected = [
                hop(packet)
                for each, payload in zip(counted, payloads, strict=True)
                for packet in model.segments_of(each.packet(payload), 300)
            ]
            self.assertEqual(self.read(20), expected)

    def test_hostile(self) -> None:
        """Whatever a peer sends, what join makes of it the kernel takes: no write is refused."""
        written = 0
        for number in range(600):
            plaintexts = any_plaintexts(Random(number))
            place = 0
            while place < len(plaintexts):
                try:
                    if plaintexts[place][:1] != b"\x11":
                        raise RemoteProtocolError("inner_unknown")
                    run = segments.join(plaintexts, place)
                except RemoteProtocolError:
                    place += 1
                    continue
                self.write(run.frame)
                written += 1
                place += run.packets
        self.assertGreater(written, 1000)

    def test_refused(self) -> None:
        """Control: the kernel does refuse what breaks its rules."""
        frame = bytearray(Flow(*ENDS[4], UDP).superpacket(bytes(1000), 100))
        self.write([bytes(frame)])
        self.assertEqual(len(self.read(10)), 10)
        for virtio in (
            model.Virtio(1, 5, 28, 100, 20, 16),
            model.Virtio(1, 5, 28, 0, 20, 6),
            model.Virtio(1, 5, 2000, 100, 20, 6),
            model.Virtio(1, 5, 28, 7, 20, 6),
        ):
            frame[:VIRTIO_SIZE] = virtio.pack()
            self.assertRaises(OSError, self.write, [bytes(frame)])
