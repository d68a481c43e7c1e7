"""How the benchmarks show what was asked and what was measured."""

from __future__ import annotations

ROW = "{:<54} {:>12} {:>26}  {}"


def heading() -> None:
    """Print the names of the columns."""
    print(ROW.format("figure", "asked", "measured", ""))


def show(what: str, asked: str, measured: str, met: bool) -> bool:
    """Print one figure; return whether it is met."""
    print(ROW.format(what, asked, measured, "met" if met else "NOT MET"), flush=True)
    return met
