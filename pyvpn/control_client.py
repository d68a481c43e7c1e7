"""The asking side of a running hub's or client's control socket.

One request and one answer, each a line of JSON: ``{"command": str, "arguments": {...}}``, then
``{"ok": true, "result": {...}}``, or ``{"ok": false, "error": "one line", "kind": KIND}`` with KIND
``config``, ``store`` or ``other``. Blocking, standard library only, so that commands start fast.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final

from pyvpn.errors import ConfigError, StoreError, VPNError

TIMEOUT: Final = 15.0  # seconds: a hub whose disk is slow still answers a write within it
MAX_ANSWER: Final = 16 << 20  # bytes: far above the status of any hub, so that nothing fills memory

_ERRORS: Final = {"config": ConfigError, "store": StoreError}
_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class NotRunning(VPNError):
    """Nobody listens on the control socket: that hub or client is not running."""


class NoPrivilege(VPNError):
    """This user may not do that."""


def _connected(path: Path, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        raise NotRunning(f"nobody answers at {path}") from None
    except PermissionError:
        connection.close()
        raise NoPrivilege(f"{path} is not yours to use; run it as root") from None
    except OSError as error:
        connection.close()
        raise VPNError(f"cannot use {path}: {error.strerror or error}") from None
    return connection


def ask(
    path: Path, command: str, arguments: dict[str, Any] | None = None, timeout: float = TIMEOUT
) -> dict[str, Any]:
    """The result of one command.

    :raises NotRunning: nobody listens there.
    :raises NoPrivilege: the socket belongs to somebody else.
    :raises VPNError: what the other side refused (ConfigError, StoreError), or that it is silent.
    """
    request = json.dumps({"command": command, "arguments": arguments or {}}).encode() + b"\n"
    with _connected(path, timeout) as connection:
        try:
            connection.sendall(request)
            answer = _line(connection)
        except TimeoutError:
            raise VPNError(
                f"no answer from {path} within {timeout:g} s; look at its log: pyvpn logs"
            ) from None
        except OSError as error:
            raise VPNError(f"the talk at {path} broke off: {error.strerror or error}") from None
    try:
        reply = json.loads(answer)
        if reply["ok"]:
            return dict(reply["result"])
        error_class = _ERRORS.get(reply.get("kind"), VPNError)
        message = " ".join(str(reply["error"]).split())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise VPNError(f"the answer at {path} makes no sense; are both the same version?") from None
    raise error_class(message)


def _line(connection: socket.socket) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size < MAX_ANSWER:
        part = connection.recv(65536)
        parts.append(part)
        size += len(part)
        if not part or b"\n" in part:
            break
    return b"".join(parts)


def listener_pid(path: Path) -> int | None:
    """The process that listens on a control socket, told by the kernel; None if nobody does.

    The process is 0 when it lives where we cannot see it (another PID namespace).
    """
    try:
        with _connected(path, TIMEOUT) as connection:
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except NotRunning:
        return None
    pid: int = _UCRED.unpack(found)[0]
    return pid


def running_pid(pid_file: Path, plugin: str) -> int | None:
    """The process in a pid file, if it is alive and the one that wrote it.

    :param plugin: the ``twistd`` command that it runs; a later process of the same number does not.
    """
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # empty for a zombie
    except (OSError, ValueError):
        return None
    # Who was given another --pidfile by name is another instance.
    ours = os.fsencode(pid_file) in command or b"--pidfile" not in command
    return pid if plugin.encode() in command and ours else None
