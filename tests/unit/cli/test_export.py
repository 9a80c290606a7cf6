"""`roomcast export` against a node over memory: what is in the file, how it is gone on with, and
what is told of what cannot be had.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from roomcast.cli import export as export_module
from roomcast.cli import main as cli
from roomcast.cli import server_api
from roomcast.cli.server_api import CallFailed, batch, call
from tests.unit.served import KEY, Served

pytestmark = pytest.mark.usefixtures("quiet")

# Publications in one answer: so that there are pages.
PAGE: Final = 4

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def paged() -> Iterator[Served]:
    started = Served(key=KEY, history_max_publication_limit=PAGE)
    yield started
    started.close()


@pytest.fixture
def server(paged: Served) -> argparse.Namespace:
    return argparse.Namespace(url=paged.url, key=KEY, config=None)


@pytest.fixture
def run(paged: Served, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        given = ["--url", paged.url, "--key", KEY]
        return cli.main([*arguments[:1], *given, *arguments[1:]]), *capsys.readouterr()

    return run


def fill(server: argparse.Namespace, channel: str, count: int) -> str:
    """The epoch."""
    publications = [{"channel": channel, "data": n, "tags": {"n": str(n)}} for n in range(count)]
    replies = batch(server, [{"publish": each} for each in publications])
    return str(replies[0]["publish"]["epoch"])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def offsets(path: Path) -> list[int]:
    return [line["offset"] for line in lines(path.read_text())]


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, by: BaseException) -> None:
    """The call behind the first `after` is `by`."""
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise by
        return call(*arguments)

    monkeypatch.setattr(export_module, "call", counted)


def test_all_that_is_shown(run: Run, server: argparse.Namespace, tmp_path: Path) -> None:
    epoch = fill(server, "all", 10)
    code, out, err = run("export", "all")
    assert (code, err) == (0, "")
    told = lines(out)
    assert [line["data"] for line in told] == list(range(10))
    first = {"channel": "all", "epoch": epoch, "offset": 1, "time": told[0]["time"]}
    assert told[0] == {**first, "data": 0, "tags": {"n": "0"}}
    path = tmp_path / "all.jsonl"
    code, summary, err = run("export", "all", "--output", str(path))
    assert (code, err) == (0, "")
    assert summary == f"10 publications, offsets 1 to 10, epoch {epoch}: {path}\n"
    assert path.read_text() == out
    assert run("export", "all", "--output", str(path))[::2] == (
        1,
        f"roomcast: {path} is there: go on with --resume, or name another file\n",
    )
    assert run("export", "empty") == (0, "", "")


def test_a_part(
    paged: Served, run: Run, server: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server, "part", 10)
    now_ms = paged.node.clock.now_ms()
    monkeypatch.setattr("roomcast.cli.history._now_ms", lambda: now_ms + 3600_000)

    def exported(*arguments: str) -> list[int]:
        return [line["offset"] for line in lines(run("export", "part", *arguments)[1])]

    assert exported("--since", "7") == [8, 9, 10]
    assert exported("--since", "10") == exported("--since", "99") == []
    assert exported("--since", "2h") == exported("--until", "59m") == list(range(1, 11))
    assert exported("--since", "30m") == exported("--until", "2h") == []
    code, out, err = run("export", "part", "--since", "7", "--epoch", "0.other")
    assert (code, out) == (1, "")
    assert "another epoch" in err
    assert run("export", "part", "--resume")[0] == 2


@pytest.mark.parametrize("by", [KeyboardInterrupt(), CallFailed("the server: gone")])
def test_what_was_interrupted_is_gone_on_with(
    run: Run,
    server: argparse.Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: BaseException,
) -> None:
    channel = f"interrupted-{type(by).__name__}"
    fill(server, channel, 11)
    path = tmp_path / "it.jsonl"
    again = ("export", channel, "--output", str(path), "--resume")
    with monkeypatch.context() as patched:
        interrupted(patched, 3, by)
        code, out, err = run(*again)
    assert (code, out) == (1, "")
    assert f"{path} is whole up to offset 8: go on with --resume" in err
    with path.open("a") as file:
        file.write('{"channel":"inter')
    assert run(*again)[0] == 0
    assert offsets(path) == list(range(1, 12))
    assert run(*again)[1] == "Nothing to add; the end is offset 11.\n"
    fill(server, channel, 2)
    told = json.loads(run(*again, "--json")[1])
    assert (told["publications"], told["first"], told["last"]) == (2, 12, 13)
    assert offsets(path) == list(range(1, 14))


def test_what_fails_in_passing_is_asked_again(
    run: Run, server: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server, "passing", 6)
    pauses: list[float] = []
    monkeypatch.setattr(server_api.Calls.__init__, "__defaults__", (pauses.append,))
    failures = 0

    def failing(*arguments: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures % 2:
            raise CallFailed("busy", code=111, may_pass=True)
        return call(*arguments)

    monkeypatch.setattr(export_module, "call", failing)
    code, out, _ = run("export", "passing")
    assert (code, len(lines(out)), len(pauses)) == (0, 6, 3)

    def never(*_arguments: Any) -> Any:
        raise CallFailed("busy", code=111, may_pass=True)

    monkeypatch.setattr(export_module, "call", never)
    pauses.clear()
    assert run("export", "passing")[0] == 1
    assert len(pauses) == server_api.TRIES_MAX - 1


def test_another_file_is_not_touched(run: Run, server: argparse.Namespace, tmp_path: Path) -> None:
    epoch = fill(server, "mine", 1)
    for text, why in (
        ("a letter\n", "is no export"),
        ("a letter", "is no export"),
        (f'{{"channel":"other","epoch":"{epoch}","offset":1,"data":1}}\n', "another channel"),
    ):
        path = tmp_path / "letter"
        path.write_text(text)
        code, _, err = run("export", "mine", "--output", str(path), "--resume")
        assert code == 1
        assert why in err
        assert path.read_text() == text


def test_what_is_no_file_is_neither_read_nor_written(run: Run, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # A device would be read for ever.
    for name in (str(fifo), str(tmp_path), "/dev/full"):
        for more in ((), ("--resume",)):
            code, out, err = run("export", "all", "--output", name, *more)
            assert (code, out) == (1, "")
            assert err == f"roomcast: {name} is no file: without --output the lines are printed\n"


def test_a_full_disk_says_how_to_go_on(
    run: Run, server: argparse.Namespace, tmp_path: Path
) -> None:
    epoch = fill(server, "full", 10)
    path, whole = tmp_path / "full.jsonl", run("export", "full")[1]
    page_bytes = len("".join(whole.splitlines(keepends=True)[:PAGE]).encode())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # In the middle of a line of the second page.
    resource.setrlimit(resource.RLIMIT_FSIZE, (page_bytes + 10, limits[1]))
    try:
        code, out, err = run("export", "full", "--output", str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (1, "")
    assert err == (
        f"roomcast: {path}: File too large; {path} is whole up to offset {PAGE}: "
        "go on with --resume\n"
    )
    assert path.stat().st_size == page_bytes + 10
    assert run("export", "full", "--output", str(path), "--resume") == (
        0,
        f"{10 - PAGE} publications, offsets {PAGE + 1} to 10, epoch {epoch}: {path}\n",
        "",
    )
    assert path.read_text() == whole


def test_what_is_not_kept_any_more_is_told(
    run: Run, server: argparse.Namespace, tmp_path: Path
) -> None:
    fill(server, "trimmed", 3)
    path = tmp_path / "it.jsonl"
    again = ("export", "trimmed", "--output", str(path), "--resume")
    assert run(*again)[0] == 0
    fill(server, "trimmed", 2)
    call(server, "history_remove", {"channel": "trimmed"})
    code, _, err = run(*again)
    assert (code, err) == (0, "roomcast: offsets 4 to 5 left out: not kept any more\n")
    fill(server, "trimmed", 1)
    assert run(*again)[::2] == (0, "roomcast: offsets 4 to 5 left out: not kept any more\n")
    assert offsets(path) == [1, 2, 3, 6]
    # Who asks for the oldest gets what there is.
    assert run("export", "trimmed")[2] == ""


def test_another_epoch_in_the_middle_is_told(
    paged: Served,
    run: Run,
    server: argparse.Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(server, "lost", 10)
    path = tmp_path / "it.jsonl"

    def losing(*arguments: Any) -> Any:
        result = call(*arguments)
        if result["publications"]:
            # As after a restore: the next reader begins an epoch.
            paged.node.world.items["lost"].clear()
        return result

    monkeypatch.setattr(export_module, "call", losing)
    code, out, err = run("export", "lost", "--output", str(path))
    assert (code, out) == (1, "")
    assert "begun another epoch" in err
    assert "offset 4 is the last of the one before that was exported" in err
    assert "into another file" in err
    assert offsets(path) == [1, 2, 3, 4]
    code, _, err = run("export", "lost", "--output", str(path), "--resume")
    assert code == 1
    assert "begun another epoch" in err
    assert offsets(path) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"publications": [{}]},
        {"publications": [{"offset": "1"}]},
        {"publications": [{"offset": 2, "data": 1}, {"offset": 1, "data": 1}]},
        {"publications": [{"offset": 1, "data": 1}, {"offset": 1, "data": 1}]},
        {"publications": [{"offset": 0, "data": 1}]},
        {"publications": 5},
    ],
)
def test_another_server_at_the_address(
    run: Run, monkeypatch: pytest.MonkeyPatch, page: dict[str, Any]
) -> None:
    monkeypatch.setattr(export_module, "call", lambda *_: {"epoch": "e", "offset": 3, **page})
    code, out, err = run("export", "news")
    assert (code, out) == (1, "")
    assert "answers as no roomcast server does" in err
