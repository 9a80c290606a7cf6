"""`roomcast nodes` and `roomcast reap` over an SDK that is faked:
what they print, and how they end.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from roomcast.aws import clients as aws
from roomcast.cli import main as cli
from roomcast.system import SystemClock
from tests.unit.aws.fakes import FakeClient, client_error

TOPIC: Final = "arn:aws:sns:eu-west-1:123456789012:roomcast-topic"
NOW: Final = 1_700_000_000_000
TTL_MS: Final = 60_000


def row(node: str, *, silent_ms: int = 0, **changes: Any) -> dict[str, Any]:
    heard = NOW - silent_ms
    values: dict[str, Any] = {
        "node": node,
        "queue": f"q-{node}",
        "state": "live",
        "started_at": heard - 3_600_000,
        "heartbeat_at": heard,
        "lease_until": heard + TTL_MS,
        "instance": "i-1",
        "version": "0.1.0",
        "connections": 12,
        "channels": 3,
        "lag_ms": 40,
        **changes,
    }
    return {
        name: {"N": str(value)} if isinstance(value, int) else {"S": value}
        for name, value in values.items()
    }


ROWS: Final = [
    row("gone", silent_ms=600_000),
    row("young", started_at=NOW - 1000),
    row("old"),
    row("marked", silent_ms=700_000, reaped=NOW - 1),
]


class Aws:
    """What the clients answer, and the arguments they were made with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {
            "query": {"Items": []},
            "list_queues": {},
            "list_subscriptions_by_topic": {},
            "get_queue_url": {"QueueUrl": "https://sqs.example.com/q"},
        }
        self.made_with: dict[str, Any] = {}
        self.client = FakeClient()
        monkeypatch.setattr(aws, "connect", self._connect)
        monkeypatch.setattr(SystemClock, "now_ms", lambda _self: NOW)

    @asynccontextmanager
    async def _connect(self, **arguments: Any) -> AsyncIterator[Any]:
        self.made_with = arguments
        operations = (
            "update_item",
            "delete_item",
            "delete_queue",
            "unsubscribe",
            "publish",
            *self.answers,
        )
        self.client = FakeClient(
            scan=lambda **_: self.answers.get("scan", {"Items": self.rows}),
            **{name: self._answer(name) for name in operations if name != "scan"},
        )
        yield aws.AwsClients(
            log=self.client,
            tables=self.client,
            sns=self.client,
            sqs=self.client,
            sqs_poll=self.client,
        )

    def _answer(self, name: str) -> Any:
        return lambda **_: self.answers.get(name, {})


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Aws:
    for name in list(os.environ):
        if name.startswith(("ROOMCAST_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_ARN", TOPIC)
    monkeypatch.setenv("ROOMCAST_AWS_TABLE_PREFIX", "t-")
    monkeypatch.setenv("ROOMCAST_AWS_QUEUE_PREFIX", "q-")
    return Aws(monkeypatch)


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


def test_no_nodes(account: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nodes"]) == 0
    assert capsys.readouterr().out == "No node has a lease.\n"
    assert cli.main(["nodes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_where_aws_is_comes_from_the_configuration(
    account: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["nodes"]) == 0
    assert account.made_with == {"region": "eu-west-1", "endpoint_url": None}
    assert account.client.calls[0][1]["TableName"] == "t-nodes"
    monkeypatch.delenv("ROOMCAST_AWS_TOPIC_ARN")
    assert cli.main(["nodes"]) == 0, "it needs no topic"
    assert account.made_with["region"] is None
    monkeypatch.setenv("ROOMCAST_AWS_REGION", "eu-west-2")
    monkeypatch.setenv("ROOMCAST_AWS_ENDPOINT_URL", "http://127.0.0.1:5000")
    assert cli.main(["nodes"]) == 0
    assert account.made_with == {"region": "eu-west-2", "endpoint_url": "http://127.0.0.1:5000"}


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


def test_reap_needs_a_topic(
    account: Aws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ROOMCAST_AWS_TOPIC_ARN")
    assert cli.main(["reap"]) == 2
    assert capsys.readouterr().err.startswith("roomcast: aws.topic_arn is not set")


def test_a_dry_run_changes_nothing(account: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    account.rows = [*ROWS, row("two", silent_ms=600_000, subscription_arn=f"{TOPIC}:1")]
    account.answers["query"] = {"Items": [{"member": {"S": "room"}}, {"member": {"S": "other"}}]}
    assert cli.main(["reap", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines[1:-1]] == [
        ["found", "node", "gone"],
        ["found", "node", "marked"],
        ["found", "node", "two"],
    ]
    assert lines[3].endswith("no heartbeat for 600 s  queue q-two, 1 subscription, 2 channels")
    assert lines[-1] == "Nothing was changed (--dry-run); 2 nodes live."
    assert err == "", "nobody watches"
    assert set(account.client.names) == {
        "scan",
        "query",
        "list_queues",
        "list_subscriptions_by_topic",
    }


def test_reaping(account: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    account.rows = ROWS
    assert cli.main(["reap"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["removed", "node", "gone"],
        ["removed", "node", "marked"],
        ["2", "nodes", "live."],
    ]
    assert err == ""
    assert account.client.names.count("delete_queue") == 2


def test_nothing_to_reap(account: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    account.rows = [row("old")]
    assert cli.main(["reap"]) == 0
    assert capsys.readouterr().out == "Nothing to clean up; 1 node lives.\n"


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_step_that_fails(
    option: list[str], account: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    account.rows = ROWS
    account.answers["delete_queue"] = client_error("AccessDenied", 403, "DeleteQueue")
    # Still there, and it cannot be told whose it is: that is no success.
    account.answers["get_queue_attributes"] = client_error(
        "AccessDenied", 403, "GetQueueAttributes"
    )
    assert cli.main(["reap", *option]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(
        "roomcast: 2 steps failed; first delete_queue of q-gone: An error occurred (AccessDenied)"
    )
    assert err.count("\n") == 1
    if option:
        report = json.loads(out)
        assert [node["outcome"] for node in report["nodes"]] == ["failed", "failed"]
        assert report["failures"][0]["step"] == "delete_queue"
    else:
        assert [line.split()[0] for line in out.splitlines()[1:]] == ["failed", "failed", "2"]
