"""Waiting for many at once, each for the same time, on one timer."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

TimerFactory = Callable[[Callable[[], None]], Any]
"""Makes a :class:`pyvpn.tx.timer.BoottimeTimer`, given what to call."""


class Patience:
    """Calls those back who waited in vain.

    Not ``reactor.callLater``, which a step of the wall clock stops for as long (FACTS 1.10): all
    the questions that may be open would be, and no other one would be asked.

    :param seconds: how long is waited for each.
    :param clock: boottime seconds.
    """

    def __init__(
        self, seconds: float, clock: Callable[[], float], timer_factory: TimerFactory
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._timer_factory = timer_factory
        self._timer: Any = None
        # In the order of their ends, as all have the same time.
        self._waiting: dict[Hashable, tuple[float, Callable[[], None]]] = {}

    def wait(self, key: Hashable, call: Callable[[], None]) -> None:
        """Have ``call`` called when the time is over; what waits as ``key`` begins anew."""
        if self._timer is None:
            self._timer = self._timer_factory(self._expired)
        self._waiting.pop(key, None)
        self._waiting[key] = (self._clock() + self._seconds, call)
        self._arm()

    def forget(self, key: Hashable) -> None:
        """Do not wait any longer; harmless if nothing waits as ``key``."""
        if self._waiting.pop(key, None) is not None:
            self._arm()

    def close(self) -> None:
        """Forget all, and leave the timer to the system."""
        self._waiting.clear()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _arm(self) -> None:
        first = next(iter(self._waiting.values()), None)
        if self._timer is not None:
            self._timer.arm(None if first is None else first[0])

    def _expired(self) -> None:
        now = self._clock()
        over = [key for key, (until, _) in self._waiting.items() if until <= now]
        calls = [self._waiting.pop(key)[1] for key in over]
        self._arm()
        for call in calls:
            call()
