"""When things are due, in seconds of ``now``; docs/protocol.rst, "Timers", has the rules.

A hook does nothing but note a deadline; the facades ask for the earliest and act on what is due.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

REKEY_AFTER_TIME = 120.0
REKEY_ON_RECEIVE_TIME = 165.0
REKEY_ATTEMPT_TIME = 90.0
REKEY_TIMEOUT = 5.0
REKEY_JITTER = 0.334
KEEPALIVE_TIMEOUT = 10.0
BACKOFF_MAXIMUM = 300.0
#: A client says that nobody answers after this long.
SILENCE_TIME = 15.0
#: After BYE 2 to 7.
REFUSED_RETRY_TIME = 300.0
#: Nothing heard this long after data or a poll: a poll, another poll, a new login.
LIVENESS_STEPS = (4.0, 6.0, 8.0)
HELLO_INTERVAL = 1.0
CONFIG_INTERVAL = 1.0
CONFIG_TRIES = 5

NEVER = float("inf")
K = TypeVar("K")


class KeepaliveTimer:
    """Passive keepalive: say something when data came and nothing went for 10 s."""

    __slots__ = ("due",)

    def __init__(self) -> None:
        self.due = NEVER

    def data_received(self, now: float) -> bool:
        """Call when an authenticated packet that is not control arrived; True: ``due`` is new."""
        if self.due != NEVER:
            return False
        self.due = now + KEEPALIVE_TIMEOUT
        return True

    def any_authenticated_packet_sent(self) -> None:
        """Call when anything was sealed and sent."""
        self.due = NEVER


class LivenessTimer:
    """Does the hub still hear us? Steps at 4 s, 6 s and 8 s after the unanswered packet."""

    __slots__ = ("_since", "_step")

    def __init__(self) -> None:
        self._since = NEVER
        self._step = 0

    def answer_expected(self, now: float) -> bool:
        """Call when data or a poll was sent; True: ``due`` is new."""
        if self._since != NEVER:
            return False
        self._since = now
        return True

    def any_authenticated_packet_received(self) -> None:
        """Call when anything authentic arrived."""
        self._since = NEVER
        self._step = 0

    @property
    def due(self) -> float:
        """When the next step is to be taken."""
        return self._since + LIVENESS_STEPS[self._step]

    def step(self) -> bool:
        """Take the step that is due; return True when the peer counts as dead with it."""
        if self._step + 1 < len(LIVENESS_STEPS):
            self._step += 1
            return False
        self.any_authenticated_packet_received()
        return True


class TimerQueue(Generic[K]):
    """Deadlines of many peers: one live entry a key, the earliest first.

    A deadline that moves later costs nothing: the entry wakes its key at the earlier time, and the
    key is armed anew. So data on a session touches the heap about once in 10 s.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._armed: dict[K, float] = {}
        self._serial = 0

    def arm(self, key: K, when: float) -> None:
        """Wake ``key`` at ``when`` at the latest."""
        if when < self._armed.get(key, NEVER):
            self._armed[key] = when
            self._serial += 1
            heapq.heappush(self._heap, (when, self._serial, key))

    def cancel(self, key: K) -> None:
        """Forget a key."""
        self._armed.pop(key, None)

    def next(self) -> float:
        """Return when the earliest entry is due, NEVER when there is none."""
        heap = self._heap
        while heap and self._armed.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else NEVER

    def pop_due(self, now: float) -> list[K]:
        """Remove and return the keys that are due."""
        keys = []
        while self.next() <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._armed[key]
            keys.append(key)
        return keys
