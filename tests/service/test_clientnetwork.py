"""What a hub's word and this machine's wishes mean for Linux, without either."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core.configtlv import Config
from pyvpn.errors import ConfigError
from pyvpn.linux.desired import Link
from pyvpn.linux.firewall import TABLES
from pyvpn.service.clientlink import gso_max_size, link_of
from pyvpn.service.clientnetwork import DEFAULTS, Machine, Plan, Wishes, plan

TABLE = TABLES + 7
OWN = ("10.10.0.0/24", "fd6e:a1::/64")
LINK = Link("leamit0", 1416)


def nets(*texts: str) -> tuple[Any, ...]:
    return tuple(map(ip_network, texts))


def told(*routes: str, **more: Any) -> Config:
    """A hub's word: two addresses, and these routes."""
    return Config(
        addresses=(ip_interface("10.10.0.2/24"), ip_interface("fd6e:a1::2/64")),  # type: ignore[arg-type]
        routes=nets(*routes),
        **more,
    )


def machine(**more: Any) -> Machine:
    return Machine("leamit0", 7, (12000,), hub=("198.51.100.2",), **more)


def made(word: Config, wishes: Wishes | None = None, here: Machine | None = None) -> Plan:
    return plan(word, wishes or Wishes(), here or machine(), LINK)


def table(found: Plan) -> dict[str, str]:
    """The routes, destination → kind."""
    for route in found.state.routes:
        assert (route.device, route.table) == ("leamit0", TABLE)
    return {route.destination: route.kind for route in found.state.routes}


OWN_TABLE = dict.fromkeys(OWN, "unicast")


