"""Path MTU of one peer, found by asking (RFC 8899): nobody's word about it is taken but an answer.

A PATH_CHALLENGE is padded so that its outer IP packet has exactly the size in question; the
response proves that this size passes. What is not answered three times counts as too large, until
an answer comes after all. So no ICMP error from the way is needed, and none is believed.

Sizes here are those of outer IP packets, unless they are called inner.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from pyvpn.core.burst import Endpoint
from pyvpn.core.segments import PREFIX_SIZE
from pyvpn.core.timers import NEVER
from pyvpn.core.transport import OVERHEAD

#: What is taken to pass until more is known: IPv6's least (RFC 8200 5), and RFC 8899's BASE_PLPMTU
#: is no more.
BASE: Final = 1280
#: Where most paths end.
ETHERNET: Final = 1500
#: The search is over when no more than this could be gained.
PRECISION: Final = 8
#: Sizes of well-known links: the base, tunnels, GRE, 6in4, PPPoE, Ethernet, FDDI, jumbo frames.
USUAL: Final = (BASE, 1400, 1420, 1450, 1476, 1480, 1492, ETHERNET, 4352, 9000)

#: Times that a size is asked before it counts as too large (RFC 8899 5.1.2, MAX_PROBES).
TRIES: Final = 3
#: Seconds from one try to the next, at least; more if the round trip takes longer.
TRY_SPACING: Final = 0.25
LONGEST_SPACING: Final = 2.0
#: Probes to a peer in a second; it answers 5 challenges of any kind.
PROBES_A_SECOND: Final = 4
#: Seconds for which a probe can be answered.
PROBE_TIME: Final = 5.0
#: Probes that an answer may refer to: all that are sent in that time.
PROBES_OPEN: Final = 20
#: Seconds after which the present size is asked again, while large datagrams are sent.
CONFIRM_TIME: Final = 5.0
#: Seconds after which more is tried (RFC 8899 5.1.1, PMTU_RAISE_TIMER).
RAISE_TIME: Final = 600.0
#: Bytes of a plaintext from which on its datagram counts as large.
LARGE: Final = 1024

# An outer IPv4 or IPv6 header and the UDP header.
_HEADERS4: Final = 28
_HEADERS6: Final = 48
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"


def headers_to(endpoint: Endpoint) -> int:
    """Return the bytes of outer IP and UDP header before a datagram for an endpoint."""
    return _HEADERS4 if endpoint.wire_address()[:12] == _V4_MAPPED else _HEADERS6


@frozen
class Probe:
    """A challenge under way: its random bytes, its size as an outer packet, when it left."""

    data: bytes
    size: int
    sent: float


class PathMTU:
    """How large a datagram may be on its way to one peer, and what to ask to find out.

    Its owner calls :meth:`due_probes` when ``due`` has come, and sends what that returns; and
    :meth:`used` when a large datagram is sent and ``ask_after`` is past. So it costs an idle peer
    nothing.

    :ivar inner: the largest inner packet that passes in one datagram, with a segment frame's
        prefix before it.
    :ivar searching: nothing definite is known yet: what is larger than ``inner`` may pass or not.
    :ivar due: when :meth:`due_probes` is to be called, NEVER for not at all.
    :ivar ask_after: when a large datagram is a reason to call :meth:`used`.
    """

    __slots__ = (
        "_answered",
        "_asking",
        "_endpoint",
        "_high",
        "_limit",
        "_open",
        "_overhead",
        "_raise_after",
        "_round_trip",
        "_size",
        "_times",
        "_tries",
        "ask_after",
        "due",
        "inner",
        "searching",
    )

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._overhead = _HEADERS6 + OVERHEAD + PREFIX_SIZE
        self._limit = self._high = BASE
        self._size = BASE
        self.inner = BASE - self._overhead
        self.searching = True
        self._asking = 0
        self._tries = 0
        self._answered = False
        self._open: tuple[Probe, ...] = ()
        self._times: tuple[float, ...] = ()
        self._round_trip = 0.0
        self._raise_after = NEVER
        self.due = self.ask_after = NEVER

    @property
    def packet_size(self) -> int:
        """The largest outer IP packet that is known to pass."""
        return self._size

    def begin(self, endpoint: Endpoint, inner_mtu: int, now: float) -> None:
        """Know nothing and find out: for a new session, or a peer that is elsewhere now.

        :param inner_mtu: the largest inner packet that the session allows.
        """
        self._endpoint = endpoint
        self._overhead = headers_to(endpoint) + OVERHEAD + PREFIX_SIZE
        self._limit = inner_mtu + self._overhead
        self._open = ()
        self._round_trip = 0.0
        self._restart(now)

    def moved(self, endpoint: Endpoint, inner_mtu: int) -> bool:
        """Tell whether what is known is about another endpoint or another agreement."""
        limit = inner_mtu + headers_to(endpoint) + OVERHEAD + PREFIX_SIZE
        return endpoint != self._endpoint or limit != self._limit

    def stop(self) -> None:
        """Ask no more: there is no session."""
        self._asking = 0
        self._open = ()
        self.due = self.ask_after = NEVER

    def doubt(self, now: float) -> None:
        """Ask whether the present size still passes, and then for more: something has changed."""
        if self._endpoint is not None and not self._asking:
            self._raise_after = now
            self.used(now)

    def used(self, now: float) -> None:
        """A large datagram is being sent, and it is a while since its size was confirmed."""
        self.ask_after = NEVER
        if self.searching:
            self._restart(now)
        elif self._size > BASE:
            self._ask(self._size, now)
        else:
            self._search(now)

    # -- probes -------------------------------------------------------------------------------

    def due_probes(self, now: float) -> list[int]:
        """Return the sizes to ask now: those of the probes' plaintexts.

        Each is then to be noted with :meth:`asked`.
        """
        if now < self.due:
            return []
        if self._tries >= TRIES:
            self._unanswered(now)
        if not self._asking:
            return []
        earliest = self._earliest()
        if now < earliest:
            self.due = earliest
            return []
        first = self._tries == 0
        self._tries += 1
        self.due = now + self._spacing()
        sizes = [self._asking]
        if first and self.searching and self._asking == ETHERNET < self._limit:
            sizes.append(self._limit)  # Its tries come later; but if it passes, the search is over.
        return [size - self._overhead + PREFIX_SIZE for size in sizes]

    def asked(self, data: bytes, plaintext: int, now: float) -> None:
        """Note a probe that is being sent: its 16 random bytes, the size of its plaintext."""
        probe = Probe(data, plaintext + self._overhead - PREFIX_SIZE, now)
        fresh = tuple(one for one in self._open if now - one.sent < PROBE_TIME)
        self._open = (*fresh[1 - PROBES_OPEN :], probe)
        self._times = (*self._times[1 - PROBES_A_SECOND :], now)

    def answered(self, data: bytes, endpoint: Endpoint, now: float) -> bool:
        """Take a response; False if it answers no probe."""
        for probe in self._open:
            if probe.data == data and now - probe.sent < PROBE_TIME:
                break
        else:
            return False
        if endpoint != self._endpoint:
            return False
        self._open = tuple(one for one in self._open if one is not probe)
        took = now - probe.sent
        self._round_trip += (took - self._round_trip) / (8 if self._round_trip else 1)
        self._answered = True
        if probe.size > self._size:
            self._pass(probe.size)
            if not self._asking or probe.size >= self._asking:
                self._search_on(now)
        elif self._asking and probe.size >= self._asking:
            # The present size, confirmed; or the base, as the last hope of a search.
            if self.searching:
                self._search_on(now)
            elif now >= self._raise_after:
                self._search(now)
            else:
                self._rest(now)
        return True

    def _earliest(self) -> float:
        """Return when the next probe may leave."""
        if len(self._times) < PROBES_A_SECOND:
            return -NEVER
        return self._times[0] + 1.0

    def _spacing(self) -> float:
        return min(max(TRY_SPACING, 1.5 * self._round_trip), LONGEST_SPACING)

    # -- the search ---------------------------------------------------------------------------

    def _pass(self, size: int) -> None:
        self._take(size)
        if size >= self._high:  # It was given up too early.
            self._high = self._limit + 1

    def _take(self, size: int) -> None:
        self._size = size
        self.inner = min(size, self._limit) - self._overhead

    def _restart(self, now: float) -> None:
        self._take(BASE)
        self.searching = True
        self._answered = False
        self._search(now)

    def _search(self, now: float) -> None:
        """Look for more than the present size."""
        self._high = self._limit + 1
        self._search_on(now)

    def _search_on(self, now: float) -> None:
        """Ask the next size of a search."""
        size = self._next_size()
        if size:
            self._ask(size, now)
        elif self._answered:
            self._rest(now)
        elif self._asking != BASE:
            self._ask(BASE, now)
        else:
            # Not even that: the path is dead, or narrower than any that we promise to work on.
            self._asking = 0
            self.due = NEVER
            self.ask_after = now + CONFIRM_TIME

    def _next_size(self) -> int:
        """Return what to ask next, 0 if no more than PRECISION can be gained.

        An answer costs a round trip, the lack of one three tries. So the ends come first at which
        paths mostly end, each followed by the size just above it, which mostly does not pass.
        """
        low, high = self._size, self._high
        if low + 1 >= high or (high <= self._limit and high - low <= PRECISION):
            return 0
        if low < ETHERNET < high:
            return ETHERNET
        if high > self._limit:
            return self._limit
        if low in USUAL:
            return low + PRECISION
        middle = (low + high) // 2
        usual = [size for size in USUAL if low < size < high]
        return min(usual, key=lambda size: abs(size - middle), default=middle)

    def _ask(self, size: int, now: float) -> None:
        self._asking = size
        self._tries = 0
        self.due = now

    def _unanswered(self, now: float) -> None:
        """Three tries in vain."""
        size, self._tries = self._asking, 0
        if size > self._size:
            self._high = min(self._high, size)
            self._search_on(now)
        elif size > BASE:
            # What passed passes no more: a black hole (RFC 8899 4.3).
            self._asking = 0
            self._restart(now)
        else:
            self._search_on(now)

    def _rest(self, now: float) -> None:
        """The size is known, for now."""
        if self.searching or self._raise_after <= now:
            self._raise_after = now + RAISE_TIME
        self.searching = False
        self._asking = 0
        if self._round_trip < TRY_SPACING:
            self._open = ()  # No answer is late; and of 10,000 idle peers these would take 10 MB.
        self.due = NEVER
        self.ask_after = now + CONFIRM_TIME if self._size > BASE else self._raise_after
