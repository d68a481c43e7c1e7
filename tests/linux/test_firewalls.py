"""Other firewalls: what is said of them is what they do, and what is said to help helps."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.linux import firewalls
from pyvpn.linux.ruleset import Ruleset
from pyvpn.linux.system import Completed, LinuxSystem
from pyvpn.testing.linux import FakeLinux
from tests.linux.cables import KernelTest, add_addresses, forward, received, udp
from tests.linux.otherfirewalls import UFW, Docker, Firewalld, OtherFirewall

# ufw 0.36.2 and firewalld 1.3.3 of Debian 12, just switched on, eth0 in the zone "public"; and
# Docker's rules by iptables-nft 1.8.9. Chains of the hooks input, forward, output; ufw: IPv4 alone.
RECORDED = Path(__file__).parent / "recorded"

UFW_LINES = [
    "ufw blocks what clients send to UDP port 5050: nobody reaches this hub;"
    " 'ufw allow 5050/udp' helps",
    "ufw blocks what is forwarded: clients do not reach each other or the internet;"
    " 'ufw route allow in on leamit0' helps",
    "ufw blocks what clients ask the DNS of this hub: they find no names;"
    " 'ufw allow in on leamit0 to any port 53' helps",
]
_TRUSTED = (
    "'firewall-cmd --zone=trusted --add-interface=leamit0' helps, and once more with --permanent"
    " for good"
)
FIREWALLD_LINES = [
    "firewalld blocks what clients send to UDP port 5050: nobody reaches this hub;"
    " 'firewall-cmd --zone=public --add-port=5050/udp' helps, and once more with --permanent for"
    " good",
    f"firewalld blocks what is forwarded: clients do not reach each other; {_TRUSTED}",
    f"firewalld blocks what clients ask the DNS of this hub: they find no names; {_TRUSTED}",
]
DOCKER_LINES = [
    "the firewall of Docker (chain ip filter FORWARD) blocks what is forwarded: clients do not"
    " reach each other or the internet; 'iptables -I DOCKER-USER -i leamit0 -j ACCEPT' and"
    " 'iptables -I DOCKER-USER -o leamit0 -j ACCEPT' help",
]


class WithRules(FakeLinux):
    """A machine with these rules, as nft tells them; None for one without nft. Uplink eth0."""

    def __init__(self, text: str | None) -> None:
        super().__init__()
        self._text = text
        self.files: dict[str, str] = {}
        self.enabled: list[str] = []

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        if argv[0] == "nft":
            if self._text is None:
                return Completed(127, "", "nft is not installed")
            return Completed(0, self._text, "")
        return Completed(0, json.dumps([{"dst": "default", "dev": "eth0"}]), "")

    def read(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def names(self, path: str) -> list[str]:
        return self.enabled


def recorded(name: str) -> WithRules:
    """A machine as it was recorded."""
    return WithRules((RECORDED / f"{name}.json").read_text(encoding="ascii"))


def hub_lines(system: Any) -> list[str]:
    """Of a hub with all that it can offer."""
    return firewalls.hub_lines(system, 5050, "leamit0", internet=True, dns=True)


class Recorded(SynchronousTestCase):
    """What is said of real rules."""

    def test_hub(self) -> None:
        """Each owner is named once for each thing that is blocked, with the command that helps."""
        for name, lines in (
            ("ufw", UFW_LINES),
            ("firewalld", FIREWALLD_LINES),
            ("docker", DOCKER_LINES),
        ):
            self.assertEqual(hub_lines(recorded(name)), lines)

    def test_hub_without_internet_and_dns(self) -> None:
        """What the hub does not offer is not missed."""
        lines = firewalls.hub_lines(recorded("ufw"), 5050, "leamit0")
        self.assertEqual(lines, [UFW_LINES[0], UFW_LINES[1].replace(" or the internet", "")])

    def test_client(self) -> None:
        """A client is told of what comes in and, if it shares subnets, of what is forwarded."""
        self.assertEqual(
            firewalls.client_lines(recorded("ufw"), "leamit0", shared=True),
            [
                "ufw blocks what others in the VPN begin to send to this machine, which may be"
                " meant so; otherwise: 'ufw allow in on leamit0' helps",
                "ufw blocks what is forwarded: the VPN does not reach the subnets behind this"
                " machine; 'ufw route allow in on leamit0' helps",
            ],
        )
        self.assertEqual(len(firewalls.client_lines(recorded("firewalld"), "leamit0")), 1)
        self.assertEqual(firewalls.client_lines(recorded("docker"), "leamit0"), [])

    def test_kill_switch_and_the_service_that_flushes(self) -> None:
        """With a kill switch, an enabled nftables.service that begins with a flush is named."""
        system = WithRules('{"nftables": []}')
        system.files["/etc/nftables.conf"] = "#!/usr/sbin/nft -f\n\nflush ruleset\n\ntable inet a\n"
        for enabled, kill_switch, count in (
            (["nftables.service"], True, 1),
            (["nftables.service"], False, 0),
            ([], True, 0),
        ):
            system.enabled = enabled
            lines = firewalls.client_lines(system, "leamit0", kill_switch)
            self.assertEqual(len(lines), count)
        system.enabled = ["nftables.service"]
        system.files["/etc/nftables.conf"] = "# flush ruleset\n"
        self.assertEqual(firewalls.client_lines(system, "leamit0", True), [])

    def test_no_nft(self) -> None:
        """Without nft nothing is said of firewalls, and it is not available; else it is."""
        self.assertEqual(hub_lines(WithRules(None)), [])
        self.assertEqual(hub_lines(WithRules("no JSON")), [])
        self.assertFalse(firewalls.nft_available(WithRules(None)))
        self.assertTrue(firewalls.nft_available(WithRules("{}")))


def rules(*lines: Any, policy: str = "drop", table: str = "mine", **chain: str) -> Ruleset:
    """An input chain with these rules, each a list of statements, and chains by name."""
    key = {"family": "inet", "table": table}
    objects: list[dict[str, Any]] = [
        {"chain": {**key, "name": "in", "hook": "input", "type": "filter", "policy": policy}}
    ]
    for name in chain:
        objects.append({"chain": {**key, "name": name}})
    objects += [{"rule": {**key, "chain": "in", "expr": line}} for line in lines]
    for name, text in chain.items():
        for line in json.loads(text):
            objects.append({"rule": {**key, "chain": name, "expr": line}})
    return Ruleset(objects, lambda name: name.startswith("pyvpn-"))


def is_(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    """A match."""
    return {"match": {"op": op, "left": left, "right": right}}


UDP_PORT = {"payload": {"protocol": "udp", "field": "dport"}}
STATE = {"ct": {"key": "state"}}
SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
ACCEPT, DROP, RETURN = {"accept": None}, {"drop": None}, {"return": None}
PACKET = {
    "iifname": "eth0", "nfproto": "ipv4", "l4proto": "udp", "dport": 5050, "state": "new"
}  # fmt: skip


class Rules(SynchronousTestCase):
    """One packet's way through rules, a form of nft's JSON each."""

    def test_what_accepts(self) -> None:
        """Each of these lets UDP port 5050 in; beside each, the one that does not."""
        for good, bad in (
            (is_(UDP_PORT, 5050), is_(UDP_PORT, 5051)),
            (is_(UDP_PORT, {"set": [53, 5050]}), is_(UDP_PORT, {"set": [53, 5051]})),
            (is_(UDP_PORT, {"range": [5000, 5050]}), is_(UDP_PORT, {"range": [5051, 5099]})),
            (
                is_(UDP_PORT, {"set": [{"range": [1, 9000]}]}),
                is_(UDP_PORT, {"set": [{"range": [1, 9]}]}),
            ),
            (
                is_(UDP_PORT, {"set": [{"elem": {"val": 5050}}]}),
                is_(UDP_PORT, {"elem": {"val": 1}}),
            ),
            (is_(UDP_PORT, 53, "!="), is_(UDP_PORT, 5050, "!=")),
            (
                is_({"payload": {"protocol": "th", "field": "dport"}}, 5050),
                is_({"payload": {"protocol": "tcp", "field": "dport"}}, 5050),
            ),
            (is_({"meta": {"key": "iifname"}}, "eth*"), is_({"meta": {"key": "iifname"}}, "wl*")),
            (is_({"meta": {"key": "iif"}}, "eth0"), is_({"meta": {"key": "iif"}}, "lo")),
            (is_({"meta": {"key": "l4proto"}}, 17), is_({"meta": {"key": "l4proto"}}, "tcp")),
            (is_({"meta": {"key": "nfproto"}}, "ipv4"), is_({"meta": {"key": "nfproto"}}, 10)),
            (is_(STATE, ["new", "related"], "in"), is_(STATE, ["established"], "in")),
            (is_(STATE, 8, "in"), is_(STATE, 6, "in")),
            (is_(STATE, {"|": ["new", "related"]}, "in"), is_(STATE, {"|": ["invalid"]}, "in")),
            ({"xt": {"type": "match", "name": "comment"}}, is_(SOURCE, "192.0.2.1")),
            ({"counter": {}}, {"limit": {"rate": 1, "per": "second"}}),
            (is_(UDP_PORT, "@ports"), is_(UDP_PORT, 1)),
        ):
            self.assertEqual(rules([good, ACCEPT]).blocks("input", PACKET), [], good)
            self.assertEqual(len(rules([bad, ACCEPT]).blocks("input", PACKET)), 1, bad)

    def test_what_drops(self) -> None:
        """A rule drops for certain, or not at all; one that names our port lets in, read or not."""
        unread = {"xt": {"type": "match", "name": "recent"}}
        for line, blocked in (
            ([DROP], True),
            ([{"reject": {"type": "icmp"}}], True),
            ([is_(UDP_PORT, 5050), DROP], True),
            ([unread, DROP], False),
            ([is_(UDP_PORT, 5051), DROP], False),
        ):
            self.assertEqual(bool(rules(line, policy="accept").blocks("input", PACKET)), blocked)
        self.assertTrue(rules([unread, ACCEPT]).blocks("input", PACKET))
        self.assertFalse(rules([unread, is_(UDP_PORT, 5050), ACCEPT]).blocks("input", PACKET))

    def test_chains(self) -> None:
        """Jumps come back, gotos do not, maps choose, and behind an unread return nothing drops."""
        jump, goto = {"jump": {"target": "other"}}, {"goto": {"target": "other"}}
        unread = {"xt": {"type": "match", "name": "addrtype"}}
        chosen = {
            "vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["eth0", ACCEPT]]}}
        }
        empty, accepts, drops = "[]", json.dumps([[ACCEPT]]), json.dumps([[DROP]])
        perhaps = json.dumps([[unread, RETURN], [DROP]])
        returns = json.dumps([[RETURN], [DROP]])
        for lines, other, blocked in (
            ([[jump], [ACCEPT]], empty, False),
            ([[goto], [ACCEPT]], empty, True),
            ([[jump]], accepts, False),
            ([[jump], [ACCEPT]], drops, True),
            ([[jump], [ACCEPT]], perhaps, False),
            ([[jump], [ACCEPT]], returns, False),
            ([[chosen]], empty, False),
            ([[jump]], json.dumps([[jump]]), True),
        ):
            found = rules(*lines, other=other).blocks("input", PACKET)
            self.assertEqual(bool(found), blocked, (lines, other))

    def test_whose_rules(self) -> None:
        """Our own tables, other hooks and the other family's tables do not count."""
        self.assertTrue(rules().blocks("input", PACKET))
        self.assertFalse(rules(table="pyvpn-tun0").blocks("input", PACKET))
        self.assertFalse(rules().blocks("forward", PACKET))
        chain = {"table": "t", "name": "c", "hook": "input", "type": "filter", "policy": "drop"}
        for family, blocked in (("ip", True), ("ip6", False), ("inet", True), ("bridge", False)):
            found = Ruleset([{"chain": {**chain, "family": family}}]).blocks("input", PACKET)
            self.assertEqual(bool(found), blocked, family)


