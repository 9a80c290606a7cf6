"""The deleter: tens at a time beside whoever adds, bounded in what waits,
and honest about what it could not delete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from roomcast.delivery.deleter import DELETES_AT_ONCE, FAILURES_TOLD, RECEIPTS_MAX, Deleter
from roomcast.delivery.ports import Gone, InstanceQueue
from roomcast.ports import PortError, Rejected, Throttled
from tests.unit.worlds import running, settled, until


class Queue:
    """Deletes when the test lets it, or fails."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.errors: list[PortError | None] = []
        self.under_way = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def delete(self, receipts: Sequence[str]) -> None:
        self.calls.append(list(receipts))
        self.under_way += 1
        try:
            await self.go_on.wait()
        finally:
            self.under_way -= 1
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error

    @property
    def deleted(self) -> list[str]:
        return [receipt for call in self.calls for receipt in call]


class World:
    def __init__(self) -> None:
        self.queue = Queue()
        self.deleter = Deleter(cast("InstanceQueue", self.queue))


@asynccontextmanager
async def deleting(world: World) -> AsyncIterator[None]:
    async with running(world.deleter.run()):
        yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def world() -> World:
    return World()


def receipts(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


async def test_deletes_are_grouped_in_tens(world: World) -> None:
    async with deleting(world):
        world.deleter.add(receipts(3))
        world.deleter.add(receipts(20, 3))
        await until(lambda: len(world.queue.deleted) == 23)
        assert sorted(map(len, world.queue.calls)) == [3, 10, 10]
        assert sorted(map(int, world.queue.deleted)) == list(range(23))
        await settled()
        world.deleter.add(receipts(1, 23))
        await until(lambda: len(world.queue.deleted) == 24)


async def test_a_slow_queue_gets_a_few_calls_at_once(world: World) -> None:
    world.queue.go_on.clear()
    async with deleting(world):
        world.deleter.add(receipts(200))
        await until(lambda: world.queue.under_way == DELETES_AT_ONCE)
        await settled()
        assert world.queue.under_way == DELETES_AT_ONCE
        world.queue.go_on.set()
        await until(lambda: len(world.queue.deleted) == 200)
    assert world.deleter.left == 0


async def test_what_waits_is_bounded_and_the_oldest_go(world: World) -> None:
    """Their messages are the first to come again, under other receipts."""
    world.deleter.add(receipts(RECEIPTS_MAX))
    assert world.deleter.left == 0
    world.deleter.add(receipts(25, RECEIPTS_MAX))
    assert world.deleter.left == 25
    async with deleting(world):
        await until(lambda: len(world.queue.deleted) == RECEIPTS_MAX)
        assert sorted(map(int, world.queue.deleted)) == list(range(25, RECEIPTS_MAX + 25))


async def test_failures_in_a_row_are_told_until_one_succeeds(world: World) -> None:
    world.queue.errors = [Throttled(), None, *[Rejected("no permission")] * FAILURES_TOLD, None]
    async with deleting(world):
        for number in range(2 + FAILURES_TOLD):
            assert world.deleter.trouble == ""
            world.deleter.add([str(number)])
            await until(lambda number=number: len(world.queue.calls) == number + 1)  # type: ignore[misc]
            await settled()
        assert world.deleter.trouble == "no permission"
        assert world.deleter.left == 1 + FAILURES_TOLD
        world.deleter.add(["another"])
        await until(lambda: world.deleter.trouble == "")


async def test_a_failure_without_words_is_told_by_its_name(world: World) -> None:
    world.queue.errors = [Throttled()] * FAILURES_TOLD
    async with deleting(world):
        for number in range(FAILURES_TOLD):
            world.deleter.add([str(number)])
            await until(lambda number=number: len(world.queue.calls) == number + 1)  # type: ignore[misc]
            await settled()
    assert world.deleter.trouble == "Throttled"


async def test_a_queue_that_is_gone_is_not_the_deleters_trouble(world: World) -> None:
    """Receives meet it as well, and the queue is replaced."""
    world.queue.errors = [Gone("no longer")] * 10
    async with deleting(world):
        for number in range(10):
            world.deleter.add([str(number)])
            await until(lambda number=number: len(world.queue.calls) == number + 1)  # type: ignore[misc]
    assert (world.deleter.trouble, world.deleter.left) == ("", 10)


async def test_what_is_forgotten_is_not_deleted(world: World) -> None:
    world.deleter.add(receipts(5))
    world.deleter.forget()
    async with deleting(world):
        world.deleter.add(["other"])
        await until(lambda: world.queue.calls == [["other"]])
        await settled()
        assert world.queue.calls == [["other"]]


async def test_many_failures_are_a_few_lines_in_the_log(world: World) -> None:
    world.queue.errors = [*[Rejected("no permission")] * 500, None, Rejected("no permission")]
    with capture_logs() as lines:
        async with deleting(world):
            for number in range(502):
                world.deleter.add([str(number)])
                await until(lambda number=number: len(world.queue.calls) == number + 1)  # type: ignore[misc]
                await settled_once()
            await until(lambda: world.deleter.left == 501)
    said = [line["left"] for line in lines if line["event"] == "messages_not_deleted"]
    assert said == [1, 2, 4, 8, 16, 32, 64, 128, 256, 501], "it begins anew after one was deleted"


async def settled_once() -> None:
    """A few turns: the call that was seen to begin has ended."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_fault_of_ours_ends_it(world: World) -> None:
    """Whoever runs it ends the node."""

    async def delete(_: Any) -> None:
        raise RuntimeError("simulated")

    world.queue.delete = delete  # type: ignore[method-assign,assignment]
    world.deleter.add(["one"])
    with pytest.raises(ExceptionGroup):
        await world.deleter.run()
