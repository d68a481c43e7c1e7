"""Handshakes of stock peers that meet, are lost, or come from odd clocks, on a virtual clock."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import pairwise

from pyvpn.core.events import WireGuardDisconnected
from pyvpn.core.noise import KeyPair
from pyvpn.core.wireguarddevice import WireGuardDevice
from pyvpn.errors import LocalProtocolError
from pyvpn.testing.simulation import NETWORK6, ip_packet
from tests.core.badwireguard import StockCase
from tests.sim.test_wireguard import Pair

REKEY_TIMEOUT, REKEY_JITTER = 5, 0.334
REKEY_AFTER_TIME = 120
REKEY_ON_RECEIVE_TIME = 165
REKEY_ATTEMPT_TIME = 90
DAY = 86_400 * 10**9  # ns


class Crossing(Pair):
    """Both ends have begun a handshake within one round trip."""

    def setUp(self) -> None:
        super().setUp()
        now = self.simulation.now
        self.second.core.wireguard.set_endpoint(self.to_first, self.first.endpoint, now)
        self.first.core.wireguard.connect(self.to_second, now)
        self.second.core.wireguard.connect(self.to_first, now)
        self.first.drain()
        self.second.drain()
        self.simulation.advance(1)
        # Each sends on the session that it has begun itself.
        assert self.to_first.current is not None and self.to_second.previous is not None
        self.assertEqual(self.to_first.current.remote_index, self.to_second.previous.local_index)

    def test_roaming(self) -> None:
        """The endpoint follows, although nothing is heard on the session that is current."""
        for _ in range(3):
            self.first.move(self.simulation.new_endpoint())
            self.simulation.advance(2)
            self.exchange()
            self.assertEqual(self.to_first.endpoint, self.first.endpoint)

    def test_what_is_late_moves_nothing(self) -> None:
        """What was held back, and is older than what has been heard since, is no move."""
        self.simulation.network.passes.append(lambda datagram: False)
        self.first.send(self.packet(0))
        self.simulation.network.passes.clear()
        held = self.simulation.network.captured[-1]
        self.simulation.advance(2)
        self.exchange()
        elsewhere = held._replace(source=self.simulation.new_endpoint())
        self.simulation.network.inject(elsewhere, self.simulation.now + 2)
        self.simulation.advance(3)
        self.assertEqual(self.second.received[-1], self.packet(0))
        self.assertEqual(self.to_first.endpoint, self.first.endpoint)

    def test_the_session_before_moves_nothing(self) -> None:
        """After the next handshake, what comes on the one before is no move, however new it is."""
        self.simulation.network.passes.append(lambda datagram: False)
        self.first.send(self.packet(0))
        self.simulation.network.passes.clear()
        held = self.simulation.network.captured[-1]
        self.simulation.advance(REKEY_TIMEOUT + 1)
        self.first.core.wireguard.connect(self.to_second, self.simulation.now)
        self.first.drain()
        self.simulation.advance(1)
        elsewhere = held._replace(source=self.simulation.new_endpoint())
        self.simulation.network.inject(elsewhere, self.simulation.now)
        self.simulation.advance(1)
        self.assertEqual(self.to_first.endpoint, self.first.endpoint)


class Attempts(Pair):
    def test_the_other_one_was_first(self) -> None:
        """Who waits for an answer tries no more once the other end's handshake has come to keys."""
        now = self.simulation.now
        nowhere = self.simulation.new_endpoint()
        self.first.core.wireguard.set_endpoint(self.to_second, nowhere, now)
        self.first.core.wireguard.connect(self.to_second, now)
        self.first.drain()
        self.simulation.advance(1)
        self.second.core.wireguard.set_endpoint(self.to_first, self.first.endpoint, now)
        self.second.core.wireguard.connect(self.to_first, self.simulation.now)
        self.second.drain()
        self.simulation.advance(60)
        initiations = [d.source for d in self.simulation.network.captured if d.kind == 1]
        self.assertEqual(initiations, [self.first.endpoint, self.second.endpoint])
        self.assertEqual(self.first.core.wireguard._pending, {})
        self.exchange()

    def test_who_goes_on_sending(self) -> None:
        """Packets keep the attempt up: what was sent before the 90 s are over is not dropped."""
        del self.simulation.nodes[self.second.endpoint]
        for number in range(10):
            self.first.send(self.packet(number))
            self.simulation.advance(REKEY_ATTEMPT_TIME / 9)
        self.simulation.nodes[self.second.endpoint] = self.second
        self.simulation.advance(REKEY_TIMEOUT + 1)
        self.assertEqual(self.second.received, [self.packet(number) for number in range(10)])

    def test_who_has_ceased_to(self) -> None:
        """Control: 90 s after the last packet, everything is dropped and nobody is asked."""
        del self.simulation.nodes[self.second.endpoint]
        self.first.send(self.packet(0))
        self.simulation.advance(40)
        self.first.send(self.packet(1))
        self.simulation.advance(REKEY_ATTEMPT_TIME - 1)
        self.assertEqual(len(self.to_second.staged), 2)
        self.simulation.advance(REKEY_TIMEOUT + REKEY_JITTER + 1)
        self.assertEqual(self.to_second.staged, [])
        tries = len(self.kinds())
        self.simulation.advance(600)
        self.assertEqual(len(self.kinds()), tries)

    def test_all_due_at_once(self) -> None:
        """A timer that comes late, with several things due, deals with all of them in one call."""
        del self.simulation.nodes[self.second.endpoint]
        self.first.core.wireguard.set_keepalive(self.to_second, 7, self.simulation.now)
        self.first.send(self.packet(0))
        self.first.asleep = True
        self.simulation.advance(60)
        self.first.asleep = False
        self.simulation.advance(0)
        timer = self.first.core.next_timer()
        assert timer is not None
        self.assertGreater(timer[0], self.simulation.now)

    def test_an_old_cookie(self) -> None:
        """A cookie is used for 120 s and then no more."""
        self.second.core._admission.overloaded(self.simulation.now)
        self.first.send(self.packet(0))
        self.simulation.advance(100)
        self.first.core.wireguard.connect(self.to_second, self.simulation.now)
        self.first.drain()
        self.simulation.advance(30)
        self.first.core.wireguard.connect(self.to_second, self.simulation.now)
        self.first.drain()
        sent = [d.payload for d in self.simulation.network.captured if d.kind == 1]
        self.assertEqual([m[-16:] != bytes(16) for m in sent], [False, True, True, False])

    def test_late_on_the_keys_before(self) -> None:
        """What was under way while keys were renewed is taken, and moves nothing."""
        self.exchange()
        self.simulation.network.passes.append(lambda datagram: False)
        self.first.send(self.packet(9))
        self.simulation.network.passes.clear()
        held = self.simulation.network.captured[-1]
        self.simulation.advance(REKEY_TIMEOUT)
        self.first.core.wireguard.connect(self.to_second, self.simulation.now)
        self.first.drain()
        self.simulation.advance(2)
        self.assertEqual(self.kinds().count(2), 2)
        elsewhere = held._replace(source=self.simulation.new_endpoint())
        self.simulation.network.inject(elsewhere, self.simulation.now)
        self.simulation.advance(1)
        self.assertEqual(self.second.received[-1], self.packet(9))
        self.assertEqual(self.to_first.endpoint, self.first.endpoint)


