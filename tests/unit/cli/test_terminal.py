"""Tables, spans of time, and who gets colours."""

from __future__ import annotations

import io
import sys

import pytest

from roomcast.cli.terminal import has_colours, progress, progress_line, span, table


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "milliseconds, told",
    [
        (-5, "0s"),
        (0, "0s"),
        (999, "0s"),
        (61_000, "1m 1s"),
        (3_600_000, "1h"),
        (3_600_000 * 25 + 59_000, "1d 1h"),
        (86_400_000 + 59_000, "1d"),
    ],
)
def test_how_long(milliseconds: int, told: str) -> None:
    assert span(milliseconds) == told


def test_columns_stand_under_their_headings() -> None:
    rows = [("a-long-name", "1", "x"), ("b", "200", "")]
    assert table(("NAME", "COUNT", "REST"), rows, None).split("\n") == [
        "NAME         COUNT  REST",
        "a-long-name      1  x",
        "b              200",
    ]


def test_texts_of_others_are_told_to_no_terminal() -> None:
    """What stands in a table of the fleet, anybody may have written who may write there."""
    rows = [("\x1b[2J\u202e\x9b", "é"), ("b", "\n")]
    assert table(("NODE", "QUEUE"), rows, None).split("\n") == [
        "NODE               QUEUE",
        r"\x1b[2J\u202e\x9b  é",
        r"b                  \n",
    ]


def test_colours_end_with_their_line() -> None:
    lines = table(("A",), [("x",), ("y",)], lambda row: "red" if row[0] == "x" else "").split("\n")
    assert lines == ["\x1b[1mA\x1b[0m", "\x1b[31mx\x1b[0m", "y"]


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_colours(Screen())
    assert not has_colours(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colours(Screen())
    monkeypatch.delenv("TERM")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colours(Screen())


@pytest.mark.parametrize("stream, told", [(Screen(), "… half-way\n"), (io.StringIO(), "")])
def test_progress_is_for_who_watches(
    stream: io.StringIO, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    progress()("half-way")
    assert stream.getvalue() == told


def test_a_bar_is_drawn_in_one_line_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_line() as draw:
        draw(0.5, "12 left\x1b[2J")
        assert screen.getvalue().startswith("\r")
        assert "12 left\\x1b[2J" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")
    assert "\n" not in screen.getvalue()


def test_a_script_sees_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_line() as draw:
        draw(0.5, "12 left")
    assert stream.getvalue() == ""
