"""What processes have used: processor time and memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes, all their threads.

    What the kernel does for a datagram in a soft interrupt is charged to whoever runs then: mostly
    to the process that sent it, sometimes to a bystander, for every system alike.
    """
    total = 0
    for pid in pids:
        # The name in parentheses may have spaces: count from behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident(pids: Iterable[int]) -> float:
    """Resident memory of the processes in MiB; pages that they share count for each."""
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Rss:\s+(\d+) kB", rollup, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total / 1024
