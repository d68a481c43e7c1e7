"""TUN devices and UDP sockets in memory.

One :class:`MemoryNetwork` is the internet. Each :class:`MemoryHost` on it has addresses and stands
in for the operating system: it is the ``system=`` of ``UDPPort`` and ``TUNPort``. The reactor of
:mod:`pyvpn.testing.reactor` serves them all on one virtual clock. The failures that the real kernel
shows (a full socket, no route, a lost source address) can be ordered by attribute.

The tests of the ports run on these and on the kernel; what only the kernel can show (link-local
scopes, the socket buffer) is tested there alone.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from pyvpn.core.burst import Buffer
from pyvpn.linux.tun import Offloads
from pyvpn.tx.endpoint import V4_MAPPED, SocketAddress
from pyvpn.tx.udpsocket import (
    IP_MTU_DISCOVER,
    IPV6_MTU_DISCOVER,
    PKTINFO,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    socket_address,
)

Address = IPv4Address | IPv6Address
AncillaryData = list[tuple[int, int, bytes]]

# As long as the kernel's default TUN queue.
TUN_QUEUE_FRAMES = 500
# 8 MiB of full datagrams.
SOCKET_QUEUE_DATAGRAMS = 4096
MOST_UDP_PAYLOAD = 65_507
# linux/udp.h: UDP_MAX_SEGMENTS, before kernel 6.9.
MOST_SEGMENTS = 64
# IP and UDP headers before a datagram's payload, by family.
HEADERS = {4: 28, 6: 48}
# IP_PMTUDISC_DO and _PROBE: a datagram that the interface cannot carry is refused; the rest has DF.
WHOLE = (2, 3)
GSO_UDP_L4 = 5
# Out of the way of real descriptors.
FIRST_FD = 1_000_000
FIRST_EPHEMERAL_PORT = 32_768


def system_error(code: int) -> OSError:
    """The exception that the ``os`` and ``socket`` modules raise for this errno."""
    return OSError(code, os.strerror(code))


class Datagram(NamedTuple):
    """One datagram on the wire.

    ``fragment``: it left without DF, so a link that is too narrow for it may cut it.
    """

    source: Address
    source_port: int
    destination: Address
    destination_port: int
    payload: bytes
    fragment: bool = False

    @property
    def size(self) -> int:
        """Bytes of the IP packet."""
        return len(self.payload) + HEADERS[self.destination.version]


class MemoryDescriptor:
    """Something with a descriptor number."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.closed = False
        self._fd = FIRST_FD + network.opened
        network.opened += 1
        network.descriptors[self._fd] = self

    def fileno(self) -> int:
        return -1 if self.closed else self._fd

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def broken(self) -> bool:
        """Whether epoll would report an error alone."""
        return False

    def close(self) -> None:
        self.closed = True
        self.network.descriptors.pop(self._fd, None)


class MemoryNetwork:
    """Carries datagrams between hosts at once and in order.

    :ivar passes: asked for each datagram; it is lost if any says False. Empty: nothing is lost.
    :ivar captured: every datagram sent, lost ones too, in order.
    """

    def __init__(self) -> None:
        self.passes: list[Callable[[Datagram], bool]] = []
        self.captured: list[Datagram] = []
        self.hosts: dict[Address, MemoryHost] = {}
        self.descriptors: dict[int, MemoryDescriptor] = {}
        self.opened = 0

    def carry(self, datagram: Datagram) -> None:
        """Bring a datagram to the socket it is for, or lose it as the internet does."""
        self.captured.append(datagram)
        if not all(passes(datagram) for passes in self.passes):
            return
        host = self.hosts.get(datagram.destination)
        target = host and host.listener(datagram.destination, datagram.destination_port)
        if target:
            target.arrived(datagram)


