"""What the benchmarks found, as a table, as JSON, and as a part of docs/benchmarks.md."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.chart import Kind, Row, dots
from benchmarks.figures import Figure
from roomcast.cli import terminal

__all__ = ["BEGIN", "END", "Outcome", "as_json", "charts", "number", "table", "with_figures"]

BEGIN: Final = "<!-- begin of the figures: python -m benchmarks --out docs/benchmarks.md -->\n"
END: Final = "<!-- end of the figures -->\n"
COLUMNS_MAX: Final = 100
# A member of its own: which figures it has is known here, for the chart.
PEERS: Final = "peer_fanout"
PEERS_CHART: Final = "benchmarks-peers.svg"
BOUNDS_CHART: Final = "benchmarks-aims.svg"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one benchmark. `skipped`, `failure`: why there are no figures."""

    name: str
    title: str
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str | None = None
    failure: str | None = None
    took_s: float = 0.0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Outcome:
        """The outcome that `dataclasses.asdict` made `fields` of, also if they were JSON since."""
        figures = tuple(Figure(**each) for each in fields["figures"])
        return cls(**{**fields, "figures": figures, "notes": tuple(fields["notes"])})


def number(value: float) -> str:
    """Three digits at least: "9,120", "83.1", "1.27"."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def amount(value: float, unit: str) -> str:
    """A value with its unit."""
    return f"{number(value)} {'µs' if unit == 'us' else unit}"


def aim(figure: Figure) -> str:
    """The ratio that is aimed at: "≤ 1.30", or nothing."""
    if figure.bound is None:
        return ""
    return f"{'≥' if figure.higher_is_better else '≤'} {number(figure.bound)}"


def verdict(figure: Figure) -> str:
    """In a word."""
    if figure.bound is None:
        return ""
    return "met" if figure.met else "missed"


def table(outcomes: Iterable[Outcome], coloured: bool) -> str:
    """Lines for a terminal: every figure under the title of its benchmark, and then the notes."""
    rows: list[list[str]] = []
    told: list[str] = []
    for outcome in outcomes:
        if outcome.title:
            rows.append([outcome.title, *[""] * 6])
        indent = "  " if outcome.title else ""
        rows += [
            [
                indent + figure.name,
                amount(figure.value, figure.unit),
                amount(figure.floor, figure.unit),
                figure.floor_name,
                number(figure.ratio),
                aim(figure),
                verdict(figure),
            ]
            for figure in outcome.figures
        ]
        why = _why_not(outcome)
        told += [f"{outcome.title}: {why}"] if why else []
        told += [f"{outcome.title}: {note}" if outcome.title else note for note in outcome.notes]
    heads = ["FIGURE", "MEASURED", "FLOOR", "WHICH IS", "RATIO", "AIM", ""]
    colours = {"met": "green", "missed": "red"}
    lines = terminal.table(
        heads, rows, (lambda row: colours.get(row[-1], "")) if coloured else None
    )
    return "\n".join([lines, *(["", *told] if told else [])])


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All of it, with the ratios, which follow from the rest."""
    return {
        "benchmarks": [
            {
                "name": outcome.name,
                "title": outcome.title,
                "took_s": round(outcome.took_s, 1),
                "skipped": outcome.skipped,
                "failure": outcome.failure,
                "notes": list(outcome.notes),
                "figures": [
                    {
                        "name": figure.name,
                        "value": figure.value,
                        "floor": figure.floor,
                        "unit": figure.unit,
                        "floor_name": figure.floor_name,
                        # JSON has no infinity.
                        "ratio": figure.ratio if math.isfinite(figure.ratio) else None,
                        "bound": figure.bound,
                        "higher_is_better": figure.higher_is_better,
                        "met": figure.met,
                        "rounds": figure.rounds,
                    }
                    for figure in outcome.figures
                ],
            }
            for outcome in outcomes
        ]
    }


# ---- the page


def with_figures(page: str, outcomes: Sequence[Outcome], setting: Sequence[str]) -> str:
    """The text of the page with these figures. `setting`: machine, versions and date, a line each.

    Raises ValueError if the page has no place for them.
    """
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"the page has no {BEGIN.strip()} … {END.strip()}")
    return f"{before}{BEGIN}\n{_part(outcomes, setting)}\n{END}{after}"


