"""What we have made of a desired state so far: the difference is applied, all of it can be undone.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from pyvpn.linux.iplines import IPLines
from pyvpn.linux.journal import Journal, JournalError, JournalInUse, Record
from pyvpn.linux.ledger import Ledger
from pyvpn.linux.nfttables import NFTTables
from pyvpn.linux.resolution import Resolution
from pyvpn.linux.steps import (
    FirewallTable,
    KillSwitchSet,
    NameServersTaken,
    Step,
    Sysctl,
    UndoneStep,
    order,
    place,
    steps_to_drop,
)
from pyvpn.linux.sysctls import Sysctls
from pyvpn.linux.system import ChangeFailed, System, claim_pid
from pyvpn.linux.way import Way


class AppliedState:
    """The changes of one privileged child.

    :param journal: written before each change; its records are what there is to undo.
    :param root: the directory that /etc and /run are in, for name servers.
    """

    def __init__(self, system: System, journal: Journal, ledger: Ledger, root: str = "/") -> None:
        self._journal = journal
        self._refused: set[UndoneStep] = set()
        self._ip = IPLines(system, journal, self._refused)
        self._nft = NFTTables(system, journal, self._refused)
        self._sysctls = Sysctls(system, journal, ledger)
        self._resolution = Resolution(system, journal, self._ip.links, root)

    @property
    def journal(self) -> Journal:
        return self._journal

    def apply(self, wanted: Sequence[Step]) -> list[str]:
        """Make the system so; the same again changes nothing, an empty list takes all back.

        :returns: what was done, one line each, for the log.
        :raises ChangeFailed: a step failed; all that this call did is undone, but for the kill
            switch: that is made to outlast failures.
        :raises JournalError: nothing was changed since no undo could be registered.
        """
        log: list[str] = []
        for step in wanted:
            if isinstance(step, KillSwitchSet):
                log += self._nft.set_kill_switch(step.kill_switch)
        return log + self._change([step for step in wanted if not isinstance(step, KillSwitchSet)])

    def _change(self, wanted: Sequence[UndoneStep]) -> list[str]:
        for way in (self._ip, self._nft, self._sysctls, self._resolution):
            way.forget_lost()
        records = sorted(self._journal.records, key=lambda record: order(record.step))
        dropped = steps_to_drop([record.step for record in records], wanted)
        gone = set(dropped)
        stay = {id(record) for record in records if record.step not in gone}
        # Name servers are looked at by whoever sets them, since others like to set them, too.
        done = self._refused.union(
            record.step
            for record in records
            if id(record) in stay and not isinstance(record.step, NameServersTaken)
        )
        missing = [step for step in wanted if step not in done]
        if not dropped and not missing:
            return []
        try:
            return self._replace([r for r in records if r.step in gone], missing)
        except Exception as failure:
            made = [record for record in self._journal.records if id(record) not in stay]
            try:
                self._replace(made, dropped)
            except ChangeFailed as again:
                failure.add_note(f"and what was before could not be made again: {again}")
            raise

    def undo_all(self) -> list[str]:
        """Take everything back, whatever fails on the way, and remove the journal if nothing did.

        :returns: what was done, one line each.
        """
        try:
            log = self._undo(list(self._journal.records))
        except JournalError as error:
            log = [f"note: {error}"]
        if not self._journal.records:
            self._journal.remove()
        return log

    def _replace(self, records: Sequence[Record], steps: Sequence[UndoneStep]) -> list[str]:
        """Undo the one and make the other; what is only replaced is not gone for a moment."""
        kept = {place(step) for step in steps} - {None}
        log = self._undo([record for record in records if place(record.step) not in kept])
        for way, group in groupby(steps, key=self._way):
            log += way.make(list(group))
        return log

    def _undo(self, records: Sequence[Record]) -> list[str]:
        """Undo these, in the order opposite to that of making; what fails is said, not raised."""
        log: list[str] = []
        newest_first = sorted(records, key=lambda record: order(record.step))[::-1]
        for way, group in groupby(newest_first, key=lambda record: self._way(record.step)):
            log += way.undo(list(group))
        return log

    def _way(self, step: UndoneStep) -> Way:
        if isinstance(step, FirewallTable):
            return self._nft
        if isinstance(step, Sysctl):
            return self._sysctls
        return self._resolution if isinstance(step, NameServersTaken) else self._ip


def take_journal(
    path: str, system: System, ledger_directory: str, root: str = "/"
) -> tuple[AppliedState, list[str]]:
    """Begin with an empty journal in ``path``, after repairing what a dead owner left there.

    :returns: the state to apply to, and what was repaired, one line each.
    :raises JournalError: unreadable, not writable, or its owner is alive.
    """
    log = repair_journal(path, system, ledger_directory, root)
    journal = Journal(path, system.claim(), system.namespace())
    journal.save()
    return AppliedState(system, journal, Ledger(ledger_directory, system), root), log


def repair_journal(path: str, system: System, ledger_directory: str, root: str = "/") -> list[str]:
    """Undo what the dead owner of the journal in ``path`` left, and remove it.

    :returns: what was done, one line each; empty if there is no journal.
    :raises JournalError: unreadable, its owner is alive, or it belongs to another namespace.
    """
    journal = Journal.load(path)
    if journal is None:
        return []
    if system.alive(journal.claim):
        raise JournalInUse(
            f"{path} is in use by process {claim_pid(journal.claim)}; stop that one first"
        )
    if journal.namespace != system.namespace():
        if system.namespace_exists(journal.namespace):
            raise JournalError(
                f"{path} was left in another network namespace: run 'pyvpn cleanup' there,"
                " or remove the file"
            )
        Ledger(ledger_directory, system, journal.namespace).forget()
        journal.remove()
        return [f"{path} removed: the network namespace it belongs to is gone"]
    log = AppliedState(system, journal, Ledger(ledger_directory, system), root).undo_all()
    if journal.records:
        raise JournalError(f"{path} could not be undone: {'; '.join(log)}")
    return [*log, f"{path} removed: its process {claim_pid(journal.claim)} ended without undoing"]
