"""Time for tests: it moves only when told, and stops at everything that is due on the way."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

# A date like any other, in integer Unix nanoseconds: 2024-01-01 00:00 UTC.
FIRST_WALL_TIME = 1_704_067_200 * 1_000_000_000

# More calls at one instant than any test needs.
MOST_CALLS_AT_ONCE = 10_000


class VirtualClock(Clock):
    """Boottime and wall time, apart as in the kernel.

    :ivar wall_step: nanoseconds by which the wall clock was set; add to it to make it jump.
    """

    def __init__(self, boottime: float = 1000.0) -> None:
        super().__init__()
        self.rightNow = boottime
        self.wall_step = 0
        self._started = boottime

    def boottime(self) -> float:
        """Seconds since boot: what the core calls ``now``."""
        return self.seconds()

    def wall_clock(self) -> int:
        """Unix nanoseconds."""
        elapsed = int((self.seconds() - self._started) * 1e9)
        return FIRST_WALL_TIME + elapsed + self.wall_step

    def next_due(self) -> float | None:
        """When the next delayed call is due."""
        return min((call.getTime() for call in self.getDelayedCalls()), default=None)

    def advance(self, amount: float) -> None:
        """Go on by ``amount`` seconds, stopping at each delayed call, so that it sees its time.

        :raises AssertionError: time cannot go on.
        """
        target = self.rightNow + amount
        standing = 0
        while (due := self.next_due()) is not None and due <= target:
            if due > self.rightNow:
                self.rightNow, standing = due, 0
            standing += 1
            if standing > MOST_CALLS_AT_ONCE:
                raise AssertionError("something is always due: a timer re-arms itself in the past")
            # One call at a time: the loop of the inherited advance would never see the bound.
            self.calls.sort(key=lambda call: call.getTime())
            call = self.calls.pop(0)
            call.called = 1
            call.func(*call.args, **call.kw)
        self.rightNow = target


class ClockTimer:
    """A :class:`pyvpn.tx.timer.BoottimeTimer` on a virtual clock."""

    def __init__(self, callback: Callable[[], None], clock: Clock) -> None:
        self._callback = callback
        self._clock = clock
        self._call: IDelayedCall | None = None
        self._closed = False
        self.armed: float | None = None

    def arm(self, when: float | None) -> None:
        """Fire at ``when``, absolute seconds of the clock (at once if it is past); None disarms."""
        self._disarm()
        if when is not None and not self._closed:
            self.armed = when
            self._call = self._clock.callLater(max(0.0, when - self._clock.seconds()), self._fire)

    def close(self) -> None:
        """Disarm for good; harmless twice."""
        self._disarm()
        self._closed = True

    def _disarm(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._call = None
        self.armed = None

    def _fire(self) -> None:
        self._call = None
        self.armed = None
        self._callback()
