"""Start-up figures, asked and measured: ``sudo make bench``.

* client start to the first ping answered through the tunnel, scrypt included (median of 5);
* memory of a hub without clients, alone and together with its privileged child;
* the whole demo, once installed.

All run in network namespaces on this machine. Exit status: 0 every figure is met, 1 one is not,
2 nothing can be measured here.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures import heading, show

from tests.netns.lab import Lab, LabError, why_not

DEMO = Path(__file__).resolve().parent.parent / "contrib" / "demo.py"
ASKED_START = 1.5  # seconds
ASKED_MEMORY = 60.0  # MiB
ASKED_DEMO = 90.0  # seconds
STARTS = 5
PASSWORD = "seven green apples"


def start_times(lab: Lab) -> list[float]:
    """Seconds from starting a client process to its first answered ping, `STARTS` times."""
    times = []
    lab.join("kiwi")
    for _ in range(STARTS):
        client = lab.start_client("kiwi", PASSWORD, seconds=None)
        times.append(lab.wait_answer("kiwi", "10.10.0.1", 15, client))
        client.stop()
    return times


def processes(pid: int) -> list[int]:
    """A process and all below it, the oldest first."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += processes(int(child))
    return found


def memory(pid: int, kind: str) -> float:
    """Memory of a process in MiB. `kind` Rss: all that it has in memory; Pss: where it shares a
    page with others its share of that page, so that the figures of several processes add up."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"^{kind}:\s+(\d+) kB", rollup, re.MULTILINE)
    if found is None:
        raise LabError(f"/proc/{pid}/smaps_rollup does not tell {kind}")
    return int(found[1]) / 1024


def hub_memory(pid: int) -> bool:
    """Two rows for the hub without clients: its process, and that with the privileged child."""
    pids = processes(pid)
    asked = f"≤ {ASKED_MEMORY:.0f} MiB"
    resident = [memory(each, "Rss") for each in pids]
    own = resident[0]
    met = show("hub without clients, resident", asked, f"{own:.1f} MiB", own <= ASKED_MEMORY)
    both = sum(memory(each, "Pss") for each in pids)
    measured = f"{both:.1f} MiB ({' + '.join(f'{size:.0f}' for size in resident)} res.)"
    what = "the same with its privileged child, PSS"
    return show(what, asked, measured, both <= ASKED_MEMORY) and met


def demo_time() -> tuple[float, bool]:
    """Seconds that the demo takes, and whether it succeeded."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, DEMO], stdout=subprocess.DEVNULL, check=False)
    return time.monotonic() - start, done.returncode == 0


def main() -> int:
    reason = why_not()
    if reason is not None:
        print(f"nothing can be measured here: {reason}", file=sys.stderr)
        return 2
    heading()
    with Lab() as lab:
        server = lab.start_hub({"kiwi": PASSWORD})
        met = hub_memory(server.process.pid)
        times = start_times(lab)
        median = statistics.median(times)
        spread = f"{median:.2f} s ({min(times):.2f}–{max(times):.2f})"
        asked = f"≤ {ASKED_START:g} s"
        met &= show("client start to first ping, median", asked, spread, median <= ASKED_START)
    seconds, passed = demo_time()
    took = f"{seconds:.1f} s" + ("" if passed else ", failed")
    met &= show("demo", f"≤ {ASKED_DEMO:.0f} s", took, passed and seconds <= ASKED_DEMO)
    return 0 if met else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(f"the measurement failed: {error}", file=sys.stderr)
        sys.exit(1)
