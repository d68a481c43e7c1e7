"""What we have made of a desired state so far: the difference is applied, all of it can be undone.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from pyvpn.linux.journal import Journal, JournalError, JournalInUse, Record
from pyvpn.linux.ledger import Ledger, sysctl_path
from pyvpn.linux.steps import LinkInfo, LinkStep, Step, SuperPackets, Sysctl, steps_to_drop
from pyvpn.linux.system import ChangeFailed, Completed, System, claim_pid

_FAILED_LINE = re.compile(r"^Command failed -:(\d+)$", re.MULTILINE)


class AppliedState:
    """The changes of one privileged child.

    :param journal: written before each change; its records are what there is to undo.
    """

    def __init__(self, system: System, journal: Journal, ledger: Ledger) -> None:
        self._system = system
        self._journal = journal
        self._ledger = ledger
        self._refused: set[Step] = set()

    @property
    def journal(self) -> Journal:
        return self._journal

    def apply(self, wanted: Sequence[Step]) -> list[str]:
        """Make the system so; the same again changes nothing, an empty list takes all back.

        :returns: what was done, one line each, for the log.
        :raises ChangeFailed: a step failed; all that this call did is undone.
        :raises JournalError: nothing was changed since no undo could be registered.
        """
        self._forget_lost(self._links())
        made = [record.step for record in self._journal.records]
        dropped = steps_to_drop(made, wanted)
        stay = [record for record in self._journal.records if record.step not in dropped]
        done = self._refused.union(record.step for record in stay)
        missing = [step for step in wanted if step not in done]
        if not dropped and not missing:
            return []
        log = self._undo([r for r in self._journal.records if r.step in dropped])
        try:
            log += self._make(missing)
        except Exception as failure:
            self._undo([r for r in self._journal.records if r not in stay])
            try:
                self._make(dropped)
            except ChangeFailed as again:
                failure.add_note(f"and what was before could not be made again: {again}")
            raise
        return log

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

    def _links(self) -> dict[str, LinkInfo]:
        argv = ["ip", "-json", "-details", "address", "show"]
        done = self._system.run(argv, "")
        if done.code != 0:
            raise ChangeFailed(argv, done.code, done.stderr.strip())
        return {entry["ifname"]: entry for entry in json.loads(done.stdout)}

    def _forget_lost(self, links: Mapping[str, LinkInfo]) -> None:
        """Drop what has gone without us (a TUN that was closed and made anew): to be made again."""
        kept = []
        for record in self._journal.records:
            if isinstance(record.step, Sysctl):
                if self._sysctl_is(record.step):
                    kept.append(record)
                else:
                    self._ledger.release(record.step.key, self._journal.claim)
            elif _link_of(record, links) is not None:
                kept.append(record)
        self._journal.records = kept

    def _sysctl_is(self, step: Sysctl) -> bool:
        try:
            return self._system.read(sysctl_path(step.key)) == step.value
        except OSError:
            return False

    def _make(self, steps: Sequence[Step]) -> list[str]:
        log: list[str] = []
        for _, group in groupby(steps, key=_making):
            some = list(group)
            must = [step for step in some if not isinstance(step, Sysctl | SuperPackets)]
            log += self._make_on_links(must)
            log += self._make_wishes([step for step in some if isinstance(step, SuperPackets)])
            log += self._make_sysctls([step for step in some if isinstance(step, Sysctl)])
        return log

    def _make_wishes(self, steps: Sequence[SuperPackets]) -> list[str]:
        """Make what may fail, each in a command of its own; what fails is told and not tried again.

        An ip(8) that does not know a word ends there, whatever lines follow in its batch.
        """
        log = []
        for step in steps:
            try:
                log += self._make_on_links([step])
            except ChangeFailed as failure:
                self._refused.add(step)
                self._forget([r for r in self._journal.records if r.step == step])
                log.append(f"note: going on without this: {failure}")
        return log

    def _make_sysctls(self, steps: Sequence[Sysctl]) -> list[str]:
        # All at once, since a record of what was not done yet is harmless: no claim, no release.
        self._register([Record(step, {}) for step in steps])
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

    def _make_on_links(self, steps: Sequence[LinkStep]) -> list[str]:
        if not steps:
            return []
        links = self._links()
        records = []
        for step in steps:
            link = links.get(step.device)
            if link is None:
                raise ChangeFailed(
                    ["ip", *step.do().split()], errno.ENODEV, f"no interface {step.device}"
                )
            # A hole in the service must not become a hole in eth0.
            if link.get("linkinfo", {}).get("info_kind") != "tun":
                raise ChangeFailed(
                    ["ip", *step.do().split()], errno.EPERM, f"{step.device} is not a TUN interface"
                )
            records.append(Record(step, step.before(link)))
        self._register(records)
        lines = [step.do() for step in steps]
        done = self._batch(lines)
        if done.code != 0:
            found = _FAILED_LINE.search(done.stderr)
            if found is None:  # not one line's fault; any of them may have been carried out
                raise ChangeFailed(["ip", "-batch", "-"], done.code, done.stderr.strip())
            number = int(found[1]) - 1
            self._forget(records[number:])
            said = _FAILED_LINE.sub("", done.stderr).strip()
            raise ChangeFailed(["ip", *lines[number].split()], done.code, said)
        return [f"ip {line}" for line in lines]

    def _undo(self, records: Sequence[Record]) -> list[str]:
        """Undo these (given oldest first), newest first; what fails is said, not raised."""
        log: list[str] = []
        for is_sysctl, group in groupby(reversed(records), key=lambda r: _is_sysctl(r.step)):
            undo = self._undo_sysctls if is_sysctl else self._undo_links
            log += undo(list(group))
        return log

    def _undo_sysctls(self, records: Sequence[Record]) -> list[str]:
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
        self._forget(done)
        return log

    def _undo_links(self, records: Sequence[Record]) -> list[str]:
        try:
            links = self._links()
        except ChangeFailed as error:
            return [f"note: not undone: {error}"]
        lines = []
        for record in records:
            link = _link_of(record, links)
            assert not isinstance(record.step, Sysctl)
            line = None if link is None else record.step.undo(record.before, link)
            if line is not None:
                lines.append(line)
        log = []
        if lines:
            done = self._batch(lines, "-force")
            if done.code in (124, 127):
                return [f"note: not undone: {done.stderr.strip()}"]
            failed = {int(number) - 1 for number in _FAILED_LINE.findall(done.stderr)}
            # A line that failed found its address or route gone already.
            log = [f"ip {line}" for number, line in enumerate(lines) if number not in failed]
        self._forget(records)
        return log

    def _batch(self, lines: Sequence[str], *options: str) -> Completed:
        return self._system.run(["ip", *options, "-batch", "-"], "\n".join(lines) + "\n")

    def _register(self, records: Sequence[Record]) -> None:
        if not records:
            return
        self._journal.records += records
        try:
            self._journal.save()
        except JournalError:
            del self._journal.records[-len(records) :]
            raise

    def _forget(self, records: Sequence[Record]) -> None:
        self._journal.records = [r for r in self._journal.records if r not in records]
        try:
            self._journal.save()
        except JournalError:
            pass  # the one on the disk names more than there is to undo, which does no harm


def take_journal(
    path: str, system: System, ledger_directory: str
) -> tuple[AppliedState, list[str]]:
    """Begin with an empty journal in ``path``, after repairing what a dead owner left there.

    :returns: the state to apply to, and what was repaired, one line each.
    :raises JournalError: unreadable, not writable, or its owner is alive.
    """
    log = repair_journal(path, system, ledger_directory)
    journal = Journal(path, system.claim(), system.namespace())
    journal.save()
    return AppliedState(system, journal, Ledger(ledger_directory, system)), log


def repair_journal(path: str, system: System, ledger_directory: str) -> list[str]:
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
    log = AppliedState(system, journal, Ledger(ledger_directory, system)).undo_all()
    if journal.records:
        raise JournalError(f"{path} could not be undone: {'; '.join(log)}")
    return [*log, f"{path} removed: its process {claim_pid(journal.claim)} ended without undoing"]


def _making(step: Step) -> str:
    """How a step is made: steps of one way that follow each other are made together."""
    return step.kind if isinstance(step, Sysctl | SuperPackets) else "link"


def _is_sysctl(step: Step) -> bool:
    return isinstance(step, Sysctl)


def _link_of(record: Record, links: Mapping[str, LinkInfo]) -> LinkInfo | None:
    """The interface that the change was made on; None if it, and not just its name, is gone."""
    assert not isinstance(record.step, Sysctl)
    link = links.get(record.step.device)
    return link if link is not None and link["ifindex"] == record.before["ifindex"] else None
