"""HELLO, CONFIG, leases and BYE between hub and clients (PROTOCOL 6)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.clientstate import State
from pyvpn.core.control import ByeReason
from pyvpn.core.events import (
    Configured,
    Connected,
    Disconnected,
    LeaseLost,
    LeaseRequested,
    Refused,
    SessionEnded,
)
from pyvpn.testing.simulation import Simulation, numbered_packet
from tests.sim.rules import (
    CONFIG_INTERVAL,
    CONFIG_TRIES,
    DATA,
    HUB4,
    POLL_INTERVAL,
    POLL_SIZE,
    PROBED,
    REFUSED_RETRY_TIME,
    REPLY_SIZE,
    RESPONSE_SIZE,
    RESTART_SPREAD,
    connected,
    cut,
    heal,
    times,
    with_client,
    works_both_ways,
)


class Hello(SynchronousTestCase):
    def test_the_first_packet_is_a_poll(self) -> None:
        """On every session the client's first packet is a POLL (its size tells)."""
        simulation, client = connected()
        simulation.advance(1000)
        seen: set[bytes] = set()
        for datagram in simulation.network.captured:
            index = datagram.payload[4:8]
            if datagram.kind == DATA and datagram.source == client.endpoint and index not in seen:
                seen.add(index)
                self.assertEqual(len(datagram.payload), POLL_SIZE)
                self.assertEqual(datagram.payload[8:16], bytes(8))
        self.assertGreater(len(seen), 7)

    def test_once_per_login(self) -> None:
        """HELLO is said at a login, not at rekeys."""
        simulation, _ = connected()
        simulation.advance(3600)
        self.assertEqual(len(simulation.hub.told(LeaseRequested)), 1)

    def test_until_config_comes(self) -> None:
        """HELLO is repeated every second until CONFIG comes, then never again."""
        simulation = Simulation()
        client = with_client(simulation)
        decide, asked = simulation.hub._event, []

        def owner(event: object) -> None:
            if isinstance(event, LeaseRequested):
                asked.append(event)
            else:
                decide(event)

        simulation.hub._event = owner  # type: ignore[method-assign]
        client.start()
        simulation.advance(5.5)
        start = simulation.now - 5.5
        hellos = [
            datagram
            for datagram in simulation.network.captured
            if datagram.source == client.endpoint
            and datagram.time > start + 0.5
            and datagram.kind == DATA
        ]
        self.assertEqual(len(hellos), 5)
        self.assertEqual(len(asked), 1)
        decide(asked[0])
        simulation.hub.drain()
        simulation.advance(1)
        self.assertEqual(client.core.state, State.UP)
        count = len(simulation.network.captured)
        simulation.advance(10)
        self.assertEqual(len(simulation.network.captured), count)


class Config(SynchronousTestCase):
    def test_again_until_acknowledged(self) -> None:
        """CONFIG is sent every second, five times in all; then the client's HELLO asks anew."""
        simulation = Simulation()
        client = with_client(simulation)
        start = simulation.now
        client.start()
        simulation.advance_until(lambda: simulation.hub.told(LeaseRequested), limit=1)
        # From here on nothing of the client arrives.
        simulation.network.passes.append(lambda d: d.source != client.endpoint)
        first = simulation.now - start
        simulation.advance(20)
        configs = [
            datagram.time - start - first
            for datagram in simulation.network.captured
            if datagram.source == simulation.hub.endpoint
            and datagram.kind == DATA
            and len(datagram.payload) not in (REPLY_SIZE, RESPONSE_SIZE)
            and len(datagram.payload) < PROBED
        ]
        self.assertEqual(len(configs), CONFIG_TRIES)
        for number, at in enumerate(configs):
            self.assertAlmostEqual(at, number * CONFIG_INTERVAL, places=3)
        heal(simulation)
        simulation.advance(60)
        self.assertEqual(len(client.told(Configured)), 1)

    def test_a_lost_acknowledgement(self) -> None:
        """When the CONFIG_ACK is lost the repetition is acknowledged, and applied once."""
        simulation = Simulation()
        client = with_client(simulation)
        client.start()
        simulation.advance_until(lambda: client.told(Configured), limit=1)
        # The acknowledgement is under way: lose it.
        simulation.network._under_way.clear()
        simulation.advance(1.5)
        peer = simulation.hub.core.peer(client.user, client.device)
        self.assertEqual(peer.config_due, float("inf"))
        self.assertEqual(len(client.told(Configured)), 1)
        self.assertEqual(peer.config_tries, 2)

    def test_lost_ones(self) -> None:
        """With half of everything lost both ways every client gets its address all the same."""
        for seed in range(10):
            simulation = Simulation(seed)
            simulation.network.weather.loss = 0.5
            client = with_client(simulation)
            client.start()
            simulation.advance_until(lambda c=client: c.core.state is State.UP, limit=120)

    def test_a_lease_that_the_hub_lost(self) -> None:
        """A hub that knows the session but not the lease tells the client anew, at its poll."""
        simulation, client = connected()
        peer = simulation.hub.core.peer(client.user, client.device)
        simulation.hub.core._allowed.remove_peer(peer)
        simulation.hub.pool.release((client.user, client.device))
        peer.lease = None
        simulation.advance(POLL_INTERVAL + 1)
        self.assertEqual(len(client.told(Configured)), 2)
        self.assertTrue(works_both_ways(simulation, client))


