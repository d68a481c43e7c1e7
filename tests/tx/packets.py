"""IPv4/UDP packets for tests, built and taken apart by hand."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

VIRTIO_HEADER = bytes(10)


def udp_packet(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram (no UDP checksum, which IPv4 allows)."""
    total = 28 + len(payload)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        total,
        0,
        0,
        64,
        17,
        0,
        IPv4Address(source).packed,
        IPv4Address(destination).packed,
    )
    words = sum(struct.unpack("!10H", head))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    head = head[:10] + struct.pack("!H", words ^ 0xFFFF) + head[12:]
    return head + struct.pack("!HHHH", port, port, 8 + len(payload), 0) + payload


def udp_payload(packet: bytes) -> bytes | None:
    """The payload of an IPv4/UDP packet; None for anything else (IPv6 comes unasked)."""
    if len(packet) < 28 or packet[0] != 0x45 or packet[9] != 17:
        return None
    return packet[28:]
