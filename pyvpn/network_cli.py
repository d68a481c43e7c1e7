"""What a network offers, on the command line: ``network …`` and ``route …``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from pyvpn import routes
from pyvpn.accounts import DONE, administer
from pyvpn.errors import ConfigError
from pyvpn.peers_cli import warn
from pyvpn.terminal import DASH, emphasised, printable, say, table

#: The options of ``network set``, the arguments that they become, and what they are to people.
_LABELS = {
    "internet": "internet",
    "client_to_client": "client to client",
    "dns": "name servers",
    "search": "search domains",
    "excluded": "kept out",
}


def network_show(options: argparse.Namespace) -> int:
    """Show what clients are offered."""
    say(*lines(administer(options, "network_show")))
    return DONE


def lines(shown: Mapping[str, Any]) -> list[str]:
    """The answer to ``network_show`` or ``network_set`` for people."""
    fixed = shown.get("fixed")
    found = []
    for key, label in _LABELS.items():
        line = f"{label:<17} {_value(key, shown.get(key))}"
        if isinstance(fixed, dict) and key in fixed:
            line += f"  (by {printable(fixed[key])})"
        found.append(line)
    rows = shown.get("routes")
    count = len(rows) if isinstance(rows, list) else 0
    found.append(f"{'routes':<17} {count}" + (", see: pyvpn route list" if count else ""))
    return found


def _value(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return printable(", ".join(map(str, value)) or "none")
    if key == "dns" and value == "hub":
        return "hub (it knows the machines by name)"
    return printable(value).replace(",", ", ")


def network_set(options: argparse.Namespace) -> int:
    """Change what clients are offered; live clients are told at once."""
    given = {
        key: getattr(options, key)
        for key in ("internet", "client_to_client", "dns", "search", "exclude")
        if getattr(options, key) is not None
    }
    if not given:
        raise ConfigError("nothing is to be changed; see: pyvpn network set --help")
    for key, parse in (
        ("dns", routes.name_servers),
        ("search", routes.domains),
        ("exclude", routes.excluded),
    ):
        if key in given:
            _checked(f"--{key}", parse, given[key])
    answer = administer(options, "network_set", **given)
    say(*lines(answer))
    warn(answer)
    return DONE


def route_add(options: argparse.Namespace) -> int:
    """Let clients reach a network on the hub's side, or behind one of them."""
    _checked("NET", routes.routes, options.network)
    given = {"network": options.network}
    if options.via is not None:
        given["via"] = options.via
    answer = administer(options, "route_add", **given)
    say(f"{_row(answer)} is a route now.")
    warn(answer)
    return DONE


def route_remove(options: argparse.Namespace) -> int:
    """Take a route away."""
    _checked("NET", routes.routes, options.network)
    answer = administer(options, "route_remove", network=options.network)
    say(f"{_row(answer)} is a route no more.")
    return DONE


def _row(answer: Mapping[str, Any]) -> str:
    row = answer.get("route")
    row = row if isinstance(row, dict) else {}
    return f"{printable(row.get('network'))} {printable(row.get('where'))}"


def route_list(options: argparse.Namespace) -> int:
    """Show the networks beyond the VPN that clients reach."""
    found = administer(options, "route_list").get("routes")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    if not rows:
        say("no routes yet; add one with: pyvpn route add NET [--via USER[/DEVICE]]")
        return DONE
    shown = [
        (
            row.get("network"),
            row.get("where"),
            "left out" if row.get("problem") else "used",
            row.get("problem") or _by(row.get("source")),
        )
        for row in rows
    ]
    say(*emphasised(table(("NETWORK", "WHERE", "STATE", ""), shown)))
    return DONE


def _by(source: object) -> str:
    if source == "peer":
        return "with the peer's --allowed-ips"
    return f"by {source}" if str(source).startswith("--") else DASH


def _checked(option: str, parse: Callable[[str], Any], text: str) -> None:
    """Refuse here what the hub would, under the name of the option."""
    try:
        parse(text)
    except ConfigError as error:
        raise ConfigError(error.message, path=option) from None


# -- the command line ------------------------------------------------------------------------------


def add_commands(
    commands: Any,
    common: argparse.ArgumentParser,
    command: Callable[[Any, str, Callable[..., int]], argparse.ArgumentParser],
) -> None:
    """network … and route …, into the groups and by the maker of commands of :mod:`pyvpn.cli`."""
    text = "what clients are offered: show, set"
    group = commands.add_parser("network", help=text, description=text, parents=[common])
    networks = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command(networks, "show", network_show)
    change = command(networks, "set", network_set)
    for name, help_text in (
        ("internet", "let clients reach the internet through the hub"),
        ("client-to-client", "let clients reach each other"),
    ):
        change.add_argument(f"--{name}", choices=("on", "off"), help=help_text)
    change.add_argument(
        "--dns", metavar="WHO", help="whom clients ask for names: hub, none, or addresses"
    )
    change.add_argument(
        "--search",
        metavar="DOMAIN[,…]",
        help="domains to complete short names with, beside pyvpn; or none",
    )
    change.add_argument(
        "--exclude", metavar="NET[,…]", help="networks that clients keep out of the tunnel; or none"
    )
    text = "networks beyond the VPN that clients reach: add, remove, list"
    group = commands.add_parser("route", help=text, description=text, parents=[common])
    group = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = command(group, "add", route_add)
    add.add_argument("network", metavar="NET", help="such as 192.168.7.0/24")
    add.add_argument(
        "--via",
        metavar="USER[/DEVICE]",
        help="it is behind that user's machine (default: on the hub's side)",
    )
    command(group, "remove", route_remove).add_argument("network", metavar="NET")
    command(group, "list", route_list)
