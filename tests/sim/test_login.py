"""Logins (PROTOCOL 3) between a real hub and real clients: who gets an answer and who does not."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.events import (
    Connected,
    LoginRequested,
    NoAnswer,
    Refused,
)
from pyvpn.testing.simulation import Simulation, numbered_packet
from tests.sim.rules import (
    ANSWER,
    BACKOFF_MAXIMUM,
    HUB4,
    LOGIN,
    PASSWORD,
    REKEY_ATTEMPT_TIME,
    REKEY_JITTER,
    REKEY_TIMEOUT,
    SILENCE_TIME,
    USER,
    connected,
    cut,
    heal,
    times,
    with_client,
    works_both_ways,
)


class WhoGetsAnAnswer(SynchronousTestCase):
    def bytes_from_hub(self, simulation: Simulation) -> int:
        return sum(
            len(datagram.payload)
            for datagram in simulation.network.captured
            if datagram.source == simulation.hub.endpoint
        )

    def test_wrong_password(self) -> None:
        """A wrong password draws not one byte in an hour; the right one, later, does (control)."""
        simulation = Simulation()
        simulation.add_user(USER, PASSWORD)
        wrong = simulation.add_client(USER, "correct horse")
        wrong.start()
        simulation.advance(3600)
        self.assertEqual(self.bytes_from_hub(simulation), 0)
        self.assertGreater(len(times(simulation.network.captured, 0, LOGIN)), 25)
        self.assertEqual(wrong.core.state, State.CONNECTING)
        self.assertEqual(simulation.hub.events, [])
        right = simulation.add_client(USER, PASSWORD)
        right.start()
        simulation.advance(1)
        self.assertGreater(self.bytes_from_hub(simulation), 116)
        self.assertTrue(works_both_ways(simulation, right))

    def test_unknown_user_and_wrong_token(self) -> None:
        """An unknown name and another network's token draw not one byte either."""
        simulation = Simulation()
        simulation.add_user(USER, PASSWORD)
        stranger = simulation.add_client("mallory", PASSWORD)
        other = Simulation(99)
        foreign = simulation.add_client(USER, PASSWORD)
        foreign.core._keys = other.keys
        stranger.start()
        foreign.start()
        simulation.advance(600)
        self.assertEqual(self.bytes_from_hub(simulation), 0)
        counters = simulation.hub.core.counters
        self.assertGreater(counters["login_wrong"], 10)
        self.assertGreater(counters["mac1_invalid"], 10)

    def test_disabled_user(self) -> None:
        """A disabled user gets BYE 2 in the live session, then silence; enabled, it gets in."""
        simulation, client = connected()
        simulation.hub.disable(USER)
        simulation.advance(1)
        (refused,) = client.told(Refused)
        self.assertEqual(refused.reason, 2)
        self.assertEqual(list(simulation.hub.core.connected_peers()), [])
        before = self.bytes_from_hub(simulation)
        simulation.advance(1000)
        self.assertGreater(simulation.hub.core.counters["login_wrong"], 5)
        self.assertEqual(self.bytes_from_hub(simulation), before)
        simulation.hub.enable(USER, client.static.public)
        simulation.advance(BACKOFF_MAXIMUM + 10)
        self.assertTrue(works_both_ways(simulation, client))

    def test_a_key_that_changed(self) -> None:
        """After a password change the old one is silent, the new one works."""
        simulation, _client = connected()
        simulation.hub.enable(USER, simulation.key_of("another password", USER).public)
        simulation.advance(1)
        before = self.bytes_from_hub(simulation)
        simulation.advance(60)
        self.assertEqual(self.bytes_from_hub(simulation), before)
        new = simulation.add_client(USER, "another password")
        new.start()
        simulation.advance(1)
        self.assertTrue(works_both_ways(simulation, new))

    def test_a_slow_decision(self) -> None:
        """A decision that takes its time (a cluster's) lets the client in when it comes."""
        simulation = Simulation()
        simulation.hub.decides = False
        client = with_client(simulation)
        client.start()
        simulation.advance(3)
        self.assertEqual(len(simulation.hub.told(LoginRequested)), 1)
        self.assertEqual(times(simulation.network.captured, 0, ANSWER), [])
        simulation.hub.decide()
        simulation.advance(1)
        self.assertTrue(works_both_ways(simulation, client))

    @given(st.lists(st.integers(0, 3), max_size=12))
    @settings(deadline=None, max_examples=20)
    def test_decisions_in_any_order(self, waits: list[int]) -> None:
        """Late decisions about many tries, whatever their order, leave one working session."""
        simulation = Simulation()
        simulation.hub.decides = False
        client = with_client(simulation)
        client.start()
        for wait in waits:
            simulation.advance(wait * 2.7)
            if simulation.hub.undecided:
                simulation.hub.undecided.reverse()
                simulation.hub.decide()
        simulation.hub.decides = True
        while simulation.hub.undecided:
            simulation.hub.decide()
        simulation.advance(7)
        self.assertTrue(works_both_ways(simulation, client))


