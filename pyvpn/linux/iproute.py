"""What ip(8) tells of this machine; nothing here changes anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from pyvpn.errors import StartError
from pyvpn.linux.system import NOT_INSTALLED, System


def ask(system: System, *words: str) -> list[dict[str, Any]]:
    """Run ``ip -json`` and return its entries.

    :raises StartError: it cannot tell. Without IPv6 in the kernel there is simply none of it.
    """
    argv = ["ip", "-json", *words]
    done = system.run(argv, "")
    if done.code != 0:
        if "-6" in words and done.code != NOT_INSTALLED:
            return []
        raise StartError(f"'{' '.join(argv)}' failed: {done.stderr.strip()}")
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def all_routes(system: System) -> list[dict[str, Any]]:
    """The routes of all tables and both families that lead somewhere, or say that nothing does."""
    routes = ask(system, "-4", "route", "show", "table", "all")
    routes += ask(system, "-6", "route", "show", "table", "all")
    not_ways = ("local", "broadcast", "multicast", "anycast")
    return [route for route in routes if route.get("type", "unicast") not in not_ways]


def addresses(
    system: System, without: str | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, Any], IPv4Interface | IPv6Interface]]:
    """Each address of this machine: its interface and itself as ip tells them, and as a value.

    :param without: an interface that does not count.
    """
    for link in ask(system, "address", "show"):
        if link["ifname"] != without:
            for entry in link.get("addr_info", ()):
                if "local" in entry:  # an empty one was filtered out
                    yield link, entry, ip_interface(f"{entry['local']}/{entry['prefixlen']}")
