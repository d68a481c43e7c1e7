"""The documents and the code say the same where a program can tell."""

from __future__ import annotations

import re
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from pyvpn import client_tap, server_tap
from pyvpn.core import admission
from pyvpn.core.clientstate import TRANSITIONS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyvpn", "tests", "contrib", "bench")

# What comments cite, and where it stands.
SECTION = re.compile(r"docs/(\w+)\.rst, \"([^\"]+)\"")
SHORTHAND = {
    "PROTOCOL": re.compile(r"\bPROTOCOL (\d+)"),
    "FACTS": re.compile(r"\bFACTS (\d+\.\d+)"),
}
PLACE = {
    "PROTOCOL": ("protocol", re.compile(r"^(\d+)\. .*\n=+$", re.MULTILINE)),
    "FACTS": ("facts", re.compile(r"^\*\*(\d+\.\d+)\*\*", re.MULTILINE)),
}


def document(name: str) -> str:
    """The text of a document, by its path from the root without ``.rst``."""
    return (ROOT / f"{name}.rst").read_text(encoding="utf-8")


def headings(text: str) -> set[str]:
    """The titles in a document, also without the number before them."""
    found = set(re.findall(r"^(\S.*)\n(?:=+|-+|~+)$", text, re.MULTILINE))
    return found | {re.sub(r"^\d+\. ", "", title) for title in found}


def simple_table(text: str, first: str) -> list[list[str]]:
    """The cells of the simple table whose first heading is ``first``, the headings included."""
    body = re.search(rf"^((?:=+ +)+=+)\n({first} .*?)\n\1\n\n", text, re.MULTILINE | re.DOTALL)
    assert body is not None, first
    columns = [match.span() for match in re.finditer("=+", body[1])]
    columns[-1] = (columns[-1][0], 10_000)
    lines = [line for line in body[2].splitlines() if line != body[1]]
    return [[line[start:end].strip() for start, end in columns] for line in lines]


def comments() -> Iterator[tuple[str, str]]:
    """Each source file with its text on one line, so that a citation may be broken in two."""
    for directory in SOURCES:
        for path in sorted((ROOT / directory).rglob("*.py")):
            if path != Path(__file__):
                text = re.sub(r"\s*\n\s*(#:? )?", " ", path.read_text(encoding="utf-8"))
                yield str(path.relative_to(ROOT)), text


class CitationTests(SynchronousTestCase):
    """What a comment sends its reader to is there."""

    def test_sections(self) -> None:
        """Each section that a comment cites by its title exists."""
        cited = [
            (place, document(f"docs/{name}"), title)
            for place, text in comments()
            for name, title in SECTION.findall(text)
        ]
        self.assertGreater(len(cited), 10)
        for place, text, title in cited:
            self.assertIn(title, headings(text), place)

    def test_shorthand(self) -> None:
        """Each ``PROTOCOL n`` and ``FACTS n.m`` in a comment exists."""
        for word, pattern in SHORTHAND.items():
            name, place = PLACE[word]
            there = set(place.findall(document(f"docs/{name}")))
            cited = {
                (where, number) for where, text in comments() for number in pattern.findall(text)
            }
            self.assertGreater(len(cited), 1, word)
            missing = [(where, number) for where, number in cited if number not in there]
            self.assertEqual(missing, [], word)

    def test_planted_citations_are_missed(self) -> None:
        """The checks can say no: titles and numbers that nobody wrote are not found."""
        self.assertNotIn("Phlogiston", headings(document("docs/protocol")))
        self.assertIn("Timers", headings(document("docs/protocol")))
        for name, place in PLACE.values():
            found = place.findall(document(f"docs/{name}"))
            self.assertEqual(len(found), len(set(found)), name)
            self.assertFalse({"99", "99.9"} & set(found))


class SecurityTests(SynchronousTestCase):
    """docs/security.rst."""

    def test_tests(self) -> None:
        """Each test that holds a promise exists."""
        named = re.findall(r"``(tests/[\w/]+\.py)``", document("docs/security"))
        self.assertGreater(len(named), 8)
        self.assertEqual([name for name in named if not (ROOT / name).is_file()], [])

    def test_guesses(self) -> None:
        """The odds of a guesser follow from the limits of the code."""
        minute = admission.USER_RATE * 60
        self.assertAlmostEqual(minute, 1)
        minutes = (admission.FREEZE_FAILURES - admission.USER_BURST) / minute
        minutes += admission.FREEZE_TIME / 60
        a_day = round(admission.FREEZE_FAILURES * 24 * 60 / minutes)
        text = " ".join(document("docs/security").split())
        for fact in (
            f"{admission.USER_BURST}, then 1 a minute; ",
            f"after {admission.FREEZE_FAILURES} wrong ones in a row",
            f"going on for ever {a_day} ",
            f"in a year {round(a_day * 365, -4):,} ",
            f"1 in {2**80 / (a_day * 365) / 1e18:.0f} · 10^18 a year",
            f"likeliest on the guesser's list {a_day * 365 / 1e6:.0%}".replace("%", " % a year"),
            f"certain within {-(-10_000 // a_day)} days",
            f"{round(admission.DEVICE_RATE * 86_400):,} a day",
        ):
            self.assertIn(fact, text)


class TableTests(SynchronousTestCase):
    """Tables in documents against what they show."""

    def test_client_states(self) -> None:
        """The diagram in docs/architecture.rst is what contrib/statediagram.py draws."""
        draw = runpy.run_path(str(ROOT / "contrib" / "statediagram.py"))["diagram"]
        self.assertIn(textwrap.indent(draw(), "    "), document("docs/architecture"))
        # The control: without any one of the transitions it is another picture.
        for left_out in TRANSITIONS:
            fewer = {key: to for key, to in TRANSITIONS.items() if key != left_out}
            self.assertNotEqual(draw(fewer), draw(), left_out)

    def test_core(self) -> None:
        """docs/architecture.rst names each file of the core, and no other."""
        rows = simple_table(document("docs/architecture"), "core file")[1:]
        named = [name for row in rows for name in re.findall(r"``(\w+\.py)``", row[0])]
        files = {path.name for path in (ROOT / "pyvpn" / "core").glob("*.py")} - {"__init__.py"}
        self.assertEqual(sorted(named), sorted(files))

    def test_options(self) -> None:
        """README.rst shows each option of the two twistd commands, and no other."""
        tables = (
            ("hub option", server_tap.Options),
            ("client option", client_tap.Options),
        )
        for first, options in tables:
            rows = simple_table(document("README"), first)[1:]
            shown = {name for row in rows for name in re.findall(r"--([a-z0-9-]+)", row[0])}
            has = {name.rstrip("=") for name in options().longOpt}
            self.assertEqual(shown, has - {"help", "version"}, first)
