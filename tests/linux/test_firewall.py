"""The tables of client and hub on the kernel: what they let pass, drop, mark and translate."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux.firewall import (
    ClientFirewall,
    Firewall,
    HubFirewall,
    KillSwitch,
    kill_switch_script,
    removal,
    script,
    table_name,
)
from tests.linux.cables import (
    ICMP,
    ICMP6,
    TCP,
    UDP,
    KernelTest,
    add_addresses,
    echo,
    ends,
    forward,
    nft,
    received,
    segment_size,
    set_sysctl,
    syn,
    udp,
)
from tests.tx.namespace import Namespace

MARK = 0x2056
VPN = ("10.10.0.0/24", "fd00:10::/64")
MANY = ("10.0.0.0/8", "10.10.0.0/24", "10.11.0.0/16", "fd00::/8", "fd00:10::/64")


class Names(SynchronousTestCase):
    """The text of the scripts, as far as it is not for the kernel to judge."""

    def test_table_name(self) -> None:
        """The table is named after the TUN, and no two TUNs have the same one."""
        self.assertEqual(table_name(ClientFirewall("leamit0")), "pyvpn-leamit0")
        self.assertEqual(table_name(HubFirewall("my_tun-1.0", VPN)), "pyvpn-my_tun-1.0")
        names = ("a+b", "a=b", "a@b", "a_b", "a.b", "a-b", "a2bb")
        tables = [table_name(ClientFirewall(name)) for name in names]
        self.assertEqual(len(set(tables)), len(names))
        for name in tables:
            self.assertRegex(name, r"\Apyvpn-[A-Za-z0-9/_.-]+\Z")

    def test_removal(self) -> None:
        """The removal names our own tables and no others."""
        for firewall, families in (
            (ClientFirewall("tun0"), ["inet", "arp"]),
            (HubFirewall("tun0", VPN), ["inet"]),
        ):
            lines = [
                f"{verb} table {family} pyvpn-tun0"
                for family in families
                for verb in ("add", "delete")
            ]
            self.assertEqual(removal(firewall).splitlines(), lines)

    def test_no_name(self) -> None:
        """What could end its quotation, or match several interfaces, never gets into a script."""
        for name in ("", 'a"b', "a\\b", "a*", "a\nb", "ä"):
            with self.assertRaises(ValueError):
                script(ClientFirewall(name))
            with self.assertRaises(ValueError):
                kill_switch_script(KillSwitch("client-home", name))
            with self.assertRaises(ValueError):
                kill_switch_script(KillSwitch(name, "tun0"))

    def test_no_network(self) -> None:
        """What is no network never gets into a script."""
        for network in ("", "0", "10.0.0.1/8", "10.0.0.0/8 drop", "fe80::/129", "host"):
            with self.assertRaises(ValueError):
                script(HubFirewall("tun0", (network,), internet=True))


class Scripts(KernelTest):
    """Any script is taken by nft, again and again, and touches no other table."""

    FIREWALLS: Sequence[Firewall] = (
        ClientFirewall("t+=@-_.0"),
        ClientFirewall("tun0", ("10.10.0.2",), (5050,)),
        ClientFirewall("tun0", ("10.10.0.2", "fd00:10::2"), (1, 65535), MANY, VPN),
        ClientFirewall("tun0", (), (), ("192.168.5.0/24",), ("fd00:10::/64",)),
        HubFirewall("t+=@-_.0", VPN),
        HubFirewall("tun0", ("10.10.0.0/24",), True, False, MANY, MANY),
        HubFirewall("tun0", VPN, reachable=("0.0.0.0/0", "::/0"), subnets=("fd01::/64",)),
    )

    def test_again_and_again(self) -> None:
        """Each script replaces each other one of its TUN, itself too, and removal leaves none."""
        here = self.namespace()
        foreign = "table inet foreign { chain c { type filter hook output priority 0; }; }"
        nft(here, foreign)
        before = here.run("nft list ruleset")
        for firewall in self.FIREWALLS:
            nft(here, script(firewall))
            once = here.run("nft list ruleset")
            self.assertIn(f"table inet {table_name(firewall)} {{", once)
            nft(here, script(firewall))
            self.assertEqual(here.run("nft list ruleset"), once)
        self.assertIn("table inet foreign {", once)
        for firewall in (self.FIREWALLS[0], self.FIREWALLS[1]):
            nft(here, removal(firewall))
        self.assertEqual(here.run("nft list ruleset"), before)


class ClientGuard(KernelTest):
    """A client and its neighbour in the local network (CVE-2019-14899)."""

    TUNNEL_ADDRESSES = ("10.10.0.2", "fd00:10::2")

    def setUp(self) -> None:
        self.client, self.neighbour = self.namespace(), self.namespace()
        self.cable(self.client, "up0", self.neighbour, "down0")
        self.tun = self.tunnel(self.client, "10.10.0.2/24", "fd00:10::2/64")
        add_addresses(self.client, "up0", "192.0.2.2/24", "2001:db8::2/64")
        add_addresses(self.neighbour, "down0", "192.0.2.1/24", "2001:db8::1/64")
        self.neighbour.ip("route add 10.10.0.0/24 via 192.0.2.2")
        self.neighbour.ip("route add fd00:10::/64 via 2001:db8::2")
        self.listeners = [self.listener(self.client, "0.0.0.0", 9)]
        self.listeners.append(self.listener(self.client, "fd00:10::2", 9))

    def arrived(self) -> list[bytes]:
        answers = (received(listener) for listener in self.listeners)
        return [answer for answer in answers if answer is not None]

    def send(self, where: Namespace, *destinations: str) -> None:
        for destination in destinations:
            sender = self.listener(where, "::" if ":" in destination else "0.0.0.0", 0)
            sender.sendto(destination.encode(), (destination, 9))

    def test_probe(self) -> None:
        """A neighbour's packet to a tunnel address arrives without the table and not with it."""
        whole = [address.encode() for address in self.TUNNEL_ADDRESSES]
        self.send(self.neighbour, *self.TUNNEL_ADDRESSES)
        self.assertEqual(self.arrived(), whole)
        nft(self.client, script(ClientFirewall("tun0", self.TUNNEL_ADDRESSES)))
        self.send(self.neighbour, *self.TUNNEL_ADDRESSES)
        self.assertEqual(self.arrived(), [])
        # What is not addressed to the tunnel still comes.
        self.send(self.neighbour, "192.0.2.2")
        self.assertEqual(self.arrived(), [b"192.0.2.2"])

    def test_forged(self) -> None:
        """What a neighbour sends as if it came from the VPN arrives without the table and not
        with it, wherever it goes to."""
        add_addresses(self.neighbour, "lo", "10.10.0.7/32", "fd00:10::7/128")
        self.listeners.append(self.listener(self.client, "::", 10))
        firewall = ClientFirewall(
            "tun0", self.TUNNEL_ADDRESSES, networks=("10.10.0.0/24", "fd00:10::/64")
        )
        for text, expected in (("", [b"4", b"6"]), (script(firewall), [])):
            nft(self.client, text)
            for source, target, data in (
                ("10.10.0.7", ("192.0.2.2", 9), b"4"),
                ("fd00:10::7", ("2001:db8::2", 10), b"6"),
            ):
                self.listener(self.neighbour, source, 0).sendto(data, target)
            self.assertEqual(self.arrived(), expected)

    def test_who_has(self) -> None:
        """A neighbour that asks who has the tunnel's address is answered without the table and
        not with it; for other addresses of ours it is."""
        self.neighbour.ip("route replace 10.10.0.0/24 dev down0")
        for text, expected in (("", [b"10.10.0.2"]), (script(self.firewall()), [])):
            nft(self.client, text)
            self.neighbour.ip("neigh flush dev down0")
            self.send(self.neighbour, "10.10.0.2")
            asked = self.neighbour.ip("neigh show 10.10.0.2 dev down0")
            self.assertEqual(" lladdr " in asked, bool(expected), asked)
            self.assertEqual(self.arrived() or [], [] if text else expected)
        self.send(self.neighbour, "192.0.2.2")
        self.assertEqual(self.arrived(), [b"192.0.2.2"])

    def firewall(self) -> ClientFirewall:
        return ClientFirewall("tun0", self.TUNNEL_ADDRESSES)

    def test_through_the_tunnel(self) -> None:
        """What comes out of the tunnel, or from this machine itself, passes the guard."""
        nft(self.client, script(ClientFirewall("tun0", self.TUNNEL_ADDRESSES)))
        self.tun.deliver(udp("10.10.0.7", "10.10.0.2", data=b"4"))
        self.tun.deliver(udp("fd00:10::7", "fd00:10::2", data=b"6"))
        self.assertEqual(self.arrived(), [b"4", b"6"])
        self.send(self.client, *self.TUNNEL_ADDRESSES)
        self.assertEqual(self.arrived(), [address.encode() for address in self.TUNNEL_ADDRESSES])


