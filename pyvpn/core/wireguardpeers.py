"""Stock WireGuard peers: who they are, their handshakes in both roles, and their timers.

docs/protocol.rst, "WireGuard peers", and the WireGuard paper (sections 5 and 6) have the rules. A
core has one :class:`WireGuardPeers`, a part of it that works on its tables: sessions, allowed IPs,
what is to be sent and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import frozen

from pyvpn.core import coalesce, ippacket, tai64n, wireguard
from pyvpn.core.admission import Admission
from pyvpn.core.burst import Buffer, Burst, Endpoint
from pyvpn.core.cookies import COOKIE_LIFETIME, CookieChecker, mac1_valid, open_cookie_reply
from pyvpn.core.events import WireGuardConnected, WireGuardDisconnected
from pyvpn.core.noise import KEY_SIZE, KeyPair
from pyvpn.core.peer import Peer
from pyvpn.core.timers import (
    KEEPALIVE_TIMEOUT,
    NEVER,
    REKEY_AFTER_TIME,
    REKEY_ATTEMPT_TIME,
    REKEY_JITTER,
    REKEY_ON_RECEIVE_TIME,
    REKEY_TIMEOUT,
    TimerQueue,
)
from pyvpn.core.transport import OVERHEAD, Session
from pyvpn.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from pyvpn.core.vpncore import VPNCore

#: The MTU of stock interfaces: in IPv6 and UDP it fills 1500.
STOCK_MTU = 1420
#: Sent data and heard nothing for so long: the keys may be gone at the other end.
ANSWER_TIME = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
#: One peer's initiations are read no faster (the paper, 5.1: a flood of valid ones).
INITIATION_SPACING = 0.02
#: The endpoint moves at most once in so many seconds (docs/protocol.rst, "Paths").
MOVE_SPACING = 1.0

#: The sizes of the handshake messages by their first byte.
MESSAGES = {
    wireguard.INITIATION: wireguard.INITIATION_SIZE,
    wireguard.RESPONSE: wireguard.RESPONSE_SIZE,
    wireguard.COOKIE_REPLY: wireguard.COOKIE_REPLY_SIZE,
}

Network = IPv4Network | IPv6Network


@frozen
class _Cookie:
    value: bytes
    expires: float


class WireGuardPeer(Peer):
    """A device with a key pair of its own and WireGuard's stock protocol.

    :ivar public_key: 32 bytes.
    :ivar psk: 32 bytes, zeros for none.
    :ivar keepalive_interval: seconds between persistent keepalives, 0 for none.
    :ivar last_handshake: Unix nanoseconds of the last one that came to keys, 0 for never.
    """

    __slots__ = (
        "answer_due",
        "attempt_due",
        "attempt_started",
        "cookie",
        "crossed_highest",
        "initiated",
        "initiation_sent",
        "initiation_taken",
        "keepalive_interval",
        "last_handshake",
        "mac1_key",
        "moved",
        "pending",
        "persistent_due",
        "psk",
        "public_key",
        "rekeyed_on_receive",
        "sent_message",
        "stamp_seen",
        "stamp_used",
    )

    native = False

    def __init__(self, public_key: bytes) -> None:
        super().__init__()
        self.public_key = public_key
        self.psk = wireguard.NO_PSK
        self.mac1_key = wireguard.mac1_key(public_key)
        self.keepalive_interval = 0
        self.last_handshake = 0
        #: The newest stamp it sent: in memory only, as WireGuard does.
        self.stamp_seen = b""
        #: The newest that it was sent, Unix nanoseconds.
        self.stamp_used = 0
        self.initiation_taken = -NEVER
        self.pending: wireguard.InitiationSent | None = None
        self.initiation_sent = -NEVER
        #: When the next initiation of an attempt is due; NEVER: there is no attempt.
        self.attempt_due = NEVER
        self.attempt_started = 0.0
        #: Whether we began the handshake of the current session: then its rekey is ours, too.
        self.initiated = False
        self.rekeyed_on_receive = False
        #: If the handshake of *previous* met the one of *current*: the highest counter on it. The
        #: other end may send on it until the next handshake, and so be heard on no other.
        self.crossed_highest: int | None = None
        #: When data that was sent should have been answered; NEVER: none waits.
        self.answer_due = NEVER
        self.persistent_due = NEVER
        #: The last handshake message we sent it, which one cookie reply may refer to; its cookie.
        self.sent_message = b""
        self.cookie: _Cookie | None = None
        self.moved = -NEVER

    @property
    def due(self) -> float:
        """When something is to be done for it."""
        return min(
            self.attempt_due,
            self.answer_due,
            self.persistent_due,
            self.keepalive.due,
            self.staged_expiry,
            min((session.expires for session in self.sessions()), default=NEVER),
        )


class WireGuardPeers:
    """All stock peers of one core.

    :param core: whose part this is.
    :param admission: judges load, together with the core's other handshakes.
    :param tell_too_big: what does not fit :data:`STOCK_MTU` is answered with "too big"; else it
        leaves in datagrams that may be cut on their way, as stock implementations do.

    :ivar identity: our key pair; without one nobody is answered.
    """

    def __init__(
        self, core: VPNCore[Any], admission: Admission, *, mtu: int, tell_too_big: bool
    ) -> None:
        self.identity: KeyPair | None = None
        self._core = core
        self._admission = admission
        self._mtu = mtu
        self._tell_too_big = tell_too_big
        self._peers: dict[bytes, WireGuardPeer] = {}
        self.peers: Mapping[bytes, WireGuardPeer] = MappingProxyType(self._peers)
        self._pending: dict[int, WireGuardPeer] = {}
        self._timers: TimerQueue[WireGuardPeer] = TimerQueue()
        self._mac1_key = b""
        self._cookies: CookieChecker | None = None

    # -- what the owner tells -----------------------------------------------------------------

    def set_private_key(self, private: bytes | None, now: float) -> None:
        """Be somebody, or nobody; sessions of who we were end.

        A peer with our own key is removed, as WireGuard does it.
        """
        if self.identity is not None and private == self.identity.private:
            return
        for peer in self._peers.values():
            self._end(peer, "key_changed")
        self.identity = self._cookies = None
        if private is None:
            return
        self.identity = KeyPair.of(private)
        public = self.identity.public
        self._mac1_key = wireguard.mac1_key(public)
        self._cookies = CookieChecker(
            wireguard.cookie_key(public), self._core._random_bytes, wireguard.COOKIE_FIRST_BYTES
        )
        self.remove(public, now)

    def add(self, public_key: bytes, now: float) -> WireGuardPeer:
        """Return the peer with a key, a new one if there is none.

        :raises LocalProtocolError: the key is our own, or has not 32 bytes.
        """
        if len(public_key) != KEY_SIZE:
            raise LocalProtocolError(f"a public key has {KEY_SIZE} bytes, not {len(public_key)}")
        if self.identity is not None and public_key == self.identity.public:
            raise LocalProtocolError("this is the public key of this machine itself")
        peer = self._peers.get(public_key)
        if peer is None:
            peer = self._peers[public_key] = WireGuardPeer(public_key)
            peer.mtu.inner = self._mtu
            peer.mtu.searching = not self._tell_too_big
        return peer

    def remove(self, public_key: bytes, now: float) -> None:
        """Forget a peer; harmless if there is none."""
        peer = self._peers.pop(public_key, None)
        if peer is not None:
            self._core._allowed.remove_peer(peer)
            self._end(peer, "removed")
            self._timers.cancel(peer)

    def set_psk(self, peer: WireGuardPeer, psk: bytes, now: float) -> None:
        """Use a pre-shared key from the next handshake on; 32 zeros for none."""
        if len(psk) != KEY_SIZE:
            raise LocalProtocolError(f"a pre-shared key has {KEY_SIZE} bytes, not {len(psk)}")
        peer.psk = psk

    def set_endpoint(self, peer: WireGuardPeer, endpoint: Endpoint, now: float) -> None:
        """Send to there from now on."""
        peer.endpoint = endpoint

    def set_keepalive(self, peer: WireGuardPeer, seconds: int, now: float) -> None:
        """Say something at least so often, from now on; 0 for not.

        :raises LocalProtocolError: not 0 to 65,535.
        """
        if not 0 <= seconds <= 0xFFFF:
            raise LocalProtocolError(f"a persistent keepalive is 0 to 65535 s, not {seconds}")
        was, peer.keepalive_interval = peer.keepalive_interval, seconds
        peer.persistent_due = NEVER
        if seconds and not was:
            peer.persistent_due = now  # at once, so that a NAT in between lets answers in
        elif seconds:
            peer.persistent_due = now + seconds
        self._arm(peer)

    def allow(self, peer: WireGuardPeer, network: Network) -> WireGuardPeer | None:
        """Route a network to a peer and take packets from there; the later one wins.

        :returns: whom it was taken from, if another stock peer had exactly this network.
        :raises LocalProtocolError: a password user has this address.
        """
        owner = self._core._allowed.owner(network)
        if owner is not None and owner.native:
            raise LocalProtocolError(f"{network} is the address of a password user's device")
        self._core._allowed.insert(network, peer)
        return owner if isinstance(owner, WireGuardPeer) and owner is not peer else None

    def disallow(self, peer: WireGuardPeer, network: Network) -> None:
        """Take a network away from a peer; harmless if it has not got it."""
        if self._core._allowed.owner(network) is peer:
            self._core._allowed.remove(network)

    def disallow_all(self, peer: WireGuardPeer) -> None:
        """Take all networks away from a peer."""
        self._core._allowed.remove_peer(peer)

    def networks(self, peer: WireGuardPeer) -> list[Network]:
        """Return a peer's allowed IPs, in the order they were given to it."""
        return self._core._allowed.networks(peer)

    def connect(self, peer: WireGuardPeer, now: float) -> None:
        """Begin a handshake, if it is known where the peer is."""
        self._initiate(peer, now)

    def rebound(self, now: float) -> None:
        """Say something to everybody: our own port or address is another now."""
        for peer in self._peers.values():
            if peer.current is not None and not peer.current.expired(now):
                self._say_something(peer, now)
            elif peer.keepalive_interval:
                self._initiate(peer, now)

    def stop(self) -> None:
        """Forget all keys; WireGuard has no word for good-bye."""
        for peer in self._peers.values():
            self._end(peer, "stopped")

    # -- handshakes ---------------------------------------------------------------------------

    def handshake_received(self, message: bytes, endpoint: Endpoint, now: float) -> None:
        """Take a message of type 1, 2 or 3; may raise RemoteProtocolError."""
        if self.identity is None or self._cookies is None or not self._peers:
            raise RemoteProtocolError("wireguard_no_peers")
        kind = wireguard.kind_of(message)
        if len(message) != MESSAGES[kind]:
            raise RemoteProtocolError("datagram_length")
        if kind == wireguard.COOKIE_REPLY:
            self._cookie_received(message, now)
            return
        address = endpoint.wire_address()
        if address[16:] == b"\0\0":
            raise RemoteProtocolError("datagram_source_port")
        if not mac1_valid(message, self._mac1_key):
            raise RemoteProtocolError("mac1_invalid")
        sender = int.from_bytes(message[4:8], "little")
        cookie = self._admission.arrived(message, sender, address, now, self._cookies)
        if cookie is not None:
            self._core._outbox.append(Burst(endpoint, [cookie, b""], len(cookie)))
        elif kind == wireguard.INITIATION:
            self._initiation_received(self.identity, message, endpoint, now)
        else:
            self._response_received(message, endpoint, now)

    def _initiation_received(
        self, identity: KeyPair, message: bytes, endpoint: Endpoint, now: float
    ) -> None:
        initiation = wireguard.InitiationReceived(identity, message, self._core._random_bytes)
        peer = self._peers.get(initiation.public_key)
        if peer is None:
            raise RemoteProtocolError("wireguard_unknown_peer")
        initiation.open()
        if initiation.stamp <= peer.stamp_seen:
            raise RemoteProtocolError("wireguard_stamp_replayed")
        if now - peer.initiation_taken < INITIATION_SPACING:
            raise RemoteProtocolError("wireguard_too_often")
        peer.stamp_seen = initiation.stamp
        peer.initiation_taken = now
        peer.rx_bytes += len(message)
        core = self._core
        core._forget(peer, peer.next)
        index = self._core._new_index()
        answer, keys = initiation.answer(
            peer.psk, index=index, mac1_key=peer.mac1_key, cookie=self._cookie_for(peer, now)
        )
        peer.next = self._session(index, keys, now)
        core._sessions[index] = (peer, peer.next)
        self._send_message(peer, answer, endpoint)
        self._arm(peer)

    def _response_received(self, message: bytes, endpoint: Endpoint, now: float) -> None:
        index = int.from_bytes(message[8:12], "little")
        peer = self._pending.get(index)
        if peer is None or peer.pending is None:
            raise RemoteProtocolError("response_unexpected")
        keys = peer.pending.answered(message)
        peer.rx_bytes += len(message)
        self._give_up(peer)
        session = self._session(index, keys, now)
        self._core._sessions[index] = (peer, session)
        crossed, peer.next = peer.next, None
        self._make_current(peer, session, endpoint, True, now)
        if crossed is not None:
            # Two handshakes have met. The other end may send on either, so both are kept.
            self._core._forget(peer, peer.previous)
            peer.previous = crossed
            peer.crossed_highest = crossed.window.highest
        self._core._send_staged(peer, now)
        if not session.send_counter:
            self._say_something(peer, now)  # the other end waits for our first packet

    def _make_current(
        self, peer: WireGuardPeer, session: Session, endpoint: Endpoint, initiated: bool, now: float
    ) -> None:
        core = self._core
        new = peer.current is None or peer.current.expired(now)
        core._forget(peer, peer.previous)
        peer.previous, peer.current = peer.current, session
        peer.initiated = initiated
        peer.rekeyed_on_receive = False
        peer.crossed_highest = None
        peer.endpoint = endpoint
        peer.answer_due = NEVER
        peer.last_heard = now
        peer.last_handshake = core._wall_clock()
        core._events.append(WireGuardConnected(peer.public_key, endpoint, new))
        self._arm(peer)

    def _cookie_received(self, message: bytes, now: float) -> None:
        """Keep a cookie for the next try: the first to use it at once would add to the load."""
        index = int.from_bytes(message[4:8], "little")
        peer = self._pending.get(index)
        if peer is None:
            found = self._core._sessions.get(index)
            if found is None or not isinstance(found[0], WireGuardPeer):
                raise RemoteProtocolError("response_unexpected")
            peer = found[0]
        if not peer.sent_message:
            raise RemoteProtocolError("response_unexpected")
        value = open_cookie_reply(
            message,
            wireguard.cookie_key(peer.public_key),
            index,
            peer.sent_message,
            wireguard.COOKIE_FIRST_BYTES,
        )
        peer.cookie = _Cookie(value, now + COOKIE_LIFETIME)
        # A recorded reply must not make an old cookie look new.
        peer.sent_message = b""

    def _cookie_for(self, peer: WireGuardPeer, now: float) -> bytes:
        return peer.cookie.value if peer.cookie is not None and now < peer.cookie.expires else b""

    def _initiate(self, peer: WireGuardPeer, now: float) -> None:
        """Begin an attempt at a handshake; one that is under way gets its whole time again.

        The paper, 6.4: who goes on sending is not given up.
        """
        peer.attempt_started = now
        if peer.attempt_due == NEVER:
            peer.attempt_due = max(now, peer.initiation_sent + REKEY_TIMEOUT)
            if peer.attempt_due <= now:
                self._try_again(peer, now)
            else:
                self._arm(peer)

    def _try_again(self, peer: WireGuardPeer, now: float) -> None:
        """Send the next initiation of an attempt, or end the attempt."""
        if peer.endpoint is None or self.identity is None:
            self._give_up(peer)
            return
        if now - peer.attempt_started >= REKEY_ATTEMPT_TIME:
            self._give_up(peer)
            self._core.counters["wireguard_no_answer"] += 1
            self._core.counters["staged_expired"] += len(self._core._unstage(peer))
            return
        if peer.pending is not None:
            del self._pending[peer.pending.index]
        try:
            peer.pending = wireguard.InitiationSent(
                self.identity,
                peer.public_key,
                peer.psk,
                index=self._core._new_index(),
                stamp=self._next_stamp(peer),
                mac1_key=peer.mac1_key,
                random_bytes=self._core._random_bytes,
                cookie=self._cookie_for(peer, now),
            )
        except RemoteProtocolError as error:  # what was configured is no public key
            peer.pending = None
            self._give_up(peer)
            self._core.counters[error.reason] += 1
            return
        self._pending[peer.pending.index] = peer
        peer.initiation_sent = now
        peer.attempt_due = now + REKEY_TIMEOUT + self._core._jitter(REKEY_JITTER)
        self._send_message(peer, peer.pending.message, peer.endpoint)
        self._arm(peer)

    def _next_stamp(self, peer: WireGuardPeer) -> bytes:
        """Later than the last one, whatever the clock does; no further ahead of it than needed."""
        clock = max(self._core._wall_clock(), peer.stamp_used + tai64n.WHITENING)
        peer.stamp_used = tai64n.whiten(clock)
        return tai64n.pack(peer.stamp_used)

    def _give_up(self, peer: WireGuardPeer) -> None:
        """End the attempt that is under way."""
        if peer.pending is not None:
            del self._pending[peer.pending.index]
        peer.pending = None
        peer.attempt_due = NEVER

    def _send_message(self, peer: WireGuardPeer, message: bytes, endpoint: Endpoint) -> None:
        peer.sent_message = message
        peer.tx_bytes += len(message)
        # It is a sign of life as good as a keepalive.
        peer.keepalive.any_authenticated_packet_sent()
        self._core._outbox.append(Burst(endpoint, [message, b""], len(message)))

    def _session(self, index: int, keys: wireguard.SessionKeys, now: float) -> Session:
        return Session(
            send_key=keys.send,
            receive_key=keys.receive,
            aes=False,
            local_index=index,
            remote_index=keys.remote_index,
            inner_mtu=self._mtu,
            created=now,
            segments=False,
        )

    def waits_for(self, index: int) -> bool:
        """Tell whether the answer to an initiation of ours would name this index."""
        return index in self._pending

    # -- data ---------------------------------------------------------------------------------

    def authenticated(
        self, peer: WireGuardPeer, session: Session, endpoint: Endpoint, data: bool, now: float
    ) -> None:
        """Note authentic datagrams: see ``VPNCore._authenticated``."""
        core = self._core
        peer.last_heard = now
        peer.answer_due = NEVER
        if session is peer.next:
            peer.next = None
            self._give_up(peer)  # what it was to bring about is there
            self._make_current(peer, session, endpoint, False, now)
            core._send_staged(peer, now)
        elif peer.crossed_highest is not None and session is peer.previous:
            newest = session.window.highest > peer.crossed_highest
            peer.crossed_highest = session.window.highest
            if endpoint != peer.endpoint:
                self.moved(peer, newest, endpoint, now)
        if peer.keepalive_interval:
            peer.persistent_due = now + peer.keepalive_interval
        if data and peer.keepalive.data_received(now):
            self._note_due(peer, peer.keepalive.due)
        if (
            peer.initiated
            and session is peer.current
            and not peer.rekeyed_on_receive
            and now - session.created >= REKEY_ON_RECEIVE_TIME
        ):
            peer.rekeyed_on_receive = True
            core._timer_known = False
            self._initiate(peer, now)

    def moved(self, peer: WireGuardPeer, newest: bool, endpoint: Endpoint, now: float) -> None:
        """Let the endpoint follow a valid datagram that is newer than all before.

        WireGuard's rule; at most once a second, so that two ends cannot make it swing.
        """
        if newest and now - peer.moved >= MOVE_SPACING:
            peer.moved = now
            peer.endpoint = endpoint
            self._core.counters["path_moved"] += 1

    def packets_received(
        self, peer: WireGuardPeer, plaintexts: list[bytes], frames: list[list[Buffer]]
    ) -> None:
        """Take authentic plaintexts: keepalives, and complete packets, joined where it goes."""
        lookup = self._core._allowed.lookup
        # A stock peer would need them cut again, with new sums: joined, what goes from one to
        # another costs the hub a fifth more (12.2 s a GiB to 9.95). The first tells for all.
        first = plaintexts[0]
        target = lookup(ippacket.destination(first)) if first else None
        passing = isinstance(target, WireGuardPeer) and target is not peer
        runs, others = (coalesce.leave_all if passing else coalesce.join_all)(plaintexts)
        for run in runs:
            if lookup(coalesce.source(run)) is not peer:
                self._core.counters["inner_source_not_allowed"] += run.packets
                continue
            peer.rx_packets += run.packets
            frames.append(run.frame)
        for other in others:
            if not other:
                continue  # a keepalive
            if other[0] >> 4 in (4, 6):
                self._core.counters["inner_malformed"] += 1
            else:
                self._core.counters["inner_unknown"] += 1
        peer.rx_bytes += sum(map(len, plaintexts)) + OVERHEAD * len(plaintexts)

    def sent(self, peer: WireGuardPeer, data: bool, now: float) -> None:
        """Note that something was sealed and sent: see ``VPNCore._sent``."""
        peer.keepalive.any_authenticated_packet_sent()
        if peer.keepalive_interval:
            peer.persistent_due = now + peer.keepalive_interval
        if not data:
            peer.tx_bytes += OVERHEAD  # a keepalive: there is nothing else that is no data
        elif peer.answer_due == NEVER:
            peer.answer_due = now + ANSWER_TIME
            self._note_due(peer, peer.answer_due)
        session = peer.current
        if session is None:
            return
        if peer.initiated and (now - session.created >= REKEY_AFTER_TIME or session.worn()):
            self._core._timer_known = False
            self._initiate(peer, now)

    def session_wanted(self, peer: WireGuardPeer, now: float) -> None:
        """Note that packets wait: see ``VPNCore._session_wanted``."""
        if peer.endpoint is None:
            self._core.counters["wireguard_no_endpoint"] += len(self._core._unstage(peer))
            return
        self._initiate(peer, now)
        self._arm(peer)

    def _say_something(self, peer: WireGuardPeer, now: float) -> None:
        """Send the empty packet."""
        if peer.current is not None:
            self._core._send_control(peer, peer.current, b"", now)

    # -- timers -------------------------------------------------------------------------------

    def next_timer(self) -> float:
        """Return when :meth:`handle_timer` wants to be called; NEVER for not."""
        return self._timers.next()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        for peer in self._timers.pop_due(now):
            if self._peers.get(peer.public_key) is peer:
                self._handle_peer_timer(peer, now)
                # What it armed on the way may be what it has dealt with after that.
                self._timers.cancel(peer)
                self._arm(peer)

    def _handle_peer_timer(self, peer: WireGuardPeer, now: float) -> None:
        core = self._core
        gone = peer.current is not None and peer.current.expired(now)
        core._expire_sessions(peer, now)
        if gone:
            peer.answer_due = peer.keepalive.due = NEVER
            core._events.append(WireGuardDisconnected(peer.public_key, "expired"))
        if peer.attempt_due <= now:
            self._try_again(peer, now)
        if peer.answer_due <= now:
            peer.answer_due = NEVER
            self._initiate(peer, now)
        if peer.keepalive.due <= now:
            peer.keepalive.any_authenticated_packet_sent()
            self._say_something(peer, now)
        if peer.persistent_due <= now:
            peer.persistent_due = now + peer.keepalive_interval
            if peer.current is not None:
                self._say_something(peer, now)
            else:
                self._initiate(peer, now)
        core._expire_staged(peer, now)

    def _arm(self, peer: WireGuardPeer) -> None:
        due = peer.due
        if due != NEVER:
            self._note_due(peer, due)

    def _note_due(self, peer: WireGuardPeer, due: float) -> None:
        self._timers.arm(peer, due)
        self._core._due(due)

    def _end(self, peer: WireGuardPeer, reason: str) -> None:
        """Drop all keys of a peer and what waits for it."""
        connected = peer.current is not None
        for session in peer.sessions():
            self._core._forget(peer, session)
        self._give_up(peer)
        self._core._unstage(peer)
        peer.answer_due = NEVER
        peer.keepalive.any_authenticated_packet_sent()
        if connected:
            self._core._events.append(WireGuardDisconnected(peer.public_key, reason))
