"""Whole packets, joined, against an oracle: what a kernel cuts of it is what came.

``segmentmodel.py`` is the oracle: it cuts what a flow sends, and cuts what was joined again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from ipaddress import ip_address
from random import Random

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import coalesce
from pyvpn.core.segments import Run
from tests.core import segmentmodel as model
from tests.core.segmentmodel import ACK, FIN, PSH, TCP, UDP, Flow

ADDRESSES = {
    4: (ip_address("10.10.0.2"), ip_address("10.10.0.1")),
    6: (ip_address("fd6e:a1::2"), ip_address("fd6e:a1::1")),
}


def flow(version: int = 4, protocol: int = TCP, **options: object) -> Flow:
    return Flow(*ADDRESSES[version], protocol, **options)  # type: ignore[arg-type]


def octets(count: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(count)


def sent(flow: Flow, payload: bytes, size: int) -> list[bytes]:
    """What a stock peer seals of what its kernel sends at once."""
    return [padded(packet) for packet in model.segments_of(flow.packet(payload), size)]


def padded(packet: bytes, most: int = 1420) -> bytes:
    return packet + bytes(max(min(-len(packet) % 16, most - len(packet)), 0))


def written(runs: Iterable[Run]) -> list[bytes]:
    """The packets that the kernel makes of runs."""
    packets: list[bytes] = []
    for run in runs:
        made = model.cut_by_kernel(b"".join(run.frame))
        assert run.packets == len(made)
        assert run.octets == sum(map(len, made))
        packets += made
    return packets


def joined(plaintexts: list[bytes]) -> list[Run]:
    """What is joined of packets, of which none is lost, and each comes out as it was."""
    runs, others = coalesce.join_all(plaintexts)
    assert not others
    assert written(runs) == list(map(model.trimmed, plaintexts))
    return runs


def counts(runs: list[Run]) -> list[int]:
    return [run.packets for run in runs]


class Bulk(SynchronousTestCase):
    """What one flow sends at once."""

    def test_all_of_it(self) -> None:
        """What the far kernel cut is one super-packet again: both versions, TCP and UDP."""
        for version, protocol in itertools.product((4, 6), (TCP, UDP)):
            whole = flow(version, protocol, tcp_options=bytes(12) * (protocol == TCP))
            for size, length in ((1340, 1340 * 40), (1340, 1340 * 40 + 1), (501, 501 * 30 + 500)):
                (run,) = joined(sent(whole, octets(length), size))
                self.assertEqual(coalesce.source(run), ADDRESSES[version][0].packed)

    def test_what_ends_it(self) -> None:
        """PSH and FIN end a super-packet; what comes behind begins another."""
        for flags in (PSH, FIN, PSH | FIN):
            first = flow(flags=ACK | flags)
            later = {"sequence": first.sequence + 2700, "identification": 0xFFF3}
            second = evolve(first, **later)
            packets = sent(first, octets(2700), 1000) + sent(second, octets(3000), 1000)
            self.assertEqual(counts(joined(packets)), [3, 3])

    def test_counters_wrap(self) -> None:
        """Sequence number and identification go on at 0 after their last."""
        whole = flow(sequence=2**32 - 1500, identification=0xFFFE)
        self.assertEqual(counts(joined(sent(whole, octets(10_000), 1000))), [10])