class Split(SynchronousTestCase):
    def test_nothing_said(self) -> None:
        """Without a word of the hub's the VPN's own networks alone go through it, in both
        families, before all that DHCP may say."""
        found = made(told())
        self.assertEqual(table(found), OWN_TABLE)
        self.assertEqual(
            [(rule.family, rule.table) for rule in found.state.rules], [(4, TABLE), (6, TABLE)]
        )
        self.assertEqual((found.routes, found.full, found.notes), ((), frozenset(), ()))
        self.assertIsNone(found.state.name_servers)
        self.assertEqual(found.state.sysctls, {"net/ipv4/conf/all/src_valid_mark": "1"})

    def test_routes(self) -> None:
        """The hub's routes are taken, and told to the core; with --no-routes they are not."""
        word = told("192.168.77.0/24", "fd77::/48")
        found = made(word)
        self.assertEqual(
            table(found), {**OWN_TABLE, "192.168.77.0/24": "unicast", "fd77::/48": "unicast"}
        )
        self.assertEqual(found.routes, word.routes)
        self.assertEqual(table(made(word, Wishes(routes=False))), OWN_TABLE)

    def test_no_default_without_being_asked(self) -> None:
        """The internet that a hub offers is not taken without --all-traffic, nor are halves of
        it, nor all of it in pieces."""
        pieces = [f"{number}.0.0.0/8" for number in range(256) if number != 127]
        for routes, said in (
            (["0.0.0.0/0", "::/0"], False),
            (["0.0.0.0/1", "128.0.0.0/1"], True),
            (["2000::/3"], True),
            (pieces, True),
        ):
            found = made(told(*routes, "192.168.77.0/24"))
            # 126.0.0.0/8 stands alone: its neighbour is loopback.
            public = {net for net in table(found) if ip_network(net).is_global}
            self.assertLessEqual(public, {"126.0.0.0/8"}, routes[0])
            kept = "192.168.77.0/24" in table(found)
            self.assertEqual(kept, routes is not pieces, "it is in one of the pieces")
            self.assertEqual(bool(found.notes), said, routes[0])

    def test_most_of_it_in_pieces(self) -> None:
        """Many public networks that are not quite everything need --all-traffic, too; private
        ones beside them do not, nor do a few."""
        holes = [f"{number}.0.0.0/9" for number in range(11, 120)]
        found = made(told(*holes, "192.168.77.0/24"))
        self.assertEqual(table(found), {**OWN_TABLE, "192.168.77.0/24": "unicast"})
        self.assertIn("--all-traffic", found.notes[0])
        self.assertEqual(len(table(made(told(*holes), Wishes(all_traffic=True)))), 3 + 2 + 109)
        self.assertEqual(len(table(made(told(*holes[:8])))), 2 + 8)
        with self.assertRaises(ConfigError) as caught:
            wide = (ip_interface("52.0.0.1/8"), ip_interface("101.0.0.1/6"))
            made(Config(addresses=wide))  # type: ignore[arg-type]
        self.assertIn("52.0.0.0/8", str(caught.exception))

    def test_include_and_exclude(self) -> None:
        """The user's networks go through the tunnel, or never, whatever the hub says."""
        word = told("192.168.0.0/16", "192.168.77.0/24", excluded=nets("203.0.113.0/24"))
        wishes = Wishes(
            include=nets("203.0.113.0/24", "203.0.113.7/32"), exclude=nets("192.168.76.0/23")
        )
        self.assertEqual(
            table(made(word, wishes)),
            {
                **OWN_TABLE,
                "192.168.0.0/16": "unicast",
                "192.168.76.0/23": "throw",
                "203.0.113.0/24": "unicast",
                "203.0.113.7/32": "unicast",
            },
        )

    def test_own_networks_cannot_be_excluded(self) -> None:
        """The VPN's own network goes through it, and whoever excludes it is told."""
        found = made(told(), Wishes(exclude=nets("10.0.0.0/8", "10.10.0.0/24")))
        self.assertEqual(table(found), {**OWN_TABLE, "10.0.0.0/8": "throw"})
        self.assertEqual(len(found.notes), 2)

    def test_private_networks_of_here(self) -> None:
        """A network that this machine is in takes nothing from the VPN's by being narrower,
        whoever runs it; its user is told, and may say otherwise."""
        lan = "192.168.1.0/24"
        here = machine(lans=(("eth0", ip_network(lan)),))
        found = made(told("192.168.0.0/16"), here=here)
        self.assertNotIn(lan, table(found))
        (note,) = found.notes
        for word in (lan, "eth0", "192.168.0.0/16", f"--exclude {lan}"):
            self.assertIn(word, note)
        found = made(told("192.168.0.0/16"), Wishes(exclude=nets(lan)), here)
        self.assertEqual((table(found)[lan], found.notes), ("throw", ()))
        inner = machine(lans=(("eth0", ip_network("10.10.0.0/25")),))
        self.assertNotIn("10.10.0.0/25", table(made(told(), here=inner)))
        offer = told("0.0.0.0/0", "::/0", "192.168.0.0/20")
        for wishes, outside in (
            (Wishes(all_traffic=True), False),
            (Wishes(all_traffic=True, routes=True, kill_switch=True), False),
            (Wishes(all_traffic=True, exclude=nets("192.168.0.0/20")), True),
            (Wishes(all_traffic=True, exclude=nets("192.168.0.0/20"), kill_switch=True), False),
        ):
            self.assertEqual(lan in table(made(offer, wishes, here)), outside, wishes)

    def test_without_ipv6(self) -> None:
        """A machine without IPv6 gets none of it; with all traffic, should it be switched on
        later, it leads nowhere."""
        found = made(
            told("fd77::/48", "0.0.0.0/0", "::/0"), Wishes(all_traffic=True), machine(ipv6=False)
        )
        self.assertEqual(
            table(found),
            {
                "10.10.0.0/24": "unicast",
                "0.0.0.0/0": "unicast",
                "::/0": "unreachable",
                "169.254.0.0/16": "throw",
            },
        )
        self.assertEqual([rule.family for rule in found.state.rules], [4, 6])
        found = made(told("fd77::/48"), here=machine(ipv6=False))
        self.assertEqual(table(found), {"10.10.0.0/24": "unicast"})
        self.assertEqual([rule.family for rule in found.state.rules], [4])


