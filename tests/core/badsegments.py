"""Segment frames that a hub or a client must not take: rows for ``test_bad_messages.py``.

Each rule of PROTOCOL 5 and each bound from both sides; ``good`` has the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address

from attrs import evolve

from pyvpn.testing.simulation import NETWORK4, NETWORK6
from tests.core.badrows import Case, Make, Row, changed
from tests.core.badtransport import NOBODY, inside
from tests.core.segmentmodel import ACK, FIN, PSH, RST, SYN, TCP, UDP, URG, Flow, segment_frame

HUB = {4: NETWORK4[1], 6: NETWORK6[1]}
MALFORMED, NOT_ALLOWED = "segment_malformed", "inner_source_not_allowed"
FLOWS = [(version, protocol) for version in (4, 6) for protocol in (TCP, UDP)]

Change = Callable[[bytes], bytes]


def flow_of(case: Case, version: int, protocol: int) -> Flow:
    """A flow to the node from the other end."""
    lease = case.client.lease
    address = lease.ipv4 if version == 4 else lease.ipv6
    assert address is not None
    ends = (address, HUB[version]) if case.for_hub else (HUB[version], address)
    return Flow(*ends, protocol)


def piece(
    version: int = 4,
    protocol: int = TCP,
    *,
    index: int = 1,
    size: int = 100,
    total: int = 300,
    there: int | None = None,
    change: Change = bytes,
    after: Change = bytes,
    **changes: object,
) -> Make:
    """One segment frame of a super-packet with ``total`` bytes of payload.

    ``there`` bytes of the piece are there; ``change`` is done to the headers, ``after`` to the
    whole.
    """
    if there is None:
        there = max(min(size, total - index * size), 0)

    def make(case: Case) -> bytes:
        flow = evolve(flow_of(case, version, protocol), **changes)  # type: ignore[misc]
        head = change(flow.packet(bytes(total))[: flow.size])
        return after(segment_frame(index, size, head + bytes(there)))

    return inside(make)


def cut(size: int) -> Change:
    return lambda data: data[:size]


def byte(place: int, value: int) -> Change:
    return lambda data: changed(data, place, value)


def u16(place: int, value: int) -> Change:
    return lambda data: data[:place] + value.to_bytes(2, "big") + data[place + 2 :]


def _malformed() -> Iterator[tuple[str, Make]]:
    for first in (0x10, 0x12, 0x14, 0x15, 0x16, 0x1F):
        yield f"first byte {first:#x}", piece(after=byte(0, first))
    for version, protocol in FLOWS:
        yield from _lengths(version, protocol)
        yield from _indices(version, protocol)
        yield from _transports(version, protocol)
    for protocol in (TCP, UDP):
        yield from _ipv4(protocol)
        yield from _ipv6(protocol)
    yield from _tcp()


def _lengths(version: int, protocol: int) -> Iterator[tuple[str, Make]]:
    which = f"IPv{version}, protocol {protocol}:"
    ip = 20 if version == 4 else 40
    headers = ip + (20 if protocol == TCP else 8)
    for left in (1, 2, 3, 4, 5, 4 + ip - 1, 4 + ip, 4 + ip + 7, 4 + headers - 1, 4 + headers):
        yield f"{which} cut to {left}", piece(version, protocol, after=cut(left))
    for there in (1, 99, 101, 116, 1400):
        yield f"{which} a piece of {there}", piece(version, protocol, there=there)
    # The last one has 50 bytes, and up to 15 more of padding, but no more than a full piece.
    for there in (0, 1, 49, 66, 100, 101):
        yield (
            f"{which} a last piece of {there}",
            piece(version, protocol, index=2, total=250, there=there),
        )
    yield (
        f"{which} a last piece padded beyond a full one",
        piece(version, protocol, index=2, total=295, there=101),
    )
    yield f"{which} without payload", piece(version, protocol, index=0, total=0)
    longest = 65_536 - headers
    yield (
        f"{which} headers and piece of 65,536 bytes",
        piece(version, protocol, index=0, size=longest, total=10),
    )
    yield f"{which} pieces of 65,535 bytes", piece(version, protocol, index=0, size=65_535, total=9)


def _indices(version: int, protocol: int) -> Iterator[tuple[str, Make]]:
    which = f"IPv{version}, protocol {protocol}:"
    for index in (3, 4, 128, 255):
        yield f"{which} index {index} of 3", piece(version, protocol, index=index, there=100)
    most = 256 if protocol == TCP else 64
    for index in (0, 1, most - 1, most % 256):
        yield (
            f"{which} index {index} of {most + 1}",
            piece(version, protocol, index=index, size=9, total=most * 9 + 1, there=9),
        )
    for index in (0, 255):
        yield (
            f"{which} index {index} of 60,000",
            piece(version, protocol, index=index, size=1, total=60_000, there=1),
        )
    for index in (1, 255):
        yield (
            f"{which} gso_size 0 with index {index}",
            piece(version, protocol, index=index, size=0, there=300),
        )
    for there in (0, 299):
        yield (
            f"{which} unfinished, {there} of 300 bytes",
            piece(version, protocol, index=0, size=0, there=there),
        )


def _transports(version: int, protocol: int) -> Iterator[tuple[str, Make]]:
    which = f"IPv{version}, protocol {protocol}"
    place = 9 if version == 4 else 6
    for index, size in ((1, 100), (0, 0)):
        for other in (0, 1, 43, 44, 50, 51, 58, 59, 60, 132, 136, 253, 255):
            make = piece(
                version,
                protocol,
                index=index,
                size=size,
                there=size or 300,
                change=byte(place, other),
            )
            yield f"{which} says {other}, gso_size {size}", make
        for first in (0x00, 0x05, 0x15, 0x40, 0x44, 0x50, 0x55, 0x5F, 0x70, 0xF5):
            change = byte(0, first)
            make = piece(
                version, protocol, index=index, size=size, there=size or 300, change=change
            )
            yield f"{which}, first byte of IP {first:#x}, gso_size {size}", make


def _ipv4(protocol: int) -> Iterator[tuple[str, Make]]:
    headers = 40 if protocol == TCP else 28
    for index, size in ((1, 100), (0, 0)):
        which = f"IPv4, protocol {protocol}, gso_size {size}:"
        changes = {f"IHL {words}": byte(0, 0x40 | words) for words in range(5)}
        changes |= {
            "IHL beyond what is there": byte(0, 0x4F),
            "more fragments": byte(6, 0x20),
            "more fragments, and DF": byte(6, 0x60),
            "fragment offset 8": byte(7, 1),
            "fragment offset 2,048": byte(6, 1),
            "fragment offset 32,768": byte(6, 0x10),
        }
        changes |= {f"length {n}": u16(2, n) for n in (0, 19, 20, headers - 1)}
        if not size:
            changes["length 65,535"] = u16(2, 65_535)
        for fault, change in changes.items():
            there = 0 if fault.startswith("IHL beyond") else size or 300
            make = piece(4, protocol, index=index, size=size, there=there, change=change)
            yield f"{which} {fault}", make


def _ipv6(protocol: int) -> Iterator[tuple[str, Make]]:
    least = 20 if protocol == TCP else 8
    for length in (0, least - 1):
        for index, size in ((1, 100), (0, 0)):
            make = piece(6, protocol, index=index, size=size, there=100, change=u16(4, length))
            yield f"IPv6, protocol {protocol}, length {length}, gso_size {size}", make
    make = piece(6, protocol, index=0, size=0, change=u16(4, 65_535))
    yield f"IPv6, protocol {protocol}, unfinished, length 65,535", make


def _tcp() -> Iterator[tuple[str, Make]]:
    for version, ip in ((4, 20), (6, 40)):
        for words in range(5):
            change = byte(ip + 12, words << 4)
            yield f"IPv{version}, data offset {words}", piece(version, change=change)
        yield (
            f"IPv{version}, data offset past the end of the packet",
            piece(version, index=0, total=20, there=60, change=byte(ip + 12, 0xF0)),
        )
        for flags in (SYN, ACK | SYN, RST, ACK | RST, ACK | URG, 0xFF):
            for index in (0, 1, 2):
                yield (
                    f"IPv{version}, flags {flags:#x} with index {index} of 3",
                    piece(version, index=index, flags=flags),
                )
            for index in (0, 1):
                yield (
                    f"IPv{version}, flags {flags:#x} with index {index} of 2",
                    piece(version, index=index, flags=flags, total=101),
                )


def rows() -> Iterator[Row]:
    """Segment frames that break a rule."""
    for fault, make in _malformed():
        yield Row(f"segment frame, {fault}", make, MALFORMED)


def sources(*others: object) -> Iterator[Row]:
    """Segment frames from addresses that are not the sender's."""
    for source in (*map(str, others), *NOBODY):
        address = ip_address(source)
        for protocol in (TCP, UDP):
            for index, size in ((0, 100), (2, 100), (0, 0)):
                there = size or 300
                make = piece(
                    address.version, protocol, index=index, size=size, there=there, source=address
                )
                yield Row(f"segment frame {index} from {source}", make, NOT_ALLOWED)


