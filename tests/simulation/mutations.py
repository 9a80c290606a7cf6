"""Ways to break the code that the checker must notice:
each takes away one thing that an invariant rests on.

They are applied to the real classes for the time of one run, and undone.
Each says which violation shows that it was seen: another one may come along, but does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar
from unittest.mock import patch

import roomcast.client.subscribe as subscribe_module
import roomcast.delivery.dispatcher as dispatcher_module
import roomcast.delivery.envelope as envelope_module
import roomcast.delivery.intake as intake_module
import roomcast.delivery.join_reads as join_reads_module
import roomcast.delivery.open_channel as open_channel_module
import roomcast.delivery.shard_rules as shard_rules_module
import roomcast.fleet.emulation as emulation_module
import roomcast.log.appender as appender_module
import roomcast.log.channel_log as channel_log_module
import roomcast.log.lane as lane_module
from roomcast.client.read import Reading
from roomcast.delivery.batches import Batch
from roomcast.delivery.broadcaster import Sent as SentSignal
from roomcast.delivery.canary import Canary
from roomcast.delivery.canary_rules import CANARY_CHANNEL, CanarySchedule, Hearing, Rounds
from roomcast.delivery.catch_up import CatchUp
from roomcast.delivery.dispatcher import Dispatcher
from roomcast.delivery.envelope import Envelope, Signal
from roomcast.delivery.express import Express
from roomcast.delivery.intake import Intake
from roomcast.delivery.join_reads import JoinResult, JoinTicket, results
from roomcast.delivery.open_channel import OpenChannel
from roomcast.delivery.poller import Poller
from roomcast.delivery.ports import Message
from roomcast.delivery.recovery import Answer, LogNeeded, Ring, Unrecovered, Window, recover
from roomcast.delivery.resequencer import Next, Resequencer
from roomcast.delivery.shard_keeper import ShardKeeper
from roomcast.delivery.shard_rules import ShardPlan
from roomcast.delivery.sieve import Sieve
from roomcast.delivery.signals import Heard
from roomcast.fleet.emulation import Emulation, Sessions
from roomcast.fleet.emulation_signals import Answer as Told
from roomcast.fleet.emulation_signals import Outcome, Posted
from roomcast.fleet.lease import LeaseKeeper
from roomcast.fleet.order_post import OrderPost
from roomcast.fleet.orders import Orders
from roomcast.log import rules
from roomcast.log.appender import Appender
from roomcast.log.channel_log import Appended, ChannelLog, KeysTaken, NotAppended
from roomcast.log.contention import Contention
from roomcast.log.idempotency import KeyItem
from roomcast.log.item import HEAD_OFFSET, Head, LogItem
from roomcast.log.lane import Lane
from roomcast.log.ports import Holders
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS, Pending, Tail
from roomcast.log.watched_table import WatchedTable
from roomcast.ports import PortError, UnknownOutcome
from roomcast.testing.memory import MemoryChannelTable
from roomcast.wire.encoding import Sent
from roomcast.wire.publication import Publication, Record, StreamPosition
from roomcast.wire.versions import Version
from tests.simulation.checker import Kind, Violation
from tests.simulation.world import READS, SimulatedWorld

__all__ = ["MUTATIONS", "Mutation"]

T = TypeVar("T")

FOR_EVER_MS: Final = 10**18
# How far a replica lags behind, at most.
LAG_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """`apply` patches the code for the time of its context.

    `breaks`, `text`: the kind of violation that must be seen, and what it must say.
    `alone`: the run that shows it shows nothing else. `seeds` bounds how many runs may be needed.
    `sharded`, `batched`, `express`, `filtered`, `latest`: of which runs they are.
    """

    name: str
    breaks: Kind
    apply: Callable[[], AbstractContextManager[None]]
    text: str = ""
    alone: bool = False
    seeds: int = 400
    sharded: bool = False
    batched: bool = False
    express: bool = False
    filtered: bool = False
    latest: bool = False

    def is_seen(self, violations: Sequence[Violation]) -> bool:
        """Whether these are what it must lead to."""
        seen = any(each.kind is self.breaks and self.text in each.what for each in violations)
        return seen and not (
            self.alone and any(each.kind is not self.breaks for each in violations)
        )


# ---- the order of a channel


@contextmanager
def no_hold() -> Iterator[None]:
    """A record ahead of a hole is let through at once."""
    original = Resequencer.offer

    def offer(self: Resequencer, record: Record, now_s: float) -> list[Next]:
        if record.publications and record.epoch == self.epoch and record.offset > self.top + 1:
            self.top = record.offset - 1
        return original(self, record, now_s)

    with patch.object(Resequencer, "offer", offer):
        yield


@contextmanager
def no_repeats_dropped() -> Iterator[None]:
    """A record that was let through before is let through again."""
    original = Resequencer.offer

    def offer(self: Resequencer, record: Record, now_s: float) -> list[Next]:
        if record.publications and record.epoch == self.epoch and record.last <= self.top:
            return [Next(record.publications, record.ts)]
        return original(self, record, now_s)

    with patch.object(Resequencer, "offer", offer):
        yield


@contextmanager
def holes_never_read() -> Iterator[None]:
    """A hole is left to fill by itself."""

    async def fill_hole(self: OpenChannel) -> None:
        self._reading = None

    with patch.object(OpenChannel, "_fill_hole", fill_hole):
        yield


@contextmanager
def other_epochs_ignored() -> Iterator[None]:
    """A channel whose epoch ended is served as if it had not."""
    original = OpenChannel.compare

    def compare(self: OpenChannel, resolved: Any, had: int) -> None:
        if resolved.tail.epoch == self.order.epoch:
            original(self, resolved, had)

    with patch.object(OpenChannel, "compare", compare):
        yield


@contextmanager
def own_epoch_never_doubted() -> Iterator[None]:
    """A node takes its epoch for the channel's, whatever clients come with."""
    with patch.object(JoinTicket, "may_be_of_next_epoch", lambda self: False):
        yield