class Tries(SynchronousTestCase):
    def test_every_5_seconds_then_back_off(self) -> None:
        """A fresh 0x50 every 5 s and jitter for 90 s, then back-off times two up to 300 s."""
        simulation = Simulation()
        client = with_client(simulation)
        cut(simulation)
        start = simulation.now
        client.start()
        simulation.advance(2500)
        sent = times(simulation.network.captured, start)
        gaps = [after - before for before, after in itertools.pairwise(sent)]
        self.assertEqual(sent[0], 0)
        early = [gap for at, gap in zip(sent, gaps, strict=False) if at < REKEY_ATTEMPT_TIME]
        late = gaps[len(early) :]
        for gap in early:
            self.assertTrue(REKEY_TIMEOUT <= gap < REKEY_TIMEOUT + REKEY_JITTER, gap)
        self.assertGreater(len({round(gap, 6) for gap in early}), 5)  # jitter it is
        for gap, expected in zip(late, [10, 20, 40, 80, 160, 300, 300, 300], strict=False):
            self.assertTrue(expected <= gap < expected + REKEY_JITTER, (gap, expected))
        self.assertGreaterEqual(len(late), 8)
        payloads = [d.payload for d in simulation.network.captured]
        self.assertEqual(len({payload[8:40] for payload in payloads}), len(payloads))  # e
        self.assertEqual(len({payload[4:8] for payload in payloads}), len(payloads))  # index

    def test_said_once(self) -> None:
        """After 15 s of silence it says so, once; after the next outage again."""
        simulation = Simulation()
        client = with_client(simulation)
        cut(simulation)
        client.start()
        simulation.advance(SILENCE_TIME - 0.01)
        self.assertEqual(client.told(NoAnswer), [])
        simulation.advance(0.02)
        self.assertEqual(len(client.told(NoAnswer)), 1)
        simulation.advance(3600)
        self.assertEqual(len(client.told(NoAnswer)), 1)
        heal(simulation)
        simulation.advance(BACKOFF_MAXIMUM + 1)
        self.assertEqual(client.core.state, State.UP)
        cut(simulation)
        simulation.advance(120)
        self.assertEqual(len(client.told(NoAnswer)), 2)

    def test_not_said_when_answered(self) -> None:
        """An answer within 15 s, be it to the third try, and nothing is said."""
        simulation = Simulation()
        client = with_client(simulation)
        cut(simulation)
        client.start()
        simulation.advance(9)
        heal(simulation)
        simulation.advance(3600)
        self.assertEqual(client.told(NoAnswer), [])
        self.assertEqual(len(client.told(Connected)), 1)

    def test_a_packet_or_a_new_link_hurries(self) -> None:
        """In back-off an outgoing packet or a link change tries at once, at most every 5 s."""
        simulation, client = connected()
        packet_source = client.lease.ipv4
        cut(simulation)
        simulation.advance(2000)
        start = simulation.now
        for number in range(100):
            if number % 2:
                client.send(numbered_packet(number, packet_source, HUB4))
            else:
                client.core.link_changed(simulation.now)
                client.drain()
            simulation.advance(0.2)
        sent = times(simulation.network.captured, start)
        self.assertEqual(len(sent), 4)
        self.assertLess(sent[0], 0.3)
        for before, after in itertools.pairwise(sent):
            self.assertTrue(REKEY_TIMEOUT <= after - before < REKEY_TIMEOUT + 0.3)

    def test_a_lost_answer(self) -> None:
        """When the 0x51 is lost the next 0x50 gets another, and only that session is used."""
        simulation = Simulation()
        client = with_client(simulation)
        answers = 0

        def first_answer_is_lost(datagram):  # type: ignore[no-untyped-def]
            nonlocal answers
            answers += datagram.kind == ANSWER
            return datagram.kind != ANSWER or answers > 1

        simulation.network.passes.append(first_answer_is_lost)
        client.start()
        simulation.advance(7)
        self.assertEqual(answers, 2)
        self.assertTrue(works_both_ways(simulation, client))
        self.assertEqual(len(simulation.hub.core._sessions), 1)

    def test_a_bad_answer_clears_nothing(self) -> None:
        """A forged 0x51 that comes before the real one does not hinder it."""
        simulation = Simulation()
        client = with_client(simulation)
        client.start()
        simulation.advance_until(lambda: times(simulation.network.captured, 0, ANSWER), limit=1)
        real = simulation.network.captured[-1].payload
        for place in range(len(real)):
            forged = bytearray(real)
            forged[place] ^= 1
            client.hear(bytes(forged), len(forged), simulation.hub.endpoint)
        self.assertEqual(client.core.state, State.CONNECTING)
        self.assertEqual(sum(client.core.counters.values()), len(real))
        simulation.advance(1)
        self.assertTrue(works_both_ways(simulation, client))
        self.assertEqual(len(times(simulation.network.captured, 0, LOGIN)), 1)
