"""What a hub's settings mean for Linux and for its clients. Nothing is asked or changed here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Final

from attrs import evolve, field, frozen

from pyvpn.core.configtlv import Pushed
from pyvpn.core.leases import AddressPool
from pyvpn.linux.desired import Address, Link, SystemState
from pyvpn.linux.desired import Route as LinuxRoute
from pyvpn.linux.firewall import HubFirewall
from pyvpn.linux.inuse import NetworksInUse
from pyvpn.routes import MOST_ROUTES, Route, vpn_conflict
from pyvpn.state.settings import NetworkSettings
from pyvpn.values import Address as IPAddress
from pyvpn.values import Network

#: Said once where nftables are missing: packets are forwarded then as the kernel's routes say.
UNGUARDED: Final = (
    "nft does not work here: what clients send beyond the VPN is not kept back; install nftables"
)


@frozen
class Machine:
    """What there is on this machine to work with.

    :ivar sysctls: what the hub sets.
    :ivar nft: whether nftables can be used.
    :ivar endpoints: the addresses by which clients reach the hub, as far as they are known.
    """

    tun: str
    mtu: int
    sysctls: Mapping[str, str]
    nft: bool = True
    in_use: NetworksInUse = field(factory=NetworksInUse)
    endpoints: Collection[IPAddress] = ()


@frozen
class Known:
    """Whom a hub knows.

    :ivar users: their names.
    :ivar peers: stock peers' names → what was allowed to each beyond the VPN's own networks.
    """

    users: Collection[str] = ()
    peers: Mapping[str, Sequence[Network]] = field(factory=dict)


@frozen
class Place:
    """A network beyond the VPN, and where it is.

    :ivar route: as it was set; or ``peer``, the name of the stock peer behind which it is.
    :ivar problem: why it is left out, None if it is routed.
    """

    network: Network
    route: Route | None = None
    peer: str | None = None
    problem: str | None = None

    def where(self) -> str:
        """The place in words."""
        return f"behind WireGuard peer {self.peer}" if self.route is None else self.route.where()

    @property
    def behind(self) -> bool:
        """Whether it is reached through the VPN, and not on the hub's side."""
        return self.route is None or self.route.user is not None


@frozen
class Plan:
    """What follows from settings.

    :ivar subnets: as :meth:`pyvpn.core.server.VPNServer.set_network` takes it.
    :ivar places: each network beyond the VPN that somebody has named.
    """

    state: SystemState
    subnets: Mapping[tuple[str, bytes | None], tuple[Network, ...]]
    places: tuple[Place, ...]

    def problems(self) -> list[str]:
        """What was left out, a line each for people."""
        return [f"{place.problem}; left out" for place in self.places if place.problem]

    def routed(self) -> list[Network]:
        """The networks beyond the VPN that clients reach."""
        return [place.network for place in self.places if place.problem is None]


def plan(settings: NetworkSettings, pool: AddressPool, known: Known, machine: Machine) -> Plan:
    """Work out what Linux is to be, and which networks lie behind whom."""
    places = _judged(settings, networks(pool), known, machine)
    routed = [place for place in places if place.problem is None]
    behind = [str(place.network) for place in routed if place.behind]
    firewall = HubFirewall(
        device=machine.tun,
        networks=tuple(map(str, networks(pool))),
        internet=settings.internet,
        client_to_client=settings.client_to_client,
        subnets=tuple(behind),
        reachable=tuple(str(place.network) for place in routed if not place.behind),
    )
    subnets: dict[tuple[str, bytes | None], tuple[Network, ...]] = {}
    for place in routed:
        holder = None if place.route is None else place.route.holder
        if holder is not None:
            subnets[holder] = (*subnets.get(holder, ()), place.network)
    state = SystemState(
        links=(Link(machine.tun, machine.mtu, tuple(map(Address, interfaces(pool)))),),
        routes=tuple(LinuxRoute(network, machine.tun) for network in behind),
        sysctls=machine.sysctls,
        firewall=firewall if machine.nft else None,
    )
    return Plan(state, subnets, tuple(places))


