"""The `presence` table in DynamoDB: the members of a channel, and the channels of a node's members.

    key = "channel#<channel>"     member = "<node>#<client>"   info = JSON of the client's info
    key = "channel-1#<channel>"   the same, of further presence shards
    key = "channel#<channel>"     member = "<node>#"           shards = how many shards it has there
    key = "node#<node>"           member = "<channel>"         while the node has a member there

An item of the first kinds without `info` is nobody. It is left for a while where a write that was
given up would otherwise bring back who has left.

A partition takes 1,000 writes a second. So a channel may have several, its presence shards. A
client's entry is in one of them, by the hash of its id. The first shard is where all entries are
when there is one. How many there are is a matter of the node that writes: it may be another one's
configuration, or an earlier one. So a node with more than one says so in the first shard, and
whoever reads that reads them all.

The last kind tells the clean-up after a dead node where to look. Both it and the number of shards
are written before the first entry that they cover, and removed after the last.

Where events of a channel are wanted, its entries have `events`: which (wire/event_kinds.py). The
events Lambda reads the table's stream and gets those. `moved` on an entry: its client has another
one, and has not left when this one goes. The Lambda has items of its own here, with keys
"occupancy#<channel>" (events/occupancy.py).

All have `write`, a number that rises from write to write of a node. A call that was given up may
reach the table after later ones. So a write or removal is refused where the item has a higher
number. Only the node itself writes its items, and the clean-up removes them without a condition. So
nodes of releases without these numbers write and read beside others.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from zlib import crc32

from botocore.exceptions import ClientError

from roomcast.aws.errors import CALL_LIMIT_S, is_condition_failure, port_errors
from roomcast.backoff import Backoff
from roomcast.concurrency import each
from roomcast.ports import Throttled
from roomcast.presence.ports import Member, TooManyMembers
from roomcast.wire.event_kinds import EVENTS_ATTRIBUTE, MOVED_ATTRIBUTE, Mark
from roomcast.wire.names import PRESENCE_SHARDS_MAX
from roomcast.wire.publication import ClientInfo, MalformedPublication

__all__ = [
    "CHANNELS_PAGE",
    "DECODED_A_TURN",
    "ENTRIES_PAGE",
    "MEMBERS_MAX",
    "MEMBERS_PAGE",
    "PAGES_MAX",
    "QUERIES_AT_ONCE",
    "DynamoPresence",
    "channel_key",
    "entry_item",
    "member_key",
    "node_key",
    "shard_of_client",
]

# Entries of one channel in one read: some 3 MB.
MEMBERS_MAX: Final = 20_000
# Pages of DynamoDB, each of at most 1 MB: for members with large infos. Those of a presence shard
# are read one after the other while a client waits. Each further shard may have one more, which is
# not full.
PAGES_MAX: Final = 16
# Entries in one of these pages. The SDK decodes a page in one turn of the event loop, some 12 µs an
# entry, and DynamoDB's megabyte holds thousands of small ones.
MEMBERS_PAGE: Final = 1_300
assert PAGES_MAX * MEMBERS_PAGE > MEMBERS_MAX, "a channel of so many is read to its end"
# Entries of a page whose infos are decoded before other tasks have their turn: some 2 ms.
DECODED_A_TURN: Final = 325
# Queries for members that a node makes at once, of all channels and presence shards: they must not
# take all of its connections to the table.
QUERIES_AT_ONCE: Final = 16
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
# Leases whose entries were abandoned: those of some hours. Older ones are cleaned up by then.
_ABANDONED_MAX: Final = 100
_SEPARATOR: Final = "#"
# The attribute with the number of the write, and that with the number of presence shards.
_WRITE: Final = "write"
_SHARDS: Final = "shards"

Sleep = Callable[[float], Awaitable[None]]


def channel_key(channel: str, shard: int = 0) -> str:
    """The partition of a channel's entries, or of one of its presence shards."""
    return f"channel-{shard}{_SEPARATOR}{channel}" if shard else f"channel{_SEPARATOR}{channel}"


def shard_of_client(client_id: str, shards: int) -> int:
    """The presence shard, of so many, that has the entry of a client."""
    return crc32(client_id.encode()) % shards


def node_key(node: str) -> str:
    """The partition that lists the channels in which a node has members."""
    return f"node{_SEPARATOR}{node}"


def member_key(node: str, client: str) -> str:
    """The sort key of one entry. A node's id contains no "#"."""
    return f"{node}{_SEPARATOR}{client}"


def entry_item(
    channel: str, member: Member, shards: int = 1, events: Sequence[str] = ()
) -> dict[str, Any]:
    """The item of one entry, where the channel has so many presence shards. `events`: the kinds
    that are to be told.
    """
    mark = Mark(tuple(events), member.since_ms, member.again)
    return {
        "key": {"S": channel_key(channel, shard_of_client(member.info.client, shards))},
        "member": {"S": member_key(member.node, member.info.client)},
        "info": {"S": json.dumps(member.info.wire(), separators=(",", ":"))},
        **({EVENTS_ATTRIBUTE: {"S": mark.text()}} if events else {}),
    }


