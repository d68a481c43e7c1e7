"""What was done and how to undo it, last first; each undo is registered before its change."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure


class Undo:
    """A stack of undos. MultiService neither awaits its children nor undoes a failed start."""

    _log = Logger()

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def __bool__(self) -> bool:
        return bool(self._steps)

    def push(self, what: str, undo: Callable[[], object]) -> None:
        """Register how to undo what is about to be done; ``what`` is for the log."""
        self._steps.append((what, undo))

    def now(self) -> None:
        """Undo all at once, for a failed start: the reactor may not be running yet.

        No step needs the reactor before the service has begun to serve.
        """
        while self._steps:
            what, undo = self._steps.pop()
            done = maybeDeferred(undo)
            done.addErrback(self._failed, what)

    async def in_order(self) -> None:
        """Undo all, each after the one before it has finished."""
        while self._steps:
            what, undo = self._steps.pop()
            await maybeDeferred(undo).addErrback(self._failed, what)

    def _failed(self, failure: Failure, what: str) -> None:
        self._log.failure("undoing {what} failed", failure=failure, what=what)