class ClientMark(KernelTest):
    """A client that sends all that has no mark into the tunnel, behind a strict rp_filter."""

    def setUp(self) -> None:
        self.client, self.world, self.container = (self.namespace() for _ in range(3))
        self.uplink = self.cable(self.client, "up0", self.world, "down0")
        self.cable(self.client, "docker0", self.container, "eth0")
        self.tun = self.tunnel(self.client, "10.10.0.2/24")
        add_addresses(self.client, "up0", "192.0.2.2/24")
        add_addresses(self.client, "docker0", "172.17.0.1/24")
        add_addresses(self.container, "eth0", "172.17.0.2/24")
        add_addresses(self.world, "down0", "192.0.2.1/24")
        add_addresses(self.world, "lo", "198.51.100.1/32")
        self.client.ip("route add default via 192.0.2.1")
        self.container.ip("route add default via 172.17.0.1")
        self.client.ip("route add default dev tun0 table 500")
        self.client.ip("route add throw 172.17.0.0/24 table 500")
        self.client.ip("rule add not fwmark 0x2056 lookup 500 priority 30100")
        set_sysctl(self.client, "net/ipv4/conf/all/src_valid_mark", 1)
        set_sysctl(self.client, "net/ipv4/conf/all/rp_filter", 1)

    def test_answer_of_the_hub(self) -> None:
        """The hub's answer reaches our socket past a strict rp_filter only with the table."""
        ours = self.listener(self.client, "0.0.0.0", 5050)
        other = self.listener(self.client, "0.0.0.0", 5051)
        hub = self.listener(self.world, "198.51.100.1", 5050)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        ours.sendto(b"question", ("198.51.100.1", 5050))
        question, client = hub.recvfrom(100)
        self.assertEqual((question, client), (b"question", ("192.0.2.2", 5050)))
        hub.sendto(b"lost", client)
        self.assertIsNone(received(ours))
        nft(self.client, script(ClientFirewall("tun0", ports=(5050,))))
        hub.sendto(b"answer", client)
        self.assertEqual(received(ours), b"answer")
        hub.sendto(b"to another port", ("192.0.2.2", 5051))
        self.assertIsNone(received(other))

    def test_the_router_asks_again(self) -> None:
        """A router that has forgotten who we are finds us again, though our answers' way would
        lead into the tunnel; without the table it does not."""
        ours = self.listener(self.client, "0.0.0.0", 5050)
        router = self.listener(self.world, "192.0.2.1", 5050)
        text = script(ClientFirewall("tun0", ports=(5050,)))
        found = []
        for loaded in (text.partition("add table arp")[0], text):
            nft(self.client, loaded)
            self.world.ip("neigh flush dev down0")
            router.sendto(b"again", ("192.0.2.2", 5050))
            found.append(received(ours))
        self.assertEqual(found, [None, b"again"])

    def test_forwarded(self) -> None:
        """What a container sends to a port of our number goes into the tunnel, not past it."""
        forward(self.client)
        sender = self.listener(self.container, "172.17.0.2", 7)
        text = script(ClientFirewall("tun0", ports=(5050,)))
        for loaded, inside in ((text, 1), (text.replace("fib daddr type local", ""), 0)):
            nft(self.client, loaded)
            self.uplink.crossed()
            sender.sendto(b"", ("198.51.100.1", 5050))
            self.assertEqual(len(self.tun.taken()), inside)
            self.assertEqual(len(self.uplink.ours()), 1 - inside)

    def test_from_the_tunnel(self) -> None:
        """A datagram that comes out of the tunnel carries no mark, so it is no way around."""
        ours = self.listener(self.client, "0.0.0.0", 5050)
        text = script(ClientFirewall("tun0", ports=(5050,)))
        for loaded, expected in (
            (text, b"inside"),
            (text.replace('iifname != "tun0" udp', "udp"), None),
        ):
            nft(self.client, loaded)
            # With the mark, the way back to this source is not the TUN, as rp_filter sees.
            self.tun.deliver(udp("198.51.100.1", "10.10.0.2", 5050, b"inside"))
            self.assertEqual(received(ours), expected)