def pushed(
    settings: NetworkSettings, pool: AddressPool, routed: Iterable[Network], answering: bool
) -> Pushed:
    """What clients are told.

    :param routed: :meth:`Plan.routed`.
    :param answering: whether the hub's own name server does its work.
    """
    routes = list(routed)
    if settings.internet:
        routes += [
            ip_network("0.0.0.0/0" if own.version == 4 else "::/0") for own in networks(pool)
        ]
    dns: tuple[IPAddress, ...] = ()
    if settings.dns == "hub":
        # Our names are answered by nobody else.
        dns = hub_addresses(pool) if answering else ()
    elif settings.dns != "none":
        dns = settings.dns
    return Pushed(
        routes=tuple(dict.fromkeys(routes)),
        excluded=settings.excluded,
        dns=dns,
        search=settings.domains if dns else (),
    )


def needs_nft(settings: NetworkSettings) -> str | None:
    """What of the settings cannot be done without nftables, None if nothing."""
    if settings.internet:
        return "internet for clients (--internet)"
    if not settings.client_to_client:
        return "keeping clients apart (--no-client-to-client)"
    if any(route.user is None for route in settings.routes):
        return "reaching networks on the hub's side (--route)"
    return None


def hub_addresses(pool: AddressPool) -> tuple[IPAddress, ...]:
    """The hub's own inner addresses, IPv4 first."""
    return (pool.hub4,) if pool.hub6 is None else (pool.hub4, pool.hub6)


def interfaces(pool: AddressPool) -> list[str]:
    """The hub's own inner addresses with their prefix lengths."""
    own = zip(hub_addresses(pool), networks(pool), strict=True)
    return [f"{address}/{network.prefixlen}" for address, network in own]


def networks(pool: AddressPool) -> list[Network]:
    """The VPN's own networks, IPv4 first."""
    return [pool.network4] if pool.network6 is None else [pool.network4, pool.network6]


def _judged(
    settings: NetworkSettings, vpn: list[Network], known: Known, machine: Machine
) -> list[Place]:
    """Each network with what stands against it; those of peers after those that were set."""
    places: list[Place] = []
    taken = _Taken()
    left = MOST_ROUTES
    for place in _named(settings.routes, known.peers):
        problem = _problem(place, vpn, known) or taken.by(place)
        if problem is None and place.network in settings.excluded:
            problem = f"{place.network} is kept out of the tunnel (--exclude)"
        if problem is None and place.behind:
            problem = machine.in_use.taken(place.network)
        elif problem is None:
            problem = machine.in_use.outer(place.network, machine.endpoints)
        if problem is None and not left:
            problem = f"{place.network} is one more than the {MOST_ROUTES} that clients are told"
        if problem is None:
            taken.add(place)
            left -= 1
        places.append(evolve(place, problem=problem))
    return places


def _named(routes: Iterable[Route], peers: Mapping[str, Sequence[Network]]) -> Iterator[Place]:
    for route in routes:
        yield Place(route.network, route)
    for name, allowed in sorted(peers.items()):
        for network in allowed:
            yield Place(network, None, name)


def _problem(place: Place, vpn: list[Network], known: Known) -> str | None:
    """What is wrong with a network whoever else there is."""
    network, route = place.network, place.route
    if not network.prefixlen:
        return (
            f"{network} of WireGuard peer '{place.peer}' is everything: the hub keeps its own way"
        )
    if route is not None and route.user is not None and route.user not in known.users:
        return f"{network} is behind user '{route.user}', who does not exist"
    return vpn_conflict(network, vpn)


class _Taken:
    """The networks that were set and are used so far.

    Plain numbers: a thousand networks are compared with each other in a tenth of the time.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, Place]] = []

    def add(self, place: Place) -> None:
        # Of the peers' no two are the same, and of two that overlap the longer prefix wins.
        if place.route is not None:
            self._rows.append((*_range(place.network), place))

    def by(self, place: Place) -> str | None:
        """Why a network cannot stand beside these, None if it can."""
        version, first, last = _range(place.network)
        for row_version, row_first, row_last, other in self._rows:
            if (
                version == row_version
                and first <= row_last
                and row_first <= last
                and (place.network == other.network or place.where() != other.where())
            ):
                return f"{place.network} {place.where()} overlaps {other.network} {other.where()}"
        return None


def _range(network: Network) -> tuple[int, int, int]:
    return network.version, int(network[0]), int(network[-1])
