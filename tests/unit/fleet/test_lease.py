"""The lease keeper: written before the queue exists, renewed,
told when lost, dropped at the end.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

import pytest

from roomcast.delivery.canary_rules import NUMBER_MAX
from roomcast.fleet.badges import badge_of_node
from roomcast.fleet.lease import LeaseKeeper
from roomcast.fleet.lease_record import Lease
from roomcast.ports import PortError, Throttled, UnknownOutcome
from roomcast.testing.memory import MemoryLeases
from tests.unit.worlds import Fleet, Ids, running, settled, until

TTL_S: Final = 60.0
HEARTBEAT_S: Final = 0.002


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.slept: list[float] = []
        # Those that were written after another one was lost.
        self.next: list[Lease] = []
        # What is reported.
        self.changes: dict[str, Any] = {}
        self.keeper = self.made(0.0)

    def report(self, held: Lease) -> Lease:
        return replace(held, **self.changes)

    def lost(self, next_lease: Lease) -> None:
        self.next.append(next_lease)

    def made(self, random: float) -> LeaseKeeper:
        return LeaseKeeper(
            MemoryLeases(self.fleet.world),
            self.fleet.clock,
            lambda: random,
            owner=self,
            node="a",
            new_id=Ids("next"),
            ttl_s=TTL_S,
            heartbeat_s=HEARTBEAT_S,
        )

    @property
    def stored(self) -> Lease | None:
        return self.fleet.world.leases.get("a")

    def lease(self) -> Lease:
        assert self.stored is not None
        return self.stored


@pytest.fixture
def world() -> World:
    return World()


async def test_the_lease_says_what_the_node_holds(world: World) -> None:
    now = world.fleet.clock.now_ms()
    assert not world.keeper.held
    await world.keeper.hold("queue-1")
    badge = badge_of_node("a")
    assert world.lease() == Lease("a", "queue-1", "starting", now, now, now + 60_000, badge=badge)
    assert world.keeper.held


async def test_states_are_written_at_once(world: World) -> None:
    await world.keeper.hold("queue-1")
    for state in ("live", "draining"):
        world.fleet.clock.advance(5)
        await world.keeper.enter(state)
        now = world.fleet.clock.now_ms()
        lease = world.lease()
        assert (lease.state, lease.heartbeat_at, lease.expires_at) == (state, now, now + 60_000)
    assert world.lease().started_at == now - 10_000


async def test_another_queue_is_written_before_it_is_made(world: World) -> None:
    await world.keeper.hold("queue-1")
    await world.keeper.enter("live")
    await world.keeper.hold("queue-2")
    assert (world.lease().queue, world.lease().state) == ("queue-2", "live")


async def test_a_lease_that_cannot_be_written_stops_the_start(world: World) -> None:
    world.fleet.world.fail_next("put", UnknownOutcome())
    with pytest.raises(PortError):
        await world.keeper.hold("queue-1")
    assert not world.keeper.held
    await world.keeper.hold("queue-1")
    assert world.fleet.world.leases[world.keeper.id].queue == "queue-1"


async def test_heartbeats_renew_it(world: World) -> None:
    await world.keeper.hold("queue-1")
    async with running(world.keeper.run()):
        for _ in range(3):
            world.fleet.clock.advance(15)
            now = world.fleet.clock.now_ms()
            await until(lambda now=now: world.lease().heartbeat_at == now)  # type: ignore[misc]
            assert world.lease().expires_at == now + 60_000


async def test_a_heartbeat_that_fails_is_followed_by_the_next(world: World) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.fail_next("heartbeat", Throttled(), times=2)
    async with running(world.keeper.run()):
        await until(lambda: world.fleet.traffic.calls["heartbeat"] >= 4)
    assert world.keeper.held


async def test_heartbeats_that_fail_are_counted_and_come_sooner(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def recorded(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
        await sleep(0)

    await world.keeper.hold("queue-1")
    monkeypatch.setattr("roomcast.fleet.lease.asyncio.sleep", recorded)
    world.fleet.world.fail_next("heartbeat", Throttled(), times=2)
    failures: list[int] = []
    async with running(world.keeper.run()):
        while len(slept) < 5:
            await sleep(0)
            failures.append(world.keeper.failures)
    assert slept[:5] == pytest.approx(
        [HEARTBEAT_S, HEARTBEAT_S / 3, HEARTBEAT_S / 3, HEARTBEAT_S, HEARTBEAT_S]
    )
    assert list(dict.fromkeys(failures)) == [0, 1, 2]
    assert world.keeper.failures == 0


async def test_a_lease_has_ended_when_no_heartbeat_was_taken_for_its_life(world: World) -> None:
    await world.keeper.hold("queue-1")
    taken_ms = world.fleet.clock.now_ms()
    world.fleet.world.fail_next("heartbeat", UnknownOutcome(), times=3)
    for _ in range(3):
        assert not world.keeper.has_ended
        world.fleet.clock.advance(TTL_S / 3)
        await world.keeper.enter("live")
    assert (world.keeper.has_ended, world.keeper.taken_ms, world.keeper.failures) == (
        True,
        taken_ms,
        3,
    )
    await world.keeper.enter("live")
    assert (world.keeper.has_ended, world.keeper.taken_ms, world.keeper.failures) == (
        False,
        world.fleet.clock.now_ms(),
        0,
    )


async def test_the_newest_heartbeat_of_others(world: World) -> None:
    """Not its own, nor those of its own leases whose writing was not
    answered, nor of the future.
    """
    world.fleet.world.fail_next("put", UnknownOutcome(), effect="applied")
    with pytest.raises(PortError):
        await world.keeper.hold("queue-1")
    await world.keeper.hold("queue-1")
    assert len(world.fleet.world.leases) == 2
    assert await world.keeper.newest_beat_elsewhere() == 0
    now = world.fleet.clock.now_ms()
    leases = MemoryLeases(world.fleet.world)
    await leases.put(Lease("b", "", "live", now, now - 7, now + 60_000))
    await leases.put(Lease("c", "", "live", now, now - 70_000, now - 10_000))
    assert await world.keeper.newest_beat_elsewhere() == now - 7
    await leases.put(Lease("d", "", "live", now, now + 5_000, now + 65_000))
    assert await world.keeper.newest_beat_elsewhere() == now


async def test_a_heartbeat_of_the_far_future_is_none(world: World) -> None:
    """It would be as new as can be for ever, and make a fault for all look like each node's own."""
    await world.keeper.hold("queue-1")
    now = world.fleet.clock.now_ms()
    leases = MemoryLeases(world.fleet.world)
    await leases.put(Lease("b", "", "live", now, now - 7, now + 60_000))
    await leases.put(Lease("c", "", "live", now, 2**53 - 1, 2**53 - 1))
    assert await world.keeper.newest_beat_elsewhere() == now - 7


