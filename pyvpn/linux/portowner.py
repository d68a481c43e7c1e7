"""Which program listens on a port, for the line that says why we cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_LISTEN = "0A"  # TCP_LISTEN; a UDP socket that is bound has 07
_BOUND = "07"


def port_owner(address: str, port: int, proc: str = "/proc") -> str | None:
    """Name the program (as ``dnsmasq, pid 712``) that keeps others off a port of an address.

    That is one bound to the address, or to all. None if there is none, or it does not show: only
    root sees the sockets of others, and nobody those of another PID namespace.
    """
    wanted = set(_bound(ip_address(address), port, Path(proc, "net")))
    if not wanted:
        return None
    for directory in sorted(Path(proc).glob("[0-9]*")):
        if not wanted.isdisjoint(_open_files(directory)):
            try:
                return f"{(directory / 'comm').read_text().strip()}, pid {directory.name}"
            except OSError:
                continue  # it has ended
    return None


def _open_files(process: Path) -> Iterator[str]:
    try:
        links = list((process / "fd").iterdir())
    except OSError:
        return  # it has ended, or is somebody else's
    for link in links:
        # Files are closed meanwhile: in our own process, the directory that was just listed.
        with suppress(OSError):
            yield str(link.readlink())


def _bound(address: IPv4Address | IPv6Address, port: int, net: Path) -> Iterator[str]:
    for table, state in (("udp", _BOUND), ("udp6", _BOUND), ("tcp", _LISTEN), ("tcp6", _LISTEN)):
        try:
            lines = (net / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            local, _, number = fields[1].partition(":")
            if int(number, 16) == port and fields[3] == state and _covers(local, address):
                yield f"socket:[{fields[9]}]"


def _covers(local: str, address: IPv4Address | IPv6Address) -> bool:
    """Tell whether a socket of local address ``local`` takes what is for ``address``.

    Written as words of 32 bits in the order of this machine: 0100007F is 127.0.0.1.
    """
    words = [bytes.fromhex(local[start : start + 8]) for start in range(0, len(local), 8)]
    own = ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))
    if own.is_unspecified:
        return True  # "::" mostly takes IPv4 too
    mapped = own.ipv4_mapped if isinstance(own, IPv6Address) else None
    return address in (own, mapped)
