"""An account of AWS, as `roomcast nodes` and `roomcast reap` find it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from roomcast.aws import clients as aws
from roomcast.system import SystemClock
from tests.unit.aws.fakes import FakeClient

__all__ = ["NOW", "ROWS", "TOPIC", "TTL_MS", "Aws", "row"]

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
