"""Wall clocks that are wrong or jump, and machines that sleep (PROTOCOL 3, 7).

Timers run on CLOCK_BOOTTIME, which no step reaches; the wall clock makes and judges stamps alone.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.events import Connected, Disconnected, SessionConfirmed
from pyvpn.testing.simulation import FIRST_WALL_TIME, Client, Simulation, numbered_packet
from tests.sim.rules import (
    ANSWER,
    DATA,
    HUB4,
    LIVENESS,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_JITTER,
    REKEY_TIMEOUT,
    connected,
    times,
    with_client,
    works_both_ways,
)

SECOND = 10**9
HOUR, DAY, YEAR = 3600 * SECOND, 86_400 * SECOND, 365 * 86_400 * SECOND
#: PROTOCOL 3: a hub takes no stamp that is later than its clock by more.
FUTURE_STAMP = DAY
#: What a second try takes, and a round trip.
ONE_MORE_TRY = REKEY_TIMEOUT + REKEY_JITTER + 0.5

STEPS = [sign * by for by in (SECOND, HOUR, 23 * HOUR, 3 * DAY, 2 * YEAR) for sign in (1, -1)]


def restarted(client: Client) -> None:
    """Kill a client's process and start it again."""
    client.restart()
    client.start()


class OfClient(SynchronousTestCase):
    def test_steps_while_connected(self) -> None:
        """A step of hours, days or years, either way, costs a live session nothing: it rekeys in
        time, and no packet is lost.
        """
        for step in STEPS:
            simulation, client = connected()
            client.wall_step = step
            if step > FUTURE_STAMP:
                continue  # the next test
            sent = []
            for number in range(60):
                sent.append(numbered_packet(number, client.lease.ipv4, HUB4))
                client.send(sent[-1])
                simulation.advance(5)
            self.assertEqual(simulation.hub.received, sent, step)
            self.assertEqual(client.told(Disconnected), [], step)
            self.assertGreaterEqual(len(simulation.hub.told(SessionConfirmed)), 3, step)

    def test_days_ahead_while_connected(self) -> None:
        """A step of days ahead spoils the rekeys while it lasts; the session lives to its end.
        Corrected, the client is back at its next try but one.
        """
        for step in (3 * DAY, 2 * YEAR):
            simulation, client = connected()
            client.wall_step = step
            simulation.advance(REKEY_AFTER_TIME - 10)
            self.assertTrue(works_both_ways(simulation, client), step)
            simulation.advance(REJECT_AFTER_TIME)
            self.assertEqual(client.core.state, State.CONNECTING)
            self.assertGreater(simulation.hub.core.counters["login_stamp_future"], 3)
            client.wall_step = 0
            simulation.advance(ONE_MORE_TRY + REKEY_TIMEOUT)
            self.assertTrue(works_both_ways(simulation, client), step)

    def test_steps_over_a_restart(self) -> None:
        """A client whose clock was set back, or hours ahead, over a restart is in at once."""
        for step in STEPS:
            if step > FUTURE_STAMP:
                continue  # the next test
            simulation, client = connected()
            client.wall_step = step
            restarted(client)
            simulation.advance(0.5)
            self.assertTrue(works_both_ways(simulation, client), step)

    def test_days_ahead_at_first_use(self) -> None:
        """A client whose clock was days or years ahead when it was new is in when its clock is
        right: at once with its process going on at its next try, after a restart at the second.
        Before that the stamps that it had used kept it out for as long (regression).
        """
        for ahead in (DAY + HOUR, 9 * DAY, 10 * YEAR):
            for anew in (False, True):
                simulation = Simulation()
                client = with_client(simulation)
                client.wall_step = ahead
                client.start()
                simulation.advance(60)
                self.assertEqual(times(simulation.network.captured, 0, ANSWER), [])
                self.assertGreater(client.last_stamp, FIRST_WALL_TIME + ahead)
                client.wall_step = 0
                if anew:
                    restarted(client)
                simulation.advance(2 * ONE_MORE_TRY)
                self.assertTrue(works_both_ways(simulation, client), (ahead, anew))

    def test_days_ahead_and_no_trouble_after(self) -> None:
        """Once in, such a client rekeys at the first try: what the hub took last comes first."""
        simulation = Simulation()
        client = with_client(simulation)
        client.wall_step = 9 * DAY
        client.start()
        simulation.advance(12)
        client.wall_step = 0
        simulation.advance(12)
        refused = simulation.hub.core.counters["login_stamp_future"]
        for number in range(100):
            client.send(numbered_packet(number, client.lease.ipv4, HUB4))
            simulation.advance(10)
        self.assertGreater(len(simulation.hub.told(SessionConfirmed)), 7)
        self.assertEqual(simulation.hub.core.counters["login_stamp_future"], refused)
        self.assertEqual(client.told(Disconnected), [])

    def test_a_recorded_stamp_of_days_ahead(self) -> None:
        """When its time has come somebody replays the 0x50 that was once days ahead: one 0x51, and
        the client goes on above it, since it has not forgotten that stamp.
        """
        simulation = Simulation()
        client = with_client(simulation)
        client.wall_step = 2 * DAY
        client.start()
        simulation.advance(1)
        recorded = simulation.network.captured[0]
        client.wall_step = 0
        simulation.advance(2 * ONE_MORE_TRY)
        self.assertTrue(works_both_ways(simulation, client))
        simulation.advance(1.5 * DAY / SECOND)
        self.assertEqual(client.core.state, State.UP)
        start = simulation.now
        simulation.network.inject(recorded, simulation.now)
        simulation.advance(0.1)
        self.assertEqual(len(times(simulation.network.captured, start, ANSWER)), 1)
        restarted(client)
        simulation.advance(0.5)
        self.assertTrue(works_both_ways(simulation, client))

    def test_control(self) -> None:
        """Control: a clock that stays days ahead keeps its client out."""
        simulation = Simulation()
        client = with_client(simulation)
        client.wall_step = 9 * DAY
        client.start()
        simulation.advance(3600)
        self.assertEqual(client.told(Connected), [])


