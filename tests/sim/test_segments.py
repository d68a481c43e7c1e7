"""Super-packets from one machine to another: what the kernels see at both ends (PROTOCOL 5).

A sender's super-packet is the row of segments that its kernel would have cut; a receiver's frames
are what its kernel cuts of them. ``tests/core/segmentmodel.py`` is both kernels.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.events import SessionConfirmed
from pyvpn.core.login import LoginFlags
from pyvpn.testing.simulation import (
    NETWORK4,
    NETWORK6,
    Client,
    Datagram,
    Node,
    Simulation,
    Weather,
    numbered_packet,
)
from tests.core import segmentmodel as model
from tests.core.segmentmodel import ACK, FIN, PSH, TCP, UDP, Flow, Virtio
from tests.sim.rules import (
    DATA,
    HUB4,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    connected,
    cut,
    heal,
)

HUB = {4: NETWORK4[1], 6: NETWORK6[1]}
SEGMENT_FRAMES, ON_POLL = LoginFlags.SEGMENT_FRAMES, LoginFlags.DELIVER_ON_POLL
KINDS = [(version, protocol) for version in (4, 6) for protocol in (TCP, UDP)]
#: Fits, headers and all, before anything is known of the path.
FITS = 1000
MAILBOX_BYTES = 512 << 10


class Traffic:
    """Super-packets both ways, each like no other, and the segments that they stand for."""

    def __init__(self, simulation: Simulation, client: Client) -> None:
        self.simulation = simulation
        self.client = client
        self.sent: dict[Node, list[bytes]] = {simulation.hub: [], client: []}
        self.number = 0

    def superpacket(
        self, sender: Node, version: int = 4, protocol: int = TCP, pieces: int = 40, **more: Any
    ) -> tuple[bytes, list[bytes]]:
        """One to the other end, and its segments."""
        self.number += 1
        lease = self.client.lease
        address = lease.ipv4 if version == 4 else lease.ipv6
        assert address is not None
        ends = (address, HUB[version])
        flow = Flow(
            *(ends if sender is self.client else ends[::-1]),
            protocol,
            flags=ACK | PSH | FIN,
            sequence=self.number << 20,
            identification=self.number % 1000 * 64,
        )
        size = more.get("size", FITS)
        payload = Random(self.number).randbytes(pieces * size - 7)
        return flow.superpacket(payload, size), model.segments_of(flow.packet(payload), size)

    def send(self, sender: Node, *arguments: Any, **more: Any) -> list[bytes]:
        """Let a node send one; its segments."""
        frame, segments = self.superpacket(sender, *arguments, **more)
        receiver = self.client if sender is self.simulation.hub else self.simulation.hub
        self.sent[receiver] += segments
        sender.send_frames(frame)
        return segments

    def all_kinds(self, pieces: int = 40) -> None:
        """One of each kind in each direction."""
        for node in self.sent:
            for version, protocol in KINDS:
                self.send(node, version, protocol, pieces)

    def got(self, node: Node) -> list[bytes]:
        """What a node's kernel has made of what its core wrote."""
        return [packet for frame in node.written for packet in model.cut_by_kernel(frame)]


