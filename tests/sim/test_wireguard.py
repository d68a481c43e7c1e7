"""Stock WireGuard peers on a virtual clock: handshakes, timers, roaming, and the hub's own users.

The constants are retyped from the WireGuard paper (6.1) and docs/protocol.rst.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_network
from itertools import pairwise
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.events import WireGuardConnected, WireGuardDisconnected
from pyvpn.core.wireguardpeers import WireGuardPeer
from pyvpn.errors import LocalProtocolError
from pyvpn.testing.simulation import (
    NETWORK4,
    NETWORK6,
    Node,
    Simulation,
    StockDevice,
    ip_packet,
    numbered_packet,
)

REKEY_AFTER_TIME = 120
REJECT_AFTER_TIME = 180
REKEY_ATTEMPT_TIME = 90
REKEY_TIMEOUT = 5
KEEPALIVE_TIMEOUT = 10
PSK = bytes(range(32))


def super_packet(source: IPv4Address, target: IPv4Address) -> bytes:
    """Five segments of TCP as a kernel with offloads hands them over."""
    payload = bytes(5 * 1000)
    packet = ip_packet(
        source, target, struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 80, 16, 9, 0, 0) + payload
    )
    packet = bytearray(packet)
    packet[9] = 6
    packet[10:12] = (0xFFFF - int.from_bytes(packet[:20], "big") % 0xFFFF).to_bytes(2, "big")
    pseudo = int.from_bytes(packet[12:20], "big") + 6 + 20 + len(payload)
    packet[36:38] = (pseudo % 0xFFFF).to_bytes(2, "big")
    return struct.pack("=BBHHHH", 1, 1, 40, 1000, 20, 16) + bytes(packet)


class Pair(SynchronousTestCase):
    """Two stock devices that know each other; only the first knows where the other is."""

    def setUp(self) -> None:
        self.simulation = Simulation()
        self.first = self.simulation.add_stock_device(2)
        self.second = self.simulation.add_stock_device(3)
        self.acquaint()

    def acquaint(self, **options: Any) -> None:
        self.to_second = self.simulation.acquaint(self.first, self.second, **options)
        self.to_first = self.simulation.acquaint(self.second, self.first, **options)
        self.find()

    def find(self) -> None:
        now = self.simulation.now
        self.first.core.wireguard.set_endpoint(self.to_second, self.second.endpoint, now)

    def packet(self, number: int, *, back: bool = False) -> bytes:
        """A packet from the first to the second, or back; each number another family and size."""
        source, destination = self.first.inner, self.second.inner
        if back:
            source, destination = destination, source
        return numbered_packet(number, source[number % 2], destination[number % 2])

    def kinds(self, since: int = 0) -> list[int]:
        return [datagram.kind for datagram in self.simulation.network.captured[since:]]

    def exchange(self, count: int = 6) -> None:
        """Packets in both directions arrive whole."""
        there = [self.packet(number) for number in range(count)]
        back = [self.packet(number, back=True) for number in range(count)]
        got = len(self.second.received), len(self.first.received)
        self.first.send(*there)
        self.simulation.advance(0.5)
        self.second.send(*back)
        self.simulation.advance(0.5)
        self.assertEqual(self.second.received[got[0] :], there)
        self.assertEqual(self.first.received[got[1] :], back)


class Handshakes(Pair):
    def test_the_first_packet(self) -> None:
        """It brings a handshake about and is delivered by it; both ends hear of the connection."""
        self.exchange()
        self.assertEqual(self.kinds()[:2], [1, 2])
        for node, other in ((self.first, self.second), (self.second, self.first)):
            event = WireGuardConnected(other.pair.public, other.endpoint, True)
            self.assertEqual(node.told(WireGuardConnected), [event])

    def test_pre_shared_key(self) -> None:
        """With the same one at both ends it works; with another nothing but the first message."""
        self.first.core.wireguard.set_psk(self.to_second, PSK, self.simulation.now)
        self.first.send(self.packet(0))
        self.simulation.advance(1)
        self.assertEqual(self.kinds(), [1, 2])
        self.assertEqual(self.first.core.counters["handshake_decrypt"], 1)
        self.second.core.wireguard.set_psk(self.to_first, PSK, self.simulation.now)
        self.simulation.advance(REKEY_TIMEOUT + 1)
        self.assertEqual(self.second.received, [self.packet(0)])

    def test_a_stranger(self) -> None:
        """Whoever is no peer gets no byte, whatever it knows of the other's key."""
        stranger = self.simulation.add_stock_device(4)
        peer = self.simulation.acquaint(stranger, self.second)
        stranger.core.wireguard.set_endpoint(peer, self.second.endpoint, self.simulation.now)
        stranger.core.wireguard.connect(peer, self.simulation.now)
        stranger.drain()
        self.simulation.advance(1)
        self.assertEqual(self.kinds(), [1])
        self.assertEqual(self.second.core.counters["wireguard_unknown_peer"], 1)

    def test_nobody_answers(self) -> None:
        """A try every 5 s for 90 s, then none until another packet is to be sent."""
        del self.simulation.nodes[self.second.endpoint]
        self.first.send(self.packet(0))
        self.simulation.advance(3600)
        self.assertIn(len(self.kinds()), (17, 18, 19))
        self.assertEqual(self.first.core.counters["staged_expired"], 1)
        self.first.send(self.packet(1))
        self.assertEqual(self.kinds()[-1], 1)
        before = len(self.kinds())
        self.simulation.advance(REKEY_TIMEOUT - 0.1)
        self.assertEqual(len(self.kinds()), before)

    def test_a_recorded_initiation(self) -> None:
        """Sent again by anybody it gets no answer, and the session lives on."""
        self.exchange()
        initiation = self.simulation.network.captured[0]
        before = self.kinds().count(2)
        self.simulation.network.inject(initiation, self.simulation.now)
        self.simulation.advance(0.1)
        self.assertEqual(self.kinds().count(2), before)
        self.assertEqual(self.second.core.counters["wireguard_stamp_replayed"], 1)
        self.exchange()

    def test_a_recorded_response(self) -> None:
        """It finds nothing that it could be the answer to."""
        self.exchange()
        response = self.simulation.network.captured[1]
        self.simulation.network.inject(response, self.simulation.now)
        self.simulation.advance(0.1)
        self.assertEqual(self.first.core.counters["response_unexpected"], 1)
        self.exchange()

    def test_no_public_key(self) -> None:
        """A peer whose key is no public key is never asked; that is counted, and others go on."""
        wireguard = self.first.core.wireguard
        peer = wireguard.add(bytes(32), self.simulation.now)
        wireguard.set_endpoint(peer, self.second.endpoint, self.simulation.now)
        wireguard.set_keepalive(peer, 25, self.simulation.now)
        self.first.drain()
        self.simulation.advance(30)
        self.assertEqual(self.kinds(), [])
        self.assertEqual(self.first.core.counters["handshake_low_order"], 2)
        self.exchange()

    def test_under_load(self) -> None:
        """The one under load wants a cookie, in both roles; with it the next try goes through."""
        self.second.core._admission.overloaded(self.simulation.now)
        self.first.send(self.packet(0))
        self.simulation.advance(1)
        self.assertEqual(self.kinds(), [1, 3])
        self.second.core._admission.overloaded(self.simulation.now + 4)
        self.simulation.advance(6)
        self.assertEqual(self.second.received, [self.packet(0)])
        self.assertEqual(self.kinds()[2:4], [1, 2])

    def test_the_initiator_under_load(self) -> None:
        """A responder's answer is not read without a cookie; its next one has it."""
        self.first.core._admission.overloaded(self.simulation.now)
        self.first.send(self.packet(0))
        self.simulation.advance(1)
        self.assertEqual(self.kinds(), [1, 2, 3])
        self.first.core._admission.overloaded(self.simulation.now + 4)
        self.simulation.advance(6)
        self.assertEqual(self.second.received, [self.packet(0)])

    def test_both_at_once(self) -> None:
        """Two initiations that cross leave one working connection."""
        self.second.core.wireguard.set_endpoint(
            self.to_first, self.first.endpoint, self.simulation.now
        )
        self.first.send(self.packet(0))
        self.second.send(self.packet(1, back=True))
        self.simulation.advance(1)
        self.assertEqual(self.second.received, [self.packet(0)])
        self.assertEqual(self.first.received, [self.packet(1, back=True)])
        for _ in range(50):
            self.exchange()
            self.simulation.advance(10)