@contextmanager
def no_tail_check() -> Iterator[None]:
    """Nobody looks for a last publication whose hints were all lost."""

    async def check_tail(self: OpenChannel) -> bool:
        return True

    with patch.object(OpenChannel, "check_tail", check_tail):
        yield


@contextmanager
def reply_at_read_position() -> Iterator[None]:
    """The reply tells the position that was read, though time passed before the
    subscriber joined the hub.
    """

    async def late(tickets: Sequence[JoinTicket | None]) -> Sequence[JoinResult | None]:
        starts = await results(tickets)
        await asyncio.sleep(0.05)
        return starts

    with patch.object(dispatcher_module, "results", late):
        yield


@contextmanager
def hub_before_reply() -> Iterator[None]:
    """A subscriber joins the hub before its reply is queued."""
    original = Dispatcher.join_all

    async def join_all(
        self: Dispatcher, requests: Sequence[Any], *arguments: Any, **options: Any
    ) -> None:
        for each in requests:
            self._hub.add(each.name, each.subscriber)
        await original(self, requests, *arguments, **options)

    with patch.object(Dispatcher, "join_all", join_all):
        yield


@contextmanager
def one_failed_read_is_enough() -> Iterator[None]:
    """Subscribers are told of a hole as soon as one read of it has failed."""
    with patch.object(open_channel_module, "_GAP_FAILURES_MAX", 1):
        yield


# ---- recovery


@contextmanager
def ring_begins_too_late() -> Iterator[None]:
    """What a ring has is taken for all that was missed, though it does not reach back to
    what the client has.
    """

    def after(self: Ring, offset: int, top: int) -> list[Sent] | None:
        return [sent for sent in self._sent if sent.offset > offset]

    with patch.object(Ring, "after", after):
        yield


def _patched_recover(
    answer: Callable[[StreamPosition, StreamPosition, Ring, Window], Answer],
) -> AbstractContextManager[None]:
    @contextmanager
    def apply() -> Iterator[None]:
        with patch.object(join_reads_module, "recover", answer):
            yield

    return apply()


def log_never_asked() -> AbstractContextManager[None]:
    """Who cannot be recovered from the ring is told so at once, and the log is not read."""

    def answer(
        since: StreamPosition, position: StreamPosition, ring: Ring, window: Window
    ) -> Answer:
        found = recover(since, position, ring, window)
        return Unrecovered() if isinstance(found, LogNeeded) and not found.ahead else found

    return _patched_recover(answer)


def who_is_ahead_is_refused() -> AbstractContextManager[None]:
    """Who has seen more than this node is told that it cannot recover."""

    def answer(
        since: StreamPosition, position: StreamPosition, ring: Ring, window: Window
    ) -> Answer:
        found = recover(since, position, ring, window)
        return Unrecovered() if isinstance(found, LogNeeded) and found.ahead else found

    return _patched_recover(answer)


def as_many_as_there_are() -> AbstractContextManager[None]:
    """A recovery brings all that was missed, however much it is."""

    def answer(
        since: StreamPosition, position: StreamPosition, ring: Ring, window: Window
    ) -> Answer:
        return recover(since, position, ring, replace(window, size=10**9, limit=10**9))

    return _patched_recover(answer)


def however_old() -> AbstractContextManager[None]:
    """A recovery brings what is too old to be shown."""

    def answer(
        since: StreamPosition, position: StreamPosition, ring: Ring, window: Window
    ) -> Answer:
        return recover(since, position, ring, replace(window, cutoff_ts=0))

    return _patched_recover(answer)


# ---- the log


@contextmanager
def no_batch_id() -> Iterator[None]:
    """Our own earlier attempt is taken for another node's append."""
    original = MemoryChannelTable.put_item

    async def put_item(
        self: MemoryChannelTable, item: LogItem, tail_valid_until_ms: int
    ) -> LogItem | None:
        holder = await original(self, item, tail_valid_until_ms)
        return replace(holder, batch="somebody's") if holder is not None else None

    with patch.object(MemoryChannelTable, "put_item", put_item):
        yield


def _patched_tail(tail: Callable[[LogItem, int, str], Tail | None]) -> AbstractContextManager[None]:
    @contextmanager
    def apply() -> Iterator[None]:
        with (
            patch.object(channel_log_module, "item_tail", tail),
            patch.object(appender_module, "item_tail", tail),
        ):
            yield

    return apply()


def no_rotation() -> AbstractContextManager[None]:
    """The tail of the newest item is valid for ever, and where there is none that of the head."""

    def item_tail(item: LogItem, now: int, generation: str) -> Tail | None:
        return Tail(item.epoch, item.last, FOR_EVER_MS, item.expires_at)

    def head_tail(
        head: Head | None, newest: LogItem | None, now: int, generation: str
    ) -> Tail | None:
        return Tail(head.epoch, head.floor, FOR_EVER_MS, 0) if head is not None else None

    @contextmanager
    def apply() -> Iterator[None]:
        with _patched_tail(item_tail), patch.object(channel_log_module, "head_tail", head_tail):
            yield

    return apply()


@contextmanager
def floor_skipped() -> Iterator[None]:
    """The first offset of an epoch that follows another is left out."""

    def head_tail(
        head: Head | None, newest: LogItem | None, now: int, generation: str
    ) -> Tail | None:
        tail = rules.head_tail(head, newest, now, generation)
        is_new = tail is not None and (newest is None or newest.epoch != tail.epoch)
        return replace(tail, top=tail.top + 1) if tail is not None and is_new else tail

    with patch.object(channel_log_module, "head_tail", head_tail):
        yield