class Whole(SynchronousTestCase):
    """In fair weather nothing is lost and nothing is cut apart."""

    def both(self, traffic: Traffic) -> None:
        for node, segments in traffic.sent.items():
            self.assertEqual(traffic.got(node), segments)
            self.assertGreater(len(segments), 0)  # control

    def test_every_kind(self) -> None:
        """TCP and UDP, IPv4 and IPv6, each way: one write each, all segments, in order."""
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        start = len(simulation.network.captured)
        for version, protocol in KINDS:
            for node in traffic.sent:
                traffic.send(node, version, protocol)
            simulation.advance(0.1)
        self.both(traffic)
        for node in traffic.sent:
            self.assertEqual([Virtio.of(frame).gso_type for frame in node.written], [1, 5, 4, 5])
        sizes = [len(datagram.payload) for datagram in simulation.network.captured[start:]]
        data = [size for size in sizes if FITS < size <= FITS + 4 + 60 + 32]
        self.assertEqual(len(data), 2 * 4 * 40)

    def test_counted(self) -> None:
        """Both ends count segments, and their bytes as whole packets."""
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        there = client.core.hub
        here = simulation.hub.core.peer(client.user, client.device)
        assert here is not None
        packets, octets = there.tx_packets, here.rx_bytes
        segments = traffic.send(client)
        simulation.advance(0.1)
        self.assertEqual(there.tx_packets - packets, 40)
        self.assertEqual(here.rx_bytes - octets, sum(map(len, segments)))

    def test_among_small_packets(self) -> None:
        """They keep their place among small packets of the same turn."""
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        small = [numbered_packet(number, client.lease.ipv4, HUB4) for number in range(3)]
        one, first = traffic.superpacket(client)
        two, second = traffic.superpacket(client, 6, UDP)
        frames = [bytes(10) + packet for packet in small]
        client.send_frames(frames[0], one, frames[1], two, frames[2])
        simulation.advance(0.1)
        got = traffic.got(simulation.hub)
        self.assertEqual(got, [small[0], *first, small[1], *second, small[2]])

    def test_a_far_end_with_mss_48(self) -> None:
        """1,361 pieces arrive all, in a handful of writes."""
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        traffic.send(client, pieces=1361, size=48)
        simulation.advance(0.1)
        self.assertEqual(traffic.got(simulation.hub), traffic.sent[simulation.hub])
        self.assertLess(len(simulation.hub.written), 64)

    def test_128_udp_pieces(self) -> None:
        """So do the 128 pieces of the longest UDP super-packet that a kernel makes."""
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        for version in (4, 6):
            traffic.send(client, version, UDP, 128, size=500)
        simulation.advance(0.1)
        self.assertEqual(traffic.got(simulation.hub), traffic.sent[simulation.hub])

    def test_tcp_that_does_not_fit(self) -> None:
        """TCP is cut smaller where the path asks for it: the same bytes, in segments that fit."""
        simulation, client = connected(inner_mtu=1280)
        traffic = Traffic(simulation, client)
        for version in (4, 6):
            room = client.core.hub.mtu.inner
            frame, _ = traffic.superpacket(client, version, TCP, 20, size=1360)
            start, before = len(simulation.network.captured), len(simulation.hub.written)
            client.send_frames(frame)
            simulation.advance(0.1)
            cut_at = room - (40 if version == 4 else 60)
            packets = [
                packet
                for written in simulation.hub.written[before:]
                for packet in model.cut_by_kernel(written)
            ]
            self.assertEqual(packets, model.segments_of(frame[10:], cut_at))
            sizes = [len(datagram.payload) for datagram in simulation.network.captured[start:]]
            self.assertLessEqual(max(sizes), 32 + 4 + room)
            self.assertIn(32 + 4 + room, sizes)  # control

    def test_over_rekeys(self) -> None:
        """A rekey in the midst costs nothing, and a run never spans two sessions."""
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        simulation.advance(REKEY_AFTER_TIME - 3)
        for _ in range(80):
            for node in traffic.sent:
                traffic.send(node, pieces=5)
            simulation.advance(0.1)
        simulation.advance(1)
        self.assertGreaterEqual(len(simulation.hub.told(SessionConfirmed)), 2)
        self.both(traffic)


