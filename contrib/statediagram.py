#!/usr/bin/env python3
"""Print the diagram of the client's states in docs/architecture.rst, from the code's own table.

``tests/test_documents.py`` checks that the document holds what this prints. Whoever changes
``TRANSITIONS`` runs it and pastes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

# Run by its path, it has contrib/ on its own path and not the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pyvpn.core.clientstate import TRANSITIONS, Input, State

#: Between two columns: what the longest input takes with an arrow's ends.
GAP = 16


def diagram(transitions: Mapping[tuple[State, Input], State] = TRANSITIONS) -> str:
    """One line for each transition: states are columns, an input is an arrow between two.

    An input that leaves the state as it is stands beside it after a ``↺``.
    """
    states = list(State)
    lines = ["".join(state.value.ljust(GAP + 1) for state in states)]
    lines.append(_row({}))
    for state in states:
        for input in Input:
            target = transitions.get((state, input))
            if target is not None:
                lines.append(_arrow(states.index(state), states.index(target), input.value))
        lines.append(_row({}))
    return "\n".join(line.rstrip() for line in _without_repetition(lines)) + "\n"


def _row(marks: Mapping[int, str]) -> str:
    """The lines of all states, with other characters at some places."""
    row = [" "] * ((GAP + 1) * len(State))
    for column in range(len(State)):
        row[column * (GAP + 1)] = "│"
    for place, mark in marks.items():
        row[place] = mark
    return "".join(row)


def _arrow(source: int, target: int, label: str) -> str:
    start, end = source * (GAP + 1), target * (GAP + 1)
    if source == target:
        return _row(dict(enumerate(f"↺ {label}", start + 2)))
    step = 1 if end > start else -1
    marks = dict.fromkeys(range(start, end, step), "─")
    marks |= {column * (GAP + 1): "┼" for column in range(source + step, target, step)}
    marks[start] = "├" if step > 0 else "┤"
    marks[end - step] = "▶" if step > 0 else "◀"
    # In the gap beside the state that it leaves, where the eye begins.
    first = min(start, start + step * (GAP + 1)) + (GAP + 1 - len(label) - 1) // 2
    return _row(marks | dict(enumerate(f" {label} ", first)))


def _without_repetition(lines: list[str]) -> Iterator[str]:
    previous = None
    for line in lines:
        if line != previous:
            yield line
        previous = line


if __name__ == "__main__":
    sys.stdout.write(diagram())