class Leases(SynchronousTestCase):
    def test_sticky(self) -> None:
        """A device that comes back, or whose hub comes back, has the address it had."""
        simulation, first = connected()
        second = with_client(simulation)
        second.start()
        simulation.advance(1)
        before = (first.lease, second.lease)
        self.assertNotEqual(*before)
        for node in (second, first):
            node.stop()
        second.restart()
        second.start()
        simulation.advance(1)
        simulation.hub.restart()
        first.start()
        simulation.advance(60)
        self.assertEqual((first.lease, second.lease), before)
        self.assertTrue(works_both_ways(simulation, second))

    def test_a_wanted_address(self) -> None:
        """Addresses asked for are given when they are free and in the pool."""
        simulation, client = connected(
            wanted4=IPv4Address("10.10.0.99"), wanted6=IPv6Address("fd6e:a1::abc")
        )
        self.assertEqual(str(client.lease.ipv4), "10.10.0.99")
        self.assertEqual(str(client.lease.ipv6), "fd6e:a1::abc")
        self.assertTrue(works_both_ways(simulation, client))

    def test_taken_by_another_user(self) -> None:
        """An address of another user or outside the pool: BYE 5, tried again in 300 s."""
        for wanted in ("10.10.0.2", "10.10.0.1", "192.0.2.1"):
            simulation, first = connected()
            self.assertEqual(str(first.lease.ipv4), "10.10.0.2")
            second = with_client(simulation, "bob", "another", wanted4=IPv4Address(wanted))
            second.start()
            start = simulation.now
            simulation.advance(1)
            self.assertEqual([e.reason for e in second.told(Refused)], [ByeReason.ADDRESS_TAKEN])
            self.assertTrue(works_both_ways(simulation, first))
            simulation.advance(REFUSED_RETRY_TIME)
            logins = times(simulation.network.captured, start, source=second.endpoint)
            self.assertEqual([round(at) for at in logins], [0, REFUSED_RETRY_TIME])
            self.assertEqual(len(second.told(Refused)), 2)

    def test_moves_between_two_devices_of_a_user(self) -> None:
        """The newer of two devices that want one address has it; the other gets another one."""
        wanted = IPv4Address("10.10.0.50")
        simulation, first = connected(wanted4=wanted)
        second = with_client(simulation, wanted4=wanted)
        second.start()
        simulation.advance(1)
        (lost,) = simulation.hub.told(LeaseLost)
        self.assertEqual(lost.device, first.device)
        self.assertEqual(second.lease.ipv4, wanted)
        self.assertTrue(works_both_ways(simulation, second))
        # Nothing of the first passes under that address.
        stolen = numbered_packet(5, wanted, HUB4)
        first.send(stolen)
        simulation.advance(1)
        self.assertNotIn(stolen, simulation.hub.received)
        self.assertEqual(simulation.hub.core.counters["inner_source_not_allowed"], 1)
        simulation.advance(POLL_INTERVAL + 1)
        self.assertNotEqual(first.lease.ipv4, wanted)
        self.assertTrue(works_both_ways(simulation, first, 7))
        self.assertTrue(works_both_ways(simulation, second, 9))
        self.assertEqual(first.told(Disconnected), [])

    def test_they_do_not_fight(self) -> None:
        """The two settle: the address moves once, not for ever."""
        wanted = IPv4Address("10.10.0.50")
        simulation, first = connected(wanted4=wanted)
        second = with_client(simulation, wanted4=wanted)
        second.start()
        simulation.advance(3600)
        self.assertEqual(len(simulation.hub.told(LeaseLost)), 1)
        self.assertEqual(second.lease.ipv4, wanted)
        self.assertTrue(works_both_ways(simulation, first, 7))

    def test_client_to_client(self) -> None:
        """The hub's kernel forwards between clients: what one sends the other gets."""
        simulation, first = connected()
        second = with_client(simulation, "bob", "another")
        second.start()
        simulation.advance(1)
        packet = numbered_packet(1, first.lease.ipv4, second.lease.ipv4)
        first.send(packet)
        simulation.advance(1)
        simulation.hub.send(*simulation.hub.received)
        simulation.advance(1)
        self.assertEqual(second.received, [packet])

    def test_ipv6_inside(self) -> None:
        """IPv6 packets pass as IPv4 ones do."""
        simulation, client = connected()
        packet = numbered_packet(1, client.lease.ipv6, simulation.hub.pool.hub6)
        back = numbered_packet(2, simulation.hub.pool.hub6, client.lease.ipv6)
        client.send(packet)
        simulation.hub.send(back)
        simulation.advance(1)
        self.assertEqual(simulation.hub.received, [packet])
        self.assertEqual(client.received, [back])


