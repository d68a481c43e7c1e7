"""Other people's firewalls on this machine: what they will block of the VPN, and what helps.

Looked at and never changed: no rule of ours elsewhere could lift what they drop, since every base
chain of nftables has its own say, and their owners would wonder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from pyvpn.errors import StartError
from pyvpn.linux import uplink
from pyvpn.linux.firewall import MARK
from pyvpn.linux.ruleset import Blocked, Packet, Ruleset
from pyvpn.linux.system import System

Facts: TypeAlias = dict[str, str | int]

_SOME_PORT: Final = 1  # of TCP: a service that nobody has

_NFTABLES_CONF: Final = "/etc/nftables.conf"
_STARTED_AT_BOOT: Final = "/etc/systemd/system/sysinit.target.wants"


def nft_available(system: System) -> bool:
    """Is there an ``nft`` that works here? The tables of client, hub and kill switch need it."""
    return system.run(["nft", "list", "tables"], "").code == 0


def hub_lines(
    system: System, port: int, tun: str, internet: bool = False, dns: bool = False
) -> list[str]:
    """What firewalls of this machine will block of a hub, a line each, with what helps.

    :param port: the hub's UDP port.
    :param tun: its TUN, which need not be there yet.
    :param internet: clients reach the internet through it.
    :param dns: it answers their questions for names.
    """
    rules = _others(system)
    outside = _uplinks(system)
    lines = [
        f"{_name(one)} blocks what clients send to UDP port {port}: nobody reaches this hub;"
        f" {_opened(one, port)}"
        for one in _blocked(rules, "input", _to_port(port, outside))
    ]
    goals = {"each other": _both({"iifname": tun, "oifname": tun, "state": "new"})}
    if internet:
        # And back what belongs to it: Docker's own rule for that is for its own bridges alone.
        goals["the internet"] = [
            packet
            for device in outside
            for packet in (
                *_both({"iifname": tun, "oifname": device, "state": "new"}),
                *_both({"iifname": device, "oifname": tun, "state": "established"}),
            )
        ]
    lines += _forward_lines(rules, goals, tun, "clients do not reach ")
    if dns:
        lines += [
            f"{_name(one)} blocks what clients ask the DNS of this hub: they find no names;"
            f" {_let_in(one, tun, 53)}"
            for one in _blocked(rules, "input", _to_port(53, [tun]))
        ]
    return lines


def client_lines(
    system: System,
    tun: str,
    kill_switch: bool = False,
    *,
    port: int | None = None,
    shared: bool = False,
) -> list[str]:
    """What firewalls of this machine will block of a client, a line each, with what helps.

    :param tun: the client's TUN, which need not be there yet.
    :param kill_switch: it has one: says too who takes that away without asking.
    :param port: the hub's UDP port, None if it is not known.
    :param shared: the VPN may reach subnets behind this machine.
    """
    rules = _others(system)
    sent: Facts = {"l4proto": "udp", "mark": MARK, "state": "new"}
    if port is not None:
        sent["dport"] = port
    out = _through("oifname", _uplinks(system), sent)
    lines = [
        f"{_name(one)} blocks what this machine sends to the hub; {_let_out(one, port)}"
        for one in _blocked(rules, "output", out)
    ]
    other: Facts = {"l4proto": "tcp", "dport": _SOME_PORT, "state": "new"}
    lines += [
        f"{_name(one)} blocks what this machine sends into the tunnel; {_let_into(one, tun)}"
        for one in _blocked(rules, "output", _both({**other, "oifname": tun}))
    ]
    lines += [
        f"{_name(one)} blocks what others in the VPN begin to send to this machine, which may be"
        f" meant so; otherwise: {_let_in(one, tun, None)}"
        for one in _blocked(rules, "input", _both({**other, "iifname": tun}))
    ]
    if shared:
        goals = {"the subnets behind this machine": _both({"iifname": tun, "state": "new"})}
        lines += _forward_lines(rules, goals, tun, "the VPN does not reach ")
    if kill_switch and _flushed_by_nftables_service(system):
        lines.append(
            f"nftables.service is enabled, and {_NFTABLES_CONF} begins with 'flush ruleset': to"
            " start or reload it again removes the kill switch; put 'destroy table' or 'delete"
            " table' of your own tables in place of that line"
        )
    return lines


def _others(system: System) -> Ruleset:
    return Ruleset.read(system, lambda table: table.startswith("pyvpn-"))


def _uplinks(system: System) -> list[str]:
    try:
        return uplink.default_devices(system)
    except StartError:
        return []


def _both(packet: Packet) -> list[Packet]:
    return [{**packet, "nfproto": family} for family in ("ipv4", "ipv6")]


def _to_port(port: int, devices: Sequence[str]) -> list[Packet]:
    return _through("iifname", devices, {"l4proto": "udp", "dport": port, "state": "new"})


def _through(key: str, devices: Sequence[str], packet: Facts) -> list[Packet]:
    """Such packets for each of these interfaces, or for one that is not known."""
    if not devices:
        return _both(packet)
    return [one for device in devices for one in _both({**packet, key: device})]


def _blocked(rules: Ruleset, hook: str, packets: Iterable[Packet]) -> list[Blocked]:
    """Who blocks any of these, each owner once."""
    found: dict[str, Blocked] = {}
    for packet in packets:
        for one in rules.blocks(hook, packet):
            found.setdefault(_name(one), one)
    return list(found.values())


def _owner(one: Blocked) -> str:
    if one.table == "firewalld":
        return "firewalld"
    # ufw leaves its base chains behind when it is disabled, without these.
    if one.chains & {"ufw-user-forward", "ufw6-user-forward"}:
        return "ufw"
    return "Docker" if "DOCKER-USER" in one.chains and one.chain == "FORWARD" else ""


def _name(one: Blocked) -> str:
    owner = _owner(one)
    chain = f"{one.family} {one.table} {one.chain}"
    if owner == "Docker":
        return f"the firewall of Docker (chain {chain})"
    return owner or f"the firewall of this machine (chain {chain})"


def _zone(one: Blocked) -> str:
    """firewalld's zone in whose chain a packet ended, as an option; "" for the default zone."""
    for chain in reversed(one.path):
        if chain.startswith("filter_IN_") and not chain.startswith("filter_IN_policy_"):
            return f" --zone={chain.removeprefix('filter_IN_')}"
    return ""


