"""`roomcast replay` against a node over memory: each line once, in order, and where it stops."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roomcast.cli import main as cli
from roomcast.cli import replay as replay_module
from roomcast.cli import server_api
from roomcast.cli.replay import BATCH_LINES_MAX, Pace
from roomcast.cli.server_api import CallFailed, batch, call
from tests.unit.served import KEY, Served

pytestmark = pytest.mark.usefixtures("quiet")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(served: Served) -> argparse.Namespace:
    return argparse.Namespace(url=served.url, key=KEY, config=None)


@pytest.fixture
def run(served: Served, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        given = ["--url", served.url, "--key", KEY]
        return cli.main([*arguments[:1], *given, *arguments[1:]]), *capsys.readouterr()

    return run


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those that were not waited for."""
    found: list[float] = []
    monkeypatch.setattr(server_api.Calls.__init__, "__defaults__", (found.append,))
    return found


def line(offset: int, **more: Any) -> str:
    told = {"channel": "from", "epoch": "0.e", "offset": offset, "data": {"n": offset}, **more}
    return json.dumps(told) + "\n"


def file_of(tmp_path: Path, *texts: str) -> str:
    path = tmp_path / "it.jsonl"
    path.write_text("".join(texts))
    return str(path)


def published(server: argparse.Namespace, channel: str) -> list[Any]:
    result = call(server, "history", {"channel": channel, "limit": -1})
    return [each["data"] for each in result["publications"]]


def numbers(server: argparse.Namespace, channel: str) -> list[int]:
    return [data["n"] for data in published(server, channel)]


def test_each_line_once_however_often(
    run: Run, server: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "BATCH_LINES_MAX", 10)
    count = 36
    lines = [line(n, tags={"n": str(n)}, time=5, info={"user": "ann"}) for n in range(1, count)]
    name = file_of(tmp_path, *lines)
    # As if it had been interrupted.
    partly = tmp_path / "part.jsonl"
    partly.write_text("".join(lines[:7]))
    assert run("replay", str(partly), "once")[0] == 0
    for _ in range(2):
        told = f"{count - 1} publications in once.\n"
        assert run("replay", name, "once") == (0, told, "")
    assert numbers(server, "once") == list(range(1, count))
    result = call(server, "history", {"channel": "once", "limit": 1})
    [first] = result["publications"]
    assert first["tags"] == {"n": "1"}
    assert "info" not in first
    assert first["time"] > 5


def test_from_a_line_on_and_from_a_pipe(
    run: Run, server: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line(n) for n in range(1, 6)]
    name = file_of(tmp_path, *lines)
    told = json.loads(run("replay", name, "later", "--from-line", "4", "--json")[1])
    assert told == {"published": 2, "last_line": 5}
    assert numbers(server, "later") == [4, 5]
    monkeypatch.setattr(
        sys, "stdin", argparse.Namespace(buffer=io.BytesIO("".join(lines).encode()))
    )
    assert run("replay", "-", "piped")[0] == 0
    assert numbers(server, "piped") == [1, 2, 3, 4, 5]
    assert run("replay", file_of(tmp_path), "nothing")[:2] == (0, "0 publications in nothing.\n")


def test_it_stops_at_the_first_that_fails(
    run: Run, server: argparse.Namespace, tmp_path: Path
) -> None:
    lines = [line(1), line(2), line(3, tags={"a": 1}), line(4)]
    name = file_of(tmp_path, *lines)
    code, out, err = run("replay", name, "stops")
    assert (code, out) == (1, "")
    assert err.startswith("roomcast: line 3: bad request: tags")
    assert err.endswith(
        f"2 lines are published: go on with roomcast replay {name} stops --from-line 3\n"
    )
    assert numbers(server, "stops") == [1, 2]
    assert run("replay", name, "stops", "--from-line", "4")[0] == 0
    assert numbers(server, "stops") == [1, 2, 4]
    for channel, code_told in (("no:where", "(102)"), ("plain:x", "(108)")):
        code, _, err = run("replay", name, channel)
        assert code == 1
        assert err.startswith("roomcast: line 1: ")
        assert code_told in err


