"""The watch on the channels table: what is counted, and what is told."""

from __future__ import annotations

import asyncio

import pytest

from roomcast.log.channel_log import ChannelLog
from roomcast.log.item import Head
from roomcast.log.ports import TailExpired
from roomcast.log.watched_table import (
    FAILURE_COUNTS_S,
    FAILURES_TOLD,
    HANGS_S,
    LASTS_S,
    Streak,
    WatchedTable,
)
from roomcast.ports import Malformed, PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import MemoryChannelTable
from tests.unit.worlds import Fleet, Ids, no_jitter, until


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.clock = self.fleet.clock
        self.table = WatchedTable(
            MemoryChannelTable(self.fleet.world, self.clock), self.clock, self
        )
        self.log = ChannelLog(self.table, self.clock, Ids("a"), no_jitter, node="a", generation="0")
        self.written = 0

    def wrote(self, channel: str) -> None:
        self.written += 1

    async def reads_fail(self, error: PortError, times: int = 1) -> None:
        self.fleet.world.fail_next("head", error, times=times)
        for _ in range(times):
            with pytest.raises(type(error)):
                await self.table.head("room")

    async def writes_fail(self, error: PortError, times: int = 1) -> None:
        self.fleet.world.fail_next("put_head", error, times=times)
        for _ in range(times):
            with pytest.raises(type(error)):
                await self.table.put_head(Head("room", "e", 0, 0, 0, "v", 0), None)


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("error", [Throttled(), UnknownOutcome(), Rejected("denied")])
async def test_reads_that_fail_one_after_the_other_are_told(world: World, error: PortError) -> None:
    await world.reads_fail(error)
    world.clock.advance(LASTS_S)
    assert (world.table.fails, world.table.trouble()) == (False, "")
    await world.reads_fail(error)
    assert (world.table.fails, world.table.trouble()) == (True, "2 reads")
    await world.table.head("room")
    assert (world.table.fails, world.table.trouble()) == (False, "")


@pytest.mark.parametrize("error", [Throttled(), UnknownOutcome(), Rejected("denied")])
async def test_reads_that_work_do_not_hide_writes_that_fail(world: World, error: PortError) -> None:
    await world.writes_fail(error)
    world.clock.advance(LASTS_S)
    await world.table.head("room")
    await world.writes_fail(error)
    await world.table.head("room")
    assert world.table.trouble() == "2 writes"
    await world.reads_fail(error)
    world.clock.advance(LASTS_S)
    await world.reads_fail(error)
    assert world.table.trouble() == "2 reads and 2 writes"


async def test_who_gives_up_waiting_has_met_a_table_that_hangs(world: World) -> None:
    """A subscribe waits for less than a call may take."""
    for waited_s, failures in ((HANGS_S / 2, 0), (HANGS_S, 1), (HANGS_S, 2)):
        held = world.fleet.traffic.hold("head")
        reading = asyncio.create_task(world.table.head("room"))
        await held.arrived()
        world.clock.advance(waited_s)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        held.release()
        assert world.table.reads.failures == failures
    assert world.table.trouble() == "2 reads"


async def test_what_was_not_sent_says_nothing_of_the_table(world: World) -> None:
    for _ in range(3):
        world.fleet.world.fail_next("put_head", TailExpired())
        with pytest.raises(TailExpired):
            await world.table.put_head(Head("room", "e", 0, 0, 0, "v", 0), None)
        world.clock.advance(LASTS_S)
    assert world.table.trouble() == ""


async def test_an_item_that_no_node_wrote_says_that_the_table_answers(world: World) -> None:
    """One of them, which all nodes meet, must not make all of them degraded."""
    for _ in range(3):
        await world.reads_fail(Malformed("stored item"))
        await world.writes_fail(Malformed("stored log item"))
        world.clock.advance(LASTS_S)
    assert (world.table.fails, world.table.trouble()) == (False, "")


async def test_whoever_listens_is_told_of_what_is_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of appends, with a key or without; and not of heads, which do not come round,
    nor of races that were lost.
    """
    node, other = world.fleet.node("a"), world.fleet.node("b")
    told: list[str] = []
    monkeypatch.setattr(node.assembly.ears, "wrote", lambda: told.append("a"))
    monkeypatch.setattr(other.assembly.ears, "wrote", lambda: told.append("b"))
    client = await node.client()
    await client.subscribe("room")
    assert told == []
    await client.publish("room", 1)
    assert told == ["a"]
    rival = await other.client()
    await rival.publish("room", 2)
    await client.publish("room", 3)
    assert told == ["a", "b", "a"], "the first attempt for offset 3 lost"
    await client.ask(
        "rpc",
        method="roomcast.publish",
        data={"channel": "room", "data": 4, "idempotency_key": "k"},
    )
    assert told == ["a", "b", "a", "a"]
    await until(lambda: len(world.fleet.world.stream) == 4)


# ---- when calls that fail one after the other are told


def test_two_failures_in_a_row_are_told_when_they_last() -> None:
    streak = Streak()
    streak.failed(10.0)
    assert not streak.is_bad(10.0 + LASTS_S), "one may be bad luck"
    streak.failed(10.1)
    assert FAILURES_TOLD == 2
    assert not streak.is_bad(10.1), "both may be of one throttled moment"
    assert streak.is_bad(10.0 + LASTS_S)


def test_a_success_ends_it() -> None:
    streak = Streak()
    for second in range(10):
        streak.failed(float(second))
    assert streak.is_bad(10.0)
    streak.succeeded()
    assert not streak.is_bad(10.0)
    streak.failed(11.0)
    assert not streak.is_bad(11.0 + LASTS_S)


def test_when_nobody_calls_any_more_it_is_forgotten() -> None:
    streak = Streak()
    streak.failed(0.0)
    streak.failed(5.0)
    assert streak.is_bad(5.0 + FAILURE_COUNTS_S)
    assert not streak.is_bad(5.1 + FAILURE_COUNTS_S)
