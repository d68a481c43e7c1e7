"""The networks around this machine, looked at and never changed: what lies next to it, where its
own way out leads, and who else wants the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from pyvpn.errors import ConfigError
from pyvpn.linux import iproute
from pyvpn.linux.firewall import OUR_TABLES
from pyvpn.linux.system import System
from pyvpn.values import Address, Network, host_port, within

# RFC 1918, RFC 3927; RFC 4193.
_PRIVATE: Final = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7"),
    )
)
_CARRIER: Final = ip_network("100.64.0.0/10")  # RFC 6598: a provider's own NAT

# The narrowest prefixes that still count as somebody's own network: a site's.
_WIDEST_LAN: Final = {4: 16, 6: 48}


def private_lans(system: System, without_device: str) -> list[tuple[str, Network]]:
    """(interface, network) of each private network that this machine is part of.

    :param without_device: the TUN, whose networks do not count.
    :raises StartError: ``ip`` cannot tell.

    Only private ones, and none wider than a site's (/16, /48): whoever runs a network hands out its
    addresses. If the machine's network were any that it is told, a café's router could name the
    addresses of a bank as its LAN, and what goes there would pass the tunnel by (TunnelCrack's
    LocalNet attack, CVE-2023-36672). The other end of a point-to-point link is no LAN but another
    VPN's, mostly.
    """
    found: dict[tuple[str, Network], None] = {}
    for link, entry, own in iproute.addresses(system, without_device):
        flags = link.get("flags", ())
        if "POINTOPOINT" in flags or "LOOPBACK" in flags or "address" in entry:
            continue
        network = own.network
        if network.prefixlen >= _WIDEST_LAN[network.version] and _in(network, _PRIVATE):
            found[link["ifname"], network] = None
    return list(found)


def other_full_tunnel(system: System, own_table: int) -> str | None:
    """The TUN of another client of ours on this machine that all traffic goes through already.

    :param own_table: the table that is one's own.
    :raises StartError: ``ip`` cannot tell.
    """
    for route in iproute.all_routes(system):
        table = _table(route)
        leads = "dev" in route and route.get("type", "unicast") == "unicast"
        if leads and route["dst"] == "default" and table in OUR_TABLES and table != own_table:
            return str(route["dev"])
    return None


def port_forward_hint(system: System, port: int, endpoint: str | None) -> str | None:
    """What to set on the router, for a hub whose way to the internet starts at a private address.

    :param port: the hub's UDP port.
    :param endpoint: what clients are told, ``HOST:PORT``, several with commas.
    :returns: one line; None for a hub with a public address, without a way out, or one that is
        found under an address of this machine by all of its endpoints.
    :raises StartError: ``ip`` cannot tell.
    """
    gateway = _gateway(system)
    if gateway is None or not _in(ip_network(gateway.source), (*_PRIVATE, _CARRIER)):
        return None
    outside = port
    if endpoint is not None:
        own = {found.ip for _, _, found in iproute.addresses(system)}
        behind = [one for one in _endpoints(endpoint, port) if one[0] not in own]
        if not behind:
            return None
        outside = behind[0][1]
    router = "the router" if gateway.router is None else f"the router ({gateway.router})"
    line = (
        f"this machine is behind a router ({gateway.source} is a private address): for clients"
        f" outside, forward UDP port {outside} on {router} to {gateway.source} port {port}"
    )
    if _in(ip_network(gateway.source), (_CARRIER,)):
        line += "; the router is your provider's, who must do that or give you a public address"
    return line


class _Gateway(NamedTuple):
    """The way to the IPv4 internet: our address on it, and the router's."""

    source: Address
    router: str | None


def _gateway(system: System) -> _Gateway | None:
    routes = [
        route
        for route in iproute.ask(system, "-4", "route", "show", "default")
        if "dev" in route and route.get("type", "unicast") == "unicast"
    ]
    for route in sorted(routes, key=lambda route: int(route.get("metric", 0))):
        source = route.get("prefsrc") or next(
            (
                str(own.ip)
                for link, _, own in iproute.addresses(system)
                if link["ifname"] == route["dev"] and own.version == 4
            ),
            None,
        )
        if source is not None:
            return _Gateway(ip_address(source), route.get("gateway"))
    return None


def default_devices(system: System) -> list[str]:
    """The interfaces that this machine's own default routes lead through, the preferred first.

    :raises StartError: ``ip`` cannot tell.
    """
    routes = iproute.ask(system, "-4", "route", "show", "default")
    routes += iproute.ask(system, "-6", "route", "show", "default")
    routes.sort(key=lambda route: int(route.get("metric", 0)))
    hops = [hop for route in routes for hop in (route, *route.get("nexthops", ()))]
    return list(dict.fromkeys(str(hop["dev"]) for hop in hops if "dev" in hop))


def _endpoints(text: str, port: int) -> list[tuple[Address | None, int]]:
    """Address (None for a name) and port of each endpoint; what cannot be read is left out."""
    found: list[tuple[Address | None, int]] = []
    for part in text.split(","):
        try:
            host, there = host_port(part.strip(), port)
        except ConfigError:
            continue
        try:
            found.append((ip_address(host), there))
        except ValueError:
            found.append((None, there))
    return found


def _table(route: dict[str, Any]) -> int | None:
    """The number of a route's table; None for the main one and those that have names."""
    table = str(route.get("table", ""))
    return int(table) if table.isdecimal() else None


def _in(network: Network, wider: Iterable[Network]) -> bool:
    return any(within(network, one) for one in wider)
