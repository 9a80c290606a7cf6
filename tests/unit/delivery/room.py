"""One channel on one node and another writer to it, to test what lies between log and hub."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from roomcast.delivery.dispatcher import Dispatcher
from roomcast.delivery.forms import PLAIN
from roomcast.delivery.gap_wait import GapWait
from roomcast.delivery.hub import Hub
from roomcast.delivery.join_reads import JoinResult
from roomcast.delivery.open_channel import OpenChannel, Timings
from roomcast.delivery.recovery import Window
from roomcast.log.channel_log import Appended, record_of
from roomcast.log.item import LogItem
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS, Pending
from roomcast.wire.publication import Record, StreamPosition
from tests.unit.worlds import Fleet, Socket, log_over, no_jitter, one_topic

__all__ = [
    "BELIEF_S",
    "CHANNEL",
    "GAP_WAIT_S",
    "RECOVERED_MAX",
    "TAIL_CHECK_S",
    "Room",
    "Subscriber",
    "append_raw",
    "begin_another_epoch",
    "items",
    "opened_again",
]

CHANNEL: Final = "room"
# The timers of the event loop look at the test's clock again after this long.
GAP_WAIT_MS: Final = 1
GAP_WAIT_S: Final = GAP_WAIT_MS / 1000
# And the task that looks at the ends of logs after half of this.
TAIL_CHECK_S: Final = 0.002
RECOVERED_MAX: Final = 300
REPLY: Final = b'{"id":1}'
BELIEF_S: Final = (MIN_RETENTION_MS - MARGIN_MS) / 1000


class Subscriber:
    """One subscription: its reply and its pushes in the order they came."""

    join_leave = False
    form = PLAIN

    def __init__(self) -> None:
        self.sink = Socket()
        self.joined: JoinResult | None = None
        self.lost_channels: list[str] = []

    def lost(self, channel: str) -> None:
        self.lost_channels.append(channel)

    def admit(self, joined: JoinResult) -> bool:
        self.joined = joined
        self.sink.send(REPLY)
        return True

    @property
    def offsets(self) -> list[int]:
        """Of recovered and pushed publications. Fails if a push came before the reply (I4)."""
        assert self.joined is not None, "not joined"
        assert self.sink.frames[0] == REPLY, "I4: the reply comes first"
        return [sent.offset for sent in self.joined.missed] + self.sink.offsets(CHANNEL)


class Room:
    """One node's dispatcher, and another writer to its channel.

    That writer's records arrive when the test says so.
    """

    def __init__(self, *, size: int = 10_000, recovered_max: int = RECOVERED_MAX) -> None:
        self.fleet = Fleet()
        self.hub = Hub()
        self.log = log_over(self.fleet.world, self.fleet.clock)
        self.dispatcher = Dispatcher(
            self.log,
            self.hub,
            self.fleet.clock,
            no_jitter,
            Timings(GapWait(GAP_WAIT_MS), TAIL_CHECK_S),
            recovery_publications_max=recovered_max,
            shards=one_topic(self.fleet.clock),
        )
        self.writer = log_over(self.fleet.world, self.fleet.clock, node="b")
        self.window = Window(size=size, trim=0, cutoff_ts=0, limit=recovered_max)

    @property
    def channel(self) -> OpenChannel:
        """The channel, as the dispatcher has it open."""
        return self.dispatcher.channels[CHANNEL]

    async def append(self, count: int = 1) -> LogItem:
        """One item in the log, of which the dispatcher is not told."""
        tail = (await self.writer.resolve(CHANNEL)).tail
        pending = [
            Pending.of(json.dumps({"data": offset}))
            for offset in range(tail.top + 1, tail.top + count + 1)
        ]
        outcome = await self.writer.append(CHANNEL, tail, pending, 300_000)
        assert isinstance(outcome, Appended)
        return outcome.item

    def take(self, record: Record) -> None:
        """What the queue brings, of any channel that is open."""
        self.dispatcher.channels[record.channel].offer((record,))

    def hint(self, *items: LogItem) -> None:
        """What the queue brings in one receive."""
        records = [record for item in items if (record := record_of(item)) is not None]
        if (channel := self.dispatcher.channels.get(CHANNEL)) is not None:
            channel.offer(records)

    async def join(
        self, subscriber: Subscriber | None = None, since: StreamPosition | None = None
    ) -> Subscriber:
        subscriber = subscriber or Subscriber()
        await self.dispatcher.join(
            CHANNEL, subscriber, since, lambda: self.window, subscriber.admit
        )
        return subscriber

    async def catch_up(self) -> None:
        """Look at the end of each open channel once, as a node that could not hear does."""
        self.dispatcher.tails.ask(self.fleet.clock.monotonic_s())
        while (name := self.dispatcher.tails.take(self.fleet.clock.monotonic_s())) is not None:
            answered = await self.dispatcher.check_tail(name)
            self.dispatcher.tails.done(name, self.fleet.clock.monotonic_s(), 0.0, answered=answered)

    def joining(
        self, since: StreamPosition | None = None
    ) -> tuple[Subscriber, asyncio.Task[Subscriber]]:
        subscriber = Subscriber()
        return subscriber, asyncio.create_task(self.join(subscriber, since))

    async def position(self, offset: int) -> StreamPosition:
        return StreamPosition((await self.writer.resolve(CHANNEL)).tail.epoch, offset)

    def pass_time(self) -> None:
        """Longer than a hole is waited for."""
        self.fleet.clock.advance(1)


def append_raw(room: Room, offset: int) -> LogItem:
    """Append without reading the tail, which the test holds up."""
    newest = room.fleet.world.items[CHANNEL][offset - 1]
    assert isinstance(newest, LogItem)
    item = LogItem(
        CHANNEL,
        offset,
        offset,
        newest.epoch,
        json.dumps([{"data": offset}]),
        f"raw{offset}",
        "b",
        newest.ts,
        newest.expires_at,
    )
    room.fleet.world.items[CHANNEL][offset] = item
    return item


async def opened_again(room: Room) -> Subscriber:
    """One subscriber of a channel with three publications; the ring of this node is empty."""
    first = await room.join()
    await room.append(3)
    room.hint(*items(room))
    room.dispatcher.leave(CHANNEL, first)
    return await room.join()


def items(room: Room) -> list[LogItem]:
    return [item for item in room.fleet.world.items[CHANNEL].values() if isinstance(item, LogItem)]


async def begin_another_epoch(room: Room) -> LogItem:
    room.fleet.clock.advance(BELIEF_S + 3600)
    item = await room.append()
    room.hint(item)
    return item
