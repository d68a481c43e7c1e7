"""Token buckets, one or many: how often something may happen, with a bound on what is remembered.

A bucket is kept as one number, the time at which it will be full again: it is full when that is
past, and empty when it is ``burst`` tokens away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Generic, TypeVar

#: Keys that a table of buckets remembers; the one that was not used for longest goes first
#: (docs/protocol.rst, "Limits"). An entry takes about 200 bytes.
TABLE_BOUND = 65_536

# What sums of many floats may be off by, in seconds.
_ROUNDING = 1e-4

K = TypeVar("K", bound=Hashable)


class TokenBuckets(Generic[K]):
    """Buckets of one kind, one for each key; every key begins with a full one.

    :param rate: tokens that come back in a second.
    :param burst: tokens in a full bucket.
    :param counters: where keys count that were forgotten although their buckets were not full.
    """

    __slots__ = ("_depth", "_full_at", "_interval", "counters")

    def __init__(self, rate: float, burst: int, counters: defaultdict[str, int]) -> None:
        self._interval = 1 / rate
        self._depth = burst / rate + _ROUNDING
        self._full_at: dict[K, float] = {}
        self.counters = counters

    def __len__(self) -> int:
        return len(self._full_at)

    def available(self, key: K, now: float) -> bool:
        """Tell whether there is a token, and leave it."""
        return max(self._full_at.get(key, now), now) + self._interval - now <= self._depth

    def take(self, key: K, now: float) -> bool:
        """Take a token if there is one; an attempt in vain costs nothing."""
        full_at = max(self._full_at.pop(key, now), now) + self._interval
        taken = full_at - now <= self._depth
        # Put back at the end: the order is that of use.
        self._full_at[key] = full_at if taken else full_at - self._interval
        if len(self._full_at) > TABLE_BOUND:
            oldest = next(iter(self._full_at))
            if self._full_at.pop(oldest) > now:
                self.counters["limiter_evicted"] += 1
        return taken

    def refund(self, key: K) -> None:
        """Give a token back."""
        if key in self._full_at:
            self._full_at[key] -= self._interval

    def forget(self, key: K) -> None:
        """Let a key begin anew with a full bucket."""
        self._full_at.pop(key, None)


class TokenBucket:
    """One bucket."""

    __slots__ = ("_buckets",)

    def __init__(self, rate: float, burst: int) -> None:
        self._buckets: TokenBuckets[None] = TokenBuckets(rate, burst, defaultdict(int))

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        return self._buckets.take(None, now)
