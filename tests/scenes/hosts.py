"""The laboratory of the scenes: that of tests/netns with one host more, and a /run for each host.

::

      hub 198.51.100.2    kiwi 203.0.113.2    pa 192.0.2.2       plum 198.18.0.2
      2001:db8:1::2       2001:db8:2::2       2001:db8:3::2      2001:db8:4::2
         |                   |                   |                  |
      ===+===================+===================+==================+===
      inet: a router, which counts, translates addresses and forgets on demand

WireGuard's programs meet in /var/run/wireguard. Every host has a mount namespace of its own, kept
alive by a process that does nothing, with a tmpfs at /run: what a scene finds there is its own.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.netns.lab import HOSTS, INET, Host, Lab, LabError
from tests.netns.processes import Process, search_path

PLUM = Host("plum", "198.18.0.2", "198.18.0.1", "2001:db8:4::2", "2001:db8:4::1", "10.10.0.4")

#: A kernel with WireGuard in it would be taken by wg-quick before any program is: here it is told
#: that there is none. Beside a copy of wg-quick this is the "ip" that it finds first.
NO_KERNEL_WIREGUARD = """#!/bin/sh
case "$*" in
"link add "*" type wireguard") echo "in this laboratory the kernel has no WireGuard" >&2; exit 1 ;;
esac
exec {ip} "$@"
"""

HOLDER = """
set -e
mount -t tmpfs -o mode=755 none /run
[ ! -e /sys/module/wireguard ] || mount -t tmpfs none /sys/module
echo ready
exec sleep infinity
"""


class WireGuardLab(Lab):
    """The picture above, built on entry and removed on exit."""

    def __init__(self, venv: Path | None = None) -> None:
        super().__init__(venv)
        self.hosts = {host.name: host for host in (*HOSTS, PLUM)}
        self._holders: dict[str, Process] = {}

    def __enter__(self) -> WireGuardLab:
        super().__enter__()
        return self

    @property
    def wg_quick(self) -> Path:
        """Debian's wg-quick, word for word, that never uses the kernel's WireGuard."""
        return self.directory / "bin" / "wg-quick"

    def router(self, rules: str) -> None:
        """Give rules to the router's nft."""
        self.run(INET, ["nft", "-f", "-"], stdin=rules, check=True)

    def ip(self, host: str, *lines: str) -> None:
        """Change a host's network in one go."""
        self.run(host, ["ip", "-batch", "-"], stdin="\n".join(lines), check=True)

    def directories(self, host: str, *options: str) -> list[str]:
        """``--state-dir``, ``--run-dir`` and the like with the host's own directories."""
        return self._directories(host, *options)

    def _build(self) -> None:
        super()._build()
        for host in self.hosts:
            holder = self.spawn(host, ["/bin/sh", "-c", HOLDER], "holder")
            holder.wait_for_text("ready")
            self._holders[host] = holder
        place = self.wg_quick.parent
        place.mkdir()
        shutil.copy(program("wg-quick"), place)
        shim = place / "ip"
        shim.write_text(NO_KERNEL_WIREGUARD.format(ip=shlex.quote(program("ip"))))
        shim.chmod(0o755)

    def _enter(self, host: str, argv: Sequence[str | Path]) -> list[str]:
        words = super()._enter(host, argv)
        holder = self._holders.get(host)
        if holder is None:
            return words
        inside = ["nsenter", f"--target={holder.pid}", "--mount", "--net"]
        return [*inside, f"--wd={self._home(host)}", "--", *map(str, argv)]


def program(name: str) -> str:
    """Where a program is; :class:`LabError` if it is not."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise LabError(f"{name} is not there (make deps installs what the scenes need)")
    return str(Path(found).resolve())
