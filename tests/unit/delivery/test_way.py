"""How long publications take to this node, by stage: over memory, with a clock that tests move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import pytest

from roomcast.delivery.envelope import checked_pubs, pack, record_text
from roomcast.delivery.resequencer import Next
from roomcast.delivery.way import Way
from roomcast.log.item import LogItem
from roomcast.observe.counters import StageCounters
from roomcast.testing.memory import ManualClock
from roomcast.wire.publication import Publication
from roomcast.wire.trace_context import BY_STREAM, TraceContext, Trail
from tests.unit.delivery.room import CHANNEL, Room
from tests.unit.worlds import Client, Fleet, LocalNode, record, settled, until

LAMBDA_S: Final = 0.3
TOPIC_S: Final = 0.06


def told(counters: StageCounters) -> dict[str, list[float]]:
    """The numbers and sums of the stages that something was told of."""
    return {
        stage: [took.count, round(took.sum, 3)]
        for stage, took in counters.by_stage().items()
        if took.count
    }


def test_an_envelope_tells_of_the_stream_and_of_the_topic() -> None:
    clock = ManualClock()
    way = Way(clock)
    now = clock.ms
    way.came([record(1, epoch="e", ts=now - 500), record(2, epoch="e", ts=now - 400)], now - 100)
    assert told(way.counters) == {"stream": [2, 0.7], "topic": [1, 0.1]}


def test_what_is_traced_is_an_exemplar_of_its_stages() -> None:
    clock = ManualClock()
    way, now = Way(clock), clock.ms
    trail = Trail(TraceContext("a" * 32, "b" * 16), BY_STREAM)
    traced = replace(record(1, epoch="e", ts=now - 500), trail=trail)
    way.came([record(2, epoch="e", ts=now - 400), traced], now - 100)
    way.passed([Next((Publication(1, 1),), now - 500, 0.2, trail)])
    exemplars = {
        stage: [(each.value, each.trace_id) for each in took.exemplars.values()]
        for stage, took in way.counters.by_stage().items()
        if took.exemplars
    }
    assert exemplars == {
        "stream": [(0.4, "a" * 32)],
        "order": [(0.2, "a" * 32)],
        "all": [(0.5, "a" * 32)],
    }


def test_without_a_time_it_tells_nothing() -> None:
    way = Way(ManualClock())
    way.came([record(1, epoch="e")], 0)
    way.came([], 1)
    assert told(way.counters) == {}


def test_a_clock_that_is_ahead_makes_nothing_negative() -> None:
    clock = ManualClock()
    way = Way(clock)
    way.came([record(1, epoch="e", ts=clock.ms + 20_000)], clock.ms + 10_000)
    way.passed([Next((Publication(1, 1),), clock.ms + 20_000)])
    assert {stage: took for stage, (_, took) in told(way.counters).items()} == {
        "stream": 0.0,
        "topic": 0.0,
        "order": 0.0,
        "all": 0.0,
    }


def test_what_passes_tells_of_its_wait_and_of_its_whole_way() -> None:
    clock = ManualClock()
    way = Way(clock)
    way.passed([Next((), clock.ms - 900, 0.2), Next((), clock.ms - 100)])
    assert told(way.counters) == {"order": [2, 0.2], "all": [2, 1.0]}


def test_what_is_handed_over_tells_how_long_that_took() -> None:
    clock = ManualClock()
    way = Way(clock)
    with way.handing_over():
        clock.advance(0.5)
    assert told(way.counters) == {"node": [1, 0.5]}


# ---- in a node


@pytest.fixture
async def listening(fleet: Fleet) -> AsyncIterator[tuple[LocalNode, Client]]:
    """A node with a client in the room, and the client."""
    node = fleet.node("a")
    async with node.running():
        client = await node.client()
        await client.subscribe(CHANNEL)
        yield node, client


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet()

    def stream(item: LogItem) -> None:
        """As the stream, its Lambda, the topic and the queue, which take their time."""
        fleet.clock.advance(LAMBDA_S)
        [(body, _)] = pack([record_text(item, checked_pubs(item))], at=fleet.clock.ms)
        fleet.clock.advance(TOPIC_S)
        fleet.world.send(body)

    fleet.world.on_insert.append(stream)
    return fleet


async def test_a_publication_of_another_node_tells_of_every_stage(
    fleet: Fleet, listening: tuple[LocalNode, Client]
) -> None:
    node, client = listening
    counters = node.assembly.dispatcher.way.counters
    other = await fleet.node("b").client()
    assert await other.publish(CHANNEL, "x") == {}
    await until(lambda: client.socket.published(CHANNEL))
    seen = told(counters)
    assert seen["stream"] == [1, LAMBDA_S]
    assert seen["topic"] == [1, TOPIC_S]
    assert seen["order"] == [1, 0.0]
    assert seen["all"] == [1, LAMBDA_S + TOPIC_S]
    assert counters.node.count >= 1


async def test_a_publication_of_this_node_takes_no_way(
    fleet: Fleet, listening: tuple[LocalNode, Client]
) -> None:
    node, client = listening
    counters = node.assembly.dispatcher.way.counters
    assert await client.publish(CHANNEL, "x") == {}
    await until(lambda: node.assembly.poller.counters.messages > 1)
    assert len(client.socket.published(CHANNEL)) == 1
    assert set(told(counters)) == {"node"}


async def test_what_was_read_from_the_log_is_told_of_with_its_whole_way(room: Room) -> None:
    await room.join()
    missed, late = await room.append(), await room.append()
    room.hint(late)
    await settled()
    room.pass_time()
    counters = room.dispatcher.way.counters
    await until(lambda: counters.all.count == 2)
    assert room.dispatcher.counters.gaps_filled == 1
    now = room.fleet.clock.now_ms()
    assert counters.all.sum == pytest.approx((2 * now - missed.ts - late.ts) / 1000, abs=0.1)
