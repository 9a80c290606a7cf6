"""The `nodes` table in DynamoDB: each node's resources and the time of its last heartbeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from botocore.exceptions import ClientError

from roomcast.aws.errors import CALL_LIMIT_S, is_condition_failure, port_errors
from roomcast.fleet.lease_record import Lease, Tombstone
from roomcast.ports import Rejected
from roomcast.wire.publication import TIME_MAX

__all__ = ["LEASES_MAX", "LEASE_KEEP_S", "DynamoLeases", "lease_attributes"]

# A dead node's row lists the resources to clean up. TTL removes the row only if nobody did so for a
# day.
LEASE_KEEP_S: Final = 24 * 3600
# The greatest number of rows in one scan: far beyond any fleet with its dead nodes of a day.
LEASES_MAX: Final = 10_000
# Attributes with the same names as the fields of a Lease.
_TEXTS: Final = ("queue", "state", "queue_url", "subscription_arn", "instance", "version", "badge")
_NUMBERS: Final = (
    "started_at", "heartbeat_at", "canary", "connections", "channels", "users", "lag_ms", "skew_ms",
)  # fmt: skip

T = TypeVar("T")


class DynamoLeases:
    """A Leases. `client`: a DynamoDB client that retries."""

    def __init__(self, client: Any, table_name: str) -> None:
        self._client = client
        self._table = table_name

    async def put(self, lease: Lease) -> None:
        async with port_errors(CALL_LIMIT_S):
            await self._client.put_item(TableName=self._table, Item=lease_attributes(lease))

    async def heartbeat(self, lease: Lease) -> bool:
        async with port_errors(CALL_LIMIT_S):
            try:
                await self._client.put_item(
                    TableName=self._table,
                    Item=lease_attributes(lease),
                    ConditionExpression="attribute_exists(#node) AND attribute_not_exists(#reaped)",
                    ExpressionAttributeNames={"#node": "node", "#reaped": "reaped"},
                )
            except ClientError as error:
                if is_condition_failure(error):
                    return False
                raise
        return True

    async def drop(self, node: str) -> None:
        async with port_errors(CALL_LIMIT_S):
            await self._client.delete_item(TableName=self._table, Key={"node": {"S": node}})

    async def reap(self, lease: Lease, at_ms: int) -> bool:
        async with port_errors(CALL_LIMIT_S):
            try:
                await self._client.update_item(
                    TableName=self._table,
                    Key={"node": {"S": lease.node}},
                    UpdateExpression="SET #reaped = if_not_exists(#reaped, :at)",
                    # A missing row has no heartbeat, so the condition fails for it as well.
                    ConditionExpression="#heartbeat = :heartbeat AND attribute_not_exists(#buried)",
                    ExpressionAttributeNames={
                        "#reaped": "reaped",
                        "#heartbeat": "heartbeat_at",
                        "#buried": "buried",
                    },
                    ExpressionAttributeValues={
                        ":at": {"N": str(at_ms)},
                        ":heartbeat": {"N": str(lease.heartbeat_at)},
                    },
                )
            except ClientError as error:
                if is_condition_failure(error):
                    return False
                raise
        return True

    async def put_tombstone(self, node: str, at_ms: int) -> None:
        async with port_errors(CALL_LIMIT_S):
            try:
                await self._client.update_item(
                    TableName=self._table,
                    Key={"node": {"S": node}},
                    UpdateExpression="SET #buried = :at",
                    ConditionExpression="attribute_exists(#reaped)",
                    ExpressionAttributeNames={"#buried": "buried", "#reaped": "reaped"},
                    ExpressionAttributeValues={":at": {"N": str(at_ms)}},
                )
            except ClientError as error:
                if not is_condition_failure(error):
                    raise

    async def tombstones(self) -> Sequence[Tombstone]:
        return await self._rows(_tombstone)

    async def drop_tombstone(self, tombstone: Tombstone) -> None:
        async with port_errors(CALL_LIMIT_S):
            try:
                await self._client.delete_item(
                    TableName=self._table,
                    Key={"node": {"S": tombstone.node}},
                    ConditionExpression="#buried = :at",
                    ExpressionAttributeNames={"#buried": "buried"},
                    ExpressionAttributeValues={":at": {"N": str(tombstone.cleared_at)}},
                )
            except ClientError as error:
                if not is_condition_failure(error):
                    raise

    async def all(self) -> Sequence[Lease]:
        return await self._rows(_lease)

    async def _rows(self, read: Callable[[Mapping[str, Any]], T | None]) -> Sequence[T]:
        """The rows that `read` recognizes."""
        rows: list[T] = []
        start: dict[str, Any] = {}
        for _ in range(LEASES_MAX):
            async with port_errors(CALL_LIMIT_S):
                answer = await self._client.scan(
                    TableName=self._table, ConsistentRead=True, **start
                )
                rows.extend(row for item in answer["Items"] if (row := read(item)) is not None)
            if len(rows) > LEASES_MAX:
                raise Rejected(f"more than {LEASES_MAX} leases")
            if "LastEvaluatedKey" not in answer:
                return rows
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        raise Rejected("too many pages")


def lease_attributes(lease: Lease) -> dict[str, dict[str, str]]:
    """The attributes of a row. `lease_until` is the end of the lease in ms, `expires_at` that of
    TTL in seconds.

    Other code writes `reaped` and `buried`.
    """
    return {
        "node": {"S": lease.node},
        **{name: {"S": getattr(lease, name)} for name in _TEXTS},
        **{name: {"N": str(getattr(lease, name))} for name in _NUMBERS},
        "lease_until": {"N": str(lease.expires_at)},
        "expires_at": {"N": str(lease.expires_at // 1000 + LEASE_KEEP_S)},
    }


def _lease(item: Mapping[str, Any]) -> Lease | None:
    """The lease in a row, or None for a foreign row, which must not hide the others.

    Fields that another release does not write stay empty.
    """
    if "buried" in item:
        return None
    try:
        fields: dict[str, Any] = {name: str(item[name]["S"]) for name in _TEXTS if name in item}
        fields |= {name: _number(item, name) for name in (*_NUMBERS, "reaped") if name in item}
        return Lease(node=item["node"]["S"], expires_at=_number(item, "lease_until"), **fields)
    except (KeyError, TypeError, ValueError):
        return None


def _tombstone(item: Mapping[str, Any]) -> Tombstone | None:
    """The tombstone in a row, or None."""
    try:
        instance = str(item["instance"]["S"]) if "instance" in item else ""
        return Tombstone(item["node"]["S"], instance, _number(item, "buried"))
    except (KeyError, TypeError, ValueError):
        return None


def _number(item: Mapping[str, Any], name: str) -> int:
    """A number attribute. Raises KeyError, TypeError and ValueError, also for numbers that JSON
    cannot hold.
    """
    number = int(item[name]["N"])
    if abs(number) > TIME_MAX:
        raise ValueError(f"{name} is beyond every clock and count")
    return number
