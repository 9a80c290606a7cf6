"""Nodes over memory that subscribe to topic shards: what they hear, parse, miss and read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from math import inf
from random import Random
from typing import Any, Final

import pytest

from roomcast.config import AwsConfig
from roomcast.delivery import shard_keeper as keeper_module
from roomcast.delivery.canary_rules import canary_item
from roomcast.delivery.envelope import checked_pubs, pack, parse, record_text
from roomcast.delivery.hub import Hub
from roomcast.delivery.intake import Intake
from roomcast.delivery.shard_keeper import ShardBook, ShardKeeper
from roomcast.delivery.shard_rules import IDLE_S, TOLD_AFTER_S
from roomcast.delivery.shards import homes, shard_of
from roomcast.delivery.way import Way
from roomcast.log.item import LogItem
from roomcast.ports import Rejected
from roomcast.testing.memory import MemoryQueue, MemoryTopic
from roomcast.wire.publication import Record
from stream_lambda.handler import plan
from tests.contract.items import log_item
from tests.unit.worlds import (
    Client,
    Deaf,
    Fleet,
    LocalNode,
    config,
    ids,
    local_node,
    one_topic,
    settled,
    until,
)

SHARDS: Final = 4
CHANNEL: Final = "room"
ITS_SHARD: Final = shard_of(CHANNEL, SHARDS)


class World:
    """A fleet whose Lambda goes by `shards` topic shards."""

    def __init__(self, shards: int = SHARDS) -> None:
        self.fleet = Fleet()
        self.world = self.fleet.world
        self.shards = shards
        self.nodes: list[LocalNode] = []
        self.canary = 0
        self.world.on_insert.append(self._broadcast)

    def _broadcast(self, item: LogItem) -> None:
        text = record_text(item, checked_pubs(item))
        for home in homes(item.channel, self.shards):
            for body, _ in pack([text], shards=self.shards, shard=home):
                self.world.send(body, home)

    def emit(self) -> None:
        """A canary, as if another node had written it."""
        self.canary += 1
        now = self.fleet.clock.now_ms()
        self._broadcast(canary_item(self.canary, node="x", batch="b", now=now, generation="0"))

    @asynccontextmanager
    async def node(self, name: str, shards: int = SHARDS) -> AsyncIterator[LocalNode]:
        configured = replace(config(), aws=AwsConfig(topic_shards=shards))
        node = local_node(self.world, self.fleet.clock, name, configured)
        async with node.running():
            keeper = asyncio.create_task(node.assembly.shard_keeper.run())
            self.nodes.append(node)
            try:
                yield node
            finally:
                self.nodes.remove(node)
                keeper.cancel()
                [end] = await asyncio.gather(keeper, return_exceptions=True)
                await node.close()
        assert isinstance(end, asyncio.CancelledError), end

    async def advance(self, seconds: float) -> None:
        """Time passes, second by second."""
        while seconds > 0:
            self.fleet.clock.advance(min(seconds, 1.0))
            seconds -= 1.0
            for node in self.nodes:
                node.assembly.shards.changed.set()
            await settled()

    def subscribers(self, shard: int = ITS_SHARD) -> Sequence[str]:
        return self.world.subscribers(shard)


def shards_of(node: LocalNode) -> tuple[int, int]:
    """How many topic shards it wants, and hears."""
    return node.assembly.shards.plan.wanted, node.assembly.shards.plan.heard


async def subscribed(node: LocalNode, channel: str = CHANNEL) -> Client:
    client = await node.client()
    assert isinstance(await client.subscribe(channel), dict)
    return client


async def test_a_node_hears_the_topic_shards_of_its_channels_only() -> None:
    world = World()
    async with world.node("a") as a, world.node("b") as b:
        client = await subscribed(a)
        await until(lambda: shards_of(a) == (1, 1))
        assert world.subscribers() == [a.queue_names[-1]]
        assert a.assembly.shard_keeper.counters.steps == {"heard": 1, "left": 0, "failed": 0}
        publisher = await b.client()
        await publisher.publish(CHANNEL, "heard")
        await until(lambda: client.socket.published(CHANNEL) == ["heard"])
        assert b.assembly.poller.counters.messages == 1, "its own greeting at the start"
        assert shards_of(b) == (0, 0)


async def test_what_is_published_before_a_subscription_takes_effect_is_read_from_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """I3, I4: and the subscriber need not wait for it."""
    monkeypatch.setattr(keeper_module, "GREETING_WAIT_S", 60.0)
    world = World()
    async with world.node("a") as a, world.node("b") as b:
        subscribing = world.fleet.traffic.hold("subscribe", "sent")
        client = await subscribed(a)
        await subscribing.arrived()
        publisher = await b.client()
        await publisher.publish(CHANNEL, "unheard")
        await settled()
        assert client.socket.published(CHANNEL) == []
        subscribing.release()
        await until(lambda: client.socket.published(CHANNEL) == ["unheard"])


async def test_while_it_cannot_be_subscribed_its_channels_are_looked_at() -> None:
    world = World()
    world.world.fail_next("subscribe", Rejected("no permission"), times=1000)
    async with world.node("a") as a, world.node("b") as b:
        client = await subscribed(a)
        publisher = await b.client()
        for number in range(5):
            await publisher.publish(CHANNEL, number)
            await world.advance(31.0)
            assert client.socket.published(CHANNEL) == list(range(number + 1))
        assert shards_of(a) == (1, 0)
        assert a.assembly.node.health.doubts() == [
            f"topic shards that are not heard: {ITS_SHARD}: their channels are read from the log"
        ]
        assert not a.assembly.node.health.reasons()
        assert a.assembly.shard_keeper.counters.steps["failed"] > 2


async def test_a_topic_shard_is_left_long_after_its_last_channel() -> None:
    world = World()
    async with world.node("a") as a:
        client = await subscribed(a)
        await until(lambda: shards_of(a) == (1, 1))
        await client.ask("unsubscribe", channel=CHANNEL)
        await world.advance(IDLE_S - 1.0)
        assert world.subscribers()
        await world.advance(2.0)
        assert world.subscribers() == []
        assert a.assembly.shard_keeper.counters.steps["left"] == 1
        await client.subscribe(CHANNEL)
        await world.advance(5.0)
        assert shards_of(a) == (1, 1)


async def test_a_lost_subscription_comes_back() -> None:
    world = World()
    async with world.node("a") as a, world.node("b") as b:
        client = await subscribed(a)
        world.emit()
        await until(lambda: shards_of(a) == (1, 1))
        world.world.unsubscribe(a.queue_names[-1], ITS_SHARD)
        publisher = await b.client()
        await publisher.publish(CHANNEL, "unheard")
        world.emit()
        await settled()
        assert client.socket.published(CHANNEL) == []
        await world.advance(16.0)
        assert client.socket.published(CHANNEL) == ["unheard"]
        assert world.subscribers() == [a.queue_names[-1]]
        world.emit()
        await settled()
        assert a.assembly.node.health.doubts() == []


async def test_another_queue_is_subscribed_and_nobody_subscribes_the_old_one_any_more() -> None:
    """I6: a call that was under way when the queue was removed would leave a subscription."""
    world = World()
    async with world.node("a") as a:
        await subscribed(a)
        await until(lambda: shards_of(a) == (1, 1))
        subscribing = world.fleet.traffic.hold("subscribe", "call")
        other = next(name for name in "abcdefgh" if shard_of(name, SHARDS) != ITS_SHARD)
        await subscribed(a, other)
        await world.advance(2.0)
        await subscribing.arrived()
        old = a.queue_names[-1]
        world.world.delete_queue(old)
        await until(lambda: len(a.queue_names) == 2)
        subscribing.release()
        await world.advance(10.0)
        assert shards_of(a) == (2, 2)
        for shard in (None, *range(SHARDS)):
            assert set(world.world.subscribers(shard)) <= {a.queue_names[-1]}


async def test_while_the_queue_is_being_replaced_nothing_is_subscribed() -> None:
    world = World()
    async with world.node("a") as a:
        opening = world.fleet.traffic.hold("open")
        await subscribed(a)
        await until(lambda: shards_of(a) == (1, 1))
        before = world.fleet.traffic.calls["subscribe"]
        world.world.delete_queue(a.queue_names[-1])
        await opening.arrived()
        other = next(name for name in "abcdefgh" if shard_of(name, SHARDS) != ITS_SHARD)
        await subscribed(a, other)
        await world.advance(10.0)
        assert world.fleet.traffic.calls["subscribe"] == before
        opening.release()
        await until(lambda: len(a.queue_names) == 2)
        await world.advance(10.0)
        assert shards_of(a) == (2, 2)


async def test_at_the_end_no_subscription_is_left() -> None:
    world = World()
    async with world.node("a") as a:
        await subscribed(a)
        await until(lambda: shards_of(a) == (1, 1))
    assert not any(world.subscribers(shard) for shard in range(SHARDS))


# ---- the number of topic shards changes


async def test_nodes_first_and_then_the_lambda_changes_without_a_gap() -> None:
    """From one topic to four topic shards, and on to eight by way of one. What is published is
    heard at each step: nothing is read from the log for it.
    """
    world = World(shards=1)
    async with AsyncExitStack() as fours:
        async with world.node("old", 1) as old:
            client = await subscribed(old)
            await _all_hear(world, [client], "one topic")
            four = await fours.enter_async_context(world.node("four", 4))
            of_four = await subscribed(four)
            await until(lambda: world.subscribers(shard_of(CHANNEL, 4)))
            await _all_hear(world, [client, of_four], "nodes of both numbers")
        world.shards = 4
        await _all_hear(world, [of_four], "four")
        assert four.assembly.shards.plan.told == 4
        world.shards = 1
        await _all_hear(world, [of_four], "one again")
        async with world.node("eight", 8) as eight:
            of_eight = await subscribed(eight)
            await until(lambda: world.subscribers(shard_of(CHANNEL, 8)))
            await _all_hear(world, [of_four, of_eight], "nodes of four and of eight")
            await fours.aclose()
            world.shards = 8
            await _all_hear(world, [of_eight], "eight")


async def _all_hear(world: World, clients: Iterable[Client], data: str) -> None:
    """Another program publishes, and all of `clients` get it without a look at the log."""
    log = world.nodes[0].assembly.log
    reads = world.fleet.traffic.reads
    tail = (await log.resolve(CHANNEL)).tail
    item = log_item(tail.top + 1, channel=CHANNEL, epoch=tail.epoch, text=data)
    used = world.fleet.traffic.reads - reads
    world.world.items[CHANNEL][item.offset] = item
    world._broadcast(item)
    await until(lambda: all(data in each.socket.published(CHANNEL) for each in clients))
    assert world.fleet.traffic.reads - reads == used, "it was heard"


@pytest.mark.parametrize("own", [1, 8])
async def test_a_lambda_that_goes_by_a_number_of_its_own_is_made_up_for(own: int) -> None:
    """Nothing is lost, and the node says what is wrong."""
    world = World(shards=4)
    async with world.node("a", own) as a, world.node("b", own) as b:
        client = await subscribed(a)
        await world.advance(5.0)
        publisher = await b.client()
        await publisher.publish(CHANNEL, "before it is known")
        world.emit()
        await world.advance(2.0)
        assert client.socket.published(CHANNEL) == ["before it is known"]
        await publisher.publish(CHANNEL, "later")
        await world.advance(31.0)
        assert client.socket.published(CHANNEL) == ["before it is known", "later"]
        [doubt] = a.assembly.node.health.doubts()
        assert doubt.startswith(
            f"the stream Lambda publishes to 4 topic shards, and aws.topic_shards is {own}"
        )


# ---- what is parsed


class Channel:
    """An open channel that has nothing yet."""

    def __init__(self) -> None:
        self.offered = 0

    def has(self, epoch: str, last: int) -> bool:
        return False

    def offer(self, records: Iterable[Record]) -> None:
        self.offered += len(list(records))


class Instance:
    """What parses an instance's messages, with `channels` open. Counts the records in them."""

    def __init__(self, fleet: Fleet, name: str, channels: Sequence[str], shards: int) -> None:
        deaf = Deaf()
        self.channels = {channel: Channel() for channel in channels}
        self.book = ShardBook(shards, deaf, fleet.clock, lambda: 0.0)
        self.queue = MemoryQueue(fleet.world, 0.001)
        self.name = name
        self.intake = Intake(
            name, self.channels, Hub(), deaf, self.book, lambda _: False, way=Way(fleet.clock)
        )
        self.keeper = ShardKeeper(
            self.book,
            self.queue,
            MemoryTopic(fleet.world),
            fleet.clock,
            ids(name),
            lambda: 0.0,
            node=name,
            catch_up=deaf,
        )
        self.parsed = 0

    async def start(self) -> None:
        await self.queue.open(f"queue-{self.name}")
        for channel in self.channels:
            self.book.opened(channel)

    async def drain(self) -> None:
        """Take all that is in the queue."""
        while messages := await self.queue.receive():
            for message in messages:
                envelope = parse(message.body, readers={})
                self.parsed += envelope.unwanted
            self.intake.take([message.body for message in messages])
            await self.queue.delete([message.receipt for message in messages])

    @property
    def heard(self) -> bool:
        return self.book.plan.heard == self.book.plan.wanted


