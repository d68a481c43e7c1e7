"""Notice that the machine's network, or its nftables, have changed: the kernel tells by netlink."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

# linux/rtnetlink.h: RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE; and
# RTNLGRP_IPV6_RULE, which has no name of that kind.
ROUTING = (socket.NETLINK_ROUTE, 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000)

# linux/netlink.h: NETLINK_NETFILTER; linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES.
NFTABLES = (12, 1 << (7 - 1))


@implementer(IReadDescriptor)
class LinkMonitor:
    """Calls back when a link, an address, a route or a rule came, went or changed; or a table.

    What changed is not looked at: many messages make one call, and ours are among them.

    :param callback: called without arguments, once a turn of the reactor.
    :param what: :data:`ROUTING`, or :data:`NFTABLES`, which takes CAP_NET_ADMIN.
    :raises OSError: this kernel has no netlink for us.
    """

    _log = Logger()

    def __init__(
        self,
        callback: Callable[[], None],
        reactor: Any = None,
        what: tuple[int, int] = ROUTING,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._callback = callback
        self._reactor = reactor
        protocol, groups = what
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol
        )
        try:
            self._socket.bind((0, groups))
        except OSError:
            self._socket.close()
            raise
        self._reactor.addReader(self)

    def close(self) -> None:
        """Stop; harmless twice."""
        if self._socket.fileno() >= 0:
            self._reactor.removeReader(self)
            self._socket.close()

    def doRead(self) -> None:
        try:
            while self._socket.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # so many changes that the kernel gave up telling
                self._log.failure("cannot read what changed in the network")
        try:
            self._callback()
        except Exception:
            # Anything that leaves doRead takes the descriptor out of the reactor for good.
            self._log.failure("the link monitor's callback raised")

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "link monitor"

    def connectionLost(self, reason: Failure) -> None:
        self.close()
