"""Whether to look for more after a read that brought little: mostly there is nothing."""

from __future__ import annotations

#: Turns that go without looking after it found nothing: doubles up to this while it keeps finding
#: nothing, so a burst of small ones is noticed after at most so many turns of one read each.
MOST_TURNS = 16


class LoneReads:
    """For one descriptor, how many turns in a row shall be of one read.

    After a ping or a keystroke a second read finds nothing, and that takes 2-5 us of a hop of about
    60 (docs/architecture.rst). So it is left out for as long as it was in vain.
    """

    __slots__ = ("_left", "_streak")

    def __init__(self) -> None:
        self._left = self._streak = 0

    def enough(self) -> bool:
        """Tell whether the turn shall end with the small read that it began with."""
        if not self._left:
            return False
        self._left -= 1
        return True

    def drained(self, reads: int) -> None:
        """Note that nothing was left after so many reads."""
        self._streak = min(2 * self._streak + 1, MOST_TURNS) if reads == 1 else 0
        self._left = self._streak
