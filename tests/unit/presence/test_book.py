"""Presence as a node sees it: stored entries of live nodes, read once for many who ask."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Final

import pytest
from structlog.testing import capture_logs

from roomcast.fleet.lease_record import Lease
from roomcast.ports import PortError, Throttled, UnknownOutcome
from roomcast.presence import book as presence_module
from roomcast.presence import reads as presence_reads
from roomcast.presence.book import LATE_S, LEASES_LEFT_MAX, PresenceBook
from roomcast.presence.ports import Member
from roomcast.presence.reads import CACHE_S
from roomcast.testing.memory import MemoryLeases, MemoryPresence
from roomcast.wire.publication import ClientInfo
from tests.unit.worlds import Fleet, info, running, settled, until

CHANNEL: Final = "room"
LEASE_S: Final = 60


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        # Whose entries were written again, by channel and client.
        self.again: list[tuple[str, str]] = []
        self.books = {name: self.book(name) for name in "ab"}

    def book(self, node: str) -> PresenceBook:
        world = self.fleet.world
        return PresenceBook(
            MemoryPresence(world), MemoryLeases(world), self.fleet.clock, node=node, listener=self
        )

    def entered_again(self, channel: str, info: ClientInfo) -> None:
        self.again.append((channel, info.client))

    def live(self, node: str, for_s: float = LEASE_S) -> None:
        now = self.fleet.clock.now_ms()
        self.fleet.world.leases[node] = Lease(
            node, "q", "live", now, now, now + round(for_s * 1000)
        )

    @property
    def reads(self) -> int:
        return self.fleet.traffic.calls["members"]

    async def members(self, node: str = "a") -> set[str]:
        return set(await self.books[node].members(CHANNEL))

    def pass_time(self) -> None:
        self.fleet.clock.advance(CACHE_S + 0.1)


@pytest.fixture
def world() -> World:
    world = World()
    world.live("a")
    world.live("b")
    return world


async def test_all_nodes_see_who_is_there(world: World) -> None:
    await world.books["a"].enter(CHANNEL, info("c1", "ann"))
    await world.books["b"].enter(CHANNEL, info("c2", "bob"))
    for node in "ab":
        assert await world.books[node].members(CHANNEL) == {
            "c1": info("c1", "ann"),
            "c2": info("c2", "bob"),
        }
    await world.books["b"].exit(CHANNEL, info("c2", "bob"))
    assert await world.members("b") == {"c1"}
    world.pass_time()
    assert await world.members("a") == {"c1"}
    assert await world.books["a"].members("empty") == {}


async def test_entries_of_dead_nodes_are_not_shown(world: World) -> None:
    await world.books["b"].enter(CHANNEL, info("c2"))
    world.fleet.clock.advance(LEASE_S - 1)
    world.live("a")
    assert await world.members() == {"c2"}
    world.fleet.clock.advance(1.1)
    assert await world.members() == set(), "its lease ran out"
    world.live("b")
    world.pass_time()
    assert await world.members() == {"c2"}, "it was only late"
    del world.fleet.world.leases["b"]
    world.pass_time()
    assert await world.members() == set()


async def test_a_node_knows_itself_to_live(world: World) -> None:
    """Also while its own heartbeat is late."""
    await world.books["a"].enter(CHANNEL, info("c1"))
    world.fleet.clock.advance(10 * LEASE_S)
    assert await world.members() == {"c1"}


async def test_those_who_ask_at_once_share_one_read(world: World) -> None:
    await world.books["a"].enter(CHANNEL, info("c1"))
    answers = await asyncio.gather(*(world.members() for _ in range(100)))
    assert answers == [{"c1"}] * 100
    assert world.reads == 1
    assert world.fleet.traffic.calls["all"] == 1
    world.pass_time()
    await world.members()
    assert world.reads == 2


async def test_what_this_node_wrote_is_seen_at_once(world: World) -> None:
    assert await world.members() == set()
    await world.books["a"].enter(CHANNEL, info("c1"))
    assert await world.members() == {"c1"}
    await world.books["a"].exit(CHANNEL, info("c1"))
    assert await world.members() == set()


async def test_a_write_that_overtakes_a_read_is_seen(world: World) -> None:
    held = world.fleet.traffic.hold("members", "answer")
    early = asyncio.create_task(world.members())
    await held.arrived()
    await world.books["a"].enter(CHANNEL, info("c1"))
    held.release()
    assert await early == {"c1"}
    assert await world.members() == {"c1"}
    assert world.reads == 1


async def test_who_is_not_stored_yet_is_not_shown(world: World) -> None:
    held = world.fleet.traffic.hold("add", "sent")
    entering = asyncio.create_task(world.books["a"].enter(CHANNEL, info("c1")))
    await held.arrived()
    assert await world.members() == set()
    held.release()
    await entering
    assert await world.members() == {"c1"}


async def test_who_leaves_before_it_is_stored_is_not_shown(world: World) -> None:
    held = world.fleet.traffic.hold("add", "answer")
    entering = asyncio.create_task(world.books["a"].enter(CHANNEL, info("c1")))
    await held.arrived()
    await world.books["a"].exit(CHANNEL, info("c1"))
    held.release()
    await entering
    assert await world.members() == set()


async def test_one_who_gives_up_takes_nothing_from_the_others(world: World) -> None:
    held = world.fleet.traffic.hold("members", "answer")
    first, second = (asyncio.create_task(world.members()) for _ in range(2))
    await held.arrived()
    first.cancel()
    await settled()
    held.release()
    assert await second == set()
    assert world.reads == 1


async def test_a_failure_is_told_and_not_kept_for_long(world: World) -> None:
    world.fleet.world.fail_next("members", Throttled())
    asking = [asyncio.create_task(world.members()) for _ in range(3)]
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(result, PortError) for result in results)
    world.pass_time()
    assert await world.members() == set()


async def test_a_failure_that_nobody_waits_for_is_no_noise(world: World) -> None:
    """An exception that nobody read would be reported by the event loop:
    here a warning, and so an error.
    """
    world.fleet.world.fail_next("all", Throttled())
    asking = asyncio.create_task(world.members())
    await until(lambda: world.reads)
    asking.cancel()
    await settled()
    assert asking.cancelled()


async def test_channels_are_kept_within_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_reads, "CACHE_CHANNELS_MAX", 3)
    for number in range(10):
        await world.books["a"].members(f"channel{number}")
    assert len(world.books["a"]._reads._kept) == 3
    before = world.reads
    await world.books["a"].members("channel9")
    await world.books["a"].members("channel0")
    assert world.reads == before + 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "EXIT_RETRY_S", 0.0)


async def test_who_could_not_be_removed_is_removed_later(world: World, impatient: None) -> None:
    book = world.books["a"]
    for client in ("c1", "c2", "c3"):
        await book.enter(CHANNEL, info(client))
    for client in ("c1", "c2"):
        world.fleet.world.fail_next("remove", Throttled())
        with pytest.raises(Throttled):
            await book.exit(CHANNEL, info(client))
    assert await world.members("b") == {"c1", "c2", "c3"}
    assert await world.members() == {"c3"}, "this node knows better"
    world.fleet.world.fail_next("remove", Throttled())
    running = asyncio.create_task(book.run())
    await until(lambda: not book._exits)
    running.cancel()
    world.pass_time()
    assert await world.members("b") == {"c3"}


async def test_who_comes_back_is_not_removed_by_an_earlier_exit(
    world: World, impatient: None
) -> None:
    book = world.books["a"]
    await book.enter(CHANNEL, info("c1"))
    world.fleet.world.fail_next("remove", Throttled())
    with pytest.raises(Throttled):
        await book.exit(CHANNEL, info("c1"))
    held = world.fleet.traffic.hold("remove", "sent")
    running = asyncio.create_task(book.run())
    await held.arrived()
    entering = asyncio.create_task(book.enter(CHANNEL, info("c1")))
    await settled()
    assert not entering.done(), "the removal that is under way comes first"
    held.release()
    await entering
    assert await world.members() == {"c1"}
    removals = world.fleet.traffic.calls["remove"]
    await settled()
    running.cancel()
    assert world.fleet.traffic.calls["remove"] == removals


async def test_entries_are_written_again_under_another_lease(world: World) -> None:
    book, clients = world.books["a"], [info(f"c{number}") for number in range(40)]
    for client in clients:
        await book.enter(CHANNEL, client)
    await book.exit(CHANNEL, clients[0])
    again = world.again
    running = asyncio.create_task(book.run())
    del world.fleet.world.leases["a"]
    world.live("a2")
    book.move("a2")
    await until(lambda: len(again) == 39)
    assert sorted(again) == sorted((CHANNEL, client.client) for client in clients[1:])
    assert await world.members("b") == {client.client for client in clients[1:]}
    await until(lambda: {node for node, _ in world.fleet.world.presence[CHANNEL]} == {"a2"})
    running.cancel()
    await book.exit(CHANNEL, clients[1])
    assert ("a2", "c1") not in world.fleet.world.presence[CHANNEL]


async def test_who_leaves_while_entries_are_written_again_is_gone(world: World) -> None:
    book = world.books["a"]
    await book.enter(CHANNEL, info("c1"))
    again = world.again
    held = world.fleet.traffic.hold("add", "call")
    running = asyncio.create_task(book.run())
    book.move("a2")
    await held.arrived()
    await book.exit(CHANNEL, info("c1"))
    held.release()
    await until(lambda: book.is_clean)
    await settled()
    running.cancel()
    assert not world.fleet.world.presence
    assert not again


async def test_a_lease_that_is_lost_while_a_removal_is_tried_again_ends_nothing(
    world: World, impatient: None
) -> None:
    book = world.books["a"]
    for client in ("c1", "c2"):
        await book.enter(CHANNEL, info(client))
        world.fleet.world.fail_next("remove", Throttled())
        with pytest.raises(Throttled):
            await book.exit(CHANNEL, info(client))
    held = world.fleet.traffic.hold("remove", "call")
    running = asyncio.create_task(book.run())
    await held.arrived()
    book.move("a2")
    held.release()
    await until(lambda: book.is_clean)
    assert not running.done()
    running.cancel()
    assert not world.fleet.world.presence


@pytest.mark.parametrize("failing", ["add", "remove"])
async def test_an_entry_that_was_written_again_for_who_had_left_is_not_forgotten(
    world: World, failing: str
) -> None:
    """Its write got in and its answer was lost, or it could not be removed."""
    book = world.books["a"]
    await book.enter(CHANNEL, info("c1"))
    del world.fleet.world.leases["a"]
    world.live("a2")
    held = world.fleet.traffic.hold("add", "call")
    book.move("a2")
    writing = asyncio.create_task(book._write_again())
    await held.arrived()
    await book.exit(CHANNEL, info("c1"))
    if failing == "add":
        world.fleet.world.fail_next("add", UnknownOutcome(), "applied")
    else:
        world.fleet.world.fail_next("remove", Throttled())
    held.release()
    await writing
    assert not book.is_clean
    await book.finish()
    assert not world.fleet.world.presence
    assert book.is_clean == (failing == "remove"), "a write that was given up may come yet"
    world.fleet.clock.advance(LATE_S)
    await book.finish()
    assert book.is_clean


async def test_an_entry_that_is_written_again_under_a_lease_that_was_lost_meanwhile_is_removed(
    world: World,
) -> None:
    """Its client had left when that lease was lost, and is back under the next one."""
    book = world.books["a"]
    await book.enter(CHANNEL, info("c1", "ann"))
    book.move("a2")
    held = world.fleet.traffic.hold("add", "call")
    writing = asyncio.create_task(book._write_again())
    await held.arrived()
    await book.exit(CHANNEL, info("c1", "ann"))
    book.move("a3")
    entering = asyncio.create_task(book.enter(CHANNEL, info("c1", "bob")))
    await settled()
    held.release()
    await asyncio.gather(writing, entering)
    await book.finish()
    assert {node for node, _ in world.fleet.world.presence[CHANNEL]} == {"a3"}


@pytest.mark.parametrize("call", ["add", "remove"])
async def test_what_was_given_up_and_comes_late_takes_nothing_from_a_newer_entry(
    world: World, call: str
) -> None:
    book, older, newer = world.books["a"], info("c1", "ann"), info("c1", "bob")
    if call == "add":
        world.fleet.world.fail_next("add", UnknownOutcome(), "late")
        with pytest.raises(UnknownOutcome):
            await book.enter(CHANNEL, older)
        await book.exit(CHANNEL, older)
    else:
        await book.enter(CHANNEL, older)
        world.fleet.world.fail_next("remove", UnknownOutcome(), "late")
        with pytest.raises(UnknownOutcome):
            await book.exit(CHANNEL, older)
    await book.enter(CHANNEL, newer)
    world.fleet.world.deliver_late()
    assert await world.books["b"].members(CHANNEL) == {"c1": newer}
    world.fleet.clock.advance(LATE_S)
    await book.finish()
    world.live("a")
    assert await world.books["b"].members(CHANNEL) == {"c1": newer}


async def test_an_entry_that_comes_after_its_removal_is_kept_out(
    world: World, impatient: None
) -> None:
    book = world.books["a"]
    world.fleet.world.fail_next("add", UnknownOutcome(), "late")
    with pytest.raises(UnknownOutcome):
        await book.enter(CHANNEL, info("c1"))
    await book.exit(CHANNEL, info("c1"))
    assert not book.is_clean
    assert set(book.left_under) == {"a"}
    world.fleet.world.deliver_late()
    assert await world.members("b") == set()
    world.fleet.clock.advance(LATE_S)
    running = asyncio.create_task(book.run())
    await until(lambda: book.is_clean)
    running.cancel()
    assert await world.members("b") == set()
    assert not world.fleet.world.presence_writes, "nothing is left of it"


async def test_what_is_to_keep_an_entry_out_may_itself_be_given_up(
    world: World, impatient: None
) -> None:
    book = world.books["a"]
    world.fleet.world.fail_next("add", UnknownOutcome(), "late")
    with pytest.raises(UnknownOutcome):
        await book.enter(CHANNEL, info("c1"))
    world.fleet.clock.advance(LATE_S - 1)
    world.fleet.world.fail_next("keep_out", UnknownOutcome(), "late")
    with pytest.raises(UnknownOutcome):
        await book.exit(CHANNEL, info("c1"))
    world.fleet.clock.advance(2)
    await book.finish()
    world.fleet.world.deliver_late()
    assert await world.members("b") == set()
    assert not book.is_clean, "it may have come behind the second try"
    world.fleet.clock.advance(LATE_S)
    await book.finish()
    assert book.is_clean
    assert not world.fleet.world.presence_writes


async def test_writes_that_were_given_up_are_remembered_within_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_module, "EXITS_MAX", 2)
    book = world.books["a"]
    for client in ("c1", "c2", "c3"):
        world.fleet.world.fail_next("add", UnknownOutcome())
        with pytest.raises(UnknownOutcome):
            await book.enter(CHANNEL, info(client))
        await book.exit(CHANNEL, info(client))
    assert len(book._given_up) == 2
    world.fleet.clock.advance(LATE_S)
    await book.finish()
    assert not book.is_clean, "one was forgotten, and may be there"


async def test_what_cannot_be_remembered_is_abandoned_and_told_now_and_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the table is out, clients come and go as often as they like."""
    monkeypatch.setattr(presence_module, "EXITS_MAX", 2)
    book, abandoned = world.books["a"], list[tuple[str, str]]()
    monkeypatch.setattr(
        book._presence,
        "abandon",
        lambda channel, member: abandoned.append((member.node, member.info.client)),
    )
    with capture_logs() as logs:
        for client in ("c1", "c2", "c3", "c4"):
            world.fleet.world.fail_next("remove", Throttled())
            with pytest.raises(Throttled):
                await book.exit(CHANNEL, info(client))
    assert abandoned == [("a", "c3"), ("a", "c4")]
    events = [each for each in logs if each["event"] == "presence_entry_abandoned"]
    assert len(events) == 1
    await book.finish()
    assert not book.is_clean, "the lease is not dropped, so the reaper comes"
    assert set(book.left_under) == {"a"}


