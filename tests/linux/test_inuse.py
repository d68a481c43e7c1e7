"""The networks that a machine is in, from recorded answers of ip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import StartError
from pyvpn.linux.inuse import NetworksInUse, numeric_hosts
from pyvpn.linux.system import Completed
from pyvpn.testing.linux import FakeLinux

# Recorded: ip -json address show; ip -json route show table all, less what nobody reads.
ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
    {
        "ifname": "eth0",
        "addr_info": [
            {"local": "198.51.100.2", "prefixlen": 24},
            {"local": "fe80::1", "prefixlen": 64},
        ],
    },
    {"ifname": "eth1", "addr_info": [{"local": "192.168.1.5", "prefixlen": 24}]},
    {"ifname": "leamit0", "addr_info": [{"local": "10.10.0.1", "prefixlen": 24}]},
    {"ifname": "veth0", "addr_info": []},
]
ROUTES = [
    {"dst": "default", "gateway": "198.51.100.1", "dev": "eth0"},
    {"dst": "10.66.0.0/16", "gateway": "192.168.1.1", "dev": "eth1"},
    {"dst": "10.67.0.0/16", "dev": "leamit0"},
    {"type": "local", "dst": "192.168.1.5", "dev": "eth1", "table": "local"},
    {"type": "unreachable", "dst": "10.68.0.0/16", "flags": []},
]


class RecordedLinux(FakeLinux):
    """Answers ``ip -json`` as recorded."""

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        words = list(argv)
        if words == ["ip", "-json", "address", "show"]:
            return Completed(0, json.dumps(ADDRESSES), "")
        if words == ["ip", "-json", "-4", "route", "show", "table", "all"]:
            return Completed(0, json.dumps(ROUTES), "")
        return Completed(1, "", "no IPv6")


class NetworksInUseTests(SynchronousTestCase):
    """Addresses and ways."""

    def setUp(self) -> None:
        self.found = NetworksInUse.read(RecordedLinux(), "leamit0")

    def test_read(self) -> None:
        """Our own interface, loopback, the default route and the local table do not count."""
        self.assertEqual(
            ["127.0.0.1", "198.51.100.2", "fe80::1", "192.168.1.5"],
            [str(address) for address, _, _ in self.found.addresses],
        )
        self.assertEqual(
            ((ip_network("10.66.0.0/16"), "eth1"), (ip_network("10.68.0.0/16"), "unreachable")),
            self.found.routes,
        )

    def test_taken(self) -> None:
        """A network that we are in, or know a narrower or the same way to, is taken."""
        for text, line in (
            ("192.168.1.128/25", "192.168.1.128/25 overlaps 192.168.1.5/24 of interface eth1"),
            ("192.168.0.0/16", "192.168.0.0/16 overlaps 192.168.1.5/24 of interface eth1"),
            ("10.66.0.0/16", "10.66.0.0/16 overlaps the route to 10.66.0.0/16 (eth1)"),
            ("10.0.0.0/8", "10.0.0.0/8 overlaps the route to 10.66.0.0/16 (eth1)"),
            ("10.66.7.0/24", None),
            ("10.67.0.0/16", None),
            ("fd00::/64", None),
        ):
            self.assertEqual(line, self.found.taken(ip_network(text)), text)

    def test_outer(self) -> None:
        """Where clients reach the hub: its endpoints, and what is public of its own."""
        endpoints = [ip_address("203.0.113.7"), ip_address("192.168.1.5")]
        lan, own = ip_network("192.168.1.0/24"), ip_network("198.51.100.0/24")
        router = ip_network("203.0.113.0/24")
        self.assertEqual(
            "203.0.113.0/24 holds 203.0.113.7, where clients reach this hub",
            self.found.outer(router, endpoints),
        )
        self.assertIsNone(self.found.outer(router, []))
        self.assertEqual(
            "198.51.100.0/24 holds this hub's own address 198.51.100.2 (eth0)",
            self.found.outer(own, []),
        )
        self.assertEqual(
            "192.168.1.0/24 holds 192.168.1.5, where clients reach this hub",
            self.found.outer(lan, endpoints),
        )
        # The network at home, behind a router whose address clients know.
        self.assertIsNone(self.found.outer(lan, endpoints[:1]))
        self.assertIn("192.168.1.0/24 holds this hub's", self.found.perhaps_outer(lan) or "")
        self.assertIsNone(self.found.perhaps_outer(router))

    def test_ip_fails(self) -> None:
        """If ip cannot tell, that is an error and not an empty machine."""
        error = self.assertRaises(StartError, NetworksInUse.read, _Broken(), "leamit0")
        self.assertEqual("'ip -json address show' failed: broken", str(error))

    def test_numeric_hosts(self) -> None:
        """Addresses among endpoints are found in both families; names are not looked up."""
        text = "vpn.example.org:5050,203.0.113.7:5050,[2001:db8::7]:443"
        found = [ip_address("203.0.113.7"), ip_address("2001:db8::7")]
        self.assertEqual(found, numeric_hosts(text))
        self.assertEqual([], numeric_hosts(None))


class _Broken(FakeLinux):
    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        return Completed(1, "", "broken")
