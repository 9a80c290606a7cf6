"""Express hints: what is sent ahead of the stream, at which rate, and what it does elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from roomcast.backoff import Backoff
from roomcast.config import AwsConfig, Config
from roomcast.delivery import express as express_module
from roomcast.delivery import node_count as node_count_module
from roomcast.delivery.allowance import Allowance
from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX, parse
from roomcast.delivery.express import (
    HINT_BYTES_MAX,
    PUBLISHES_AT_ONCE,
    STALE_S,
    WAITING_BYTES_MAX,
    Express,
)
from roomcast.delivery.node_count import NodeCount
from roomcast.delivery.resequencer import EXPRESS_HELD_S
from roomcast.delivery.shards import shard_of
from roomcast.log.item import LogItem
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import MemoryTopic
from roomcast.wire.channels import ChannelRules
from tests.contract.items import log_item
from tests.unit.worlds import (
    GAP_WAIT_S,
    HISTORY,
    Client,
    Fleet,
    LocalNode,
    config,
    envelope,
    local_node,
    logged,
    no_jitter,
    running,
    settled,
    until,
)

ROOM: Final = "fast:room"
RULES: Final = ChannelRules(HISTORY, {"fast": replace(HISTORY, express=True)})


@dataclass
class Nodes:
    """A FleetSize."""

    number: int = 1
    error: PortError | None = None
    asked: int = 0

    async def live_nodes(self) -> int:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.number


def appended(offset: int = 1, size: int = 0, channel: str = ROOM) -> LogItem:
    pubs = json.dumps([{"data": "x" * size or offset}])
    return replace(log_item(offset, channel=channel), pubs=pubs)


class World:
    def __init__(self, per_s: float = 100.0, shards: int = 1, allowed_s: float = 1000.0) -> None:
        self.fleet = Fleet()
        self.nodes = Nodes()
        self.allowance = Allowance(allowed_s)
        self.express = Express(
            MemoryTopic(self.fleet.world),
            self.fleet.clock,
            no_jitter,
            RULES,
            self.allowance,
            node="a",
            shards=shards,
            per_s=per_s,
        )

    @property
    def sent(self) -> list[list[tuple[str, int]]]:
        """Channel and offset of the hints in each message."""
        return [
            [(record.channel, record.offset) for record in parse(body).express]
            for body in self.fleet.world.published
        ]

    @property
    def hints(self) -> dict[str, int]:
        return {name: count for name, count in self.express.counters.hints.items() if count}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        count = NodeCount((self.allowance, self.express), no_jitter)
        async with running(self.express.run()), running(count.run(self.nodes)):
            await until(lambda: self.nodes.asked)
            await settled()
            yield


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.running():
        yield world


# ---- what is sent


async def test_what_is_appended_in_one_turn_goes_in_one_message(world: World) -> None:
    for offset in range(1, 6):
        world.express.offer(appended(offset))
    world.express.offer(appended(1, channel="fast:other"))
    await until(lambda: world.hints == {"sent": 6})
    assert world.sent == [[*((ROOM, offset) for offset in range(1, 6)), ("fast:other", 1)]]
    assert world.express.counters.messages == {"sent": 1, "not_sent": 0}


async def test_a_hint_is_what_the_log_has(world: World) -> None:
    item = replace(log_item(3, 4, channel=ROOM), pubs='[{"data":"\uffff"},{"data":2,"time":7}]')
    world.express.offer(item)
    await until(lambda: world.sent)
    [body] = world.fleet.world.published
    assert "\uffff" not in body, "SQS does not take it"
    [record] = parse(body).express
    assert (record.epoch, record.offset, record.last, record.ts) == (item.epoch, 3, 4, item.ts)
    assert [(each.offset, each.data, each.time) for each in record.publications or ()] == [
        (3, "\uffff", 0),
        (4, 2, 7),
    ]
    assert record.express


async def test_an_older_node_finds_nothing_in_it(world: World) -> None:
    world.express.offer(appended())
    await until(lambda: world.sent)
    [body] = world.fleet.world.published
    # It looks at records and signals, and an envelope without records is no sign of the stream.
    assert json.loads(body).keys() == {"v", "node", "express"}


async def test_only_channels_with_the_option_have_hints(world: World) -> None:
    for channel in ("room", "slow:room"):
        world.express.offer(appended(channel=channel))
    await settled()
    assert world.sent == []
    assert world.hints == {}


async def test_a_hint_goes_through_the_topic_of_its_channels_shard() -> None:
    world = World(shards=4)
    memory = world.fleet.world
    for shard in (None, *range(4)):
        memory.create_queue(str(shard))
        memory.subscribe(str(shard), shard)
    async with world.running():
        world.express.offer(appended())
        await until(lambda: world.sent)
    got = [name for name, queue in memory.queues.items() if queue.waiting]
    assert got == [str(shard_of(ROOM, 4))]


# ---- bounds


async def test_nothing_is_sent_before_the_nodes_are_counted() -> None:
    world = World()
    world.nodes.error = UnknownOutcome("no answer")
    async with world.running():
        world.express.offer(appended())
        await settled()
    assert world.sent == []
    assert world.hints == {"shed": 1}
    assert world.express.per_s == 0


async def test_each_node_takes_its_part_of_the_rate() -> None:
    world = World(per_s=100.0)
    world.nodes.number = 4
    async with world.running():
        assert world.express.per_s == 25


async def test_signals_come_before_hints() -> None:
    world = World(per_s=100.0, allowed_s=4.0)
    async with world.running():
        # Half of what may go at once is left to signals.
        for sent in (1, 2, 2):
            world.express.offer(appended())
            await until(lambda sent=sent: len(world.sent) == sent)  # type: ignore[misc]
            await settled()
        assert world.allowance.wait_s(world.fleet.clock.monotonic_s()) == 0
        world.fleet.clock.advance(STALE_S)
        await until(lambda: world.hints == {"sent": 2, "shed": 1})


async def test_the_last_count_goes_on_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_count_module, "COUNT_S", 0.0)
    monkeypatch.setattr(node_count_module, "_COUNTS_AGAIN", Backoff(0.0, 0.0))
    world = World(per_s=100.0)
    async with world.running():
        world.nodes.number, world.nodes.error = 50, Throttled("later")
        asked = world.nodes.asked
        await until(lambda: world.nodes.asked > asked + 2)
        assert world.express.per_s == 100
        world.nodes.error = None
        await until(lambda: world.express.per_s == 2)


async def test_beyond_the_rate_hints_wait_and_share_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(per_s=10.0)
    async with world.running():
        # The node may send two at once, a fifth of its rate; the clock stands still.
        for offset in range(1, 6):
            world.express.offer(appended(offset))
            await settled()
        assert world.sent == [[(ROOM, 1)], [(ROOM, 2)]]
        world.fleet.clock.advance(0.1)
        await until(lambda: len(world.sent) == 3)
        assert world.sent[2] == [(ROOM, 3), (ROOM, 4), (ROOM, 5)]


async def test_what_waited_for_too_long_is_dropped(world: World) -> None:
    held = world.fleet.traffic.hold("publish")
    for offset in range(1, PUBLISHES_AT_ONCE + 1):
        world.express.offer(appended(offset))
        await settled()
    assert held.count == PUBLISHES_AT_ONCE
    world.express.offer(appended(98))
    await settled()
    world.fleet.clock.advance(STALE_S)
    world.express.offer(appended(99))
    held.release()
    await until(lambda: world.hints == {"sent": PUBLISHES_AT_ONCE + 1, "shed": 1})
    assert world.sent[-1] == [(ROOM, 99)]


async def test_what_is_too_large_or_too_much_is_dropped(world: World) -> None:
    world.express.offer(appended(size=HINT_BYTES_MAX))
    assert world.hints == {"too_large": 1}
    size = HINT_BYTES_MAX - 1000
    for offset in range(1, 2 * WAITING_BYTES_MAX // size):
        world.express.offer(appended(offset, size))
    await until(lambda: world.hints.get("sent", 0) + world.hints["shed"] == offset)
    assert (
        size * world.hints["sent"] <= WAITING_BYTES_MAX < (size + 1000) * (world.hints["sent"] + 1)
    )
    assert all(len(body) <= ENVELOPE_BYTES_MAX for body in world.fleet.world.published)
    assert world.express._bytes == 0


async def test_a_failure_pauses_all_hints_and_longer_each_time(world: World) -> None:
    clock, memory = world.fleet.clock, world.fleet.world
    for pause_s in (0.5, 1.0):  # the least of the pause: there is no jitter
        memory.fail_next("publish", Throttled("too many"))
        world.express.offer(appended())
        await until(lambda: not world.fleet.world._faults["publish"])
        await settled()
        shed = world.hints.get("shed", 0)
        clock.advance(pause_s - 0.01)
        world.express.offer(appended())
        world.express.offer(appended(channel="fast:other"))
        assert world.hints["shed"] == shed + 2
        clock.advance(0.02)
    world.express.offer(appended(7))
    await until(lambda: world.hints.get("sent") == 1)
    assert world.sent == [[(ROOM, 7)]]
    assert world.express._failures == 0


async def test_a_topic_that_refuses_pauses_its_own_hints() -> None:
    world = World(shards=2)
    names = {shard_of(name, 2): name for name in (f"fast:{number}" for number in range(9))}
    async with world.running():
        world.fleet.world.fail_next("publish", Rejected("no such topic"))
        world.express.offer(appended(channel=names[0]))
        await until(lambda: world.hints == {"not_sent": 1})
        world.express.offer(appended(channel=names[0]))
        assert world.hints == {"not_sent": 1, "shed": 1}
        world.express.offer(appended(channel=names[1]))
        await until(lambda: world.sent == [[(names[1], 1)]])


async def test_a_topic_that_hangs_holds_up_nothing_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(express_module, "PUBLISH_LIMIT_S", 0.0)
    world.fleet.traffic.hold("publish")
    world.express.offer(appended())
    await until(lambda: world.hints == {"not_sent": 1})
    assert not world.express._places.locked()


# ---- what it does elsewhere


def fleet_config(**changes: Any) -> Config:
    return replace(config(rules=RULES), aws=replace(AwsConfig(), **changes))


class Pair:
    """A node that writes, and one that reads. The stream brings what a test lets it bring."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.writer, self.reader = self._node("writer"), self._node("reader")

    def _node(self, name: str) -> LocalNode:
        return local_node(self.fleet.world, self.fleet.clock, name, fleet_config())

    def stream(self, *items: LogItem) -> None:
        """The stream brings `items`, or all that there are."""
        own = [each for each in self.fleet.world.stream if each.channel == ROOM]
        self.fleet.world.send(envelope(items or own))

    @property
    def heard(self) -> dict[str, int]:
        return self.reader.assembly.intake.express


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    async with (
        pair.writer.running(),
        pair.reader.running(),
        running(pair.writer.assembly.express.run()),
        running(pair.writer.assembly.node_count.run(Nodes(2))),
    ):
        await until(lambda: pair.writer.assembly.express.per_s)
        yield pair


