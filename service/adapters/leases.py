"""The `nodes` table in DynamoDB: what each node holds and when it was last heard of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from service.adapters.aws import CALL_LIMIT_S, is_condition_failure, port_errors
from service.ports import Lease, Refused

__all__ = ["LEASES_MAX", "LEASE_KEEP_S", "DynamoLeases"]

# A dead node's row says what to clean up after it, so TTL removes it only when nobody did for a day.
LEASE_KEEP_S: Final = 24 * 3600
# Rows that one scan may find: far beyond any fleet, dead nodes of a day included.
LEASES_MAX: Final = 10_000


class DynamoLeases:
    """A Leases. `client`: a DynamoDB client that retries."""

    def __init__(self, client: Any, table_name: str) -> None:
        self._client = client
        self._table = table_name

    async def put(self, lease: Lease) -> None:
        async with port_errors(CALL_LIMIT_S):
            await self._client.put_item(TableName=self._table, Item=_attributes(lease))

    async def heartbeat(self, lease: Lease) -> bool:
        async with port_errors(CALL_LIMIT_S):
            try:
                await self._client.put_item(
                    TableName=self._table,
                    Item=_attributes(lease),
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

    async def all(self) -> Sequence[Lease]:
        leases: list[Lease] = []
        start: dict[str, Any] = {}
        for _ in range(LEASES_MAX):
            async with port_errors(CALL_LIMIT_S):
                answer = await self._client.scan(TableName=self._table, ConsistentRead=True, **start)
            leases.extend(lease for item in answer["Items"] if (lease := _lease(item)) is not None)
            if len(leases) > LEASES_MAX:
                raise Refused(f"more than {LEASES_MAX} leases")
            if "LastEvaluatedKey" not in answer:
                return leases
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        raise Refused("too many pages")


def _attributes(lease: Lease) -> dict[str, dict[str, str]]:
    """`lease_until` is the lease's own end in ms; `expires_at`, in seconds, is TTL's."""
    return {
        "node": {"S": lease.node},
        "queue": {"S": lease.queue},
        "state": {"S": lease.state},
        "started_at": {"N": str(lease.started_at)},
        "heartbeat_at": {"N": str(lease.heartbeat_at)},
        "lease_until": {"N": str(lease.expires_at)},
        "canary": {"N": str(lease.canary)},
        "expires_at": {"N": str(lease.expires_at // 1000 + LEASE_KEEP_S)},
    }


def _lease(item: Mapping[str, Any]) -> Lease | None:
    """None: not a lease; a foreign row must not hide the others."""
    try:
        return Lease(
            node=item["node"]["S"],
            queue=item["queue"]["S"],
            state=item["state"]["S"],
            started_at=int(item["started_at"]["N"]),
            heartbeat_at=int(item["heartbeat_at"]["N"]),
            expires_at=int(item["lease_until"]["N"]),
            canary=int(item.get("canary", {"N": "0"})["N"]),
        )
    except (KeyError, ValueError):
        return None
