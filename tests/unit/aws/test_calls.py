"""Calls of AWS by operation and outcome, and nothing of what they are about."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from roomcast.aws.calls import Calls
from tests.unit.worlds import settled


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