def no_margin() -> AbstractContextManager[None]:
    """A tail is valid until its item expires, by one's own clock."""

    def item_tail(item: LogItem, now: int, generation: str) -> Tail | None:
        tail = rules.item_tail(item, now - MARGIN_MS, generation)
        return replace(tail, valid_until=tail.valid_until + MARGIN_MS) if tail else None

    return _patched_tail(item_tail)


def deadlines_from_configuration() -> AbstractContextManager[None]:
    """How long a tail is valid rests on this release and its configuration, not on the item."""
    longest_ms = 3 * 86_400 * 1000

    def item_tail(item: LogItem, now: int, generation: str) -> Tail | None:
        valid_until = item.ts + max(longest_ms, MIN_RETENTION_MS) - MARGIN_MS
        return (
            Tail(item.epoch, item.last, valid_until, item.expires_at) if valid_until > now else None
        )

    return _patched_tail(item_tail)


@contextmanager
def expired_tail_used_late() -> Iterator[None]:
    """A writer that was suspended between its decision and its write goes on as
    if no time had passed.
    """
    with patch.object(MemoryChannelTable, "_resting_on", lambda self, until_ms: lambda: None):
        yield


@contextmanager
def append_again_after_unknown() -> Iterator[None]:
    """After a lost answer the same content is appended anew,
    behind whatever is the tail by then.
    """
    original = MemoryChannelTable.put_item

    async def put_item(
        self: MemoryChannelTable, item: LogItem, tail_valid_until_ms: int
    ) -> LogItem | None:
        try:
            return await original(self, item, tail_valid_until_ms)
        except UnknownOutcome as error:
            if item.channel == CANARY_CHANNEL:
                raise
            raise _AppendAgain from error

    async def append(
        self: ChannelLog, channel: str, tail: Tail, *arguments: Any, **within: Any
    ) -> Any:
        while True:
            try:
                return await original_append(self, channel, tail, *arguments, **within)
            except _AppendAgain:
                try:
                    tail = (await self.resolve(channel)).tail
                except PortError as error:
                    raise NotAppended from error

    original_append = ChannelLog.append
    with (
        patch.object(MemoryChannelTable, "put_item", put_item),
        patch.object(ChannelLog, "append", append),
    ):
        yield


class _AppendAgain(Exception):
    pass


@contextmanager
def history_deleted() -> Iterator[None]:
    """Removing history deletes the items, the newest among them."""

    async def remove_history(self: ChannelLog, channel: str) -> StreamPosition:
        resolved = await self.resolve(channel)
        watched = self._table
        assert isinstance(watched, WatchedTable)
        table = watched._table
        assert isinstance(table, MemoryChannelTable)
        items = table._world.items.get(channel, {})
        for offset in [offset for offset in items if offset != HEAD_OFFSET]:
            del items[offset]
        return resolved.tail.position

    with patch.object(ChannelLog, "remove_history", remove_history):
        yield


@contextmanager
def removed_history_shown() -> Iterator[None]:
    """Nobody looks at what the head says was removed."""
    original = ChannelLog.head

    async def head(self: ChannelLog, channel: str) -> Head | None:
        found = await original(self, channel)
        return None if found is None else replace(found, trim=0)

    with patch.object(ChannelLog, "head", head):
        yield


@contextmanager
def inconsistent_reads() -> Iterator[None]:
    """The table is read as it was up to a second ago."""
    original = SimulatedWorld.perform

    def as_it_was(world: SimulatedWorld, effect: Callable[[], T]) -> Callable[[], T]:
        def stale() -> T:
            seen_s = asyncio.get_running_loop().time() - world.random.uniform(0, LAG_S)
            hidden: list[LogItem] = []
            for item, written_s in zip(
                reversed(world.stream), reversed(world.written_s), strict=True
            ):
                if written_s <= seen_s:
                    break
                if world.items[item.channel].get(item.offset) is item:
                    del world.items[item.channel][item.offset]
                    hidden.append(item)
            try:
                return effect()
            finally:
                for item in hidden:
                    world.items[item.channel][item.offset] = item

        return stale

    async def perform(
        self: SimulatedWorld,
        call: str,
        effect: Callable[[], T],
        check: Callable[[], None] | None = None,
    ) -> T:
        return await original(
            self, call, as_it_was(self, effect) if call in READS else effect, check
        )

    with patch.object(SimulatedWorld, "perform", perform):
        yield


@contextmanager
def ack_before_commit() -> Iterator[None]:
    """The publisher is answered when its publication is queued."""
    original = Appender.submit

    def submit(
        self: Appender,
        channel: str,
        publication: Publication,
        history_ttl_ms: int,
        key: str | None = None,
        **received: Any,
    ) -> asyncio.Future[StreamPosition]:
        position = original(self, channel, publication, history_ttl_ms, key, **received)
        if key is not None:
            # Its answer tells a position, which is not known yet.
            return position
        done: asyncio.Future[StreamPosition] = asyncio.get_running_loop().create_future()
        done.set_result(StreamPosition("unknown", 0))
        return done

    with patch.object(Appender, "submit", submit):
        yield


@contextmanager
def overtaken_in_the_lane() -> Iterator[None]:
    """What is submitted goes before the one that waits already."""
    original = Appender.submit

    def submit(self: Appender, channel: str, *arguments: Any, **options: Any) -> Any:
        position = original(self, channel, *arguments, **options)
        queue = self._lanes[channel].queue
        if len(queue) > 1:
            queue[-2], queue[-1] = queue[-1], queue[-2]
        return position

    with patch.object(Appender, "submit", submit):
        yield