class LastMinute(Pair):
    """Keys that nobody has used for 165 s."""

    def initiations(self) -> list[object]:
        return [d.source for d in self.simulation.network.captured if d.kind == 1]

    def unused(self, seconds: float) -> None:
        """The first has begun the handshake, and nothing is said until so long after it."""
        self.first.core.wireguard.connect(self.to_second, self.simulation.now)
        self.first.drain()
        self.simulation.advance(seconds)

    def test_worn(self) -> None:
        """Nor are keys used for more than 2^60 messages, in either direction, without new ones."""
        self.unused(REKEY_TIMEOUT + 1)
        session = self.to_second.current
        assert session is not None
        session.send_counter = 2**60 - 1
        self.first.send(self.packet(0))
        self.assertEqual(self.initiations(), [self.first.endpoint] * 2)
        self.simulation.advance(REKEY_TIMEOUT + 1)
        session = self.to_second.current
        session.window.highest = 2**60
        self.first.send(self.packet(1))
        self.assertEqual(self.initiations(), [self.first.endpoint] * 3)

    def test_received(self) -> None:
        """What their initiator receives makes it renew them, at once and once."""
        self.unused(REKEY_ON_RECEIVE_TIME + 0.1)
        for number in range(3):
            self.second.send(self.packet(number, back=True))
        self.simulation.advance(1)
        self.assertEqual(self.initiations(), [self.first.endpoint] * 2)

    def test_received_before(self) -> None:
        """Control: before that it does not."""
        self.unused(REKEY_ON_RECEIVE_TIME - 0.1)
        self.second.send(self.packet(0, back=True))
        self.simulation.advance(0.05)
        self.assertEqual(self.initiations(), [self.first.endpoint])

    def test_received_by_the_responder(self) -> None:
        """What the other end receives is no reason for it: the initiator has its own."""
        self.unused(REKEY_ON_RECEIVE_TIME + 0.1)
        self.first.send(self.packet(0))
        self.simulation.advance(1)
        self.assertEqual(self.initiations(), [self.first.endpoint] * 2)

    def test_sent_by_the_responder(self) -> None:
        """Nor is what it sends."""
        self.unused(REKEY_AFTER_TIME + 5)
        self.second.send(self.packet(0, back=True))
        self.simulation.advance(1)
        self.assertEqual(self.initiations(), [self.first.endpoint])


