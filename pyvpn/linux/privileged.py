"""The privileged child: keeps root, changes Linux for the service, undoes all of it at the end.

Run as ``python -I -S privileged.py FD JOURNAL [LEDGER_DIRECTORY]``; FD is a stream socket with one
JSON object per line::

    → {"id": 1, "op": "apply", "state": {"links": […], "routes": […], …}}
    ← {"id": 1, "ok": true, "commands": ["ip link set dev leamit0 mtu 1416", "note: …"]}
    ← {"id": 1, "ok": false, "error": {"argv": ["ip", …], "code": 2, "stderr": "File exists"}}

It speaks first, with id 0: what it repaired of a crashed one before, or why it cannot begin. On
end of file (the service ended, however it ended) and on SIGTERM it undoes everything but a kill
switch, says so with ``"id": null``, removes the journal and exits. Standard library and our own
modules only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterable
from typing import Any

if __name__ == "__main__":
    # -I -S keep the caller's environment and site-packages' start-up hooks out of a root process;
    # our own package is found last, after the whole standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pyvpn.linux.applied import AppliedState, take_journal
from pyvpn.linux.journal import JournalError
from pyvpn.linux.ledger import LEDGER_DIRECTORY
from pyvpn.linux.plan import Refused, plan
from pyvpn.linux.steps import KillSwitchSet, Step
from pyvpn.linux.system import ChangeFailed, LinuxSystem, System

MAX_LINE = 1 << 20
"""Bytes of one request: bounds the memory of a root process."""


def answer(request: object, applied: AppliedState, system: System) -> dict[str, Any]:
    """Carry out one request and make its answer; nothing raises out of it."""
    number = request.get("id") if isinstance(request, dict) else None
    try:
        if not isinstance(request, dict) or set(request) != {"id", "op", "state"}:
            raise Refused("a request has the fields id, op, state")
        if request["op"] != "apply":
            raise Refused(f"there is no operation {request['op']!r}")
        steps, notes = plan(request["state"], system)
        _check_owner(steps, applied.journal.path)
        return {"id": number, "ok": True, "commands": [*applied.apply(steps), *notes]}
    except ChangeFailed as error:
        said = "; ".join([error.stderr, *getattr(error, "__notes__", ())])
        return _failure(number, error.argv, error.code, said)
    except (Refused, JournalError) as error:
        return _failure(number, ["privileged.py"], 22, str(error))
    except Exception as error:  # a bug of ours must not take the undo with it
        return _failure(number, ["privileged.py"], 70, f"{type(error).__name__}: {error}")


def _check_owner(steps: Iterable[Step], journal: str) -> None:
    """A service that was taken over does not get at another client's kill switch."""
    ours = os.path.basename(journal).removesuffix(".journal")
    for step in steps:
        if isinstance(step, KillSwitchSet) and step.kill_switch.owner != ours:
            raise Refused(f"the kill switch of {step.kill_switch.owner} is not that of {ours}")


def _failure(number: object, argv: list[str], code: int, stderr: str) -> dict[str, Any]:
    return {"id": number, "ok": False, "error": {"argv": argv, "code": code, "stderr": stderr}}


def serve(connection: socket.socket, applied: AppliedState, system: System) -> None:
    """Answer requests until end of file."""
    with connection.makefile("rb") as lines:
        while line := lines.readline(MAX_LINE):
            if not line.endswith(b"\n"):
                return  # cut off by the end of the service, or too long to be one of its requests
            try:
                request = json.loads(line)
            except (ValueError, RecursionError):
                request = None
            _send(connection, answer(request, applied, system))


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass  # the service is gone; end of file comes next


def _stop_reading(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # the service was faster


def main(arguments: list[str]) -> int:
    """The child's whole life. Exit status: 0 all undone, 1 could not begin, 3 not all undone."""
    # The terminal's Ctrl-C and hang-up go to the whole group; the service decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    connection = socket.socket(fileno=int(arguments[0]))
    # SIGTERM looks like the end of the service, but only between two requests.
    signal.signal(signal.SIGTERM, lambda *_: _stop_reading(connection))
    system = LinuxSystem()
    ledger_directory = arguments[2] if len(arguments) > 2 else LEDGER_DIRECTORY
    try:
        applied, repaired = take_journal(arguments[1], system, ledger_directory)
    except (JournalError, ChangeFailed, OSError) as error:
        _send(connection, _failure(0, ["privileged.py"], 1, str(error)))
        return 1
    try:
        _send(connection, {"id": 0, "ok": True, "commands": repaired})
        serve(connection, applied, system)
    finally:
        undone = applied.undo_all()
        _send(connection, {"id": None, "ok": not applied.journal.records, "commands": undone})
    return 3 if applied.journal.records else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
