"""The networks that this machine is in, or knows a way to: where no route of a hub may lead."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from pyvpn.linux import iproute
from pyvpn.linux.system import System
from pyvpn.values import Address, Network

#: What nobody on the internet reaches: RFC 1918, RFC 6598, RFC 3927, RFC 4193, RFC 4291.
_INSIDE: Final = tuple(
    map(
        ip_network,
        [
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
            *("fc00::/7", "fe80::/10"),
        ],
    )
)


@dataclass(frozen=True)
class NetworksInUse:
    """What ``ip`` says of this machine, but for one interface.

    :ivar addresses: each of its addresses with the network around it, and its interface.
    :ivar routes: each destination that it knows a way to, but the default, and through what.
    """

    addresses: tuple[tuple[Address, Network, str], ...] = ()
    routes: tuple[tuple[Network, str], ...] = ()

    @classmethod
    def read(cls, system: System, without: str | None) -> NetworksInUse:
        """Ask ``ip``; it takes a few milliseconds.

        :param without: the interface that does not count, since it is our own.
        :raises StartError: it cannot tell.
        """
        addresses = [
            (own.ip, own.network, link["ifname"])
            for link, _, own in iproute.addresses(system, without)
        ]
        routes = [
            (ip_network(route["dst"]), route.get("dev", route.get("type", "unicast")))
            for route in iproute.all_routes(system)
            if route["dst"] != "default"
            and route.get("type") != "throw"  # which says that it leads nowhere from here
            and route.get("dev", "") not in (without, "lo")
        ]
        return cls(tuple(addresses), tuple(routes))

    def connected(self, network: Network) -> str | None:
        """Why ``network`` cannot be elsewhere: this machine is in a part of it, or the reverse."""
        for address, around, interface in self.addresses:
            if around.version == network.version and around.overlaps(network):
                return f"{network} overlaps {address}/{around.prefixlen} of interface {interface}"
        return None

    def taken(self, network: Network) -> str | None:
        """Why no route may lead ``network`` elsewhere: this machine is in it or knows a way there.

        A wider route, up to the default route, is none of our business: ours is the narrower one.
        """
        connected = self.connected(network)
        if connected is not None:
            return connected
        for destination, through in self.routes:
            if (
                destination.version == network.version
                and destination.overlaps(network)
                and destination.prefixlen >= network.prefixlen
            ):
                return f"{network} overlaps the route to {destination} ({through})"
        return None

    def outer(self, network: Network, endpoints: Collection[Address]) -> str | None:
        """Why clients cannot be told that ``network`` is reached through this hub: it is where they
        reach the hub itself.

        :param endpoints: the addresses by which clients are known to reach it. Without any, a
            private address of ours may be one, or may stand behind a router's public one.
        """
        for endpoint in endpoints:
            if endpoint in network:
                return f"{network} holds {endpoint}, where clients reach this hub"
        for address, _, interface in self.addresses:
            if address in network and not _within(address, _INSIDE):
                return f"{network} holds this hub's own address {address} ({interface})"
        return None

    def perhaps_outer(self, network: Network) -> str | None:
        """What may be wrong with such a network while no numeric endpoint is known."""
        for address, _, interface in self.addresses:
            if address in network:
                return (
                    f"{network} holds this hub's own address {address} ({interface}): stock"
                    " WireGuard peers that reach the hub there lose it"
                )
        return None


def _within(address: IPv4Address | IPv6Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def numeric_hosts(endpoints: str | None) -> list[Address]:
    """The addresses among ``HOST:PORT``, several with commas; names are left out."""
    found = []
    for endpoint in (endpoints or "").split(","):
        try:
            found.append(ip_address(endpoint.rpartition(":")[0].strip("[]")))
        except ValueError:
            continue
    return found
