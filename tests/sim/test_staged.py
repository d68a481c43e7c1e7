"""Packets that wait for a session, and what must not leave before there is one (PROTOCOL 7, 8)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.events import Configured, LeaseRequested, SessionConfirmed
from pyvpn.testing.simulation import Datagram, Simulation, numbered_packet
from tests.sim.rules import (
    ANSWER,
    CONFIG_INTERVAL,
    CONFIG_TRIES,
    DATA,
    HUB4,
    REJECT_AFTER_TIME,
    REPLY_SIZE,
    connected,
    cut,
    heal,
)

STAGED_PACKETS = 128
STAGED_BYTES = 256 << 10


class Losing:
    """Loses the hub's next CONFIGs: its data of a new session that is no REPLY."""

    def __init__(self, simulation: Simulation, count: int) -> None:
        self.hub = simulation.hub.endpoint
        self.left = count

    def __call__(self, datagram: Datagram) -> bool:
        if datagram.source != self.hub or datagram.kind != DATA:
            return True
        if len(datagram.payload) == REPLY_SIZE or not self.left:
            return True
        self.left -= 1
        return False


class OnTheClient(SynchronousTestCase):
    def test_sent_in_order_when_it_is_back(self) -> None:
        """What was sent during an outage leaves, in order, after the new CONFIG."""
        simulation, client = connected()
        cut(simulation)
        simulation.advance(REJECT_AFTER_TIME + 1)
        self.assertEqual(client.core.state, State.CONNECTING)
        packets = [numbered_packet(number, client.lease.ipv4, HUB4) for number in range(20)]
        for packet in packets:
            client.send(packet)
        heal(simulation)
        simulation.advance(30)
        self.assertEqual(simulation.hub.received, packets)
        self.assertEqual(client.core._staged_bytes, 0)

    def test_not_before_config(self) -> None:
        """On the new session nothing leaves but POLL and HELLO until CONFIG has come: the address
        may be another one now.
        """
        simulation, client = connected()
        cut(simulation)
        simulation.advance(REJECT_AFTER_TIME + 1)
        packet = numbered_packet(1, client.lease.ipv4, HUB4)
        client.send(packet)
        decide, asked = simulation.hub._event, []

        def owner(event: object) -> None:
            (asked.append if isinstance(event, LeaseRequested) else decide)(event)

        simulation.hub._event = owner  # type: ignore[method-assign]
        heal(simulation)
        simulation.advance(30)
        self.assertEqual(client.core.state, State.CONFIGURING)
        self.assertEqual(simulation.hub.received, [])
        decide(asked[0])
        simulation.hub.drain()
        simulation.advance(1)
        self.assertEqual(simulation.hub.received, [packet])

    def test_the_oldest_go_first(self) -> None:
        """128 packets wait at most; each more costs the oldest, and is counted."""
        simulation, client = connected()
        cut(simulation)
        simulation.advance(REJECT_AFTER_TIME + 1)
        packets = [
            numbered_packet(number, client.lease.ipv4, HUB4) for number in range(STAGED_PACKETS + 9)
        ]
        client.send(*packets)
        heal(simulation)
        simulation.advance(30)
        self.assertEqual(simulation.hub.received, packets[9:])
        self.assertEqual(client.core.counters["staged_dropped"], 9)

    def test_no_more_bytes_than(self) -> None:
        """256 KiB wait at most."""
        simulation, client = connected()
        cut(simulation)
        simulation.advance(REJECT_AFTER_TIME + 1)
        packet = numbered_packet(1, client.lease.ipv4, HUB4) + bytes(8000)
        client.send(*[packet] * 60)
        held = STAGED_BYTES // len(packet)
        self.assertEqual(len(client.core.hub.staged), held)
        self.assertEqual(client.core.counters["staged_dropped"], 60 - held)


