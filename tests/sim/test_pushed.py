"""What a hub tells its clients while they are connected: routes, name servers, search domains."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.assignments import Subnets
from pyvpn.core.control import Pushed
from pyvpn.core.events import ConfigRefused, Configured, Connected
from pyvpn.errors import LocalProtocolError
from pyvpn.testing.simulation import Simulation, numbered_packet
from tests.sim.rules import CONFIG_INTERVAL, HUB4, POLL_INTERVAL, connected, cut, heal, with_client

OFFICE = IPv4Network("192.168.77.0/24")
PRINTER = IPv4Address("192.168.77.9")
PUSHED = Pushed(
    routes=(OFFICE, IPv6Network("::/0")),
    excluded=(IPv4Network("192.168.77.128/25"),),
    dns=(HUB4,),
    search=("pyvpn",),
)


def push(simulation: Simulation, pushed: Pushed) -> None:
    core = simulation.hub.core
    core.set_network(pushed, core._assignments._subnets, simulation.now)
    simulation.hub.drain()


def put_behind(simulation: Simulation, subnets: Subnets) -> None:
    core = simulation.hub.core
    core.set_network(core._assignments._pushed, subnets, simulation.now)
    simulation.hub.drain()


class OfAll(SynchronousTestCase):
    def test_live_and_new_clients(self) -> None:
        """News reach who is connected without a new login, and others when they come."""
        simulation, first = connected()
        push(simulation, PUSHED)
        second = with_client(simulation, "bob", "another")
        second.start()
        simulation.advance(1)
        for client, count in ((first, 2), (second, 1)):
            configs = [event.config for event in client.told(Configured)]
            self.assertEqual(len(configs), count)
            last = configs[-1]
            self.assertEqual(
                (last.routes, last.excluded, last.dns, last.search),
                (PUSHED.routes, PUSHED.excluded, PUSHED.dns, PUSHED.search),
            )
            self.assertEqual(len(client.told(Connected)), 1)
        self.assertEqual(first.told(Configured)[0].config.routes, ())
        self.assertEqual(
            first.told(Configured)[0].config.addresses, first.told(Configured)[1].config.addresses
        )

    def test_the_same_again(self) -> None:
        """What is known already is not told again."""
        simulation, client = connected()
        push(simulation, PUSHED)
        push(simulation, PUSHED)
        simulation.advance(1)
        self.assertEqual(len(client.told(Configured)), 2)

    def test_too_much(self) -> None:
        """More than CONFIG can carry is refused, and what was told stays."""
        simulation, client = connected()
        networks = tuple(IPv4Network((number << 8, 24)) for number in range(1, 1026))
        with self.assertRaises(LocalProtocolError):
            push(simulation, Pushed(routes=networks))
        simulation.advance(1)
        self.assertEqual(len(client.told(Configured)), 1)
        push(simulation, Pushed(routes=networks[:-1]))
        simulation.advance(1)
        self.assertEqual(client.told(Configured)[-1].config.routes, networks[:-1])

    def test_out_of_reach(self) -> None:
        """A client that missed the news, repetitions too, is told at its next poll."""
        simulation, client = connected()
        simulation.advance(POLL_INTERVAL / 2)
        cut(simulation)
        push(simulation, PUSHED)
        simulation.advance(CONFIG_INTERVAL * 5.5)
        heal(simulation)
        self.assertEqual(len(client.told(Configured)), 1)
        simulation.advance(POLL_INTERVAL)
        self.assertEqual(client.told(Configured)[-1].config.routes, PUSHED.routes)
        self.assertEqual(len(client.told(Connected)), 1)

    def test_refused(self) -> None:
        """The hub hears of a client that cannot apply the news, once, and stops repeating them."""
        simulation, client = connected()
        applied = client.core.config_applied
        client.core.config_applied = lambda revision, now: applied(revision, now, 1)  # type: ignore[method-assign]
        push(simulation, PUSHED)
        simulation.advance(CONFIG_INTERVAL * 3)
        (refused,) = simulation.hub.told(ConfigRefused)
        self.assertEqual((refused.user, refused.device), (client.user, client.device))
        self.assertEqual(len(client.told(Configured)), 2)


class Behind(SynchronousTestCase):
    """A network behind one client."""

    def test_reached(self) -> None:
        """Packets go to the device that has the network behind it, and come from there."""
        simulation, office = connected()
        office.core.set_routes([])
        there = numbered_packet(1, HUB4, PRINTER)
        back = numbered_packet(2, PRINTER, HUB4)
        simulation.hub.send(there)
        office.core.set_routes([IPv4Network("0.0.0.0/0")])
        office.send(back)
        simulation.advance(1)
        self.assertEqual((simulation.hub.received, office.received), ([], []))
        put_behind(simulation, {(office.user, office.device): (OFFICE,)})
        simulation.hub.send(there)
        office.send(back)
        simulation.advance(1)
        self.assertEqual((simulation.hub.received, office.received), ([back], [there]))
        put_behind(simulation, {})
        simulation.hub.send(there)
        simulation.advance(1)
        self.assertEqual(office.received, [there])
        self.assertEqual(simulation.hub.core.counters["tun_no_peer"], 2)

    def test_not_told_to_itself(self) -> None:
        """A route is told to all but to the device that has the network behind it."""
        simulation, office = connected()
        other = with_client(simulation, "bob", "another")
        other.start()
        simulation.advance(1)
        put_behind(simulation, {(office.user, None): (OFFICE,)})
        push(simulation, PUSHED)
        simulation.advance(1)
        self.assertEqual(other.told(Configured)[-1].config.routes, PUSHED.routes)
        self.assertEqual(office.told(Configured)[-1].config.routes, PUSHED.routes[1:])

    def test_the_last_device(self) -> None:
        """Without a device named it is the one of the user that said HELLO last."""
        simulation, first = connected()
        put_behind(simulation, {(first.user, None): (OFFICE,)})
        second = with_client(simulation)
        second.start()
        simulation.advance(1)
        there = numbered_packet(1, HUB4, PRINTER)
        second.core.set_routes([OFFICE])
        simulation.hub.send(there)
        simulation.advance(1)
        self.assertEqual((first.received, second.received), ([], [there]))

    def test_a_lease_within(self) -> None:
        """An address that lies in a network behind another device can be leased all the same."""
        simulation, office = connected()
        around = IPv4Network("10.10.0.0/16")
        put_behind(simulation, {(office.user, None): (around,)})
        other = with_client(simulation, "bob", "another")
        other.start()
        simulation.advance(1)
        self.assertIsNotNone(simulation.hub.core.peer(office.user, office.device).lease)
        packet = numbered_packet(1, HUB4, other.lease.ipv4)
        simulation.hub.send(packet)
        simulation.advance(1)
        self.assertEqual((office.received, other.received), ([], [packet]))


class OfTheClient(SynchronousTestCase):
    def test_routes(self) -> None:
        """A client takes and sends for the networks it was told to, and no others."""
        simulation, client = connected()
        far = IPv4Address("198.51.100.7")
        self.assertIsNotNone(client.lease)
        packet = numbered_packet(1, far, client.lease.ipv4)
        simulation.hub.send(packet)
        simulation.advance(1)
        self.assertEqual(client.received, [])
        self.assertEqual(client.core.counters["inner_source_not_allowed"], 1)
        client.core.set_routes([IPv4Network("0.0.0.0/0")])
        simulation.hub.send(packet)
        out = numbered_packet(2, client.lease.ipv4, far)
        client.send(out)
        simulation.advance(1)
        self.assertEqual(client.received, [packet])
        self.assertEqual(simulation.hub.received, [out])
        client.core.set_routes([])
        client.send(out)
        simulation.advance(1)
        self.assertEqual(simulation.hub.received, [out])
