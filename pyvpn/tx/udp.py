"""The one UDP socket in the reactor: bursts in, bursts out, answers from the address asked."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pyvpn.core.burst import Burst
from pyvpn.tx.endpoint import SocketAddress, UDPEndpoint
from pyvpn.tx.tally import Tally
from pyvpn.tx.udpsocket import PKTINFO, open_udp_socket, socket_address

# One turn of the reactor takes no more than this, so that timers and the other port stay prompt.
TURN_DATAGRAMS = 64
TURN_BYTES = 512 * 1024

# Nothing longer exists in UDP (and a GRO read needs all of it).
DATAGRAM_BYTES = 65_535

# Datagrams up to this long may come alone, see TUNPort; a longer one is bulk.
SMALL_DATAGRAM_BYTES = 544
MOST_LONE_TURNS = 16

# Held back while the socket is full, in datagrams. What arrives above it is dropped and counted.
# TUN reading is paused meanwhile, so only what was read before (two turns at most) and handshakes,
# keepalives and polls come here.
MOST_UNSENT = 1024

ANCILLARY_BYTES = 128
LINK_LOCAL = b"\xfe\x80"

# The kernel's words for "that source address is not mine (any more)": EINVAL for IPv6 and, in older
# kernels, IPv4; newer ones say ENETUNREACH for IPv4.
SOURCE_GONE = (errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL)


class BurstReceiver(Protocol):
    """What a :class:`UDPPort` talks to."""

    def burstReceived(self, buffer: bytes, size: int, endpoint: UDPEndpoint) -> None:
        """Datagrams of one sender, each ``size`` bytes, only the last may be shorter."""

    def turnEnded(self) -> None:
        """All bursts of this turn of the reactor were handed over: answer now."""

    def sendingPaused(self) -> None:
        """The socket is full: bring no more if it can wait."""

    def sendingResumed(self) -> None:
        """All that was held back is sent."""

    def udpConnectionLost(self, reason: Failure) -> None:
        """The socket is unusable; nothing more will come."""


@implementer(IReadDescriptor, IWriteDescriptor)
class UDPPort:
    """One non-blocking UDP socket, IPv6 with IPv4 mapped into it, never connected.

    Never connected, since an ICMP error on a connected one wakes epoll with an error alone and
    Twisted then drops the reader for good (FACTS 1.1).

    :param port: local port; 0 lets the kernel choose.
    :param protocol: gets the bursts.
    :param interface: the one local address to use; "" for all.
    :param reactor: the global one if None.
    :param system: ``socket(family, type)`` as in :mod:`socket`.
    :param pin_source: answer from the address a datagram was sent to. A hub has to, since its
        clients and their NATs know it by that address. A client should not: it may roam, and the
        kernel knows best which of its addresses leads to the hub now.

    :ivar counters: failures by errno name, and ``send_queue_full``, ``source_gone``,
        ``empty_datagram``, ``source_port_zero``.
    """

    _log = Logger()

    def __init__(
        self,
        port: int,
        protocol: BurstReceiver,
        interface: str = "",
        reactor: Any = None,
        system: Any = socket,
        pin_source: bool = True,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.port = port
        self.protocol = protocol
        self.interface = interface
        self.reading = False
        self.family: int = socket.AF_INET6
        self._pin_source = pin_source and not interface
        self._reactor = reactor
        self._system = system
        self._socket: Any = None
        self._fd = -1
        self._tally = Tally(f"UDP port {port}", self._log)
        self.counters = self._tally.counters
        self._unsent: list[Burst] = []
        self._lone_turns = 0
        self._lone_streak = 0
        self._pktinfo = PKTINFO[self.family]
        # The last sender: a run of its datagrams makes no new object.
        self._remote: SocketAddress | None = None
        self._ancillary: list[tuple[int, int, bytes]] = []
        self._endpoint: UDPEndpoint | None = None

    # Opening and closing

    def bind(self) -> None:
        """Open the socket; reading starts with :meth:`startReading`.

        :raises StartError: the port is in use, not allowed, or the address is not ours.
        """
        self._socket, self.family = open_udp_socket(
            self._system, self.interface, self.port, self._pin_source
        )
        self._pktinfo = PKTINFO[self.family]
        self._fd = self._socket.fileno()

    @property
    def localPort(self) -> int:
        """The bound port (the real one when 0 was asked for); 0 when closed."""
        return self._socket.getsockname()[1] if self._socket is not None else 0

    def startReading(self) -> None:
        """Take datagrams from now on; harmless twice."""
        if not self.reading and self._fd >= 0:
            self.reading = True
            self._reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave datagrams in the kernel's buffer; harmless twice."""
        if self.reading:
            self.reading = False
            self._reactor.removeReader(self)

    def close(self) -> None:
        """Stop, drop what is held back, close the socket; harmless twice."""
        if self._socket is None:
            return
        self.stopReading()
        if self._unsent:
            self._reactor.removeWriter(self)
            self._unsent = []
        sock, self._socket, self._fd = self._socket, None, -1
        sock.close()

    # Endpoints

    def endpoint(self, host: str, port: int) -> UDPEndpoint:
        """The endpoint of a numeric address, written as the kernel writes it in ``recvmsg``.

        :param host: IPv4 or IPv6 text; link-local IPv6 with ``%interface`` or ``%index``.
        :raises ValueError: not a numeric address, or IPv6 on an IPv4-only socket.
        """
        return UDPEndpoint(socket_address(host, port, self.family))

    def _endpoint_of(
        self, remote: SocketAddress, ancillary: list[tuple[int, int, bytes]]
    ) -> UDPEndpoint:
        """Remember the sender of the datagram just read."""
        local = b""
        for level, kind, data in ancillary:
            if (level, kind) != self._pktinfo:
                continue
            if level == socket.IPPROTO_IP:
                # in_pktinfo: interface, our address on it, the header's destination (unused back).
                local = bytes(4) + data[4:8] + bytes(4)
            elif data[:2] == LINK_LOCAL:
                local = data
            else:
                local = data[:16] + bytes(4)
        self._remote, self._ancillary = remote, ancillary
        self._endpoint = endpoint = UDPEndpoint(remote, local)
        return endpoint

    # Receiving

    def doRead(self) -> None:
        """One turn: drain within the bounds; datagrams of one sender and size go as one burst."""
        try:
            self._receive_turn()
        except Exception:
            # Anything that leaves doRead takes the reader out of the reactor for good.
            self._tally.bug("handling datagrams")
        try:
            self.protocol.turnEnded()
        except Exception:
            self._tally.bug("answering")

    def _receive_turn(self) -> None:
        """Read and deliver.

        Joining a run of equal datagrams costs a copy (0.1 us each) and saves a call into the core
        for each: what UDP_GRO will do in the kernel.
        """
        recvmsg = self._socket.recvmsg
        last_remote, last_ancillary, endpoint = self._remote, self._ancillary, self._endpoint
        run: list[bytes] = []
        size = count = 0
        room = TURN_BYTES
        only_one = False
        while count < TURN_DATAGRAMS and room > 0 and not only_one:
            try:
                data, ancillary, _, remote = recvmsg(DATAGRAM_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                self._lone_streak = min(2 * self._lone_streak + 1, MOST_LONE_TURNS)
                if count != 1:
                    self._lone_streak = 0
                self._lone_turns = self._lone_streak
                break
            except OSError as error:
                if self._socket is None:
                    return  # closed by what was delivered
                self._tally.error(error, "receive")
                count += 1
                continue
            count += 1
            length = len(data)
            room -= length
            if self._lone_turns and count == 1 and length <= SMALL_DATAGRAM_BYTES:
                self._lone_turns -= 1
                only_one = True
            if remote != last_remote or ancillary != last_ancillary or length > size:
                if run:
                    self._deliver(run, size, endpoint)
                    run = []
                if remote != last_remote or ancillary != last_ancillary:
                    endpoint = self._endpoint_of(remote, ancillary)
                    last_remote, last_ancillary = remote, ancillary
            if not length or not remote[1]:
                self._tally.add("source_port_zero" if length else "empty_datagram")
                continue
            if not run:
                size = length
            run.append(data)
            if length < size:
                self._deliver(run, size, endpoint)
                run = []
                size = 0
        if run:
            self._deliver(run, size, endpoint)

    def _deliver(self, run: list[bytes], size: int, endpoint: UDPEndpoint | None) -> None:
        assert endpoint is not None
        buffer = run[0] if len(run) == 1 else b"".join(run)
        try:
            self.protocol.burstReceived(buffer, size, endpoint)
        except Exception:
            self._tally.bug("handling a burst")

    # Sending

    def writeBursts(self, bursts: Sequence[Burst]) -> None:
        """Send in order, one ``sendmsg`` per datagram; never raises for what the network says.

        When the socket is full the rest waits here, the protocol hears ``sendingPaused`` once, and
        ``sendingResumed`` when the rest is sent. Other failures drop the datagram, counted.
        """
        if self._socket is None:
            self._tally.add("closed")
            return
        if self._unsent:
            self._hold(bursts)
            return
        self._unsent = rest = self._send(bursts)
        if rest:
            self._tally.add("EAGAIN")
            self._reactor.addWriter(self)
            self.protocol.sendingPaused()

    def doWrite(self) -> None:
        """The socket has room again."""
        if self._socket is None:
            return
        self._unsent = rest = self._send(self._unsent)
        if rest:
            return
        self._reactor.removeWriter(self)
        try:
            self.protocol.sendingResumed()
        except Exception:
            self._tally.bug("resuming")

    def _send(self, bursts: Sequence[Burst]) -> list[Burst]:
        """Send until the socket is full; what is left, in order."""
        sendmsg = self._socket.sendmsg
        level, kind = self._pktinfo
        for number, burst in enumerate(bursts):
            endpoint: UDPEndpoint = burst.endpoint  # type: ignore[assignment]
            remote, local = endpoint
            buffers = burst.buffers
            ancillary = ((level, kind, local),) if local else ()
            for start in range(0, len(buffers), 2):
                datagram = buffers[start : start + 2]
                try:
                    sendmsg(datagram, ancillary, 0, remote)
                except BlockingIOError:
                    return [burst._replace(buffers=buffers[start:]), *bursts[number + 1 :]]
                except OSError as error:
                    if not (local and error.errno in SOURCE_GONE):
                        self._tally.error(error, f"send to {endpoint}")
                    elif not self._send_from_anywhere(datagram, endpoint):
                        return [burst._replace(buffers=buffers[start:]), *bursts[number + 1 :]]
        return []

    def _send_from_anywhere(self, datagram: list[Any], endpoint: UDPEndpoint) -> bool:
        """The address we were asked at left this machine: better another one than silence.

        :returns: False if the socket is full.
        """
        try:
            self._socket.sendmsg(datagram, (), 0, endpoint.remote)
            self._tally.add("source_gone")
        except BlockingIOError:
            return False
        except OSError as error:
            self._tally.error(error, f"send to {endpoint}")
        return True

    def _hold(self, bursts: Sequence[Burst]) -> None:
        """Queue behind what waits already, within the bound."""
        held = sum(len(burst.buffers) for burst in self._unsent) // 2
        for burst in bursts:
            datagrams = len(burst.buffers) // 2
            if held + datagrams > MOST_UNSENT:
                self._tally.add("send_queue_full", datagrams)
                continue
            held += datagrams
            self._unsent.append(burst)

    # Descriptor

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return f"UDP port {self.port}"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gave the descriptor up, which an unconnected socket gives no cause for."""
        lost = self._socket is not None
        self.close()
        if lost:
            self._tally.add("connection_lost")
            self.protocol.udpConnectionLost(reason)
