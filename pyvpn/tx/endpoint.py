"""Where a datagram came from, where the answer goes, and which of our addresses it leaves from."""

from __future__ import annotations

import socket
from typing import NamedTuple

V4_MAPPED = bytes(10) + b"\xff\xff"

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


class UDPEndpoint(NamedTuple):
    """The far end of a UDP path together with our own end of it.

    Two datagrams have equal endpoints when they came from one socket address to one of our
    addresses. To the core this is opaque but for :meth:`wire_address`, ``==`` and the hash.

    :ivar remote: the socket address as ``recvmsg`` gives it; IPv4 as ``::ffff:a.b.c.d`` unless the
        socket had to be an ``AF_INET`` one. Link-local addresses carry their scope in field 4.
    :ivar local: the packet-info control message that makes an answer leave from the address the
        datagram was sent to (20 bytes ``in6_pktinfo``; 12 bytes ``in_pktinfo`` on an ``AF_INET``
        socket). The interface index in it is 0, so that routing stays free to choose the way,
        except with a link-local address, which means nothing without its link. ``b""``: the kernel
        chooses.
    """

    remote: SocketAddress
    local: bytes = b""

    def wire_address(self) -> bytes:
        """18 bytes: the address (IPv4 v4-mapped), then the port as u16, little-endian (REPLY)."""
        host, port = self.remote[0], self.remote[1]
        if ":" in host:
            address = socket.inet_pton(socket.AF_INET6, host)
        else:
            address = V4_MAPPED + socket.inet_pton(socket.AF_INET, host)
        return address + port.to_bytes(2, "little")

    @property
    def host(self) -> str:
        """The remote address as people write it: IPv4 plain, link-local IPv6 with ``%scope``."""
        host = self.remote[0]
        if host.startswith("::ffff:") and "." in host:
            return host[7:]
        scope = self.remote[3] if len(self.remote) == 4 else 0
        return f"{host}%{scope}" if scope else host

    @property
    def port(self) -> int:
        """The remote port."""
        return self.remote[1]

    def __str__(self) -> str:
        host = self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