def good() -> Iterator[tuple[str, Make, int]]:
    """The controls: the last values that are allowed, and how many bytes of payload they bring."""
    for version, protocol in FLOWS:
        which = f"IPv{version}, protocol {protocol}:"
        headers = (20 if version == 4 else 40) + (20 if protocol == TCP else 8)
        most = 256 if protocol == TCP else 64
        for index in (0, 1, 2):
            yield f"{which} piece {index}", piece(version, protocol, index=index), 100
        yield (
            f"{which} the last of {most}",
            piece(version, protocol, index=most - 1, size=9, total=most * 9),
            9,
        )
        for there in (50, 51, 65):
            make = piece(version, protocol, index=2, total=250, there=there)
            yield f"{which} a last piece of {there}", make, 50
        for there in (95, 100):
            make = piece(version, protocol, index=2, total=295, there=there)
            yield f"{which} a last piece of 95 padded to {there}", make, 95
        make = piece(version, protocol, index=0, size=65_535 - headers, total=10)
        yield f"{which} headers and piece of 65,535 bytes", make, 10
        for there in (300, 301, 315, 1300):
            make = piece(version, protocol, index=0, size=0, there=there)
            yield f"{which} unfinished, {there} of 300 bytes", make, 300
        make = piece(version, protocol, index=0, size=0, total=0)
        yield f"{which} unfinished, without payload", make, 0
    for flags in (SYN, ACK | RST, ACK | URG):
        make = piece(index=0, size=100, total=100, flags=flags)
        yield f"flags {flags:#x} with index 0 of 1", make, 100
        yield f"flags {flags:#x}, unfinished", piece(index=0, size=0, there=300, flags=flags), 300
    yield "flags", piece(index=2, flags=ACK | PSH | FIN), 100
    yield "the IPv4 bit that is reserved", piece(change=byte(6, 0xC0)), 100
    yield "IPv4 options", piece(ip_options=bytes(40), tcp_options=bytes(40)), 100
