"""Mailboxes against a naive model, and the rules by which polls are judged (PROTOCOL 6 and 8)."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import mailbox
from pyvpn.core.control import Poll
from pyvpn.core.mailbox import Mailbox, Mailboxes
from pyvpn.core.polls import Polls
from pyvpn.core.tai64n import pack
from pyvpn.errors import RemoteProtocolError

PACKETS, BYTES, TOTAL, AGE = 256, 512 << 10, 64 << 20, 10
#: An interval of 60 s and a quarter more.
LONGEST_AGE = 75
MTU = 1416
#: What waits is a frame of the TUN: this header counts where memory does, but is not sent.
VIRTIO_SIZE = 10
#: How exactly the fullest mailbox is known.
SHELF = 4 << 10
EVERYTHING = (1 << 32) - 1, (1 << 16) - 1


def numbered(number: int, size: int = 100) -> bytes:
    return number.to_bytes(4, "big").ljust(size, b"x")


class Bounds(SynchronousTestCase):
    def setUp(self) -> None:
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.boxes = Mailboxes(self.counters)
        self.box = Mailbox()

    def waiting(self, box: Mailbox | None = None) -> list[bytes]:
        return [packet for _, packet in (box or self.box).frames]

    def test_packets(self) -> None:
        """256 packets wait; each more costs the oldest, counted."""
        packets = [numbered(number) for number in range(PACKETS + 3)]
        self.boxes.put(self.box, packets[:PACKETS], 0)
        self.assertEqual(self.waiting(), packets[:PACKETS])
        self.boxes.put(self.box, packets[PACKETS:], 0)
        self.assertEqual(self.waiting(), packets[3:])
        self.assertEqual(self.counters, {"mailbox_full": 3})

    def test_bytes(self) -> None:
        """512 KiB wait, not a byte more."""
        packets = [numbered(number, BYTES // 8) for number in range(8)]
        self.boxes.put(self.box, packets, 0)
        self.assertEqual((self.box.octets, self.boxes.octets), (BYTES, BYTES))
        self.boxes.put(self.box, [b"x"], 0)
        self.assertEqual(self.waiting(), [*packets[1:], b"x"])
        self.assertEqual(self.counters, {"mailbox_full": 1})

    def test_total(self) -> None:
        """64 MiB in all; above that the oldest of the fullest mailbox goes, whoever added."""
        boxes = [Mailbox() for _ in range(TOTAL // BYTES)]
        for box in boxes[1:]:
            self.boxes.put(box, [numbered(n, BYTES // 8) for n in range(8)], 0)
        self.boxes.put(boxes[0], [numbered(n, BYTES // 8) for n in range(7)], 0)
        self.boxes.put(self.box, [numbered(n, BYTES // 32) for n in range(4)], 0)
        self.assertEqual(self.boxes.octets, TOTAL)
        self.assertEqual(self.counters, {})  # control: that fits
        self.boxes.put(self.box, [b"small"], 0)
        self.assertEqual(self.counters, {"mailbox_total_full": 1})
        self.assertEqual(len(self.waiting()), 5)
        (robbed,) = [box for box in boxes[1:] if len(box.frames) < 8]
        self.assertEqual(self.waiting(robbed)[0][:4], numbered(1)[:4])

    def test_age(self) -> None:
        """A packet is too old after its box's patience, to the moment."""
        self.box.patience = AGE
        for second in range(3):
            self.boxes.put(self.box, [numbered(second)], second)
        self.assertEqual(self.box.due, AGE)
        self.boxes.expire(self.box, AGE - 0.001)
        self.assertEqual(len(self.waiting()), 3)
        self.boxes.expire(self.box, AGE + 1)
        self.assertEqual(self.waiting(), [numbered(2)])
        self.assertEqual(self.boxes.collect(self.box, *EVERYTHING, MTU, AGE + 2), [])
        self.assertEqual(self.counters, {"mailbox_expired": 3})
        self.assertEqual(self.boxes.octets, 0)

    def test_credit_of_datagrams(self) -> None:
        """A poll gets as many datagrams as it has credit for, oldest first."""
        packets = [numbered(number) for number in range(5)]
        self.boxes.put(self.box, packets, 0)
        self.assertEqual(self.boxes.collect(self.box, BYTES, 2, MTU, 0), packets[:2])
        self.assertEqual(self.boxes.collect(self.box, BYTES, 0, MTU, 0), [])
        self.assertEqual(self.boxes.collect(self.box, BYTES, 9, MTU, 0), packets[2:])

    def test_credit_of_bytes(self) -> None:
        """It counts bytes of plaintext, padding included: a packet of 90 bytes is sent as 96."""
        packets = [numbered(number) for number in range(5)]
        self.boxes.put(self.box, packets, 0)
        self.assertEqual(self.boxes.collect(self.box, 0, 9, MTU, 0), [])
        self.assertEqual(self.boxes.collect(self.box, 2 * 96, 9, MTU, 0), packets[:2])
        self.assertEqual(self.boxes.collect(self.box, 2 * 96 - 1, 9, MTU, 0), packets[2:3])
        self.assertEqual(self.boxes.collect(self.box, 2 * 90, 9, 90, 0), packets[3:])

    def test_credit_for_one(self) -> None:
        """Any credit covers one packet: a long one must not wait for ever."""
        long = numbered(1, 60_000)
        self.boxes.put(self.box, [long, numbered(2)], 0)
        self.assertEqual(self.boxes.collect(self.box, 1, 9, MTU, 0), [long])

    def test_empty(self) -> None:
        """All is taken out, whatever its age, and counts no more."""
        self.box.patience = AGE
        self.boxes.put(self.box, [numbered(1), numbered(2)], 0)
        self.assertEqual(self.boxes.empty(self.box), [numbered(1), numbered(2)])
        self.assertEqual((self.box.octets, self.boxes.octets, self.counters), (0, 0, {}))


