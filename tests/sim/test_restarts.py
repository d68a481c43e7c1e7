"""Either side dies and comes back; what each must remember (PROTOCOL 3, 7)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.events import (
    Configured,
    Connected,
    Disconnected,
    SessionConfirmed,
)
from pyvpn.testing.simulation import Client, Simulation, numbered_packet
from tests.sim.rules import (
    ANSWER,
    HUB4,
    LIVENESS,
    POLL_INTERVAL,
    REJECT_AFTER_TIME,
    connected,
    times,
    with_client,
    works_both_ways,
)


class Hub(SynchronousTestCase):
    def test_crash_while_traffic_flows(self) -> None:
        """A busy client is back 8 s after its hub came back from a crash, with its address."""
        simulation, client = connected()
        lease = client.lease
        simulation.hub.restart()
        start = simulation.now
        number = 0
        while len(client.told(Connected)) < 2 and simulation.now < start + 20:
            number += 1
            client.send(numbered_packet(number, lease.ipv4, HUB4))
            simulation.advance(0.1)
        self.assertLess(simulation.now - start, LIVENESS[2] + 0.3)
        self.assertEqual(client.told(Disconnected), [])
        simulation.advance(0.5)
        self.assertEqual(client.lease, lease)
        self.assertTrue(works_both_ways(simulation, client))

    def test_crash_of_an_idle_network(self) -> None:
        """An idle client is back after its next poll and 8 s."""
        simulation, client = connected()
        simulation.hub.restart()
        simulation.advance_until(
            lambda: len(client.told(Connected)) == 2, POLL_INTERVAL + LIVENESS[2] + 1
        )

    def test_crash_before_anything_was_written(self) -> None:
        """A hub that lost its disk as well knows the users alone and lets everybody in again."""
        simulation, client = connected()
        simulation.hub.disk.clear()
        simulation.hub.restart()
        simulation.advance(POLL_INTERVAL + LIVENESS[2] + 1)
        self.assertTrue(works_both_ways(simulation, client))

    def test_stamps_survive(self) -> None:
        """After a restart the recorded 0x50 of a confirmed session draws nothing."""
        simulation, client = connected()
        login = simulation.network.captured[0]
        client.asleep = True
        simulation.hub.restart()
        before = len(simulation.network.captured)
        simulation.network.inject(login, simulation.now)
        simulation.advance(1)
        self.assertEqual(len(simulation.network.captured), before)
        self.assertEqual(simulation.hub.core.counters["login_stamp_replayed"], 1)
        simulation.hub.disk.clear()  # control: without the disk it does
        simulation.hub.restart()
        simulation.network.inject(login, simulation.now)
        simulation.advance(1)
        self.assertEqual(len(times(simulation.network.captured[before:], 0, ANSWER)), 1)

    def test_stamps_of_removed_devices(self) -> None:
        """The store forgets a device that was unseen for 30 days, its stamp too, to make room for
        another. After a restart its recorded 0x50 draws nothing all the same: it is too old.
        """
        simulation, client = connected()
        login = simulation.network.captured[0]
        client.stop()
        simulation.advance(30 * 86_400)
        simulation.hub.disk.clear()
        simulation.hub.restart()
        before = len(simulation.network.captured)
        simulation.network.inject(login, simulation.now)
        simulation.advance(1)
        self.assertEqual(simulation.network.captured[before:], [])
        self.assertEqual(simulation.hub.core.counters["login_stamp_old"], 1)
        client.restart()  # control: the device itself may come back
        client.start()
        simulation.advance(0.5)
        self.assertTrue(works_both_ways(simulation, client))

    def test_many_restarts(self) -> None:
        """A hub that dies every minute still carries traffic in between."""
        simulation, client = connected()
        for number in range(10):
            simulation.hub.restart()
            simulation.advance(60)
            self.assertTrue(works_both_ways(simulation, client, number * 2), number)


class OfClient(SynchronousTestCase):
    def crash(self, client: Client) -> None:
        client.restart()
        client.start()

    def test_crash(self) -> None:
        """A client that comes back from a crash is in at once, with its address."""
        simulation, client = connected()
        lease = client.lease
        self.crash(client)
        simulation.advance(0.5)
        self.assertEqual(client.lease, lease)
        self.assertTrue(works_both_ways(simulation, client))
        self.assertEqual(len(simulation.hub.told(SessionConfirmed)), 2)

    def test_crash_during_a_login(self) -> None:
        """However far its login had come, the next one is as good."""
        for milliseconds in range(0, 200, 7):
            simulation = Simulation()
            client = with_client(simulation)
            client.start()
            simulation.advance(milliseconds / 1000)
            self.crash(client)
            simulation.advance(0.5)
            self.assertTrue(works_both_ways(simulation, client), milliseconds)

    def test_stop_and_start(self) -> None:
        """A client that says BYE and comes back at once is served, the BYE late or not."""
        for jitter in (0.0, 0.3):
            for seed in range(8):
                simulation, client = connected(seed)
                simulation.network.weather.jitter = jitter
                client.stop()
                self.crash(client)
                simulation.advance(1.5)
                self.assertEqual(client.core.state, State.UP)
                simulation.network.weather.jitter = 0
                simulation.advance(1)
                self.assertTrue(works_both_ways(simulation, client), (jitter, seed))

    def test_a_clock_that_was_behind(self) -> None:
        """A client whose clock goes back years over a restart goes on from its last stamp."""
        simulation, client = connected()
        client.wall_step = -5 * 365 * 86_400 * 10**9
        self.crash(client)
        simulation.advance(0.5)
        self.assertTrue(works_both_ways(simulation, client))

    def test_a_lost_stamp_and_a_clock_behind(self) -> None:
        """Control: without the stored stamp it stays outside until its clock is right."""
        simulation, client = connected()
        client.wall_step = -3600 * 10**9
        client.last_stamp = 0
        self.crash(client)
        simulation.advance(30)
        self.assertEqual(client.core.state, State.CONNECTING)
        self.assertGreater(simulation.hub.core.counters["login_stamp_replayed"], 3)
        client.wall_step = 0
        simulation.advance(6)
        self.assertTrue(works_both_ways(simulation, client))


class Both(SynchronousTestCase):
    def test_power_failure(self) -> None:
        """Hub and clients die together and come back in any order."""
        for hub_first in (True, False):
            simulation = Simulation()
            clients = [with_client(simulation) for _ in range(5)]
            for client in clients:
                client.start()
            simulation.advance(1)
            leases = [client.lease for client in clients]
            if hub_first:
                simulation.hub.restart()
            else:
                simulation.hub.asleep = True
            for client in clients:
                client.restart()
                client.start()
            simulation.advance(3)
            if not hub_first:
                simulation.hub.restart()
                simulation.hub.asleep = False
            simulation.advance(10)
            self.assertEqual([client.lease for client in clients], leases)
            for number, client in enumerate(clients):
                self.assertTrue(works_both_ways(simulation, client, number * 2))
                self.assertEqual(len(client.told(Configured)), 2)

    def test_long_outage(self) -> None:
        """An outage longer than any key lives ends with a login at the next try."""
        simulation, client = connected()
        simulation.hub.asleep = True
        simulation.advance(REJECT_AFTER_TIME * 5)
        simulation.hub.asleep = False
        client.core.link_changed(simulation.now)
        simulation.advance(6)
        self.assertTrue(works_both_ways(simulation, client))
