"""Mailboxes: what waits at the hub for clients that fetch their packets by polling.

A mailbox belongs to one device of one user. Its packets are not sealed yet, so they outlive the
session that they came in; docs/protocol.rst, "Delivery on poll", has the rules.
"""

from __future__ import annotations

from collections import defaultdict, deque

from pyvpn.core import segments
from pyvpn.core.polls import LONGEST_PATIENCE
from pyvpn.core.timers import NEVER

#: What waits for one client at most: packets, and their bytes (docs/protocol.rst, "Limits").
MAILBOX_PACKETS = 256
MAILBOX_BYTES = 512 << 10
#: Bytes of all mailboxes together.
MAILBOX_BYTES_TOTAL = 64 << 20

#: Which mailbox is the fullest is known to within this many bytes: a box is looked for on a new
#: shelf when it has grown or shrunk by that much, not at each packet.
_SHELF_BYTES = 4 << 10


class Mailbox:
    """One device's packets, oldest first; only :class:`Mailboxes` changes it.

    :ivar patience: seconds after which a packet is too old to be of use.
    :ivar octets: bytes of all packets.
    """

    __slots__ = ("_shelf", "frames", "octets", "patience")

    def __init__(self) -> None:
        self.frames: deque[tuple[float, bytes]] = deque()
        self.octets = 0
        self.patience = LONGEST_PATIENCE
        self._shelf = 0

    @property
    def due(self) -> float:
        """When the oldest packet is too old."""
        return self.frames[0][0] + self.patience if self.frames else NEVER


class Mailboxes:
    """All mailboxes of a hub, and the bound of what they hold together.

    :param counters: where what had to go is counted, by reason.
    :ivar octets: bytes of all packets in all boxes.
    """

    def __init__(self, counters: defaultdict[str, int]) -> None:
        self.counters = counters
        self.octets = 0
        shelves = MAILBOX_BYTES // _SHELF_BYTES + 1
        self._shelves: list[dict[Mailbox, None]] = [{} for _ in range(shelves)]

    def put(self, box: Mailbox, frames: list[bytes], now: float) -> None:
        """Add packets; what is too much makes the oldest go, at last those of the fullest box."""
        for frame in frames:
            box.frames.append((now, frame))
            self._count(box, len(frame))
            while len(box.frames) > MAILBOX_PACKETS or box.octets > MAILBOX_BYTES:
                self._pop(box)
                self.counters["mailbox_full"] += 1
        self._shelve(box)
        while self.octets > MAILBOX_BYTES_TOTAL:
            fullest = self._fullest()
            self._pop(fullest)
            self._shelve(fullest)
            self.counters["mailbox_total_full"] += 1

    def collect(
        self, box: Mailbox, octets: int, datagrams: int, inner_mtu: int, now: float
    ) -> list[bytes]:
        """Take what a poll's credit covers: so many datagrams and bytes of plaintext.

        A credit that is not zero covers the first packet, however long that is: else it could
        never be delivered.
        """
        self.expire(box, now)
        taken: list[bytes] = []
        while box.frames and octets > 0 and datagrams > 0:
            pieces, size = segments.cost(box.frames[0][1], inner_mtu)
            octets -= size
            datagrams -= pieces
            if min(octets, datagrams) < 0 and taken:
                break
            taken.append(self._pop(box))
        self._shelve(box)
        return taken

    def empty(self, box: Mailbox) -> list[bytes]:
        """Take all packets, whatever their age."""
        taken = [self._pop(box) for _ in range(len(box.frames))]
        self._shelve(box)
        return taken

    def expire(self, box: Mailbox, now: float) -> None:
        """Drop what is too old."""
        while box.due <= now:
            self._pop(box)
            self.counters["mailbox_expired"] += 1
        self._shelve(box)

    def _pop(self, box: Mailbox) -> bytes:
        _, frame = box.frames.popleft()
        self._count(box, -len(frame))
        return frame

    def _count(self, box: Mailbox, octets: int) -> None:
        box.octets += octets
        self.octets += octets

    def _shelve(self, box: Mailbox) -> None:
        """Keep a box where its fullness says; an empty one stands nowhere."""
        shelf = -(-box.octets // _SHELF_BYTES)
        if shelf != box._shelf:
            self._shelves[box._shelf].pop(box, None)
            if shelf:
                self._shelves[shelf][box] = None
            box._shelf = shelf

    def _fullest(self) -> Mailbox:
        return next(next(iter(shelf)) for shelf in reversed(self._shelves) if shelf)
