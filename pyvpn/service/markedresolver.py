"""Names of servers to addresses, asked with our mark, so past the tunnel and past a kill switch.

``getent`` (:mod:`pyvpn.service.resolver`) asks from sockets without the mark. With all traffic in
the tunnel, or with a kill switch, its questions would go where the answer is needed first. So we
ask the name servers ourselves, by UDP, from sockets that were opened and marked while that was
allowed.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredList, gatherResults, maybeDeferred
from twisted.names import dns

from pyvpn.errors import StartError
from pyvpn.linux.firewall import MARK
from pyvpn.service.lookup import MAX_ADDRESSES, MAX_ANSWER, Lookup, Questions, Server
from pyvpn.service.resolver import Place, Resolved
from pyvpn.tx.timer import BoottimeTimer, boottime
from pyvpn.tx.udpsocket import NO_IPV6, mark_socket, socket_address

PORT = 53

MAX_SERVERS = 4
"""So many of a list are asked: three rounds take 18 s if none of them answers."""

MAX_HOSTS = 16 << 20
"""Bytes that are read of /etc/hosts: the largest lists against advertising have a third of it."""

_libc = ctypes.CDLL(None, use_errno=True)


def open_marked_socket(family: int) -> socket.socket:
    """A UDP socket of that family on a port of its own, marked; OSError without privilege."""
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        mark_socket(opened, MARK)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
    except OSError:
        opened.close()
        raise
    return opened


class MarkedResolver:
    """Asks name servers for the addresses of hosts.

    :param reactor: ``adoptDatagramPort`` is all that is asked of it.
    :param name_servers: numeric addresses, in the order to ask, link-local ones with
        ``%interface``; called for each :meth:`resolve`, since they change with the network.
    :param open_socket: makes a marked UDP socket of a family (:func:`open_marked_socket`).
    :param hosts: the file that is looked into first.
    :param port: where the name servers listen.
    """

    def __init__(
        self,
        reactor: Any,
        name_servers: Callable[[], Sequence[str]],
        open_socket: Callable[[int], Any] = open_marked_socket,
        *,
        hosts: str = "/etc/hosts",
        port: int = PORT,
        random_bytes: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = boottime,
        timer_factory: Callable[[Callable[[], None]], Any] = BoottimeTimer,
    ) -> None:
        self._reactor = reactor
        self._name_servers = name_servers
        self._open_socket = open_socket
        self._hosts = hosts
        self._port = port
        self._random_bytes = random_bytes
        self._clock = clock
        self._timer_factory = timer_factory
        self.ports: tuple[int, ...] = ()
        self._sockets: dict[int, Any] = {}
        self._probes: dict[int, Any] = {}
        self._listening: list[Any] = []
        self._questions: dict[int, Questions] = {}
        self._timer: Any = None
        self._lookups: set[Lookup] = set()

    def open(self) -> None:
        """Open what needs privilege; ``ports`` are the local ones then, for the firewall.

        :raises StartError: the sockets cannot be had.
        """
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                self._sockets[family] = self._open_socket(family)
                self._probes[family] = self._open_socket(family)
            except OSError as error:
                if family == socket.AF_INET6 and error.errno in NO_IPV6:
                    continue
                self.close()
                raise StartError(
                    f"cannot open a marked socket to ask name servers with: {error.strerror};"
                    " start as root"
                ) from error
        self.ports = tuple(opened.getsockname()[1] for opened in self._sockets.values())

    def start(self) -> None:
        """Listen for answers."""
        self._timer = self._timer_factory(self._due)
        for family, opened in self._sockets.items():
            questions = Questions(self._random_bytes)
            # It listens on a duplicate.
            self._listening.append(
                self._reactor.adoptDatagramPort(
                    opened.fileno(), family, questions, maxPacketSize=MAX_ANSWER
                )
            )
            self._questions[family] = questions
            opened.close()
        self._sockets = {}

    def close(self) -> Deferred[Any]:
        """Give up what is being looked up, and close the sockets; harmless twice."""
        for lookup in list(self._lookups):
            lookup.finish()
        for opened in chain(self._sockets.values(), self._probes.values()):
            opened.close()
        listening, self._listening = self._listening, []
        self._sockets, self._probes, self._questions = {}, {}, {}
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        return DeferredList([maybeDeferred(port.stopListening) for port in listening])

    def resolve(self, servers: Sequence[Place]) -> Deferred[Resolved]:
        """Look all of them up at the same time; never fails, and takes 18 s at most.

        Numeric addresses need nobody: with them alone the Deferred has fired already.
        """
        return Deferred.fromCoroutine(self._resolve(servers))

    async def _resolve(self, servers: Sequence[Place]) -> Resolved:
        hosts = list(dict.fromkeys(host for host, _ in servers))
        answers = await gatherResults([Deferred.fromCoroutine(self._find(host)) for host in hosts])
        found = dict(zip(hosts, answers, strict=True))
        places = [[(address, port) for address in found[host].addresses] for host, port in servers]
        problems = [
            f"cannot resolve {host}: {found[host].problem}"
            for host in hosts
            if not found[host].addresses
        ]
        return Resolved(in_order(places, partial(routed, self._probes)), problems)

    async def _find(self, host: str) -> _Found:
        if _numeric(host) is not None:
            return _Found([host])
        name = _ascii(host)
        if name is None:
            return _Found(problem="that is no host name")
        listed = in_hosts(_read_hosts(self._hosts), name)
        if listed:
            return _Found(listed)
        if not self._questions:
            return _Found(problem="no socket is open to ask with")
        try:
            servers = self._servers()
        except Exception as error:  # whatever it reads: a reconnection must not end with it
            return _Found(problem=f"the name servers are not known: {error}")
        if not servers:
            return _Found(problem="no name server is known")
        return await self._ask(name, servers)

    def _servers(self) -> list[Server]:
        servers = []
        for host in dict.fromkeys(self._name_servers()):
            address = _numeric(host)
            if address is not None:
                mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
                family = socket.AF_INET if mapped or address.version == 4 else socket.AF_INET6
                servers.append(Server(host, self._port, family, self._questions.get(family)))
        return servers[:MAX_SERVERS]

    async def _ask(self, name: str, servers: Sequence[Server]) -> _Found:
        """Ask for both kinds of addresses at the same time.

        Some name servers leave questions for AAAA unanswered: what is there does not wait long.
        """
        v4, v6 = [
            Lookup(name.encode(), kind, servers, self._clock, self._arm)
            for kind in (dns.A, dns.AAAA)
        ]
        self._lookups |= {v4, v6}
        for lookup, other in ((v4, v6), (v6, v4)):
            lookup.done.addCallback(self._looked_up, lookup, other)
        v4.start()
        v6.start()
        addresses = list(chain(*await gatherResults([v6.done, v4.done])))
        # What a server said of one kind stands for both.
        said = {**v6.said, **v4.said}
        words = (f"{server.host} {said.get(server, 'did not answer')}" for server in servers)
        return _Found(addresses, ", ".join(words))

    def _looked_up(self, addresses: list[str], lookup: Lookup, other: Lookup) -> list[str]:
        self._lookups.discard(lookup)
        if addresses and other in self._lookups:
            other.hurry()
        self._arm()
        return addresses

    def _arm(self) -> None:
        self._timer.arm(min((lookup.due for lookup in self._lookups), default=None))

    def _due(self) -> None:
        now = self._clock()
        for lookup in [lookup for lookup in self._lookups if lookup.due <= now]:
            if lookup in self._lookups:  # the one before has not ended it
                lookup.go_on()
        if self._timer is not None:
            self._arm()


class _Found(NamedTuple):
    addresses: list[str] = []
    problem: str = ""


# -- the order of addresses -----------------------------------------------------------------------


def in_order(hosts: Sequence[Sequence[Place]], is_routed: Callable[[str], bool]) -> list[Place]:
    """The addresses of all hosts in the order in which to try them, none twice.

    Host by host; of each one IPv6 and IPv4 in turn, since either may be broken on the way
    (RFC 8305, section 4). Then, in the same order, those to which no route leads.
    """
    places: list[Place] = []
    for host in hosts:
        v6 = [place for place in host if ":" in place[0]]
        v4 = [place for place in host if ":" not in place[0]]
        places += [place for pair in zip_longest(v6, v4) for place in pair if place is not None]
    return sorted(dict.fromkeys(places), key=lambda place: not is_routed(place[0]))


def routed(probes: Mapping[int, Any], address: str) -> bool:
    """Whether the kernel has a route for a datagram to that address; none is sent.

    :param probes: UDP sockets by family, which go by the same rules (marks) as what will be sent.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    probe = probes.get(family)
    if probe is None:
        return False
    try:
        probe.connect(socket_address(address, PORT, family))
    except (OSError, ValueError):
        return False
    finally:
        # To AF_UNSPEC, which Python cannot say: else the next one would be asked for with the
        # source address of this one, which this machine may have lost meanwhile.
        _libc.connect(probe.fileno(), bytes(16), 16)
    return True


# -- names ----------------------------------------------------------------------------------------


def in_hosts(text: str, name: str) -> list[str]:
    """The addresses that a file like /etc/hosts gives a name, which is in lower case."""
    found = []
    for line in text.splitlines():
        if name in line.lower():
            address, *names = line.partition("#")[0].split() or [""]
            if name in map(str.lower, names) and _numeric(address) is not None:
                found.append(address)
    return list(dict.fromkeys(found))[:MAX_ADDRESSES]


def _read_hosts(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_HOSTS).decode("utf-8", "replace")
    except OSError:
        return ""


def _ascii(host: str) -> str | None:
    """A name as it is asked for, None if it cannot be: IDNA, lower case, no dot at the end."""
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        return None
    labels = name.split(".")
    return name if len(name) <= 253 and all(0 < len(label) < 64 for label in labels) else None


def _numeric(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