class Clocks(Pair):
    def test_set_back(self) -> None:
        """A clock that is set back by days costs no try: stamps go on from the last one."""
        self.exchange()
        self.first.wall_step = -3 * DAY
        for _ in range(60):
            self.exchange()
            self.simulation.advance(20)
        self.assertGreater(self.kinds().count(1), 8)
        self.assertEqual(self.second.core.counters["wireguard_stamp_replayed"], 0)
        tried = [d.time for d in self.simulation.network.captured if d.kind == 1]
        for before, after in pairwise(tried):
            self.assertGreater(after - before, REKEY_AFTER_TIME)

    def test_many_peers(self) -> None:
        """However many are asked at once, no stamp runs ahead: a restart needs later ones."""
        now = self.simulation.now
        wireguard = self.first.core.wireguard
        for number in range(200):
            public = KeyPair.of(number.to_bytes(32, "big")).public
            peer = wireguard.add(public, now)
            wireguard.set_endpoint(peer, self.simulation.new_endpoint(), now)
            wireguard.connect(peer, now)
        wireguard.connect(self.to_second, now)
        self.first.drain()
        self.simulation.advance(1)
        self.assertNotEqual(self.to_first.stamp_seen, b"")
        self.first.restart()
        self.to_second = self.simulation.acquaint(self.first, self.second)
        self.find()
        self.exchange()
        self.assertEqual(self.second.core.counters, {})


