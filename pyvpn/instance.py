"""A hub or client as a process: start it as a daemon, end it, find its log.

It is the ``twistd`` beside the interpreter that runs us, so that a second installation on the same
machine never mixes versions with it.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from pyvpn.config import InstanceFiles
from pyvpn.control_client import NoPrivilege, NotRunning, ask, listener_pid, running_pid
from pyvpn.errors import StartError, VPNError
from pyvpn.status import flat

START_TIMEOUT: Final = 60.0  # seconds: scrypt on a slow, busy machine, then the privileged child
ANSWER_TIMEOUT: Final = 10.0  # seconds from the daemon's birth to its control socket
STOP_TIMEOUT: Final = (
    20.0  # seconds: BYE, undoing Linux settings (bounded at 10), closing the store
)
TAIL_LINES: Final = 40


@frozen
class Instance:
    """``server`` or ``client-PROFILE`` on this machine.

    :ivar name: what people type: ``server`` or the profile's name.
    :ivar plugin: the ``twistd`` command.
    """

    name: str
    plugin: str
    files: InstanceFiles

    @classmethod
    def named(cls, name: str, run_dir: Path, state_dir: Path) -> Instance:
        """The hub for ``server``, else the client of that profile."""
        if name == "server":
            return cls(name, "pyvpn-server", InstanceFiles.of("server", run_dir, state_dir))
        files = InstanceFiles.of(f"client-{name}", run_dir, state_dir)
        return cls(name, "pyvpn-client", files)

    def pid(self) -> int | None:
        """The process that runs it: who listens on its socket, else who stands in its pid file."""
        listening = listener_pid(self.files.socket)
        if listening:
            return listening
        return running_pid(self.files.pid_file, self.plugin)

    def start(self, options: Sequence[str], password: str | None) -> int:
        """Start it as a daemon and wait until it answers.

        :param options: options of the ``twistd`` command.
        :param password: handed over through a pipe, so that no process list shows it.
        :returns: its process id.
        :raises StartError: with what the start said.
        """
        make_private(self.files.pid_file.parent)
        make_private(self.files.log.parent)
        self.files.pid_file.unlink(missing_ok=True)  # whoever stood in it is gone: pid() said so
        argv = [*twistd(), "--pidfile", str(self.files.pid_file)]
        argv += ["--logfile", str(self.files.log), self.plugin, *options]
        if password is not None:
            argv += ["--pw-file", "-"]
        try:
            done = subprocess.run(
                argv,
                input="" if password is None else password + "\n",
                capture_output=True,
                text=True,
                timeout=START_TIMEOUT,
                check=False,
                env={key: value for key, value in os.environ.items() if key != "PYVPN_PW"},
            )
        except subprocess.TimeoutExpired:
            raise StartError(f"no start within {START_TIMEOUT:g} s; {self.look()}") from None
        if done.returncode:
            raise StartError(
                reason(done.stderr) or reason(done.stdout) or f"no start; {self.look()}"
            )
        sys.stderr.write(done.stderr)  # warnings
        return self._answering()

    def _answering(self) -> int:
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while time.monotonic() < deadline and (pid := self.pid()) is not None:
            if listener_pid(self.files.socket) is not None:
                return pid
            time.sleep(0.05)
        raise StartError(self.last_words() or f"it started but does not answer; {self.look()}")

    def last_words(self) -> str | None:
        """Why it has ended by itself, as its log says; None if it runs on or says nothing."""
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while self.pid() is not None:  # it undoes its settings after it has stopped to answer
            if listener_pid(self.files.socket) is not None or time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        try:
            lines = self.log_tail()
        except VPNError:
            return None
        said = [line.partition("#critical] ")[2] for line in lines]
        return next((line for line in reversed(said) if line), None)

    def look(self) -> str:
        """Where to read more."""
        return f"see 'pyvpn logs {self.name}' ({self.files.log})"

    def status(self) -> dict[str, Any]:
        """What it says about itself."""
        return flat(ask(self.files.socket, "status"))

    def stop(self) -> int:
        """End it and wait until it has undone its settings.

        :returns: the process id that it had.
        :raises NotRunning: nothing to end.
        :raises VPNError: it is still there after 20 s.
        """
        pid = self.pid()
        if pid is None:
            raise NotRunning(f"{self.name} is not running")
        try:
            process = os.pidfd_open(pid)  # a pid may be used again, this descriptor stays with it
        except ProcessLookupError:
            return pid
        try:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if not select.select([process], [], [], STOP_TIMEOUT)[0]:
                raise VPNError(
                    f"{self.name} (pid {pid}) still runs {STOP_TIMEOUT:g} s after being asked to"
                    f" stop; {self.look()}"
                )
        except PermissionError:
            raise NoPrivilege(f"{self.name} (pid {pid}) is not yours; run it as root") from None
        except ProcessLookupError:
            pass
        finally:
            os.close(process)
        return pid

    def log_tail(self) -> list[str]:
        """The last lines of its log, without anything that could steer a terminal."""
        try:
            text = self.files.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            raise NotRunning(
                f"{self.files.log}: no log yet; start it with: pyvpn up {self.name}"
            ) from None
        except OSError as error:
            raise VPNError(f"{self.files.log}: cannot read it: {error.strerror}") from None
        return [_plain(line) for line in text.splitlines()[-TAIL_LINES:]]


def _plain(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in line)


def twistd() -> list[str]:
    """The command that starts the ``twistd`` of our own installation."""
    beside = Path(sys.executable).parent / "twistd"
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]


def make_private(path: Path) -> None:
    """Make a directory for its owner only, if it is not there.

    :raises StartError: naming the directory.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"{path}: cannot make this directory: {error.strerror}") from error


def reason(said: str) -> str:
    """The one line of a failed twistd that tells people why; "" if it said nothing."""
    if own := re.findall(r"^pyvpn-(?:server|client): (.+)$", said, re.MULTILINE):
        return str(own[-1])
    if found := re.search(r"An error has occurred: b?(['\"])(.*)\1", said):
        return found[2]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return re.sub(r"^\S*twistd: ", "", lines[-1]) if lines else ""
