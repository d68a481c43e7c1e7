"""What a hub's word and this machine's wishes mean for Linux: values in, a desired state out.

The hub says what can be reached through it; who uses this machine says what shall be; the machine's
own networks say what cannot. All routes stand in a table of our own that a rule asks before the
main one, so that no route which DHCP has put there takes anything away from the VPN
(docs/networking.rst). With a foreign WireGuard server its file says both of the first two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import Final, Literal

from attrs import field, frozen

from pyvpn.core.configtlv import Config
from pyvpn.errors import ConfigError
from pyvpn.linux.desired import Link, Route, Rule, SystemState
from pyvpn.linux.firewall import TABLES, ClientFirewall
from pyvpn.linux.nameservers import NameServers
from pyvpn.routes import WIDEST, overlapping
from pyvpn.values import Network, within

#: Name servers that glibc asks (resolv.conf(5)).
MAX_NAME_SERVERS: Final = 3

#: A note, and why all traffic cannot be asked for.
NOT_OFFERED: Final = (
    "this hub offers no way to the internet: there it takes --internet, or"
    " 'pyvpn network set --internet on'"
)

DEFAULTS: Final[dict[int, Network]] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}

#: Where clouds tell a machine its keys: nobody else's to answer.
LINK_LOCAL: Final = IPv4Network("169.254.0.0/16")

#: Public addresses, of each family, that may go through the VPN without all traffic: four times a
#: /8, or as much of all that IPv6 has given out so far.
MOST_PUBLIC: Final = {4: 2**26, 6: 2**119}

#: What lets answers to marked datagrams in where the kernel checks by which way they should come
#: (rp_filter): it then asks its routes with the mark. See Documentation/networking/ip-sysctl.
SOURCE_BY_MARK: Final = "net/ipv4/conf/all/src_valid_mark"


@frozen
class Wishes:
    """What this machine's user wants of the network, as the options of the client say it.

    :ivar closed: this machine forwards nothing from the VPN but to what it shares.
    :ivar table: whether any route or rule is to be set; without, what is behind the hub is nothing
        that we know.
    :ivar only_dns: the hub's name servers are asked for all names, even where only some of the
        traffic goes through it.
    :ivar mtu: of the TUN at most, bytes.
    :ivar peer: ``--tun-dstaddr``.
    :ivar netmask: ``--tun-netmask``, the prefix length of the TUN's IPv4 network.
    """

    all_traffic: bool = False
    lan_access: bool | None = None
    include: tuple[Network, ...] = ()
    exclude: tuple[Network, ...] = ()
    routes: bool = True
    dns: bool = True
    share: tuple[Network, ...] = ()
    kill_switch: bool = False
    closed: bool = True
    table: bool = True
    only_dns: bool = False
    mtu: int | None = None
    peer: IPv4Address | IPv6Address | None = None
    netmask: int | None = None

    @property
    def keeps_lan(self) -> bool:
        """``lan_access``; where nobody chose it goes with the kill switch."""
        return not self.kill_switch if self.lan_access is None else self.lan_access


@frozen
class Machine:
    """What there is on this machine.

    :ivar tun: the name of our TUN, ``index`` its number.
    :ivar ports: our own local UDP ports.
    :ivar hub: the hub's outer addresses.
    :ivar lans: private networks that it is connected to, by the interface; none of ours.
    :ivar ipv6: whether a TUN can have IPv6 addresses.
    :ivar forwards: whether it forwards already, be it for others.
    :ivar sysctls: what forwards here, if it has to: :func:`pyvpn.linux.forwarding.hub_sysctls`.
    """

    tun: str
    index: int
    ports: tuple[int, ...] = ()
    hub: tuple[str, ...] = ()
    lans: tuple[tuple[str, Network], ...] = ()
    ipv6: bool = True
    forwards: bool = False
    sysctls: dict[str, str] = field(factory=dict)


@frozen
class Plan:
    """What is to be made so.

    :ivar routes: what lies behind the hub beside the networks of our own addresses.
    :ivar full: the families, 4 and 6, of which all traffic goes through the hub. With all traffic
        wished for the other one leads nowhere.
    :ivar notes: what is not as it was asked for, a line each.
    """

    state: SystemState
    routes: tuple[Network, ...]
    full: frozenset[int]
    notes: tuple[str, ...]


def plan(
    told: Config, wishes: Wishes, machine: Machine, link: Link, kept: Sequence[str] = ()
) -> Plan:
    """Make the desired state.

    :param told: what the hub has told.
    :param link: the TUN with its addresses and its MTU.
    :param kept: lines that are known already and come before the notes.
    :raises ConfigError: two of the networks cannot both be; the line names them, and what helps.
    """
    notes = list(kept)
    own = tuple(net.network for net in told.addresses if net.version == 4 or machine.ipv6)
    offered = told.routes if wishes.routes else ()
    through = _through(offered, wishes, own, notes)
    _check(own, through, wishes, machine)
    families = _families(wishes, machine)
    live = [family for family in families if family == 4 or machine.ipv6]
    full = _full(offered, wishes, notes).intersection(live)
    reached = (*own, *through, *(DEFAULTS[family] for family in full))
    name_servers = _name_servers(told, wishes, machine, reached, notes)
    if name_servers is not None and wishes.table:
        # Each has a way of its own: no network around us takes one by having its address.
        asked = (ip_network(server) for server in name_servers.servers)
        through += [one for one in asked if one not in (*own, *through)]
    around = _around(told, wishes, machine, (*own, *through), notes)
    table = TABLES + machine.index
    routes: dict[Network, Route] = {}
    for network in (*own, *through, *(DEFAULTS[family] for family in sorted(full))):
        if network.version in live:
            routes[network] = Route(str(network), machine.tun, table)
    for network in around:
        if network.version in live:
            routes.setdefault(network, Route(str(network), machine.tun, table, "throw"))
    # Nothing leaves around the tunnel because the hub has no way for it, or while the kernel has
    # dropped a route with an address of the TUN.
    nowhere = [
        Route(str(DEFAULTS[family]), machine.tun, table, "unreachable")
        for family in families
        if wishes.all_traffic
    ]
    state = SystemState(
        links=(link,),
        routes=(*nowhere, *routes.values()),
        rules=tuple(Rule(family, table, machine.tun) for family in families),
        sysctls={
            **({SOURCE_BY_MARK: "1"} if families else {}),
            **(machine.sysctls if wishes.share else {}),
        },
        firewall=ClientFirewall(
            machine.tun,
            tuple(str(interface.ip) for interface in told.addresses),
            machine.ports,
            tuple(map(str, wishes.share)),
            tuple(map(str, own)),
            closed=wishes.closed and machine.forwards,
        ),
        name_servers=name_servers,
    )
    return Plan(
        state,
        (*through, *(DEFAULTS[family] for family in sorted(full))),
        frozenset(full),
        tuple(notes),
    )


def default_families(networks: Iterable[Network]) -> set[int]:
    """The families, 4 and 6, of which ``networks`` have everything, be it in pieces."""
    return {network.version for network in _collapsed(networks) if network.prefixlen == 0}


def _through(
    offered: tuple[Network, ...], wishes: Wishes, own: tuple[Network, ...], notes: list[str]
) -> list[Network]:
    """The networks, beside our own and beside everything, that are reached through the hub."""
    included = frozenset(wishes.include)
    narrow = [net for net in offered if not _is_wide(net)]
    # 256 times a /8 are everything, too.
    pieces = [net for net in _collapsed(narrow) if _is_wide(net)]
    wide = [net for net in offered if _is_wide(net) and net.prefixlen] + pieces
    if wishes.all_traffic:
        narrow += wide
    else:
        narrow = [net for net in narrow if not any(within(net, one) for one in pieces)]
        for version in (4, 6):
            public = [net for net in narrow if net.version == version and not net.is_private]
            if _size((*public, *own), version) > MOST_PUBLIC[version]:
                narrow = [net for net in narrow if net not in public]
                notes.append(
                    f"the hub's {len(public)} public IPv{version} routes are not taken: so many"
                    " addresses need --all-traffic"
                )
        if wide:
            notes.append(
                f"the hub's routes to {', '.join(map(str, wide))} are not taken: so wide ones"
                " need --all-traffic"
            )
    found: dict[Network, None] = {}
    for network in (*narrow, *wishes.include):
        # The user's word counts more than the hub's.
        unwanted = network not in included and any(within(network, one) for one in wishes.exclude)
        if not unwanted and network not in own:
            found[network] = None
    return list(found)


def _size(networks: Iterable[Network], version: int) -> int:
    """How many public addresses of a family they have."""
    return sum(
        net.num_addresses
        for net in _collapsed(networks)
        if net.version == version and not net.is_private
    )


def _is_wide(network: Network) -> bool:
    return network.prefixlen < WIDEST[network.version]


def _full(offered: tuple[Network, ...], wishes: Wishes, notes: list[str]) -> set[int]:
    if not wishes.all_traffic:
        return set()
    full = default_families(offered)
    if not full:
        notes.append(f"--all-traffic: {NOT_OFFERED}; until then nothing beyond the VPN is reached")
    return full


def _around(
    told: Config,
    wishes: Wishes,
    machine: Machine,
    inside: tuple[Network, ...],
    notes: list[str],
) -> list[Network]:
    """What stays outside the tunnel though all traffic, or a wider network, goes through it.

    A network that this machine is in does so only beside all traffic: who runs it chose its
    addresses, and could choose those of a host behind the VPN (TunnelCrack, LocalNet).
    """
    around = list(wishes.exclude)
    for network in wishes.exclude:
        for one in inside:
            if within(one, network):
                notes.append(
                    f"--exclude {network}: {one} is the VPN's and goes through it all the same"
                )
    included = frozenset(wishes.include)
    around += [network for network in told.excluded if network not in included]
    if wishes.all_traffic and wishes.keeps_lan:
        around.append(LINK_LOCAL)
    for interface, lan in machine.lans if wishes.keeps_lan else ():
        holding = [one for one in inside if within(lan, one)]
        wider = [one for one in holding if not _is_wide(one)]
        if not wider and (holding or wishes.all_traffic):
            around.append(lan)
        elif wider and lan not in wishes.exclude:
            notes.append(
                f"{lan} of interface {interface} is in the VPN's {wider[0]}, so it is looked for"
                f" behind the hub; --exclude {lan} keeps it here"
            )
    return [network for network in dict.fromkeys(around) if network not in inside]


def _check(
    own: Sequence[Network], through: Sequence[Network], wishes: Wishes, machine: Machine
) -> None:
    """Refuse what would cut this machine off, or make two networks of one address.

    :raises ConfigError: naming both.
    """
    for version in (4, 6):
        if _size(own, version) > MOST_PUBLIC[version]:
            raise ConfigError(
                f"the hub gives this machine {', '.join(map(str, own))} as the VPN's own networks:"
                " so much of the internet cannot be one"
            )
    included = frozenset(wishes.include)
    for network in through:
        named = f"--include {network}" if network in included else f"the hub's route {network}"
        for text in machine.hub:
            if ip_address(text) in network and not _is_wide(network):
                raise ConfigError(
                    f"{named} holds the hub's own address {text}: that would lead into the tunnel"
                    f" what is outside it; leave it out with --exclude {network}"
                )
        for interface, lan in machine.lans:
            if wishes.keeps_lan and within(network, lan) and network not in included:
                raise ConfigError(
                    f"{named} is in the network {lan} of interface {interface} here; leave it out"
                    f" with --exclude {network}, or take it for the VPN's with --include {network}"
                )
    for network in wishes.include:
        if network.prefixlen == 0:
            raise ConfigError(f"--include {network} is everything: use --all-traffic for that")
        if network in wishes.exclude:
            raise ConfigError(f"--include {network} and --exclude {network} exclude each other")
    for network in wishes.share:
        if (other := overlapping(network, through)) is not None:
            raise ConfigError(
                f"--share {network} overlaps {other}, which the hub says is elsewhere; one of"
                " them needs another network"
            )


def _name_servers(
    told: Config,
    wishes: Wishes,
    machine: Machine,
    reached: Sequence[Network],
    notes: list[str],
) -> NameServers | None:
    if not wishes.dns:
        return None
    servers = [server for server in told.dns if machine.ipv6 or server.version == 4]
    if wishes.table:
        elsewhere = [server for server in servers if not _holds(reached, server)]
        servers = [server for server in servers if server not in elsewhere]
        if elsewhere:
            named = ", ".join(map(str, elsewhere))
            notes.append(f"not asked for names, since they are not behind the VPN: {named}")
    if wishes.all_traffic and not servers:
        notes.append("no name server is behind the VPN: questions for names go where they went")
    if not servers:
        return None
    return NameServers(
        machine.tun,
        tuple(map(str, servers[:MAX_NAME_SERVERS])),
        told.search,
        exclusive=wishes.all_traffic or wishes.only_dns,
    )


def _holds(networks: Iterable[Network], address: IPv4Address | IPv6Address) -> bool:
    return any(address.version == net.version and address in net for net in networks)


def _families(wishes: Wishes, machine: Machine) -> tuple[Literal[4, 6], ...]:
    """Those that there are routes and rules of.

    With all traffic it is both: IPv6 may be switched on later.
    """
    if not wishes.table:
        return ()
    return (4, 6) if machine.ipv6 or wishes.all_traffic else (4,)


def _collapsed(networks: Iterable[Network]) -> list[Network]:
    """The fewest networks with the same addresses."""
    networks = list(networks)
    return [
        *collapse_addresses(net for net in networks if isinstance(net, IPv4Network)),
        *collapse_addresses(net for net in networks if isinstance(net, IPv6Network)),
    ]
