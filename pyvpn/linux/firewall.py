"""What we want of nftables, as values, and the rules that make it so.

Every table here is our own, and no other one is ever touched. Standard library only, because the
privileged child imports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import ClassVar, NamedTuple

MARK = 0x2056
"""The mark of what must never enter the tunnel: our datagrams, and our own questions for the
hub's address. By mark alone, never by destination, a packet is let past the tunnel: whoever rules
the local network can choose addresses, but not marks (TunnelCrack, USENIX Security 2023). It has
none of the bits that Kubernetes (0x4000, 0x8000) and Tailscale (0xff0000) look at.
"""

TABLES = 0x50560000
OUR_TABLES = range(TABLES, TABLES + 65536)
"""Routing tables: one for each TUN, by its index."""

PRIORITY = 30100
"""Of our routing rules: before the main table (32766) and what DHCP put there (TunnelVision)."""

KILL_SWITCH_TABLE = "pyvpn-kill-switch"


@dataclass(frozen=True)
class ClientFirewall:
    """The tables of a client, one of family inet and one of family arp.

    * What is addressed to the tunnel's addresses is dropped unless it came through the tunnel
      (CVE-2019-14899), and so is what says that it comes from the VPN's networks and did not.
      Nor do neighbours get an answer to the question who has the tunnel's addresses.
    * What comes for our own UDP ports, and what neighbours and routers say to find each other,
      carries :data:`MARK` while the kernel or another firewall judges its way back (rp_filter,
      firewalld's IPv6_rpfilter): without it the way back would lead into the tunnel.
    * Subnets behind this machine are reached by the VPN, under this machine's own address there;
      nothing else is forwarded for the VPN then, nor where the table is ``closed``.

    :ivar device: the TUN.
    :ivar addresses: its addresses, without prefix lengths.
    :ivar ports: local UDP ports that we own.
    :ivar shared: subnets behind this machine that the VPN may reach.
    :ivar networks: the VPN's own networks.
    :ivar closed: whether nothing is forwarded for the VPN but to ``shared``, also if that is
        nothing. Not closed and without it, what is forwarded is the affair of who switched it on.
    """

    kind: ClassVar[str] = "client"
    device: str
    addresses: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    shared: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    closed: bool = True


@dataclass(frozen=True)
class HubFirewall:
    """The table of a hub: what is forwarded from and to its TUN, and what is translated.

    From client to client everything is forwarded, or nothing but what goes to or comes from
    ``subnets``. Beyond the VPN nothing is, but to ``reachable`` and, with ``internet``, to
    everywhere, under an address of the hub's own, and back what belongs to it. What comes from
    outside goes nowhere else in the VPN.

    :ivar device: the TUN.
    :ivar networks: the VPN's own networks.
    :ivar subnets: networks behind clients.
    :ivar reachable: networks on the hub's side of the VPN that clients may reach.
    """

    kind: ClassVar[str] = "hub"
    device: str
    networks: tuple[str, ...]
    internet: bool = False
    client_to_client: bool = True
    subnets: tuple[str, ...] = ()
    reachable: tuple[str, ...] = ()


@dataclass(frozen=True)
class KillSwitch:
    """Nothing leaves this machine but through the tunnel. One for a machine; it outlives us.

    Let out are: what goes through ``device`` and loopback, ARP and neighbour and router
    discovery, DHCP, UDP with :data:`MARK` from ``ports``, marked questions to ``resolvers`` (UDP
    port 53), and what goes to ``lan``; but no questions for names (port 53), since a home router
    hands those on to anybody. What this machine forwards for others (containers) goes through
    ``device`` or to ``lan``, and the answers that come through ``device`` go back to them. Below
    IP nothing is held: packet sockets, which take privileges, and machines bridged to the uplink.

    :ivar owner: whose it is, as ``client-home``: only that one changes or lifts it.
    :ivar device: the TUN.
    :ivar ports: our local UDP ports.
    :ivar resolvers: addresses of the name servers that were set before us.
    :ivar lan: networks that stay reachable around the tunnel.
    """

    owner: str
    device: str
    ports: tuple[int, ...] = ()
    resolvers: tuple[str, ...] = ()
    lan: tuple[str, ...] = ()


Firewall = ClientFirewall | HubFirewall


COUNTERS = ("tunnel", "resolver", "dhcp", "neighbours", "lan", "blocked")
"""Of the kill switch, by name: what was let out around the tunnel, and what was not.

Named objects, which can be read by name; counters of rules stand at rules that may move.
"""

OWNER_CHAIN = "owner"
"""Holds one rule, whose comment is the owner of the kill switch. No packet comes here."""


class _Chain(NamedTuple):
    """A chain of nft; ``hook`` is empty for one that is jumped to."""

    name: str
    hook: str
    rules: Sequence[str]


def table_name(firewall: Firewall) -> str:
    """The table of a TUN: a name that no other TUN's table has."""
    # Names of nft hold letters, digits and / _ . - only, names of interfaces no slash.
    return "pyvpn-" + re.sub(
        r"[^A-Za-z0-9_.-]", lambda found: f"/{ord(found[0]):x}", firewall.device
    )


def script(firewall: Firewall) -> str:
    """What ``nft -f -`` reads to make the table as ``firewall`` says, whatever it was before.

    One transaction (FACTS 4.1): there is no moment with half of the rules, or with none.

    :raises ValueError: what is no address, no network or no name of an interface.
    """
    name = table_name(firewall)
    if isinstance(firewall, HubFirewall):
        return _table("inet", name, (), _hub(firewall))
    return _table("inet", name, (), _client(firewall)) + _table("arp", name, (), _arp(firewall))


def removal(firewall: Firewall) -> str:
    """What ``nft -f -`` reads to remove all of it; harmless twice."""
    name = table_name(firewall)
    families = ("inet",) if isinstance(firewall, HubFirewall) else ("inet", "arp")
    return "".join(_removed(family, name) for family in families)


def kill_switch_script(kill_switch: KillSwitch) -> str:
    """What ``nft -f -`` reads to set or to replace the kill switch; the counts begin anew.

    :raises ValueError: as :func:`script`.
    """
    tun = _quoted(kill_switch.device)
    inside = f'oifname {{ "lo", {tun} }} accept'
    drop = 'counter name "blocked" drop'
    answers = f"iifname {tun} ct state established,related accept"
    chains = (
        _Chain(OWNER_CHAIN, "", (f"return comment {_quoted(kill_switch.owner)}",)),
        _Chain("refused", "", _refused()),
        _Chain(
            "output",
            "type filter hook output priority filter; policy drop;",
            (inside, *_let_out(kill_switch, "goto refused", counted=True), "goto refused"),
        ),
        _Chain(
            "forward",
            "type filter hook forward priority filter; policy drop;",
            (inside, answers, *_to_lan(kill_switch, drop, counted=True), drop),
        ),
        # A mark or an address that another table changes on the way out makes the kernel choose
        # another interface, and the output hook is not told of it. This one sees the last choice.
        _Chain(
            "leaving",
            "type filter hook postrouting priority filter; policy drop;",
            (inside, answers, *_let_out(kill_switch, drop, counted=False), drop),
        ),
    )
    return _table("inet", KILL_SWITCH_TABLE, COUNTERS, chains)


def _client(firewall: ClientFirewall) -> list[_Chain]:
    tun = _quoted(firewall.device)
    chains = [_guard(tun, (*_to(firewall.addresses), *_from(firewall.networks)))]
    marks = [f"iifname != {tun} icmpv6 type {_DISCOVERY} meta mark set {MARK:#x}"]
    if firewall.ports:
        # To this machine alone: what is forwarded would leave the tunnel by the mark.
        marks.append(
            f"iifname != {tun} udp dport {_set(firewall.ports)} fib daddr type local"
            f" meta mark set {MARK:#x}"
        )
    chains.append(_Chain("marks", "type filter hook prerouting priority mangle;", marks))
    between = _between(firewall.networks, firewall.shared)
    if firewall.closed or between:
        forward = [
            *_clamped(tun),
            f"iifname {tun} ct state established,related accept",
            f"iifname {tun} {_PUBLISHED}",
            *(f"iifname {tun} oifname != {tun} {those} accept" for those in between),
            f"iifname {tun} counter drop",
        ]
        chains.append(_Chain("forward", _FORWARD, forward))
    if between:
        chains.append(_Chain("outgoing", _SOURCE_NAT, _masqueraded(tun, between)))
    return chains


def _arp(firewall: ClientFirewall) -> list[_Chain]:
    tun = _quoted(firewall.device)
    ours = [text for text in firewall.addresses if ":" not in text]
    rules = [f"iifname != {tun} arp daddr ip {_set(map(ip_address, ours))} drop"] if ours else []
    # The kernel answers a neighbour's question only if it knows a way to him that is not another
    # interface's, and unmarked it is the tunnel.
    rules.append(f"iifname != {tun} meta mark set {MARK:#x}")
    return [_Chain("guard", "type filter hook input priority filter;", rules)]


def _guard(tun: str, matches: Iterable[str]) -> _Chain:
    """Drop what only the tunnel may bring, or this machine to itself."""
    rules = [f'iifname != {{ "lo", {tun} }} {those} counter drop' for those in matches]
    return _Chain("guard", "type filter hook prerouting priority raw; policy accept;", rules)


def _hub(firewall: HubFirewall) -> list[_Chain]:
    tun = _quoted(firewall.device)
    inner = (*firewall.networks, *firewall.subnets)
    out = _between(inner, firewall.reachable)
    within = f"iifname {tun} oifname {tun}"
    rules = [*_clamped(tun)]
    if not firewall.client_to_client:
        rules += [f"{within} {those} accept" for those in _to(firewall.subnets)]
        rules += [f"{within} {those} accept" for those in _from(firewall.subnets)]
        rules.append(f"{within} ct state related accept")
        rules.append(f"{within} counter drop")
    rules += [f"{within} accept", f"iifname {tun} {_PUBLISHED}"]
    rules += [f"iifname {tun} {those} accept" for those in out]
    if firewall.internet:
        # No router hands these on (RFC 3927 section 2.7); in clouds the keys of the machine
        # itself are told to whoever asks there.
        rules += [f"iifname {tun} {those} counter drop" for those in _to(_LINKS_OWN)]
        rules += [f"iifname {tun} {those} accept" for those in _from(inner)]
    rules.append(f"iifname {tun} counter drop")
    rules.append(f"oifname {tun} ct state established,related accept")
    rules.append(f"oifname {tun} counter drop")
    inside = [f"{to_us} fib daddr type local" for to_us in _to(firewall.networks)]
    guard = _guard(tun, (*_from(firewall.networks), *inside))
    chains = [guard, _Chain("forward", _FORWARD, rules)]
    translated = _from(inner) if firewall.internet else out
    if translated:
        chains.append(_Chain("outgoing", _SOURCE_NAT, _masqueraded(tun, translated)))
    return chains


# A link's own, and where clouds (EC2, Azure, Alibaba) tell a machine its keys beside that.
_LINKS_OWN = ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254", "168.63.129.16", "100.100.100.200")
# How neighbours and routers find each other (RFC 4861).
_DISCOVERY = "{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }"
# What came for an address of this machine, and was sent on to a container by a rule of its owner's.
_PUBLISHED = "ct status dnat accept"
_FORWARD = "type filter hook forward priority filter; policy accept;"
_SOURCE_NAT = "type nat hook postrouting priority srcnat; policy accept;"


def _clamped(tun: str) -> list[str]:
    """TCP that passes keeps its segments below the MTU of both ways, as ICMP may get lost."""
    clamp = "tcp flags syn tcp option maxseg size set rt mtu"
    return [f"oifname {tun} {clamp}", f"iifname {tun} oifname != {tun} {clamp}"]


def _masqueraded(tun: str, matches: Iterable[str]) -> list[str]:
    return [f"oifname != {tun} {those} masquerade" for those in matches]


def _refused() -> list[str]:
    """A program is told at once, instead of waiting for what never comes."""
    return [
        'counter name "blocked"',
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx type admin-prohibited",
    ]


def _let_out(kill_switch: KillSwitch, refusal: str, *, counted: bool) -> list[str]:
    """What of our own may leave around the tunnel."""
    discovery = "{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }"
    rules = [
        f"icmpv6 type {discovery} {_accept('neighbours', counted)}",
        f"meta nfproto ipv4 udp sport 68 udp dport 67 {_accept('dhcp', counted)}",
        f"ip6 saddr fe80::/10 udp sport 546 udp dport 547 {_accept('dhcp', counted)}",
    ]
    marked = f"meta mark {MARK:#x}"
    if kill_switch.ports:
        ports = _set(kill_switch.ports)
        rules.append(f"{marked} udp sport {ports} {_accept('tunnel', counted)}")
    rules += [
        f"{marked} {to_them} udp dport 53 {_accept('resolver', counted)}"
        for to_them in _to(kill_switch.resolvers)
    ]
    return rules + _to_lan(kill_switch, refusal, counted=counted)


def _to_lan(kill_switch: KillSwitch, refusal: str, *, counted: bool) -> list[str]:
    """What may go to the networks that stay reachable, ours or forwarded: all but questions."""
    lan = _to(kill_switch.lan)
    questions = [f"{to_it} meta l4proto {{ tcp, udp }} th dport 53 {refusal}" for to_it in lan]
    return questions + [f"{to_it} {_accept('lan', counted)}" for to_it in lan]


def _accept(counter: str, counted: bool) -> str:
    return f'counter name "{counter}" accept' if counted else "accept"


def _table(family: str, name: str, counters: Iterable[str], chains: Iterable[_Chain]) -> str:
    """The whole text."""
    lines = [_removed(family, name) + f"table {family} {name} {{"]
    lines += [f"    counter {counter} {{ }}" for counter in counters]
    for chain in chains:
        lines.append(f"    chain {chain.name} {{")
        lines += [f"        {line}" for line in (chain.hook, *chain.rules) if line]
        lines.append("    }")
    return "\n".join([*lines, "}", ""])


def _removed(family: str, name: str) -> str:
    """It is added first because nft deletes no table that is not."""
    return f"add table {family} {name}\ndelete table {family} {name}\n"


def _quoted(text: str) -> str:
    """The form in which nft takes a name as it is.

    :raises ValueError: it could end the quotation, or stand for several names.
    """
    if not text or not text.isascii() or not text.isprintable() or set(text) & set('"\\*'):
        raise ValueError(f"{text!r} is no name for nft")
    return f'"{text}"'


def _families(networks: Iterable[str]) -> dict[str, str]:
    """``ip`` and ``ip6``, those that there are, each with its networks as a set of nft."""
    # A zone (fe80::1%eth0) is no part of an address on the wire. Collapsed, as nft takes no two
    # networks of which one holds the other.
    known = [ip_network(text.partition("%")[0]) for text in networks]
    four = collapse_addresses(one for one in known if isinstance(one, IPv4Network))
    six = collapse_addresses(one for one in known if isinstance(one, IPv6Network))
    sets = {"ip": _set(four), "ip6": _set(six)}
    return {family: elements for family, elements in sets.items() if elements}


def _to(networks: Iterable[str]) -> list[str]:
    """A match for each family: the destination is in ``networks``."""
    return [f"{family} daddr {those}" for family, those in _families(networks).items()]


def _from(networks: Iterable[str]) -> list[str]:
    """A match for each family: the source is in ``networks``."""
    return [f"{family} saddr {those}" for family, those in _families(networks).items()]


def _between(sources: Iterable[str], destinations: Iterable[str]) -> list[str]:
    """A match for each family that both have."""
    targets = _families(destinations)
    return [
        f"{family} saddr {those} {family} daddr {targets[family]}"
        for family, those in _families(sources).items()
        if family in targets
    ]


def _set(elements: Iterable[object]) -> str:
    """The elements as an anonymous set of nft; "" for none, which it does not take."""
    texts = [str(element) for element in elements]
    return f"{{ {', '.join(texts)} }}" if texts else ""
