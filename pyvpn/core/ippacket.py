"""The inner IP header: is it sane, who is it from, who is it for; and the Internet checksum.

Sources: RFC 791 3.1 (IPv4), RFC 8200 3 (IPv6), RFC 1071 (checksum), PROTOCOL 5 (what a type 4 may
hold).

Nanoseconds per call (Python 3.11, a 1,416-byte packet): length 150, source and destination 77,
checksum 3,200 (of 20 bytes: 180).
"""

from __future__ import annotations

from typing import Final

from pyvpn.core.burst import Buffer
from pyvpn.errors import RemoteProtocolError

MALFORMED: Final = "inner_malformed"

# An IPv4 header is 20 to 60 bytes, the IPv6 header 40.
_HEADER4: Final = 20
_HEADER6: Final = 40


def source(packet: bytes) -> bytes:
    """The source address, 4 or 16 bytes; only of a packet that :func:`length` accepted."""
    return packet[12:16] if packet[0] < 0x50 else packet[8:24]


def destination(packet: bytes) -> bytes:
    """The destination address, 4 or 16 bytes; only of a packet that :func:`length` accepted."""
    return packet[16:20] if packet[0] < 0x50 else packet[24:40]


def length(packet: bytes) -> int:
    """The length in bytes that the IP header at the start of ``packet`` declares, header included.

    ``packet`` may be longer (padding: the caller trims), never shorter.

    :raises RemoteProtocolError: ``inner_malformed``: neither IPv4 nor IPv6, a header that is cut
        off or shorter than its family's least, a declared length that is less than the header or
        more than the bytes there.
    """
    have = len(packet)
    if have >= _HEADER4:
        first = packet[0]
        if 0x45 <= first <= 0x4F:
            total = packet[2] << 8 | packet[3]
            # The low nibble counts the header in words of four bytes.
            if (first & 0x0F) << 2 <= total <= have:
                return total
        elif first >> 4 == 6 and have >= _HEADER6:
            # A jumbogram (RFC 2675) says payload 0 here; no tunnel of ours carries one, it is cut
            # to its header.
            total = _HEADER6 + (packet[4] << 8 | packet[5])
            if total <= have:
                return total
    raise RemoteProtocolError(MALFORMED)


def checksum(data: Buffer) -> int:
    """The Internet checksum of ``data``, complemented as it stands in a header: 0 … 0xFFFF.

    An odd last byte counts as if a zero byte followed it. Over a header with its right checksum in
    place the result is 0.
    """
    # 2^16 is 1 modulo 65535, so the remainder of the whole number is the sum of its 16-bit words
    # with the carries added back in (RFC 1071 section 2B): one C call instead of a loop. Only the
    # two zeros of ones' complement are lost: a sum that is not all zeros folds to 0xFFFF, never to
    # 0.
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    folded = number % 0xFFFF
    if not folded and number:
        return 0
    return folded ^ 0xFFFF
