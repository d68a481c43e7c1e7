"""The UNIX socket on which a running hub or client takes commands: a line of JSON in, one out.

The other end is :mod:`pyvpn.control_client`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from pyvpn.control_client import listener_pid
from pyvpn.errors import ConfigError, StartError, StoreError, VPNError

#: A request: the longest is a join link's worth of text.
MAX_LINE = 64 << 10

Run = Callable[[str, dict[str, Any]], "Deferred[dict[str, Any]] | dict[str, Any]"]


class _Conversation(LineOnlyReceiver):
    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE
    _log = Logger()

    def __init__(self, run: Run) -> None:
        self._run = run

    def lineReceived(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            command, arguments = request["command"], request.get("arguments", {})
            if not isinstance(command, str) or not isinstance(arguments, dict):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._reply({"ok": False, "error": "not a request", "kind": "other"})
            return
        done: Deferred[Any] = maybeDeferred(self._run, command, arguments)
        done.addCallbacks(lambda result: {"ok": True, "result": result}, self._refusal)
        done.addCallback(self._reply)

    def _refusal(self, failure: Failure) -> dict[str, Any]:
        error = failure.value
        if not isinstance(error, VPNError):
            self._log.failure("a command failed", failure=failure)
        kind = "other"
        if isinstance(error, ConfigError):
            kind = "config"
        elif isinstance(error, StoreError):
            kind = "store"
        return {"ok": False, "error": str(error) or repr(error), "kind": kind}

    def _reply(self, reply: dict[str, Any]) -> None:
        self.sendLine(json.dumps(reply).encode())


class ControlSocket:
    """Listens at a path, for the owner of the process only.

    :param path: at most 107 bytes.
    :param run: runs one command; may return a Deferred; raises VPNError for what people see.
    """

    def __init__(self, path: Path, run: Run, reactor: Any) -> None:
        self.path = path
        self._run = run
        self._reactor = reactor
        self._port: Any = None

    def listen(self) -> None:
        """Begin to listen; a socket that a killed process left behind is replaced.

        :raises StartError: somebody listens there already.
        """
        pid = listener_pid(self.path)
        if pid is not None:
            raise StartError(
                f"another one of this name runs already (pid {pid}, it listens on {self.path});"
                " stop it, or give this one its own --run-dir"
            )
        factory = Factory.forProtocol(lambda: _Conversation(self._run))
        factory.noisy = False
        self.path.unlink(missing_ok=True)
        self._port = self._reactor.listenUNIX(str(self.path), factory, mode=0o600)

    def close(self) -> Deferred[None] | None:
        """Stop listening and remove the socket."""
        port, self._port = self._port, None
        return port.stopListening() if port is not None else None
