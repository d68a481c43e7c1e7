"""What one run of the benchmarks has measured, read from its files.

``results.json`` is a list of ``{system, scenario, value, unit, rounds}``, the value the median of
the rounds. ``lab.json`` beside it says on what and with what: the machine, what each system had
negotiated, which were absent and why, the gates. ``micro.json`` is pyperf's. Only the first must
be there. ``docs/benchmarks.json`` holds all three of a run that was published.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

RESULTS, LAB, MICRO = "results.json", "lab.json", "micro.json"

SYSTEMS = {
    "pyvpn-aes": "PyVPN, AES-256-GCM",
    "pyvpn-chacha": "PyVPN, ChaCha20-Poly1305",
    "pyvpn-relay": "PyVPN, client to client, relayed",
    "pyvpn-kernel": "PyVPN, client to client, by the kernel",
    "prototype-aes": "prototype, AES-256-GCM",
    "prototype-chacha": "prototype, ChaCha20-Poly1305",
    "openvpn": "OpenVPN, AES-256-GCM",
    "wireguard-go": "wireguard-go, Debian's",
    "wireguard-go-newest": "wireguard-go, newest",
    "pyvpn-wg": "PyVPN as WireGuard at both ends",
    "pyvpn-wireguard": "PyVPN's hub, wireguard-go, Debian's",
    "pyvpn-wireguard-newest": "PyVPN's hub, wireguard-go, newest",
    "veth": "the cable alone",
}
#: What is no VPN, but what there is to share.
LIMIT = "veth"
OURS = "pyvpn-aes"

#: Under which heading a scenario stands, and its title there.
GROUPS = {
    "Throughput": {
        "tcp-1": "TCP, 1 flow",
        "tcp-4": "TCP, 4 flows",
        "tcp-reverse": "TCP, from the hub",
        "tcp-ipv6": "TCP over IPv6 inside",
        "udp-64": "UDP, 64 bytes, read at the far end",
        "udp-64-arrived": "UDP, 64 bytes, arrived in its kernel",
        "udp-1200": "UDP, 1,200 bytes, read at the far end",
        "udp-1200-arrived": "UDP, 1,200 bytes, arrived in its kernel",
    },
    "Round trips": {
        "rtt-idle-p50": "idle, median",
        "rtt-idle-p99": "idle, p99",
        "rtt-flood": "flood of pings, mean",
        "rtt-load-p50": "beside own TCP to the hub, median",
        "rtt-load-p99": "beside own TCP to the hub, p99",
        "rtt-second-p50": "another client's meanwhile, median",
        "rtt-second-p99": "another client's meanwhile, p99",
        "rtt-load-down-p50": "beside own TCP from the hub, median",
        "rtt-load-down-p99": "beside own TCP from the hub, p99",
        "rtt-second-down-p50": "another client's then, median",
        "rtt-second-down-p99": "another client's then, p99",
    },
    "Cost": {
        "cpu-per-gib": "CPU time of both ends, TCP",
        "rss": "memory, all processes",
        "rss-hub": "memory, the hub",
    },
    "TCP while datagrams are lost at random": {
        "loss-0": "none lost, but cut on the cable",
        "loss-0.1": "0.1 % lost each way",
        "loss-1": "1 % lost each way",
        "loss-1-cubic": "1 % lost each way, with CUBIC",
        "loss-5": "5 % lost each way",
    },
    "Beside another client that floods": {
        "fair-tcp": "TCP",
        "fair-rtt-p50": "round trip, median",
        "fair-rtt-p99": "round trip, p99",
    },
}
OTHERS = "More"

LESS_IS_BETTER = frozenset(("ms", "µs", "s", "s/GiB", "MiB"))


class Row(NamedTuple):
    """One figure: the median of its rounds."""

    system: str
    scenario: str
    value: float
    unit: str
    rounds: tuple[float, ...]

    def number(self) -> str:
        return three_digits(self.value)

    def spread(self) -> str:
        """The least and the most of the rounds."""
        return f"{three_digits(min(self.rounds))}–{three_digits(max(self.rounds))}"

    def with_spread(self) -> str:
        """The figure, and its spread where there is one."""
        return f"{self.number()} ({self.spread()})" if len(self.rounds) > 1 else self.number()


class Run(NamedTuple):
    """All figures of one run, in the order in which they are shown."""

    rows: tuple[Row, ...]
    micro: tuple[Row, ...]
    lab: dict[str, Any]

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(row.system for row in self.rows))

    def of(self, scenario: str) -> dict[str, Row]:
        """The scenario's rows by system."""
        return {row.system: row for row in self.rows if row.scenario == scenario}

    def groups(self) -> dict[str, dict[str, str]]:
        """Heading → the titles of those scenarios below it that were measured."""
        left = dict.fromkeys(row.scenario for row in self.rows)
        found: dict[str, dict[str, str]] = {}
        for heading, titles in GROUPS.items():
            there = {scenario: titles[scenario] for scenario in titles if scenario in left}
            if there:
                found[heading] = there
            for scenario in there:
                del left[scenario]
        if left:
            found[OTHERS] = {scenario: scenario for scenario in left}
        return found


