"""Any packets of a stock peer: what is joined of them is what came, and nothing is lost.

The invariant. Whatever ``join_all`` makes of any plaintexts, the kernel takes it, and what it cuts
of it are the packets that came, each as it was: for a flow in order, and what is neither TCP nor
UDP in its place among all. What comes back besides is no packet. Nothing is raised.

The bulk of one or several flows, mixed, with some faults each, by the number of the case, which a
failure names. ``PYVPN_FUZZ_SECONDS`` makes it go on for so long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from itertools import chain
from random import Random
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import coalesce
from pyvpn.core.segments import Run
from tests.core import segmentmodel as model
from tests.core.segmentmodel import CWR, RST, SYN, URG
from tests.core.test_coalesce import equal, length_of, padded, rectified, written
from tests.core.test_fuzz_segments import any_flow, spoilt

CASES = 1500
SECONDS = float(os.environ.get("PYVPN_FUZZ_SECONDS", "0"))


class Found(AssertionError):
    """The invariant does not hold."""


def any_bulk(random: Random) -> list[bytes]:
    """What a peer seals of what one socket sends, in one way or another."""
    flow = evolve(any_flow(random), df=random.random() < 0.7)
    if random.random() < 0.7:
        flow = evolve(flow, flags=random.choice((0x10, 0x18, 0x11)), ip_options=b"", extended=False)
    size = random.choice((1, 2, 15, 16, 33, 100, 536, 1360, 1536, 9000, random.randint(1, 20_000)))
    most = (65_535 - flow.size) // size
    count = min(random.choice((1, 2, 3, 5, 44, 64, 65, random.randint(1, 300))), most)
    payload = random.randbytes(max(count * size - random.choice((0, 0, 1, size // 2)), 0))
    packets = model.segments_of(flow.packet(payload), size) or [flow.finished(b"")]
    if random.random() < 0.2 and flow.source.version == 4 and not flow.ip_options:
        # An identification that stays.
        packets = [rectified(packet[:4] + b"\0\7" + packet[6:]) for packet in packets]
    return list(map(padded, packets))


def any_plaintexts(random: Random) -> list[bytes]:
    bulks = [any_bulk(random) for _ in range(random.choice((1, 1, 2, 4)))]
    if random.random() < 0.5:
        plaintexts = []
        while any(bulks):
            bulk = random.choice([bulk for bulk in bulks if bulk])
            count = random.choice((1, 1, 2, 30))
            plaintexts += bulk[:count]
            del bulk[:count]
    else:
        plaintexts = list(chain(*bulks))
    for _ in range(random.choice((0, 1, 1, 2, 8))):
        place = random.randrange(len(plaintexts))
        fault = random.randrange(6)
        if fault == 0:
            plaintexts.insert(place, plaintexts[random.randrange(len(plaintexts))])
        elif fault == 1 and len(plaintexts) > 1:
            del plaintexts[place]
        elif fault == 2:
            other = random.randrange(len(plaintexts))
            plaintexts[place], plaintexts[other] = plaintexts[other], plaintexts[place]
        elif fault == 3:
            # A fault that the checksums do not tell.
            plaintexts[place] = made_good(spoilt(random, plaintexts[place], 60))
        elif fault == 4:
            # All alike, else the rules on what follows are never reached.
            seed = random.random()
            plaintexts = [made_good(spoilt(Random(seed), each, 60)) for each in plaintexts]
        else:
            plaintexts[place] = spoilt(random, plaintexts[place], 60)
    return plaintexts


def made_good(plaintext: bytes) -> bytes:
    try:
        return rectified(plaintext)
    except (AssertionError, IndexError):
        return plaintext


def flow_of(packet: bytes) -> bytes:
    """Addresses and ports where they are without IP options and extensions, else nothing."""
    if packet[0] == 0x45 and len(packet) >= 28:
        return packet[12:24]
    return packet[8:44] if packet[0] >> 4 == 6 and len(packet) >= 48 else b""


def by_flow(packets: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    flows: dict[bytes, list[bytes]] = {}
    for packet in packets:
        flows.setdefault(flow_of(packet), []).append(packet)
    # So short that ports were read in the padding.
    if b"" in flows:
        flows[b""].sort()
    return flows


def case(random: Random) -> list[Run]:
    """One case: what the core makes of a turn's plaintexts of one session."""
    plaintexts = any_plaintexts(random)
    runs, others = coalesce.join_all(plaintexts)
    packets = [each for each in plaintexts if length_of(each)]
    if sorted(others) != sorted(each for each in plaintexts if not length_of(each)):
        raise Found("not a packet, or one")
    made = written(runs)
    for run in runs:
        virtio = model.Virtio.of(bytes(run.frame[0]))
        most = 64 if virtio.gso_type == model.UDP_L4 else 256
        if run.packets > most:
            raise Found(f"{run.packets} packets")
        if virtio.gso_type in (model.TCPV4, model.TCPV6):
            flags = bytes(run.frame[1])[virtio.csum_start + 13]
            if flags & (SYN | RST | URG | CWR):
                raise Found(f"flags {flags:#x} in a super-packet")
    if len(made) != len(packets):
        raise Found("lost, or more than came")
    # What comes of each flow is compared by itself, up to the next that no flow is known of.
    while packets:
        stop = next((at for at, each in enumerate(packets) if not flow_of(each)), len(packets))
        came = by_flow(each[: length_of(each)] for each in packets[:stop])
        comes = by_flow(made[:stop])
        if came.keys() != comes.keys() or not all(
            len(came[flow]) == len(comes[flow]) and all(map(equal, came[flow], comes[flow]))
            for flow in came
        ):
            raise Found("not as it came")
        if made[stop : stop + 1] != [each[: length_of(each)] for each in packets[stop : stop + 1]]:
            raise Found("not in its place")
        del packets[: stop + 1], made[: stop + 1]
    return runs


class Fuzz(SynchronousTestCase):
    def fuzz(self, cases: int = CASES) -> tuple[int, int]:
        """Return how many packets there were, and how many of them are in super-packets.

        :raises Found: the invariant does not hold; for which case stands in the message.
        """
        end = time.monotonic() + SECONDS
        number = packets = together = 0
        while number < cases or time.monotonic() < end:
            try:
                runs = case(Random(number))
            except Exception as error:
                raise Found(f"case(Random({number})): {error!r}") from error
            packets += sum(run.packets for run in runs)
            together += sum(run.packets for run in runs if run.packets > 1)
            number += 1
        return packets, together

    def test_any(self) -> None:
        """Whatever a stock peer seals reaches the TUN as it is, and much of it together."""
        packets, together = self.fuzz()
        self.assertGreater(packets, CASES * 10)
        self.assertGreater(together, packets // 3)


class Planted(Fuzz):
    """The fuzzer finds what it is for."""

    def found(self, name: str, value: object) -> None:
        with self.subTest(name):
            patch = self.patch(coalesce, name, value)
            self.assertRaises(Found, self.fuzz)
            patch.restore()

    def test_any(self) -> None:
        """Each rule and bound that is gone is missed."""
        right: Callable[..., Any] = coalesce.word_sums

        def of_the_first(parts: list[bytes]) -> list[int]:
            return right(parts[:1]) * len(parts)

        for name, value in (
            ("MOST_UDP_PIECES", 256),
            ("MOST_PIECES", 300),
            ("_ALONE", 0),
            ("word_sums", of_the_first),
            ("_TCP_HEADER", 60),
            ("_LEAST4", 1),
        ):
            self.found(name, value)
