"""The canary's task over memory: one node sings a slot, the others hear it, and silence is looked into."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from service.adapters.memory import ManualClock, MemoryChannelTable, MemoryWorld
from service.core.canary import CANARY_CHANNEL, Greeting, Hearing
from service.core.log_item import LogItem
from service.core.publication import Record
from service.delivery import canary as canary_module
from service.delivery.canary import REBUILD_PAUSE_S, Canary
from service.ports import PortError, Throttled
from tests.unit.worlds import Ids, no_jitter, until

INTERVAL_S: Final = 30.0


@dataclass
class Ears:
    """One node's canary, with what it asks for recorded. Time passes only as far as it sleeps."""

    world: MemoryWorld
    clock: ManualClock
    greeting: Greeting = Greeting.HEARD
    elsewhere: int = 0
    leases_fail: PortError | None = None
    rebuilds: int = 0
    caught_up: int = 0

    def __post_init__(self) -> None:
        self.canary = Canary(
            MemoryChannelTable(self.world, self.clock),
            self.clock,
            Ids("batch"),
            no_jitter,
            node="a",
            generation="0",
            interval_s=INTERVAL_S,
            greet=self._greet,
            rebuild=self._rebuild,
            catch_up=self._catch_up,
            newest_elsewhere=self._newest_elsewhere,
        )

    async def _greet(self) -> Greeting:
        return self.greeting

    def _rebuild(self) -> None:
        self.rebuilds += 1

    async def _catch_up(self) -> None:
        self.caught_up += 1

    async def _newest_elsewhere(self) -> int:
        if self.leases_fail is not None:
            raise self.leases_fail
        return self.elsewhere

    @asynccontextmanager
    async def running(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        """Yields a call that lets so many turns pass and waits until they are done."""
        turns = asyncio.Semaphore(0)
        sleeps = 0

        async def sleep(seconds: float) -> None:
            nonlocal sleeps
            sleeps += 1
            await turns.acquire()
            self.clock.advance(seconds)

        class Asyncio:
            def __getattr__(self, name: str) -> object:
                return sleep if name == "sleep" else getattr(asyncio, name)

        monkeypatch.setattr(canary_module, "asyncio", Asyncio())
        task = asyncio.create_task(self.canary.run())

        async def pass_turns(count: int) -> None:
            for _ in range(count):
                begun = sleeps
                turns.release()
                await until(lambda begun=begun: sleeps > begun)  # type: ignore[misc]  # a default binds the number

        await until(lambda: sleeps == 1)
        try:
            yield pass_turns
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def sung(self) -> list[LogItem]:
        return [item for item in self.world.stream if item.channel == CANARY_CHANNEL]

    def hear(self, item: LogItem) -> None:
        self.canary.hear(Record(item.channel, item.epoch, item.offset, item.last, item.ts, None), item.ts + 5)


@pytest.fixture
def ears() -> Ears:
    return Ears(MemoryWorld(), ManualClock())


async def test_one_canary_a_slot_whoever_sings(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Ears(ears.world, ears.clock)
    async with ears.running(monkeypatch) as pass_turns:
        await pass_turns(1)
        slot = ears.sung()[-1].offset
        await other.canary._sing(slot)
        assert [item.offset for item in ears.sung()] == [slot]
        await pass_turns(2)
    assert [item.offset for item in ears.sung()] == [slot, slot + 1, slot + 2]


async def test_a_slot_that_was_heard_is_not_sung(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ears.running(monkeypatch) as pass_turns:
        await pass_turns(1)
        sung = ears.sung()[-1]
        ears.canary.hear(
            Record(CANARY_CHANNEL, sung.epoch, sung.offset + 1, sung.offset + 1, sung.ts, None), 0
        )
        await pass_turns(1)
    assert ears.sung() == [sung]


async def test_what_is_heard_keeps_all_well(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ears.running(monkeypatch) as pass_turns:
        for _ in range(6):
            await pass_turns(1)
            ears.hear(ears.sung()[-1])
    assert ears.canary.hearing is Hearing.WELL
    assert (ears.rebuilds, ears.caught_up) == (0, 0)
    assert ears.canary.slot == ears.sung()[-1].offset
    assert ears.canary.latency is not None
    assert ears.canary.latency.to_lambda_ms == 5


async def test_a_silent_pipeline_is_told_and_made_up_for(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    """The own greeting is heard: it is not this node, and a new queue would not help."""
    async with ears.running(monkeypatch) as pass_turns:
        await pass_turns(6)
        assert ears.canary.hearing is Hearing.SILENT
        assert ears.rebuilds == 0
        assert ears.caught_up >= 1
        ears.hear(ears.sung()[-1])
        assert ears.canary.hearing.value == "well"


async def test_a_deaf_node_gets_a_new_queue_but_not_without_end(
    ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.greeting, ears.elsewhere = Greeting.NOT_HEARD, 10**9
    async with ears.running(monkeypatch) as pass_turns:
        await pass_turns(4)
        assert ears.canary.hearing is Hearing.DEAF
        assert ears.rebuilds == 1
        await pass_turns(10)
    assert 2 <= ears.rebuilds <= 1 + 10 * INTERVAL_S * 1.5 / REBUILD_PAUSE_S
    assert ears.caught_up >= ears.rebuilds


async def test_a_topic_that_takes_nothing_says_nothing_of_the_queue(
    ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.greeting = Greeting.NOT_SENT
    async with ears.running(monkeypatch) as pass_turns:
        await pass_turns(8)
    assert ears.canary.hearing is Hearing.SILENT
    assert ears.rebuilds == 0
    assert ears.caught_up >= 1


async def test_a_fault_of_the_table_or_of_the_leases_ends_nothing(
    ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.world.fail_next("put_item", Throttled("simulated"), times=4)
    ears.leases_fail = Throttled("simulated")
    async with ears.running(monkeypatch) as pass_turns:
        await pass_turns(5)
    assert len(ears.sung()) == 1
    assert ears.canary.hearing is Hearing.SILENT
