"""The hub's core: logins, sessions of many peers, leases told to clients, polls answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network

from attrs import define

from pyvpn.core import control, ippacket, segments, tai64n
from pyvpn.core.admission import UNDECIDED_BOUND, Admission, Debit
from pyvpn.core.assignments import Assignments, Subnets
from pyvpn.core.burst import Burst, Endpoint
from pyvpn.core.events import (
    ConfigRefused,
    LeaseLost,
    LeaseRequested,
    LoginRequested,
    SessionConfirmed,
    SessionEnded,
)
from pyvpn.core.leases import Lease
from pyvpn.core.login import LoginFlags, LoginRequest, NetworkKeys
from pyvpn.core.logins import Logins
from pyvpn.core.mailbox import Mailbox, Mailboxes
from pyvpn.core.noise import KeyPair
from pyvpn.core.peer import Peer, ServerPeer
from pyvpn.core.timers import CONFIG_INTERVAL, CONFIG_TRIES, NEVER, TimerQueue
from pyvpn.core.transport import Session
from pyvpn.core.wireguarddevice import WireGuardCore
from pyvpn.core.wireguardpeers import MESSAGES, STOCK_MTU, WireGuardPeers
from pyvpn.errors import LocalProtocolError, RemoteProtocolError

#: Seconds between HELLOs of a session: each is a decision and a write. Clients wait 1 s.
HELLO_SPACING = 0.5
#: Packets wait for a new connection's CONFIG_ACK, since its client drops what comes before it has
#: addresses; but no longer than CONFIG is repeated (docs/protocol.rst, "HELLO and CONFIG").
HOLD_TIME = CONFIG_INTERVAL * CONFIG_TRIES
#: Stamps kept of devices that have neither address nor keys: the bound of the table, oldest first.
#: Without them a recorded 0x50 would draw an answer once its device was forgotten.
STAMPS_KEPT = 65_536


@define
class _Undecided:
    request: LoginRequest
    endpoint: Endpoint
    debit: Debit


class VPNServer(WireGuardCore):
    """The hub. It owns the sessions; users and leases are told to it.

    :param network4: the VPN's IPv4 network; clients get its prefix length with their address.
    :param network6: the same for IPv6, None for a network without.
    :param aes: whether AES-256-GCM is granted to clients that offer it.
    :param relay: whether packets from client to client are sealed anew at once, where that is
        possible, and do not pass through the kernel and its rules.
    """

    def __init__(
        self,
        *,
        keys: NetworkKeys,
        login_key: KeyPair,
        network4: IPv4Network,
        network6: IPv6Network | None,
        inner_mtu: int,
        aes: bool,
        relay: bool = False,
        wall_clock: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        super().__init__(wall_clock=wall_clock, random_bytes=random_bytes, inner_mtu=inner_mtu)
        self._assignments = Assignments(self._allowed, network4, network6, inner_mtu)
        self._offers = LoginFlags.DELIVER_ON_POLL | LoginFlags.SEGMENT_FRAMES
        if aes:
            self._offers |= LoginFlags.AES_256_GCM
        self._peers: dict[tuple[str, bytes], ServerPeer] = {}
        self._stamps: dict[tuple[str, bytes], bytes] = {}
        self._timers: TimerQueue[ServerPeer] = TimerQueue()
        self._undecided: dict[int, _Undecided] = {}
        self._admission = Admission(keys.cookie, random_bytes, self.counters)
        self._logins = Logins(
            keys, login_key, self._admission, self._seen, wall_clock, random_bytes
        )
        #: The stock WireGuard peers beside the users' devices.
        self.wireguard = WireGuardPeers(self, self._admission, mtu=STOCK_MTU, tell_too_big=True)
        self._mail = Mailboxes(self.counters)
        self._relaying = relay
        self._relayed: dict[ServerPeer, list[bytes]] = {}
        self._hellos: dict[int, tuple[ServerPeer, Session]] = {}
        self._last_id = 0

    # -- what the owner tells -----------------------------------------------------------------

    def set_user(self, name: str, public_key: bytes, now: float) -> None:
        """Let a user log in with a key; a changed key ends the sessions made with the old one."""
        if self._logins.users.get(name, public_key) != public_key:
            self.remove_user(name, control.ByeReason.RESTARTING, now)
        self._logins.users[name] = public_key

    def remove_user(self, name: str, reason: control.ByeReason, now: float) -> None:
        """Let a user log in no more; live sessions end with a BYE."""
        self._logins.users.pop(name, None)
        self._admission.forget_user(name)
        for peer in [peer for peer in self._peers.values() if peer.user == name]:
            self._say_bye(peer, reason, now)
            self._end(peer, reason.name.lower())

    def restore_device(
        self, user: str, device: bytes, name: str, stamp: bytes, lease: Lease | None
    ) -> None:
        """Remember a device from the store: its last stamp, and its lease if it holds one."""
        peer = self._peer_of(user, device)
        peer.name = name
        peer.stamp_seen = stamp
        self._logins.newest_stamp = max(self._logins.newest_stamp, stamp)
        if lease is not None:
            self._grant(peer, lease)

    def forget_device(self, user: str, device: bytes, now: float) -> None:
        """Forget a device: its sessions end and its addresses are free."""
        peer = self._peers.get((user, device))
        if peer is not None:
            self._say_bye(peer, control.ByeReason.DISABLED, now)
            self._allowed.remove_peer(peer)
            peer.lease = None
            self._end(peer, "forgotten")

    def set_network(self, pushed: control.Pushed, subnets: Subnets, now: float) -> None:
        """Tell clients this from now on, those that are connected at once, if it is news.

        :param subnets: what is behind which device; packets go there, and are taken from there.
        :raises LocalProtocolError: more than a CONFIG frame holds; nothing has changed.
        """
        if not self._assignments.change(pushed, subnets, self._peers.values()):
            return
        for peer in self._peers.values():
            # Whoever has not said HELLO yet is told then.
            if peer.current is not None and peer.lease is not None and peer.config_revision:
                self._configure(peer, peer.lease, now)

    def login_decided(self, id: int, granted: bool, now: float) -> None:
        """Answer :class:`LoginRequested`; a refused login gets silence."""
        undecided = self._undecided.pop(id, None)
        if undecided is None:
            raise LocalProtocolError(f"login {id} is not waiting for a decision")
        request, endpoint = undecided.request, undecided.endpoint
        # Much may have happened while the decision was made elsewhere.
        if not granted or self._logins.users.get(request.user) != request.public_key:
            self.counters["login_refused"] += 1
            return
        peer = self._peer_of(request.user, request.device)
        if request.stamp <= peer.stamp_seen:
            self.counters["login_stamp_replayed"] += 1
            return
        peer.stamp_seen = request.stamp
        self._logins.newest_stamp = max(self._logins.newest_stamp, request.stamp)
        self._forget(peer, peer.next)
        index = self._new_index()
        flags = request.flags & self._offers
        message, keys = request.answer(
            index=index,
            flags=flags,
            inner_mtu=self.inner_mtu,
            stamp=tai64n.pack(self._wall_clock()),
        )
        peer.next = Session(
            send_key=keys.send,
            receive_key=keys.receive,
            aes=LoginFlags.AES_256_GCM in flags,
            local_index=index,
            remote_index=keys.remote_index,
            inner_mtu=self.inner_mtu,
            created=now,
            segments=LoginFlags.SEGMENT_FRAMES in flags,
        )
        peer.next_endpoint, peer.next_stamp = endpoint, request.stamp
        peer.next_on_poll = LoginFlags.DELIVER_ON_POLL in flags
        peer.next_debit = undecided.debit
        self._sessions[index] = (peer, peer.next)
        self._outbox.append(Burst(endpoint, [message, b""], len(message)))
        self._arm(peer)

    def lease_decided(self, id: int, decision: Lease | control.ByeReason, now: float) -> None:
        """Answer :class:`LeaseRequested`: a lease is told by CONFIG, a refusal by BYE."""
        if id not in self._hellos:
            raise LocalProtocolError(f"lease {id} is not waiting for a decision")
        peer, session = self._hellos.pop(id)
        peer.pending_hello = False
        if session.local_index not in self._sessions:
            return
        if isinstance(decision, control.ByeReason):
            self._send_control(peer, session, control.Bye(decision, "").pack(), now)
            self._end(peer, decision.name.lower())
            return
        self._assignments.said_hello(peer)
        self._grant(peer, decision)
        self._configure(peer, decision, now)

    def stop(self, reason: control.ByeReason, now: float) -> None:
        """Say BYE on every session."""
        for peer in list(self._peers.values()):
            self._say_bye(peer, reason, now)
            self._end(peer, reason.name.lower())
        self.wireguard.stop()

    # -- what the owner may ask ---------------------------------------------------------------

    def connected_peers(self) -> Iterator[ServerPeer]:
        """Yield the peers that have a confirmed session."""
        return (peer for peer in self._peers.values() if peer.current is not None)

    def peer(self, user: str, device: bytes) -> ServerPeer | None:
        """Return what is known of a device, None for a stranger."""
        return self._peers.get((user, device))

    def clock_behind(self) -> bool:
        """Tell whether the hub's clock is over a day behind the newest stamp it has accepted, or
        behind the making of this program.

        The bound on future stamps is off then: the clock is what is wrong (no battery, say).
        """
        return self._logins.clock_behind()

    # -- logins -------------------------------------------------------------------------------

    def _handshake_received(self, message: bytes, endpoint: Endpoint, now: float) -> None:
        if message[0] in MESSAGES:
            super()._handshake_received(message, endpoint, now)
            return
        judged = self._logins.judge(message, endpoint.wire_address(), now)
        if isinstance(judged, bytes):
            self._outbox.append(Burst(endpoint, [judged, b""], len(judged)))
            return
        request, debit = judged
        if len(self._undecided) >= UNDECIDED_BOUND:
            self._admission.overloaded(now)
            raise RemoteProtocolError("login_queue_full")
        self._last_id += 1
        self._undecided[self._last_id] = _Undecided(request, endpoint, debit)
        self._events.append(LoginRequested(self._last_id, request.user, request.device))

    def _authenticated(
        self, peer: Peer, session: Session, endpoint: Endpoint, data: bool, now: float
    ) -> None:
        if not isinstance(peer, ServerPeer):
            super()._authenticated(peer, session, endpoint, data, now)
            return
        peer.last_heard = now
        if session is peer.next:
            current = peer.current
            if current is not None and not current.expired(now) and endpoint == peer.endpoint:
                # It is proven to be here, whatever way its 0x50 took.
                peer.next_endpoint = endpoint
            self._confirm(peer, session, now)
        # The queue of timers is not asked for each packet: among 10,000 peers that costs 0.2 µs.
        if data and peer.keepalive.data_received(now):
            self._timers.arm(peer, peer.keepalive.due)
            self._due(peer.keepalive.due)

    def _confirm(self, peer: ServerPeer, session: Session, now: float) -> None:
        """Make *next* current: the client has shown that it received our answer."""
        new = peer.current is None or peer.current.expired(now)
        self._forget(peer, peer.previous)
        peer.previous, peer.current, peer.next = peer.current, session, None
        peer.endpoint = peer.next_endpoint
        if peer.next_debit is not None:
            self._admission.confirmed(peer.next_debit)
            peer.next_debit = None
        self._agree_on_delivery(peer, now)
        peer.hello_after = -NEVER
        if new:
            peer.started = now
            peer.hold_due = now + HOLD_TIME
        if peer.endpoint is not None:
            self._events.append(
                SessionConfirmed(peer.user, peer.device, peer.next_stamp, peer.endpoint, new)
            )
        if peer.hold_due == NEVER:
            self._send_staged(peer, now)
        self._find_mtu(peer, new, now)
        self._arm(peer)

    def _send_frames(self, peer: Peer, frames: list[bytes], now: float) -> list[Burst]:
        if not isinstance(peer, ServerPeer):
            return super()._send_frames(peer, frames, now)
        if peer.mailbox is not None:
            self._mail.put(peer.mailbox, frames, now)
            self._timers.arm(peer, peer.mailbox.due)
            self._due(peer.mailbox.due)
            return []
        if peer.hold_due != NEVER:
            self._stage(peer, frames, now)
            return []
        return super()._send_frames(peer, frames, now)

    def _relay(self, peer: Peer, plaintexts: list[bytes], now: float) -> bool:
        """Keep packets of a client to be sealed anew for the client that they are for.

        Only what the kernel would do nothing else to: the other one must be there, take them as
        they are, and at once.
        """
        first = plaintexts[0]
        segment = first[0] == segments.SEGMENT
        target = self._allowed.lookup(
            segments.destination(first) if segment else ippacket.destination(first)
        )
        if not isinstance(target, ServerPeer) or target is peer or target.mailbox is not None:
            return False
        session = target.current
        if (
            session is None
            or session.expired(now)
            or (segment and not session.segments)
            or target.hold_due != NEVER
            or len(first) > target.mtu.inner + (segments.PREFIX_SIZE if segment else 0)
        ):
            return False
        self._relayed.setdefault(target, []).extend(plaintexts)
        return True

    def settled(self) -> bool:
        return not self._relayed and super().settled()

    def datagrams_to_send(self, now: float) -> list[Burst]:
        """Seal what is to be relayed, all of a turn together, and send it with the rest."""
        relayed, self._relayed = self._relayed, {}
        for peer, plaintexts in relayed.items():
            session, endpoint = peer.current, peer.endpoint
            if session is None or endpoint is None:
                self.counters["relay_session_ended"] += len(plaintexts)
                continue
            bursts = [Burst(endpoint, *row) for row in session.seal_rows(plaintexts)]
            self._outbox += bursts
            self._data_sent(peer, bursts, sum(map(len, plaintexts)), len(plaintexts), now)
        return super().datagrams_to_send(now)

    def _release(self, peer: ServerPeer, now: float) -> None:
        """Let packets wait for a CONFIG_ACK no more."""
        if peer.hold_due != NEVER:
            peer.hold_due = NEVER
            self._send_staged(peer, now)

    # -- control frames -----------------------------------------------------------------------

    def _control_received(
        self, peer: Peer, session: Session, frame: control.Frame, endpoint: Endpoint, now: float
    ) -> None:
        assert isinstance(peer, ServerPeer)  # a stock peer's are no control frames
        if isinstance(frame, control.Poll):
            self._poll_received(peer, session, frame, endpoint, now)
        elif isinstance(frame, control.Hello):
            self._hello_received(peer, session, frame, now)
        elif isinstance(frame, control.ConfigAck):
            if frame.revision == peer.config_revision and peer.config_frames:
                peer.config_due = NEVER
                peer.config_frames = []
                if frame.status:
                    self._events.append(ConfigRefused(peer.user, peer.device, frame.status))
                self._release(peer, now)
        elif isinstance(frame, control.Bye):
            if session is peer.current:
                self._disconnect(peer, "client_stopped")
            else:
                self._forget(peer, session)
        else:
            raise RemoteProtocolError("control_wrong_direction")

    def _poll_received(
        self,
        peer: ServerPeer,
        session: Session,
        poll: control.Poll,
        endpoint: Endpoint,
        now: float,
    ) -> None:
        if session is not peer.current:
            raise RemoteProtocolError("poll_old_session")
        peer.polls.received(poll, now)
        if peer.mailbox is not None:
            peer.mailbox.patience = peer.polls.patience(now)
            if endpoint == peer.endpoint:
                peer.polls.held = None
                self._deliver(peer, poll, now)
            else:
                self._timers.arm(peer, peer.polls.hold(poll, endpoint, now))
        self._reply(peer, session, poll, endpoint, now)
        if peer.config_frames and peer.config_due == NEVER:
            # It was out of reach when there was news, and is not any more.
            peer.config_tries = 0
            self._send_config(peer, now)
        if poll.seq > 1 and peer.lease is None:
            # The client believes that it has its addresses, but this hub has lost the lease (it
            # died before the write): the client is told anew, as if it had said hello.
            self._hello_received(peer, session, control.Hello(None, None, peer.name), now)

    def _reply(
        self,
        peer: ServerPeer,
        session: Session,
        poll: control.Poll,
        endpoint: Endpoint,
        now: float,
    ) -> None:
        observed = endpoint.wire_address()
        reply = control.Reply(
            echoed=poll.stamp,
            stamp=tai64n.pack(self._wall_clock()),
            seq=poll.seq,
            queued=0 if peer.mailbox is None else peer.mailbox.octets,
            address=observed[:16],
            port=int.from_bytes(observed[16:], "little"),
        )
        self._send_control(peer, session, reply.pack(), now)

    # -- delivery on poll ---------------------------------------------------------------------

    def _agree_on_delivery(self, peer: ServerPeer, now: float) -> None:
        """Begin a session's way of delivery; what waits in the other way's place comes along.

        A client that changes its mind has been started anew: it needs its CONFIG first.
        """
        peer.polls.session()
        if not peer.next_on_poll:
            if peer.mailbox is not None:
                mailbox, peer.mailbox = peer.mailbox, None
                self._stage(peer, self._mail.empty(mailbox), now)
                peer.hold_due = now + HOLD_TIME
        elif peer.mailbox is None:
            peer.mailbox = Mailbox()
            self._mail.put(peer.mailbox, self._unstage(peer), now)

    def _deliver_held(self, peer: ServerPeer, now: float) -> None:
        """Answer the poll that waits, if its address is valid now or it has waited long enough."""
        held = peer.polls.held
        if held is not None and (held.endpoint == peer.endpoint or held.due <= now):
            peer.polls.held = None
            if peer.current is not None:
                self._deliver(peer, held.poll, now)
                self._reply(peer, peer.current, held.poll, held.endpoint, now)

    def _deliver(self, peer: ServerPeer, poll: control.Poll, now: float) -> None:
        """Send what a poll's credit covers."""
        session, mailbox = peer.current, peer.mailbox
        if session is None or mailbox is None:
            return
        frames = self._mail.collect(
            mailbox, poll.credit_bytes, poll.credit_datagrams, peer.mtu.inner, now
        )
        if frames:
            self._outbox += super()._send_frames(peer, frames, now)

    def _response_received(
        self, peer: Peer, response: control.PathResponse, endpoint: Endpoint, now: float
    ) -> None:
        assert isinstance(peer, ServerPeer)
        super()._response_received(peer, response, endpoint, now)
        self._deliver_held(peer, now)

    def _challenge(self, peer: Peer, session: Session, endpoint: Endpoint, now: float) -> None:
        assert isinstance(peer, ServerPeer)
        if peer.polls.held_back_at != now:
            super()._challenge(peer, session, endpoint, now)

    def _ask_mtu(self, peer: Peer, now: float) -> None:
        assert isinstance(peer, ServerPeer)
        super()._ask_mtu(peer, now)
        self._timers.arm(peer, peer.mtu.due)

    # -- addresses ----------------------------------------------------------------------------

    def _hello_received(
        self, peer: ServerPeer, session: Session, hello: control.Hello, now: float
    ) -> None:
        if peer.pending_hello:
            return  # a repetition, while the decision is being made
        if now < peer.hello_after:
            raise RemoteProtocolError("hello_too_often")
        peer.hello_after = now + HELLO_SPACING
        peer.pending_hello = True
        peer.polls.login(now)
        peer.hold_due = now + HOLD_TIME
        self._timers.arm(peer, peer.hold_due)
        peer.name = hello.name
        self._last_id += 1
        self._hellos[self._last_id] = (peer, session)
        self._events.append(
            LeaseRequested(
                self._last_id, peer.user, peer.device, hello.wanted4, hello.wanted6, hello.name
            )
        )

    def _configure(self, peer: ServerPeer, lease: Lease, now: float) -> None:
        """Tell a client its addresses and all the rest, until it says that it has it."""
        config = self._assignments.config(peer, lease)
        peer.config_revision += 1
        peer.config_frames = control.config_parts(peer.config_revision, config)
        peer.config_tries = 0
        self._send_config(peer, now)

    def _send_config(self, peer: ServerPeer, now: float) -> None:
        session = peer.current
        if session is None or peer.config_tries >= CONFIG_TRIES:
            peer.config_due = NEVER
            return
        peer.config_tries += 1
        peer.config_due = now + CONFIG_INTERVAL
        for part in peer.config_frames:
            self._send_control(peer, session, part.pack(), now)
        self._arm(peer)

    def _grant(self, peer: ServerPeer, lease: Lease) -> None:
        """Route a lease's addresses to a peer; whoever had them has them no more."""
        for other in self._assignments.grant(peer, lease):
            self._events.append(LeaseLost(other.user, other.device))

    # -- peers and timers ---------------------------------------------------------------------

    def _peer_of(self, user: str, device: bytes) -> ServerPeer:
        peer = self._peers.get((user, device))
        if peer is None:
            peer = self._peers[user, device] = ServerPeer(user, device)
            peer.stamp_seen = self._stamps.pop((user, device), b"")
        return peer

    def _seen(self, user: str, device: bytes) -> tuple[bytes, bool]:
        """Return the highest stamp of a right login of a device, and whether there is a peer."""
        peer = self._peers.get((user, device))
        if peer is None:
            return self._stamps.get((user, device), b""), False
        return peer.stamp_seen, True

    def _say_bye(self, peer: ServerPeer, reason: control.ByeReason, now: float) -> None:
        if peer.current is not None:
            self._send_control(peer, peer.current, control.Bye(reason, "").pack(), now)

    def _end(self, peer: ServerPeer, reason: str) -> None:
        """Drop all keys of a peer; its lease stays."""
        self._forget(peer, peer.next)
        self._disconnect(peer, reason)

    def _disconnect(self, peer: ServerPeer, reason: str) -> None:
        """Drop the keys that were in use; a session that waits for its first packet stays."""
        connected = peer.current is not None
        self._forget(peer, peer.previous)
        self._forget(peer, peer.current)
        peer.config_due = peer.hold_due = NEVER
        peer.config_frames = []
        peer.mtu.stop()
        peer.keepalive.any_authenticated_packet_sent()
        if connected:
            self._events.append(SessionEnded(peer.user, peer.device, reason))
        self._forget_idle(peer)

    def _forget_idle(self, peer: ServerPeer) -> None:
        """Keep of a device that holds neither address nor keys its stamp alone."""
        holder = (peer.user, peer.device)
        if peer.lease is not None or peer.sessions() or self._peers.get(holder) is not peer:
            return
        del self._peers[holder]
        self._timers.cancel(peer)
        self._unstage(peer)
        if peer.mailbox is not None:
            self._mail.empty(peer.mailbox)
        self._stamps[holder] = peer.stamp_seen
        if len(self._stamps) > STAMPS_KEPT:
            del self._stamps[next(iter(self._stamps))]

    def _sent(self, peer: Peer, data: bool, now: float) -> None:
        if not isinstance(peer, ServerPeer):
            super()._sent(peer, data, now)
            return
        peer.keepalive.any_authenticated_packet_sent()

    def _session_wanted(self, peer: Peer, now: float) -> None:
        if not isinstance(peer, ServerPeer):
            super()._session_wanted(peer, now)
            return
        # Only the client can start a session: its packets wait, but not for ever.
        self._timers.arm(peer, peer.staged_expiry)

    def _arm(self, peer: ServerPeer) -> None:
        due = min(
            peer.keepalive.due,
            peer.config_due,
            peer.hold_due,
            peer.mtu.due,
            NEVER if peer.mailbox is None else peer.mailbox.due,
            NEVER if peer.polls.held is None else peer.polls.held.due,
            peer.staged_expiry,
            min((session.expires for session in peer.sessions()), default=NEVER),
        )
        if due != NEVER:
            self._timers.arm(peer, due)

    def next_timer(self) -> tuple[float, str] | None:
        when, reason = min(
            (self._timers.next(), "peer"),
            (self.wireguard.next_timer(), "wireguard_peer"),
            (self._admission.probe_due, "load"),
        )
        return self._tell_timer(when, reason)

    def handle_timer(self, now: float) -> None:
        self._admission.woken(now)
        self.wireguard.handle_timer(now)
        for peer in self._timers.pop_due(now):
            self._handle_peer_timer(peer, now)
            if self._peers.get((peer.user, peer.device)) is peer:
                self._arm(peer)

    def _handle_peer_timer(self, peer: ServerPeer, now: float) -> None:
        if peer.current is not None and peer.current.expired(now):
            self._disconnect(peer, "expired")
        self._expire_sessions(peer, now)
        if peer.mtu.due <= now:
            self._ask_mtu(peer, now)
        if peer.keepalive.due <= now:
            peer.keepalive.any_authenticated_packet_sent()
            if peer.current is not None:
                self._send_control(peer, peer.current, b"", now)
        if peer.config_due <= now:
            self._send_config(peer, now)
        if peer.hold_due <= now:
            self._release(peer, now)
        self._deliver_held(peer, now)
        if peer.mailbox is not None:
            self._mail.expire(peer.mailbox, now)
        self._expire_staged(peer, now)
        self._forget_idle(peer)
