"""Inner IP headers and the Internet checksum, with the RFCs' own arithmetic as oracle."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from pyvpn.core import ippacket
from pyvpn.errors import RemoteProtocolError

KIWI4, PA4 = IPv4Address("10.10.0.2").packed, IPv4Address("10.10.0.3").packed
KIWI6, PA6 = IPv6Address("fd00::2").packed, IPv6Address("fd00::3").packed


def packet4(payload: bytes = b"", options: bytes = b"") -> bytes:
    """An IPv4 packet from Kiwi to Pa."""
    header = 20 + len(options)
    return (
        struct.pack(">BBHHHBBH", 0x40 | header // 4, 0, header + len(payload), 0, 0, 64, 17, 0)
        + KIWI4
        + PA4
        + options
        + payload
    )


def packet6(payload: bytes = b"") -> bytes:
    """An IPv6 packet from Kiwi to Pa."""
    return struct.pack(">IHBB", 6 << 28, len(payload), 17, 64) + KIWI6 + PA6 + payload


def patched(packet: bytes, offset: int, *octets: int) -> bytes:
    return packet[:offset] + bytes(octets) + packet[offset + len(octets) :]


def rfc1071(data: bytes) -> int:
    """The checksum as RFC 1071 defines it: add 16-bit words, fold the carries, complement."""
    total = 0
    for place in range(0, len(data), 2):
        total += int.from_bytes(data[place : place + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class HeaderTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        """Source and destination are found where RFC 791 and RFC 8200 put them."""
        for packet, source, destination in (
            (packet4(b"x"), KIWI4, PA4),
            (packet4(b"x", options=bytes(8)), KIWI4, PA4),
            (packet6(b"x"), KIWI6, PA6),
        ):
            self.assertEqual(ippacket.source(packet), source)
            self.assertEqual(ippacket.destination(packet), destination)

    def test_length_leaves_padding_out(self) -> None:
        """The padding that a type 4 adds is no part of the packet."""
        for packet in (
            packet4(),
            packet4(b"payload"),
            packet4(b"p", bytes(40)),
            packet6(),
            packet6(b"p"),
        ):
            for padding in (b"", bytes(1), bytes(15), b"\xff" * 16):
                self.assertEqual(ippacket.length(packet + padding), len(packet))

    def test_largest(self) -> None:
        """A total length of 65,535 (IPv4) and a payload length of 65,535 (IPv6) are read whole."""
        self.assertEqual(ippacket.length(packet4(bytes(65_515))), 65_535)
        self.assertEqual(ippacket.length(packet6(bytes(65_535))), 65_575)

    def test_malformed(self) -> None:
        """A header that lies or is cut off is refused, by the reason ``inner_malformed``."""
        four, six = packet4(b"12345678"), packet6(b"12345678")
        table = {
            "empty": b"",
            "one byte": b"\x45",
            "IPv4 header cut": packet4()[:19],
            "IPv6 header cut": packet6()[:39],
            "version 0": patched(four, 0, 0x05),
            "version 5": patched(four, 0, 0x55),
            "version 5 with IHL 0": patched(four, 0, 0x50),
            "version 7": patched(six, 0, 0x70),
            "version 15": patched(six, 0, 0xF5),
            "IHL 4": patched(four, 0, 0x44),
            "IHL 0": patched(four, 0, 0x40),
            "IHL beyond the total length": patched(four, 0, 0x48),
            "total length below the header": patched(four, 2, 0, 19),
            "total length 0": patched(four, 2, 0, 0),
            "total length beyond the end": patched(four, 2, 0, 29),
            "total length far beyond the end": patched(four, 2, 0xFF, 0xFF),
            "payload length beyond the end": patched(six, 4, 0, 9),
            "payload length far beyond the end": patched(six, 4, 0xFF, 0xFF),
        }
        for name, packet in table.items():
            with self.subTest(name):
                error = self.assertRaises(RemoteProtocolError, ippacket.length, packet)
                self.assertEqual(error.reason, "inner_malformed")
        # The control: without the lie both pass, and so does each field at its border.
        for packet in (four, six, patched(four, 0, 0x47), patched(four, 2, 0, 20)):
            ippacket.length(packet)

    @given(st.binary(max_size=80), st.sampled_from([None, 0x45, 0x46, 0x4F, 0x60]))
    @settings(deadline=None, max_examples=300)
    def test_any_bytes(self, data: bytes, first: int | None) -> None:
        """Any bytes are a packet whose header and addresses lie inside them, or malformed."""
        if first is not None and data:
            data = patched(data, 0, first)
        try:
            total = ippacket.length(data)
        except RemoteProtocolError as error:
            self.assertEqual(error.reason, "inner_malformed")
            return
        size = {4: 4, 6: 16}[data[0] >> 4]
        self.assertLessEqual(total, len(data))
        self.assertGreaterEqual(total, 20 if size == 4 else 40)
        self.assertEqual(len(ippacket.source(data)), size)
        self.assertEqual(len(ippacket.destination(data)), size)


class ChecksumTests(SynchronousTestCase):
    def test_rfc1071_example(self) -> None:
        """The example of RFC 1071 section 3: the sum ddf2 of 00 01 f2 03 f4 f5 f6 f7."""
        self.assertEqual(ippacket.checksum(bytes.fromhex("0001f203f4f5f6f7")), 0xFFFF ^ 0xDDF2)

    def test_two_zeros(self) -> None:
        """Only a sum of nothing but zeros complements to 0xFFFF; one that folds to 0xFFFF to 0."""
        for data, expected in (
            (b"", 0xFFFF),
            (bytes(20), 0xFFFF),
            (b"\xff\xff", 0),
            (b"\xff\xfe\x00\x01", 0),
            (b"\xff" * 40, 0),
            (b"\xff", 0x00FF),
        ):
            self.assertEqual(ippacket.checksum(data), expected, data)

    @given(st.binary(max_size=100), st.integers(0, 3))
    @settings(deadline=None, max_examples=300)
    def test_equals_rfc1071(self, data: bytes, ones: int) -> None:
        """Any bytes, odd lengths too, sum as the RFC's loop sums them."""
        data += b"\xff\xff" * ones
        self.assertEqual(ippacket.checksum(data), rfc1071(data))

    @given(st.binary(min_size=20, max_size=60).filter(lambda data: len(data) % 2 == 0))
    @settings(deadline=None)
    def test_verifies_to_zero(self, header: bytes) -> None:
        """A header with its checksum filled in sums to 0, the receiver's test of RFC 791."""
        filled = header[:10] + struct.pack(">H", ippacket.checksum(patched(header, 10, 0, 0)))
        filled += header[12:]
        if any(filled):
            self.assertEqual(ippacket.checksum(filled), 0)
