"""The stamps of a client's logins: always later than before, whatever its clock did meanwhile."""

from __future__ import annotations

from pyvpn.core import tai64n

#: A stamp this far ahead of the clock may be too far ahead of the hub's, which bears a day
#: (docs/protocol.rst, "Login"); the other half of it is for the difference of the two clocks.
DOUBTFUL = 43_200_000_000_000  # ns


class LoginStamps:
    """Chooses stamps, all in Unix nanoseconds.

    Usually there is one choice: later than the clock and than all used before. When the last one
    used is half a day ahead of the clock, one of the two is wrong and nothing here tells which:

    * the clock was set back (a battery died), and the hub wants what is later than the last one;
    * the last one was made by a clock that ran days ahead. The hub refused it for that, and the
      clock is right now.

    Then tries alternate, beginning with what was answered last.

    :ivar last: the highest stamp ever used, 0 for none; it is to be persisted.
    """

    def __init__(self, last: int) -> None:
        self.last = last
        self._answered = 0
        self._given = 0
        self._by_clock = False

    def next(self, clock: int) -> int:
        """Return the stamp of the next try.

        :param clock: the wall clock now.
        """
        # Rounding down takes less than WHITENING: the result is above the last one all the same.
        if self.last <= clock + DOUBTFUL:
            self._by_clock = False
            base = self.last
        else:
            base = self._answered if self._by_clock else self.last
            self._by_clock = not self._by_clock
        self._given = tai64n.whiten(max(clock, base + tai64n.WHITENING))
        self.last = max(self.last, self._given)
        return self._given

    def answered(self) -> None:
        """The hub has taken the last one given: what it was made of is the first choice again."""
        self._answered = self._given
        self._by_clock = self._given < self.last
