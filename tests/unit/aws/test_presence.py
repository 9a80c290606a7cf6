"""The listing of a node, bounds, and damaged entries."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from roomcast.aws import presence as aws_presence
from roomcast.aws.presence import (
    DECODED_A_TURN,
    ENTRIES_PAGE,
    MEMBERS_MAX,
    MEMBERS_PAGE,
    QUERIES_AT_ONCE,
    DynamoPresence,
    channel_key,
    shard_of_client,
)
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.presence.ports import Member, TooManyMembers
from roomcast.wire.publication import ClientInfo
from tests.unit.aws.fakes import FakeClient, client_error
from tests.unit.worlds import running

# More than Python's decoder takes.
DEEP = "[" * 10_000 + "]" * 10_000


class Rows(FakeClient):
    """A table's keys, as writes leave them; each write takes a turn of the loop."""

    def __init__(self) -> None:
        super().__init__(put_item=self._put, delete_item=self._delete)
        self.keys: set[tuple[str, str]] = set()
        self.written: list[Any] = []
        self.failures: list[Exception] = []

    def _put(self, Item: Any, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        if self.failures:
            return self.failures.pop()
        self.keys.add((Item["key"]["S"], Item["member"]["S"]))
        self.written.append(Item)
        return {}

    def _delete(self, Key: Any, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        self.keys.discard((Key["key"]["S"], Key["member"]["S"]))
        return {}


def member(client: str) -> Member:
    return Member("n1", ClientInfo("ann", client))


async def test_the_node_is_listed_as_long_as_it_has_members() -> None:
    rows = Rows()
    presence = DynamoPresence(rows, "presence")
    await presence.add("room", member("c1"))
    assert rows.keys == {("node#n1", "room"), ("channel#room", "n1#c1")}
    assert rows.calls[0][1]["Item"]["key"] == {"S": "node#n1"}, (
        "listed before there is anything to clean up"
    )
    await presence.add("room", member("c2"))
    await presence.add("other", member("c1"))
    assert len(rows.calls) == 5, "the second member costs one write"
    await presence.remove("room", member("c1"))
    assert ("node#n1", "room") in rows.keys
    await presence.remove("room", member("c2"))
    assert rows.keys == {("node#n1", "other"), ("channel#other", "n1#c1")}


async def test_a_listing_that_failed_is_written_the_next_time() -> None:
    rows = Rows()
    presence = DynamoPresence(rows, "presence")
    rows.failures = [client_error("InternalServerError", 500)]
    with pytest.raises(UnknownOutcome):
        await presence.add("room", member("c1"))
    await presence.add("room", member("c1"))
    assert rows.keys == {("node#n1", "room"), ("channel#room", "n1#c1")}


async def test_who_is_abandoned_stays_listed_and_takes_no_memory() -> None:
    """I7: clients that come and go while the table is out. The clean-up after the node finds them
    by its list, whoever leaves the same channel later.
    """
    rows = Rows()
    presence = DynamoPresence(rows, "presence")
    for number in range(50):
        gone = member(f"c{number}")
        await presence.add(f"room {number % 10}", gone)
        presence.abandon(f"room {number % 10}", gone)
    assert (presence._clients, presence._listed) == ({}, set())
    kept = set(rows.keys)
    assert len(kept) == 60
    await presence.add("room 1", member("later"))
    await presence.remove("room 1", member("later"))
    await presence.add("another", member("later"))
    await presence.remove("another", member("later"))
    assert rows.keys == kept | {("node#n1", "another")}, "what is listed without need is no harm"
    assert (presence._clients, presence._listed) == ({}, set())
    other = Member("n2", ClientInfo("ann", "c"))
    await presence.add("room 1", other)
    await presence.remove("room 1", other)
    assert ("node#n2", "room 1") not in rows.keys, "another lease"


async def test_who_is_abandoned_leaves_the_others_remembered() -> None:
    rows = Rows()
    presence = DynamoPresence(rows, "presence")
    for client in ("c1", "c2"):
        await presence.add("room", member(client))
    presence.abandon("room", member("c1"))
    presence.abandon("room", member("nobody"))
    writes = len(rows.written)
    await presence.add("room", member("c3"))
    assert len(rows.written) == writes + 1, "the list is known to be written"
    for client in ("c2", "c3"):
        await presence.remove("room", member(client))
    assert rows.keys == {("node#n1", "room"), ("channel#room", "n1#c1")}
    assert (presence._clients, presence._listed) == ({}, set())


async def test_coming_and_going_at_once_keeps_the_listing() -> None:
    rows = Rows()
    presence = DynamoPresence(rows, "presence")
    for number in range(20):
        await presence.add("room", member(f"c{number}"))
        await asyncio.gather(
            presence.remove("room", member(f"c{number}")),
            presence.add("room", member(f"d{number}")),
        )
        assert ("node#n1", "room") in rows.keys
        await presence.remove("room", member(f"d{number}"))
        assert rows.keys == set()


@pytest.mark.parametrize(
    "page_size, error", [(MEMBERS_MAX // 2, None), (MEMBERS_MAX // 2 + 1, Rejected)]
)
async def test_reading_is_bounded(page_size: int, error: type[PortError] | None) -> None:
    item = {"member": {"S": "n1#c1"}, "info": {"S": '{"user":"u","client":"c1"}'}}

    def query(ExclusiveStartKey: Any = None, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        more = {} if ExclusiveStartKey else {"LastEvaluatedKey": {"key": {"S": "k"}}}
        return {"Items": [item] * page_size, **more}

    presence = DynamoPresence(FakeClient(query=query), "presence")
    if error is None:
        assert len(await presence.members("room")) == MEMBERS_MAX
    else:
        with pytest.raises(error):
            await presence.members("room")


async def test_a_page_is_small_and_few_of_its_entries_are_decoded_in_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    item = {"member": {"S": "n1#c1"}, "info": {"S": '{"user":"u","client":"c1"}'}}
    decode, turns, decoded = aws_presence._member, 0, Counter[int]()

    async def pass_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def counted(item: Any) -> Member | None:
        decoded[turns] += 1
        return decode(item)

    def query(Limit: int, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        decoded[turns] += Limit
        return {"Items": [item] * Limit}

    monkeypatch.setattr(aws_presence, "_member", counted)
    async with running(pass_turns()):
        presence = DynamoPresence(FakeClient(query=query), "presence")
        assert len(await presence.members("room")) == MEMBERS_PAGE
    # The SDK's own decoding of the page, which is in one turn, has that turn for itself.
    assert max(decoded.values()) == MEMBERS_PAGE
    assert sorted(decoded.values())[-2] == DECODED_A_TURN


# ---- presence shards


def sharded(client: FakeClient, shards: int = 4) -> DynamoPresence:
    return DynamoPresence(client, "presence", shards=lambda _channel: shards)


async def test_the_number_of_shards_is_there_before_the_first_entry_and_after_the_last() -> None:
    rows = Rows()
    presence = sharded(rows)
    await presence.add("room", member("c1"))
    await presence.add("room", member("c2"))
    said, listed = ("channel#room", "n1#"), ("node#n1", "room")
    entries = {
        (channel_key("room", shard_of_client(client, 4)), f"n1#{client}") for client in ("c1", "c2")
    }
    assert rows.keys == {said, listed} | entries
    put = [(item["key"]["S"], item["member"]["S"]) for item in rows.written]
    assert put[:2] == [listed, said]
    assert rows.written[1]["shards"] == {"N": "4"}
    await presence.remove("room", member("c1"))
    assert {said, listed} < rows.keys
    await presence.remove("room", member("c2"))
    assert rows.keys == set()
    assert [name for name, _ in rows.calls[-3:]] == ["delete_item"] * 3
    assert rows.calls[-1][1]["Key"]["key"] == {"S": "node#n1"}, "or the clean-up would not look"


def entry(client: str) -> Any:
    return {"member": {"S": f"n1#{client}"}, "info": {"S": f'{{"user":"ann","client":"{client}"}}'}}


def said(shards: str) -> Any:
    return {"member": {"S": "n9#"}, "shards": {"N": shards}}


class Shards(FakeClient):
    """What each partition has. Queries go on together, and are counted meanwhile."""

    def __init__(self, partitions: dict[str, list[Any]]) -> None:
        super().__init__(batch_write_item=self._delete, delete_item=lambda **_: {})
        self.partitions = partitions
        self.asked: list[str] = []
        self.deleted: list[str] = []
        self.at_once = self.most_at_once = 0

    async def query(self, **params: Any) -> Any:
        key = params["ExpressionAttributeValues"][":key"]["S"]
        self.asked.append(key)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        found, limit = self.partitions.get(key, []), params["Limit"]
        more = {"LastEvaluatedKey": {"key": {"S": "k"}}} if len(found) > limit else {}
        return {"Items": found[:limit], **more}

    def _delete(self, RequestItems: Any) -> Any:  # noqa: N803  # the SDK's name
        self.deleted += keys_of(RequestItems["presence"])
        return {}


async def test_all_shards_are_read_at_once_and_the_reads_are_bounded() -> None:
    rows = Shards({channel_key("room", shard): [entry(f"c{shard}")] for shard in range(4)})
    presence = sharded(rows)
    assert len(await presence.members("room")) == 4
    assert sorted(rows.asked) == sorted(channel_key("room", shard) for shard in range(4))
    assert rows.most_at_once == 4
    await asyncio.gather(*(presence.members("room") for _ in range(8)))
    assert rows.most_at_once == QUERIES_AT_ONCE


async def test_one_shard_is_one_query() -> None:
    rows = Shards({})
    assert await DynamoPresence(rows, "presence").members("room") == []
    assert rows.asked == ["channel#room"]


@pytest.mark.parametrize(
    "number, read", [("-3", 1), ("0", 1), ("1", 1), ("2.5", 2), ("3", 3), ("1E125", 16)]
)
async def test_what_a_node_says_of_its_shards_is_read_within_the_bound(
    number: str, read: int
) -> None:
    rows = Shards({"channel#room": [said("1"), said(number), entry("c0")]})
    assert await DynamoPresence(rows, "presence").members("room") == [member("c0")]
    assert len(rows.asked) == read


async def test_the_shards_share_the_bounds_of_a_read() -> None:
    each = [entry("c")] * MEMBERS_PAGE
    rows = Shards({channel_key("room", shard): each for shard in range(16)})
    presence = sharded(rows, 16)
    with pytest.raises(TooManyMembers):
        await presence.members("room")
    assert len(rows.asked) <= 16


async def test_the_number_of_shards_stays_until_nothing_else_is_there() -> None:
    first = [said("3"), *(entry(f"c{n:03}") for n in range(ENTRIES_PAGE + 10))]
    first[0]["member"] = {"S": "n1#"}
    rows = Shards({"channel#room": first, "channel-2#room": [entry("d")]})
    presence = DynamoPresence(rows, "presence")
    assert len(await presence.entries("n1", "room")) == ENTRIES_PAGE
    assert not await presence.clear("n1", "room")
    assert rows.deleted[0] == "n1#d", "the first shard is the last"
    assert "n1#" not in rows.deleted
    rows.partitions, rows.deleted = {"channel#room": [first[0], *first[-11:]]}, []
    assert await presence.clear("n1", "room")
    assert "n1#" in rows.deleted


async def test_a_clean_up_that_ends_early_finds_the_other_shards_again() -> None:
    marker = said("2") | {"member": {"S": "n1#"}}
    many = [entry(f"c{n:03}") for n in range(ENTRIES_PAGE)]
    rows = Shards({"channel#room": [marker], "channel-1#room": many})
    assert not await DynamoPresence(rows, "presence").clear("n1", "room")
    assert len(rows.deleted) == ENTRIES_PAGE // 2
    assert "n1#" not in rows.deleted


async def test_a_damaged_entry_does_not_hide_the_others() -> None:
    items = [
        {"member": {"S": "n1#c1"}, "info": {"S": "{"}},
        {"member": {"S": "n1#c2"}},
        {"member": {"S": "stray"}, "info": {"S": '{"user":"u","client":"c"}'}},
        {"member": {"S": "n1#c3"}, "info": {"S": '{"user":"u","client":7}'}},
        {"member": {"S": "n1#c5"}, "info": {"S": DEEP}},
        {"member": {"S": "n1#c4"}, "info": {"S": '{"user":"ann","client":"c4"}'}},
    ]
    presence = DynamoPresence(FakeClient(query=lambda **_: {"Items": items}), "presence")
    assert list(await presence.members("room")) == [member("c4")]


def keys_of(requests: Any) -> list[str]:
    return [request["DeleteRequest"]["Key"]["member"]["S"] for request in requests]


async def test_a_damaged_entry_still_tells_who_left() -> None:
    items = [
        {"member": {"S": "n1#c1"}, "info": {"S": "{"}},
        {"member": {"S": "n1#c#2"}, "info": {"S": ""}},
        {"member": {"S": "n1#c3"}, "info": {"S": DEEP}},
        # It keeps out who has left already.
        {"member": {"S": "n1#c4"}},
    ]
    presence = DynamoPresence(FakeClient(query=lambda **_: {"Items": items}), "presence")
    assert await presence.entries("n1", "room") == [
        ClientInfo("", client) for client in ("c1", "c#2", "c3")
    ]


async def test_entries_are_removed_in_batches_and_the_listing_last() -> None:
    items = [{"member": {"S": f"n1#c{number:02}"}} for number in range(60)]
    client = FakeClient(
        query=lambda **_: {"Items": items},
        batch_write_item=lambda **_: {},
        delete_item=lambda **_: {},
    )
    assert await DynamoPresence(client, "presence").clear("n1", "room")
    assert client.names == ["query", *["batch_write_item"] * 3, "delete_item"]
    batches = [
        arguments["RequestItems"]["presence"]
        for name, arguments in client.calls
        if name == "batch_write_item"
    ]
    assert [len(batch) for batch in batches] == [25, 25, 10]
    assert [key for batch in batches for key in keys_of(batch)] == [
        item["member"]["S"] for item in items
    ]
    assert client.calls[-1][1]["Key"] == {"key": {"S": "node#n1"}, "member": {"S": "room"}}
    assert client.calls[0][1]["Limit"] == ENTRIES_PAGE


async def test_the_listing_stays_as_long_as_there_may_be_entries() -> None:
    page = {"Items": [{"member": {"S": "n1#c1"}}], "LastEvaluatedKey": {"key": {"S": "k"}}}
    client = FakeClient(query=lambda **_: page, batch_write_item=lambda **_: {})
    assert not await DynamoPresence(client, "presence").clear("n1", "room")


@pytest.mark.parametrize("unprocessed", [[], None, "presence"])
async def test_an_answer_that_does_not_say_what_is_left_is_none(unprocessed: Any) -> None:
    client = FakeClient(
        query=lambda **_: {"Items": [{"member": {"S": "n1#c1"}}]},
        batch_write_item=lambda **_: {"UnprocessedItems": unprocessed},
    )
    with pytest.raises(UnknownOutcome):
        await DynamoPresence(client, "presence").clear("n1", "room")


@pytest.mark.parametrize("rounds, error", [(3, None), (1000, Throttled)])
async def test_what_a_batch_leaves_is_tried_again_for_a_while(
    rounds: int, error: type[PortError] | None
) -> None:
    slept: list[float] = []
    left = iter(range(rounds - 1, -1, -1))

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    def batch_write_item(RequestItems: Any) -> Any:  # noqa: N803  # the SDK's name
        return {
            "UnprocessedItems": {"presence": RequestItems["presence"][:1]} if next(left) else {}
        }

    items = [{"member": {"S": "n1#c1"}}, {"member": {"S": "n1#c2"}}]
    client = FakeClient(
        query=lambda **_: {"Items": items},
        batch_write_item=batch_write_item,
        delete_item=lambda **_: {},
    )
    presence = DynamoPresence(client, "presence", sleep)
    if error is None:
        assert await presence.clear("n1", "room")
        assert slept == [0.1, 0.2]
        assert keys_of(client.calls[2][1]["RequestItems"]["presence"]) == ["n1#c1"]
    else:
        with pytest.raises(error):
            await presence.clear("n1", "room")
        assert "delete_item" not in client.names, "the listing stays"
        assert sum(slept) < 10
