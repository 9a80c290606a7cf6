"""A node looks around when its lease has ended: it is alone,
or everybody is in the same trouble.
"""

from __future__ import annotations

from typing import Final

import pytest

from roomcast.delivery.canary_rules import CANARY_CHANNEL
from roomcast.fleet.lease import LeaseKeeper, NothingToReport
from roomcast.fleet.lease_record import Lease
from roomcast.log.watched_table import LASTS_S
from roomcast.node.isolation import Isolation
from roomcast.ports import PortError, UnknownOutcome
from roomcast.testing.memory import MemoryLeases
from roomcast.wire.publication import Record
from tests.unit.worlds import Fleet, Ids, no_jitter, running, until

TTL_S: Final = 60.0
LOOK_S: Final = 0.002


class World:
    """Node a, whose calls may fail, and what it knows of b."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.node = self.fleet.node()
        clock = self.fleet.clock
        self.leases = MemoryLeases(self.fleet.world)
        self.lease = LeaseKeeper(
            self.leases,
            clock,
            no_jitter,
            owner=NothingToReport(),
            node="a",
            new_id=Ids("next"),
            ttl_s=TTL_S,
            heartbeat_s=15.0,
        )
        self.isolation = Isolation(
            self.lease,
            self.node.assembly.table,
            self.node.assembly.ears,
            clock,
            no_jitter,
            look_s=LOOK_S,
            canary_interval_s=30.0,
        )

    async def lease_ends(self) -> None:
        await self.lease.hold("queue-a")
        self.fleet.clock.advance(TTL_S)
        assert self.lease.has_ended

    def b_emits(self) -> None:
        ears, now = self.node.assembly.ears, self.fleet.clock.now_ms()
        ears.hear(Record(CANARY_CHANNEL, "e", ears.newest + 1, 1, now, None), now)

    async def b_beats(self) -> None:
        now = self.fleet.clock.now_ms()
        await self.leases.put(Lease("b", "queue-b", "live", now, now, now + 60_000))

    async def log_fails(self, times: int = 2) -> None:
        self.fleet.world.fail_next("head", UnknownOutcome(), times=times)
        for _ in range(times):
            with pytest.raises(PortError):
                await self.node.assembly.table.head("room")
            self.fleet.clock.advance(LASTS_S)


@pytest.fixture
def world() -> World:
    return World()


async def test_leases_of_others_that_are_renewed_tell_that_it_is_alone(world: World) -> None:
    await world.lease_ends()
    await world.b_beats()
    async with running(world.isolation.run()):
        await until(world.isolation.is_cut_off)
        await world.lease.enter("live")
        assert not world.isolation.is_cut_off(), "it was taken"


async def test_leases_of_others_that_ended_too_tell_of_a_fault_for_all(world: World) -> None:
    await world.b_beats()
    await world.lease_ends()
    async with running(world.isolation.run()):
        await until(lambda: world.fleet.traffic.calls["head"] > 2)
    assert not world.isolation.is_cut_off()


async def test_canaries_tell_while_neither_table_answers(world: World) -> None:
    await world.lease_ends()
    world.fleet.world.fail_next("all", UnknownOutcome(), times=1000)
    await world.log_fails()
    async with running(world.isolation.run()):
        assert not world.isolation.is_cut_off(), "nothing was heard of others"
        world.b_emits()
        assert world.isolation.is_cut_off()
        world.fleet.clock.advance(76)
        await world.log_fails()
        assert not world.isolation.is_cut_off(), (
            "they have fallen silent: perhaps they are cut off as well"
        )


async def test_canaries_do_not_tell_of_the_nodes_table(world: World) -> None:
    """The channels table takes everybody's writes, this node's too:
    it is the other table that is out of order.
    """
    await world.lease_ends()
    world.fleet.world.fail_next("all", UnknownOutcome(), times=1000)
    async with running(world.isolation.run()):
        world.b_emits()
        await until(lambda: world.fleet.traffic.calls["head"] > 2)
        assert not world.isolation.is_cut_off()


async def test_the_log_is_tried_where_nobody_else_does(world: World) -> None:
    await world.lease_ends()
    world.fleet.world.fail_next("all", UnknownOutcome(), times=1000)
    world.fleet.world.fail_next("head", UnknownOutcome(), times=1000)
    world.b_emits()
    async with running(world.isolation.run()):
        await until(lambda: world.node.assembly.table.reads.failures >= 2)
        world.fleet.clock.advance(LASTS_S)
        assert world.isolation.is_cut_off()


async def test_nobody_looks_while_heartbeats_are_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.lease.hold("queue-a")
    asked: list[bool] = []

    def has_ended(_lease: LeaseKeeper) -> bool:
        asked.append(False)
        return False

    monkeypatch.setattr(LeaseKeeper, "has_ended", property(has_ended))
    async with running(world.isolation.run()):
        await until(lambda: len(asked) > 3)
    assert world.fleet.traffic.calls["all"] == world.fleet.traffic.calls["head"] == 0
