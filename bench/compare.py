"""PyVPN beside OpenVPN, wireguard-go and the bare cable, in one run: ``sudo make bench-compare``.

Every system runs in a laboratory of its own (threehosts.py) for the whole of a round; each
scenario is measured on one after the other, so that what is compared was measured within the same
seconds. The next round starts them all anew, in another order. What is shown is the median of the
rounds. On the command line nothing; in the environment:

* ``PYVPN_BENCH_PROTOTYPE``: the prototype's program; ``WIREGUARD_GO``: a newer wireguard-go;
* ``PYVPN_BENCH_ROUNDS`` (3), ``PYVPN_BENCH_SECONDS`` (2) a measurement;
* ``PYVPN_BENCH_SYSTEMS``, ``PYVPN_BENCH_SCENARIOS``: names with commas, to measure these alone.

It writes build/bench/results.json (a list of {system, scenario, value, unit, rounds}; value is the
median) and build/bench/lab.json (what each system negotiated, which are absent and why, the
machine, the gates). Exit status: 0 no gate is missed, 1 one is or a measurement failed, 2 nothing
can be measured here.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gates import AIMS, GATES, Gate, Verdict, show_verdicts, verdict
from scenarios import SCENARIOS, UNITS, Scenario
from systems import Absent, Negotiated, System, all_systems

from tests.netns.lab import LabError, why_not
from tests.netns.processes import search_path

# What one measurement may fail with, and the others go on: the laboratory, a process that has
# ended, and what a program printed other than expected.
FAILURES = (LabError, OSError, LookupError, ValueError)
RESULTS = Path(__file__).resolve().parent.parent / "build" / "bench"


class Run:
    """All that one run measures."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.rounds = int(environment.get("PYVPN_BENCH_ROUNDS", "3"))
        self.seconds = float(environment.get("PYVPN_BENCH_SECONDS", "2"))
        systems = all_systems(environment)
        self.systems = chosen(environment.get("PYVPN_BENCH_SYSTEMS"), systems)
        self.scenarios = chosen(environment.get("PYVPN_BENCH_SCENARIOS"), list(SCENARIOS))
        self.figures: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.negotiated: dict[str, Negotiated] = {}
        self.absent: dict[str, str] = {}
        self.failed: list[str] = []

    def measure(self) -> None:
        """All rounds."""
        for number in range(self.rounds):
            turned = self.systems[number:] + self.systems[:number]
            try:
                started = [system for system in turned if self._start(system)]
                for scenario in self.scenarios:
                    for system in started:
                        self._measure(system, scenario, number)
            finally:
                for system in self.systems:
                    system.stop()

    def _start(self, system: System) -> bool:
        if system.name in self.absent:
            return False
        try:
            system.start()
            if system.name not in self.negotiated:
                self.negotiated[system.name] = system.negotiated()
                shown = ", ".join(map(str, self.negotiated[system.name]))
                print(f"{system.name}: {shown}", flush=True)
        except Absent as reason:
            self.absent[system.name] = str(reason)
            print(f"{system.name}: absent: {reason}", flush=True)
            return False
        except FAILURES as error:
            self._fail(f"{system.name} did not start: {error}")
            system.stop()
            return False
        return True

    def _measure(self, system: System, scenario: Scenario, number: int) -> None:
        if not scenario.fits(system):
            return
        try:
            if not system.running:
                raise LabError("it has ended")
            for name, value in scenario.measure(system, self.seconds):
                self.figures[system.name, name].append(value)
                shown = f"{value:.4g} {UNITS[name][0]}"
                print(f"round {number + 1}  {name:<20} {system.name:<20} {shown}", flush=True)
        except FAILURES as error:
            self._fail(f"{scenario.name} of {system.name}, round {number + 1}: {error}")

    def _fail(self, what: str) -> None:
        self.failed.append(what)
        print(f"FAILED: {what}", file=sys.stderr, flush=True)

    def medians(self) -> dict[tuple[str, str], float]:
        """(system, scenario) -> the median of its rounds."""
        return {key: statistics.median(values) for key, values in self.figures.items()}

    def write(self) -> None:
        """Write the files that the report is made from."""
        medians = self.medians()
        results = [
            {
                "system": system,
                "scenario": scenario,
                "value": medians[system, scenario],
                "unit": UNITS[scenario][0],
                "rounds": values,
            }
            for (system, scenario), values in self.figures.items()
        ]
        about = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine(),
            "run": {"rounds": self.rounds, "seconds": self.seconds},
            "scenarios": {name: what for name, (_, what) in UNITS.items()},
            "systems": {name: told._asdict() for name, told in self.negotiated.items()},
            "absent": self.absent,
            "failed": self.failed,
            "gates": [each._asdict() for each in self.judged(GATES)],
            "aims": [each._asdict() for each in self.judged(AIMS)],
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        for name, content in (("results", results), ("lab", about)):
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (RESULTS / f"{name}.json").write_text(text + "\n")

    def judged(self, gates: Iterable[Gate]) -> list[Verdict]:
        """The gates beside this run's medians."""
        medians = self.medians()
        return [verdict(gate, medians) for gate in gates]

    def show(self) -> None:
        """Print the table: every scenario, and how many times the other's figure PyVPN's is."""
        medians = self.medians()
        order = [system.name for system in self.systems]
        for scenario, (unit, what) in UNITS.items():
            rows = [name for name in order if (name, scenario) in medians]
            if not rows:
                continue
            print(f"\n{scenario}: {what}, {unit}")
            own = medians.get(("pyvpn-aes", scenario))
            for name in rows:
                values = self.figures[name, scenario]
                spread = f"{min(values):.4g}–{max(values):.4g}"
                line = f"  {name:<20} {medians[name, scenario]:>9.4g}  {spread:<18}"
                if own is not None and medians[name, scenario]:
                    line += f"  pyvpn-aes is {own / medians[name, scenario]:.2f} ×"
                print(line)
        for name, reason in self.absent.items():
            print(f"\nabsent: {name}: {reason}")
        for what in self.failed:
            print(f"\nfailed: {what}")


def chosen(names: str | None, things: list) -> list:
    """Those of the things that are named, all without names; :class:`ValueError` for others."""
    if not names:
        return things
    wanted = [name.strip() for name in names.split(",")]
    unknown = set(wanted) - {thing.name for thing in things}
    if unknown:
        known = ", ".join(thing.name for thing in things)
        raise ValueError(f"there is no {', '.join(sorted(unknown))}; there are {known}")
    return [thing for thing in things if thing.name in wanted]


def machine() -> dict[str, str]:
    """Where this was measured."""
    info = Path("/proc/cpuinfo").read_text()
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    model = next((line for line in info.splitlines() if line.startswith("model name")), "")
    return {
        "cpu": model.partition(":")[2].strip() or platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "TCP congestion control": congestion.read_text().strip(),
    }


def main(environment: Mapping[str, str]) -> int:
    try:
        run = Run(environment)
        reason = why_not()
    except ValueError as error:
        reason = str(error)
    for name in ("iperf3", "ethtool"):
        if reason is None and shutil.which(name, path=search_path()) is None:
            reason = f"{name} is missing (make deps DEPS=bench installs it)"
    if reason is not None:
        print(f"nothing can be measured here: {reason}", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        run.measure()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    run.write()
    run.show()
    gates = run.judged(GATES)
    show_verdicts("Gates: ratios of the medians", gates)
    show_verdicts("Aims: none of these decides", run.judged(AIMS))
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes; {RESULTS / 'results.json'}")
    missed = any(each.met is False for each in gates)
    return 1 if missed or run.failed else 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
