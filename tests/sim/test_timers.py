"""Rekeys, keepalives and liveness on the clock (PROTOCOL 7)."""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.events import (
    Connected,
    Disconnected,
    LeaseRequested,
    ResolveServer,
    SessionConfirmed,
    SessionEnded,
)
from pyvpn.core.login import LoginFlags
from pyvpn.core.timers import KeepaliveTimer
from pyvpn.testing.simulation import Client, Datagram, Simulation, ip_packet, numbered_packet
from tests.sim.rules import (
    ANSWER,
    DATA,
    HUB4,
    KEEPALIVE_SIZE,
    KEEPALIVE_TIMEOUT,
    LIVENESS,
    POLL_INTERVAL,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_ON_RECEIVE_TIME,
    REKEY_TIMEOUT,
    ROUND_TRIP,
    connected,
    cut,
    heal,
    times,
    with_client,
    works_both_ways,
)


class Mute(KeepaliveTimer):
    """Never due."""

    __slots__ = ()

    def data_received(self, now: float) -> None:
        """Note nothing."""


class Rekeys(SynchronousTestCase):
    def test_after_120_s_on_send(self) -> None:
        """The client rekeys with the first thing it sends when its session is 120 s old."""
        simulation, client = connected(poll_interval=1000.0)
        created = client.core.hub.current.created
        for number in range(300):
            client.send(numbered_packet(number, client.lease.ipv4, HUB4))
            simulation.advance(0.5)
        (rekey,) = times(simulation.network.captured, created)
        self.assertTrue(REKEY_AFTER_TIME <= rekey <= REKEY_AFTER_TIME + 0.5, rekey)
        self.assertEqual(len(simulation.hub.received), 300)

    def test_never_before(self) -> None:
        """A session younger than 120 s is not rekeyed, whatever is sent on it."""
        simulation, client = connected()
        created = client.core.hub.current.created
        while simulation.now < created + REKEY_AFTER_TIME - 1:
            client.send(numbered_packet(1, client.lease.ipv4, HUB4))
            simulation.advance(1)
        self.assertEqual(times(simulation.network.captured, created), [])

    def test_idle_sessions_live_on(self) -> None:
        """An idle client's polls keep one session after the other; nobody says hello again."""
        simulation, client = connected()
        simulation.advance(3600)
        self.assertEqual(len(client.told(Connected)), 1)
        self.assertEqual(client.told(Disconnected), [])
        rekeys = times(simulation.network.captured, 0)
        self.assertEqual(len(rekeys), 1 + 3600 // (POLL_INTERVAL * 5))
        self.assertEqual(simulation.hub.told(SessionEnded), [])
        confirmed = [event.new for event in simulation.hub.told(SessionConfirmed)]
        self.assertEqual(confirmed, [True] + [False] * (len(rekeys) - 1))
        self.assertEqual(dict(client.core.counters), {})
        self.assertEqual(dict(simulation.hub.core.counters), {})

    def test_on_receive_at_165_s(self) -> None:
        """A client that only receives rekeys once when its session is 165 s old."""
        simulation, client = connected(poll_interval=1000.0)
        created = client.core.hub.current.created
        client.core.hub.keepalive = Mute()  # keepalives are sent, too, and would rekey at 120 s
        for _ in range(340):
            # Small ones: the hub asks now and then whether large ones pass, and gets an answer.
            simulation.hub.send(ip_packet(HUB4, client.lease.ipv4, b"small"))
            simulation.advance(0.5)
        (rekey,) = times(simulation.network.captured, created)
        self.assertTrue(
            REKEY_ON_RECEIVE_TIME <= rekey <= REKEY_ON_RECEIVE_TIME + 0.5 + ROUND_TRIP, rekey
        )
        self.assertEqual(len(client.received), 340)

    def test_only_the_client_initiates(self) -> None:
        """The hub never sends a 0x50 and never more answers than it was asked for."""
        simulation, client = connected()
        for number in range(100):
            simulation.hub.send(numbered_packet(number, HUB4, client.lease.ipv4))
            simulation.advance(10)
        captured = simulation.network.captured
        self.assertEqual(times(captured, 0, source=simulation.hub.endpoint), [])
        self.assertEqual(len(times(captured, 0, ANSWER)), len(times(captured, 0)))

    def test_the_session_dies_at_180_s(self) -> None:
        """Cut off, both sides use no key beyond 180 s: nothing is sent with it, none is left."""
        simulation, client = connected()
        created = client.core.hub.current.created
        cut(simulation)
        client.send(numbered_packet(1, client.lease.ipv4, HUB4))
        simulation.advance(REJECT_AFTER_TIME - 0.6)
        self.assertEqual(len(simulation.hub.core._sessions), 1)
        self.assertEqual(len(client.core.hub.sessions()), 1)
        simulation.advance(0.2)
        self.assertEqual(simulation.hub.core._sessions, {})
        self.assertEqual(client.core._sessions, {})
        self.assertEqual([e.reason for e in simulation.hub.told(SessionEnded)], ["expired"])
        self.assertEqual(len(client.told(Disconnected)), 1)
        simulation.advance(600)
        self.assertLess(max(times(simulation.network.captured, created, DATA)), REJECT_AFTER_TIME)

    def test_the_old_session_still_receives(self) -> None:
        """What was under way when the keys changed arrives on the previous session."""
        simulation, client = connected()
        simulation.advance(124)  # the poll at 125 s brings the rekey
        simulation.network.weather.delay = 0.4
        before = client.core.hub.current
        for number in range(40):
            client.send(numbered_packet(number, client.lease.ipv4, HUB4))
            simulation.hub.send(numbered_packet(number, HUB4, client.lease.ipv4))
            simulation.advance(0.1)
        simulation.advance(1)
        self.assertIsNot(client.core.hub.current, before)
        self.assertEqual(len(simulation.hub.received), 40)
        self.assertEqual(len(client.received), 40)

    def test_a_rekey_that_gets_no_answer(self) -> None:
        """Answers to rekeys lost, traffic flows on to 180 s; then it logs in anew."""
        simulation, client = connected()
        simulation.network.passes.append(lambda datagram: datagram.kind != ANSWER)
        simulation.advance(170)
        for number in range(50):  # what is sent meanwhile hurries nothing
            client.send(numbered_packet(number, client.lease.ipv4, HUB4))
        tries = times(simulation.network.captured, 1)
        self.assertGreater(len(tries), 8)
        self.assertGreaterEqual(min(b - a for a, b in pairwise(tries[1:])), REKEY_TIMEOUT)
        self.assertTrue(works_both_ways(simulation, client))
        simulation.advance(10)
        self.assertEqual(client.core.state, State.CONNECTING)
        heal(simulation)
        simulation.advance(7)
        self.assertTrue(works_both_ways(simulation, client, 77))

    def test_a_rekey_tried_twice(self) -> None:
        """A rekey whose first answer is lost is repeated as one: no HELLO, no name resolved."""
        simulation, client = connected()
        lost: list[Datagram] = []

        def first_answer_is_lost(datagram: Datagram) -> bool:
            if datagram.kind == ANSWER:
                lost.append(datagram)
            return datagram.kind != ANSWER or len(lost) > 1

        simulation.network.passes.append(first_answer_is_lost)
        asked = len(client.told(ResolveServer))
        simulation.advance(140)
        self.assertEqual(len(lost), 2)
        self.assertEqual(len(client.told(Connected)), 1)
        self.assertEqual(len(client.told(ResolveServer)), asked)
        self.assertEqual(len(simulation.hub.told(LeaseRequested)), 1)

    def test_a_login_takes_over_from_a_rekey(self) -> None:
        """When the hub turns out dead during a rekey its name is resolved again: it may be
        elsewhere.
        """
        simulation, client = connected()
        simulation.advance(124)
        cut(simulation)
        asked = len(client.told(ResolveServer))
        simulation.advance(8.4)  # the poll at 125 s, and with it the rekey
        self.assertEqual(len(client.told(ResolveServer)), asked)
        simulation.advance(1)
        self.assertEqual(len(client.told(ResolveServer)), asked + 1)

    def test_a_worn_session(self) -> None:
        """So many messages later a rekey is due, whatever the time (AES-256-GCM: 2^27)."""
        for wear in ("send", "receive"):
            simulation = Simulation(aes=True)
            client = with_client(simulation, flags=LoginFlags.AES_256_GCM)
            client.start()
            simulation.advance(1)
            session = client.core.hub.current
            if wear == "send":
                session.send_counter = 2**27
            else:
                session.window.accept(2**27)
            client.send(numbered_packet(1, client.lease.ipv4, HUB4))
            simulation.advance(1)
            self.assertIsNot(client.core.hub.current, session)


class Keepalives(SynchronousTestCase):
    def test_10_s_after_data(self) -> None:
        """Whoever got data and had nothing to say for 10 s says the empty word, once."""
        for to_hub in (True, False):
            simulation, client = connected(poll_interval=1000.0)
            start = simulation.now
            if to_hub:
                client.send(numbered_packet(1, client.lease.ipv4, HUB4))
                client.asleep = True  # or it would poll at 4 s, and the answer would do
            else:
                simulation.hub.send(numbered_packet(1, HUB4, client.lease.ipv4))
            simulation.advance(60)
            listener = simulation.hub if to_hub else client
            empty = [
                datagram.time - start
                for datagram in simulation.network.captured
                if len(datagram.payload) == KEEPALIVE_SIZE and datagram.source == listener.endpoint
            ]
            self.assertEqual(len(empty), 1)
            self.assertAlmostEqual(empty[0], KEEPALIVE_TIMEOUT + 0.02, places=3)

    def test_not_for_control_frames(self) -> None:
        """Polls and replies draw no keepalive: an idle link carries two datagrams in 25 s."""
        simulation, _ = connected()
        start = simulation.now
        simulation.advance(100)
        sizes = [len(d.payload) for d in simulation.network.captured if d.time > start]
        self.assertEqual(sizes, [64, 96] * 4)

    def test_not_when_something_was_said(self) -> None:
        """Traffic both ways needs none."""
        simulation, client = connected()
        for number in range(100):
            works_both_ways(simulation, client, number * 2)
        sizes = [len(datagram.payload) for datagram in simulation.network.captured]
        self.assertNotIn(KEEPALIVE_SIZE, sizes)


class Liveness(SynchronousTestCase):
    def after_cut(self, simulation: Simulation, client: Client) -> tuple[list[float], list[float]]:
        """When, counted from the unanswered packet, it polled and logged in again."""
        cut(simulation)
        start = simulation.now
        client.send(numbered_packet(1, client.lease.ipv4, HUB4))
        simulation.advance(10)
        captured = simulation.network.captured
        return times(captured, start, DATA), times(captured, start)

    def test_steps(self) -> None:
        """Nothing heard 4 s after data: a poll, 2 s later another, 2 s later a new login."""
        simulation, client = connected()
        polls, logins = self.after_cut(simulation, client)
        for at, expected in zip(polls, (0, *LIVENESS[:2]), strict=True):
            self.assertAlmostEqual(at, expected, places=6)
        self.assertAlmostEqual(logins[0], LIVENESS[2], places=6)

    def test_the_old_session_stays_usable(self) -> None:
        """While it logs in again what arrives on the old session counts and is delivered."""
        simulation, client = connected()
        self.after_cut(simulation, client)
        self.assertEqual(client.core.state, State.UP)
        simulation.network.passes[:] = [lambda datagram: datagram.kind == DATA]
        self.assertTrue(works_both_ways(simulation, client))

    def test_an_answer_is_enough(self) -> None:
        """A poll that is answered ends the alarm: no login."""
        simulation, client = connected()
        cut(simulation)
        start = simulation.now
        client.send(numbered_packet(1, client.lease.ipv4, HUB4))
        simulation.advance(5)
        heal(simulation)
        simulation.advance(100)
        self.assertEqual(times(simulation.network.captured, start), [])

    def test_of_a_hub_that_only_listens(self) -> None:
        """A hub that gets data and has none answers the poll at 4 s: the client stays calm."""
        simulation, client = connected()
        start = simulation.now
        for number in range(60):
            client.send(numbered_packet(number, client.lease.ipv4, HUB4))
            simulation.advance(1)
        self.assertEqual(times(simulation.network.captured, start), [])
        self.assertEqual(len(simulation.hub.received), 60)

    def test_idle(self) -> None:
        """An idle client notices a dead hub 8 s after the poll that stayed unanswered."""
        simulation, _ = connected()
        cut(simulation)
        start = simulation.now
        simulation.advance(POLL_INTERVAL + LIVENESS[2] + 0.1)
        (login,) = times(simulation.network.captured, start)
        self.assertGreater(login, POLL_INTERVAL + LIVENESS[2] - 0.6)


class Sleep(SynchronousTestCase):
    def test_a_client_that_was_suspended(self) -> None:
        """However long it slept, a client is back within seconds, and its timers do not spin."""
        for seconds in (1, 7, 30, 119, 125, 170, 181, 600, 5 * 86_400):
            simulation, client = connected()
            client.send(numbered_packet(1, client.lease.ipv4, HUB4))
            client.asleep = True
            simulation.advance(seconds)
            client.asleep = False
            simulation.advance(16)
            self.assertTrue(works_both_ways(simulation, client), seconds)

    def test_a_hub_that_was_suspended(self) -> None:
        """So is a hub: its late timers end what is over and nothing else."""
        for seconds in (1, 30, 170, 181, 3600):
            simulation, client = connected()
            simulation.hub.send(numbered_packet(1, HUB4, client.lease.ipv4))
            simulation.hub.asleep = True
            simulation.advance(seconds)
            simulation.hub.asleep = False
            # The client's back-off of the moment, or its next poll and 8 s.
            simulation.advance(340)
            self.assertTrue(works_both_ways(simulation, client), seconds)

    def test_a_wall_clock_that_jumps(self) -> None:
        """Steps of the wall clock, on either side, up to hours, disturb no session and no rekey."""
        for step in (-7200, 7200):
            for side in ("hub", "client"):
                simulation, client = connected()
                node = simulation.hub if side == "hub" else client
                node.wall_step = step * 10**9
                simulation.advance(1000)
                self.assertTrue(works_both_ways(simulation, client))
                self.assertEqual(client.told(Disconnected), [], (step, side))
