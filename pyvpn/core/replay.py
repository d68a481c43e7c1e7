"""Which counters of a session have been seen: the answer to a replayed datagram.

The rule is the sliding window of RFC 6479 and PROTOCOL 7: a counter is good once, and only while
it is less than ``SIZE`` behind the highest one seen. Ask only *after* the tag has verified, or a
forgery moves the window.
"""

from __future__ import annotations

from typing import Final

_SIZE: Final = 8192
_MASK: Final = _SIZE - 1
_LEAST: Final = 64
_NEVER: Final = 1 << 64


class ReplayWindow:
    """The receiving side's memory of one session's counters (0 … 2^64 - 1).

    ``highest`` is the highest counter accepted so far, -1 before the first.
    """

    SIZE: Final = _SIZE
    """Counters remembered, the highest included. 8,192 is what WireGuard on Linux keeps: at
    100,000 datagrams a second it forgives a packet that is 80 ms late.
    """

    __slots__ = ("_room", "_seen", "highest")

    highest: int

    # One byte per counter in a ring indexed by the counter's low bits, 8 KiB once a session has
    # had that many; before that it grows by doubling, since most of 10,000 sessions are idle.
    # Nanoseconds per accept(), in order / shuffled in 64s / every second one lost (Python 3.11):
    #   this ring                          68 / 128 / 231
    #   one 8,192-bit int                 353 / 186 / 362   each step copies 1 KiB
    #   129 words of 64 bits              173 / 197 / 185
    #   a list of the counters themselves  70 /  81 /  70   but 320 KiB a session
    # accept_run() of 44 counters takes 310, a tenth of 44 times accept().

    def __init__(self) -> None:
        self.highest = -1
        self._seen = bytearray(_LEAST)
        # The first counter that the ring is too short for; none once it has its full size.
        self._room = _LEAST

    def accept(self, counter: int) -> bool:
        """Mark ``counter`` and return True, once; return False for a duplicate and for one too old
        to know.
        """
        highest = self.highest
        if counter > highest:
            if counter >= self._room:
                self._grow(counter)
            if counter != highest + 1:
                self._forget(highest + 1, counter)
            self.highest = counter
        elif counter <= highest - _SIZE or self._seen[counter & _MASK]:
            return False
        self._seen[counter & _MASK] = 1
        return True

    def accept_run(self, first: int, count: int) -> bool:
        """Mark ``count`` (at least 1) counters from ``first`` on, if all are above the highest
        seen.

        Returns False and changes nothing otherwise: then the caller asks for each by itself
        (PROTOCOL 7).
        """
        highest = self.highest
        if first <= highest or count < 1:
            return False
        if first + count > self._room:
            self._grow(first + count - 1)
        if first != highest + 1:
            self._forget(highest + 1, first)
        if count > _SIZE:
            first, count = first + count - _SIZE, _SIZE
        seen = self._seen
        start = first & _MASK
        stop = start + count
        if stop <= _SIZE:
            seen[start:stop] = b"\x01" * count
        else:
            seen[start:] = b"\x01" * (_SIZE - start)
            seen[: stop - _SIZE] = b"\x01" * (stop - _SIZE)
        self.highest = first + count - 1
        return True

    def _grow(self, counter: int) -> None:
        """Make the ring long enough for a counter: no counter has wrapped around in it yet."""
        size = len(self._seen)
        while size <= counter and size < _SIZE:
            size *= 2
        self._seen.extend(bytes(size - len(self._seen)))
        self._room = size if size < _SIZE else _NEVER

    def _forget(self, first: int, stop: int) -> None:
        """Clear the places of the counters ``first`` … ``stop - 1``: skipped, so they may still
        come late.
        """
        seen = self._seen
        if stop - first >= _SIZE:
            seen[:] = bytes(_SIZE)
            return
        start = first & _MASK
        end = stop & _MASK
        if start <= end:
            seen[start:end] = bytes(end - start)
        else:
            seen[start:] = bytes(_SIZE - start)
            seen[:end] = bytes(end)
