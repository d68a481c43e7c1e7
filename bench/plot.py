"""Bars in SVG, written by hand: nothing is loaded from elsewhere, light and dark alike."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

WIDTH = 720
LEFT, RIGHT = 248, 190
BAR, STEP = 16, 26
TITLE = 34
MARGIN = 14

#: The kinds of bar: what we made, the prototype of it, others, the limit.
OURS, PROTOTYPE, RIVAL, LIMIT = "ours", "prototype", "rival", "limit"

STYLE = """
.plot { --paper: #ffffff; --ink: #1f2328; --pale: #59636e; --line: #d1d9e0;
  --ours: #2563c9; --prototype: #86aee8; --rival: #a3acb5; --limit: #e3e7eb; }
@media (prefers-color-scheme: dark) { .plot { --paper: #0d1117; --ink: #e6edf3; --pale: #9198a1;
  --line: #3d444d; --ours: #4c8df5; --prototype: #2f558f; --rival: #5f6873; --limit: #262c34; } }
.plot text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
.plot .title { font-weight: 600; font-size: 14px; }
.plot .pale { fill: var(--pale); font-size: 12px; }
.plot .paper { fill: var(--paper); }
.plot .axis { stroke: var(--line); stroke-width: 1; }
.plot .spread { stroke: var(--ink); stroke-width: 1.2; fill: none; }
.plot .break { stroke: var(--paper); stroke-width: 3; fill: none; }
.plot .ours { fill: var(--ours); }
.plot .prototype { fill: var(--prototype); }
.plot .rival { fill: var(--rival); }
.plot .limit { fill: var(--limit); }
"""


class Bar(NamedTuple):
    """One bar. ``low`` and ``high`` are the ends of its spread; ``note`` stands after it."""

    name: str
    value: float
    low: float
    high: float
    text: str
    note: str
    kind: str


def height(bars: list[Bar]) -> int:
    """How many pixels :func:`bars` takes."""
    return TITLE + STEP * len(bars) + MARGIN


def bars(title: str, unit: str, shown: list[Bar], top: int = 0) -> str:
    """A plot with a bar a line, its spread as a whisker, as an SVG group.

    The scale leaves the limit out, which may be many times all others: a bar that is longer than
    the scale is broken at its end and has its figure like any other.
    """
    scaled = [bar.high for bar in shown if bar.kind != LIMIT] or [bar.high for bar in shown]
    scale = (WIDTH - LEFT - RIGHT) / (max(scaled) * 1.04 or 1)
    end = WIDTH - RIGHT
    parts = [
        f'<g transform="translate(0 {top})">',
        f'<text class="title" x="{MARGIN}" y="22">{escape(title)}'
        f'<tspan class="pale" font-weight="400" dx="8">{escape(unit)}</tspan></text>',
    ]
    for number, bar in enumerate(shown):
        y = TITLE + STEP * number
        middle = y + BAR / 2
        length = min(max(bar.value * scale, 1), end - LEFT)
        parts.append(
            f'<text x="{LEFT - 10}" y="{middle + 4.5}" text-anchor="end">{escape(bar.name)}</text>'
            f'<rect class="{bar.kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}"'
            f' rx="2"><title>{escape(f"{bar.name}: {bar.text} {unit}")}</title></rect>'
        )
        if bar.value * scale > end - LEFT:
            at = end - 16
            parts.append(f'<path class="break" d="M{at} {y + BAR + 2}l8 -{BAR + 4}"/>')
            after = end
        else:
            low, high = (LEFT + min(x * scale, end - LEFT) for x in (bar.low, bar.high))
            parts.append(
                f'<path class="spread" d="M{low:.1f} {middle}H{high:.1f}'
                f'M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>'
            )
            after = max(LEFT + length, high)
        parts.append(
            f'<text x="{after + 8:.1f}" y="{middle + 4.5}">{escape(bar.text)}'
            f'<tspan class="pale" dx="8">{escape(bar.note)}</tspan></text>'
        )
    bottom = TITLE + STEP * len(shown) - STEP + BAR
    parts.append(f'<path class="axis" d="M{LEFT} {TITLE - 4}V{bottom + 4}"/></g>')
    return "\n".join(parts)


def picture(groups: list[str], pixels: int, about: str, style: str = "") -> str:
    """An ``<svg>`` of groups; with a style it stands alone, else it takes its page's."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" width="{WIDTH}"'
        f' height="{pixels}" viewBox="0 0 {WIDTH} {pixels}">\n<title>{escape(about)}</title>\n'
        + (f"<style>{style}</style>\n" if style else "")
        + f'<rect class="paper" width="{WIDTH}" height="{pixels}"/>\n'
        + "\n".join(groups)
        + "\n</svg>\n"
    )
