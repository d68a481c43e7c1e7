"""What ``wg`` sees and changes of a running interface: requests of :mod:`pyvpn.uapi`, done here."""

from __future__ import annotations

import errno
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pyvpn.tx.timer import boottime
from pyvpn.tx.udp import UDPPort
from pyvpn.uapi import (
    Changes,
    DeviceStatus,
    Network,
    PeerStatus,
    UAPIError,
)


class Identity(Protocol):
    """A ``KeyPair``, as far as it is needed."""

    @property
    def private(self) -> bytes: ...

    @property
    def public(self) -> bytes: ...


class Peers(Protocol):
    """``core.wireguardpeers.WireGuardPeers``, as far as it is needed."""

    @property
    def identity(self) -> Identity | None: ...

    @property
    def peers(self) -> Mapping[bytes, Any]: ...

    def set_private_key(self, private: bytes | None, now: float) -> None: ...

    def add(self, public_key: bytes, now: float) -> Any: ...

    def remove(self, public_key: bytes, now: float) -> None: ...

    def set_psk(self, peer: Any, psk: bytes, now: float) -> None: ...

    def set_endpoint(self, peer: Any, endpoint: Any, now: float) -> None: ...

    def set_keepalive(self, peer: Any, seconds: int, now: float) -> None: ...

    def allow(self, peer: Any, network: Network) -> Any: ...

    def disallow(self, peer: Any, network: Network) -> None: ...

    def disallow_all(self, peer: Any) -> None: ...

    def networks(self, peer: Any) -> Sequence[Network]: ...

    def connect(self, peer: Any, now: float) -> None: ...

    def rebound(self, now: float) -> None: ...


def key_text(public_key: bytes) -> str:
    """A key as ``wg`` writes it."""
    return b64encode(public_key).decode()


def keep_device(changes: Changes) -> None:
    """A guard for a hub: its key, port and mark belong to its own configuration.

    :raises UAPIError: EPERM.
    """
    named = {
        "private key": changes.private_key,
        "listen port": changes.listen_port,
        "fwmark": changes.fwmark,
    }
    for name, value in named.items():
        if value is not None:
            raise UAPIError(
                errno.EPERM,
                f"the {name} of a hub is not changed this way; it is part of its configuration",
            )


def _allow_all(changes: Changes) -> None:
    """A guard for an interface that belongs to ``wg`` alone."""


class WireGuardControl:
    """Carries out requests; each ``set`` is done whole before this returns, or not at all.

    :param wireguard: the peers; password users are not among them.
    :param udp: the port of the interface, bound or not yet.
    :param changed: called after a change with the public keys of all peers touched, those removed
        and those that lost an allowed IP to another one included. What it returns is waited for
        before the asker is told: durable.
    :param settle: sends what the core has queued (``VPNProtocol.transmit``).
    :param guard: sees each ``set`` before anything is changed, without what is so already
        (private key, port and mark of now), and raises UAPIError to refuse it.
    :param name_of: a peer's name for the log, from its public key.
    :param clock: boottime seconds.
    """

    _log = Logger()

    def __init__(
        self,
        wireguard: Peers,
        udp: UDPPort,
        *,
        changed: Callable[[set[bytes]], Deferred[Any] | None],
        settle: Callable[[], None],
        guard: Callable[[Changes], None] = _allow_all,
        name_of: Callable[[bytes], str] = key_text,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._wireguard = wireguard
        self._udp = udp
        self._changed = changed
        self._settle = settle
        self._guard = guard
        self._name_of = name_of
        self._clock = clock

    # Reading

    def get(self) -> DeviceStatus:
        """The interface as it is; its peers are looked at one by one as they are read."""
        identity = self._wireguard.identity
        return DeviceStatus(
            identity.private if identity is not None else None,
            self._udp.localPort,
            self._udp.mark,
            self._peers(),
        )

    def _peers(self) -> Iterator[PeerStatus]:
        wireguard = self._wireguard
        for public_key in list(wireguard.peers):
            peer = wireguard.peers.get(public_key)
            if peer is None:  # removed meanwhile
                continue
            yield PeerStatus(
                public_key,
                peer.psk,
                str(peer.endpoint) if peer.endpoint is not None else None,
                peer.last_handshake,
                peer.rx_bytes,
                peer.tx_bytes,
                peer.keepalive_interval,
                wireguard.networks(peer),
            )

    # Changing

    def set(self, changes: Changes) -> Deferred[Any] | None:
        """Carry out a request.

        :returns: a Deferred if durability has to be waited for.
        :raises UAPIError: refused; nothing has changed, unless it says so.
        """
        raise NotImplementedError