class Full(SynchronousTestCase):
    def test_both_families(self) -> None:
        """All traffic goes to a hub that offers it, less what is excluded and what is near."""
        here = machine(lans=(("eth0", ip_network("192.168.1.0/24")),))
        found = made(
            told("0.0.0.0/0", "::/0"),
            Wishes(all_traffic=True, exclude=nets("203.0.113.0/24")),
            here,
        )
        self.assertEqual(
            table(found),
            {
                **OWN_TABLE,
                "0.0.0.0/0": "unicast",
                "::/0": "unicast",
                "203.0.113.0/24": "throw",
                "169.254.0.0/16": "throw",
                "192.168.1.0/24": "throw",
            },
        )
        self.assertEqual((found.routes, found.full), (tuple(DEFAULTS.values()), {4, 6}))

    def test_one_family(self) -> None:
        """A family that the hub has no way for leads nowhere, and not around the tunnel."""
        found = made(told("0.0.0.0/0"), Wishes(all_traffic=True))
        self.assertEqual(table(found)["::/0"], "unreachable")
        self.assertEqual(table(found)["0.0.0.0/0"], "unicast")
        self.assertEqual(found.routes, (DEFAULTS[4],))

    def test_none(self) -> None:
        """With a hub that offers nothing, nothing leaves around the tunnel, and it is told why."""
        found = made(told(), Wishes(all_traffic=True))
        nowhere = {"0.0.0.0/0": "unreachable", "::/0": "unreachable"}
        self.assertEqual(table(found), {**OWN_TABLE, **nowhere, "169.254.0.0/16": "throw"})
        self.assertEqual((found.routes, found.full), ((), frozenset()))
        self.assertIn("--internet", found.notes[0])
        self.assertIn("no name server", found.notes[1])

    def test_halves(self) -> None:
        """Two halves are a whole."""
        found = made(told("0.0.0.0/1", "128.0.0.0/1"), Wishes(all_traffic=True))
        self.assertEqual(table(found)["0.0.0.0/0"], "unicast")
        self.assertEqual(found.full, {4})

    @given(
        st.lists(st.integers(0, 255), max_size=6),
        st.lists(st.integers(0, 255), max_size=6),
        st.lists(st.integers(0, 255), max_size=6),
        st.booleans(),
        st.integers(0, 255),
    )
    @settings(deadline=None)
    def test_by_a_model(
        self, pushed: list[int], included: list[int], excluded: list[int], everything: bool, at: int
    ) -> None:
        """Each address goes where the plain rules say: excluded by the user, included, pushed."""
        word = told(*(f"20.{n}.0.0/16" for n in pushed), *(["0.0.0.0/0"] if everything else []))
        wishes = Wishes(
            all_traffic=everything,
            include=tuple(dict.fromkeys(nets(*(f"20.{n}.9.0/24" for n in included)))),
            exclude=tuple(dict.fromkeys(nets(*(f"20.{n}.0.0/16" for n in excluded)))),
        )
        kinds = table(made(word, wishes))
        for third in (9, 10):
            address = ip_address(f"20.{at}.{third}.1")
            longest = max(
                (net for net in kinds if address in ip_network(net)),
                key=lambda net: ip_network(net).prefixlen,
                default=None,
            )
            through = longest is not None and kinds[longest] == "unicast"
            expected = (at in included and third == 9) or (
                at not in excluded and (at in pushed or everything)
            )
            self.assertEqual(through, expected, (at, third, kinds))


