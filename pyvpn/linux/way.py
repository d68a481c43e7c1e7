"""How steps are made and undone: what ip(8), nft(8), /proc/sys and name servers have in common.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pyvpn.linux.journal import Record


class Way(Protocol):
    """One way for steps of some kinds; it keeps their records in the journal."""

    def make(self, steps: Sequence[Any]) -> list[str]:
        """Make the steps, each registered before it is made.

        :returns: what was done, one line each, for the log.
        :raises ChangeFailed: one failed; what was registered may have been done.
        :raises JournalError: nothing was changed since no undo could be registered.
        """

    def undo(self, records: Sequence[Record]) -> list[str]:
        """Undo these in this order, and forget those of which nothing is left.

        :returns: what was done or why not, one line each; nothing is raised.
        """

    def forget_lost(self) -> None:
        """Forget what has gone without us, so that it is made again.

        :raises ChangeFailed: that could not be seen.
        """