class Damaged(SynchronousTestCase):
    """On a bad network."""

    def test_one_datagram_is_one_segment(self) -> None:
        """A lost datagram costs one segment, never the super-packet: any of them, either way."""
        for place in (0, 1, 20, 38, 39):
            simulation, client = connected()
            traffic = Traffic(simulation, client)
            seen: list[Datagram] = []

            def passes(datagram: Datagram, seen: list[Datagram] = seen, place: int = place) -> bool:
                if len(datagram.payload) > FITS - 50:
                    seen.append(datagram)
                    return len(seen) - 1 != place
                return True

            simulation.network.passes.append(passes)
            expected = traffic.send(client)
            simulation.advance(0.1)
            self.assertEqual(len(seen), 40)
            del expected[place]
            self.assertEqual(traffic.got(simulation.hub), expected)
            self.assertLessEqual(len(simulation.hub.written), 2)

    @given(
        st.integers(0, 2**32),
        st.builds(
            Weather,
            loss=st.floats(0, 0.5),
            duplicate=st.floats(0, 0.5),
            corrupt=st.floats(0, 0.2),
            delay=st.floats(0, 1),
            jitter=st.sampled_from([0.0, 0.0, 0.001, 1.0]),
        ),
    )
    @settings(deadline=None, max_examples=15)
    def test_in_any_weather(self, seed: int, weather: Weather) -> None:
        """What arrives is a part of the segments sent, each at most once, unchanged, in frames that
        a kernel takes; and when the weather clears all of it arrives.
        """
        simulation, client = connected(seed)
        traffic = Traffic(simulation, client)
        simulation.network.weather = weather
        for _ in range(8):
            traffic.all_kinds(pieces=12)
            simulation.advance(0.4)
        simulation.advance(5)
        for node, segments in traffic.sent.items():
            self.assertLessEqual(Counter(traffic.got(node)), Counter(segments))
            if weather.loss == weather.corrupt == 0 and client.core.state is State.UP:
                self.assertEqual(len(traffic.got(node)), len(segments))
            segments.clear()
        simulation.network.weather = Weather()
        simulation.advance(310)
        for node in traffic.sent:
            node.written.clear()
        traffic.all_kinds()
        simulation.advance(1)
        for node, segments in traffic.sent.items():
            self.assertEqual(traffic.got(node), segments)

    def test_reordered(self) -> None:
        """Disorder within a super-packet loses nothing of it."""
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        simulation.network.weather = Weather(duplicate=0.3, jitter=0.05)
        traffic.all_kinds()
        simulation.advance(1)
        for node, segments in traffic.sent.items():
            self.assertEqual(Counter(traffic.got(node)), Counter(segments))


