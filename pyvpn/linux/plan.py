"""From a desired state as it comes over the socket to the steps that make it, each field checked.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_interface, ip_network

from pyvpn.linux import received
from pyvpn.linux.fields import (
    MAX_ENTRIES,
    Refused,
    entries,
    fields,
    interface_name,
    network,
    text,
)
from pyvpn.linux.firewall import OUR_TABLES
from pyvpn.linux.ledger import sysctl_path
from pyvpn.linux.steps import (
    MTU,
    AddressOn,
    FirewallTable,
    KillSwitchSet,
    NameServersTaken,
    PolicyRule,
    Quiet,
    RouteVia,
    Step,
    SuperPackets,
    Sysctl,
    Up,
)
from pyvpn.linux.system import System

MIN_MTU = 576
MIN_MTU_IPV6 = 1280
"""RFC 8200, section 5; Linux removes the IPv6 addresses of a link with less."""
MAX_MTU = 65535
MIN_GSO_SIZE, MAX_GSO_SIZE = 4096, 65536
"""linux/netdevice.h, GSO_LEGACY_MAX_SIZE; and what is no super-packet any more."""

_SYSCTLS = (
    (re.compile(r"net/ipv4/ip_forward"), ("1",)),
    (re.compile(r"net/ipv4/conf/all/src_valid_mark"), ("1",)),
    (re.compile(r"net/ipv4/conf/(?!\.{1,2}/)[^/\0]{1,15}/send_redirects"), ("0",)),
    (re.compile(r"net/ipv6/conf/all/forwarding"), ("1",)),
    (re.compile(r"net/ipv6/conf/(?!\.{1,2}/)[^/\0]{1,15}/accept_ra"), ("2",)),
)
"""Which keys may be set, and to what: forwarding and what goes with it, and that the way back of
a packet is judged by its mark."""


def plan(state: object, system: System) -> tuple[list[Step], list[str]]:
    """The steps that make ``state`` (:meth:`pyvpn.linux.desired.SystemState.to_json`), in order.

    The kill switch comes first, so that nothing leaves meanwhile. Sysctls come late, so that a
    mistake shows before the whole machine forwards; name servers last, when there is a way to
    them. Wishes come after what must succeed on the links, which so goes in one batch.

    :returns: the steps, and notes for people about what is left out because IPv6 is off.
    :raises Refused: a field is missing, malformed or not allowed.
    """
    whole = fields(
        state,
        "the state",
        *("links", "routes", "sysctls", "rules", "firewall", "kill_switch", "name_servers"),
    )
    steps: list[Step] = []
    notes: list[str] = []
    wishes: list[SuperPackets] = []
    devices: dict[str, bool] = {}  # name → has IPv6
    if whole["kill_switch"] is not None:
        # Without its link, as it stands before the TUN has a use.
        steps.append(KillSwitchSet(received.kill_switch(whole["kill_switch"])))
    for link in entries(whole["links"], "links"):
        made, wish, without = _link(link, devices, system)
        steps += made
        wishes += wish
        notes += without
    for made, without in (
        _routes(whole["routes"], devices, system),
        _rules(whole["rules"], devices, system),
    ):
        steps += made
        notes += without
    if whole["firewall"] is not None:
        firewall = received.firewall(whole["firewall"])
        _must_be_link(firewall.device, devices, "the firewall")
        steps.append(FirewallTable(firewall))
    steps += wishes
    for sysctl in _sysctls(whole["sysctls"]):
        if sysctl.key.startswith("net/ipv6/") and not _ipv6_on("all", system):
            notes.append(f"note: IPv6 is off: sysctl {sysctl.key} left out")
        else:
            steps.append(sysctl)
    if whole["name_servers"] is not None:
        name_servers = received.name_servers(whole["name_servers"])
        _must_be_link(name_servers.device, devices, "the list of name servers")
        steps.append(NameServersTaken(name_servers))
    if len(set(steps)) != len(steps):
        raise Refused("the state names something twice")
    return steps, notes


def _link(
    value: object, devices: dict[str, bool], system: System
) -> tuple[list[Step], list[SuperPackets], list[str]]:
    """The steps, the wishes and the notes of one link, which is added to ``devices``."""
    given = fields(value, "a link", "name", "mtu", "addresses", "gso_max_size")
    device = interface_name(given["name"])
    generation = _address_generation(device, system)
    devices[device] = generation is not None
    wanted = [
        _address(device, one) for one in entries(given["addresses"], f"addresses of {device}")
    ]
    steps: list[Step] = [MTU(device, _mtu(given["mtu"], wanted))]
    if generation is not None:
        steps.append(Quiet(device, generation))
    steps.append(Up(device))
    notes = []
    for address in wanted:
        if ip_interface(address.interface).version == 6 and generation is None:
            notes.append(f"note: IPv6 is off on {device}: address {address.interface} left out")
        else:
            steps.append(address)
    size = given["gso_max_size"]
    return steps, [] if size is None else [SuperPackets(device, _gso_size(size))], notes


def _mtu(value: object, addresses: list[AddressOn]) -> int:
    ipv6 = any(ip_interface(address.interface).version == 6 for address in addresses)
    least = MIN_MTU_IPV6 if ipv6 else MIN_MTU
    if type(value) is not int or not least <= value <= MAX_MTU:
        raise Refused(f"MTU {value!r} is not between {least} and {MAX_MTU}")
    return value


def _gso_size(value: object) -> int:
    if type(value) is not int or not MIN_GSO_SIZE <= value <= MAX_GSO_SIZE:
        raise Refused(f"gso_max_size {value!r} is not between {MIN_GSO_SIZE} and {MAX_GSO_SIZE}")
    return value


def _address(device: str, value: object) -> AddressOn:
    given = fields(value, "an address", "interface", "peer")
    try:
        local = ip_interface(text(given["interface"]))
        peer = None if given["peer"] is None else ip_address(text(given["peer"]))
    except ValueError as error:
        raise Refused(str(error)) from error
    if peer is not None and peer.version != local.version:
        raise Refused(f"{local} and its peer {peer} are of two families")
    return AddressOn(device, str(local), None if peer is None else str(peer))


def _routes(
    value: object, devices: Mapping[str, bool], system: System
) -> tuple[list[Step], list[str]]:
    steps: list[Step] = []
    notes = []
    for one in entries(value, "routes"):
        via = _route(one, devices)
        version = ip_network(via.destination).version
        if version == 4 or (devices[via.device] and via.route_type == "unicast"):
            steps.append(via)
        elif not _ipv6_known(system):
            notes.append(f"note: IPv6 is off: route {via.destination} left out")
        elif via.table is None:
            notes.append(f"note: IPv6 is off on {via.device}: route {via.destination} left out")
        elif via.route_type == "unicast":
            # Or it would leave around the tunnel, on an interface where IPv6 is on.
            steps.append(RouteVia(via.device, via.destination, via.table, "unreachable"))
            notes.append(
                f"note: IPv6 is off on {via.device}: {via.destination} is not reachable at all"
            )
        else:
            steps.append(via)
    _must_differ(steps)
    return list(dict.fromkeys(steps)), notes


def _must_differ(steps: Iterable[Step]) -> None:
    """No two routes of a table lead to one destination, but for an unreachable one below."""
    seen = set()
    for step in steps:
        if isinstance(step, RouteVia) and step.route_type != "unreachable":
            if (step.table, step.destination) in seen:
                raise Refused(f"there are two routes to {step.destination}")
            seen.add((step.table, step.destination))


def _route(value: object, devices: Mapping[str, bool]) -> RouteVia:
    given = fields(value, "a route", "destination", "device", "table", "kind")
    device = _must_be_link(interface_name(given["device"]), devices, "a route")
    table = None if given["table"] is None else _table(given["table"])
    route_type = given["kind"]
    if route_type not in ("unicast", "throw", "unreachable"):
        raise Refused(f"there is no route of the kind {route_type!r}")
    if table is None and route_type != "unicast":
        raise Refused(f"a route of the kind {route_type} must be in a table of ours")
    return RouteVia(device, network(given["destination"]), table, route_type)


def _rules(
    value: object, devices: Mapping[str, bool], system: System
) -> tuple[list[Step], list[str]]:
    steps: list[Step] = []
    notes = []
    for one in entries(value, "rules"):
        given = fields(one, "a rule", "family", "table", "device")
        _must_be_link(interface_name(given["device"]), devices, "a rule")
        if type(given["family"]) is not int or given["family"] not in (4, 6):
            raise Refused(f"there is no family {given['family']!r}")
        rule = PolicyRule(given["family"], _table(given["table"]))
        if rule.family == 6 and not _ipv6_known(system):
            notes.append(f"note: IPv6 is off: rule for table {rule.table} left out")
        else:
            steps.append(rule)
    return steps, notes


def _table(value: object) -> int:
    if type(value) is not int or value not in OUR_TABLES:
        raise Refused(f"routing table {value!r} is none of ours")
    return value


def _must_be_link(device: str, devices: Mapping[str, bool], what: str) -> str:
    if device not in devices:
        raise Refused(f"{what} names {device}, which is no link of this state")
    return device


def _sysctls(value: object) -> list[Sysctl]:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise Refused(f"sysctls must be a mapping of at most {MAX_ENTRIES} entries")
    made = []
    for key, wanted in value.items():
        for pattern, allowed in _SYSCTLS:
            match = pattern.fullmatch(key)
            if match is not None and wanted in allowed:
                made.append(Sysctl(key, wanted))
                break
        else:
            raise Refused(f"sysctl {key!r} = {wanted!r} is not one that the VPN needs")
    return made


def _ipv6_known(system: System) -> bool:
    """Does the kernel know of IPv6, even if it is off on some or all interfaces?"""
    try:
        system.read(sysctl_path("net/ipv6/conf/all/disable_ipv6"))
    except OSError:
        return False
    return True


def _ipv6_on(device: str, system: System) -> bool:
    try:
        return system.read(sysctl_path(f"net/ipv6/conf/{device}/disable_ipv6")) == "0"
    except OSError:
        return False


def _address_generation(device: str, system: System) -> str | None:
    """addr_gen_mode of the interface, None when it has no IPv6."""
    if not _ipv6_on(device, system):
        return None
    try:
        return system.read(sysctl_path(f"net/ipv6/conf/{device}/addr_gen_mode"))
    except OSError:
        return None