async def test_an_entry_that_was_under_way_when_the_lease_was_lost_is_written_again(
    world: World,
) -> None:
    book = world.books["a"]
    held = world.fleet.traffic.hold("add", "call")
    entering = asyncio.create_task(book.enter(CHANNEL, info("c1")))
    await held.arrived()
    book.move("a2")
    running = asyncio.create_task(book.run())
    await settled()
    held.release()
    await entering
    await until(lambda: list(world.fleet.world.presence[CHANNEL]) == [("a2", "c1")])
    running.cancel()


async def test_entries_under_a_lease_that_nobody_knows_any_more_are_removed(world: World) -> None:
    """The reaper came before they were written: only this node can know of them."""
    book = world.books["a"]
    del world.fleet.world.leases["a"]
    await book.enter(CHANNEL, info("c1"))
    await book.enter(CHANNEL, info("c2"))
    world.fleet.world.fail_next("remove", Throttled())
    with pytest.raises(Throttled):
        await book.exit(CHANNEL, info("c2"))
    book.move("a2")
    running = asyncio.create_task(book.run())
    await until(
        lambda: list(world.fleet.world.presence[CHANNEL]) == [("a2", "c1")] and not book._old
    )
    running.cancel()
    assert not book.is_clean
    await book.exit(CHANNEL, info("c1"))
    assert book.is_clean