def charts(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The pictures of the page: the name of the file, and its SVG."""
    found = {}
    if rows := _peer_rows(outcomes):
        found[PEERS_CHART] = dots(
            "CPU of a delivery",
            "µs of one publication to one of 1,000 subscribers. Each line is one server.",
            rows,
        )
    if rows := _aim_rows(outcomes):
        found[BOUNDS_CHART] = dots(
            "Figures and aims",
            "Each figure in parts of its aim: up to 1 it is met.",
            rows,
            mark=1.0,
        )
    return found


def _part(outcomes: Sequence[Outcome], setting: Sequence[str]) -> str:
    drawn = charts(outcomes)
    parts = [_listed(setting)]
    if PEERS_CHART in drawn:
        rows = _peer_rows(outcomes)
        said = "; ".join(f"{row.label} {row.text}" for row in rows)
        parts.append(f"![CPU of a delivery in µs: {said}]({PEERS_CHART})\n")
    if BOUNDS_CHART in drawn:
        rows = _aim_rows(outcomes)
        met = sum(row.kind is Kind.OURS for row in rows)
        parts.append(f"![{met} of {len(rows)} aims are met; the table has them]({BOUNDS_CHART})\n")
    parts += [_section(outcome) for outcome in outcomes]
    return "\n".join(parts)


def _section(outcome: Outcome) -> str:
    """One benchmark: a heading, its table, its notes."""
    text = f"### {outcome.title}\n\n    python -m benchmarks {outcome.name}\n\n"
    if why := _why_not(outcome):
        return text + _wrapped(why)
    text += "| figure | measured | floor | ratio | aim | |\n| --- | --- | --- | --- | --- | --- |\n"
    for figure in outcome.figures:
        cells = [
            figure.name,
            amount(figure.value, figure.unit),
            f"{amount(figure.floor, figure.unit)} ({figure.floor_name})",
            number(figure.ratio),
            aim(figure),
            verdict(figure),
        ]
        text += f"| {' | '.join(cells)} |\n"
    if outcome.notes:
        text += f"\n{_listed(outcome.notes)}"
    return text


def _listed(lines: Iterable[str]) -> str:
    """A list in Markdown, wrapped."""
    return "".join(_wrapped(f"- {line}", "  ") for line in lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, COLUMNS_MAX, subsequent_indent=indent) + "\n"


def _why_not(outcome: Outcome) -> str:
    if outcome.skipped is not None:
        return f"not measured here: {outcome.skipped}"
    if outcome.failure is not None:
        return f"failed: {outcome.failure.splitlines()[-1]}"
    return ""


def _peer_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """The servers, the cheapest first, with the smallest number of subscribers."""
    figures = [
        figure for outcome in outcomes if outcome.name == PEERS for figure in outcome.figures
    ]
    if not figures:
        return []
    # As benchmarks/peer_fanout.py names them: "fan-out to 1,000 by NAME, CPU of a delivery".
    first = figures[0].name.partition(" by ")[0]
    figures = [figure for figure in figures if figure.name.startswith(f"{first} by ")]
    ours = figures[0]
    rows = [Row(ours.floor_name, ours.floor, f"{number(ours.floor)} µs", Kind.OURS, strong=True)]
    for figure in figures:
        label = figure.name.partition(" by ")[2].rpartition(", ")[0]
        text = f"{number(figure.value)} µs, {number(figure.ratio)} × roomcast"
        rows.append(Row(label, figure.value, text, Kind.OTHER))
    return sorted(rows, key=lambda row: row.value)


def _aim_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """The figures that have an aim: what part of it they are, 1 or less if it is met."""
    rows = []
    for outcome in outcomes:
        for figure in outcome.figures:
            if not figure.bound or not figure.ratio or not math.isfinite(figure.ratio):
                continue
            part = figure.ratio / figure.bound
            part = 1 / part if figure.higher_is_better else part
            kind = Kind.OURS if figure.met else Kind.MISSED
            text = f"{number(figure.ratio)}, aim {aim(figure)}, {verdict(figure)}"
            rows.append(Row(figure.name, part, text, kind))
    return rows