class OnTheHub(SynchronousTestCase):
    def test_for_a_device_that_is_away(self) -> None:
        """Packets for a device without a session wait and leave with its first packet."""
        simulation, client = connected()
        client.asleep = True
        simulation.advance(REJECT_AFTER_TIME + 1)
        packets = [numbered_packet(number, HUB4, client.lease.ipv4) for number in range(20)]
        simulation.hub.send(*packets)
        client.asleep = False
        simulation.advance(1)
        self.assertEqual(client.received, packets)

    def test_for_a_device_that_starts(self) -> None:
        """They wait until a client that was started anew has its addresses: it drops what comes
        before (regression). So does what is sent meanwhile, and the order stays.
        """
        for lost in (0, 2):  # of the CONFIGs
            simulation, client = connected()
            address = client.lease.ipv4
            client.stop()
            simulation.advance(1)
            packets = [numbered_packet(number, HUB4, address) for number in range(20)]
            simulation.hub.send(*packets[:10])
            simulation.network.passes.append(Losing(simulation, lost))
            client.restart()
            client.start()
            for packet in packets[10:]:
                simulation.advance(0.01)
                simulation.hub.send(packet)
            simulation.advance(lost + 1)
            self.assertEqual(client.received, packets)
            self.assertEqual(client.core.counters["inner_source_not_allowed"], 0)

    def test_for_a_device_that_is_slow(self) -> None:
        """They wait until the client's owner has applied its addresses, as CONFIG_ACK says."""
        simulation, client = connected()
        address = client.lease.ipv4
        client.stop()
        simulation.advance(1)
        packet = numbered_packet(1, HUB4, address)
        simulation.hub.send(packet)
        client.restart()
        applied = client.core.config_applied
        client.core.config_applied = lambda revision, now: None  # type: ignore[method-assign]
        client.start()
        simulation.advance(2.5)
        self.assertEqual(client.received, [])
        self.assertEqual(len(client.told(Configured)), 2)
        applied(client.told(Configured)[-1].revision, simulation.now)
        client.drain()
        simulation.advance(0.1)
        self.assertEqual(client.received, [packet])

    def test_for_a_device_that_never_acknowledges(self) -> None:
        """After 5 s without a CONFIG_ACK they leave all the same: nothing is kept for a mistake."""
        simulation, client = connected()
        address = client.lease.ipv4
        client.stop()
        simulation.advance(1)
        client.restart()
        client.core.config_applied = lambda revision, now: None  # type: ignore[method-assign]
        client.start()
        simulation.advance(1)
        packet = numbered_packet(1, HUB4, address)
        simulation.hub.send(packet)
        simulation.advance(CONFIG_INTERVAL * CONFIG_TRIES - 1.1)
        self.assertEqual(client.received, [])
        simulation.advance(0.2)
        self.assertEqual(client.received, [packet])

    def test_not_for_a_rekey(self) -> None:
        """A rekey makes nothing wait: the client has its addresses."""
        simulation, client = connected()
        simulation.advance_until(lambda: len(simulation.hub.told(SessionConfirmed)) == 2, 200)
        packet = numbered_packet(1, HUB4, client.lease.ipv4)
        simulation.hub.send(packet)
        self.assertEqual(simulation.hub.core._staged_bytes, 0)
        simulation.advance(0.1)
        self.assertEqual(client.received, [packet])

    def test_nothing_before_the_first_packet(self) -> None:
        """Between its 0x51 and the client's first packet the hub sends nothing at all, though
        packets wait: the session is not current yet.
        """
        simulation, client = connected()
        client.asleep = True
        simulation.advance(REJECT_AFTER_TIME + 1)
        simulation.hub.send(numbered_packet(1, HUB4, client.lease.ipv4))
        client.asleep = False
        # The client's data never arrives: its session stays *next*.
        simulation.network.passes.append(lambda d: d.source != client.endpoint or d.kind != DATA)
        start = simulation.now
        simulation.advance(0.5)
        for number in range(50):
            simulation.hub.send(numbered_packet(number + 2, HUB4, client.lease.ipv4))
            simulation.advance(0.1)
        sent = [
            datagram.kind
            for datagram in simulation.network.captured
            if datagram.source == simulation.hub.endpoint and datagram.time >= start
        ]
        self.assertEqual(set(sent), {ANSWER})
        self.assertIsNone(simulation.hub.core.peer(client.user, client.device).current)
        heal(simulation)  # control: then it does
        simulation.advance(12)
        self.assertEqual(len(client.received), 51)

    def test_not_for_ever(self) -> None:
        """After 180 s they are dropped and counted, and nothing is left of them."""
        simulation, client = connected()
        client.stop()
        simulation.advance(1)
        simulation.hub.send(numbered_packet(1, HUB4, client.lease.ipv4))
        simulation.advance(REJECT_AFTER_TIME - 0.1)
        self.assertGreater(simulation.hub.core._staged_bytes, 0)
        simulation.advance(0.2)
        self.assertEqual(simulation.hub.core._staged_bytes, 0)
        self.assertEqual(simulation.hub.core.counters["staged_expired"], 1)
        self.assertIsNone(simulation.hub.core.next_timer())

    def test_not_for_ever_at_the_client(self) -> None:
        """A client without a hub keeps its packets 180 s, no longer: old news helps nobody."""
        simulation, client = connected()
        cut(simulation)
        simulation.advance(REJECT_AFTER_TIME + 1)
        client.send(numbered_packet(1, client.lease.ipv4, HUB4))
        simulation.advance(REJECT_AFTER_TIME - 0.1)
        self.assertEqual(len(client.core.hub.staged), 1)
        simulation.advance(0.2)
        self.assertEqual(len(client.core.hub.staged), 0)
        self.assertEqual(client.core.counters["staged_expired"], 1)
        heal(simulation)
        simulation.advance(400)
        self.assertEqual(simulation.hub.received, [])
        packet = numbered_packet(2, client.lease.ipv4, HUB4)  # control: a fresh one arrives
        client.send(packet)
        simulation.advance(1)
        self.assertEqual(simulation.hub.received, [packet])

    def test_on_no_old_session(self) -> None:
        """A client that said BYE gets nothing more under the old keys."""
        simulation, client = connected()
        client.stop()
        simulation.advance(1)
        before = len(simulation.network.captured)
        simulation.hub.send(numbered_packet(1, HUB4, client.lease.ipv4))
        simulation.advance(1)
        self.assertEqual(len(simulation.network.captured), before)