@contextmanager
def two_appends_in_flight() -> Iterator[None]:
    """A lane appends its next publication while the one before is under way,
    behind the same tail.
    """

    async def run(self: Appender, channel: str, lane: Any) -> None:
        while lane.queue:
            await asyncio.gather(self._append_next(channel, lane), self._append_next(channel, lane))
        lane.task = None

    def fill(queue: Iterable[Any], bytes_max: int) -> int:
        return min(1, sum(1 for _ in queue))

    async def append_next(self: Appender, channel: str, lane: Any) -> None:
        if lane.queue:
            await original(self, channel, lane)

    original = Appender._append_next
    with (
        patch.object(Appender, "_run", run),
        patch.object(Appender, "_append_next", append_next),
        patch.object(lane_module, "fill", fill),
    ):
        yield


@contextmanager
def next_offset_before_the_last_is_known() -> Iterator[None]:
    """The second half of an append goes behind the first, which is not known to be in."""
    original = ChannelLog.append

    async def append(
        self: ChannelLog,
        channel: str,
        tail: Tail,
        publications: Sequence[Any],
        history_ttl_ms: int,
        **within: Any,
    ) -> Any:
        half = len(publications) // 2
        if not half or any(each.key is not None for each in publications):
            return await original(self, channel, tail, publications, history_ttl_ms, **within)
        ahead = replace(tail, top=tail.top + half)
        first, second = await asyncio.gather(
            original(self, channel, tail, publications[:half], history_ttl_ms, **within),
            original(self, channel, ahead, publications[half:], history_ttl_ms, **within),
            return_exceptions=True,
        )
        for outcome in (first, second):
            if isinstance(outcome, BaseException):
                raise outcome
            if not isinstance(outcome, Appended):
                return outcome
        assert isinstance(first, Appended)
        assert isinstance(second, Appended)
        pubs = f"{first.item.pubs[:-1]},{second.item.pubs[1:]}"
        return Appended(replace(first.item, last=second.item.last, pubs=pubs))

    with patch.object(ChannelLog, "append", append):
        yield


@contextmanager
def winner_goes_on_at_once() -> Iterator[None]:
    """Who won a race does not give way to those it saw."""
    original = Contention.won

    def won(self: Contention, *arguments: Any) -> int:
        others = original(self, *arguments)
        self._next_s = 0.0
        return others

    with patch.object(Contention, "won", won):
        yield


@contextmanager
def tail_from_before_the_pause() -> Iterator[None]:
    """Who paused after a lost race tries again with what it knew before."""
    original = Appender._pause

    async def pause(self: Appender, append: Any, seconds: float) -> None:
        await original(self, append, seconds)
        append.looked = append.looked or seconds > 0

    with patch.object(Appender, "_pause", pause):
        yield


# ---- idempotency keys


@contextmanager
def key_ignored() -> Iterator[None]:
    """What comes with a key is appended like everything else."""
    original = ChannelLog.append

    async def append(
        self: ChannelLog,
        channel: str,
        tail: Tail,
        publications: Sequence[Pending],
        *arguments: Any,
        **_: Any,
    ) -> Any:
        without = [replace(each, key=None) for each in publications]
        return await original(self, channel, tail, without, *arguments)

    with patch.object(ChannelLog, "append", append):
        yield


@contextmanager
def keys_written_afterwards() -> Iterator[None]:
    """Calls of their own instead of a transaction: read the keys,
    write the item, write the keys.
    """

    async def put_keyed_item(
        self: MemoryChannelTable, item: LogItem, keys: Sequence[KeyItem], tail_valid_until_ms: int
    ) -> Holders | None:
        stored = self._world.keys
        taken = [
            holder
            for key in keys
            if (holder := await self._world.perform("get_key", partial(stored.get, key.key)))
            is not None
        ]
        if taken:
            return Holders(None, tuple(taken))
        winner = await self.put_item(item, tail_valid_until_ms)
        if winner is not None and winner.batch != item.batch:
            return Holders(winner)
        for key in keys:
            await self._world.perform("put_key", partial(stored.setdefault, key.key, key))
        return None

    with patch.object(MemoryChannelTable, "put_keyed_item", put_keyed_item):
        yield


@contextmanager
def key_taken_tells_the_tail() -> Iterator[None]:
    """Who repeats a key is told where the log ends, not where its publication is."""
    original = ChannelLog.append

    async def append(
        self: ChannelLog, channel: str, tail: Tail, *arguments: Any, **options: Any
    ) -> Any:
        outcome = await original(self, channel, tail, *arguments, **options)
        if isinstance(outcome, KeysTaken):
            return replace(outcome, positions=dict.fromkeys(outcome.positions, tail.position))
        return outcome

    with patch.object(ChannelLog, "append", append):
        yield


@contextmanager
def keyed_sent_at_any_time() -> Iterator[None]:
    """What a node took before it was suspended for a day is sent when it wakes,
    the key long forgotten.
    """
    original = ChannelLog.append

    async def append(self: ChannelLog, *arguments: Any, commit_by_ms: int, **options: Any) -> Any:
        return await original(self, *arguments, commit_by_ms=FOR_EVER_MS, **options)

    with (
        patch.object(ChannelLog, "append", append),
        patch.object(lane_module.Waiting, "is_overdue", lambda *_: False),
    ):
        yield


# ---- the queue, and what runs in the background


@contextmanager
def deleted_before_dispatched() -> Iterator[None]:
    """Messages are acknowledged first; an interruption before they are taken (here every
    other one) loses them.
    """

    def hand_on(self: Poller, messages: Sequence[Message]) -> None:
        if messages:
            self._deleter.add(message.receipt for message in messages)
            if self._random() > 0.5:
                self._intake.take([message.body for message in messages])

    with patch.object(Poller, "_hand_on", hand_on):
        yield


@contextmanager
def silence_never_looked_into() -> Iterator[None]:
    """A node that hears nothing takes it for quiet."""

    async def diagnose(self: Canary) -> None:
        pass

    with patch.object(Canary, "_diagnose", diagnose):
        yield


