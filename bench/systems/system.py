"""One VPN (or none) in a laboratory of its own, from its start to its end."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from threehosts import HUB, A, C, ThreeHosts

from tests.netns.lab import LabError, Process

#: What ethtool calls the offloads that matter here, and how they are shown.
OFFLOADS = {
    "tx-checksum-ipv4": "csum",
    "tx-checksum-ip-generic": "csum",
    "tx-tcp-segmentation": "TSO4",
    "tx-tcp6-segmentation": "TSO6",
    "tx-udp-segmentation": "USO",
}


class Absent(Exception):
    """A system that cannot run here; the text says why, in one line."""


class Negotiated(NamedTuple):
    """What a running system says that it uses."""

    cipher: str
    mtu: int
    offloads: str
    version: str


class System:
    """Base of the systems: hosts ``a`` and ``c`` are clients, ``hub`` is the server.

    :ivar near: where the measured flows begin.
    :ivar far: where they end.
    :ivar clients: how many clients it has.
    :ivar ipv6: whether it carries IPv6.
    :ivar wire: whether what it puts on the cable are UDP datagrams of its own.
    """

    near = A
    far = HUB
    clients: tuple[str, ...] = (A, C)
    ipv6 = True
    wire = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.programs: list[Process] = []
        self._undo = ExitStack()
        self._lab: ThreeHosts | None = None

    @property
    def lab(self) -> ThreeHosts:
        """Its laboratory, while it runs."""
        if self._lab is None:
            raise LabError(f"{self.name} does not run")
        return self._lab

    @property
    def running(self) -> bool:
        """Whether it was started and all its programs still run."""
        return self._lab is not None and all(program.running for program in self.programs)

    def why_absent(self) -> str | None:
        """Why it cannot run here, without trying; None when it may."""
        return None

    def start(self) -> None:
        """Build its laboratory and start it; every client reaches the hub when this returns."""
        reason = self.why_absent()
        if reason is not None:
            raise Absent(reason)
        self._lab = self._undo.enter_context(ThreeHosts())
        try:
            self.bring_up()
            for client in self.clients:
                self._check_way(client)
        except BaseException:
            self.stop()
            raise

    def _check_way(self, client: str) -> None:
        """Nothing is measured that does not go through the interface of the system."""
        hub, own = self.address(HUB, client), self.interface(client)
        self.lab.wait_answer(client, hub)
        shown = self.lab.run(client, ["ip", "-json", "route", "get", hub], check=True)
        taken = json.loads(shown.stdout)[0]["dev"]
        if taken != own:
            raise LabError(f"{client} reaches {hub} by {taken}, not by {own}")

    def stop(self) -> None:
        """End it and remove its laboratory; harmless twice."""
        self._undo.close()
        self._lab = None
        self.programs.clear()

    def bring_up(self) -> None:
        """Start its programs in the laboratory; each system's own."""
        raise NotImplementedError

    def interface(self, host: str) -> str:
        """Its network interface on the host."""
        raise NotImplementedError

    def negotiated(self) -> Negotiated:
        """What the near end says that it uses."""
        raise NotImplementedError

    def address(self, host: str, seen_from: str, version: int = 4) -> str:
        """The address inside by which one host reaches another."""
        return self.lab.inner(host, self.interface(host), version)

    def processes(self, host: str | None = None) -> list[int]:
        """The pids of all its processes, children too; those of one host."""
        programs = [each for each in self.programs if host in (None, each.host)]
        return [pid for program in programs for pid in family(program.pid)]

    # -- what most of them tell of themselves in the same way ---------------------------------

    def link_mtu(self) -> int:
        """The MTU of the near end's interface."""
        shown = self.lab.run(
            self.near, ["ip", "-json", "link", "show", self.interface(self.near)], check=True
        )
        return int(json.loads(shown.stdout)[0]["mtu"])

    def link_offloads(self) -> str:
        """The offloads that the near end's interface takes from the kernel."""
        shown = self.lab.run(self.near, ["ethtool", "-k", self.interface(self.near)], check=True)
        found = []
        for line in shown.stdout.splitlines():
            name, _, state = line.strip().partition(": ")
            if name in OFFLOADS and state.startswith("on"):
                found.append(OFFLOADS[name])
        return " ".join(dict.fromkeys(found)) or "none"


def family(pid: int) -> list[int]:
    """A process and all below it, the oldest first."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found
