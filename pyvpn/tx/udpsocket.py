"""Opening the UDP socket: one for both families, with a clear word when that fails."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any, NamedTuple

from attrs import frozen
from twisted.logger import Logger

from pyvpn.errors import StartError
from pyvpn.tx.endpoint import V4_MAPPED, SocketAddress

# 8 MiB absorb what arrives while Python is busy elsewhere (FACTS 2.6); without privilege the
# kernel gives less (net.core.rmem_max) and that is fine too.
SOCKET_BUFFER_BYTES = 8 << 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SO_MARK = 36

# Python 3.11's socket module lacks this one.
IP_PKTINFO = 8

# Level and type of the control message that holds our own address, by family. An AF_INET6 socket
# uses its own kind for IPv4 too, in both directions.
PKTINFO = {
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO),
    socket.AF_INET: (socket.IPPROTO_IP, IP_PKTINFO),
}

# linux/udp.h, at level SOL_UDP: one send of many datagrams (kernel 4.18), one read of them (5.0).
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104

# linux/in.h and in6.h. PROBE: DF on all we send, and the path MTU is what the core has found out,
# not what the kernel takes from ICMP.
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_DONT, PMTUDISC_PROBE, PMTUDISC_OMIT = 0, 3, 5

# To lift DF, the best first. IPv4: OMIT (kernel 3.13) leaves cutting to our interface and to the
# routers, whatever ICMP has told. IPv6 routers never cut, so we have to, at what the kernel has
# learnt from Packet Too Big: DONT. (OMIT would not cut what our interface carries, whatever
# IPV6_MTU says: ip6_finish_output looks at the device alone.)
LIFTED = {
    socket.IPPROTO_IP: (PMTUDISC_OMIT, PMTUDISC_DONT),
    socket.IPPROTO_IPV6: (PMTUDISC_DONT,),
}

NO_IPV6 = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)

_log = Logger()


class PathOption(NamedTuple):
    """A socket option that decides whether datagrams may be fragmented.

    :ivar whole: its value while they may not be, which is nearly always.
    :ivar cut: its value while they may be.
    """

    level: int
    option: int
    whole: int
    cut: int


@frozen
class BoundSocket:
    """A bound, non-blocking UDP socket and what the kernel can do with it.

    :ivar family: AF_INET only where there is no IPv6.
    :ivar gso: UDP_SEGMENT is known.
    :ivar gro: UDP_GRO is on: a read may bring many datagrams.
    :ivar df: all datagrams leave with DF, IPv6 ones unfragmented, while ``path_options`` are at
        their value for that, as they are now.
    """

    socket: Any
    family: socket.AddressFamily
    gso: bool
    gro: bool
    df: bool
    path_options: tuple[PathOption, ...]


def open_udp_socket(
    system: Any, interface: str, port: int, pktinfo: bool, mark: int = 0
) -> BoundSocket:
    """Open it; what the kernel does not know is said in the log and done without.

    :param system: ``socket(family, type)`` as in :mod:`socket`.
    :param interface: the one local address, numeric; "" for all.
    :param pktinfo: deliver with each datagram the address it was sent to.
    :param mark: of all that leaves, 0 for none.
    :raises StartError: the port is in use, not allowed, or the address is not ours.
    """
    where = f"UDP port {port}" + (f" on {interface}" if interface else "")
    sock = None
    try:
        sock, family = _new_socket(system)
        sock.setblocking(False)
        _set_options(sock, family, pktinfo)
        if mark:
            mark_socket(sock, mark)
        sock.bind(socket_address(interface or _any(family), port, family))
        # Asked by setsockopt: before 4.18 a send ignored the control message, and all the datagrams
        # would have left as one.
        gso = _set(sock, SOL_UDP, UDP_SEGMENT, 0)
        gro = _set(sock, SOL_UDP, UDP_GRO, 1)
        df, path_options = _forbid_fragments(sock, family)
    except (OSError, ValueError) as error:
        if sock is not None:
            sock.close()
        raise StartError(_problem(error, where, interface)) from error
    missing = {"UDP_SEGMENT": gso, "UDP_GRO": gro, "IP_MTU_DISCOVER": df}
    for name, known in missing.items():
        if not known:
            _log.warn(
                "{where}: this kernel refuses {name}; going on without", where=where, name=name
            )
    return BoundSocket(sock, family, gso, gro, df, path_options)


def mark_socket(sock: Any, mark: int) -> None:
    """Set SO_MARK, 32 bits; OSError without privilege."""
    # setsockopt takes a signed int; the kernel keeps the same 32 bits.
    sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark - (mark >> 31 << 32))


def _any(family: socket.AddressFamily) -> str:
    return "::" if family == socket.AF_INET6 else "0.0.0.0"


def _new_socket(system: Any) -> tuple[Any, socket.AddressFamily]:
    try:
        return system.socket(socket.AF_INET6, socket.SOCK_DGRAM), socket.AF_INET6
    except OSError as error:
        if error.errno not in NO_IPV6:
            raise
    _log.warn("this kernel has no IPv6: listening for IPv4 only")
    return system.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.AF_INET


def _set_options(sock: Any, family: socket.AddressFamily, pktinfo: bool) -> None:
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if pktinfo and family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    elif pktinfo:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER_BYTES)


def _set(sock: Any, level: int, option: int, value: int) -> bool:
    """Set an option that can be done without; whether it is set."""
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _forbid_fragments(sock: Any, family: int) -> tuple[bool, tuple[PathOption, ...]]:
    """Set DF; whether that worked for every family, and what lifts it.

    An AF_INET6 socket keeps both options apart: that of IPv4 rules over its mapped addresses.
    """
    discover = [(socket.IPPROTO_IP, IP_MTU_DISCOVER)]
    if family == socket.AF_INET6:
        discover.append((socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER))
    options: list[PathOption] = []
    for level, option in discover:
        cut = next((value for value in LIFTED[level] if _set(sock, level, option, value)), None)
        if _set(sock, level, option, PMTUDISC_PROBE) and cut is not None:
            options.append(PathOption(level, option, PMTUDISC_PROBE, cut))
    return len(options) == len(discover), tuple(options)


def _problem(error: OSError | ValueError, where: str, interface: str) -> str:
    if isinstance(error, ValueError):
        return f"{where} cannot be opened: {error}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program; choose another with --port, or stop it"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{interface} is not an address of this machine; 'ip address' lists them"
    if error.errno == errno.EACCES:
        return f"{where} needs privilege to open; use a port above 1023 or start as root"
    return f"{where} cannot be opened: {error.strerror}"


def socket_address(host: str, port: int, family: int) -> SocketAddress:
    """The socket address of a numeric address, written as ``recvmsg`` of that family writes it.

    So an endpoint made from text equals the one of the answer.

    :param host: IPv4 or IPv6 text; link-local IPv6 with ``%interface`` or ``%index``.
    :raises ValueError: not a numeric address, or IPv6 for an IPv4-only socket.
    """
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if family == socket.AF_INET:
        if address.version == 6:
            raise ValueError(f"{host} is an IPv6 address, and this kernel has no IPv6")
        return (str(address), port)
    scope = 0
    if isinstance(address, ipaddress.IPv4Address):
        packed = V4_MAPPED + address.packed
    else:
        packed = address.packed
        if address.scope_id:
            scope = _scope_index(address.scope_id)
    return (socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope)


def _scope_index(scope: str) -> int:
    """The interface index of a scope, which is that number or a name."""
    if scope.isdigit():
        return int(scope)
    try:
        return socket.if_nametoindex(scope)
    except OSError:
        raise ValueError(f"there is no interface {scope}") from None
