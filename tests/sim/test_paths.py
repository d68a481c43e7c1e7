"""Addresses change under a session, honestly and not (PROTOCOL 6, "Paths")."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import control
from pyvpn.core.events import Connected, Disconnected
from pyvpn.testing.simulation import (
    Client,
    Datagram,
    Endpoint,
    Simulation,
    Weather,
    numbered_packet,
)
from tests.core.scene import Scene
from tests.sim.rules import (
    CHALLENGE_SIZE,
    CHALLENGE_SPACING,
    CHALLENGE_TIME,
    CHALLENGES,
    DATA,
    HUB4,
    KEEPALIVE_SIZE,
    LIVENESS,
    PROBED,
    REPLY_SIZE,
    ROUND_TRIP,
    connected,
    times,
    works_both_ways,
)

#: What the issue asks for: traffic again after a change of address, in seconds.
ASKED = 1.0
#: How long a client listens after a change before it asks at the hub's other addresses.
PROBE_DELAY = 0.3
PROBE_SIZE = 96 + 32
HUB6 = Endpoint(ip_address("2001:db8:1::1"), 5050)
CLIENT6 = Endpoint(ip_address("2001:db8:2::2"), 12000)
SECOND = Endpoint(ip_address("198.51.100.2"), 5050)


def families_apart(datagram: Datagram) -> bool:
    """IPv4 addresses and IPv6 addresses do not reach each other."""
    return datagram.source.address.version == datagram.destination.address.version


def hub_to_client(simulation: Simulation, client: Client, numbers: count[int]) -> float:
    """How long it takes until what the hub sends every 10 ms arrives at the client again."""
    start, before = simulation.now, len(client.received)
    while len(client.received) == before:
        assert simulation.now < start + 30, "waited in vain for 30 s"
        simulation.hub.send(numbered_packet(next(numbers), HUB4, client.lease.ipv4))
        simulation.advance(0.01)
    return simulation.now - start


def both_ways(simulation: Simulation, client: Client, numbers: count[int]) -> float:
    """The same for both directions, both sending every 10 ms."""
    start = simulation.now
    before = len(client.received), len(simulation.hub.received)
    while len(client.received) == before[0] or len(simulation.hub.received) == before[1]:
        assert simulation.now < start + 30, "waited in vain for 30 s"
        simulation.hub.send(numbered_packet(next(numbers), HUB4, client.lease.ipv4))
        client.send(numbered_packet(next(numbers), client.lease.ipv4, HUB4))
        simulation.advance(0.01)
    return simulation.now - start


def log_in_to(simulation: Simulation, client: Client, *servers: Endpoint) -> None:
    """Stop and start a client whose hub's name has these addresses, in that order."""
    client.stop()
    client.restart()
    client.servers = list(servers)
    client.start()
    simulation.advance(6)
    assert client.core.hub.endpoint == servers[0]


