"""Stamps of logins against clocks that go where they like (PROTOCOL 3)."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.stamps import LoginStamps

WHITENING = 2**24
HOUR, DAY = 3600 * 10**9, 86_400 * 10**9
NOW = 1_704_067_200 * 10**9

#: Wall clocks: years off, days off, hours off.
CLOCKS = st.builds(
    lambda unit, count: NOW + unit * count,
    st.sampled_from([10**6, 10**9, HOUR, DAY]),
    st.integers(-400, 400),
)


class LoginStampsTests(SynchronousTestCase):
    def test_one_choice(self) -> None:
        """While clock and last stamp are within half a day each is later than clock and last."""
        for ahead in (-1000 * DAY, -1, 0, 1, HOUR, 11 * HOUR):
            stamps = LoginStamps(NOW + ahead)
            given = [stamps.next(NOW) for _ in range(20)]
            self.assertGreater(given[0], NOW + ahead)
            self.assertGreater(given[0], NOW - WHITENING)
            self.assertEqual(given, sorted(set(given)))
            self.assertEqual(stamps.last, given[-1])

    def test_two_choices(self) -> None:
        """Half a day apart the last stamp and the clock take turns, the last one first; neither
        gives one twice.
        """
        stamps = LoginStamps(NOW + 9 * DAY)
        given = [stamps.next(NOW + n * WHITENING) for n in range(20)]
        self.assertGreater(min(given[::2]), NOW + 9 * DAY)
        self.assertLess(max(given[1::2]), NOW + HOUR)
        for turns in (given[::2], given[1::2]):
            self.assertEqual(turns, sorted(set(turns)))
        self.assertEqual(stamps.last, given[-2])

    def test_what_was_answered_comes_first(self) -> None:
        """After an answer the same choice is the first again, and goes on above what was taken."""
        for tries in (1, 2):
            stamps = LoginStamps(NOW + 9 * DAY)
            for _ in range(tries):
                taken = stamps.next(NOW)
            stamps.answered()
            again = stamps.next(NOW - HOUR)
            self.assertTrue(taken < again < taken + HOUR, tries)

    def test_the_highest_is_not_forgotten(self) -> None:
        """A login by the clock leaves the highest stamp as it is: a record of that one may yet be
        replayed to a hub, which then wants later ones.
        """
        stamps = LoginStamps(NOW + 9 * DAY)
        highest = stamps.next(NOW)
        stamps.next(NOW)
        stamps.answered()
        self.assertEqual(stamps.last, highest)
        self.assertGreater(stamps.next(NOW + 9 * DAY), highest)

    @given(st.integers(0, 2 * NOW), st.lists(st.tuples(CLOCKS, st.booleans()), max_size=40))
    @settings(deadline=None)
    def test_any_clock(self, last: int, tries: list[tuple[int, bool]]) -> None:
        """Whatever the clock does: the highest never falls, stamps are whitened, and of
        any two tries in a row one is above everything used before or all is in doubt no more.
        """
        stamps = LoginStamps(last)
        above = []
        for clock, answered in tries:
            before = stamps.last
            stamp = stamps.next(clock)
            self.assertEqual(stamp % 10**9 % WHITENING, 0)
            self.assertGreaterEqual(stamps.last, max(before, stamp))
            if stamp <= before:
                self.assertGreater(before, clock + 12 * HOUR)
            above.append(stamp > before or answered)
            if answered:
                stamps.answered()
        for pair in itertools.pairwise(above):
            self.assertIn(True, pair)