class Waiting(SynchronousTestCase):
    """Super-packets that wait, at either end, for a session or for a poll."""

    def test_staged_at_the_client(self) -> None:
        """What was sent during an outage leaves whole with the new session."""
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        cut(simulation)
        simulation.advance(REJECT_AFTER_TIME + 1)
        self.assertEqual(client.core.state, State.CONNECTING)
        for version, protocol in KINDS:
            traffic.send(client, version, protocol)
        self.assertEqual(traffic.got(simulation.hub), [])
        heal(simulation)
        simulation.advance(30)
        self.assertEqual(traffic.got(simulation.hub), traffic.sent[simulation.hub])

    def staged_at_the_hub(self, **options: Any) -> Client:
        simulation, client = connected()
        traffic = Traffic(simulation, client)
        client.asleep = True
        simulation.advance(REJECT_AFTER_TIME + 1)
        for version, protocol in KINDS:
            traffic.send(simulation.hub, version, protocol)
        client._options |= options
        client.restart()
        client.asleep = False
        client.start()
        simulation.advance(2)
        self.assertEqual(traffic.got(client), traffic.sent[client])
        return client

    def test_staged_at_the_hub(self) -> None:
        """So does what the hub has for a device that is away."""
        client = self.staged_at_the_hub()
        self.assertLessEqual(len(client.written), 8)  # a run ends with the read

    def test_staged_for_who_takes_none(self) -> None:
        """If it comes back without segment frames, it gets the same as complete packets."""
        client = self.staged_at_the_hub(flags=LoginFlags(0))
        self.assertEqual({Virtio.of(frame) for frame in client.written}, {Virtio()})
        self.assertEqual(len(client.written), 160)

    def test_in_the_mailbox(self) -> None:
        """A mailbox keeps them whole, through a rekey too, and a poll brings all segments."""
        simulation, client = connected(flags=SEGMENT_FRAMES | ON_POLL)
        traffic = Traffic(simulation, client)
        simulation.advance(REKEY_AFTER_TIME + 1)
        simulation.advance_to(client.core._poll_due - 0.1)
        for version, protocol in KINDS:
            traffic.send(simulation.hub, version, protocol)
        simulation.advance(0.05)
        self.assertEqual(traffic.got(client), [])
        simulation.advance(1)
        self.assertEqual(traffic.got(client), traffic.sent[client])
        self.assertLessEqual(len(client.written), 8)  # a run ends with the read

    def test_any_credit_covers_one(self) -> None:
        """The longest super-packets come one by one, though each is more than a poll's credit."""
        simulation, client = connected(flags=SEGMENT_FRAMES | ON_POLL)
        traffic = Traffic(simulation, client)
        simulation.advance(1)
        for _ in range(5):
            traffic.send(simulation.hub, pieces=1300, size=50)
        simulation.advance(10)
        self.assertEqual(traffic.got(client), traffic.sent[client])

    def test_a_full_mailbox(self) -> None:
        """Its bytes bound it: the oldest go, whole, and what stays is whole."""
        simulation, client = connected(flags=SEGMENT_FRAMES | ON_POLL)
        traffic = Traffic(simulation, client)
        simulation.advance_to(client.core._poll_due + 0.1)
        for _ in range(20):
            traffic.send(simulation.hub, pieces=60)
        kept = MAILBOX_BYTES // (60 * FITS - 7 + 40 + 10)
        counters = simulation.hub.core.counters
        self.assertEqual(counters["mailbox_full"], 20 - kept)
        simulation.advance(5)
        self.assertEqual(traffic.got(client), traffic.sent[client][-60 * kept :])


class Without(SynchronousTestCase):
    """Where one side knows no segment frames."""

    def test_either_side(self) -> None:
        """Complete packets travel, with right checksums, and all segments arrive."""
        for hub, flags in ((LoginFlags(0), SEGMENT_FRAMES), (SEGMENT_FRAMES, LoginFlags(0))):
            simulation = Simulation()
            simulation.add_user("alice", "pw")
            simulation.hub.core._offers = hub
            client = simulation.add_client("alice", "pw", flags=flags)
            client.start()
            simulation.advance(0.5)
            traffic = Traffic(simulation, client)
            start = len(simulation.network.captured)
            traffic.all_kinds()
            simulation.advance(0.1)
            for node, segments in traffic.sent.items():
                self.assertEqual(traffic.got(node), segments)
                self.assertEqual({Virtio.of(frame) for frame in node.written}, {Virtio()})
                for packet in traffic.got(node):
                    model.check(packet)
            kinds = {datagram.kind for datagram in simulation.network.captured[start:]}
            self.assertEqual(kinds, {DATA})

    def test_unfinished(self) -> None:
        """A lone packet whose checksum nobody has finished yet arrives right both ways."""
        for flags in (SEGMENT_FRAMES, LoginFlags(0)):
            simulation, client = connected(flags=flags)
            lease = client.lease
            assert lease.ipv6 is not None
            for address, protocol in ((lease.ipv4, TCP), (lease.ipv6, UDP)):
                for sender in (client, simulation.hub):
                    ends = (address, HUB[address.version])
                    flow = Flow(*(ends if sender is client else ends[::-1]), protocol)
                    sender.send_frames(flow.unfinished(b"payload"))
                    simulation.advance(0.1)
                    receiver: Node = simulation.hub if sender is client else client
                    (packet,) = model.cut_by_kernel(receiver.written[-1])
                    model.check(packet)
                    (expected,) = model.segments_of(flow.packet(b"payload"), 9)
                    self.assertEqual(packet, expected)
