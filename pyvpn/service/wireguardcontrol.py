"""What ``wg`` sees and changes of a running interface: requests of :mod:`pyvpn.uapi`, done here."""

from __future__ import annotations

import errno
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from pyvpn.core.wireguardpeers import WireGuardPeer, WireGuardPeers
from pyvpn.errors import LocalProtocolError, StartError
from pyvpn.tx.endpoint import UDPEndpoint
from pyvpn.tx.timer import boottime
from pyvpn.tx.udp import UDPPort
from pyvpn.uapi import (
    NO_KEY,
    Changes,
    DeviceStatus,
    Network,
    PeerChange,
    PeerStatus,
    UAPIError,
    clamped,
)

# Of the allowed IPs that a log line names.
MOST_SHOWN = 5


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
        wireguard: WireGuardPeers,
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

        :returns: a Deferred if durability has to be waited for; it may fail, also with UAPIError.
        :raises UAPIError: refused. Nothing has changed then, but for EADDRINUSE because of an
            allowed IP that is somebody else's by other means: the rest is done.
        """
        changes = self._without_what_is_so(changes)
        endpoints = [self._endpoint(change) for change in changes.peers]
        self._guard(changes)
        self._set_port_and_mark(changes)
        request = _Request(self._wireguard, self._clock())
        try:
            request.change_device(changes)
            for change, endpoint in zip(changes.peers, endpoints, strict=True):
                request.change_peer(change, endpoint)
        finally:
            self._tell(request)
            self._settle()
            durable = self._changed(request.touched) if request.touched else None
        if request.refused:
            if durable is None:
                raise request.refused[0]
            durable.addCallback(lambda _: Failure(request.refused[0]))
        return durable

    def _without_what_is_so(self, changes: Changes) -> Changes:
        private, identity = changes.private_key, self._wireguard.identity
        if private == (clamped(identity.private) if identity is not None else NO_KEY):
            private = None
        port = changes.listen_port
        if port and port == self._udp.localPort:
            port = None
        mark = changes.fwmark if changes.fwmark != self._udp.mark else None
        return evolve(changes, private_key=private, listen_port=port, fwmark=mark)

    def _endpoint(self, change: PeerChange) -> UDPEndpoint | None:
        if change.endpoint is None:
            return None
        try:
            return self._udp.endpoint(*change.endpoint)
        except ValueError as error:
            raise UAPIError(errno.EINVAL, f"endpoint: {error}") from error

    def _set_port_and_mark(self, changes: Changes) -> None:
        """Both or none, before anything else: these can fail."""
        udp = self._udp
        before = udp.mark
        if changes.fwmark is not None:
            try:
                udp.set_mark(changes.fwmark)
            except OSError as error:
                raise UAPIError(error.errno or errno.EPERM, f"fwmark: {error.strerror}") from error
        if changes.listen_port is None:
            return
        try:
            udp.rebind(changes.listen_port)
        except StartError as error:
            if changes.fwmark is not None:
                udp.set_mark(before)
            code = getattr(error.__cause__, "errno", None) or errno.EADDRINUSE
            raise UAPIError(code, str(error)) from error

    def _tell(self, request: _Request) -> None:
        for public_key in request.ourselves:
            self._log.warn(
                "{key} is this interface's own key: not taken as a peer", key=key_text(public_key)
            )
        for (loser, winner), networks in request.moved.items():
            self._log.warn(
                "allowed IPs {networks} of {loser} are now those of {winner}, who was given the"
                " same: the later wins",
                networks=_some(networks),
                loser=self._name_of(loser),
                winner=self._name_of(winner),
            )
        for error in request.refused:
            self._log.warn("{error}", error=error)


class _Request:
    """One ``set`` while it is carried out.

    :ivar touched: public keys of peers that are not as they were.
    :ivar moved: (who lost, who won) → the networks.
    :ivar refused: allowed IPs that the core would not give.
    :ivar ourselves: our own key, if it was to be a peer.
    """

    def __init__(self, wireguard: WireGuardPeers, now: float) -> None:
        self._wireguard = wireguard
        self._now = now
        self.touched: set[bytes] = set()
        self.moved: dict[tuple[bytes, bytes], list[Network]] = {}
        self.refused: list[UAPIError] = []
        self.ourselves: set[bytes] = set()

    def change_device(self, changes: Changes) -> None:
        wireguard, now = self._wireguard, self._now
        if changes.private_key is not None:
            private = changes.private_key if changes.private_key != NO_KEY else None
            before = set(wireguard.peers)
            wireguard.set_private_key(private, now)  # which removes a peer that has this key
            self.touched |= before - set(wireguard.peers)
        if changes.replace_peers:
            for public_key in list(wireguard.peers):
                self._remove(public_key)
        elif changes.listen_port is not None:
            wireguard.rebound(now)

    def _remove(self, public_key: bytes) -> None:
        if public_key in self._wireguard.peers:
            self._wireguard.remove(public_key, self._now)
            self.touched.add(public_key)

    def change_peer(self, change: PeerChange, endpoint: UDPEndpoint | None) -> None:
        public_key = change.public_key
        if change.remove:
            self._remove(public_key)
            return
        identity = self._wireguard.identity
        if identity is not None and identity.public == public_key:
            # As the kernel: a conf that lists all hosts can then be given to each of them.
            self.ourselves.add(public_key)
            return
        peer = self._wireguard.peers.get(public_key)
        if peer is None:
            if change.update_only:
                return
            peer = self._wireguard.add(public_key, self._now)
            self.touched.add(public_key)
        if self._change_settings(peer, change, endpoint) | self._change_allowed_ips(peer, change):
            self.touched.add(public_key)

    def _change_settings(
        self, peer: WireGuardPeer, change: PeerChange, endpoint: UDPEndpoint | None
    ) -> bool:
        """Key, endpoint, keepalive: whether any is new. What is so already disturbs nothing."""
        wireguard, now = self._wireguard, self._now
        psk, keepalive = change.preshared_key, change.keepalive
        changed = False
        if psk is not None and psk != peer.psk:
            wireguard.set_psk(peer, psk, now)
            changed = True
        # Only the far end: the one of now may also know by which of our addresses it knows us.
        known = cast(UDPEndpoint | None, peer.endpoint)
        if endpoint is not None and (known is None or known.remote != endpoint.remote):
            wireguard.set_endpoint(peer, endpoint, now)
            changed = True
        if keepalive is not None and keepalive != peer.keepalive_interval:
            wireguard.set_keepalive(peer, keepalive, now)
            changed = True
        return changed

    def _change_allowed_ips(self, peer: WireGuardPeer, change: PeerChange) -> bool:
        """Whether they are others than before."""
        wireguard = self._wireguard
        if not change.allowed_ips and not change.replace_allowed_ips:
            return False
        before = set(wireguard.networks(peer))
        if change.replace_allowed_ips:
            wireguard.disallow_all(peer)
        for network, remove in change.allowed_ips:
            if remove:
                wireguard.disallow(peer, network)
                continue
            try:
                loser = wireguard.allow(peer, network)
            except LocalProtocolError as error:
                self.refused.append(UAPIError(errno.EADDRINUSE, f"{network}: {error}"))
                continue
            if loser is not None:
                self._note_moved(loser.public_key, change.public_key, network)
        return set(wireguard.networks(peer)) != before

    def _note_moved(self, loser: bytes, winner: bytes, network: Network) -> None:
        self.touched.add(loser)
        self.moved.setdefault((loser, winner), []).append(network)


def _some(networks: Sequence[Network]) -> str:
    """The first few, since there may be thousands."""
    shown = ", ".join(map(str, networks[:MOST_SHOWN]))
    more = len(networks) - MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
