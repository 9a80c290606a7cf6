"""The `presence` table in DynamoDB: the members of a channel, and the channels of a node's members.

    key = "channel#<channel>"   member = "<node>#<client>"   info = JSON of the client's info
    key = "node#<node>"         member = "<channel>"         while the node has a member there

An item of the first kind without `info` is nobody. It is left for a while where a write that was
given up would otherwise bring back who has left.

The second kind tells the clean-up after a dead node where to look. It is written before the first
entry that it covers, and removed after the last.

Both have `write`, a number that rises from write to write of a node. A call that was given up may
reach the table after later ones. So a write or removal is refused where the item has a higher
number. Only the node itself writes its items, and the clean-up removes them without a condition. So
nodes of releases without these numbers write and read beside others.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from roomcast.aws.errors import CALL_LIMIT_S, is_condition_failure, port_errors
from roomcast.backoff import Backoff
from roomcast.ports import Throttled
from roomcast.presence.ports import Member, TooManyMembers
from roomcast.wire.publication import ClientInfo, MalformedPublication

__all__ = [
    "CHANNELS_PAGE",
    "DECODED_A_TURN",
    "ENTRIES_PAGE",
    "MEMBERS_MAX",
    "MEMBERS_PAGE",
    "PAGES_MAX",
    "DynamoPresence",
    "channel_key",
    "entry_item",
    "member_key",
    "node_key",
]

# Entries of one channel in one read: some 3 MB.
MEMBERS_MAX: Final = 20_000
# Pages of DynamoDB, each of at most 1 MB: for members with large infos. They are read one after the
# other while a client waits.
PAGES_MAX: Final = 16
# Entries in one of these pages. The SDK decodes a page in one turn of the event loop, some 12 µs an
# entry, and DynamoDB's megabyte holds thousands of small ones.
MEMBERS_PAGE: Final = 1_300
assert PAGES_MAX * MEMBERS_PAGE > MEMBERS_MAX, "a channel of so many is read to its end"
# Entries of a page whose infos are decoded before other tasks have their turn: some 2 ms.
DECODED_A_TURN: Final = 325
# Entries or channels of a dead node in one read: one page of DynamoDB, at most 1 MB.
CHANNELS_PAGE: Final = 500
ENTRIES_PAGE: Final = 500
# The limit of BatchWriteItem.
_DELETES_MAX: Final = 25
# A batch may be carried out in part. Attempts at the rest, with a pause before each: some 3 s in
# all.
_DELETE_ATTEMPTS_MAX: Final = 6
_DELETE_BACKOFF: Final = Backoff(0.1, 3.2)
# Locks for writes of "node" rows. Channels share a lock by hash.
_LOCKS: Final = 64
_SEPARATOR: Final = "#"
# The attribute with the number of the write.
_WRITE: Final = "write"

Sleep = Callable[[float], Awaitable[None]]


def channel_key(channel: str) -> str:
    """The partition of a channel's entries."""
    return f"channel{_SEPARATOR}{channel}"


def node_key(node: str) -> str:
    """The partition that lists the channels in which a node has members."""
    return f"node{_SEPARATOR}{node}"


def member_key(node: str, client: str) -> str:
    """The sort key of one entry. A node's id contains no "#"."""
    return f"{node}{_SEPARATOR}{client}"


def entry_item(channel: str, member: Member) -> dict[str, Any]:
    """The item of one entry."""
    return {
        "key": {"S": channel_key(channel)},
        "member": {"S": member_key(member.node, member.info.client)},
        "info": {"S": json.dumps(member.info.wire(), separators=(",", ":"))},
    }


