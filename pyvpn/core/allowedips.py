"""Which peer owns an inner address: longest prefix wins (WireGuard's cryptokey routing).

Asked twice per packet: where a packet from the TUN goes, and whether a packet from a peer may have
its source.
"""

from __future__ import annotations

from collections.abc import Hashable
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

PeerT = TypeVar("PeerT", bound=Hashable)

Network = IPv4Network | IPv6Network


class AllowedIPs(Generic[PeerT]):
    """A table network → peer. A peer is anything hashable but None; each network has one peer at
    most.
    """

    __slots__ = ("_hosts", "_networks", "_peers", "_wide4", "_wide6")

    def __init__(self) -> None:
        # Single addresses of both families share one dict of raw bytes: 4 and 16 byte keys cannot
        # meet, and a hub's leases are all of this kind. Nanoseconds per lookup (Python 3.11): 56
        # for a host entry, with 10 or with 10,000 of them; 68 for a miss; 250 for a match in the
        # longest of the wider prefix lengths, 40 more for each that is tried before.
        self._hosts: dict[bytes, PeerT] = {}
        # The rest, longest first: (bits to shift out, {shifted address: peer}).
        self._wide4: list[tuple[int, dict[int, PeerT]]] = []
        self._wide6: list[tuple[int, dict[int, PeerT]]] = []
        self._peers: dict[Network, PeerT] = {}
        self._networks: dict[PeerT, dict[Network, None]] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def lookup(self, address: bytes) -> PeerT | None:
        """The peer whose longest prefix covers ``address`` (4 or 16 bytes, network order), or
        None.
        """
        peer = self._hosts.get(address)
        if peer is not None:
            return peer
        wide = self._wide4 if len(address) == 4 else self._wide6
        if wide:
            number = int.from_bytes(address, "big")
            for shift, peers in wide:
                peer = peers.get(number >> shift)
                if peer is not None:
                    return peer
        return None

    def owner(self, network: Network) -> PeerT | None:
        """The peer that has exactly this ``network``, or None."""
        return self._peers.get(network)

    def insert(self, network: Network, peer: PeerT) -> None:
        """Give ``network`` to ``peer``, taking it from whoever had exactly this network before."""
        self.remove(network)
        self._peers[network] = peer
        self._networks.setdefault(peer, {})[network] = None
        shift = network.max_prefixlen - network.prefixlen
        if not shift:
            self._hosts[network.network_address.packed] = peer
            return
        wide = self._wide4 if network.version == 4 else self._wide6
        peers = next((peers for known, peers in wide if known == shift), None)
        if peers is None:
            peers = {}
            wide.append((shift, peers))
            wide.sort(key=_shift)
        peers[int(network.network_address) >> shift] = peer

    def remove(self, network: Network) -> None:
        """Forget exactly this ``network``; harmless when it is not there."""
        peer = self._peers.pop(network, None)
        if peer is None:
            return
        owned = self._networks[peer]
        del owned[network]
        if not owned:
            del self._networks[peer]
        shift = network.max_prefixlen - network.prefixlen
        if not shift:
            del self._hosts[network.network_address.packed]
            return
        wide = self._wide4 if network.version == 4 else self._wide6
        for place, (known, peers) in enumerate(wide):
            if known == shift:
                del peers[int(network.network_address) >> shift]
                if not peers:
                    del wide[place]
                return

    def remove_peer(self, peer: PeerT) -> None:
        """Forget every network of ``peer``."""
        for network in self.networks(peer):
            self.remove(network)

    def networks(self, peer: PeerT) -> list[Network]:
        """The networks of ``peer``, in the order they were given to it."""
        return list(self._networks.get(peer, ()))


def _shift(entry: tuple[int, object]) -> int:
    return entry[0]
