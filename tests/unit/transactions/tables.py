"""DynamoDB as a publishing transaction sees it, over the world that nodes write to: its calls, its
errors, and its faults.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

from roomcast.log.item import LogItem, parse_item
from roomcast.testing.memory import MemoryWorld
from roomcast.transactions.conversation import Call

__all__ = ["CHANNELS", "ClientError", "ReadTimeoutError", "Tables", "order"]

CHANNELS: Final = "roomcast-channels"
ORDERS: Final = "orders"


class ClientError(Exception):
    """An answer of AWS that is an error, in the form of botocore's."""

    def __init__(self, code: str, status: int = 400, retries: int = 0, **further: Any) -> None:
        super().__init__(code)
        self.response = {
            "Error": {"Code": code},
            "ResponseMetadata": {"HTTPStatusCode": status, "RetryAttempts": retries},
            **further,
        }


class HTTPClientError(Exception):
    """As botocore's base of errors of the network."""


class ReadTimeoutError(HTTPClientError):
    """No answer."""


def order(name: str) -> dict[str, Any]:
    """The application's own write: an order that is not there yet."""
    return {
        "Put": {
            "TableName": ORDERS,
            "Item": {"id": {"S": name}},
            "ConditionExpression": "attribute_not_exists(id)",
        }
    }


class Tables:
    """`faults`: the part of transactions that one befalls. `orders`: the application's table."""

    def __init__(self, world: MemoryWorld, random: Random, faults: float = 0.0) -> None:
        self.world = world
        self.orders: set[str] = set()
        self.calls: list[Call] = []
        # Errors of the next transactions, before they are carried out.
        self.next_errors: list[Exception] = []
        # The next transaction is carried out, and its answer is lost.
        self.lose_next = False
        self._random = random
        self._faults = faults
        self._done: set[str] = set()
        self._late: set[asyncio.Task[None]] = set()

    async def carry_out(self, call: Call) -> Mapping[str, Any]:
        """The answer. Raises ClientError and ReadTimeoutError."""
        self.calls.append(call)
        await asyncio.sleep(self._random.uniform(0.001, 0.004))
        if call.operation == "transact_write_items":
            return await self._transact(call.parameters)
        answer: Mapping[str, Any] = getattr(self, f"_{call.operation}")(call.parameters)
        await asyncio.sleep(self._random.uniform(0.001, 0.004))
        return answer

    async def settle(self) -> None:
        """Until everything that is late has come."""
        await asyncio.gather(*self._late)

    async def _transact(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.next_errors:
            raise self.next_errors.pop(0)
        fault = self._random.random() < self._faults and self._random.choice(
            ("lost", "late", "never", "busy", "conflict", "in progress", "broken")
        )
        match fault:
            case "busy":
                raise ClientError("ThrottlingException")
            case "conflict":
                reasons = [{"Code": "TransactionConflict"}]
                reasons += [{"Code": "None"} for _ in parameters["TransactItems"][1:]]
                raise ClientError("TransactionCanceledException", CancellationReasons=reasons)
            case "in progress":
                self._later(parameters)
                raise ClientError("TransactionInProgressException")
            case "broken":
                raise ClientError("InternalServerError", 500)
            case "never":
                raise ReadTimeoutError
            case "late":
                self._later(parameters)
                raise ReadTimeoutError
        self._apply(parameters)
        await asyncio.sleep(self._random.uniform(0.001, 0.004))
        if fault == "lost" or self.lose_next:
            self.lose_next = False
            raise ReadTimeoutError
        return {}

    def _later(self, parameters: Mapping[str, Any]) -> None:
        async def later() -> None:
            await asyncio.sleep(self._random.uniform(0.0, 2.0))
            with suppress(ClientError):  # nobody waits for it
                self._apply(parameters)

        self._late.add(asyncio.create_task(later()))

    def _apply(self, parameters: Mapping[str, Any]) -> None:
        if parameters["ClientRequestToken"] in self._done:
            return
        puts = [each["Put"] for each in parameters["TransactItems"]]
        reasons = [self._reason(put) for put in puts]
        if any(reason["Code"] != "None" for reason in reasons):
            raise ClientError("TransactionCanceledException", CancellationReasons=reasons)
        self._done.add(parameters["ClientRequestToken"])
        for put in puts:
            self._put(put)

    def _reason(self, put: Mapping[str, Any]) -> dict[str, Any]:
        if put["TableName"] == ORDERS:
            taken = put["Item"]["id"]["S"] in self.orders
            return {"Code": "ConditionalCheckFailed" if taken else "None"}
        holder = self._stored(put["Item"]["channel"]["S"], int(put["Item"]["offset"]["N"]))
        if holder is None:
            return {"Code": "None"}
        return {"Code": "ConditionalCheckFailed", "Item": holder}

    def _put(self, put: Mapping[str, Any]) -> None:
        if put["TableName"] == ORDERS:
            self.orders.add(put["Item"]["id"]["S"])
            return
        item = parse_item(put["Item"])
        self.world.items.setdefault(item.channel, {})[int(put["Item"]["offset"]["N"])] = item
        if isinstance(item, LogItem):
            self.world.stream.append(item)

    def _put_item(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        attributes = parameters["Item"]
        stored = self._stored(attributes["channel"]["S"], 0)
        expected = parameters.get("ExpressionAttributeValues", {}).get(":expected")
        if (stored or {}).get("version") != expected:
            raise ClientError("ConditionalCheckFailedException")
        self._put(parameters)
        return {}

    def _query(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        assert parameters["ConsistentRead"]
        assert not parameters["ScanIndexForward"]
        channel = parameters["ExpressionAttributeValues"][":channel"]["S"]
        items = self.world.items.get(channel)
        found: Sequence[Mapping[str, Any]] = [items[max(items)].attributes()] if items else []
        return {"Items": found}

    def _get_item(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        assert parameters["ConsistentRead"]
        key = parameters["Key"]
        stored = self._stored(key["channel"]["S"], int(key["offset"]["N"]))
        return {} if stored is None else {"Item": stored}

    def _stored(self, channel: str, offset: int) -> Mapping[str, Any] | None:
        item = self.world.items.get(channel, {}).get(offset)
        return None if item is None else item.attributes()
