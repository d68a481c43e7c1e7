"""Our tables of nftables: the one of a TUN, which goes with us, and the kill switch, which stays.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyvpn.linux import killswitch
from pyvpn.linux.firewall import (
    KILL_SWITCH_TABLE,
    ClientFirewall,
    Firewall,
    KillSwitch,
    kill_switch_script,
    removal,
    script,
)
from pyvpn.linux.journal import Journal, Record
from pyvpn.linux.steps import FirewallTable, UndoneStep, place
from pyvpn.linux.system import NOT_INSTALLED, TIMED_OUT, ChangeFailed, System

_NFT = ("nft", "-f", "-")


class NFTTables:
    """The :class:`~pyvpn.linux.way.Way` of tables of nftables.

    :param refused: what failed and can be done without, for all time to come; it is added to.
    """

    def __init__(self, system: System, journal: Journal, refused: set[UndoneStep]) -> None:
        self._system = system
        self._journal = journal
        self._refused = refused
        self._kill_switch: KillSwitch | None = None

    def forget_lost(self) -> None:
        """Whoever empties nftables (``nft flush ruleset`` in its service file) takes ours along."""
        ours = [r for r in self._journal.records if isinstance(r.step, FirewallTable)]
        if not ours:
            return
        done = self._system.run(("nft", "list", "tables"), "")
        if done.code == 0:  # or it does not tell, and the table may be there
            there = done.stdout.splitlines()
            self._journal.forget([r for r in ours if f"table inet {place(r.step)}" not in there])

    def make(self, steps: Sequence[FirewallTable]) -> list[str]:
        return [line for step in steps for line in self._make(step)]

    def _make(self, step: FirewallTable) -> list[str]:
        replaced = [
            r for r in self._journal.records if place(r.step) == step.place and r.step != step
        ]
        record = Record(step, {})
        if record not in self._journal.records:
            self._journal.register([record])
        try:
            line = _run(self._system, script(step.firewall), f"table inet {step.place} set")
        except ChangeFailed as failure:
            if failure.code != TIMED_OUT:
                self._journal.forget([record])  # all of a transaction or nothing
            if _is_needed(step.firewall):
                raise
            self._refused.add(step)
            return [
                *self.undo(replaced),
                f"note: going on without table inet {step.place}: {failure}",
            ]
        self._journal.forget(replaced)
        return [line]

    def undo(self, records: Sequence[Record]) -> list[str]:
        log = []
        for record in records:
            assert isinstance(record.step, FirewallTable)
            name = record.step.place
            try:
                text = removal(record.step.firewall)
                log.append(_run(self._system, text, f"table inet {name} removed"))
            except ChangeFailed as failure:
                log.append(f"note: table inet {name} is left: {failure}")
            else:
                self._journal.forget([record])
        return log

    def set_kill_switch(self, wanted: KillSwitch) -> list[str]:
        """Set it, or another one in its place if it is ours.

        :returns: what was done, for the log.
        :raises ChangeFailed: it is another one's, or nft failed.
        """
        found = killswitch.standing(self._system)
        if found not in (None, wanted.owner):
            raise ChangeFailed(
                ["set", "kill", "switch"],
                1,
                f"the kill switch of {found} stands on this machine, which has room for one;"
                " 'pyvpn cleanup --kill-switch' lifts it",
            )
        if found is not None and wanted == self._kill_switch:
            return []  # its counts go on
        line = _run(self._system, kill_switch_script(wanted), f"table inet {KILL_SWITCH_TABLE} set")
        self._kill_switch = wanted
        return [f"{line}: kill switch of {wanted.owner}"]


def _is_needed(firewall: Firewall) -> bool:
    """Would the VPN do something else than its owner asked for without it?

    What only keeps strangers off is worth a warning, but not the whole VPN on a small system.
    """
    if isinstance(firewall, ClientFirewall):
        return bool(firewall.shared)
    return firewall.internet or not firewall.client_to_client or bool(firewall.reachable)


def _run(system: System, text: str, what: str) -> str:
    """One transaction; the line for the log.

    :raises ChangeFailed: nothing of it was done.
    """
    done = system.run(_NFT, text)
    if done.code == NOT_INSTALLED:
        raise ChangeFailed(_NFT, done.code, "nft is not installed (package nftables)")
    if done.code:
        # Below what is wrong nft draws a line that points at it.
        said = re.sub(r"^[\s^~]+$", "", done.stderr, flags=re.MULTILINE)
        raise ChangeFailed(_NFT, done.code, " ".join(said.split()))
    return f"nft: {what}"
