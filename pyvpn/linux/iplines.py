"""Links, addresses, routes and rules, by lines for ``ip -batch -``.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from pyvpn.linux.journal import Journal, Record
from pyvpn.linux.routing import lost
from pyvpn.linux.steps import (
    Before,
    IPStep,
    LinkInfo,
    LinkStep,
    PolicyRule,
    SuperPackets,
    UndoneStep,
    on_link,
)
from pyvpn.linux.system import NOT_INSTALLED, TIMED_OUT, ChangeFailed, Completed, System

_FAILED_LINE = re.compile(r"^Command failed -:(\d+)$", re.MULTILINE)


class IPLines:
    """The :class:`~pyvpn.linux.way.Way` of what ip(8) does.

    :param refused: what failed and can be done without, for all time to come; it is added to.
    """

    def __init__(self, system: System, journal: Journal, refused: set[UndoneStep]) -> None:
        self._system = system
        self._journal = journal
        self._refused = refused

    def links(self) -> dict[str, LinkInfo]:
        """All interfaces, by name.

        :raises ChangeFailed: ip(8) does not tell.
        """
        argv = ["ip", "-json", "-details", "address", "show"]
        done = self._system.run(argv, "")
        if done.code != 0:
            raise ChangeFailed(argv, done.code, done.stderr.strip())
        return {entry["ifname"]: entry for entry in json.loads(done.stdout)}

    def forget_lost(self) -> None:
        """A TUN that was closed and made anew has nothing of what its namesake had."""
        links = self.links()
        kept = [
            record
            for record in self._journal.records
            if not on_link(record.step) or is_on(record.step, record.before, links)
        ]
        gone = lost(self._system, (record.step for record in kept))
        self._journal.records = [record for record in kept if record.step not in gone]

    def make(self, steps: Sequence[IPStep]) -> list[str]:
        log: list[str] = []
        for (wish, options), group in groupby(steps, key=lambda s: (_is_wish(s), _options(s))):
            some = list(group)
            log += self._make_wishes(some) if wish else self._make(some, options)
        return log

    def _make_wishes(self, steps: Sequence[IPStep]) -> list[str]:
        """Make what may fail, each in a command of its own; what fails is told and not tried again.

        An ip(8) that does not know a word ends there, whatever lines follow in its batch.
        """
        log = []
        for step in steps:
            try:
                log += self._make([step], ())
            except ChangeFailed as failure:
                self._refused.add(step)
                self._journal.forget([r for r in self._journal.records if r.step == step])
                log.append(f"note: going on without this: {failure}")
        return log

    def _make(self, steps: Sequence[IPStep], options: Sequence[str]) -> list[str]:
        links = self.links() if any(on_link(step) for step in steps) else {}
        records = [Record(step, _before(step, links)) for step in steps]
        self._journal.register(records)
        lines = [step.do() for step in steps]
        done = self._batch(lines, options)
        if done.code != 0:
            found = _FAILED_LINE.search(done.stderr)
            if found is None:  # not one line's fault; any of them may have been carried out
                raise ChangeFailed(["ip", *options, "-batch", "-"], done.code, done.stderr.strip())
            number = int(found[1]) - 1
            self._journal.forget(records[number:])
            said = _FAILED_LINE.sub("", done.stderr).strip()
            raise ChangeFailed(["ip", *options, *lines[number].split()], done.code, said)
        return [" ".join(["ip", *options, line]) for line in lines]

    def undo(self, records: Sequence[Record]) -> list[str]:
        try:
            links = self.links()
        except ChangeFailed as error:
            return [f"note: not undone: {error}"]
        log: list[str] = []
        for options, group in groupby(records, key=lambda record: _options(record.step)):
            log += self._undo(list(group), options, links)
        return log

    def _undo(
        self, records: Sequence[Record], options: Sequence[str], links: Mapping[str, LinkInfo]
    ) -> list[str]:
        lines = [line for line in (_undoing(record, links) for record in records) if line]
        log = []
        if lines:
            done = self._batch(lines, ["-force", *options])
            if done.code in (TIMED_OUT, NOT_INSTALLED):
                return [f"note: not undone: {done.stderr.strip()}"]
            failed = {int(number) - 1 for number in _FAILED_LINE.findall(done.stderr)}
            # A line that failed found its address or route gone already.
            log = [
                " ".join(["ip", *options, line])
                for number, line in enumerate(lines)
                if number not in failed
            ]
        self._journal.forget(records)
        return log

    def _batch(self, lines: Sequence[str], options: Sequence[str]) -> Completed:
        return self._system.run(["ip", *options, "-batch", "-"], "\n".join(lines) + "\n")


def is_on(step: UndoneStep, before: Before, links: Mapping[str, LinkInfo]) -> bool:
    """Is the interface that the change was made on still there, and not just one of its name?"""
    assert isinstance(step, LinkStep)
    return links.get(step.device, {}).get("ifindex") == before["ifindex"]


def _is_wish(step: IPStep) -> bool:
    return isinstance(step, SuperPackets)


def _options(step: UndoneStep) -> tuple[str, ...]:
    # Without an address in it nothing else in the line says which family is meant.
    return ("-6",) if isinstance(step, PolicyRule) and step.family == 6 else ()


def _before(step: IPStep, links: Mapping[str, LinkInfo]) -> Before:
    """What to know for the undo.

    :raises ChangeFailed: the interface is not one of ours to change.
    """
    if isinstance(step, PolicyRule) or not on_link(step):
        return {}
    link = links.get(step.device)
    argv = ["ip", *step.do().split()]
    if link is None:
        raise ChangeFailed(argv, errno.ENODEV, f"no interface {step.device}")
    # A hole in the service must not become a hole in eth0.
    if link.get("linkinfo", {}).get("info_kind") != "tun":
        raise ChangeFailed(argv, errno.EPERM, f"{step.device} is not a TUN interface")
    return step.before(link)


def _undoing(record: Record, links: Mapping[str, LinkInfo]) -> str | None:
    """The line that undoes it, None if there is nothing left to undo."""
    step = record.step
    if isinstance(step, PolicyRule):
        return step.undo()
    assert isinstance(step, LinkStep)
    if not on_link(step):
        return step.undo(record.before, {})
    return (
        step.undo(record.before, links[step.device]) if is_on(step, record.before, links) else None
    )