def three_digits(value: float) -> str:
    """The number with three digits that count: 0.0123, 4.56, 78.9, 1,234."""
    if not value:
        return "0"
    digits = 2
    size = abs(value)
    while size >= 9.995 and digits:
        size /= 10
        digits -= 1
    while size < 0.9995 and digits < 6:
        size *= 10
        digits += 1
    return f"{value:,.{digits}f}"


def duration(microseconds: float) -> str:
    """A time in the unit in which it can be read."""
    for unit, size in (("s", 1e6), ("ms", 1e3), ("µs", 1.0)):
        if microseconds >= size:
            return f"{three_digits(microseconds / size)} {unit}"
    return f"{three_digits(microseconds * 1e3)} ns"


def system_name(system: str) -> str:
    return SYSTEMS.get(system, system)


def ratio(ours: Row, theirs: Row) -> float | None:
    """By how much ours is better, whichever way better is; None where one of them is nothing."""
    if not ours.value or not theirs.value:
        return None
    factor = ours.value / theirs.value
    return 1 / factor if ours.unit in LESS_IS_BETTER else factor


def read_rows(listed: Any, where: str) -> tuple[Row, ...]:
    """The rows of results.json.

    :raises ValueError: what is wrong in it, in one line.
    """
    rows = []
    if not isinstance(listed, list):
        raise ValueError(f"{where}: not a list of results")
    for number, entry in enumerate(listed, 1):
        try:
            rounds = tuple(float(value) for value in entry["rounds"])
            row = Row(
                str(entry["system"]),
                str(entry["scenario"]),
                float(entry["value"]),
                str(entry["unit"]),
                rounds,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: result {number}: {error!r}") from None
        if not rounds:
            raise ValueError(f"{where}: result {number}: no rounds")
        rows.append(row)
    return tuple(rows)


def read_micro(suite: Any) -> tuple[Row, ...]:
    """The medians of a pyperf suite as rows in µs; what was measured is the scenario."""
    rows = []
    for benchmark in suite["benchmarks"]:
        # pyperf puts what all benchmarks share into the suite; a single one's name is there too.
        name = {**suite.get("metadata", {}), **benchmark.get("metadata", {})}["name"]
        values = [value * 1e6 for run in benchmark["runs"] for value in run.get("values", ())]
        rows.append(Row("core", name, statistics.median(values), "µs", tuple(values)))
    return tuple(rows)


def read_directory(directory: Path) -> Run:
    """What the benchmarks have left in a directory.

    :raises ValueError: results.json is not there or is not one.
    """
    lab, micro = directory / LAB, directory / MICRO
    return Run(
        read_rows(_json(directory / RESULTS), str(directory / RESULTS)),
        read_micro(_json(micro)) if micro.exists() else (),
        _json(lab) if lab.exists() else {},
    )


def read_published(path: Path) -> Run:
    """What :func:`to_publish` made, from its file.

    :raises ValueError: it is not one.
    """
    return parse_published(_text(path), str(path))


def parse_published(text: str, where: str) -> Run:
    """The same, from its text."""
    content = _parsed(text, where)
    try:
        results, micro, lab = content["results"], content["micro"], content["lab"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: {error!r}") from None
    return Run(read_rows(results, where), read_rows(micro, where), lab)


def to_publish(run: Run) -> str:
    """The run as JSON, a row a line so that a change of it can be read."""

    def listed(rows: tuple[Row, ...]) -> str:
        lines = []
        for row in rows:
            # Six digits are more than any of it is good for.
            entry = row._asdict() | {
                "value": float(f"{row.value:.6g}"),
                "rounds": [float(f"{value:.6g}") for value in row.rounds],
            }
            lines.append("    " + json.dumps(entry, ensure_ascii=False))
        return "[\n" + ",\n".join(lines) + "\n  ]" if lines else "[]"

    lab = json.dumps(run.lab, ensure_ascii=False, indent=2).replace("\n", "\n  ")
    return (
        f'{{\n  "results": {listed(run.rows)},\n  "micro": {listed(run.micro)},\n'
        f'  "lab": {lab}\n}}\n'
    )


def _json(path: Path) -> Any:
    return _parsed(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; make bench writes it") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {error}") from None
