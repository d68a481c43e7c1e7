"""Shows what the benchmarks have measured.

    python bench/report.py              results → build/bench/report.html, throughput.svg beside it
    python bench/report.py --rst        prints the tables of docs/benchmarks.rst
    python bench/report.py --publish    puts figures, tables and plot into docs/

``--from PATH`` takes the figures from another directory than build/bench, or from a file like
docs/benchmarks.json.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

from measured import (
    LIMIT,
    OURS,
    Row,
    Run,
    duration,
    parse_published,
    ratio,
    read_directory,
    read_published,
    system_name,
    to_publish,
)
from plot import LIMIT as LIMIT_BAR
from plot import OURS as OUR_BAR
from plot import PROTOTYPE as PROTOTYPE_BAR
from plot import RIVAL as RIVAL_BAR
from plot import STYLE, Bar, bars, height, picture

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
DOCS = ROOT / "docs"
PUBLISHED = DOCS / "benchmarks.json"
PLOT = "throughput.svg"
#: What the plot in the README shows.
PLOTTED = ("tcp-1", "udp-64")

#: What reStructuredText would take for markup in text that others wrote.
RST_MARKUP = re.compile(r"[\\*`|_]")

#: A median of fewer says nothing.
LEAST_ROUNDS = 3
VERDICTS = {True: "met", False: "NOT MET", None: "not measured"}

BEGIN, END = ".. figures begin", ".. figures end"

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>PyVPN: benchmarks</title>
<style>
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --pale: #59636e;
  --line: #d1d9e0; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --pale: #9198a1;
  --line: #3d444d; --bad: #ff8a80; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, caption { color: var(--pale); max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, .text td { text-align: left; }
.text td { white-space: normal; }
tr.bad td { color: var(--bad); font-weight: 600; }
svg { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
STYLE
</style>
</head>
<body>
<h1>PyVPN: benchmarks</h1>
BODY
</body>
</html>
"""

Table = list[list[str]]


def bar_kind(system: str) -> str:
    if system == LIMIT:
        return LIMIT_BAR
    if system.startswith("pyvpn"):
        return OUR_BAR
    return PROTOTYPE_BAR if system.startswith("prototype") else RIVAL_BAR


def bars_of(rows: Iterable[Row]) -> list[Bar]:
    return [
        Bar(
            system_name(row.system),
            row.value,
            min(row.rounds),
            max(row.rounds),
            row.number(),
            row.spread() if len(row.rounds) > 1 else "",
            bar_kind(row.system),
        )
        for row in rows
    ]


def throughput(run: Run) -> str:
    """The plot of the README, as a file of its own."""
    groups, top = [], 0
    for titles in run.groups().values():
        for scenario in PLOTTED:
            if scenario in titles:
                rows = list(run.of(scenario).values())
                groups.append(bars(titles[scenario], rows[0].unit, bars_of(rows), top))
                top += height(bars_of(rows))
    about = "What each system passes through its tunnel, with the least and the most of its rounds"
    return picture(groups, top, about, STYLE)


# -- tables -------------------------------------------------------------------------------------


def group_table(run: Run, titles: dict[str, str]) -> Table:
    """Systems by scenarios: the median, and in brackets the least and the most of the rounds."""
    columns = {scenario: run.of(scenario) for scenario in titles}
    heads = [
        f"{titles[scenario]} [{next(iter(rows.values())).unit}]"
        for scenario, rows in columns.items()
    ]
    table = [["system", *heads]]
    for system in run.systems:
        found = [rows.get(system) for rows in columns.values()]
        if any(found):
            cells = ["–" if row is None else row.with_spread() for row in found]
            table.append([system_name(system), *cells])
    return table


def ratio_table(run: Run) -> Table:
    """How many times better PyVPN is than each rival; under 1 it is worse."""
    rivals = [s for s in run.systems if not s.startswith("pyvpn") and s != LIMIT]
    table = [["PyVPN, AES-256-GCM, against", *map(system_name, rivals)]]
    for titles in run.groups().values():
        for scenario, title in titles.items():
            rows = run.of(scenario)
            ours = rows.get(OURS)
            if ours is None or not any(rival in rows for rival in rivals):
                continue
            factors = [ratio(ours, rows[rival]) if rival in rows else None for rival in rivals]
            cells = ["–" if factor is None else f"{factor:.2f}" for factor in factors]
            table.append([title, *cells])
    return table if len(table) > 1 else []


def micro_table(run: Run) -> Table:
    heads = ["operation", "median", "least", "most"]
    rows = [
        [row.scenario, *map(duration, (row.value, min(row.rounds), max(row.rounds)))]
        for row in run.micro
    ]
    return [heads, *rows] if rows else []


def machine_table(run: Run) -> Table:
    facts = run.lab.get("machine", {})
    rows = [[str(name), str(value)] for name, value in facts.items()]
    return [["machine", ""], *rows] if rows else []


def systems_table(run: Run) -> Table:
    """What each system said that it had negotiated."""
    said = run.lab.get("systems", {})
    heads = list(dict.fromkeys(name for facts in said.values() for name in facts))
    rows = [
        [system_name(system), *(str(facts.get(name, "–")) for name in heads)]
        for system, facts in said.items()
    ]
    return [["system", *heads], *rows] if rows else []


def absent_table(run: Run) -> Table:
    absent = run.lab.get("absent", {})
    rows = [[system_name(system), str(reason)] for system, reason in absent.items()]
    return [["absent", "because"], *rows] if rows else []


def verdicts_table(run: Run, kind: str) -> Table:
    """What was asked for and what was measured; the kind is ``gate`` or ``aim``."""
    rows = [
        [str(v["what"]), str(v["asked"]), str(v["measured"]), VERDICTS[v["met"]]]
        for v in run.lab.get(f"{kind}s", ())
    ]
    return [[kind, "asked", "measured", ""], *rows] if rows else []


