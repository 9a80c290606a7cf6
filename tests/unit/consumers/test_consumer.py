"""service/roomcast/consumers/consumer.py over a queue in memory: what is deleted, what comes again,
and the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from roomcast.backoff import Backoff
from roomcast.config import AwsSqsConfig, ConsumerConfig
from roomcast.consumers import consumer as module
from roomcast.consumers import consumers as consumers_module
from roomcast.consumers.consumer import Consumer
from roomcast.consumers.consumers import Consumers
from roomcast.consumers.messages import QueueMessage
from roomcast.consumers.rules import REASONS, Failed
from roomcast.delivery.ports import Gone
from roomcast.observe.counters import ConsumerCounters
from roomcast.ports import Throttled, UnknownOutcome
from roomcast.testing.memory import ManualClock
from roomcast.testing.work_queue import MemoryWorkQueue
from tests.unit.worlds import Fleet, no_jitter, settled, until

POISON = Failed("unreadable", again=False, why="the body is not JSON")
BUSY = Failed("too_many_requests", again=True)


@dataclass
class Work:
    """Carries messages out as it is told, by their bodies."""

    failures: dict[str, Failed] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    at_once: int = 0
    at_once_max: int = 0

    async def carry_out(self, message: QueueMessage, form: AwsSqsConfig, received_ms: int) -> None:
        self.begun.append(message.body)
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        try:
            if event := self.held.get(message.body):
                await event.wait()
            await asyncio.sleep(0)
            if failure := self.failures.get(message.body):
                raise failure
            self.done.append(message.body)
        finally:
            self.at_once -= 1


class World:
    def __init__(self, **form: Any) -> None:
        self.clock = ManualClock()
        self.form = replace(AwsSqsConfig(), **form)
        self.queue = MemoryWorkQueue(
            self.clock, receives_max=3, messages_max=self.form.max_number_of_messages
        )
        self.work = Work()
        self.counters = ConsumerCounters(failed=dict.fromkeys(REASONS, 0))
        self.consumer = Consumer(
            "orders", self.queue, self.form, self.work, self.clock, no_jitter, self.counters
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.consumer.run())
        try:
            yield task
        finally:
            self.consumer.stop()
            self.consumer.give_up()
            await task


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES", Backoff(0.0, 0.0))


async def test_what_is_done_is_deleted_and_the_rest_comes_again() -> None:
    world = World()
    world.work.failures = {"poison": POISON, "busy": BUSY}
    for body in ("one", "poison", "busy", "two"):
        world.queue.send(body)
    async with world.running():
        await until(lambda: len(world.queue) == 2)
        assert sorted(world.work.done) == ["one", "two"]
        assert (
            world.counters.failed["unreadable"] == world.counters.failed["too_many_requests"] == 1
        )
        # What may succeed comes again after some seconds, and poison with its visibility time-out.
        world.clock.advance(3)
        await until(lambda: world.work.begun.count("busy") == 2)
        await settled()
        assert world.work.begun.count("poison") == 1
        del world.work.failures["busy"]
        world.clock.advance(30)
        await until(lambda: world.work.done.count("busy") == 1)
        for _ in range(2):
            world.clock.advance(30)
            await settled()
        await until(lambda: world.queue.dead == ["poison"])
    assert world.work.begun.count("poison") == 3
    assert len(world.queue) == 0
    assert world.counters.done == 3


async def test_a_group_does_not_go_on_after_a_failure() -> None:
    world = World()
    world.work.failures = {"a1": BUSY}
    for body in ("a0", "a1", "b0", "a2", "b1"):
        world.queue.send(body, group=body[0])
    async with world.running():
        await until(lambda: len(world.queue) == 2)
        assert world.work.done == ["a0", "b0", "b1"]
        assert "a2" not in world.work.begun
        world.work.failures = {}
        world.clock.advance(3)
        await until(lambda: len(world.queue) == 0)
    assert [body for body in world.work.done if body[0] == "a"] == ["a0", "a1", "a2"]
    assert world.counters.left == 1


@pytest.mark.parametrize("most, expected", [(1, 1), (3, 3), (10, 4)])
async def test_no_more_is_under_way_than_is_allowed(most: int, expected: int) -> None:
    world = World(max_concurrency=most, max_number_of_messages=4)
    held = asyncio.Event()
    bodies = [str(number) for number in range(20)]
    world.work.held = dict.fromkeys(bodies, held)
    for body in bodies:
        world.queue.send(body)
    async with world.running():
        await until(lambda: world.work.at_once == expected)
        await settled()
        assert world.counters.messages == 4, "nothing more is received meanwhile"
        held.set()
        await until(lambda: len(world.queue) == 0)
    assert world.work.at_once_max == expected
    if most == 1:
        assert world.work.done == bodies, "in their order"


async def test_at_the_end_what_is_under_way_is_done_and_the_rest_comes_again_at_once() -> None:
    world = World(max_concurrency=1)
    held = world.work.held["one"] = asyncio.Event()
    for body in ("one", "two", "three"):
        world.queue.send(body)
    async with world.running() as task:
        await until(lambda: world.work.begun == ["one"])
        world.consumer.stop()
        await settled()
        assert not task.done()
        held.set()
        await until(task.done)
    assert world.work.done == ["one"]
    again = await world.queue.receive()
    assert [message.body for message in again] == ["two", "three"]


async def test_what_takes_too_long_at_the_end_comes_again_at_once() -> None:
    world = World()
    world.work.held["slow"] = asyncio.Event()
    for body in ("slow", "quick"):
        world.queue.send(body)
    async with world.running() as task:
        await until(lambda: world.work.done == ["quick"])
        world.consumer.stop()
        world.consumer.give_up()
        await until(task.done)
    assert [message.body for message in await world.queue.receive()] == ["slow"]


async def test_the_end_of_a_long_poll_is_not_waited_for() -> None:
    world = World()
    world.queue._wait_s = 3600.0
    async with world.running() as task:
        await settled()
        world.consumer.stop()
        await until(task.done)


async def test_what_others_may_have_already_is_left_to_them() -> None:
    world = World(max_concurrency=1, visibility_timeout_s=30)
    held = world.work.held["one"] = asyncio.Event()
    for body in ("one", "two"):
        world.queue.send(body)
    async with world.running():
        await until(lambda: world.work.begun == ["one"])
        # As after a suspension.
        world.clock.advance(30)
        held.set()
        await until(lambda: world.counters.left == 1)
        await until(lambda: "two" in world.work.done)
    assert world.work.done == ["one", "two"]


async def test_a_receive_or_a_delete_that_fails_is_tried_again() -> None:
    world = World()
    world.queue.fail_next = {
        "receive": [Throttled("slow down"), Gone("no queue")],
        "delete": [UnknownOutcome("no answer")],
        "receives_max": [UnknownOutcome("no answer")],
    }
    world.queue.send("one")
    with capture_logs() as logs:
        async with world.running():
            await until(lambda: world.work.done == ["one"])
            await until(lambda: world.counters.delete_failures == 1)
            assert len(world.queue) == 1
            world.clock.advance(30)
            await until(lambda: len(world.queue) == 0)
    assert world.work.done == ["one", "one"], "its key makes them one publication"
    assert world.counters.receives["failed"] == 2
    assert [log["event"] for log in logs] == [
        "consumer_queue_not_read",
        "consumer_receive_failed",
        "consumer_receive_failed",
        "consumer_delete_failed",
    ]


async def test_a_cause_is_logged_once_a_second_and_no_content() -> None:
    world = World()
    world.work.failures = {f"secret{number}": POISON for number in range(9)}
    for body in world.work.failures:
        world.queue.send(body)
    with capture_logs() as logs:
        async with world.running():
            await until(lambda: world.counters.failed["unreadable"] == 9)
            world.clock.advance(30)
            await until(lambda: world.counters.failed["unreadable"] == 18)
    failed = [log for log in logs if log["event"] == "consumer_message_failed"]
    assert [log["passed_over"] for log in failed] == [0, 8]
    assert failed[0]["reason"] == "unreadable"
    assert failed[0]["consumer"] == "orders"
    assert "secret" not in str(logs)


@pytest.mark.parametrize(
    "receives_max, expected", [(0, ["consumer_without_dead_letters"]), (3, [])]
)
async def test_a_queue_without_dead_letters_is_warned_of(
    receives_max: int, expected: list[str]
) -> None:
    world = World()
    world.queue._receives_max = receives_max
    with capture_logs() as logs:
        async with world.running():
            await until(lambda: world.counters.receives["empty"])
    assert [log["event"] for log in logs] == expected


async def test_the_age_of_the_oldest_message() -> None:
    world = World()
    held = world.work.held["one"] = asyncio.Event()
    world.queue.send("one")
    world.clock.advance(7)
    world.queue.send("two")
    async with world.running():
        await until(lambda: world.work.begun)
        assert world.counters.age_s == 7.0
        held.set()
        await until(lambda: world.counters.age_s == 0.0)


# ---- all consumers of a node


def configured(*names: str, enabled: bool = True) -> list[ConsumerConfig]:
    return [
        ConsumerConfig(name, enabled, "aws_sqs", AwsSqsConfig(queues=("https://a/1/b",)))
        for name in names
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def within(seconds: float) -> None:
        for name in ("FINISH_S", "SETTLE_S"):
            monkeypatch.setattr(consumers_module, name, seconds)

    return within


async def test_consumers_run_until_their_end_and_none_that_is_off() -> None:
    clock, fleet = ManualClock(), Fleet()
    queue = MemoryWorkQueue(clock, receives_max=3)
    node = fleet.node()
    consumers = Consumers(
        [*configured("orders"), *configured("off", enabled=False)],
        lambda _config, _url: queue,
        node.assembly.node,
        fleet.clock,
        no_jitter,
        message_size_limit=4096,
    )
    assert list(consumers.counters) == ["orders"]
    queue.send('{"method": "publish", "payload": {"channel": "lobby", "data": 1}}')
    task = asyncio.create_task(consumers.run())
    await until(lambda: len(queue) == 0)
    await consumers.end()
    await consumers.end()
    assert not task.done(), "whoever started it would take that for a fault"
    queue.send("{}")
    await settled()
    assert len(queue) == 1
    assert len(fleet.world.stream) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_end_that_is_not_heard_has_a_bound(
    impatient: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(0.01)
    fleet = Fleet()
    queue = MemoryWorkQueue(fleet.clock, receives_max=3)

    async def never(_receipts: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(queue, "delete", never)
    consumers = Consumers(
        configured("orders"),
        lambda _config, _url: queue,
        fleet.node().assembly.node,
        fleet.clock,
        no_jitter,
        message_size_limit=4096,
    )
    queue.send('{"method": "publish", "payload": {"channel": "lobby", "data": 1}}')
    task = asyncio.create_task(consumers.run())
    await until(lambda: fleet.world.stream)
    with capture_logs() as logs:
        await consumers.end()
    assert [log["event"] for log in logs] == ["consumers_not_ended"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
