"""Cleaning up over memory: what is done and in which order,
what failures leave, and who is spared.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import pytest

from roomcast.aws.errors import CALL_LIMIT_S
from roomcast.aws.presence import ENTRIES_PAGE, MEMBERS_MAX
from roomcast.config import NodeConfig
from roomcast.delivery.envelope import Signal, parse
from roomcast.fleet.deployment import Deployment, queue_tags
from roomcast.fleet.end_signals import ends
from roomcast.fleet.lease import LeaseKeeper
from roomcast.fleet.lease_record import Lease
from roomcast.ports import Rejected, Throttled, UnknownOutcome
from roomcast.presence.book import PresenceBook
from roomcast.presence.ports import Member
from roomcast.reaper.reaper import (
    FAILURES_MAX,
    LEAVE_MESSAGES_PER_S,
    SECOND_LOOK_S,
    Failure,
    Reaper,
    Report,
)
from roomcast.reaper.rules import ORPHAN_AGE_MS, REAP_GRACE_MS, TOMBSTONE_AGE_MS, Scope
from roomcast.testing.memory import (
    TOPIC_ARN,
    ManualClock,
    MemoryEstate,
    MemoryLeases,
    MemoryPresence,
    MemoryTopic,
    MemoryWorld,
    Stage,
)
from roomcast.wire.event_kinds import connections_of
from roomcast.wire.publication import ClientInfo
from tests.unit.worlds import no_jitter

DEPLOYMENT: Final = Deployment(TOPIC_ARN, "roomcast-")
TTL_MS: Final = 60_000
DEAD_MS: Final = TTL_MS + REAP_GRACE_MS + 1
ROOM: Final = "room"


class World:
    """A fleet, and a reaper that keeps a list of how long it slept and what it told."""

    def __init__(self) -> None:
        self.memory = MemoryWorld()
        self.clock = ManualClock()
        self.leases = MemoryLeases(self.memory)
        self.presence = MemoryPresence(self.memory)
        self.slept: list[float] = []
        self.told: list[str] = []
        self.calls: list[str] = []
        # Called at the beginning of a call of that name.
        self.before: dict[str, Callable[[], Any]] = {}
        # What happens in the wait for a second look, once.
        self.meanwhile: Callable[[], None] | None = None
        self.reaper = self.another()
        self.memory.pause = self._pause

    def another(self, deployment: Deployment = DEPLOYMENT) -> Reaper:
        return Reaper(
            leases=self.leases,
            presence=self.presence,
            estate=MemoryEstate(self.memory, deployment),
            topic=MemoryTopic(self.memory),
            clock=self.clock,
            deployment=deployment,
            tell=self.told.append,
            sleep=self._sleep,
        )

    def node(self, name: str, *, silent_ms: int = 0, members: int = 2, **changes: Any) -> Lease:
        """A node that was last heard of `silent_ms` ago,
        with members in ROOM and in a channel of its own.
        """
        heard = self.clock.now_ms() - silent_ms
        queue = f"roomcast-{name}"
        lease = replace(
            Lease(name, queue, "live", heard - 1, heard, heard + TTL_MS),
            subscription_arn=f"{TOPIC_ARN}:{queue}",
            **changes,
        )
        self.memory.leases[name] = lease
        self.queue(queue, name)
        for channel in (ROOM, f"own-{name}"):
            self.enter(channel, name, (f"{name}-c{number}" for number in range(members)))
        return lease

    def enter(self, channel: str, node: str, clients: Iterable[str]) -> None:
        entries = self.memory.presence.setdefault(channel, {})
        for client in clients:
            entries[node, client] = Member(node, ClientInfo("ann", client))

    def queue(self, name: str, node: str, age_ms: int = 0) -> None:
        """A queue of ours, and its subscription."""
        self.memory.create_queue(name, self.clock.now_ms() - age_ms, queue_tags(TOPIC_ARN, node))
        self.memory.subscriptions.add(name)

    @property
    def state(self) -> tuple[set[str], set[str], set[str], set[str]]:
        """Leases, queues, subscriptions, and nodes with presence entries."""
        nodes = {node for entries in self.memory.presence.values() for node, _ in entries}
        return (
            set(self.memory.leases),
            set(self.memory.queues),
            set(self.memory.subscriptions),
            nodes,
        )

    @property
    def leaves(self) -> list[Signal]:
        signals = [signal for body in self.memory.published for signal in parse(body).signals]
        assert {signal.kind for signal in signals} <= {"leave"}
        return signals

    async def _pause(self, call: str, stage: Stage) -> None:
        if stage == "call":
            self.calls.append(call)
            action = self.before.pop(call, None)
            if action is not None:
                action()
        await asyncio.sleep(0)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        # Less than a second is the pace of calls.
        if seconds >= 1:
            self.clock.advance(seconds)
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
        await asyncio.sleep(0)

    def beat(self, *names: str) -> None:
        """A heartbeat of each, unless it was refused."""
        now_ms = self.clock.now_ms()
        for name in names:
            lease = self.memory.leases[name]
            assert not lease.reaped
            self.memory.leases[name] = replace(
                lease, heartbeat_at=now_ms, expires_at=now_ms + TTL_MS
            )

    def book(self, node: str) -> PresenceBook:
        """What the node itself has of its presence."""
        return PresenceBook(self.presence, self.leases, self.clock, node=node)

    async def later(self, *living: str, seconds: float = 60) -> Report:
        """The next run, with nodes that beat until then."""
        self.clock.advance(seconds)
        self.beat(*living)
        return await self.reaper.run()

    @property
    def waited_s(self) -> float:
        """For second looks."""
        return sum(seconds for seconds in self.slept if seconds >= 1)


def whole(*names: str) -> tuple[set[str], set[str], set[str], set[str]]:
    """The state of a world in which these nodes have everything, and nobody else has anything."""
    queues = {f"roomcast-{name}" for name in names}
    return set(names), queues, queues, set(names)


@pytest.fixture
def world() -> World:
    return World()


async def test_what_dead_nodes_left_is_removed_and_nothing_else(world: World) -> None:
    for name in ("a", "b"):
        world.node(name)
    for name in ("x", "y", "z"):
        world.node(name, silent_ms=DEAD_MS)
    report = await world.reaper.run()
    assert world.state == whole("a", "b")
    assert [(each.node, each.outcome) for each in report.nodes] == [
        (name, "removed") for name in "xyz"
    ]
    assert {(each.channels, each.members) for each in report.nodes} == {(2, 4)}
    assert (report.live, report.failed, report.queues, report.subscriptions) == (2, 0, (), ())
    assert (await world.reaper.run()).is_empty


async def test_a_dry_run_says_the_same_and_changes_nothing(world: World) -> None:
    world.node("a")
    world.node("x", silent_ms=DEAD_MS, instance="i-1")
    world.queue("roomcast-old", "gone", ORPHAN_AGE_MS + 1)
    world.memory.subscriptions.add("roomcast-stale")
    before = world.state
    report = await world.reaper.run(dry_run=True)
    assert world.state == before
    assert world.memory.leases["x"].reaped == 0
    assert not world.memory.published
    [node], [queue], [subscription] = report.nodes, report.queues, report.subscriptions
    assert (node.node, node.instance, node.queue, node.outcome) == (
        "x",
        "i-1",
        "roomcast-x",
        "found",
    )
    assert (node.subscriptions, node.channels) == ((f"{TOPIC_ARN}:roomcast-x",), 2)
    assert (queue.queue, queue.node, queue.outcome) == ("roomcast-old", "gone", "found")
    assert (subscription.queue, subscription.outcome) == ("roomcast-stale", "found")
    done = await world.reaper.run()
    assert done.nodes == (replace(node, outcome="removed", members=4),)
    assert done.queues == (replace(queue, outcome="removed"),)
    assert done.subscriptions == (replace(subscription, outcome="removed"),)
    assert world.state == whole("a")


async def test_everything_in_its_order(world: World) -> None:
    world.node("x", silent_ms=DEAD_MS)
    await world.reaper.run()
    first = {call: world.calls.index(call) for call in reversed(world.calls)}
    assert max(first["subscriptions"], first["queues"]) < first["all"], (
        "leases are read after the lists"
    )
    removing = [
        "reap",
        "unsubscribe",
        "delete_queue",
        "entries",
        "publish",
        "clear",
        "put_tombstone",
    ]
    assert sorted(removing, key=lambda call: first[call]) == removing
    assert [call for call in world.calls if call != "tombstones"][-1] == "put_tombstone"


async def test_a_node_that_beats_meanwhile_is_spared(world: World) -> None:
    lease = world.node("x", silent_ms=DEAD_MS)
    before = world.state

    def beat() -> None:
        now_ms = world.clock.now_ms()
        world.memory.leases["x"] = replace(lease, heartbeat_at=now_ms, expires_at=now_ms + TTL_MS)

    world.before["reap"] = beat
    report = await world.reaper.run()
    assert [each.outcome for each in report.nodes] == ["spared"]
    assert report.failed == 0
    assert world.state == before
    assert not world.memory.published


async def test_a_marked_node_is_refused_its_heartbeat(world: World) -> None:
    """It was silent, and lives: it must learn that what it held is gone."""
    lease = world.node("x", silent_ms=DEAD_MS)
    world.memory.fail_next("put_tombstone", Throttled("told so"))
    await world.reaper.run()
    assert world.memory.leases["x"].reaped == world.clock.now_ms()
    assert not await world.leases.heartbeat(replace(lease, heartbeat_at=world.clock.now_ms()))
    await world.reaper.run()
    assert not await world.leases.heartbeat(lease), "nor when the lease is gone"


# ---- a second look


async def test_a_fleet_that_could_not_write_its_leases_is_not_taken_for_dead(world: World) -> None:
    """An outage of the table longer than a lease: all beat again as soon as it is over."""
    names = [f"n{number:02}" for number in range(20)]
    for name in names:
        world.node(name, silent_ms=DEAD_MS)
    before = world.state
    world.meanwhile = lambda: world.beat(*names[1:])
    report = await world.reaper.run()
    assert world.waited_s == SECOND_LOOK_S
    assert [(each.node, each.outcome) for each in report.nodes] == [("n00", "removed")]
    assert report.live == 19
    assert world.state == whole(*names[1:])
    assert before != world.state


async def test_who_did_not_beat_between_two_looks_is_dead(world: World) -> None:
    for name in ("x", "y"):
        world.node(name, silent_ms=DEAD_MS)
    report = await world.reaper.run()
    assert world.waited_s == SECOND_LOOK_S
    assert len(report.nodes) == 2
    assert world.state == whole()
    assert any("2 of 2 leases look expired" in line for line in world.told)


async def test_a_lease_that_ends_between_two_looks_has_its_time(world: World) -> None:
    for name in ("x", "y"):
        world.node(name, silent_ms=DEAD_MS)
    world.node("z", silent_ms=DEAD_MS - 2)
    assert [each.node for each in (await world.reaper.run()).nodes] == ["x", "y"]


async def test_a_clock_that_is_wrong_kills_nobody(world: World) -> None:
    """To whoever looks with a clock that is ahead all leases are over, also new ones."""
    names = ["a", "b", "c"]
    for name in names:
        world.node(name)
    stamps = world.clock.now_ms()
    world.clock.advance(3600)

    def beat() -> None:
        for name in names:
            lease = world.memory.leases[name]
            world.memory.leases[name] = replace(
                lease, heartbeat_at=stamps + 15_000, expires_at=stamps + 15_000 + TTL_MS
            )

    world.meanwhile = beat
    report = await world.reaper.run()
    assert (report.nodes, report.live) == ((), 3)
    assert world.state == whole(*names)


@pytest.mark.parametrize(
    "living, dead, marked", [(0, 1, 0), (1, 1, 0), (2, 2, 0), (3, 2, 0), (1, 1, 5)]
)
async def test_where_there_is_no_doubt_nobody_waits(
    world: World, living: int, dead: int, marked: int
) -> None:
    for number in range(living):
        world.node(f"a{number}")
    for number in range(dead):
        world.node(f"x{number}", silent_ms=DEAD_MS)
    for number in range(marked):
        world.node(f"y{number}", silent_ms=DEAD_MS, reaped=1)
    assert len((await world.reaper.run()).nodes) == dead + marked
    assert world.waited_s == 0


async def test_a_dry_run_looks_twice_as_well(world: World) -> None:
    for name in ("a", "b"):
        world.node(name, silent_ms=DEAD_MS)
    world.meanwhile = lambda: world.beat("a", "b")
    assert (await world.reaper.run(dry_run=True)).is_empty


def test_a_node_that_lives_has_beaten_between_two_looks() -> None:
    assert NodeConfig().heartbeat_s + CALL_LIMIT_S <= SECOND_LOOK_S < 120 / 2


# ---- leaves


async def test_who_is_there_under_another_lease_has_not_left(world: World) -> None:
    """A node that was only silent wrote its entries again, and told so:
    a leave after that would be the last word.
    """
    world.node("a")
    world.node("x", silent_ms=DEAD_MS, members=2)
    world.enter(ROOM, "x2", ["x-c0"])
    [node] = (await world.reaper.run()).nodes
    assert {(leave.channel, ClientInfo.from_wire(leave.body).client) for leave in world.leaves} == {
        ("own-x", "x-c0"),
        ("own-x", "x-c1"),
        (ROOM, "x-c1"),
    }
    assert node.members == 3
    assert ("x", "x-c0") not in world.memory.presence[ROOM], "its old entry goes all the same"
    # Events say the same.
    assert sorted(world.memory.presence_left) == [
        ("own-x", "x", "x-c0"),
        ("own-x", "x", "x-c1"),
        (ROOM, "x", "x-c1"),
    ]


async def test_connections_end_without_a_signal_unless_they_moved(world: World) -> None:
    world.node("a")
    world.node("x", silent_ms=DEAD_MS, members=0)
    connections = connections_of("x")
    world.enter(connections, "x", ["c0", "c1"])
    world.enter(connections, "x2", ["c0"])
    await world.reaper.run()
    assert world.leaves == []
    assert world.memory.presence_left == [(connections, "x", "c1")]
    assert set(world.memory.presence[connections]) == {("x2", "c0")}


async def test_an_entry_under_another_dead_node_holds_nobody(world: World) -> None:
    """Two leases of one node that is dead by now: one of them has to say that its clients left."""
    world.node("a")
    world.node("b")
    world.node("x", silent_ms=DEAD_MS, members=1)
    world.node("y", silent_ms=DEAD_MS, members=0)
    world.enter(ROOM, "y", ["x-c0"])
    await world.reaper.run()
    assert {leave.node for leave in world.leaves if leave.channel == ROOM} == {"x", "y"}


async def test_in_a_crowd_everybody_is_said_to_have_left(world: World) -> None:
    """Who is still there is not looked up among so many; its own node knows better,
    and drops the leave.
    """
    world.node("x", silent_ms=DEAD_MS, members=1)
    world.enter(ROOM, "z", (f"z{number}" for number in range(MEMBERS_MAX + 1)))
    await world.reaper.run()
    assert len(world.leaves) == 2


async def test_everybody_is_told_who_left(world: World) -> None:
    world.node("a", members=1)
    world.node("x", silent_ms=DEAD_MS, members=2)
    await world.reaper.run()
    assert sorted(
        (leave.node, leave.channel, ClientInfo.from_wire(leave.body).client)
        for leave in world.leaves
    ) == [
        ("x", channel, f"x-c{number}") for channel in ("own-x", ROOM) for number in range(2)
    ]  # fmt: skip
    assert len({leave.id for leave in world.leaves}) == 4


async def test_leaves_are_told_before_the_entries_are_removed(world: World) -> None:
    """Broken off in between, the next run tells them again, under the same ids."""
    world.node("x", silent_ms=DEAD_MS)
    world.memory.fail_next("clear", UnknownOutcome("told so"), times=2)
    report = await world.reaper.run()
    assert [each.outcome for each in report.nodes] == ["failed"]
    told = {leave.id for leave in world.leaves}
    assert len(told) == 4
    await world.reaper.run()
    assert len(world.leaves) == 8
    assert {leave.id for leave in world.leaves} == told


async def test_entries_whose_leaves_cannot_be_told_stay(world: World) -> None:
    world.node("x", silent_ms=DEAD_MS)
    world.memory.fail_next("publish", Throttled("told so"))
    await world.reaper.run()
    assert world.state == ({"x"}, set(), set(), {"x"})


async def test_leaves_of_many_channels_share_messages(world: World) -> None:
    world.node("x", silent_ms=DEAD_MS)
    for number in range(700):
        world.enter(f"room-{number:03}", "x", ["c"])
    [node] = (await world.reaper.run()).nodes
    assert (node.channels, node.members) == (702, 704)
    assert len({(leave.channel, leave.id) for leave in world.leaves}) == 704
    assert len(world.memory.published) <= 12
    assert world.state == whole()


async def test_a_crowd_is_taken_page_by_page(world: World) -> None:
    world.node("x", silent_ms=DEAD_MS, members=0)
    world.enter(ROOM, "x", (f"c{number}" for number in range(3 * ENTRIES_PAGE + 1)))
    [node] = (await world.reaper.run()).nodes
    assert (node.outcome, node.channels, node.members) == ("removed", 1, 3 * ENTRIES_PAGE + 1)
    assert len({leave.id for leave in world.leaves}) == node.members
    assert world.state == whole()


async def test_messages_leave_at_a_bounded_rate(world: World) -> None:
    world.node("x", silent_ms=DEAD_MS, members=0)
    for number in range(3000):
        world.enter(f"room-{number}", "x", ["c"])
    await world.reaper.run()
    pauses = [seconds for seconds in world.slept if seconds == 1 / LEAVE_MESSAGES_PER_S]
    assert len(pauses) == len(world.memory.published) > 10


async def test_a_leave_that_fits_no_message_is_not_told(world: World) -> None:
    world.node("x", silent_ms=DEAD_MS, members=1)
    infos = [ClientInfo("ann", "huge", {"text": "x" * 200_000}), ClientInfo("ann", "\ud800")]
    for info in infos:
        world.memory.presence[ROOM]["x", info.client] = Member("x", info)
    [node] = (await world.reaper.run()).nodes
    assert node.outcome == "removed"
    assert {ClientInfo.from_wire(leave.body).client for leave in world.leaves} == {"x-c0"}
    assert world.state == whole()


# ---- tombstones


async def test_what_a_node_writes_after_it_was_found_dead_goes_too(world: World) -> None:
    """It wakes, and is killed before its next heartbeat tells it that the lease is lost."""
    for name in ("a", "b"):
        world.node(name)
    world.node("x", silent_ms=DEAD_MS, instance="i-1")
    await world.reaper.run()
    assert world.state == whole("a", "b")
    await world.book("x").enter(ROOM, ClientInfo("ann", "late"))
    told = len(world.leaves)
    report = await world.later("a", "b")
    assert world.state == whole("a", "b")
    assert [leave.channel for leave in world.leaves[told:]] == [ROOM]
    [node] = report.nodes
    assert (node.node, node.instance, node.outcome, node.channels, node.members) == (
        "x",
        "i-1",
        "removed",
        1,
        1,
    )
    assert (await world.later("a", "b")).is_empty


async def test_a_tombstone_is_there_for_a_while_after_it_was_written_to_last(world: World) -> None:
    world.node("a")
    world.node("x", silent_ms=DEAD_MS)
    await world.reaper.run()
    first = world.clock.now_ms()
    assert (await world.later("a", seconds=TOMBSTONE_AGE_MS / 1000)).is_empty
    assert world.memory.tombstones["x"].cleared_at == first
    await world.book("x").enter(ROOM, ClientInfo("ann", "late"))
    await world.later("a", seconds=1)
    again = world.clock.now_ms()
    assert world.memory.tombstones["x"].cleared_at == again
    assert (await world.later("a", seconds=TOMBSTONE_AGE_MS / 1000)).is_empty
    assert set(world.memory.tombstones) == {"x"}
    assert (await world.later("a", seconds=1)).is_empty
    assert not world.memory.tombstones


@pytest.mark.parametrize(
    "step", ["channels", "entries", "publish", "clear", "put_tombstone", "drop_tombstone"]
)
async def test_a_step_at_a_tombstone_that_fails_is_made_up_for(world: World, step: str) -> None:
    world.node("a")
    world.node("x", silent_ms=DEAD_MS)
    await world.reaper.run()
    if step == "drop_tombstone":
        world.clock.advance(TOMBSTONE_AGE_MS / 1000)
    else:
        await world.book("x").enter(ROOM, ClientInfo("ann", "late"))
    world.memory.fail_next(step, UnknownOutcome("told so"))
    report = await world.later("a")
    assert ([each.outcome for each in report.nodes], report.failed) == (["failed"], 1)
    assert "x" in world.memory.tombstones
    assert (await world.later("a")).failed == 0
    assert world.state == whole("a")


async def test_an_entry_under_a_tombstone_holds_nobody(world: World) -> None:
    """A client that was there under two leases of a node that is dead by now has left."""
    world.node("a")
    world.node("x", silent_ms=DEAD_MS, members=0)
    await world.reaper.run()
    world.enter(ROOM, "x", ["c"])
    world.node("y", silent_ms=DEAD_MS, members=0)
    world.enter(ROOM, "y", ["c"])
    await world.reaper.run()
    assert {leave.node for leave in world.leaves} == {"x", "y"}


async def test_tombstones_are_for_whole_runs_that_remove(world: World) -> None:
    world.node("a")
    world.node("x", silent_ms=DEAD_MS, instance="i-1")
    await world.reaper.run()
    await world.book("x").enter(ROOM, ClientInfo("ann", "late"))
    before = world.state
    assert (await world.reaper.run(dry_run=True)).is_empty
    assert (await world.reaper.run(scope=Scope("i-1", terminated=True))).is_empty
    assert world.state == before


async def test_a_queue_that_a_node_made_under_a_tombstone_is_an_orphan(world: World) -> None:
    world.node("a")
    world.node("x", silent_ms=DEAD_MS)
    await world.reaper.run()
    world.queue("roomcast-x", "x")
    assert (await world.later("a", seconds=ORPHAN_AGE_MS / 1000)).is_empty
    assert [each.node for each in (await world.later("a", seconds=1)).queues] == ["x"]
    assert world.state == whole("a")


class Moves:
    """The owner of a lease with presence entries."""

    def __init__(self, book: PresenceBook) -> None:
        self._book = book

    def report(self, held: Lease) -> Lease:
        return held

    def lost(self, next_lease: Lease) -> None:
        self._book.move(next_lease.node)


async def test_an_orderly_end_tells_of_entries_under_a_lease_that_was_lost(world: World) -> None:
    """The lease was lost and dropped long ago, and the entry under it could not be removed."""
    world.node("a")
    ids = iter(["y"])
    book, ann = world.book("x"), ClientInfo("ann", "c")
    keeper = LeaseKeeper(
        world.leases,
        world.clock,
        no_jitter,
        owner=Moves(book),
        node="x",
        new_id=lambda: next(ids),
        ttl_s=60,
        heartbeat_s=15,
    )
    await keeper.hold("roomcast-x")
    await world.later("a", seconds=(DEAD_MS + 1) / 1000)
    await book.enter(ROOM, ann)
    world.clock.advance(TOMBSTONE_AGE_MS / 1000)
    world.memory.tombstones.clear()
    await keeper.enter("live")
    assert book.node == "y"

    world.memory.fail_next("remove", Throttled("told so"), times=10)
    with pytest.raises(Throttled):
        await book.exit(ROOM, ann)
    await book.finish()
    assert not book.is_clean
    assert set(book.left_under) == {"x", "y"}
    await keeper.abandon(book.left_under)
    assert {name for name in world.memory.leases if name != "a"} == {"x", "y"}

    await world.later("a", seconds=DEAD_MS / 1000)
    assert world.state == whole("a")


# ---- failures

STEPS: Final = [
    "unsubscribe",
    "delete_queue",
    "channels",
    "entries",
    "publish",
    "clear",
    "put_tombstone",
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("effect", ["none", "applied"])
async def test_a_step_that_fails_is_told_and_made_up_for(
    world: World, step: str, effect: Any
) -> None:
    world.node("a")
    world.node("x", silent_ms=DEAD_MS)
    world.memory.fail_next(step, UnknownOutcome("told so"), effect)
    report = await world.reaper.run()
    assert [each.outcome for each in report.nodes] == ["failed"]
    [failure] = report.failures
    assert report.failed == 1
    assert failure.reason == "told so"
    others = set(STEPS[:3]) - {step}
    assert others <= set(world.calls), "the other steps were taken"
    if step != "put_tombstone" or effect == "none":
        assert world.memory.leases["x"].reaped, "what is left is found by the next run"
    again = await world.reaper.run()
    assert again.failed == 0
    assert world.state == whole("a")


async def test_a_failure_with_one_node_stops_no_other(world: World) -> None:
    for name in ("x", "y", "z"):
        world.node(name, silent_ms=DEAD_MS)
    world.memory.fail_next("reap", Throttled("told so"))
    report = await world.reaper.run()
    assert sorted(each.outcome for each in report.nodes) == ["failed", "removed", "removed"]
    assert report.failures == (Failure("mark_lease", report.nodes[0].node, "told so"),)
    [left] = [each.node for each in report.nodes if each.outcome == "failed"]
    assert world.state == whole(left), "what is not marked is not touched"


async def test_without_the_leases_nothing_is_done(world: World) -> None:
    world.node("x", silent_ms=DEAD_MS)
    before = world.state
    world.memory.fail_next("all", Rejected("no such table"))
    with pytest.raises(Rejected, match="no such table"):
        await world.reaper.run()
    assert world.state == before


@pytest.mark.parametrize("listing", ["subscriptions", "queues"])
async def test_what_could_not_be_listed_is_not_missing(world: World, listing: str) -> None:
    """The list is the only proof that a queue has no lease, or a subscription no queue."""
    world.node("x", silent_ms=DEAD_MS)
    world.queue("roomcast-old", "gone", ORPHAN_AGE_MS + 1)
    world.memory.subscriptions.add("roomcast-stale")
    world.memory.fail_next(listing, Throttled("told so"))
    report = await world.reaper.run()
    assert report.failures == (Failure(f"list_{listing}", TOPIC_ARN, "told so"),)
    assert [each.outcome for each in report.nodes] == ["removed"]
    assert (report.queues, report.subscriptions) == ((), ())
    assert world.state == (set(), {"roomcast-old"}, {"roomcast-old", "roomcast-stale"}, set())


async def test_a_queue_that_could_not_be_looked_at_is_left_alone(world: World) -> None:
    for number in range(2):
        world.queue(f"roomcast-old{number}", "gone", ORPHAN_AGE_MS + 1)
    world.memory.fail_next("queue", Throttled("told so"))
    report = await world.reaper.run()
    assert [failure.step for failure in report.failures] == ["look_at_queue"]
    assert [each.queue for each in report.queues] == ["roomcast-old1"]
    assert world.state[1:3] == ({"roomcast-old0"}, {"roomcast-old0"})


@pytest.mark.parametrize("step", ["unsubscribe", "delete_queue"])
async def test_an_orphan_that_could_not_be_removed_is_found_again(world: World, step: str) -> None:
    world.queue("roomcast-old", "gone", ORPHAN_AGE_MS + 1)
    world.memory.fail_next(step, Throttled("told so"))
    report = await world.reaper.run()
    assert [each.outcome for each in report.queues] == ["failed"]
    await world.reaper.run()
    assert world.state == whole()


async def test_failures_are_told_up_to_a_bound(world: World) -> None:
    for number in range(FAILURES_MAX + 20):
        world.queue(f"roomcast-old{number}", "gone", ORPHAN_AGE_MS + 1)
    world.memory.fail_next("delete_queue", Throttled("told so"), times=FAILURES_MAX + 20)
    report = await world.reaper.run()
    assert report.failed == FAILURES_MAX + 20
    assert len(report.failures) == FAILURES_MAX


async def test_a_fault_of_ours_is_not_taken_for_one_of_aws(world: World) -> None:
    for name in ("x", "y"):
        world.node(name, silent_ms=DEAD_MS)

    def wrong() -> None:
        raise ZeroDivisionError

    world.before["reap"] = wrong
    with pytest.raises(ZeroDivisionError):
        await world.reaper.run()
    assert "y" in world.memory.leases, "nothing goes on behind the back of who asked"


async def test_queues_of_all_dead_nodes_go_before_presence(world: World) -> None:
    """They cost money and messages; presence takes its time."""
    for number in range(30):
        world.node(f"a{number:02}")
    for number in range(20):
        world.node(f"x{number:02}", silent_ms=DEAD_MS)
    await world.reaper.run()
    last = len(world.calls) - 1 - world.calls[::-1].index("delete_queue")
    assert world.calls[: last + 1].count("delete_queue") == 20
    assert last < world.calls.index("channels")


async def test_a_queue_that_vanished_may_be_refused(world: World) -> None:
    """What is gone has no tags, and the permission depends on them."""
    world.node("x", silent_ms=DEAD_MS)
    world.memory.delete_queue("roomcast-x")
    world.memory.fail_next("delete_queue", Rejected("AccessDenied"))
    report = await world.reaper.run()
    assert [each.outcome for each in report.nodes] == ["removed"]
    assert report.failed == 0
    assert world.state == whole()


@pytest.mark.parametrize("name", ["roomcast-theirs", "theirs"])
async def test_a_lease_that_names_a_queue_of_others_goes_without_it(
    world: World, name: str
) -> None:
    """It is told once; as long as the lease stayed, every run would fail."""
    world.node("x", silent_ms=DEAD_MS)
    world.memory.create_queue(name, 0, queue_tags(f"{TOPIC_ARN}-2", "other"))
    world.memory.leases["x"] = replace(world.memory.leases["x"], queue=name)
    world.memory.fail_next("delete_queue", Rejected("AccessDenied"))
    report = await world.reaper.run()
    assert report.failures == (Failure("leave_foreign_queue", name, "AccessDenied"),)
    assert [each.outcome for each in report.nodes] == ["removed"]
    assert name in world.memory.queues
    assert not world.memory.leases
    assert (await world.reaper.run()).failed == 0


@pytest.mark.parametrize("looks", [True, False])
async def test_a_queue_of_ours_that_may_not_be_deleted_is_left_to_the_next_run(
    world: World, looks: bool
) -> None:
    world.node("x", silent_ms=DEAD_MS)
    world.memory.fail_next("delete_queue", Rejected("AccessDenied"))
    if not looks:
        world.memory.fail_next("queue", Throttled("told so"))
    report = await world.reaper.run()
    assert report.failures == (Failure("delete_queue", "roomcast-x", "AccessDenied"),)
    assert world.memory.leases["x"].reaped
    await world.reaper.run()
    assert world.state == whole()


# ---- orphans, instances, company


async def test_an_orphan_must_be_old(world: World) -> None:
    world.queue("roomcast-young", "gone", ORPHAN_AGE_MS)
    assert (await world.reaper.run()).is_empty
    world.clock.advance(0.001)
    [orphan] = (await world.reaper.run()).queues
    assert (orphan.queue, orphan.outcome) == ("roomcast-young", "removed")
    assert world.state == whole()


async def test_what_others_made_stays(world: World) -> None:
    world.memory.create_queue("roomcast-untagged", 0)
    world.memory.create_queue("roomcast-other", 0, queue_tags(f"{TOPIC_ARN}-2", "gone"))
    world.memory.create_queue("elsewhere", 0, queue_tags(TOPIC_ARN, "gone"))
    world.memory.subscriptions |= {"roomcast-untagged", "elsewhere", "elsewhere-gone"}
    before = world.state
    assert (await world.reaper.run()).is_empty
    assert world.state == before


async def test_an_instance_that_was_terminated(world: World) -> None:
    world.node("x", instance="i-1")
    world.node("y", instance="i-1", silent_ms=DEAD_MS)
    world.node("z", instance="i-2", silent_ms=DEAD_MS)
    world.queue("roomcast-old", "gone", ORPHAN_AGE_MS + 1)
    report = await world.reaper.run(scope=Scope("i-1", terminated=True))
    assert [(each.node, each.outcome) for each in report.nodes] == [
        ("x", "removed"),
        ("y", "removed"),
    ]
    assert report.live == 0
    assert not {"subscriptions", "queues"} & set(world.calls), "the leases say it all"
    assert world.state[0] == {"z"}
    assert "roomcast-old" in world.state[1], "the rest is for a whole run"


async def test_an_instance_that_is_about_to_end_may_live(world: World) -> None:
    world.node("x", instance="i-1", silent_ms=TTL_MS - 1)
    world.node("y", instance="i-1", silent_ms=TTL_MS + 1)
    report = await world.reaper.run(scope=Scope("i-1"))
    assert [each.node for each in report.nodes] == ["y"]
    assert report.live == 1
    assert world.state == whole("x")


async def test_a_node_that_died_young_is_known_from_the_list(world: World) -> None:
    world.node("x", instance="i-1", members=0)
    world.memory.leases["x"] = replace(world.memory.leases["x"], subscription_arn="")
    await world.reaper.run(scope=Scope("i-1", terminated=True))
    assert "subscriptions" in world.calls
    assert world.state == whole()


async def test_reapers_that_meet_do_it_once(world: World) -> None:
    world.node("a")
    for name in ("x", "y", "z"):
        world.node(name, silent_ms=DEAD_MS)
    reports = await asyncio.gather(world.reaper.run(), world.another().run(), world.another().run())
    assert world.state == whole("a")
    assert [report.failed for report in reports] == [0, 0, 0]
    ids = {leave.id for leave in world.leaves}
    assert len(ids) == 12, "whoever told it twice told the same"


async def test_a_run_that_is_broken_off_is_finished_by_the_next(world: World) -> None:
    for name in ("x", "y"):
        world.node(name, silent_ms=DEAD_MS)
    run = asyncio.create_task(world.reaper.run())
    world.before["clear"] = run.cancel
    with pytest.raises(asyncio.CancelledError):
        await run
    assert world.state[0] == {"x", "y"}
    assert (await world.reaper.run()).failed == 0
    assert world.state == whole()


async def test_what_it_tells(world: World) -> None:
    world.node("x", silent_ms=DEAD_MS)
    report = await world.reaper.run()
    assert world.told[:2] == [
        "listing subscriptions and queues",
        "1 leases, 1 queues, 1 subscriptions",
    ]
    assert "cleaning up after x: no heartbeat for 90 s" in world.told
    document = json.loads(json.dumps(report.as_json()))
    assert document["dry_run"] is False
    assert document["nodes"][0]["subscriptions"] == [f"{TOPIC_ARN}:roomcast-x"]
    assert set(document) == {
        "dry_run",
        "live",
        "nodes",
        "queues",
        "subscriptions",
        "failed",
        "failures",
    }


SHARDED: Final = Deployment(TOPIC_ARN, "roomcast-", 4)


@pytest.mark.parametrize("scope", [Scope(), Scope("i-1", terminated=True)])
async def test_subscriptions_to_topic_shards_go_with_their_queue(
    world: World, scope: Scope
) -> None:
    """A lease names the subscription to the base topic only: the others are found in the lists."""
    world.node("dead", silent_ms=DEAD_MS, instance="i-1")
    world.node("live", instance="i-2")
    for name in ("roomcast-dead", "roomcast-live"):
        world.memory.subscribe(name, 2)
    world.memory.subscribe("roomcast-dead", 3)
    report = await world.another(SHARDED).run(scope=scope)
    [found] = report.nodes
    assert (found.outcome, len(found.subscriptions)) == ("removed", 3)
    assert world.memory.subscribers(2) == ["roomcast-live"]
    assert world.memory.subscribers(3) == []
    assert world.memory.subscribers() == ["roomcast-live"]


async def test_a_subscription_of_a_topic_shard_to_a_queue_that_is_gone_is_ended(
    world: World,
) -> None:
    """A call to subscribe may have taken effect behind the removal of its queue."""
    world.node("live")
    world.memory.subscribe("roomcast-gone", 1)
    world.memory.subscribe("other-gone", 1)
    report = await world.another(SHARDED).run()
    assert [each.outcome for each in report.subscriptions] == ["removed"]
    assert world.memory.subscribers(1) == ["other-gone"], "not ours"


async def test_the_nodes_of_an_instance_are_told_that_it_ends() -> None:
    world = World()
    for name in ("a", "b"):
        world.node(name, instance="task-1")
    world.node("c", instance="task-2")
    world.node("reaped", instance="task-1", reaped=True)
    # Its queue is just being replaced, or it has ended by itself.
    gone = world.node("gone", instance="task-1")
    world.memory.delete_queue(gone.queue)
    before = world.state
    assert await world.reaper.announce_end("task-1") == 3
    told = {
        name: [
            signal for message in queue.waiting.values() for signal in parse(message.body).signals
        ]
        for name, queue in world.memory.queues.items()
    }
    assert {name for name, signals in told.items() if signals} == {"roomcast-a", "roomcast-b"}
    assert all(ends(signal, "task-1") for signals in told.values() for signal in signals)
    assert world.state == before
    assert await world.reaper.announce_end("task-3") == 0
