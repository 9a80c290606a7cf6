"""`roomcast drain` against a server whose answers the test says: what it prints, and how it
ends.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import pytest

from roomcast.cli import drain as drain_module
from roomcast.cli import main as cli
from roomcast.cli.terminal import Failed

Answers = Iterator[dict[str, Any] | Failed]
Say = Callable[..., list[tuple[str, Mapping[str, Any]]]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Has calls answered as told. Returns the calls, as they come."""
    monkeypatch.setattr(drain_module, "LOOK_S", 0.0)

    def say(*answers: dict[str, Any] | Failed) -> list[tuple[str, Mapping[str, Any]]]:
        calls: list[tuple[str, Mapping[str, Any]]] = []
        left = iter(answers)

        def call(_: argparse.Namespace, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
            calls.append((method, params))
            answer = next(left)
            if isinstance(answer, Failed):
                raise answer
            return answer

        monkeypatch.setattr(drain_module, "call", call)
        return calls

    return say


def here(connections: int, *, is_here: bool = False) -> dict[str, Any]:
    return {"num_clients": connections, "here": is_here}


def info(*nodes: str) -> dict[str, Any]:
    return {"nodes": [{"uid": node} for node in nodes]}


def test_it_waits_until_the_node_is_gone(
    say: Say, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, str]] = []
    monkeypatch.setattr(
        drain_module,
        "progress_line",
        lambda: nullcontext(lambda done, what: told.append((round(done, 2), what))),
    )
    # At last it does not answer any more, and its lease is still there.
    calls = say(*(here(3), info("a", "b"), here(1), info("a", "b"), Failed("no answer"), info("a")))
    assert cli.main(["drain", "b"]) == 0
    assert capsys.readouterr() == ("b has ended; it had 3 connections.\n", "")
    assert told == [
        (0.0, "3 connections left"),
        (0.67, "1 connection left"),
        (0.67, "1 connection left"),
    ]
    assert [method for method, _ in calls] == ["drain", "info", "drain", "info", "drain", "info"]
    assert calls[0] == ("drain", {"node": "b"})


def test_it_need_not_wait(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    say(here(3))
    assert cli.main(["drain", "b", "--wait", "0"]) == 0
    assert capsys.readouterr().out == "b drains; it had 3 connections.\n"


def test_who_drains_cannot_be_asked(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    say(here(1, is_here=True))
    assert cli.main(["drain", "b"]) == 0
    assert "answered itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answers, ended", [([here(0), info()], True), ([here(0, is_here=True)], False)]
)
def test_json(
    say: Say, capsys: pytest.CaptureFixture[str], answers: list[dict[str, Any]], ended: bool
) -> None:
    say(*answers)
    assert cli.main(["drain", "b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"node": "b", **answers[0], "ended": ended}


def test_one_that_takes_too_long_is_a_failure(
    say: Say, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.0, 0.0, 7.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    say(here(3), info("b"), here(2))
    assert cli.main(["drain", "b", "--wait", "7"]) == 1
    told = "roomcast: b has not ended within 7 s: 2 connections left\n"
    assert capsys.readouterr() == ("", told)


@pytest.mark.parametrize("answers", [[Failed("drain: no")], [here(1), Failed("gone")], [{}]])
def test_what_the_server_says_instead_is_told(
    say: Say, capsys: pytest.CaptureFixture[str], answers: list[dict[str, Any] | Failed]
) -> None:
    say(*answers)
    assert cli.main(["drain", "b"]) == 1
    assert capsys.readouterr().err.startswith("roomcast: ")