class OfHub(SynchronousTestCase):
    def test_steps_while_connected(self) -> None:
        """A step of the hub's clock, either way, costs a live session nothing, and the next login
        of a device that it knows neither.
        """
        for step in STEPS:
            simulation, client = connected()
            simulation.hub.wall_step = step
            for number in range(60):
                client.send(numbered_packet(number, client.lease.ipv4, HUB4))
                simulation.advance(5)
            self.assertEqual(len(simulation.hub.received), 60, step)
            self.assertEqual(client.told(Disconnected), [], step)
            restarted(client)
            simulation.advance(0.5)
            self.assertTrue(works_both_ways(simulation, client), step)
            self.assertEqual(simulation.hub.core.clock_behind(), step < -FUTURE_STAMP, step)

    def test_wrong_at_boot(self) -> None:
        """A hub without a clock battery starts in 1970: the stamps in its store tell that the clock
        is behind, it says so, and lets in whom it knows and whom it does not.
        """
        simulation, client = connected()
        other = with_client(simulation, "bob", "another battery")
        simulation.hub.wall_step = -FIRST_WALL_TIME
        simulation.hub.restart()
        self.assertTrue(simulation.hub.core.clock_behind())
        other.start()
        simulation.advance(40)
        for each in (client, other):
            self.assertTrue(works_both_ways(simulation, each))
        simulation.hub.wall_step = 0  # the network has told it the time
        self.assertFalse(simulation.hub.core.clock_behind())
        simulation.advance(REKEY_AFTER_TIME * 2)
        for each in (client, other):
            self.assertTrue(works_both_ways(simulation, each))
            self.assertEqual(each.told(Disconnected), [])
        restarted(other)
        simulation.advance(0.5)
        self.assertTrue(works_both_ways(simulation, other))

    def test_wrong_at_its_first_boot(self) -> None:
        """The same with an empty store: a clock from before this program was written is behind."""
        simulation = Simulation()
        client = with_client(simulation)
        simulation.hub.wall_step = -FIRST_WALL_TIME
        simulation.hub.restart()
        self.assertTrue(simulation.hub.core.clock_behind())
        client.start()
        simulation.advance(0.5)
        self.assertTrue(works_both_ways(simulation, client))
        simulation.hub.wall_step = 0
        self.assertFalse(simulation.hub.core.clock_behind())
        # Control: the bound is on again.
        ahead = with_client(simulation)
        ahead.wall_step = 2 * DAY
        ahead.start()
        simulation.advance(60)
        self.assertEqual(ahead.told(Connected), [])
        self.assertGreater(simulation.hub.core.counters["login_stamp_future"], 3)

    def test_both_wrong_in_different_ways(self) -> None:
        """Hub in 1970, client of a year ago, both later corrected in either order: always in."""
        for hub_first in (True, False):
            simulation, client = connected()
            simulation.hub.wall_step = -FIRST_WALL_TIME
            client.wall_step = -YEAR
            simulation.hub.restart()
            restarted(client)
            simulation.advance(1)
            self.assertTrue(works_both_ways(simulation, client))
            order = (simulation.hub, client)
            for corrected in order if hub_first else reversed(order):
                corrected.wall_step = 0
                restarted(client)
                simulation.advance(1)
                self.assertTrue(works_both_ways(simulation, client), hub_first)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["hub", "client", "client restarts", "hub restarts", "wait"]),
                st.integers(-20 * 3600, 20 * 3600),
            ),
            max_size=12,
        )
    )
    @settings(deadline=None, max_examples=40)
    def test_any_steps(self, steps: list[tuple[str, int]]) -> None:
        """Whatever hours both clocks are set to, with restarts in between: once they are right
        the client is in and traffic flows.
        """
        simulation, client = connected()
        for what, seconds in steps:
            if what == "hub":
                simulation.hub.wall_step = seconds * SECOND
            elif what == "client":
                client.wall_step = seconds * SECOND
            elif what == "client restarts":
                restarted(client)
            elif what == "hub restarts":
                simulation.hub.restart()
            simulation.advance(abs(seconds) % 300)
        simulation.hub.wall_step = client.wall_step = 0
        restarted(client)
        simulation.advance(2 * ONE_MORE_TRY)
        self.assertTrue(works_both_ways(simulation, client))


