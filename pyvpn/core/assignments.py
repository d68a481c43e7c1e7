"""What each client of a hub is given: its addresses, what lies behind it, what it is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TypeAlias

from pyvpn.core import control
from pyvpn.core.allowedips import AllowedIPs
from pyvpn.core.leases import Lease
from pyvpn.core.peer import Peer, ServerPeer

Network: TypeAlias = IPv4Network | IPv6Network
Interface: TypeAlias = IPv4Interface | IPv6Interface
Subnets: TypeAlias = Mapping[tuple[str, bytes | None], tuple[Network, ...]]
"""(user, device id) → networks behind that device; with None for the device it is the one of the
user that said HELLO last.
"""


class Assignments:
    """The addresses and networks of all clients, and the words in which they are told.

    :param allowed: the hub's table of who has which address.
    :param network4: the VPN's IPv4 network; clients get its prefix length with their address.
    :param network6: the same for IPv6, None for a network without.
    :param mtu: the inner MTU that clients are told, bytes.
    """

    def __init__(
        self,
        allowed: AllowedIPs[Peer],
        network4: IPv4Network,
        network6: IPv6Network | None,
        mtu: int,
    ) -> None:
        self._allowed = allowed
        self._network4 = network4
        self._network6 = network6
        self._mtu = mtu
        self._pushed = control.Pushed()
        self._subnets: Subnets = {}
        self._last_device: dict[str, bytes] = {}

    def change(self, pushed: control.Pushed, subnets: Subnets, peers: Iterable[ServerPeer]) -> bool:
        """Tell clients this from now on, and route networks to what has them behind it.

        :param peers: all there are.
        :returns: whether it is news.
        :raises LocalProtocolError: more than a CONFIG frame holds; nothing has changed.
        """
        if pushed == self._pushed and subnets == self._subnets:
            return False
        control.config_parts(0, self._config((), pushed.routes, pushed))
        self._pushed, self._subnets = pushed, dict(subnets)
        for peer in peers:
            if peer.lease is not None:
                self._route(peer, peer.lease)
        return True

    def said_hello(self, peer: ServerPeer) -> None:
        """From now on it is this device that is meant where one of its user's is."""
        self._last_device[peer.user] = peer.device

    def grant(self, peer: ServerPeer, lease: Lease) -> list[ServerPeer]:
        """Route a lease's addresses to a peer.

        :returns: who had one of them, and has none any more.
        """
        losers = []
        for address in _packed(lease):
            other = self._allowed.lookup(address)
            # A network behind another device may hold the address, which is no claim to it.
            if (
                isinstance(other, ServerPeer)
                and other is not peer
                and other.lease is not None
                and address in _packed(other.lease)
            ):
                self._allowed.remove_peer(other)
                other.lease = None
                losers.append(other)
        self._route(peer, lease)
        peer.lease = lease
        return losers

    def config(self, peer: ServerPeer, lease: Lease) -> control.Config:
        """What a client is told; not the way to what lies behind itself."""
        own = self._behind(peer)
        routes = tuple(route for route in self._pushed.routes if route not in own)
        return self._config(tuple(self._interfaces(lease)), routes, self._pushed)

    def _config(
        self, addresses: tuple[Interface, ...], routes: tuple[Network, ...], pushed: control.Pushed
    ) -> control.Config:
        return control.Config(
            addresses=addresses,
            routes=routes,
            excluded=pushed.excluded,
            dns=pushed.dns,
            search=pushed.search,
            mtu=self._mtu,
        )

    def _route(self, peer: ServerPeer, lease: Lease) -> None:
        """Take from a peer, and bring to it, what its lease and the networks behind it say."""
        self._allowed.remove_peer(peer)
        self._allowed.insert(IPv4Network(lease.ipv4), peer)
        if lease.ipv6 is not None:
            self._allowed.insert(IPv6Network(lease.ipv6), peer)
        for network in self._behind(peer):
            self._allowed.insert(network, peer)

    def _behind(self, peer: ServerPeer) -> tuple[Network, ...]:
        behind = self._subnets.get((peer.user, peer.device), ())
        if self._last_device.get(peer.user) == peer.device:
            behind += self._subnets.get((peer.user, None), ())
        return behind

    def _interfaces(self, lease: Lease) -> Iterator[Interface]:
        yield IPv4Interface((lease.ipv4, self._network4.prefixlen))
        if lease.ipv6 is not None and self._network6 is not None:
            yield IPv6Interface((lease.ipv6, self._network6.prefixlen))


def _packed(lease: Lease) -> list[bytes]:
    return [lease.ipv4.packed] + ([lease.ipv6.packed] if lease.ipv6 is not None else [])