async def test_a_state_that_could_not_be_written_comes_with_the_next_heartbeat(
    world: World,
) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.fail_next("heartbeat", Throttled())
    await world.keeper.enter("live")
    assert world.lease().state == "starting"
    async with running(world.keeper.run()):
        await until(lambda: world.lease().state == "live")


async def test_nothing_is_written_before_there_is_a_queue_to_hold(world: World) -> None:
    async with running(world.keeper.run()):
        await settled()
    assert not world.fleet.world.leases
    assert not world.next


async def test_a_lease_that_was_reaped_is_followed_by_another(world: World) -> None:
    await world.keeper.hold("queue-1")
    await world.keeper.enter("live")
    before = world.lease()
    world.fleet.world.reap("a")
    async with running(world.keeper.run()):
        await until(lambda: world.next)
        assert world.keeper.id != "a"
        await settled()
    assert world.lease() == replace(before, reaped=1), "what the reaper works on is left alone"
    [another] = world.next
    assert world.fleet.world.leases[world.keeper.id].state == "live"
    assert another.queue == "", "the old queue is lost: the reaper is to delete it"
    assert another.badge == badge_of_node("a"), "ids of its clients begin with it"
    assert world.keeper.held
    await world.keeper.hold("queue-2")
    assert world.fleet.world.leases[world.keeper.id].queue == "queue-2"
    await world.keeper.drop()
    assert set(world.fleet.world.leases) == {"a"}, "the lost one is the reaper's to drop"


