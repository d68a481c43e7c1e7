"""Firewall, kill switch and name servers as they come over the socket, each field checked.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

from pyvpn.linux.fields import (
    Refused,
    addresses,
    domains,
    entries,
    fields,
    interface_name,
    networks,
    ports,
    whether,
)
from pyvpn.linux.firewall import ClientFirewall, Firewall, HubFirewall, KillSwitch
from pyvpn.linux.nameservers import NameServers

# It stands in a comment of nft, which ends at a quotation mark and holds at most 128 bytes.
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def firewall(value: object) -> Firewall:
    """Our table of nftables: a mapping with ``kind`` and the fields of that class.

    :raises Refused: a field is missing, malformed or not allowed.
    """
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == ClientFirewall.kind:
        return _client_firewall(value)
    if kind == HubFirewall.kind:
        return _hub_firewall(value)
    raise Refused(f"there is no firewall of the kind {kind!r}")


def _client_firewall(value: object) -> ClientFirewall:
    names = ("kind", "device", "addresses", "ports", "shared", "networks", "closed")
    given = fields(value, "the firewall of a client", *names)
    return ClientFirewall(
        device=interface_name(given["device"]),
        addresses=addresses(given["addresses"], "addresses of the firewall"),
        ports=ports(given["ports"], "ports of the firewall"),
        shared=networks(given["shared"], "shared networks"),
        networks=networks(given["networks"], "networks of the firewall"),
        closed=whether(given["closed"], "closed"),
    )


def _hub_firewall(value: object) -> HubFirewall:
    names = ("device", "networks", "internet", "client_to_client", "subnets", "reachable")
    given = fields(value, "the firewall of a hub", "kind", *names)
    return HubFirewall(
        device=interface_name(given["device"]),
        networks=networks(given["networks"], "networks of the firewall"),
        internet=whether(given["internet"], "internet"),
        client_to_client=whether(given["client_to_client"], "client_to_client"),
        subnets=networks(given["subnets"], "subnets of the firewall"),
        reachable=networks(given["reachable"], "reachable networks"),
    )


def kill_switch(value: object) -> KillSwitch:
    """The kill switch.

    :raises Refused: as :func:`firewall`.
    """
    given = fields(value, "a kill switch", "owner", "device", "ports", "resolvers", "lan")
    owner = given["owner"]
    if not isinstance(owner, str) or _OWNER.fullmatch(owner) is None:
        raise Refused(f"{owner!r} is no owner of a kill switch")
    resolvers = entries(given["resolvers"], "resolvers")
    lan = networks(given["lan"], "local networks")
    for one in lan:
        if not ip_network(one).is_private:
            raise Refused(f"{one} is no private network, to be kept beside a kill switch")
    return KillSwitch(
        owner=owner,
        device=interface_name(given["device"]),
        ports=ports(given["ports"], "ports of the kill switch"),
        # resolv.conf names link-local ones with their interface, of which no packet tells.
        resolvers=addresses([_without_scope(one) for one in resolvers], "resolvers"),
        lan=lan,
    )


def name_servers(value: object) -> NameServers:
    """The name servers of a TUN.

    :raises Refused: as :func:`firewall`.
    """
    given = fields(value, "name servers", "device", "servers", "search", "exclusive")
    servers = addresses(given["servers"], "servers")
    search = domains(given["search"], "search domains")
    if not servers and not search:
        raise Refused("name servers without a server or a domain")
    return NameServers(
        device=interface_name(given["device"]),
        servers=servers,
        search=search,
        exclusive=whether(given["exclusive"], "exclusive"),
    )


def _without_scope(value: Any) -> Any:
    return value.partition("%")[0] if isinstance(value, str) else value
