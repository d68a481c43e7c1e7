"""Routes in several tables, and rules, of a Linux of text."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, NamedTuple


class KernelSaysNo(Exception):
    """What ip(8) would print."""


class FakeRoute(NamedTuple):
    """One route; ``device`` is "" for one that leads nowhere, ``table`` None for the main one."""

    destination: str
    device: str
    table: int | None = None
    route_type: str = "unicast"

    @property
    def version(self) -> int:
        return ip_network(self.destination).version

    @property
    def last(self) -> bool:
        """Whether it has a metric that lets all others to the same destination go first."""
        return self.route_type == "unreachable"

    @classmethod
    def of(cls, words: list[str]) -> FakeRoute:
        """``[throw|unreachable] NET [dev DEVICE] [table N] [metric N]``."""
        route_type = "unicast" if "/" in words[0] else words.pop(0)
        given = dict(zip(words[1::2], words[2::2], strict=True))
        table = int(given["table"]) if "table" in given else None
        return cls(words[0], given.get("dev", ""), table, route_type)


class FakeRule(NamedTuple):
    """One rule as the child writes it: priority P not fwmark M lookup T."""

    version: int
    words: str


class FakeRouting:
    """What was made of routes and rules; those that the kernel makes itself are not in it."""

    def __init__(self) -> None:
        self.routes: list[FakeRoute] = []
        self.rules: list[FakeRule] = []

    def lose(self, device: str, version: int | None = None) -> None:
        """With an interface go its routes, those of one family or all."""
        self.routes = [
            route
            for route in self.routes
            if route.device != device or version not in (None, route.version)
        ]

    def route(self, verb: str, route: FakeRoute, connected: Iterable[FakeRoute]) -> None:
        """``ip route add`` or ``delete``."""
        if verb == "delete":
            if route not in self.routes:
                raise KernelSaysNo("RTNETLINK answers: No such process")
            self.routes.remove(route)
            return
        # Two IPv4 routes of one table to one place cannot be, whatever their interfaces.
        for other in (*connected, *self.routes):
            same = (other.destination, other.table) == (route.destination, route.table)
            same = same and other.last == route.last
            if same and (route.version == 4 or other.device == route.device):
                raise KernelSaysNo("RTNETLINK answers: File exists")
        self.routes.append(route)

    def rule(self, verb: str, rule: FakeRule) -> None:
        """``ip rule add`` or ``delete``."""
        if (rule in self.rules) == (verb == "add"):
            said = "File exists" if verb == "add" else "No such file or directory"
            raise KernelSaysNo(f"RTNETLINK answers: {said}")
        if verb == "add":
            self.rules.append(rule)
        else:
            self.rules.remove(rule)

    def show_routes(
        self, version: int, table: str, connected: Iterable[FakeRoute]
    ) -> list[dict[str, Any]]:
        """``ip -json route show table TABLE``; ``all`` tells the table of each, too."""
        shown = []
        for route in (*connected, *self.routes):
            its_table = "main" if route.table is None else str(route.table)
            if route.version == version and table in ("all", its_table):
                entry = {"dst": route.destination, "dev": route.device}
                if route.route_type != "unicast":
                    entry = {"type": route.route_type, "dst": route.destination}
                if table == "all" and route.table is not None:
                    entry["table"] = its_table
                shown.append(entry)
        return shown

    def show_rules(self, version: int) -> list[dict[str, Any]]:
        """``ip -json rule show``."""
        shown: list[dict[str, Any]] = []
        for rule in self.rules:
            if rule.version == version:
                _, priority, _, _, mark, _, table = rule.words.split()
                ours = {"priority": int(priority), "not": None, "fwmark": mark, "table": table}
                shown.append(ours)
        return shown
