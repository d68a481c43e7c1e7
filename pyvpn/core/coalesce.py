"""Whole packets → super-packets: what a peer that knows no segment frames sends, joined again.

A stock WireGuard peer cuts what its kernel hands it, and sends whole packets. Written one by one,
each goes through our kernel alone. Here those of one TCP or UDP flow that follow one another become
one super-packet, as the kernel's generic receive offload does for a network card (Linux,
net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c).

The rule: whoever cuts the super-packet at its ``gso_size`` gets the packets that came. Since it
makes new checksums then, those that came are checked first: what is damaged stays so, and goes
alone. Two things come out otherwise, and mean nothing: an IPv4 identification that is the same in
all, with DF set, counts up (RFC 6864, 4.1), and a TCP checksum may be the other of its two zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pyvpn.core import ippacket
from pyvpn.core.burst import Buffer
from pyvpn.core.segments import (
    MOST_BYTES,
    MOST_PIECES,
    MOST_UDP_PIECES,
    TCP,
    UDP,
    VIRTIO_NONE,
    Headers,
    Run,
    headers,
    run_of,
)
from pyvpn.core.wordsum import word_sum
from pyvpn.errors import RemoteProtocolError

# What is read of a packet, by version and protocol: the IP header up to the IPv4 identification,
# that, the rest, its checksum; addresses and ports; of TCP the sequence number, acknowledgement and
# data offset, flags, window, urgent pointer; of UDP the length. What IPv6 has not is empty.
_TCP4: Final = struct.Struct("!4sH4sH12sI5sB2s2x2s").unpack_from
_TCP6: Final = struct.Struct("!8s0s0s0s36sI5sB2s2x2s").unpack_from
_UDP4: Final = struct.Struct("!4sH4sH12s2s").unpack_from
_UDP6: Final = struct.Struct("!8s0s0s0s36s2s").unpack_from
#: Where in that the TCP flags are.
_FLAGS: Final = 7
_Fields: TypeAlias = tuple[Any, ...]

_FIN, _SYN, _RST, _PSH, _URG, _CWR = 1, 2, 4, 8, 0x20, 0x80
#: With these a packet goes alone; with those it ends what it is joined to.
_ALONE: Final = _SYN | _RST | _URG | _CWR
_ENDS: Final = _PSH | _FIN

_HEADER4: Final = 20
_HEADER6: Final = 40
_TCP_HEADER: Final = 20
_DF, _RESERVED = 0x40, 0x80
_UDP_HEADER: Final = 8
#: All have addresses and ports.
_LEAST4: Final = _HEADER4 + _UDP_HEADER
_LEAST6: Final = _HEADER6 + _UDP_HEADER


def join_all(plaintexts: list[bytes]) -> tuple[list[Run], list[bytes]]:
    """Join whole packets, all of one session and one turn, as the TUN takes them.

    Packets of one flow stay in order. Those of different flows may be mixed: each flow has one
    super-packet that grows, and comes where its first packet did.

    Returns the runs, and what else there was in ``plaintexts``, such as keepalives: none of it is
    an IP packet that :func:`ippacket.length` accepts.
    """
    runs: list[Run] = []
    others: list[bytes] = []
    if len(plaintexts) == 1:
        _take_alone(plaintexts[0], runs, others)
        return runs, others
    groups: list[_Growing | bytes] = []
    growing: dict[bytes, _Growing] = {}
    for packet in plaintexts:
        key = _flow(packet)
        group = growing.get(key)
        if group is not None and group.takes(packet):
            continue
        if not key:
            # Whose it is was not looked at: nothing that comes later may overtake it.
            growing.clear()
            groups.append(packet)
            continue
        begun = _begun(packet)
        if begun is not None:
            growing[key] = begun
            groups.append(begun)
        else:
            growing.pop(key, None)
            groups.append(packet)
    for each in groups:
        if isinstance(each, bytes):
            _take_alone(each, runs, others)
        else:
            each.finish(runs)
    return runs, others


def source(run: Run) -> bytes:
    """Return the address that all packets of a run of this module are from, 4 or 16 bytes."""
    packet = run.frame[1]
    return bytes(packet[12:16] if packet[0] < 0x50 else packet[8:24])


def _take_alone(packet: bytes, runs: list[Run], others: list[bytes]) -> None:
    try:
        length = ippacket.length(packet)
    except RemoteProtocolError:
        others.append(packet)
    else:
        runs.append(_alone(packet, length))


def _alone(packet: bytes, length: int) -> Run:
    whole: Buffer = packet if length == len(packet) else memoryview(packet)[:length]
    return Run([VIRTIO_NONE, whole], 1, length)


def _flow(packet: bytes) -> bytes:
    """Return addresses and ports of what may be TCP or UDP without IP options, else nothing."""
    if len(packet) >= _LEAST4:
        first = packet[0]
        if first == 0x45:
            return packet[12:24]
        if first >> 4 == 6 and len(packet) >= _LEAST6:
            return packet[8:44]
    return b""


def _begun(packet: bytes) -> _Growing | None:
    """Return what begins with a packet, of which :func:`_flow` told the flow, if any may follow."""
    found = headers(packet, 0)
    if found is None:
        return None
    ip, end, total, protocol = found
    if not end < total <= len(packet) or not _ip_intact(packet):
        return None
    if protocol == TCP:
        if packet[ip + 13] & (_ALONE | _ENDS):
            return None
        read = _TCP4 if ip == _HEADER4 else _TCP6
        return _Growing(packet, found, read, MOST_PIECES)
    if packet[ip + 4] << 8 | packet[ip + 5] != total - ip:
        return None
    read = _UDP4 if ip == _HEADER4 else _UDP6
    return _Growing(packet, found, read, MOST_UDP_PIECES)


def _ip_intact(packet: bytes) -> bool:
    """Tell whether an IPv4 header without options has its checksum right, and no reserved flag."""
    if packet[0] != 0x45:
        return True
    return not (packet[6] & _RESERVED or int.from_bytes(packet[:_HEADER4], "big") % 0xFFFF)


class _Growing:
    """Packets that are to be one super-packet, by their headers alone."""

    __slots__ = (
        "_expected",
        "_fixed",
        "_found",
        "_least",
        "_options",
        "_packets",
        "_read",
        "_room",
    )

    def __init__(
        self, packet: bytes, found: Headers, read: Callable[[bytes], _Fields], most: int
    ) -> None:
        ip, end, total, protocol = found
        self._packets = [packet]
        self._found = found
        self._read = read
        self._least = ip + (_TCP_HEADER if protocol == TCP else _UDP_HEADER)
        #: How many more there may be.
        self._room = min(most, (MOST_BYTES - end) // (total - end)) - 1
        self._options = packet[ip + _TCP_HEADER : end]
        #: Whether the IPv4 identification stays, instead of counting up.
        self._fixed = False
        self._expected = self._next(read(packet))

    def takes(self, packet: bytes) -> bool:
        """Take a packet of the same flow, if it is what comes next."""
        if self._room <= 0 or len(packet) < self._least:
            return False
        ip, end, total, _ = self._found
        fields = self._read(packet)
        if fields == self._expected:
            if len(packet) < total or packet[ip + _TCP_HEADER : end] != self._options:
                return False
            self._expected = self._next(fields)
            self._room -= 1
        elif self._ends_with(packet, fields):
            self._room = 0
        else:
            if len(self._packets) > 1 or self._fixed or not packet[6] & _DF or ip != _HEADER4:
                return False
            # The second may tell that the identification is always the same.
            self._fixed = True
            self._expected = self._next(self._read(self._packets[0]))
            return self.takes(packet)
        self._packets.append(packet)
        return True

    def _next(self, fields: _Fields) -> _Fields:
        """Return what the packet after one of full length has in its headers."""
        if self._found[3] == TCP:
            same, identification, rest, check, key, sequence, *others = fields
            sequence = (sequence + self._found[2] - self._found[1]) & 0xFFFFFFFF
            others = [sequence, *others]
        else:
            same, identification, rest, check, key, *others = fields
        if rest and not self._fixed:
            if identification == 0xFFFF:
                identification = 0  # which is no change of the sum
            else:
                identification += 1
                check = check - 1 if check else 0xFFFE
        return (same, identification, rest, check, key, *others)

    def _ends_with(self, packet: bytes, fields: _Fields) -> bool:
        """Tell whether a packet is the last: shorter, or with PSH or FIN, and right otherwise."""
        found = headers(packet, 0)
        if found is None:
            return False
        ip, end, total, protocol = found
        if (ip, end, protocol) != (self._found[0], self._found[1], self._found[3]):
            return False
        if not end < total <= min(self._found[2], len(packet)) or not _ip_intact(packet):
            return False
        expected = self._expected
        if protocol == TCP:
            if fields[_FLAGS] & ~_ENDS != expected[_FLAGS]:
                return False
            if fields[5:7] + fields[8:] != expected[5:7] + expected[8:]:
                return False
            if packet[ip + _TCP_HEADER : end] != self._options:
                return False
        elif packet[ip + 4] << 8 | packet[ip + 5] != total - ip:
            return False
        same, other = fields[0], expected[0]
        return bool(
            fields[1:3] == expected[1:3]
            and same[:2] == other[:2]
            and (ip == _HEADER4 or same[2:4] + same[6:] == other[2:4] + other[6:])
        )

    def finish(self, runs: list[Run]) -> None:
        """Add what the packets make: one super-packet, unless some of them are damaged."""
        packets = self._packets
        if len(packets) == 1:
            runs.append(_alone(packets[0], self._found[2]))
            return
        ip, _, total, protocol = self._found
        last = packets[-1]
        last_total = ippacket.length(last)
        right = self._right_sum(total)
        good = [word_sum(packet) % 0xFFFF == right for packet in packets]
        if last_total != total:
            good[-1] = word_sum(last) % 0xFFFF == self._right_sum(last_total)
        if protocol == UDP:
            # None at all (RFC 768): who cuts would make one.
            at = slice(ip + 6, ip + 8)
            good = [g and any(p[at]) for g, p in zip(good, packets, strict=True)]
        begin = 0
        while begin < len(packets):
            stop = begin + 1
            if good[begin]:
                while stop < len(packets) and good[stop]:
                    stop += 1
            part_total = last_total if stop == len(packets) else total
            self._emit(packets[begin:stop], part_total, runs)
            begin = stop

    def _emit(self, packets: list[bytes], last_total: int, runs: list[Run]) -> None:
        if len(packets) == 1:
            runs.append(_alone(packets[0], last_total))
            return
        ip, end, total, protocol = self._found
        head = packets[0][:end]
        if protocol == TCP:
            flags = head[ip + 13] | packets[-1][ip + 13]
            head = head[: ip + 13] + bytes([flags]) + head[ip + 14 :]
        pieces = [packet[end:total] for packet in packets]
        pieces[-1] = packets[-1][end:last_total]
        payload = (len(pieces) - 1) * (total - end) + len(pieces[-1])
        runs.append(run_of(head, self._found, 0, total - end, pieces, payload, True))

    def _right_sum(self, total: int) -> int:
        """Return what the words of a packet of that length add up to, modulo 65,535.

        The IP header adds nothing, or what its first eight bytes do (IPv6). The rest with
        the pseudo-header is 0 (RFC 1071).
        """
        packet = self._packets[0]
        ip, _, _, protocol = self._found
        if ip == _HEADER4:
            outside = -int.from_bytes(packet[12:20], "big")
        else:
            first = bytearray(packet[:8])
            first[4:6] = (total - ip).to_bytes(2, "big")
            outside = int.from_bytes(first, "big")
        return (outside - protocol - (total - ip)) % 0xFFFF
