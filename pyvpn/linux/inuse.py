"""The networks that this machine is in, or knows a way to: where no route of a hub may lead."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, Final

from pyvpn.errors import StartError
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
    def read(cls, system: System, without: str) -> NetworksInUse:
        """Ask ``ip``; it takes a few milliseconds.

        :param without: the interface that does not count, since it is our own.
        :raises StartError: it cannot tell.
        """
        addresses = []
        for link in _ask(system, "address", "show"):
            if link["ifname"] in (without, "lo"):
                continue
            for entry in link.get("addr_info", ()):
                if "local" in entry:
                    own = ip_interface(f"{entry['local']}/{entry['prefixlen']}")
                    addresses.append((own.ip, own.network, link["ifname"]))
        routes = []
        for family in ("-4", "-6"):
            for route in _ask(system, family, "route", "show", "table", "all"):
                kind = route.get("type", "unicast")
                if kind in ("local", "broadcast", "multicast", "anycast") or (
                    route.get("dev") in (without, "lo")
                ):
                    continue
                if route["dst"] != "default":
                    routes.append((ip_network(route["dst"]), route.get("dev", kind)))
        return cls(tuple(addresses), tuple(routes))

    def taken(self, network: Network) -> str | None:
        """Why no route may lead ``network`` elsewhere: this machine is in it or knows a way there.

        As :func:`pyvpn.linux.preflight.subnet_free`: a wider route is none of our business.
        """
        for address, around, interface in self.addresses:
            if around.version == network.version and around.overlaps(network):
                return f"{network} overlaps {address}/{around.prefixlen} of interface {interface}"
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


def _ask(system: System, *words: str) -> list[dict[str, Any]]:
    argv = ["ip", "-json", *words]
    done = system.run(argv, "")
    if done.code != 0:
        # Without IPv6 in the kernel there are no routes of it to show.
        if "-6" in words and done.code != 127:
            return []
        raise StartError(f"'{' '.join(argv)}' failed: {done.stderr.strip()}")
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found
