"""A TUN's name servers with systemd-resolved: resolvectl(1).

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvpn.linux import resolvfile
from pyvpn.linux.resolvfile import failed
from pyvpn.linux.system import ChangeFailed, System

if TYPE_CHECKING:
    from pyvpn.linux.nameservers import NameServers

_TAKEN = "/run/pyvpn-resolved-{}.json"
"""Domains taken from other links: gone with the next boot, as systemd-resolved's own memory is."""


def answers(system: System) -> bool:
    """Does systemd-resolved answer?"""
    return system.run(["resolvectl", "dns"], "").code == 0


class ResolvedLink:
    """What systemd-resolved keeps for our TUN, a :class:`pyvpn.linux.namerecords.Record`.

    It asks all links that name a domain, whatever else is set, and NetworkManager gives uplinks the
    domain of all names: the first answer wins, also a hostile network's. So while only our servers
    are to be asked, other links have no domains. systemd-networkd's links cannot be changed; then
    a line for the log says what is asked of whom.
    """

    def __init__(self, device: str, system: System, root: str) -> None:
        self._device = device
        self._system = system
        self._taken_path = resolvfile.below(root, _TAKEN.format(device))
        self._old: dict[str, list[str]] | None = None

    def put(self, wanted: NameServers) -> list[str]:
        # A domain is both: names get completed with it, and names in it are asked here.
        domains = [*(["~."] if wanted.exclusive else []), *wanted.search]
        values = {
            "dns": list(wanted.servers),
            "domain": domains,
            "default-route": ["yes" if wanted.exclusive else "no"],
        }
        self._old = {verb: self._kept(verb) for verb in values}
        lines = []
        if values != self._old:
            # All of them: a default route that nobody has set is told as if it were, and changes
            # by itself with the domains.
            lines = [self._run(verb, *(words or [""])) for verb, words in values.items()]
            # Wishes, for machines where DNSSEC or DNS over TLS is demanded of all: no signature
            # leads to the VPN's own domains, and the way to its servers is encrypted already.
            for wish in (["nta", *(wanted.search or [""])], ["dnsovertls", "no"]):
                self._system.run(["resolvectl", wish[0], self._device, *wish[1:]], "")
        return lines + (self._take_domains() if wanted.exclusive else self._give_domains())

    def remove(self) -> list[str]:
        lines = self._give_domains()
        try:
            return [*lines, self._run("revert")]
        except ChangeFailed as error:
            # With its interface systemd-resolved forgets a link.
            if "No such device" not in error.stderr:
                lines.append(f"name servers of {self._device} are left: {error.stderr}")
            return lines

    def restore(self) -> None:
        if self._old is None:
            return
        if "~." not in self._old["domain"]:
            self._give_domains()
        if not self._old["dns"] and not self._old["domain"]:
            self._system.run(["resolvectl", "revert", self._device], "")
            return
        for verb, values in self._old.items():
            self._system.run(["resolvectl", verb, self._device, *(values or [""])], "")

    def _take_domains(self) -> list[str]:
        theirs = {link: names for link, names in self._domains().items() if names}
        # Noted before it is done, and what is noted already stays.
        if theirs.keys() - {""}:
            noted = self._taken() | {link: names for link, names in theirs.items() if link}
            with open(self._taken_path, "w", encoding="utf-8") as stream:
                json.dump(noted, stream)
        lines = []
        for link, names in theirs.items():
            argv = ["resolvectl", "domain", link, ""]
            if link and self._system.run(argv, "").code == 0:
                lines.append(f"resolvectl domain {link} ''")
            else:
                lines.append(
                    f"systemd-resolved asks the name servers of {link or 'all links'} too, for "
                    f"names in {' '.join(names)}, and that cannot be changed"
                )
        return lines

    def _give_domains(self) -> list[str]:
        taken = self._taken()
        if not taken:
            return []
        now, lines = self._domains(), []
        if not now:  # no answer; it remembers them itself, and so must we
            return [f"systemd-resolved gives no answer: domains of {', '.join(taken)} are left"]
        for link, names in taken.items():
            # Unless it is gone, or has got others since.
            if now.get(link) == []:
                done = self._system.run(["resolvectl", "domain", link, *names], "")
                if done.code == 0:
                    lines.append(f"resolvectl domain {link} {' '.join(names)}")
                else:
                    lines.append(f"domains of {link} not given back: {' '.join(names)}")
        with suppress(OSError):
            os.unlink(self._taken_path)
        return lines

    def _taken(self) -> dict[str, list[str]]:
        try:
            with open(self._taken_path, encoding="utf-8") as stream:
                taken: dict[str, list[str]] = json.load(stream)
                return taken
        except (OSError, ValueError):
            return {}

    def _domains(self) -> dict[str, list[str]]:
        """The domains of all other links by name, with "" for those that are no link's."""
        domains = {}
        for line in self._system.run(["resolvectl", "domain"], "").stdout.splitlines():
            if found := re.match(r"(?:Global|Link \d+ \((.+?)\)):(.*)", line):
                domains[found[1] or ""] = found[2].split()
        domains.pop(self._device, None)
        return domains

    def _kept(self, verb: str) -> list[str]:
        done = self._system.run(["resolvectl", verb, self._device], "")
        return done.stdout.partition("):")[2].split() if done.code == 0 else []

    def _run(self, verb: str, *values: str) -> str:
        argv = ["resolvectl", verb, self._device, *values]
        done = self._system.run(argv, "")
        if done.code:
            said = " ".join(done.stderr.split())
            raise failed(f"'{' '.join(argv)}' failed: {said}", done.code)
        return " ".join(word or "''" for word in argv)
