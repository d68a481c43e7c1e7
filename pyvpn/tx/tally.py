"""Failures of system calls, counted by name and logged seldom."""

from __future__ import annotations

import errno
from collections.abc import Callable

from twisted.logger import Logger

from pyvpn.tx.timer import boottime

# One line per name in this time: a dead network fails every datagram, and no log may fill from it.
LOG_INTERVAL = 10.0


def errno_name(error: OSError) -> str:
    """``EIO`` and the like: the name under which a failure is counted."""
    return errno.errorcode.get(error.errno or 0, "unknown_errno")


class Tally:
    """Counts of what went wrong in one port.

    :ivar counters: name to count; names are errno names or ours in lower case. Anyone may read it.
    :param what: the port's name in log lines.
    :param clock: boottime seconds, for the distance between two lines of one name.
    """

    def __init__(self, what: str, log: Logger, clock: Callable[[], float] = boottime) -> None:
        self.counters: dict[str, int] = {}
        self._what = what
        self._log = log
        self._clock = clock
        self._logged: dict[str, float] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Count without a word in the log."""
        self.counters[name] = self.counters.get(name, 0) + amount

    def error(self, error: OSError, doing: str, amount: int = 1) -> None:
        """Count a failed system call under its errno name and log it unless that was just done.

        :param amount: how much was lost by it.
        """
        name = errno_name(error)
        self.add(name, amount)
        if self._due(name):
            self._log.warn(
                "{what}: {doing} failed: {reason} ({name}, {count} so far)",
                what=self._what,
                doing=doing,
                reason=error.strerror or str(error),
                name=name,
                count=self.counters[name],
            )

    def bug(self, doing: str) -> None:
        """Count and log the exception being handled: our own mistake, with its traceback."""
        self.add("exception")
        if self._due("exception"):
            self._log.failure("{what}: {doing} raised", what=self._what, doing=doing)

    def _due(self, name: str) -> bool:
        now = self._clock()
        if now - self._logged.get(name, -LOG_INTERVAL) < LOG_INTERVAL:
            return False
        self._logged[name] = now
        return True
