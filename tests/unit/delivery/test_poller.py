"""The poller over memory: what was handed on is deleted, what was not comes again,
a queue that is gone is rebuilt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import pytest

from roomcast.backoff import Backoff
from roomcast.delivery import poller as poller_module
from roomcast.delivery.deleter import FAILURES_TOLD
from roomcast.delivery.poller import POLLERS_MAX, TAKE_CHARS, Poller
from roomcast.delivery.ports import Gone
from roomcast.delivery.queue_state import QueueState
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import MemoryQueue
from tests.unit.worlds import POLL_WAIT_S, Fleet, no_jitter, running, settled, until

NAME: Final = "queue"

# As it is for production; the tests do not wait for it.
BACKOFF = poller_module._BACKOFF


class World:
    def __init__(self, pause_s: float = 0.0) -> None:
        self.fleet = Fleet()
        self.queue = MemoryQueue(self.fleet.world, POLL_WAIT_S)
        self.taken: list[str] = []
        self.receives: list[int] = []
        self.rebuilds = 0
        self.state = QueueState()
        self.poller = Poller(
            self.queue, self.fleet.clock, no_jitter, self.state, self, self, pause_s=pause_s
        )

    def take(self, bodies: Sequence[str], queued_at: Sequence[int] = ()) -> None:
        assert len(queued_at) == len(bodies)
        self.taken.extend(bodies)
        self.receives.append(len(bodies))

    async def rebuild(self) -> None:
        self.rebuilds += 1
        await self.queue.close()
        await self.queue.open(f"{NAME}{self.rebuilds}")

    def send(self, *bodies: str) -> None:
        for body in bodies:
            self.fleet.world.send(body)

    @property
    def stored(self) -> int:
        """Messages that are not deleted."""
        return sum(
            len(queue.waiting) + len(queue.taken) for queue in self.fleet.world.queues.values()
        )


@asynccontextmanager
async def polling(world: World) -> AsyncIterator[asyncio.Task[None]]:
    async with running(world.poller.run()) as task:
        yield task
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, "further receivers end with the poller"


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(poller_module, "_BACKOFF", Backoff(0.0002, 0.001))
    world = World()
    await world.queue.open(NAME)
    return world


async def test_large_messages_are_handed_on_in_portions_and_others_have_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, whole = "h" * (TAKE_CHARS // 2), "w" * (TAKE_CHARS + 1)
    bodies = ["small", half, "s", half, half, whole, "last"]
    world.send(*bodies)
    turns, taken_in = 0, []

    def take(portion: Sequence[str], _queued_at: Sequence[int]) -> None:
        taken_in.append((turns, list(portion)))

    monkeypatch.setattr(world, "take", take)
    async with polling(world):
        while sum(len(portion) for _, portion in taken_in) < len(bodies):
            turns += 1
            await asyncio.sleep(0)
        await until(lambda: world.stored == 0)
    assert [portion for _, portion in taken_in] == [
        ["small", half, "s"],
        [half, half],
        [whole],
        ["last"],
    ]
    at = [turn for turn, _ in taken_in]
    assert len(set(at)) == len(at), "no two in one turn"


async def test_messages_are_handed_on_then_deleted(world: World) -> None:
    held = world.fleet.traffic.hold("delete")
    async with polling(world):
        world.send("one", "two")
        await held.arrived()
        assert world.taken == ["one", "two"]
        held.release()
        await until(lambda: world.stored == 0)


async def test_what_was_not_handed_on_comes_again(world: World) -> None:
    held = world.fleet.traffic.hold("receive", "answer")
    task = asyncio.create_task(world.poller.run())
    world.send("one")
    await held.arrived()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    held.release()
    assert world.taken == []
    world.fleet.world.redeliver(NAME)
    async with polling(world):
        await until(lambda: world.taken == ["one"])


async def test_full_receives_call_for_more_at_once_within_a_bound(world: World) -> None:
    at_once = most = 0

    async def pause(call: str, stage: str) -> None:
        nonlocal at_once, most
        if call == "receive":
            at_once += {"sent": 1, "answer": -1}.get(stage, 0)
            most = max(most, at_once)
        for _ in range(5):
            await asyncio.sleep(0)

    world.fleet.world.pause = pause
    world.send(*[str(number) for number in range(500)])
    async with polling(world):
        await until(lambda: len(world.taken) == 500 and world.stored == 0)
        assert sorted(map(int, world.taken)) == list(range(500))
        assert 1 < most <= POLLERS_MAX
        await until(lambda: not world.state.extra)


async def test_one_receive_at_a_time_when_little_comes(world: World) -> None:
    async with polling(world):
        for number in range(20):
            world.send(str(number))
            await until(lambda number=number: len(world.taken) == number + 1)  # type: ignore[misc]
        assert not world.state.extra


async def test_messages_gather_for_a_while_after_some_came() -> None:
    world = World(pause_s=3600.0)
    await world.queue.open(NAME)
    async with polling(world):
        world.send("one")
        await until(lambda: world.stored == 0)
        world.send("two", "three")
        await settled()
        assert world.taken == ["one"]


async def test_a_pause_ends() -> None:
    world = World(pause_s=0.001)
    await world.queue.open(NAME)
    async with polling(world):
        world.send("one")
        await until(lambda: world.taken)
        world.send("two", "three")
        await until(lambda: world.stored == 0)
    assert world.receives[:2] == [1, 2]


async def test_neither_an_empty_receive_nor_a_full_one_is_followed_by_a_pause() -> None:
    world = World(pause_s=3600.0)
    await world.queue.open(NAME)
    async with polling(world):
        await until(lambda: world.poller.counters.receives["empty"] == 2)
        world.send(*[str(number) for number in range(25)])
        await until(lambda: world.stored == 0)


@pytest.mark.parametrize(
    "error", [Throttled("slow down"), UnknownOutcome("reset"), Rejected("no permission")]
)
async def test_an_error_is_counted_and_tried_again(world: World, error: PortError) -> None:
    world.fleet.world.fail_next("receive", error, times=7)
    failures: list[int] = []
    world.send("one")
    async with polling(world):
        while not world.taken:
            failures.append(world.poller.failures)
            await asyncio.sleep(0)
        assert max(failures) == 7
        await until(lambda: world.poller.failures == 0)
    assert world.rebuilds == 0


async def test_back_off_grows_to_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def recorded(delay: float, *_: object) -> None:
        if delay:
            slept.append(delay)
        await sleep(0)

    monkeypatch.setattr(poller_module, "_BACKOFF", BACKOFF)
    monkeypatch.setattr("roomcast.delivery.poller.asyncio.sleep", recorded)
    world.fleet.world.fail_next("receive", Throttled(), times=9)
    async with polling(world):
        await until(lambda: len(slept) == 9)
    # Half of it is jitter, which is none here.
    assert slept == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0]


async def test_a_deleted_queue_is_rebuilt(world: World) -> None:
    async with polling(world):
        world.send("one")
        await until(lambda: world.taken == ["one"])
        world.fleet.world.delete_queue(NAME)
        await until(lambda: world.rebuilds == 1 and world.fleet.world.queues)
        world.send("two")
        await until(lambda: world.taken == ["one", "two"])
    assert set(world.fleet.world.queues) == world.fleet.world.subscriptions == {f"{NAME}1"}


async def test_a_rebuild_that_fails_is_tried_again(world: World) -> None:
    world.fleet.world.fail_next("open", UnknownOutcome("reset"), effect="applied", times=3)
    async with polling(world):
        world.fleet.world.delete_queue(NAME)
        await until(lambda: world.rebuilds == 4)
        await until(lambda: world.poller.failures == 0)
        world.send("heard")
        await until(lambda: world.taken == ["heard"])
    assert len(world.fleet.world.queues) == 1, "nothing is left of the attempts"


async def test_messages_that_could_not_be_deleted_are_no_error_but_are_told(world: World) -> None:
    world.fleet.world.fail_next("delete", Gone("no longer"), times=1)
    world.fleet.world.fail_next("delete", Rejected("no permission"), times=FAILURES_TOLD)
    async with polling(world):
        for number in range(FAILURES_TOLD + 1):
            assert world.poller.undeleted == ""
            world.send(str(number))
            await until(lambda number=number: world.fleet.traffic.calls["delete"] == number + 1)  # type: ignore[misc]
            await settled()
        assert world.poller.undeleted == "no permission"
        assert world.poller.failures == 0
        world.send("another")
        await until(lambda: world.poller.undeleted == "")
    assert world.rebuilds == 0


async def test_a_slow_delete_holds_up_no_receive(world: World) -> None:
    held = world.fleet.traffic.hold("delete")
    async with polling(world):
        for number in range(50):
            world.send(str(number))
            await until(lambda number=number: len(world.taken) == number + 1)  # type: ignore[misc]
        held.release()
        await until(lambda: world.stored == 0)


async def test_the_end_leaves_what_waits_to_be_deleted(world: World) -> None:
    """It goes with the queue, or comes again and is known."""
    held = world.fleet.traffic.hold("delete")
    async with polling(world):
        world.send("one")
        await held.arrived()
    assert world.stored == 1


async def test_what_waits_to_be_deleted_goes_with_a_queue_that_is_replaced(world: World) -> None:
    held = world.fleet.traffic.hold("delete")
    async with polling(world):
        world.send(*[str(number) for number in range(200)])
        await until(lambda: len(world.taken) == 200)
        deletes = held.count
        world.state.rebuild_next()
        await until(lambda: world.rebuilds == 1 and not world.poller.is_gone)
        held.release()
        world.send("another")
        await until(lambda: world.taken[-1] == "another" and world.stored == 0)
        assert world.fleet.traffic.calls["delete"] == deletes + 1
        assert world.poller.undeleted == ""


async def test_a_rebuild_that_is_asked_for_during_another_is_done(world: World) -> None:
    """The lease was lost meanwhile: the queue that was just made belongs to the old one."""
    held = world.fleet.traffic.hold("open")
    async with polling(world):
        await until(lambda: world.state.receiving)
        world.state.rebuild_next()
        await held.arrived()
        world.state.rebuild_next()
        held.release()
        await until(lambda: world.rebuilds == 2 and not world.poller.is_gone)


async def test_what_further_receivers_have_under_way_proves_nothing_of_the_next_queue(
    world: World,
) -> None:
    async with polling(world):
        hold = world.fleet.traffic.hold("receive", "sent")
        world.send(*[str(number) for number in range(30)])
        await hold.arrived()
        hold.release()
        await until(lambda: len(world.taken) == 30)
        late = world.fleet.traffic.hold("receive", "answer")
        world.send(*[str(number) for number in range(30, 50)])
        await late.arrived()
        world.state.rebuild_next()
        await settled()
        assert not world.state.extra
        late.release()
        await until(lambda: world.rebuilds == 1 and not world.poller.is_gone)


async def test_a_further_receiver_that_fails_leaves_it_to_the_first(world: World) -> None:
    hold = world.fleet.traffic.hold("receive")
    async with polling(world):
        await hold.arrived()
        world.send(*[str(number) for number in range(30)])
        hold.release()
        await until(lambda: world.taken)
        world.fleet.world.fail_next("receive", Throttled(), times=2)
        await until(lambda: len(world.taken) == 30)
        await until(lambda: world.stored == 0)


async def test_the_end_does_not_wait_for_further_receivers(world: World) -> None:
    task = asyncio.create_task(world.poller.run())
    world.send(*[str(number) for number in range(10)])
    await until(lambda: world.state.extra)
    held = world.fleet.traffic.hold("receive")
    await held.arrived(2)
    task.cancel()
    await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_how_late_the_newest_message_came(world: World) -> None:
    world.send("at once")
    async with polling(world):
        await until(lambda: world.taken)
        assert (world.state.lag_ms, world.state.skew_ms) == (0, 0)
    world.send("old")
    world.fleet.clock.advance(5)
    world.send("new")
    world.fleet.clock.advance(2)
    async with polling(world):
        await until(lambda: world.taken == ["at once", "old", "new"])
        assert (world.state.lag_ms, world.state.skew_ms) == (2000, 0)
        await until(lambda: world.state.lag_ms == 0)


@pytest.mark.parametrize("ahead_s", [60, -60])
async def test_a_clock_that_differs_from_the_queues_is_no_lag(world: World, ahead_s: int) -> None:
    queue_ms = world.fleet.clock.now_ms
    world.fleet.world.now_ms = lambda: queue_ms() - ahead_s * 1000
    async with polling(world):
        world.send("one")
        await until(lambda: world.taken)
        assert (world.state.lag_ms, world.state.skew_ms) == (0, ahead_s * 1000)


async def test_messages_whose_time_is_not_known_are_not_late(world: World) -> None:
    world.fleet.world.now_ms = int
    world.send("one")
    async with polling(world):
        await until(lambda: world.taken)
        assert world.state.lag_ms == 0


async def test_a_queue_that_is_given_up_counts_as_gone_until_there_is_another(world: World) -> None:
    """A receive that was cancelled for a rebuild is no sign of health."""
    world.poller._failures = 7
    async with polling(world):
        await until(lambda: world.state.receiving)
        world.fleet.world.fail_next("open", Throttled("simulated"))
        world.state.rebuild_next()
        assert world.poller.is_gone
        await until(lambda: world.poller.failures == 8)
        assert world.poller.is_gone
        await until(lambda: not world.poller.is_gone)
    assert world.poller.failures == 0
