"""The client's core: it logs in, keeps its session alive and fresh, and tells what the hub says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from attrs import define, frozen

from pyvpn.core import control, login, tai64n
from pyvpn.core.burst import Burst, Endpoint
from pyvpn.core.clientstate import TRANSITIONS, Input, State
from pyvpn.core.cookies import (
    COOKIE_LIFETIME,
    COOKIE_REPLY,
    COOKIE_REPLY_SIZE,
    open_cookie_reply,
)
from pyvpn.core.events import (
    Configured,
    Connected,
    Disconnected,
    MTUFound,
    NoAnswer,
    NotGranted,
    Refused,
    ResolveServer,
    StampUsed,
)
from pyvpn.core.login import LoginAttempt, LoginFlags, NetworkKeys
from pyvpn.core.noise import KeyPair
from pyvpn.core.paths import CHALLENGE_SPACING, PROBE_FRAME
from pyvpn.core.peer import Peer
from pyvpn.core.polls import (
    CREDIT_BYTES,
    CREDIT_DATAGRAMS,
    LONGEST_INTERVAL,
    POLL_INTERVAL,
    POLL_SPACING,
    PUSH_INTERVAL,
)
from pyvpn.core.stamps import LoginStamps
from pyvpn.core.timers import (
    BACKOFF_MAXIMUM,
    HELLO_INTERVAL,
    NEVER,
    REFUSED_RETRY_TIME,
    REKEY_AFTER_TIME,
    REKEY_ATTEMPT_TIME,
    REKEY_JITTER,
    REKEY_ON_RECEIVE_TIME,
    REKEY_TIMEOUT,
    SILENCE_TIME,
    LivenessTimer,
)
from pyvpn.core.transport import Session
from pyvpn.core.vpncore import LEAST_MTU, VPNCore
from pyvpn.errors import LocalProtocolError, RemoteProtocolError

#: Seconds between polls that changes of the machine's network cause: they come in flocks, and the
#: last of a flock counts, when the new address has its route.
LINK_POLL_SPACING = 0.2
#: If nothing is heard this long after such a poll, the hub is looked for at its other addresses.
PROBE_DELAY = 0.3
#: After a challenge was answered or the endpoint moved, a poll this much later finds out whether
#: the hub knows: only its endpoint gets a REPLY. Not sooner, or a hub that missed the answer would
#: not ask again yet (docs/protocol.rst, "Paths").
PATH_POLL_DELAY = CHALLENGE_SPACING
#: After BYE 1 everybody would come back at once: each waits a random part of this.
RESTART_SPREAD = 2.0


@define
class _Attempt:
    """One endeavour to get a new session: a handshake and its repetitions.

    A login is for a hub that may have moved, restarted or forgotten us: the name is resolved
    again, HELLO said again. A rekey goes to where the present session is.
    """

    rekey: bool
    started: float
    due: float
    interval: float = REKEY_TIMEOUT
    last_sent: float = -NEVER
    resolving: bool = False


@frozen
class _Cookie:
    """What a hub under load wants to see; it is about our address as ``endpoint`` sees it."""

    value: bytes
    endpoint: Endpoint
    expires: float


class VPNClient(VPNCore[Peer]):
    """A client of one hub.

    :param last_stamp: Unix nanoseconds of the last stamp ever used with this device id, 0 for none.
    :param wanted4: the address to ask for, None for any.
    :param required: of the flags offered, those without which no session is begun.
    :param poll_interval: seconds between polls, None for what suits the way of delivery.
    """

    def __init__(
        self,
        *,
        keys: NetworkKeys,
        user: str,
        device: bytes,
        device_name: str,
        last_stamp: int,
        wanted4: IPv4Address | None = None,
        wanted6: IPv6Address | None = None,
        flags: LoginFlags,
        required: LoginFlags | None = None,
        inner_mtu: int,
        poll_interval: float | None = None,
        wall_clock: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        super().__init__(wall_clock=wall_clock, random_bytes=random_bytes, inner_mtu=inner_mtu)
        self.state = State.STOPPED
        self.hub = Peer()
        self._keys = keys
        self._static: KeyPair | None = None
        self._user = user
        self._device = device
        self._flags = flags
        self._required = required or LoginFlags(0)
        self._hello = control.Hello(wanted4, wanted6, device_name)
        self._stamps = LoginStamps(last_stamp)
        self._wanted_interval = poll_interval
        self._on_poll = False
        self._applied = False
        self._servers: list[Endpoint] = []
        self._next_server = 0
        self._attempt: _Attempt | None = None
        self._pending: LoginAttempt | None = None
        self._pending_endpoint: Endpoint | None = None
        self._cookie: _Cookie | None = None
        self._cookie_tried = -NEVER
        self._silent_since: float | None = None
        self._retry_due = NEVER
        self._rekeyed_on_receive = False
        #: Networks that lie behind the hub: those of our addresses, and what the owner has set.
        self._own: tuple[IPv4Network | IPv6Network, ...] = ()
        self._routes: tuple[IPv4Network | IPv6Network, ...] = ()
        # One session's worth:
        self._config = control.ConfigAssembler()
        self._revision: int | None = None
        self._acknowledged: control.ConfigAck | None = None
        self._hello_due = NEVER
        self._poll_due = NEVER
        self._polled = -NEVER
        self._probe_due = NEVER
        self._poll_seq = 0
        self._poll_epoch = 0
        self._liveness = LivenessTimer()
        self._mtu_told = 0
        self._link_new = False

    # -- what the owner tells -----------------------------------------------------------------

    def start(self, static: KeyPair, now: float) -> None:
        """Log in, and stay logged in.

        :param static: the key pair of the user's password.
        """
        self._static = static
        self._connect(now)

    def _connect(self, now: float) -> None:
        self._move(Input.START)
        self._retry_due = NEVER
        self._begin(now, rekey=False)

    def stop(self, now: float) -> None:
        """Say BYE and forget all keys and all packets that wait."""
        self._move(Input.STOP)
        if self.hub.current is not None:
            bye = control.Bye(control.ByeReason.STOPPED, "").pack()
            self._send_control(self.hub, self.hub.current, bye, now)
        self._forget_all()
        self._unstage(self.hub)
        self._give_up()
        self._retry_due = NEVER

    def _give_up(self) -> None:
        """End the attempt that is under way, and with it the wait for an answer."""
        self._attempt = self._pending = self._silent_since = None

    def server_resolved(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Answer :class:`ResolveServer`; an empty list means that the name has no address now.

        Each try of a login takes the next address.
        """
        if self._attempt is None or not self._attempt.resolving:
            return
        self._attempt.resolving = False
        self._servers = list(endpoints)
        if self._servers:
            server = self._servers[self._next_server % len(self._servers)]
            self._next_server += 1
            self._send_initiation(server, now)
        else:
            self.counters["server_unresolved"] += 1

    def set_routes(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        """Send packets for these networks to the hub, too, and take what comes from there.

        The networks of our own addresses need not be named.
        """
        self._routes = tuple(networks)
        self._route()

    def _route(self) -> None:
        self._allowed.remove_peer(self.hub)
        for network in (*self._own, *self._routes):
            self._allowed.insert(network, self.hub)

    def config_applied(self, revision: int, now: float, status: int = 0) -> None:
        """Answer :class:`Configured`: what the hub has kept for us may come now.

        :param status: not 0 if it could not be applied, and all is as it was before.
        """
        session = self.hub.current
        if session is not None and revision == self._revision and self._acknowledged is None:
            self._acknowledged = control.ConfigAck(revision, status)
            self._send_control(self.hub, session, self._acknowledged.pack(), now)
            self._applied = self._applied or not status
            if self._on_poll:
                self._poll(now)

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self.state is not State.STOPPED

    def link_changed(self, now: float) -> None:
        """The machine's network has changed: try at once, or ask whether the hub still hears us."""
        if self.hub.current is None:
            self._hurry(now)
            return
        self._probe_due = now + PROBE_DELAY
        self._link_new = True
        if now - self._polled >= LINK_POLL_SPACING:
            self._poll(now)
        else:
            self._poll_due = min(self._poll_due, self._polled + LINK_POLL_SPACING)

    # -- attempts -----------------------------------------------------------------------------

    def _begin(self, now: float, *, rekey: bool) -> None:
        """Begin an attempt; a login takes over from a rekey that is under way."""
        if self._attempt is not None and (rekey or not self._attempt.rekey):
            return
        self._attempt = _Attempt(rekey, started=now, due=now)
        if self._silent_since is None:
            self._silent_since = now
        self._try_again(now)

    def _try_again(self, now: float) -> None:
        """Send the next 0x50 of the attempt, or ask where to."""
        attempt = self._attempt
        if attempt is None:
            return
        if now - attempt.started >= REKEY_ATTEMPT_TIME:
            attempt.interval = min(attempt.interval * 2, BACKOFF_MAXIMUM)
        attempt.due = now + attempt.interval + self._jitter(REKEY_JITTER)
        attempt.last_sent = now
        if attempt.rekey and self.hub.endpoint is not None:
            self._send_initiation(self.hub.endpoint, now)
        else:
            attempt.resolving = True
            self._events.append(ResolveServer())

    def _hurry(self, now: float) -> None:
        attempt = self._attempt
        if attempt is not None and now - attempt.last_sent >= REKEY_TIMEOUT:
            attempt.due = now

    def _send_initiation(self, endpoint: Endpoint, now: float) -> None:
        """Send a fresh 0x50: new ephemeral key, new index, later stamp."""
        if self._static is None:
            raise LocalProtocolError("start() gives the key that a login needs")
        self._pending = LoginAttempt(
            self._keys,
            self._static,
            index=self._new_index(),
            stamp=tai64n.pack(self._stamps.next(self._wall_clock())),
            device=self._device,
            user=self._user,
            flags=self._flags,
            random_bytes=self._random_bytes,
            cookie=self._cookie_for(endpoint, now),
        )
        self._pending_endpoint = endpoint
        self._events.append(StampUsed(self._stamps.last))
        self._outbox.append(Burst(endpoint, [self._pending.message, b""], login.INITIATION_SIZE))

    def _cookie_for(self, endpoint: Endpoint, now: float) -> bytes:
        cookie = self._cookie
        good = cookie is not None and cookie.endpoint == endpoint and now < cookie.expires
        return cookie.value if good and cookie is not None else b""

    def _handshake_received(self, message: bytes, endpoint: Endpoint, now: float) -> None:
        if message[0] == COOKIE_REPLY:
            self._cookie_received(message, now)
            return
        if message[0] != login.RESPONSE:
            raise RemoteProtocolError("datagram_unknown")
        if len(message) != login.RESPONSE_SIZE:
            raise RemoteProtocolError("datagram_length")
        if self._pending is None or self._pending_endpoint is None:
            raise RemoteProtocolError("response_unexpected")
        keys = self._pending.answered(message)
        if missing := self._required & ~keys.flags:
            self._events.append(NotGranted(missing))
            raise RemoteProtocolError("login_not_granted")
        session = Session(
            send_key=keys.send,
            receive_key=keys.receive,
            aes=LoginFlags.AES_256_GCM in keys.flags,
            local_index=self._pending.index,
            remote_index=keys.remote_index,
            inner_mtu=min(keys.inner_mtu, self.inner_mtu),
            created=now,
            segments=LoginFlags.SEGMENT_FRAMES in keys.flags,
        )
        self._answered(session, self._pending_endpoint, keys.flags, now)

    def _cookie_received(self, message: bytes, now: float) -> None:
        """Keep the cookie of a hub under load and try again with it, at once the first time.

        Once in 5 s, as for all that hurries; the other tries of the attempt use it, too.
        """
        if len(message) != COOKIE_REPLY_SIZE:
            raise RemoteProtocolError("datagram_length")
        pending, endpoint = self._pending, self._pending_endpoint
        if pending is None or endpoint is None:
            raise RemoteProtocolError("response_unexpected")
        key = self._keys.cookie
        cookie = open_cookie_reply(message, key, pending.index, pending.message)
        self._cookie = _Cookie(cookie, endpoint, now + COOKIE_LIFETIME)
        if now - self._cookie_tried >= REKEY_TIMEOUT:
            self._cookie_tried = now
            self._send_initiation(endpoint, now)

    def _answered(
        self, session: Session, endpoint: Endpoint, flags: LoginFlags, now: float
    ) -> None:
        """Make a new session current and use it at once: the hub waits for our first packet."""
        rekey = self._attempt is not None and self._attempt.rekey and self.state is State.UP
        hub = self.hub
        self._attempt = self._pending = None
        self._stamps.answered()
        self._forget(hub, hub.previous)
        hub.previous, hub.current = hub.current, session
        hub.endpoint = endpoint
        hub.last_heard = now
        self._sessions[session.local_index] = (hub, session)
        self._move(Input.ANSWERED)
        self._silent_since = None
        self._rekeyed_on_receive = False
        self._liveness.any_authenticated_packet_received()
        self._config = control.ConfigAssembler()
        self._revision = self._acknowledged = None
        self._on_poll = LoginFlags.DELIVER_ON_POLL in flags
        self._poll_seq = 0
        self._polled = -NEVER
        self._poll_epoch = self._wall_clock() - int(now * 1e9)
        self._poll(now)
        if not rekey:
            self._say_hello(now)
            self._events.append(Connected(endpoint, flags))
        self._find_mtu(hub, not rekey, now)
        if self.state is State.UP:
            self._send_staged(hub, now)

    # -- what the hub says --------------------------------------------------------------------

    def _authenticated(
        self, peer: Peer, session: Session, endpoint: Endpoint, data: bool, now: float
    ) -> None:
        peer.last_heard = now
        self._liveness.any_authenticated_packet_received()
        if data and peer.keepalive.data_received(now):
            self._due(peer.keepalive.due)
        if (
            session is peer.current
            and now - session.created >= REKEY_ON_RECEIVE_TIME
            and not self._rekeyed_on_receive
        ):
            self._rekeyed_on_receive = True
            self._begin(now, rekey=True)

    def _control_received(
        self, peer: Peer, session: Session, frame: control.Frame, endpoint: Endpoint, now: float
    ) -> None:
        if isinstance(frame, control.Reply):
            self._reply_received(session, frame, now)
        elif isinstance(frame, control.ConfigPart):
            self._config_received(session, frame, now)
        elif isinstance(frame, control.Bye):
            self._bye_received(session, frame, now)
        else:
            raise RemoteProtocolError("control_wrong_direction")

    def _config_received(self, session: Session, part: control.ConfigPart, now: float) -> None:
        if session is not self.hub.current:
            raise RemoteProtocolError("config_old_session")
        if part.revision == self._revision:
            if self._acknowledged is not None:  # ours was lost
                self._send_control(self.hub, session, self._acknowledged.pack(), now)
            return
        config = self._config.add(part)
        if config is None:
            return
        if not config.addresses:
            raise RemoteProtocolError("config_invalid")
        self._hello_due = NEVER
        self._revision, self._acknowledged = part.revision, None
        self._own = tuple(interface.network for interface in config.addresses)
        self._route()
        self._move(Input.CONFIGURED)
        self._events.append(Configured(config, part.revision))
        self._send_staged(self.hub, now)

    def _bye_received(self, session: Session, bye: control.Bye, now: float) -> None:
        if session is not self.hub.current:
            self._forget(self.hub, session)
            return
        if bye.reason <= control.ByeReason.RESTARTING:
            self._lose("hub " + control.ByeReason(bye.reason).name.lower(), now)
            if self._attempt is not None:
                self._attempt.due = now + self._jitter(RESTART_SPREAD)
            return
        self._move(Input.REFUSED)
        self._forget_all()
        self._give_up()
        self._retry_due = now + REFUSED_RETRY_TIME
        self._events.append(Refused(bye.reason, bye.text))

    def _lose(self, reason: str, now: float) -> None:
        """Go back to logging in: there is no usable session."""
        self._move(Input.LOST)
        self._forget_all()
        self._events.append(Disconnected(reason))
        if self._attempt is None or self._attempt.rekey:
            self._attempt = _Attempt(False, started=now, due=now)
        if self._silent_since is None:
            self._silent_since = now

    def _forget_all(self) -> None:
        for session in self.hub.sessions():
            self._forget(self.hub, session)
        self._hello_due = self._poll_due = self._probe_due = NEVER
        self._applied = False
        self.hub.mtu.stop()
        self._liveness.any_authenticated_packet_received()
        self.hub.keepalive.any_authenticated_packet_sent()

    # -- what we say --------------------------------------------------------------------------

    def _poll(self, now: float) -> None:
        session = self.hub.current
        if session is None:
            return
        if now < self._polled + POLL_SPACING:
            self._poll_due = self._polled + POLL_SPACING
            return
        # Before the TUN is set up, packets would come in vain.
        takes = self._on_poll and self._applied
        self._poll_seq += 1
        poll = control.Poll(
            stamp=tai64n.pack(self._poll_epoch + int(now * 1e9)),
            seq=self._poll_seq,
            credit_bytes=CREDIT_BYTES if takes else 0,
            credit_datagrams=CREDIT_DATAGRAMS if takes else 0,
        )
        self._poll_due = self._next_poll(session, now)
        self._polled = now
        self._liveness.answer_expected(now)
        self._send_control(self.hub, session, poll.pack(), now)

    def _next_poll(self, session: Session, now: float) -> float:
        """Return when the poll after one at ``now`` is due.

        If the interval would leave a session too little time for its rekey, the poll that brings
        it comes earlier: at 60 s the one at 120 s may be a moment short of that, and the next is at
        180 s, when the session is over.
        """
        interval = self._wanted_interval or (POLL_INTERVAL if self._on_poll else PUSH_INTERVAL)
        rekey = session.created + REKEY_AFTER_TIME
        due = now + interval
        if (
            now < rekey
            and due > session.created + REKEY_ON_RECEIVE_TIME
            and interval <= LONGEST_INTERVAL
        ):
            due = min(due, rekey + POLL_SPACING)
        return due

    def _reply_received(self, session: Session, reply: control.Reply, now: float) -> None:
        """A sign of life; and if the credit was not enough, the rest is fetched at once."""
        if session is not self.hub.current or reply.seq != self._poll_seq:
            return
        if self._link_new:
            # Only now the hub knows our new address, and answers there.
            self._link_new = False
            self.hub.mtu.doubt(now)
        if reply.queued and self._on_poll and self._applied:
            self._poll(now)

    def _probe(self, now: float) -> None:
        """Ask at the hub's other addresses: one that answers becomes the endpoint, without a login.

        The network we came to may have no way to the present one (another address family, say).
        """
        hub, session = self.hub, self.hub.current
        for server in self._servers:
            if session is not None and server != hub.endpoint:
                self._try(self._ask_at, session, server, now)

    def _ask_at(self, session: Session, server: Endpoint, now: float) -> None:
        if self.hub.paths.due(server, now):
            self._ask(self.hub, session, server, PROBE_FRAME, now)

    def _challenge_received(
        self,
        peer: Peer,
        session: Session,
        challenge: control.PathChallenge,
        endpoint: Endpoint,
        now: float,
    ) -> None:
        super()._challenge_received(peer, session, challenge, endpoint, now)
        self._find_out(now)

    def _response_received(
        self, peer: Peer, response: control.PathResponse, endpoint: Endpoint, now: float
    ) -> None:
        super()._response_received(peer, response, endpoint, now)
        self._find_out(now)

    def _find_out(self, now: float) -> None:
        """Poll soon: does the hub know where we are?"""
        if self.hub.current is not None:
            self._poll_due = min(self._poll_due, now + PATH_POLL_DELAY)

    def _ask_mtu(self, peer: Peer, now: float) -> None:
        super()._ask_mtu(peer, now)
        mtu = peer.mtu
        if not mtu.searching and mtu.due == NEVER and mtu.inner != self._mtu_told:
            self._mtu_told = mtu.inner
            self._events.append(MTUFound(max(mtu.inner, LEAST_MTU)))

    def _say_hello(self, now: float) -> None:
        if self.hub.current is not None:
            self._hello_due = now + HELLO_INTERVAL
            self._send_control(self.hub, self.hub.current, self._hello.pack(), now)

    def _sent(self, peer: Peer, data: bool, now: float) -> None:
        peer.keepalive.any_authenticated_packet_sent()
        if data and self._liveness.answer_expected(now):
            self._due(self._liveness.due)
        session = peer.current
        if session is None or not self.running:
            return
        if now - session.created >= REKEY_AFTER_TIME or session.worn():
            self._begin(now, rekey=True)

    def _session_wanted(self, peer: Peer, now: float) -> None:
        self._hurry(now)

    # -- timers -------------------------------------------------------------------------------

    def next_timer(self) -> tuple[float, str] | None:
        session = self.hub.current
        attempt = self._attempt
        expiry = min((session.expires for session in self.hub.sessions()), default=NEVER)
        silence = self._silent_since
        when, reason = min(
            (attempt.due if attempt is not None else NEVER, "attempt"),
            (NEVER if silence is None else silence + SILENCE_TIME, "silence"),
            (self._retry_due, "refused_retry"),
            (expiry, "session_expiry"),
            (self.hub.staged_expiry, "staged_expiry"),
            (self._hello_due, "hello"),
            (self._poll_due, "poll"),
            (self._probe_due, "probe"),
            (self.hub.mtu.due if session is not None else NEVER, "mtu"),
            (self._liveness.due if session is not None else NEVER, "liveness"),
            (self.hub.keepalive.due if session is not None else NEVER, "keepalive"),
        )
        return self._tell_timer(when, reason)

    def handle_timer(self, now: float) -> None:
        if self._retry_due <= now:
            self._connect(now)
        current = self.hub.current
        self._expire_sessions(self.hub, now)
        if current is not None and self.hub.current is None:
            self._lose("no answer from the hub", now)
        self._expire_staged(self.hub, now)
        if self._silent_since is not None and self._silent_since + SILENCE_TIME <= now:
            self._silent_since = NEVER
            self._events.append(NoAnswer())
        if self._attempt is not None and self._attempt.due <= now:
            if self._attempt.rekey and self.hub.current is None:
                self._attempt.rekey = False
            self._try_again(now)
        if self.hub.current is not None:
            self._handle_session_timers(self.hub.current, now)

    def _handle_session_timers(self, session: Session, now: float) -> None:
        if self._liveness.due <= now:
            if self._liveness.step():
                self._begin(now, rekey=False)
            else:
                self._poll(now)
                self._probe(now)
        if self._probe_due <= now:
            heard = self.hub.last_heard
            if heard is None or heard <= self._probe_due - PROBE_DELAY:
                self._probe(now)
            self._probe_due = NEVER
        if self.hub.mtu.due <= now:
            self._ask_mtu(self.hub, now)
        if self._hello_due <= now:
            self._say_hello(now)
        if self._poll_due <= now:
            self._poll(now)
        if self.hub.keepalive.due <= now:
            self.hub.keepalive.any_authenticated_packet_sent()
            self._send_control(self.hub, session, b"", now)

    def _move(self, input: Input) -> None:
        """Take one step of :data:`TRANSITIONS`."""
        try:
            self.state = TRANSITIONS[self.state, input]
        except KeyError:
            raise LocalProtocolError(f"{input.value} while {self.state.value}") from None