class Suspended(SynchronousTestCase):
    """SIGSTOP, or a lid that is closed: nothing is heard, all timers are late."""

    def test_client(self) -> None:
        """A client that wakes finds its session live and goes on, or finds it dead and logs in: one
        way or the other traffic flows as soon as the liveness steps or a login allow.
        """
        for minutes in (0.1, 1, 2.5, 3.5, 10, 600):
            simulation, client = connected()
            simulation.advance(7)
            client.asleep = True
            simulation.advance(minutes * 60)
            client.asleep = False
            client.core.link_changed(simulation.now)  # as after most suspends
            client.drain()
            simulation.advance(2)
            self.assertTrue(works_both_ways(simulation, client), minutes)
            expected = 1 if minutes * 60 < REKEY_AFTER_TIME else 2
            self.assertLessEqual(len(client.told(Connected)), expected, minutes)

    def test_client_sends_nothing_old(self) -> None:
        """What was in the TUN before a sleep longer than any key leaves on a new session or not at
        all: no datagram leaves under keys that are over.
        """
        simulation, client = connected()
        before = simulation.now
        client.asleep = True
        simulation.advance(REJECT_AFTER_TIME + 5)
        client.asleep = False
        woken = simulation.now
        client.send(numbered_packet(1, client.lease.ipv4, HUB4))
        sent = [d for d in simulation.network.captured if d.time >= woken and d.kind == DATA]
        self.assertEqual(sent, [])
        simulation.advance(2)
        self.assertEqual(len(simulation.hub.received), 1)
        self.assertGreater(woken, before)

    def test_hub(self) -> None:
        """A hub that was stopped for a while serves on: sessions that are still good
        at once, the others by a new login of theirs.
        """
        for minutes in (0.1, 1, 2.5, 3.5, 30):
            simulation, client = connected()
            simulation.advance(7)
            simulation.hub.asleep = True
            simulation.advance(minutes * 60)
            simulation.hub.asleep = False
            client.core.link_changed(simulation.now)  # or a packet: the next try is due at once
            client.drain()
            simulation.advance(LIVENESS[2] + ONE_MORE_TRY)
            self.assertTrue(works_both_ways(simulation, client), minutes)

    def test_both(self) -> None:
        """One machine that holds both sleeps for minutes: as if the hub had been cut off."""
        simulation, client = connected()
        simulation.hub.asleep = client.asleep = True
        simulation.advance(600)
        simulation.hub.asleep = client.asleep = False
        simulation.advance(2)
        self.assertTrue(works_both_ways(simulation, client))

    def test_wall_clock_that_slept(self) -> None:
        """A machine that wakes with the wall clock of when it fell asleep (it is set from the
        network later) logs in all the same.
        """
        simulation, client = connected()
        client.asleep = True
        simulation.advance(3 * 3600)
        client.wall_step = -3 * HOUR
        client.asleep = False
        simulation.advance(2)
        self.assertTrue(works_both_ways(simulation, client))
        client.wall_step = 0
        restarted(client)
        simulation.advance(1)
        self.assertTrue(works_both_ways(simulation, client))
