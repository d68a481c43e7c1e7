"""A network namespace that lives as long as a descriptor: no name, nothing to clean up after."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import SkipTest

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Namespace:
    """A fresh network namespace with its loopback up; sockets opened inside stay in it.

    :raises SkipTest: no privilege (an OSError instead where PYVPN_REQUIRE_NETNS=1).
    """

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_libc.unshare(CLONE_NEWNET))
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            _checked(_libc.setns(home, CLONE_NEWNET))
        except PermissionError as error:
            if os.environ.get("PYVPN_REQUIRE_NETNS") == "1":
                raise
            raise SkipTest("a network namespace needs root") from error
        finally:
            os.close(home)
        self.ip("link set lo up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in the namespace for the length of the block."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_libc.setns(self._fd, CLONE_NEWNET))
            try:
                yield
            finally:
                _checked(_libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)

    def run(self, line: str) -> str:
        """Run a command inside; what it printed."""
        with self.inside():
            done = subprocess.run(
                line.split(), check=False, capture_output=True, text=True, timeout=10
            )
        if done.returncode:
            raise AssertionError(f"{line}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, arguments: str) -> str:
        """Run ``ip`` inside."""
        return self.run(f"ip {arguments}")

    def path(self) -> str:
        """What ``ip link set … netns`` takes."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """Let go: the kernel removes it with the last socket in it."""
        os.close(self._fd)
