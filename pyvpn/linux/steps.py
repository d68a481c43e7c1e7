"""The single changes that a desired state is made of, and what undoes each of them.

A step is a value: two states are compared by comparing their steps. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import ip_interface
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class RouteVia:
    """``destination`` is reached through the interface."""

    kind: ClassVar[str] = "route"
    device: str
    destination: str

    def do(self) -> str:
        return f"route add {self.destination} dev {self.device}"

    def before(self, link: LinkInfo) -> Before:
        return {"ifindex": link["ifindex"]}

    def undo(self, before: Before, link: LinkInfo) -> str | None:
        return f"route delete {self.destination} dev {self.device}"


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
Step = LinkStep | Sysctl

_KINDS: dict[str, type[Any]] = {
    each.kind: each for each in (MTU, Quiet, Up, AddressOn, RouteVia, SuperPackets, Sysctl)
}


def step_to_json(step: Step) -> dict[str, Any]:
    """A step as a JSON object, for the journal."""
    return {"kind": step.kind, **asdict(step)}


def step_from_json(data: Mapping[str, Any]) -> Step:
    """The reverse of :func:`step_to_json`.

    :raises KeyError, TypeError: not what we wrote.
    """
    fields = dict(data)
    made: Step = _KINDS[fields.pop("kind")](**fields)
    return made


def steps_to_drop(made: Iterable[Step], wanted: Iterable[Step]) -> list[Step]:
    """Those of ``made`` (in the order they were made) that must be undone to come to ``wanted``.

    The kernel takes more away than one asks for: with an interface's first IPv4 address go the
    others of its subnet, with its last one and with the link itself go the routes. So once an
    address or link goes, all later addresses and routes of that interface go too, to be made anew.
    """
    keep = set(wanted)
    shaken: set[str] = set()
    dropped: list[Step] = []
    for step in made:
        dependent = isinstance(step, AddressOn | RouteVia) and step.device in shaken
        if step in keep and not dependent:
            continue
        dropped.append(step)
        if isinstance(step, Up | AddressOn):
            shaken.add(step.device)
    return dropped
