"""What a hub must remember of its users' devices, written as it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from pyvpn.core import tai64n
from pyvpn.core.leases import Holder
from pyvpn.core.peer import ServerPeer
from pyvpn.core.server import VPNServer
from pyvpn.errors import StoreError
from pyvpn.state.interface import Device, IStore


class DeviceRecords:
    """Writes stamps and leases, one write at a time; what cannot be written is tried again.

    :param path: the store's, for the log.
    """

    _log = Logger()

    def __init__(self, store: IStore, core: VPNServer, path: Path) -> None:
        self._store = store
        self._core = core
        self._path = path
        self._unwritten: set[Holder] = set()
        self._refused: set[Holder] = set()
        self._complaint: str | None = None
        self._writing: Deferred[Any] | None = None

    def keep(self, holder: Holder) -> None:
        """Write a device's stamp and lease, together with all others that wait by then."""
        self._unwritten.add(holder)
        if self._writing is None:
            self._write()

    def written(self) -> Deferred[None]:
        """Fires when nothing is left to write, or cannot be written."""
        return Deferred.fromCoroutine(self._all_written())

    def failed(self, failure: Failure) -> None:
        """Tell that a write of any kind has failed; to be added to it as an errback."""
        failure.trap(StoreError)
        self._core.counters["store_write_failed"] += 1
        complaint = failure.getErrorMessage()
        if complaint != self._complaint:  # once, not with each login
            self._log.error("{reason}; trying on", reason=complaint)
        self._complaint = complaint

    def _write(self) -> None:
        known = self._store.users()
        holders = self._unwritten | self._refused
        self._unwritten, self._refused = set(), set()
        peers = [self._core.peer(*holder) for holder in holders]
        records = [_record(peer) for peer in peers if peer is not None and peer.user in known]
        if records:
            self._writing = self._store.put_devices(records)
            self._writing.addCallbacks(self._works_again, self._refuse, errbackArgs=(holders,))
            self._writing.addCallback(self._wrote)

    def _refuse(self, failure: Failure, holders: set[Holder]) -> None:
        """Keep what could not be written (the disk is full, say) for the next write, which any
        client's rekey brings about, or for the end.
        """
        self.failed(failure)
        self._refused |= holders

    def _works_again(self, _: object) -> None:
        if self._complaint is not None:
            self._complaint = None
            self._log.info("{path}: it can be written again", path=self._path)

    def _wrote(self, _: object) -> None:
        self._writing = None
        if self._unwritten:
            self._write()

    async def _all_written(self) -> None:
        if self._refused and self._writing is None:
            self._write()
        while self._writing is not None:
            await self._writing


def _record(peer: ServerPeer) -> Device:
    lease = peer.lease
    return Device(
        user=peer.user,
        device_id=peer.device,
        name=peer.name,
        stamp=peer.stamp_seen,
        ipv4=None if lease is None else str(lease.ipv4),
        ipv6=None if lease is None or lease.ipv6 is None else str(lease.ipv6),
        last_seen=tai64n.unpack(peer.stamp_seen) // 1_000_000_000,
    )
