"""Programs that the laboratory starts, and how it waits for them: on a condition, with a bound."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# How often a condition is looked at. Short, because the benchmarks wait on conditions as well.
PAUSE = 0.01


class LabError(Exception):
    """Something in the laboratory did not come about; the text says what, in which log."""


class WaitedTooLong(LabError):
    """A condition did not come about within its bound."""


def wait_until(condition: Callable[[], T | None], what: str, seconds: float = 10.0) -> T:
    """Look at `condition` until it is true; its value. :class:`WaitedTooLong` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise WaitedTooLong(f"waited {seconds:g} s in vain for: {what}")
        time.sleep(PAUSE)


class Process:
    """A program running in a namespace, with its log; it is ended by its own pid."""

    def __init__(
        self,
        host: str,
        argv: Sequence[str],
        popen: subprocess.Popen[bytes],
        log: Path,
        started: float,
    ) -> None:
        self.host = host
        self.argv = tuple(argv)
        self.popen = popen
        self.log = log
        #: time.monotonic() just before it was started
        self.started = started

    @property
    def pid(self) -> int:
        """The program's pid (``ip netns exec`` becomes the program; it leaves no parent)."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    def text(self) -> str:
        """All that it has printed so far, both streams."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 10.0) -> int:
        """Wait until it ends by itself; its exit status (-N: ended by signal N)."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self} still runs after {seconds:g} s{self._tail()}") from None

    def stop(self, how: int = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Ask it to end and wait until it has; its exit status. One that does not is killed,
        and that is an error."""
        if self.running:
            self.popen.send_signal(how)
            # A stopped process (a test's SIGSTOP) would never see the request.
            self.popen.send_signal(signal.SIGCONT)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            what = signal.Signals(how).name
            raise LabError(f"{self} ignored {what} for {seconds:g} s{self._tail()}") from None

    def wait_for_text(self, pattern: str, seconds: float = 10.0) -> re.Match[str]:
        """Wait until its output matches the regular expression `pattern`; the match."""
        expression = re.compile(pattern)
        return self.wait_until(
            lambda: expression.search(self.text()), f"{pattern!r} in its output", seconds
        )

    def wait_until(self, condition: Callable[[], T | None], what: str, seconds: float) -> T:
        """Wait until `condition` is true while this process runs; the condition's value."""

        def true_or_dead() -> T | None:
            running = self.running
            value = condition()
            if not value and not running:
                raise LabError(
                    f"{self} ended with status {self.popen.returncode} before: {what}{self._tail()}"
                )
            return value

        try:
            return wait_until(true_or_dead, what, seconds)
        except WaitedTooLong as late:
            raise LabError(f"{self}: {late}{self._tail()}") from None

    def __str__(self) -> str:
        shown = shlex.join(self.argv)
        return f"[{self.host}] {shown[:160]}{'…' if len(shown) > 160 else ''}"

    def _tail(self, lines: int = 15) -> str:
        end = self.text().splitlines()[-lines:]
        return "".join(f"\n    | {line}" for line in end)


def search_path() -> str:
    """PATH with the system directories that are not on everybody's."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