def _for_good(command: str) -> str:
    return f"'{command}' helps, and once more with --permanent for good"


def _trusted(tun: str) -> str:
    return _for_good(f"firewall-cmd --zone=trusted --add-interface={tun}")


def _opened(one: Blocked, port: int) -> str:
    if _owner(one) == "firewalld":
        return _for_good(f"firewall-cmd{_zone(one)} --add-port={port}/udp")
    if _owner(one) == "ufw":
        return f"'ufw allow {port}/udp' helps"
    return f"a rule there that accepts UDP port {port} helps"


def _let_in(one: Blocked, tun: str, port: int | None) -> str:
    if _owner(one) == "firewalld":
        return _trusted(tun)
    if _owner(one) == "ufw":
        return f"'ufw allow in on {tun}{'' if port is None else f' to any port {port}'}' helps"
    what = "everything" if port is None else f"UDP and TCP port {port}"
    return f"a rule there that accepts {what} from {tun} helps"


def _let_out(one: Blocked, port: int | None) -> str:
    if _owner(one) == "ufw" and port is not None:
        return f"'ufw allow out {port}/udp' helps"
    to = "" if port is None else f" to port {port}"
    return f"a rule there that accepts UDP{to} (ours carries the mark {MARK:#x}) helps"


def _let_into(one: Blocked, tun: str) -> str:
    if _owner(one) == "ufw":
        return f"'ufw allow out on {tun}' helps"
    return f"a rule there that accepts what goes to {tun} helps"


def _forward_lines(
    rules: Ruleset, goals: Mapping[str, Sequence[Packet]], tun: str, what: str
) -> list[str]:
    """A line for each owner who blocks what some of the ``goals`` need."""
    found: dict[str, tuple[Blocked, list[str]]] = {}
    for goal, packets in goals.items():
        for one in _blocked(rules, "forward", packets):
            found.setdefault(_name(one), (one, []))[1].append(goal)
    return [
        f"{name} blocks what is forwarded: {what}{' or '.join(missed)}; {_forwarded(one, tun)}"
        for name, (one, missed) in found.items()
    ]


def _forwarded(one: Blocked, tun: str) -> str:
    owner = _owner(one)
    if owner == "firewalld":
        return _trusted(tun)
    if owner == "ufw":
        return f"'ufw route allow in on {tun}' helps"
    if owner == "Docker":
        tables = "ip6tables" if one.family == "ip6" else "iptables"
        first, second = (f"'{tables} -I DOCKER-USER {way} {tun} -j ACCEPT'" for way in ("-i", "-o"))
        return f"{first} and {second} help"
    return f"rules there that accept what comes from and goes to {tun} help"


def _flushed_by_nftables_service(system: System) -> bool:
    if "nftables.service" not in system.names(_STARTED_AT_BOOT):
        return False
    try:
        lines = system.read(_NFTABLES_CONF).splitlines()
    except OSError:
        return False
    return any(line.split("#")[0].strip(" \t;") == "flush ruleset" for line in lines)
