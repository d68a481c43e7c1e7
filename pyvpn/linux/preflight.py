"""Read-only checks of this machine, made before anything starts or forks.

Each returns None when all is well and raises with one line for a person otherwise.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

from pyvpn.errors import ConfigError, StartError
from pyvpn.linux.inuse import NetworksInUse
from pyvpn.linux.system import LinuxSystem, System
from pyvpn.linux.tun import DEVICE_NODE, explain_tun_error

Network = IPv4Network | IPv6Network

_CAP_NET_ADMIN = 12  # linux/capability.h


def tun_available(node: str = DEVICE_NODE) -> None:
    """The kernel offers TUN devices, and we may open the node.

    :raises StartError: it does not; says what helps.
    """
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise StartError(explain_tun_error("", error, node)) from error


def privileged(proc: str = "/proc") -> None:
    """We may change interfaces and sysctls of this network namespace.

    :raises StartError: we may not.
    """
    try:
        with open(os.path.join(proc, "self/status"), encoding="ascii", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError as error:
        raise StartError(f"cannot read {proc}/self/status: {error.strerror}") from error
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    if not int(effective, 16) & 1 << _CAP_NET_ADMIN:
        raise StartError(
            "no privilege to set up interfaces (CAP_NET_ADMIN); start as root, with sudo"
        )


def tun_name_free(name: str) -> None:
    """No interface has the name that our TUN shall have.

    :raises StartError: one has.
    """
    try:
        socket.if_nametoindex(name)
    except OSError:
        return
    raise StartError(explain_tun_error(name, OSError(errno.EBUSY, "")))


def subnet_free(
    networks: Iterable[Network],
    system: System | None = None,
    *,
    ours: str | None = None,
    remedy: str | None = None,
    routed: bool = True,
) -> None:
    """The VPN's networks are not in use on this machine.

    :param ours: an interface that does not count, since it is the VPN's own.
    :param remedy: the end of the error's line, in place of what helps a hub.
    :param routed: whether routes count, as for a hub, whose own are in the main table. A client's
        come before that, and whoever runs the local network could keep it out by naming routes.

    In use is a network that shares addresses with one of an interface, or that holds the
    destination of a route, which as the narrower one would draw the VPN's packets away. A wider
    route, up to the default route, is none of our business: ours is the narrower one then.

    :raises ConfigError: one is; names the interface or route.
    :raises StartError: ``ip`` cannot tell.
    """
    in_use = NetworksInUse.read(LinuxSystem() if system is None else system, ours)
    for network in networks:
        problem = in_use.taken(network) if routed else in_use.connected(network)
        if problem is not None:
            raise ConfigError(f"{problem}; {remedy or _another(network)}")


def udp_port_free(port: int, interface: str | None = None) -> None:
    """We can bind this UDP port.

    :param port: 0 for any.
    :param interface: the local address to bind to, None for all.
    :raises StartError: it is in use, or not allowed.
    :raises ConfigError: ``interface`` is no address of this machine.
    """
    # The same kind of socket as the service opens: one for both families, where there is IPv6.
    address = "" if interface is None else interface
    version = ip_address(address).version if address else (6 if ipv6_available() else 4)
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if address else 0)
            probe.bind((address, port))
    except OSError as error:
        raise _port_error(error, port, address) from error


def ipv6_available(proc: str = "/proc") -> bool:
    """Can a new interface have IPv6 addresses here? Without, the VPN goes on with IPv4 alone."""
    for name in ("all", "default"):
        try:
            path = os.path.join(proc, "sys/net/ipv6/conf", name, "disable_ipv6")
            with open(path, encoding="ascii") as stream:
                if stream.read().strip() != "0":
                    return False
        except OSError:
            return False
    return True


def writable(directory: str | os.PathLike[str]) -> None:
    """We can make files in ``directory``, or can make it if it is not there yet.

    :raises StartError: neither; names the directory that stands in the way.
    """
    place = os.path.abspath(directory)
    while not os.path.lexists(place) and place != "/":
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise StartError(f"{place} is not a directory; remove it or choose another directory")
    if not os.access(place, os.W_OK | os.X_OK):
        made = "" if place == os.path.abspath(directory) else f" to make {os.fspath(directory)}"
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            why, remedy = ": its file system is read-only", ""
        else:
            why, remedy = "", "start as root or "
        raise StartError(f"cannot write to {place}{made}{why}; {remedy}choose another directory")


def _another(network: Network) -> str:
    option = "--subnet" if network.version == 4 else "--subnet6"
    return f"choose another network with {option}"


def _port_error(error: OSError, port: int, address: str) -> StartError | ConfigError:
    if error.errno == errno.EADDRINUSE:
        return StartError(
            f"UDP port {port} is in use by another program; choose another with --port, or stop it"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"{address} is not an address of this machine; 'ip address' lists them",
            key="--interface",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return StartError(f"no privilege to open UDP port {port}; start as root")
    return StartError(f"cannot open UDP port {port}: {os.strerror(error.errno or 0)}")
