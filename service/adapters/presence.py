"""The `presence` table in DynamoDB: who is in a channel, and in which channels a node has members.

    key = "channel#<channel>"   member = "<node>#<client>"   info = JSON of the client's info
    key = "node#<node>"         member = "<channel>"         as long as the node has a member there

The second kind tells whoever cleans up after a dead node where to look, so it is written before the first
entry it stands for and removed after the last.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.adapters.aws import CALL_LIMIT_S, port_errors
from service.core.publication import ClientInfo, MalformedPublication
from service.ports import Member, Refused

__all__ = ["MEMBERS_MAX", "DynamoPresence", "channel_key", "member_key", "node_key"]

# One channel's entries that are read at once: some 3 MB and a dozen pages.
MEMBERS_MAX: Final = 20_000
# Writes of "node" rows that may wait for each other; channels share locks by hash.
_LOCKS: Final = 64
_SEPARATOR: Final = "#"


def channel_key(channel: str) -> str:
    """The partition of a channel's entries."""
    return f"channel{_SEPARATOR}{channel}"


def node_key(node: str) -> str:
    """The partition that lists the channels in which a node has members."""
    return f"node{_SEPARATOR}{node}"


def member_key(node: str, client: str) -> str:
    """The sort key of one entry. A node's id holds no "#"."""
    return f"{node}{_SEPARATOR}{client}"


class DynamoPresence:
    """A Presence. `client`: a DynamoDB client that retries."""

    def __init__(self, client: Any, table_name: str) -> None:
        self._client = client
        self._table = table_name
        # The clients added here, by node and channel: a key stands for a "node" row that is written.
        self._clients: dict[tuple[str, str], set[str]] = {}
        self._locks = tuple(asyncio.Lock() for _ in range(_LOCKS))

    async def add(self, channel: str, member: Member) -> None:
        node, client = member.node, member.info.client
        async with self._lock(channel):
            if (node, channel) not in self._clients:
                await self._put({"key": {"S": node_key(node)}, "member": {"S": channel}})
                self._clients[node, channel] = set()
            self._clients[node, channel].add(client)
        await self._put(
            {
                "key": {"S": channel_key(channel)},
                "member": {"S": member_key(node, client)},
                "info": {"S": json.dumps(member.info.wire(), separators=(",", ":"))},
            }
        )

    async def remove(self, channel: str, member: Member) -> None:
        node, client = member.node, member.info.client
        await self._delete(channel_key(channel), member_key(node, client))
        async with self._lock(channel):
            clients = self._clients.get((node, channel))
            if clients is None:
                return
            clients.discard(client)
            if not clients:
                await self._delete(node_key(node), channel)
                del self._clients[node, channel]

    async def members(self, channel: str) -> Sequence[Member]:
        members: list[Member] = []
        start: dict[str, Any] = {}
        # A page without entries may still be followed by another, but not for ever.
        for _ in range(MEMBERS_MAX):
            async with port_errors(CALL_LIMIT_S):
                answer = await self._client.query(
                    TableName=self._table,
                    KeyConditionExpression="#key = :key",
                    ExpressionAttributeNames={"#key": "key"},
                    ExpressionAttributeValues={":key": {"S": channel_key(channel)}},
                    ConsistentRead=True,
                    **start,
                )
            members.extend(member for item in answer["Items"] if (member := _member(item)) is not None)
            if len(members) > MEMBERS_MAX:
                raise Refused(f"more than {MEMBERS_MAX} members")
            if "LastEvaluatedKey" not in answer:
                return members
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        raise Refused("too many pages")

    def _lock(self, channel: str) -> asyncio.Lock:
        return self._locks[hash(channel) % _LOCKS]

    async def _put(self, item: Mapping[str, Any]) -> None:
        async with port_errors(CALL_LIMIT_S):
            await self._client.put_item(TableName=self._table, Item=item)

    async def _delete(self, key: str, member: str) -> None:
        async with port_errors(CALL_LIMIT_S):
            await self._client.delete_item(
                TableName=self._table, Key={"key": {"S": key}, "member": {"S": member}}
            )


def _member(item: Mapping[str, Any]) -> Member | None:
    """None: not written by roomcast; one damaged entry must not hide the others."""
    node, separator, _ = item["member"]["S"].partition(_SEPARATOR)
    try:
        info = ClientInfo.from_wire(json.loads(item.get("info", {}).get("S", "")))
    except (ValueError, MalformedPublication):
        return None
    return Member(node, info) if separator else None
