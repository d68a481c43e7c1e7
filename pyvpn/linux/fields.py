"""What comes over the socket from the service, field by field: the right shape, or refused.

The service may have been taken over by whoever found a hole in it, the child has root: so nothing
passes that the VPN does not need. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

MAX_ENTRIES = 4352
"""Of each list of one state: the 4,096 networks that a WireGuard file may have, and 256 that come
with the machine. A hub's CONFIG holds far fewer; bounds what a command is given.
"""

# The kernel allows more in a name; but a line of ip -batch knows spaces, quotes, '#' and '\\'.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,14}")

# RFC 1123, section 2.1: letters, digits and hyphens, these neither first nor last.
_DOMAIN = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


class Refused(ValueError):
    """The state holds something that the child does not do; the text says what."""


def fields(value: object, what: str, *names: str) -> Mapping[str, Any]:
    """A mapping with exactly these keys."""
    if not isinstance(value, dict) or set(value) != set(names):
        raise Refused(f"{what} must have the fields {', '.join(names)}")
    return value


def entries(value: object, what: str) -> list[Any]:
    """A list that is not too long."""
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise Refused(f"{what} must be a list of at most {MAX_ENTRIES} entries")
    return value


def is_interface_name(name: object) -> bool:
    """May ``name`` stand in a command and in a path below /proc/sys/net?"""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name not in (".", "..")


def interface_name(value: object) -> str:
    """The name of an interface."""
    if not isinstance(value, str) or not is_interface_name(value):
        raise Refused(f"{value!r} is no name of an interface")
    return value


def text(value: object) -> str:
    """A text that may be an address."""
    # ipaddress also takes integers and bytes, and a scope ("fe80::1%eth0") that ip(8) does not.
    if not isinstance(value, str) or "%" in value:
        raise Refused(f"{value!r} is no address")
    return value


def whether(value: object, what: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Refused(f"{what} must be true or false, not {value!r}")
    return value


def network(value: object) -> str:
    """A network."""
    try:
        return str(ip_network(text(value)))
    except ValueError as error:
        raise Refused(str(error)) from error


def networks(value: object, what: str) -> tuple[str, ...]:
    """Networks."""
    return tuple(network(one) for one in entries(value, what))


def addresses(value: object, what: str) -> tuple[str, ...]:
    """Addresses without prefix lengths."""
    try:
        return tuple(str(ip_address(text(one))) for one in entries(value, what))
    except ValueError as error:
        raise Refused(str(error)) from error


def ports(value: object, what: str) -> tuple[int, ...]:
    """Ports of UDP."""
    for port in entries(value, what):
        if type(port) is not int or not 0 < port < 65536:
            raise Refused(f"{port!r} is no port")
    return tuple(entries(value, what))


def domains(value: object, what: str) -> tuple[str, ...]:
    """Domain names: what they hold gets into files and commands."""
    for domain in entries(value, what):
        if not isinstance(domain, str) or _DOMAIN.fullmatch(domain) is None:
            raise Refused(f"{domain!r} is no domain")
    return tuple(entries(value, what))
