"""How soon traffic flows again, asked and measured: ``sudo make bench``.

* a client's address changes (another one; IPv4 to IPv6 and back; a NAT's port), the hub loses an
  address: the longest time without an answer to a ping every 20 ms;
* the hub is down for 5 s with traffic flowing, stopped in order or by ``kill -9``: from the moment
  that it listens again to the first answer.

Medians of several runs, real processes in network namespaces on this machine. Exit status: 0 every
figure is met, 1 one is not, 2 nothing can be measured here.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures import heading, show

from tests.netns.lab import Lab, LabError, Process, Server, why_not
from tests.netns.pings import Pings
from tests.netns.test_life import restart

ASKED_ADDRESS = 1.0  # seconds, from the change to the first answer
ASKED_HUB = 10.0  # seconds, from when the hub listens again to the first answer
DOWN = 5.0  # seconds for which the hub is down
PAUSE = 5.0  # seconds: 3 challenges in so many
RUNS = 5
PASSWORD = "seven green apples"
BOTH_FAMILIES = "198.51.100.2:5050,[2001:db8:1::2]:5050"

#: Each pair is a change of Kiwi's network and the way back.
OTHER_ADDRESS = (
    (
        "address del 203.0.113.2/24 dev eth0",
        "address add 203.0.113.3/24 dev eth0",
        "route add default via 203.0.113.1",
    ),
    (
        "address del 203.0.113.3/24 dev eth0",
        "address add 203.0.113.2/24 dev eth0",
        "route add default via 203.0.113.1",
    ),
)
OTHER_FAMILY = (
    ("address del 203.0.113.2/24 dev eth0",),
    (
        "address add 203.0.113.2/24 dev eth0",
        "route add default via 203.0.113.1",
        "address del 2001:db8:2::2/64 dev eth0",
    ),
)
IPV6_AGAIN = ("address add 2001:db8:2::2/64 dev eth0", "-6 route replace default via 2001:db8:2::1")


def show_times(what: str, asked: float, times: list[float]) -> bool:
    median = statistics.median(times)
    spread = f"{median:.2f} s ({min(times):.2f}–{max(times):.2f})"
    return show(what, f"≤ {asked:g} s", spread, median <= asked)


def change(lab: Lab, *lines: str) -> None:
    """Change Kiwi's network in one go."""
    for line in lines:
        lab.run("kiwi", ["ip", *line.split()], check=True)


def silence(lab: Lab, act: Callable[[], None]) -> float:
    """The longest time without an answer from Kiwi to the hub's pings around ``act()``.

    Not sooner after the one before than anybody is challenged again.
    """
    begun = time.monotonic()
    lab.wait_until(lambda: time.monotonic() - begun >= PAUSE, "the time to be over", 2 * PAUSE)
    with Pings(lab, "hub", "10.10.0.2") as pings:
        act()
        return pings.longest_silence()


def addresses(lab: Lab) -> bool:
    """Kiwi wanders: two rows, each with all changes of a kind."""
    moved, family = [], []
    for _ in range(RUNS):
        for lines in OTHER_ADDRESS:
            moved.append(silence(lab, lambda lines=lines: change(lab, *lines)))  # type: ignore[misc]
        for lines in OTHER_FAMILY:
            family.append(silence(lab, lambda lines=lines: change(lab, *lines)))  # type: ignore[misc]
        change(lab, *IPV6_AGAIN)
    met = show_times("client address change → traffic again, median", ASKED_ADDRESS, moved)
    return show_times("IPv4 ↔ IPv6 → traffic again, median", ASKED_ADDRESS, family) and met


def hub_down(lab: Lab, hub: Server, process: Process, how: signal.Signals) -> tuple[float, Process]:
    """End the hub, start it so that it is back after `DOWN`; seconds from then to an answer."""
    with Pings(lab, "kiwi", "10.10.0.1") as pings:
        down = time.monotonic()
        os.kill(process.pid, how)
        process.wait(15)
        before = len(pings.answers())
        # The start takes a moment, too, and the hub is to listen again when the 5 s are over.
        lab.wait_until(lambda: time.monotonic() - down >= DOWN - 1, "the time to be over", DOWN)
        process = restart(lab, hub)
        up = time.monotonic()
        lab.wait_until(lambda: len(pings.answers()) > before, "an answer", 60)
        return time.monotonic() - up, process


def main() -> int:
    reason = why_not()
    if reason is not None:
        print(f"nothing can be measured here: {reason}", file=sys.stderr)
        return 2
    heading()
    with Lab() as lab:
        hub = lab.start_hub({"kiwi": PASSWORD})
        lab.join("kiwi")
        lab.start_client("kiwi", PASSWORD, "--server", BOTH_FAMILIES)
        met = addresses(lab)
        process = hub.process
        for how, what in ((signal.SIGTERM, "stopped"), (signal.SIGKILL, "kill -9")):
            times = []
            for _ in range(RUNS):
                seconds, process = hub_down(lab, hub, process, how)
                times.append(seconds)
            row = f"hub down {DOWN:g} s ({what}) → traffic after it is up, median"
            met &= show_times(row, ASKED_HUB, times)
    return 0 if met else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(f"the measurement failed: {error}", file=sys.stderr)
        sys.exit(1)