class ClientShare(KernelTest):
    """A client with an office network behind it, and another network that it does not share."""

    def setUp(self) -> None:
        self.client, self.office, self.other = (self.namespace() for _ in range(3))
        self.office_cable = self.cable(self.client, "lan0", self.office, "eth0")
        self.other_cable = self.cable(self.client, "lan1", self.other, "eth0")
        self.tun = self.tunnel(self.client, "10.10.0.2/24", "fd00:10::2/64")
        add_addresses(self.client, "lan0", "192.168.5.1/24", "fd00:5::1/64")
        add_addresses(self.client, "lan1", "192.168.6.1/24", "fd00:6::1/64")
        add_addresses(self.office, "eth0", "192.168.5.9/24", "fd00:5::9/64")
        add_addresses(self.other, "eth0", "192.168.6.9/24", "fd00:6::9/64")
        for where, network in ((self.office, "5"), (self.other, "6")):
            where.ip(f"route add default via 192.168.{network}.1")
            where.ip(f"route add default via fd00:{network}::1")
        forward(self.client)
        self.shared = ClientFirewall(
            "tun0",
            ("10.10.0.2", "fd00:10::2"),
            shared=("192.168.5.0/24", "fd00:5::/64"),
            networks=VPN,
        )

    def test_shared(self) -> None:
        """The VPN reaches a shared subnet under our address there, and the answers go back."""
        nft(self.client, script(self.shared))
        self.office_cable.crossed()
        self.tun.deliver(echo("10.10.0.7", "192.168.5.9"), echo("fd00:10::7", "fd00:5::9"))
        self.assertEqual(
            ends(self.office_cable.ours()),
            [(ICMP, "192.168.5.1", "192.168.5.9"), (ICMP6, "fd00:5::1", "fd00:5::9")],
        )
        self.assertEqual(
            ends(self.tun.taken()),
            [(ICMP, "192.168.5.9", "10.10.0.7"), (ICMP6, "fd00:5::9", "fd00:10::7")],
        )

    def test_nothing_else(self) -> None:
        """Nothing else is forwarded out of the tunnel: no other subnet, no strange source."""
        probes = [
            udp("10.10.0.7", "192.168.6.9"),
            udp("fd00:10::7", "fd00:6::9"),
            udp("10.99.0.7", "192.168.5.9"),
            udp("fd00:99::7", "fd00:5::9"),
        ]
        self.tun.deliver(*probes)
        self.assertEqual(len(self.other_cable.ours() + self.office_cable.ours()), 4)
        nft(self.client, script(self.shared))
        self.tun.deliver(*probes)
        self.assertEqual(self.other_cable.ours() + self.office_cable.ours(), [])

    def test_nothing_shared(self) -> None:
        """A machine that forwards, for containers say, opens nothing to the VPN by that; what its
        containers begin is answered. Left open it forwards all."""
        nft(self.client, script(ClientFirewall("tun0", networks=VPN, closed=False)))
        self.tun.deliver(udp("10.10.0.7", "192.168.6.9"))
        self.assertEqual(len(self.other_cable.ours()), 1)
        nft(self.client, script(ClientFirewall("tun0", networks=VPN)))
        self.tun.deliver(udp("10.10.0.7", "192.168.6.9"), udp("fd00:10::7", "fd00:6::9"))
        self.assertEqual(self.other_cable.ours(), [])
        self.tun.taken()  # the refusal of the first one
        self.listener(self.other, "192.168.6.9", 7).sendto(b"question", ("10.10.0.7", 9))
        self.assertEqual(len(self.tun.taken()), 1)
        self.other_cable.crossed()
        self.tun.deliver(udp("10.10.0.7", "192.168.6.9", port=7, sport=9))
        self.assertEqual(len(self.other_cable.ours()), 1)

    def test_published(self) -> None:
        """A port of this machine that its owner hands on to a container stays one for the VPN."""
        hook = "type nat hook prerouting priority dstnat;"
        rules = "udp dport 80 dnat ip to 192.168.6.9;"
        nft(self.client, f"table inet published {{ chain c {{ {hook} {rules} }}; }}")
        nft(self.client, script(self.shared))
        container = self.listener(self.other, "192.168.6.9", 80)
        self.tun.deliver(udp("10.10.0.7", "10.10.0.2", 80, b"published"))
        self.assertEqual(received(container), b"published")

    def test_from_behind(self) -> None:
        """What the networks behind start through the tunnel is answered."""
        nft(self.client, script(self.shared))
        sender = self.listener(self.other, "192.168.6.9", 7)
        sender.sendto(b"question", ("10.10.0.7", 9))
        self.assertEqual(ends(self.tun.taken()), [(UDP, "192.168.6.9", "10.10.0.7")])
        self.tun.deliver(udp("10.10.0.7", "192.168.6.9", 7, b"answer", 9))
        self.assertEqual(received(sender), b"answer")