async def test_a_node_knows_whether_anything_of_it_is_left(world: World) -> None:
    book = world.books["a"]
    assert book.is_clean
    held = world.fleet.traffic.hold("add", "call")
    entering = asyncio.create_task(book.enter(CHANNEL, info("c1")))
    await held.arrived()
    assert not book.is_clean, "it may be there any moment"
    held.release()
    await entering
    world.fleet.world.fail_next("remove", Throttled())
    with pytest.raises(Throttled):
        await book.exit(CHANNEL, info("c1"))
    assert not book.is_clean
    await book.finish()
    assert book.is_clean
    assert not world.fleet.world.presence
    await book.enter(CHANNEL, info("c2"))
    held = world.fleet.traffic.hold("remove", "call")
    leaving = asyncio.create_task(book.exit(CHANNEL, info("c2")))
    await held.arrived()
    assert not book.is_clean
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert not book.is_clean, "nobody knows whether it was removed"


async def test_a_node_knows_under_which_leases_something_may_be_left(world: World) -> None:
    """Its own, and lost ones: of entries that wait to be removed,
    are being removed, or were given up.
    """
    book = world.books["a"]
    for client in ("c1", "c2", "c3"):
        await book.enter(CHANNEL, info(client))
    assert set(book.left_under) == {"a"}
    held = world.fleet.traffic.hold("remove", "call")
    given_up = asyncio.create_task(book.exit(CHANNEL, info("c1")))
    await held.arrived()
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    held.release()
    await book.exit(CHANNEL, info("c2"))
    await book.exit(CHANNEL, info("c3"))
    book.move("a2")
    assert set(book.left_under) == {"a", "a2"}

    await book.enter(CHANNEL, info("c4"))
    held = world.fleet.traffic.hold("remove", "call")
    leaving = asyncio.create_task(book.exit(CHANNEL, info("c4")))
    await held.arrived()
    book.move("a3")
    assert set(book.left_under) == {"a", "a2", "a3"}
    held.release()
    await leaving
    assert set(book.left_under) == {"a", "a3"}

    await book.enter(CHANNEL, info("c5"))
    book.move("a4")
    assert set(book.left_under) == {"a", "a3", "a4"}


