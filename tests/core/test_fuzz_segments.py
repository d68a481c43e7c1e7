"""Any bytes from a peer or from the TUN: a result or a ProtocolError, and never a bad frame.

The invariant. Received: whatever ``join`` makes of any plaintexts, the kernel takes it (its virtio
header is within the rules of include/uapi/linux/virtio_net.h), its lengths agree, it comes from the
address that ``source`` told, and it makes no more packets than datagrams came. Sent: whatever the
TUN gives, ``split``, ``complete``, ``lone``, ``finished`` and ``cost`` say what leaves, datagrams
equal but for a shorter last one, or raise LocalProtocolError; what leaves as segment frames is what
``join`` takes. Nothing else is ever raised.

Mostly right frames with some faults each, by the number of the case, which a failure names.
``PYVPN_FUZZ_SECONDS`` makes it go on for so long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from ipaddress import ip_address
from random import Random
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import segments
from pyvpn.errors import LocalProtocolError, RemoteProtocolError
from tests.core import segmentmodel as model
from tests.core.scene import Scene
from tests.core.segmentmodel import TCP, UDP, VIRTIO_SIZE, Flow, Virtio

CASES = 1500
SECONDS = float(os.environ.get("PYVPN_FUZZ_SECONDS", "0"))
#: What ports read from the TUN at most: a full IP packet, its virtio header, and a little.
FRAME_BYTES = 65_600
NUMBERS = (0, 1, 2, 8, 19, 20, 28, 39, 40, 48, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1280,
           1416, 32_768, 65_495, 65_507, 65_515, 65_535)  # fmt: skip

ADDRESSES = {
    4: (ip_address("10.10.0.2"), ip_address("10.10.0.1")),
    6: (ip_address("fd6e:a1::2"), ip_address("fd6e:a1::1")),
}


class Found(AssertionError):
    """The invariant does not hold."""


def any_flow(random: Random) -> Flow:
    version, protocol = random.choice((4, 6)), random.choice((TCP, UDP))
    return Flow(
        *ADDRESSES[version],
        protocol,
        flags=random.choice((0x10, 0x10, 0x18, 0x11, 0x02, 0x14, 0x30, 0xFF, 0x90)),
        sequence=random.choice((0, 2**32 - 10, 5)),
        identification=random.choice((0, 0xFFFF)),
        ip_options=bytes(random.choice((0, 0, 4, 40))) if version == 4 else b"",
        tcp_options=bytes(random.choice((0, 12, 40))) if protocol == TCP else b"",
        extended=version == 6 and random.random() < 0.1,
    )


def any_superpacket(random: Random) -> tuple[Flow, bytes, int]:
    flow = any_flow(random)
    size = random.choice((1, 2, 15, 16, 17, 100, 536, 1360, 30_000, random.randint(1, 65_000)))
    count = random.choice((1, 2, 3, 5, 44, 64, 65, 130, 256, 257, random.randint(1, 300)))
    count = max(min(count, (65_535 - flow.size) // size), 1)
    longest = min(count * size, 65_535 - flow.size)
    return flow, bytes(random.randint(max(longest - size, 0), longest)), size


def spoilt(random: Random, data: bytes, first: int) -> bytes:
    """With a fault; ``first`` is how many bytes are headers, where faults tell most."""
    damaged = bytearray(data)
    near = min(len(damaged), first)
    fault = random.randrange(7)
    if not near or fault == 0:
        return data[: random.randint(0, near)]
    if fault == 1:
        return data[: random.randint(0, len(data))]
    if fault == 2:
        return data + bytes(random.choice((1, 15, 16, 1000)))
    at = random.randrange(near)
    if fault == 3:
        damaged[at] = random.randrange(256)
    elif fault == 4:
        damaged[at] ^= 1 << random.randrange(8)
    else:
        order = "big" if fault == 5 else "little"
        number = random.choice((*NUMBERS, len(data), len(data) - 4, len(data) - 10))
        damaged[at : at + 2] = (number % 65_536).to_bytes(2, order)  # type: ignore[arg-type]
    return bytes(damaged)


# -- receiving -------------------------------------------------------------------------------------


def any_plaintexts(random: Random) -> list[bytes]:
    """What a peer that means harm could seal: pieces, lost, mixed, repeated, and spoilt."""
    plaintexts: list[bytes] = []
    for _ in range(random.choice((1, 1, 2, 3))):
        flow, payload, size = any_superpacket(random)
        packet = flow.packet(payload)
        if random.random() < 0.1 or flow.extended or not payload:
            # Several alike: a receiver may write them as one.
            for number in range(random.choice((1, 1, 3, 70)) if len(payload) < 2000 else 1):
                like = evolve(flow, identification=number * random.choice((0, 1, 9)))
                plaintexts.append(model.segment_frame(0, 0, like.packet(payload)))
        else:
            pieces = model.segment_frames(packet, size)
            plaintexts += (
                pieces[random.randrange(len(pieces)) :] if random.random() < 0.3 else pieces
            )
    if random.random() < 0.3:
        random.shuffle(plaintexts)
    for _ in range(random.choice((0, 1, 1, 2, 8))):
        place = random.randrange(len(plaintexts))
        fault = random.randrange(4)
        if fault == 0:
            plaintexts.insert(place, plaintexts[random.randrange(len(plaintexts))])
        elif fault == 1 and len(plaintexts) > 1:
            del plaintexts[place]
        elif fault == 2:
            # All alike, else the rules on one run are never reached.
            seed = random.random()
            plaintexts = [spoilt(Random(seed), each, 100) for each in plaintexts]
        else:
            plaintexts[place] = spoilt(random, plaintexts[place], 100)
    return plaintexts


def receive(random: Random) -> None:
    """One case: what the core does with the segment frames of one turn."""
    plaintexts = any_plaintexts(random)
    place = 0
    while place < len(plaintexts):
        if plaintexts[place][:1] not in map(bytes, zip(range(0x10, 0x20), strict=False)):
            place += 1  # another nibble: not for join
            continue
        try:
            run = segments.join(plaintexts, place)
        except RemoteProtocolError as error:
            if error.reason != "segment_malformed":
                raise Found(error.reason) from error
            place += 1
            continue
        frame = b"".join(run.frame)
        packets = model.cut_by_kernel(frame)
        source = segments.source(plaintexts[place])
        for packet in packets:
            if (len(packet) != ip_length(packet)) or model.source_of(packet).packed != source:
                raise Found("not the packet that was looked at")
            if plaintexts[place][2:4] != bytes(2):
                model.check(packet)
        if not 1 <= run.packets == len(packets) or run.octets != sum(map(len, packets)):
            raise Found("not what was counted")
        pieces = [b"".join(piece) for piece in segments.cut(run.frame)]
        if [packet for piece in pieces for packet in model.cut_by_kernel(piece)] != packets:
            raise Found("cut otherwise than by the kernel")
        place += run.packets


def ip_length(packet: bytes) -> int:
    return model.u16(packet, 2) if packet[0] >> 4 == 4 else 40 + model.u16(packet, 4)


# -- sending ---------------------------------------------------------------------------------------


def any_frame(random: Random) -> bytes:
    """What no kernel should hand over, and what it may."""
    flow, payload, size = any_superpacket(random)
    frame = flow.superpacket(payload, size)
    if random.random() < 0.3:
        frame = flow.unfinished(payload)
    if random.random() < 0.2:
        frame = Virtio().pack() + frame[VIRTIO_SIZE:]
    if random.random() < 0.05:
        frame += bytes(FRAME_BYTES)
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        frame = spoilt(random, frame, 110)
    return frame[:FRAME_BYTES]


def send(random: Random) -> None:
    """One case: all that is done with a frame that the core has looked up a peer for."""
    frame = any_frame(random)
    version = frame[VIRTIO_SIZE] >> 4 if len(frame) > VIRTIO_SIZE else 0
    if version not in (4, 6) or len(frame) < VIRTIO_SIZE + (20 if version == 4 else 40):
        return  # tun_not_ip
    room = random.choice((100, 576, 1196, 1416, 8916, 65_535))
    counted = segments.cost(frame, room)
    if min(counted) < 0:
        raise Found(f"costs {counted}")
    calls: list[Callable[[], list[bytes]]] = [
        lambda: [segments.lone(frame)],
        lambda: [segments.finished(frame)],
    ]
    if frame[1]:
        calls = [lambda: segments.split(frame, room), lambda: segments.complete(frame, room)]
    for call in calls:
        try:
            plaintexts = call()
        except LocalProtocolError:
            continue
        sizes = list(map(len, plaintexts))
        if not sizes or len({*sizes[:-1]}) > 1 or sizes[-1:] > sizes[:1]:
            raise Found(f"datagrams of {sizes}")
        place = 0
        while place < len(plaintexts) and plaintexts[place][0] >> 4 == 1:
            # An unfinished packet may be damaged, like a finished one: the far end looks.
            if plaintexts[place][2:4] == bytes(2):
                break
            run = segments.join(plaintexts, place)
            model.cut_by_kernel(b"".join(run.frame))
            place += run.packets


class Fuzz(SynchronousTestCase):
    def fuzz(self, case: Callable[[Random], None], cases: int = CASES, first: int = 0) -> int:
        """Call ``case`` with each number's own randomness; return how many there were.

        :raises Found: the invariant does not hold; for which case stands in the message.
        """
        end = time.monotonic() + SECONDS / 3
        number = first
        while number < first + cases or time.monotonic() < end:
            try:
                case(Random(number))
            except Exception as error:
                raise Found(f"{case.__name__}(Random({number})): {error!r}") from error
            number += 1
        return number - first

    def test_receive(self) -> None:
        """Whatever a logged-in peer seals: what reaches the TUN is well-formed, or nothing does."""
        self.assertGreaterEqual(self.fuzz(receive), CASES)

    def test_send(self) -> None:
        """Whatever the TUN gives: it leaves in a shape that bursts can have, or is refused."""
        self.assertGreaterEqual(self.fuzz(send), CASES)

    def test_core(self) -> None:
        """Nothing of either leaves a core as an exception."""
        scene = Scene()
        lease = scene.client.lease
        self.assertEqual((lease.ipv4, lease.ipv6), (ADDRESSES[4][0], ADDRESSES[6][0]))

        def case(random: Random) -> None:
            if scene.peer.current is None or scene.peer.current.expired(scene.now):
                raise Found("no session any more")
            frames = [any_frame(random) for _ in range(3)]
            scene.client.core.packets_from_tun(frames, scene.now)
            scene.client.core.datagrams_to_send(scene.now)
            sender: Any = scene.client.core.hub
            plaintexts = [each for each in any_plaintexts(random) if len(each) > 15]
            for plaintext in plaintexts[:64]:
                if plaintext[0] >> 4 != 0:  # control frames have their own tests
                    scene.to_hub(scene.sealed(sender, plaintext))
            scene.hub.received.clear()

        self.fuzz(case, CASES // 10)
        counters = scene.hub.core.counters
        self.assertGreater(counters["segment_malformed"], 10)
        self.assertGreater(scene.peer.rx_packets, 50)  # control


class Planted(Fuzz):
    """The fuzzer finds what it is for."""

    def test_receive(self) -> None:
        """A bound that is gone, at the receiver."""
        self.patch(segments, "MOST_UDP_PIECES", 256)
        self.assertRaises(Found, self.fuzz, receive)

    def test_send(self) -> None:
        """A length that is wrong, at the sender."""
        right = segments._headers_of

        def wrong(*arguments: Any) -> bytearray:
            new = right(*arguments)
            if arguments[2]:
                new[2] ^= 1
            return new

        self.patch(segments, "_headers_of", wrong)
        self.assertRaises(Found, self.fuzz, send)

    def test_core(self) -> None:
        """Headers that are not held against what is there."""
        right = segments.headers

        def blind(packet: bytes, at: int) -> segments.Headers | None:
            return right(bytes(packet) + bytes(100), at)

        self.patch(segments, "headers", blind)
        self.assertRaises(Found, self.fuzz, receive)
