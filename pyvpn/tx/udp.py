"""The one UDP socket in the reactor: bursts in, bursts out, answers from the address asked."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from os import sched_yield
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pyvpn.core.burst import Buffer, Burst
from pyvpn.tx.endpoint import SocketAddress, UDPEndpoint
from pyvpn.tx.fairqueue import FairQueue
from pyvpn.tx.lonereads import LoneReads
from pyvpn.tx.tally import Tally
from pyvpn.tx.udpsender import UDPSender
from pyvpn.tx.udpsocket import (
    PKTINFO,
    SOL_UDP,
    UDP_GRO,
    BoundSocket,
    mark_socket,
    open_udp_socket,
    socket_address,
)

# One turn of the reactor reads and hands over no more than this, so that timers and the other port
# stay prompt; the rest waits in the queue for the next turn.
TURN_READS = 256
TURN_DATAGRAMS = 256
TURN_BYTES = 512 * 1024

# Nothing longer exists in UDP, and a read with GRO may need all of it.
READ_BYTES = 65_535

# A run this long is delivered at once: a full send on an IPv4 path of 1,500 bytes (44 × 1,472) is,
# so it is opened while in the cache. With 64 KiB, which two of them make, TCP in 4 flows is 5 %
# slower, from the hub 7 % (medians of three pairs of runs).
BULK_BYTES = 64_000

# Reads are put behind one another up to here: room for the run of one sender, a long one of the
# next, and any read.
LAST_START = 2 * BULK_BYTES
MEMORY_BYTES = LAST_START + READ_BYTES

# To be fair to many senders, all that the kernel holds is read before it is handed over. That
# costs a tenth of the throughput, in memory that is new and has left the cache again. So not when
# one sender has had this many reads to itself: a sixth of a second of TCP at full speed.
ALONE_READS = 1024

# Datagrams up to this long may come alone, see LoneReads; a longer one is bulk.
SMALL_DATAGRAM_BYTES = 544

# Held back while the socket is full, in datagrams. What arrives above it is dropped and counted.
# TUN reading is paused meanwhile, so only what was read before (two turns at most) and handshakes,
# keepalives and polls come here.
MOST_UNSENT = 1024

# in6_pktinfo (40 bytes as a control message) and the size of UDP_GRO (24).
ANCILLARY_BYTES = 128
# Plain numbers: an enum costs 1 us at each use.
INCOMPLETE = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
LINK_LOCAL = b"\xfe\x80"


class BurstReceiver(Protocol):
    """What a :class:`UDPPort` talks to."""

    def burstReceived(self, buffer: Buffer, size: int, endpoint: UDPEndpoint) -> None:
        """Datagrams of one sender, each ``size`` bytes, only the last may be shorter.

        ``buffer`` may be the port's own memory, good until this returns.
        """

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

    :ivar mark: the firewall mark of what we send (``SO_MARK``), 0 for none.
    :ivar gso: bursts are sent as one; False where the kernel does not know how.
    :ivar gro: the kernel may join what it receives.
    :ivar df: what we send is not fragmented, unless its burst allows it.
    :ivar counters: failures by errno name, and ``send_queue_full``, ``source_gone``,
        ``gso_refused`` (bursts that were sent datagram by datagram; why, as ``gso_EIO``),
        ``receive_queue_full``, ``empty_datagram``, ``source_port_zero``, ``truncated``,
        ``control_truncated``.
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
        self.mark = 0
        self.protocol = protocol
        self.interface = interface
        self.reading = False
        self.family = socket.AF_INET6
        self._pin_source = pin_source and not interface
        self._reactor = reactor
        self._system = system
        self._socket: Any = None
        self._fd = -1
        self._tally = Tally(f"UDP port {port}", self._log)
        self.counters = self._tally.counters
        self._unsent: list[Burst] = []
        self._lone = LoneReads()
        self._pktinfo = PKTINFO[self.family]
        self.gso = self.gro = self.df = False
        self._sender: UDPSender | None = None
        self._memory = memoryview(bytearray(MEMORY_BYTES))
        self._queue = FairQueue()
        self._next_turn: Any = None
        self._last_sender: UDPEndpoint | None = None
        self._reads_alone = 0
        # The last sender: a run of its datagrams makes no new object. And how its read was cut:
        # bytes a datagram, 0 if it was one.
        self._remote: SocketAddress | None = None
        self._ancillary: list[tuple[int, int, bytes]] = []
        self._endpoint: UDPEndpoint | None = None
        self._segment = 0

    # Opening and closing

    def bind(self) -> None:
        """Open the socket; reading starts with :meth:`startReading`.

        :raises StartError: the port is in use, not allowed, or the address is not ours.
        """
        self._take(self._open(self.port))

    def rebind(self, port: int) -> None:
        """Go on at another port: a new socket in the place of the old one, which is closed.

        What waits to be sent is sent from there. Not to be called by what a burst is delivered to.
        The core has to be told, since peers know us by the old port until they hear from the new.
        Before :meth:`bind` this only says which port that will take.

        :param port: local port; 0 lets the kernel choose one.
        :raises StartError: as :meth:`bind`; the old port is still open then.
        """
        if self._socket is None or port == self.localPort:
            self.port = port
            return
        bound = self._open(port)
        reading, unsent = self.reading, self._unsent
        self.stopReading()
        if unsent:
            self._reactor.removeWriter(self)
        old, self.port = self._socket, port
        self._take(bound)
        old.close()
        if reading:
            self.startReading()
        if unsent:
            self._reactor.addWriter(self)

    def set_mark(self, mark: int) -> None:
        """Mark what leaves from now on, for firewall and routing rules; kept by :meth:`rebind`.

        :param mark: 32 bits; 0 for none.
        :raises OSError: no privilege (CAP_NET_ADMIN); nothing has changed then.
        """
        if self._socket is not None:
            mark_socket(self._socket, mark)
        self.mark = mark

    def _open(self, port: int) -> BoundSocket:
        return open_udp_socket(self._system, self.interface, port, self._pin_source, self.mark)

    def _take(self, bound: BoundSocket) -> None:
        self._socket, self.family = bound.socket, bound.family
        self.gso, self.gro, self.df = bound.gso, bound.gro, bound.df
        self._sender = UDPSender(bound, self._tally)
        if not self.df:
            self._tally.add("df_refused")
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
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self._queue = FairQueue()
        sock, self._socket, self._sender, self._fd = self._socket, None, None, -1
        sock.close()

    # Endpoints

    def endpoint(self, host: str, port: int) -> UDPEndpoint:
        """The endpoint of a numeric address, written as the kernel writes it in ``recvmsg``.

        :param host: IPv4 or IPv6 text; link-local IPv6 with ``%interface`` or ``%index``.
        :raises ValueError: not a numeric address, or IPv6 on an IPv4-only socket.
        """
        return UDPEndpoint(socket_address(host, port, self.family))

    # Receiving

    def doRead(self) -> None:
        """One turn: take in what there is, hand over within the bounds, senders in turns."""
        try:
            self._receive_turn()
        except Exception:
            # Anything that leaves doRead takes the reader out of the reactor for good.
            self._tally.bug("handling datagrams")
        try:
            self.protocol.turnEnded()
        except Exception:
            self._tally.bug("answering")
        if self._reads_alone < ALONE_READS:
            # Others wait for the processor as well: the programs and the kernel's threads on the
            # way of somebody's ping. The p99 of a second client's round trip beside bulk is 4.3 ms
            # with this and 6.5 without; where nobody waits it costs 0.2 us.
            sched_yield()
        if self._queue and self._next_turn is None and self._socket is not None:
            self._next_turn = self._reactor.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._next_turn = None
        if self._socket is not None:
            self.doRead()

    def _receive_turn(self) -> None:
        if self._reads_alone >= ALONE_READS and not self._queue:
            self._receive_from_one()
        else:
            self._receive_from_many()

    def _look_at(
        self,
        length: int,
        ancillary: list[tuple[int, int, bytes]],
        flags: int,
        remote: SocketAddress,
    ) -> int:
        """Note who sent what was just read; how long its datagrams are, 0 if it is of no use."""
        if flags & INCOMPLETE or not length or not remote[1]:
            self._tally.add(_why_dropped(flags, length))
            return 0
        if remote != self._remote or ancillary != self._ancillary:
            self._note_sender(remote, ancillary)
        if self._endpoint is self._last_sender:
            self._reads_alone += 1
        else:
            self._last_sender = self._endpoint
            self._reads_alone = 0
        size = self._segment
        return size if 0 < size < length else length  # else one datagram, or a size that cannot be

    def _receive_from_many(self) -> None:
        """Read all that is there before the rest of it is handed over, senders in turns."""
        queue = self._queue
        reads = TURN_READS - self._take_in(TURN_READS, first=True)
        left, datagrams = TURN_BYTES, TURN_DATAGRAMS
        while left > 0 and datagrams > 0:
            burst = queue.take()
            if burst is None:
                break
            data, size, endpoint = burst
            self._deliver(data, size, endpoint)
            if self._socket is None:
                return  # closed by what was delivered
            left -= len(data)
            datagrams -= -(-len(data) // size)
            if len(data) >= BULK_BYTES // 2:
                reads -= self._take_in(reads)
            elif queue.octets >= BULK_BYTES // 2:
                # Somebody's few bytes amid another's bulk: the answer need not wait for all that.
                self.protocol.turnEnded()

    def _take_in(self, most: int, first: bool = False) -> int:
        """Read into the queue until nothing is there, ``most`` times; how many times it was."""
        recvmsg, put = self._socket.recvmsg, self._queue.put
        reads = 0
        while reads < most:
            try:
                data, ancillary, flags, remote = recvmsg(READ_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                if first:
                    self._lone.drained(reads)
                break
            except OSError as error:
                self._tally.error(error, "receive")
                reads += 1
                continue
            reads += 1
            length = len(data)
            size = self._look_at(length, ancillary, flags, remote)
            if not size:
                continue
            endpoint = self._endpoint
            assert endpoint is not None
            lost = put(data, size, endpoint)
            if lost:
                self._tally.add("receive_queue_full", lost)
            if first and reads == 1 and length <= SMALL_DATAGRAM_BYTES and self._lone.enough():
                break
        return reads

    def _receive_from_one(self) -> None:
        """Read and hand over at once, as long as one sender has the port to itself.

        Each read is put behind the one before it: datagrams of one sender and size that came in
        several reads are then a burst as they lie, and cost the core one call. A long burst is
        delivered at once and the next read starts at the front, which keeps that memory in cache.
        """
        recvmsg_into, memory = self._socket.recvmsg_into, self._memory
        # The run that waits is memory[start:used], datagrams of exactly `size` bytes.
        start = used = size = reads = count = 0
        endpoint: UDPEndpoint | None = None
        room = TURN_BYTES
        only_one = False
        while count < TURN_DATAGRAMS and room > 0 and not only_one:
            if used > LAST_START:
                self._deliver(memory[start:used], size, endpoint)
                start = used = 0
            try:
                got = recvmsg_into((memory[used:],), ANCILLARY_BYTES)
            except BlockingIOError:
                self._lone.drained(reads)
                break
            except OSError as error:
                if self._socket is None:
                    return  # closed by what was delivered
                self._tally.error(error, "receive")
                count += 1
                continue
            length, ancillary, flags, remote = got
            reads += 1
            room -= length
            each = self._look_at(length, ancillary, flags, remote)
            if not each:
                count += 1
                continue
            count += -(-length // each)
            if reads == 1 and length <= SMALL_DATAGRAM_BYTES:
                only_one = self._lone.enough()
            if (
                start == used
                or self._endpoint is not endpoint
                or not (each == size or each == length < size)
            ):
                if start < used:
                    self._deliver(memory[start:used], size, endpoint)
                start, size, endpoint = used, each, self._endpoint
            used += length
            if length % size or used - start >= BULK_BYTES:
                self._deliver(memory[start:used], size, endpoint)
                start = used = 0
        if start < used:
            self._deliver(memory[start:used], size, endpoint)

    def _note_sender(self, remote: SocketAddress, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Remember who sent what was just read, to which of our addresses, and cut how."""
        local, segment = b"", 0
        for level, kind, data in ancillary:
            if (level, kind) == (SOL_UDP, UDP_GRO):
                segment = int.from_bytes(data[:4], sys.byteorder, signed=True)
            elif (level, kind) != self._pktinfo:
                continue
            elif level == socket.IPPROTO_IP:
                # in_pktinfo: interface, our address on it, the header's destination (unused back).
                local = bytes(4) + data[4:8] + bytes(4)
            elif data[:2] == LINK_LOCAL:
                local = data
            else:
                local = data[:16] + bytes(4)
        self._remote, self._ancillary, self._segment = remote, ancillary, segment
        endpoint = UDPEndpoint(remote, local)
        if endpoint != self._endpoint:
            self._endpoint = endpoint

    def _deliver(self, run: Buffer, size: int, endpoint: UDPEndpoint | None) -> None:
        assert endpoint is not None
        try:
            self.protocol.burstReceived(run, size, endpoint)
        except Exception:
            self._tally.bug("handling a burst")

    # Sending

    def writeBursts(self, bursts: Sequence[Burst]) -> None:
        """Send in order, one system call per burst; never raises for what the network says.

        When the socket is full the rest waits here, the protocol hears ``sendingPaused`` once, and
        ``sendingResumed`` when the rest is sent. Other failures drop the datagram, counted.
        """
        sender = self._sender
        if sender is None:
            self._tally.add("closed")
            return
        if self._unsent:
            self._hold(bursts)
            return
        self._unsent = rest = sender.send(bursts)
        if rest:
            self._tally.add("EAGAIN")
            self._reactor.addWriter(self)
            self.protocol.sendingPaused()

    def doWrite(self) -> None:
        """The socket has room again."""
        sender = self._sender
        if sender is None:
            return
        self._unsent = rest = sender.send(self._unsent)
        if rest:
            return
        self._reactor.removeWriter(self)
        try:
            self.protocol.sendingResumed()
        except Exception:
            self._tally.bug("resuming")

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


def _why_dropped(flags: int, length: int) -> str:
    """The counter of what a read brought that is of no use."""
    if flags & INCOMPLETE:
        return "truncated" if flags & socket.MSG_TRUNC else "control_truncated"
    return "source_port_zero" if length else "empty_datagram"
