"""What ``pyvpn status`` shows: the answers of hubs and clients as text for people.

Any key may be missing, since the other side can be of another version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from pyvpn.terminal import DASH, printable, table

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_WALL_CLOCK: Final = 1e9  # a larger number of seconds is a date, not an age (Unix time since 2001)

#: The last columns of a table of sessions.
_COUNTS: Final = ("RECEIVED", "PACKETS", "SENT", "PACKETS", "HEARD")


def duration(seconds: object) -> str:
    """Seconds as the two largest units, such as ``3 min 20 s``."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return DASH
    left = max(0, int(seconds))
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def ago(moment: object, now: float) -> str:
    """An age in seconds, or a Unix time, as ``4 s ago``."""
    if not isinstance(moment, int | float) or isinstance(moment, bool) or moment < 0:
        return DASH
    return f"{duration(now - moment if moment > _WALL_CLOCK else moment)} ago"


def amount(count: object) -> str:
    """Bytes in the unit that keeps the number short, such as ``1.4 MB``."""
    if not isinstance(count, int | float) or isinstance(count, bool):
        return DASH
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return DASH


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else printable(value)


def _short(device: object) -> str:
    """A device's name, or the beginning of its id in hexadecimal digits."""
    text = str(device or DASH)
    return text[:8] if len(text) == 32 else text


