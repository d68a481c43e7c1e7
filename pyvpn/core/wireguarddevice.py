"""Cores that have stock WireGuard peers: the hub has them beside its own, a plain device only them.

All of it is forwarded to the one part that knows: :class:`.wireguardpeers.WireGuardPeers`.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvpn.core import control
from pyvpn.core.admission import Admission
from pyvpn.core.burst import Buffer, Endpoint
from pyvpn.core.peer import Peer
from pyvpn.core.transport import Session
from pyvpn.core.vpncore import VPNCore
from pyvpn.core.wireguardpeers import MESSAGES, STOCK_MTU, WireGuardPeer, WireGuardPeers
from pyvpn.errors import RemoteProtocolError


class WireGuardCore(VPNCore[Peer]):
    """What every core with stock peers does for those."""

    wireguard: WireGuardPeers

    def _handshake_received(self, message: bytes, endpoint: Endpoint, now: float) -> None:
        if message[0] not in MESSAGES:
            raise RemoteProtocolError("datagram_unknown")
        self.wireguard.handshake_received(message, endpoint, now)

    def _new_index(self) -> int:
        while True:
            index = super()._new_index()
            if not self.wireguard.waits_for(index):
                return index

    def _authenticated(
        self, peer: Peer, session: Session, endpoint: Endpoint, data: bool, now: float
    ) -> None:
        assert isinstance(peer, WireGuardPeer)
        self.wireguard.authenticated(peer, session, endpoint, data, now)

    def _received_elsewhere(
        self,
        peer: Peer,
        session: Session,
        plaintexts: list[bytes],
        newest: bool,
        endpoint: Endpoint,
        now: float,
        frames: list[list[Buffer]],
    ) -> None:
        if isinstance(peer, WireGuardPeer):
            self.wireguard.moved(peer, newest, endpoint, now)
            self._standard_received(peer, plaintexts, frames)
        else:
            super()._received_elsewhere(peer, session, plaintexts, newest, endpoint, now, frames)

    def _standard_received(
        self, peer: Peer, plaintexts: list[bytes], frames: list[list[Buffer]]
    ) -> None:
        assert isinstance(peer, WireGuardPeer)
        self.wireguard.packets_received(peer, plaintexts, frames)

    def _control_received(
        self, peer: Peer, session: Session, frame: control.Frame, endpoint: Endpoint, now: float
    ) -> None:
        raise RemoteProtocolError("control_wrong_direction")

    def _sent(self, peer: Peer, data: bool, now: float) -> None:
        assert isinstance(peer, WireGuardPeer)
        self.wireguard.sent(peer, data, now)

    def _session_wanted(self, peer: Peer, now: float) -> None:
        assert isinstance(peer, WireGuardPeer)
        self.wireguard.session_wanted(peer, now)


class WireGuardDevice(WireGuardCore):
    """A stock WireGuard interface: peers, who have keys of their own, and nothing else.

    :param inner_mtu: the largest inner packet in one piece; what is longer leaves in a datagram
        that the network may cut.
    """

    def __init__(
        self,
        *,
        wall_clock: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        inner_mtu: int = STOCK_MTU,
    ) -> None:
        super().__init__(wall_clock=wall_clock, random_bytes=random_bytes, inner_mtu=inner_mtu)
        # The key of the cookies for logins, of which there are none.
        self._admission = Admission(bytes(32), random_bytes, self.counters)
        self.wireguard = WireGuardPeers(self, self._admission, mtu=inner_mtu, tell_too_big=False)

    def stop(self, now: float) -> None:
        """Forget all keys."""
        self.wireguard.stop()

    def next_timer(self) -> tuple[float, str] | None:
        when, reason = min(
            (self.wireguard.next_timer(), "peer"), (self._admission.probe_due, "load")
        )
        return self._tell_timer(when, reason)

    def handle_timer(self, now: float) -> None:
        self._admission.woken(now)
        self.wireguard.handle_timer(now)