@pytest.mark.parametrize(
    "bad, why",
    [
        ('{"channel":"from","ep', "line 3 is no JSON: it is torn; export --resume makes it whole"),
        ("{}\n", "line 3 has no channel, epoch and offset"),
        ("\n", "line 3 is no JSON;"),
        ('{"channel":"\\ud800","epoch":"e","offset":3,"data":3}\n', "line 3 has half a character"),
        (line(3, data="x" * 1024 * 1024), "line 3 has more than 1048576 bytes"),
    ],
    ids=["torn", "another", "empty", "half", "long"],
)
def test_what_is_before_a_line_that_is_none_is_published(
    run: Run, server: argparse.Namespace, tmp_path: Path, bad: str, why: str, request: Any
) -> None:
    channel = f"bad-{request.node.callspec.id}"
    code, out, err = run("replay", file_of(tmp_path, line(1), line(2), bad), channel)
    assert (code, out) == (1, "")
    assert why in err
    assert numbers(server, channel) == [1, 2]


def test_much_takes_several_requests(run: Run, server: argparse.Namespace, tmp_path: Path) -> None:
    """By bytes, and by arrays and objects; a character may take six bytes in a request."""
    large = [line(n, data={"n": n, "text": "é" * 500, "many": [[]] * 900}) for n in range(1, 80)]
    assert run("replay", file_of(tmp_path, *large), "much")[0] == 0
    assert numbers(server, "much") == list(range(1, 80))


def test_what_fails_in_passing_is_published_again(
    run: Run,
    server: argparse.Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
) -> None:
    """The answer is lost; then one within a request fails, and one behind it does not."""
    asked: list[int] = []
    busy = {"error": {"code": 111, "message": "too many requests"}}

    def failing(arguments: Any, commands: Any, **more: Any) -> Any:
        asked.append(len(commands))
        replies = batch(arguments, commands, **more)
        if len(asked) == 1:
            raise CallFailed("no answer", may_pass=True)
        return [replies[0], busy, *replies[2:]] if len(asked) == 2 else replies

    monkeypatch.setattr(replay_module, "batch", failing)
    name = file_of(tmp_path, *(line(n) for n in range(1, 6)))
    assert run("replay", name, "passing")[0] == 0
    assert asked == [5, 5, 4]
    assert len(pauses) == 2
    assert numbers(server, "passing") == [1, 2, 3, 4, 5]

    monkeypatch.setattr(replay_module, "batch", lambda _, commands, **__: [busy, *commands[1:]])
    code, _, err = run("replay", name, "passing", "--from-line", "2")
    assert code == 1
    assert "line 2: too many requests (111); 3 lines behind it are in the channel already" in err
    assert err.endswith("--from-line 2\n")
    assert len(pauses) == 2 + server_api.TRIES_MAX - 1


def test_an_interrupt_says_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pace.__init__, "__defaults__", (interrupted, lambda: 0.0))
    name = file_of(tmp_path, line(1), line(2), line(3))
    code, _, err = run("replay", name, "interrupted", "--rate", "1")
    told = f"interrupted; 1 lines are published: go on with roomcast replay {name} interrupted"
    assert (code, err) == (1, f"roomcast: {told} --from-line 2\n")


def test_a_rate_is_kept() -> None:
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    pace = Pace(50, sleep, lambda: now_s)
    assert pace.lines_max == 5
    for _ in range(20):
        pace.keep(5)
    assert now_s == pytest.approx(2.0)
    # What was slow is not caught up with.
    now_s += 60
    pace.keep(5)
    pace.keep(5)
    assert now_s == pytest.approx(62.1)
    assert Pace(0.5, sleep, lambda: now_s).lines_max == 1
    assert Pace(None).lines_max == Pace(5000).lines_max == BATCH_LINES_MAX
