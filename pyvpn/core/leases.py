"""Who has which inner address: the hub's address pool.

A device keeps its address: the same holder gets the same lease again, also after a restart of the
hub (the store remembers, :meth:`AddressPool.restore`). PROTOCOL 6 (HELLO) rules wanted addresses,
PROTOCOL 8 how long an unseen device keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import chain
from types import MappingProxyType
from typing import Final

from attrs import frozen

from pyvpn.errors import AddressTaken, ConfigError, PoolExhausted

Holder = tuple[str, bytes]
"""A user's name and a device id (16 bytes)."""

KEEP_UNSEEN: Final = 30 * 24 * 3600
"""Seconds that a full pool keeps a lease for a device that does not show up (PROTOCOL 8: 30 days).
"""

# Offset 0 is the network itself (for IPv6 the subnet-router anycast address, RFC 4291 2.6.1), 1 is
# the hub.
_HUB: Final = 1
_FIRST: Final = 2


@frozen
class Lease:
    """The inner addresses of one device; ``ipv6`` is None when the pool has no IPv6 to give."""

    ipv4: IPv4Address
    ipv6: IPv6Address | None


class AddressPool:
    """Leases of one IPv4 network and, if there is one, one IPv6 network.

    :param network4: at least a /30; its first host is the hub, network and broadcast address are
        never leased.
    :param network6: at least a /126 or None; its first host is the hub.
    :raises ConfigError: a network is too small for a hub and one device.
    """

    def __init__(self, network4: IPv4Network, network6: IPv6Network | None) -> None:
        for network in (network4, network6):
            if network is not None and network.num_addresses < 4:
                least = network.max_prefixlen - 2
                raise ConfigError(
                    f"the subnet {network} is too small for a hub and one client;"
                    f" use a /{least} or larger"
                )
        self.network4 = network4
        self.network6 = network6
        self.hub4: IPv4Address = network4[_HUB]
        self.hub6: IPv6Address | None = network6[_HUB] if network6 is not None else None
        self._leases: dict[Holder, Lease] = {}
        self._last_seen: dict[Holder, int] = {}
        self._by4: dict[IPv4Address, Holder] = {}
        self._by6: dict[IPv6Address, Holder] = {}
        self._reserved: dict[Holder, set[IPv4Address | IPv6Address]] = {}
        # Everything below this offset is leased: where the search for a free address starts.
        self._free4 = _FIRST

    @property
    def size(self) -> int:
        """How many leases the pool can hold: its IPv4 addresses without network, broadcast and
        hub.
        """
        return self.network4.num_addresses - 3

    def leases(self) -> Mapping[Holder, Lease]:
        """All leases: a live, read-only view."""
        return MappingProxyType(self._leases)

    def lease(
        self,
        holder: Holder,
        wanted4: IPv4Address | None,
        wanted6: IPv6Address | None,
        now_wall: int,
        in_use: Callable[[Holder], bool],
    ) -> Lease:
        """Lease addresses to ``holder`` and note that it was seen at ``now_wall`` (Unix seconds).

        Without a wish a holder gets what it had, else the lowest free IPv4 address, and the IPv6
        address with the same host number where that is free. A wanted address is granted when it
        is free or when another device of the same user has it: then it moves, and a device that
        loses its IPv4 address loses its lease. A full pool gives the lease of the longest unseen
        device away, unless ``in_use(that holder)`` or it was seen within ``KEEP_UNSEEN``.
        :meth:`leases` tells afterwards who lost one.

        :raises AddressTaken: a wanted address cannot be had; nothing has changed.
        :raises PoolExhausted: no IPv4 address is left; nothing has changed.
        """
        if wanted4 is not None:
            self._check_wanted4(holder, wanted4)
        if wanted6 is not None:
            self._check_wanted6(holder, wanted6)

        old = self._leases.get(holder)
        if wanted4 is not None:
            ipv4 = wanted4
        elif old is not None:
            ipv4 = old.ipv4
        else:
            ipv4 = self._free_ipv4(now_wall, in_use)
        # Nothing below fails. Whoever stands in the way gives way now.
        owner = self._by4.get(ipv4)
        if owner is not None and owner != holder:
            self._release(owner)
        if wanted6 is not None:
            ipv6: IPv6Address | None = wanted6
            self._take_ipv6(holder, wanted6)
        elif old is not None and old.ipv4 == ipv4 and old.ipv6 is not None:
            ipv6 = old.ipv6
        else:
            ipv6 = self._choose_ipv6(holder, ipv4)
        lease = Lease(ipv4, ipv6)
        if lease != old:
            self._release(holder)
            self._put(holder, lease)
        self._last_seen[holder] = now_wall
        return lease

    def restore(self, holder: Holder, lease: Lease, last_seen: int) -> bool:
        """Take over a lease that the store remembers; ``last_seen`` in Unix seconds.

        Returns False, changing nothing, when the pool can no longer hold it: the subnet is another
        one now, or somebody has the IPv4 address already. The device gets a new lease at its next
        login then. An IPv6 address alone that does not fit is left out and found anew at the next
        login.
        """
        if holder in self._leases or not self._leasable4(lease.ipv4) or lease.ipv4 in self._by4:
            return False
        ipv6 = lease.ipv6
        if ipv6 is not None and (not self._leasable6(ipv6) or ipv6 in self._by6):
            ipv6 = None
        self._put(holder, Lease(lease.ipv4, ipv6))
        self._last_seen[holder] = last_seen
        return True

    def release(self, holder: Holder) -> None:
        """Make the addresses of ``holder`` free; harmless when it has none."""
        for address in self._reserved.pop(holder, ()):
            self._free(address)
        self._release(holder)

    def _release(self, holder: Holder) -> None:
        lease = self._leases.pop(holder, None)
        if lease is None:
            return
        del self._last_seen[holder]
        self._free(lease.ipv4)
        if lease.ipv6 is not None:
            self._free(lease.ipv6)

    def _free(self, address: IPv4Address | IPv6Address) -> None:
        if isinstance(address, IPv4Address):
            del self._by4[address]
            self._free4 = min(self._free4, self._offset4(address))
        else:
            del self._by6[address]

    def holder(self, address: IPv4Address | IPv6Address) -> Holder | None:
        """Who has an address; None: nobody."""
        if isinstance(address, IPv4Address):
            return self._by4.get(address)
        return self._by6.get(address)

    def reserve(self, holder: Holder, address: IPv4Address | IPv6Address) -> bool:
        """Keep an address for ``holder`` until :meth:`release`, whether it is seen or not.

        For a holder that has no lease. What another holder of the same user's name has reserved
        moves. Returns False, changing nothing, when the address cannot be leased or somebody else
        has it.
        """
        owner = self.holder(address)
        if owner is not None and owner != holder:
            if owner[0] != holder[0] or address not in self._reserved.get(owner, ()):
                return False
            self._reserved[owner].remove(address)
        if isinstance(address, IPv4Address):
            if not self._leasable4(address):
                return False
            self._by4[address] = holder
        else:
            if not self._leasable6(address):
                return False
            self._by6[address] = holder
        self._reserved.setdefault(holder, set()).add(address)
        return True

    def seen(self, holder: Holder, now_wall: int) -> None:
        """Note that ``holder`` was there at ``now_wall`` (Unix seconds); ignored for one without a
        lease.
        """
        # Also when that is earlier than before: a clock that once stood years ahead must not pin a
        # lease for years.
        if holder in self._leases:
            self._last_seen[holder] = now_wall

    def _put(self, holder: Holder, lease: Lease) -> None:
        self._leases[holder] = lease
        self._by4[lease.ipv4] = holder
        if lease.ipv6 is not None:
            self._by6[lease.ipv6] = holder

    def _offset4(self, address: IPv4Address) -> int:
        return int(address) - int(self.network4.network_address)

    def _leasable4(self, address: IPv4Address) -> bool:
        return _FIRST <= self._offset4(address) < self.network4.num_addresses - 1

    def _leasable6(self, address: IPv6Address) -> bool:
        network = self.network6
        return (
            network is not None and address in network and int(address) - int(network[0]) >= _FIRST
        )

    def _check_wanted4(self, holder: Holder, wanted: IPv4Address) -> None:
        if not self._leasable4(wanted):
            raise AddressTaken(
                f"the address {wanted} cannot be leased;"
                f" ask for a free one of {self.network4} or for none"
            )
        self._check_owner(holder, wanted, self._by4.get(wanted))

    def _check_wanted6(self, holder: Holder, wanted: IPv6Address) -> None:
        if not self._leasable6(wanted):
            pool = f"a free one of {self.network6} or for none" if self.network6 else "IPv4 alone"
            raise AddressTaken(f"the address {wanted} cannot be leased; ask for {pool}")
        self._check_owner(holder, wanted, self._by6.get(wanted))

    def _check_owner(
        self, holder: Holder, wanted: IPv4Address | IPv6Address, owner: Holder | None
    ) -> None:
        if owner is not None and owner[0] != holder[0]:
            raise AddressTaken(
                f"the address {wanted} belongs to another user; ask for another or for none"
            )

    def _free_ipv4(self, now_wall: int, in_use: Callable[[Holder], bool]) -> IPv4Address:
        """The lowest free address, else the one of the longest unseen device that may lose it."""
        if len(self._by4) < self.size:
            while (address := self.network4[self._free4]) in self._by4:
                self._free4 += 1
            return address
        unseen = (
            (last_seen, holder)
            for holder, last_seen in self._last_seen.items()
            if now_wall - last_seen >= KEEP_UNSEEN and not in_use(holder)
        )
        oldest = min(unseen, default=None)
        if oldest is None:
            raise PoolExhausted(
                f"all {self.size} addresses of {self.network4} are leased;"
                " remove devices or use a larger subnet"
            )
        return self._leases[oldest[1]].ipv4

    def _take_ipv6(self, holder: Holder, address: IPv6Address) -> None:
        """Take ``address`` from another device of the same user, which keeps its IPv4 address."""
        owner = self._by6.get(address)
        if owner is not None and owner != holder:
            self._leases[owner] = Lease(self._leases[owner].ipv4, None)

    def _choose_ipv6(self, holder: Holder, ipv4: IPv4Address) -> IPv6Address | None:
        """The host number of ``ipv4`` where it is free, else the first free one; None when there
        is none.
        """
        network = self.network6
        if network is None:
            return None
        end = network.num_addresses
        # Beyond the numbers of the IPv4 pool first, so that no later lease finds its own number
        # taken.
        beyond = self.network4.num_addresses
        for offset in chain(
            (self._offset4(ipv4),), range(beyond, end), range(_FIRST, min(beyond, end))
        ):
            if offset < end and self._by6.get(network[offset], holder) == holder:
                return network[offset]
        return None
