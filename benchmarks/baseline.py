"""Compares ratios of CPU with those of before: what got worse by a quarter is named.

Times on the wall are not compared: other programs on the machine disturb them too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.figures import Figure
from benchmarks.report import Outcome, number

__all__ = ["WORSE_MAX", "Baseline", "Worse", "best", "ratios", "unmeasured", "worse"]

# More than noise between quiet runs, and less than what a careless line in a hot path costs.
WORSE_MAX: Final = 1.25

# Ratios by figure, by benchmark.
Baseline = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Worse:
    """A figure of the benchmark `member` that got worse: its ratio before, and now."""

    member: str
    figure: Figure
    before: float

    def __str__(self) -> str:
        return (
            f"{self.figure.name}: {number(self.figure.ratio)} × {self.figure.floor_name}, "
            f"which was {number(self.before)}"
        )


def ratios(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float]]:
    """What is written down: the ratios of CPU. Benchmarks without any are left out."""
    found = {
        outcome.name: {
            figure.name: round(figure.ratio, 3) for figure in outcome.figures if figure.of_cpu
        }
        for outcome in outcomes
    }
    return {name: figures for name, figures in found.items() if figures}


def worse(outcomes: Iterable[Outcome], baseline: Baseline) -> list[Worse]:
    """The figures that are more than WORSE_MAX times as bad as in `baseline`."""
    found: list[Worse] = []
    for outcome in outcomes:
        before = baseline.get(outcome.name, {})
        found += [
            Worse(outcome.name, figure, before[figure.name])
            for figure in outcome.figures
            if figure.name in before and _factor(figure, before[figure.name]) > WORSE_MAX
        ]
    return found


def unmeasured(outcomes: Sequence[Outcome], baseline: Baseline) -> list[str]:
    """Figures of `baseline` that a benchmark among `outcomes` does not have: one that nobody
    measures any longer cannot get worse.
    """
    return [
        f"{outcome.title}: {name}"
        for outcome in outcomes
        for name in baseline.get(outcome.name, {})
        if name not in {figure.name for figure in outcome.figures}
    ]


def best(one: Outcome, other: Outcome) -> Outcome:
    """Of each figure the better one, of two runs of a benchmark."""
    again = {figure.name: figure for figure in other.figures}
    if not one.figures:
        return other
    figures = []
    for figure in one.figures:
        candidate = again.get(figure.name, figure)
        figures.append(candidate if _factor(candidate, figure.ratio) < 1 else figure)
    return Outcome(one.name, one.title, tuple(figures), one.notes, took_s=one.took_s + other.took_s)


def _factor(figure: Figure, before: float) -> float:
    """How many times as bad as `before` its ratio is. Below 1: better."""
    if figure.higher_is_better:
        return before / figure.ratio if figure.ratio else float("inf")
    return figure.ratio / before if before else float("inf")