class Configuration(Pair):
    def reasons(self) -> list[str]:
        return [event.reason for event in self.first.told(WireGuardDisconnected)]

    def test_who_is_told(self) -> None:
        """A connection that ends by what is configured is told, and one that never was is not."""
        wireguard, now = self.first.core.wireguard, self.simulation.now
        wireguard.set_private_key(bytes([9]) * 32, now)
        wireguard.set_private_key(self.first.pair.private, now)
        self.first.drain()
        self.assertEqual(self.reasons(), [])
        self.exchange()
        wireguard.set_private_key(bytes([9]) * 32, self.simulation.now)
        self.first.drain()
        self.assertEqual(self.reasons(), ["key_changed"])
        wireguard.set_private_key(self.first.pair.private, self.simulation.now)
        self.simulation.advance(20)
        self.exchange()
        wireguard.remove(self.second.pair.public, self.simulation.now)
        wireguard.remove(self.second.pair.public, self.simulation.now)
        self.first.drain()
        self.assertEqual(self.reasons(), ["key_changed", "removed"])
        self.assertEqual(self.first.core._sessions, {})

    def test_no_endpoint(self) -> None:
        """Who does not know where a peer is asks nobody, whatever is due; packets are dropped."""
        wireguard, now = self.second.core.wireguard, self.simulation.now
        wireguard.connect(self.to_first, now)
        wireguard.set_keepalive(self.to_first, 10, now)
        self.second.send(self.packet(0, back=True))
        self.simulation.advance(100)
        self.assertEqual(self.kinds(), [])
        self.assertEqual(wireguard._pending, {})
        self.assertEqual(self.second.core.counters, {"wireguard_no_endpoint": 1})
        self.exchange()

    def test_rebound_without_keys(self) -> None:
        """A new port is no reason to ask a peer without keys, unless it wants to be kept alive."""
        wireguard = self.first.core.wireguard
        wireguard.rebound(self.simulation.now)
        self.first.drain()
        self.assertEqual(self.kinds(), [])
        self.exchange()
        wireguard.rebound(self.simulation.now + 500)  # the keys are too old, and still there
        self.first.drain()
        before = len(self.kinds())
        self.simulation.advance(500)
        wireguard.rebound(self.simulation.now)
        self.first.drain()
        self.assertNotIn(1, self.kinds(before))
        wireguard.set_keepalive(self.to_second, 60, self.simulation.now)
        self.to_second.persistent_due = float("inf")
        before = len(self.kinds())
        wireguard.rebound(self.simulation.now)
        self.first.drain()
        self.assertEqual(self.kinds(before), [1])

    def test_the_same_key(self) -> None:
        """The key that it has already disturbs nothing."""
        self.exchange()
        wireguard = self.first.core.wireguard
        wireguard.set_private_key(self.first.pair.private, self.simulation.now)
        self.assertIsNotNone(self.to_second.current)

    def test_peers_before_the_key(self) -> None:
        """Peers may come first; the one whose key turns out to be our own goes."""
        device = WireGuardDevice(
            wall_clock=self.simulation.wall_clock, random_bytes=self.simulation.random_bytes
        )
        wireguard, now = device.wireguard, self.simulation.now
        own, other = KeyPair.of(bytes([9]) * 32), self.second.pair.public
        peer = wireguard.add(own.public, now)
        wireguard.set_endpoint(peer, self.second.endpoint, now)
        wireguard.set_keepalive(peer, 25, now)
        wireguard.connect(peer, now)
        self.assertIs(wireguard.add(own.public, now), peer)
        wireguard.add(other, now)
        self.assertEqual(device.datagrams_to_send(now), [])
        wireguard.set_private_key(own.private, now)
        self.assertEqual(list(wireguard.peers), [other])
        self.assertRaises(LocalProtocolError, wireguard.add, own.public, now)

    def test_networks(self) -> None:
        """A network is taken away only from the peer that has it; nothing else is lost with it."""
        wireguard = self.first.core.wireguard
        other = wireguard.add(bytes([9]) * 32, self.simulation.now)
        mine, wide = ip_network(self.second.inner[0]), NETWORK6
        wireguard.disallow(other, mine)
        wireguard.disallow(other, wide)
        self.assertEqual(len(wireguard.networks(self.to_second)), 2)
        self.assertIsNone(wireguard.allow(other, wide))
        self.assertIs(wireguard.allow(other, mine), self.to_second)
        self.assertEqual(wireguard.networks(other), [wide, mine])
        wireguard.disallow(other, wide)
        self.assertEqual(wireguard.networks(other), [mine])
        wireguard.disallow_all(other)
        self.assertEqual(wireguard.networks(other), [])
        self.assertEqual(len(wireguard.networks(self.to_second)), 1)

    def test_a_keepalive_again(self) -> None:
        """The first one is due at once, another interval after that time, none for 0."""
        wireguard = self.first.core.wireguard
        for seconds, due in ((0, None), (25, 0), (30, 30), (25, 25), (0, None), (7, 0)):
            wireguard.set_keepalive(self.to_second, seconds, self.simulation.now)
            expected = float("inf") if due is None else self.simulation.now + due
            self.assertEqual(self.to_second.persistent_due, expected)

    def test_bounds(self) -> None:
        """Keys have 32 bytes; a keepalive is 0 to 65,535 s."""
        wireguard, now = self.first.core.wireguard, self.simulation.now
        for size in (0, 31, 33):
            self.assertRaises(LocalProtocolError, wireguard.add, bytes(size), now)
            self.assertRaises(
                LocalProtocolError, wireguard.set_psk, self.to_second, bytes(size), now
            )
        for seconds in (-1, 65_536):
            self.assertRaises(
                LocalProtocolError, wireguard.set_keepalive, self.to_second, seconds, now
            )
        wireguard.set_keepalive(self.to_second, 65_535, now)
        wireguard.set_keepalive(self.to_second, 0, now)


class AtTheHub(Pair):
    """What takes a hub."""

    def setUp(self) -> None:
        self.case = StockCase()
        self.simulation = self.case.simulation

    def test_one_index_for_one(self) -> None:
        """The index that an initiation waits under is given to no session, a user's neither."""
        case = self.case
        case.initiate()
        (waiting,) = case.wireguard._pending
        core, drawn = case.hub.core, [waiting.to_bytes(4, "little"), b"\1\2\3\4"]
        core._random_bytes = lambda count: drawn.pop(0)
        self.assertEqual(core._new_index(), 0x04030201)
        self.assertEqual(drawn, [])

    def test_nothing_to_send_after_all(self) -> None:
        """An initiator whose waiting packet fits nowhere still shows that it has the keys."""
        case = self.case
        peer, public = case.stock, case.phone.pair.public
        case.wireguard.remove(public, case.now)
        case.phone.core.wireguard.stop()
        case.hub.drain()
        case.phone.drain()
        peer = case._acquaint(case.phone)
        case.wireguard.set_endpoint(peer, case.phone.endpoint, case.now)
        case.hub.send(ip_packet(NETWORK6[1], case.phone.inner[1], bytes(1421 - 40)))
        case.mark()
        case.simulation.advance(1)
        self.assertEqual(case.hub.core.counters["too_big"], 1)
        kinds: list[tuple[int, int]] = [(d.kind, len(d.payload)) for d in case.sent()]
        self.assertEqual(kinds, [(2, 92), (4, 32)])
        (to_hub,) = case.phone.core.wireguard.peers.values()
        self.assertIsNotNone(to_hub.current)