class MemoryHost:
    """One machine: the ``system=`` of the ports on it.

    :param addresses: the first of a family is the kernel's choice of source.
    :param ipv6: False: the kernel was started without IPv6.

    :ivar unreachable: numeric address to the errno that sending there draws.
    :ivar unknown: socket options, as (level, option), that this kernel does not have: UDP_SEGMENT
        before 4.18, UDP_GRO before 5.0. To be filled before a socket is opened.
    :ivar mtu: of its one interface, in bytes of IP packet.
    """

    def __init__(self, network: MemoryNetwork, addresses: Iterable[str], ipv6: bool = True) -> None:
        self.network = network
        self.ipv6 = ipv6
        self.unreachable: dict[str, int] = {}
        self.unknown: set[tuple[int, int]] = set()
        self.mtu = 65_535
        self.addresses: list[Address] = []
        self.sockets: list[MemorySocket] = []
        for address in addresses:
            self.add_address(address)

    def add_address(self, address: str) -> None:
        """Give the machine one more address."""
        self.addresses.append(ip_address(address))
        self.network.hosts[ip_address(address)] = self

    def remove_address(self, address: str) -> None:
        """Take an address away, as DHCP or a change of network does."""
        self.addresses.remove(ip_address(address))
        del self.network.hosts[ip_address(address)]

    def listener(self, address: Address, port: int) -> MemorySocket | None:
        """The socket that gets what is sent to this address and port."""
        for candidate in self.sockets:
            if candidate.port == port and candidate.bound in (None, address):
                return candidate
        return None

    # What the ports call

    def socket(self, family: int, type: int) -> MemorySocket:
        if family == socket.AF_INET6 and not self.ipv6:
            raise system_error(errno.EAFNOSUPPORT)
        return MemorySocket(self, family)

    def read(self, fd: int, size: int) -> bytes:
        return self._tun(fd).take()[:size]

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        return self._tun(fd).put(b"".join(buffers))

    def _tun(self, fd: int) -> MemoryTUN:
        device = self.network.descriptors.get(fd)
        if not isinstance(device, MemoryTUN):
            raise system_error(errno.EBADF)
        return device


class MemoryTUN(MemoryDescriptor):
    """A TUN device as ``open_tun`` gives it. The kernel's side is :meth:`inject` and ``written``.

    :ivar written: frames that came out of the tunnel: virtio header and packet, joined.
    :ivar refuse: errno for every write (5 EIO: the link is down); None: writes go through.
    :ivar read_errors: errnos that the next reads raise, one each.
    :ivar write_errors: errnos that the next writes raise, one each.
    :ivar offloads: as ``open_tun`` leaves them; without ``uso`` a write of a UDP super-packet draws
        EINVAL, as in kernels before 6.2.
    :ivar deleted: the device was deleted: reads fail, epoll reports an error.
    :ivar reads: calls of read so far, those that found nothing included.
    """

    def __init__(self, network: MemoryNetwork, name: str = "leamit0") -> None:
        super().__init__(network)
        self.name = name
        self.written: list[bytes] = []
        self.dropped = 0
        self.reads = 0
        self.refuse: int | None = None
        self.read_errors: deque[int] = deque()
        self.write_errors: deque[int] = deque()
        self.offloads = Offloads(csum=True, tso=True, uso=True)
        self.deleted = False
        self._queue: deque[bytes] = deque()

    def inject(self, packet: bytes, header: bytes = bytes(10)) -> None:
        """The kernel routes an IP packet into the tunnel."""
        if len(self._queue) < TUN_QUEUE_FRAMES:
            self._queue.append(header + packet)
        else:
            self.dropped += 1

    def take(self) -> bytes:
        self.reads += 1
        if self.deleted:
            raise system_error(errno.EBADFD)
        if self.read_errors:
            raise system_error(self.read_errors.popleft())
        if not self._queue:
            raise system_error(errno.EAGAIN)
        return self._queue.popleft()

    def put(self, frame: bytes) -> int:
        if self.deleted:
            raise system_error(errno.EBADFD)
        if self.refuse is not None:
            raise system_error(self.refuse)
        if self.write_errors:
            raise system_error(self.write_errors.popleft())
        if frame[1] == GSO_UDP_L4 and not self.offloads.uso:
            raise system_error(errno.EINVAL)
        self.written.append(frame)
        return len(frame)

    def readable(self) -> bool:
        return bool(self._queue)

    def broken(self) -> bool:
        return self.deleted


