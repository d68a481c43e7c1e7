"""Whatever happens to a hub and its clients, in any order: what must hold all the while.

Hypothesis chooses what happens and when; each event is something that happens to real machines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.login import LoginFlags
from pyvpn.testing.simulation import Datagram, Simulation, Weather, numbered_packet
from tests.sim.rules import ANSWER, DATA, HUB4, LOGIN, cut, heal, with_client, works_both_ways

HOUR = 3600 * 10**9

#: previous, current, next and one login that waits for a decision (PROTOCOL 8).
INDICES = 4
#: After the last bad event a client is back within its longest back-off, 300 s and the jitter, or
#: when its present session has died (180 s) and the login after that came through (5 s).
RECOVERY = 320.0


class Life:
    """A hub, two clients, and the checks of each moment."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed)
        polls = {"flags": LoginFlags.DELIVER_ON_POLL, "poll_interval": 0.5}
        self.clients = [
            with_client(self.simulation),
            with_client(self.simulation, "bob", "pw", **polls),
        ]
        for client in self.clients:
            client.start()
        self.simulation.advance(1)
        self.sent: Counter[bytes] = Counter()
        self.number = 0
        self.looked = 0
        # What a hub's answer names: (hub's index, client's index), to see who spoke first on it.
        self.answered: dict[bytes, bytes] = {}
        self.spoken: set[bytes] = set()
        self.requests = self.answers = 0

    # -- what happens -------------------------------------------------------------------------

    def traffic(self) -> None:
        """A packet each way, for each client that is up."""
        for client in self.clients:
            if client.core.state is State.UP:
                there, back = (
                    self.packet(client.lease.ipv4, HUB4),
                    self.packet(HUB4, client.lease.ipv4),
                )
                client.send(there)
                self.simulation.hub.send(back)

    def packet(self, source: object, destination: object) -> bytes:
        self.number += 1
        packet = numbered_packet(self.number, source, destination)  # type: ignore[arg-type]
        self.sent[packet] += 1
        return packet

    def happen(self, what: str, which: int, amount: float) -> None:
        simulation, client = self.simulation, self.clients[which % 2]
        events: dict[str, Callable[[], object]] = {
            "traffic": self.traffic,
            "a moment": lambda: simulation.advance(amount),
            "a long time": lambda: simulation.advance(amount * 30),
            "cable cut": lambda: cut(simulation),
            "cable mended": lambda: heal(simulation),
            "storm": lambda: self.weather(amount),
            "calm": lambda: setattr(simulation.network, "weather", Weather()),
            "hub crashes": simulation.hub.restart,
            "client crashes": lambda: (client.restart(), client.start()),
            "another address": lambda: client.roam(simulation.new_endpoint()),
            "NAT rebinds": lambda: client.move(simulation.new_endpoint()),
            "client sleeps": lambda: self.sleep(client, amount),
            "hub sleeps": lambda: self.sleep(simulation.hub, amount),
            "client's clock jumps": lambda: setattr(client, "wall_step", int((amount - 6) * HOUR)),
            "hub's clock jumps": lambda: setattr(
                simulation.hub, "wall_step", int((amount - 6) * HOUR)
            ),
            "old datagrams come again": lambda: self.replay(which),
        }
        events[what]()
        self.look()

    def weather(self, amount: float) -> None:
        share = amount / 24
        self.simulation.network.weather = Weather(
            loss=share, duplicate=share, corrupt=share / 2, delay=share, jitter=amount / 4
        )

    def sleep(self, node: object, amount: float) -> None:
        node.asleep = True  # type: ignore[attr-defined]
        self.simulation.advance(amount * 20)
        node.asleep = False  # type: ignore[attr-defined]

    def replay(self, which: int) -> None:
        captured = self.simulation.network.captured
        for datagram in captured[which % 7 :: 7][-50:]:
            self.simulation.network.inject(datagram, self.simulation.now)

    # -- what must hold -----------------------------------------------------------------------

    def look(self) -> None:
        """Check everything that was sent since the last look, and what each side keeps."""
        hub = self.simulation.hub
        captured = self.simulation.network.captured
        for datagram in captured[self.looked :]:
            self.look_at(datagram)
        self.looked = len(captured)
        received = Counter(packet for node in (hub, *self.clients) for packet in node.received)
        assert received <= self.sent, "something arrived twice, or was never sent"
        for client in self.clients:
            peer = hub.core.peer(client.user, client.device)
            if peer is not None:
                waiting = len(hub.core._undecided)
                assert len(peer.sessions()) + waiting <= INDICES
            assert len(client.core.hub.sessions()) <= INDICES

    def look_at(self, datagram: Datagram) -> None:
        payload, hub = datagram.payload, self.simulation.hub.endpoint
        if datagram.kind == ANSWER:
            self.answers += 1
            self.answered[payload[8:12]] = payload[4:8]
            assert len(payload) <= 208, "an answer longer than its request"
        elif datagram.kind == LOGIN:
            self.requests += 1
        elif datagram.kind == DATA and datagram.source == hub:
            # No plaintext, and nothing else, leaves the responder before the session is current.
            index = self.answered.get(payload[4:8])
            assert index is not None, "the hub spoke on a session that it never agreed to"
            assert index in self.spoken, "the hub spoke first"
        elif datagram.kind == DATA:
            self.spoken.add(payload[4:8])


