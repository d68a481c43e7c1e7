"""One name's addresses of one kind, asked of name servers by UDP, one server after the other.

What is said here need not be believed: a hub proves itself by its key, and a lie costs one try of
a login. So there is no DNSSEC, no EDNS and no TCP: a hub with more addresses than 512 bytes hold
is reached at those that fit.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.names import dns

from pyvpn.tx.endpoint import SocketAddress
from pyvpn.tx.udpsocket import socket_address

PAUSE = 1.5
"""Seconds that one server has before the next is asked; its answer still counts afterwards."""

ROUNDS = 3
"""How often all servers are asked."""

GRACE = 1.0
"""Seconds that a hurried lookup has left."""

MAX_ADDRESSES = 64
MAX_ALIASES = 8

MAX_ANSWER = 512
"""Bytes that are read of an answer: without EDNS there are no more (RFC 1035, 4.2.1). They also
bound how long a hostile one keeps us reading: 2 ms, where each name points into a long one."""

_RCODES = {dns.EFORMAT: "FORMERR", dns.ESERVER: "SERVFAIL", dns.ENOTIMP: "NOTIMP"} | {
    dns.EREFUSED: "REFUSED"
}

Forget = Callable[[], object]
Heard = Callable[[dns.Message], None]


@frozen(eq=False)
class Server:
    """A name server.

    :ivar host: its address as it was written.
    :ivar questions: where to ask from, None without a socket of that family.
    """

    host: str
    port: int
    family: int
    questions: Questions | None

    def ask(self, name: bytes, kind: int, heard: Heard) -> Forget:
        """Ask; OSError or ValueError if that cannot be sent."""
        if self.questions is None:
            raise OSError(errno.EAFNOSUPPORT, "there is no IPv6 here")
        address = socket_address(self.host, self.port, self.family)
        return self.questions.ask(dns.Query(name, kind), address, heard)


class Lookup:
    """A lookup under way.

    Who says that there are no addresses is believed when all others have been asked as well: one
    server may know names that another does not, and in a café a lie is cheap. Who fails or is
    silent is asked again, unless another has said that there are none.

    :param name: in lower case, as it is asked for.
    :param kind: ``dns.A`` or ``dns.AAAA``.
    :param changed: called when ``due`` may be another.
    :ivar done: fires with the addresses.
    :ivar said: what servers said instead.
    """

    def __init__(
        self,
        name: bytes,
        kind: int,
        servers: Sequence[Server],
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.done: Deferred[list[str]] = Deferred()
        self.said: dict[Server, str] = {}
        self._name = name
        self._kind = kind
        self._servers = servers
        self._clock = clock
        self._changed = changed
        self._forget: list[Forget] = []
        self._settled: set[Server] = set()
        self._left: list[Server] = []
        self._asked: Server | None = None
        self._rounds = 0
        self._next_round = self._next = math.inf
        self._end = math.inf

    @property
    def due(self) -> float:
        """When :meth:`go_on` is due, in seconds of the clock."""
        return min(self._next, self._end)

    def start(self) -> None:
        """Begin a round: ask the first server."""
        self._rounds += 1
        self._next_round = self._clock() + PAUSE
        self._left = list(self._servers)
        self._ask_next()

    def go_on(self) -> None:
        """Do what is due."""
        if self._clock() >= self._end:
            self.finish()
        elif self._left or self._asked is not None:
            self._ask_next()
        else:
            self.start()

    def hurry(self) -> None:
        """End within :data:`GRACE`."""
        self._end = self._clock() + GRACE
        self._changed()

    def finish(self, addresses: Sequence[str] = ()) -> None:
        """End now; harmless twice."""
        for forget in self._forget:
            forget()
        if not self.done.called:
            self.done.callback(list(addresses))

    def _ask_next(self) -> None:
        self._asked = None
        while self._left and self._asked is None:
            server = self._left.pop(0)
            if server not in self._settled and self._ask(server):
                self._asked = server
        if self._asked is not None:
            self._next = self._clock() + PAUSE
        elif self._settled or self._rounds == ROUNDS:
            self.finish()
            return
        else:
            # Who cannot be asked, or fails, does so at once: a moment later it may be otherwise.
            self._next = self._next_round
        self._changed()

    def _ask(self, server: Server) -> bool:
        try:
            forget = server.ask(self._name, self._kind, partial(self._heard, server))
        except (OSError, ValueError) as error:
            # No route, or a firewall of this machine: no answer would come.
            why = getattr(error, "strerror", None) or error
            self.said[server] = f"cannot be asked ({why})"
            return False
        self._forget.append(forget)
        return True

    def _heard(self, server: Server, message: dns.Message) -> None:
        verdict = judge(message, self._name, self._kind)
        if verdict.addresses:
            self.finish(verdict.addresses)
            return
        self.said[server] = verdict.said
        if verdict.settled:
            self._settled.add(server)
        if server is self._asked:
            self._ask_next()


class _Asked(NamedTuple):
    query: dns.Query
    server: SocketAddress
    heard: Heard


class Questions(DatagramProtocol):
    """Questions that are open, and what may answer them.

    ``dns.DNSDatagramProtocol`` would open a socket of its own, without mark, if ours were gone,
    and with the right number takes the answer to another question for ours.
    """

    noisy = False

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._asked: dict[int, _Asked] = {}

    def logPrefix(self) -> str:
        return "resolver"

    def ask(self, query: dns.Query, server: SocketAddress, heard: Heard) -> Forget:
        """Send a question; what is returned, called, forgets it. OSError if it cannot be sent.

        :param heard: called once with an answer: this server's, to this question.
        """
        transport: Any = self.transport
        if transport is None:
            raise OSError(errno.EBADF, "our socket is closed")
        number = self._unused()
        message = dns.Message(number, recDes=1)
        message.queries = [query]
        transport.write(message.toStr(), server)
        self._asked[number] = _Asked(query, server, heard)
        return partial(self._asked.pop, number, None)

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        number = int.from_bytes(datagram[:2], "big")
        asked = self._asked.get(number)
        # First, so that nobody else makes us read. Scopes do not count: Twisted's ports leave them
        # out.
        if asked is None or asked.server[:2] != addr[:2]:
            return
        message = _Message()
        try:
            message.fromStr(datagram)
        except (ValueError, EOFError):
            return
        if not message.answer or message.opCode != dns.OP_QUERY:
            return
        if [_key(query) for query in message.queries] == [_key(asked.query)]:
            del self._asked[number]
            asked.heard(message)

    def _unused(self) -> int:
        while True:
            number = int.from_bytes(self._random_bytes(2), "big")
            if number not in self._asked:
                return number


def _key(query: dns.Query) -> tuple[bytes, int, int]:
    return query.name.name.lower(), query.type, query.cls


class _Message(dns.Message):
    """A message of which nothing is parsed but what we go by.

    The classes for other records raise all kinds of errors, and read on beyond a record's end.
    """

    def lookupRecordType(self, type: int) -> Any:
        return dns.Record_CNAME if type == dns.CNAME else dns.UnknownRecord


class Verdict(NamedTuple):
    """What an answer comes to.

    :ivar said: without addresses, what the server said, after its name in a sentence.
    :ivar settled: that was no failure, and it would say the same again.
    """

    addresses: list[str]
    said: str = ""
    settled: bool = False


def judge(message: dns.Message, name: bytes, kind: int) -> Verdict:
    """What an answer says of a name, whose aliases are followed inside the answer.

    How long it may be believed (TTL) does not matter: nothing is kept.

    :param message: parsed by :class:`Questions`: records hold their raw bytes, but for aliases.
    """
    if message.rCode == dns.ENAME:
        return Verdict([], "knows no such name", settled=True)
    if message.rCode != dns.OK:
        return Verdict([], f"answered {_RCODES.get(message.rCode, message.rCode)}")
    aliases: dict[bytes, bytes] = {}
    addresses: dict[bytes, list[bytes]] = {}
    for record in message.answers:
        owner, payload = record.name.name.lower(), record.payload
        if record.cls == dns.IN and isinstance(payload, dns.Record_CNAME):
            aliases[owner] = payload.name.name.lower()
        elif record.cls == dns.IN and record.type == kind:
            addresses.setdefault(owner, []).append(getattr(payload, "data", b""))
    for _ in range(MAX_ALIASES + 1):
        found = [_address(data, kind) for data in addresses.get(name, ())]
        usable = list(dict.fromkeys(address for address in found if address is not None))
        if usable:
            return Verdict(usable[:MAX_ADDRESSES])
        if name not in aliases:
            break
        name = aliases[name]
    else:
        return Verdict([], "answered with aliases without end")
    if message.trunc:
        return Verdict([], "answered more than fits")
    return Verdict([], "knows no address of it", settled=True)


def _address(data: bytes, kind: int) -> str | None:
    """The text of an address that a host can have, None of others."""
    if len(data) != (4 if kind == dns.A else 16):
        return None
    address = ip_address(data)
    if address.is_unspecified or address.is_multicast or address == IPv4Address("255.255.255.255"):
        return None
    # Nobody can tell on which link that would be.
    if isinstance(address, IPv6Address) and address.is_link_local:
        return None
    return str(address)
