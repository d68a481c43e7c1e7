"""Endpoints: what the core may see of them, and what people see."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.udpsocket import socket_address

PORTS = st.integers(0, 65535)


class EndpointTests(SynchronousTestCase):
    """UDPEndpoint and socket_address."""

    @given(st.ip_addresses(v=4), PORTS)
    @settings(deadline=None)
    def test_ipv4_on_the_wire(self, address: IPv4Address, port: int) -> None:
        """IPv4 is v4-mapped in REPLY, whichever family of socket it came through."""
        wire = bytes(10) + b"\xff\xff" + address.packed + bytes([port & 255, port >> 8])
        for family in (socket.AF_INET6, socket.AF_INET):
            endpoint = UDPEndpoint(socket_address(str(address), port, family))
            self.assertEqual(endpoint.wire_address(), wire)
            self.assertEqual(str(endpoint), f"{address}:{port}")

    @given(st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None), PORTS)
    @settings(deadline=None)
    def test_ipv6_on_the_wire(self, address: IPv6Address, port: int) -> None:
        """IPv6 stands in REPLY as it is, the port little-endian behind it."""
        endpoint = UDPEndpoint(socket_address(str(address), port, socket.AF_INET6))
        self.assertEqual(endpoint.wire_address(), address.packed + bytes([port & 255, port >> 8]))
        self.assertEqual(IPv6Address(endpoint.host), address)

    def test_equal_ways_are_equal(self) -> None:
        """Both ends make the endpoint: one of our addresses more is another endpoint."""
        one = UDPEndpoint(("::1", 5, 0, 0), b"a" * 20)
        self.assertEqual({one: 1}[UDPEndpoint(("::1", 5, 0, 0), b"a" * 20)], 1)
        self.assertNotEqual(one, UDPEndpoint(("::1", 5, 0, 0), b"b" * 20))
        self.assertNotEqual(one, UDPEndpoint(("::1", 6, 0, 0), b"a" * 20))

    def test_shown_to_people(self) -> None:
        """IPv6 is bracketed and a link-local address shows its scope."""
        self.assertEqual(str(UDPEndpoint(("fe80::1", 5050, 0, 3))), "[fe80::1%3]:5050")
        self.assertEqual(str(UDPEndpoint(("::ffff:192.0.2.1", 5050, 0, 0))), "192.0.2.1:5050")
        self.assertEqual(str(UDPEndpoint(("192.0.2.1", 5050))), "192.0.2.1:5050")

    def test_text_that_is_no_address(self) -> None:
        """Names, IPv6 without IPv6, and scopes that do not exist are a ValueError with a reason."""
        for host, family, words in (
            ("vpn.example.org", socket.AF_INET6, "does not appear to be"),
            ("", socket.AF_INET6, "does not appear to be"),
            ("2001:db8::1", socket.AF_INET, "this kernel has no IPv6"),
            ("fe80::1%nosuchlink0", socket.AF_INET6, "there is no interface nosuchlink0"),
        ):
            error = self.assertRaises(ValueError, socket_address, host, 1, family)
            self.assertIn(words, str(error))
        index = socket.if_nametoindex("lo")
        self.assertEqual(socket_address("fe80::1%lo", 1, socket.AF_INET6), ("fe80::1", 1, 0, index))
