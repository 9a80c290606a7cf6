"""What every Presence guarantees."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from roomcast.aws.presence import ENTRIES_PAGE, DynamoPresence, entry_item
from roomcast.aws.schema import presence_table
from roomcast.concurrency import each_to_its_end
from roomcast.fleet.lease_record import Lease
from roomcast.ports import UnknownOutcome
from roomcast.presence.book import PresenceBook
from roomcast.presence.ports import Member, TooManyMembers
from roomcast.wire.publication import ClientInfo
from tests.contract.backends import PRESENCE_SHARDS, AwsBackend, Backend, MemoryBackend

SHARDED_TOO = pytest.mark.parametrize("backend", ["memory", "aws", "sdk", "sharded"], indirect=True)


def member(client: str, *, node: str = "node-1", user: str = "ann") -> Member:
    return Member(node, ClientInfo(user, client, {"name": "Änn\n😀"}, ["#"]))


@SHARDED_TOO
async def test_members_of_all_nodes_are_found(backend: Backend) -> None:
    here, there = backend.presence(), backend.presence()
    members = [member("c1"), member("c2", user="bob"), member("c1", node="node-2")]
    await here.add("room", members[0])
    await here.add("room", members[1])
    await there.add("room", members[2])
    await there.add("room#2", member("c9", node="node-2"))
    for presence in (here, there):
        assert sorted(await presence.members("room"), key=repr) == sorted(members, key=repr)


async def test_nobody_is_in_an_unknown_channel(backend: Backend) -> None:
    assert not await backend.presence().members("room")


async def test_a_member_without_info(backend: Backend) -> None:
    presence, plain = backend.presence(), Member("node-1", ClientInfo("", "c1"))
    await presence.add("room", plain)
    assert list(await presence.members("room")) == [plain]


async def test_adding_again_replaces(backend: Backend) -> None:
    presence = backend.presence()
    await presence.add("room", member("c1", user="ann"))
    await presence.add("room", member("c1", user="bob"))
    assert list(await presence.members("room")) == [member("c1", user="bob")]


@SHARDED_TOO
async def test_removing_is_idempotent_and_leaves_the_others(backend: Backend) -> None:
    presence = backend.presence()
    await presence.add("room", member("c1"))
    await presence.add("room", member("c2"))
    await presence.remove("room", member("c1"))
    await presence.remove("room", member("c1"))
    await presence.remove("elsewhere", member("c1"))
    assert list(await presence.members("room")) == [member("c2")]
    await presence.remove("room", member("c2"))
    assert not await presence.members("room")


class Postman:
    """A client of the SDK. Writes to keys that begin with `gives_up` are given up on their way, and
    arrive when told.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.gives_up = ""
        self._late: list[tuple[str, dict[str, Any]]] = []

    async def put_item(self, **params: Any) -> Any:
        return await self._send("put_item", params["Item"], params)

    async def delete_item(self, **params: Any) -> Any:
        return await self._send("delete_item", params["Key"], params)

    async def _send(self, operation: str, item: dict[str, Any], params: dict[str, Any]) -> Any:
        if self.gives_up and item["key"]["S"].startswith(self.gives_up):
            self._late.append((operation, params))
            raise ReadTimeoutError(endpoint_url="")
        return await getattr(self._client, operation)(**params)

    async def deliver(self) -> None:
        assert self._late
        for operation, params in self._late:
            with suppress(ClientError):
                await getattr(self._client, operation)(**params)


def over(postman: Postman, backend: AwsBackend) -> DynamoPresence:
    return DynamoPresence(postman, presence_table(backend.prefix))


