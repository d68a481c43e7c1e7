"""What follows when the networks around this machine are others than before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from pyvpn.tx.linkmonitor import NFTABLES, LinkMonitor

#: Seconds from the first change until the network is looked at: one comes with many others.
SETTLED = 0.5


class Settling:
    """Has the network looked at again a moment after it has changed.

    :param look_again: does what follows; its Deferred has lines of what was changed.
    :param note: gets these lines.
    """

    _log = Logger()

    def __init__(
        self,
        look_again: Callable[[], Deferred[list[str]]],
        note: Callable[[list[str]], None],
        reactor: Any,
    ) -> None:
        self._look_again = look_again
        self._note = note
        self._reactor = reactor
        self._soon: Any = None
        self._monitor: LinkMonitor | None = None

    def watch_firewall(self) -> None:
        """Look when nftables change, too: whoever empties them takes ours along."""
        try:
            self._monitor = LinkMonitor(self.changed, self._reactor, NFTABLES)
        except OSError as error:
            self._log.info(
                "whether others change nftables is not noticed: {reason}", reason=error.strerror
            )

    def changed(self) -> None:
        """Look soon."""
        if self._soon is None or not self._soon.active():
            self._soon = self._reactor.callLater(SETTLED, self.now)

    def now(self) -> None:
        """Look; what cannot be done is told, and all stays as it was."""
        done = self._look_again()
        done.addCallback(self._note)
        done.addErrback(lambda failure: self._log.error("{line}", line=failure.getErrorMessage()))

    def close(self) -> None:
        """Look no more; harmless twice."""
        if self._monitor is not None:
            self._monitor.close()
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
