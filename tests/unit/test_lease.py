"""The lease keeper: written before the queue exists, renewed, told when lost, dropped at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from service.adapters.memory import MemoryLeases
from service.lease import LeaseKeeper
from service.ports import Lease, PortError, Throttled, UnknownOutcome
from tests.unit.worlds import Fleet, until

TTL_S: Final = 60.0
HEARTBEAT_S: Final = 0.002


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.slept: list[float] = []
        self.keeper = self.made(0.0)

    def made(self, random: float) -> LeaseKeeper:
        return LeaseKeeper(
            MemoryLeases(self.fleet.world),
            self.fleet.clock,
            lambda: random,
            node="a",
            ttl_s=TTL_S,
            heartbeat_s=HEARTBEAT_S,
        )

    @property
    def stored(self) -> Lease | None:
        return self.fleet.world.leases.get("a")

    def lease(self) -> Lease:
        assert self.stored is not None
        return self.stored


@asynccontextmanager
async def beating(keeper: LeaseKeeper) -> AsyncIterator[None]:
    task = asyncio.create_task(keeper.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def world() -> World:
    return World()


async def test_the_lease_says_what_the_node_holds(world: World) -> None:
    now = world.fleet.clock.now_ms()
    assert not world.keeper.held
    await world.keeper.hold("queue-1")
    assert world.lease() == Lease("a", "queue-1", "starting", now, now, now + 60_000)
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
    assert world.lease().queue == "queue-1"


async def test_heartbeats_renew_it(world: World) -> None:
    await world.keeper.hold("queue-1")
    async with beating(world.keeper):
        for _ in range(3):
            world.fleet.clock.advance(15)
            now = world.fleet.clock.now_ms()
            await until(lambda now=now: world.lease().heartbeat_at == now)  # type: ignore[misc]
            assert world.lease().expires_at == now + 60_000


async def test_a_heartbeat_that_fails_is_followed_by_the_next(world: World) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.fail_next("heartbeat", Throttled(), times=2)
    async with beating(world.keeper):
        await until(lambda: world.fleet.traffic.calls["heartbeat"] >= 4)
    assert world.keeper.held


async def test_a_state_that_could_not_be_written_comes_with_the_next_heartbeat(world: World) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.fail_next("heartbeat", Throttled())
    await world.keeper.enter("live")
    assert world.lease().state == "starting"
    async with beating(world.keeper):
        await until(lambda: world.lease().state == "live")


async def test_a_lease_that_was_reaped_is_known_to_be_lost(world: World) -> None:
    await world.keeper.hold("queue-1")
    world.fleet.world.reaped.add("a")
    async with beating(world.keeper):
        await until(lambda: not world.keeper.held)
    assert world.lease().state == "starting", "what the reaper works on is left alone"


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

    monkeypatch.setattr("service.lease.asyncio.sleep", recorded)
    async with beating(world.made(random)):
        await until(lambda: len(slept) == 2)
    assert slept == pytest.approx([wait * HEARTBEAT_S] * 2)
