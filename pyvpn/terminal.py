"""The terminal: lines and tables for people, questions to them.

Names of devices come from the network: whatever could steer a terminal is replaced before it shows.
"""

from __future__ import annotations

import getpass
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from pyvpn.errors import ConfigError

DASH: Final = "-"


def say(*lines: str) -> None:
    """Print lines for people."""
    print(*lines, sep="\n")


def prompt(question: str) -> str:
    """A password typed on the terminal."""
    if not sys.stdin.isatty():
        raise ConfigError("no terminal to ask for the password; give it with --pw-file FILE")
    return getpass.getpass(question)


def printable(value: object) -> str:
    """Text that cannot steer a terminal: control and format characters become ``?``."""
    text = DASH if value is None or value == "" else str(value)
    return "".join("?" if unicodedata.category(c)[0] in "CZ" and c != " " else c for c in text)


def width(text: str) -> int:
    """Columns the text takes on a terminal: wide letters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of left-aligned columns under their heads."""
    cells = [list(heads), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(heads))]
    return [
        "  ".join(
            cell + " " * (space - width(cell)) for cell, space in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]


def emphasised(lines: list[str]) -> list[str]:
    """The lines with the first in bold, on a terminal that may be coloured (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    if plain or not sys.stdout.isatty() or not lines:
        return lines
    return [f"\x1b[1m{lines[0]}\x1b[0m", *lines[1:]]
