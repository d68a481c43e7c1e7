"""An attacker on the path records everything and sends it again, whole or changed."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.events import (
    Disconnected,
    SessionConfirmed,
)
from pyvpn.testing.simulation import Client, Datagram, Simulation, numbered_packet
from tests.sim.rules import CHALLENGE_SIZE, HUB4, POLL_INTERVAL, connected, works_both_ways


class Replays(SynchronousTestCase):
    def recorded(self) -> tuple[Simulation, Client, list[Datagram]]:
        """Five minutes of two sessions and a rekey, with traffic."""
        simulation, client = connected()
        for number in range(30):
            client.send(numbered_packet(number, client.lease.ipv4, HUB4))
            simulation.hub.send(numbered_packet(number, HUB4, client.lease.ipv4))
            simulation.advance(10)
        return simulation, client, list(simulation.network.captured)

    def replay(self, simulation: Simulation, datagrams: list[Datagram]) -> list[Datagram]:
        """Bring all of them again at once; returns what was sent because of that."""
        before = len(simulation.network.captured)
        for datagram in datagrams:
            simulation.network.inject(datagram, simulation.now)
        simulation.advance(0.5)
        return simulation.network.captured[before:]

    def test_of_everything(self) -> None:
        """Everything recorded, sent again: no byte back, nothing delivered, nothing disturbed."""
        simulation, client, recorded = self.recorded()
        simulation.advance(0.001)
        counts = len(simulation.hub.received), len(client.received)
        peer = simulation.hub.core.peer(client.user, client.device)
        current = peer.current
        self.assertEqual(self.replay(simulation, recorded), [])
        self.assertEqual((len(simulation.hub.received), len(client.received)), counts)
        self.assertIs(peer.current, current)
        hub, own = simulation.hub.core.counters, client.core.counters
        self.assertGreater(hub["transport_replayed"] + hub["session_unknown"], 30)
        self.assertGreater(own["transport_replayed"] + own["session_unknown"], 30)
        self.assertEqual(hub["login_stamp_replayed"], 3)
        self.assertEqual(own["response_unexpected"], 3)
        self.assertEqual((hub["transport_forged"], own["transport_forged"]), (0, 0))
        self.assertTrue(works_both_ways(simulation, client))

    def test_long_after(self) -> None:
        """The same when the sessions are long over, the client gone, the hub restarted."""
        simulation, client, recorded = self.recorded()
        client.stop()
        simulation.advance(1000)
        self.assertEqual(self.replay(simulation, recorded), [])
        simulation.hub.restart()
        self.assertEqual(self.replay(simulation, recorded), [])
        self.assertEqual(simulation.hub.core.counters["login_stamp_replayed"], 3)
        simulation.advance(3600)
        self.assertEqual(self.replay(simulation, recorded), [])

    def test_from_elsewhere(self) -> None:
        """Copies that come first from the attacker's address move no session there."""
        simulation, client = connected()
        attacker = simulation.new_endpoint()

        def copied(datagram: Datagram) -> bool:
            if datagram.source == client.endpoint:
                simulation.network.inject(
                    datagram._replace(source=attacker), simulation.now + 0.001
                )
            return True

        simulation.network.passes.append(copied)
        for number in range(100):
            simulation.hub.send(numbered_packet(number, HUB4, client.lease.ipv4))
            client.send(numbered_packet(number, client.lease.ipv4, HUB4))
            simulation.advance(1)
        self.assertEqual(len(simulation.hub.received), 100)
        self.assertEqual(len(client.received), 100)
        to_attacker = [
            datagram for datagram in simulation.network.captured if datagram.destination == attacker
        ]
        # The rekey's 0x51 goes where its 0x50 came from (PROTOCOL 3, step 10), and challenges go to
        # where copies came from (PROTOCOL 6); nothing else may.
        sizes = {len(datagram.payload) for datagram in to_attacker if datagram.kind != 0x51}
        self.assertEqual(sizes, {CHALLENGE_SIZE})
        self.assertGreater(simulation.hub.core.counters["path_not_validated"], 50)

    def test_a_login_diverted(self) -> None:
        """A 0x50 that arrives from the attacker first costs the client a try, not its access."""
        simulation = Simulation()
        simulation.add_user("alice", "pw")
        client = simulation.add_client("alice", "pw")
        attacker = simulation.new_endpoint()
        diverted: list[Datagram] = []

        def divert(datagram: Datagram) -> bool:
            if datagram.kind == 0x50 and not diverted:
                diverted.append(datagram)
                simulation.network.inject(
                    datagram._replace(source=attacker), simulation.now + 0.001
                )
            return True

        simulation.network.passes.append(divert)
        client.start()
        simulation.advance(4)
        self.assertEqual(simulation.hub.told(SessionConfirmed), [])
        simulation.advance(4)
        self.assertTrue(works_both_ways(simulation, client))

    def test_swapped_directions_and_sessions(self) -> None:
        """What one end sent to the other, brought back to it, is nothing to it."""
        simulation, client, recorded = self.recorded()
        mirrored = [
            datagram._replace(source=datagram.destination, destination=datagram.source)
            for datagram in recorded
        ]
        counts = len(simulation.hub.received), len(client.received)
        self.assertEqual(self.replay(simulation, mirrored), [])
        self.assertEqual((len(simulation.hub.received), len(client.received)), counts)
        self.assertTrue(works_both_ways(simulation, client))

    def test_changed_in_every_place(self) -> None:
        """Any byte of any recorded datagram changed: no byte back, nothing delivered."""
        simulation, client, recorded = self.recorded()
        chosen = {(d.kind, len(d.payload), d.source): d for d in recorded}.values()
        changed = [
            datagram._replace(
                payload=datagram.payload[:place]
                + bytes([datagram.payload[place] ^ 0x40])
                + datagram.payload[place + 1 :]
            )
            for datagram in chosen
            for place in range(0, len(datagram.payload), 1 + len(datagram.payload) // 60)
        ]
        counts = len(simulation.hub.received), len(client.received)
        self.assertEqual(self.replay(simulation, changed), [])
        self.assertEqual((len(simulation.hub.received), len(client.received)), counts)
        simulation.advance(POLL_INTERVAL)
        self.assertEqual(client.told(Disconnected), [])
        self.assertTrue(works_both_ways(simulation, client))
