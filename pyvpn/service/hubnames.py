"""The names of a hub's machines, from what its store and its sessions say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address

from pyvpn.core.hostnames import Host, Names, host_names
from pyvpn.core.leases import AddressPool, Holder
from pyvpn.core.server import VPNServer
from pyvpn.service.hubnetwork import hub_addresses
from pyvpn.state.interface import IStore
from pyvpn.values import Address


class HubNames:
    """What is called how: :meth:`current` gives the same object until something has changed.

    :param connected: whether a device has a session.
    """

    def __init__(
        self,
        store: IStore,
        pool: AddressPool,
        core: VPNServer,
        connected: Callable[[Holder], bool],
    ) -> None:
        self._store = store
        self._pool = pool
        self._core = core
        self._connected = connected
        self._names: Names | None = None
        self._count = 0

    def changed(self) -> None:
        """Note that leases, users, peers or connections are not what they were."""
        self._names = None

    def current(self) -> Names:
        """The names by now."""
        count = len(self._store.devices())
        if self._names is None or count != self._count:  # a new device is written some time later
            self._count = count
            self._names = host_names(self._hosts(), hub_addresses(self._pool), self._store.users())
        return self._names

    def _hosts(self) -> Iterator[Host]:
        users, leases = self._store.users(), self._pool.leases()
        for holder, device in self._store.devices().items():
            if not users[device.user].enabled:
                continue
            lease = leases.get(holder)
            own = () if lease is None else (lease.ipv4, lease.ipv6)
            connected = self._connected(holder)
            peer = self._core.peer(*holder)
            yield Host(
                user=device.user,
                name=device.name if peer is None else peer.name,
                addresses=tuple(address for address in own if address is not None),
                connected=connected,
                since=peer.started if peer is not None and connected else device.last_seen,
                key=device.device_id,
            )
        for record in self._store.peers().values():
            if record.enabled:
                texts = (record.ipv4, record.ipv6)
                addresses: tuple[Address, ...] = tuple(ip_address(text) for text in texts if text)
                yield Host(None, record.name, addresses, key=record.public_key)