async def test_a_publication_arrives_by_its_hint_and_its_record_is_a_repeat(pair: Pair) -> None:
    bob, ann = await pair.reader.client(), await pair.writer.client()
    await bob.subscribe(ROOM)
    await ann.publish(ROOM, "hello")
    await until(lambda: bob.socket.published(ROOM) == ["hello"])
    assert pair.heard == {"first": 1, "late": 0}
    before = pair.reader.assembly.poller.counters.messages
    pair.stream()
    await until(lambda: pair.reader.assembly.poller.counters.messages > before)
    await settled()
    assert bob.socket.published(ROOM) == ["hello"]
    assert logged(pair.fleet.world, ROOM) == ["hello"]


async def test_a_hint_that_comes_late_is_dropped(pair: Pair) -> None:
    bob, ann = await pair.reader.client(), await pair.writer.client()
    await bob.subscribe(ROOM)
    held = pair.fleet.traffic.hold("publish")
    await ann.publish(ROOM, "hello")
    await held.arrived()
    pair.stream()
    await until(lambda: bob.socket.published(ROOM) == ["hello"])
    held.release()
    await until(lambda: pair.heard == {"first": 0, "late": 1})
    assert bob.socket.published(ROOM) == ["hello"]


async def test_what_is_not_in_the_log_is_not_sent(pair: Pair) -> None:
    bob, ann = await pair.reader.client(), await pair.writer.client()
    await bob.subscribe(ROOM)
    held = pair.fleet.traffic.hold("put_item", "sent")
    [asked] = await ann.say({"publish": {"channel": ROOM, "data": "hello"}})
    await held.arrived()
    await settled()
    assert pair.writer.assembly.express.counters.hints["sent"] == 0
    assert bob.socket.published(ROOM) == []
    held.release()
    assert "error" not in await ann.answer(asked)
    await until(lambda: bob.socket.published(ROOM) == ["hello"])


