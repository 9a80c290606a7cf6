"""The listener over memory: a queue is proved by a greeting, rebuilt when it is gone,
and gone at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import pytest
from structlog.testing import capture_logs

from roomcast.backoff import Backoff
from roomcast.delivery import listener as listener_module
from roomcast.delivery import poller as poller_module
from roomcast.delivery.envelope import parse
from roomcast.delivery.greetings import GREETINGS_MAX, Greetings
from roomcast.delivery.listener import Listener
from roomcast.delivery.poller import Poller
from roomcast.delivery.queue_state import QueueState
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import MemoryQueue, MemoryTopic
from tests.unit.worlds import POLL_WAIT_S, Fleet, ids, no_jitter, one_topic, running, settled, until

# Longer than memory takes for anything; a greeting that is not heard in this time was lost.
GREETING_WAIT_S: Final = 0.05


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.world = self.fleet.world
        self.queue = MemoryQueue(self.world, POLL_WAIT_S)
        self.opened: list[str] = []
        self.existing_when_told: list[bool] = []
        self.caught_up = 0
        self.deaf = False
        self.greetings = Greetings()
        self.listener = Listener(
            self.queue,
            MemoryTopic(self.world),
            self.greetings,
            ids("a"),
            node="a",
            queue_prefix="queue-",
            greeting_wait_s=GREETING_WAIT_S,
            holder=self,
            catch_up=self,
            shards=one_topic(self.fleet.clock),
        )
        self.poller = Poller(
            self.queue, self.fleet.clock, no_jitter, QueueState(), self, self.listener
        )

    @property
    def name(self) -> str:
        return self.opened[-1]

    async def hold(self, queue: str) -> None:
        self.opened.append(queue)
        self.existing_when_told.append(queue in self.world.queues)

    def request(self, shard: int | None = None) -> None:
        self.caught_up += 1

    def take(self, bodies: Sequence[str], queued_at: Sequence[int] = ()) -> None:
        for body in bodies:
            for signal in parse(body).signals:
                if not self.deaf:
                    self.greetings.greeted(signal.id)


@asynccontextmanager
async def polling(world: World) -> AsyncIterator[None]:
    try:
        async with running(world.poller.run()):
            yield
    finally:
        await world.listener.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(poller_module, "_BACKOFF", Backoff(0.0002, 0.001))
    return World()


async def test_the_lease_knows_the_queue_before_it_exists(world: World) -> None:
    """I6: whoever finds the lease of a node that died while it started finds the queue's name."""
    await world.listener.open()
    assert world.existing_when_told == [False]
    assert set(world.world.queues) == world.world.subscriptions == {world.name}
    await world.listener.close()


async def test_a_queue_is_not_created_when_the_lease_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(_: str) -> None:
        raise Rejected("no permission")

    monkeypatch.setattr(world, "hold", refused)
    with pytest.raises(Rejected):
        await world.listener.open()
    assert world.world.queues == {}


async def test_a_greeting_that_comes_back_proves_the_queue(world: World) -> None:
    await world.listener.open()
    async with polling(world):
        assert not world.listener.hears
        assert await world.listener.prove()
        assert world.listener.hears
    assert world.caught_up == 0, "nothing was missed: nobody subscribed yet"


async def test_a_greeting_that_is_lost_proves_nothing(world: World) -> None:
    await world.listener.open()
    world.deaf = True
    async with polling(world):
        assert not await world.listener.prove()
        assert not world.listener.hears


async def test_a_greeting_that_cannot_be_sent_proves_nothing(world: World) -> None:
    await world.listener.open()
    world.world.fail_next("publish", Rejected("no permission"))
    async with polling(world):
        assert not await world.listener.prove()


async def test_somebody_elses_greeting_proves_nothing(world: World) -> None:
    world.greetings.greeted("unknown")
    assert not world.listener.hears


async def test_a_greeting_that_is_late_proves_all_the_same(world: World) -> None:
    await world.listener.open()
    world.deaf = True
    async with polling(world):
        assert not await world.listener.prove()
        world.deaf = False
        [body] = world.world.published
        world.world.send(body)
        await until(lambda: world.listener.hears)


async def test_proving_goes_on_in_the_background_then_catches_up(world: World) -> None:
    await world.listener.open()
    world.deaf = True
    async with polling(world):
        world.listener.prove_later()
        await until(lambda: len(world.world.published) == 3)
        assert (world.listener.hears, world.caught_up) == (False, 0)
        world.deaf = False
        await until(lambda: world.listener.hears and world.caught_up == 1)


