"""The text that ``wg`` and a WireGuard interface in userspace talk to each other, without any I/O.

WireGuard's "cross-platform userspace implementation" interface: lines of ``key=value``. A request
is ``get=1`` or ``set=1`` with what to change, and ends with an empty line; so does an answer, after
``errno=N``, N being 0 or a negated errno. Where its description is silent this does what
wireguard-go does, except that a request with a fault in any line changes nothing.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

from attrs import frozen

from pyvpn.errors import VPNError

KEY_BYTES: Final = 32
#: As a private key: none. As a pre-shared key: none.
NO_KEY: Final = bytes(KEY_BYTES)

Network = IPv4Network | IPv6Network

_NUMBER = re.compile(r"[0-9]+")
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")


class UAPIError(VPNError):
    """A request is refused.

    :param code: positive errno, which the asker is told.
    :param what: one line, for our log; the protocol has no room for it.
    """

    def __init__(self, code: int, what: str) -> None:
        super().__init__(what)
        self.code = code
        self.what = what


class AllowedIPChange(NamedTuple):
    """One ``allowed_ip`` line; host bits are cleared, as WireGuard does."""

    network: Network
    remove: bool = False


@frozen
class PeerChange:
    """One peer's part of a ``set``; what is None stays as it is.

    :ivar public_key: 32 bytes; one request may name a peer more than once.
    :ivar remove: away with it; nothing else matters then.
    :ivar update_only: skip it if there is no such peer yet.
    :ivar preshared_key: 32 bytes; :data:`NO_KEY` removes it.
    :ivar endpoint: numeric host (IPv6 perhaps with ``%scope``) and port.
    :ivar keepalive: seconds, 0 turns it off.
    :ivar replace_allowed_ips: forget its allowed IPs before ``allowed_ips``.
    :ivar allowed_ips: in the order of the request.
    """

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    preshared_key: bytes | None = None
    endpoint: tuple[str, int] | None = None
    keepalive: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: tuple[AllowedIPChange, ...] = ()


@frozen
class Changes:
    """A whole ``set``; what is None stays as it is.

    :ivar private_key: 32 bytes, clamped; :data:`NO_KEY` removes it.
    :ivar listen_port: 0 lets the kernel choose another one.
    :ivar fwmark: 0 removes it.
    :ivar replace_peers: forget all peers before ``peers``.
    :ivar peers: to be done in this order.
    """

    private_key: bytes | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    peers: tuple[PeerChange, ...] = ()


@frozen
class PeerStatus:
    """What ``get`` tells of a peer.

    :ivar endpoint: ``host:port``, IPv6 in brackets; None: not known.
    :ivar last_handshake: Unix nanoseconds, 0 never.
    """

    public_key: bytes
    preshared_key: bytes = NO_KEY
    endpoint: str | None = None
    last_handshake: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    keepalive: int = 0
    allowed_ips: Iterable[Network] = ()


@frozen
class DeviceStatus:
    """What ``get`` tells; ``peers`` may be made while it is read."""

    private_key: bytes | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: Iterable[PeerStatus] = ()


def format_get(device: DeviceStatus) -> Iterator[str]:
    """The answer to ``get`` without its ``errno``, in pieces: the device, then peer by peer."""
    lines = []
    if device.private_key is not None:
        lines.append(f"private_key={device.private_key.hex()}\n")
    if device.listen_port:
        lines.append(f"listen_port={device.listen_port}\n")
    if device.fwmark:
        lines.append(f"fwmark={device.fwmark}\n")
    yield "".join(lines)
    for peer in device.peers:
        yield _format_peer(peer)


def _format_peer(peer: PeerStatus) -> str:
    seconds, nanoseconds = divmod(peer.last_handshake, 1_000_000_000)
    endpoint = "" if peer.endpoint is None else f"endpoint={peer.endpoint}\n"
    allowed_ips = "".join([f"allowed_ip={network}\n" for network in peer.allowed_ips])
    return (
        f"public_key={peer.public_key.hex()}\n"
        f"preshared_key={peer.preshared_key.hex()}\n"
        "protocol_version=1\n"
        f"{endpoint}"
        f"last_handshake_time_sec={seconds}\n"
        f"last_handshake_time_nsec={nanoseconds}\n"
        f"tx_bytes={peer.tx_bytes}\n"
        f"rx_bytes={peer.rx_bytes}\n"
        f"persistent_keepalive_interval={peer.keepalive}\n"
        f"{allowed_ips}"
    )


def format_errno(code: int) -> str:
    """The end of an answer: 0, or a positive errno, which ``wg`` reads negated from a ``set``."""
    return f"errno={-code}\n\n"


def parse_set(lines: Iterable[str]) -> Changes:
    """What the lines between ``set=1`` and the empty line ask for.

    :raises UAPIError: EPROTO for a line without ``=``, EINVAL for a wrong key or value.
    """
    reader = SetReader()
    for line in lines:
        reader.line(line)
    return reader.changes()


class SetReader:
    """Reads the lines of a ``set`` as they come, so that a long one is work in small pieces."""

    def __init__(self) -> None:
        self._private_key: bytes | None = None
        self._listen_port: int | None = None
        self._fwmark: int | None = None
        self._replace_peers = False
        self._peers: list[_PeerReader] = []

    def line(self, line: str) -> None:
        """Take one line.

        :raises UAPIError: as :func:`parse_set`; nothing of the request is good then.
        """
        key, equals, value = line.partition("=")
        if not equals:
            raise UAPIError(errno.EPROTO, f"not a line of key=value: {_shown(line)}")
        if key == "public_key":
            self._peers.append(_PeerReader(_key(key, value)))
        elif self._peers:
            self._peers[-1].line(key, value)
        else:
            self._device_line(key, value)

    def _device_line(self, key: str, value: str) -> None:
        if key == "private_key":
            self._private_key = _private_key(key, value)
        elif key == "listen_port":
            self._listen_port = _number(key, value, 0xFFFF)
        elif key == "fwmark":
            self._fwmark = _number(key, value, 0xFFFF_FFFF)
        elif key == "replace_peers":
            self._replace_peers = _true(key, value)
        else:
            raise UAPIError(errno.EINVAL, f"no such key of an interface: {_shown(key)}")

    def changes(self) -> Changes:
        """All that was asked for."""
        return Changes(
            self._private_key,
            self._listen_port,
            self._fwmark,
            self._replace_peers,
            tuple([peer.change() for peer in self._peers]),
        )


class _PeerReader:
    """The lines of one peer."""

    __slots__ = (
        "_allowed_ips",
        "_endpoint",
        "_keepalive",
        "_preshared_key",
        "_public_key",
        "_remove",
        "_replace_allowed_ips",
        "_update_only",
    )

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key
        self._remove = self._update_only = self._replace_allowed_ips = False
        self._preshared_key: bytes | None = None
        self._endpoint: tuple[str, int] | None = None
        self._keepalive: int | None = None
        self._allowed_ips: list[AllowedIPChange] = []

    def line(self, key: str, value: str) -> None:
        take = _PEER_KEYS.get(key)
        if take is None:
            raise UAPIError(errno.EINVAL, f"no such key of a peer: {_shown(key)}")
        take(self, key, value)

    def _take_remove(self, key: str, value: str) -> None:
        self._remove = _true(key, value)

    def _take_update_only(self, key: str, value: str) -> None:
        self._update_only = _true(key, value)

    def _take_preshared_key(self, key: str, value: str) -> None:
        self._preshared_key = _key(key, value)

    def _take_endpoint(self, key: str, value: str) -> None:
        self._endpoint = _endpoint(key, value)

    def _take_keepalive(self, key: str, value: str) -> None:
        self._keepalive = _number(key, value, 0xFFFF)

    def _take_replace_allowed_ips(self, key: str, value: str) -> None:
        # Done in the order of the lines: what came before is replaced as well.
        self._replace_allowed_ips = _true(key, value)
        self._allowed_ips.clear()

    def _take_allowed_ip(self, key: str, value: str) -> None:
        remove = value.startswith("-")
        self._allowed_ips.append(AllowedIPChange(_network(key, value[remove:]), remove))

    def _take_protocol_version(self, key: str, value: str) -> None:
        if value != "1":
            raise UAPIError(errno.EINVAL, f"{key}: only version 1 exists, not {_shown(value)}")

    def change(self) -> PeerChange:
        if self._remove:
            return PeerChange(self._public_key, remove=True)
        return PeerChange(
            self._public_key,
            False,
            self._update_only,
            self._preshared_key,
            self._endpoint,
            self._keepalive,
            self._replace_allowed_ips,
            tuple(self._allowed_ips),
        )


_PEER_KEYS: dict[str, Callable[[_PeerReader, str, str], None]] = {
    "remove": _PeerReader._take_remove,
    "update_only": _PeerReader._take_update_only,
    "preshared_key": _PeerReader._take_preshared_key,
    "endpoint": _PeerReader._take_endpoint,
    "persistent_keepalive_interval": _PeerReader._take_keepalive,
    "replace_allowed_ips": _PeerReader._take_replace_allowed_ips,
    "allowed_ip": _PeerReader._take_allowed_ip,
    "protocol_version": _PeerReader._take_protocol_version,
}


# Values. What is refused may be a secret, so keys are never quoted.


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "…")


def _true(key: str, value: str) -> bool:
    if value != "true":
        raise UAPIError(errno.EINVAL, f"{key}: can only be true, not {_shown(value)}")
    return True


def _number(key: str, value: str, most: int) -> int:
    if not _NUMBER.fullmatch(value) or len(value) > 20 or int(value) > most:
        raise UAPIError(errno.EINVAL, f"{key}: not a number from 0 to {most}: {_shown(value)}")
    return int(value)


def _key(key: str, value: str) -> bytes:
    # bytes.fromhex would skip white space.
    if len(value) == 2 * KEY_BYTES and value.isascii() and value.isalnum():
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise UAPIError(errno.EINVAL, f"{key}: not a key of 64 hexadecimal digits")


def _private_key(key: str, value: str) -> bytes:
    private = _key(key, value)
    return private if private == NO_KEY else clamped(private)


def clamped(private: bytes) -> bytes:
    """A private key as X25519 uses it (RFC 7748, 5), and as others show it therefore."""
    return bytes((private[0] & 248, *private[1:31], private[31] & 127 | 64))


def _endpoint(key: str, value: str) -> tuple[str, int]:
    host, _, digits = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        port = _number(key, digits, 0xFFFF)
        IPv6Address(host[1:-1]) if bracketed else IPv4Address(host)
        if not port:
            raise ValueError
    except (UAPIError, ValueError):
        raise UAPIError(errno.EINVAL, f"{key}: not an address and port: {_shown(value)}") from None
    return (host[1:-1] if bracketed else host, port)


def _network(key: str, value: str) -> Network:
    host, _, digits = value.partition("/")
    try:
        if _PREFIX.fullmatch(digits) and "%" not in host:
            if ":" in host:
                return IPv6Network((int(IPv6Address(host)), int(digits)), strict=False)
            return IPv4Network((int(IPv4Address(host)), int(digits)), strict=False)
    except ValueError:
        pass
    raise UAPIError(errno.EINVAL, f"{key}: not an address/prefix: {_shown(value)}")
