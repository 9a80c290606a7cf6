"""Calls of AWS by operation and outcome, and nothing of what they are about."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from roomcast.aws import calls as calls_module
from roomcast.aws.calls import CALLS_A_TURN, PLACE_WAIT_S, Calls
from roomcast.aws.channel_table import DynamoChannelTable
from roomcast.aws.errors import LOG_CALL_LIMIT_S
from roomcast.ports import Throttled
from roomcast.testing.memory import ManualClock
from tests.contract.items import log_item
from tests.unit.worlds import running, settled, until


def refusal(code: str, status: int = 400) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutItem")


class Client:
    """As the SDK makes them."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.meta = SimpleNamespace(
            method_to_api_mapping={"put_item": "PutItem"}, region_name="eu-west-1"
        )

    async def put_item(self, **params: Any) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return params


@pytest.mark.parametrize(
    "error, outcome",
    [
        (None, "ok"),
        (refusal("ConditionalCheckFailedException"), "condition_failed"),
        (refusal("ThrottlingException"), "throttled"),
        (refusal("AWS.SimpleQueueService.NonExistentQueue"), "gone"),
        (refusal("InternalServerError", 500), "unknown"),
        (refusal("AccessDeniedException"), "refused"),
        (ReadTimeoutError(endpoint_url="https://example.com"), "unknown"),
        (asyncio.CancelledError(), "given_up"),
    ],
)
async def test_outcomes(error: BaseException | None, outcome: str) -> None:
    moments = iter([10.0, 10.2])
    calls = Calls(lambda: next(moments))
    client = calls.timed(Client(error), "dynamodb")
    if error is None:
        assert await client.put_item(Item=1) == {"Item": 1}
    else:
        with pytest.raises(type(error)):
            await client.put_item(Item=1)
    [(key, histogram)] = calls.histograms.items()
    assert key == ("dynamodb.PutItem", outcome)
    assert histogram.count == 1
    assert histogram.sum == pytest.approx(0.2)


async def test_what_is_no_operation_is_the_clients_own() -> None:
    client, calls = Client(), Calls()
    timed = calls.timed(client, "dynamodb")
    assert timed.meta is client.meta
    with pytest.raises(AttributeError):
        _ = timed.absent
    assert calls.histograms == {}
    assert timed.put_item is timed.put_item


class SlowClient(Client):
    """Its calls wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.go_on = asyncio.Semaphore(0)

    async def put_item(self, **params: Any) -> dict[str, Any]:
        self.begun += 1
        await self.go_on.acquire()
        return params


async def test_so_many_calls_are_made_at_once_and_no_more() -> None:
    """What the SDK does for a call before it has a connection takes CPU."""
    slow = SlowClient()
    client = Calls().timed(slow, "dynamodb", at_once=2)
    calling = [asyncio.ensure_future(client.put_item(Item=index)) for index in range(5)]
    await settled()
    assert slow.begun == 2
    calling[2].cancel()
    slow.go_on.release()
    await settled()
    assert slow.begun == 3, "one after the other, without who gave up"
    for _ in calling:
        slow.go_on.release()
    answers = await asyncio.gather(*calling, return_exceptions=True)
    assert [each for each in answers if isinstance(each, dict)] == [
        {"Item": index} for index in (0, 1, 3, 4)
    ]


async def test_a_call_that_got_no_place_was_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the wait of a call means, nobody could tell if its caller's own time had ended first."""
    assert 2 * PLACE_WAIT_S <= LOG_CALL_LIMIT_S
    monkeypatch.setattr(calls_module, "PLACE_WAIT_S", 0.0)
    slow, calls = SlowClient(), Calls()
    client = calls.timed(slow, "dynamodb", at_once=1)
    first = asyncio.ensure_future(client.put_item(Item=0))
    await settled()
    for _ in range(2):
        with pytest.raises(Throttled):
            await client.put_item(Item=1)
    assert slow.begun == 1
    slow.go_on.release()
    assert await first == {"Item": 0}
    slow.go_on.release()
    assert await client.put_item(Item=2) == {"Item": 2}, "nobody keeps a place that was not taken"
    assert {outcome: each.count for (_, outcome), each in calls.histograms.items()} == {
        "ok": 2,
        "throttled": 2,
    }


async def test_a_publication_that_got_no_connection_is_known_not_to_be_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls_module, "PLACE_WAIT_S", 0.0)
    slow = SlowClient()
    slow.meta.events = SimpleNamespace(register=lambda *_, **__: None)
    client = Calls().timed(slow, "dynamodb", at_once=1)
    others = asyncio.ensure_future(client.put_item(Item=0))
    await settled()
    table = DynamoChannelTable(client, "channels", "idempotency", ManualClock())
    with pytest.raises(Throttled, match="no connection was free"):
        await table.put_item(log_item(1), 2**50)
    others.cancel()


async def test_few_of_very_many_calls_are_begun_in_one_turn() -> None:
    slow, turns, begun = SlowClient(), 0, Counter[int]()

    async def pass_turns() -> None:
        nonlocal turns
        while True:
            begun[turns] = slow.begun - sum(begun.values())
            turns += 1
            await asyncio.sleep(0)

    client = Calls().timed(slow, "dynamodb")
    async with running(pass_turns()):
        calling = [asyncio.ensure_future(client.put_item(Item=index)) for index in range(50)]
        await until(lambda: slow.begun == 50)
        for _ in calling:
            slow.go_on.release()
        await asyncio.gather(*calling)
    assert max(begun.values()) == CALLS_A_TURN
