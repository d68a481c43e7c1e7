"""A ping that never stops, and how long it was without an answer."""

from __future__ import annotations

import re
from itertools import pairwise
from types import TracebackType

from tests.netns.lab import Lab
from tests.netns.processes import Process

INTERVAL = 0.02
#: So many answers before a change and after it.
STEADY = 10

ANSWER = re.compile(r"^\[(\d+\.\d+)\] \d+ bytes from .* icmp_seq=(\d+) ", re.MULTILINE)


class Pings:
    """Pings an address every 20 ms as long as the ``with`` lasts; answered when it begins."""

    def __init__(self, lab: Lab, host: str, address: str) -> None:
        argv = ["ping", "-n", "-D", "-i", str(INTERVAL), address]
        self._process: Process = lab.spawn(host, argv, "ping")

    def __enter__(self) -> Pings:
        self._more(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.popen.kill()
        self._process.popen.wait()

    def answers(self) -> list[float]:
        """When answers came, as the wall clock says."""
        return [float(found[1]) for found in ANSWER.finditer(self._process.text())]

    def longest_silence(self, seconds: float = 30.0) -> float:
        """Wait until answers come steadily again, ``seconds`` at most; the longest time between
        two of them.
        """
        self._more(len(self.answers()), seconds)
        answers = self.answers()
        return max(after - before for before, after in pairwise(answers))

    def _more(self, count: int, seconds: float = 30.0) -> None:
        """Wait for steady answers beyond the ``count`` that there are."""

        def enough() -> bool:
            answers = self.answers()
            recent = answers[-STEADY:]
            return len(answers) >= count + STEADY and recent[-1] - recent[0] < 2 * STEADY * INTERVAL

        self._process.wait_until(enough, f"answers to {self._process}", seconds)