class Names(SynchronousTestCase):
    def test_servers(self) -> None:
        """The hub's name servers are set if they can be reached through it, three at most."""
        word = told(
            "192.168.77.0/24",
            dns=tuple(
                ip_address(text)
                for text in ("10.10.0.1", "8.8.8.8", "fd6e:a1::1", "192.168.77.1", "10.10.0.9")
            ),
            search=("pyvpn",),
        )
        servers = made(word).state.name_servers
        assert servers is not None
        self.assertEqual(servers.servers, ("10.10.0.1", "fd6e:a1::1", "192.168.77.1"))
        self.assertEqual((servers.search, servers.exclusive), (("pyvpn",), False))
        self.assertIsNone(made(word, Wishes(dns=False)).state.name_servers)

    def test_elsewhere(self) -> None:
        """Name servers that no route of the tunnel reaches are left out, and named; those of a
        family that this machine has not are no news."""
        word = told(dns=tuple(map(ip_address, ("8.8.8.8", "2001:db8::53"))))
        found = made(word)
        self.assertIsNone(found.state.name_servers)
        (note,) = found.notes
        self.assertIn("8.8.8.8, 2001:db8::53", note)
        (note,) = made(word, here=machine(ipv6=False)).notes
        self.assertNotIn("2001:db8::53", note)
        self.assertEqual(made(word, Wishes(dns=False)).notes, ())
        (kept,) = made(word, Wishes(include=nets("8.8.8.8/32"))).notes
        self.assertNotIn("8.8.8.8", kept)
        # All of the servers that are behind it: nothing to say.
        self.assertEqual(made(told(dns=(ip_address("10.10.0.1"),))).notes, ())

    def test_only(self) -> None:
        """A WireGuard file's servers are asked for all names, whatever goes through the tunnel."""
        word = told(dns=(ip_address("10.10.0.1"),))
        for wishes, exclusive in ((Wishes(), False), (Wishes(only_dns=True), True)):
            servers = made(word, wishes).state.name_servers
            assert servers is not None
            self.assertEqual(servers.exclusive, exclusive)

    def test_exclusive(self) -> None:
        """With all traffic no other server is asked; a hub without one is told of."""
        wishes = Wishes(all_traffic=True)
        servers = made(told("0.0.0.0/0", dns=(ip_address("8.8.8.8"),)), wishes).state.name_servers
        assert servers is not None
        self.assertEqual((servers.servers, servers.exclusive), (("8.8.8.8",), True))
        found = made(told("0.0.0.0/0"), wishes)
        self.assertIsNone(found.state.name_servers)
        self.assertIn("no name server", found.notes[0])

    def test_a_way_of_their_own(self) -> None:
        """A network around us does not take a name server by having its address."""
        server = "10.99.0.53"
        here = machine(lans=(("eth0", ip_network("10.99.0.0/16")),))
        word = told("0.0.0.0/0", dns=(ip_address(server),))
        found = made(word, Wishes(all_traffic=True), here)
        kinds = table(found)
        self.assertEqual((kinds[f"{server}/32"], kinds["10.99.0.0/16"]), ("unicast", "throw"))
        self.assertIn(ip_network(f"{server}/32"), found.routes)


class Conflicts(SynchronousTestCase):
    def refused(self, word: Config, wishes: Wishes, here: Machine, *words: str) -> None:
        with self.assertRaises(ConfigError) as caught:
            made(word, wishes, here)
        for each in words:
            self.assertIn(each, str(caught.exception))

    def test_the_hubs_own_address(self) -> None:
        """A route that holds the hub's outer address is refused, and both are named."""
        word, here = told("198.51.100.0/24"), machine()
        self.refused(word, Wishes(), here, "198.51.100.0/24", "198.51.100.2", "--exclude")
        self.refused(told(), Wishes(include=nets("198.51.0.0/16")), here, "--include 198.51.0.0/16")
        self.assertEqual(
            table(made(word, Wishes(exclude=nets("198.51.100.0/24"))))["198.51.100.0/24"], "throw"
        )

    def test_a_network_of_here(self) -> None:
        """A route into a network that this machine is in is refused, unless its user decides."""
        here = machine(lans=(("eth0", ip_network("192.168.1.0/24")),))
        for route in ("192.168.1.0/24", "192.168.1.128/25"):
            word = told(route)
            self.refused(word, Wishes(), here, route, "192.168.1.0/24", "eth0")
            self.assertEqual(table(made(word, Wishes(include=nets(route)), here))[route], "unicast")
            self.assertEqual(table(made(word, Wishes(exclude=nets(route)), here))[route], "throw")
            self.assertEqual(table(made(word, Wishes(lan_access=False), here))[route], "unicast")

    def test_options_against_each_other(self) -> None:
        """Options that contradict each other are named."""
        net = nets("203.0.113.0/24")
        self.refused(told(), Wishes(include=net, exclude=net), machine(), "--include", "--exclude")
        self.refused(told(), Wishes(include=nets("::/0")), machine(), "--all-traffic")
        self.refused(
            told("192.168.0.0/16"),
            Wishes(share=nets("192.168.7.0/24")),
            machine(),
            "--share",
            "192.168.0.0/16",
        )

    def test_share(self) -> None:
        """What is shared is told to the firewall, and this machine forwards."""
        here = machine(sysctls={"net/ipv4/ip_forward": "1"})
        state = made(told(), Wishes(share=nets("192.168.7.0/24")), here).state
        assert state.firewall is not None and state.firewall.kind == "client"
        self.assertEqual(state.firewall.shared, ("192.168.7.0/24",))  # type: ignore[union-attr]
        self.assertEqual(state.firewall.networks, OWN)
        self.assertEqual(state.sysctls["net/ipv4/ip_forward"], "1")
        self.assertNotIn("net/ipv4/ip_forward", made(told(), here=here).state.sysctls)