class MemorySocket(MemoryDescriptor):
    """A UDP socket.

    With UDP_GRO switched on a read brings as many equal datagrams of one sender as are there.

    :ivar room: datagrams it takes before it says EAGAIN; None: it never says so. As in the kernel,
        one send of many datagrams goes out whole while there is any room.
    :ivar refuse: errno for every send (101 ENETUNREACH, 1 EPERM); None: sends go through.
    :ivar refuse_segments: errno for every send of more than one datagram (5 EIO: the device has no
        checksum offload).
    :ivar send_errors: errnos that the next sends raise, one each; 0: that one goes through.
    :ivar receive_errors: errnos that the next reads raise, one each.
    :ivar option_errors: errnos that setting (level, option) draws from now on.
    :ivar options: what was set, by (level, option).
    :ivar sends: system calls that sent something.
    :ivar receives: reads so far, those that found nothing included.
    """

    def __init__(self, host: MemoryHost, family: int) -> None:
        super().__init__(host.network)
        self.host = host
        self.family = family
        self.port = 0
        self.bound: Address | None = None
        self.room: int | None = None
        self.refuse: int | None = None
        self.refuse_segments: int | None = None
        self.send_errors: deque[int] = deque()
        self.receive_errors: deque[int] = deque()
        self.option_errors: dict[tuple[int, int], int] = {}
        self.options: dict[tuple[int, int], int] = {}
        self.sends = 0
        self.receives = 0
        self.dropped = 0
        self._queue: deque[Datagram] = deque()

    def setblocking(self, flag: bool) -> None:
        if flag:
            raise ValueError("a memory socket cannot block")

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if (level, option) in self.option_errors:
            raise system_error(self.option_errors[level, option])
        if (level, option) in self.host.unknown:
            raise system_error(errno.ENOPROTOOPT)
        self.options[level, option] = value

    def bind(self, address: SocketAddress) -> None:
        wanted, port = _unmapped(address[0]), address[1]
        bound = None if wanted.is_unspecified else wanted
        if bound is not None and bound not in self.host.addresses:
            raise system_error(errno.EADDRNOTAVAIL)
        taken = {other.port for other in self.host.sockets if other.overlaps(bound)}
        if port in taken:
            raise system_error(errno.EADDRINUSE)
        while not port:
            candidate = FIRST_EPHEMERAL_PORT + self.network.opened
            self.network.opened += 1
            port = 0 if candidate in taken else candidate
        self.bound, self.port = bound, port
        self.host.sockets.append(self)

    def overlaps(self, address: Address | None) -> bool:
        return self.bound is None or address is None or self.bound == address

    def getsockname(self) -> SocketAddress:
        anything = "::" if self.family == socket.AF_INET6 else "0.0.0.0"
        return socket_address(str(self.bound or anything), self.port, self.family)

    def close(self) -> None:
        super().close()
        if self in self.host.sockets:
            self.host.sockets.remove(self)

    def readable(self) -> bool:
        return bool(self._queue or self.receive_errors)

    def writable(self) -> bool:
        return self.room is None or self.room > 0

    def arrived(self, datagram: Datagram) -> None:
        """The network delivers."""
        if len(self._queue) < SOCKET_QUEUE_DATAGRAMS:
            self._queue.append(datagram)
        else:
            self.dropped += 1

    def recvmsg(
        self, size: int, ancillary_size: int
    ) -> tuple[bytes, AncillaryData, int, SocketAddress]:
        memory = bytearray(size)
        length, ancillary, flags, remote = self.recvmsg_into([memory], ancillary_size)
        return bytes(memory[:length]), ancillary, flags, remote

    def recvmsg_into(
        self, buffers: Sequence[bytearray | memoryview], ancillary_size: int
    ) -> tuple[int, AncillaryData, int, SocketAddress]:
        self.receives += 1
        if self.closed:
            raise system_error(errno.EBADF)
        if self.receive_errors:
            raise system_error(self.receive_errors.popleft())
        if not self._queue:
            raise system_error(errno.EAGAIN)
        [memory] = buffers
        datagrams = self._take()
        first = datagrams[0]
        ancillary = self._ancillary(first, len(datagrams))
        flags = 0
        if sum(socket.CMSG_SPACE(len(data)) for _, _, data in ancillary) > ancillary_size:
            ancillary, flags = [], socket.MSG_CTRUNC
        payload = b"".join(datagram.payload for datagram in datagrams)
        if len(payload) > len(memory):
            payload, flags = payload[: len(memory)], flags | socket.MSG_TRUNC
        memory[: len(payload)] = payload
        remote = socket_address(str(first.source), first.source_port, self.family)
        return len(payload), ancillary, flags, remote

    def _take(self) -> list[Datagram]:
        """What one read brings: one datagram, or a run of equal ones, the last maybe shorter."""
        first = self._queue.popleft()
        run, total = [first], len(first.payload)
        if not self.options.get((SOL_UDP, UDP_GRO)) or not total:
            return run
        while self._queue and len(run) < MOST_SEGMENTS:
            following = self._queue[0]
            length = len(following.payload)
            if following[:4] != first[:4] or not 0 < length <= len(first.payload):
                break
            if len(run[-1].payload) < len(first.payload) or total + length > MOST_UDP_PAYLOAD:
                break
            run.append(self._queue.popleft())
            total += length
        return run

    def _ancillary(self, datagram: Datagram, count: int) -> AncillaryData:
        """The control messages of a read of so many datagrams."""
        family = socket.AddressFamily(self.family)
        ancillary: AncillaryData = []
        if count > 1:
            ancillary.append((SOL_UDP, UDP_GRO, struct.pack("=i", len(datagram.payload))))
        asked = (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)
        if self.options.get(asked if family == socket.AF_INET6 else PKTINFO[family]):
            ancillary.append(self._received_pktinfo(datagram.destination))
        return ancillary

    def _received_pktinfo(self, address: Address) -> tuple[int, int, bytes]:
        index = (2).to_bytes(4, "little")
        if self.family == socket.AF_INET:
            return (*PKTINFO[socket.AF_INET], index + address.packed + address.packed)
        mapped = address.packed if address.version == 6 else V4_MAPPED + address.packed
        return (*PKTINFO[socket.AF_INET6], mapped + index)

    def sendto(self, payload: Buffer, address: SocketAddress) -> int:
        return self.sendmsg([payload], (), 0, address)

    def sendmsg(
        self,
        buffers: Sequence[Buffer],
        ancillary: Sequence[tuple[int, int, bytes]],
        flags: int,
        address: SocketAddress,
    ) -> int:
        if self.closed:
            raise system_error(errno.EBADF)
        payload = b"".join(buffers)
        destination = _unmapped(address[0])
        source = self._source(destination, ancillary)
        pieces = self._cut(payload, ancillary)
        refuse = self._refusal(destination, len(pieces))
        if refuse:
            raise system_error(refuse)
        fragment = not self._whole(destination.version)
        datagrams = [
            Datagram(source, self.port, destination, address[1], piece, fragment)
            for piece in pieces
        ]
        for datagram in datagrams:
            # What it cuts into datagrams, the kernel does not cut into fragments as well.
            whole = not fragment or len(datagrams) > 1
            too_long = datagram.size > self.host.mtu and whole
            if len(datagram.payload) > MOST_UDP_PAYLOAD or too_long:
                raise system_error(errno.EMSGSIZE)
        if not self.writable():
            raise system_error(errno.EAGAIN)
        if self.room is not None:
            self.room = max(0, self.room - len(datagrams))
        if not self.port:
            raise ValueError("bind first")
        self.sends += 1
        for datagram in datagrams:
            self.network.carry(datagram)
        return len(payload)

    def _refusal(self, destination: Address, pieces: int) -> int | None:
        """The errno that was ordered for this send."""
        if self.send_errors:
            return self.send_errors.popleft()
        if pieces > 1 and self.refuse_segments:
            return self.refuse_segments
        return self.refuse or self.host.unreachable.get(str(destination))

    def _cut(self, payload: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> list[bytes]:
        """What UDP_SEGMENT makes of it; a kernel that does not know it sends one datagram."""
        for level, kind, data in ancillary:
            if (level, kind) != (SOL_UDP, UDP_SEGMENT) or (level, kind) in self.host.unknown:
                continue
            (size,) = struct.unpack("=H", data)
            if not size or len(payload) > min(size * MOST_SEGMENTS, MOST_UDP_PAYLOAD):
                raise system_error(errno.EINVAL if size else errno.EMSGSIZE)
            return [payload[start : start + size] for start in range(0, len(payload), size)]
        return [payload]

    def _whole(self, version: int) -> bool:
        """Whether datagrams of that family leave with DF (IPv6: are not cut here)."""
        if version == 4:
            return self.options.get((socket.IPPROTO_IP, IP_MTU_DISCOVER)) in WHOLE
        return self.options.get((socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)) in WHOLE

    def _source(self, destination: Address, ancillary: Sequence[tuple[int, int, bytes]]) -> Address:
        """What the kernel takes: the control message, else the bound address, else its choice."""
        for level, kind, data in ancillary:
            if level == SOL_UDP:
                continue
            if (level, kind) != PKTINFO[socket.AddressFamily(self.family)]:
                raise system_error(errno.EINVAL)
            packed = data[:16] if self.family == socket.AF_INET6 else data[4:8]
            wanted = _unmapped_packed(packed)
            if wanted not in self.host.addresses or wanted.version != destination.version:
                raise system_error(errno.EINVAL if wanted.version == 6 else errno.ENETUNREACH)
            return wanted
        if self.bound is not None:
            return self.bound
        for mine in self.host.addresses:
            if mine.version == destination.version:
                return mine
        raise system_error(errno.ENETUNREACH)


def _unmapped(text: str) -> Address:
    return _unmapped_packed(ip_address(text).packed)


def _unmapped_packed(packed: bytes) -> Address:
    address = ip_address(packed)
    return getattr(address, "ipv4_mapped", None) or address