class DynamoPresence:
    """A Presence. `client`: a DynamoDB client that retries."""

    def __init__(self, client: Any, table_name: str, sleep: Sleep = asyncio.sleep) -> None:
        self._client = client
        self._table = table_name
        self._sleep = sleep
        # The clients added here, by node and channel; and those keys whose "node" row is certainly
        # written.
        self._clients: dict[tuple[str, str], set[str]] = {}
        self._listed: set[tuple[str, str]] = set()
        # The number of the newest write or removal.
        self._write = 0
        self._locks = tuple(asyncio.Lock() for _ in range(_LOCKS))

    async def add(self, channel: str, member: Member) -> None:
        await self._write_entry(channel, member, entry_item(channel, member))

    async def keep_out(self, channel: str, member: Member) -> None:
        # The item has a number, which refuses a write with a lower one.
        key = _key(channel_key(channel), member_key(member.node, member.info.client))
        await self._write_entry(channel, member, key)

    async def _write_entry(self, channel: str, member: Member, item: Mapping[str, Any]) -> None:
        node, client = member.node, member.info.client
        async with self._lock(channel):
            self._clients.setdefault((node, channel), set()).add(client)
            if (node, channel) not in self._listed:
                await self._put({"key": {"S": node_key(node)}, "member": {"S": channel}})
                self._listed.add((node, channel))
        await self._put(item)

    async def remove(self, channel: str, member: Member) -> None:
        node, client = member.node, member.info.client
        await self._delete(channel_key(channel), member_key(node, client))
        async with self._lock(channel):
            clients = self._clients.get((node, channel))
            if clients is None:
                return
            clients.discard(client)
            if not clients:
                # Not certain any more, whatever becomes of the call.
                self._listed.discard((node, channel))
                await self._delete(node_key(node), channel)
                del self._clients[node, channel]

    async def members(self, channel: str) -> Sequence[Member]:
        members: list[Member] = []
        start: dict[str, Any] = {}
        for _ in range(PAGES_MAX):
            async with port_errors(CALL_LIMIT_S):
                answer = await self._client.query(
                    TableName=self._table,
                    KeyConditionExpression="#key = :key",
                    ProjectionExpression="#member, #info",
                    ExpressionAttributeNames={"#key": "key", "#member": "member", "#info": "info"},
                    ExpressionAttributeValues={":key": {"S": channel_key(channel)}},
                    ConsistentRead=True,
                    Limit=MEMBERS_PAGE,
                    **start,
                )
                items = answer["Items"]
                for first in range(0, len(items), DECODED_A_TURN):
                    # Also before the first of them: the SDK has just decoded the page.
                    await asyncio.sleep(0)
                    members.extend(
                        member
                        for item in items[first : first + DECODED_A_TURN]
                        if (member := _member(item)) is not None
                    )
            if len(members) > MEMBERS_MAX:
                raise TooManyMembers(f"more than {MEMBERS_MAX} members")
            if "LastEvaluatedKey" not in answer:
                return members
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        raise TooManyMembers(f"more than {PAGES_MAX} MB")

    async def channels(self, node: str) -> Sequence[str]:
        async with port_errors(CALL_LIMIT_S):
            answer = await self._client.query(
                TableName=self._table,
                KeyConditionExpression="#key = :key",
                ExpressionAttributeNames={"#key": "key"},
                ExpressionAttributeValues={":key": {"S": node_key(node)}},
                ConsistentRead=True,
                Limit=CHANNELS_PAGE,
            )
            return [item["member"]["S"] for item in answer["Items"]]

    async def entries(self, node: str, channel: str) -> Sequence[ClientInfo]:
        items, _ = await self._entries(node, channel, "#member, #info")
        return [_left_behind(item) for item in items if "info" in item]

    async def clear(self, node: str, channel: str) -> bool:
        items, more = await self._entries(node, channel, "#member")
        members = [item["member"] for item in items]
        for start in range(0, len(members), _DELETES_MAX):
            await self._delete_batch(channel_key(channel), members[start : start + _DELETES_MAX])
        if more:
            return False
        async with self._lock(channel):
            self._listed.discard((node, channel))
            async with port_errors(CALL_LIMIT_S):
                await self._client.delete_item(
                    TableName=self._table, Key=_key(node_key(node), channel)
                )
            self._clients.pop((node, channel), None)
        return True

    async def _entries(
        self, node: str, channel: str, attributes: str
    ) -> tuple[Sequence[Mapping[str, Any]], bool]:
        """A page of entries, and whether more follow.

        The page's size does not depend on `attributes`, because DynamoDB counts whole items.
        """
        names = {"#key": "key", "#member": "member", "#info": "info"}
        async with port_errors(CALL_LIMIT_S):
            answer = await self._client.query(
                TableName=self._table,
                KeyConditionExpression="#key = :key AND begins_with(#member, :node)",
                ProjectionExpression=attributes,
                ExpressionAttributeNames={
                    name: value
                    for name, value in names.items()
                    if name == "#key" or name in attributes
                },
                ExpressionAttributeValues={
                    ":key": {"S": channel_key(channel)},
                    ":node": {"S": member_key(node, "")},
                },
                ConsistentRead=True,
                Limit=ENTRIES_PAGE,
            )
            items = answer["Items"]
            if not all(isinstance(item["member"]["S"], str) for item in items):
                raise TypeError("an entry without its key")
            return items, "LastEvaluatedKey" in answer

    async def _delete_batch(self, key: str, members: Sequence[Mapping[str, str]]) -> None:
        left = [
            {"DeleteRequest": {"Key": {"key": {"S": key}, "member": member}}} for member in members
        ]
        for attempt in range(1, _DELETE_ATTEMPTS_MAX + 1):
            async with port_errors(CALL_LIMIT_S):
                answer = await self._client.batch_write_item(RequestItems={self._table: left})
                left = answer.get("UnprocessedItems", {}).get(self._table, [])
            if not left:
                return
            await self._sleep(_DELETE_BACKOFF.pause_s(attempt))
        raise Throttled(f"{len(left)} entries were not removed")

    def _lock(self, channel: str) -> asyncio.Lock:
        return self._locks[hash(channel) % _LOCKS]

    async def _put(self, item: Mapping[str, Any]) -> None:
        number = self._next_number()
        await self._unless_later(self._client.put_item, number, Item={**item, _WRITE: number})

    async def _delete(self, key: str, member: str) -> None:
        await self._unless_later(
            self._client.delete_item,
            self._next_number(),
            Key=_key(key, member),
        )

    def _next_number(self) -> Mapping[str, str]:
        # From the clock, so that whoever removes an entry later and elsewhere has a higher one.
        self._write = max(self._write + 1, time.time_ns() // 1000)
        return {"N": str(self._write)}

    async def _unless_later(
        self, write: Callable[..., Awaitable[Any]], number: Mapping[str, str], **params: Any
    ) -> None:
        """Make a write with this number, unless the item is of a later one."""
        async with port_errors(CALL_LIMIT_S):
            try:
                await write(
                    TableName=self._table,
                    ConditionExpression="attribute_not_exists(#write) OR #write <= :write",
                    ExpressionAttributeNames={"#write": _WRITE},
                    ExpressionAttributeValues={":write": number},
                    **params,
                )
            except ClientError as error:
                if not is_condition_failure(error):
                    raise


def _key(key: str, member: str) -> Mapping[str, Any]:
    return {"key": {"S": key}, "member": {"S": member}}


def _member(item: Mapping[str, Any]) -> Member | None:
    """The member in an item. None: roomcast did not write it. A damaged entry must not hide the
    others.
    """
    node, separator, _ = item["member"]["S"].partition(_SEPARATOR)
    try:
        info = ClientInfo.from_wire(json.loads(item.get("info", {}).get("S", "")))
    except (AttributeError, TypeError, ValueError, RecursionError, MalformedPublication):
        return None
    return Member(node, info) if separator else None


def _left_behind(item: Mapping[str, Any]) -> ClientInfo:
    """The info of an entry. The key holds the client's id, even if nothing else can be read."""
    member = _member(item)
    if member is not None:
        return member.info
    return ClientInfo("", item["member"]["S"].partition(_SEPARATOR)[2])
