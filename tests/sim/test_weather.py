"""Invariants under any loss, repetition, reordering, delay and corruption."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.burst import Burst
from pyvpn.core.client import VPNClient
from pyvpn.core.clientstate import State
from pyvpn.testing.simulation import Datagram, Network, Simulation, Weather, numbered_packet
from tests.sim.rules import (
    DATA,
    HUB4,
    REJECT_AFTER_TIME,
    connected,
    times,
    with_client,
    works_both_ways,
)

chance = st.floats(0, 0.6)
weather = st.builds(
    Weather,
    loss=chance,
    duplicate=chance,
    corrupt=st.floats(0, 0.3),
    delay=st.floats(0, 2),
    jitter=st.floats(0, 5),
)


class Storm:
    """Two clients of one hub, traffic every way, and the checks that hold in any weather."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed)
        self.clients = [with_client(self.simulation), with_client(self.simulation, "bob", "pw")]
        for client in self.clients:
            client.start()
        self.simulation.advance(1)
        self.sent: Counter[bytes] = Counter()
        self.number = 0

    def packet(self, source: object, destination: object) -> bytes:
        self.number += 1
        packet = numbered_packet(self.number, source, destination)  # type: ignore[arg-type]
        self.sent[packet] += 1
        return packet

    def blow(self, weather: Weather, seconds: int) -> None:
        """Send in that weather, a packet each way a second."""
        self.simulation.network.weather = weather
        for _ in range(seconds):
            for client in self.clients:
                if client.core.state is State.UP:
                    client.send(self.packet(client.lease.ipv4, HUB4))
                    self.simulation.hub.send(self.packet(HUB4, client.lease.ipv4))
            self.simulation.advance(1)

    def received(self) -> Counter[bytes]:
        nodes = (self.simulation.hub, *self.clients)
        return Counter(packet for node in nodes for packet in node.received)


