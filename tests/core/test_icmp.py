"""ICMP "too big" (RFC 792, 1191, 4443): who is told what, and about what nobody is."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import icmp

HERE4, THERE4 = IPv4Address("10.10.0.1"), IPv4Address("10.10.0.7")
HERE6, THERE6 = IPv6Address("fd00::1"), IPv6Address("fd00::7")

UDP = struct.pack("!HHHH", 4000, 53, 1408, 0)


def ipv4(
    payload: bytes = UDP + bytes(1400),
    *,
    protocol: int = 17,
    fragment: int = 0x4000,
    source: IPv4Address | str = HERE4,
    destination: IPv4Address | str = THERE4,
    options: bytes = b"",
) -> bytes:
    first = 0x45 + len(options) // 4
    total = 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", first, 0, total, 1, fragment, 64, protocol, 0)
    addresses = IPv4Address(source).packed + IPv4Address(destination).packed
    return head + addresses + options + payload


def ipv6(
    payload: bytes = UDP + bytes(1400),
    *,
    following: int = 17,
    source: IPv6Address | str = HERE6,
    destination: IPv6Address | str = THERE6,
) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 64)
    return head + IPv6Address(source).packed + IPv6Address(destination).packed + payload


def ones_sum(data: bytes) -> int:
    """The Internet checksum's sum, a word at a time (RFC 1071, its first example)."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def told(packet: bytes, mtu: int = 1300) -> bytes:
    answer = icmp.too_big(packet, mtu)
    assert answer is not None
    return answer


class IPv4(SynchronousTestCase):
    @given(st.integers(28, 9000), st.integers(1280, 65535))
    @settings(deadline=None)
    def test_message(self, length: int, mtu: int) -> None:
        """It comes from where the packet went, says the MTU, and quotes what fits 576 bytes; both
        checksums are right.
        """
        packet = ipv4(bytes(range(256)) * 36)[:length]
        answer = told(packet, mtu)
        self.assertLessEqual(len(answer), 576)
        version, _, total, _, _, ttl, protocol, _ = struct.unpack_from("!BBHHHBBH", answer)
        self.assertEqual((version, total, protocol), (0x45, len(answer), 1))
        self.assertGreater(ttl, 1)
        self.assertEqual(answer[12:20], THERE4.packed + HERE4.packed)
        self.assertEqual(ones_sum(answer[:20]), 0xFFFF)
        self.assertEqual(ones_sum(answer[20:]), 0xFFFF)
        kind, code, _, unused, said = struct.unpack_from("!BBHHH", answer, 20)
        self.assertEqual((kind, code, unused, said), (3, 4, 0, mtu))
        self.assertEqual(answer[28:], packet[: 576 - 28])

    def test_about_nothing_else(self) -> None:
        """No message about ICMP errors, later fragments, or what has no single sender."""
        echo, error = b"\x08\0" + bytes(1400), b"\x03\1" + bytes(1400)
        self.assertIsNone(icmp.too_big(ipv4(error, protocol=1), 1300))
        self.assertIsNone(icmp.too_big(ipv4(error, protocol=1, options=bytes(8)), 1300))
        self.assertIsNone(icmp.too_big(ipv4(b"", protocol=1), 1300))
        self.assertIsNone(icmp.too_big(ipv4(fragment=0x4001), 1300))
        self.assertIsNone(icmp.too_big(ipv4(fragment=0x4100), 1300))
        for source in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"):
            self.assertIsNone(icmp.too_big(ipv4(source=source), 1300), source)
        for destination in ("224.0.0.251", "255.255.255.255"):
            self.assertIsNone(icmp.too_big(ipv4(destination=destination), 1300), destination)
        # Controls.
        told(ipv4(echo, protocol=1))
        told(ipv4(echo, protocol=1, options=bytes(8)))
        told(ipv4(fragment=0x6000))
        told(ipv4(source="223.255.255.254"))

    def test_may_fragment(self) -> None:
        """Only IPv4 without DF may be cut."""
        self.assertTrue(icmp.may_fragment(ipv4(fragment=0)))
        self.assertTrue(icmp.may_fragment(ipv4(fragment=0x2000)))
        self.assertFalse(icmp.may_fragment(ipv4(fragment=0x4000)))
        self.assertFalse(icmp.may_fragment(ipv6()))


class IPv6(SynchronousTestCase):
    @given(st.integers(48, 9000), st.integers(1280, 65535))
    @settings(deadline=None)
    def test_message(self, length: int, mtu: int) -> None:
        """It comes from where the packet went, says the MTU, and quotes what fits 1280 bytes; the
        checksum counts the pseudo-header.
        """
        packet = ipv6(bytes(range(256)) * 36)[:length]
        answer = told(packet, mtu)
        self.assertLessEqual(len(answer), 1280)
        first, size, following, hops = struct.unpack_from("!IHBB", answer)
        self.assertEqual((first, size, following), (6 << 28, len(answer) - 40, 58))
        self.assertGreater(hops, 1)
        self.assertEqual(answer[8:40], THERE6.packed + HERE6.packed)
        pseudo = answer[8:40] + struct.pack("!IHBB", size, 0, 0, 58)
        self.assertEqual(ones_sum(pseudo + answer[40:]), 0xFFFF)
        kind, code, _, said = struct.unpack_from("!BBHI", answer, 40)
        self.assertEqual((kind, code, said), (2, 0, mtu))
        self.assertEqual(answer[48:], packet[: 1280 - 48])

    def test_about_nothing_else(self) -> None:
        """No message about ICMPv6 errors and redirects, behind whatever headers, later fragments,
        or what has no single sender.
        """
        echo, error, redirect = (bytes((kind, 0)) + bytes(1400) for kind in (128, 1, 137))
        options = b"\x3a\0" + bytes(6)  # of eight bytes; then ICMPv6
        first, later = (
            b"\x3a\0" + place.to_bytes(2, "big") + bytes(4) for place in (0x0001, 0x0009)
        )
        for none in (
            *(ipv6(error, following=58), ipv6(redirect, following=58), ipv6(b"", following=58)),
            *(ipv6(options + error, following=kind) for kind in (0, 43, 60)),
            *(ipv6(first + error, following=44), ipv6(later + echo, following=44)),
            *(ipv6(options[:7], following=0), ipv6(options, following=60)),
            *(ipv6(source=source) for source in ("::", "::1", "ff02::1")),
            ipv6(destination="ff02::fb"),
        ):
            self.assertIsNone(icmp.too_big(none, 1300), none[:64].hex())
        for some in (
            *(ipv6(echo, following=58), ipv6(options + echo, following=0)),
            *(ipv6(first + echo, following=44), ipv6()),
        ):
            told(some)

    @given(st.binary(max_size=120), st.sampled_from((0, 6, 17, 43, 44, 58, 60)))
    def test_any(self, payload: bytes, following: int) -> None:
        """Whatever stands behind the header, the answer is a message or none."""
        answer = icmp.too_big(ipv6(payload, following=following), 1300)
        self.assertTrue(answer is None or len(answer) <= 1280)
