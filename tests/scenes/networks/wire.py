"""What a machine has put on the wire, sorted: into the tunnel, what a network needs, and the rest.

Everything counts as plaintext that is not

* UDP to the hub's port,
* ARP, or IPv6 router and neighbour discovery,
* DHCP,
* a question for the hub's name to one of the resolvers that were set before.

The last is counted apart from the rest, since it tells the network whose VPN somebody uses.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
ICMP, TCP, UDP, ICMP6, HOP_BY_HOP, FRAGMENT = 1, 6, 17, 58, 0, 44
#: Types 133, 135, 136: router and neighbour solicitation, neighbour advertisement (RFC 4861).
DISCOVERY = {b"\x85", b"\x87", b"\x88"}
KINDS = ("tunnel", "neighbours", "dhcp", "resolver", "plaintext")


class Frame(NamedTuple):
    """One frame of a recording: when (Unix seconds), and its bytes."""

    at: float
    data: bytes


class Packet(NamedTuple):
    """What sorting looks at; the ports are 0 where there are none."""

    source: IPv4Address | IPv6Address
    target: IPv4Address | IPv6Address
    protocol: int
    source_port: int
    target_port: int
    #: of UDP, TCP and ICMP: what follows the IP headers
    payload: bytes

    def __str__(self) -> str:
        names = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMP6: "ICMPv6"}
        name = names.get(self.protocol, f"protocol {self.protocol}")
        if self.protocol in (TCP, UDP):
            asked = f" asks for {question(self.payload[8:])}" if self.target_port == 53 else ""
            return f"{name} to {self.target} port {self.target_port}{asked}"
        kind = f" type {self.payload[0]}" if self.protocol in (ICMP, ICMP6) and self.payload else ""
        return f"{name}{kind} to {self.target}"


@dataclass(frozen=True)
class Sorting:
    """Who is who.

    :ivar hub: the hub's addresses and UDP ports.
    :ivar resolvers: the name servers that were set before the client.
    :ivar hub_names: the names that may be asked of them.
    """

    hub: Collection[tuple[str, int]]
    resolvers: Collection[str] = ()
    hub_names: Collection[str] = ()

    def kind(self, frame: bytes) -> str:
        """One of :data:`KINDS`."""
        if ethertype(frame) == ARP:
            return "neighbours"
        packet = read(frame)
        if packet is None:
            return "plaintext"
        if packet.protocol == ICMP6 and packet.payload[:1] in DISCOVERY:
            return "neighbours"
        if packet.protocol != UDP:
            return "plaintext"
        if (str(packet.target), packet.target_port) in self.hub:
            return "tunnel"
        if (packet.source_port, packet.target_port) in ((68, 67), (546, 547)):
            return "dhcp"
        asked = question(packet.payload[8:]) if packet.target_port == 53 else None
        if str(packet.target) in self.resolvers and asked in self.hub_names:
            return "resolver"
        return "plaintext"


@dataclass
class Tally:
    """How many frames of each kind, and what the plaintext was."""

    kinds: Counter[str] = field(default_factory=Counter)
    plaintext: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        counted = ", ".join(f"{kind} {self.kinds[kind]}" for kind in KINDS)
        worst = "".join(f"\n  {count} × {what}" for what, count in self.plaintext.most_common(12))
        return f"{counted}{worst}"


def tally(
    pcap: bytes,
    sorting: Sorting,
    *,
    source: str,
    since: float = 0.0,
    until: float = math.inf,
) -> Tally:
    """Sort what a link address `source` has sent in a recording, from `since` on and before
    `until` (Unix seconds)."""
    mac = bytes.fromhex(source.replace(":", ""))
    found = Tally()
    for frame in frames(pcap):
        if not since <= frame.at < until or frame.data[6:12] != mac:
            continue
        kind = sorting.kind(frame.data)
        found.kinds[kind] += 1
        if kind == "plaintext":
            found.plaintext[str(read(frame.data) or f"type {ethertype(frame.data):#06x}")] += 1
    return found


def frames(pcap: bytes) -> Iterator[Frame]:
    """The frames of a recording of an Ethernet interface."""
    order = "<" if pcap[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at = 24
    while at + 16 <= len(pcap):
        seconds, fraction, kept, _ = struct.unpack_from(f"{order}IIII", pcap, at)
        yield Frame(seconds + fraction / 1e6, pcap[at + 16 : at + 16 + kept])
        at += 16 + kept


def ethertype(frame: bytes) -> int:
    """What the frame carries."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    return int(kind)


def read(frame: bytes) -> Packet | None:
    """The IP packet of a frame, None where there is none."""
    kind, packet = ethertype(frame), frame[14:]
    if kind == IPV4 and len(packet) >= 20:
        source, target, protocol = ip_address(packet[12:16]), ip_address(packet[16:20]), packet[9]
        first = not struct.unpack_from("!H", packet, 6)[0] & 0x1FFF
        payload = packet[(packet[0] & 15) * 4 :]
    elif kind == IPV6 and len(packet) >= 40:
        source, target = ip_address(packet[8:24]), ip_address(packet[24:40])
        protocol, payload, first = packet[6], packet[40:], True
        while protocol in (HOP_BY_HOP, FRAGMENT) and len(payload) >= 8:
            if protocol == FRAGMENT:
                first = not struct.unpack_from("!H", payload, 2)[0] & 0xFFF8
            size = 8 if protocol == FRAGMENT else (payload[1] + 1) * 8
            protocol, payload = payload[0], payload[size:]
    else:
        return None
    ports = (0, 0)
    # A later fragment has no ports: it is nobody's datagram to the hub, which are never fragmented.
    if protocol in (TCP, UDP) and first and len(payload) >= 4:
        ports = struct.unpack_from("!HH", payload)
    return Packet(source, target, protocol, *ports, payload)


def question(message: bytes) -> str | None:
    """The name that a DNS message asks for, in small letters, if it asks one question."""
    if len(message) < 17 or message[2] & 0x80 or struct.unpack_from("!H", message, 4)[0] != 1:
        return None
    labels, at = [], 12
    while at < len(message) and message[at]:
        size = message[at]
        labels.append(message[at + 1 : at + 1 + size].decode("latin-1"))
        at += 1 + size
    return ".".join(labels).lower()