class Hub(KernelTest):
    """A hub with an uplink and clients behind its TUN, in both families."""

    OUTSIDE = ("192.0.2.1", "2001:db8::1")
    FAR = ("198.51.100.1", "2001:db8:f::1")
    CLIENTS = (("10.10.0.7", "10.10.0.8"), ("fd00:10::7", "fd00:10::8"))
    SUBNETS = ("10.20.0.0/16", "fd00:20::/64")
    BEHIND = ("10.20.0.9", "fd00:20::9")

    def setUp(self) -> None:
        self.hub, self.world = self.namespace(), self.namespace()
        self.uplink = self.cable(self.hub, "up0", self.world, "down0")
        self.tun = self.tunnel(self.hub, "10.10.0.1/24", "fd00:10::1/64")
        add_addresses(self.hub, "up0", "192.0.2.2/24", "2001:db8::2/64")
        add_addresses(self.world, "down0", "192.0.2.1/24", "2001:db8::1/64")
        add_addresses(self.world, "lo", *self.FAR, "169.254.169.254/32")
        for target in (self.hub, self.world):
            outward = ("192.0.2.1", "2001:db8::1")
            for gateway in outward if target is self.hub else ("192.0.2.2", "2001:db8::2"):
                target.ip(f"route add default via {gateway}")
        for subnet in self.SUBNETS:
            self.hub.ip(f"route add {subnet} dev tun0")
        forward(self.hub)
        set_sysctl(self.hub, "net/ipv4/conf/all/send_redirects", 0)
        set_sysctl(self.hub, "net/ipv4/conf/tun0/send_redirects", 0)
        self.uplink.crossed()

    def load(
        self,
        internet: bool = False,
        client_to_client: bool = True,
        subnets: Sequence[str] = (),
        reachable: Sequence[str] = (),
    ) -> None:
        nft(
            self.hub,
            script(
                HubFirewall(
                    "tun0", VPN, internet, client_to_client, tuple(subnets), tuple(reachable)
                )
            ),
        )

    def pings(self, *destinations: str, source: int = 0) -> list[tuple[int, str, str]]:
        """A client pings: what left by the uplink."""
        for destination in destinations:
            clients = self.CLIENTS[":" in destination]
            self.tun.deliver(echo(clients[source], destination))
        return ends(self.uplink.ours())

    def within(self, source: str, destination: str) -> bool:
        """Does a packet go from one end of the VPN to another?"""
        self.tun.deliver(udp(source, destination))
        return (UDP, source, destination) in ends(self.tun.taken())

    def test_internet(self) -> None:
        """Clients reach the internet under the hub's addresses, and the answers come back."""
        self.load(internet=True)
        self.assertEqual(
            self.pings(*self.FAR),
            [(ICMP, "192.0.2.2", self.FAR[0]), (ICMP6, "2001:db8::2", self.FAR[1])],
        )
        self.assertEqual(
            ends(self.tun.taken()),
            [(ICMP, self.FAR[0], "10.10.0.7"), (ICMP6, self.FAR[1], "fd00:10::7")],
        )

    def test_no_internet(self) -> None:
        """Without internet nothing leaves the VPN, which it did without the table."""
        self.assertEqual(
            self.pings(*self.FAR),
            [(ICMP, "10.10.0.7", self.FAR[0]), (ICMP6, "fd00:10::7", self.FAR[1])],
        )
        self.load()
        self.assertEqual(self.pings(*self.FAR, *self.OUTSIDE), [])

    def test_switched_off(self) -> None:
        """What a client had begun with the internet ends when it is switched off."""
        self.load(internet=True)
        self.assertEqual(len(self.pings(*self.FAR)), 2)
        self.load()
        self.assertEqual(self.pings(*self.FAR), [])

    def test_reachable(self) -> None:
        """Networks on the hub's side are reached under the hub's addresses, and no others."""
        self.load(reachable=("192.0.2.0/24", "2001:db8::/64"))
        self.assertEqual(
            self.pings(*self.OUTSIDE, *self.FAR),
            [(ICMP, "192.0.2.2", "192.0.2.1"), (ICMP6, "2001:db8::2", "2001:db8::1")],
        )
        self.assertEqual(
            ends(self.tun.taken()),
            [(ICMP, "192.0.2.1", "10.10.0.7"), (ICMP6, "2001:db8::1", "fd00:10::7")],
        )

    def test_subnets_and_internet(self) -> None:
        """Networks behind clients get to the internet too, strange sources do not."""
        self.load(internet=True, subnets=self.SUBNETS)
        self.tun.deliver(*(echo(one, far) for one, far in zip(self.BEHIND, self.FAR, strict=True)))
        self.assertEqual([end[1] for end in ends(self.uplink.ours())], ["192.0.2.2", "2001:db8::2"])
        self.tun.deliver(echo("10.99.0.7", self.FAR[0]), echo("fd00:99::7", self.FAR[1]))
        self.assertEqual(self.uplink.ours(), [])

    def test_link_local(self) -> None:
        """The addresses where a cloud tells the machine's own keys are not part of the internet."""
        self.load(internet=True)
        self.assertEqual(self.pings("169.254.169.254"), [])
        self.load(internet=True, reachable=("169.254.0.0/16",))
        self.assertEqual(len(self.pings("169.254.169.254")), 1)

    def test_from_outside(self) -> None:
        """What nobody in the VPN asked for does not come in, which it did without the table."""
        senders = [self.listener(self.world, address, 7) for address in self.OUTSIDE]
        targets = [(first, 9) for first, _ in self.CLIENTS]
        for loaded in (False, True):
            if loaded:
                self.load(internet=True, subnets=self.SUBNETS, reachable=("192.0.2.0/24",))
            for sender, target in zip(senders, targets, strict=True):
                sender.sendto(b"unasked", target)
            self.assertEqual(len(self.tun.taken()), 0 if loaded else 2)
        for sender, target in zip(senders, ((one, 9) for one in self.BEHIND), strict=True):
            sender.sendto(b"unasked", target)
        self.assertEqual(self.tun.taken(), [])

    def test_the_hub_from_outside(self) -> None:
        """The hub's inner addresses answer nobody outside, nor anybody there who says that he is a
        client, which they did without the table; its outer ones do."""
        add_addresses(self.world, "lo", "10.10.0.9/32", "fd00:10::9/128")
        inner = [self.listener(self.hub, address, 9) for address in ("10.10.0.1", "fd00:10::1")]
        outer = self.listener(self.hub, "192.0.2.2", 9)
        for loaded in (False, True):
            if loaded:
                self.load(internet=True)
            for sources in (self.OUTSIDE, ("10.10.0.9", "fd00:10::9")):
                for source, target in zip(sources, inner, strict=True):
                    sender = self.listener(self.world, source, 0)
                    sender.sendto(b"probe", target.getsockname()[:2])
                    self.assertEqual(received(target), None if loaded else b"probe", source)
            self.listener(self.world, "192.0.2.1", 0).sendto(b"probe", ("192.0.2.2", 9))
            self.assertEqual(received(outer), b"probe")

    def test_client_to_client(self) -> None:
        """Clients reach each other; switched off they do not, nor go on with what they had."""
        for allowed in (True, False, True):
            # The internet too, since what is translated for that must not be within.
            self.load(internet=True, client_to_client=allowed)
            for first, second in self.CLIENTS:
                self.assertEqual(self.within(first, second), allowed)
                self.assertEqual(self.within(second, first), allowed)

    def test_subnets_without_client_to_client(self) -> None:
        """With client to client off, networks behind clients are reached, and reach clients."""
        self.load(client_to_client=False, subnets=self.SUBNETS)
        for (client, other), behind in zip(self.CLIENTS, self.BEHIND, strict=True):
            self.assertTrue(self.within(client, behind))
            self.assertTrue(self.within(behind, other))
            self.assertFalse(self.within(client, other))

    def test_the_hub_itself(self) -> None:
        """The hub's own addresses answer clients whatever is switched off."""
        self.load(client_to_client=False)
        self.assertEqual(self.pings("10.10.0.1", "fd00:10::1"), [])
        self.assertEqual(
            ends(self.tun.taken()),
            [(ICMP, "10.10.0.1", "10.10.0.7"), (ICMP6, "fd00:10::1", "fd00:10::7")],
        )

    def test_published(self) -> None:
        """A port of the hub's own that its owner hands on to a container stays one for clients."""
        hook = "type nat hook prerouting priority dstnat;"
        rules = "udp dport 80 dnat ip to 192.0.2.1; udp dport 80 dnat ip6 to 2001:db8::1;"
        nft(self.hub, f"table inet published {{ chain c {{ {hook} {rules} }}; }}")
        self.load()
        for ours, (client, _), target in zip(
            ("10.10.0.1", "fd00:10::1"), self.CLIENTS, self.OUTSIDE, strict=True
        ):
            container = self.listener(self.world, target, 80)
            self.tun.deliver(udp(client, ours, 80, b"published"), udp(client, target, 81))
            self.assertEqual(received(container), b"published")
            self.assertEqual(ends(self.uplink.ours()), [(UDP, client, target)])

    def test_errors_pass(self) -> None:
        """An ICMP error about a client's packet gets back to the client."""
        self.load(internet=True, client_to_client=False)
        for (client, _), far in zip(self.CLIENTS, self.FAR, strict=True):
            self.tun.deliver(udp(client, far, 9))
        self.uplink.crossed()
        self.assertEqual(
            [(packet.protocol, packet.port) for packet in self.tun.taken()], [(ICMP, 3), (ICMP6, 1)]
        )

    def test_segment_size(self) -> None:
        """TCP through the hub agrees on segments that fit the TUN, in and out, and within."""
        self.load(internet=True)
        for (client, other), far in zip(self.CLIENTS, self.FAR, strict=True):
            fits = 1416 - (60 if ":" in client else 40)
            self.tun.deliver(syn(client, far, 80, 8000), syn(client, other, 80, 8000))
            self.tun.deliver(syn(client, other, 80, 500))
            out = [packet for packet in self.uplink.ours() if packet.protocol == TCP]
            self.assertEqual([segment_size(packet) for packet in out], [fits])
            taken = [packet for packet in self.tun.taken() if packet.destination == other]
            self.assertEqual([segment_size(packet) for packet in taken], [fits, 500])

    def test_other_interfaces(self) -> None:
        """What is forwarded between other interfaces is none of our business."""
        third = self.namespace()
        self.cable(self.hub, "lan0", third, "eth0")
        add_addresses(self.hub, "lan0", "192.168.9.1/24")
        add_addresses(third, "eth0", "192.168.9.2/24")
        third.ip("route add default via 192.168.9.1")
        self.load(client_to_client=False)
        sender = self.listener(third, "192.168.9.2", 7)
        sender.sendto(b"", ("192.0.2.1", 9))
        self.assertEqual(ends(self.uplink.ours()), [(UDP, "192.168.9.2", "192.0.2.1")])