class Invariants(SynchronousTestCase):
    @given(st.integers(0, 2**32), st.lists(weather, min_size=1, max_size=3))
    @settings(deadline=None, max_examples=30)
    def test_in_any_weather(self, seed: int, days: list[Weather]) -> None:
        """What arrives is a part of what was sent, each at most once, unchanged, at who it was
        for; and when the weather clears, everything works again without anybody's help.
        """
        storm = Storm(seed)
        for day in days:
            storm.blow(day, 70)
        self.assertLessEqual(storm.received(), storm.sent)
        for client in storm.clients:
            own = client.lease.ipv4.packed
            self.assertEqual({packet[16:20] for packet in client.received} - {own}, set())
        storm.simulation.network.weather = Weather()
        storm.simulation.advance(310)
        for client in storm.clients:
            storm.number += 2
            self.assertTrue(works_both_ways(storm.simulation, client, storm.number + 10**6))

    def test_fair_weather_loses_nothing(self) -> None:
        """Control: without bad weather everything sent arrives, once, over several rekeys."""
        storm = Storm(1)
        storm.blow(Weather(), 600)
        storm.simulation.advance(1)
        self.assertEqual(storm.received(), storm.sent)
        self.assertEqual(len(storm.sent), 2400)
        self.assertGreaterEqual(len(times(storm.simulation.network.captured, 0)), 10)

    def test_reordering_alone_loses_nothing(self) -> None:
        """Nor do repetition and reordering within seconds, rekeys included."""
        storm = Storm(2)
        storm.blow(Weather(duplicate=0.5, jitter=0.9), 400)
        storm.simulation.advance(5)
        self.assertEqual(storm.received(), storm.sent)

    def test_each_kind_of_weather_happens(self) -> None:
        """Control: the network does what it says it does."""

        def arrivals(weather: Weather) -> list[Datagram]:
            network = Network(Random(1))
            network.weather = weather
            place = Simulation().hub.endpoint
            for number in range(100):
                network.send(Datagram(number, place, place, bytes([number])))
            return list(network.arrived(10**6))

        fair = [datagram.payload[0] for datagram in arrivals(Weather())]
        self.assertEqual(fair, list(range(100)))
        self.assertTrue(30 < len(arrivals(Weather(loss=0.5))) < 70)
        self.assertTrue(130 < len(arrivals(Weather(duplicate=0.5))) < 170)
        late = [datagram.payload[0] for datagram in arrivals(Weather(jitter=5))]
        self.assertNotEqual(late, fair)
        self.assertEqual(sorted(late), fair)
        damaged = [datagram.payload[0] for datagram in arrivals(Weather(corrupt=0.5))]
        changed = sum(1 for before, after in zip(fair, damaged, strict=True) if before != after)
        self.assertTrue(30 < changed < 70)

    def test_no_packet_leaves_in_the_clear(self) -> None:
        """No stretch of any packet stands in what was captured; sealed by nobody it would."""
        simulation, client = connected()
        marker = b"a marker that is easy to find"
        packet = numbered_packet(1, client.lease.ipv4, HUB4) + marker
        packet = packet[:2] + len(packet).to_bytes(2, "big") + packet[4:]
        client.send(packet)
        simulation.advance(1)
        self.assertEqual([marker in received for received in simulation.hub.received], [True])
        captured = b"".join(datagram.payload for datagram in simulation.network.captured)
        self.assertNotIn(marker, captured)

    def test_no_counter_is_used_twice(self) -> None:
        """Over an hour with rekeys no (index, counter) is sealed twice: nonces never repeat."""
        storm = Storm(3)
        storm.blow(Weather(loss=0.2, jitter=1), 600)
        used = [
            (datagram.destination, datagram.payload[4:16])
            for datagram in storm.simulation.network.captured
            if datagram.kind == DATA
        ]
        self.assertGreater(len(used), 1000)
        self.assertEqual(len(set(used)), len(used))

    def test_memory_is_bounded(self) -> None:
        """After hours of storm there are at most three sessions a peer, and no forgotten index."""
        storm = Storm(4)
        for _ in range(5):
            storm.blow(Weather(loss=0.4, duplicate=0.3, jitter=3), 300)
        core = storm.simulation.hub.core
        peers = [core.peer(client.user, client.device) for client in storm.clients]
        living = {s.local_index for peer in peers if peer for s in peer.sessions()}
        self.assertEqual(set(core._sessions), living)
        self.assertLessEqual(len(living), 3 * len(peers))
        for client in storm.clients:
            living = {s.local_index for s in client.core.hub.sessions()}
            self.assertEqual(set(client.core._sessions), living)
        storm.simulation.network.weather = Weather()
        for client in storm.clients:
            client.stop()
        storm.simulation.advance(REJECT_AFTER_TIME * 2)
        self.assertEqual(core._sessions, {})
        self.assertIsNone(core.next_timer())


class SpinningClient(VPNClient):
    """A planted fault: a deadline that handle_timer leaves where it was."""

    def next_timer(self) -> tuple[float, str] | None:
        return (1.0, "planted")

    def handle_timer(self, now: float) -> None:
        """Do nothing."""


class Spinning(SynchronousTestCase):
    def test_is_noticed(self) -> None:
        """Control: the simulation refuses a timer that is due again and again."""
        simulation, client = connected()
        client.core.__class__ = SpinningClient
        error = self.assertRaises(AssertionError, simulation.advance, 10)
        self.assertIn("planted", str(error))

    def test_two_that_never_rest(self) -> None:
        """Control: and two nodes that answer each other without time going on."""
        simulation, client = connected()
        simulation.network.weather.delay = 0.0

        for node in (simulation.hub, client):
            node.hear = lambda buffer, size, source, node=node: node._transmit(  # type: ignore
                [Burst(source, [buffer, b""], size)]
            )
        client.send(numbered_packet(1, client.lease.ipv4, HUB4))
        error = self.assertRaises(AssertionError, simulation.advance, 10)
        self.assertIn("stands still", str(error))
