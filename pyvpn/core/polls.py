"""Polls: how often, in which order and how late a device's POLLs may come, and what they tell.

docs/protocol.rst, "POLL and REPLY" and "Delivery on poll", has the rules.
"""

from __future__ import annotations

from attrs import frozen

from pyvpn.core import tai64n
from pyvpn.core.burst import Endpoint
from pyvpn.core.control import Poll
from pyvpn.core.timers import NEVER
from pyvpn.errors import RemoteProtocolError

#: Seconds between polls when the hub delivers at once, and when it delivers on polls.
PUSH_INTERVAL = 25.0
POLL_INTERVAL = 1.0
#: Seconds; the most that a user can ask for.
LONGEST_INTERVAL = 60.0

#: No client sends polls closer than this, and no hub answers more of them: 20 a second.
POLL_SPACING = 0.05
#: So many may come at once, since a network that holds them up for a moment then brings them
#: together: a client that polls every 50 ms must not lose one for that.
POLL_BURST = 5

#: A poll this much later than the fastest of its session was held back: what it fetched would go
#: to where the client was then. Nanoseconds.
HELD_BACK = 30_000_000_000

#: What waits for a poll is too old after this many seconds: TCP has sent it again by then.
MAILBOX_AGE = 10.0
#: But a client that polls rarely gets what came since its last poll, and what one that is a quarter
#: late would have missed: the age limit is at least this many of its intervals.
AGE_INTERVALS = 1.25
LONGEST_PATIENCE = LONGEST_INTERVAL * AGE_INTERVALS

#: What a client lets the hub send for one poll: half a mailbox, a burst that sockets and queues on
#: the way can take. It is above one super-packet (65,535 bytes in 64 datagrams).
CREDIT_BYTES = 256 << 10
CREDIT_DATAGRAMS = 128

#: Seconds for which a poll from an address that is not validated waits for the validation.
VALIDATION_TIME = 2.0


@frozen
class HeldPoll:
    """A poll that came from where the client is not known to be.

    What it fetches goes there as soon as that address is validated; at ``due`` at the latest it
    goes to the one that is, lest somebody who copies polls from elsewhere can stop delivery.
    """

    poll: Poll
    endpoint: Endpoint
    due: float


class Polls:
    """What the hub remembers of one device's polls.

    :ivar held: the one that waits for the validation of an address.
    :ivar held_back_at: ``now`` of the last that came too late: it proves nothing about where the
        client is.
    """

    __slots__ = (
        "_best",
        "_interval",
        "_known",
        "_next",
        "_seq",
        "_stamp",
        "held",
        "held_back_at",
    )

    def __init__(self) -> None:
        self.held: HeldPoll | None = None
        self.held_back_at = -NEVER
        self._next = -NEVER
        self.login(0.0)
        self.session()

    def login(self, now: float) -> None:
        """A login that is no rekey: the client may have another interval than before."""
        self._interval = 0.0
        self._known = now + LONGEST_PATIENCE

    def session(self) -> None:
        """A new session: its polls have numbers and stamps of their own."""
        self.held = None
        self._best: int | None = None
        self._stamp = self._seq = 0

    def received(self, poll: Poll, now: float) -> None:
        """Judge a poll of the current session.

        :raises RemoteProtocolError: the reason why it is ignored.
        """
        if now < self._next - POLL_SPACING * (POLL_BURST - 1):
            raise RemoteProtocolError("poll_too_often")
        stamp = tai64n.unpack(poll.stamp)
        late = int(now * 1e9) - stamp
        if self._best is None:
            self._best = late
        elif stamp <= self._stamp:
            raise RemoteProtocolError("poll_out_of_order")
        elif late - self._best > HELD_BACK:
            self.held_back_at = now
            raise RemoteProtocolError("poll_held_back")
        elif poll.seq > self._seq:
            # By number, so that lost polls do not make the interval look longer.
            interval = (stamp - self._stamp) / (poll.seq - self._seq) / 1e9
            self._interval = max(self._interval, interval)
        self._next = max(self._next, now) + POLL_SPACING
        self._best = min(self._best, late)
        self._stamp, self._seq = stamp, poll.seq

    def hold(self, poll: Poll, endpoint: Endpoint, now: float) -> float:
        """Let a poll wait, in the place of one that does; return until when at most.

        A poll a second must not put that off for ever.
        """
        due = now + VALIDATION_TIME if self.held is None else self.held.due
        self.held = HeldPoll(poll, endpoint, due)
        return due

    def patience(self, now: float) -> float:
        """Return for how many seconds packets may wait for this client.

        Its interval is the longest time between two polls, since there are reasons to poll
        earlier; so it is not known before the longest possible one has passed.
        """
        if now < self._known:
            return LONGEST_PATIENCE
        return min(max(MAILBOX_AGE, self._interval * AGE_INTERVALS), LONGEST_PATIENCE)