@pytest.mark.parametrize("backend", ["aws"], indirect=True)
@pytest.mark.parametrize("call", ["add", "remove"])
@pytest.mark.parametrize("rows", ["channel#", "node#"])
async def test_a_late_call_changes_nothing_that_a_later_one_wrote(
    backend: Backend, call: str, rows: str
) -> None:
    assert isinstance(backend, AwsBackend)
    postman = Postman(backend.clients.tables)
    presence = over(postman, backend)
    if call == "remove":
        await presence.add("room", member("c1"))
    postman.gives_up = rows
    with pytest.raises(UnknownOutcome):
        await getattr(presence, call)("room", member("c1"))
    postman.gives_up = ""
    await presence.add("room", member("c1", user="bob"))
    await postman.deliver()
    other = backend.presence()
    assert list(await other.members("room")) == [member("c1", user="bob")]
    assert list(await other.channels("node-1")) == ["room"]
    await presence.remove("room", member("c1"))
    assert not await other.members("room")
    assert not await other.channels("node-1")


@SHARDED_TOO
async def test_who_is_kept_out_is_nobody_until_it_enters_again(backend: Backend) -> None:
    presence, other = backend.presence(), backend.presence()
    await presence.add("room", member("c1"))
    await presence.keep_out("room", member("c1"))
    await presence.keep_out("room", member("c2"))
    assert not await other.members("room")
    assert list(await other.channels("node-1")) == ["room"], "the clean-up would find it"
    assert not await other.entries("node-1", "room")
    await presence.add("room", member("c1"))
    assert list(await other.members("room")) == [member("c1")]
    await presence.remove("room", member("c1"))
    await presence.remove("room", member("c2"))
    assert not await other.channels("node-1")


@SHARDED_TOO
async def test_the_clean_up_removes_what_kept_out(backend: Backend) -> None:
    await backend.presence().keep_out("room", member("c1"))
    reaper = backend.presence()
    assert list(await reaper.channels("node-1")) == ["room"]
    assert await reaper.clear("node-1", "room")
    assert not await reaper.channels("node-1")


@pytest.mark.parametrize("backend", ["aws"], indirect=True)
async def test_who_is_kept_out_is_not_brought_back_by_a_late_write(backend: Backend) -> None:
    assert isinstance(backend, AwsBackend)
    postman = Postman(backend.clients.tables)
    presence = over(postman, backend)
    postman.gives_up = "channel#"
    with pytest.raises(UnknownOutcome):
        await presence.add("room", member("c1"))
    postman.gives_up = ""
    await presence.keep_out("room", member("c1"))
    await postman.deliver()
    assert not await backend.presence().members("room")
    await presence.remove("room", member("c1"))
    table = presence_table(backend.prefix)
    assert not (await backend.clients.tables.scan(TableName=table))["Items"]


@pytest.mark.parametrize("backend", ["aws"], indirect=True)
async def test_a_row_whose_removal_was_given_up_is_removed_with_the_next_try(
    backend: Backend,
) -> None:
    assert isinstance(backend, AwsBackend)
    postman = Postman(backend.clients.tables)
    presence, other = over(postman, backend), backend.presence()
    await presence.add("room", member("c1"))
    postman.gives_up = "node#"
    with pytest.raises(UnknownOutcome):
        await presence.remove("room", member("c1"))
    postman.gives_up = ""
    assert list(await other.channels("node-1")) == ["room"]
    await presence.remove("room", member("c1"))
    assert not await other.channels("node-1")


@pytest.mark.parametrize("backend", ["aws"], indirect=True)
async def test_entries_of_a_release_without_numbers_are_replaced_and_removed(
    backend: Backend,
) -> None:
    assert isinstance(backend, AwsBackend)
    table, presence = presence_table(backend.prefix), backend.presence()
    plain = entry_item("room", member("c1", user="old"))
    assert "write" not in plain
    await backend.clients.tables.put_item(TableName=table, Item=plain)
    await presence.add("room", member("c1"))
    assert list(await presence.members("room")) == [member("c1")]
    await backend.clients.tables.put_item(TableName=table, Item=plain)
    await presence.remove("room", member("c1"))
    assert not await presence.members("room")


@SHARDED_TOO
async def test_another_process_may_remove(backend: Backend) -> None:
    await backend.presence().add("room", member("c1"))
    other = backend.presence()
    await other.remove("room", member("c1"))
    assert not await other.members("room")


