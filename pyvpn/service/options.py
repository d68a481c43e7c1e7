"""What the options of both plugins do alike: check before twistd forks, fail with one line.

A usage error left to twistd prints the whole help first and ends with status 0 or 1 by version; an
error found after the fork reaches nobody (docs/architecture.rst, "Starting").
"""

from __future__ import annotations

import pwd
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from twisted.python import usage

from pyvpn.config import InstanceFiles
from pyvpn.control_client import listener_pid, running_pid
from pyvpn.errors import ConfigError, StartError, VPNError
from pyvpn.linux import preflight
from pyvpn.service.twistd import Process

EXIT_USAGE = 2
EXIT_FAILED = 1


class ServiceOptions(usage.Options):
    """Options of a plugin; subclasses name :attr:`command` and write :meth:`check`."""

    command = ""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        try:
            usage.Options.parseOptions(self, options)
        except usage.UsageError as error:
            self._leave(f"{error}; see: twistd {self.command} --help", EXIT_USAGE)

    def postOptions(self) -> None:
        try:
            self.check()
        except ConfigError as error:
            self._leave(str(error), EXIT_USAGE)
        except VPNError as error:
            self._leave(str(error), EXIT_FAILED)

    def check(self) -> None:
        """Check everything that can be checked without changing anything.

        :raises VPNError: one line that names the option or file, and the remedy.
        """
        raise NotImplementedError

    def warn(self, line: str) -> None:
        """Tell people something that does not keep the service from starting."""
        print(f"{self.command}: {line}", file=sys.stderr)

    def _leave(self, line: str, status: int) -> NoReturn:
        self.warn(line)
        sys.exit(status)

    # -- twistd around it ---------------------------------------------------------------------

    @property
    def daemon(self) -> bool:
        """Whether twistd will fork."""
        parent = self.parent
        return parent is not None and not (parent.get("nodaemon") or parent.get("debug"))

    def check_machine(self, tun: str, files: InstanceFiles) -> None:
        """Check what both need of Linux, the clearest reason first."""
        pid = listener_pid(files.socket)
        if pid is not None:
            raise StartError(f"it runs already (pid {pid}, it listens on {files.socket})")
        preflight.tun_available()
        preflight.privileged()
        preflight.tun_name_free(tun)

    def place_files(self, files: InstanceFiles) -> None:
        """Give this service its own pid file and log: two in one directory would share twistd's."""
        parent = self.parent
        if parent is None:
            return
        if parent.get("pidfile") == "twistd.pid":
            parent["pidfile"] = str(files.pid_file)
            _make_private(files.pid_file.parent)
            if running_pid(files.pid_file, self.command) is None:
                # Left by a killed process; twistd would refuse to start where another process has
                # that number by now.
                files.pid_file.unlink(missing_ok=True)
        if self.daemon and not parent.get("logfile") and not parent.get("logger"):
            parent["logfile"] = str(files.log)
            _make_private(files.log.parent)

    def process(self) -> Process | None:
        """Return the twistd process that will run the service, None outside twistd."""
        parent = self.parent
        if parent is None:
            return None
        return Process(
            self.command,
            daemon=self.daemon,
            pid_file=parent.get("pidfile"),
            log=parent.get("logfile"),
        )

    def owner(self) -> tuple[int, int] | None:
        """Return the user and group id that twistd will drop to."""
        parent = self.parent
        if parent is None or parent.get("uid") is None:
            return None
        uid = parent["uid"]
        gid = parent.get("gid")
        return int(uid), int(gid if gid is not None else pwd.getpwuid(int(uid)).pw_gid)


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make this directory: {error.strerror}; choose another", path=str(path)
        ) from None
    preflight.writable(path)
