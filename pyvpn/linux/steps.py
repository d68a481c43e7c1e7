"""The single changes that a desired state is made of, and what undoes each of them.

A step is a value: two states are compared by comparing their steps. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import ip_interface
from typing import Any, ClassVar

from pyvpn.linux import received
from pyvpn.linux.firewall import MARK, PRIORITY, Firewall, KillSwitch, table_name
from pyvpn.linux.nameservers import NameServers

Before = dict[str, Any]
"""What a step must know of the time before it, to be undone: JSON values."""

LinkInfo = Mapping[str, Any]
"""One interface as ``ip -json -details address show`` tells it."""

_GENERATION_MODES = {"0": "eui64", "1": "none", "2": "stable_secret", "3": "random"}
"""net.ipv6.conf.*.addr_gen_mode → the word that ``ip link set addrgenmode`` takes."""


@dataclass(frozen=True)
class MTU:
    """The interface's MTU in bytes."""

    kind: ClassVar[str] = "mtu"
    device: str
    mtu: int

    def do(self) -> str:
        return f"link set dev {self.device} mtu {self.mtu}"

    def before(self, link: LinkInfo) -> Before:
        return {"ifindex": link["ifindex"], "mtu": link["mtu"]}

    def undo(self, before: Before, link: LinkInfo) -> str | None:
        if link["mtu"] != self.mtu:
            return None  # somebody else set another one meanwhile
        return f"link set dev {self.device} mtu {before['mtu']}"


@dataclass(frozen=True)
class Quiet:
    """The interface makes no IPv6 link-local address of its own when it comes up.

    Nothing on a TUN needs that address, and with it go unasked router solicitations. A step of its
    own before :class:`Up`: in one command the kernel brings the link up first.

    :ivar generation: addr_gen_mode of the time before, "0" is the kernel's default.
    """

    kind: ClassVar[str] = "quiet"
    device: str
    generation: str = field(compare=False)

    def do(self) -> str:
        return f"link set dev {self.device} addrgenmode none"

    def before(self, link: LinkInfo) -> Before:
        return {"ifindex": link["ifindex"]}

    def undo(self, before: Before, link: LinkInfo) -> str | None:
        mode = _GENERATION_MODES.get(self.generation, "eui64")
        return f"link set dev {self.device} addrgenmode {mode}"


@dataclass(frozen=True)
class Up:
    """The interface is up."""

    kind: ClassVar[str] = "up"
    device: str

    def do(self) -> str:
        return f"link set dev {self.device} up"

    def before(self, link: LinkInfo) -> Before:
        return {"ifindex": link["ifindex"], "up": "UP" in link["flags"]}

    def undo(self, before: Before, link: LinkInfo) -> str | None:
        return None if before["up"] else f"link set dev {self.device} down"


@dataclass(frozen=True)
class AddressOn:
    """The interface has this address; ``peer`` as in :class:`pyvpn.linux.desired.Address`."""

    kind: ClassVar[str] = "address"
    device: str
    interface: str
    peer: str | None = None

    def _words(self) -> str:
        local = ip_interface(self.interface)
        prefix = local.network.prefixlen
        if self.peer is not None:
            return f"{local.ip} peer {self.peer}/{prefix} dev {self.device}"
        return f"{local.ip}/{prefix} dev {self.device}"

    def do(self) -> str:
        # Duplicate address detection has nobody to ask on a TUN and would only cost a second.
        nodad = " nodad" if ip_interface(self.interface).version == 6 else ""
        return f"address add {self._words()}{nodad}"

    def before(self, link: LinkInfo) -> Before:
        return {"ifindex": link["ifindex"]}

    def undo(self, before: Before, link: LinkInfo) -> str | None:
        wanted = ip_interface(self.interface)
        for entry in link.get("addr_info", ()):
            # An empty entry stands for an address that ip(8) filtered out.
            if "local" in entry and (
                ip_interface(f"{entry['local']}/{entry['prefixlen']}") == wanted
                and (self.peer is None or entry.get("address") == self.peer)
            ):
                return f"address delete {self._words()}"
        return None


_LAST = 4_000_000_000
"""A metric that no other route's is higher than."""


@dataclass(frozen=True)
class RouteVia:
    """``destination`` is reached through the interface.

    :ivar table: the routing table, None for the main one.
    :ivar route_type: ``unicast``, or ``throw`` or ``unreachable``, which no interface takes along
        when it goes. An unreachable one may stand below another to the same destination: it counts
        when that one is gone.
    """

    kind: ClassVar[str] = "route"
    device: str
    destination: str
    table: int | None = None
    route_type: str = "unicast"

    def _words(self) -> str:
        if self.route_type == "unicast":
            words = f"{self.destination} dev {self.device}"
        else:
            words = f"{self.route_type} {self.destination}"
        if self.table is not None:
            words += f" table {self.table}"
        return f"{words} metric {_LAST}" if self.route_type == "unreachable" else words

    def do(self) -> str:
        return f"route add {self._words()}"

    def before(self, link: LinkInfo) -> Before:
        return {"ifindex": link["ifindex"]}

    def undo(self, before: Before, link: LinkInfo) -> str | None:
        return f"route delete {self._words()}"