async def test_who_was_reached_by_a_hint_recovers_from_there(pair: Pair) -> None:
    bob, ann = await pair.reader.client(), await pair.writer.client()
    epoch = (await bob.subscribe(ROOM))["epoch"]
    for number in range(3):
        await ann.publish(ROOM, number)
    await until(lambda: bob.socket.offsets(ROOM) == [1, 2, 3])
    again = await pair.writer.client()
    answer = await again.subscribe(ROOM, recover=True, epoch=epoch, offset=2)
    assert answer["recovered"]
    assert [each["offset"] for each in answer["publications"]] == [3]


async def test_a_lost_hint_costs_no_read(pair: Pair) -> None:
    bob, ann = await pair.reader.client(), await pair.writer.client()
    await bob.subscribe(ROOM)
    pair.fleet.world.fail_next("publish", Rejected("lost"))
    await ann.publish(ROOM, 1)
    await until(lambda: pair.writer.assembly.express.counters.hints["not_sent"] == 1)
    pair.fleet.clock.advance(1.0)
    await ann.publish(ROOM, 2)
    await until(lambda: pair.heard["first"] == 1)
    reads = pair.fleet.traffic.reads
    # Longer than a hole may stay that the stream shows; the next hint would have it read.
    pair.fleet.clock.advance(5 * GAP_WAIT_S)
    await ann.publish(ROOM, 3)
    await until(lambda: pair.heard["first"] == 2)
    await settled()
    assert bob.socket.published(ROOM) == []
    pair.stream(pair.fleet.world.stream[0])
    await until(lambda: bob.socket.published(ROOM) == [1, 2, 3])
    assert pair.fleet.traffic.reads == reads


