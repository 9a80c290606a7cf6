"""Draws histograms and progress as lines of text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from roomcast.bench.histogram import VALUE_US_MAX, LatencyHistogram

__all__ = ["ROWS_MAX", "chart", "milliseconds", "progress_bar"]

ROWS_MAX: Final = 12
_BAR_MIN: Final = 8
# The edges of rows within a decade, from fine to coarse. All of them are round numbers.
_STEPS: Final = (
    (10, 13, 16, 20, 25, 32, 40, 50, 63, 80),
    (10, 16, 25, 40, 63),
    (10, 20, 50),
    (10,),
)
# Eighths of a character cell.
_BLOCKS: Final = " ▏▎▍▌▋▊▉█"
_PLAIN: Final = " #"


def milliseconds(value_us: float) -> str:
    """Three digits that count: "0.04", "1.23", "12.3", "123", "1,234"."""
    value = value_us / 1000
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def chart(histogram: LatencyHistogram, width: int, *, blocks: bool) -> list[str]:
    """A line for each range of durations in ms, with a bar and a count. ROWS_MAX lines at most.

    `width`: columns for a line, as far as its numbers leave room. `blocks`: whether bars may be
    drawn with block characters, else with "#". A range that holds anything has a visible bar.
    """
    rows = _rows(histogram)
    if not rows:
        return []
    labels = [f"{milliseconds(lower)} - {milliseconds(upper)}" for lower, upper, _ in rows]
    numbers = [f"{count:,}" for _, _, count in rows]
    left, right = max(map(len, labels)), max(map(len, numbers))
    room = max(width - left - right - 4, _BAR_MIN)
    most = max(count for _, _, count in rows)
    return [
        f"{label:>{left}}  {_bar(count / most, room, blocks=blocks):<{room}}  {number:>{right}}"
        for label, number, (_, _, count) in zip(labels, numbers, rows, strict=True)
    ]


def progress_bar(done: float, told: str, width: int, *, blocks: bool) -> str:
    """One line of exactly `width` columns, at least: a bar that is filled by `done` (0 to 1), and
    what is `told` beside it. A line that would be too long is cut.
    """
    room = max(min(width - len(told) - 4, 40), _BAR_MIN)
    full, empty = ("█", "░") if blocks else ("#", ".")
    filled = int(min(max(done, 0.0), 1.0) * room)
    return f"{full * filled}{empty * (room - filled)}  {told}"[:width].ljust(width)


def _rows(histogram: LatencyHistogram) -> list[tuple[int, int, int]]:
    """(from, to, count) in µs, without a gap from the first filled row to the last one."""
    if not histogram.count:
        return []
    rows: list[tuple[int, int, int]] = []
    for steps in _STEPS:
        edges = _edges(steps)
        counts = [0] * len(edges)
        for lower_us, count in histogram.counts():
            counts[bisect_right(edges, lower_us) - 1] += count
        filled = [place for place, count in enumerate(counts) if count]
        first, last = filled[0], filled[-1]
        rows = [(edges[place], edges[place + 1], counts[place]) for place in range(first, last + 1)]
        if len(rows) <= ROWS_MAX:
            break
    assert len(rows) <= ROWS_MAX, "there are fewer decades than that"
    return rows


def _edges(steps: Sequence[int]) -> list[int]:
    """0, then those of each decade from 10 µs to beyond VALUE_US_MAX."""
    edges, decade = [0], 1
    while edges[-1] <= VALUE_US_MAX:
        edges += [step * decade for step in steps]
        decade *= 10
    return edges


def _bar(share: float, room: int, *, blocks: bool) -> str:
    if not share:
        return ""
    marks = _BLOCKS if blocks else _PLAIN
    parts = len(marks) - 1
    full, rest = divmod(max(round(share * room * parts), 1), parts)
    return marks[-1] * full + (marks[rest] if rest else "")
