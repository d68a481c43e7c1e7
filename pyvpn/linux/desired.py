"""What Linux should look like, as a value: the service says the whole, the child makes it so."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from attrs import asdict, field, frozen

from pyvpn.linux.firewall import Firewall, KillSwitch
from pyvpn.linux.nameservers import NameServers


@frozen
class Address:
    """One address of an interface.

    :ivar interface: address and prefix length, as ``10.10.0.1/24``.
    :ivar peer: the address of the other end (``--tun-dstaddr``), None for none. The prefix length
        then belongs to the peer's side, as in ``ip address add LOCAL peer PEER/24``.
    """

    interface: str
    peer: str | None = None


@frozen
class Link:
    """One TUN interface, up, with its MTU (bytes) and all of its addresses.

    :ivar gso_max_size: bytes that the kernel's super-packets for the interface stay below, None to
        leave that as it is. A wish: where ip(8) or the kernel refuses, the rest stands.
    """

    name: str
    mtu: int
    addresses: tuple[Address, ...] = ()
    gso_max_size: int | None = None


@frozen
class Route:
    """``destination`` (a network, ``10.20.0.0/16``) is reached through interface ``device``.

    :ivar table: the routing table (:data:`pyvpn.linux.firewall.TABLES`), None for the main one.
    :ivar kind: ``unicast``; or, in a table of ours alone, ``throw``: the tables after this one
        decide, and ``unreachable``: nothing gets there. For these two ``device`` is the TUN that
        the table belongs to.
    """

    destination: str
    device: str
    table: int | None = None
    kind: Literal["unicast", "throw", "unreachable"] = "unicast"


@frozen
class Rule:
    """What does not carry :data:`pyvpn.linux.firewall.MARK` is routed by ``table`` before others.

    :ivar family: 4 or 6.
    :ivar device: the TUN that the table belongs to.
    """

    family: Literal[4, 6]
    table: int
    device: str


@frozen
class SystemState:
    """All that we want of Linux; what was there before and is not named any more goes away.

    :ivar sysctls: key → value; a key is a path below /proc/sys, with slashes because interface
        names may hold dots: ``net/ipv4/ip_forward``. They are written in this order.
    :ivar firewall: our table of nftables.
    :ivar kill_switch: set or replaced if it is here. It does not go away with the rest.
    """

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: Mapping[str, str] = field(factory=dict)
    rules: tuple[Rule, ...] = ()
    firewall: Firewall | None = None
    kill_switch: KillSwitch | None = None
    name_servers: NameServers | None = None

    def to_json(self) -> dict[str, Any]:
        """The form that goes to the privileged child, for ``json.dumps``."""
        firewall, switch, servers = self.firewall, self.kill_switch, self.name_servers
        return {
            "links": [asdict(link) for link in self.links],
            "routes": [asdict(route) for route in self.routes],
            "sysctls": dict(self.sysctls),
            "rules": [asdict(rule) for rule in self.rules],
            "firewall": firewall and {"kind": firewall.kind, **dataclasses.asdict(firewall)},
            "kill_switch": switch and dataclasses.asdict(switch),
            "name_servers": servers and dataclasses.asdict(servers),
        }