@contextmanager
def deaf_node_keeps_its_queue() -> Iterator[None]:
    """A node that does not hear its own greeting does nothing about it."""

    def rebuild_in_time(self: Canary, now_s: float) -> None:
        pass

    with patch.object(Canary, "_rebuild_in_time", rebuild_in_time):
        yield


@contextmanager
def nothing_caught_up_with() -> Iterator[None]:
    """A node that did not hear does not look at what it missed."""

    def request(self: CatchUp, shard: int | None = None) -> None:
        pass

    with patch.object(CatchUp, "request", request):
        yield


@contextmanager
def shard_joined_and_not_caught_up_with() -> Iterator[None]:
    """A topic shard is subscribed, and nobody looks at what was published before it was heard."""
    original = ShardPlan.take_looks

    def take_looks(self: ShardPlan, now_s: float, chance: float) -> list[int | None]:
        original(self, now_s, chance)
        return []

    with patch.object(ShardPlan, "take_looks", take_looks):
        yield


@contextmanager
def shard_trusted_once_subscribed() -> Iterator[None]:
    """The answer to Subscribe counts as a proof."""

    async def join(self: ShardKeeper, shard: int) -> bool:
        await self._subscriptions.subscribe(shard)
        return True

    with patch.object(ShardKeeper, "join", join):
        yield


@contextmanager
def shard_trusted_for_ever() -> Iterator[None]:
    """A topic shard that was proved is never doubted again."""

    def wrote(self: Rounds, now_s: float, chance: float) -> None:
        pass

    with patch.object(shard_rules_module, "Rounds", type("Deaf", (Rounds,), {"wrote": wrote})):
        yield


@contextmanager
def shard_proves_the_base() -> Iterator[None]:
    """Canaries from topic shards count as if they came through the base topic."""
    original = Intake._came

    def came(self: Intake, envelope: Envelope) -> None:
        original(self, envelope)
        if envelope.shard is not None:
            original(self, replace(envelope, shard=None))

    with patch.object(Intake, "_came", came):
        yield


# ---- express hints


@contextmanager
def hint_before_commit() -> Iterator[None]:
    """A record is sent to the other nodes as soon as it is made, whether or not it gets in."""
    express: dict[str, Express] = {}
    original_init, original_put = Express.__init__, ChannelLog._put

    def init(self: Express, *arguments: Any, node: str, **options: Any) -> None:
        original_init(self, *arguments, node=node, **options)
        express[node] = self

    async def put(self: ChannelLog, item: LogItem, tail_valid_until_ms: int) -> Holders | None:
        if item.node in express:
            express[item.node].offer(item)
        return await original_put(self, item, tail_valid_until_ms)

    with patch.object(Express, "__init__", init), patch.object(ChannelLog, "_put", put):
        yield


@contextmanager
def hint_is_a_sign_of_the_stream() -> Iterator[None]:
    """What comes as an express hint counts as if the stream had brought it."""
    original = envelope_module.parse

    def parse(*arguments: Any) -> Envelope:
        envelope = original(*arguments)
        hints = len(envelope.express) + envelope.late
        return replace(envelope, unwanted=envelope.unwanted + hints)

    with patch.object(intake_module, "parse", parse):
        yield


@contextmanager
def hint_is_not_held() -> Iterator[None]:
    """An express hint goes out at once, though what is before it has not come."""
    original = Resequencer.offer

    def offer(self: Resequencer, record: Record, now_s: float) -> list[Next]:
        if record.express and record.epoch == self.epoch and record.offset > self.top + 1:
            self.top = record.offset - 1
        return original(self, record, now_s)

    with patch.object(Resequencer, "offer", offer):
        yield


@contextmanager
def repeat_of_a_hint_not_dropped() -> Iterator[None]:
    """What an express hint brought goes out again when the stream brings it."""
    original = Resequencer.offer

    def offer(self: Resequencer, record: Record, now_s: float) -> list[Next]:
        if (
            not record.express
            and record.publications
            and record.epoch == self.epoch
            and record.last <= self.top
        ):
            return [Next(record.publications, record.ts)]
        return original(self, record, now_s)

    with (
        patch.object(Resequencer, "offer", offer),
        patch.object(OpenChannel, "has", lambda *_: False),
    ):
        yield


@contextmanager
def everybody_emits() -> Iterator[None]:
    """A node emits in its turn though it heard another's canary."""
    original = CanarySchedule.hear

    def hear(self: CanarySchedule, number: int, now_s: float, chance: float) -> bool:
        emit_at_s = self._emit_at_s
        new = original(self, number, now_s, chance)
        self._emit_at_s = emit_at_s
        return new

    with patch.object(CanarySchedule, "hear", hear):
        yield


@contextmanager
def silence_is_deafness() -> Iterator[None]:
    """Who hears no canary takes itself for deaf, whatever others hear."""

    def judge(self: CanarySchedule, **_: Any) -> Hearing:
        return Hearing.DEAF

    with patch.object(CanarySchedule, "judge", judge):
        yield


@contextmanager
def others_never_asked() -> Iterator[None]:
    """Nobody looks at what other nodes heard."""

    async def newest_canary_elsewhere(self: LeaseKeeper) -> int:
        return 0

    with patch.object(LeaseKeeper, "newest_canary_elsewhere", newest_canary_elsewhere):
        yield


@contextmanager
def no_heartbeat() -> Iterator[None]:
    """A lease is written once."""

    async def run(self: LeaseKeeper) -> None:
        await asyncio.get_running_loop().create_future()

    with patch.object(LeaseKeeper, "run", run):
        yield


@contextmanager
def background_task_ends() -> Iterator[None]:
    """Nobody looks at the logs' ends any more."""

    async def run(self: CatchUp) -> None:
        await asyncio.sleep(self._tails.every_s)

    with patch.object(CatchUp, "run", run):
        yield