@SHARDED_TOO
async def test_many_at_once(backend: Backend) -> None:
    presence = backend.presence()
    members = [member(f"c{number:02}") for number in range(40)]
    await asyncio.gather(*(presence.add("room", one) for one in members))
    await asyncio.gather(*(presence.remove("room", one) for one in members[1:]))
    assert list(await presence.members("room")) == members[:1]


def listed(infos: Sequence[ClientInfo]) -> list[str]:
    return sorted(info.client for info in infos)


@SHARDED_TOO
async def test_what_a_node_left_behind_is_found_and_removed(backend: Backend) -> None:
    presence, reaper = backend.presence(), backend.presence()
    mine = [member("c1"), member("c2", user="bob")]
    others = [member("c1", node="node-2"), member("c3", node="node-1x"), member("c4", node="node")]
    for one in (*mine, *others):
        await presence.add("room", one)
    await presence.add("other", member("c1"))
    assert sorted(await reaper.channels("node-1")) == ["other", "room"]
    assert sorted(await reaper.entries("node-1", "room"), key=repr) == sorted(
        (one.info for one in mine), key=repr
    )
    assert await reaper.clear("node-1", "room")
    assert list(await reaper.channels("node-1")) == ["other"]
    assert not await reaper.entries("node-1", "room")
    assert sorted(await reaper.members("room"), key=repr) == sorted(others, key=repr)
    assert list(await reaper.channels("node-2")) == ["room"]
    assert list(await reaper.members("other")) == [member("c1")]


@SHARDED_TOO
async def test_who_was_abandoned_is_found_and_removed_by_the_clean_up(backend: Backend) -> None:
    """Also when another has left the channel since."""
    presence, reaper = backend.presence(), backend.presence()
    await presence.add("room", member("c1"))
    presence.abandon("room", member("c1"))
    await presence.add("room", member("c2"))
    await presence.remove("room", member("c2"))
    assert list(await reaper.channels("node-1")) == ["room"]
    assert list(await reaper.entries("node-1", "room")) == [member("c1").info]
    assert await reaper.clear("node-1", "room")
    assert not await reaper.channels("node-1")
    assert not await reaper.members("room")


@SHARDED_TOO
async def test_clearing_is_idempotent(backend: Backend) -> None:
    presence = backend.presence()
    assert not await presence.channels("node-1")
    assert not await presence.entries("node-1", "room")
    assert await presence.clear("node-1", "room")
    await presence.add("room", member("c1"))
    assert await presence.clear("node-1", "room")
    assert await presence.clear("node-1", "room")
    assert not await presence.members("room")


@SHARDED_TOO
async def test_a_node_that_was_cleared_may_come_back(backend: Backend) -> None:
    presence = backend.presence()
    await presence.add("room", member("c1"))
    await presence.clear("node-1", "room")
    await presence.add("room", member("c2"))
    assert list(await presence.channels("node-1")) == ["room"]
    assert list(await presence.members("room")) == [member("c2")]


@SHARDED_TOO
async def test_more_than_one_page_is_cleared_in_several_calls(backend: Backend) -> None:
    presence = backend.presence()
    clients = [f"c{number:04}" for number in range(ENTRIES_PAGE + 30)]
    for start in range(0, len(clients), 50):
        batch = clients[start : start + 50]
        await asyncio.gather(*(presence.add("room", member(client)) for client in batch))
    await presence.add("room", member("c", node="node-2"))
    seen: list[str] = []
    for _ in range(4):
        page = listed(await presence.entries("node-1", "room"))
        cleared = await presence.clear("node-1", "room")
        # A page of the first presence shard, and one of all others.
        assert len(page) <= 2 * ENTRIES_PAGE
        seen += page
        assert list(await presence.channels("node-1")) == ([] if cleared else ["room"])
        if cleared:
            break
    assert sorted(seen) == clients, "each page is what is cleared next"
    assert list(await presence.members("room")) == [member("c", node="node-2")]


# ---- presence shards


async def items(backend: AwsBackend) -> list[Any]:
    table = presence_table(backend.prefix)
    found: list[Any] = (await backend.clients.tables.scan(TableName=table))["Items"]
    return found


