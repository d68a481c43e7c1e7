"""Networks that a hub's clients reach through it: which may be, and what stands against one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, Literal

from attrs import frozen

from pyvpn.errors import ConfigError
from pyvpn.values import Address, Network, networks

#: Whom clients ask for names: the hub itself, nobody new, or these servers.
DNS = Literal["hub", "none"] | tuple[Address, ...]

#: The widest network of each family that a client takes without --all-traffic (docs/protocol.rst,
#: "HELLO and CONFIG"): a hub must not take by halves what it may not take as a whole. fc00::/7 is
#: all that is private in IPv6, 10.0.0.0/8 the widest in IPv4.
WIDEST: Final = {4: 8, 6: 7}
#: Name servers, and search domains less our own: what a CONFIG frame may hold.
MOST_SERVERS: Final = 16
MOST_DOMAINS: Final = 15
#: A CONFIG frame holds 1,024 of both together, and the two of the internet are among them.
MOST_ROUTES: Final = 900
MOST_EXCLUDED: Final = 100

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"  # RFC 5890 2.3.1
_DOMAIN = re.compile(rf"(?!.{{254}}){_LABEL}(\.{_LABEL})*")


@frozen
class Route:
    """A network that clients reach through the hub.

    :ivar user: the user behind one of whose devices it lies; None: it is on the hub's side.
    :ivar device: the device's id, so that it may change its name; None: whichever device of the
        user came last.
    """

    network: Network
    user: str | None = None
    device: bytes | None = None

    @property
    def holder(self) -> tuple[str, bytes | None] | None:
        """Behind whom it lies: (user, device id or None), None for the hub's side."""
        return None if self.user is None else (self.user, self.device)

    def where(self, device_name: str = "") -> str:
        """The place in words, such as ``behind alice/laptop``; without a name a device's id."""
        if self.user is None:
            return "on the hub's side"
        if self.device is None:
            return f"behind {self.user}"
        return f"behind {self.user}/{device_name or self.device.hex()[:8]}"


def routes(text: str) -> tuple[Network, ...]:
    """Networks to be routed, with commas between.

    :raises ConfigError: one can never be.
    """
    found = networks(text)
    if not found:
        raise ConfigError("give a network, like 192.168.7.0/24")
    for network in found:
        if not network.prefixlen:
            raise ConfigError(
                f"{network} is everything; to offer clients the internet take --internet, or run:"
                " pyvpn network set --internet on"
            )
        if network.prefixlen < WIDEST[network.version]:
            raise ConfigError(
                f"{network} is too wide for a route; the widest are /{WIDEST[4]} and, of IPv6,"
                f" /{WIDEST[6]}"
            )
        if network.is_link_local or network.is_unspecified:
            raise ConfigError(f"{network} is never routed: it is of one link alone")
    return found


def excluded(text: str) -> tuple[Network, ...]:
    """Networks that clients keep out of the tunnel, with commas between; ``none`` for none."""
    found = () if text.strip() == "none" else routes(text)
    if len(found) > MOST_EXCLUDED:
        raise ConfigError(f"{len(found)} networks are too many; the most are {MOST_EXCLUDED}")
    return found


def name_servers(text: str) -> DNS:
    """``hub``, ``none``, or addresses with commas between."""
    word = text.strip()
    if word == "hub":
        return "hub"
    if word == "none":
        return "none"
    found: dict[Address, None] = {}
    for part in word.split(","):
        try:
            address = ip_address(part.strip())
        except ValueError:
            raise ConfigError(
                f"'{part.strip()}' is no name server; give hub, none, or addresses with commas"
            ) from None
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            raise ConfigError(f"clients cannot ask {address}; give an address they can reach")
        found[address] = None
    if len(found) > MOST_SERVERS:
        raise ConfigError(f"{len(found)} name servers are too many; the most are {MOST_SERVERS}")
    return tuple(found)


def domains(text: str) -> tuple[str, ...]:
    """Search domains with commas between, in small letters; ``none`` for none."""
    if text.strip() == "none":
        return ()
    found: dict[str, None] = {}
    for part in text.split(","):
        domain = part.strip().removesuffix(".").lower()
        if not _DOMAIN.fullmatch(domain):
            raise ConfigError(
                f"'{part.strip()}' is no domain; write letters, digits, hyphens and dots, and other"
                " letters as xn--…"
            )
        found[domain] = None
    if len(found) > MOST_DOMAINS:
        raise ConfigError(f"{len(found)} domains are too many; the most are {MOST_DOMAINS}")
    return tuple(found)


# -- conflicts -------------------------------------------------------------------------------------


def overlapping(network: Network, others: Iterable[Network]) -> Network | None:
    """The first of ``others`` that shares addresses with ``network``, None if none does."""
    for other in others:
        if network.version == other.version and network.overlaps(other):
            return other
    return None


def vpn_conflict(network: Network, vpn: Iterable[Network]) -> str | None:
    """Why a network cannot be routed in a VPN of these networks, None if it can."""
    vpn = list(vpn)
    if not any(own.version == network.version for own in vpn):
        return f"{network} is IPv{network.version}, which this VPN has not"
    own = overlapping(network, vpn)
    return None if own is None else f"{network} overlaps the VPN's own network {own}"


def unreached(servers: DNS, networks: Iterable[Network]) -> list[str]:
    """A warning for each private address of a name server that no network leads to.

    Clients would look for it where they are.
    """
    networks = list(networks)
    return [
        f"clients have no way to the name server {address}; add a route to its network"
        for address in (servers if isinstance(servers, tuple) else ())
        if address.is_private and not any(address in network for network in networks)
    ]


def exclusion_conflict(network: Network, vpn: Iterable[Network]) -> str | None:
    """Why a network cannot be kept out of the tunnel; one around the VPN's own can be."""
    own = overlapping(network, vpn)
    if own is None or own.prefixlen > network.prefixlen:
        return None
    return f"{network} is part of the VPN's own network {own}"


def route_conflict(new: Route, others: Iterable[Route]) -> Route | None:
    """The first route that another one cannot stand beside.

    Within a network of the same place another one may lie; from elsewhere none may, even though
    the longer prefix would decide: who asked for either was not told of that.
    """
    for other in others:
        if other.network == new.network or (
            other.holder != new.holder and overlapping(new.network, (other.network,)) is not None
        ):
            return other
    return None
