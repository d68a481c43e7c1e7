"""What passed a cable: the UDP datagrams in a file of tcpdump's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

INITIATION, RESPONSE, COOKIE_REPLY, DATA = 1, 2, 3, 4
#: Bytes of a datagram of each kind; data has at least a keepalive's.
SIZES = {INITIATION: 148, RESPONSE: 92, COOKIE_REPLY: 64}
KEEPALIVE_SIZE = 32

ETHERNET, IPV4, IPV6, UDP = 14, 0x0800, 0x86DD, 17


class Datagram(NamedTuple):
    """One UDP datagram: when (Unix seconds), from where to where, what."""

    at: float
    source: IPv4Address | IPv6Address
    source_port: int
    target: IPv4Address | IPv6Address
    target_port: int
    data: bytes

    @property
    def kind(self) -> int:
        """WireGuard's message type; 0 for what is no message of its."""
        if len(self.data) < KEEPALIVE_SIZE or self.data[1:4] != bytes(3):
            return 0
        kind = self.data[0]
        fits = kind == DATA or len(self.data) == SIZES.get(kind)
        return kind if fits else 0

    @property
    def has_cookie(self) -> bool:
        """Whether a handshake message ends with a mac2."""
        return self.kind in (INITIATION, RESPONSE) and self.data[-16:] != bytes(16)


def datagrams(pcap: bytes) -> Iterator[Datagram]:
    """The UDP datagrams, unfragmented, of a recording of an Ethernet interface."""
    order = "<" if pcap[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at = 24
    while at + 16 <= len(pcap):
        seconds, fraction, kept, _ = struct.unpack_from(f"{order}IIII", pcap, at)
        found = _datagram(seconds + fraction / 1e6, pcap[at + 16 : at + 16 + kept])
        if found is not None:
            yield found
        at += 16 + kept


def _datagram(at: float, frame: bytes) -> Datagram | None:
    (kind,) = struct.unpack_from("!H", frame, 12)
    packet = frame[ETHERNET:]
    if kind == IPV4 and packet[9] == UDP and not struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
        source, target = ip_address(packet[12:16]), ip_address(packet[16:20])
        udp = packet[(packet[0] & 15) * 4 :]
    elif kind == IPV6 and packet[6] == UDP:
        source, target = ip_address(packet[8:24]), ip_address(packet[24:40])
        udp = packet[40:]
    else:
        return None
    source_port, target_port, length = struct.unpack_from("!HHH", udp)
    return Datagram(at, source, source_port, target, target_port, udp[8:length])
