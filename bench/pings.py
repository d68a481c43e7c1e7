"""Round-trip times by ping: all of them, so that the slow ones show."""

from __future__ import annotations

import re

from threehosts import ThreeHosts

from tests.netns.lab import LabError

#: What an answer that never came counts as, in µs: ping's own patience.
LOST = 1e6
#: Seconds between two pings, where they do not follow each other at once.
INTERVAL = 0.01


class Pings:
    """Pings at a steady pace, under way from its making on."""

    def __init__(self, lab: ThreeHosts, host: str, address: str, seconds: float) -> None:
        self._seconds = max(1, round(seconds))
        argv = ["ping", "-n", "-i", f"{INTERVAL}", "-w", f"{self._seconds}", address]
        self._process = lab.spawn(host, argv)

    def round_trips(self) -> list[float]:
        """Wait for the end; the round-trip times in µs, sorted, a lost ping as :data:`LOST`."""
        self._process.wait(self._seconds + 15)
        text = self._process.text()
        times = [float(found) * 1e3 for found in re.findall(r"time=([\d.]+) ms", text)]
        sent = re.search(r"(\d+) packets transmitted", text)
        if sent is None or not times:
            raise LabError(f"{self._process} had no answer")
        # The last one sent may still have been under way when ping ended.
        lost = max(0, int(sent[1]) - 1 - len(times))
        return sorted(times) + [LOST] * lost


def percentile(values: list[float], percent: float) -> float:
    """The value that so many percent of the sorted values do not exceed (nearest rank)."""
    rank = -(-len(values) * percent // 100)
    return values[max(0, int(rank) - 1)]


def flood(lab: ThreeHosts, host: str, address: str, seconds: float) -> float:
    """Ping as fast as answers come; the mean round-trip time in µs."""
    argv = ["ping", "-n", "-q", "-f", "-w", f"{max(1, round(seconds))}", address]
    done = lab.run(host, argv, seconds=seconds + 15)
    found = re.search(r"min/avg/max/mdev = [\d.]+/([\d.]+)/", done.stdout)
    if found is None:
        raise LabError(f"no answer from {address} to {host}")
    return float(found[1]) * 1e3
