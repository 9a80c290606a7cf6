"""service/roomcast/cli/reap.py: what is told of a run, and how it ends."""

from __future__ import annotations

import json

import pytest

from roomcast.cli import main as cli
from tests.unit.aws.fakes import client_error
from tests.unit.cli.account import ROWS, TOPIC, Aws, row


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
