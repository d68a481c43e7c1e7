"""Relay: what clients send each other is sealed anew in the hub, where nothing speaks against it.

The hub's ``received`` is what its kernel would get to route.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.login import LoginFlags
from pyvpn.core.mailbox import Mailbox
from pyvpn.core.peer import ServerPeer
from pyvpn.core.timers import NEVER
from pyvpn.testing.simulation import NETWORK4, Client, Simulation, ip_packet
from tests.core.segmentmodel import TCP, VIRTIO_SIZE, Flow

STRANGER = IPv4Address("192.0.2.99")


class Relay(SynchronousTestCase):
    def setUp(self) -> None:
        self.simulation = Simulation(relay=True)
        self.clients: list[Client] = []
        for name in ("alice", "bob"):
            self.simulation.add_user(name, "secret")
            client = self.simulation.add_client(name, "secret")
            client.start()
            self.clients.append(client)
        self.simulation.advance(5)
        self.alice, self.bob = self.clients
        self.hub = self.simulation.hub

    def packet(self, text: bytes = b"hello") -> bytes:
        return ip_packet(self.alice.lease.ipv4, self.bob.lease.ipv4, text)

    def relayed(self, packet: bytes) -> bool:
        """Whether a packet from alice goes to bob at once; if not, the hub's kernel has it."""
        self.hub.received.clear()
        self.bob.received.clear()
        self.alice.send(packet)
        self.simulation.advance(0.1)
        self.assertEqual([packet], self.hub.received + self.bob.received)
        return not self.hub.received

    def test_packets(self) -> None:
        """A packet for the other client never reaches the hub's kernel; one for the hub does."""
        self.assertTrue(self.relayed(self.packet()))
        to_hub = ip_packet(self.alice.lease.ipv4, NETWORK4[1], b"hello")
        self.assertFalse(self.relayed(to_hub))

    def test_off_unless_asked_for(self) -> None:
        """Control: without the option the kernel gets everything."""
        self.hub.core._relaying = False
        self.assertFalse(self.relayed(self.packet()))

    def test_super_packets(self) -> None:
        """The pieces of a super-packet come out as one again, byte by byte."""
        flow = Flow(self.alice.lease.ipv4, self.bob.lease.ipv4, TCP)
        frame = flow.superpacket(bytes(range(256)) * 200, 1300)
        self.alice.send_frames(frame)
        self.simulation.advance(0.1)
        self.assertEqual(self.hub.received, [])
        self.assertEqual(self.bob.received, [frame[VIRTIO_SIZE:]])
        self.assertEqual(self.peer(self.bob).tx_packets, 40)

    def test_in_order_with_counts(self) -> None:
        """A turn's packets keep their order, and both sides' counters show them."""
        packets = [self.packet(bytes([number]) * number) for number in range(1, 40)]
        before = self.peer(self.bob).tx_packets
        self.alice.send(*packets)
        self.simulation.advance(0.1)
        self.assertEqual(self.bob.received, packets)
        self.assertEqual(self.peer(self.bob).tx_packets - before, len(packets))

    def test_the_source_is_checked(self) -> None:
        """A client can relay nothing under another's address."""
        core = self.hub.core
        before = core.counters["inner_source_not_allowed"]
        self.alice.send(ip_packet(STRANGER, self.bob.lease.ipv4, b"hello"))
        self.simulation.advance(0.1)
        self.assertEqual((self.bob.received, self.hub.received), ([], []))
        self.assertEqual(core.counters["inner_source_not_allowed"], before + 1)

    def test_hostile_segments(self) -> None:
        """Nor a segment frame that breaks a rule."""
        core = self.hub.core
        session = self.alice.core.hub.current
        assert session is not None
        before = core.counters["segment_malformed"]
        flow = Flow(self.alice.lease.ipv4, self.bob.lease.ipv4, TCP)
        good = b"\x11\0\0\0" + flow.packet(b"x" * 100)
        for place, value in ((1, 200), (2, 1)):  # the index of a lone packet; 100 pieces in one
            bad = bytearray(good)
            bad[place] = value
            datagram = b"".join(map(bytes, session.seal_burst([bytes(bad)])))
            self.hub.hear(datagram, len(datagram), self.alice.endpoint)
        self.simulation.advance(0.1)
        self.assertEqual((self.bob.received, self.hub.received), ([], []))
        self.assertEqual(core.counters["segment_malformed"], before + 2)
        datagram = b"".join(map(bytes, session.seal_burst([good])))
        self.hub.hear(datagram, len(datagram), self.alice.endpoint)
        self.simulation.advance(0.1)
        self.assertEqual(len(self.bob.received), 1)

    def test_left_to_the_kernel(self) -> None:
        """What needs more than sealing goes through the kernel: each reason by itself."""
        bob = self.peer(self.bob)
        session = bob.current
        assert session is not None
        self.assertTrue(self.relayed(self.packet()))
        bob.mailbox = Mailbox()
        self.assertFalse(self.relayed(self.packet()), "delivery on poll")
        bob.mailbox = None
        bob.hold_due = self.simulation.now + 1
        self.assertFalse(self.relayed(self.packet()), "not ready yet")
        bob.hold_due = NEVER
        bob.current = None
        self.assertFalse(self.relayed(self.packet()), "no session")
        bob.current = session
        self.assertTrue(self.relayed(self.packet(bytes(1200))))
        bob.mtu.inner = 1196
        self.assertFalse(self.relayed(self.packet(bytes(1200))), "too big for the way")

    def test_a_client_without_segment_frames(self) -> None:
        """One that has not agreed to segment frames gets whole packets, by way of the kernel."""
        old = self.simulation.add_client("bob", "secret", flags=LoginFlags(0))
        old.start()
        self.simulation.advance(5)
        flow = Flow(self.alice.lease.ipv4, old.lease.ipv4, TCP)
        frame = flow.superpacket(bytes(5000), 1300)
        self.alice.send_frames(frame)
        self.simulation.advance(0.1)
        self.assertEqual(self.hub.received, [frame[VIRTIO_SIZE:]])
        self.assertEqual(old.received, [])

    def test_a_session_that_ends_in_the_same_turn(self) -> None:
        """What was to be relayed to it is dropped and counted."""
        core = self.hub.core
        bob = self.peer(self.bob)
        send = core.datagrams_to_send
        core.datagrams_to_send = lambda now: []  # type: ignore[method-assign]
        self.alice.send(self.packet())
        self.simulation.advance(0.1)
        core.datagrams_to_send = send  # type: ignore[method-assign]
        bob.current = None
        self.assertEqual(core.datagrams_to_send(self.simulation.now), [])
        self.assertEqual(core.counters["relay_session_ended"], 1)

    def peer(self, client: Client) -> ServerPeer:
        peer = self.hub.core.peer(client.user, client.device)
        assert peer is not None
        return peer