class OfTheClient(SynchronousTestCase):
    def setUp(self) -> None:
        self.simulation, self.client = connected()
        self.simulation.advance(1)
        self.numbers = count(1)

    def same_session(self, logins: int = 1) -> None:
        """Nobody logged in anew."""
        self.assertEqual(len(times(self.simulation.network.captured, 0)), logins)
        self.assertEqual(self.client.told(Disconnected), [])

    def test_rebinding_mid_transfer(self) -> None:
        """A NAT that gives the client another port in the middle of a transfer costs what is under
        way for two round trips, and no login.
        """
        simulation, client = self.simulation, self.client
        for step in range(200):
            if step == 100:
                client.move(simulation.new_endpoint())
            simulation.hub.send(numbered_packet(2 * step, HUB4, client.lease.ipv4))
            client.send(numbered_packet(2 * step + 1, client.lease.ipv4, HUB4))
            simulation.advance(0.01)
        simulation.advance(1)
        self.assertEqual(len(simulation.hub.received), 200)
        self.assertGreaterEqual(len(client.received), 200 - 2 * ROUND_TRIP / 0.01)
        self.assertLess(len(client.received), 200)  # control: the change did cost something
        self.same_session()

    def test_rebinding_again_and_again(self) -> None:
        """One that does so every two seconds is followed each time."""
        for _ in range(30):
            self.client.move(self.simulation.new_endpoint())
            self.assertLess(both_ways(self.simulation, self.client, self.numbers), ASKED)
            self.simulation.advance(2)
        self.same_session()

    def test_another_address(self) -> None:
        """A client that notices its new address asks at once; the hub's next packet finds it,
        though the client had nothing to send.
        """
        self.client.roam(self.simulation.new_endpoint())
        took = hub_to_client(self.simulation, self.client, self.numbers)
        self.assertLess(took, 2 * ROUND_TRIP)
        self.same_session()

    def test_changes_come_in_flocks(self) -> None:
        """The address goes, comes and gets its route within a moment: the last change counts, and
        the polls are not one for each.
        """
        simulation, client = self.simulation, self.client
        reachable = False
        simulation.network.passes.append(
            lambda datagram: reachable or datagram.source != client.endpoint
        )
        before = len(simulation.network.captured)
        client.roam(simulation.new_endpoint())
        for _ in range(10):
            simulation.advance(0.01)
            client.core.link_changed(simulation.now)
            client.drain()
        reachable = True
        took = hub_to_client(simulation, client, self.numbers)
        self.assertLess(took, ASKED)
        captured = [d for d in simulation.network.captured[before:] if len(d.payload) < PROBED]
        sent = times(captured, 0, DATA, client.endpoint)
        # Two polls, and the answers to the challenge and to the question about the MTU.
        self.assertLessEqual(len(sent), 4)
        self.same_session()

    def test_a_lost_answer(self) -> None:
        """If the answer to the hub's challenge is lost, a client that only listens finds out within
        a second (regression: having heard the challenge it was content until its next poll).
        """
        simulation, client = self.simulation, self.client
        lost: list[Datagram] = []

        def lose(datagram: Datagram) -> bool:
            # The poll is as long, and goes first.
            own = datagram.source == client.endpoint and len(datagram.payload) == CHALLENGE_SIZE
            if own and len(lost) < 2:
                lost.append(datagram)
            return not own or len(lost) != 2 or datagram is not lost[1]

        simulation.network.passes.append(lose)
        client.roam(simulation.new_endpoint())
        took = hub_to_client(simulation, client, self.numbers)
        self.assertEqual(len(lost), 2)
        self.assertTrue(CHALLENGE_SPACING < took < ASKED, took)
        self.same_session()

    def test_faster_than_challenges(self) -> None:
        """A client that changes addresses faster than it may be challenged is found as soon as that
        is allowed again, though it only listens and has a second address of the hub to try.
        """
        simulation, client = self.simulation, self.client
        simulation.hub.add_address(SECOND)
        log_in_to(simulation, client, simulation.hub.endpoint, SECOND)
        for _ in range(7):
            client.roam(simulation.new_endpoint())
            simulation.advance(0.3)
        self.assertGreater(simulation.hub.core.counters["path_challenges_limited"], 0)
        took = hub_to_client(simulation, client, self.numbers)
        self.assertLess(took, CHALLENGE_TIME + ASKED)
        self.same_session(2)

    def test_between_families(self) -> None:
        """From IPv4 to IPv6 and back: the hub is looked for at its other address, within a second,
        without a login.
        """
        simulation, client = self.simulation, self.client
        simulation.hub.add_address(HUB6)
        log_in_to(simulation, client, simulation.hub.endpoint, HUB6)
        first = client.endpoint
        simulation.network.passes.append(families_apart)
        for here, there in ((CLIENT6, HUB6), (first, simulation.hub.endpoint)):
            client.roam(here)
            took = both_ways(simulation, client, self.numbers)
            self.assertTrue(ROUND_TRIP < took < PROBE_DELAY + 2 * ROUND_TRIP, took)
            self.assertEqual(client.core.hub.endpoint, there)
            simulation.advance(6)
        self.assertEqual(len(client.told(Connected)), 2)  # of the two starts
        self.assertTrue(works_both_ways(simulation, client))

    def test_the_present_address_is_preferred(self) -> None:
        """While the hub answers where it was, its other addresses are not asked (control: they
        are when it does not).
        """
        simulation, client = self.simulation, self.client
        simulation.hub.add_address(SECOND)
        log_in_to(simulation, client, simulation.hub.endpoint, SECOND)
        client.roam(simulation.new_endpoint())
        simulation.advance(10)
        captured = simulation.network.captured
        self.assertEqual([d for d in captured if d.destination == SECOND], [])
        hub = simulation.hub.endpoint
        simulation.network.passes.append(lambda datagram: datagram.destination != hub)
        before = len(captured)
        client.roam(simulation.new_endpoint())
        simulation.advance(ASKED)
        self.assertEqual(client.core.hub.endpoint, SECOND)
        probes = [d.destination for d in captured[before:] if len(d.payload) == PROBE_SIZE]
        self.assertEqual(probes, [SECOND])

    def test_the_hub_leaves_at_that_moment(self) -> None:
        """A BYE right after a change of the network leaves nothing due but the next login."""
        simulation, client = self.simulation, self.client
        client.roam(simulation.new_endpoint())
        simulation.advance(0.1)
        client.core.link_changed(simulation.now)
        simulation.hub.stop()
        simulation.hub.asleep = True
        simulation.advance(30)  # a timer that nobody serves would stop the time
        simulation.hub.asleep = False
        simulation.advance(6)
        self.assertTrue(works_both_ways(simulation, client))

    def test_between_login_and_first_packet(self) -> None:
        """A first datagram from another place than the 0x51 went to starts path validation."""
        simulation = Simulation()
        simulation.add_user("alice", "pw")
        client = simulation.add_client("alice", "pw")
        rebound = simulation.new_endpoint()

        def by_kind(datagram: Datagram) -> bool:
            """A NAT that gave the client another port right after the 0x51."""
            if datagram.source == client.endpoint and datagram.kind == DATA:
                changed = datagram._replace(source=rebound)
            elif datagram.destination == rebound:
                changed = datagram._replace(destination=client.endpoint)
            else:
                return datagram.destination != client.endpoint or datagram.kind != DATA
            simulation.network.inject(changed, simulation.now + 0.02)
            return False

        simulation.network.passes.append(by_kind)
        client.start()
        simulation.advance(2)
        self.assertTrue(works_both_ways(simulation, client))
        self.assertEqual(len(times(simulation.network.captured, 0)), 1)

    @given(st.integers(0, 2**32), st.floats(0, 0.4), st.lists(st.floats(0.1, 9), max_size=15))
    @settings(deadline=None, max_examples=25)
    def test_in_bad_weather(self, seed: int, loss: float, waits: list[float]) -> None:
        """Whatever is lost, doubled or late while the client wanders: when the weather clears,
        traffic flows again, within the timers' sum.
        """
        simulation, client = connected(seed)
        simulation.network.weather = Weather(loss=loss, duplicate=0.2, jitter=0.5)
        numbers = count(1)
        for wait in waits:
            client.move(simulation.new_endpoint())
            client.send(numbered_packet(next(numbers), client.lease.ipv4, HUB4))
            simulation.hub.send(numbered_packet(next(numbers), HUB4, client.lease.ipv4))
            simulation.advance(wait)
        simulation.network.weather = Weather()
        took = both_ways(simulation, client, numbers)
        self.assertLess(took, max(LIVENESS[2], CHALLENGE_TIME) + ASKED)


