"""What a kernel does with super-packets, and what PROTOCOL 5 says of segment frames, once more.

An oracle for pyvpn.core.segments and the simulation, and nothing of those is used here. The
sources: RFC 791 and 8200 (IP), RFC 9293 and 768 (TCP, UDP), RFC 1071 and 1624 (checksums), RFC 3168
(CWR), include/uapi/linux/virtio_net.h, and how Linux cuts: IPv4 identification, TCP sequence
number, FIN, PSH and CWR by the place of the segment.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from attrs import frozen

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
NEEDS_CSUM = 1
TCPV4, TCPV6, UDP_L4 = 1, 4, 5
VIRTIO_SIZE = 10
SEGMENT = 0x11
#: A kernel takes no longer UDP super-packet (UDP_MAX_SEGMENTS).
MOST_UDP_OF_KERNEL = 128
#: An IPv6 destination options header of eight bytes, all padding; it begins with the next header.
DESTINATION_OPTIONS = 60
EXTENSION = b"\0\0\1\4\0\0\0\0"

Address = IPv4Address | IPv6Address


class Virtio(NamedTuple):
    """struct virtio_net_hdr."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self) -> bytes:
        return struct.pack("=BBHHHH", *self)

    @classmethod
    def of(cls, frame: bytes) -> Virtio:
        return cls(*struct.unpack_from("=BBHHHH", frame))


def word_sum(*parts: bytes) -> int:
    """The ones' complement sum of the 16-bit words of parts of even length, but for the last."""
    total = 0
    for part in parts:
        even = part + bytes(len(part) % 2)
        total += sum(struct.unpack(f"!{len(even) // 2}H", even))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def u16(packet: bytes, at: int) -> int:
    return packet[at] << 8 | packet[at + 1]


class Place(NamedTuple):
    """Where things are in an IP packet: the transport's header and its payload begin."""

    version: int
    protocol: int
    transport: int
    payload: int


def place_of(packet: bytes) -> Place:
    """Parse a whole TCP or UDP packet.

    :raises AssertionError: it is none, or one of its lengths does not agree with the others.
    """
    version = packet[0] >> 4
    if version == 4:
        transport, protocol = (packet[0] & 15) * 4, packet[9]
        assert transport >= 20, "IHL"
        assert u16(packet, 2) == len(packet), "IPv4 length"
        assert u16(packet, 6) & 0x3FFF == 0, "a fragment"
    else:
        assert version == 6, "version"
        transport, protocol = 40, packet[6]
        assert u16(packet, 4) == len(packet) - 40, "IPv6 length"
        if protocol == DESTINATION_OPTIONS:
            protocol, transport = packet[40], 48 + packet[41] * 8
    if protocol == TCP:
        assert packet[transport + 12] >> 4 >= 5, "data offset"
        payload = transport + (packet[transport + 12] >> 4) * 4
    else:
        assert protocol == UDP, "protocol"
        payload = transport + 8
        assert u16(packet, transport + 4) == len(packet) - transport, "UDP length"
    assert payload <= len(packet), "headers past the end"
    return Place(version, protocol, transport, payload)


def pseudo_header(packet: bytes, place: Place) -> bytes:
    addresses = packet[12:20] if place.version == 4 else packet[8:40]
    return addresses + struct.pack("!HH", place.protocol, len(packet) - place.transport)


def check(packet: bytes) -> None:
    """Check each length and each checksum of a whole packet.

    :raises AssertionError: one is wrong.
    """
    place = place_of(packet)
    if place.version == 4:
        assert word_sum(packet[: place.transport]) == 0xFFFF, "IPv4 checksum"
    segment = packet[place.transport :]
    assert word_sum(pseudo_header(packet, place), segment) == 0xFFFF, "TCP or UDP checksum"
    assert place.protocol == TCP or segment[6:8] != b"\0\0", "a UDP checksum of 0 is none at all"


def source_of(packet: bytes) -> Address:
    return ip_address(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24])


# -- what a kernel hands over ----------------------------------------------------------------------


