"""What the rules of this machine's firewall do to one packet, as far as they can be read.

nftables holds the rules of ufw, firewalld, Docker and most others, whoever wrote them. A rule that
asks for something we cannot read, or do not know of the packet, is passed over; but where such a
rule lets through and names our port or interface it is about us, and believed. So a line too few
is likelier than one too many: these lines are advice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple, TypeAlias

from pyvpn.linux.system import System

Packet: TypeAlias = Mapping[str, str | int]
"""Facts of a packet, by the names in nft's JSON: ``iifname``, ``oifname``, ``nfproto``,
``l4proto``, ``dport``, ``mark``, and ``state`` for what conntrack says. What is not here is not
known.
"""

_Key: TypeAlias = tuple[str, str, str]  # family, table, chain

# nft writes some of these as numbers, some as words, by version and by how the rule was made.
_SPELLINGS: Final[dict[str | int, tuple[str | int, ...]]] = {
    "ipv4": ("ipv4", 2),
    "ipv6": ("ipv6", 10),
    "tcp": ("tcp", 6),
    "udp": ("udp", 17),
    "established": ("established", 2),
    "new": ("new", 8),
}
_FAMILIES: Final = {"ip": "ipv4", "ip6": "ipv6"}
_TRANSPORTS: Final = (
    "tcp",
    "udp",
    "udplite",
    "icmp",
    "icmpv6",
    "igmp",
    "sctp",
    "dccp",
    "esp",
    "ah",
)
_SAYS_NOTHING: Final = ("counter", "log", "mangle", "notrack", "comment", "last")
_DEEPEST: Final = 16  # NFT_JUMP_STACK_SIZE, linux/netfilter/nf_tables.h


class Blocked(NamedTuple):
    """Where a packet ends.

    :ivar family: and ``table``, ``chain``: the base chain that had it.
    :ivar path: the chains it was in at its end, outermost first.
    :ivar chains: all chains of that table.
    """

    family: str
    table: str
    chain: str
    path: tuple[str, ...]
    chains: frozenset[str]


class Ruleset:
    """The rules in this network namespace.

    :param objects: the list under ``nftables`` in the output of ``nft --json list ruleset``.
    :param skip: says which tables do not count, by name.
    """

    def __init__(
        self, objects: Sequence[Mapping[str, Any]], skip: Callable[[str], bool] = lambda name: False
    ) -> None:
        self._rules: dict[_Key, list[list[Any]]] = {}
        self._base: list[tuple[int, _Key, Mapping[str, Any]]] = []
        for entry in objects:
            chain, rule = entry.get("chain"), entry.get("rule")
            if chain is not None and not skip(chain["table"]):
                key = (chain["family"], chain["table"], chain["name"])
                self._rules[key] = []
                if "hook" in chain:
                    self._base.append((_priority(chain), key, chain))
            elif rule is not None:
                key = (rule["family"], rule["table"], rule["chain"])
                if key in self._rules:
                    self._rules[key].append(rule["expr"])
        self._base.sort(key=lambda found: found[0])

    @classmethod
    def read(cls, system: System, skip: Callable[[str], bool] = lambda name: False) -> Ruleset:
        """Ask ``nft``; without it, or without the privilege, there are no rules that we know of."""
        # With two hyphens: nft takes -json for -j -s -o -n, and then shows no counts and no words.
        # Terse: the elements of sets may be a country's worth of addresses.
        done = system.run(["nft", "--json", "--terse", "list", "ruleset"], "")
        try:
            found = json.loads(done.stdout)["nftables"] if done.code == 0 else []
        except (ValueError, KeyError):
            found = []
        return cls(found, skip)

    def blocks(self, hook: str, packet: Packet) -> list[Blocked]:
        """The chains that keep ``packet`` from passing ``hook``: input, forward or output.

        All of them, since one that accepts a packet has only its own say.
        """
        found = []
        for _, key, chain in self._base:
            family, table, name = key
            if (
                chain["hook"] != hook
                or chain.get("type", "filter") != "filter"
                or not _sees(family, packet)
            ):
                continue
            walk = _Walk(self._rules, packet, key)
            if (walk.through(name) or chain.get("policy", "accept")) == "drop":
                chains = frozenset(one[2] for one in self._rules if one[:2] == (family, table))
                found.append(Blocked(family, table, name, walk.path or (name,), chains))
        return found


class _Walk:
    """One packet's way through a base chain."""

    def __init__(self, rules: Mapping[_Key, list[list[Any]]], packet: Packet, key: _Key) -> None:
        self._rules = rules
        self._packet = packet
        self._table = key[:2]
        self._stack: list[str] = []
        self.path: tuple[str, ...] = ()

    def through(self, name: str) -> str | None:
        """``accept``, ``drop``, or None for a packet that comes back to where it came from."""
        if len(self._stack) >= _DEEPEST:
            return None
        self._stack.append(name)
        try:
            # Behind a ``return`` that the packet may have taken nothing is certain any more.
            certain = True
            for statements in self._rules.get((*self._table, name), ()):
                verdict, target, unread = self._rule(statements)
                if verdict == "accept" and not unread:
                    return "accept"
                if unread:
                    certain = certain and verdict not in ("return", "goto")
                elif verdict == "drop" and certain:
                    self.path = tuple(self._stack)
                    return "drop"
                elif verdict == "return":
                    return None
                elif verdict in ("jump", "goto"):
                    ends = self.through(target)
                    if ends == "accept" or (ends == "drop" and certain):
                        return ends
                    if verdict == "goto":
                        return None
            return None
        finally:
            self._stack.pop()

    def _rule(self, statements: list[Any]) -> tuple[str | None, str, bool]:
        """Verdict, where to, and whether something in the rule could not be read."""
        unread = named = False
        for statement in statements:
            verdict = _verdict(statement, self._packet)
            if verdict is not None:
                # Also one that names it in a set, which a terse listing keeps to itself.
                unread = unread and not (named and verdict[0] == "accept")
                return (*verdict, unread)
            answer = _matches(statement, self._packet)
            if answer is False:
                break
            unread = unread or answer is None
            named = named or _names_us(statement)
        return None, "", False