async def test_greetings_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "GREETINGS_MAX", 2)
    assert GREETINGS_MAX >= 2
    await world.listener.open()
    world.deaf = True
    async with polling(world):
        world.listener.prove_later()
        await until(lambda: world.caught_up == 1)
        assert len(world.world.published) == 2


async def test_a_queue_that_is_gone_is_rebuilt_proved_and_caught_up(world: World) -> None:
    """I5."""
    await world.listener.open()
    first = world.name
    async with polling(world):
        assert await world.listener.prove()
        world.world.delete_queue(first)
        await until(lambda: world.listener.hears and world.name != first)
        await until(lambda: world.caught_up == 2)
        assert set(world.world.queues) == world.world.subscriptions == {world.name}
        assert world.existing_when_told == [False, False]


async def test_what_was_missed_is_read_at_once_and_what_came_until_the_proof_after_it(
    world: World,
) -> None:
    """Greetings may take long, when the topic itself is out of order."""
    await world.listener.open()
    async with polling(world):
        assert await world.listener.prove()
        world.deaf = True
        world.world.delete_queue(world.name)
        await until(lambda: world.caught_up == 1)
        # The greetings go on, and no look at the log with each of them.
        sent = len(world.world.published)
        await until(lambda: len(world.world.published) >= sent + 2)
        assert (world.listener.hears, world.caught_up) == (False, 1)
        world.deaf = False
        await until(lambda: world.listener.hears and world.caught_up == 2)


async def test_nothing_is_heard_of_between_the_loss_and_the_proof(world: World) -> None:
    await world.listener.open()
    async with polling(world):
        assert await world.listener.prove()
        held = world.fleet.traffic.hold("open")
        world.world.delete_queue(world.name)
        await held.arrived()
        assert not world.listener.hears
        assert world.caught_up == 0
        held.release()
        await until(lambda: world.caught_up == 2)


@pytest.mark.parametrize("call", ["open", "close"])
@pytest.mark.parametrize("effect", ["none", "applied"])
async def test_a_rebuild_that_fails_half_way_is_completed(
    world: World, call: str, effect: str
) -> None:
    await world.listener.open()
    async with polling(world):
        assert await world.listener.prove()
        world.world.fail_next(call, UnknownOutcome(), effect=effect, times=2)  # type: ignore[arg-type]
        world.world.delete_queue(world.name)
        await until(lambda: world.caught_up == 2)
        assert world.listener.hears
        assert set(world.world.queues) == world.world.subscriptions == {world.name}


async def test_what_a_node_may_not_remove_does_not_keep_it_from_another_queue(
    world: World,
) -> None:
    """It would be deaf, and not ready, for as long as it lives."""
    await world.listener.open()
    first = world.name
    async with polling(world):
        assert await world.listener.prove()
        world.world.fail_next("close", Rejected("no permission to unsubscribe"))
        with capture_logs() as logs:
            world.world.delete_queue(first)
            await until(lambda: world.caught_up == 2)
        assert world.listener.hears
        assert set(world.world.queues) == {world.name}
        # The queue of one of them is gone: the reaper ends that.
        assert world.world.subscriptions == {first, world.name}
    assert {"event": "queue_left_behind", "log_level": "error"}.items() <= next(
        each for each in logs if each["event"] == "queue_left_behind"
    ).items()


async def test_a_queue_that_is_lost_again_before_its_proof_is_proved_again(world: World) -> None:
    await world.listener.open()
    async with polling(world):
        assert await world.listener.prove()
        world.deaf = True
        world.world.delete_queue(world.name)
        await until(lambda: world.caught_up == 1)
        world.world.delete_queue(world.name)
        await until(lambda: len(world.opened) == 3 and world.caught_up == 2)
        world.deaf = False
        await until(lambda: world.listener.hears)
        await until(lambda: world.caught_up == 3)
        await settled()
        assert world.caught_up == 3, "the proof of the queue before it was given up"


async def test_the_end_leaves_neither_queue_nor_subscription_nor_task(world: World) -> None:
    """I6."""
    await world.listener.open()
    world.deaf = True
    world.listener.prove_later()
    await settled()
    await world.listener.close()
    await world.listener.close()
    assert (world.world.queues, world.world.subscriptions) == ({}, set())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_end_that_fails_is_told(world: World) -> None:
    await world.listener.open()
    world.world.fail_next("close", Throttled())
    with pytest.raises(PortError):
        await world.listener.close()
    await world.listener.close()
    assert world.world.queues == {}