@contextmanager
def task_fails_unseen() -> Iterator[None]:
    """A hole is read, and then something fails that nobody waits for."""
    original = OpenChannel._fill_hole

    async def fill_hole(self: OpenChannel) -> None:
        await original(self)
        raise RuntimeError("simulated")

    with patch.object(OpenChannel, "_fill_hole", fill_hole):
        yield


@contextmanager
def task_forgotten() -> Iterator[None]:
    """Something goes on after a hole was read, and nobody holds it: it may vanish at any moment."""
    original = OpenChannel._fill_hole

    async def go_on() -> None:
        await asyncio.get_running_loop().create_future()

    async def fill_hole(self: OpenChannel) -> None:
        await original(self)
        asyncio.ensure_future(go_on())  # noqa: RUF006  # nobody holds it

    with patch.object(OpenChannel, "_fill_hole", fill_hole):
        yield


@contextmanager
def command_fails() -> Iterator[None]:
    """Whoever reads history meets a fault of ours."""

    async def read_history(self: Reading, effect: Any) -> None:
        raise RuntimeError("simulated")

    with patch.object(Reading, "_read_history", read_history):
        yield


@contextmanager
def batch_for_late() -> Iterator[None]:
    """Who subscribes while publications wait gets them, though it stands behind them."""
    with patch.object(Batch, "joined", lambda _self, _member: None):
        yield


@contextmanager
def batch_dropped() -> Iterator[None]:
    """What was collected is forgotten when somebody subscribes."""

    def joined(self: Batch, member: object) -> None:
        self.published.clear()

    with patch.object(Batch, "joined", joined):
        yield


# ---- from node to node


@contextmanager
def repeats_carried_out() -> Iterator[None]:
    """Nobody remembers which signals for the node itself have come."""
    with patch.object(Intake, "_memory", lambda self, signal: Heard()):
        yield


@contextmanager
def another_id_each_time() -> Iterator[None]:
    """An attempt to publish an order that follows another is a new order to whoever hears both."""
    original = OrderPost._publish

    async def publish(self: OrderPost, signal: Signal, sent: SentSignal | None) -> None:
        if sent is None or await sent is not None:
            await original(self, replace(signal, id=signal.id + "-"), None)

    with patch.object(OrderPost, "_publish", publish):
        yield


@contextmanager
def order_told_before_it_is_sent() -> Iterator[None]:
    """Whoever gives an order is answered while it is sent, which may fail."""
    original = Orders.give

    def give(self: Orders, order: Any) -> asyncio.Future[None]:
        original(self, order)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        told.set_result(None)
        return told

    with patch.object(Orders, "give", give):
        yield


@contextmanager
def repeated_commands_taken() -> Iterator[None]:
    """Neither ids nor numbers are remembered."""
    with repeats_carried_out(), numbers_not_looked_at():
        yield


@contextmanager
def numbers_not_looked_at() -> Iterator[None]:
    """A session takes commands in the order in which they come, and again."""
    original = Sessions.take_from

    def take_from(self: Sessions, node: str, posted: Posted) -> Told | None:
        self._numbers.clear()
        return original(self, node, posted)

    with patch.object(Sessions, "take_from", take_from):
        yield


@contextmanager
def gone_is_taken() -> Iterator[None]:
    """A node says of commands of others that it has them, also if the session is gone."""
    original = Sessions.take_from

    def take_from(self: Sessions, node: str, posted: Posted) -> Told | None:
        answer = original(self, node, posted)
        if answer is not None and answer.outcome is Outcome.UNKNOWN:
            return Told(Outcome.TAKEN, len(posted.frames))
        return answer

    with patch.object(Sessions, "take_from", take_from):
        yield


@contextmanager
def lane_goes_on() -> Iterator[None]:
    """What follows commands that are lost is sent all the same."""

    async def carry(self: Emulation, node: str, session: str, lane: Any) -> None:
        batch = list[Any]()
        try:
            while lane:
                batch = emulation_module._batch(lane)
                frames = tuple(request.frame for request in batch)
                self._sent += 1
                answer = await self._ask(node, Posted(session, frames, self._sent))
                emulation_module._tell(batch[: answer.taken], Outcome.TAKEN)
                emulation_module._tell(batch, answer.outcome)
        finally:
            del self._lanes[node, session]
            emulation_module._tell([*batch, *lane], Outcome.LOST)

    with patch.object(Emulation, "_carry", carry):
        yield


@contextmanager
def refused_in_the_middle() -> Iterator[None]:
    """A session that has no room for one of several commands is said to have refused all."""
    original = Sessions.take_from

    def take_from(self: Sessions, node: str, posted: Posted) -> Told | None:
        answer = original(self, node, posted)
        if answer is not None and answer.outcome is Outcome.BUSY:
            return Told(Outcome.BUSY)
        return answer

    with patch.object(Sessions, "take_from", take_from):
        yield


@contextmanager
def several_under_way() -> Iterator[None]:
    """Commands of one session do not wait for those before them, and have no numbers."""

    async def take(self: Emulation, node: str, session: str, frame: bytes) -> Outcome:
        outcome = self.sessions.take(session, frame)
        if outcome is not Outcome.UNKNOWN or node == self._lease():
            return outcome
        return (await self._ask(node, Posted(session, (frame,), 1))).outcome

    with patch.object(Emulation, "take", take), numbers_not_looked_at():
        yield


# ---- filters


@contextmanager
def recoveries_not_filtered() -> Iterator[None]:
    """What was missed comes whether it passes or not."""
    with patch.object(subscribe_module, "_passing", lambda start, _: start):
        yield


