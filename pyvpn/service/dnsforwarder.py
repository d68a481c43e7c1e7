"""Asks other name servers what the hub does not know, and hands their answers on as they are.

twisted.names' own resolver is no help here. It drops what it does not understand: the type HTTPS
that browsers ask for, EDNS, and the SOA with which a "no" may be kept. It takes a reply for any
question with the right number, and its cache has no bound.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.names import dns

from pyvpn.service.dnscache import AnswerCache
from pyvpn.service.dnssockets import Datagrams, OpenSocket, Place, Stream, open_datagrams
from pyvpn.service.patience import Patience, TimerFactory

TIMEOUT = 2.0
"""Seconds until the next server is asked; with two servers who asks (glibc: 5 s) still waits."""

MOST_SERVERS = 3
"""How many servers are asked (resolv.conf(5) allows as many)."""

MOST_OUTSTANDING = 512
"""Questions that wait for others, all in all: each has a socket."""

MOST_FOR_CLIENT = 64
"""Of these, for one address."""

SERVERS_KEPT = 5.0
"""Seconds until it is looked again which servers there are."""

SILENT_FOR = 30.0
"""Seconds for which a server that did not answer is asked after the others."""

_HEADER_SIZE = 12
# Another server may do better: the server is broken, does not know how, or not for us.
_NO_ANSWER = frozenset({dns.ESERVER, dns.ENOTIMP, dns.EREFUSED})


class Forwarder:
    """Asks one server after the other.

    :param servers: numeric addresses in the order to ask them, without our own; it may change.
    :param count: called with the name of what went wrong.
    :param clock: boottime seconds.
    :param open_socket: makes a UDP socket of an address family that does not block.
    """

    def __init__(
        self,
        servers: Callable[[], Sequence[Place]],
        reactor: Any,
        count: Callable[[str], None],
        clock: Callable[[], float],
        timer_factory: TimerFactory,
        open_socket: OpenSocket = open_datagrams,
    ) -> None:
        self._servers = servers
        self._reactor = reactor
        self._count = count
        self._open_socket = open_socket
        self._clock = clock
        self._patience = Patience(TIMEOUT, clock, timer_factory)
        self._cache = AnswerCache(clock)
        self._open: dict[tuple[bool, bytes], _Question] = {}
        self._waiting: dict[str, int] = {}
        self._silent: dict[Place, float] = {}
        self._kept: list[Place] = []
        self._due = float("-inf")

    def servers(self) -> list[Place]:
        """Those there are, the silent ones last."""
        now = self._clock()
        if now >= self._due:
            self._due = now + SERVERS_KEPT
            self._kept = list(self._servers())[:MOST_SERVERS]
        self._silent = {place: until for place, until in self._silent.items() if until > now}
        return sorted(self._kept, key=self._silent.__contains__)

    @property
    def outstanding(self) -> int:
        """How many wait for an answer."""
        return sum(self._waiting.values())

    def ask(self, query: bytes, question: int, client: str, tcp: bool) -> Deferred[bytes | None]:
        """Ask others.

        :param query: without the identifier, which is also what the answer comes without.
        :param question: bytes of the question section, which stands right after the header.
        :param client: the address that it is for.
        :returns: fires with None when there is no answer, or too much is asked at once.
        """
        kept = self._cache.find(query)
        if kept is not None:
            return succeed(kept)
        if self.outstanding >= MOST_OUTSTANDING or self._waiting.get(client, 0) >= MOST_FOR_CLIENT:
            self._count("busy")
            return succeed(None)
        servers = self.servers()
        answer: Deferred[bytes | None] = Deferred()
        self._waiting[client] = self._waiting.get(client, 0) + 1
        answer.addBoth(self._served, client)
        # One question to the outside however many ask it: who wants to guess its number and port
        # must not get a better chance by asking often (RFC 5452 5).
        asked = self._open.get((tcp, query))
        if asked is not None:
            asked.answers.append(answer)
            return answer
        asked = _Question(query, question, tcp, self)
        self._open[tcp, query] = asked
        asked.answers.append(answer)
        asked.start(servers if len(servers) > 1 else 2 * servers)
        return answer

    def attempt(self, asked: _Question) -> Datagrams | Stream:
        """A way to ask one server."""
        if asked.tcp:
            return Stream(asked, self._reactor)
        return Datagrams(asked, self._reactor, self._open_socket)

    def wait(self, asked: _Question, call: Callable[[], None] | None) -> None:
        """Have something called when it is time to give a server up; None: not any more."""
        if call is None:
            self._patience.forget(asked)
        else:
            self._patience.wait(asked, call)

    def close(self) -> None:
        """Give all up; all that wait are told so."""
        for asked in list(self._open.values()):
            asked.end(None)
        self._patience.close()

    def failed(self, place: Place, what: str) -> None:
        """Note that a server said nothing; one that says no is not moved back by that.

        Else whoever asks for a broken domain would have names that only the first server knows be
        asked of the second.
        """
        self.note(what)
        self._silent[place] = self._clock() + SILENT_FOR

    def note(self, what: str) -> None:
        """Count something."""
        self._count(what)

    def ended(self, asked: _Question, answer: bytes | None) -> None:
        """Note that a question is over."""
        del self._open[asked.tcp, asked.query]
        if answer is None:
            self._count("unanswered")
        else:
            self._cache.put(asked.query, answer, asked.size)

    def _served(self, answer: bytes | None, client: str) -> bytes | None:
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client]
        return answer


class _Question:
    """One question, from the first server to the answer.

    :ivar answers: fire with what came of it.
    """

    def __init__(self, query: bytes, size: int, tcp: bool, forwarder: Forwarder) -> None:
        self.query = query
        self.size = size
        self.tcp = tcp
        self.answers: list[Deferred[bytes | None]] = []
        self._forwarder = forwarder
        self._left: list[Place] = []
        self._place: Place | None = None
        self._identifier = b""
        self._attempt: Datagrams | Stream | None = None
        self._second_best: bytes | None = None

    def start(self, servers: Sequence[Place]) -> None:
        """Ask the servers in turn."""
        self._left = list(servers)
        self._next()

    def end(self, answer: bytes | None) -> None:
        """Hand an answer, or that there is none, to all that wait for it."""
        self._stop()
        self._forwarder.ended(self, answer)
        for waiting in self.answers:
            waiting.callback(answer)

    def received(self, attempt: Datagrams | Stream, data: bytes) -> None:
        """A message from the server that was asked."""
        if attempt is not self._attempt:
            return
        if not self._is_answer(data):
            self._forwarder.note("upstream_unexpected")
            return
        rcode = data[3] & 0xF
        if rcode in _NO_ANSWER:
            self._second_best = data[2:]
            self._forwarder.note("upstream_refused")
            self._next()
        else:
            self.end(data[2:])

    def lost(self, attempt: Datagrams | Stream) -> None:
        """The server cannot be reached, or hung up."""
        if attempt is self._attempt:
            assert self._place is not None
            self._forwarder.failed(self._place, "upstream_unreachable")
            self._next()

    def _silence(self) -> None:
        assert self._place is not None
        self._forwarder.failed(self._place, "upstream_silent")
        self._next()

    def _next(self) -> None:
        self._stop()
        while self._left:
            self._place = self._left.pop(0)
            # A number and a port that nobody can guess are all that protects DNS (RFC 5452 9.2).
            self._identifier = os.urandom(2)
            self._attempt = self._forwarder.attempt(self)
            self._forwarder.wait(self, self._silence)
            try:
                self._attempt.open(self._place, self._identifier + self.query)
            except OSError:
                self._forwarder.failed(self._place, "upstream_unreachable")
                self._stop()
                continue
            return
        self.end(self._second_best)

    def _stop(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.close()
        self._forwarder.wait(self, None)

    def _is_answer(self, data: bytes) -> bool:
        """Tell whether it is a reply (QR, QUERY) to just this; only case may differ in the name."""
        asked = self.query[_HEADER_SIZE - 2 : _HEADER_SIZE - 2 + self.size]
        echoed = data[_HEADER_SIZE : _HEADER_SIZE + self.size]
        return (
            data[:2] == self._identifier
            and len(data) >= _HEADER_SIZE + self.size
            and data[2] & 0xF8 == 0x80
            and data[4:6] == b"\0\1"
            and echoed[:-4].lower() == asked[:-4].lower()
            and echoed[-4:] == asked[-4:]
        )
