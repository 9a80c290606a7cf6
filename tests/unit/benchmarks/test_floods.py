"""What the benchmarks of floods make of what they measured."""

from __future__ import annotations

import pytest

from benchmarks import floods, json_floods
from benchmarks.floods import MAX_MS, NONE, SILENT_MAX_MS, figures, missed


def test_each_flood_is_held_against_rounds_without_one() -> None:
    pings, pongs = figures({NONE: [1.0, 9.0, 2.0], "pings": [40.0, 8.0, 5.0], "pongs": [2.0, 2.0]})
    assert (pings.value, pings.floor, pings.ratio, pings.rounds) == (8.0, 2.0, 4.0, 3)
    assert pings.name == "pings, p95 of a neighbour"
    assert (pongs.value, pongs.ratio) == (2.0, 1.0)


def test_a_neighbour_that_waits_too_long_is_named() -> None:
    within, beyond = figures({NONE: [1.0], "pings": [MAX_MS], "pongs": [MAX_MS + 1]})
    assert missed([within]) == []
    assert missed([within, beyond]) == ["pongs, p95 of a neighbour: 51 ms, more than 50"]
    assert missed([beyond], SILENT_MAX_MS) == []


def test_frames_that_are_slow_to_read_are_held_against_all_rounds_without_them() -> None:
    found = json_floods._figures({"one": [(1.0, 10.0), (3.0, 30.0)], "two": [(2.0, 5.0)]})
    assert [(each.value, each.floor) for each in found] == [(20.0, 2.0), (5.0, 2.0)]


@pytest.mark.parametrize("asked, name", [((), "floods"), (("silent",), "silent")])
def test_what_was_missed_is_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], name: str
) -> None:
    monkeypatch.setattr(floods, "end_in_time", lambda: None)
    monkeypatch.setattr(floods, name, lambda: ["one", "two"])
    with pytest.raises(SystemExit, match="one\ntwo"):
        floods.main(*asked)
    monkeypatch.setattr(floods, name, list)
    floods.main(*asked)
