"""A client's TUN as a link: its addresses, and how long the packets on it may be."""

from __future__ import annotations

from ipaddress import IPv4Interface

from pyvpn.core.configtlv import Config
from pyvpn.core.segments import PREFIX_SIZE
from pyvpn.core.transport import datagrams_a_send
from pyvpn.linux.desired import Address, Link
from pyvpn.service.clientnetwork import Wishes

#: What Linux takes off the bound of super-packets for headers (net/tcp.h, MAX_TCP_HEADER; and 1),
#: and that bound at most.
_TCP_HEADROOM = 321
LARGEST_GSO_SIZE = 65_536


def link_of(
    told: Config, wishes: Wishes, tun: str, path: int, *, ipv6: bool
) -> tuple[Link, list[str]]:
    """The TUN with what the hub says of its addresses, under the options given.

    :param path: bytes that reach the hub whole.
    :returns: the link, and lines about what cannot be as it was asked for.
    """
    notes: list[str] = []
    addresses: dict[Address, None] = {}
    for interface in told.addresses:
        if interface.version == 6 and not ipv6:
            continue
        if isinstance(interface, IPv4Interface) and wishes.netmask is not None:
            interface = IPv4Interface((interface.ip, wishes.netmask))
        peer = wishes.peer
        if peer is not None and peer.version == interface.version:
            if peer in interface.network:
                addresses[Address(str(interface), str(peer))] = None
                continue
            notes.append(
                f"--tun-dstaddr {peer} is not in the hub's network {interface.network};"
                " going without it"
            )
        addresses[Address(str(interface))] = None
    # Never less than 1280 with IPv6: the kernel would take the interface's addresses away.
    mtu = min(size for size in (told.mtu, wishes.mtu, path) if size is not None)
    return Link(tun, mtu, tuple(addresses), gso_max_size(mtu)), notes


def gso_max_size(mtu: int) -> int:
    """Return the bound for our own kernel's super-packets with which each of TCP is one send.

    44 pieces with 1,436 bytes of MTU, in place of 47 in two sends: 5 to 8 % less processor time.
    By bytes, not by segments, which would end UDP super-packets of many small ones. And not on a
    hub: there super-packets come through that others have made, and the kernel cuts longer ones
    into single packets.
    """
    # Below one piece more, even of the shortest: IPv6 and TCP with time stamps.
    size = (datagrams_a_send(mtu + PREFIX_SIZE) + 1) * (mtu - 72) - 1 + _TCP_HEADROOM
    return min(size, LARGEST_GSO_SIZE)
