"""What presence costs: reads are counted, whoever asks, comes or goes;
and a list that is too large is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, Final

import pytest

from roomcast.aws.presence import DynamoPresence
from roomcast.fleet.lease_record import Lease
from roomcast.ports import Rejected, Throttled
from roomcast.presence import lists as presence_lists
from roomcast.presence import reads as presence_reads
from roomcast.presence.book import LIST_BYTES_MAX, LISTED_A_TURN, PresenceBook
from roomcast.presence.ports import Member, Presence, TooManyMembers
from roomcast.presence.reads import (
    CACHE_MEMBERS_MAX,
    CACHE_S,
    LISTS_A_TURN,
    MEMBERS_A_TURN,
    READS_A_TURN,
    READS_AT_ONCE,
    TOTALS_A_TURN,
)
from roomcast.testing.memory import MemoryLeases, MemoryPresence
from roomcast.wire.encoding import encode_member
from roomcast.wire.publication import ClientInfo
from tests.unit.aws.fakes import FakeClient
from tests.unit.worlds import Fleet, info, running, settled, until

CHANNEL: Final = "room"
MANY: Final = 10_000
# Of DynamoDB, in one answer to a query.
PAGE_BYTES: Final = 1024 * 1024


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.book = self.open()
        now = self.fleet.clock.now_ms()
        for node in "ab":
            self.fleet.world.leases[node] = Lease(node, "q", "live", now, now, now + 3_600_000)

    def open(self, presence: Presence | None = None, **options: Any) -> PresenceBook:
        world = self.fleet.world
        return PresenceBook(
            presence or MemoryPresence(world),
            MemoryLeases(world),
            self.fleet.clock,
            node="a",
            **options,
        )

    def elsewhere(self, members: int, channel: str = CHANNEL) -> None:
        """They are on another node."""
        self.fleet.world.presence[channel] = {
            ("b", client.info.client): client
            for client in (member(number) for number in range(members))
        }

    @property
    def reads(self) -> tuple[int, int]:
        """Of entries, and of leases."""
        calls = self.fleet.traffic.calls
        return calls["members"], calls["all"]


def member(number: int) -> Member:
    return Member("b", info(f"00000000-0000-4000-8000-{number:012d}", f"user {number // 2}"))


@pytest.fixture
def world() -> World:
    return World()


# ---- reads


async def test_ten_thousand_members_cost_one_read_a_second_whoever_asks(world: World) -> None:
    world.elsewhere(MANY)
    for second in range(1, 4):
        asked = [world.book.totals(CHANNEL) for _ in range(500)]
        assert await asyncio.gather(*asked) == [(MANY, MANY // 2)] * 500
        assert len(await world.book.members(CHANNEL)) == MANY
        with pytest.raises(TooManyMembers):
            await world.book.listing(CHANNEL)
        assert world.reads == (second, second)
        world.fleet.clock.advance(CACHE_S + 0.1)


async def test_whoever_comes_or_goes_here_makes_nobody_read_again(world: World) -> None:
    world.elsewhere(10)
    for number in range(100):
        client = info(f"c{number}", "ann")
        await world.book.enter(CHANNEL, client)
        assert await world.book.totals(CHANNEL) == (11, 6)
        assert client.client in await world.book.members(CHANNEL)
        assert client.client in json.loads(await world.book.listing(CHANNEL))
        await world.book.exit(CHANNEL, client)
        assert await world.book.totals(CHANNEL) == (10, 5)
        assert client.client not in json.loads(await world.book.listing(CHANNEL))
    assert world.reads == (1, 1)


async def test_a_read_that_takes_long_is_not_joined_by_another(world: World) -> None:
    held = world.fleet.traffic.hold("members", "answer")
    asking = []
    for _ in range(5):
        asking.append(asyncio.create_task(world.book.totals(CHANNEL)))
        await held.arrived()
        world.fleet.clock.advance(2 * CACHE_S)
    held.release()
    assert await asyncio.gather(*asking) == [(0, 0)] * 5
    assert world.reads == (1, 1)
    await world.book.totals(CHANNEL)
    assert world.reads == (2, 2), "it told of a time that is over"


async def test_reads_under_way_are_not_forgotten_and_not_too_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_reads, "CACHE_CHANNELS_MAX", 5)
    rooms = [f"room {number}" for number in range(30)]
    held = world.fleet.traffic.hold("members", "answer")
    asking = [asyncio.create_task(world.book.totals(room)) for room in rooms]
    await held.arrived()
    await settled()
    assert world.reads[0] <= presence_reads.READS_AT_ONCE
    asking += [asyncio.create_task(world.book.totals(room)) for room in rooms]
    held.release()
    assert await asyncio.gather(*asking) == [(0, 0)] * 60
    assert world.reads == (30, 1), "each channel once"
    await world.book.totals("another")
    assert len(world.book._reads._kept) <= 6


async def test_no_more_than_so_many_channels_wait_to_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_reads, "READS_WAITING_MAX", 20)
    held = world.fleet.traffic.hold("members", "answer")
    asking = [asyncio.create_task(world.book.totals(f"room {number}")) for number in range(20)]
    await held.arrived()
    with pytest.raises(Throttled):
        await world.book.totals("room 20")
    again = asyncio.create_task(world.book.totals("room 3"))
    held.release()
    assert await asyncio.gather(*asking, again) == [(0, 0)] * 21
    assert await world.book.totals("room 20") == (0, 0)


@pytest.mark.parametrize("asked", ["another", "room 199"])
async def test_who_asks_waits_for_few_channels_of_others(world: World, asked: str) -> None:
    """Also for a channel that one of them asked for, behind many."""
    done: list[str] = []

    async def ask(room: str, caller: str) -> None:
        await world.book.totals(room, caller)
        done.append(caller)

    held = world.fleet.traffic.hold("members", "answer")
    rooms = [f"room {number}" for number in range(200)]
    asking = [asyncio.create_task(ask(room, "ann")) for room in rooms]
    await held.arrived(READS_AT_ONCE)
    asking.append(asyncio.create_task(ask(asked, "bob")))
    await settled()
    held.release()
    await asyncio.gather(*asking)
    assert done.index("bob") <= READS_AT_ONCE + 2 * READS_A_TURN
    assert world.book._reads._places.free == READS_AT_ONCE
    assert not world.book._reads._turns


async def test_what_many_reads_bring_at_once_is_kept_within_the_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_reads, "CACHE_MEMBERS_MAX", 100)
    for number in range(20):
        world.elsewhere(30, f"room {number}")
    await asyncio.gather(*(world.book.totals(f"room {number}") for number in range(20)))
    reads = world.book._reads
    assert sum(kept.members for kept in reads._kept.values()) == reads._kept_members <= 100


async def test_of_very_many_members_few_are_looked_at_in_a_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, looked_at = 0, Counter[int]()

    async def pass_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def counted(info: ClientInfo) -> int:
        looked_at[turns] += 1
        return len(info.user)

    monkeypatch.setattr(presence_lists, "_bytes_min", counted)
    world.elsewhere(MANY)
    async with running(pass_turns()):
        assert await world.book.totals(CHANNEL) == (MANY, MANY // 2)
    assert sum(looked_at.values()) == MANY
    assert max(looked_at.values()) <= MEMBERS_A_TURN


async def test_of_a_whole_list_few_members_are_encoded_in_a_turn_whoever_asks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, made = 0, Counter[int]()

    async def pass_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def counted(info: ClientInfo) -> bytes:
        made[turns] += 1
        return encode_member(info)

    monkeypatch.setattr(presence_lists, "encode_member", counted)
    world.elsewhere(MANY)
    world.book._reads.entered(CHANNEL, member(1).info)
    async with running(pass_turns()):
        lists = await asyncio.gather(*(world.book.whole_list(CHANNEL) for _ in range(3)))
    listed = json.loads(lists[0])
    assert len(listed) == MANY
    assert listed == {
        client: info.wire() for client, info in (await world.book.members(CHANNEL)).items()
    }
    assert lists[1] == lists[2] == lists[0]
    assert sum(made.values()) == 3 * MANY
    assert max(made.values()) <= LISTED_A_TURN


async def test_of_many_who_ask_for_totals_few_go_on_in_a_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who share a read, or come within its second: 2 ms each, where thousands are there."""
    turn, counted = 0, Counter[int]()

    def count(*_: object) -> tuple[int, int]:
        counted[turn] += 1
        return 0, 0

    monkeypatch.setattr(presence_reads, "totals", count)
    asking = [asyncio.ensure_future(world.book.totals(CHANNEL)) for _ in range(50)]
    while counted.total() < len(asking):
        turn += 1
        await asyncio.sleep(0)
    await asyncio.gather(*asking)
    assert max(counted.values()) == TOTALS_A_TURN