async def test_of_very_many_leases_that_were_lost_the_last_are_known(world: World) -> None:
    book = world.books["a"]
    for number in range(LEASES_LEFT_MAX + 10):
        await book.enter(CHANNEL, info(f"c{number}"))
        leaving = asyncio.create_task(book.exit(CHANNEL, info(f"c{number}")))
        held = world.fleet.traffic.hold("remove", "call")
        await held.arrived()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        book.move(f"a{number}")
    assert not book.is_clean
    left = list(book.left_under)
    assert len(left) == LEASES_LEFT_MAX + 1
    assert {left[0], left[-1]} == {f"a{LEASES_LEFT_MAX + 9}", f"a{LEASES_LEFT_MAX + 8}"}


async def test_members_of_a_node_that_is_being_reaped_are_not_shown(world: World) -> None:
    await world.books["b"].enter(CHANNEL, info("c2"))
    world.fleet.world.reap("b")
    assert await world.members() == set()


async def test_entries_that_could_not_be_written_again_are_tried_again(
    world: World, impatient: None
) -> None:
    book = world.books["a"]
    for client in ("c1", "c2"):
        await book.enter(CHANNEL, info(client))
    world.fleet.world.fail_next("add", Throttled())
    running = asyncio.create_task(book.run())
    book.move("a2")
    await until(lambda: {("a2", "c1"), ("a2", "c2")} <= set(world.fleet.world.presence[CHANNEL]))
    running.cancel()