@contextmanager
def tests_dropped() -> Iterator[None]:
    """What a turn has no room for is forgotten."""
    publish = Sieve.publish

    def published(self: Sieve, *arguments: Any) -> None:
        publish(self, *arguments)
        self.drop()

    with patch.object(Sieve, "publish", published):
        yield


# ---- versions, and recoveries of the newest publication


@contextmanager
def stale_is_appended() -> Iterator[None]:
    """Whatever its version is."""

    def fresh(
        versions: Iterable[Version | None], newest: Version | None
    ) -> tuple[list[bool], Version | None]:
        kept = list(versions)
        said = [version for version in kept if version is not None]
        return [True] * len(kept), said[-1] if said else newest

    with patch.object(appender_module, "fresh", fresh):
        yield


@contextmanager
def lost_race_decides_nothing() -> Iterator[None]:
    """What was not stale when an append began is not looked at again when it has lost a race."""
    original = Appender._leave_out_stale

    async def leave_out_stale(
        self: Appender, channel: str, lane: Lane, append: Any, tail: Tail
    ) -> Version | None:
        if not append.losses:
            return await original(self, channel, lane, append, tail)
        versions = (each.pending.version for each in append.batch)
        return next((version for version in versions if version is not None), None)

    with patch.object(Appender, "_leave_out_stale", leave_out_stale):
        yield


@contextmanager
def version_not_carried_on() -> Iterator[None]:
    """An append of publications without a version forgets the newest one."""
    original = rules.append_item

    def append_item(channel: str, tail: Tail, *arguments: Any, **named: Any) -> LogItem:
        return original(channel, replace(tail, newest_version=None), *arguments, **named)

    with patch.object(channel_log_module, "append_item", append_item):
        yield


@contextmanager
def heads_forget_versions() -> Iterator[None]:
    """A head that is renewed, or hides what is there, does not have the newest version."""
    original = rules.next_head

    def next_head(*arguments: Any, **named: Any) -> Head:
        return replace(original(*arguments, **named), newest_version=None)

    with patch.object(channel_log_module, "next_head", next_head):
        yield


@contextmanager
def superseded_told_before_its_time() -> Iterator[None]:
    """What others of an append make stale is answered at once, though they are not in the log."""
    original = Appender._leave_out_stale

    async def leave_out_stale(
        self: Appender, channel: str, lane: Lane, append: Any, tail: Tail
    ) -> Version | None:
        newest = await original(self, channel, lane, append, tail)
        early = [waiting for waiting, _ in append.superseded]
        append.batch = append.written
        append.superseded = []
        self._stale(lane, [(waiting, tail.position) for waiting in early])
        return newest

    with patch.object(Appender, "_leave_out_stale", leave_out_stale):
        yield


@contextmanager
def newest_is_what_the_node_knows() -> Iterator[None]:
    """A client that has seen more than the node gets the newest that the node has."""
    original = recover

    def recovered(
        since: StreamPosition, position: StreamPosition, ring: Ring, window: Window
    ) -> Answer:
        if window.newest_only and since.offset > position.offset:
            since = StreamPosition("", 0)
        return original(since, position, ring, window)

    with patch.object(join_reads_module, "recover", recovered):
        yield


@contextmanager
def newest_is_not_read() -> Iterator[None]:
    """Who wants the newest publication gets none, unless the node has it at hand."""
    original = recover

    def recovered(
        since: StreamPosition, position: StreamPosition, ring: Ring, window: Window
    ) -> Answer:
        answer = original(since, position, ring, window)
        return Unrecovered() if answer == LogNeeded(ahead=False) else answer

    with patch.object(join_reads_module, "recover", recovered):
        yield