async def test_a_lease_that_is_gone_is_followed_by_another(world: World) -> None:
    """The reaper is done with it; or the table was emptied."""
    await world.keeper.hold("queue-1")
    del world.fleet.world.leases["a"]
    await world.keeper.enter("live")
    assert [lease.node for lease in world.next] == [world.keeper.id]
    assert set(world.fleet.world.leases) == {world.keeper.id}
    await world.keeper.enter("draining")
    assert len(world.next) == 1


async def test_a_loss_that_shows_while_the_queue_is_replaced_costs_no_second_queue(
    world: World,
) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.reap("a")
    await world.keeper.hold("queue-2")
    assert [lease.queue for lease in world.next] == ["queue-2"]


async def test_the_next_lease_is_written_until_it_is_there(world: World) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.reap("a")
    world.fleet.world.fail_next("put", Throttled(), times=2)
    await world.keeper.enter("live")
    assert not world.keeper.held
    assert not world.next, "nothing may be held under a lease that is not there"
    async with running(world.keeper.run()):
        await until(lambda: world.next)
    assert len(world.next) == 1
    assert world.keeper.held


async def test_a_row_whose_answer_was_lost_never_comes_to_life_again(world: World) -> None:
    """It may have been reaped since: writing it again would wipe the mark,
    under which its entries are being removed.
    """
    world.fleet.world.fail_next("put", UnknownOutcome(), "applied")
    with pytest.raises(PortError):
        await world.keeper.hold("queue-1")
    world.fleet.world.reap("a")
    reaped = world.lease()
    await world.keeper.hold("queue-1")
    assert world.lease() == reaped
    assert [lease.node for lease in world.next] == [world.keeper.id] != ["a"]
    await world.keeper.drop()
    assert not world.fleet.world.leases, "the end drops what may be there as well"


async def test_a_node_that_leaves_something_behind_lets_its_lease_end(world: World) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.clock.advance(5)
    await world.keeper.abandon()
    now = world.fleet.clock.now_ms()
    assert (world.lease().queue, world.lease().expires_at) == ("queue-1", now)
    async with running(world.keeper.run()):
        await settled()
    assert world.lease().expires_at == now, "nobody renews it"


async def test_leases_that_were_lost_are_told_of_when_something_is_left_under_them(
    world: World,
) -> None:
    """Whoever took one may be through with it; the one that is held needs nothing more."""
    await world.keeper.hold("queue-1")
    held = world.lease().node
    world.fleet.clock.advance(5)
    await world.keeper.abandon([held, "lost"])
    now = world.fleet.clock.now_ms()
    leases = world.fleet.world.leases
    assert set(leases) == {held, "lost"}
    assert {lease.expires_at for lease in leases.values()} == {now}
    assert (leases[held].queue, leases["lost"].queue) == ("queue-1", "")
    assert world.fleet.traffic.calls["put"] == 2


async def test_a_failure_at_the_end_keeps_no_other_lost_lease_from_being_told_of(
    world: World,
) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.fail_next("heartbeat", Throttled())
    world.fleet.world.fail_next("put", Throttled())
    with pytest.raises(Throttled):
        await world.keeper.abandon(["lost-1", "lost-2", "lost-3"])
    assert {"lost-2", "lost-3"} < set(world.fleet.world.leases)


@pytest.mark.parametrize("known", [True, False])
async def test_a_lease_that_is_found_lost_at_the_end_is_told_of_as_well(
    world: World, known: bool
) -> None:
    await world.keeper.hold("queue-1")
    lease = world.lease()
    world.fleet.world.leases.clear()
    await world.keeper.abandon([lease.node] if known else ())
    assert world.fleet.world.leases[lease.node].expires_at <= world.fleet.clock.now_ms()
    assert world.fleet.traffic.calls["put"] == 2