async def test_a_lease_with_many_entries_is_left_in_turns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_module, "MOVED_A_TURN", 3)
    book = world.books["a"]
    for number in range(10):
        await book.enter(CHANNEL, info(f"c{number}"))
    left = list[int]()
    monkeypatch.setattr(book, "_remove_old", lambda: asyncio.sleep(0))
    book.move("a2")
    assert set(book.left_under) == {"a", "a2"}
    async with running(book.run()):
        while len(book._old) < 10:
            left.append(len(book._old))
            await asyncio.sleep(0)
    assert max(after - before for before, after in pairwise([*left, 10])) == 3
    assert {node for node, _, _ in book._old} == {"a"}


async def test_exits_to_be_tried_again_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_module, "EXITS_MAX", 2)
    for client in ("c1", "c2", "c3"):
        world.fleet.world.fail_next("remove", Throttled())
        with pytest.raises(Throttled):
            await world.books["a"].exit(CHANNEL, info(client))
    assert len(world.books["a"]._exits) == 2


async def test_only_who_goes_on_elsewhere_has_moved(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For events: the removal of an old entry is the leaving of those that left before they were
    written again, and of no others.
    """
    moved: list[tuple[str, str]] = []

    async def noted(_: MemoryPresence, _channel: str, member: Member) -> None:
        moved.append((member.node, member.info.client))

    monkeypatch.setattr(MemoryPresence, "moved", noted)
    book = world.books["a"]
    for client in ("stays", "leaves", "returns"):
        await book.enter(CHANNEL, info(client))
    book.move("a2")
    await book.exit(CHANNEL, info("leaves"))
    await book.exit(CHANNEL, info("returns"))
    await book.enter(CHANNEL, info("returns"))
    running = asyncio.create_task(book.run())
    await until(lambda: {node for node, _ in world.fleet.world.presence[CHANNEL]} == {"a2"})
    running.cancel()
    assert sorted(moved) == [("a", "returns"), ("a", "stays")]
