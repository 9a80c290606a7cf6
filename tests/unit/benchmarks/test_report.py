"""What the suite prints, and what it writes into its page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pytest

from benchmarks.figures import Figure
from benchmarks.report import (
    BEGIN,
    BOUNDS_CHART,
    END,
    PEERS_CHART,
    Outcome,
    as_json,
    charts,
    number,
    table,
    with_figures,
)

ROOT: Final = Path(__file__).parents[3]
SETTING: Final = ("measured on a quiet day", "two cores")


def figure(name: str = "a delivery, CPU", value: float = 3.0, **more: object) -> Figure:
    fields: dict[str, object] = {"floor": 2.0, "unit": "us", "floor_name": "C send loop"}
    return Figure(name=name, value=value, **{**fields, **more})  # type: ignore[arg-type]


def peer(name: str, value: float, bound: float | None = None) -> Figure:
    return figure(
        f"fan-out to 1,000 by {name}, CPU of a delivery",
        value,
        floor_name="roomcast",
        bound=bound,
        higher_is_better=True,
    )


FOUND: Final = (
    Outcome("one", "The first", (figure(bound=1.6), figure("other", 4.0, bound=1.5)), ("a 1.0",)),
    Outcome("two", "The second", skipped="needs a C compiler (cc)"),
    Outcome("three", "The third", failure="Traceback\nValueError: no"),
    Outcome("peer_fanout", "Peers", (peer("A", 4.0, 3.0), peer("B & C, both", 80.0))),
)


def test_numbers_have_three_digits() -> None:
    assert [number(each) for each in (9120.4, 306.2, 83.14, 1.274, 0.5)] == [
        "9,120",
        "306",
        "83.1",
        "1.27",
        "0.50",
    ]


def test_the_table_has_ratio_and_aim_and_says_what_is_not_there() -> None:
    lines = table(FOUND, coloured=False).splitlines()
    cells = [line.split() for line in lines]
    assert cells[0] == ["FIGURE", "MEASURED", "FLOOR", "WHICH", "IS", "RATIO", "AIM"]
    assert lines[1] == "The first"
    assert lines[2].endswith("1.50  ≤ 1.60  met")
    assert lines[3].endswith("2.00  ≤ 1.50  missed")
    assert "The first: a 1.0" in lines
    assert "The second: not measured here: needs a C compiler (cc)" in lines
    assert "The third: failed: ValueError: no" in lines
    assert not any("\x1b" in line for line in lines)


def test_colours_are_for_terminals_and_repeat_what_a_word_says() -> None:
    lines = table(FOUND, coloured=True).splitlines()
    [met] = [line for line in lines if "1.60  met" in line]
    [missed] = [line for line in lines if "1.50  missed" in line]
    assert met.startswith("\x1b[32m")
    assert missed.startswith("\x1b[31m")


def test_json_has_everything_and_no_infinity() -> None:
    endless = Outcome("four", "The fourth", (figure(floor=0.0),))
    text = json.dumps(as_json([*FOUND, endless]), allow_nan=False)
    found = {each["name"]: each for each in json.loads(text)["benchmarks"]}
    assert found["one"]["figures"][0]["ratio"] == 1.5
    assert found["one"]["figures"][1]["met"] is False
    assert found["two"]["skipped"] == "needs a C compiler (cc)"
    assert found["four"]["figures"][0]["ratio"] is None


def test_an_outcome_comes_back_from_json() -> None:
    for outcome in FOUND:
        assert Outcome.of(json.loads(json.dumps(asdict(outcome)))) == outcome


def test_figures_are_put_into_their_place_and_nothing_else_is_touched() -> None:
    page = f"# Page\n\nBefore.\n\n{BEGIN}\nold\n{END}\nAfter.\n"
    written = with_figures(page, FOUND, SETTING)
    assert written.startswith(f"# Page\n\nBefore.\n\n{BEGIN}")
    assert written.endswith(f"{END}\nAfter.\n")
    assert "old" not in written
    assert with_figures(written, FOUND, SETTING) == written
    assert "- measured on a quiet day\n- two cores\n" in written
    assert "| other | 4.00 µs | 2.00 µs (C send loop) | 2.00 | ≤ 1.50 | missed |" in written
    assert (
        "### The second\n\n    python -m benchmarks two\n\nnot measured here: needs a C" in written
    )
    assert "roomcast 2.00 µs; A 4.00 µs, 2.00 × roomcast" in written
    assert f"]({PEERS_CHART})" in written
    assert f"![1 of 3 aims are met; the table has them]({BOUNDS_CHART})" in written


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="begin of the figures"):
        with_figures("# Page\n", FOUND, SETTING)


def test_the_page_has_its_place() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert with_figures(page, FOUND, SETTING) != page


def test_there_are_charts_of_what_there_is() -> None:
    assert set(charts(FOUND)) == {PEERS_CHART, BOUNDS_CHART}
    assert charts(FOUND[1:3]) == {}
    drawn = charts(FOUND)[PEERS_CHART]
    assert "B &amp; C, both: 80.0 µs, 40.0 × roomcast" in drawn
    # More than its aim of what is to be high is on the good side.
    assert "1.50, aim ≤ 1.60, met" in charts(FOUND)[BOUNDS_CHART]
    assert "2.00, aim ≥ 3.00, missed" in charts(FOUND)[BOUNDS_CHART]