class OfTheHub(SynchronousTestCase):
    """The hub has two addresses, or moves to another one."""

    def setUp(self) -> None:
        self.simulation, self.client = connected()
        self.simulation.hub.add_address(SECOND)
        log_in_to(self.simulation, self.client, SECOND)
        self.numbers = count(1)

    def lose_second(self) -> None:
        """The address in use goes; the hub answers from the other one, since it has no choice."""
        self.simulation.hub.others.remove(SECOND)
        del self.simulation.nodes[SECOND]

    def test_answers_come_from_the_address_asked(self) -> None:
        """With two addresses the hub talks to each client from the one that client uses."""
        self.assertTrue(works_both_ways(self.simulation, self.client))
        captured = self.simulation.network.captured
        self.assertEqual({d.source for d in captured[-4:]}, {SECOND, self.client.endpoint})
        self.assertEqual(dict(self.client.core.counters), {})

    def test_one_goes_while_the_hub_sends(self) -> None:
        """The client hears the hub from its other address, asks there, and follows."""
        self.lose_second()
        took = both_ways(self.simulation, self.client, self.numbers)
        self.assertLess(took, 3 * ROUND_TRIP)
        self.assertEqual(self.client.core.hub.endpoint, self.simulation.hub.endpoint)
        self.assertEqual(len(self.client.told(Connected)), 2)
        self.assertTrue(works_both_ways(self.simulation, self.client))

    def test_one_goes_while_the_client_sends(self) -> None:
        """Unheard for 4 s, a client that knows several addresses asks at the others."""
        log_in_to(self.simulation, self.client, SECOND, self.simulation.hub.endpoint)
        self.lose_second()
        start = self.simulation.now
        while not self.simulation.hub.received and self.simulation.now < start + 30:
            packet = numbered_packet(next(self.numbers), self.client.lease.ipv4, HUB4)
            self.client.send(packet)
            self.simulation.advance(0.01)
        self.assertLess(self.simulation.now - start, LIVENESS[0] + 3 * ROUND_TRIP)
        self.assertTrue(works_both_ways(self.simulation, self.client))
        self.assertEqual(len(self.client.told(Connected)), 3)  # of the three starts

    def test_the_hub_moves(self) -> None:
        """A hub whose only address changes is followed when it sends; one that waits is found by
        its name, with a login, as soon as it counts as dead.
        """
        simulation, client = self.simulation, self.client
        self.lose_second()
        both_ways(simulation, client, self.numbers)
        simulation.advance(6)
        simulation.hub.move(Endpoint(ip_address("198.51.100.77"), 5050))
        self.assertLess(hub_to_client(simulation, client, self.numbers), ASKED)
        self.assertLess(both_ways(simulation, client, self.numbers), ASKED)
        simulation.advance(12)  # no keepalive is due any more
        simulation.hub.move(Endpoint(ip_address("198.51.100.78"), 5050))
        client.servers = [simulation.hub.endpoint]
        start, before = simulation.now, len(simulation.hub.received)
        while len(simulation.hub.received) == before and simulation.now < start + 30:
            client.send(numbered_packet(next(self.numbers), client.lease.ipv4, HUB4))
            simulation.advance(0.01)
        self.assertLess(simulation.now - start, LIVENESS[2] + 3 * ROUND_TRIP)