def _items(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _counters(value: object) -> list[str]:
    if not isinstance(value, dict):
        return []
    shown = [
        f"{printable(name)} {printable(count)}" for name, count in sorted(value.items()) if count
    ]
    return [f"  counters   {', '.join(shown)}"] if shown else []


def _short_cipher(value: object) -> str:
    """A cipher's name without what all of them have in common here."""
    return str(value or DASH).removesuffix("-256-GCM").removesuffix("-Poly1305")


def _path_mtu(of: Mapping[str, Any]) -> str:
    """The path MTU as ``1500``; ``1280+`` while it is still being looked for."""
    known = of.get("path_mtu")
    return DASH if not _number(known) else f"{known}{'+' if of.get('path_mtu_searching') else ''}"


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _packets(count: object) -> str:
    return f"{count}" if _number(count) else DASH


def _traffic(of: Mapping[str, Any], way: str) -> str:
    """Bytes and packets of one direction, ``rx`` or ``tx``."""
    packets = of.get(f"{way}_packets")
    said = amount(of.get(f"{way}_bytes"))
    return f"{said} in {packets} packet{'s' * (packets != 1)}" if _number(packets) else said


def _offloads(answer: Mapping[str, Any]) -> str | None:
    """What the kernel does for us, as ``TUN csum, tso; UDP none``; None if nothing is said."""
    shown = []
    for what in ("TUN", "UDP"):
        told = answer.get(f"{what.lower()}_offloads")
        if isinstance(told, dict):
            names = ", ".join(printable(name) for name, has in told.items() if has is True)
            shown.append(f"{what} {names or 'none'}")
    return "; ".join(shown) or None


def hub_lines(answer: Mapping[str, Any], now: float) -> list[str]:
    """The hub: one line about itself, a table of sessions, its counters that are not zero."""
    lines = [
        f"hub  up {duration(answer.get('uptime'))}, UDP port {printable(answer.get('port'))},"
        f" {printable(_joined(answer.get('addresses')))}"
    ]
    if offloads := _offloads(answer):
        lines.append(f"  offloads   {offloads}")
    lines += _offered(answer.get("network"))
    sessions = _items(answer.get("sessions"))
    if sessions:
        heads = [
            *("USER", "DEVICE", "ADDRESSES", "ENDPOINT", "CIPHER", "PATH MTU", "SINCE"),
            *_COUNTS,
        ]
        rows = [
            (
                session.get("user"),
                session.get("name") or _short(session.get("device")),
                _joined(session.get("addresses")),
                session.get("endpoint"),
                _short_cipher(session.get("cipher")),
                _path_mtu(session),
                duration(session.get("age")),
                *_counts(session, now),
            )
            for session in sessions
        ]
        lines += [f"  {line}" for line in table(heads, rows)]
    peers = _items(answer.get("wireguard_sessions"))
    if peers:
        lines += [f"  {line}" for line in _peer_lines(peers, now)]
    if not sessions and not peers:
        lines.append("  nobody is connected")
    return lines + _counters(answer.get("counters"))


def _offered(network: object) -> list[str]:
    """What a hub offers to its clients beside the VPN."""
    if not isinstance(network, dict):
        return []
    words: dict[Any, str] = {True: "on", False: "off"}
    routes = _items(network.get("routes"))
    used = [printable(route.get("network")) for route in routes if not route.get("problem")]
    most = 8
    if len(used) > most:
        used[most:] = [f"{len(used) - most} more"]
    lines = [
        f"  internet   {words.get(network.get('internet'), DASH)}, client to client"
        f" {words.get(network.get('client_to_client'), DASH)}",
        f"  names      {_asked(network)}",
        f"  routes     {', '.join(used) or 'none'}",
    ]
    lines += [
        f"  problem: {printable(route['problem'])}; left out"
        for route in routes
        if route.get("problem")
    ]
    if network.get("guarded") is False:
        lines.append("  problem: nft does not work here: what leaves the VPN is not kept back")
    return lines


def _asked(network: Mapping[str, Any]) -> str:
    """Whom a hub tells its clients to ask for names, and for which domains."""
    servers, search = _joined(network.get("dns")), _joined(network.get("search"))
    if servers:
        return printable(f"{servers} ({search})" if search else servers)
    return "not answered, see the log" if network.get("dns_wanted") == "hub" else "none"


def _peer_lines(peers: list[Mapping[str, Any]], now: float) -> list[str]:
    """A table of stock WireGuard peers."""
    heads = [
        *("WIREGUARD PEER", "ADDRESSES", "ENDPOINT", "HANDSHAKE"),
        *_COUNTS,
    ]
    rows = [
        (
            peer.get("name"),
            _joined(peer.get("addresses")),
            peer.get("endpoint"),
            ago(peer.get("last_handshake"), now),
            *_counts(peer, now),
        )
        for peer in peers
    ]
    return table(heads, rows)


def _counts(row: Mapping[str, Any], now: float) -> tuple[str, ...]:
    """What stands under :data:`_COUNTS`."""
    return (
        amount(row.get("rx_bytes")),
        _packets(row.get("rx_packets")),
        amount(row.get("tx_bytes")),
        _packets(row.get("tx_packets")),
        ago(row.get("last_seen"), now),
    )


def client_lines(profile: str, answer: Mapping[str, Any], now: float) -> list[str]:
    """A client: state, hub, addresses, traffic, and its counters that are not zero."""
    name = printable(answer.get("profile") or profile)
    facts = (
        ("server", printable(answer.get("server"))),
        ("user", printable(answer.get("user"))),
        ("addresses", printable(_joined(answer.get("addresses")) or None)),
        ("through it", _through(answer)),
        ("names", _names(answer)),
        ("cipher", printable(answer.get("cipher"))),
        ("path MTU", _path_mtu(answer)),
        ("offloads", _offloads(answer) or DASH),
        ("received", f"{_traffic(answer, 'rx')}, sent {_traffic(answer, 'tx')}"),
        ("heard", ago(answer.get("last_heard"), now)),
    )
    lines = [f"client {name}  {printable(answer.get('state'))}"]
    lines += [f"  {label:<10} {value}" for label, value in facts]
    if answer.get("kill_switch"):
        lines.append(f"  nothing leaves but through it; lift that with: pyvpn down {name}")
    if answer.get("problem"):
        lines.append(f"  problem: {printable(answer['problem'])}")
    lines += [f"  note: {printable(note)}" for note in answer.get("notes") or ()]
    return lines + _counters(answer.get("counters"))


def _through(answer: Mapping[str, Any]) -> str:
    """What goes through a client's tunnel: the VPN's traffic, and what else."""
    full = answer.get("all_traffic") or []
    if len(full) > 1:
        return "all traffic"
    if full:
        return f"all IPv{full[0]} traffic; the other family leads nowhere"
    routes = answer.get("routes") or []
    more = f" and {printable(_joined(routes[:4]))}" if routes else ""
    rest = f" and {len(routes) - 4} more" if len(routes) > 4 else ""
    nowhere = "; all else leads nowhere" if answer.get("all_traffic_asked") else ""
    return f"the VPN{more}{rest}{nowhere}"


def _names(answer: Mapping[str, Any]) -> str:
    """Which name servers came with a client's network, and for which domains."""
    servers, search = answer.get("name_servers"), answer.get("search")
    if not servers:
        return DASH
    domains = f" ({printable(_joined(search))})" if search else ""
    return printable(_joined(servers)) + domains


def flat(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with what administration wraps (``hub``) beside what it adds itself."""
    hub = answer.get("hub")
    rest = {key: value for key, value in answer.items() if key != "hub"}
    return {**rest, **hub} if isinstance(hub, dict) else dict(answer)


def instance_lines(instance: str, answer: Mapping[str, Any], now: float | None = None) -> list[str]:
    """The lines of one instance, ``server`` or ``client-PROFILE``."""
    now = time.time() if now is None else now
    if answer.get("role", instance) == "server":
        return hub_lines(answer, now)
    return client_lines(instance.removeprefix("client-"), answer, now)
