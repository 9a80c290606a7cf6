"""The `channels` table in DynamoDB: one conditional write per append, and strongly consistent
reads.

An append with an idempotency key is a transaction with the `idempotency` table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import structlog
from botocore.exceptions import ClientError

from roomcast.aws.errors import LOG_CALL_LIMIT_S, error_code, is_condition_failure, port_errors
from roomcast.log.idempotency import KeyItem, parse_key_item
from roomcast.log.item import (
    HEAD_OFFSET,
    ITEM_KEYS_MAX,
    OFFSET_MAX,
    AttributeMap,
    Head,
    LogItem,
    MalformedItem,
    parse_head,
    parse_item,
    parse_log_item,
)
from roomcast.log.ports import Holders, Page, TailExpired
from roomcast.ports import Clock, Contended, Malformed, Rejected, Throttled, UnknownOutcome

__all__ = ["DynamoChannelTable"]

# `offset` is a reserved word of DynamoDB's expressions, hence the placeholder.
_NAMES: Final = {"#channel": "channel", "#offset": "offset"}
_FIRST_OFFSET: Final = HEAD_OFFSET + 1
# A page is cut at 1 MB and an item has at most 400 KB, so a page holds at least two. This bounds
# the pages of one read.
_ITEMS_A_PAGE_MIN: Final = 2
# Operations of an append. Before each, the hook checks that the known tail is still valid.
_APPENDS: Final = ("PutItem", "TransactWriteItems")

# DynamoDB's limit on a transaction's idempotency token.
_TOKEN_CHARS_MAX: Final = 36
_CANCELED: Final = "TransactionCanceledException"
_IN_PROGRESS: Final = "TransactionInProgressException"
# Reason codes of a cancelled transaction. DynamoDB gives one for each of its writes.
_CONDITION: Final = "ConditionalCheckFailed"
_NO_REASON: Final = "None"
_CONFLICT: Final = "TransactionConflict"
_TRY_AGAIN: Final = frozenset({"ProvisionedThroughputExceeded", "ThrottlingError", _CONFLICT})
# The error of a single write while a transaction holds its item.
_CONFLICT_OF_ONE: Final = "TransactionConflictException"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Validity:
    clock: Clock
    until_ms: int

    def check(self) -> None:
        if self.clock.now_ms() >= self.until_ms:
            raise TailExpired


# The SDK passes only the request to its hook, so the validity travels with the task.
_validity: ContextVar[_Validity | None] = ContextVar("roomcast_tail_validity", default=None)


def _check_validity(**_: Any) -> None:
    """The `before-send` hook: runs after signing, for every attempt. An error here ends the call
    unsent.

    A process may be suspended anywhere. If that happens before this check, the check notices it. If
    it happens after, the signature is too old on arrival, and AWS refuses the request.
    """
    validity = _validity.get()
    if validity is not None:
        validity.check()


class DynamoChannelTable:
    """A ChannelTable. `client`: a DynamoDB client that does not retry."""

    def __init__(
        self, client: Any, table_name: str, idempotency_table_name: str, clock: Clock
    ) -> None:
        self._client = client
        self._table = table_name
        self._keys_table = idempotency_table_name
        self._clock = clock
        for operation in _APPENDS:
            client.meta.events.register(
                f"before-send.dynamodb.{operation}",
                _check_validity,
                unique_id=f"roomcast-tail-{operation}",
            )

    async def newest(self, channel: str) -> LogItem | Head | None:
        items, _ = await self._query(channel, HEAD_OFFSET, OFFSET_MAX, limit=1, ascending=False)
        return _parsed(items[0]) if items else None

    async def head(self, channel: str) -> Head | None:
        attributes = await self._get(channel, HEAD_OFFSET)
        if attributes is None:
            return None
        try:
            return parse_head(attributes)
        except MalformedItem as error:
            raise Malformed(f"head: {error}") from error

    async def key(self, key: str) -> KeyItem | None:
        async with port_errors(LOG_CALL_LIMIT_S):
            answer = await self._client.get_item(
                TableName=self._keys_table, Key={"key": {"S": key}}, ConsistentRead=True
            )
            attributes = _item(answer)
        return _key_item(attributes) if attributes else None

    async def put_item(self, item: LogItem, tail_valid_until_ms: int) -> LogItem | None:
        winner: AttributeMap | None = None
        with self._resting_on(tail_valid_until_ms):
            async with port_errors(LOG_CALL_LIMIT_S):
                try:
                    await self._client.put_item(**self._put(item))
                    return None
                except ClientError as error:
                    if error_code(error) == _CONFLICT_OF_ONE:
                        raise Contended(_CONFLICT) from error
                    if not is_condition_failure(error):
                        raise
                    winner = error.response.get("Item")
        return await self._winner(item, winner)

    async def put_keyed_item(
        self, item: LogItem, keys: Sequence[KeyItem], tail_valid_until_ms: int
    ) -> Holders | None:
        assert 1 <= len(keys) <= ITEM_KEYS_MAX, "what one transaction can carry"
        with self._resting_on(tail_valid_until_ms):
            async with port_errors(LOG_CALL_LIMIT_S):
                try:
                    await self._client.transact_write_items(
                        TransactItems=[
                            {"Put": self._put(item)},
                            *({"Put": self._put_key(key)} for key in keys),
                        ],
                        # The same for each attempt of this append, and for no other append.
                        ClientRequestToken=item.batch[:_TOKEN_CHARS_MAX],
                    )
                    return None
                except ClientError as error:
                    if error_code(error) == _IN_PROGRESS:
                        # An earlier attempt of this append is still running.
                        raise UnknownOutcome(_IN_PROGRESS) from error
                    if error_code(error) != _CANCELED:
                        raise
                    reasons = _reasons(error, 1 + len(keys))
        codes = {str(reason.get("Code") or _NO_REASON) for reason in reasons} - {_NO_REASON}
        if _CONDITION in codes:
            return await self._holders(item, keys, reasons)
        text = f"canceled: {', '.join(sorted(codes)) or 'no reason'}"
        if codes == {_CONFLICT}:
            raise Contended(text)
        if codes and codes <= _TRY_AGAIN:
            raise Throttled(text)
        raise Rejected(text)

    async def put_head(self, head: Head, expected_version: str | None) -> bool:
        condition: dict[str, Any] = {
            "ConditionExpression": "attribute_not_exists(#offset)",
            "ExpressionAttributeNames": {"#offset": "offset"},
        }
        if expected_version is not None:
            condition = {
                "ConditionExpression": "#version = :expected",
                "ExpressionAttributeNames": {"#version": "version"},
                "ExpressionAttributeValues": {":expected": {"S": expected_version}},
            }
        async with port_errors(LOG_CALL_LIMIT_S):
            try:
                await self._client.put_item(
                    TableName=self._table, Item=head.attributes(), **condition
                )
            except ClientError as error:
                if is_condition_failure(error):
                    return False
                raise
        return True

    async def read_behind(self, channel: str, offset: int, items_max: int) -> Page:
        assert items_max >= 1, "a page holds an item"
        items, more = await self._run(channel, offset + 1, OFFSET_MAX, items_max, ascending=True)
        return Page(tuple(items), more)

    async def read_forward(self, channel: str, from_offset: int, items_max: int) -> Page:
        assert items_max >= 1, "a page holds an item"
        first = max(from_offset, _FIRST_OFFSET)
        try:
            async with asyncio.TaskGroup() as group:
                spanning_task = group.create_task(self._spanning(channel, first))
                following_task = group.create_task(
                    self._run(channel, first, OFFSET_MAX, items_max, ascending=True)
                )
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0]  # noqa: B904  # its own cause is the one that tells something
        spanning, (following, more) = spanning_task.result(), following_task.result()
        if spanning is None and following and following[0].offset > first:
            # The two reads do not see one moment. The item that spans `first` may have been written
            # between them.
            spanning = await self._spanning(channel, first)
        items = [*([spanning] if spanning else []), *following]
        return Page(tuple(items[:items_max]), more or len(items) > items_max)

    async def read_backward(self, channel: str, to_offset: int, items_max: int) -> Page:
        assert items_max >= 1, "a page holds an item"
        items, more = await self._run(channel, _FIRST_OFFSET, to_offset, items_max, ascending=False)
        return Page(tuple(reversed(items)), more)

    @contextmanager
    def _resting_on(self, tail_valid_until_ms: int) -> Iterator[None]:
        """This task's calls are sent only before that time."""
        token = _validity.set(_Validity(self._clock, tail_valid_until_ms))
        try:
            yield
        finally:
            _validity.reset(token)

    def _put(self, item: LogItem) -> dict[str, Any]:
        return {
            "TableName": self._table,
            "Item": item.attributes(),
            "ConditionExpression": "attribute_not_exists(#offset)",
            "ExpressionAttributeNames": {"#offset": "offset"},
            # The refusal carries the item that won, at no extra cost.
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    def _put_key(self, key: KeyItem) -> dict[str, Any]:
        return {
            "TableName": self._keys_table,
            "Item": key.attributes(),
            "ConditionExpression": "attribute_not_exists(#key)",
            "ExpressionAttributeNames": {"#key": "key"},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    async def _holders(
        self, item: LogItem, keys: Sequence[KeyItem], reasons: Sequence[dict[str, Any]]
    ) -> Holders:
        """The items in the places that a transaction wanted, from the `reasons` for its item and
        its key.
        """
        item_reason, *key_reasons = reasons
        winner = None
        if item_reason.get("Code") == _CONDITION:
            winner = await self._winner(item, item_reason.get("Item"))
        taken = [
            await self._key_holder(key, reason.get("Item"))
            for key, reason in zip(keys, key_reasons, strict=True)
            if reason.get("Code") == _CONDITION
        ]
        return Holders(winner, tuple(taken))

    async def _winner(self, item: LogItem, told: AttributeMap | None) -> LogItem:
        """The item at the offset of `item`. It is read, if an emulator refuses without returning
        it.
        """
        winner = told if _is_item(told) else None
        winner = winner or await self._get(item.channel, item.offset)
        if not winner:
            raise Throttled("the offset was taken and is free again")
        return _log_item(winner)

    async def _key_holder(self, key: KeyItem, told: AttributeMap | None) -> KeyItem:
        """The item under `key`. It is read, if an emulator refuses without returning it."""
        holder = _key_item(told) if told and _is_item(told) else await self.key(key.key)
        if holder is None:
            raise Throttled("the idempotency key was taken and is free again")
        return holder

    async def _spanning(self, channel: str, offset: int) -> LogItem | None:
        """The item that begins before `offset` and covers it, if any."""
        before, _ = await self._run(
            channel, _FIRST_OFFSET, offset - 1, 1, ascending=False, exact=False
        )
        return before[0] if before and before[0].last >= offset else None

    async def _run(
        self,
        channel: str,
        low: int,
        high: int,
        items_max: int,
        *,
        ascending: bool,
        exact: bool = True,
    ) -> tuple[list[LogItem], bool]:
        """Up to `items_max` log items with keys low..high in the direction of reading, and whether
        more follow.

        `exact` reads one item more: DynamoDB may signal more items where none follow.
        """
        items: list[LogItem] = []
        if low > high:
            return items, False
        wanted = items_max + 1 if exact else items_max
        last_key: Any = None
        for _ in range(wanted // _ITEMS_A_PAGE_MIN + 2):
            page, last_key = await self._query(
                channel,
                low,
                high,
                limit=wanted - len(items),
                ascending=ascending,
                last_key=last_key,
            )
            items.extend(item for each in page if (item := _one_of_many(each)) is not None)
            if last_key is None or len(items) >= wanted:
                break
        return items[:items_max], len(items) > items_max or (
            last_key is not None and len(items) < wanted
        )

    async def _query(
        self,
        channel: str,
        low: int,
        high: int,
        *,
        limit: int,
        ascending: bool,
        last_key: Any = None,
    ) -> tuple[Sequence[AttributeMap], Any]:
        """A page of items, and where the next one begins. None = no page follows."""
        start = {} if last_key is None else {"ExclusiveStartKey": last_key}
        async with port_errors(LOG_CALL_LIMIT_S):
            answer = await self._client.query(
                TableName=self._table,
                KeyConditionExpression="#channel = :channel AND #offset BETWEEN :low AND :high",
                ExpressionAttributeNames=_NAMES,
                ExpressionAttributeValues={
                    ":channel": {"S": channel},
                    ":low": {"N": str(low)},
                    ":high": {"N": str(high)},
                },
                ScanIndexForward=ascending,
                Limit=limit,
                ConsistentRead=True,
                **start,
            )
            return _items(answer["Items"]), answer.get("LastEvaluatedKey")

    async def _get(self, channel: str, offset: int) -> AttributeMap | None:
        async with port_errors(LOG_CALL_LIMIT_S):
            answer = await self._client.get_item(
                TableName=self._table,
                Key={"channel": {"S": channel}, "offset": {"N": str(offset)}},
                ConsistentRead=True,
            )
            return _item(answer)


def _reasons(error: ClientError, writes: int) -> Sequence[dict[str, Any]]:
    """The reasons for a cancelled transaction: one for each of its writes, in their order.

    Raises Rejected.
    """
    answer: dict[str, Any] = error.response
    reasons: list[dict[str, Any]] = answer.get("CancellationReasons") or []
    if not (
        isinstance(reasons, list)
        and len(reasons) == writes
        and all(isinstance(reason, dict) for reason in reasons)
    ):
        raise Rejected("a transaction was canceled without reasons") from error
    return reasons


def _items(answered: Any) -> Sequence[AttributeMap]:
    """Raises TypeError for what is no list of items."""
    if isinstance(answered, list) and all(map(_is_item, answered)):
        return answered
    raise TypeError("no items")


def _item(answer: Mapping[str, Any]) -> AttributeMap | None:
    """The item in an answer, if there is one. Raises TypeError for what is no item."""
    found: AttributeMap | None = answer.get("Item")
    if found is None or _is_item(found):
        return found
    raise TypeError("no item")


def _is_item(answered: Any) -> bool:
    return isinstance(answered, dict) and all(
        isinstance(attribute, dict) for attribute in answered.values()
    )


def _parsed(attributes: AttributeMap) -> LogItem | Head:
    try:
        return parse_item(attributes)
    except MalformedItem as error:
        raise Malformed(f"stored item: {error}") from error


def _log_item(attributes: AttributeMap) -> LogItem:
    try:
        return parse_log_item(attributes)
    except MalformedItem as error:
        raise Malformed(f"stored log item: {error}") from error


def _one_of_many(attributes: AttributeMap) -> LogItem | None:
    """The log item, or None if no node wrote this row.

    A foreign row must not hide the others. A reader that needs the missing item is told of a hole.
    """
    try:
        return parse_log_item(attributes)
    except MalformedItem as error:
        _log.warning(
            "log_item_malformed",
            channel=attributes.get("channel", {}).get("S"),
            reason=str(error),
        )
        return None


def _key_item(attributes: AttributeMap) -> KeyItem:
    try:
        return parse_key_item(attributes)
    except MalformedItem as error:
        raise Malformed(f"stored key item: {error}") from error