class Model:
    """The same, written as the rules are: everything in lists, everything looked at each time."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.boxes: list[list[tuple[float, bytes]]] = [[], [], []]

    def octets(self, box: int) -> int:
        return sum(len(packet) for _, packet in self.boxes[box])

    def put(self, box: int, packets: list[bytes], now: float) -> None:
        self.boxes[box] += [(now, packet) for packet in packets]
        while len(self.boxes[box]) > PACKETS or self.octets(box) > BYTES:
            del self.boxes[box][0]

    def collect(self, box: int, octets: int, datagrams: int, now: float) -> list[bytes]:
        self.boxes[box] = [(at, packet) for at, packet in self.boxes[box] if now < at + AGE]
        taken: list[bytes] = []
        for _, packet in self.boxes[box]:
            size = len(packet) - VIRTIO_SIZE
            octets -= min(-(-size // 16) * 16, max(size, MTU))
            if len(taken) == datagrams or (octets < 0 and taken):
                break
            taken.append(packet)
        del self.boxes[box][: len(taken)]
        return taken


step = st.tuples(
    st.integers(0, 2),
    st.one_of(
        st.lists(st.integers(20, VIRTIO_SIZE + MTU), max_size=60),
        st.tuples(st.integers(1, 200_000), st.integers(0, 100)),
    ),
    st.floats(0, 3),
)


class LikeTheModel(SynchronousTestCase):
    @given(st.lists(step, max_size=60), st.integers(1, 100_000))
    @settings(deadline=None, max_examples=100)
    def test_any(self, steps: list[tuple[int, object, float]], total: int) -> None:
        """Any puts and polls at any time: what comes out is what the model says, in its order; and
        what the total cost went from the front of a box that was, to 4 KiB, the fullest.
        """
        self.patch(mailbox, "MAILBOX_BYTES_TOTAL", total)
        counters: defaultdict[str, int] = defaultdict(int)
        boxes, real, model = Mailboxes(counters), [Mailbox() for _ in range(3)], Model(total)
        for box in real:
            box.patience = AGE
        now, number = 0.0, 0
        for which, what, later in steps:
            now += later
            if isinstance(what, list):
                packets = [numbered(number + place, size) for place, size in enumerate(what)]
                number += len(packets)
                boxes.put(real[which], packets, now)
                model.put(which, packets, now)
                self.rob(model, [box.octets for box in real])
            else:
                octets, datagrams = what  # type: ignore[misc]
                taken = boxes.collect(real[which], octets, datagrams, MTU, now)
                self.assertEqual(taken, model.collect(which, octets, datagrams, now))
            self.assertEqual([list(box.frames) for box in real], model.boxes)
            self.assertEqual(boxes.octets, sum(map(model.octets, range(3))))
            self.assertLessEqual(boxes.octets, total)

    def rob(self, model: Model, left: list[int]) -> None:
        """Take from the model what the total cost: from a fullest box each time, and no more than
        had to go.
        """
        dropped = [0]
        while sum(map(model.octets, range(3))) > sum(left):
            most = max(map(model.octets, range(3)))
            victims = [box for box in range(3) if model.octets(box) > left[box]]
            fullest = max(victims, key=model.octets)
            self.assertGreater(model.octets(fullest), most - SHELF, "not the fullest was robbed")
            dropped.append(len(model.boxes[fullest].pop(0)[1]))
        self.assertTrue(len(dropped) == 1 or sum(left) + max(dropped) > model.total)


class Judged(SynchronousTestCase):
    """Polls as a hub gets them: made at ``sent``, arriving at ``now``, seconds."""

    def setUp(self) -> None:
        self.polls = Polls()
        self.polls.login(0)
        self.seq = 0

    def receive(self, sent: float, now: float | None = None, seq: int | None = None) -> str:
        """What becomes of a poll: the reason why it is ignored, "" for none."""
        self.seq = self.seq + 1 if seq is None else seq
        stamp = pack(1_700_000_000 * 10**9 + round(sent * 1e9))
        try:
            self.polls.received(Poll(stamp, self.seq, 0, 0), sent if now is None else now)
        except RemoteProtocolError as error:
            return error.reason
        return ""

    def test_every_50_ms(self) -> None:
        """20 polls a second for a minute are all answered, though the network bunches them."""
        for number in range(1200):
            bunch = number // 4 * 4 + 3  # four by four
            self.assertEqual(self.receive(number / 20, bunch / 20), "", number)

    def test_not_more(self) -> None:
        """Of 100 a second 20 are answered and 5 once; slower polls pay the debt off."""
        answered = sum(self.receive(number / 100) == "" for number in range(1000))
        self.assertTrue(200 <= answered <= 205, answered)
        self.assertEqual(self.receive(10.0), "poll_too_often")
        self.assertEqual(self.receive(10.5), "")

    def test_order(self) -> None:
        """An earlier or an equal stamp is ignored; a new session begins anew."""
        self.assertEqual([self.receive(sent, 50) for sent in (10, 12)], ["", ""])
        self.assertEqual([self.receive(sent, 51) for sent in (11, 12)], ["poll_out_of_order"] * 2)
        self.polls.session()
        self.assertEqual(self.receive(11, 52), "")

    def test_held_back(self) -> None:
        """30 s later than the fastest of the session is held back; the hub's and the client's
        clock need not agree.
        """
        for start, ahead in ((100, -1e6), (200, 0.0), (300, 1e6)):
            self.polls.session()
            self.assertEqual(self.receive(ahead, start + 5), "")
            self.assertEqual(self.receive(ahead + 10, start + 10), "")  # the fastest: 0 s
            self.assertEqual(self.receive(ahead + 20, start + 49.9), "")
            self.assertEqual(self.receive(ahead + 30, start + 60.1), "poll_held_back")
            self.assertEqual(self.polls.held_back_at, start + 60.1)
            self.assertEqual(self.receive(ahead + 61, start + 61), "")

    def test_any_stamp(self) -> None:
        """Whatever a client puts into its stamp is a poll or a reason, nothing else."""
        for now, octet in enumerate((0x00, 0x40, 0x80, 0xFF)):
            self.polls.session()
            self.polls.received(Poll(bytes([octet]) * 12, 1, 0, 0), now)
            self.assertIn(self.receive(now), ("", "poll_out_of_order", "poll_held_back"))
            self.assertIn(self.polls.patience(100), (AGE, LONGEST_AGE))

    def test_patience(self) -> None:
        """10 s, or 1.25 intervals of a client that polls rarely; 75 s while that is not known."""
        for interval, patience in ((0.05, AGE), (1, AGE), (8, AGE), (16, 20), (60, LONGEST_AGE)):
            self.setUp()
            times = [number * interval for number in range(int(200 / interval))]
            for now in times:
                self.assertEqual(self.receive(now), "")
                expected = LONGEST_AGE if now < LONGEST_AGE else patience
                self.assertAlmostEqual(self.polls.patience(now), expected, places=6)
        self.assertEqual(self.receive(10_000), "")  # suspended for hours
        self.assertEqual(self.polls.patience(10_000), LONGEST_AGE)

    def test_lost_polls_are_no_interval(self) -> None:
        """A client that polls each second and loses 30 polls still polls each second."""
        for number in (*range(1, 100), *range(130, 140)):
            self.assertEqual(self.receive(number, seq=number), "")
        self.assertEqual(self.polls.patience(140), AGE)

    def test_patience_after_a_login(self) -> None:
        """After another login the interval may be another."""
        for number in range(100):
            self.receive(number)
        self.assertEqual(self.polls.patience(100), AGE)
        self.polls.login(100)
        self.assertEqual(self.polls.patience(101), LONGEST_AGE)
