"""Which of our rules and routes are still there: systemd-networkd, for one, removes what others
made when it starts anew. Without our rule everything leaves around the tunnel.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from pyvpn.linux.firewall import MARK, PRIORITY
from pyvpn.linux.steps import PolicyRule, RouteVia, UndoneStep
from pyvpn.linux.system import System


def lost(system: System, made: Iterable[UndoneStep]) -> set[UndoneStep]:
    """Those of ``made`` that are gone: rules, and routes in tables of our own.

    The main table is not looked at, which may hold a million routes.
    """
    rules: dict[int, set[UndoneStep]] = {}
    routes: dict[tuple[int, int], set[UndoneStep]] = {}
    for step in made:
        if isinstance(step, PolicyRule):
            rules.setdefault(step.family, set()).add(step)
        elif isinstance(step, RouteVia) and step.table is not None:
            version = int(ip_network(step.destination).version)
            routes.setdefault((version, step.table), set()).add(step)
    gone: set[UndoneStep] = set()
    for family, wanted in rules.items():
        shown = _shown(system, family, "rule", "show")
        if shown is not None:
            gone |= wanted - {_rule(family, entry) for entry in shown}
    for (family, table), wanted in routes.items():
        shown = _shown(system, family, "route", "show", "table", str(table))
        if shown is not None:
            there = {_route(family, entry) for entry in shown}
            gone |= {step for step in wanted if _ends(step) not in there}
    return gone


def _shown(system: System, family: int, *words: str) -> list[dict[str, Any]] | None:
    """What ip(8) tells, None if it does not tell: then all counts as there."""
    done = system.run(["ip", "-json", f"-{family}", *words], "")
    if done.code == 0:
        shown: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return shown
    return [] if "table does not exist" in done.stderr else None


def _rule(family: int, entry: dict[str, Any]) -> PolicyRule | None:
    """The rule as a step, None if it is none of ours."""
    mark, table = str(entry.get("fwmark", "")), str(entry.get("table", ""))
    if entry.get("priority") != PRIORITY or "not" not in entry or mark != f"{MARK:#x}":
        return None
    return PolicyRule(family, int(table)) if table.isdecimal() else None


_Ends = tuple[str, str, str]
"""Of a route: type, network and interface; IPv6 names one also where nothing is reached."""


def _route(family: int, entry: dict[str, Any]) -> _Ends:
    route_type = entry.get("type", "unicast")
    destination = entry["dst"]
    if destination == "default":
        destination = "0.0.0.0/0" if family == 4 else "::/0"
    device = entry.get("dev", "") if route_type == "unicast" else ""
    return route_type, str(ip_network(destination)), device


def _ends(step: UndoneStep) -> _Ends:
    assert isinstance(step, RouteVia)
    device = step.device if step.route_type == "unicast" else ""
    return step.route_type, step.destination, device