def _sees(family: str, packet: Packet) -> bool:
    return family == "inet" or _FAMILIES.get(family) == packet.get("nfproto")


def _priority(chain: Mapping[str, Any]) -> int:
    priority = chain.get("prio", 0)
    return priority if isinstance(priority, int) else 0


def _verdict(statement: Mapping[str, Any], packet: Packet) -> tuple[str, str] | None:
    for name, value in statement.items():
        if name in ("accept", "drop", "return"):
            return name, ""
        if name == "reject":
            return "drop", ""
        if name in ("jump", "goto"):
            return name, value["target"]
        if name == "vmap":
            known = _fact(value["key"], packet)
            for key, then in _elements(value["data"]):
                if known is not None and _equals(known, key):
                    return _verdict(then, packet)
    return None


def _matches(statement: Mapping[str, Any], packet: Packet) -> bool | None:
    """Does the packet pass this part of a rule? None for what cannot be told."""
    (name, value), *_ = statement.items()
    if name in _SAYS_NOTHING:
        return True
    if name == "vmap":
        # None of its keys is ours, or it cannot be told.
        return None if _fact(value["key"], packet) is None else True
    if name == "xt" and isinstance(value, dict):
        if value.get("name") == "comment":
            return True
        # iptables' way to accept what belongs to a connection; JSON does not tell which states.
        if value.get("name") == "conntrack" and packet.get("state") == "established":
            return True
    if name != "match":
        return None
    return _compare(value, packet)


def _compare(match: Mapping[str, Any], packet: Packet) -> bool | None:
    left, right = match["left"], match["right"]
    payload = left.get("payload", {}) if isinstance(left, dict) else {}
    protocol = payload.get("protocol")
    if protocol in _FAMILIES and _FAMILIES[protocol] != packet.get("nfproto"):
        return False
    if protocol in _TRANSPORTS and "l4proto" in packet and protocol != packet["l4proto"]:
        return False
    if isinstance(left, dict) and left.get("ct", {}).get("key") == "status":
        return False  # of what is translated to other machines: not ours
    known = _fact(left, packet)
    if known is None or match["op"] not in ("==", "!=", "in"):
        return None
    if match["op"] == "in" and isinstance(right, int):
        return any(isinstance(bit, int) and bool(bit & right) for bit in _SPELLINGS[known])
    equal = _one_of(known, right)
    return equal if equal is None or match["op"] != "!=" else not equal


def _fact(left: Any, packet: Packet) -> str | int | None:
    if not isinstance(left, dict):
        return None
    for name, value in left.items():
        key = value.get("key") if isinstance(value, dict) else None
        if name == "meta" and key in ("iifname", "oifname", "nfproto", "l4proto", "mark"):
            return packet.get(key)
        if name == "meta" and key in ("iif", "oif"):
            return packet.get(f"{key}name")
        if name == "ct" and key == "state":
            return packet.get("state")
        if name == "payload" and isinstance(value, dict) and value.get("field") == "dport":
            return packet.get("dport")
    return None


def _one_of(known: str | int, right: Any) -> bool | None:
    if isinstance(right, str) and right.startswith("@"):
        return None
    if isinstance(right, dict):
        right = right.get("set", right.get("|", right))
    if isinstance(right, list):
        return any(_equals(known, one) for one in right)
    return _equals(known, right)


def _equals(known: str | int, value: Any) -> bool:
    if isinstance(value, dict):
        if "elem" in value:
            return _equals(known, value["elem"]["val"])
        if "range" in value:
            low, high = value["range"]
            return isinstance(known, int) and isinstance(low, int) and low <= known <= high
        return False
    if isinstance(known, str) and isinstance(value, str) and value.endswith("*"):
        return fnmatchcase(known, value)
    return value in _SPELLINGS.get(known, (known,))


def _elements(data: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    found = data.get("set", ()) if isinstance(data, dict) else ()
    for element in found:
        if isinstance(element, list) and len(element) == 2 and isinstance(element[1], dict):
            yield element[0], element[1]


def _names_us(statement: Mapping[str, Any]) -> bool:
    match = statement.get("match")
    if match is None or match["op"] == "!=" or not isinstance(match["left"], dict):
        return False
    left = match["left"]
    return left.get("payload", {}).get("field") == "dport" or left.get("meta", {}).get("key") in (
        "iifname",
        "oifname",
        "iif",
        "oif",
    )
