"""What the hub's and the client's core have in common: datagrams and packets in bursts.

Nothing that comes from the wire raises out of here: every drop is counted under its reason.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pyvpn.core import control, icmp, ippacket, segments
from pyvpn.core.allowedips import AllowedIPs
from pyvpn.core.burst import Buffer, Burst, Endpoint
from pyvpn.core.pathmtu import LARGE
from pyvpn.core.paths import PROBE_FRAME
from pyvpn.core.peer import Peer
from pyvpn.core.ratelimit import TokenBucket
from pyvpn.core.segments import PADDING, PREFIX_SIZE, VIRTIO_NONE, VIRTIO_SIZE
from pyvpn.core.timers import NEVER
from pyvpn.core.transport import HEADER_SIZE, OVERHEAD, TYPE, Session
from pyvpn.errors import LocalProtocolError, RemoteProtocolError

#: 1500 − 48 outer IPv6 and UDP − 32 transport − 4 (docs/protocol.rst, "Inner packets").
DEFAULT_INNER_MTU = 1416

#: What IPv6 takes every link to carry (RFC 8200 5): no TUN's MTU is less, and nobody is told less.
LEAST_MTU = 1280

#: Staged packets of all peers together (docs/protocol.rst, "Limits").
STAGED_BYTES_TOTAL = 64 << 20

_START = struct.Struct("<II")
_HEADER = struct.Struct("<IIQ")

P = TypeVar("P", bound=Peer)


class VPNCore(ABC, Generic[P]):
    """A protocol core without I/O: call in, then take what is to be sent, written and told.

    Every call takes ``now``, seconds of CLOCK_BOOTTIME. After each call, the owner sends
    :meth:`datagrams_to_send`, takes events until :meth:`next_event` returns None, and arms one
    timer for :meth:`next_timer`.

    :param wall_clock: returns Unix nanoseconds; asked only where stamps are made or checked.
    :param random_bytes: returns that many bytes fit for keys.
    :ivar counters: drops by reason, and what else is worth counting.
    """

    def __init__(
        self, *, wall_clock: Callable[[], int], random_bytes: Callable[[int], bytes], inner_mtu: int
    ) -> None:
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.inner_mtu = inner_mtu
        self._wall_clock = wall_clock
        self._random_bytes = random_bytes
        self._sessions: dict[int, tuple[P, Session]] = {}
        self._allowed: AllowedIPs[P] = AllowedIPs()
        self._outbox: list[Burst] = []
        self._events: deque[object] = deque()
        self._answers: list[list[Buffer]] = []
        self._too_big = TokenBucket(icmp.RATE, icmp.BURST)
        self._staged_bytes = 0
        self._relaying = False
        #: Whether no deadline has come nearer since the owner last asked for the next one; and that
        #: one. What is later than it need not be told yet: at that time the owner asks again.
        self._timer_known = False
        self._timer_told = NEVER

    # -- in ---------------------------------------------------------------------------------

    def packets_from_tun(self, frames: list[bytes], now: float) -> list[Burst]:
        """Take what one turn read from the TUN: virtio header and IP packet each.

        Returns the datagrams to send; packets for a peer without a session are staged.
        """
        lookup = self._allowed.lookup
        groups: dict[P, list[bytes]] = {}
        for frame in frames:
            # No slice of the packet: it may be 64 KiB long.
            length = len(frame)
            version = frame[VIRTIO_SIZE] >> 4 if length > VIRTIO_SIZE else 0
            if version == 4 and length >= VIRTIO_SIZE + 20:
                peer = lookup(frame[VIRTIO_SIZE + 16 : VIRTIO_SIZE + 20])
            elif version == 6 and length >= VIRTIO_SIZE + 40:
                peer = lookup(frame[VIRTIO_SIZE + 24 : VIRTIO_SIZE + 40])
            else:
                self.counters["tun_not_ip"] += 1
                continue
            if peer is None:
                self.counters["tun_no_peer"] += 1
            elif peer in groups:
                groups[peer].append(frame)
            else:
                groups[peer] = [frame]
        bursts: list[Burst] = []
        for peer, group in groups.items():
            bursts += self._send_frames(peer, group, now)
        return bursts

    def datagrams_received(
        self, buffer: Buffer, size: int, endpoint: Endpoint, now: float
    ) -> list[list[Buffer]]:
        """Take one run of datagrams of one sender, ``size`` bytes each, the last maybe shorter.

        Returns the frames to write to the TUN, each a list of buffers for one ``writev``.
        """
        frames: list[list[Buffer]] = []
        total = len(buffer)
        if size < OVERHEAD or total < OVERHEAD:
            for start in range(0, total, max(size, 1)):
                self._take_handshake(buffer[start : start + size], endpoint, now)
            return frames
        if size >= total:
            # One alone: 2 µs less than by the way of many.
            kind, index, counter = _HEADER.unpack_from(buffer)
            if kind == TYPE:
                body = bytes(buffer[HEADER_SIZE:])
                self._transport_received((counter,), (body,), index, endpoint, now, frames)
            elif buffer[0] == TYPE:
                self.counters["datagram_reserved_bits"] += 1
            else:
                self._take_handshake(buffer, endpoint, now)
            return frames
        # All datagrams of full length in one call: 90 ns each, a loop takes 370.
        full = total // size
        layout = "<" + f"8sQ{size - HEADER_SIZE}s" * full
        fields = struct.unpack(layout, buffer[: full * size])
        last = buffer[full * size :]
        if len(last) >= OVERHEAD:
            fields += struct.unpack(f"<8sQ{len(last) - HEADER_SIZE}s", last)
            last = b""
        heads, numbers, sealed = fields[::3], fields[1::3], fields[2::3]
        place, count = 0, len(heads)
        while place < count:
            head = heads[place]
            stop = count
            if heads.count(head) != count:
                stop = place + 1
                while stop < count and heads[stop] == head:
                    stop += 1
            kind, index = _START.unpack(head)
            if kind == TYPE:
                self._transport_received(
                    numbers[place:stop], sealed[place:stop], index, endpoint, now, frames
                )
            elif head[0] == TYPE:
                self.counters["datagram_reserved_bits"] += stop - place
            else:
                for start in range(place * size, min(stop * size, total), size):
                    self._take_handshake(buffer[start : start + size], endpoint, now)
            place = stop
        if last:
            self._take_handshake(last, endpoint, now)
        return frames

    def _take_handshake(self, message: Buffer, endpoint: Endpoint, now: float) -> None:
        self._timer_known = False
        self._try(self._handshake_received, bytes(message), endpoint, now)

    # -- out --------------------------------------------------------------------------------

    def datagrams_to_send(self, now: float) -> list[Burst]:
        """Return and forget what handshakes, control frames and timers have queued."""
        bursts, self._outbox = self._outbox, []
        return bursts

    def settled(self) -> bool:
        """Tell whether the last call has left nothing to send, tell or time.

        So it is after most that move data: then the owner need not ask for each of them, which
        takes 4 µs.
        """
        return self._timer_known and not (self._outbox or self._events or self._answers)

    def _due(self, when: float) -> None:
        """Note a new deadline on the way of data."""
        if when < self._timer_told:
            self._timer_known = False

    def _tell_timer(self, when: float, reason: str) -> tuple[float, str] | None:
        self._timer_known, self._timer_told = True, when
        return None if when == NEVER else (when, reason)

    def frames_to_write(self) -> list[list[Buffer]]:
        """Return and forget what the core itself has to say to our own TUN.

        Frames as :meth:`datagrams_received` returns them: answers to packets that fit no datagram.
        """
        frames, self._answers = self._answers, []
        return frames

    def next_event(self) -> object | None:
        """Return the next event for the owner, None when there is none."""
        return self._events.popleft() if self._events else None

    @abstractmethod
    def next_timer(self) -> tuple[float, str] | None:
        """Return when :meth:`handle_timer` wants to be called, and why; None for never."""

    @abstractmethod
    def handle_timer(self, now: float) -> None:
        """Do what is due."""

    # -- what the roles do differently --------------------------------------------------------

    @abstractmethod
    def _handshake_received(self, message: bytes, endpoint: Endpoint, now: float) -> None:
        """Take any datagram that is no transport data; may raise RemoteProtocolError."""

    @abstractmethod
    def _control_received(
        self, peer: P, session: Session, frame: control.Frame, endpoint: Endpoint, now: float
    ) -> None:
        """Take a control frame; may raise RemoteProtocolError."""

    @abstractmethod
    def _authenticated(
        self, peer: P, session: Session, endpoint: Endpoint, data: bool, now: float
    ) -> None:
        """Note that authentic datagrams came; ``data``: some of them were no control frames."""

    @abstractmethod
    def _sent(self, peer: P, data: bool, now: float) -> None:
        """Note that something was sealed and sent to a peer."""

    def _relay(self, peer: P, plaintexts: list[bytes], now: float) -> bool:
        """Take packets of a peer, all for one address, that need not go through the kernel.

        Asked only with ``_relaying``. False: write them to the TUN.
        """
        return False

    def _standard_received(
        self, peer: P, plaintexts: list[bytes], frames: list[list[Buffer]]
    ) -> None:
        """Take authentic plaintexts of a peer that is not native."""
        raise LocalProtocolError("this core has native peers only")

    @abstractmethod
    def _session_wanted(self, peer: P, now: float) -> None:
        """Note that packets wait for a session."""

    # -- transport ----------------------------------------------------------------------------

    def _transport_received(
        self,
        counters: Sequence[int],
        sealed: Sequence[bytes],
        index: int,
        endpoint: Endpoint,
        now: float,
        frames: list[list[Buffer]],
    ) -> None:
        count = len(counters)
        found = self._sessions.get(index)
        if found is None:
            self.counters["session_unknown"] += count
            return
        peer, session = found
        if session.expired(now):
            self.counters["session_expired"] += count
            return
        highest = session.window.highest
        plaintexts = session.open_burst(counters, sealed)
        if len(plaintexts) != count:
            self.counters["transport_forged"] += session.forged
            self.counters["transport_replayed"] += session.replayed
            session.forged = session.replayed = 0
            if not plaintexts:
                return
        # Keepalives and control frames are no data (docs/protocol.rst, "Timers"); that a run counts
        # as none when data stands in its middle alone costs one keepalive, looking at each costs
        # 0.1 µs a packet.
        data = plaintexts[0][:1] > b"\x0f" or plaintexts[-1][:1] > b"\x0f"
        self._authenticated(peer, session, endpoint, data, now)
        newest = session is peer.current and session.window.highest > highest
        if endpoint != peer.endpoint:
            self._received_elsewhere(peer, session, plaintexts, newest, endpoint, now, frames)
            return
        if newest and peer.paths.open:
            peer.paths.cancel()
        self._inner_received(peer, session, plaintexts, endpoint, now, frames)

    def _received_elsewhere(
        self,
        peer: P,
        session: Session,
        plaintexts: list[bytes],
        newest: bool,
        endpoint: Endpoint,
        now: float,
        frames: list[list[Buffer]],
    ) -> None:
        """Take what came from where the peer is not known to be, and ask whether it is there.

        What it says counts. But answers go to the peer's endpoint until the path is proven, and
        nothing older than what was heard from there can start that (docs/protocol.rst, "Paths").
        """
        self.counters["path_not_validated"] += len(plaintexts)
        peer.paths.arrived(endpoint, sum(map(len, plaintexts)) + OVERHEAD * len(plaintexts))
        self._inner_received(peer, session, plaintexts, endpoint, now, frames)
        if newest and session is peer.current and endpoint != peer.endpoint:
            self._try(self._challenge, peer, session, endpoint, now)

    def _inner_received(
        self,
        peer: P,
        session: Session,
        plaintexts: list[bytes],
        endpoint: Endpoint,
        now: float,
        frames: list[list[Buffer]],
    ) -> None:
        """Sort authentic plaintexts by their first nibble (docs/protocol.rst, "Inner packets")."""
        if not peer.native:
            self._standard_received(peer, plaintexts, frames)
            return
        lookup, source, length_of = self._allowed.lookup, ippacket.source, ippacket.length
        relaying = self._relaying
        octets = packets = place = 0
        following, count = 0, len(plaintexts)
        while following < count:
            place = following
            following += 1
            plaintext = plaintexts[place]
            if not plaintext:
                continue
            nibble = plaintext[0] >> 4
            if nibble == 0:
                self._try(self._parse_control, peer, session, plaintext, endpoint, now)
                continue
            try:
                if nibble in (4, 6):
                    length = length_of(plaintext)
                    if lookup(source(plaintext)) is not peer:
                        raise RemoteProtocolError("inner_source_not_allowed")
                    octets += length
                    packets += 1
                    if relaying and self._relay(peer, plaintexts[place : place + 1], now):
                        continue
                    whole = length == len(plaintext)
                    packet = plaintext if whole else memoryview(plaintext)[:length]
                    frames.append([VIRTIO_NONE, packet])
                elif nibble == 1 and session.segments:
                    run = segments.join(plaintexts, place)
                    following = place + run.packets
                    if lookup(segments.source(plaintext)) is not peer:
                        self.counters["inner_source_not_allowed"] += run.packets
                        continue
                    octets += run.octets
                    packets += run.packets
                    if not (relaying and self._relay(peer, plaintexts[place:following], now)):
                        frames.append(run.frame)
                else:
                    raise RemoteProtocolError("inner_unknown")
            except RemoteProtocolError as error:
                self.counters[error.reason] += 1
        peer.rx_bytes += octets
        peer.rx_packets += packets

    def _parse_control(
        self, peer: P, session: Session, plaintext: bytes, endpoint: Endpoint, now: float
    ) -> None:
        self._timer_known = False
        frame = control.parse(plaintext)
        if isinstance(frame, control.PathChallenge):
            # A longer one asks for the MTU, of a path that is proven. An answer to elsewhere would
            # let a client believe that the hub knows where it is.
            if len(plaintext) <= PROBE_FRAME:
                self._challenge_received(peer, session, frame, endpoint, now)
            elif endpoint == peer.endpoint:
                self._respond(peer, session, frame, endpoint, now)
        elif isinstance(frame, control.PathResponse):
            if peer.mtu.answered(frame.data, endpoint, now):
                self._ask_mtu(peer, now)
            else:
                self._response_received(peer, frame, endpoint, now)
        else:
            self._control_received(peer, session, frame, endpoint, now)

    def _send_frames(self, peer: P, frames: list[bytes], now: float) -> list[Burst]:
        """Seal frames in order, equal sizes together; stage them when there is no session."""
        session = peer.current
        endpoint = peer.endpoint
        if session is None or endpoint is None or session.expired(now):
            self._stage(peer, frames, now)
            return []
        native = session.segments
        lone = segments.lone if native else segments.finished
        split = segments.split if native else segments.complete
        mtu = peer.mtu.inner
        plaintexts: list[bytes] = []
        bursts: list[Burst] = []
        octets = packets = 0
        for frame in frames:
            try:
                pieces = split(frame, mtu) if frame[1] else [lone(frame)]
            except LocalProtocolError:
                self.counters["tun_bad_offload"] += 1
                continue
            first = pieces[0]
            length = len(first)
            most = mtu + PREFIX_SIZE if first[0] == segments.SEGMENT else mtu
            if length > most:
                # Only a lone packet, or UDP, which is cut where its sender said, whatever fits.
                if not self._in_fragments(peer, frame, first, now):
                    continue
                bursts += [Burst(endpoint, *row) for row in session.seal_rows(plaintexts)]
                bursts += [Burst(endpoint, *row, True) for row in session.seal_rows(pieces)]
                plaintexts = []
            elif len(pieces) == 1:
                # Padded to 16, but never above the MTU, so that no datagram outgrows the path.
                plaintexts.append(first + PADDING[min(-length & 15, most - length)])
            else:
                plaintexts += pieces
            octets += len(frame) - VIRTIO_SIZE
            packets += len(pieces)
        if len(plaintexts) == 1:
            buffers = session.seal_burst(plaintexts)
            bursts.append(Burst(endpoint, buffers, len(plaintexts[0]) + OVERHEAD))
        else:
            bursts += [Burst(endpoint, *row) for row in session.seal_rows(plaintexts)]
        if not bursts:
            return bursts  # nothing fits, or is what a kernel makes: nothing was sent
        if not peer.native:
            # Nobody finds out the path MTU of a stock peer: what is large may be cut on its way.
            bursts = [
                burst._replace(fragment=True) if burst.size > LARGE else burst for burst in bursts
            ]
            octets = sum(sum(map(len, burst.buffers)) for burst in bursts)
        self._data_sent(peer, bursts, octets, packets, now)
        return bursts

    def _data_sent(
        self, peer: P, bursts: list[Burst], octets: int, packets: int, now: float
    ) -> None:
        """Note data that goes to a peer: counts, timers, and whether its path wants a look."""
        peer.tx_bytes += octets
        peer.tx_packets += packets
        self._sent(peer, True, now)
        if now >= peer.mtu.ask_after and any(burst.size > LARGE for burst in bursts):
            self._timer_known = False
            peer.mtu.used(now)
            self._ask_mtu(peer, now)

    def _send_control(
        self,
        peer: P,
        session: Session,
        plaintext: bytes,
        now: float,
        endpoint: Endpoint | None = None,
    ) -> None:
        """Queue one control frame, or the empty keepalive, on a session.

        :param endpoint: where to, if not to the peer's endpoint: for path validation alone.
        """
        endpoint = endpoint or peer.endpoint
        if endpoint is None or session.expired(now):
            self.counters["control_unsendable"] += 1
            return
        buffers = session.seal_burst([plaintext])
        self._outbox.append(Burst(endpoint, buffers, len(plaintext) + OVERHEAD))
        self._sent(peer, False, now)

    # -- paths --------------------------------------------------------------------------------

    def _challenge(self, peer: P, session: Session, endpoint: Endpoint, now: float) -> None:
        """Ask whether the peer is where a datagram came from; may raise RemoteProtocolError."""
        if peer.paths.due(endpoint, now):
            peer.paths.spend(endpoint)
            self._ask(peer, session, endpoint, 0, now)

    def _ask(self, peer: P, session: Session, endpoint: Endpoint, size: int, now: float) -> None:
        challenge = control.PathChallenge(self._random_bytes(16))
        peer.paths.ask(endpoint, challenge.data, now)
        self._send_control(peer, session, challenge.pack(size), now, endpoint)

    def _challenge_received(
        self,
        peer: P,
        session: Session,
        challenge: control.PathChallenge,
        endpoint: Endpoint,
        now: float,
    ) -> None:
        """Take a question whether we are where it came to."""
        self._respond(peer, session, challenge, endpoint, now)

    def _respond(
        self,
        peer: P,
        session: Session,
        challenge: control.PathChallenge,
        endpoint: Endpoint,
        now: float,
    ) -> None:
        """Answer to where the challenge came from, whether that is the peer's endpoint or not."""
        if endpoint != peer.endpoint:
            peer.paths.spend(endpoint)
        peer.paths.respond(now)
        response = control.PathResponse(challenge.data).pack()
        self._send_control(peer, session, response, now, endpoint)

    def _response_received(
        self, peer: P, response: control.PathResponse, endpoint: Endpoint, now: float
    ) -> None:
        """Let the endpoint move: the peer has shown that it receives there."""
        peer.paths.answered(endpoint, response.data, now)
        if endpoint != peer.endpoint:
            peer.endpoint = endpoint
            self.counters["path_moved"] += 1
            self._find_mtu(peer, False, now)

    # -- path MTU -----------------------------------------------------------------------------

    def _find_mtu(self, peer: P, new: bool, now: float) -> None:
        """Find out the path MTU of a peer that is new, elsewhere, or agreed on something else."""
        session, endpoint = peer.current, peer.endpoint
        if session is None or endpoint is None:
            return
        if new or peer.mtu.moved(endpoint, session.inner_mtu):
            peer.mtu.begin(endpoint, session.inner_mtu, now)
            self._ask_mtu(peer, now)

    def _ask_mtu(self, peer: P, now: float) -> None:
        """Send the probes that are due."""
        session = peer.current
        if session is None or session.expired(now):
            peer.mtu.stop()
            return
        for size in peer.mtu.due_probes(now):
            challenge = control.PathChallenge(self._random_bytes(16))
            peer.mtu.asked(challenge.data, size, now)
            self._send_control(peer, session, challenge.pack(size), now)

    def _in_fragments(self, peer: P, frame: bytes, plaintext: bytes, now: float) -> bool:
        """Tell whether a packet that fits no datagram may leave in one that is cut on its way.

        If not, it is to be dropped; its sender has been told what fits.

        :param frame: the packet; with offloads, that of all pieces.
        :param plaintext: what it is sealed as, or its first piece.
        """
        mtu = peer.mtu
        packet = memoryview(frame)[VIRTIO_SIZE:]
        size = len(plaintext) - (PREFIX_SIZE if plaintext[0] == segments.SEGMENT else 0)
        if mtu.searching or size <= LEAST_MTU or icmp.may_fragment(packet):
            return True
        if not self._too_big.take(now):
            self.counters["too_big_limited"] += 1
            return False
        answer = icmp.too_big(packet, max(mtu.inner, LEAST_MTU))
        if answer is None:
            self.counters["too_big_untold"] += 1
        else:
            self.counters["too_big"] += 1
            self._answers.append([VIRTIO_NONE, answer])
        return False

    # -- staged packets -----------------------------------------------------------------------

    def _stage(self, peer: P, frames: list[bytes], now: float) -> None:
        self._timer_known = False
        for frame in frames:
            if self._staged_bytes + len(frame) > STAGED_BYTES_TOTAL:
                self.counters["staged_total_full"] += 1
                continue
            dropped = peer.stage(frame, now)
            self._staged_bytes += len(frame) - sum(map(len, dropped))
            if dropped:
                self.counters["staged_dropped"] += len(dropped)
        self._session_wanted(peer, now)

    def _unstage(self, peer: P) -> list[bytes]:
        self._staged_bytes -= peer.staged_bytes
        return peer.unstage()

    def _expire_staged(self, peer: P, now: float) -> None:
        if peer.staged_expiry <= now:
            self.counters["staged_expired"] += len(self._unstage(peer))

    def _send_staged(self, peer: P, now: float) -> None:
        if peer.staged:
            self._outbox += self._send_frames(peer, self._unstage(peer), now)

    # -- sessions -----------------------------------------------------------------------------

    def _new_index(self) -> int:
        """Return a random receiver index that is not in use (docs/protocol.rst, "Transport")."""
        while True:
            index = int.from_bytes(self._random_bytes(4), "little")
            if index not in self._sessions:
                return index

    def _jitter(self, most: float) -> float:
        """Return so many seconds at most, by chance."""
        return most * int.from_bytes(self._random_bytes(2), "little") / 65536

    def _forget(self, peer: P, session: Session | None) -> None:
        """Drop one session's keys and its index."""
        if session is not None:
            self._sessions.pop(session.local_index, None)
            peer.drop(session)

    def _expire_sessions(self, peer: P, now: float) -> None:
        for session in peer.sessions():
            if session.expired(now):
                self._forget(peer, session)

    def _try(self, call: Callable[..., None], *arguments: object) -> None:
        """Call what reads from the wire; a RemoteProtocolError becomes a count."""
        try:
            call(*arguments)
        except RemoteProtocolError as error:
            self.counters[error.reason] += 1
