"""How a service that runs under ``twistd`` tells people that it failed.

Left to itself twistd prints a traceback without a daemon, and as a daemon the first 100 bytes of
``repr()``; a failure after the start leaves the process up. So a failing start says one line on the
standard error stream that the command was started with, and ends the process with status 1.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

from twisted.logger import Logger

from pyvpn.errors import VPNError


class StartFailed(VPNError):
    """What a daemon's start ends with; twistd shows its beginning, less the name of a module."""

    # Of a built-in exception's name no module is shown: twistd passes 98 characters on.
    __module__ = "builtins"


class Process:
    """The twistd process around a service.

    :param command: ``pyvpn-server`` or ``pyvpn-client``.
    :param daemon: whether twistd will fork; standard error is kept for the child then.
    :param pid_file: twistd's; removed when the process ends by :meth:`exit`.
    """

    _log = Logger()

    def __init__(
        self, command: str, *, daemon: bool, pid_file: str | None, log: str | None
    ) -> None:
        self.command = command
        self._daemon = daemon
        self._pid_file = os.path.abspath(pid_file) if pid_file else None
        self._log_file = log
        #: Without a daemon and a log file the log is on the terminal, where say() writes too.
        self._log_elsewhere = daemon or log is not None
        # The daemon's own 0, 1 and 2 become /dev/null before anything can fail.
        self._stderr = os.dup(2) if daemon else 2

    def started(self) -> None:
        """Let go of the terminal: nothing is said there any more."""
        if self._daemon and self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1

    def say(self, line: str) -> None:
        """Write one line for people; to the log too."""
        if self._log_elsewhere:
            self._log.info("{line}", line=line)
        if self._stderr >= 0:
            with suppress(OSError):
                os.write(self._stderr, f"{self.command}: {line}\n".encode())

    def failed(self, error: Exception) -> NoReturn:
        """End a start that failed; all is undone already.

        A daemon raises, since its parent waits for twistd's report and hangs on SystemExit.
        """
        self.say(str(error))
        if self._daemon:
            raise StartFailed(f"see the line above; log: {self._log_file}") from None
        if self._pid_file is not None:
            with suppress(OSError):
                os.unlink(self._pid_file)
        sys.exit(1)

    def die(self, line: str, reactor: Any) -> None:
        """End a running process because of a failure: stop in order, then exit with status 1."""
        self._log.critical("{line}", line=line)
        if not self._daemon:
            self.say(line)
        reactor.addSystemEventTrigger("after", "shutdown", self._exit)
        reactor.stop()

    def _exit(self) -> None:
        if self._pid_file is not None:
            with suppress(OSError):
                os.unlink(self._pid_file)
        sys.stdout.flush()
        os._exit(1)