EVENTS = (
    *["traffic"] * 6,
    *["a moment"] * 6,
    "a long time",
    "cable cut",
    *["cable mended"] * 2,
    "storm",
    "calm",
    "hub crashes",
    "client crashes",
    "another address",
    "NAT rebinds",
    "client sleeps",
    "hub sleeps",
    "client's clock jumps",
    "hub's clock jumps",
    "old datagrams come again",
)
schedule = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 100), st.floats(0.1, 12)), max_size=40
)


class Schedules(SynchronousTestCase):
    @given(st.integers(0, 2**32), schedule)
    @settings(deadline=None, max_examples=120)
    def test_any(self, seed: int, events: list[tuple[str, int, float]]) -> None:
        """In any order of events: at most once, nothing before *current*, few indices, no answer
        longer than its request; and when all is well again, both clients are back by themselves.
        """
        life = Life(seed)
        for what, which, amount in events:
            life.happen(what, which, amount)
        heal(life.simulation)
        life.simulation.network.weather = Weather()
        life.simulation.hub.wall_step = 0
        for client in life.clients:
            client.wall_step = 0
        life.simulation.advance(RECOVERY)
        life.look()
        for number, client in enumerate(life.clients):
            self.assertIs(client.core.state, State.UP)
            self.assertTrue(works_both_ways(life.simulation, client, 10**6 + number * 10))

    def test_each_event_happens(self) -> None:
        """Control: every event of the schedule is one that happens, one after the other."""
        life = Life(1)
        for what in dict.fromkeys(EVENTS):
            before = len(life.simulation.network.captured), life.simulation.now
            life.happen(what, 0, 5.0)
            life.happen("cable mended", 0, 1.0)
            life.happen("traffic", 0, 1.0)
            life.happen("a moment", 0, 1.0)
            self.assertNotEqual(
                before, (len(life.simulation.network.captured), life.simulation.now), what
            )
        self.assertGreater(life.requests, 3)
        self.assertGreaterEqual(life.requests, life.answers)

    def test_a_hub_that_speaks_first_is_noticed(self) -> None:
        """Control: the checks see a hub that sends on a session before the client has."""
        life = Life(2)
        life.look()
        index, hubs_index = next(iter(life.answered.items()))
        data = Datagram(
            life.simulation.now,
            life.simulation.hub.endpoint,
            life.clients[0].endpoint,
            b"\4\0\0\0" + index + bytes(40),
        )
        life.look_at(data)
        life.spoken.discard(hubs_index)
        self.assertRaises(AssertionError, life.look_at, data)