def appends(channels: Sequence[str]) -> list[dict[str, Any]]:
    """Stream records of an append to each channel."""
    items = [log_item(1, channel=channel) for channel in channels]
    return [
        {
            "eventName": "INSERT",
            "dynamodb": {
                "Keys": {"offset": {"N": "1"}},
                "NewImage": item.attributes(),
                "SequenceNumber": str(number),
            },
        }
        for number, item in enumerate(items)
    ]


@pytest.mark.parametrize("shards", [1, 16])
async def test_each_instance_parses_its_share(shards: int) -> None:
    """50 instances and 10,000 channels, whose clients come to instances by topic shard."""
    fleet = Fleet()
    names = [f"room:{number}" for number in range(10_000)]
    served: list[list[str]] = [[] for _ in range(50)]
    turns: Counter[int] = Counter()
    for name in names:
        shard = shard_of(name, 16)
        its_instances = range(shard, 50, 16)
        served[its_instances[turns[shard] % len(its_instances)]].append(name)
        turns[shard] += 1
    instances = [Instance(fleet, f"i{n}", channels, shards) for n, channels in enumerate(served)]
    async with AsyncExitStack() as stack:
        for each in instances:
            await each.start()
            task = asyncio.create_task(each.keeper.run())
            stack.callback(task.cancel)
        while not all(each.heard for each in instances):
            for each in instances:
                await each.drain()
        for start in range(0, len(names), 100):
            event = {"Records": appends(names[start : start + 100])}
            for entry in plan(event, shards=shards).entries:
                fleet.world.send(entry.body, entry.shard)
        for each in instances:
            await each.drain()
    for each in instances:
        assert all(channel.offered == 1 for channel in each.channels.values()), "it has its own"
    parsed = [each.parsed for each in instances]
    if shards == 1:
        assert parsed == [10_000] * 50
    else:
        assert max(parsed) < 10_000 / 16 * 1.2
        assert sum(parsed) < 50 * 10_000 / 16 * 1.05


@pytest.mark.parametrize("channels, share", [(1, 0.0625), (10, 0.48), (200, 1.0)])
def test_without_a_place_for_each_topic_shard_an_instance_soon_needs_all(
    channels: int, share: float
) -> None:
    """docs/scaling.md: of 16, an instance with c channels at random needs 1 - (15/16)^c."""
    random = Random(1)
    needed = [
        len({shard_of(f"room:{random.getrandbits(64):x}", 16) for _ in range(channels)}) / 16
        for _ in range(500)
    ]
    assert sum(needed) / len(needed) == pytest.approx(share, abs=0.02)
    assert 1 - (15 / 16) ** channels == pytest.approx(share, abs=0.02)


def test_without_topic_shards_nothing_is_ever_due() -> None:
    book = one_topic(Fleet().clock)
    book.opened("a")
    book.wrote("a")
    book.came(None, 1, 5)
    assert book.plan.next_s() == inf
    assert not book.changed.is_set()
    assert TOLD_AFTER_S > 0
