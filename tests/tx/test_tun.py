"""TUNPort: one mixin on the memory device and on a real TUN in a namespace."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.tun import Offloads, open_tun
from pyvpn.testing.memory import MemoryHost, MemoryNetwork, MemoryTUN
from pyvpn.testing.reactor import MemoryReactor
from pyvpn.tx.lonereads import MOST_TURNS
from pyvpn.tx.tun import (
    LOOK_AGAIN_TURNS,
    MOST_VAIN_LOOKS,
    TURN_BYTES,
    TURN_FRAMES,
    TUNPort,
)
from tests.tx.namespace import Namespace
from tests.tx.packets import VIRTIO_HEADER, udp_packet, udp_payload
from tests.tx.worlds import reactor_for, run_until

# This end of the tunnel, and an address behind the other.
HERE, THERE, PORT = "10.123.0.1", "10.123.0.2", 7777


class FrameNotes:
    """Notes what a TUNPort tells."""

    def __init__(self) -> None:
        self.turns: list[list[bytes]] = []
        self.lost: list[Failure] = []
        self.fail = False

    def framesReceived(self, frames: list[bytes]) -> None:
        self.turns.append(frames)
        if self.fail:
            raise RuntimeError("planted")

    def tunConnectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)

    def payloads(self) -> list[bytes]:
        """The UDP payloads of all frames; what the kernel sends of its own accord left out."""
        found = (udp_payload(frame[10:]) for turn in self.turns for frame in turn)
        return [payload for payload in found if payload is not None]


class MemoryTUNWorld:
    """The memory device; the kernel's side is the test itself."""

    def __init__(self, test: SynchronousTestCase) -> None:
        network = MemoryNetwork()
        self.reactor: Any = MemoryReactor(network)
        self.system: Any = MemoryHost(network, [])
        self.device = MemoryTUN(network)

    def kernel_sends(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.device.inject(udp_packet(HERE, THERE, PORT, payload))

    def kernel_received(self) -> list[bytes]:
        found = (udp_payload(frame[10:]) for frame in self.device.written)
        return [payload for payload in found if payload is not None]

    def link_down(self) -> None:
        self.device.refuse = errno.EIO

    def delete(self) -> None:
        self.device.deleted = True

    def until(self, condition: Callable[[], bool]) -> None:
        self.reactor.settle()
        assert condition(), "all is at rest and the condition does not hold"


class KernelTUNWorld:
    """A TUN in a namespace, with a socket on the kernel's side of it."""

    def __init__(self, test: SynchronousTestCase) -> None:
        if not os.path.exists("/dev/net/tun") and os.environ.get("PYVPN_REQUIRE_NETNS") != "1":
            raise SkipTest("there is no /dev/net/tun")
        self.reactor: Any = reactor_for(test)
        self.system: Any = os
        self.namespace = Namespace()
        test.addCleanup(self.namespace.close)
        with self.namespace.inside():
            self.device = open_tun("leamit0", offload=False)
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        test.addCleanup(self.socket.close)
        self.namespace.ip(f"address add {HERE}/24 dev leamit0")
        self.namespace.ip("link set leamit0 up mtu 65000 txqueuelen 1000")
        self.socket.bind((HERE, PORT))
        self.socket.setblocking(False)

    def kernel_sends(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.socket.sendto(payload, (THERE, PORT))

    def kernel_received(self) -> list[bytes]:
        received = []
        while True:
            try:
                received.append(self.socket.recv(65535))
            except BlockingIOError:
                return received

    def link_down(self) -> None:
        self.namespace.ip("link set leamit0 down")

    def delete(self) -> None:
        self.namespace.ip("link delete leamit0")

    def until(self, condition: Callable[[], bool]) -> None:
        run_until(self.reactor, condition)


class TUNPortMixin:
    """What must hold on every device."""

    make_world: Any

    def setUp(self) -> None:
        self.world = self.make_world(self)
        self.notes = FrameNotes()
        self.port = TUNPort(self.world.device, self.notes, self.world.reactor, self.world.system)
        self.addCleanup(self.port.close)

    def write(self, *payloads: bytes) -> None:
        """Frames of two buffers come out of the tunnel."""
        packets = [udp_packet(THERE, HERE, PORT, payload) for payload in payloads]
        self.port.writeFrames([[VIRTIO_HEADER, packet] for packet in packets])

    def test_frames_in(self) -> None:
        """Frames come in order, each with 10 bytes of virtio header before the packet."""
        sent = [b"%03d" % n for n in range(20)]
        self.port.startReading()
        self.world.kernel_sends(sent)
        self.world.until(lambda: len(self.notes.payloads()) == len(sent))
        self.assertEqual(self.notes.payloads(), sent)
        frames = [frame for turn in self.notes.turns for frame in turn]
        self.assertEqual({frame[:10] for frame in frames}, {VIRTIO_HEADER})
        self.assertEqual(self.port.counters, {})

    def test_frames_out(self) -> None:
        """Frames of several buffers reach the kernel, in order, whatever kind the buffers are."""
        self.write(b"one", b"two")
        packet = udp_packet(THERE, HERE, PORT, b"three")
        self.port.writeFrames(
            [[VIRTIO_HEADER, memoryview(packet)[:20], bytearray(packet[20:25]), packet[25:]]]
        )
        self.assertEqual(self.world.kernel_received(), [b"one", b"two", b"three"])
        self.assertEqual(self.port.counters, {})

    def test_a_turn_is_bounded_in_frames(self) -> None:
        """A flood of small frames leaves the reactor to others after 64, handed over at once."""
        sent = [b"%03d" % n for n in range(2 * TURN_FRAMES + 5)]
        self.world.kernel_sends(sent)
        self.port.doRead()
        self.assertEqual([len(turn) for turn in self.notes.turns], [TURN_FRAMES])
        self.port.startReading()
        self.world.until(lambda: len(self.notes.payloads()) == len(sent))
        self.assertEqual(self.notes.payloads(), sent)

    def test_a_turn_is_bounded_in_bytes(self) -> None:
        """Of large frames a turn takes 512 KiB and the one that passes it; each goes at once."""
        sent = [bytes([n]) * 60_000 for n in range(12)]
        self.world.kernel_sends(sent)
        self.port.doRead()
        sizes = [sum(map(len, frames)) for frames in self.notes.turns]
        self.assertLessEqual(sum(sizes[:-1]), TURN_BYTES)
        self.assertGreater(sum(sizes), TURN_BYTES)
        self.port.startReading()
        self.world.until(lambda: len(self.notes.payloads()) == len(sent))
        self.assertEqual(self.notes.payloads(), sent)

    def test_pause(self) -> None:
        """While reading is stopped frames wait in the kernel; none is lost."""
        self.port.startReading()
        self.port.startReading()
        self.port.stopReading()
        self.port.stopReading()
        self.world.kernel_sends([b"early"])
        self.assertEqual(self.world.reactor.getReaders().count(self.port), 0)
        self.port.startReading()
        self.world.until(lambda: self.notes.payloads() == [b"early"])

    def test_bad_frame(self) -> None:
        """A frame that the kernel refuses is counted by name; the next one is written."""
        packet = udp_packet(THERE, HERE, PORT, b"x")
        impossible = b"\x01\x00" + (60_000).to_bytes(2, "little") + bytes(2) + b"\xff\xff\xff\xff"
        if isinstance(self.world, MemoryTUNWorld):
            self.world.device.refuse = errno.EINVAL
            self.port.writeFrames([[VIRTIO_HEADER, packet]])
            self.world.device.refuse = None
        else:
            self.port.writeFrames([[impossible, packet]])
        self.write(b"good")
        self.assertEqual(self.world.kernel_received(), [b"good"])
        self.assertEqual(self.port.counters, {"EINVAL": 1})

    def test_link_down(self) -> None:
        """With the link down writes are counted, not raised."""
        self.world.link_down()
        self.write(b"lost", b"lost")
        self.assertEqual(self.port.counters, {"EIO": 2})

    def test_device_deleted(self) -> None:
        """If somebody deletes the device its owner hears of it once, and the port is closed."""
        self.port.startReading()
        self.world.delete()
        self.world.until(lambda: bool(self.notes.lost))
        self.assertEqual(self.port.fileno(), -1)
        self.assertFalse(self.port.reading)
        self.write(b"nowhere")
        self.assertEqual(self.port.counters, {"connection_lost": 1, "closed": 1})
        self.assertEqual(len(self.notes.lost), 1)

    def test_read_after_deletion(self) -> None:
        """A read that finds the device deleted gives the descriptor up."""
        self.world.delete()
        self.assertIsNotNone(self.port.doRead())
        self.assertEqual(self.port.counters, {"EBADFD": 1})

    def test_exception_above(self) -> None:
        """A bug above does not take the reader out of the reactor; it is counted and logged."""
        self.port.startReading()
        self.notes.fail = True
        self.world.kernel_sends([b"first"])
        self.world.until(lambda: b"first" in self.notes.payloads())
        self.notes.fail = False
        self.world.kernel_sends([b"second"])
        self.world.until(lambda: b"second" in self.notes.payloads())
        self.assertGreaterEqual(self.port.counters["exception"], 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_answers_at_once(self) -> None:
        """What is in the queue once something was written is read without the reactor's help."""
        self.port.startReading()
        self.world.kernel_sends([b"one", b"two"])
        self.port.readNow()
        self.assertEqual(self.notes.turns, [], "nothing was written: it is the reactor's")
        self.write(b"question")
        self.port.readNow()
        self.assertEqual(self.notes.payloads(), [b"one", b"two"])
        self.assertEqual(len(self.notes.turns), 1)
        self.world.kernel_sends([b"three"])
        self.port.readNow()
        self.assertEqual(len(self.notes.turns), 1, "one look for what was written")

    def test_no_answers_while_paused(self) -> None:
        """While reading is stopped, as when the socket is full, nothing is read this way either."""
        self.world.kernel_sends([b"early"])
        self.write(b"question")
        self.port.readNow()
        self.assertEqual(self.notes.turns, [])
        self.port.startReading()
        self.port.readNow()
        self.assertEqual(self.notes.payloads(), [b"early"])

    def test_close(self) -> None:
        """Closing twice is harmless and nothing is read afterwards."""
        self.port.startReading()
        self.port.close()
        self.port.close()
        self.port.startReading()
        self.assertFalse(self.port.reading)
        self.assertEqual(self.world.device.fileno(), -1)


class MemoryTUNPortTests(TUNPortMixin, SynchronousTestCase):
    """On the memory device, where reads can be counted."""

    make_world = MemoryTUNWorld

    def test_lone_frames_need_one_read(self) -> None:
        """A ping costs no second read, but for a probe every few turns."""
        self.port.startReading()
        count = 10 * MOST_TURNS
        for _ in range(count):
            self.world.kernel_sends([b"ping"])
            self.world.reactor.settle()
        lone = self.world.device.reads
        self.assertLess(lone, count * 1.15)
        for _ in range(10):
            self.world.kernel_sends([bytes(1400)])
            self.world.reactor.settle()
        self.assertEqual(self.world.device.reads - lone, 20, "the control: bulk is probed")

    def test_many_after_lone_ones(self) -> None:
        """A burst after lone frames is drained in few turns, in order."""
        self.port.startReading()
        for _ in range(100):
            self.world.kernel_sends([b"ping"])
            self.world.reactor.settle()
        self.notes.turns.clear()
        sent = [b"%03d" % n for n in range(300)]
        self.world.kernel_sends(sent)
        self.world.reactor.settle()
        self.assertEqual(self.notes.payloads(), sent)
        self.assertLess(len(self.notes.turns), MOST_TURNS + 8)

    def test_few_after_lone_ones(self) -> None:
        """Where several small frames come at a time each turn drains them all."""
        self.port.startReading()
        for _ in range(100):
            self.world.kernel_sends([b"ping"])
            self.world.reactor.settle()
        for _ in range(MOST_TURNS):
            self.world.kernel_sends([b"one", b"two", b"three"])
            self.world.reactor.settle()
        self.notes.turns.clear()
        for _ in range(20):
            self.world.kernel_sends([b"one", b"two", b"three"])
            self.world.reactor.settle()
        self.assertEqual([len(turn) for turn in self.notes.turns], [3] * 20)

    def test_looks_in_vain_end(self) -> None:
        """Where no answers come the extra read is given up, but for one every so many turns."""
        self.port.startReading()
        turns = 10 * LOOK_AGAIN_TURNS
        for _ in range(turns):
            self.write(b"news")
            self.port.readNow()
        vain = self.world.device.reads
        self.assertEqual(vain, MOST_VAIN_LOOKS + (turns - MOST_VAIN_LOOKS) // LOOK_AGAIN_TURNS)
        for _ in range(LOOK_AGAIN_TURNS):
            self.world.kernel_sends([b"answer"])
            self.write(b"question")
            self.port.readNow()
        self.assertGreater(len(self.notes.payloads()), 0)
        self.notes.turns.clear()
        for _ in range(5):
            self.world.kernel_sends([b"answer"])
            self.write(b"question")
            self.port.readNow()
        self.assertEqual([len(turn) for turn in self.notes.turns], [1] * 5, "back to each turn")

    def test_looks_in_vain_leave_lone_frames_alone(self) -> None:
        """A look that finds nothing does not make the next ping's read cost a second one."""
        self.port.startReading()
        for _ in range(100):
            self.world.kernel_sends([b"ping"])
            self.world.reactor.settle()
        before = self.world.device.reads
        for _ in range(3):
            self.write(b"pong")
            self.port.readNow()
            self.world.kernel_sends([b"ping"])
            self.world.reactor.settle()
        self.assertLessEqual(self.world.device.reads - before, 3 + 3 + 1)

    def test_kernel_without_uso(self) -> None:
        """A UDP super-packet that a kernel before 6.2 refuses is written datagram by datagram."""
        # The kernel at hand takes it as it is, so only the memory device can refuse.
        head = udp_packet(THERE, HERE, PORT, bytes(300))[:28]
        pieces = [bytes([value]) * 100 for value in range(3)]
        virtio = struct.pack("<BBHHHH", 1, 5, 28, 100, 20, 6)
        for uso, written in ((False, [128, 128, 128]), (True, [328])):
            self.world.device.offloads = Offloads(True, True, uso)
            self.world.device.written.clear()
            self.port.writeFrames([[virtio, head, *pieces]])
            self.assertEqual([len(frame) - 10 for frame in self.world.device.written], written)
            self.assertEqual(self.port.counters, {"uso_refused": 1})
        self.assertEqual({frame[1] for frame in self.world.device.written}, {5})

    def test_bad_super_packet(self) -> None:
        """One that is refused in pieces as well is counted and forgotten."""
        self.world.device.refuse = errno.EINVAL
        head = udp_packet(THERE, HERE, PORT, bytes(200))[:28]
        virtio = struct.pack("<BBHHHH", 1, 5, 28, 100, 20, 6)
        self.port.writeFrames([[virtio, head, bytes(100), bytes(100)]])
        self.world.device.refuse = None
        self.write(b"good")
        self.assertEqual(self.world.kernel_received(), [b"good"])
        self.assertEqual(self.port.counters, {"uso_refused": 1, "EINVAL": 2})

    def test_any_errno(self) -> None:
        """Whatever a read or a write draws is counted, and what is behind it goes through."""
        names = ("EIO", "EINVAL", "ENOBUFS", "EMSGSIZE", "ENOMEM")
        self.port.startReading()
        for name in names:
            self.world.device.write_errors.append(getattr(errno, name))
            self.write(b"lost", b"behind")
            self.world.device.read_errors.append(getattr(errno, name))
            self.world.kernel_sends([name.encode()])
            self.world.reactor.settle()
        self.assertEqual(self.world.kernel_received(), [b"behind"] * 5)
        self.assertEqual(self.notes.payloads(), [name.encode() for name in names])
        self.assertEqual(self.port.counters, dict.fromkeys(names, 2))
        self.world.device.write_errors.append(errno.EAGAIN)
        self.write(b"lost", b"behind")
        self.assertEqual(self.port.counters["EAGAIN"], 1)
        self.assertEqual(len(self.world.kernel_received()), 6)


class KernelTUNPortTests(TUNPortMixin, SynchronousTestCase):
    """On the kernel (root)."""

    make_world = KernelTUNWorld

    def test_the_kernel_answers_at_once(self) -> None:
        """An echo reply is in the queue when writev returns: the claim that readNow rests on."""
        self.port.startReading()
        self.world.until(lambda: True)
        packet = bytearray(udp_packet(THERE, HERE, PORT, bytes(8)))
        packet[9] = 1  # ICMP instead of UDP: the header's sum is less by 16 in that byte
        total = int.from_bytes(packet[10:12], "big") + 16
        packet[10:12] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
        packet[20:] = bytes.fromhex("0800f7ff00000000") + bytes(8)
        self.port.writeFrames([[VIRTIO_HEADER, bytes(packet)]])
        self.port.readNow()
        answers = [frame for turn in self.notes.turns for frame in turn if frame[19] == 1]
        self.assertEqual([frame[30] for frame in answers], [0], "an echo reply")
