"""service/roomcast/cli/nodes.py: what is printed of the fleet."""

from __future__ import annotations

import json

import pytest

from roomcast.cli import main as cli
from tests.unit.aws.fakes import client_error
from tests.unit.cli.account import NOW, ROWS, TTL_MS, Aws, row


def test_nodes_are_listed_those_that_serve_first(
    account: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    account.rows = ROWS
    assert cli.main(["nodes"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == [
        "NODE", "STANDING", "STATE", "INSTANCE", "VERSION", "AGE", "HEARTBEAT",
        "CONNECTIONS", "CHANNELS", "LAG", "SKEW", "QUEUE",
    ]  # fmt: skip
    assert [line.split()[:3] for line in lines[1:]] == [
        ["old", "live", "live"],
        ["young", "live", "live"],
        ["gone", "expired", "live"],
        ["marked", "reaped", "live"],
    ]
    assert lines[3].split()[3:] == [
        "i-1",
        "0.1.0",
        "1h",
        "10m",
        "10m",
        "12",
        "3",
        "40",
        "ms",
        "+0",
        "ms",
        "q-gone",
    ]
    assert "\x1b" not in out, "no colours for a file"
    assert err == ""


def test_a_row_of_another_program_leaves_the_table_readable(
    account: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    account.rows = [row("one"), row("two", state="[" * 100_000)]
    assert cli.main(["nodes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "[[[… " in lines[2]
    assert all(len(line) < 300 for line in lines)


def test_nodes_as_json(account: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    account.rows = ROWS
    assert cli.main(["nodes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["node"] for each in told] == ["old", "young", "gone", "marked"]
    assert told[3]["standing"] == "reaped"
    assert (told[0]["queue"], told[0]["lag_ms"], told[0]["expires_at"]) == (
        "q-old",
        40,
        NOW + TTL_MS,
    )


def test_a_clock_that_is_wrong_is_told_apart_from_lag(
    account: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    account.rows = [row("ahead", skew_ms=5_000), row("behind", skew_ms=-1_200, lag_ms=7_000)]
    assert cli.main(["nodes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-5:-1] for line in lines[1:]] == [
        ["40", "ms", "+5000", "ms"],
        ["7000", "ms", "-1200", "ms"],
    ]
    assert cli.main(["nodes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["lag_ms"], each["skew_ms"]) for each in told] == [(40, 5_000), (7_000, -1_200)]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_row_gives_no_order_to_a_terminal(
    options: list[str], account: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever can write to the table has made it up."""
    account.rows = [row("n\x9b2J", instance="i-\x1b[31m", version="1\u202e0")]
    assert cli.main(["nodes", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    told = "\n".join(lines)
    assert "2J" in told
    assert "u202e0" in told


def test_no_nodes(account: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nodes"]) == 0
    assert capsys.readouterr().out == "No node has a lease.\n"
    assert cli.main(["nodes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_where_aws_is_comes_from_the_configuration(
    account: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["nodes"]) == 0
    assert account.made_with == {"region": "eu-west-1", "endpoint_url": None, "lean": True}
    assert account.client.calls[0][1]["TableName"] == "t-nodes"
    monkeypatch.delenv("ROOMCAST_AWS_TOPIC_ARN")
    assert cli.main(["nodes"]) == 0, "it needs no topic"
    assert account.made_with["region"] is None
    monkeypatch.setenv("ROOMCAST_AWS_REGION", "eu-west-2")
    monkeypatch.setenv("ROOMCAST_AWS_ENDPOINT_URL", "http://127.0.0.1:5000")
    monkeypatch.setenv("ROOMCAST_AWS_LEAN_CALLS", "false")
    assert cli.main(["nodes"]) == 0
    assert account.made_with == {
        "region": "eu-west-2",
        "endpoint_url": "http://127.0.0.1:5000",
        "lean": False,
    }


@pytest.mark.parametrize("command", ["nodes", "reap", "reap --dry-run --json"])
def test_a_table_that_is_missing_is_named(
    command: str, account: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    account.answers["scan"] = client_error("ResourceNotFoundException", operation="Scan")
    assert cli.main(command.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("roomcast: table t-nodes: An error occurred (ResourceNotFoundException)")
    assert err.count("\n") == 1