async def test_hints_are_no_sign_of_the_stream(pair: Pair) -> None:
    bob, ann = await pair.reader.client(), await pair.writer.client()
    await bob.subscribe(ROOM)
    ears = pair.reader.assembly.ears
    ears.wrote()
    await ann.publish(ROOM, "hello")
    await until(lambda: bob.socket.published(ROOM) == ["hello"])
    pair.fleet.clock.advance(15.0)
    assert ears.rounds.is_late or ears.rounds.must_tell(pair.fleet.clock.monotonic_s())


# ---- what is made up


def forged(client_epoch: str, **changes: Any) -> str:
    entry = {"channel": ROOM, "epoch": client_epoch, "offset": 5, "last": 5, "ts": 1}
    entry |= {"pubs": [{"data": "forged"}]} | changes
    return json.dumps({"v": 1, "node": "somebody", "express": [entry]})


async def joined(pair: Pair) -> tuple[Client, str]:
    bob = await pair.reader.client()
    return bob, (await bob.subscribe(ROOM))["epoch"]


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": "another"},
        {"epoch": 7},
        {"offset": 2**53 - 1, "last": 2**53 - 1},
        {"offset": 0},
        {"offset": True, "last": True},
        {"last": "5"},
        {"channel": ["fast:room"]},
        {"channel": None},
        {"pubs": None},
        {"pubs": [{"data": 1}] * 2},
        {"pubs": "[]"},
        {},
    ],
)
async def test_what_is_made_up_costs_no_read(pair: Pair, changes: dict[str, Any]) -> None:
    bob, epoch = await joined(pair)
    reads = pair.fleet.traffic.reads
    counters = pair.reader.assembly.poller.counters
    # The second would have read what the first showed to be missing.
    for _ in range(2):
        before = counters.messages
        pair.fleet.world.send(forged(epoch, **changes))
        await until(lambda before=before: counters.messages > before)  # type: ignore[misc]
        pair.fleet.clock.advance(5 * GAP_WAIT_S)
        await settled()
    assert bob.socket.published(ROOM) == []
    assert pair.fleet.traffic.reads == reads


async def test_what_was_made_up_and_is_old_is_not_delivered(pair: Pair) -> None:
    bob, epoch = await joined(pair)
    pair.fleet.world.send(forged(epoch, offset=2, last=2))
    await until(lambda: pair.heard["first"] == 1)
    pair.fleet.clock.advance(EXPRESS_HELD_S)
    ann = await pair.writer.client()
    for number in (1, 2):
        await ann.publish(ROOM, number)
    await until(lambda: len(bob.socket.offsets(ROOM)) == 2)
    assert bob.socket.published(ROOM) == [1, 2]


async def test_what_the_stream_brings_counts_before_a_hint(pair: Pair) -> None:
    bob, epoch = await joined(pair)
    held = pair.fleet.traffic.hold("publish")
    ann = await pair.writer.client()
    for number in (1, 2):
        await ann.publish(ROOM, number)
    pair.fleet.world.send(forged(epoch, offset=2, last=2))
    await until(lambda: pair.heard["first"] == 1)
    first, second = (each for each in pair.fleet.world.stream if each.channel == ROOM)
    pair.stream(second)
    pair.stream(first)
    await until(lambda: len(bob.socket.offsets(ROOM)) == 2)
    assert bob.socket.published(ROOM) == [1, 2]
    held.release()


async def test_what_came_before_the_channel_had_a_position_counts(pair: Pair) -> None:
    ann, counters = await pair.writer.client(), pair.reader.assembly.poller.counters
    before = counters.messages
    await ann.publish(ROOM, 1)
    await until(lambda: counters.messages > before)
    held = pair.fleet.traffic.hold("newest", "answer")
    bob = await pair.reader.client()
    joining = asyncio.create_task(bob.subscribe(ROOM))
    await held.arrived()
    await ann.publish(ROOM, 2)
    await until(lambda: pair.heard["first"] == 1)
    held.release()
    # By the read it is 1, and what waited came behind that before the reply.
    assert (await joining)["offset"] == 2
    pair.stream()
    await settled()
    assert bob.socket.published(ROOM) == []
