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
from contextlib import suppress
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
from pyvpn.core.wordsum import word_sums
from pyvpn.errors import RemoteProtocolError

# What is read of a packet, by version and protocol: the IP header up to the IPv4 identification,
# that, the rest, its checksum; addresses and ports; of TCP the sequence number, acknowledgement and
# data offset, flags, window, urgent pointer; of UDP the length. What IPv6 has not is empty.
_TCP4: Final = struct.Struct("!4sH4sH12sI5sB2s2x2s").unpack_from
_TCP6: Final = struct.Struct("!8s0s0s0s36sI5sB2s2x2s").unpack_from
_UDP4: Final = struct.Struct("!4sH4sH12s2s").unpack_from
_UDP6: Final = struct.Struct("!8s0s0s0s36s2s").unpack_from
_READERS4: Final = {TCP: _TCP4, UDP: _UDP4}
_READERS6: Final = {TCP: _TCP6, UDP: _UDP6}
_Fields: TypeAlias = tuple[Any, ...]
#: Where in that.
_SAME, _IDENTIFICATION, _CHECK = 0, 1, 3
_SEQUENCE, _FLAGS = 5, 7
_LENGTH = 5

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

    Packets of one flow stay in order. Those of different flows may be mixed.

    Microseconds a packet of 1,420 bytes, of 44 (Python 3.11): 2.4, of which its sum takes 1.4.

    Returns the runs, and what else there was in ``plaintexts``, such as keepalives: none of it is
    an IP packet that :func:`ippacket.length` accepts.
    """
    runs: list[Run] = []
    others: list[bytes] = []
    if len(plaintexts) == 1:
        _take_alone(plaintexts[0], runs, others)
        return runs, others
    flows: dict[bytes, list[bytes]] = {}
    for packet in plaintexts:
        size = len(packet)
        first = packet[0] if size >= _LEAST4 else 0
        if first == 0x45:
            flow = packet[12:24]
        elif first >> 4 == 6 and size >= _LEAST6:
            flow = packet[8:44]
        else:
            # Whose it is was not looked at: nothing that comes later may overtake it.
            for packets in flows.values():
                _join_flow(packets, runs, others)
            flows.clear()
            _take_alone(packet, runs, others)
            continue
        if flow in flows:
            flows[flow].append(packet)
        else:
            flows[flow] = [packet]
    for packets in flows.values():
        _join_flow(packets, runs, others)
    return runs, others


def leave_all(plaintexts: list[bytes]) -> tuple[list[Run], list[bytes]]:
    """Return the same of each packet by itself."""
    runs: list[Run] = []
    others: list[bytes] = []
    for packet in plaintexts:
        _take_alone(packet, runs, others)
    return runs, others


def source(run: Run) -> bytes:
    """Return the address that all packets of a run of this module are from, 4 or 16 bytes."""
    return ippacket.source(bytes(run.frame[1][:_HEADER6]))


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


def _join_flow(packets: list[bytes], runs: list[Run], others: list[bytes]) -> None:
    """Add what packets of the same addresses and ports make, in their order."""
    first = packets[0]
    read = _READERS4.get(first[9]) if first[0] == 0x45 else _READERS6.get(first[6])
    fields: list[_Fields] = []
    if read is not None and len(packets) > 1:
        with suppress(struct.error):  # of TCP that is cut off
            fields = list(map(read, packets))
    if not fields:
        for packet in packets:
            _take_alone(packet, runs, others)
        return
    place, last = 0, len(packets) - 1
    while place <= last:
        packet = packets[place]
        group = None
        if place < last and _may_follow(packets, fields, place):
            group = _begun(packet, fields[place])
        place += 1
        if group is None:
            _take_alone(packet, runs, others)
            continue
        if group.takes(packets[place], fields[place]):
            place += 1
            if place < last:
                place += group.takes_alike(packets, fields, place)
            while place <= last and group.takes(packets[place], fields[place]):
                place += 1
        group.finish(runs)


def _may_follow(packets: list[bytes], fields: list[_Fields], place: int) -> bool:
    """Tell whether it is worth a try to join what comes after ``packets[place]`` to it."""
    length = len(packets[place])
    if len(packets[place + 1]) > length:
        return False
    if len(fields[place]) <= _FLAGS:
        return bool(fields[place + 1][_LENGTH] <= fields[place][_LENGTH])
    distance = (fields[place + 1][_SEQUENCE] - fields[place][_SEQUENCE]) & 0xFFFFFFFF
    return bool(0 < distance < length)


def _begun(packet: bytes, fields: _Fields) -> _Growing | None:
    """Return what begins with a packet, if others may follow in its super-packet."""
    found = headers(packet, 0)
    if found is None:
        return None
    ip, end, total, protocol = found
    # What reads the flow was chosen by its first packet.
    if (protocol == TCP) != (len(fields) > _FLAGS):
        return None
    if not end < total <= len(packet) or not _ip_intact(packet):
        return None
    if protocol == UDP:
        if packet[ip + 4] << 8 | packet[ip + 5] != total - ip:
            return None
    elif fields[_FLAGS] & (_ALONE | _ENDS):
        return None
    return _Growing(packet, found, fields)


def _ip_intact(packet: bytes) -> bool:
    """Tell whether an IPv4 header without options has its checksum right, and no reserved flag."""
    if packet[0] != 0x45:
        return True
    return not (packet[6] & _RESERVED or int.from_bytes(packet[:_HEADER4], "big") % 0xFFFF)


class _Growing:
    """Packets that are to be one super-packet, as far as their headers tell."""

    __slots__ = ("_expected", "_found", "_options", "_packets", "_room", "_steps")

    def __init__(self, packet: bytes, found: Headers, fields: _Fields) -> None:
        ip, end, total, protocol = found
        size = total - end
        most = MOST_PIECES if protocol == TCP else MOST_UDP_PIECES
        self._packets = [packet]
        self._found = found
        self._options = packet[ip + _TCP_HEADER : end]
        #: How many more there may be.
        self._room = min(most, (MOST_BYTES - end) // size) - 1
        #: What each field grows by from packet to packet.
        self._steps = [0] * len(fields)
        if ip == _HEADER4:
            self._steps[_IDENTIFICATION], self._steps[_CHECK] = 1, -1
        if protocol == TCP:
            self._steps[_SEQUENCE] = size
        self._expected = self._after(fields)

    def _after(self, fields: _Fields) -> _Fields:
        """Return what the packet behind one of full length has in its headers."""
        following = list(fields)
        if self._steps[_IDENTIFICATION]:
            identification, check = fields[_IDENTIFICATION], fields[_CHECK]
            if identification == 0xFFFF:
                following[_IDENTIFICATION] = 0  # the same in a checksum
            else:
                following[_IDENTIFICATION] = identification + 1
                following[_CHECK] = check - 1 if check else 0xFFFE
        if len(fields) > _FLAGS:
            following[_SEQUENCE] = (fields[_SEQUENCE] + self._steps[_SEQUENCE]) & 0xFFFFFFFF
        return tuple(following)

    def takes(self, packet: bytes, fields: _Fields) -> bool:
        """Take a packet of the same addresses and ports, if it is what comes next."""
        ip, end, total, _ = self._found
        if self._room <= 0 or packet[ip + _TCP_HEADER : end] != self._options:
            return False
        if len(self._packets) == 1:
            self._learn(fields)
        if fields == self._expected and len(packet) >= total:
            self._expected = self._after(fields)
            self._room -= 1
        elif self._ends_with(packet, fields):
            self._room = 0
        else:
            return False
        self._packets.append(packet)
        return True

    def _learn(self, second: _Fields) -> None:
        """Learn from the second packet whether the IPv4 identification is always the same."""
        first = self._packets[0]
        if self._steps[_IDENTIFICATION] and first[6] & _DF:
            identification = first[4] << 8 | first[5]
            if second[_IDENTIFICATION] == identification:
                self._steps[_IDENTIFICATION] = self._steps[_CHECK] = 0
                check = first[10] << 8 | first[11]
                same, _, rest, _, *others = self._expected
                self._expected = (same, identification, rest, check, *others)

    def takes_alike(self, packets: list[bytes], fields: list[_Fields], start: int) -> int:
        """Take packets from ``start`` on that are of full length, or none; return how many.

        Column by column: 0.4 µs each, where :meth:`takes` takes 1.
        """
        ip, end, total, _ = self._found
        columns = list(zip(*fields[start : start + self._room], strict=True))
        if not columns:
            return 0
        expected, steps = self._expected, self._steps
        count = _leading(columns[_SAME], expected[_SAME])
        if len(columns) > _FLAGS:
            count = min(count, _leading(columns[_FLAGS], expected[_FLAGS]))
        if count < 2:
            return 0
        stop = start + count
        for column, value, step in zip(columns, expected, steps, strict=True):
            if step:
                if column[:count] != tuple(range(value, value + step * count, step)):
                    return 0
            elif column[:count].count(value) != count:
                return 0
        taken = packets[start:stop]
        if min(map(len, taken)) < total:
            return 0
        if self._options:
            at = slice(ip + _TCP_HEADER, end)
            if [packet[at] for packet in taken].count(self._options) != count:
                return 0
        self._packets += taken
        self._room -= count
        self._expected = self._after(fields[stop - 1])
        return count

    def _ends_with(self, packet: bytes, fields: _Fields) -> bool:
        """Tell whether a packet is the last: shorter, or with PSH or FIN, and else as expected."""
        found = headers(packet, 0)
        if found is None:
            return False
        ip, end, total, protocol = found
        expected = list(self._expected)
        if not end < total <= min(self._found[2], len(packet)) or not _ip_intact(packet):
            return False
        # What the length changes, and is right in itself.
        if ip == _HEADER4:
            expected[_SAME] = expected[_SAME][:2] + packet[2:4]
            expected[_CHECK] = fields[_CHECK]
        else:
            expected[_SAME] = expected[_SAME][:4] + packet[4:6] + expected[_SAME][6:]
        if protocol == TCP:
            expected[_FLAGS] |= fields[_FLAGS] & _ENDS
        else:
            expected[_LENGTH] = (total - ip).to_bytes(2, "big")
        return fields == tuple(expected)

    def finish(self, runs: list[Run]) -> None:
        """Add what the packets make: one super-packet, unless some of them are damaged."""
        packets = self._packets
        ip, _, total, protocol = self._found
        count = len(packets)
        if count == 1:
            runs.append(_alone(packets[0], total))
            return
        last = ippacket.length(packets[-1])
        right = [self._right_sum(total)] * count
        if last != total:
            right[-1] = self._right_sum(last)
        sums = [number % 0xFFFF for number in word_sums(packets)]
        at = slice(ip + 6, ip + 8)
        # A UDP checksum of 0 is none (RFC 768), and who cuts would make one.
        none = protocol == UDP and b"\0\0" in [packet[at] for packet in packets]
        if sums == right and not none:
            runs.append(self._super_packet(packets, last))
            return
        place = 0
        while place < count:
            begin = place
            while (
                place < count
                and sums[place] == right[place]
                and not (none and not any(packets[place][at]))
            ):
                place += 1
            if begin < place:
                runs.append(
                    self._super_packet(packets[begin:place], last if place == count else total)
                )
            if place < count:
                runs.append(_alone(packets[place], last if place == count - 1 else total))
                place += 1

    def _right_sum(self, total: int) -> int:
        """Return what the words of a packet of that length add up to, modulo 65,535.

        An IPv4 header adds nothing (RFC 1071), nor do pseudo-header and segment together.
        """
        packet = self._packets[0]
        ip, _, _, protocol = self._found
        if ip == _HEADER4:
            extra = -int.from_bytes(packet[12:20], "big")
        else:
            extra = int.from_bytes(packet[:4] + packet[6:8], "big") + total - ip
        return (extra - protocol - (total - ip)) % 0xFFFF

    def _super_packet(self, packets: list[bytes], last: int) -> Run:
        """Return intact packets as one, the last of them ``last`` bytes long."""
        if len(packets) == 1:
            return _alone(packets[0], last)
        ip, end, total, protocol = self._found
        head = packets[0][:end]
        if protocol == TCP:
            flags = head[ip + 13] | packets[-1][ip + 13]
            head = head[: ip + 13] + bytes((flags,)) + head[ip + 14 :]
        pieces = [packet[end:total] for packet in packets]
        pieces[-1] = pieces[-1][: last - end]
        payload = (len(pieces) - 1) * (total - end) + last - end
        return run_of(head, self._found, 0, total - end, pieces, payload, True)


def _leading(column: _Fields, value: object) -> int:
    """Return how many at the beginning are equal to ``value``."""
    if column.count(value) == len(column):
        return len(column)
    return next(place for place, each in enumerate(column) if each != value)