class ForReal(KernelTest):
    """A hub behind each firewall, with packets."""

    def setUp(self) -> None:
        self.hub, self.outside = self.namespace(), self.namespace()
        self.cable(self.hub, "eth0", self.outside, "eth0")
        add_addresses(self.hub, "eth0", "192.0.2.2/24")
        add_addresses(self.outside, "eth0", "192.0.2.1/24")
        self.hub.ip("route add default via 192.0.2.1")
        self.outside.ip("route add 10.10.0.0/24 via 192.0.2.2")
        forward(self.hub)
        self.tun = self.tunnel(self.hub, "10.10.0.1/24", name="leamit0")
        self.port = self.listener(self.hub, "0.0.0.0", 5050)
        self.dns = self.listener(self.hub, "10.10.0.1", 53)
        self.there = self.listener(self.outside, "192.0.2.1", 4000)

    def passes(self) -> tuple[bool, bool, bool, bool]:
        """UDP port 5050 from outside; a client to another, to the internet and back, to the DNS."""
        self.there.sendto(b"outer", ("192.0.2.2", 5050))
        self.tun.taken()
        self.tun.deliver(udp("10.10.0.2", "10.10.0.3", 999))
        peers = any(packet.destination == "10.10.0.3" for packet in self.tun.taken())
        self.tun.deliver(udp("10.10.0.2", "192.0.2.1", 4000, b"out", sport=1234))
        internet = received(self.there) == b"out"
        self.there.sendto(b"back", ("10.10.0.2", 1234))
        internet = internet and any(packet.port == 1234 for packet in self.tun.taken())
        self.tun.deliver(udp("10.10.0.2", "10.10.0.1", 53, b"name"))
        return received(self.port) == b"outer", peers, internet, received(self.dns) == b"name"

    def lines(self) -> list[str]:
        with self.hub.inside():
            return hub_lines(LinuxSystem())

    def play(
        self,
        firewall: OtherFirewall,
        lines: Sequence[str],
        before: tuple[bool, bool, bool, bool],
    ) -> None:
        """It does what the lines say; with each line's commands one thing more passes, and then
        nothing is left to say.
        """
        self.assertEqual(self.lines(), list(lines))
        self.assertEqual(self.passes(), before)
        while left := self.lines():
            for command in re.findall(r"'([^']*)'", left[0]):
                firewall.run(command)
            self.assertLess(len(self.lines()), len(left))
        self.assertEqual(self.passes(), (True,) * 4)

    def test_nothing(self) -> None:
        """Without a firewall everything passes, and nothing is said."""
        self.assertEqual(self.lines(), [])
        self.assertEqual(self.passes(), (True,) * 4)

    def test_ufw(self) -> None:
        """ufw, with the commands for it; disabled, it leaves chains behind that block nothing."""
        firewall = UFW(self.hub)
        self.addCleanup(firewall.close)
        self.play(firewall, UFW_LINES, (False, False, False, False))
        firewall.run("ufw --force reset")
        firewall.run("ufw --force enable")
        self.assertEqual(self.lines(), UFW_LINES)
        firewall.run("ufw --force disable")
        self.assertIn("ufw-before-input", self.hub.run("nft list ruleset"))
        self.assertEqual(self.lines(), [])

    def test_firewalld(self) -> None:
        """firewalld, with the commands for it."""
        firewall = Firewalld(self.hub, "eth0")
        self.addCleanup(firewall.close)
        self.play(firewall, FIREWALLD_LINES, (False, False, True, False))

    def test_docker(self) -> None:
        """Docker's rules, with the commands for them."""
        firewall = Docker(self.hub)
        self.addCleanup(firewall.close)
        self.play(firewall, DOCKER_LINES, (True, False, False, True))

    def test_own_chain(self) -> None:
        """A chain of somebody's own is named, and a rule there ends that."""
        self.hub.run("nft add table inet own")
        chain = "{type filter hook input priority 0;policy drop;}"
        self.hub.run(f"nft add chain inet own in {chain}")
        name = "the firewall of this machine (chain inet own in)"
        self.assertEqual(
            self.lines(),
            [
                f"{name} blocks what clients send to UDP port 5050: nobody reaches this hub;"
                " a rule there that accepts UDP port 5050 helps",
                f"{name} blocks what clients ask the DNS of this hub: they find no names;"
                " a rule there that accepts UDP and TCP port 53 from leamit0 helps",
            ],
        )
        self.assertEqual(self.passes(), (False, True, True, False))
        self.hub.run("nft add rule inet own in udp dport {53,5050} accept")
        self.assertEqual(self.lines(), [])
        self.assertEqual(self.passes(), (True,) * 4)
