"""What follows when the networks around this machine are others than before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

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
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
