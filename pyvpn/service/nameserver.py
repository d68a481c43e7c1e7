"""The hub's name server: the network's names, and for the rest a way to those of the hub itself.

Messages are those of twisted.names; its server is not used. It answers replies (two such servers
keep each other busy), raises what broken messages lead to, and says neither AA nor SOA with a "no".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, ServerFactory
from twisted.logger import Logger
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver

from pyvpn.core.hostnames import DOMAIN, Names
from pyvpn.errors import StartError, VPNError
from pyvpn.linux.portowner import port_owner
from pyvpn.service import dnsquery
from pyvpn.service.dnsforwarder import Forwarder
from pyvpn.service.dnsquery import Malformed, Query, Records, Unknown
from pyvpn.service.dnssockets import OpenSocket, Place, open_datagrams
from pyvpn.service.dnszone import IPNetwork, Zones
from pyvpn.service.patience import Patience, TimerFactory
from pyvpn.tx.tally import Tally
from pyvpn.tx.timer import BoottimeTimer, boottime

PORT = 53

MOST_CONNECTIONS = 128
"""TCP connections, all in all."""

MOST_CONNECTIONS_OF_CLIENT = 8
"""Of these, from one address."""

TURN = 4096
"""Bytes of queries by UDP in one turn of the reactor, some 100: the data path waits meanwhile."""

IDLE = 10.0
"""Seconds after which a connection that says nothing is closed (RFC 7766 6.2.3: a few)."""

# Not for one reply: zone transfers, and what mail was before MX.
_REFUSED_TYPES = frozenset({dns.AXFR, dns.IXFR, dns.MAILA, dns.MAILB})

Send = Callable[[bytes], None]


class NameServer:
    """Answers the VPN's clients, and nobody else.

    :param names: what is called how (:func:`pyvpn.core.hostnames.host_names`); asked at most once a
        second. It should return the same object as before while nothing has changed.
    :param upstream: numeric addresses of the name servers to ask for other names; asked every few
        seconds. With none, other names are refused.
    :param networks: the VPN's. Their addresses have names here, and from these alone is answered.
    :param upstream_port: where those servers listen.
    :param open_socket: makes the UDP sockets with which they are asked.
    :param clock: boottime seconds, which ``timer_factory``'s timers go by.
    :ivar idle: connections, and how long they may be.
    :ivar counters: name to count. ``answered`` here, ``forwarded``, ``refused``; dropped as
        ``outside`` or ``malformed``; ``busy``, ``unanswered``, ``upstream_…``.
    """

    _log = Logger()

    def __init__(
        self,
        names: Callable[[], Names],
        upstream: Callable[[], Sequence[str]],
        networks: Iterable[IPNetwork],
        reactor: Any,
        *,
        domain: str = DOMAIN,
        upstream_port: int = PORT,
        open_socket: OpenSocket = open_datagrams,
        clock: Callable[[], float] = boottime,
        timer_factory: TimerFactory | None = None,
    ) -> None:
        timers = timer_factory or partial(BoottimeTimer, reactor=reactor)
        self._networks = tuple(networks)
        self._reactor = reactor
        self._tally = Tally("name server", self._log, clock)
        self.counters = self._tally.counters
        self._upstream = upstream
        self._upstream_port = upstream_port
        self._trouble = ""
        self._zones = Zones(names, self._networks, clock, domain)
        self._forwarder = Forwarder(
            self._servers, reactor, self._tally.add, clock, timers, open_socket
        )
        self.idle = Patience(IDLE, clock, timers)
        self._places: set[Place] = set()
        self._ports: list[Any] = []
        self._connections: set[_Connection] = set()

    def listen(self, addresses: Sequence[str], port: int = PORT) -> None:
        """Begin to answer on some addresses of this machine, by UDP and TCP.

        To be called once, with the privilege to take the port; the reactor need not run yet.

        :param port: 0 for any that is free, for each socket another one.
        :raises StartError: it is taken, or an address is not there. No port is open then.
        """
        factory = _Connections(self)
        try:
            for address in addresses:
                datagrams = _Datagrams(self)
                longest = dnsquery.MAX_QUERY + 1  # so that a longer one shows
                self._ports += [self._reactor.listenUDP(port, datagrams, address, longest)]
                self._ports[-1].maxThroughput = TURN
                self._ports += [self._reactor.listenTCP(port, factory, 50, address)]
        except CannotListenError as error:
            self.close()
            raise StartError(_refusal(error, port)) from error
        self._places = set(self.ports)

    @property
    def ports(self) -> list[Place]:
        """Where it listens: for each address UDP, then TCP."""
        hosts = [port.getHost() for port in self._ports]
        return [(host.host, host.port) for host in hosts]

    def close(self) -> Deferred[Any]:
        """Stop; fires when all ports are closed. Harmless twice, and before :meth:`listen`."""
        self._forwarder.close()
        for connection in list(self._connections):
            connection.abort()
        self.idle.close()
        ports, self._ports = self._ports, []
        closed = [port.stopListening() for port in ports]
        return DeferredList([done for done in closed if done is not None])

    # What the sockets call.

    def received(self, data: bytes, client: str, send: Send, tcp: bool) -> bool:
        """Deal with a message; never raises. Tells whether it was a query from a client of ours.

        :param send: called once or not at all, now or later.
        """
        try:
            if not self._is_client(client):
                self._tally.add("outside")
                return False
            self._answer(dnsquery.read_query(data), client, send, tcp)
        except Malformed:
            self._tally.add("malformed")
            return False
        except Unknown as unknown:
            self._tally.add("refused")
            send(unknown.reply)
        except Exception:
            self._tally.bug("answering")
            return False
        return True

    def count(self, what: str) -> None:
        """Count something."""
        self._tally.add(what)

    def unsent(self, error: OSError) -> None:
        """Note that an answer did not leave."""
        self._tally.error(error, "answering")

    def connected(self, connection: _Connection) -> bool:
        """Note a connection; False if there are too many."""
        same = sum(connection.client == other.client for other in self._connections)
        if len(self._connections) >= MOST_CONNECTIONS or same >= MOST_CONNECTIONS_OF_CLIENT:
            self._tally.add("busy")
            return False
        self._connections.add(connection)
        return True

    def disconnected(self, connection: _Connection) -> None:
        """Note that a connection is gone."""
        self._connections.discard(connection)

    # What is done with a query.

    def _is_client(self, client: str) -> bool:
        address = ip_address(client)
        return any(address in network for network in self._networks)

    def _answer(self, query: Query, client: str, send: Send, tcp: bool) -> None:
        size = dnsquery.TCP_SIZE if tcp else query.udp_size
        rcode = _refused(query)
        found = Records(rcode) if rcode else self._zones.answer(query)
        if found is None and query.recursion and query.type == dns.ALL_RECORDS:
            found = Records(dns.ENOTIMP)  # long answers to short questions, which nobody needs
        elif found is None and query.recursion and self._forwarder.servers():
            self._forward(query, client, send, tcp)
            return
        local = found is not None and not rcode
        if found is None:
            found = Records(dns.EREFUSED)
        self._tally.add("refused" if found.rcode not in (dns.OK, dns.ENAME) else "answered")
        recursive = bool(self._forwarder.servers())
        send(query.reply(found, local and found.rcode != dns.ENOTIMP, recursive, size))

    def _forward(self, query: Query, client: str, send: Send, tcp: bool) -> None:
        self._tally.add("forwarded")
        size = dnsquery.TCP_SIZE if tcp else query.udp_size
        done = self._forwarder.ask(query.to_forward(), len(query.question), client, tcp)

        def answered(answer: bytes | None) -> None:
            if answer is None:
                send(query.reply(Records(dns.ESERVER), False, True, size))
                return
            whole = query.id.to_bytes(2, "big") + answer
            send(whole if len(whole) <= size else query.truncated(whole))

        done.addCallback(answered)
        done.addErrback(lambda failure: self._log.failure("handing on an answer failed", failure))

    def _servers(self) -> list[Place]:
        """Those to ask. Never ourselves: we would ask ourselves again, and so on."""
        try:
            servers, trouble = self._upstream(), ""
        except (OSError, VPNError) as error:
            servers, trouble = (), str(error)
        if trouble and trouble != self._trouble:
            self._log.warn("other name servers cannot be found: {why}", why=trouble)
        self._trouble = trouble
        places = [(text, self._upstream_port) for text in map(_numeric, servers) if text]
        return [place for place in places if place not in self._places]


def _numeric(text: str) -> str | None:
    try:
        return str(ip_address(text))
    except ValueError:
        return None


def _refused(query: Query) -> int:
    """The code for what is not answered whatever the name is, else 0."""
    if query.edns is not None and query.edns.version:
        return dns.EBADVERSION  # RFC 6891 6.1.3
    if query.cls != dns.IN or query.type in _REFUSED_TYPES:
        return dns.EREFUSED
    return 0


def _refusal(error: CannotListenError, port: int) -> str:
    host = error.interface
    why = getattr(error.socketError, "strerror", None) or str(error.socketError)
    owner = port_owner(host, port)
    if owner is not None:
        return (
            f"cannot answer DNS on {host} port {port}: {owner}, has it;"
            " stop that, or have it leave this address alone"
        )
    return f"cannot answer DNS on {host} port {port}: {why}"


class _Datagrams(DatagramProtocol):
    noisy = False

    def __init__(self, server: NameServer) -> None:
        self._server = server

    def logPrefix(self) -> str:
        return "DNS by UDP"

    def datagramReceived(self, data: bytes, address: tuple[str, int]) -> None:
        self._server.received(data, address[0], lambda reply: self._send(reply, address), False)

    def _send(self, reply: bytes, address: tuple[str, int]) -> None:
        if self.transport is None:
            return
        try:
            self.transport.write(reply, address)
        except OSError as error:
            self._server.unsent(error)


class _Connection(Int16StringReceiver):
    """One that may ask several questions, and gets answers as they come (RFC 7766 6.2.1)."""

    noisy = False
    transport: Any
    MAX_LENGTH = dnsquery.MAX_QUERY

    def __init__(self, server: NameServer) -> None:
        self._server = server
        self.client = ""

    def connectionMade(self) -> None:
        self.client = self.transport.getPeer().host
        if not self._server.connected(self):
            self.transport.abortConnection()
            return
        # Who does not read our answers is not read from.
        self.transport.registerProducer(self.transport, True)
        self._server.idle.wait(self, self.abort)

    def stringReceived(self, data: bytes) -> None:
        self._server.idle.wait(self, self.abort)
        if not self._server.received(data, self.client, self.sendString, True):
            self.transport.abortConnection()

    def lengthLimitExceeded(self, length: int) -> None:
        self._server.count("malformed")
        self.abort()

    def connectionLost(self, reason: Any = None) -> None:
        self._server.idle.forget(self)
        self._server.disconnected(self)

    def abort(self) -> None:
        """Close it, whatever is not sent yet."""
        self.transport.abortConnection()


class _Connections(ServerFactory):
    noisy = False

    def __init__(self, server: NameServer) -> None:
        self._server = server

    def logPrefix(self) -> str:
        return "DNS by TCP"

    def buildProtocol(self, address: Any) -> _Connection:
        return _Connection(self._server)
