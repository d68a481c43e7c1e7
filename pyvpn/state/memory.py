"""A store that lives as long as its process: for tests and embedding, and as others' copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from pyvpn.errors import StoreError
from pyvpn.state.interface import (
    AUDIT_LIMIT,
    AuditRecord,
    Device,
    IStore,
    User,
    WireGuardPeerRecord,
)


@implementer(IStore)
class MemoryStore:
    """An :class:`~pyvpn.state.interface.IStore` whose writes are done before they return."""

    def __init__(self) -> None:
        self._users: dict[str, User] = {}
        self._devices: dict[tuple[str, bytes], Device] = {}
        self._peers: dict[bytes, WireGuardPeerRecord] = {}
        self._peer_keys: dict[str, bytes] = {}
        self._settings: dict[str, str] = {}
        self._audit: deque[AuditRecord] = deque(maxlen=AUDIT_LIMIT)
        self._closed = False

    def open(self) -> None:
        self._closed = False

    def close(self) -> Deferred[None]:
        self._closed = True
        return succeed(None)

    def users(self) -> Mapping[str, User]:
        return MappingProxyType(self._users)

    def devices(self) -> Mapping[tuple[str, bytes], Device]:
        return MappingProxyType(self._devices)

    def peers(self) -> Mapping[bytes, WireGuardPeerRecord]:
        return MappingProxyType(self._peers)

    def setting(self, key: str) -> str | None:
        return self._settings.get(key)

    def put_user(self, user: User) -> Deferred[None]:
        if not self._closed:
            self._users[user.name] = user
        return self._written()

    def remove_user(self, name: str) -> Deferred[None]:
        if not self._closed:
            self._users.pop(name, None)
            for key in [key for key in self._devices if key[0] == name]:
                del self._devices[key]
        return self._written()

    def put_devices(self, devices: list[Device]) -> Deferred[None]:
        if not self._closed:
            self._devices.update(
                ((device.user, device.device_id), device)
                for device in devices
                if device.user in self._users
            )
        return self._written()

    def remove_device(self, user: str, device_id: bytes) -> Deferred[None]:
        if not self._closed:
            self._devices.pop((user, device_id), None)
        return self._written()

    def put_peers(self, peers: list[WireGuardPeerRecord]) -> Deferred[None]:
        if not self._closed:
            # Aside, one by one as a database does it: all or nothing.
            then: dict[bytes, WireGuardPeerRecord] = {}
            keys = dict(self._peer_keys)
            for peer in peers:
                if keys.setdefault(peer.name, peer.public_key) != peer.public_key:
                    return fail(StoreError(f"another peer has the name '{peer.name}'"))
                old = then.get(peer.public_key) or self._peers.get(peer.public_key, peer)
                if old.name != peer.name:
                    del keys[old.name]
                then[peer.public_key] = peer
            self._peers.update(then)
            self._peer_keys = keys
        return self._written()

    def remove_peers(self, public_keys: list[bytes]) -> Deferred[None]:
        if not self._closed:
            for public_key in public_keys:
                peer = self._peers.pop(public_key, None)
                if peer is not None:
                    del self._peer_keys[peer.name]
        return self._written()

    def set_setting(self, key: str, value: str) -> Deferred[None]:
        if not self._closed:
            self._settings[key] = value
        return self._written()

    def add_audit(self, records: list[AuditRecord]) -> Deferred[None]:
        if not self._closed:
            self._audit.extend(records)
        return self._written()

    def audit(self, limit: int) -> Deferred[list[AuditRecord]]:
        return succeed(list(islice(reversed(self._audit), max(limit, 0))))

    def _written(self) -> Deferred[None]:
        return fail(StoreError("the store is closed")) if self._closed else succeed(None)
