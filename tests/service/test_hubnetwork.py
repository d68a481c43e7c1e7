"""What settings mean for Linux, the core and clients: values in, values out."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.configtlv import Pushed
from pyvpn.core.control import Config, config_parts
from pyvpn.core.leases import AddressPool
from pyvpn.linux.desired import Address, Link, SystemState
from pyvpn.linux.desired import Route as LinuxRoute
from pyvpn.linux.firewall import HubFirewall
from pyvpn.linux.inuse import NetworksInUse
from pyvpn.routes import Route
from pyvpn.service import hubnetwork
from pyvpn.service.hubnetwork import Known, Machine, Plan
from pyvpn.state.settings import NetworkSettings
from pyvpn.values import Network

NET4, NET6 = ip_network("10.10.0.0/24"), ip_network("fd00:1::/64")
SYSCTLS = {"net/ipv4/ip_forward": "1"}
DEVICE = bytes(range(16))


def net(text: str) -> Network:
    return ip_network(text)


def pool(ipv6: bool = True) -> AddressPool:
    return AddressPool(NET4, NET6 if ipv6 else None)


def planned(settings: NetworkSettings, known: Known | None = None, **machine: Any) -> Plan:
    there = Machine("leamit0", 1416, SYSCTLS, **machine)
    return hubnetwork.plan(settings, pool(), known or Known(), there)


class PlanTests(SynchronousTestCase):
    """Linux and the core."""

    def test_alone(self) -> None:
        """Without settings: the TUN, forwarding, and rules that let nothing leave the VPN."""
        plan = planned(NetworkSettings())
        addresses = (Address("10.10.0.1/24"), Address("fd00:1::1/64"))
        firewall = HubFirewall("leamit0", ("10.10.0.0/24", "fd00:1::/64"))
        self.assertEqual(
            SystemState((Link("leamit0", 1416, addresses),), (), SYSCTLS, firewall=firewall),
            plan.state,
        )
        self.assertEqual(({}, [], []), (plan.subnets, plan.routed(), plan.problems()))

    def test_all(self) -> None:
        """Each kind of network is in the rules, the routes and the core where it belongs."""
        settings = NetworkSettings(
            internet=True,
            client_to_client=False,
            routes=(
                Route(net("10.20.0.0/16")),
                Route(net("10.30.0.0/16"), "alice"),
                Route(net("fd77::/64"), "alice", DEVICE),
                Route(net("10.31.0.0/16"), "alice"),
            ),
        )
        known = Known({"alice"}, {"office": [net("10.50.0.0/16")], "phone": []})
        plan = planned(settings, known)
        behind = ("10.30.0.0/16", "fd77::/64", "10.31.0.0/16", "10.50.0.0/16")
        self.assertEqual(
            HubFirewall(
                "leamit0",
                ("10.10.0.0/24", "fd00:1::/64"),
                internet=True,
                client_to_client=False,
                subnets=behind,
                reachable=("10.20.0.0/16",),
            ),
            plan.state.firewall,
        )
        self.assertEqual(tuple(LinuxRoute(text, "leamit0") for text in behind), plan.state.routes)
        self.assertEqual(
            {
                ("alice", None): (net("10.30.0.0/16"), net("10.31.0.0/16")),
                ("alice", DEVICE): (net("fd77::/64"),),
            },
            plan.subnets,
        )
        self.assertEqual([net("10.20.0.0/16"), *map(net, behind)], plan.routed())
        self.assertEqual([], plan.problems())

    def test_no_nft(self) -> None:
        """Without nft there are no rules; routes and addresses are the same."""
        settings = NetworkSettings(routes=(Route(net("10.30.0.0/16"), "alice"),))
        with_nft = planned(settings, Known({"alice"}))
        plan = planned(settings, Known({"alice"}), nft=False)
        self.assertIsNotNone(with_nft.state.firewall)
        self.assertEqual(evolve(with_nft.state, firewall=None), plan.state)

    def test_left_out(self) -> None:
        """What cannot be is left out of all, with one line that names both; the rest stays."""
        own = (ip_address("198.51.100.2"), net("198.51.100.0/24"), "eth0")
        lan = (ip_address("192.168.1.5"), net("192.168.1.0/24"), "eth1")
        in_use = NetworksInUse((own, lan), ((net("10.66.1.0/24"), "tun9"),))
        settings = NetworkSettings(
            routes=(
                Route(net("10.20.0.0/16")),
                Route(net("10.30.0.0/16"), "bob"),
                Route(net("10.10.0.0/25")),
                Route(net("10.20.1.0/24"), "alice"),
                Route(net("192.168.0.0/16"), "alice"),
                Route(net("10.66.0.0/16"), "alice"),
                Route(net("198.51.100.0/25")),
                Route(net("203.0.113.0/24")),
                Route(net("192.168.1.0/24")),
                Route(net("10.66.1.0/24")),
            )
        )
        known = Known(
            {"alice"}, {"office": [net("10.20.7.0/24"), net("0.0.0.0/0"), net("10.0.0.0/8")]}
        )
        plan = planned(settings, known, in_use=in_use, endpoints=[ip_address("203.0.113.7")])
        self.assertEqual(
            [
                "10.30.0.0/16 is behind user 'bob', who does not exist; left out",
                "10.10.0.0/25 overlaps the VPN's own network 10.10.0.0/24; left out",
                "10.20.1.0/24 behind alice overlaps 10.20.0.0/16 on the hub's side; left out",
                "192.168.0.0/16 overlaps 192.168.1.5/24 of interface eth1; left out",
                "10.66.0.0/16 overlaps the route to 10.66.1.0/24 (tun9); left out",
                "198.51.100.0/25 holds this hub's own address 198.51.100.2 (eth0); left out",
                "203.0.113.0/24 holds 203.0.113.7, where clients reach this hub; left out",
                "10.20.7.0/24 behind WireGuard peer office overlaps 10.20.0.0/16 on the hub's side;"
                " left out",
                "0.0.0.0/0 of WireGuard peer 'office' is everything: the hub keeps its own way;"
                " left out",
                "10.0.0.0/8 overlaps the VPN's own network 10.10.0.0/24; left out",
            ],
            plan.problems(),
        )
        routed = [net("10.20.0.0/16"), net("192.168.1.0/24"), net("10.66.1.0/24")]
        self.assertEqual(routed, plan.routed())
        self.assertEqual(((), {}), (plan.state.routes, plan.subnets))

    def test_excluded(self) -> None:
        """What clients keep out of the tunnel is no route; a part of it is."""
        routes = (Route(net("10.20.0.0/16")), Route(net("10.30.1.0/24")))
        excluded = (net("10.20.0.0/16"), net("10.30.0.0/16"))
        plan = planned(NetworkSettings(routes=routes, excluded=excluded))
        self.assertEqual(
            ["10.20.0.0/16 is kept out of the tunnel (--exclude); left out"], plan.problems()
        )
        self.assertEqual([net("10.30.1.0/24")], plan.routed())

    def test_without_ipv6(self) -> None:
        """A VPN without IPv6 has no routes of it."""
        settings = NetworkSettings(routes=(Route(net("fd77::/64")), Route(net("10.20.0.0/16"))))
        plan = hubnetwork.plan(settings, pool(False), Known(), Machine("leamit0", 1416, SYSCTLS))
        self.assertEqual(["fd77::/64 is IPv6, which this VPN has not; left out"], plan.problems())
        self.assertEqual([net("10.20.0.0/16")], plan.routed())

    def test_very_many(self) -> None:
        """Of more networks than clients can be told the first ones are, and this is said."""
        networks = [net(f"10.{64 + n // 256}.{n % 256}.0/24") for n in range(901)]
        plan = planned(NetworkSettings(), Known((), {"office": networks}))
        self.assertEqual(networks[:900], plan.routed())
        self.assertEqual(
            ["10.67.132.0/24 is one more than the 900 that clients are told; left out"],
            plan.problems(),
        )
        told = hubnetwork.pushed(NetworkSettings(internet=True), pool(), plan.routed(), True)
        config = Config(routes=told.routes, dns=told.dns, search=told.search)
        self.assertLessEqual(len(config_parts(1, config)), 32)  # PROTOCOL 6


class PushedTests(SynchronousTestCase):
    """Clients."""

    def pushed(self, answering: bool = True, ipv6: bool = True, **settings: Any) -> Pushed:
        routed = [net("10.20.0.0/16")]
        return hubnetwork.pushed(NetworkSettings(**settings), pool(ipv6), routed, answering)

    def test_default(self) -> None:
        """Routes, the hub as name server, its domain."""
        dns = (ip_address("10.10.0.1"), ip_address("fd00:1::1"))
        self.assertEqual(Pushed((net("10.20.0.0/16"),), (), dns, ("pyvpn",)), self.pushed())

    def test_internet(self) -> None:
        """The internet is offered in the families that the VPN has."""
        for ipv6, more in ((True, ("0.0.0.0/0", "::/0")), (False, ("0.0.0.0/0",))):
            told = self.pushed(internet=True, ipv6=ipv6)
            self.assertEqual((net("10.20.0.0/16"), *map(net, more)), told.routes)

    def test_names(self) -> None:
        """Our domain comes with our name server alone, and no domain without any server."""
        other = (ip_address("9.9.9.9"),)
        corp = {"search": ("corp.example",)}
        self.assertEqual(("pyvpn", "corp.example"), self.pushed(**corp).search)
        self.assertEqual(("pyvpn", "x"), self.pushed(search=("x", "pyvpn")).search)
        told = self.pushed(dns=other, **corp)
        self.assertEqual((other, ("corp.example",)), (told.dns, told.search))
        for settings in ({"dns": "none"}, {"answering": False}):
            told = self.pushed(**settings, **corp)  # type: ignore[arg-type]
            self.assertEqual(((), ()), (told.dns, told.search))

    def test_excluded(self) -> None:
        """What is kept out is told."""
        excluded = (net("192.168.0.0/16"),)
        self.assertEqual(excluded, self.pushed(excluded=excluded).excluded)


class NeedsNftTests(SynchronousTestCase):
    """What cannot be done without nft."""

    def test_each(self) -> None:
        """The internet, clients apart, and networks on the hub's side; nothing else."""
        behind = (Route(net("10.30.0.0/16"), "alice"),)
        self.assertIsNone(hubnetwork.needs_nft(NetworkSettings(dns="none", routes=behind)))
        for settings, what in (
            (NetworkSettings(internet=True), "--internet"),
            (NetworkSettings(client_to_client=False), "--no-client-to-client"),
            (NetworkSettings(routes=(*behind, Route(net("10.20.0.0/16")))), "--route"),
        ):
            self.assertIn(what, hubnetwork.needs_nft(settings) or "")
