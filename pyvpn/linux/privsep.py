"""The service's side of the privileged child, and the repair after both were killed."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyvpn.errors import CommandFailed, StartError
from pyvpn.linux import nameservers, privileged
from pyvpn.linux.applied import repair_journal
from pyvpn.linux.desired import SystemState
from pyvpn.linux.journal import JournalError, JournalInUse
from pyvpn.linux.ledger import LEDGER_DIRECTORY
from pyvpn.linux.system import ChangeFailed, LinuxSystem, System

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for one answer, and for the undo at the end; normal is a few milliseconds."""


class Answer(NamedTuple):
    """What became of one request.

    :ivar number: of :meth:`PrivilegedChild.begin`.
    :ivar commands: each change as a line for the log, and lines that begin with ``note:``.
    :ivar error: the change that failed; the system is as it was before the request.
    """

    number: int | None
    commands: list[str]
    error: CommandFailed | None


class PrivilegedChild:
    """The one process that changes Linux for us.

    Start it after the service has become a daemon and before it gives up root. :meth:`start`,
    :meth:`apply` and :meth:`close` block, for at most :data:`ANSWER_TIMEOUT`. Who must not wait
    takes :meth:`begin`, :meth:`fileno` and :meth:`take_answers`, and minds the time.

    :param journal_path: its undo journal, ``RUN_DIR/server.journal``; the directory must exist.
    :param ledger_directory: where hubs of one machine agree about sysctls.
    :param prefix: words before the command, as ``("ip", "netns", "exec", NAME)``.
    """

    def __init__(
        self,
        journal_path: str | os.PathLike[str],
        ledger_directory: str = LEDGER_DIRECTORY,
        prefix: Sequence[str] = (),
    ) -> None:
        self.journal_path = os.path.abspath(journal_path)
        self._command = [*prefix, sys.executable, "-I", "-S", os.path.abspath(privileged.__file__)]
        self._ledger_directory = ledger_directory
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._received = b""
        self._last_id = 0

    @property
    def pid(self) -> int | None:
        """Its process id, None before the start and after the end."""
        return None if self._process is None else self._process.pid

    def start(self) -> list[str]:
        """Start it and wait until it is ready.

        :returns: lines about what it repaired of a crashed run before this one.
        :raises StartError: it cannot run, or its journal cannot be used.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        *self._command,
                        str(theirs.fileno()),
                        self.journal_path,
                        self._ledger_directory,
                    ],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise StartError(f"cannot start the privileged child: {error}") from error
        self._connection = ours
        try:
            ready = self._answer(0)
        except StartError:
            self.close()
            raise
        if not ready["ok"]:
            self.close()
            raise StartError(ready["error"]["stderr"])
        return list(ready["commands"])

    def apply(self, state: SystemState) -> list[str]:
        """Make Linux so, wholly or not at all; what only an earlier state named goes away.

        :returns: each change as a line for the log, and lines that begin with ``note:``.
        :raises CommandFailed: a change failed; the system is as it was before the call.
        :raises StartError: the child is gone or does not answer.
        """
        answer = _read(self._answer(self.begin(state)))
        if answer.error is not None:
            raise answer.error
        return answer.commands

    def begin(self, state: SystemState) -> int:
        """Ask for what :meth:`apply` does and do not wait for it.

        A request is a few KiB, and the socket takes 200 of them: with one at a time under way
        this does not block. Nor may :meth:`apply` be called meanwhile, which skips its answer.

        :returns: the number that the answer will have.
        :raises StartError: the child is gone.
        """
        if self._connection is None:
            raise StartError("the privileged child is not running")
        self._last_id += 1
        request = {"id": self._last_id, "op": "apply", "state": state.to_json()}
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise StartError(self._lost()) from error
        return self._last_id

    def fileno(self) -> int:
        """The descriptor that is readable when there are answers, or the child's end; -1: none."""
        return -1 if self._connection is None else self._connection.fileno()

    def take_answers(self) -> list[Answer]:
        """What has arrived by now, in order; never waits.

        :raises StartError: the child is gone.
        """
        if self._connection is None:
            raise StartError("the privileged child is not running")
        try:
            data = self._connection.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            raise StartError(self._lost())
        *lines, self._received = (self._received + data).split(b"\n")
        return [_read(json.loads(line)) for line in lines]

    def close(self) -> list[str]:
        """Let it undo everything and end. Harmless twice.

        :returns: what it undid, one line each; a line beginning with ``note:`` if it did not end.
        """
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if process is None or connection is None:
            return []
        with connection:
            try:
                connection.shutdown(socket.SHUT_WR)
                self._connection = connection
                undone = list(self._answer(None).get("commands", ()))
            except (OSError, StartError):
                undone = []
            finally:
                self._connection = None
        try:
            process.wait(ANSWER_TIMEOUT)
        except subprocess.TimeoutExpired:
            # Its journal stays: the next start or 'pyvpn cleanup' repairs.
            process.kill()
            process.wait()
            undone.append(f"note: the privileged child did not end; see {self.journal_path}")
        return undone

    def _answer(self, number: int | None) -> dict[str, Any]:
        """The answer with that id; answers to requests that we gave up are skipped."""
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                reply: dict[str, Any] = json.loads(line)
                if reply["id"] == number:
                    return reply
                continue
            self._receive(deadline)

    def _receive(self, deadline: float) -> None:
        assert self._connection is not None
        poll = select.poll()  # select.select cannot watch descriptors above 1023
        poll.register(self._connection, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise no_answer()
        try:
            data = self._connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            raise StartError(self._lost())
        self._received += data

    def _lost(self) -> str:
        return (
            f"the privileged child has ended; run 'pyvpn cleanup' if {self.journal_path} is there,"
            " then start again"
        )


def no_answer() -> StartError:
    """The error for a child that was waited for in vain."""
    return StartError(f"the privileged child gave no answer within {ANSWER_TIMEOUT:.0f} s")


def _read(reply: dict[str, Any]) -> Answer:
    if reply["ok"]:
        return Answer(reply["id"], list(reply["commands"]), None)
    failed = reply["error"]
    error = CommandFailed(failed["argv"], failed["code"], failed["stderr"])
    return Answer(reply["id"], [], error)


def cleanup(
    run_dir: str | os.PathLike[str],
    ledger_directory: str = LEDGER_DIRECTORY,
    system: System | None = None,
    root: str = "/",
) -> list[str]:
    """Undo what processes that were killed left behind, by their journals in ``run_dir``.

    After a power cut there are none any more, but /etc/resolv.conf tells of itself.

    :param root: the directory that /etc is in.
    :returns: one line for each thing that was done or could not be done; empty when all is clean.
    :raises StartError: no privilege to do it, or the directory cannot be read.
    """
    system = LinuxSystem() if system is None else system
    try:
        names = sorted(name for name in os.listdir(run_dir) if name.endswith(".journal"))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise StartError(f"cannot read {run_dir}: {error.strerror}; run it as root") from error
    log = []
    for name in names:
        path = os.path.join(os.path.abspath(run_dir), name)
        try:
            log += repair_journal(path, system, ledger_directory)
        except JournalInUse:
            continue
        except (JournalError, ChangeFailed) as error:
            log.append(f"note: {error}")
        except PermissionError as error:
            raise StartError(f"no privilege to repair from {path}; run it as root") from error
    return log + nameservers.repair(system, root)
