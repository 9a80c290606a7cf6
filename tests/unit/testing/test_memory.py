"""What a test can do to the in-memory world."""

from __future__ import annotations

import asyncio

import pytest

from roomcast.delivery.ports import Gone
from roomcast.log.item import LogItem
from roomcast.log.ports import TailExpired
from roomcast.ports import Throttled, UnknownOutcome
from roomcast.testing.memory import (
    ManualClock,
    MemoryChannelTable,
    MemoryQueue,
    MemoryTopic,
    MemoryWorld,
    Stage,
)
from tests.contract.items import head, log_item

WAIT_S = 0.01


def table(world: MemoryWorld, clock: ManualClock | None = None) -> MemoryChannelTable:
    return MemoryChannelTable(world, clock or ManualClock())


def valid_until() -> int:
    return ManualClock().now_ms() + 1


async def test_the_stream_has_log_items_in_the_order_of_writing() -> None:
    world, heard = MemoryWorld(), list[LogItem]()
    world.on_insert.append(heard.append)
    await table(world).put_head(head("v1"), None)
    for item in (log_item(1), log_item(1, batch="loser"), log_item(1, channel="b"), log_item(2)):
        await table(world).put_item(item, valid_until())
    assert world.stream == heard == [log_item(1), log_item(1, channel="b"), log_item(2)]


async def test_a_fault_hits_as_many_calls_as_it_should() -> None:
    world = MemoryWorld()
    world.fail_next("put_item", Throttled(), times=2)
    for _ in range(2):
        with pytest.raises(Throttled):
            await table(world).put_item(log_item(1), valid_until())
    assert await table(world).newest("room") is None
    assert await table(world).put_item(log_item(1), valid_until()) is None


async def test_a_lost_answer_is_of_a_call_that_happened() -> None:
    world = MemoryWorld()
    world.fail_next("put_item", UnknownOutcome(), effect="applied")
    with pytest.raises(UnknownOutcome):
        await table(world).put_item(log_item(1), valid_until())
    assert world.stream == [log_item(1)]


async def test_a_late_request_happens_when_it_arrives() -> None:
    world = MemoryWorld()
    world.fail_next("put_item", UnknownOutcome(), effect="late")
    with pytest.raises(UnknownOutcome):
        await table(world).put_item(log_item(1, batch="late"), valid_until())
    assert world.stream == []
    world.deliver_late()
    world.deliver_late()
    assert world.stream == [log_item(1, batch="late")]


async def test_the_tail_is_checked_when_the_request_is_sent() -> None:
    world, clock, suspended_at = MemoryWorld(), ManualClock(), "sent"

    async def suspend(call: str, stage: Stage) -> None:
        if stage == suspended_at:
            clock.advance(1)

    world.pause = suspend
    assert await table(world, clock).put_item(log_item(1), clock.now_ms() + 1) is None
    suspended_at = "call"
    with pytest.raises(TailExpired):
        await table(world, clock).put_item(log_item(2), clock.now_ms() + 1)


async def test_ttl_deletes_in_any_order() -> None:
    world = MemoryWorld()
    for offset in (1, 2):
        await table(world).put_item(log_item(offset), valid_until())
    world.expire("room", 2)
    world.expire("room", 2)
    assert await table(world).newest("room") == log_item(1)


async def test_what_is_not_deleted_comes_again() -> None:
    world = MemoryWorld()
    queue = MemoryQueue(world, WAIT_S)
    await queue.open("q")
    for body in ("one", "two"):
        await MemoryTopic(world).publish(body)
    one, _ = await queue.receive()
    assert not await queue.receive()
    await queue.delete([one.receipt])
    world.redeliver("q")
    assert [message.body for message in await queue.receive()] == ["two"]
    assert world.published == ["one", "two"]


async def test_a_long_poll_ends_with_the_message() -> None:
    world = MemoryWorld()
    queue = MemoryQueue(world, wait_s=60)
    await queue.open("q")
    poll = asyncio.create_task(queue.receive())
    await asyncio.sleep(0)
    await MemoryTopic(world).publish("one")
    assert [message.body for message in await asyncio.wait_for(poll, 5)] == ["one"]


async def test_a_long_poll_ends_with_the_queue() -> None:
    world = MemoryWorld()
    queue = MemoryQueue(world, wait_s=60)
    await queue.open("q")
    poll = asyncio.create_task(queue.receive())
    await asyncio.sleep(0)
    world.delete_queue("q")
    with pytest.raises(Gone):
        await asyncio.wait_for(poll, 5)


def test_the_clock_moves_when_told() -> None:
    clock = ManualClock(ms=1_000)
    clock.advance(1.5)
    assert (clock.now_ms(), clock.monotonic_s()) == (2_500, 1.5)