@frozen
class Flow:
    """The headers of what one socket sends."""

    source: Address
    destination: Address
    protocol: int = TCP
    flags: int = ACK
    sequence: int = 0xFFFF_F000
    identification: int = 0xFFF0
    tos: int = 0
    df: bool = True
    ip_options: bytes = b""
    tcp_options: bytes = b""
    extended: bool = False

    @property
    def transport(self) -> int:
        if self.source.version == 4:
            return 20 + len(self.ip_options)
        return 40 + len(EXTENSION) * self.extended

    @property
    def size(self) -> int:
        """Bytes of all headers."""
        return self.transport + (20 + len(self.tcp_options) if self.protocol == TCP else 8)

    @property
    def checksum_offset(self) -> int:
        return 16 if self.protocol == TCP else 6

    def packet(self, payload: bytes) -> bytes:
        """A packet, in its checksum field the sum of the pseudo-header alone."""
        rest = self.size - self.transport + len(payload)
        if self.protocol == TCP:
            offset = (20 + len(self.tcp_options)) // 4 << 4
            fields = (40000, 80, self.sequence, 77, offset, self.flags, 502, 0, 0)
            header = struct.pack("!HHIIBBHHH", *fields) + self.tcp_options
        else:
            header = struct.pack("!HHHH", 40000, 443, rest, 0)
        packet = bytearray(self._ip(rest) + header + payload)
        at = self.transport + self.checksum_offset
        place = Place(self.source.version, self.protocol, self.transport, self.size)
        struct.pack_into("!H", packet, at, word_sum(pseudo_header(packet, place)))
        return bytes(packet)

    def _ip(self, rest: int) -> bytes:
        addresses = self.source.packed + self.destination.packed
        if self.source.version == 4:
            fields = (0x40 | self.transport // 4, self.tos, self.transport + rest)
            fields += (self.identification, self.df << 14, 64, self.protocol)
            start = struct.pack("!BBHHHBB", *fields)
            total = word_sum(start, addresses, self.ip_options)
            return start + struct.pack("!H", total ^ 0xFFFF) + addresses + self.ip_options
        extension = bytes([self.protocol]) + EXTENSION[1:] if self.extended else b""
        first = DESTINATION_OPTIONS if self.extended else self.protocol
        length = len(extension) + rest
        start = struct.pack("!IHBB", 6 << 28 | self.tos << 20 | 12345, length, first, 64)
        return start + addresses + extension

    def superpacket(self, payload: bytes, size: int) -> bytes:
        """What the TUN reads of what is to be cut every ``size`` bytes."""
        kind = UDP_L4 if self.protocol == UDP else TCPV4 if self.source.version == 4 else TCPV6
        virtio = Virtio(NEEDS_CSUM, kind, self.size, size, self.transport, self.checksum_offset)
        return virtio.pack() + self.packet(payload)

    def finished(self, payload: bytes) -> bytes:
        """A packet with all its checksums."""
        return _finished(self.packet(payload), self.transport, self.checksum_offset)

    def unfinished(self, payload: bytes) -> bytes:
        """What the TUN reads of one packet whose checksum is not finished."""
        virtio = Virtio(NEEDS_CSUM, 0, 0, 0, self.transport, self.checksum_offset)
        return virtio.pack() + self.packet(payload)


def with_size(frame: bytes, size: int) -> bytes:
    """The same super-packet, to be cut at another size."""
    return Virtio.of(frame)._replace(gso_size=size).pack() + frame[VIRTIO_SIZE:]


# -- what a kernel does with what it is given ------------------------------------------------------


def cut_by_kernel(frame: bytes) -> list[bytes]:
    """The packets that a kernel makes of a frame written to its TUN, checksums finished.

    :raises AssertionError: it would say EINVAL, or the frame is not as PROTOCOL 5 wants it.
    """
    virtio, packet = Virtio.of(frame), frame[VIRTIO_SIZE:]
    if not virtio.flags & NEEDS_CSUM:
        assert virtio == Virtio(), "a virtio header for nothing"
        return [packet]
    assert virtio.flags == NEEDS_CSUM, "flags"
    assert virtio.csum_start + virtio.csum_offset + 2 <= virtio.hdr_len <= len(packet), "hdr_len"
    if virtio.gso_type == 0:
        assert virtio.gso_size == 0, "gso_size without gso_type"
        return [_finished(packet, virtio.csum_start, virtio.csum_offset)]
    place = place_of(packet)
    expected = {(4, TCP): TCPV4, (6, TCP): TCPV6}.get(place[:2], UDP_L4)
    assert virtio.gso_type == expected, "gso_type"
    assert virtio.csum_start == place.transport, "csum_start"
    assert virtio.csum_offset == (16 if place.protocol == TCP else 6), "csum_offset"
    payload, size = packet[place.payload :], virtio.gso_size
    assert 0 < size < len(payload), "nothing to cut"
    assert place.payload + size <= 65_535, "segments longer than an IP packet"
    if place.protocol == UDP:
        assert len(payload) <= size * MOST_UDP_OF_KERNEL, "too many UDP segments"
    return segments_of(packet, size)


def segments_of(packet: bytes, size: int) -> list[bytes]:
    """A packet cut every ``size`` bytes; in its checksum field is the sum of its pseudo-header."""
    place = place_of(packet)
    head, payload = packet[: place.payload], packet[place.payload :]
    starts = range(0, len(payload), size)
    return [
        _segment(head, place, len(packet), number, start, payload[start : start + size], starts)
        for number, start in enumerate(starts)
    ]


def _segment(
    head: bytes, place: Place, old: int, number: int, start: int, piece: bytes, starts: range
) -> bytes:
    new = bytearray(head + piece)
    at = place.transport
    if place.version == 4:
        struct.pack_into("!HH", new, 2, len(new), (u16(head, 4) + number) % 65536)
        struct.pack_into("!H", new, 10, 0)
        struct.pack_into("!H", new, 10, word_sum(new[:at]) ^ 0xFFFF)
    else:
        struct.pack_into("!H", new, 4, len(new) - 40)
    if place.protocol == TCP:
        sequence = int.from_bytes(head[at + 4 : at + 8], "big") + start
        struct.pack_into("!I", new, at + 4, sequence % 2**32)
        if number:
            new[at + 13] &= 0xFF ^ CWR
        if start != starts[-1]:
            new[at + 13] &= 0xFF ^ (FIN | PSH)
        offset = 16
    else:
        struct.pack_into("!H", new, at + 4, len(new) - at)
        offset = 6
    # RFC 1624: the sum that stands there, less the old length and with the new one.
    partial = struct.pack("!HHH", u16(head, at + offset), old - at ^ 0xFFFF, len(new) - at)
    struct.pack_into("!H", new, at + offset, word_sum(partial))
    return _finished(bytes(new), at, offset)


def _finished(packet: bytes, start: int, offset: int) -> bytes:
    total = word_sum(packet[start:]) ^ 0xFFFF
    at = start + offset
    return packet[:at] + struct.pack("!H", total or 0xFFFF) + packet[at + 2 :]


# -- PROTOCOL 5 ------------------------------------------------------------------------------------


def segment_frame(index: int, size: int, rest: bytes) -> bytes:
    return struct.pack("<BBH", SEGMENT, index % 256, size) + rest


def segment_frames(packet: bytes, size: int) -> list[bytes]:
    """The segment frames of one super-packet that is within all bounds."""
    head = packet[: place_of(packet).payload]
    payload = packet[len(head) :]
    frames = [
        segment_frame(number, size, head + payload[start : start + size])
        for number, start in enumerate(range(0, len(payload), size))
    ]
    full = 4 + len(head) + size
    while len(frames[-1]) % 16 and len(frames[-1]) < full:
        frames[-1] += b"\0"
    return frames


def trimmed(plaintext: bytes) -> bytes:
    """A complete packet without its padding."""
    length = u16(plaintext, 2) if plaintext[0] >> 4 == 4 else 40 + u16(plaintext, 4)
    assert not any(plaintext[length:]), "padding"
    return plaintext[:length]
