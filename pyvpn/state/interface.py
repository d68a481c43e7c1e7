"""What the hub must remember, and the interface of every store that remembers it.

Times here are Unix seconds: they are shown to people and compared with days, never with a stamp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import Attribute, field, frozen
from attrs.validators import and_, deep_iterable, ge, instance_of, le, optional
from twisted.internet.defer import Deferred
from zope.interface import Interface

#: The newest audit records that a store keeps: what strangers can cause must not fill a disk.
AUDIT_LIMIT = 100_000


def _sized(size: int) -> Callable[[object, Attribute[bytes], bytes], None]:
    def check(instance: object, attribute: Attribute[bytes], value: bytes) -> None:
        if not isinstance(value, bytes) or len(value) != size:
            raise ValueError(f"{attribute.name} must be {size} bytes, not {value!r}")

    return check


_str = instance_of(str)
_int = instance_of(int)


@frozen
class User:
    """One account.

    :ivar name: as PROTOCOL's user field allows it: 1 to 32 bytes of UTF-8 in NFC.
    :ivar public_key: the 32-byte X25519 key that the password makes; no password is kept.
    :ivar enabled: whether new logins are granted.
    :ivar created: Unix seconds.
    """

    name: str = field(validator=_str)
    public_key: bytes = field(validator=_sized(32))
    enabled: bool = field(validator=instance_of(bool))
    created: int = field(validator=_int)


@frozen
class Device:
    """One machine of a user: its replay barrier and its lease.

    :ivar user: name of an existing user.
    :ivar device_id: 16 bytes, chosen by the device.
    :ivar name: what the device calls itself; may be empty.
    :ivar stamp: the newest TAI64N stamp (12 bytes) of a login that was confirmed.
    :ivar ipv4: the leased address as text, or None.
    :ivar ipv6: the leased address as text, or None.
    :ivar last_seen: Unix seconds.
    """

    user: str = field(validator=_str)
    device_id: bytes = field(validator=_sized(16))
    name: str = field(validator=_str)
    stamp: bytes = field(validator=_sized(12))
    ipv4: str | None = field(validator=optional(_str))
    ipv6: str | None = field(validator=optional(_str))
    last_seen: int = field(validator=_int)


@frozen
class WireGuardPeerRecord:
    """One stock WireGuard peer.

    :ivar name: unique among peers; as a user's name may be.
    :ivar public_key: 32 bytes, of a random key pair.
    :ivar psk: the pre-shared key, 32 bytes; zeros for none.
    :ivar allowed_ips: networks behind the peer beside its own addresses, as text.
    :ivar ipv4: its own address as text, or None.
    :ivar ipv6: its own address as text, or None.
    :ivar keepalive: seconds between what the hub sends without need, 0 for never.
    :ivar enabled: whether it may connect.
    :ivar created: Unix seconds.
    :ivar endpoint: where it was said to be, as ``address:port``, or None.
    """

    name: str = field(validator=_str)
    public_key: bytes = field(validator=_sized(32))
    psk: bytes = field(validator=_sized(32), repr=False)
    allowed_ips: tuple[str, ...] = field(validator=deep_iterable(_str, instance_of(tuple)))
    ipv4: str | None = field(validator=optional(_str))
    ipv6: str | None = field(validator=optional(_str))
    keepalive: int = field(validator=and_(_int, ge(0), le(65535)))
    enabled: bool = field(validator=instance_of(bool))
    created: int = field(validator=_int)
    endpoint: str | None = field(default=None, validator=optional(_str))


@frozen
class AuditRecord:
    """Who did what, for people to read later.

    :ivar when: Unix seconds.
    :ivar user: whom it concerns, or None.
    :ivar event: a short name with underscores, such as ``user_added``.
    :ivar detail: free text without secrets.
    """

    when: int = field(validator=_int)
    user: str | None = field(validator=optional(_str))
    event: str = field(validator=_str)
    detail: str = field(validator=_str)


class IStore(Interface):
    """Users, devices, stock WireGuard peers, settings and the audit log of one network.

    Reads are answered at once from a copy in memory, so nothing on the data path waits for a disk.
    A write returns a Deferred that fires with None when the change is durable. At that moment, and
    not before, the copy in memory shows it. A write that fails fires with
    :class:`~pyvpn.errors.StoreError` and has changed nothing, neither on disk nor in memory.
    Writes take effect in the order in which they were asked for.
    """

    def open() -> None:
        """Make the store ready and load the copy; works before the reactor runs.

        :raises StoreError: the store cannot be used as it is; nothing in it was changed.
        """

    def close() -> Deferred[None]:
        """Finish what was asked for and let go of everything; harmless twice.

        The Deferred always fires with None. Later writes fail; reads go on.
        """

    def users() -> Mapping[str, User]:
        """All users by name: a live, read-only view."""

    def devices() -> Mapping[tuple[str, bytes], Device]:
        """All devices by (user, device id): a live, read-only view."""

    def peers() -> Mapping[bytes, WireGuardPeerRecord]:
        """All stock WireGuard peers by public key: a live, read-only view."""

    def setting(key: str) -> str | None:
        """The value of a setting, or None if it was never made."""

    def put_user(user: User) -> Deferred[None]:
        """Add a user, or replace the one of that name; the devices stay."""

    def remove_user(name: str) -> Deferred[None]:
        """Forget a user and all devices of that user; harmless if there is none."""

    def put_devices(devices: list[Device]) -> Deferred[None]:
        """Add or replace devices, all in one transaction.

        Devices of users that do not exist (removed while a batch was on its way) are left out.
        """

    def remove_device(user: str, device_id: bytes) -> Deferred[None]:
        """Forget one device; harmless if there is none."""

    def put_peers(peers: list[WireGuardPeerRecord]) -> Deferred[None]:
        """Add peers or replace those of the same public keys, all in one transaction.

        Fails with :class:`~pyvpn.errors.StoreError` if another peer has one of the names.
        """

    def remove_peers(public_keys: list[bytes]) -> Deferred[None]:
        """Forget peers, all in one transaction; harmless for those that are not there."""

    def set_setting(key: str, value: str) -> Deferred[None]:
        """Make or replace a setting."""

    def add_audit(records: list[AuditRecord]) -> Deferred[None]:
        """Append to the audit log, which keeps the newest ``AUDIT_LIMIT`` records."""

    def audit(limit: int) -> Deferred[list[AuditRecord]]:
        """The newest ``limit`` audit records, newest first."""
