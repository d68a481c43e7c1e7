"""Values below /proc/sys, in agreement with the others of this machine who need them.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyvpn.linux.journal import Journal, Record
from pyvpn.linux.ledger import Ledger, sysctl_path
from pyvpn.linux.steps import Sysctl
from pyvpn.linux.system import ChangeFailed, System


class Sysctls:
    """The :class:`~pyvpn.linux.way.Way` of sysctls."""

    def __init__(self, system: System, journal: Journal, ledger: Ledger) -> None:
        self._system = system
        self._journal = journal
        self._ledger = ledger

    def forget_lost(self) -> None:
        kept = []
        for record in self._journal.records:
            if not isinstance(record.step, Sysctl) or self._is(record.step):
                kept.append(record)
            else:
                self._ledger.release(record.step.key, self._journal.claim)
        self._journal.records = kept

    def _is(self, step: Sysctl) -> bool:
        try:
            return self._system.read(sysctl_path(step.key)) == step.value
        except OSError:
            return False

    def make(self, steps: Sequence[Sysctl]) -> list[str]:
        # All at once, since a record of what was not done yet is harmless: no claim, no release.
        self._journal.register([Record(step, {}) for step in steps])
        lines = [self._claim(step) for step in steps]
        return [line for line in lines if line is not None]

    def _claim(self, step: Sysctl) -> str | None:
        try:
            return self._ledger.claim(step.key, step.value, self._journal.claim)
        except OSError as error:
            raise ChangeFailed(
                ["sysctl", f"{step.key}={step.value}"],
                error.errno or 1,
                os.strerror(error.errno or 0),
            ) from error

    def undo(self, records: Sequence[Record]) -> list[str]:
        log, done = [], []
        for record in records:
            assert isinstance(record.step, Sysctl)
            try:
                line = self._ledger.release(record.step.key, self._journal.claim)
            except OSError as error:
                log.append(f"note: sysctl {record.step.key} not restored: {error.strerror}")
                continue
            if line is not None:
                log.append(line)
            done.append(record)
        self._journal.forget(done)
        return log
