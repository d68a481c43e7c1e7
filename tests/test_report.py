"""bench/report.py: what it makes of the benchmarks' figures."""

from __future__ import annotations

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.state import temporary_directory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import measured  # noqa: E402
import report  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def result(system: str, scenario: str, unit: str, *rounds: float) -> dict[str, Any]:
    value = sorted(rounds)[len(rounds) // 2]
    return {
        "system": system,
        "scenario": scenario,
        "value": value,
        "unit": unit,
        "rounds": list(rounds),
    }


RESULTS = [
    result("pyvpn-aes", "tcp-1", "Gbit/s", 3.0, 2.0, 4.0),
    result("openvpn", "tcp-1", "Gbit/s", 0.5, 0.6, 0.4),
    result("veth", "tcp-1", "Gbit/s", 18.0, 17.0, 19.0),
    result("pyvpn-aes", "udp-64", "kpps", 90.0, 90.0, 90.0),
    result("pyvpn-aes", "rtt-idle-p50", "µs", 200.0, 200.0, 200.0),
    result("openvpn", "rtt-idle-p50", "µs", 100.0, 100.0, 100.0),
    result("<other> & co", "brand-new", "kpps", 1234.0),
]
LAB = {
    "date": "2026-11-22",
    "machine": {"cpu": "A <fast> one", "cpus": "2"},
    "systems": {"openvpn": {"version": "9.9", "offloads": "tx_this_*"}},
    "absent": {"wireguard-go": "it is not installed"},
    "failed": ["tcp-4 of openvpn, round 2: no answer"],
    "gates": [
        {"what": "TCP", "asked": "≥ 3.5 ×", "measured": "6.00 ×", "met": True},
        {"what": "UDP", "asked": "≥ 1.3 ×", "measured": "1.00 ×", "met": False},
        {"what": "CPU", "asked": "≤ 0.5 ×", "measured": "no figure", "met": None},
    ],
}
MICRO = {
    "metadata": {"name": "seal", "unit": "second"},
    "benchmarks": [
        {"runs": [{"metadata": {}}, {"values": [1e-6, 3e-6]}, {"values": [2e-6]}]},
        {"metadata": {"name": "open"}, "runs": [{"values": [5e-6]}]},
    ],
}


def words(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


class ReportTests(SynchronousTestCase):
    """Pages, tables and plots of a run."""

    def setUp(self) -> None:
        self.directory = temporary_directory()
        self.addCleanup(shutil.rmtree, self.directory)
        for name, content in (
            (measured.RESULTS, RESULTS),
            (measured.LAB, LAB),
            (measured.MICRO, MICRO),
        ):
            (self.directory / name).write_text(json.dumps(content), encoding="utf-8")
        self.run_ = measured.read_directory(self.directory)

    def test_page(self) -> None:
        """The page shows every system and figure with its spread, and what failed or is absent."""
        page = report.write(self.directory).read_text(encoding="utf-8")
        shown = words(page)
        for text in (
            "PyVPN, AES-256-GCM",
            "3.00 (2.00–4.00)",
            "0.500 (0.400–0.600)",
            "&lt;other&gt; &amp; co",
            "1,234",
            "wireguard-go, Debian&#x27;s it is not installed",
            "tcp-4 of openvpn, round 2: no answer",
            "UDP ≥ 1.3 × 1.00 × NOT MET",
            "CPU ≤ 0.5 × no figure not measured",
            "A &lt;fast&gt; one",
            "seal 2.00 µs 1.00 µs 3.00 µs",
        ):
            self.assertIn(text, shown)
        self.assertNotIn("<other>", page)

    def test_page_loads_nothing(self) -> None:
        """The page and the plot name nothing to be fetched: no script, style sheet or picture."""
        report.write(self.directory)
        fetches = re.compile(r"<script|<link|<img|<image|\bsrc=|href=|url\(|@import", re.IGNORECASE)
        for name in ("report.html", report.PLOT):
            self.assertIsNone(fetches.search((self.directory / name).read_text(encoding="utf-8")))
        self.assertIsNotNone(fetches.search('<img src="x">'))

    def test_bars(self) -> None:
        """A bar is as long as its figure, but the limit's, which is broken where the scale ends."""
        tree = ElementTree.fromstring(report.throughput(self.run_))
        tcp = tree.findall(f"{SVG}g")[0]
        widths = {
            rect.findtext(f"{SVG}title"): float(rect.get("width", 0))
            for rect in tcp.findall(f"{SVG}rect")
        }
        ours = widths["PyVPN, AES-256-GCM: 3.00 Gbit/s"]
        self.assertAlmostEqual(ours / widths["OpenVPN, AES-256-GCM: 0.500 Gbit/s"], 6, delta=0.1)
        self.assertLess(widths["the cable alone: 18.0 Gbit/s"] / ours, 2)
        breaks = [p for p in tcp.findall(f"{SVG}path") if p.get("class") == "break"]
        self.assertEqual(len(breaks), 1)

    def test_ratios(self) -> None:
        """More than 1 means that PyVPN is better, be it that more is better or less."""
        table = report.ratio_table(self.run_)
        at = table[0].index("OpenVPN, AES-256-GCM")
        self.assertEqual({row[0]: row[at] for row in table[1:]}["TCP, 1 flow"], "6.00")
        self.assertEqual({row[0]: row[at] for row in table[1:]}["idle, median"], "0.50")

    def test_markup(self) -> None:
        """Text that a program printed is no markup in the document."""
        self.assertIn(r"tx\_this\_\*", report.rst(self.run_))

    def test_publish(self) -> None:
        """Published figures replace what stood between the marks, and twice is as good as once."""
        document = self.directory / "benchmarks.rst"
        document.write_text("Before\n\n.. figures begin\n\nold\n\n.. figures end\n\nAfter\n")
        seen = []
        for _ in range(2):
            report.publish(self.run_, self.directory)
            seen.append(document.read_text(encoding="utf-8"))
        self.assertEqual(seen[0], seen[1])
        self.assertTrue(seen[0].startswith("Before\n") and seen[0].endswith("\nAfter\n"))
        self.assertNotIn("old", seen[0])
        published = measured.read_published(self.directory / "benchmarks.json")
        self.assertIn(report.rst(published), seen[0])
        self.assertEqual(published.rows, self.run_.rows)

    def test_short_run(self) -> None:
        """A run of two rounds, made while developing, does not get into the documents."""
        rows = tuple(row._replace(rounds=row.rounds[:2]) for row in self.run_.rows)
        with self.assertRaisesRegex(ValueError, "less than 3 rounds"):
            report.publish(self.run_._replace(rows=rows), self.directory)
        self.assertFalse((self.directory / "benchmarks.json").exists())

    def test_marks(self) -> None:
        """A document without the two marks is refused, not overwritten."""
        for text in ("", ".. figures begin\n", ".. figures end\n.. figures end\n"):
            with self.assertRaisesRegex(ValueError, "figures begin"):
                report.with_figures(text, "new")

    def test_bad_results(self) -> None:
        """What is no result is refused in one line that names the file and which one it is."""
        path = self.directory / measured.RESULTS
        for text, message in (
            ("{}", "not a list"),
            ("[", "Expecting value"),
            ('[{"system": "x"}]', "result 1: KeyError"),
            (json.dumps([RESULTS[0] | {"rounds": []}]), "result 1: no rounds"),
            (json.dumps([*RESULTS, RESULTS[0] | {"value": "?"}]), "result 8: ValueError"),
        ):
            path.write_text(text)
            with self.assertRaisesRegex(
                ValueError, re.escape(str(path)) + ".*" + message
            ) as caught:
                measured.read_directory(self.directory)
            self.assertNotIn("\n", str(caught.exception))
        path.unlink()
        with self.assertRaisesRegex(ValueError, "make bench"):
            measured.read_directory(self.directory)

    def test_digits(self) -> None:
        """Three digits that count, whatever the size of the number."""
        for value, text in (
            (0, "0"),
            (0.01234, "0.0123"),
            (0.9996, "1.00"),
            (4.567, "4.57"),
            (9.996, "10.0"),
            (56.78, "56.8"),
            (99.96, "100"),
            (1234.5, "1,234"),
        ):
            self.assertEqual(measured.three_digits(value), text)

    def test_documents(self) -> None:
        """docs/ has the tables and the plot of the run in docs/benchmarks.json, or none at all."""
        docs = ROOT / "docs"
        text = (docs / "benchmarks.rst").read_text(encoding="utf-8")
        if not report.PUBLISHED.exists():
            self.assertIn(f"{report.BEGIN}\n{report.END}\n", text)
            self.assertFalse((docs / report.PLOT).exists())
            return
        run = measured.read_published(report.PUBLISHED)
        self.assertEqual(report.with_figures(text, report.rst(run)), text)
        self.assertEqual((docs / report.PLOT).read_text(encoding="utf-8"), report.throughput(run))

    def test_durations(self) -> None:
        """Times of the parts are shown in the unit in which they can be read."""
        for value, text in (
            (0.0167, "16.7 ns"),
            (1.0, "1.00 µs"),
            (354_362.0, "354 ms"),
            (2_000_000.0, "2.00 s"),
        ):
            self.assertEqual(measured.duration(value), text)

    def test_every_scenario_has_a_title(self) -> None:
        """Each figure and system of the comparison has its place and name in the report."""
        listed = (ROOT / "bench" / "scenarios.py").read_text(encoding="utf-8")
        names = re.findall(r'^    "([\w.-]+)": \(', listed, re.MULTILINE)
        self.assertGreater(len(names), 20)
        titled = {name for titles in measured.GROUPS.values() for name in titles}
        self.assertEqual(set(names) ^ titled, set())