class Attackers(SynchronousTestCase):
    def setUp(self) -> None:
        self.simulation, self.client = connected()
        self.simulation.advance(1)
        self.attacker = Endpoint(ip_address("192.0.2.66"), 666)
        self.numbers = count(1)

    def to_attacker(self) -> list[Datagram]:
        captured = self.simulation.network.captured
        return [datagram for datagram in captured if datagram.destination == self.attacker]

    def copy(self, rewrite: Callable[[Datagram], Datagram | None]) -> None:
        """Bring ``rewrite(datagram)`` of each datagram before the datagram itself."""

        def passes(datagram: Datagram) -> bool:
            changed = rewrite(datagram)
            if changed is not None:
                self.simulation.network.inject(changed, self.simulation.now + 0.001)
            return True

        self.simulation.network.passes.append(passes)

    def test_copies_that_come_first(self) -> None:
        """Somebody who is faster draws three challenges in 5 s and no session: both directions of
        the traffic go on, at the client's own address.
        """
        client, simulation = self.client, self.simulation

        def first(datagram: Datagram) -> Datagram | None:
            own = datagram.source == client.endpoint
            return datagram._replace(source=self.attacker) if own else None

        self.copy(first)
        start = simulation.now
        for _ in range(500):
            simulation.hub.send(numbered_packet(next(self.numbers), HUB4, client.lease.ipv4))
            client.send(numbered_packet(next(self.numbers), client.lease.ipv4, HUB4))
            simulation.advance(0.04)
        simulation.advance(1)
        self.assertEqual((len(simulation.hub.received), len(client.received)), (500, 500))
        drawn = self.to_attacker()
        self.assertEqual({len(datagram.payload) for datagram in drawn}, {CHALLENGE_SIZE})
        self.assertLessEqual(len(drawn), CHALLENGES * (20 / CHALLENGE_TIME + 1))
        self.assertGreater(len(drawn), CHALLENGES)  # control: they were noticed
        self.assertLess(times(drawn, start, DATA)[0], 0.1)

    def test_a_relay_is_a_path(self) -> None:
        """Who passes on everything, challenges too, is on the path, and reads nothing. When he
        goes, the client's own datagrams bring its address back within a second.
        """
        client, simulation, hub = self.client, self.simulation, self.simulation.hub
        relaying = True

        def relay(datagram: Datagram) -> Datagram | None:
            if relaying and datagram.source == client.endpoint:
                return datagram._replace(source=self.attacker)
            if relaying and datagram.destination == self.attacker:
                return datagram._replace(source=hub.endpoint, destination=client.endpoint)
            return None

        self.copy(relay)
        both_ways(simulation, client, self.numbers)
        simulation.advance(1)
        peer = hub.core.peer(client.user, client.device)
        assert peer is not None
        both_ways(simulation, client, self.numbers)
        simulation.advance(1)
        self.assertEqual(peer.endpoint, self.attacker)  # control: the attack does what it can
        relaying = False
        client.send(numbered_packet(next(self.numbers), client.lease.ipv4, HUB4))
        self.assertLess(both_ways(simulation, client, self.numbers), ASKED)
        self.assertEqual(peer.endpoint, client.endpoint)

    def test_recorded_datagrams(self) -> None:
        """What was recorded, sent again from elsewhere after the path has moved and back, moves
        nothing and draws nothing.
        """
        client, simulation = self.client, self.simulation
        for _ in range(3):
            client.move(simulation.new_endpoint())
            both_ways(simulation, client, self.numbers)
            simulation.advance(6)
        recorded = list(simulation.network.captured)
        moves = simulation.hub.core.counters["path_moved"]
        self.assertEqual(moves, 3)  # control
        before = len(simulation.network.captured)
        client.asleep = True
        for datagram in recorded:
            simulation.network.inject(datagram, simulation.now)
            simulation.network.inject(datagram._replace(source=self.attacker), simulation.now)
        simulation.advance(5)
        drawn = simulation.network.captured[before:]
        keepalive = KEEPALIVE_SIZE  # the hub heard data before and had nothing to say
        self.assertLessEqual({len(datagram.payload) for datagram in drawn}, {keepalive})
        self.assertLessEqual({datagram.destination for datagram in drawn}, {client.endpoint})
        self.assertEqual(simulation.hub.core.counters["path_moved"], moves)
        client.asleep = False
        self.assertTrue(works_both_ways(simulation, client))

    def test_a_held_back_answer(self) -> None:
        """An answer that is kept until the client has moved on, and was heard there, is none."""
        client, simulation = self.client, self.simulation
        first = client.endpoint
        held: list[Datagram] = []

        def hold(datagram: Datagram) -> bool:
            response = datagram.source == elsewhere and len(datagram.payload) == CHALLENGE_SIZE
            if response:
                held.append(datagram)
            return not response

        elsewhere = simulation.new_endpoint()
        simulation.network.passes.append(hold)
        client.move(elsewhere)
        client.send(numbered_packet(1, client.lease.ipv4, HUB4).ljust(200, b"\0")[:200])
        simulation.hub.send(numbered_packet(2, HUB4, client.lease.ipv4))
        client.send(*[numbered_packet(number, client.lease.ipv4, HUB4) for number in range(3, 9)])
        simulation.advance(0.2)
        self.assertEqual(len(held), 1)
        client.move(first)
        client.send(numbered_packet(9, client.lease.ipv4, HUB4))
        simulation.advance(0.2)
        simulation.network.passes.clear()
        simulation.network.inject(held[0], simulation.now)
        simulation.advance(0.2)
        self.assertEqual(simulation.hub.core.counters["path_moved"], 0)
        self.assertEqual(simulation.hub.core.counters["path_response_unexpected"], 1)

    @given(
        st.lists(
            st.tuples(
                st.floats(0, 1.5),
                st.integers(0, 3),
                st.sampled_from(["packet", "keepalive", "poll", "challenge", "probe", "answer"]),
            ),
            max_size=60,
        )
    )
    @settings(deadline=None, max_examples=60)
    def test_amplification(self, steps: list[tuple[float, int, str]]) -> None:
        """A user who turns against others and sends from their addresses makes the hub send each of
        them no more bytes than came from there, and never data or a REPLY.
        """
        scene = Scene()
        hub = scene.hub
        victims = [Endpoint(ip_address(f"192.0.2.{number}"), 53) for number in range(1, 5)]
        received = dict.fromkeys(victims, 0)
        for number, (wait, victim, kind) in enumerate(steps):
            scene.simulation.advance(wait)
            plaintext = {
                "packet": numbered_packet(number, scene.client.lease.ipv4, HUB4),
                "keepalive": b"",
                "poll": control.Poll(number.to_bytes(12, "big"), number + 9, 10**6, 999).pack(),
                "challenge": control.PathChallenge(bytes(16)).pack(),
                "probe": control.PathChallenge(bytes(16)).pack(96),
                "answer": control.PathResponse(bytes(16)).pack(),
            }[kind]
            datagram = scene.sealed(scene.client.core.hub, plaintext)
            received[victims[victim]] += len(datagram)
            hub.send(numbered_packet(number, HUB4, scene.client.lease.ipv4))
            scene.to_hub(datagram, victims[victim])
            for place, octets in received.items():
                sent = [len(d.payload) for d in scene.sent() if d.destination == place]
                self.assertLessEqual(sum(sent), octets)
                self.assertLessEqual(set(sent), {CHALLENGE_SIZE})
        self.assertEqual(hub.core.counters["path_moved"], 0)

    def test_amplification_control(self) -> None:
        """Control: they do get that much, and the user's own address gets REPLY and data."""
        scene = Scene()
        victim = Endpoint(ip_address("192.0.2.1"), 53)
        scene.simulation.advance(1)
        scene.to_hub(
            scene.sealed(scene.client.core.hub, control.PathChallenge(bytes(16)).pack(96)), victim
        )
        scene.client.core._poll(scene.now)
        scene.client.drain()
        scene.simulation.advance(0.1)
        self.assertEqual(sum(len(d.payload) for d in scene.sent() if d.destination == victim), 128)
        to_client = [len(d.payload) for d in scene.sent() if d.destination == scene.client.endpoint]
        self.assertIn(REPLY_SIZE, to_client)
