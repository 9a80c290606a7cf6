"""The task that keeps channels up with their logs: a few looks at once,
one round for many requests, slow where it fails.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from roomcast.delivery.catch_up import FAILURES_IN_A_ROW_MAX, LOOKS_AT_ONCE, PAUSE_MAX_S, CatchUp
from roomcast.delivery.tail_checks import TailChecks
from roomcast.testing.memory import ManualClock
from tests.unit.worlds import no_jitter, running, settled, until

# The task looks at the test's clock after half of this.
EVERY_S: Final = 0.002


class World:
    """Channels whose looks end when the test lets them."""

    def __init__(self, channels: int) -> None:
        self.clock = ManualClock()
        self.tails = TailChecks(EVERY_S, lambda _channel: 0)
        self.looks = Counter[str]()
        self.under_way = 0
        self.most = 0
        self.answers = True
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.catch_up = CatchUp(self.tails, self._look, self.clock, no_jitter)
        for number in range(channels):
            self.tails.opened(f"channel-{number}", 0.0, 0.0)

    async def _look(self, channel: str) -> bool:
        self.looks[channel] += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            await self.go_on.wait()
        finally:
            self.under_way -= 1
        return self.answers

    @property
    def all_looks(self) -> int:
        return self.looks.total()

    async def looked(self, count: int) -> None:
        """So many looks, and not one more."""
        await until(lambda: self.all_looks >= count)
        await settled()
        assert self.all_looks == count


@asynccontextmanager
async def looking(world: World) -> AsyncIterator[asyncio.Task[None]]:
    async with running(world.catch_up.run()) as task:
        yield task
    assert asyncio.all_tasks() == {asyncio.current_task()}, "looks end with the task"


async def test_each_channel_has_its_turn() -> None:
    world = World(3)
    async with looking(world):
        await settled()
        assert world.all_looks == 0
        for rounds in (1, 2, 3):
            world.clock.advance(EVERY_S)
            await world.looked(3 * rounds)
        assert set(world.looks.values()) == {3}


async def test_a_request_is_for_all_channels_and_takes_no_time() -> None:
    world = World(100)
    async with looking(world):
        await settled()
        world.catch_up.request()
        assert world.all_looks == 0
        await world.looked(100)
        assert set(world.looks.values()) == {1}
        assert world.most == LOOKS_AT_ONCE


async def test_a_request_before_the_start_is_not_forgotten() -> None:
    world = World(3)
    world.catch_up.request()
    async with looking(world):
        await world.looked(3)


async def test_requests_during_one_are_one_more_at_most() -> None:
    world = World(20)
    world.go_on.clear()
    async with looking(world):
        world.catch_up.request()
        await until(lambda: world.under_way == LOOKS_AT_ONCE)
        for _ in range(5):
            world.catch_up.request()
            await settled()
        world.go_on.set()
        await world.looked(20 + LOOKS_AT_ONCE)
        assert max(world.looks.values()) == 2
        assert min(world.looks.values()) == 1


async def test_what_opens_during_the_looks_of_others_has_its_turn() -> None:
    """The task waits for no more than half an interval, and no new channel is due sooner."""
    world = World(1)
    world.go_on.clear()
    async with looking(world):
        world.catch_up.request()
        await until(lambda: world.under_way == 1)
        world.tails.opened("new", world.clock.monotonic_s(), 0.0)
        world.clock.advance(EVERY_S)
        await until(lambda: world.looks["new"] == 1)
        world.go_on.set()


async def test_a_table_that_does_not_answer_is_asked_slowly_and_not_given_up() -> None:
    world = World(50)
    world.answers = False
    async with looking(world):
        world.catch_up.request()
        # Those that were under way when it was noticed end as well.
        await until(lambda: world.under_way == 0 and world.all_looks >= FAILURES_IN_A_ROW_MAX)
        await settled()
        looks = world.all_looks
        assert looks <= FAILURES_IN_A_ROW_MAX + LOOKS_AT_ONCE
        assert world.tails.asked == 50 - looks
        pauses, world.most = [], 0
        for _ in range(10):
            pauses.append(world.catch_up._not_before_s - world.clock.monotonic_s())
            world.clock.advance(pauses[-1] - 0.001)
            # Wakes the task.
            world.catch_up.request()
            await world.looked(looks)
            world.clock.advance(0.002)
            looks += 1
            await world.looked(looks)
        assert world.most == 1
        # Half of it is jitter, which is none here.
        longest_s = PAUSE_MAX_S / 2
        assert pauses == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, *[longest_s] * 5])
        # It answers again: the rest needs no further request and no pause.
        world.answers = True
        world.clock.advance(PAUSE_MAX_S)
        await until(lambda: len(world.looks) == 50)
        assert world.catch_up.failures == 0
        assert world.most > 1


async def test_looks_that_were_under_way_when_it_was_noticed_make_no_longer_pause() -> None:
    world = World(50)
    looks: list[asyncio.Future[bool]] = []

    async def look(_: str) -> bool:
        looks.append(asyncio.get_running_loop().create_future())
        return await looks[-1]

    world.catch_up._look = look
    async with looking(world):
        world.catch_up.request()
        for failed in range(FAILURES_IN_A_ROW_MAX):
            await until(lambda failed=failed: len(looks) == LOOKS_AT_ONCE + failed)  # type: ignore[misc]
            looks[failed].set_result(False)
        await settled()
        assert len(looks) == FAILURES_IN_A_ROW_MAX + LOOKS_AT_ONCE - 1
        for each in looks[FAILURES_IN_A_ROW_MAX:]:
            each.set_result(False)
            await settled()
        assert world.catch_up._not_before_s == 0.5
        world.clock.advance(0.5)
        await until(lambda: len(looks) == FAILURES_IN_A_ROW_MAX + LOOKS_AT_ONCE)
        looks[-1].set_result(False)
        await settled()
        assert world.catch_up._not_before_s == 0.5 + 1.0


async def test_failures_here_and_there_slow_nothing_down() -> None:
    """One channel may be what is broken."""
    world = World(40)
    numbers = iter(range(1, 1000))

    async def look(channel: str) -> bool:
        world.looks[channel] += 1
        await asyncio.sleep(0)
        return next(numbers) % FAILURES_IN_A_ROW_MAX == 0

    world.catch_up._look = look
    async with looking(world):
        world.catch_up.request()
        await world.looked(40)


async def test_requests_do_not_hurry_a_table_that_does_not_answer() -> None:
    world = World(50)
    world.answers = False
    async with looking(world):
        world.catch_up.request()
        await until(lambda: world.under_way == 0 and world.all_looks >= FAILURES_IN_A_ROW_MAX)
        await settled()
        looks = world.all_looks
        for _ in range(10):
            world.catch_up.request()
            await settled()
        assert world.all_looks == looks


async def test_a_fault_of_ours_ends_the_task() -> None:
    """Whoever runs it ends the node: it must not go on without looking."""
    world = World(1)

    async def look(channel: str) -> bool:
        raise RuntimeError("simulated")

    world.catch_up._look = look
    world.catch_up.request()
    with pytest.raises(ExceptionGroup):
        await world.catch_up.run()


async def test_the_end_cancels_what_is_under_way() -> None:
    world = World(20)
    world.go_on.clear()
    async with looking(world):
        world.catch_up.request()
        await until(lambda: world.under_way == LOOKS_AT_ONCE)
    assert world.under_way == 0