@dataclass(frozen=True)
class PolicyRule:
    """What does not carry our mark asks our routing table first."""

    kind: ClassVar[str] = "rule"
    family: int
    table: int

    def _words(self) -> str:
        return f"priority {PRIORITY} not fwmark {MARK:#x} lookup {self.table}"

    def do(self) -> str:
        return f"rule add {self._words()}"

    def undo(self) -> str:
        return f"rule delete {self._words()}"


@dataclass(frozen=True)
class FirewallTable:
    """Our table of nftables. Another value for the same table takes its place at once."""

    kind: ClassVar[str] = "firewall"
    firewall: Firewall

    @property
    def place(self) -> str:
        return table_name(self.firewall)


@dataclass(frozen=True)
class KillSwitchSet:
    """The kill switch stands. Not among what is undone, so that it outlives us."""

    kind: ClassVar[str] = "kill-switch"
    kill_switch: KillSwitch


@dataclass(frozen=True)
class NameServersTaken:
    """Names are asked of these. Others for the same interface take their place at once."""

    kind: ClassVar[str] = "name-servers"
    name_servers: NameServers

    @property
    def place(self) -> str:
        return f"name servers of {self.name_servers.device}"


@dataclass(frozen=True)
class Sysctl:
    """A /proc/sys value; what was there before is known to the ledger, since hubs share these."""

    kind: ClassVar[str] = "sysctl"
    key: str
    value: str


@dataclass(frozen=True)
class SuperPackets:
    """The interface gets super-packets of less than so many bytes.

    A wish: what does not know it (ip(8) before 4.16, a kernel with a lower bound of its own) costs
    speed and no more, so it is done apart from the steps that must succeed.
    """

    kind: ClassVar[str] = "super-packets"
    device: str
    most: int

    def do(self) -> str:
        return f"link set dev {self.device} gso_max_size {self.most}"

    def before(self, link: LinkInfo) -> Before:
        return {"ifindex": link["ifindex"], "most": link.get("gso_max_size")}

    def undo(self, before: Before, link: LinkInfo) -> str | None:
        if before["most"] is None or link.get("gso_max_size") != self.most:
            return None  # ip(8) does not tell, or somebody else set another one meanwhile
        return f"link set dev {self.device} gso_max_size {before['most']}"


LinkStep = MTU | Quiet | Up | AddressOn | RouteVia | SuperPackets
IPStep = LinkStep | PolicyRule
UndoneStep = IPStep | Sysctl | FirewallTable | NameServersTaken
Step = UndoneStep | KillSwitchSet

_KINDS: dict[str, type[Any]] = {
    each.kind: each
    for each in (
        MTU,
        Quiet,
        Up,
        AddressOn,
        RouteVia,
        PolicyRule,
        FirewallTable,
        SuperPackets,
        Sysctl,
        NameServersTaken,
    )
}
_ORDER = {kind: number for number, kind in enumerate(_KINDS)}


def order(step: UndoneStep) -> int:
    """Of two steps the one with the higher number is made later and undone sooner.

    So that what leads traffic somewhere goes before that goes itself, in whatever order a service
    came to want the two.
    """
    return _ORDER[step.kind]


def on_link(step: UndoneStep) -> bool:
    """Does it go away by itself with its interface?"""
    if isinstance(step, RouteVia):
        return step.route_type == "unicast"
    return isinstance(step, LinkStep)


def place(step: UndoneStep) -> str | None:
    """Of two steps with the same place the later one replaces the other; None for no place."""
    return step.place if isinstance(step, FirewallTable | NameServersTaken) else None


def step_to_json(step: UndoneStep) -> dict[str, Any]:
    """A step as a JSON object, for the journal."""
    data = {"kind": step.kind, **asdict(step)}
    if isinstance(step, FirewallTable):
        data["firewall"]["kind"] = step.firewall.kind
    return data


def step_from_json(data: Mapping[str, Any]) -> UndoneStep:
    """The reverse of :func:`step_to_json`.

    :raises KeyError, TypeError, ValueError: not what we wrote.
    """
    fields = dict(data)
    kind = _KINDS[fields.pop("kind")]
    if kind is FirewallTable:
        return FirewallTable(received.firewall(fields["firewall"]))
    if kind is NameServersTaken:
        return NameServersTaken(received.name_servers(fields["name_servers"]))
    made: UndoneStep = kind(**fields)
    return made


def steps_to_drop(made: Iterable[UndoneStep], wanted: Iterable[Step]) -> list[UndoneStep]:
    """Those of ``made`` (in the order they were made) that must be undone to come to ``wanted``.

    The kernel takes more away than one asks for: with an interface's first IPv4 address go the
    others of its subnet, with its last one and with the link itself go the routes, in every table.
    So once an address or link goes, all later addresses and routes of that interface go too, to be
    made anew. Rules, tables of nftables and routes that lead nowhere hang on no interface.
    """
    keep = set(wanted)
    shaken: set[str] = set()
    dropped: list[UndoneStep] = []
    for step in made:
        dependent = (
            isinstance(step, AddressOn | RouteVia) and on_link(step) and step.device in shaken
        )
        if step in keep and not dependent:
            continue
        dropped.append(step)
        if isinstance(step, Up | AddressOn):
            shaken.add(step.device)
    return dropped
