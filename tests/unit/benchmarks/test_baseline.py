"""What counts as worse than before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from benchmarks.baseline import best, ratios, unmeasured, worse
from benchmarks.figures import Figure
from benchmarks.report import Outcome
from benchmarks.suite import MEMBERS

ROOT: Final = Path(__file__).parents[3]


def outcome(ratio: float, name: str = "a delivery, CPU", *, higher: bool = False) -> Outcome:
    figure = Figure(name, ratio, 1.0, "us", "floor", higher_is_better=higher)
    return Outcome("one", "The first", (figure,))


def test_only_cpu_is_written_down() -> None:
    found = [outcome(1.23456), outcome(2.0, "an answer, p50")]
    assert ratios(found[:1]) == {"one": {"a delivery, CPU": 1.235}}
    assert ratios(found[1:]) == {}
    of_unit = Figure("a delivery", 1.0, 1.0, "CPU us", "floor")
    assert of_unit.of_cpu


def test_a_quarter_more_is_worse_and_less_is_not() -> None:
    before = {"one": {"a delivery, CPU": 1.0}}
    assert worse([outcome(1.25)], before) == []
    [found] = worse([outcome(1.26)], before)
    assert str(found) == "a delivery, CPU: 1.26 × floor, which was 1.00"
    assert worse([outcome(0.1)], before) == []


def test_what_is_to_be_high_is_worse_when_it_is_low() -> None:
    before = {"one": {"a delivery, CPU": 10.0}}
    assert worse([outcome(8.0, higher=True)], before) == []
    assert len(worse([outcome(7.9, higher=True)], before)) == 1
    assert worse([outcome(100.0, higher=True)], before) == []


def test_a_new_figure_and_another_benchmark_are_not_compared() -> None:
    assert worse([outcome(9.0)], {"one": {"another": 1.0}, "two": {"a delivery, CPU": 1.0}}) == []


def test_a_figure_that_is_gone_is_named() -> None:
    before = {"one": {"a delivery, CPU": 1.0, "gone": 1.0}, "two": {"not asked for": 1.0}}
    assert unmeasured([outcome(1.0)], before) == ["The first: gone"]
    assert unmeasured([Outcome("one", "The first", skipped="no cc")], before) == [
        "The first: a delivery, CPU",
        "The first: gone",
    ]


def test_of_two_runs_the_better_figure_counts() -> None:
    for one, other in ((1.5, 1.2), (1.2, 1.5)):
        assert best(outcome(one), outcome(other)).figures[0].ratio == 1.2
        high = best(outcome(one, higher=True), outcome(other, higher=True))
        assert high.figures[0].ratio == 1.5
    failed = Outcome("one", "The first", failure="no")
    assert best(failed, outcome(1.0)).figures[0].ratio == 1.0
    assert best(outcome(1.0), failed).figures[0].ratio == 1.0


def test_the_baseline_is_of_benchmarks_of_the_suite() -> None:
    baseline = json.loads((ROOT / "benchmarks" / "baseline.json").read_text(encoding="utf-8"))
    assert baseline
    assert set(baseline) <= {member.name for member in MEMBERS}
    assert all(ratio > 0 for figures in baseline.values() for ratio in figures.values())
