"""Whatever happens to a hub and its stock peers, in any order: what must hold all the while.

Hypothesis chooses what happens and when, as in ``test_schedules.py``. The constants are retyped
from the WireGuard paper (6.1) and docs/protocol.rst.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.noise import KeyPair
from pyvpn.core.transport import Session
from pyvpn.core.wireguardpeers import WireGuardPeer
from pyvpn.testing.simulation import (
    NETWORK4,
    NETWORK6,
    Datagram,
    Node,
    Simulation,
    StockDevice,
    Weather,
    numbered_packet,
)
from tests.sim.rules import cut, heal, with_client

HOUR = 3600 * 10**9
REKEY_TIMEOUT = 5
REKEY_AFTER_TIME = 120
REKEY_ATTEMPT_TIME = 90
REJECT_AFTER_TIME = 180
INITIATION, RESPONSE, COOKIE_REPLY, DATA = 1, 2, 3, 4
#: When all is well again, who sends is heard after 15 s without an answer, at most two tries and
#: what jitter adds; some of it for what was under way.
RECOVERY = 40
#: previous, current and next.
SESSIONS = 3
#: Timer entries of one peer: each of its deadlines, and those that were put off.
TIMERS = 300


class Life:
    """A hub with a user and two stock peers, and the checks of each moment."""

    def __init__(self, seed: int) -> None:
        simulation = self.simulation = Simulation(seed)
        self.hub = simulation.hub
        self.alice = with_client(simulation)
        self.alice.start()
        self.devices = [simulation.add_stock_device(number) for number in (200, 201)]
        self.hub_key = KeyPair.of(simulation.random_bytes(32))
        self.psk = simulation.random_bytes(32)
        self.keepalive = [0, 25]
        self.number = 0
        self.sent: dict[Node, Counter[bytes]] = {
            node: Counter() for node in (self.hub, *self.devices)
        }
        self.generation = 0
        self.looked = 0
        #: What a responder was answered by: index of the initiator → its own.
        self.answered: dict[bytes, bytes] = {}
        self.spoken: set[bytes] = set()
        self.initiated: dict[tuple[int, Any, Any], float] = {}
        self.configure()
        simulation.advance(1)

    # -- configuration ----------------------------------------------------------------------------

    def configure(self) -> None:
        """Let everybody know everybody, by the keys of now."""
        now, hub = self.simulation.now, self.hub.core.wireguard
        self.generation += 1
        hub.set_private_key(self.hub_key.private, now)
        for public in set(hub.peers) - {device.pair.public for device in self.devices}:
            hub.remove(public, now)
        for device, keepalive in zip(self.devices, self.keepalive, strict=True):
            self.simulation.acquaint(self.hub, device, psk=self.psk)
            device.core.wireguard.set_private_key(device.pair.private, now)
            for public in set(device.core.wireguard.peers) - {self.hub_key.public}:
                device.core.wireguard.remove(public, now)
            peer = device.core.wireguard.add(self.hub_key.public, now)
            device.core.wireguard.set_psk(peer, self.psk, now)
            for network in (NETWORK4, NETWORK6):
                device.core.wireguard.allow(peer, network)
            device.core.wireguard.set_endpoint(peer, self.hub.endpoint, now)
            device.core.wireguard.set_keepalive(peer, keepalive, now)
            device.drain()
        self.hub.drain()

    def restart(self, node: Any, *, known: bool = False) -> None:
        """As after a crash: keys are gone, and the hub may or may not know where its peers are."""
        endpoints = {device: self.peer_of(device).endpoint for device in self.devices if known}
        node.restart()
        self.configure()
        for device, endpoint in endpoints.items():
            if endpoint is not None:
                peer = self.peer_of(device)
                self.hub.core.wireguard.set_endpoint(peer, endpoint, self.simulation.now)

    def peer_of(self, device: StockDevice) -> WireGuardPeer:
        """What the hub has of a device; it is made if there is nothing."""
        peer: WireGuardPeer = self.hub.core.wireguard.add(device.pair.public, self.simulation.now)
        return peer

    def remove(self, device: StockDevice) -> None:
        self.generation += 1
        self.hub.core.wireguard.remove(device.pair.public, self.simulation.now)
        self.hub.drain()

    def new_key(self, device: StockDevice) -> None:
        """The device has another key, and the hub is not told yet."""
        self.generation += 1
        device.pair = KeyPair.of(self.simulation.random_bytes(32))
        device.core.wireguard.set_private_key(device.pair.private, self.simulation.now)
        device.drain()

    def new_hub_key(self) -> None:
        self.generation += 1
        self.hub_key = KeyPair.of(self.simulation.random_bytes(32))
        self.hub.core.wireguard.set_private_key(self.hub_key.private, self.simulation.now)
        self.hub.drain()

    def new_psk(self) -> None:
        """The hub has another pre-shared key for all, who are not told yet."""
        self.psk = self.simulation.random_bytes(32)
        for peer in self.hub.core.wireguard.peers.values():
            self.hub.core.wireguard.set_psk(peer, self.psk, self.simulation.now)

    def set_keepalive(self, which: int, seconds: int) -> None:
        self.keepalive[which] = seconds
        wireguard = self.devices[which].core.wireguard
        for peer in wireguard.peers.values():
            wireguard.set_keepalive(peer, seconds, self.simulation.now)
        self.devices[which].drain()

    # -- what happens -----------------------------------------------------------------------------

    def packet(self, source: Node, target: Node, device: StockDevice) -> bytes:
        """A packet that is like no other, between the hub and a device."""
        self.number += 1
        networks = NETWORK4, NETWORK6
        addresses = device.inner[self.number % 2], networks[self.number % 2][1]
        if source is self.hub:
            addresses = addresses[1], addresses[0]
        packet = numbered_packet(self.number, *addresses)
        self.sent[target][packet] += 1
        return packet

    def traffic(self) -> None:
        for device in self.devices:
            device.send(*(self.packet(device, self.hub, device) for _ in range(3)))
            self.hub.send(*(self.packet(self.hub, device, device) for _ in range(3)))

    def one_way(self, which: int) -> None:
        device = self.devices[which % 2]
        if which % 4 < 2:
            device.send(self.packet(device, self.hub, device))
        else:
            self.hub.send(self.packet(self.hub, device, device))

    def both_at_once(self, device: StockDevice) -> None:
        """Both ends begin a handshake within a round trip."""
        for node in (self.hub, device):
            for peer in node.core.wireguard.peers.values():
                node.core.wireguard.connect(peer, self.simulation.now)
            node.drain()

    def happen(self, what: str, which: int, amount: float) -> None:
        simulation, device = self.simulation, self.devices[which % 2]
        events: dict[str, Callable[[], object]] = {
            "traffic": self.traffic,
            "one way": lambda: self.one_way(which),
            "a moment": lambda: simulation.advance(amount),
            "a long time": lambda: simulation.advance(amount * 30),
            "both at once": lambda: self.both_at_once(device),
            "cable cut": lambda: cut(simulation),
            "cable mended": lambda: heal(simulation),
            "storm": lambda: self.weather(amount),
            "calm": lambda: setattr(simulation.network, "weather", Weather()),
            "hub crashes": lambda: self.restart(self.hub, known=which % 4 < 2),
            "device crashes": lambda: self.restart(device),
            "NAT rebinds": lambda: device.move(simulation.new_endpoint()),
            "port changes": lambda: self.rebind(device),
            "device sleeps": lambda: self.sleep(device, amount),
            "hub sleeps": lambda: self.sleep(self.hub, amount),
            "device's clock is set back": lambda: setattr(device, "wall_step", -int(amount * HOUR)),
            "hub's clock is set back": lambda: setattr(self.hub, "wall_step", -int(amount * HOUR)),
            "old datagrams come again": lambda: self.replay(which, False),
            "old datagrams come from elsewhere": lambda: self.replay(which, True),
            "peer removed": lambda: self.remove(device),
            "device's key changes": lambda: self.new_key(device),
            "hub's key changes": self.new_hub_key,
            "pre-shared key changes": self.new_psk,
            "keepalive changes": lambda: self.set_keepalive(which % 2, int(amount) * which),
            "configured": self.configure,
            "load": lambda: self.hub.core._admission.overloaded(simulation.now + amount),
        }
        self.look()
        events[what]()
        self.look()

    def rebind(self, device: StockDevice) -> None:
        device.move(self.simulation.new_endpoint())
        device.core.wireguard.rebound(self.simulation.now)
        device.drain()

    def weather(self, amount: float) -> None:
        share = amount / 24
        self.simulation.network.weather = Weather(
            loss=share, duplicate=share, corrupt=share / 2, delay=share, jitter=amount / 4
        )

    def sleep(self, node: Node, amount: float) -> None:
        node.asleep = True
        self.simulation.advance(amount * 20)
        node.asleep = False
        self.simulation.advance(0)

    def replay(self, which: int, elsewhere: bool) -> None:
        """What was recorded, lost or not, comes again; perhaps from where nobody is."""
        sources: dict[Any, Any] = {}
        for datagram in self.simulation.network.captured[which % 7 :: 7][-50:]:
            if elsewhere:
                source = sources.get(datagram.source) or self.simulation.new_endpoint()
                sources[datagram.source] = source
                datagram = datagram._replace(source=source)
            self.simulation.network.inject(datagram, self.simulation.now)

    def heal(self) -> None:
        """Everything is well again, and everybody configured for it."""
        heal(self.simulation)
        self.simulation.network.weather = Weather()
        for node in (self.hub, *self.devices):
            node.wall_step = 0
        # What is under way may yet move a device's idea of where the hub is, as at any WireGuard:
        # if the hub has none of the device either, only who configures it knows better.
        self.simulation.advance(20)
        self.look()
        self.configure()
        self.simulation.advance(1)

    # -- what must hold ---------------------------------------------------------------------------

    def look(self) -> None:
        """Check all that was sent since the last look, and what each core keeps."""
        captured = self.simulation.network.captured
        for datagram in captured[self.looked :]:
            self.look_at(datagram)
        self.looked = len(captured)
        for node, sent in self.sent.items():
            ours = Counter(
                packet for packet in node.received if packet in sent or self.ours(packet)
            )
            assert ours <= sent, "something arrived twice, or at the wrong one"
            self.look_into(node)

    def ours(self, packet: bytes) -> bool:
        """Whether a packet is not between the hub and the user's device."""
        inner = [address.packed for device in self.devices for address in device.inner]
        return any(address in packet[:40] for address in inner)

    def look_into(self, node: Node) -> None:
        """Its tables agree with each other and are bounded."""
        core, now = node.core, self.simulation.now
        peers = core.wireguard.peers
        held: dict[int, Session] = {}
        for peer in peers.values():
            sessions = peer.sessions()
            assert len(sessions) <= SESSIONS
            assert len(set(map(id, sessions))) == len(sessions)
            held |= {session.local_index: session for session in sessions}
            assert (peer.pending is None) == (peer not in core.wireguard._pending.values())
            if not node.asleep:
                assert all(session.expires > now for session in sessions), "keys over 180 s old"
        stock = {i: s for i, (p, s) in core._sessions.items() if isinstance(p, WireGuardPeer)}
        assert stock == held, "a session that no peer has, or one that cannot be found"
        assert not set(core.wireguard._pending) & set(core._sessions), "one index for two"
        assert len(core.wireguard._pending) <= len(peers)
        others = getattr(core, "_peers", {}).values()
        staged = sum(peer.staged_bytes for peer in (*peers.values(), *others))
        assert core._staged_bytes == staged, "what is staged is not what is counted"
        assert len(core.wireguard._timers._heap) <= TIMERS * max(len(peers), 1)

    def look_at(self, datagram: Datagram) -> None:
        kind, payload = datagram.kind, datagram.payload
        way = self.generation, datagram.source, datagram.destination
        if kind == INITIATION:
            before = self.initiated.get(way, float("-inf"))
            assert datagram.time - before >= REKEY_TIMEOUT - 1e-6, "too many tries"
            self.initiated[way] = datagram.time
        elif kind == RESPONSE:
            assert (self.generation, payload[8:12]) not in self.answered, "answered twice"
            self.answered[payload[8:12]] = payload[4:8]
        elif kind == DATA:
            index = payload[4:8]
            needed = self.answered.get(index)
            assert needed is None or needed in self.spoken, "the responder spoke first"
            self.spoken.add(index)

    def recovers(self) -> bool:
        """Whether packets arrive in both directions, at both devices, within bounded time."""
        end = self.simulation.now + RECOVERY
        while self.simulation.now < end:
            self.traffic()
            self.simulation.advance(1)
            self.look()
        last = [self.packet(device, self.hub, device) for device in self.devices]
        back = [self.packet(self.hub, device, device) for device in self.devices]
        for device, there in zip(self.devices, last, strict=True):
            device.send(there)
        self.hub.send(*back)
        self.simulation.advance(1)
        self.look()
        return all(there in self.hub.received for there in last) and all(
            packet in device.received for packet, device in zip(back, self.devices, strict=True)
        )


