"""Waiting for many: who is called back, when, and who is not any more."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.service.patience import Patience
from pyvpn.testing.clock import ClockTimer, VirtualClock


class PatienceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.called: list[tuple[str, float]] = []
        self.timers: list[ClockTimer] = []
        self.patience = Patience(2.0, self.clock.boottime, self.timer)

    def timer(self, callback: object) -> ClockTimer:
        self.timers.append(ClockTimer(callback, self.clock))  # type: ignore[arg-type]
        return self.timers[-1]

    def wait(self, key: str) -> None:
        self.patience.wait(key, lambda: self.called.append((key, self.clock.boottime() - 1000)))

    def test_each_in_time(self) -> None:
        """Each one is called once, two seconds after it began to wait."""
        for key in "abc":
            self.wait(key)
            self.clock.advance(0.5)
        self.clock.advance(10)
        self.assertEqual(self.called, [("a", 2.0), ("b", 2.5), ("c", 3.0)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_forgotten(self) -> None:
        """Who is forgotten, or waits anew, is not called for the time before; others are."""
        for key in "abc":
            self.wait(key)
        self.clock.advance(1)
        self.patience.forget("a")
        self.patience.forget("nobody")
        self.wait("b")
        self.clock.advance(10)
        self.assertEqual(self.called, [("c", 2.0), ("b", 3.0)])

    def test_waits_again(self) -> None:
        """Who is called may wait again at once, and may forget another one in time."""
        self.patience.wait("a", lambda: self.wait("b"))
        self.clock.advance(10)
        self.assertEqual(self.called, [("b", 4.0)])

    def test_idle(self) -> None:
        """There is no timer before somebody waits, one then, and none armed without need."""
        self.assertEqual(self.timers, [])
        self.wait("a")
        self.wait("b")
        [timer] = self.timers
        self.assertEqual(timer.armed, 1002.0)
        self.patience.forget("a")
        self.patience.forget("b")
        self.assertIsNone(timer.armed)

    def test_close(self) -> None:
        """Closed, it calls nobody; closing is harmless before and after."""
        self.patience.close()
        self.wait("a")
        self.patience.close()
        self.patience.close()
        self.clock.advance(10)
        self.assertEqual(self.called, [])
