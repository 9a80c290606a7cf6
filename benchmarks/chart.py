"""Draws a dot plot as SVG: a line for each value, on an axis whose steps are factors.

A factor looks the same everywhere on such an axis, and factors are what is compared. Everything
that a colour says, a shape and a text say too. The background is the picture's own, light or dark
as the reader's system is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final
from xml.sax.saxutils import escape

__all__ = ["STYLE", "Kind", "Row", "dots", "steps"]

# All lengths are in px at the picture's original size.
ROW_HEIGHT: Final = 30
HEAD_HEIGHT: Final = 74
FOOT_HEIGHT: Final = 44
MARGIN: Final = 24
AXIS_WIDTH: Final = 330
CHARACTER_WIDTH: Final = 7.6
RADIUS: Final = 6
GAP: Final = 14
# Of an axis: 1, 2, 5, 10, 20, …, and of one that spans less than FINE.
MANTISSAS: Final = (1, 2, 5)
FINE_MANTISSAS: Final = (1, 1.5, 2, 3, 5, 7)
FINE: Final = 10

# Text has a contrast of 4.5 to its background at least (WCAG 2.2, 1.4.3), shapes of 3 (1.4.11).
STYLE: Final = """
    .paper { fill: #ffffff; stroke: #d0d7de; }
    text { fill: #1f2328; }
    .title { font-weight: 600; font-size: 17px; }
    .strong { font-weight: 600; }
    .note { fill: #57606a; }
    .step { fill: #57606a; font-size: 13px; }
    .grid { stroke: #d8dee4; }
    .mark { stroke: #57606a; stroke-width: 2; stroke-dasharray: 5 4; }
    .ours { fill: #0969da; stroke: #0969da; }
    .other { fill: #ffffff; stroke: #57606a; stroke-width: 2.5; }
    .missed { fill: #bc4c00; stroke: #bc4c00; }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #0d1117; stroke: #30363d; }
      text { fill: #e6edf3; }
      .note { fill: #9aa4af; }
      .step { fill: #9aa4af; }
      .grid { stroke: #272d35; }
      .mark { stroke: #9aa4af; }
      .ours { fill: #58a6ff; stroke: #58a6ff; }
      .other { fill: #0d1117; stroke: #9aa4af; }
      .missed { fill: #f0883e; stroke: #f0883e; }
    }
"""


class Kind(Enum):
    """The shape of a value: a disc, a ring, or a diamond."""

    OURS = "ours"
    OTHER = "other"
    MISSED = "missed"


@dataclass(frozen=True, slots=True)
class Row:
    """One value, above 0. `text` says it beside its shape. `strong`: in bold."""

    label: str
    value: float
    text: str
    kind: Kind
    strong: bool = False


def steps(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5, 10, …) from one that is at most `low` to one that is at least `high`,
    two at least.
    """
    mantissas = FINE_MANTISSAS if high / low < FINE else MANTISSAS
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    all_ = [mantissa * 10.0**power for power in range(first, last + 1) for mantissa in mantissas]
    begin = max(each for each in all_ if each <= low)
    end = min(each for each in all_ if each >= high and each > begin)
    return [each for each in all_ if begin <= each <= end]


def dots(title: str, description: str, rows: Sequence[Row], mark: float | None = None) -> str:
    """The SVG, with each row of `rows`, one at least. `mark`: a value with a line through all rows.

    Everything drawn is said in its description as well.
    """
    values = [row.value for row in rows] + ([] if mark is None else [mark])
    axis = steps(min(values), max(values))
    return "".join(_drawn(title, description, rows, axis, mark))


def _drawn(
    title: str, description: str, rows: Sequence[Row], axis: Sequence[float], mark: float | None
) -> Iterator[str]:
    left = MARGIN + max(len(row.label) for row in rows) * CHARACTER_WIDTH + GAP
    right = left + AXIS_WIDTH
    texts = right + GAP + RADIUS
    widest = max(len(row.text) for row in rows) * CHARACTER_WIDTH
    width = round(max(texts + widest, MARGIN + len(description) * CHARACTER_WIDTH) + MARGIN)
    bottom = HEAD_HEIGHT + len(rows) * ROW_HEIGHT
    height = bottom + FOOT_HEIGHT

    def across(value: float) -> float:
        part = math.log(value / axis[0]) / math.log(axis[-1] / axis[0])
        return left + part * AXIS_WIDTH

    said = "; ".join(f"{row.label}: {row.text}" for row in rows)
    yield (
        "<!-- python -m benchmarks -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-labelledby="title desc"\n'
        "  font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\" "
        'font-size="14">\n'
        f'  <title id="title">{escape(title)}</title>\n'
        f'  <desc id="desc">{escape(f"{description} {said}.")}</desc>\n'
        f"  <style>{STYLE}  </style>\n"
        f'  <rect class="paper" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" '
        'rx="6"/>\n'
        f'  <text class="title" x="{MARGIN}" y="32">{escape(title)}</text>\n'
        f'  <text class="note" x="{MARGIN}" y="54">{escape(description)}</text>\n'
    )
    for step in axis:
        at = across(step)
        yield (
            f'  <line class="grid" x1="{at:.1f}" y1="{HEAD_HEIGHT}" x2="{at:.1f}" y2="{bottom}"/>\n'
            f'  <text class="step" x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">'
            f"{step:g}</text>\n"
        )
    if mark is not None:
        at = across(mark)
        yield (
            f'  <line class="mark" x1="{at:.1f}" y1="{HEAD_HEIGHT}" x2="{at:.1f}" y2="{bottom}"/>\n'
        )
    for index, row in enumerate(rows):
        y = HEAD_HEIGHT + (index + 0.5) * ROW_HEIGHT
        strong = ' class="strong"' if row.strong else ""
        yield (
            f'  <text{strong} x="{left - GAP:.1f}" y="{y + 5:.1f}" text-anchor="end">'
            f"{escape(row.label)}</text>\n"
            f"  {_shape(row.kind, across(row.value), y)}\n"
            f'  <text{strong} x="{texts:.1f}" y="{y + 5:.1f}">{escape(row.text)}</text>\n'
        )
    yield "</svg>\n"


def _shape(kind: Kind, x: float, y: float) -> str:
    if kind is Kind.MISSED:
        far = RADIUS + 1.5
        points = f"{x:.1f},{y - far:.1f} {x + far:.1f},{y:.1f} {x:.1f},{y + far:.1f}"
        return f'<polygon class="{kind.value}" points="{points} {x - far:.1f},{y:.1f}"/>'
    return f'<circle class="{kind.value}" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"/>'
