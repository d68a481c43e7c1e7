"""The name servers of a TUN, among all that is made and undone.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence

from pyvpn.linux import nameservers
from pyvpn.linux.journal import Journal, Record
from pyvpn.linux.nameservers import NameServers
from pyvpn.linux.steps import Before, LinkInfo, NameServersTaken, place
from pyvpn.linux.system import ChangeFailed, System


class Resolution:
    """The :class:`~pyvpn.linux.way.Way` of name servers.

    :param links: all interfaces, by name.
    :param root: the directory that /etc and /run are in.
    """

    def __init__(
        self,
        system: System,
        journal: Journal,
        links: Callable[[], Mapping[str, LinkInfo]],
        root: str = "/",
    ) -> None:
        self._system = system
        self._journal = journal
        self._links = links
        self._root = root

    def forget_lost(self) -> None:
        """What was said of an interface goes with it where systemd-resolved has the say."""
        ours = [r for r in self._journal.records if isinstance(r.step, NameServersTaken)]
        if ours:
            links = self._links()
            self.undo([r for r in ours if _ifindex(_device(r), links) != r.before["ifindex"]])

    def make(self, steps: Sequence[NameServersTaken]) -> list[str]:
        return [line for step in steps for line in self._make(step)]

    def _make(self, step: NameServersTaken) -> list[str]:
        replaced = [r for r in self._journal.records if place(r.step) == step.place]
        # What was there before the first of them: what is there now is ours.
        record = Record(step, replaced[0].before if replaced else self._before(step.name_servers))
        added = [] if record in replaced else [record]
        self._journal.register(added)
        try:
            log = nameservers.take(
                step.name_servers, record.before["was"], self._system, self._root
            )
        except ChangeFailed:
            self._journal.forget(added)
            raise
        self._journal.forget([r for r in replaced if r != record])
        return log

    def undo(self, records: Sequence[Record]) -> list[str]:
        log = []
        for record in records:
            assert isinstance(record.step, NameServersTaken)
            wanted, was = record.step.name_servers, record.before["was"]
            try:
                log += nameservers.give_back(wanted, was, self._system, self._root)
            except (ChangeFailed, OSError) as error:
                log.append(f"note: name servers of {wanted.device} not given back: {error}")
            else:
                self._journal.forget([record])
        return log

    def _before(self, wanted: NameServers) -> Before:
        ifindex = _ifindex(wanted.device, self._links())
        if ifindex is None:
            raise ChangeFailed(_WHAT, errno.ENODEV, f"no interface {wanted.device}")
        try:
            was = nameservers.before(wanted, self._system, self._root)
        except OSError as error:
            raise ChangeFailed(_WHAT, error.errno or 1, os.strerror(error.errno or 0)) from error
        return {"ifindex": ifindex, "was": was}


_WHAT = ("set", "name", "servers")


def _device(record: Record) -> str:
    assert isinstance(record.step, NameServersTaken)
    return record.step.name_servers.device


def _ifindex(device: str, links: Mapping[str, LinkInfo]) -> int | None:
    return links.get(device, {}).get("ifindex")
