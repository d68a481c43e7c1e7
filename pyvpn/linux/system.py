"""The operating system as an argument: commands, /proc files and who is alive.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from typing import NamedTuple, Protocol

COMMAND_TIMEOUT = 8.0
"""Seconds one command may take: below the 10 s that the service waits for an answer."""

NOT_INSTALLED, TIMED_OUT = 127, 124
"""The statuses of a command that cannot run, and of one that was ended: those of sh and timeout."""

COMMAND_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""Nothing of the caller's environment reaches a command that runs as root."""

_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14


class Completed(NamedTuple):
    """How a command ended: exit status and what it wrote."""

    code: int
    stdout: str
    stderr: str


class ChangeFailed(Exception):
    """A command or a write failed.

    :ivar argv: the command, or ``sysctl KEY=VALUE``.
    :ivar code: its exit status, or the errno of the write.
    :ivar stderr: what it said.
    """

    def __init__(self, argv: Sequence[str], code: int, stderr: str) -> None:
        super().__init__(f"{' '.join(argv)}: {stderr}")
        self.argv = list(argv)
        self.code = code
        self.stderr = stderr


class System(Protocol):
    """What the child's logic needs; :class:`LinuxSystem`, or the fake of pyvpn.testing.linux."""

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        """Run a command to its end; one that cannot run is a status, never an exception."""

    def read(self, path: str) -> str:
        """The text of a /proc/sys file without its newline.

        :raises OSError: it does not exist or cannot be read.
        """

    def write(self, path: str, text: str) -> None:
        """Write one /proc/sys file.

        :raises OSError: it does not exist, or the kernel refuses.
        """

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; empty when there is none."""

    def claim(self) -> str:
        """A name for this process that no other one ever has: boot, process id and start time."""

    def alive(self, claim: str) -> bool:
        """Does the process that made ``claim`` still run?"""

    def namespace(self) -> str:
        """A name for our network namespace that is not used again before the next boot."""

    def namespace_exists(self, namespace: str) -> bool:
        """False only when that namespace is certainly gone, and all settings in it too."""


class LinuxSystem:
    """The real :class:`System`."""

    def run(self, argv: Sequence[str], stdin: str) -> Completed:
        try:
            done = subprocess.run(
                list(argv),
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                env=COMMAND_ENVIRONMENT,
                timeout=COMMAND_TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            return Completed(NOT_INSTALLED, "", f"{argv[0]} is not installed (package iproute2)")
        except OSError as error:
            return Completed(NOT_INSTALLED, "", str(error))
        except subprocess.TimeoutExpired:
            return Completed(TIMED_OUT, "", f"no end within {COMMAND_TIMEOUT:.0f} s")
        return Completed(done.returncode, done.stdout, done.stderr)

    def read(self, path: str) -> str:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read().rstrip("\n")

    def write(self, path: str, text: str) -> None:
        # One write() call and no truncation: the kernel takes a /proc/sys value as a whole.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode("ascii"))
        finally:
            os.close(descriptor)

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def claim(self) -> str:
        pid = os.getpid()
        return f"{_boot_id()}:{pid}:{_start_time(pid)}"

    def alive(self, claim: str) -> bool:
        boot, _, rest = claim.partition(":")
        pid, _, started = rest.partition(":")
        if boot != _boot_id() or not pid.isdecimal():
            return False
        # The start time tells the process from a later one with the same number.
        return started != "" and _start_time(int(pid)) == started

    def namespace(self) -> str:
        status = os.stat("/proc/self/ns/net")
        return f"{_boot_id()}:{status.st_ino}:{_namespace_cookie()}"

    def namespace_exists(self, namespace: str) -> bool:
        boot, _, rest = namespace.partition(":")
        inode = rest.partition(":")[0]
        if boot != _boot_id():
            return False
        places = [f"/proc/{name}/ns/net" for name in self.names("/proc") if name.isdecimal()]
        places += [f"/run/netns/{name}" for name in self.names("/run/netns")]
        for place in places:
            try:
                if str(os.stat(place).st_ino) == inode:
                    return True
            except OSError:
                continue
        return False


def claim_pid(claim: str) -> str:
    """The process id in a claim, for people."""
    return claim.split(":")[1] if claim.count(":") == 2 else "?"


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return "unknown"


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat (ticks since boot); "" for a process that has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
            # The command's name stands in brackets and may hold anything, so count from its end.
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _namespace_cookie() -> int:
    """The kernel's never reused number of our network namespace; 0 on kernels before 5.14."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            return int(
                struct.unpack("Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
            )
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            return 0