EVENTS = (
    *["traffic"] * 6,
    *["one way"] * 4,
    *["a moment"] * 8,
    *["a long time"] * 2,
    *["both at once"] * 2,
    "cable cut",
    *["cable mended"] * 2,
    "storm",
    "calm",
    "hub crashes",
    "device crashes",
    "NAT rebinds",
    "port changes",
    "device sleeps",
    "hub sleeps",
    "device's clock is set back",
    "hub's clock is set back",
    *["old datagrams come again"] * 2,
    "old datagrams come from elsewhere",
    "peer removed",
    "device's key changes",
    "hub's key changes",
    "pre-shared key changes",
    "keepalive changes",
    *["configured"] * 2,
    "load",
)
schedule = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 100), st.floats(0.1, 12)), max_size=40
)


class Schedules(SynchronousTestCase):
    @given(st.integers(0, 2**32), schedule)
    @settings(deadline=None, max_examples=120)
    def test_any(self, seed: int, events: list[tuple[str, int, float]]) -> None:
        """In any order of events: at most once, to the right one, no responder speaks first, tries
        5 s apart, tables agree; and when all is well again, both devices are back in bounded time.
        """
        life = Life(seed)
        for what, which, amount in events:
            life.happen(what, which, amount)
        life.heal()
        self.assertTrue(life.recovers())

    def test_each_event_happens(self) -> None:
        """Control: every event of the schedule is one that happens, one after the other."""
        life = Life(1)
        for what in dict.fromkeys(EVENTS):
            life.happen(what, 1, 5.0)
            life.happen("cable mended", 0, 1.0)
            life.happen("traffic", 0, 1.0)
            life.happen("a moment", 0, 1.0)
        kinds = Counter(datagram.kind for datagram in life.simulation.network.captured)
        self.assertTrue(all(kinds[kind] > 1 for kind in (INITIATION, RESPONSE, DATA)), kinds)
        life.heal()
        self.assertTrue(life.recovers())

    def test_the_checks_see(self) -> None:
        """Control: they notice a packet twice, an index for two, a wrong sum and keys too old."""
        for spoil in (
            lambda life: life.hub.received.append(life.hub.received[-1]),
            lambda life: life.devices[0].received.append(life.devices[1].received[-1]),
            lambda life: life.hub.core.wireguard._pending.update(
                dict.fromkeys(life.hub.core._sessions, life.peer_of(life.devices[0]))
            ),
            lambda life: setattr(life.hub.core, "_staged_bytes", 1),
            lambda life: life.hub.core._sessions.popitem(),
            lambda life: setattr(life.peer_of(life.devices[0]).current, "expires", 0.0),
        ):
            life = Life(2)
            life.happen("traffic", 0, 1.0)
            life.happen("a moment", 0, 1.0)
            spoil(life)
            self.assertRaises(AssertionError, life.look)

    def test_a_responder_that_speaks_first_is_noticed(self) -> None:
        """Control: the checks see data on a session that its initiator has not used yet."""
        life = Life(3)
        life.happen("traffic", 0, 1.0)
        life.happen("a moment", 0, 1.0)
        index, its_own = next(iter(life.answered.items()))
        here = life.hub.endpoint
        data = Datagram(life.simulation.now, here, here, b"\4\0\0\0" + index + bytes(40))
        life.look_at(data)
        life.spoken.discard(its_own)
        self.assertRaises(AssertionError, life.look_at, data)