class Byes(SynchronousTestCase):
    def test_of_the_client(self) -> None:
        """A client that stops ends its session on the hub; its address stays its own."""
        simulation, client = connected()
        lease = client.lease
        client.stop()
        simulation.advance(1)
        self.assertEqual(simulation.hub.core._sessions, {})
        self.assertEqual([e.reason for e in simulation.hub.told(SessionEnded)], ["client_stopped"])
        self.assertEqual(client.lease, lease)

    def test_of_a_hub_that_restarts(self) -> None:
        """BYE 1 spreads its clients' logins over 2 s."""
        simulation, first = connected()
        users = (f"user{number}" for number in range(20))
        clients = [first, *(with_client(simulation, user) for user in users)]
        for client in clients[1:]:
            client.start()
        simulation.advance(1)
        start = simulation.now
        simulation.hub.stop(ByeReason.RESTARTING)
        simulation.hub.restart()
        simulation.advance(RESTART_SPREAD + 1)
        logins = times(simulation.network.captured, start)
        self.assertEqual(len(logins), len(clients))
        self.assertLess(max(logins), RESTART_SPREAD + 0.1)
        self.assertGreater(max(logins) - min(logins), RESTART_SPREAD / 2)
        for client in clients:
            self.assertEqual(client.core.state, State.UP)

    def test_a_lost_bye(self) -> None:
        """A hub that went without a word is noticed by liveness all the same."""
        simulation, client = connected()
        cut(simulation)
        simulation.hub.stop()
        simulation.hub.restart()
        heal(simulation)
        simulation.advance(POLL_INTERVAL + 10)
        self.assertTrue(works_both_ways(simulation, client))
        self.assertEqual(len(client.told(Connected)), 2)

    def test_a_full_pool(self) -> None:
        """When no address is left a device is told so, BYE 7, and gets one once there is."""
        simulation, _ = connected()
        for host in range(3, 255):
            simulation.hub.pool.lease(
                ("x", bytes([host])), IPv4Address(f"10.10.0.{host}"), None, 0, lambda _: True
            )
        late = with_client(simulation, "bob", "another")
        late.start()
        simulation.advance(1)
        self.assertEqual([e.reason for e in late.told(Refused)], [ByeReason.POOL_FULL])
        simulation.hub.pool.release(("x", b"\x50"))
        simulation.advance(REFUSED_RETRY_TIME + 1)
        self.assertTrue(works_both_ways(simulation, late))