class WithoutTable(SynchronousTestCase):
    def test_nothing_routed(self) -> None:
        """Without a table of ours there is no route, rule or sysctl, but the guard; and name
        servers are those named, since what is behind the tunnel is somebody else's word."""
        word = told(dns=(ip_address("9.9.9.9"),))
        state = made(word, Wishes(table=False)).state
        self.assertEqual((state.routes, state.rules, state.sysctls), ((), (), {}))
        assert state.firewall is not None and state.name_servers is not None
        self.assertEqual(state.firewall.device, "leamit0")
        self.assertEqual(state.name_servers.servers, ("9.9.9.9",))
        self.assertIsNone(made(word).state.name_servers)

    def test_forwarding(self) -> None:
        """What forwards for others forwards nothing for the VPN that was not shared."""
        for forwards, wishes, closed in (
            (True, Wishes(), True),
            (False, Wishes(), False),
            (True, Wishes(closed=False), False),
        ):
            firewall = made(told(), wishes, machine(forwards=forwards)).state.firewall
            assert firewall is not None and firewall.kind == "client"
            self.assertEqual(firewall.closed, closed)  # type: ignore[union-attr]


class Links(SynchronousTestCase):
    def test_options(self) -> None:
        """--tun-dstaddr and --tun-netmask are the TUN's where they fit the hub's network."""
        word = told()
        link, notes = link_of(word, Wishes(), "leamit0", 1300, ipv6=True)
        self.assertEqual([a.interface for a in link.addresses], ["10.10.0.2/24", "fd6e:a1::2/64"])
        self.assertEqual((link.name, link.mtu, notes), ("leamit0", 1300, []))
        wishes = Wishes(peer=IPv4Address("10.10.0.1"), netmask=16)
        link, notes = link_of(word, wishes, "leamit0", 1300, ipv6=False)
        self.assertEqual(
            [(a.interface, a.peer) for a in link.addresses], [("10.10.0.2/16", "10.10.0.1")]
        )
        wishes = Wishes(peer=IPv4Address("10.99.0.1"))
        link, notes = link_of(word, wishes, "leamit0", 1300, ipv6=True)
        self.assertEqual([a.peer for a in link.addresses], [None, None])
        self.assertIn("10.99.0.1", notes[0])

    def test_mtu(self) -> None:
        """The MTU is the least of the hub's, the user's and the path's; super-packets go by it."""
        for hub, user, path, mtu in (
            (None, None, 1400, 1400),
            (1300, None, 1400, 1300),
            (1300, 1290, 1400, 1290),
            (None, 1500, 1400, 1400),
        ):
            link, _ = link_of(told(mtu=hub), Wishes(mtu=user), "leamit0", path, ipv6=True)
            self.assertEqual((link.mtu, link.gso_max_size), (mtu, gso_max_size(mtu)))

    def test_twice(self) -> None:
        """An address that is named twice, as a file may, is set once."""
        one = ip_interface("10.9.0.2/24")
        link, _ = link_of(Config(addresses=(one, one)), Wishes(), "wg0", 1420, ipv6=True)  # type: ignore[arg-type]
        self.assertEqual([a.interface for a in link.addresses], ["10.9.0.2/24"])
