"""Each handshake message of stock peers, spoilt in every way: one count, silence, nothing moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.cookies import open_cookie_reply
from pyvpn.core.events import WireGuardConnected
from pyvpn.testing.simulation import Endpoint
from tests.core import badwireguard
from tests.core.badwireguard import (
    Make,
    Row,
    StockCase,
    cookie,
    crafted_cookie,
    crafted_initiation,
    holdings,
    initiation,
    remade,
    response,
    spoilt,
)
from tests.core.wireguardpaper import HASH, macs


def more(counters: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """What has been counted since."""
    return {
        reason: number - before.get(reason, 0)
        for reason, number in counters.items()
        if number != before.get(reason, 0)
    }


class Walk(SynchronousTestCase):
    def drop(
        self,
        row: Row,
        case: StockCase,
        *,
        answers: list[int] | None = None,
        source: Endpoint | None = None,
    ) -> None:
        """Give a row to a hub, which drops it, but for ``answers`` of these sizes."""
        payload = row.make(case)
        case.simulation.advance(0.1)  # what the making of it has sent
        case.mark()
        before, counters = holdings(case), dict(case.hub.core.counters)
        case.give(payload, source)
        self.assertEqual(more(case.hub.core.counters, counters), {row.reason: 1}, row.fault)
        sent = [len(datagram.payload) for datagram in case.sent()]
        self.assertEqual(sent, answers or [], row.fault)
        case.mark()
        self.assertEqual(holdings(case), before, row.fault)

    def walk(self, rows: Iterable[Row], *, least: int) -> None:
        """Give each row to a fresh hub; ``least`` is how many rows there are at the least."""
        count = 0
        for row in rows:
            count += 1
            case = StockCase()
            if row.fault == "the second within 20 ms":
                case.simulation.advance = lambda seconds: None  # type: ignore[method-assign]
            self.drop(row, case)
            case.simulation.__dict__.pop("advance", None)
            self.assertTrue(case.all_works(), row.fault)
        self.assertGreaterEqual(count, least)

    def taken(self, make: Make) -> StockCase:
        """The control: this one is dropped for no reason at all."""
        case = StockCase()
        payload = make(case)
        case.mark()
        before = dict(case.hub.core.counters)
        case.give(payload)
        self.assertEqual(more(case.hub.core.counters, before), {})
        return case


class Messages(Walk):
    def test_initiation(self) -> None:
        """A message 1 that is malformed, forged, old or a stranger's draws nothing."""
        self.walk(badwireguard.initiations(), least=60)

    def test_good_initiations(self) -> None:
        """The control: the right one, to the very bounds, draws one answer of 92 bytes."""
        a_century = 100 * 365 * 86_400 * 10**9
        stamps: list[Callable[[StockCase], Any]] = [
            badwireguard._from_last(1),
            lambda case: badwireguard.stamp(case, a_century),
            lambda case: b"\xff" * 12,
        ]
        for make in (
            initiation,
            remade(initiation, 0, b"\1"),
            remade(initiation, 4),  # its own index is the sender's affair
            spoilt(initiation, 147),  # nobody asked for a mac2
            *[crafted_initiation(timestamp=stamp) for stamp in stamps],
        ):
            case = self.taken(make)
            self.assertEqual([len(datagram.payload) for datagram in case.sent()], [92])
            self.assertTrue(case.all_works())

    def test_response(self) -> None:
        """A message 2 that is not the peer's answer to the last message 1 makes no session."""
        self.walk(badwireguard.responses(), least=55)

    def test_good_responses(self) -> None:
        """The control: the right one makes a session, on which the hub speaks at once."""
        for make in (response, remade(response, 0, b"\2"), spoilt(response, 91)):
            case = self.taken(make)
            self.assertEqual([len(datagram.payload) for datagram in case.sent()], [32])
            session = case.stock.current
            assert session is not None
            self.assertEqual(session.remote_index, 78)
            self.assertEqual(case.hub.told(WireGuardConnected)[-1].new, False)

    def test_the_right_one_after_a_spoilt_one(self) -> None:
        """A spoilt message 2 spoils nothing: the right answer still works, and once only."""
        for place in (4, 8, 12, 44, 59):
            case = StockCase()
            right = response(case)
            if place != 4:  # the sender's index has no tag: whoever changes it can also drop it
                case.give(remade(lambda case, right=right: right, place)(case))  # type: ignore[misc]
            case.mark()
            case.give(right)
            self.assertEqual([datagram.kind for datagram in case.sent()], [4], place)
            before = dict(case.hub.core.counters)
            case.give(right)
            self.assertEqual(
                more(case.hub.core.counters, before), {"response_unexpected": 1}, place
            )

    def test_cookie(self) -> None:
        """A message 3 that is not the peer's answer to our last message leaves no cookie."""
        self.walk(badwireguard.cookies(), least=35)

    def test_good_cookies(self) -> None:
        """The control: the right one is kept, sends nothing, and makes the next mac2."""
        case = self.taken(cookie)
        self.assertEqual(case.sent(), [])
        assert case.stock.cookie is not None
        self.assertEqual(case.stock.cookie.value, bytes(range(16)))
        self.assertNotEqual(case.initiate()[-16:], bytes(16))

    def test_cookie_for_a_response(self) -> None:
        """One that answers our message 2, and names its index, is taken as well."""

        def index(case: StockCase) -> int:
            assert case.stock.next is not None
            return case.stock.next.local_index

        def last_sent(case: StockCase) -> bytes:
            case.give(initiation(case))
            return case.sent()[-1].payload

        make = crafted_cookie(bound_to=last_sent, receiver=index)
        case = self.taken(make)
        self.assertIsNotNone(case.stock.cookie)


