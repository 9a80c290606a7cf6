"""What waits for all clients that read slowly has a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from roomcast.gateway import backlog as module
from roomcast.gateway.backlog import ROOM_PART, Backlog
from roomcast.observe.counters import ClientCounters, Limit
from roomcast.wire.codes import Closing, Disconnect
from tests.unit.worlds import settled

BYTES_MAX = 800


class Client:
    """A writer, as the backlog sees it."""

    def __init__(self, backlog: Backlog) -> None:
        self.backlog = backlog
        self.closed_with: Closing | None = None

    def waits(self, size: int) -> None:
        self.backlog.waits(self, size)

    def close(self, why: Closing) -> None:
        self.closed_with = why
        self.waits(0)


class World:
    def __init__(self, sizes: Iterable[int] = ()) -> None:
        self.counters = ClientCounters()
        self.backlog = Backlog(BYTES_MAX, self.counters)
        self.clients: list[Client] = []
        for size in sizes:
            self.clients.append(Client(self.backlog))
            self.clients[-1].waits(size)

    @property
    def cut_off(self) -> list[int]:
        return [number for number, each in enumerate(self.clients) if each.closed_with]


async def test_up_to_the_bound_nobody_is_cut_off() -> None:
    world = World([BYTES_MAX // 8] * 8)
    await settled()
    assert world.cut_off == []
    assert world.counters.unsent_bytes == BYTES_MAX


async def test_beyond_the_bound_those_with_the_most_are_cut_off() -> None:
    world = World([100, 300, 50, 200, 150, 1])
    assert world.cut_off == []
    await settled()
    assert world.cut_off == [1], "that leaves the part that is to be free"
    assert world.clients[1].closed_with is Disconnect.SLOW
    assert world.counters.unsent_bytes == 501 <= BYTES_MAX * (1 - ROOM_PART)
    assert world.counters.limits[Limit.BACKLOG.value] == 1


async def test_who_goes_on_writing_to_others_is_not_interrupted() -> None:
    """Whoever publishes goes through the subscribers of a channel."""
    world = World()
    other = Client(world.backlog)
    world.clients.append(other)
    other.waits(BYTES_MAX + 1)
    assert other.closed_with is None
    await asyncio.sleep(0)
    assert other.closed_with is Disconnect.SLOW


async def test_who_reads_in_time_is_not_cut_off() -> None:
    world = World([BYTES_MAX, 1])
    world.clients[0].waits(0)
    await settled()
    assert world.cut_off == []
    assert world.counters.unsent_bytes == 1


async def test_so_many_are_cut_off_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CUTS_A_TURN", 3)
    world = World([100] * 20)
    turns = []
    with capture_logs() as logs:
        while world.counters.unsent_bytes > BYTES_MAX:
            before = len(world.cut_off)
            await asyncio.sleep(0)
            turns.append(len(world.cut_off) - before)
        await settled()
    assert turns == [3, 3, 3, 3]
    assert [each["event"] for each in logs] == ["clients_cut_off"], "once a second, with a count"
    assert logs[0]["waiting_bytes"] == 2000


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), max_size=60))
async def test_it_is_never_above_for_longer_than_a_turn(steps: list[tuple[int, int]]) -> None:
    world = World()
    world.clients = [Client(world.backlog) for _ in range(10)]
    waiting: dict[Client, int] = {}
    for number, size in steps:
        client = world.clients[number]
        if client.closed_with is None:
            client.waits(size)
            waiting[client] = size
        await asyncio.sleep(0)
        left = {each: size for each, size in waiting.items() if each.closed_with is None}
        assert world.counters.unsent_bytes == sum(left.values()) <= BYTES_MAX
