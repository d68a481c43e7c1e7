"""What the scenes of tests/scenes/networks read: frames that were sent, and a machine's state."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from tests.scenes.ends import Failed
from tests.scenes.networks.attacks import checksum, echo
from tests.scenes.networks.state import difference, same
from tests.scenes.networks.wire import Sorting, question, read, tally

LAPTOP, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
SORTING = Sorting(
    hub={("198.51.100.2", 5050), ("2001:db8:1::2", 5050)},
    resolvers={"192.168.77.1"},
    hub_names={"vpn.example.org"},
)


def ipv4(target: str, protocol: int, payload: bytes, *, offset: int = 0) -> bytes:
    total = 20 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, total, 1, offset, 64, protocol, 0)
    return b"\x08\x00" + head + bytes((192, 168, 77, 100)) + ip_address(target).packed + payload


def ipv6(target: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return b"\x86\xdd" + head + bytes(16) + ip_address(target).packed + payload


def udp(source: int, target: int, data: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(data), 0) + data


def asks(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def recording(*frames: tuple[float, bytes, bytes]) -> bytes:
    """A file of tcpdump's: (seconds, source's link address, type and packet)."""
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    for at, source, rest in frames:
        frame = OTHER + source + rest
        head = struct.pack("<IIII", int(at), round(at % 1 * 1e6), len(frame), len(frame))
        parts += [head, frame]
    return b"".join(parts)


class SortingTests(SynchronousTestCase):
    """What counts as plaintext."""

    def kind(self, frame: bytes) -> str:
        return SORTING.kind(OTHER + LAPTOP + frame)

    def test_let_out(self) -> None:
        """ARP, discovery, DHCP of both families, datagrams to the hub and a question for its name,
        however written, are no plaintext."""
        discovery = [ipv6("ff02::2", 58, bytes([kind]) + bytes(7)) for kind in (133, 135, 136)]
        for frame, kind in (
            (b"\x08\x06" + bytes(28), "neighbours"),
            *((frame, "neighbours") for frame in discovery),
            (ipv4("255.255.255.255", 17, udp(68, 67)), "dhcp"),
            (ipv6("ff02::1:2", 17, udp(546, 547)), "dhcp"),
            (ipv4("198.51.100.2", 17, udp(12000, 5050)), "tunnel"),
            (ipv6("2001:db8:1::2", 17, udp(12000, 5050)), "tunnel"),
            (ipv4("192.168.77.1", 17, udp(4000, 53, asks("vpn.example.org"))), "resolver"),
            (ipv4("192.168.77.1", 17, udp(4000, 53, asks("VPN.Example.Org"))), "resolver"),
        ):
            self.assertEqual(self.kind(frame), kind, frame)

    def test_plaintext(self) -> None:
        """Everything else is: other names, other resolvers, other ports of the hub and other
        protocols to it, echo requests, multicast listeners, later fragments, unknown types."""
        for frame in (
            ipv4("192.168.77.1", 17, udp(4000, 53, asks("www.example.org"))),
            ipv4("192.168.77.1", 17, udp(4000, 53, asks("x.vpn.example.org"))),
            ipv4("192.168.77.1", 17, udp(4000, 53)),
            ipv4("203.0.113.53", 17, udp(4000, 53, asks("vpn.example.org"))),
            ipv4("192.168.77.1", 6, udp(4000, 53, asks("vpn.example.org"))),
            ipv4("198.51.100.2", 17, udp(12000, 5051)),
            ipv4("198.51.100.2", 6, udp(12000, 5050)),
            ipv4("198.51.100.2", 17, udp(12000, 5050), offset=185),
            ipv4("203.0.113.2", 1, b"\x08" + bytes(7)),
            ipv6("2001:db8:2::2", 58, b"\x80" + bytes(7)),
            ipv6("ff02::16", 0, b"\x3a\0\x05\x02\0\0\1\0" + b"\x8f" + bytes(7)),
            b"\x88\xcc" + bytes(40),
        ):
            self.assertEqual(self.kind(frame), "plaintext", frame)

    def test_tally(self) -> None:
        """What the machine itself has sent from one moment on and before another is counted, and
        the plaintext of it told in words."""
        ping = ipv4("203.0.113.2", 1, b"\x08" + bytes(7))
        datagram = ipv4("198.51.100.2", 17, udp(12000, 5050))
        pcap = recording(
            (1.0, LAPTOP, ping),
            (2.0, LAPTOP, datagram),
            (2.5, OTHER, ping),
            (3.25, LAPTOP, ping),
            (4.0, LAPTOP, datagram),
        )
        mac = LAPTOP.hex(":")
        found = tally(pcap, SORTING, source=mac, since=2.0, until=4.0)
        self.assertEqual(found.kinds, {"tunnel": 1, "plaintext": 1})
        self.assertEqual(found.plaintext, {"ICMP type 8 to 203.0.113.2": 1})
        self.assertEqual(tally(pcap, SORTING, source=mac).kinds, {"tunnel": 2, "plaintext": 2})

    def test_words(self) -> None:
        """A packet is told with its protocol, target, port and the name that it asks for."""
        asked = read(OTHER + LAPTOP + ipv6("2001:db8::53", 17, udp(4000, 53, asks("a.b"))))
        self.assertEqual(str(asked), "UDP to 2001:db8::53 port 53 asks for a.b")
        self.assertIsNone(question(asks("a.b")[:9]))


class StateTests(SynchronousTestCase):
    """Before and after."""

    def test_difference(self) -> None:
        """What went and what came is told line by line, and nothing of what stayed."""
        self.assertEqual(difference("a\nb\nc\n", "a\nB\nc\nd\n"), "-b\n+B\n+d")
        self.assertEqual(difference("a\nb\n", "a\nb\n"), "")
        same("a\n", "a\n", "at the end")
        error = self.assertRaises(Failed, same, "a\n", "b\n", "at the end")
        self.assertEqual(str(error), "the machine is not as before, at the end:\n-a\n+b")


class AttackTests(SynchronousTestCase):
    """What the neighbour sends is what a machine would answer."""

    def test_checksums(self) -> None:
        """An echo request of either family has sums that add up to nothing."""
        packet = echo("192.168.77.66", "10.10.0.2", 1)
        self.assertEqual((checksum(packet[:20]), checksum(packet[20:])), (0, 0))
        packet = echo("2001:db8::1", "2001:db8::2", 1)
        pseudo = packet[8:40] + struct.pack("!II", len(packet) - 40, 58)
        self.assertEqual(checksum(pseudo + packet[40:]), 0)
