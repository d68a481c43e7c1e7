"""Sockets with which one question goes to one other name server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ClientFactory
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

Place = tuple[str, int]
"""A numeric address and a port."""

_MAX_DATAGRAM = 4096

# Who gave the connection up closes it before.
_CONNECT_TIMEOUT = 30.0


OpenSocket = Callable[[int], socket.socket]


def open_datagrams(family: int) -> socket.socket:
    """A UDP socket of an address family, with a port at random once it is connected."""
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


class Question(Protocol):
    """Who asks."""

    def received(self, attempt: Datagrams | Stream, data: bytes) -> None:
        """A message came."""

    def lost(self, attempt: Datagrams | Stream) -> None:
        """None will come: the server cannot be reached, or hung up."""


@implementer(IReadDescriptor)
class Datagrams:
    """A socket for one question: with a new port, and hearing from that one server alone.

    Twisted's own would write two lines to the log for each question, and not live through the
    ICMP messages that such a socket reads as errors.
    """

    def __init__(self, question: Question, reactor: Any, open_socket: OpenSocket) -> None:
        self._question = question
        self._reactor = reactor
        self._open_socket = open_socket
        self._socket: socket.socket | None = None

    def open(self, place: Place, query: bytes) -> None:
        """Send the query.

        :raises OSError: there is no way to that address, or no socket is left.
        """
        self._socket = self._open_socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET)
        self._socket.connect(place)
        self._socket.send(query)
        self._reactor.addReader(self)

    def close(self) -> None:
        opened, self._socket = self._socket, None
        if opened is not None:
            self._reactor.removeReader(self)
            opened.close()

    # IReadDescriptor

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        return "name server"

    def doRead(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_MAX_DATAGRAM)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._question.lost(self)  # ICMP: nobody there, or no way
            return
        self._question.received(self, data)

    def connectionLost(self, reason: Failure) -> None:
        self._question.lost(self)


class Stream(Int16StringReceiver):
    """A connection for one question."""

    noisy = False

    def __init__(self, question: Question, reactor: Any) -> None:
        self._question = question
        self._reactor = reactor
        self._query = b""
        self._connector: Any = None

    def open(self, place: Place, query: bytes) -> None:
        """Begin to connect."""
        self._query = query
        self._connector = self._reactor.connectTCP(*place, _Factory(self), _CONNECT_TIMEOUT)

    def close(self) -> None:
        if self._connector is not None:
            self._connector.disconnect()

    def connectionMade(self) -> None:
        self.sendString(self._query)

    def stringReceived(self, data: bytes) -> None:
        self._question.received(self, data)

    def gone(self) -> None:
        """It could not be made, or has ended."""
        self._question.lost(self)


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def buildProtocol(self, address: Any) -> Stream:
        return self._stream

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._stream.gone()

    def clientConnectionLost(self, connector: Any, reason: Failure) -> None:
        self._stream.gone()
