"""BoottimeTimer on the kernel and its stand-in on the virtual clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.testing.clock import ClockTimer, VirtualClock
from pyvpn.testing.memory import MemoryNetwork
from pyvpn.testing.reactor import MemoryReactor
from pyvpn.tx.timer import BoottimeTimer, boottime
from tests.tx.worlds import reactor_for, run_until

# The clock's number in <linux/time.h>.
CLOCK_BOOTTIME = 7


class TimerMixin:
    """What both timers do."""

    def make_timer(self, callback: Callable[[], None]) -> Any:
        raise NotImplementedError

    def now(self) -> float:
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        raise NotImplementedError

    def setUp(self) -> None:
        self.fired: list[float] = []
        self.timer = self.make_timer(lambda: self.fired.append(self.now()))
        self.addCleanup(self.timer.close)

    def test_fires_once_not_early(self) -> None:
        """It fires at the time asked for, and then no more."""
        when = self.now() + 0.05
        self.timer.arm(when)
        self.assertEqual(self.timer.armed, when)
        self.pass_time(0.2)
        self.assertEqual(len(self.fired), 1)
        self.assertGreaterEqual(self.fired[0], when - 1e-6)
        self.assertIsNone(self.timer.armed)

    def test_moved(self) -> None:
        """Armed again it forgets the earlier time, both ways."""
        start = self.now()
        self.timer.arm(start + 0.02)
        self.timer.arm(start + 0.1)
        self.pass_time(0.05)
        self.assertEqual(self.fired, [])
        self.timer.arm(start + 500)
        self.timer.arm(start + 0.15)
        self.pass_time(0.2)
        self.assertEqual(len(self.fired), 1)

    def test_disarmed(self) -> None:
        """Disarmed it is silent; the control is the arming after it."""
        self.timer.arm(self.now() + 0.01)
        self.timer.arm(None)
        self.assertIsNone(self.timer.armed)
        self.pass_time(0.05)
        self.assertEqual(self.fired, [])
        self.timer.arm(self.now() + 0.01)
        self.pass_time(0.05)
        self.assertEqual(len(self.fired), 1)

    def test_past(self) -> None:
        """A time that is past, even before boot, fires at once but never inside arm."""
        for when in (self.now() - 1, 0.0, -5.0):
            count = len(self.fired)
            self.timer.arm(when)
            self.assertEqual(len(self.fired), count)
            self.pass_time(0.01)
            self.assertEqual(len(self.fired), count + 1)

    def test_armed_by_its_own_callback(self) -> None:
        """A callback may arm again, as every periodic timer does."""
        again = self.make_timer(lambda: None)
        self.addCleanup(again.close)
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            if count < 3:
                ticking.arm(self.now() + 0.01)

        ticking = self.make_timer(tick)
        self.addCleanup(ticking.close)
        ticking.arm(self.now() + 0.01)
        self.pass_time(0.2)
        self.assertEqual(count, 3)

    def test_closed(self) -> None:
        """Closed it never fires, and closing twice or arming then is harmless."""
        self.timer.arm(self.now() + 0.01)
        self.timer.close()
        self.timer.close()
        self.timer.arm(self.now() + 0.01)
        self.pass_time(0.05)
        self.assertEqual(self.fired, [])


class BoottimeTimerTests(TimerMixin, SynchronousTestCase):
    """The timerfd in the real reactor."""

    def make_timer(self, callback: Callable[[], None]) -> BoottimeTimer:
        if not hasattr(self, "reactor"):
            self.reactor = reactor_for(self)
        return BoottimeTimer(callback, self.reactor)

    def now(self) -> float:
        return boottime()

    def pass_time(self, seconds: float) -> None:
        """A watch of its own ends the wait, so that the reactor is what is measured."""
        end = boottime() + seconds
        run_until(self.reactor, lambda: boottime() >= end)

    def test_clock(self) -> None:
        """It counts CLOCK_BOOTTIME, the one clock that suspend and clock steps leave right."""
        self.assertEqual(time.CLOCK_BOOTTIME, CLOCK_BOOTTIME)
        with open(f"/proc/self/fdinfo/{self.timer.fileno()}") as info:
            lines = dict(line.rstrip("\n").split(":", 1) for line in info if ":" in line)
        self.assertEqual(int(lines["clockid"]), CLOCK_BOOTTIME)

    def test_descriptor(self) -> None:
        """The descriptor is not inherited by child processes, and is gone after close."""
        fd = self.timer.fileno()
        self.assertFalse(os.get_inheritable(fd))
        self.assertFalse(os.get_blocking(fd))
        self.timer.close()
        self.assertEqual(self.timer.fileno(), -1)
        self.assertRaises(OSError, os.fstat, fd)

    def test_exception_in_callback(self) -> None:
        """A bug in the callback is logged and the timer goes on working."""
        timer = self.make_timer(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        self.addCleanup(timer.close)
        for _ in range(2):
            timer.arm(boottime())
            self.pass_time(0.02)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class ClockTimerTests(TimerMixin, SynchronousTestCase):
    """The stand-in on the virtual clock."""

    def setUp(self) -> None:
        self.clock = MemoryReactor(MemoryNetwork())
        super().setUp()

    def make_timer(self, callback: Callable[[], None]) -> ClockTimer:
        return self.clock.timer(callback)

    def now(self) -> float:
        return self.clock.boottime()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


class VirtualClockTests(SynchronousTestCase):
    """The clock itself."""

    def test_stops_at_everything_due(self) -> None:
        """Each call sees its own time, also one that an earlier call made."""
        clock = VirtualClock(100.0)
        seen: list[tuple[str, float]] = []

        def first() -> None:
            seen.append(("first", clock.boottime()))
            clock.callLater(0.5, lambda: seen.append(("second", clock.boottime())))

        clock.callLater(1.0, first)
        clock.callLater(3.0, lambda: seen.append(("third", clock.boottime())))
        clock.advance(2.0)
        self.assertEqual(seen, [("first", 101.0), ("second", 101.5)])
        self.assertEqual(clock.boottime(), 102.0)
        clock.advance(1.0)
        self.assertEqual(seen[2:], [("third", 103.0)])

    def test_wall_clock(self) -> None:
        """Wall time goes with boottime until it is set."""
        clock = VirtualClock()
        before = clock.wall_clock()
        clock.advance(2.5)
        self.assertEqual(clock.wall_clock() - before, 2_500_000_000)
        clock.wall_step -= 3600 * 1_000_000_000
        self.assertLess(clock.wall_clock(), before)
        self.assertEqual(clock.boottime(), 1002.5)

    def test_time_that_cannot_go_on(self) -> None:
        """A timer that re-arms itself in the past is a bug that must not hang the tests."""
        clock = VirtualClock()

        def again() -> None:
            clock.callLater(0, again)

        clock.callLater(1, again)
        self.assertRaises(AssertionError, clock.advance, 2)
