"""From a desired state as it comes over the socket to the steps that make it, each field checked.

The service may have been taken over by whoever found a hole in it, the child has root: so nothing
passes that the VPN does not need. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from pyvpn.linux.ledger import sysctl_path
from pyvpn.linux.steps import MTU, AddressOn, Quiet, RouteVia, Step, SuperPackets, Sysctl, Up
from pyvpn.linux.system import System

MAX_ENTRIES = 4096
"""Links, addresses and routes of one state: a hub's CONFIG holds far fewer; bounds the batch."""

MIN_MTU = 576
MIN_MTU_IPV6 = 1280
"""RFC 8200, section 5; Linux removes the IPv6 addresses of a link with less."""
MAX_MTU = 65535
MIN_GSO_SIZE, MAX_GSO_SIZE = 4096, 65536
"""linux/netdevice.h, GSO_LEGACY_MAX_SIZE; and what is no super-packet any more."""

# The kernel allows more in a name; but a line of ip -batch knows spaces, quotes, '#' and '\\'.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,14}")

_SYSCTLS = (
    (re.compile(r"net/ipv4/ip_forward"), ("1",)),
    (re.compile(r"net/ipv4/conf/(?!\.{1,2}/)[^/\0]{1,15}/send_redirects"), ("0",)),
    (re.compile(r"net/ipv6/conf/all/forwarding"), ("1",)),
    (re.compile(r"net/ipv6/conf/(?!\.{1,2}/)[^/\0]{1,15}/accept_ra"), ("2",)),
)
"""Which keys may be set, and to what: forwarding and what goes with it."""


_LATER = ("rules", "firewall", "kill_switch", "name_servers")


class Refused(Exception):
    """The state holds something that the child does not do; the text says what."""


def is_interface_name(name: object) -> bool:
    """May ``name`` stand in a command and in a path below /proc/sys/net?"""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name not in (".", "..")


def plan(state: object, system: System) -> tuple[list[Step], list[str]]:
    """The steps that make ``state`` (:meth:`pyvpn.linux.desired.SystemState.to_json`), in order.

    Links come first and sysctls last, so that a mistake shows before the whole machine forwards.
    Wishes come between them, so that what must succeed on the links goes in one batch.

    :returns: the steps, and notes for people about what is left out because IPv6 is off.
    :raises Refused: a field is missing, malformed or not allowed.
    """
    whole = _fields(state, "the state", "links", "routes", "sysctls", *_LATER)
    for name in _LATER:
        if whole[name]:
            raise Refused(f"{name} cannot be set yet")
    steps: list[Step] = []
    notes: list[str] = []
    wishes: list[SuperPackets] = []
    devices: dict[str, bool] = {}  # name → has IPv6
    for link in _entries(whole["links"], "links"):
        fields = _fields(link, "a link", "name", "mtu", "addresses", "gso_max_size")
        device = _name(fields["name"])
        generation = _address_generation(device, system)
        devices[device] = generation is not None
        addresses = [
            _address(device, one) for one in _entries(fields["addresses"], f"addresses of {device}")
        ]
        present = []
        for address in addresses:
            if ip_interface(address.interface).version == 6 and generation is None:
                notes.append(f"note: IPv6 is off on {device}: address {address.interface} left out")
            else:
                present.append(address)
        steps.append(MTU(device, _mtu(fields["mtu"], addresses)))
        if generation is not None:
            steps.append(Quiet(device, generation))
        steps.append(Up(device))
        steps.extend(present)
        if fields["gso_max_size"] is not None:
            wishes.append(SuperPackets(device, _gso_size(fields["gso_max_size"])))
    for route in _entries(whole["routes"], "routes"):
        via = _route(route, devices)
        if ip_network(via.destination).version == 6 and not devices[via.device]:
            notes.append(f"note: IPv6 is off on {via.device}: route {via.destination} left out")
        else:
            steps.append(via)
    steps.extend(wishes)
    for sysctl in _sysctls(whole["sysctls"]):
        if sysctl.key.startswith("net/ipv6/") and not _ipv6_on("all", system):
            notes.append(f"note: IPv6 is off: sysctl {sysctl.key} left out")
        else:
            steps.append(sysctl)
    if len(set(steps)) != len(steps):
        raise Refused("the state names something twice")
    return steps, notes


def _fields(value: object, what: str, *names: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise Refused(f"{what} must have the fields {', '.join(names)}")
    return value


def _entries(value: object, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise Refused(f"{what} must be a list of at most {MAX_ENTRIES} entries")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not is_interface_name(value):
        raise Refused(f"{value!r} is no name of an interface")
    return value


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
    fields = _fields(value, "an address", "interface", "peer")
    try:
        local = ip_interface(_text(fields["interface"]))
        peer = None if fields["peer"] is None else ip_address(_text(fields["peer"]))
    except ValueError as error:
        raise Refused(str(error)) from error
    if peer is not None and peer.version != local.version:
        raise Refused(f"{local} and its peer {peer} are of two families")
    return AddressOn(device, str(local), None if peer is None else str(peer))


def _route(value: object, devices: Mapping[str, bool]) -> RouteVia:
    fields = _fields(value, "a route", "destination", "device", "table", "kind")
    device = _name(fields["device"])
    if device not in devices:
        raise Refused(f"a route names {device}, which is no link of this state")
    try:
        return RouteVia(device, str(ip_network(_text(fields["destination"]))))
    except ValueError as error:
        raise Refused(str(error)) from error


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


def _text(value: object) -> str:
    # ipaddress also takes integers and bytes, and a scope ("fe80::1%eth0") that ip(8) does not.
    if not isinstance(value, str) or "%" in value:
        raise Refused(f"{value!r} is no address")
    return value


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
