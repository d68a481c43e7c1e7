"""Looking for peers: when names are looked up, which address is tried, who is told."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.service.resolver import Place, Resolved
from pyvpn.service.search import FIRST_WAIT, LAST_WAIT, Search

KEY, OTHER = b"a" * 32, b"b" * 32
NAME = ("vpn.example.org", 51820)
FOUND = [("192.0.2.1", 51820), ("2001:db8::1", 51820)]


class Timer:
    """A timer on the test's clock."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.armed: float | None = None

    def arm(self, when: float | None) -> None:
        self.armed = when

    def close(self) -> None:
        self.armed = None


class SearchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1000.0
        self.answers: list[Resolved | Deferred[Resolved]] = []
        self.asked: list[tuple[float, Place]] = []
        self.tried: list[tuple[float, bytes, Place]] = []
        self.told: list[tuple[float, bytes, Place]] = []

    def search(self, wanted: dict[bytes, Place] | None = None) -> Search:
        def make_timer(callback: Callable[[], None]) -> Timer:
            self.timer = Timer(callback)
            return self.timer

        search = Search(
            {KEY: NAME} if wanted is None else wanted,
            self.resolve,
            attempt=lambda key, place: self.tried.append((self.now, key, place)),
            in_vain=lambda key, place: self.told.append((self.now, key, place)),
            clock=lambda: self.now,
            timer_factory=make_timer,
        )
        search.start()
        return search

    def resolve(self, servers: list[Place]) -> Deferred[Resolved]:
        (server,) = servers
        self.asked.append((self.now, server))
        answer = self.answers.pop(0) if self.answers else Resolved(FOUND, [])
        return answer if isinstance(answer, Deferred) else succeed(answer)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timer.armed is not None and self.timer.armed <= end:
            self.now = max(self.now, self.timer.armed)
            self.timer.armed = None
            self.timer.callback()
        self.now = end

    def test_tries(self) -> None:
        """It tries at once, then after waits that double up to a bound, one address after the
        other; people are told once, after 15 s."""
        self.search()
        self.pass_time(1500)
        waits = [5, 10, 20, 40, 80, 160, 300, 300, 300]
        times = [1000 + sum(waits[:n]) for n in range(len(waits) + 1)]
        times = [time for time in times if time <= 2500]
        self.assertEqual([time for time, _, _ in self.tried], times)
        self.assertEqual([time for time, _ in self.asked], times)
        places = [place for _, _, place in self.tried]
        self.assertEqual(places, (FOUND * len(places))[: len(places)])
        self.assertEqual(self.told, [(1015.0, KEY, FOUND[0])])
        self.assertEqual((FIRST_WAIT, LAST_WAIT), (5, 300))

    def test_answer(self) -> None:
        """While a peer answers it rests; once it is lost the search begins anew, and people are
        told anew."""
        search = self.search()
        self.pass_time(7)
        search.answered(KEY)
        self.pass_time(10_000)
        self.assertEqual(len(self.tried), 2)
        search.lost(KEY)
        self.pass_time(0)
        self.assertEqual(self.tried[2:], [(11_007.0, KEY, FOUND[0])])
        self.pass_time(15)
        self.assertEqual([time for time, _, _ in self.tried[3:]], [11_012.0, 11_022.0])
        self.assertEqual(self.told, [(11_022.0, KEY, FOUND[0])])
        search.lost(KEY)  # is looked for already: no further try
        self.assertEqual(len(self.tried), 5)

    def test_no_address(self) -> None:
        """A name without an address is looked up again, and nothing is tried meanwhile."""
        self.answers = [Resolved([], ["cannot resolve vpn.example.org: nobody knows"])] * 2
        self.search()
        self.pass_time(14)
        self.assertEqual(self.tried, [])
        self.pass_time(1)
        self.assertEqual(self.tried, [(1015.0, KEY, FOUND[0])])
        self.assertEqual(self.told, [])

    def test_slow_resolver(self) -> None:
        """One name is looked up once at a time, and its answer counts no more when the peer has
        been heard of meanwhile, or the search is over."""
        slow: Deferred[Resolved] = Deferred()
        self.answers = [slow]
        search = self.search()
        self.pass_time(100)
        self.assertEqual(len(self.asked), 1)
        search.answered(KEY)
        slow.callback(Resolved(FOUND, []))
        self.assertEqual(self.tried, [])
        search.lost(KEY)
        self.answers = [Deferred()]
        last = self.answers[0]
        self.pass_time(0)
        search.close()
        assert isinstance(last, Deferred)
        last.callback(Resolved(FOUND, []))
        self.assertEqual((self.tried, self.timer.armed), ([], None))
        search.close()

    def test_hurry(self) -> None:
        """A change of the network shortens the wait, but no two tries are closer than 5 s."""
        search = self.search()
        self.pass_time(155)  # the next would be 160 s later
        count = len(self.tried)
        self.pass_time(2)
        search.hurry()
        search.hurry()
        self.pass_time(2.9)
        self.assertEqual(len(self.tried), count)
        self.pass_time(0.1)
        self.assertEqual(len(self.tried), count + 1)
        self.pass_time(5)
        self.assertEqual(len(self.tried), count + 2)
        search.answered(KEY)
        search.hurry()
        self.assertIsNone(self.timer.armed)

    def test_hurry_while_looking_up(self) -> None:
        """A name that is looked up while the network changes is asked for anew after 5 s; that
        the network of before has no address for it counts no more. One that is found by then is
        not asked for."""
        before: Deferred[Resolved] = Deferred()
        self.answers = [before]
        search = self.search()
        self.pass_time(2)
        search.hurry()
        self.pass_time(2.9)
        self.assertEqual(len(self.asked), 1)
        now: Deferred[Resolved] = Deferred()
        self.answers = [now]
        self.pass_time(0.1)
        self.assertEqual(len(self.asked), 2)
        before.callback(Resolved([], ["cannot resolve it: no network"]))
        self.assertEqual(self.tried, [])
        search.hurry()
        now.callback(Resolved(FOUND, []))
        self.assertEqual([place for _, _, place in self.tried], FOUND[:1])
        self.pass_time(4.9)
        self.assertEqual(len(self.asked), 2)

    def test_slow_and_hurried(self) -> None:
        """An address is used however long it took, also where the network changes all the time."""
        slow: list[Resolved | Deferred[Resolved]] = [Deferred(), Deferred(), Deferred()]
        self.answers = list(slow)
        search = self.search()
        for _ in range(4):
            self.pass_time(3)
            search.hurry()
        self.assertEqual(len(self.asked), 3)
        assert isinstance(slow[0], Deferred)
        slow[0].callback(Resolved(FOUND, []))
        self.assertEqual([place for _, _, place in self.tried], FOUND[:1])

    def test_many(self) -> None:
        """Each peer has its own waits, and strangers do not matter."""
        search = self.search({KEY: NAME, OTHER: ("198.51.100.1", 1)})
        search.answered(KEY)
        search.answered(b"c" * 32)
        search.lost(b"c" * 32)
        self.pass_time(5)
        self.assertEqual([key for _, key, _ in self.tried], [KEY, OTHER, OTHER])
