"""The two machines that the tests of the privileged child's logic run on: a fake and the kernel."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyvpn.linux.applied import AppliedState, repair_journal
from pyvpn.linux.desired import SystemState
from pyvpn.linux.journal import Journal
from pyvpn.linux.ledger import PROC_SYS, Ledger
from pyvpn.linux.plan import plan
from pyvpn.linux.system import Completed, LinuxSystem, System
from pyvpn.linux.tun import TUNDevice, open_tun
from pyvpn.testing.linux import FakeLinux
from tests.tx.namespace import Namespace


class Killed(BaseException):
    """The child was killed at this moment: no clean-up of its own may run on it."""


class FakeWorld:
    """A :class:`FakeLinux`."""

    def __init__(self) -> None:
        self.linux = FakeLinux()
        self.system: System = self.linux

    def add_tun(self, name: str) -> None:
        """A TUN interface appears."""
        self.linux.add_link(name)

    def remove_tun(self, name: str) -> None:
        """It disappears."""
        self.linux.remove_link(name)

    def ip(self, line: str) -> None:
        """Somebody else changes something."""
        done = self.linux.run(["ip", "-batch", "-"], line + "\n")
        assert done.code == 0, done

    def without_ipv6(self) -> None:
        """The administrator switches IPv6 off."""
        self.system.write(f"{PROC_SYS}/net/ipv6/conf/all/disable_ipv6", "1")

    def close(self) -> None:
        """The end of the world."""


class _Inside:
    """The real system, seen from a namespace; claims are the test's, as on the fake."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._real = LinuxSystem()

    def claim(self) -> str:
        return "boot:1:1"

    def alive(self, claim: str) -> bool:
        return claim == "boot:1:1"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._real, name)

        def call(*arguments: Any) -> Any:
            with self._namespace.inside():
                return method(*arguments)

        return call


class KernelWorld:
    """The kernel, in a namespace of its own.

    :raises SkipTest: no privilege (an OSError instead where PYVPN_REQUIRE_NETNS=1).
    """

    def __init__(self) -> None:
        self.namespace = Namespace()
        self.system: Any = _Inside(self.namespace)
        self._devices: dict[str, TUNDevice] = {}

    def add_tun(self, name: str) -> None:
        with self.namespace.inside():
            self._devices[name] = open_tun(name)

    def remove_tun(self, name: str) -> None:
        self._devices.pop(name).close()

    def ip(self, line: str) -> None:
        self.namespace.ip(line)

    def without_ipv6(self) -> None:
        self.system.write(f"{PROC_SYS}/net/ipv6/conf/all/disable_ipv6", "1")

    def close(self) -> None:
        for device in self._devices.values():
            device.close()
        self.namespace.close()


World = FakeWorld | KernelWorld


class Watched:
    """A system that tells of each change, and can be killed there.

    :param about_to: called with the text of the change (``ip`` lines, or ``key=value``).
    :param done: the same, after the change.
    """

    def __init__(
        self,
        system: System,
        about_to: Callable[[str], None],
        done: Callable[[str], None] = lambda change: None,
    ) -> None:
        self._system = system
        self._about_to = about_to
        self._done = done

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        if stdin:
            self._about_to(stdin)
        completed = self._system.run(argv, stdin)
        if stdin:
            self._done(stdin)
        return completed

    def write(self, path: str, text: str) -> None:
        change = f"{path.removeprefix(PROC_SYS + '/')}={text}"
        self._about_to(change)
        self._system.write(path, text)
        self._done(change)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)


class As:
    """The system as seen by another process: its own claim, and its own idea of who lives."""

    def __init__(self, system: System, claim: str, living: set[str]) -> None:
        self._system = system
        self._claim = claim
        self._living = living

    def claim(self) -> str:
        return self._claim

    def alive(self, claim: str) -> bool:
        return claim in self._living

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)


class Child:
    """The logic of one privileged child in this process, with files in a directory of its own.

    :param root: where /etc and /run are; without it there are none.
    """

    def __init__(
        self, system: Any, directory: str, name: str = "server", root: str | None = None
    ) -> None:
        self.system = system
        self.journal_path = os.path.join(directory, f"{name}.journal")
        self.ledger_directory = os.path.join(directory, "ledger")
        self.root = os.path.join(directory, "none") if root is None else root
        journal = Journal(self.journal_path, system.claim(), system.namespace())
        ledger = Ledger(self.ledger_directory, system)
        self.applied = AppliedState(system, journal, ledger, self.root)

    def apply(self, state: SystemState) -> list[str]:
        """As the child does it: check, plan, apply; what it did, and its notes."""
        steps, notes = plan(over_the_socket(state), self.system)
        return [*self.applied.apply(steps), *notes]

    def repaired_by(self, system: Any) -> list[str]:
        """Another process repairs what this one left; its lines."""
        return repair_journal(self.journal_path, system, self.ledger_directory, self.root)


def over_the_socket(state: SystemState) -> Any:
    """A state as the child reads it."""
    return json.loads(json.dumps(state.to_json()))


def own_directory(test: Any) -> str:
    """A directory for the length of a test."""
    # In memory, as /run is: journals are synced before each change.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = tempfile.TemporaryDirectory(prefix=f"pyvpn-{os.getpid()}-", dir=place)
    test.addCleanup(made.cleanup)
    return made.name


def files_in(directory: str) -> list[str]:
    """All files and directories below, sorted."""
    return sorted(str(path.relative_to(directory)) for path in Path(directory).rglob("*"))
