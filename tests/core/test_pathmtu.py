"""The search for a path's MTU (RFC 8899) against a path that is nothing but a number."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.pathmtu import PathMTU
from pyvpn.testing.simulation import Endpoint, ip_address

# Retyped from RFC 8899 and docs/protocol.rst, "Path MTU".
BASE = 1280
PRECISION = 8
CONFIRM_TIME = 5.0
RAISE_TIME = 600.0
ANSWERS_A_SECOND = 5
NEVER: Final = float("inf")

V4 = Endpoint(ip_address("203.0.113.7"), 5050)
V6 = Endpoint(ip_address("2001:db8::7"), 5050)
ELSEWHERE = Endpoint(ip_address("203.0.113.8"), 5050)
#: Outer IP and UDP header, and the transport's 32 bytes.
OUTER = {V4: 28 + 32, V6: 48 + 32}
PREFIX = 4


class Path:
    """A search on a path that passes packets of up to ``width`` bytes, ``delay`` seconds there and
    back; ``lost`` says of each datagram whether it is lost, there or back.

    :ivar sent: when probes left, and the size of each as a packet.
    """

    def __init__(
        self,
        width: int,
        *,
        endpoint: Endpoint = V4,
        inner: int = 8916,
        delay: float = 0.02,
        lost: Callable[[], bool] = lambda: False,
    ) -> None:
        self.width = width
        self.endpoint = endpoint
        self.delay = delay
        self.lost = lost
        self.now = 100.0
        self.sent: list[tuple[float, int]] = []
        self.sends_data = False
        self.mtu = PathMTU()
        self._random = Random(0)
        self._under_way: list[tuple[float, bytes]] = []
        self.mtu.begin(endpoint, inner, self.now)
        self.limit = inner + PREFIX + OUTER[endpoint]

    @property
    def fits(self) -> int:
        """The largest packet that both passes and is wanted."""
        return min(self.width, self.limit)

    def advance(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass, large datagrams flow if they do; return how much was needed."""
        start, end = self.now, self.now + seconds
        while not until():
            ask = self.mtu.ask_after if self.sends_data else NEVER
            arrivals = [when for when, _ in self._under_way]
            when = max(self.now, min([self.mtu.due, ask, *arrivals]))
            if when > end:
                self.now = end
                break
            self.now = when
            self._step()
        return self.now - start

    def _step(self) -> None:
        if self.sends_data and self.now >= self.mtu.ask_after:
            self.mtu.used(self.now)
        for when, data in list(self._under_way):
            if when <= self.now:
                self._under_way.remove((when, data))
                self.mtu.answered(data, self.endpoint, self.now)
        due = self.mtu.due
        for plaintext in self.mtu.due_probes(self.now):
            data = self._random.randbytes(16)
            size = plaintext + OUTER[self.endpoint]
            self.mtu.asked(data, plaintext, self.now)
            self.sent.append((self.now, size))
            if size <= self.width and not self.lost():
                self._under_way.append((self.now + self.delay, data))
        assert due > self.now or self.mtu.due > self.now, "it would be called again at once"

    def settle(self, limit: float = 60.0) -> float:
        """Let it find out; return how long that took."""
        took = self.advance(limit, lambda: not self.mtu.searching and self.mtu.due == NEVER)
        assert not self.mtu.searching, f"nothing found within {limit} s"
        return took

    def good(self) -> bool:
        """Whether what is found passes, and no more than the precision is missing."""
        return self.fits - PRECISION < self.mtu.packet_size <= self.fits