def failed_table(run: Run) -> Table:
    rows = [[str(what)] for what in run.lab.get("failed", ())]
    return [["measurements that failed"], *rows] if rows else []


# -- reStructuredText ---------------------------------------------------------------------------


def rst_table(table: Table) -> str:
    """A csv-table: a row a line, so that a change of figures can be read."""
    if not table:
        return ""
    out = io.StringIO()
    cells = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    cells.writerows([RST_MARKUP.sub(r"\\\g<0>", cell) for cell in row] for row in table)
    return ".. csv-table::\n   :header-rows: 1\n\n" + "".join(
        f"   {line}\n" for line in out.getvalue().splitlines()
    )


def rst(run: Run) -> str:
    """All tables, as they stand in docs/benchmarks.rst."""
    rounds = max((len(row.rounds) for row in run.rows), default=0)
    date = run.lab.get("date", "")
    parts = [
        "Figures\n=======\n",
        f".. image:: {PLOT}\n   :alt: TCP and UDP throughput of each system, as bars\n",
        f"Measured{' ' + date if date else ''}; medians of {rounds} rounds, in brackets the least"
        " and the most of them. A dash: not measured.\n",
        rst_table(machine_table(run)),
        rst_table(systems_table(run)),
        rst_table(absent_table(run)),
        rst_table(failed_table(run)),
    ]
    for heading, titles in run.groups().items():
        parts += [f"{heading}\n{'-' * len(heading)}\n", rst_table(group_table(run, titles))]
    for heading, table in (
        ("How many times better", ratio_table(run)),
        ("Gates", verdicts_table(run, "gate")),
        ("Aims", verdicts_table(run, "aim")),
        ("One by one", micro_table(run)),
    ):
        if table:
            parts += [f"{heading}\n{'-' * len(heading)}\n", rst_table(table)]
    return "\n".join(part for part in parts if part)


def with_figures(text: str, tables: str) -> str:
    """The document with what stands between its two marks replaced.

    :raises ValueError: it has not exactly one of each.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"benchmarks.rst: not one line {BEGIN!r} and one {END!r}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n\n{tables}\n{END}{after}"


# -- HTML ---------------------------------------------------------------------------------------


def html_table(table: Table, kind: str = "") -> str:
    if not table:
        return ""
    lines = [f'<div class="wide"><table{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>']
    lines.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in table[0]) + "</tr>")
    for row in table[1:]:
        bad = ' class="bad"' if row[-1] == VERDICTS[False] else ""
        lines.append(f"<tr{bad}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table></div>"])


def html_group(run: Run, titles: dict[str, str]) -> str:
    pictures = []
    for scenario, title in titles.items():
        rows = list(run.of(scenario).values())
        shown = bars_of(rows)
        group = bars(title, rows[0].unit, shown)
        pictures.append(picture([group], height(shown), f"{title} [{rows[0].unit}]"))
    return "".join(pictures) + html_table(group_table(run, titles))


def html(run: Run) -> str:
    """The page: one file that loads nothing."""
    rounds = max((len(row.rounds) for row in run.rows), default=0)
    body = [
        f"<p>{escape(str(run.lab.get('date', '')))} One run, the systems in turn; medians of"
        f" {rounds} rounds. Whiskers and brackets: the least and the most of the rounds.</p>",
        html_table(verdicts_table(run, "gate")),
        html_table(verdicts_table(run, "aim")),
        html_table(failed_table(run), "text"),
    ]
    for heading, titles in run.groups().items():
        body += [f"<h2>{escape(heading)}</h2>", html_group(run, titles)]
    for heading, table, kind in (
        ("How many times better", ratio_table(run), ""),
        ("Parts of the core", micro_table(run), ""),
        ("Machine", machine_table(run), "text"),
        ("Systems", systems_table(run), "text"),
        ("Absent", absent_table(run), "text"),
    ):
        if table:
            body += [f"<h2>{heading}</h2>", html_table(table, kind)]
    return PAGE.replace("STYLE", STYLE).replace("BODY", "\n".join(filter(None, body)))


# -----------------------------------------------------------------------------------------------


def write(directory: Path, run: Run | None = None) -> Path:
    """Write the page and the plot beside the results; return the page's path.

    :raises ValueError: there are no results.
    """
    run = read_directory(directory) if run is None else run
    page = directory / "report.html"
    page.write_text(html(run), encoding="utf-8")
    (directory / PLOT).write_text(throughput(run), encoding="utf-8")
    return page


def publish(run: Run, docs: Path = DOCS) -> None:
    """Put the run's figures, tables and plot into the documents.

    :raises ValueError: it is a run that was cut short, or the document has not its two marks.
    """
    if max((len(row.rounds) for row in run.rows), default=0) < LEAST_ROUNDS:
        raise ValueError(f"a run of less than {LEAST_ROUNDS} rounds is not published")
    document = docs / "benchmarks.rst"
    text = to_publish(run)
    # From what is published, so that the documents and it say the same to the last digit.
    run = parse_published(text, PUBLISHED.name)
    pages = {
        document: with_figures(document.read_text(encoding="utf-8"), rst(run)),
        docs / PUBLISHED.name: text,
        docs / PLOT: throughput(run),
    }
    for path, content in pages.items():
        path.write_text(content, encoding="utf-8")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, default=BUILD)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--rst", action="store_true")
    what.add_argument("--publish", action="store_true")
    options = parser.parse_args(arguments)
    try:
        source = options.source
        run = read_published(source) if source.is_file() else read_directory(source)
        if options.rst:
            print(rst(run), end="")
        elif options.publish:
            publish(run)
        else:
            print(write(source if source.is_dir() else BUILD, run))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
