"""One timer on CLOCK_BOOTTIME, which neither a step of the wall clock nor a suspend can fool.

``reactor.callLater`` follows the wall clock: set back an hour, it fires an hour late. A timerfd on
CLOCK_BOOTTIME is a descriptor like any other; it counts the time asleep and fires on waking.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME = os.O_NONBLOCK, os.O_CLOEXEC, 1
EXPIRATIONS_BYTES = 8


def boottime() -> float:
    """Seconds since boot, time asleep included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Itimerspec(ctypes.Structure):
    """``struct itimerspec``: the interval (0: fire once), then the first expiration."""

    _fields_ = [
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    ]


class LinuxTimerfd:
    """The three system calls; Python has them itself only since 3.13."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def create(self) -> int:
        """A new non-blocking timer descriptor on CLOCK_BOOTTIME, not inheritable."""
        return self._checked(
            self._libc.timerfd_create(time.CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC)
        )

    def settime(self, fd: int, nanoseconds: int) -> None:
        """Fire once at this absolute boottime; 0 disarms."""
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        spec = _Itimerspec(0, 0, seconds, rest)
        self._checked(self._libc.timerfd_settime(fd, TFD_TIMER_ABSTIME, ctypes.byref(spec), None))

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result


@implementer(IReadDescriptor)
class BoottimeTimer:
    """Calls back once at an absolute boottime.

    :param callback: called without arguments when the time has come; it may arm again.
    :param reactor: where the descriptor is read; the global one if None.
    """

    _log = Logger()

    def __init__(self, callback: Callable[[], None], reactor: Any = None) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._callback = callback
        self._reactor = reactor
        self._timerfd = LinuxTimerfd()
        self._fd = self._timerfd.create()
        self.armed: float | None = None
        self._reactor.addReader(self)

    def arm(self, when: float | None) -> None:
        """Fire at ``when``, absolute boottime seconds (at once if it is past); None disarms."""
        if self._fd < 0 or when == self.armed:
            return
        self.armed = when
        # 0 would disarm, so the past begins at 1 ns.
        self._timerfd.settime(self._fd, 0 if when is None else max(1, int(when * 1e9)))

    def close(self) -> None:
        """Disarm for good; harmless twice."""
        if self._fd >= 0:
            self._reactor.removeReader(self)
            fd, self._fd = self._fd, -1
            self.armed = None
            os.close(fd)

    def doRead(self) -> None:
        try:
            os.read(self._fd, EXPIRATIONS_BYTES)
        except BlockingIOError:
            return  # re-armed between the wake-up and this read
        self.armed = None
        try:
            self._callback()
        except Exception:
            # Anything that leaves doRead takes the descriptor out of the reactor for good.
            self._log.failure("the timer's callback raised")

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "timer"

    def connectionLost(self, reason: Failure) -> None:
        self.close()