class Counts(Pair):
    def test_as_on_the_wire(self) -> None:
        """Both ends count the bytes of all datagrams between them, as stock implementations do."""
        for _ in range(40):
            self.exchange()
            self.simulation.advance(7)
        captured = self.simulation.network.captured
        for node, own, other in (
            (self.first, self.to_second, self.to_first),
            (self.second, self.to_first, self.to_second),
        ):
            sent = sum(len(d.payload) for d in captured if d.source == node.endpoint)
            self.assertEqual((own.tx_bytes, other.rx_bytes), (sent, sent))
        self.assertEqual(self.to_first.rx_packets, self.to_second.tx_packets)


class Timers(Pair):
    def test_rekey(self) -> None:
        """A sending initiator has new keys at 120 s; a new handshake, not a second one."""
        self.exchange()
        start = self.simulation.now
        while self.simulation.now < start + REKEY_AFTER_TIME - 3:
            self.exchange()
        self.assertEqual(self.kinds().count(1), 1)
        while self.simulation.now < start + REKEY_AFTER_TIME + 3:
            self.exchange()
        self.assertEqual(self.kinds().count(1), 2)
        connected = self.first.told(WireGuardConnected)
        self.assertEqual([event.new for event in connected], [True, False])

    def test_a_day(self) -> None:
        """Packets now and then for hours: none is lost, and keys are never older than 180 s."""
        for number in range(400):
            self.first.send(self.packet(number))
            self.simulation.advance(self.simulation.random.uniform(1, 400))
        self.assertEqual(len(self.second.received), 400)
        self.assertEqual(self.first.core.counters, {})

    def test_passive_keepalive(self) -> None:
        """Who only receives says so after 10 s, once."""
        self.first.send(self.packet(0))
        self.simulation.advance(1)
        before = len(self.kinds())
        self.simulation.advance(KEEPALIVE_TIMEOUT - 1.5)
        self.assertEqual(len(self.kinds()), before)
        self.simulation.advance(2)
        self.assertEqual(self.kinds()[before:], [4])
        self.simulation.advance(60)
        self.assertEqual(len(self.kinds()), before + 1)

    def test_persistent_keepalive(self) -> None:
        """Every so many seconds from the moment it is set, and a handshake without keys."""
        self.first.core.wireguard.set_keepalive(self.to_second, 25, self.simulation.now)
        self.first.drain()
        self.simulation.advance(3600)
        to_second = [d for d in self.simulation.network.captured if d.kind == 4]
        times = [d.time for d in to_second if d.source == self.first.endpoint]
        self.assertLess(max(after - before for before, after in pairwise(times)), 25.5)
        self.assertGreaterEqual(len(times), 3600 // 25)
        before = len(self.kinds())
        self.first.core.wireguard.set_keepalive(self.to_second, 0, self.simulation.now)
        self.simulation.advance(600)
        self.assertLessEqual(len(self.kinds()), before + 1)

    def test_keepalives_rekey(self) -> None:
        """An idle initiator that keeps itself alive is never without keys."""
        self.first.core.wireguard.set_keepalive(self.to_second, 25, self.simulation.now)
        self.first.drain()
        self.simulation.advance(1)
        for _ in range(600):
            self.simulation.advance(3)
            self.assertIsNotNone(self.to_second.current)
        self.assertEqual(self.first.told(WireGuardDisconnected), [])

    def test_silence(self) -> None:
        """Data that nobody answers for 15 s brings a new handshake about: the keys may be gone."""
        self.exchange()
        self.second.restart()
        self.to_first = self.simulation.acquaint(self.second, self.first)
        self.first.send(self.packet(0))
        start = len(self.kinds())
        self.simulation.advance(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT - 0.5)
        self.assertNotIn(1, self.kinds(start))
        self.simulation.advance(1)
        self.assertIn(1, self.kinds(start))
        self.exchange()

    def test_keys_end(self) -> None:
        """180 s after the handshake they are gone, which both ends tell."""
        self.exchange()
        self.simulation.advance(REJECT_AFTER_TIME - 2)
        self.assertTrue(self.first.core._sessions)
        self.simulation.advance(3)
        for node in (self.first, self.second):
            self.assertEqual(node.core._sessions, {})
            self.assertEqual([e.reason for e in node.told(WireGuardDisconnected)], ["expired"])


class Roaming(Pair):
    def test_it_follows(self) -> None:
        """Answers go to where the newest valid datagram came from."""
        self.exchange()
        self.first.move(self.simulation.new_endpoint())
        self.simulation.advance(2)
        self.exchange()
        self.assertEqual(self.to_first.endpoint, self.first.endpoint)

    def test_a_recorded_datagram(self) -> None:
        """Sent on from elsewhere, late or twice, it moves nothing."""
        self.exchange()
        recorded = [d for d in self.simulation.network.captured if d.kind == 4]
        elsewhere = self.simulation.new_endpoint()
        for datagram in recorded:
            self.simulation.network.inject(
                datagram._replace(source=elsewhere), self.simulation.now + 2
            )
        self.simulation.advance(3)
        self.assertEqual(self.to_first.endpoint, self.first.endpoint)
        self.assertGreater(self.second.core.counters["transport_replayed"], 0)

    def test_once_a_second(self) -> None:
        """Of two senders that share a key, none makes the endpoint swing with each datagram."""
        self.exchange()
        moves = self.second.core.counters["path_moved"]
        endpoints = [self.first.endpoint, self.simulation.new_endpoint()]
        for number in range(40):
            self.first.move(endpoints[number % 2])
            self.first.send(self.packet(number))
            self.simulation.advance(0.1)
        self.assertLessEqual(self.second.core.counters["path_moved"] - moves, 5)

    def test_rebound(self) -> None:
        """Whose own port has changed says something to everybody at once."""
        self.exchange()
        self.first.move(self.simulation.new_endpoint())
        self.simulation.advance(2)
        self.first.core.wireguard.rebound(self.simulation.now)
        self.first.drain()
        self.simulation.advance(0.1)
        self.assertEqual(self.to_first.endpoint, self.first.endpoint)


class AtTheHub(SynchronousTestCase):
    """A hub with a user's device and a stock one."""

    def setUp(self) -> None:
        self.simulation = Simulation()
        self.hub = self.simulation.hub
        self.simulation.add_user("alice", "secret")
        self.alice = self.simulation.add_client("alice", "secret")
        self.phone = self.simulation.add_stock_device(200)
        self.hub_pair = self.simulation.add_stock_device(201).pair  # a key for the hub
        self.hub.core.wireguard.set_private_key(self.hub_pair.private, self.simulation.now)
        self.peer = self.simulation.acquaint(self.hub, self.phone)
        self.to_hub = self.know_hub(self.phone)

    def know_hub(self, device: StockDevice) -> WireGuardPeer:
        wireguard = device.core.wireguard
        peer = wireguard.add(self.hub_pair.public, self.simulation.now)
        for network in (NETWORK4, NETWORK6):
            wireguard.allow(peer, network)
        wireguard.set_endpoint(peer, self.hub.endpoint, self.simulation.now)
        return peer

    def carry(self, source: Node, packet: bytes, target: Node) -> None:
        """A packet goes to the hub's kernel and on; it arrives as it was."""
        source.send(packet)
        self.simulation.advance(1)
        self.assertEqual(self.hub.received[-1], packet)
        self.hub.send(packet)
        self.simulation.advance(1)
        self.assertEqual(target.received[-1], packet)

    def test_to_a_user_and_back(self) -> None:
        """Stock devices and users' devices reach each other through the hub."""
        self.alice.start()
        self.simulation.advance(1)
        lease = self.alice.lease
        there = ip_packet(self.phone.inner[0], lease.ipv4, b"there")
        self.carry(self.phone, there, self.alice)
        self.carry(self.alice, ip_packet(lease.ipv4, self.phone.inner[0], b"back"), self.phone)

    def test_source_check(self) -> None:
        """A stock device sends from its own addresses only."""
        forged = ip_packet(NETWORK4[77], NETWORK4[1], b"forged")
        self.phone.send(forged, ip_packet(self.phone.inner[0], NETWORK4[1], b"true"))
        self.simulation.advance(1)
        self.assertEqual(len(self.hub.received), 1)
        self.assertEqual(self.hub.core.counters["inner_source_not_allowed"], 1)

    def test_no_control_frames(self) -> None:
        """What is no IP packet is dropped: stock peers have no control and no segment frames."""
        self.phone.send(ip_packet(self.phone.inner[0], NETWORK4[1], b"true"))
        self.simulation.advance(1)
        session = self.to_hub.current
        assert session is not None
        for first in (0x01, 0x11, 0x50):
            self.phone.core._send_control(
                self.to_hub, session, bytes([first]) + bytes(31), self.simulation.now
            )
        self.phone.drain()
        before = len(self.simulation.network.captured)
        self.simulation.advance(1)
        self.assertEqual(self.hub.core.counters["inner_unknown"], 3)
        self.assertEqual(len(self.simulation.network.captured), before)

    def test_addresses_of_users(self) -> None:
        """A stock peer cannot get a user's address; a wider network leaves it alone."""
        self.alice.start()
        self.simulation.advance(1)
        lease = self.alice.lease
        wireguard = self.hub.core.wireguard
        self.assertRaises(LocalProtocolError, wireguard.allow, self.peer, ip_network(lease.ipv4))
        wireguard.allow(self.peer, NETWORK4)
        packet = ip_packet(NETWORK4[1], lease.ipv4, b"hers")
        self.hub.send(packet)
        self.simulation.advance(1)
        self.assertEqual(self.alice.received, [packet])

    def test_later_wins(self) -> None:
        """The same network given to another stock peer goes to that one, and who had it is told."""
        tablet = self.simulation.add_stock_device(202)
        other = self.simulation.acquaint(self.hub, tablet)
        wireguard = self.hub.core.wireguard
        network = ip_network(self.phone.inner[0])
        self.assertIs(wireguard.allow(other, network), self.peer)
        self.assertNotIn(network, wireguard.networks(self.peer))
        self.assertIsNone(wireguard.allow(other, network))

    def test_from_one_to_another(self) -> None:
        """Packets between two stock peers are not joined at the hub, those that end there are."""
        tablet = self.simulation.add_stock_device(202)
        self.simulation.acquaint(self.hub, tablet)
        self.know_hub(tablet)
        for target, frames in ((NETWORK4[1], 1), (tablet.inner[0], 5)):
            before = len(self.hub.received)
            self.phone.send_frames(super_packet(self.phone.inner[0], target))
            self.simulation.advance(1)
            self.assertEqual(len(self.hub.received) - before, frames)

    def test_removed(self) -> None:
        """A removed peer is a stranger at once."""
        self.phone.send(ip_packet(self.phone.inner[0], NETWORK4[1], b"1"))
        self.simulation.advance(1)
        self.hub.core.wireguard.remove(self.phone.pair.public, self.simulation.now)
        self.hub.drain()
        before = len(self.hub.received)
        self.phone.send(ip_packet(self.phone.inner[0], NETWORK4[1], b"2"))
        self.simulation.advance(30)
        self.assertEqual(len(self.hub.received), before)
        sent = [d for d in self.simulation.network.captured if d.source == self.hub.endpoint]
        self.assertLess(max(d.time for d in sent), self.simulation.now - 20)

    def test_no_peers_no_answer(self) -> None:
        """Without any peer, types 1 to 3 are not even read."""
        self.hub.core.wireguard.remove(self.phone.pair.public, self.simulation.now)
        self.phone.send(ip_packet(self.phone.inner[0], NETWORK4[1], b"1"))
        self.simulation.advance(1)
        self.assertEqual(self.hub.core.counters["wireguard_no_peers"], 1)

    def test_too_big(self) -> None:
        """What is longer than a stock interface takes is answered at the hub with "too big"."""
        self.phone.send(ip_packet(self.phone.inner[1], NETWORK6[1], b"1"))
        self.simulation.advance(1)
        self.hub.send(ip_packet(NETWORK6[1], self.phone.inner[1], bytes(1420 - 40)))
        self.hub.send(ip_packet(NETWORK6[1], self.phone.inner[1], bytes(1421 - 40)))
        self.simulation.advance(1)
        self.assertEqual([len(packet) for packet in self.phone.received], [1420])
        self.assertEqual(self.hub.core.counters["too_big"], 1)
