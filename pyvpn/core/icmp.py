"""ICMP "too big": what an inner packet gets for an answer that fits no datagram of its peer's path.

Sources: RFC 792 and RFC 1191 4 (IPv4, type 3 code 4), RFC 4443 3.2 and 2.4 (ICMPv6, type 2), RFC
1122 3.2.2 and RFC 1812 4.3.2 (how long, and about what there must be none).
"""

from __future__ import annotations

import struct
from typing import Final

from pyvpn.core.burst import Buffer
from pyvpn.core.ippacket import checksum

#: Bytes of a whole message: RFC 1812 4.3.2.3, and IPv6's least MTU (RFC 4443 2.4 c).
LONGEST4: Final = 576
LONGEST6: Final = 1280
#: Messages to all senders together, a second and at once. A sender remembers for minutes.
RATE: Final = 100.0
BURST: Final = 50

_HOP_LIMIT: Final = 64
_ICMP, _ICMPV6, _FRAGMENT = 1, 58, 44
_DONT_FRAGMENT: Final = 0x40
#: Echo, timestamp, information, address mask and router messages: all other types tell of errors.
_NO_ERRORS4: Final = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18))
_REDIRECT6: Final = 137
#: Hop-by-hop options, routing, fragment, destination options: each leads to another header.
_EXTENSIONS: Final = frozenset((0, 43, _FRAGMENT, 60))

_HEADER4: Final = struct.Struct("!BBHHHBBH4s4s")
_HEADER6: Final = struct.Struct("!IHBB16s16s")
_TOO_BIG4: Final = struct.Struct("!BBHHH")
_TOO_BIG6: Final = struct.Struct("!BBHI")


def may_fragment(packet: Buffer) -> bool:
    """Tell whether the sender of an IPv4 packet lets routers cut it; IPv6 knows no such thing."""
    return packet[0] >> 4 == 4 and not packet[6] & _DONT_FRAGMENT


def too_big(packet: Buffer, mtu: int) -> bytes | None:
    """Return an IP packet that tells the sender of ``packet`` which size fits.

    It comes from where ``packet`` goes to. Not from ourselves: a kernel drops what arrives from one
    of its own addresses, and on the hub, as on a client, the sender may be this very machine.

    :param packet: a whole IP packet whose header has been checked.
    :param mtu: bytes, at least 1280.
    :returns: None where there must be no message: about ICMP errors, fragments but the first, and
        what has no single sender.
    """
    if packet[0] >> 4 == 4:
        return _too_big4(packet, mtu)
    return _too_big6(packet, mtu)


def _too_big4(packet: Buffer, mtu: int) -> bytes | None:
    length = (packet[0] & 15) << 2
    source, destination = bytes(packet[12:16]), bytes(packet[16:20])
    if packet[6] & 0x1F or packet[7]:
        return None
    # 0/8, 127/8, multicast, class E and broadcast; RFC 1122 3.2.2 for the destination.
    if source[0] in (0, 127) or source[0] >= 224 or destination[0] >= 224:
        return None
    if packet[9] == _ICMP and (len(packet) <= length or packet[length] not in _NO_ERRORS4):
        return None
    quoted = bytes(packet[: LONGEST4 - _HEADER4.size - _TOO_BIG4.size])
    message = _TOO_BIG4.pack(3, 4, 0, 0, mtu) + quoted
    message = _TOO_BIG4.pack(3, 4, checksum(message), 0, mtu) + quoted
    total = _HEADER4.size + len(message)
    fields = (0x45, 0, total, 0, 0, _HOP_LIMIT, _ICMP)
    header = _HEADER4.pack(*fields, 0, destination, source)
    return _HEADER4.pack(*fields, checksum(header), destination, source) + message


def _too_big6(packet: Buffer, mtu: int) -> bytes | None:
    source, destination = bytes(packet[8:24]), bytes(packet[24:40])
    # Multicast, unspecified, loopback. RFC 4443 2.4 e allows it for a multicast destination, but
    # then that cannot be where it comes from.
    if source[0] == 0xFF or destination[0] == 0xFF or not any(source[:15]):
        return None
    if _no_error6(packet):
        return None
    quoted = bytes(packet[: LONGEST6 - _HEADER6.size - _TOO_BIG6.size])
    size = _TOO_BIG6.size + len(quoted)
    # The pseudo-header (RFC 8200 8.1): addresses, length, next header.
    pseudo = destination + source + struct.pack("!II", size, _ICMPV6)
    total = checksum(pseudo + _TOO_BIG6.pack(2, 0, 0, mtu) + quoted)
    header = _HEADER6.pack(6 << 28, size, _ICMPV6, _HOP_LIMIT, destination, source)
    return header + _TOO_BIG6.pack(2, 0, total, mtu) + quoted


def _no_error6(packet: Buffer) -> bool:
    """Tell whether a packet is an ICMPv6 error or redirect, a later fragment, or cut off."""
    following, at = packet[6], 40
    while following in _EXTENSIONS:
        if len(packet) < at + 8:
            return True
        if following == _FRAGMENT and (packet[at + 2] or packet[at + 3] & 0xF8):
            return True
        following, at = packet[at], at + (8 if following == _FRAGMENT else (packet[at + 1] + 1) * 8)
    if following != _ICMPV6:
        return False
    return len(packet) <= at or packet[at] < 128 or packet[at] == _REDIRECT6
