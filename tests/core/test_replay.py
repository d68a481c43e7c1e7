"""The replay window against a model that is nothing but a set (PROTOCOL 7, RFC 6479)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.replay import ReplayWindow

# Retyped from PROTOCOL 7, so that a changed constant is noticed.
WINDOW = 8192
LAST = 2**64 - 2**13 - 1


class SetModel:
    """Every counter ever accepted, in a set; slow and plain."""

    def __init__(self) -> None:
        self.accepted: set[int] = set()
        self.highest = -1

    def accept(self, counter: int) -> bool:
        if counter in self.accepted or counter < self.highest - (WINDOW - 1):
            return False
        self.accepted.add(counter)
        self.highest = max(self.highest, counter)
        return True

    def accept_run(self, first: int, count: int) -> bool:
        if first <= self.highest:
            return False
        self.accepted.update(range(first, first + count))
        self.highest = first + count - 1
        return True


# Steps relative to the highest counter, with the window's borders and multiples made likely.
STEPS = st.one_of(
    st.integers(-8, 8),
    st.integers(-WINDOW - 4, -WINDOW + 4),
    st.integers(WINDOW - 4, WINDOW + 4),
    st.integers(-3 * WINDOW, 3 * WINDOW),
)
COUNTS = st.one_of(st.integers(1, 64), st.integers(WINDOW - 2, WINDOW + 2))


class ReplayWindowTests(SynchronousTestCase):
    def test_each_counter_once(self) -> None:
        """A counter is good once: the replay of a datagram is refused, in order or not."""
        window = ReplayWindow()
        self.assertEqual([window.accept(n) for n in (0, 1, 5, 3, 2, 4)], [True] * 6)
        self.assertEqual([window.accept(n) for n in range(6)], [False] * 6)
        self.assertTrue(window.accept(6))

    def test_new_window_has_seen_nothing(self) -> None:
        """A new session has no highest counter, so its very first counter 0 is above it."""
        window = ReplayWindow()
        self.assertEqual(window.highest, -1)
        self.assertTrue(window.accept_run(0, 1))
        self.assertEqual(window.highest, 0)

    def test_size_is_the_protocols(self) -> None:
        """The window remembers 8,192 counters, as PROTOCOL 7 says."""
        self.assertEqual(ReplayWindow.SIZE, WINDOW)

    def test_old_border(self) -> None:
        """highest - 8,191 is still known, highest - 8,192 is too old, even if it never came."""
        window = ReplayWindow()
        self.assertTrue(window.accept(100_000))
        self.assertFalse(window.accept(100_000 - WINDOW))
        self.assertTrue(window.accept(100_000 - WINDOW + 1))
        self.assertFalse(window.accept(100_000 - WINDOW + 1))

    def test_refusal_changes_nothing(self) -> None:
        """A refused counter moves neither the highest counter nor what is known of others."""
        window = ReplayWindow()
        window.accept(20_000)
        before = (window.highest, bytes(window._seen))
        for counter in (20_000, 20_000 - WINDOW, 0):
            self.assertFalse(window.accept(counter))
        self.assertFalse(window.accept_run(20_000, 3))
        self.assertFalse(window.accept_run(19_999, 3))
        self.assertFalse(window.accept_run(20_001, 0))
        self.assertEqual((window.highest, bytes(window._seen)), before)

    def test_run_is_all_or_nothing(self) -> None:
        """A run that begins at the highest counter is refused whole; each alone may still pass."""
        window = ReplayWindow()
        window.accept(10)
        self.assertFalse(window.accept_run(10, 3))
        self.assertEqual([window.accept(n) for n in (10, 11, 12)], [False, True, True])

    def test_run_marks_every_counter(self) -> None:
        """After an accepted run each of its counters is a duplicate, and those skipped are not."""
        window = ReplayWindow()
        window.accept(WINDOW - 10)
        self.assertTrue(window.accept_run(WINDOW - 5, 44))
        self.assertEqual(window.highest, WINDOW + 38)
        self.assertFalse(window.accept(WINDOW - 10))
        for counter in range(WINDOW - 5, WINDOW + 39):
            self.assertFalse(window.accept(counter), counter)
        for counter in range(WINDOW - 9, WINDOW - 5):
            self.assertTrue(window.accept(counter), counter)

    def test_skipped_counters_come_late(self) -> None:
        """Counters skipped after a full window pass once when they come, those before them not."""
        for gap in (1, 2, 3, 50, WINDOW - 1, WINDOW, WINDOW + 1):
            for by_run in (False, True):
                window = ReplayWindow()
                self.assertTrue(window.accept_run(0, 2 * WINDOW))
                highest = window.highest
                after = highest + 1 + gap
                self.assertTrue(window.accept_run(after, 2) if by_run else window.accept(after))
                for counter in range(highest - 3, highest + 1):
                    self.assertFalse(window.accept(counter), (gap, by_run, counter))
                oldest = max(highest + 1, window.highest - WINDOW + 1)
                for counter in range(oldest, after):
                    self.assertTrue(window.accept(counter), (gap, by_run, counter))
                    self.assertFalse(window.accept(counter), (gap, by_run, counter))

    def test_memory_is_bounded(self) -> None:
        """The window never grows, whatever the run: across the ring's end, longer than it."""
        window = ReplayWindow()
        for first, count in ((0, 3), (WINDOW - 7, 44), (3 * WINDOW - 1, 2), (10 * WINDOW, 25_000)):
            self.assertTrue(window.accept_run(first, count))
            self.assertEqual(window.highest, first + count - 1)
            self.assertLessEqual(len(window._seen), WINDOW)
        self.assertEqual(len(window._seen), WINDOW)

    def test_memory_of_an_idle_session(self) -> None:
        """A window that has seen few counters is small, and grows to its full size as they come."""
        window = ReplayWindow()
        for counter in range(50):
            self.assertTrue(window.accept(counter))
        self.assertLess(len(window._seen), 100)
        for counter in range(50, 2 * WINDOW):
            self.assertTrue(window.accept(counter))
            self.assertFalse(window.accept(counter))
            self.assertFalse(window.accept(counter // 2))
        self.assertEqual(len(window._seen), WINDOW)

    def test_last_counters_of_a_session(self) -> None:
        """The highest counters that a session may use work like any others."""
        window = ReplayWindow()
        self.assertTrue(window.accept(LAST - 5))
        self.assertTrue(window.accept_run(LAST - 4, 5))
        self.assertEqual(window.highest, LAST)
        self.assertFalse(window.accept(LAST - 2))
        self.assertTrue(window.accept(LAST - 6))

    @given(st.integers(0, LAST - 10 * WINDOW), st.lists(st.tuples(st.booleans(), STEPS, COUNTS)))
    @settings(deadline=None, max_examples=100)
    def test_equals_the_set_model(self, start: int, steps: list[tuple[bool, int, int]]) -> None:
        """Whatever arrives in whatever order, the window answers as a set of all counters would."""
        window, model = ReplayWindow(), SetModel()
        self.assertEqual(window.accept(start), model.accept(start))
        for is_run, step, count in steps:
            counter = max(0, model.highest + step)
            if is_run:
                self.assertEqual(
                    window.accept_run(counter, count), model.accept_run(counter, count)
                )
            else:
                self.assertEqual(window.accept(counter), model.accept(counter))
            self.assertEqual(window.highest, model.highest)
            self.assertLessEqual(len(window._seen), WINDOW)
        oldest = max(0, model.highest - WINDOW - 2)
        for counter in range(oldest, model.highest + 1):
            self.assertEqual(window.accept(counter), model.accept(counter), counter)