@dataclass(frozen=True, slots=True)
class _Page:
    """Items of one partition, and whether more follow."""

    key: str
    items: Sequence[Mapping[str, Any]]
    more: bool


def _one_shard(_channel: str) -> int:
    return 1


def _no_events(_channel: str) -> Sequence[str]:
    return ()


@dataclass(slots=True)
class _Found:
    """What the queries for one channel's members have brought so far, of all presence shards."""

    members: list[Member] = field(default_factory=list)
    pages: int = 0
    # As many as any writer of an entry has.
    shards: int = 1


class DynamoPresence:
    """A Presence. `client`: a DynamoDB client that retries.

    `shards` returns the number of presence shards for what this node writes in a channel, `events`
    the kinds of events that are to be told of it.
    """

    def __init__(
        self,
        client: Any,
        table_name: str,
        sleep: Sleep = asyncio.sleep,
        *,
        shards: Callable[[str], int] = _one_shard,
        events: Callable[[str], Sequence[str]] = _no_events,
    ) -> None:
        self._client = client
        self._table = table_name
        self._sleep = sleep
        self._shards = shards
        self._events = events
        self._queries = asyncio.Semaphore(QUERIES_AT_ONCE)
        # The clients added here, by node and channel; and those keys whose "node" row is certainly
        # written.
        self._clients: dict[tuple[str, str], set[str]] = {}
        self._listed: set[tuple[str, str]] = set()
        # Nodes with entries that nobody will remove: their "node" rows stay, by which the clean-up
        # finds them. They are leases of this node that were lost, and the present one.
        self._abandoned: dict[str, None] = {}
        # The number of the newest write or removal.
        self._write = 0
        self._locks = tuple(asyncio.Lock() for _ in range(_LOCKS))

    async def add(self, channel: str, member: Member) -> None:
        item = entry_item(channel, member, self._shards(channel), self._events(channel))
        await self._write_entry(channel, member, item)

    async def moved(self, channel: str, member: Member) -> None:
        if self._events(channel):
            await self._mark_moved(self._entry_key(channel, member))

    async def _mark_moved(self, key: Mapping[str, Any]) -> None:
        async with port_errors(CALL_LIMIT_S):
            try:
                await self._client.update_item(
                    TableName=self._table,
                    Key=key,
                    UpdateExpression="SET #moved = :moved",
                    # The removal of what is not there would be undone.
                    ConditionExpression="attribute_exists(#events)",
                    ExpressionAttributeNames={
                        "#moved": MOVED_ATTRIBUTE,
                        "#events": EVENTS_ATTRIBUTE,
                    },
                    ExpressionAttributeValues={":moved": {"BOOL": True}},
                )
            except ClientError as error:
                if not is_condition_failure(error):
                    raise

    async def keep_out(self, channel: str, member: Member) -> None:
        # The item has a number, which refuses a write with a lower one.
        await self._write_entry(channel, member, self._entry_key(channel, member))

    def abandon(self, channel: str, member: Member) -> None:
        node = member.node
        self._abandoned[node] = None
        if len(self._abandoned) > _ABANDONED_MAX:
            del self._abandoned[next(iter(self._abandoned))]
        if (clients := self._clients.get((node, channel))) is not None:
            clients.discard(member.info.client)
            if not clients:
                self._forget(node, channel)

    def _forget(self, node: str, channel: str) -> None:
        self._clients.pop((node, channel), None)
        self._listed.discard((node, channel))

    def _entry_key(self, channel: str, member: Member) -> Mapping[str, Any]:
        client = member.info.client
        shard = shard_of_client(client, self._shards(channel))
        return _key(channel_key(channel, shard), member_key(member.node, client))

    async def _write_entry(self, channel: str, member: Member, item: Mapping[str, Any]) -> None:
        node, client = member.node, member.info.client
        async with self._lock(channel):
            self._clients.setdefault((node, channel), set()).add(client)
            if (node, channel) not in self._listed:
                await self._put(_key(node_key(node), channel))
                if (shards := self._shards(channel)) > 1:
                    key = _key(channel_key(channel), member_key(node, ""))
                    await self._put({**key, _SHARDS: {"N": str(shards)}})
                self._listed.add((node, channel))
        await self._put(item)

    async def remove(self, channel: str, member: Member) -> None:
        node, client = member.node, member.info.client
        await self._delete(self._entry_key(channel, member))
        async with self._lock(channel):
            clients = self._clients.get((node, channel))
            if clients is None:
                return
            clients.discard(client)
            if not clients and node in self._abandoned:
                self._forget(node, channel)
            elif not clients:
                # Not certain any more, whatever becomes of the calls.
                self._listed.discard((node, channel))
                if self._shards(channel) > 1:
                    await self._delete(_key(channel_key(channel), member_key(node, "")))
                await self._delete(_key(node_key(node), channel))
                self._forget(node, channel)

    async def members(self, channel: str) -> Sequence[Member]:
        found, shards = _Found(), self._shards(channel)
        read = partial(self._read_shard, channel, found)
        if shards == 1:
            await read(0)
        else:
            await each(QUERIES_AT_ONCE, range(shards), read)
        if found.shards > shards:
            await each(QUERIES_AT_ONCE, range(shards, found.shards), read)
        return found.members

    async def _read_shard(self, channel: str, found: _Found, shard: int) -> None:
        """Add the members of a presence shard to what was `found`. Raises TooManyMembers."""
        start: dict[str, Any] = {}
        while found.pages < PAGES_MAX + max(found.shards, self._shards(channel)) - 1:
            found.pages += 1
            async with self._queries, port_errors(CALL_LIMIT_S):
                answer = await self._client.query(
                    TableName=self._table,
                    KeyConditionExpression="#key = :key",
                    ProjectionExpression="#member, #info, #shards",
                    ExpressionAttributeNames={
                        "#key": "key",
                        "#member": "member",
                        "#info": "info",
                        "#shards": _SHARDS,
                    },
                    ExpressionAttributeValues={":key": {"S": channel_key(channel, shard)}},
                    ConsistentRead=True,
                    Limit=MEMBERS_PAGE,
                    **start,
                )
                items = answer["Items"]
                found.shards = max(found.shards, _shards_said(items))
                for first in range(0, len(items), DECODED_A_TURN):
                    # Also before the first of them: the SDK has just decoded the page.
                    await asyncio.sleep(0)
                    found.members.extend(
                        member
                        for item in items[first : first + DECODED_A_TURN]
                        if (member := _member(item)) is not None
                    )
            if len(found.members) > MEMBERS_MAX:
                raise TooManyMembers(f"more than {MEMBERS_MAX} members")
            if "LastEvaluatedKey" not in answer:
                return
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
        pages = await self._left(node, channel, "#member, #info, #shards")
        return [_left_behind(item) for page in pages for item in page.items if "info" in item]

    async def clear(self, node: str, channel: str, moved: Collection[str] = ()) -> bool:
        attributes = "#member, #shards, #events" if moved else "#member, #shards"
        pages = await self._left(node, channel, attributes)
        keys = [
            _key(page.key, item["member"]["S"])
            for page in (pages if moved else ())
            for item in page.items
            if EVENTS_ATTRIBUTE in item and item["member"]["S"].partition(_SEPARATOR)[2] in moved
        ]
        await each(QUERIES_AT_ONCE, keys, self._mark_moved)
        more = any(page.more for page in pages)
        # The first shard is the last: it says how many others there are.
        for page in reversed(pages):
            # As long as there is more.
            members = [item["member"] for item in page.items if not (more and _SHARDS in item)]
            for start in range(0, len(members), _DELETES_MAX):
                await self._delete_batch(page.key, members[start : start + _DELETES_MAX])
        if more:
            return False
        async with self._lock(channel):
            self._listed.discard((node, channel))
            async with port_errors(CALL_LIMIT_S):
                await self._client.delete_item(
                    TableName=self._table, Key=_key(node_key(node), channel)
                )
            self._forget(node, channel)
        return True

    async def _left(self, node: str, channel: str, attributes: str) -> Sequence[_Page]:
        """A page of a node's entries in each presence shard that it has in a channel, in order.

        The pages' sizes do not depend on `attributes`, because DynamoDB counts whole items.
        """
        first = await self._page(node, attributes, ENTRIES_PAGE, channel_key(channel))
        shards = _shards_said(first.items)
        others = [channel_key(channel, shard) for shard in range(1, shards)]
        page = partial(self._page, node, attributes, ENTRIES_PAGE // shards)
        return [first, *await each(QUERIES_AT_ONCE, others, page)]

    async def _page(self, node: str, attributes: str, limit: int, key: str) -> _Page:
        """Entries of a node in one partition, `limit` of them at most."""
        names = {
            "#key": "key",
            "#member": "member",
            "#info": "info",
            "#shards": _SHARDS,
            "#events": EVENTS_ATTRIBUTE,
        }
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
                    ":key": {"S": key},
                    ":node": {"S": member_key(node, "")},
                },
                ConsistentRead=True,
                Limit=limit,
            )
            items = answer["Items"]
            if not all(isinstance(item["member"]["S"], str) for item in items):
                raise TypeError("an entry without its key")
            return _Page(key, items, "LastEvaluatedKey" in answer)

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

    async def _delete(self, key: Mapping[str, Any]) -> None:
        await self._unless_later(self._client.delete_item, self._next_number(), Key=key)

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


def _shards_said(items: Iterable[Mapping[str, Any]]) -> int:
    """The greatest number of presence shards that a node says in `items`; 1 = none does."""
    said = (float(item[_SHARDS].get("N", "1")) for item in items if _SHARDS in item)
    # Another program may write any number.
    return int(min(max((1.0, *said)), PRESENCE_SHARDS_MAX))


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
