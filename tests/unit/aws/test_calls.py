"""Calls of AWS by operation and outcome, and nothing of what they are about."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from roomcast.aws.calls import Calls


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
