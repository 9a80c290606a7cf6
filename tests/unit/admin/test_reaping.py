"""The dry run for the page: one at a time, bounded, and with the permissions that it lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from structlog.testing import capture_logs

from roomcast.admin.reaping import ROWS_MAX, Reaping, missing_permissions
from roomcast.ports import Rejected
from tests.unit.worlds import until

REFUSED = (
    "An error occurred (AccessDenied) when calling the ListQueues operation: User: arn:aws:sts::1:"
    "assumed-role/roomcast is not authorized to perform: sqs:listqueues"
)


def report(**changes: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"nodes": (), "queues": (), "subscriptions": (), "failures": ()}
    return {"dry_run": True, "live": 2, "failed": 0, **empty, **changes}


async def test_a_run_tells_its_progress_and_then_its_report() -> None:
    go = asyncio.Event()

    async def run(tell: Callable[[str], None]) -> Mapping[str, Any]:
        tell("listing queues")
        await go.wait()
        failures = ({"step": "list_queues", "what": "arn", "reason": REFUSED},)
        return report(nodes=({"node": "n"},) * (ROWS_MAX + 5), failures=failures, failed=1)

    reaping = Reaping(run)
    reaping.start()
    await until(lambda: reaping.state()["said"])
    # A second one does not begin meanwhile.
    reaping.start()
    assert reaping.state() == {
        "running": True, "said": ["listing queues"], "report": None, "failed": "",
    }  # fmt: skip
    go.set()
    await until(lambda: not reaping.state()["running"])
    told = reaping.state()["report"]
    assert len(told["nodes"]) == ROWS_MAX
    assert told["counts"]["nodes"] == ROWS_MAX + 5
    assert told["missing"] == ["sqs:ListQueues"]


async def test_a_run_that_cannot_begin_says_why() -> None:
    async def run(_: Callable[[str], None]) -> Mapping[str, Any]:
        raise Rejected(
            "An error occurred (AccessDeniedException) when calling the Scan operation: no"
        )

    reaping = Reaping(run)
    reaping.start()
    await until(lambda: not reaping.state()["running"])
    assert "AccessDenied" in reaping.state()["failed"]
    assert reaping.state()["report"]["missing"] == ["dynamodb:Scan"]


async def test_a_fault_is_logged_and_told_without_details() -> None:
    async def run(_: Callable[[str], None]) -> Mapping[str, Any]:
        raise KeyError("a secret")

    reaping = Reaping(run)
    with capture_logs() as lines:
        reaping.start()
        await until(lambda: not reaping.state()["running"])
    assert "secret" not in reaping.state()["failed"]
    assert [line["event"] for line in lines] == ["admin_reap_failed"]


async def test_the_end_of_the_node_ends_a_run() -> None:
    async def run(_: Callable[[str], None]) -> Mapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    reaping = Reaping(run)
    reaping.start()
    await reaping.close()
    assert not reaping.state()["running"]


def test_a_node_without_aws_has_none() -> None:
    reaping = Reaping(None)
    reaping.start()
    assert not reaping.is_available
    assert not reaping.state()["running"]


def test_permissions_are_told_once_and_only_for_refusals() -> None:
    topic = REFUSED.replace("ListQueues", "ListSubscriptionsByTopic").replace(
        "AccessDenied", "AuthorizationError"
    )
    assert missing_permissions([REFUSED, REFUSED, topic, "no answer in time"]) == [
        "sns:ListSubscriptionsByTopic",
        "sqs:ListQueues",
    ]
