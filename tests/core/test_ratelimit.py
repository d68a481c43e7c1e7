"""Token buckets against a naive model, and the bound of their table."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import ratelimit
from pyvpn.core.ratelimit import TokenBucket, TokenBuckets


class Model:
    """A bucket as one would draw it: a number of tokens that grows, in exact arithmetic."""

    def __init__(self, rate: Fraction, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.tokens, self.then = Fraction(burst), Fraction(0)

    def take(self, now: Fraction) -> bool:
        self.tokens = min(self.tokens + (now - self.then) * self.rate, Fraction(self.burst))
        self.then = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def refund(self) -> None:
        self.tokens = min(self.tokens + 1, Fraction(self.burst))


def buckets(rate: float, burst: int) -> TokenBuckets[object]:
    return TokenBuckets(rate, burst, defaultdict(int))


class OneBucket(SynchronousTestCase):
    @given(
        st.sampled_from([(Fraction(1), 5), (Fraction(20), 5), (Fraction(1, 60), 10)]),
        st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60),
    )
    @settings(deadline=None)
    def test_model(self, kind: tuple[Fraction, int], steps: list[tuple[bool, int]]) -> None:
        """Under any schedule of takes and refunds a bucket gives what the naive one gives."""
        rate, burst = kind
        model, real = Model(rate, burst), buckets(float(rate), burst)
        now = Fraction(0)
        for refund, wait in steps:
            now += Fraction(wait, 8)
            if refund:
                model.take(now)
                real.take("key", float(now))
                model.refund()
                real.refund("key")
            available = real.available("key", float(now))
            self.assertEqual(real.take("key", float(now)), available)
            self.assertEqual(model.take(now), available)

    def test_burst_then_rate(self) -> None:
        """20 a second with a burst of 5: five at once, then one each 50 ms, not sooner."""
        bucket = TokenBucket(20, 5)
        self.assertEqual([bucket.take(7.0) for _ in range(6)], [True] * 5 + [False])
        self.assertFalse(bucket.take(7.049))
        self.assertTrue(bucket.take(7.051))
        self.assertFalse(bucket.take(7.051))

    def test_in_vain_costs_nothing(self) -> None:
        """Whoever knocks all the time is let in as often as one who waits."""
        bucket = TokenBucket(1, 5)
        taken = sum(bucket.take(0.01 * number) for number in range(1001))
        self.assertEqual(taken, 15)

    def test_at_a_large_uptime(self) -> None:
        """After ten years of uptime rounding takes no token away and gives none."""
        bucket, start = TokenBucket(20, 5), 10 * 365 * 86_400.0
        taken = sum(bucket.take(start + number / 20) for number in range(1000))
        self.assertEqual(taken, 1000)
        self.assertEqual(sum(bucket.take(start + 50) for _ in range(9)), 5)


class Table(SynchronousTestCase):
    def test_keys_do_not_share(self) -> None:
        """One key's empty bucket is another's full one."""
        table = buckets(1, 1)
        self.assertTrue(table.take("a", 0.0))
        self.assertFalse(table.take("a", 0.0))
        self.assertTrue(table.take("b", 0.0))

    def test_forget(self) -> None:
        """A forgotten key begins anew; a refund for it, or for one never seen, is nothing."""
        table = buckets(1, 1)
        table.take("a", 0.0)
        table.forget("a")
        self.assertTrue(table.take("a", 0.0))
        table.forget("a")
        table.refund("a")
        self.assertEqual(len(table), 0)

    def test_bound(self) -> None:
        """PROTOCOL 8: at most 65,536 keys, the longest unused goes first, and that is counted."""
        counters: defaultdict[str, int] = defaultdict(int)
        table: TokenBuckets[int] = TokenBuckets(1, 1, counters)
        self.assertEqual(ratelimit.TABLE_BOUND, 65_536)
        for number in range(65_536):
            table.take(number, 0.0)
        table.take(0, 0.1)  # in vain, but now 1 is the oldest
        self.assertEqual(dict(counters), {})
        table.take(65_536, 0.1)
        self.assertEqual(len(table), 65_536)
        self.assertEqual(dict(counters), {"limiter_evicted": 1})
        self.assertFalse(table.take(0, 0.1))
        self.assertTrue(table.take(1, 0.1))

    def test_full_ones_go_uncounted(self) -> None:
        """To forget a bucket that is full again takes nothing from anybody: no count."""
        self.patch(ratelimit, "TABLE_BOUND", 1)
        counters: defaultdict[str, int] = defaultdict(int)
        table: TokenBuckets[int] = TokenBuckets(1, 1, counters)
        table.take(1, 0.0)
        table.take(2, 2.0)
        self.assertEqual(dict(counters), {})
        table.take(3, 2.5)
        self.assertEqual(dict(counters), {"limiter_evicted": 1})