MUTATIONS = (
    Mutation("no hold", Kind.SKIPPED, no_hold),
    Mutation("repeats not dropped", Kind.REPEATED, no_repeats_dropped),
    Mutation("holes never read", Kind.STUCK, holes_never_read),
    Mutation("other epochs ignored", Kind.STUCK, other_epochs_ignored, seeds=2000),
    Mutation(
        "own epoch never doubted", Kind.REFUSED, own_epoch_never_doubted, alone=True, seeds=2000
    ),
    Mutation("no tail check", Kind.STUCK, no_tail_check),
    Mutation("reply at the read position", Kind.SKIPPED, reply_at_read_position),
    Mutation("hub before reply", Kind.EARLY, hub_before_reply),
    Mutation(
        "one failed read of a hole is enough",
        Kind.ENDED,
        one_failed_read_is_enough,
        alone=True,
        seeds=2000,
    ),
    Mutation("a ring that begins too late", Kind.SKIPPED, ring_begins_too_late),
    Mutation("recovery refused without a read", Kind.REFUSED, log_never_asked, alone=True),
    Mutation("who is ahead is refused", Kind.REFUSED, who_is_ahead_is_refused, alone=True),
    Mutation("recovery of any number", Kind.BEYOND, as_many_as_there_are, alone=True),
    Mutation("recovery of any age", Kind.BEYOND, however_old, alone=True),
    Mutation("no batch id", Kind.TWICE, no_batch_id),
    Mutation("the winner does not give way", Kind.STARVED, winner_goes_on_at_once),
    Mutation(
        "a retry from the tail learned before the pause", Kind.STARVED, tail_from_before_the_pause
    ),
    Mutation("no rotation", Kind.REUSED, no_rotation),
    Mutation("the floor is skipped", Kind.HOLE, floor_skipped),
    Mutation("no margin", Kind.REUSED, no_margin, seeds=2000),
    Mutation("deadlines from configuration", Kind.REUSED, deadlines_from_configuration),
    Mutation("expired tail used late", Kind.REUSED, expired_tail_used_late, seeds=2000),
    Mutation("a second append after an unknown outcome", Kind.TWICE, append_again_after_unknown),
    Mutation("history deleted instead of trimmed", Kind.REUSED, history_deleted),
    Mutation("removed history shown", Kind.HISTORY, removed_history_shown),
    Mutation("no consistent read", Kind.ENDED, inconsistent_reads),
    Mutation("ack before commit", Kind.LOST, ack_before_commit),
    Mutation("overtaken in the lane", Kind.ORDER, overtaken_in_the_lane, alone=True),
    Mutation("two appends in flight", Kind.ORDER, two_appends_in_flight, alone=True),
    Mutation(
        "the next offset before the last is known", Kind.HOLE, next_offset_before_the_last_is_known
    ),
    Mutation("key ignored", Kind.TWICE, key_ignored),
    Mutation("key written after the append", Kind.TWICE, keys_written_afterwards),
    Mutation("a repeated key is told the tail", Kind.PLACE, key_taken_tells_the_tail),
    Mutation("keyed publications sent at any time", Kind.TWICE, keyed_sent_at_any_time, seeds=2000),
    Mutation("delete before dispatch", Kind.LATE, deleted_before_dispatched, seeds=2000),
    Mutation("silence is never looked into", Kind.DEAF, silence_never_looked_into, text="notice"),
    Mutation(
        "a deaf node keeps its queue", Kind.DEAF, deaf_node_keeps_its_queue, text="does not hear"
    ),
    Mutation(
        "nothing is caught up with",
        Kind.DEAF,
        nothing_caught_up_with,
        text="was not read from the log",
    ),
    Mutation(
        "a topic shard is joined and not caught up with",
        Kind.LATE,
        shard_joined_and_not_caught_up_with,
        sharded=True,
    ),
    Mutation(
        "a topic shard is trusted once subscribed",
        Kind.LATE,
        shard_trusted_once_subscribed,
        sharded=True,
    ),
    Mutation(
        "a topic shard is trusted for ever",
        Kind.DEAF,
        shard_trusted_for_ever,
        text="topic shards",
        sharded=True,
    ),
    Mutation(
        "a topic shard proves the base topic",
        Kind.DEAF,
        shard_proves_the_base,
        text="notice",
        sharded=True,
    ),
    Mutation(
        "an express hint before its commit",
        Kind.REUSED,
        hint_before_commit,
        text="express:",
        express=True,
    ),
    Mutation(
        "an express hint is a sign of the stream",
        Kind.DEAF,
        hint_is_a_sign_of_the_stream,
        text="did not come round",
        express=True,
    ),
    Mutation("an express hint is not held", Kind.SKIPPED, hint_is_not_held, express=True),
    Mutation(
        "the repeat of an express hint is not dropped",
        Kind.REPEATED,
        repeat_of_a_hint_not_dropped,
        express=True,
    ),
    Mutation("what is stale is appended", Kind.STALE, stale_is_appended, latest=True),
    Mutation(
        "a lost race decides nothing",
        Kind.STALE,
        lost_race_decides_nothing,
        text="behind",
        latest=True,
        seeds=2000,
    ),
    Mutation("a version is not carried on", Kind.STALE, version_not_carried_on, latest=True),
    Mutation(
        "heads forget versions", Kind.STALE, heads_forget_versions, text="a head", latest=True
    ),
    Mutation(
        "a superseded publication is told before its time",
        Kind.STALE,
        superseded_told_before_its_time,
        text="was left out",
        latest=True,
    ),
    Mutation(
        "the newest is what the node knows",
        Kind.REPEATED,
        newest_is_what_the_node_knows,
        latest=True,
    ),
    Mutation("the newest is not read", Kind.REFUSED, newest_is_not_read, alone=True, latest=True),
    Mutation("a batch goes to who came later as well", Kind.REPEATED, batch_for_late, batched=True),
    Mutation("a batch is dropped", Kind.SKIPPED, batch_dropped, batched=True),
    Mutation("recoveries are not filtered", Kind.UNWANTED, recoveries_not_filtered, filtered=True),
    Mutation("tests of a full turn are dropped", Kind.SKIPPED, tests_dropped, filtered=True),
    Mutation("a repeat is carried out", Kind.ORDERS, repeats_carried_out, text="twice"),
    Mutation(
        "a repeated command is taken", Kind.COMMANDS, repeated_commands_taken, text="taken at"
    ),
    Mutation("a repeat has another id", Kind.ORDERS, another_id_each_time, text="twice"),
    Mutation(
        "an order is told before it is sent",
        Kind.ORDERS,
        order_told_before_it_is_sent,
        text="was not told",
    ),
    Mutation("no session takes commands", Kind.COMMANDS, gone_is_taken, text="said to be taken"),
    Mutation(
        "commands that were taken are refused",
        Kind.COMMANDS,
        refused_in_the_middle,
        text="said to be refused",
        seeds=2000,
    ),
    Mutation("commands overtake", Kind.COMMANDS, several_under_way, text="later"),
    Mutation("what follows a lost command goes on", Kind.COMMANDS, lane_goes_on, text="was not"),
    Mutation("everybody emits", Kind.CANARIES, everybody_emits, text=" in 300 s"),
    Mutation(
        "silence is deafness", Kind.DEAF, silence_is_deafness, text="the stream was silent; unready"
    ),
    Mutation(
        "others are never asked", Kind.DEAF, others_never_asked, text="that it is deaf", alone=True
    ),
    Mutation("no heartbeat", Kind.DEAF, no_heartbeat, text="its lease ended"),
    Mutation("a background task ends", Kind.MISHAP, background_task_ends, text="catch up of node"),
    Mutation("a task fails unseen", Kind.MISHAP, task_fails_unseen, text="simulated", alone=True),
    Mutation("a task is forgotten", Kind.MISHAP, task_forgotten, text="destroyed", alone=True),
    Mutation("a command fails", Kind.MISHAP, command_fails, text="command_failed"),
)
