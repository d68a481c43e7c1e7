"""What Linux should look like, as a value: the service says the whole, the child makes it so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


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
    """``destination`` (a network, ``10.20.0.0/16``) is reached through interface ``device``."""

    destination: str
    device: str


@frozen
class SystemState:
    """All that we want of Linux; what was there before and is not named any more goes away.

    :ivar sysctls: key → value; a key is a path below /proc/sys, with slashes because interface
        names may hold dots: ``net/ipv4/ip_forward``. They are written in this order.
    """

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: Mapping[str, str] = field(factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The form that the privileged child reads: dicts, lists, strings and numbers."""
        return {
            "links": [
                {
                    "name": link.name,
                    "mtu": link.mtu,
                    "addresses": [
                        {"interface": address.interface, "peer": address.peer}
                        for address in link.addresses
                    ],
                    "gso_max_size": link.gso_max_size,
                }
                for link in self.links
            ],
            "routes": [
                {"destination": route.destination, "device": route.device} for route in self.routes
            ],
            "sysctls": dict(self.sysctls),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SystemState:
        """The reverse of :meth:`to_json`; shapes only, the child checks every value."""
        return cls(
            links=tuple(
                Link(
                    entry["name"],
                    entry["mtu"],
                    tuple(Address(one["interface"], one["peer"]) for one in entry["addresses"]),
                    entry["gso_max_size"],
                )
                for entry in data["links"]
            ),
            routes=tuple(Route(one["destination"], one["device"]) for one in data["routes"]),
            sysctls=dict(data["sysctls"]),
        )
