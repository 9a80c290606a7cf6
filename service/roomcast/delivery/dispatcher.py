"""The register of a node's open channels: it finds them for records, and lets subscribers in.

Theory of operation. A channel opens with its first subscriber, and closes when the last one has
left (open_channel.py). Records come from the local appender, from the queue, and from reads of the
log, in any order and any number of times. Records of channels that are not open are ignored. A
subscriber that joins may need reads of the log first (join_reads.py). It is then let in within one
tick: its reply is queued, and it joins the hub, so that no push falls in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from roomcast.concurrency import Portions
from roomcast.delivery.hub import Hub, Subscriber
from roomcast.delivery.join_reads import (
    Evicted,
    JoinReads,
    JoinRequest,
    JoinResult,
    JoinTicket,
    results,
)
from roomcast.delivery.open_channel import OpenChannel, Shared, Tasks, Timings
from roomcast.delivery.recovery import Rings, Window
from roomcast.delivery.tags_filters import TagsFilter
from roomcast.delivery.tail_checks import TailChecks
from roomcast.delivery.trails import Trails
from roomcast.delivery.way import Way
from roomcast.log.channel_log import ChannelLog, record_of
from roomcast.log.item import LogItem
from roomcast.observe.counters import DeliveryCounters
from roomcast.observe.spans import NO_TRACER
from roomcast.ports import Clock
from roomcast.wire.publication import StreamPosition
from roomcast.wire.tags_filter import Filter

__all__ = ["ADMITTED_A_TURN", "ChannelShards", "Dispatcher"]

# Channels for which one `join_all` reads at once.
_JOINS_AT_ONCE: Final = 32
# Of those who waited for reads, so many are let in in one turn of the event loop: some 3 ms. A
# table that answers again answers all of them at once.
ADMITTED_A_TURN: Final = 64


class ChannelShards(Protocol):
    """Whoever must know which channels this node reads, to hear their topic shards."""

    def of(self, channel: str) -> int:
        """The topic shard of `channel`."""

    def opened(self, channel: str) -> None:
        """`channel` has its first subscriber. Its position is not read yet."""

    def closed(self, channel: str) -> None:
        """`channel` has no subscriber any more."""


class Dispatcher:
    """One a node."""

    def __init__(
        self,
        log: ChannelLog,
        hub: Hub,
        clock: Clock,
        random: Callable[[], float],
        timings: Timings,
        *,
        recovery_publications_max: int,
        shards: ChannelShards,
        trails: Trails | None = None,
    ) -> None:
        """`trails`: who is told of what is traced; None = nobody."""
        self._hub = hub
        self._trails = trails if trails is not None else Trails(NO_TRACER, clock, hub.count)
        self._channel_shards = shards
        self._admissions = Portions(ADMITTED_A_TURN)
        # For those that join without a read.
        self._no_places = asyncio.Semaphore(0)
        self._publications_max = recovery_publications_max
        self._channels: dict[str, OpenChannel] = {}
        # The reads for joining subscribers, of the same channels.
        self._reads: dict[str, JoinReads] = {}
        # When to check the tail of which channel. `check_tail` does it.
        self.tails = TailChecks(timings.tail_check_s, shards.of)
        self.counters = DeliveryCounters()
        # How long records take that other nodes append.
        self.way = Way(clock)
        self._rings = Rings()
        self._tasks = Tasks()
        self._shared = Shared(
            log,
            hub,
            self,
            clock,
            random,
            timings,
            self._rings,
            self.tails,
            self._tasks,
            self.counters,
            self.way,
            self._trails,
        )

    @property
    def ring_bytes(self) -> int:
        """Bytes of the publications that all channels keep for recoveries."""
        return self._rings.bytes

    @property
    def pushes(self) -> int:
        """How many pushes have gone out to subscribers so far."""
        return self._hub.counters.pushes

    def __len__(self) -> int:
        """The number of open channels."""
        return len(self._channels)

    # ---- records come in

    @property
    def channels(self) -> Mapping[str, OpenChannel]:
        """The open channels by name, as they are at any time."""
        return self._channels

    def offer(self, item: LogItem) -> None:
        """Take an item of the log: this node's own append, or one that it met.

        It is decoded only if its channel is open and lacks it.
        """
        channel = self._channels.get(item.channel)
        if channel is None or channel.has(item.epoch, item.last):
            return
        if (record := record_of(item)) is not None:
            if item.trace is not None and self._trails.is_on:
                record = replace(record, trail=self._trails.met(item.trace))
            channel.offer((record,), is_local=True)

    def hide(self, name: str, offset: int) -> None:
        """Another node hides the publications of channel `name` up to `offset`."""
        if (channel := self._channels.get(name)) is not None:
            channel.trim.hint(offset)

    async def check_tail(self, name: str) -> bool:
        """Catch up with the end of the log of channel `name`, if the channel is open.

        False = the log did not answer.
        """
        channel = self._channels.get(name)
        return channel is None or await channel.check_tail()

    # ---- subscribers come and go

    def number(self, name: str) -> int:
        """The number of channel `name`, for the reply to a subscriber that joins in this tick."""
        return self._hub.number(name)

    async def join(
        self,
        name: str,
        subscriber: Subscriber,
        since: StreamPosition | None,
        window: Callable[[], Window],
        admit: Callable[[JoinResult], bool],
        ready: asyncio.Future[None] | None = None,
        *,
        caller: str = "",
    ) -> None:
        """Let `subscriber` into channel `name`.

        In one tick, `admit` is called to queue the reply and, if it returns True, the subscriber
        joins the hub. `since`: the position to recover from. `ready`: something else that must be
        done before; it is awaited after the log was read, and may run meanwhile. Raises PortError
        when the log does not answer, and whatever `ready` raises. In both cases `admit` was not
        called. `caller`: in whose line its reads wait, if there are too many.
        """

        def admit_one(starts: Sequence[JoinResult | None]) -> bool:
            [one] = starts
            assert one is not None, "a channel with history has a position"
            return admit(one)

        request = JoinRequest(name, subscriber, since, window)
        await self.join_all([request], admit_one, ready, caller=caller)

    def join_at_once(
        self,
        name: str,
        subscriber: Subscriber,
        since: StreamPosition | None,
        window: Callable[[], Window],
        admit: Callable[[JoinResult], bool],
    ) -> bool:
        """As `join`, if nothing has to be read for it.

        False = something has to be, and nothing was done: it must `join`.
        """
        if (reads := self._reads.get(name)) is None or not reads.channel.is_open:
            return False
        start = JoinTicket(reads, since, window, self._no_places).result()
        if start is None:
            return False
        if admit(start):
            self._count_recoveries((start,))
            self._hub.add(name, subscriber)
        return True

    async def join_all(
        self,
        requests: Sequence[JoinRequest],
        admit: Callable[[Sequence[JoinResult | None]], bool],
        ready: asyncio.Future[None] | None = None,
        *,
        caller: str = "",
    ) -> None:
        """Let subscribers into their channels, all in the same tick, as `join` does for one.

        `admit` gets the start of each of them, in the order of `requests`; None = its channel has
        no history. A channel that is lost meanwhile is joined once more. `ready` may be awaited
        twice. Raises PortError when the log does not answer for one of them, and whatever `ready`
        raises.
        """
        try:
            await self._join_all(requests, admit, ready, caller)
        except Evicted:
            # It opens anew, behind what it was lost for.
            await self._join_all(requests, admit, ready, caller)

    async def _join_all(
        self,
        requests: Sequence[JoinRequest],
        admit: Callable[[Sequence[JoinResult | None]], bool],
        ready: asyncio.Future[None] | None,
        caller: str,
    ) -> None:
        places = asyncio.Semaphore(_JOINS_AT_ONCE)
        held: list[JoinReads] = []
        tickets: list[JoinTicket | None] = []
        for each in requests:
            if each.window is None:
                tickets.append(None)
                continue
            reads = self._opened(each.name)
            reads.joining += 1
            held.append(reads)
            tickets.append(JoinTicket(reads, each.since, each.window, places, caller))
        try:
            await results(tickets)
            if ready is not None:
                await ready
            # Thousands may have waited for the same read.
            await self._admissions.wait()
            # The channels went on meanwhile, so the starts are determined again in this tick.
            starts = await results(tickets)
            # No await from here to the last `add`, so that no push falls between reply and hub.
            for reads in held:
                if not reads.channel.is_open:
                    raise Evicted(reads.channel.name)
            if admit(starts):
                self._count_recoveries(starts)
                for each in requests:
                    self._hub.add(each.name, each.subscriber)
        finally:
            for reads in held:
                reads.joining -= 1
                self._close_if_idle(reads)

    def join_unordered(self, name: str, subscriber: Subscriber, admit: Callable[[], bool]) -> None:
        """Let `subscriber` into a channel without history."""
        if admit():
            self._hub.add(name, subscriber)

    def shared_filter(self, tree: Filter | None) -> TagsFilter | None:
        """The filter for a subscriber's form, which equal trees share."""
        return self._hub.shared_filter(tree)

    def has_room_for(self, name: str, tags_filter: TagsFilter | None) -> bool:
        """Whether a subscriber with this filter may join channel `name` in this tick."""
        return self._hub.has_room_for(name, tags_filter)

    def change_filter(self, name: str, subscriber: Subscriber, change: Callable[[], None]) -> None:
        """`change` sets another filter in the form of `subscriber`, which is in channel `name`. The
        caller has asked `has_room_for`.
        """
        self._hub.change_filter(name, subscriber, change)

    def flush(self, name: str) -> None:
        """Send the publications of channel `name` that are collected."""
        self._hub.flush(name)

    async def end_batches(self) -> None:
        """Send what is collected in all channels. From here on, nothing is."""
        await self._hub.end_batches()

    def leave(self, name: str, subscriber: Subscriber) -> None:
        """Idempotent."""
        self._hub.remove(name, subscriber)
        if (reads := self._reads.get(name)) is not None:
            self._close_if_idle(reads)

    def _count_recoveries(self, starts: Iterable[JoinResult | None]) -> None:
        for one in starts:
            if one is not None and one.recovered is not None:
                self.counters.recoveries["recovered" if one.recovered else "not_recovered"] += 1
                self.counters.recovered_publications += len(one.missed)

    # ---- the register

    def _opened(self, name: str) -> JoinReads:
        """The reads of channel `name`, which opens if it is not open."""
        if (reads := self._reads.get(name)) is None:
            channel = OpenChannel(
                name, self._shared, recovery_publications_max=self._publications_max
            )
            self._channels[name] = channel
            self._channel_shards.opened(name)
            reads = self._reads[name] = JoinReads(channel, self._shared)
        return reads

    def _close_if_idle(self, reads: JoinReads) -> None:
        if reads.joining == 0 and not self._hub.has(reads.channel.name):
            reads.channel.close()

    def closed(self, channel: OpenChannel) -> None:
        """`channel` has closed: another may have its name."""
        del self._channels[channel.name]
        del self._reads[channel.name]
        self._channel_shards.closed(channel.name)

    async def close(self) -> None:
        """Stop all reads. For the end of a node."""
        for channel in self._channels.values():
            channel.stop()
        await self._tasks.cancel()
