"""The networks around a machine, on the kernel: what lies next to it, and where it goes out."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from pyvpn.errors import StartError
from pyvpn.linux import uplink
from pyvpn.linux.firewall import TABLES
from pyvpn.linux.system import Completed
from pyvpn.testing.linux import FakeLinux
from tests.linux.worlds import KernelWorld


class Networks(SynchronousTestCase):
    """A machine in a namespace with interfaces of each kind."""

    def setUp(self) -> None:
        self.world = KernelWorld()
        self.addCleanup(self.world.close)
        self.system = self.world.system
        self.ip = self.world.ip
        self.ip("link add eth0 type veth peer name far0")
        self.ip("link add eth1 type veth peer name far1")
        for name in ("eth0", "far0", "eth1", "far1"):
            self.ip(f"link set {name} up")

    def address(self, *lines: str) -> None:
        for line in lines:
            self.ip(f"address add {line}" + " nodad" * (":" in line))

    def lans(self) -> list[tuple[str, str]]:
        found = uplink.private_lans(self.system, "tun0")
        return [(name, str(network)) for name, network in found]

    def test_private_lans(self) -> None:
        """Private networks are LANs, with their interfaces, each once."""
        self.address(
            "192.168.1.20/24 dev eth0",
            "192.168.1.21/24 dev eth0",
            "10.20.3.4/16 dev eth1",
            "169.254.7.7/16 dev eth1",
            "fd00:1::5/64 dev eth1",
        )
        self.assertEqual(
            self.lans(),
            [
                ("eth0", "192.168.1.0/24"),
                ("eth1", "10.20.0.0/16"),
                ("eth1", "169.254.0.0/16"),
                ("eth1", "fd00:1::/64"),
            ],
        )

    def test_no_lans(self) -> None:
        """Public addresses, networks wider than a site's, tunnels, links with one other end and
        loopback never are, however a network hands them out.
        """
        self.world.add_tun("tun0")
        self.world.add_tun("tun1")
        self.ip("link set tun0 up")
        self.ip("link set tun1 up")
        self.address(
            "203.0.113.5/24 dev eth0",
            "10.1.2.3/8 dev eth0",
            "100.64.1.1/24 dev eth0",
            "192.168.9.1 peer 192.168.9.2/32 dev eth0",
            "2001:db8::5/64 dev eth0",
            "fd00::5/32 dev eth0",
            "10.10.0.2/24 dev tun0",
            "10.30.0.2/24 dev tun1",
            "10.99.0.1/24 dev lo",
        )
        self.assertEqual(self.lans(), [])
        self.address("172.16.5.5/24 dev eth1")
        self.assertEqual(self.lans(), [("eth1", "172.16.5.0/24")])

    def test_other_full_tunnel(self) -> None:
        """A default route in a table of ours that is not one's own is another client's."""
        own, other = TABLES + 7, TABLES + 65535
        self.world.add_tun("tun1")
        self.ip("link set tun1 up")
        self.ip("route add default dev eth0")
        self.ip("route add default dev eth0 table 1000")
        self.ip(f"route add default dev tun1 table {TABLES + 65536}")
        self.ip(f"route add default dev tun1 table {own}")
        self.ip(f"route add 10.0.0.0/8 dev tun1 table {other}")
        self.ip(f"route add unreachable default table {other}")
        self.assertIsNone(uplink.other_full_tunnel(self.system, own))
        self.assertEqual(uplink.other_full_tunnel(self.system, other), "tun1")
        self.ip(f"-6 route add default dev eth1 table {other}")
        self.assertEqual(uplink.other_full_tunnel(self.system, own), "eth1")

    def test_port_forward_hint(self) -> None:
        """A hub at home is told what to set on its router; one that needs none is not."""
        self.assertIsNone(uplink.port_forward_hint(self.system, 5050, None))
        self.address("192.168.1.20/24 dev eth0", "10.7.0.1/24 dev eth1")
        self.assertIsNone(uplink.port_forward_hint(self.system, 5050, None))
        self.ip("route add default via 192.168.1.1")
        line = (
            "this machine is behind a router (192.168.1.20 is a private address): for clients"
            " outside, forward UDP port {} on the router (192.168.1.1) to 192.168.1.20 port 5050"
        )
        for endpoint, port in (
            (None, 5050),
            ("vpn.example.org:5050", 5050),
            ("vpn.example.org:443", 443),
            ("198.51.100.7:443", 443),
            ("192.168.1.20:5050,198.51.100.7:53", 53),
            ("192.168.1.20:5050", None),
            ("192.168.1.20:5050,10.7.0.1:5050", None),
        ):
            hint = uplink.port_forward_hint(self.system, 5050, endpoint)
            self.assertEqual(hint, None if port is None else line.format(port))

    def test_public_and_carrier(self) -> None:
        """A public address needs no hint; a provider's own NAT is told apart."""
        self.address("203.0.113.5/24 dev eth0", "100.64.0.9/24 dev eth1")
        self.ip("route add default via 203.0.113.1 metric 5")
        self.assertIsNone(uplink.port_forward_hint(self.system, 5050, None))
        self.ip("route add default via 100.64.0.1 metric 1")
        hint = uplink.port_forward_hint(self.system, 5050, None)
        assert hint is not None
        self.assertIn(
            "on the router (100.64.0.1) to 100.64.0.9 port 5050; the router is your", hint
        )
        self.assertEqual(uplink.default_devices(self.system), ["eth1", "eth0"])

    def test_source_of_the_route(self) -> None:
        """The address that the route itself names is the one that counts."""
        self.address("10.7.0.1/24 dev eth0", "203.0.113.5/24 dev eth0")
        self.ip("route add default via 10.7.0.9 dev eth0 src 203.0.113.5")
        self.assertIsNone(uplink.port_forward_hint(self.system, 5050, None))
        self.ip("route replace default via 10.7.0.9 dev eth0 src 10.7.0.1")
        self.assertIsNotNone(uplink.port_forward_hint(self.system, 5050, None))

    def test_several_ways_out(self) -> None:
        """Each hop of a default route with several counts."""
        self.address("192.168.1.20/24 dev eth0", "10.7.0.1/24 dev eth1")
        self.assertEqual(uplink.default_devices(self.system), [])
        self.ip("route add default nexthop via 192.168.1.1 nexthop via 10.7.0.9")
        self.assertEqual(uplink.default_devices(self.system), ["eth0", "eth1"])


class WithoutIP(FakeLinux):
    """A machine on which ip(8) is not installed, or has no IPv6."""

    code = 127

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        if self.code == 127 or "-6" in argv:
            return Completed(self.code, "", "ip is not installed (package iproute2)")
        return Completed(0, "", "")


class Blind(SynchronousTestCase):
    """What cannot be looked at."""

    def test_no_ip_command(self) -> None:
        """Without iproute2 the error says so; without IPv6 there is simply none of it."""
        system = WithoutIP()
        for ask in (
            lambda: uplink.private_lans(system, "tun0"),
            lambda: uplink.other_full_tunnel(system, TABLES),
            lambda: uplink.port_forward_hint(system, 5050, None),
        ):
            with self.assertRaises(StartError) as caught:
                ask()
            self.assertIn("package iproute2", str(caught.exception))
        system.code = 2
        self.assertIsNone(uplink.other_full_tunnel(system, TABLES))
