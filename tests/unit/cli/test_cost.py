"""`roomcast cost`: what it prints, what it takes from the configuration, wrong usage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roomcast.cli import main as cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["cost", *arguments])
        return code, *capsys.readouterr()

    return run


def as_json(run: Run, *arguments: str) -> dict[str, Any]:
    code, out, err = run("--json", *arguments)
    assert (code, err) == (0, "")
    told: dict[str, Any] = json.loads(out)
    return told


def test_a_table_and_what_it_comes_to(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["SERVICE", "WHAT", "USD"]
    assert lines[-1].endswith(" for the load.")
    told = as_json(run)
    assert lines[-1].startswith(f"{told['total_usd']:,.2f} USD a month")


def test_formulas_are_told_when_asked_for(run: Run) -> None:
    assert "N × 730 h" not in run()[1]
    assert "N × 730 h" in run("--formulas")[1]


def test_options_are_taken(run: Run) -> None:
    told = as_json(
        run,
        *("--instances", "3", "--rate", "0.5", "--channels", "7", "--clients", "9"),
        *("--subscriptions", "2", "--size", "11", "--stay", "1.5", "--writers", "2"),
        *("--no-history", "--presence", "--joins", "--network", "nat", "--zones", "3"),
        *("--internal", "--topic-shards", "4", "--processes", "2", "--days", "2"),
    )
    assert told["load"] == {
        "instances": 3, "processes": 2, "publications_s": 0.5, "channels": 7, "clients": 9,
        "subscriptions": 2, "payload_bytes": 11, "history": False, "presence": True,
        "joins_and_leaves": True, "express": False, "topic_shards": 4, "writers": 2,
        "stay_s": 90.0,
    }  # fmt: skip
    assert told["setup"]["network"] == "nat"
    assert told["setup"]["zones"] == 3
    assert told["setup"]["internet"] is False


def test_the_configuration_has_a_say(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "roomcast.toml"
    file.write_text(
        "[aws]\ntopic_shards = 8\nreceive_pause_ms = 50\n[node]\nprocesses = 2\nheartbeat_s = 5\n"
    )
    told = as_json(run, "--config", str(file), "--rate", "500", "--no-history")
    assert told["load"]["topic_shards"] == 8
    assert told["load"]["processes"] == 2
    assert as_json(run, "--config", str(file), "--processes", "1")["load"]["processes"] == 1
    hasty = as_json(
        run, "--config", str(file), "--rate", "500", "--no-history", "--receive-pause", "0"
    )
    receives = "sqs.ReceiveMessage"
    assert told["calls_a_second"][receives] < hasty["calls_a_second"][receives] / 2


def test_prices_of_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"instance_hour": 1}')
    told = as_json(run, "--prices", str(file))
    assert told["lines"][0]["usd"] == 2 * 730
    assert told["lines"][0]["at"] == 1


@pytest.mark.parametrize("text", ["[]", "{", '{"gold": 1}', '{"instance_hour": "1"}', "\x00"])
def test_files_of_other_things(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.json"
    file.write_text(text)
    code, out, err = run("--prices", str(file))
    assert (code, out) == (1, "")
    assert str(file) in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--prices", str(tmp_path / "none"))
    assert code == 1
    assert "No such file" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "-1"),
        ("--rate", "1e9"),
        ("--channels", "0"),
        ("--network", "dial-up"),
        ("--compute", "fargate", "--processes", "2"),
    ],
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
