"""The exception tree: everything that PyVPN raises on purpose derives from :class:`VPNError`.

``str()`` of each is one line fit to show to a person: what went wrong, where, and what helps.
"""

from __future__ import annotations

from collections.abc import Sequence


class VPNError(Exception):
    """Base of all errors of PyVPN."""


class ProtocolError(VPNError):
    """Something broke the rules of the protocol."""


class LocalProtocolError(ProtocolError):
    """Our own code (or code that embeds it) misused the protocol core: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something invalid: the facade counts it under ``reason`` and drops it.

    :param reason: the counter's name, lower_case_with_underscores.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ConfigError(VPNError):
    """A file, link or option for people is invalid.

    :param message: what is wrong and what would be right.
    :param path: the file or option it stands in, if any.
    :param line: 1-based line in that file, if known.
    :param key: ``table.key`` in that file, if known.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        where = str(path) if path is not None else ""
        if line is not None:
            where += f", line {line}"
        if key is not None:
            where += f", {key}" if where else key
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.path = path
        self.line = line
        self.key = key


class StoreError(VPNError):
    """The state directory or its database cannot be used as it is."""


class StartError(VPNError):
    """A service cannot start on this machine as it is: no privilege, no TUN, port in use."""


class CommandFailed(VPNError):
    """A system command ended with an error.

    :param argv: the command with its arguments.
    :param code: its exit status.
    :param stderr: what it said.
    """

    def __init__(self, argv: Sequence[str], code: int, stderr: str) -> None:
        said = " ".join(stderr.split()) or "it said nothing"
        super().__init__(f"'{' '.join(argv)}' failed with status {code}: {said}")
        self.argv = tuple(argv)
        self.code = code
        self.stderr = stderr


class PoolExhausted(VPNError):
    """No address is left to lease."""


class AddressTaken(VPNError):
    """The wanted address is outside the pool, reserved, or held by another user."""