async def test_what_others_heard_is_no_matter_of_clocks(world: World) -> None:
    """To a node whose clock is ahead the leases of all others have ended."""
    await world.keeper.hold("queue-1")
    long_ago = world.fleet.clock.now_ms() - 120_000
    leases = world.fleet.world.leases
    for heard in (6, 7):
        leases["b"] = Lease("b", "q", "live", 0, long_ago, long_ago, canary=heard)
        leases["a"] = replace(leases["a"], canary=heard + 2)
        newest = await world.keeper.newest_canary_elsewhere()
    assert newest == 7, "its own does not count"


async def test_a_lease_whose_canary_stays_the_same_hides_no_other(world: World) -> None:
    """Who is deaf would not find out for as long as somebody's row is there."""
    await world.keeper.hold("queue-1")
    leases, now = world.fleet.world.leases, world.fleet.clock.now_ms()
    leases["forged"] = Lease("forged", "q", "live", 0, now, now + 60_000, canary=NUMBER_MAX)
    newest = []
    for heard in (6, 6, 7, 8):
        leases["b"] = Lease("b", "q", "live", 0, now, now + 60_000, canary=heard)
        newest.append(await world.keeper.newest_canary_elsewhere())
    assert newest == [0, 0, 7, 8]


async def test_heartbeats_say_how_the_node_is_doing(world: World) -> None:
    world.changes = {"connections": 7, "lag_ms": 3}
    await world.keeper.hold("queue-1")
    assert (world.lease().connections, world.lease().lag_ms) == (7, 3)


async def test_the_end_drops_it(world: World) -> None:
    await world.keeper.drop()
    assert world.fleet.traffic.calls["drop"] == 0, "nothing was written"
    await world.keeper.hold("queue-1")
    await world.keeper.drop()
    await world.keeper.drop()
    assert world.stored is None
    assert not world.keeper.held
    assert world.fleet.traffic.calls["drop"] == 1


async def test_an_end_that_fails_is_told(world: World) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.fail_next("drop", Throttled())
    with pytest.raises(PortError):
        await world.keeper.drop()
    await world.keeper.drop()
    assert world.stored is None


async def test_it_knows_whether_another_node_of_its_machine_lives(world: World) -> None:
    keeper = LeaseKeeper(
        MemoryLeases(world.fleet.world),
        world.fleet.clock,
        lambda: 0.0,
        owner=world,
        node="a",
        new_id=Ids("next"),
        ttl_s=TTL_S,
        heartbeat_s=HEARTBEAT_S,
        instance="i-1",
    )
    await keeper.hold("queue")
    assert not await keeper.others_here()
    leases, now = world.fleet.world.leases, world.fleet.clock.now_ms()
    other = replace(leases["a"], node="b")
    for lease, lives in (
        (other, True),
        (replace(other, instance="i-2"), False),
        (replace(other, instance=""), False),
        (replace(other, expires_at=now), False),
        (replace(other, reaped=1), False),
    ):
        leases["b"] = lease
        assert await keeper.others_here() is lives
    leases["b"] = other
    await keeper.drop()
    assert await keeper.others_here(), "asked at the end, when its own is gone"


async def test_the_nodes_that_live_are_counted(world: World) -> None:
    keeper = world.keeper
    assert await keeper.live_nodes() == 1, "also before its lease is written"
    await keeper.hold("queue")
    assert await keeper.live_nodes() == 1
    leases, now = world.fleet.world.leases, world.fleet.clock.now_ms()
    other = replace(leases["a"], node="b")
    for lease, count in (
        (other, 2),
        (replace(other, expires_at=now), 1),
        (replace(other, reaped=1), 1),
    ):
        leases["b"] = lease
        assert await keeper.live_nodes() == count


@pytest.mark.parametrize("random, wait", [(0.0, 1.0), (1.0, 0.8), (0.5, 0.9)])
async def test_heartbeats_drift_apart(
    world: World, monkeypatch: pytest.MonkeyPatch, random: float, wait: float
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def recorded(delay: float) -> None:
        if delay:
            slept.append(delay)
        await sleep(0)

    monkeypatch.setattr("roomcast.fleet.lease.asyncio.sleep", recorded)
    async with running(world.made(random).run()):
        await until(lambda: len(slept) == 2)
    assert slept == pytest.approx([wait * HEARTBEAT_S] * 2)