class Searching(SynchronousTestCase):
    def test_usual(self) -> None:
        """The MTUs of usual links are found exactly, and most in two seconds."""
        for width, most in (
            *((1280, 2), (1400, 3), (1420, 4), (1450, 3), (1480, 4), (1492, 4)),
            *((1500, 2.1), (4352, 3), (9000, 0.1)),
        ):
            for endpoint in (V4, V6):
                path = Path(width, endpoint=endpoint)
                took = path.settle()
                self.assertEqual(path.mtu.packet_size, path.fits, width)
                self.assertLess(took, most, width)

    def test_inner(self) -> None:
        """What is left inside is the packet without outer headers, transport and prefix, and never
        more than was agreed.
        """
        for endpoint, agreed, inner in (
            *((V4, 8916, 1436), (V6, 8916, 1416), (V6, 1416, 1416), (V4, 1416, 1416)),
            *((V4, 1280, 1280), (V6, 1280, 1280)),
        ):
            path = Path(1500, endpoint=endpoint, inner=agreed)
            self.assertEqual(path.mtu.inner, BASE - OUTER[endpoint] - PREFIX)
            path.settle()
            self.assertEqual(path.mtu.inner, inner)

    @given(
        st.integers(1280, 9100),
        st.integers(1280, 8916),
        st.sampled_from((V4, V6)),
        st.sampled_from((0.001, 0.02, 0.3, 0.7)),
        st.lists(st.booleans(), max_size=40),
    )
    @settings(deadline=None, max_examples=150)
    def test_any(
        self, width: int, inner: int, endpoint: Endpoint, delay: float, losses: list[bool]
    ) -> None:
        """On any path, whatever is lost at first, the MTU is found to 8 bytes, and never exceeded;
        no second sees more probes than are answered.
        """
        fates = iter(losses)
        path = Path(
            width, endpoint=endpoint, inner=inner, delay=delay, lost=lambda: next(fates, False)
        )
        path.sends_data = True
        while next(fates, None) is not None or path.mtu.searching:
            path.advance(1.0)
            self.assertLessEqual(path.mtu.packet_size, path.fits)
            self.assertLess(path.now, 1000)
        path.advance(RAISE_TIME + 60)  # What was lost may have cost the first search its best.
        self.assertTrue(path.good(), (path.mtu.packet_size, path.fits))
        times = [when for when, _ in path.sent]
        for first, later in zip(times, times[ANSWERS_A_SECOND:], strict=False):
            self.assertGreaterEqual(later - first, 1.0 - 1e-9)

    def test_loss(self) -> None:
        """With 5 % loss it takes no more than a few seconds longer, and is hardly ever wrong."""
        right = 0
        for seed in range(200):
            random = Random(seed)
            path = Path(1500, lost=lambda r=random: r.random() < 0.1)  # type: ignore[misc]
            self.assertLess(path.settle(), 6)
            self.assertLess(len(path.sent), 30)
            right += path.good()
        self.assertGreater(right, 190)

    def test_idle(self) -> None:
        """An idle peer is asked no more once its MTU is found."""
        path = Path(1500)
        path.settle()
        count = len(path.sent)
        path.advance(10_000)
        self.assertEqual(len(path.sent), count)
        path.sends_data = True
        path.advance(10)
        self.assertGreater(len(path.sent), count)  # control

    def test_no_answers(self) -> None:
        """While nobody answers nothing counts as found, and the next large datagram asks anew."""
        path = Path(0)
        path.sends_data = True
        path.advance(100)
        self.assertTrue(path.mtu.searching)
        self.assertEqual(path.mtu.packet_size, BASE)
        path.width = 1500
        path.advance(12)
        self.assertFalse(path.mtu.searching)
        self.assertEqual(path.mtu.packet_size, 1500)


class Later(SynchronousTestCase):
    def test_confirmed(self) -> None:
        """While large datagrams flow, one probe in 5 s asks whether they pass."""
        path = Path(1500)
        path.settle()
        path.sends_data = True
        count = len(path.sent)
        path.advance(100)
        self.assertTrue(18 <= len(path.sent) - count <= 20, len(path.sent) - count)
        self.assertEqual({size for _, size in path.sent[count:]}, {1500})

    @given(st.integers(1280, 1499), st.floats(0, 20))
    @settings(deadline=None, max_examples=50)
    def test_shrinks(self, width: int, when: float) -> None:
        """A path that has become narrow is noticed 6 s after at the latest: until more is known
        everything counts as uncertain.
        """
        path = Path(1500)
        path.sends_data = True
        path.settle()
        path.advance(when)
        path.width = width
        took = path.advance(60, lambda: path.mtu.packet_size <= width)
        self.assertLessEqual(took, CONFIRM_TIME + 3 * 0.25 + 2 * path.delay)
        self.assertTrue(path.mtu.searching)
        path.settle()
        self.assertTrue(path.good())

    def test_grows(self) -> None:
        """A path that has become wide is noticed within 10 minutes, and nothing is uncertain while
        more is tried.
        """
        for width in (9000, 1500):
            path = Path(1280)
            path.sends_data = True
            path.settle()
            path.width = width
            took = path.advance(700, lambda p=path: p.mtu.searching or p.good())  # type: ignore[misc]
            self.assertFalse(path.mtu.searching)
            self.assertTrue(path.good())
            self.assertLess(took, RAISE_TIME + 3)

    def test_doubt(self) -> None:
        """When the machine's network has changed, the present size is asked, and then more."""
        path = Path(1420)
        path.settle()
        path.width = 1500
        path.mtu.doubt(path.now)
        path.advance(10)
        self.assertEqual(path.mtu.packet_size, 1500)

    def test_moved(self) -> None:
        """What is known is about one endpoint and one agreement; for another all begins anew."""
        path = Path(1500)
        path.settle()
        self.assertFalse(path.mtu.moved(V4, 8916))
        self.assertTrue(path.mtu.moved(V4, 1416))
        self.assertTrue(path.mtu.moved(ELSEWHERE, 8916))
        path.mtu.begin(ELSEWHERE, 8916, path.now)
        self.assertTrue(path.mtu.searching)
        self.assertEqual(path.mtu.packet_size, BASE)

    def test_answers_that_do_not_count(self) -> None:
        """What nobody asked, comes twice, too late, or from elsewhere, proves nothing."""
        path = Path(0)
        mtu, now = path.mtu, path.now
        self.assertFalse(mtu.answered(bytes(16), V4, now))
        mtu.asked(b"a" * 16, 1440, now)
        self.assertFalse(mtu.answered(b"a" * 16, ELSEWHERE, now))
        self.assertFalse(mtu.answered(b"a" * 16, V4, now + 5))
        self.assertEqual(mtu.packet_size, BASE)
        self.assertTrue(mtu.answered(b"a" * 16, V4, now + 4.9))  # control
        self.assertEqual(mtu.packet_size, 1500)
        self.assertFalse(mtu.answered(b"a" * 16, V4, now + 4.9))

    def test_stopped(self) -> None:
        """Without a session nothing is asked, whatever is sent."""
        path = Path(1500)
        path.mtu.stop()
        path.sends_data = True
        path.advance(1000)
        self.assertEqual(path.sent, [])