async def test_of_many_who_ask_for_a_list_one_goes_on_in_a_turn(world: World) -> None:
    """Each then makes a reply of it, which in Protobuf takes 10 ms."""
    turns, replied = 0, Counter[int]()

    async def pass_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def ask() -> None:
        await world.book.listing(CHANNEL)
        replied[turns] += 1

    world.elsewhere(10)
    async with running(pass_turns()):
        await asyncio.gather(*(ask() for _ in range(20)))
    assert sum(replied.values()) == 20
    assert max(replied.values()) == LISTS_A_TURN


async def test_who_cannot_be_encoded_hides_nobody_in_a_whole_list(world: World) -> None:
    for client, value in (("c1", 1), ("c2", 2**70), ("c3", 3)):
        world.book._reads.entered(CHANNEL, ClientInfo("ann", client, value))
    assert set(json.loads(await world.book.whole_list(CHANNEL))) == {"c1", "c3"}


async def test_who_comes_and_goes_between_two_turns_of_a_read_is_told_of_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries under a lost lease look like those of another node."""
    monkeypatch.setattr(presence_reads, "MEMBERS_A_TURN", 2)
    world.elsewhere(10)
    reads = world.book._reads
    for number in (3, 9):
        reads.entered(CHANNEL, member(number).info)
    asking = asyncio.create_task(world.book.totals(CHANNEL))
    await until(lambda: len(reads._growing.get(CHANNEL, ())) == 3)
    # All who were here leave, and two come: one who was looked at already, and one who was not.
    for number in (3, 9):
        reads.left(CHANNEL, member(number).info.client)
    for number in (1, 8):
        reads.entered(CHANNEL, member(number).info)
    assert not asking.done()
    # Number 3 was passed over while it was here. Number 9 has an entry that says it is elsewhere.
    assert await asking == (9, 5)
    assert reads._growing == {}
    everybody = {member(number).info.client for number in range(10)} - {member(3).info.client}
    assert set(await world.book.members(CHANNEL)) == everybody
    listed = await world.book.listing(CHANNEL)
    assert set(json.loads(listed)) == everybody
    assert listed.count(b'"user":') == 9


async def test_a_lease_that_is_lost_between_two_turns_of_a_read_makes_nobody_a_stranger(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_reads, "MEMBERS_A_TURN", 2)
    for number in range(8):
        await world.book.enter(CHANNEL, member(number).info)
    reads = world.book._reads
    asking = asyncio.create_task(world.book.totals(CHANNEL))
    await until(lambda: CHANNEL in reads._growing)
    world.book.move("a2")
    await world.book.exit(CHANNEL, member(7).info)
    assert await asking == (7, 4)


async def test_channels_that_are_asked_for_at_once_share_the_read_of_leases(world: World) -> None:
    await asyncio.gather(*(world.book.totals(f"room {number}") for number in range(50)))
    assert world.reads == (50, 1)


async def test_members_are_kept_within_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_reads, "CACHE_MEMBERS_MAX", 100)
    for number in range(10):
        world.elsewhere(30, f"room {number}")
        await world.book.members(f"room {number}")
    kept = world.book._reads._kept
    # The newest was not read yet when room was made for it.
    assert sum(each.members for each in kept.values()) <= 100 + 30
    assert list(kept)[-1] == "room 9"
    assert CACHE_MEMBERS_MAX > 10_000


async def test_what_is_too_old_is_not_kept(world: World) -> None:
    for number in range(10):
        await world.book.members(f"room {number}")
        world.fleet.clock.advance(CACHE_S + 0.1)
    assert list(world.book._reads._kept) == ["room 9"]


class Table(FakeClient):
    """Answers queries in pages of PAGE_BYTES and of `Limit` items at most, as DynamoDB does."""

    def __init__(self, members: int, conn_info: Any = None) -> None:
        super().__init__(query=self._query)
        self._items = [self._item(number, conn_info) for number in range(members)]

    def _item(self, number: int, conn_info: Any) -> dict[str, Any]:
        each = member(number)
        wire = {**each.info.wire(), **({"conn_info": conn_info} if conn_info else {})}
        return {
            "key": {"S": f"channel#{CHANNEL}"},
            "member": {"S": f"{each.node}#{each.info.client}"},
            "info": {"S": json.dumps(wire)},
        }

    def _query(self, Limit: int, ExclusiveStartKey: Any = None, **_: Any) -> Any:  # noqa: N803  # the SDK's names
        start = ExclusiveStartKey["at"] if ExclusiveStartKey else 0
        size, end = 0, start
        while end < min(start + Limit, len(self._items)) and size <= PAGE_BYTES:
            size += sum(len(name) + len(value["S"]) for name, value in self._items[end].items())
            end += 1
        more = {"LastEvaluatedKey": {"at": end}} if end < len(self._items) else {}
        return {"Items": self._items[start:end], **more}


async def test_ten_thousand_members_are_eight_pages_of_dynamodb(world: World) -> None:
    table = Table(MANY)
    book = world.open(DynamoPresence(table, "presence"))
    asked = [book.totals(CHANNEL) for _ in range(500)]
    assert await asyncio.gather(*asked) == [(MANY, MANY // 2)] * 500
    assert table.names == ["query"] * 8


async def test_members_with_large_infos_are_read_to_a_bound(world: World) -> None:
    table = Table(4000, "x" * 6000)
    book = world.open(DynamoPresence(table, "presence"))
    results = await asyncio.gather(
        *(book.totals(CHANNEL) for _ in range(500)), return_exceptions=True
    )
    assert {type(result) for result in results} == {TooManyMembers}
    assert table.names == ["query"] * 16


# ---- lists


async def test_of_very_many_members_none_is_encoded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[ClientInfo] = []
    monkeypatch.setattr(presence_lists, "encode_member", encoded.append)
    world.elsewhere(MANY)
    with pytest.raises(TooManyMembers):
        await world.book.listing(CHANNEL)
    assert encoded == []


@pytest.mark.parametrize("here", [0, 500, 1000])
async def test_of_large_infos_no_more_are_encoded_than_a_list_holds(
    world: World, monkeypatch: pytest.MonkeyPatch, here: int
) -> None:
    """However often it is asked for, and whoever comes or goes."""
    encoded = 0

    def counted(info: ClientInfo) -> bytes:
        nonlocal encoded
        part = encode_member(info)
        encoded += len(part)
        return part

    monkeypatch.setattr(presence_lists, "encode_member", counted)
    large = [ClientInfo("ann", f"c{number}", "x" * 4000) for number in range(1000)]
    world.fleet.world.presence[CHANNEL] = {
        ("b", client.client): Member("b", client) for client in large[here:]
    }
    for client in large[:here]:
        await world.book.enter(CHANNEL, client)
    for number in range(5):
        with pytest.raises(TooManyMembers):
            await world.book.listing(CHANNEL)
        await world.book.enter(CHANNEL, ClientInfo("bob", f"new{number}", "x" * 4000))
    assert encoded <= LIST_BYTES_MAX + 4100
    # Those who stay are all told of, whether they were encoded before or not.
    world.fleet.world.presence[CHANNEL] = {}
    world.fleet.clock.advance(CACHE_S + 0.1)
    for client in large[:here][10:-10]:
        await world.book.exit(CHANNEL, client)
    listed = json.loads(await world.book.listing(CHANNEL))
    stay = [*large[:here][:10], *large[:here][-10:]]
    assert set(listed) == {client.client for client in stay} | {f"new{n}" for n in range(5)}


@pytest.mark.parametrize("conn_info", [None, {"name": "ä" * 50}])
async def test_the_bound_on_lists_is_exact(world: World, conn_info: Any) -> None:
    """Of members of both kinds: one byte less, and the list is refused."""
    await world.book.enter(CHANNEL, ClientInfo("ann", "c1", conn_info))
    world.elsewhere(3)
    size = len(await world.book.listing(CHANNEL))
    for bytes_max, fits in ((size, True), (size - 1, False)):
        book = world.open(list_bytes_max=bytes_max)
        await book.enter(CHANNEL, ClientInfo("ann", "c1", conn_info))
        if fits:
            assert len(await book.listing(CHANNEL)) == size
        else:
            with pytest.raises(TooManyMembers):
                await book.listing(CHANNEL)


async def test_a_list_that_is_too_large_is_refused_and_what_fits_is_not(world: World) -> None:
    book = world.open(list_bytes_max=10_000)
    client, listed = 0, b""
    await book.enter(CHANNEL, member(client).info)
    while len(listed) < 9_850:
        listed = await book.listing(CHANNEL)
        client += 1
        await book.enter(CHANNEL, member(client).info)
    with pytest.raises(TooManyMembers):
        await book.listing(CHANNEL)
    assert 9_800 < len(listed) <= 10_000
    assert len(listed) + len(listed) // client > 10_000, "another one had not fitted"
    assert len(json.loads(listed)) == client
    # How many there are can still be asked.
    assert (await book.totals(CHANNEL))[0] == client + 1
    await book.exit(CHANNEL, member(client).info)
    assert json.loads(await book.listing(CHANNEL)) == json.loads(listed)
    assert issubclass(TooManyMembers, Rejected)
    assert LIST_BYTES_MAX == 512 * 1024


async def test_a_list_has_everybody_as_clients_are_told(world: World) -> None:
    world.elsewhere(2)
    plain, full = info("c1", ""), ClientInfo("Änn", "c2", {"name": "😀"}, ["#"])
    await world.book.enter(CHANNEL, plain)
    assert json.loads(await world.book.listing(CHANNEL)).keys() >= {"c1"}
    await world.book.enter(CHANNEL, full)
    members = [member(0).info, member(1).info, plain, full]
    assert json.loads(await world.book.listing(CHANNEL)) == {
        each.client: each.wire() for each in members
    }
    assert json.loads(await world.book.listing("empty")) == {}


async def test_one_who_cannot_be_told_of_hides_nobody(world: World) -> None:
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    for client in (ClientInfo("ann", "c1", deep), ClientInfo("bob", "c2")):
        await world.book.enter(CHANNEL, client)
    assert json.loads(await world.book.listing(CHANNEL)) == {"c2": {"user": "bob", "client": "c2"}}
    assert await world.book.totals(CHANNEL) == (2, 2)


async def test_users_are_counted_once_wherever_they_are(world: World) -> None:
    world.elsewhere(4)  # of users 0 and 1
    for client, user in (("c1", "user 1"), ("c2", "ann"), ("c3", "ann"), ("c4", "bob")):
        await world.book.enter(CHANNEL, info(client, user))
    assert await world.book.totals(CHANNEL) == (8, 4)
    await world.book.exit(CHANNEL, info("c2", "ann"))
    assert await world.book.totals(CHANNEL) == (7, 4)
    await world.book.exit(CHANNEL, info("c3", "ann"))
    assert await world.book.totals(CHANNEL) == (6, 3)


async def test_own_members_stay_shown_when_the_lease_is_another(world: World) -> None:
    await world.book.enter(CHANNEL, info("c1"))
    assert set(await world.book.members(CHANNEL)) == {"c1"}
    held = world.fleet.traffic.hold("add", "call")
    running = asyncio.create_task(world.book.run())
    world.book.move("a2")
    await held.arrived()
    assert set(await world.book.members(CHANNEL)) == {"c1"}
    assert (await world.book.totals(CHANNEL))[0] == 1
    held.release()
    await until(lambda: list(world.fleet.world.presence[CHANNEL]) == [("a2", "c1")])
    running.cancel()
    assert await world.book.totals(CHANNEL) == (1, 1)