class Bounds(Walk):
    def test_no_source_port(self) -> None:
        """Messages 1 and 2 from port 0 cannot be answered, so they are not read."""
        for make in (initiation, response):
            case = StockCase()
            source = case.phone.endpoint._replace(port=0)
            self.drop(Row("port 0", make, "datagram_source_port"), case, source=source)
            self.assertTrue(case.all_works())

    def test_nobody(self) -> None:
        """Without a key, or without a peer, nothing is read, however right it was before."""
        for make in (initiation, response, cookie):
            case = StockCase()
            message = make(case)
            case.wireguard.set_private_key(None, case.now)
            case.hub.drain()
            self.drop(Row("no key", lambda case, m=message: m, "wireguard_no_peers"), case)  # type: ignore[misc]
            case = StockCase()
            message = make(case)
            for public in list(case.wireguard.peers):
                case.wireguard.remove(public, case.now)
            case.hub.drain()
            self.drop(Row("no peer", lambda case, m=message: m, "wireguard_no_peers"), case)  # type: ignore[misc]

    def test_another_key(self) -> None:
        """Whoever has a new key is nobody to messages for the old one, and waits for no answer."""
        for make, reason in (
            (initiation, "mac1_invalid"),
            (response, "mac1_invalid"),
            (cookie, "response_unexpected"),
        ):
            case = StockCase()
            message = make(case)
            case.wireguard.set_private_key(badwireguard.OTHER, case.now)
            case.hub.drain()
            self.drop(Row("another key", lambda case, m=message: m, reason), case)  # type: ignore[misc]
            self.assertEqual(case.wireguard._pending, {})
            self.assertIsNone(case.stock.current)

    def test_20_ms(self) -> None:
        """The control of the rate: 20 ms after the one before, an initiation is answered."""
        case = StockCase()
        case.give(initiation(case))
        case.simulation.advance(0.0201)
        case.mark()
        case.give(crafted_initiation(timestamp=lambda c: badwireguard.stamp(c, 2 * 10**9))(case))
        self.assertEqual([datagram.kind for datagram in case.sent()], [2])

    def test_an_old_stamp_does_not_hide_behind_the_rate(self) -> None:
        """A replay within 20 ms counts as a replay, and never postpones the next right one."""
        case = StockCase()
        message = initiation(case)
        case.give(message)
        case.simulation.advance(0.019)
        before = dict(case.hub.core.counters)
        case.give(message)
        self.assertEqual(more(case.hub.core.counters, before), {"wireguard_stamp_replayed": 1})
        case.simulation.advance(0.0011)
        case.mark()
        case.give(crafted_initiation(timestamp=lambda c: badwireguard.stamp(c, 2 * 10**9))(case))
        self.assertEqual([datagram.kind for datagram in case.sent()], [2])

    def test_under_load(self) -> None:
        """Messages 1 and 2 without the mac2 of their place get 64 bytes; with it they are read."""
        for make, mac2, index in ((initiation, 132, 77), (response, 76, 78)):
            for spoil in (None, mac2, mac2 + 15):
                case = StockCase()
                overloaded = make if spoil is None else spoilt(make, spoil)
                case.hub.core._admission.overloaded(case.now + 5)
                row = Row("load", overloaded, "cookie_demanded")
                self.drop(row, case, answers=[64])
            case = StockCase()
            message = make(case)
            case.hub.core._admission.overloaded(case.now)
            case.mark()
            case.give(message)
            (reply,) = case.sent()
            public = case.key.public
            value = open_cookie_reply(
                reply.payload, HASH(b"cookie--" + public), index, message, b"\3\0\0\0"
            )
            right = macs(message[:-32], public, value)
            elsewhere = case.phone.endpoint._replace(port=1)
            case.give(right, elsewhere)
            self.assertEqual([datagram.kind for datagram in case.sent()], [3, 3])
            case.give(right)
            self.assertEqual([d.kind for d in case.sent()[2:]], [2 if index == 77 else 4])

    def test_a_planted_answer_is_noticed(self) -> None:
        """Control: the walk sees a hub that answers what it dropped, and one that moves."""

        def answering(case: StockCase) -> bytes:
            core = case.hub.core
            received = core._handshake_received

            def dropping(message: bytes, endpoint: Any, now: float) -> None:
                case.wireguard._send_message(case.stock, message, endpoint)
                received(message, endpoint, now)

            core._handshake_received = dropping  # type: ignore[method-assign]
            return b"\1"

        row = Row("planted", answering, "datagram_length")
        self.assertRaises(AssertionError, self.drop, row, StockCase())

        def moving(case: StockCase) -> bytes:
            core = case.hub.core
            received = core._handshake_received

            def dropping(message: bytes, endpoint: Any, now: float) -> None:
                case.stock.stamp_seen = b"\xff"
                received(message, endpoint, now)

            core._handshake_received = dropping  # type: ignore[method-assign]
            return b"\1"

        row = Row("planted", moving, "datagram_length")
        self.assertRaises(AssertionError, self.drop, row, StockCase())