@pytest.mark.parametrize("backend", ["aws"], indirect=True)
@pytest.mark.parametrize("shards", [(1, PRESENCE_SHARDS), (PRESENCE_SHARDS, 1), (3, 16)])
async def test_nodes_that_differ_in_shards_see_each_others_members(
    backend: Backend, shards: tuple[int, int]
) -> None:
    assert isinstance(backend, AwsBackend)
    one, other = (backend.presence(number) for number in shards)
    everybody = [
        (presence, member(f"c{number}", node=node))
        for presence, node in ((one, "node-1"), (other, "node-2"))
        for number in range(8)
    ]
    for presence, each in everybody:
        await presence.add("room", each)
    seen = sorted((each for _, each in everybody), key=repr)
    for presence in (one, other, backend.presence(1), backend.presence(16)):
        assert sorted(await presence.members("room"), key=repr) == seen
    for presence, each in everybody:
        await presence.remove("room", each)
    assert await items(backend) == [], "nothing is left, also of how many shards there were"


@pytest.mark.parametrize("backend", ["sharded"], indirect=True)
async def test_the_clean_up_needs_no_number_of_shards(backend: Backend) -> None:
    assert isinstance(backend, AwsBackend)
    presence, reaper = backend.presence(), backend.presence(1)
    for number in range(8):
        await presence.add("room", member(f"c{number}"))
    assert len({item["key"]["S"] for item in await items(backend)}) > 2, "they are spread"
    assert listed(await reaper.entries("node-1", "room")) == [f"c{n}" for n in range(8)]
    assert await reaper.clear("node-1", "room")
    assert await items(backend) == []


# ---- very many


MANY: Final = 10_000
# What BatchWriteItem takes, and how many of those at once.
_BATCH: Final = 25
_AT_ONCE: Final = 10


async def stored(backend: Backend, members: int) -> None:
    """So many members of "room" on node-1, written as fast as the backend allows."""
    everybody = [
        Member("node-1", ClientInfo(f"user {n // 2}", client_id(n))) for n in range(members)
    ]
    if isinstance(backend, MemoryBackend):
        backend.world.presence["room"] = {(each.node, each.info.client): each for each in everybody}
        return
    assert isinstance(backend, AwsBackend)
    puts = [{"PutRequest": {"Item": entry_item("room", each)}} for each in everybody]

    async def put(batch: list[Any]) -> None:
        table = presence_table(backend.prefix)
        answer = await backend.clients.tables.batch_write_item(RequestItems={table: batch})
        assert not answer["UnprocessedItems"]

    batches = [puts[start : start + _BATCH] for start in range(0, members, _BATCH)]
    assert await each_to_its_end(_AT_ONCE, batches, put) == []


def client_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


async def test_ten_thousand_members_cost_a_few_reads_whoever_asks(backend: Backend) -> None:
    """Calls are counted where they leave: in memory the read, in the SDK each page."""
    await stored(backend, MANY)
    now = backend.clock.now_ms()
    await backend.leases().put(Lease("node-1", "q", "live", now, now, now + 60_000))
    calls: Counter[str] = Counter()
    if isinstance(backend, MemoryBackend):

        async def counted(call: str, stage: str) -> None:
            calls[call] += stage == "call"

        backend.world.pause = counted
    else:
        assert isinstance(backend, AwsBackend)
        backend.clients.tables.meta.events.register(
            "before-call.dynamodb", lambda model, **_: calls.update([model.name])
        )
    book = PresenceBook(backend.presence(), backend.leases(), backend.clock, node="node-2")
    asked = [book.totals("room") for _ in range(500)]
    assert await asyncio.gather(*asked) == [(MANY, MANY // 2)] * 500
    assert len(await book.members("room")) == MANY
    with pytest.raises(TooManyMembers):
        await book.listing("room")
    if isinstance(backend, MemoryBackend):
        assert calls == {"members": 1, "all": 1}
    else:
        # Of 1,300 entries each at most.
        assert calls == {"Query": 8, "Scan": 1}
