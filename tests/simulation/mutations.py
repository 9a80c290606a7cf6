"""Ways to break the code that the checker must notice: each takes away one thing that an invariant rests on.

They are applied to the real classes for the time of one run, and undone. `seeds` bounds how many scenarios may
be needed until the checker complains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import service.log.appender as appender_module
import service.log.channel_log as channel_log_module
from service.adapters.memory import MemoryChannelTable
from service.core import log as rules
from service.core.idempotency import KeyItem
from service.core.log import MARGIN_MS, MIN_RETENTION_MS, Tail
from service.core.log_item import HEAD_OFFSET, Head, LogItem
from service.core.publication import Publication, Record, StreamPosition
from service.core.recovery import Ring, Sent
from service.core.resequencer import Next, Resequencer
from service.delivery.dispatcher import Dispatcher, Joined
from service.delivery.poller import Poller
from service.log.appender import Appender
from service.log.channel_log import Appended, ChannelLog, KeyTaken, Lost, NotAppended
from service.ports import Message, PortError, UnknownOutcome

__all__ = ["MUTATIONS", "Mutation"]


@dataclass(frozen=True, slots=True)
class Mutation:
    """`breaks`: the invariant that must be seen broken. `apply` patches the code for the time of its context."""

    name: str
    breaks: str
    apply: Callable[[], AbstractContextManager[None]]
    seeds: int = 400


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
def holes_ignored() -> Iterator[None]:
    """A hole is never read from the log."""

    def attend(self: Dispatcher, channel: Any) -> None:
        pass

    with patch.object(Dispatcher, "_attend", attend):
        yield


@contextmanager
def other_epochs_ignored() -> Iterator[None]:
    """A channel whose epoch ended is served as if it had not."""

    def compare(self: Dispatcher, channel: Any, resequencer: Resequencer, resolved: Any) -> None:
        pass

    with patch.object(Dispatcher, "_compare", compare):
        yield


@contextmanager
def no_tail_check() -> Iterator[None]:
    """Nobody looks for a last publication whose hints were all lost."""

    async def nothing(self: Dispatcher) -> None:
        await asyncio.get_running_loop().create_future()

    async def at_once(self: Dispatcher) -> None:
        return

    with patch.object(Dispatcher, "watch", nothing), patch.object(Dispatcher, "catch_up", at_once):
        yield


@contextmanager
def reply_at_read_position() -> Iterator[None]:
    """The reply tells the position that was read, though time passed before the subscriber joined the hub."""
    original = Dispatcher._place

    async def place(self: Dispatcher, *arguments: Any) -> Joined:
        joined = await original(self, *arguments)
        await asyncio.sleep(0.05)
        return joined

    with patch.object(Dispatcher, "_place", place):
        yield


@contextmanager
def hub_before_reply() -> Iterator[None]:
    """A subscriber joins the hub before its reply is queued."""
    original = Dispatcher.join

    async def join(self: Dispatcher, name: str, subscriber: Any, *arguments: Any) -> None:
        self._hub.add(name, subscriber)
        await original(self, name, subscriber, *arguments)

    with patch.object(Dispatcher, "join", join):
        yield


@contextmanager
def ring_with_holes() -> Iterator[None]:
    """What a ring lost at its front is not noticed when a client recovers."""

    def after(self: Ring, offset: int, top: int) -> list[Sent] | None:
        return [sent for sent in self._sent if sent.offset > offset and sent.offset % 7]

    with patch.object(Ring, "after", after):
        yield


# ---- the log


@contextmanager
def no_batch_id() -> Iterator[None]:
    """Our own earlier attempt is taken for another node's append."""
    original = MemoryChannelTable.put_item

    async def put_item(self: MemoryChannelTable, item: LogItem, believed_until_ms: int) -> LogItem | None:
        holder = await original(self, item, believed_until_ms)
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
    """The newest item is believed for ever, and where there is none the head is."""
    for_ever = 10**18

    def item_tail(item: LogItem, now: int, generation: str) -> Tail | None:
        return Tail(item.epoch, item.last, for_ever, item.expires_at)

    def head_tail(head: Head | None, newest: LogItem | None, now: int, generation: str) -> Tail | None:
        return Tail(head.epoch, head.floor, for_ever, 0) if head is not None else None

    @contextmanager
    def apply() -> Iterator[None]:
        with _patched_tail(item_tail), patch.object(channel_log_module, "head_tail", head_tail):
            yield

    return apply()


def no_margin() -> AbstractContextManager[None]:
    """A tail is believed until it expires, by one's own clock."""

    def item_tail(item: LogItem, now: int, generation: str) -> Tail | None:
        tail = rules.item_tail(item, now - MARGIN_MS, generation)
        return replace(tail, believed_until=tail.believed_until + MARGIN_MS) if tail else None

    return _patched_tail(item_tail)


def deadlines_from_configuration() -> AbstractContextManager[None]:
    """Belief rests on what this release and configuration would keep, not on what the item says."""
    longest_ms = 3 * 86_400 * 1000

    def item_tail(item: LogItem, now: int, generation: str) -> Tail | None:
        believed_until = item.ts + max(longest_ms, MIN_RETENTION_MS) - MARGIN_MS
        return Tail(item.epoch, item.last, believed_until, item.expires_at) if believed_until > now else None

    return _patched_tail(item_tail)


@contextmanager
def belief_not_checked_late() -> Iterator[None]:
    """A writer that was suspended between its decision and its write goes on as if no time had passed."""
    with patch.object(MemoryChannelTable, "_belief", lambda self, until_ms: lambda: None):
        yield


@contextmanager
def append_again_after_unknown() -> Iterator[None]:
    """After a lost answer the same content is appended anew, behind whatever is the tail by then."""
    original = MemoryChannelTable.put_item

    async def put_item(self: MemoryChannelTable, item: LogItem, believed_until_ms: int) -> LogItem | None:
        try:
            return await original(self, item, believed_until_ms)
        except UnknownOutcome as error:
            raise _AppendAgain from error

    async def append(self: ChannelLog, channel: str, tail: Tail, *arguments: Any) -> Appended | Lost:
        while True:
            try:
                return await original_append(self, channel, tail, *arguments)
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
        table = self._table
        assert isinstance(table, MemoryChannelTable)
        items = table._world.items.get(channel, {})
        for offset in [offset for offset in items if offset != HEAD_OFFSET]:
            del items[offset]
        return resolved.tail.position

    with patch.object(ChannelLog, "remove_history", remove_history):
        yield


@contextmanager
def inconsistent_reads() -> Iterator[None]:
    """Reads of the table come from a replica that may lag behind."""
    original = MemoryChannelTable._items
    original_log = MemoryChannelTable._log_items

    def lagging(self: MemoryChannelTable, items: Sequence[LogItem]) -> set[int]:
        random = self._world.random  # type: ignore[attr-defined]  # a simulated world
        newest = self._world.stream[-4:]
        return {item.offset for item in items if item in newest and random.random() < 0.5}

    async def newest(self: MemoryChannelTable, channel: str) -> LogItem | Head | None:
        def effect() -> LogItem | Head | None:
            items = dict(original(self, channel))
            for offset in lagging(self, [item for item in items.values() if isinstance(item, LogItem)]):
                del items[offset]
            return items[max(items)] if items else None

        return await self._world.perform("newest", effect)

    def log_items(self: MemoryChannelTable, channel: str) -> list[LogItem]:
        items = original_log(self, channel)
        missing = lagging(self, items)
        return [item for item in items if item.offset not in missing]

    with (
        patch.object(MemoryChannelTable, "newest", newest),
        patch.object(MemoryChannelTable, "_log_items", log_items),
    ):
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
        *key: Any,
        **received: Any,
    ) -> asyncio.Future[StreamPosition]:
        original(self, channel, publication, history_ttl_ms, *key, **received)
        done: asyncio.Future[StreamPosition] = asyncio.get_running_loop().create_future()
        done.set_result(StreamPosition("unknown", 0))
        return done

    with patch.object(Appender, "submit", submit):
        yield


@contextmanager
def two_appends_in_flight() -> Iterator[None]:
    """The next offset is tried before the last one is known to be in."""
    original = ChannelLog.append

    async def append(
        self: ChannelLog, channel: str, tail: Tail, publications: Sequence[Any], history_ttl_ms: int
    ) -> Appended | Lost:
        half = len(publications) // 2
        if not half:
            return await original(self, channel, tail, publications, history_ttl_ms)
        ahead = replace(tail, top=tail.top + half)
        _, second = await asyncio.gather(
            original(self, channel, tail, publications[:half], history_ttl_ms),
            original(self, channel, ahead, publications[half:], history_ttl_ms),
        )
        return second

    with patch.object(ChannelLog, "append", append):
        yield


# ---- idempotency keys


@contextmanager
def key_ignored() -> Iterator[None]:
    """What comes with a key is appended like everything else."""

    async def append_keyed(
        self: ChannelLog, channel: str, tail: Tail, publication: Any, history_ttl_ms: int, **_: Any
    ) -> Appended | Lost:
        return await self.append(channel, tail, [publication], history_ttl_ms)

    with patch.object(ChannelLog, "append_keyed", append_keyed):
        yield


@contextmanager
def key_written_afterwards() -> Iterator[None]:
    """Three calls instead of a transaction: read the key, write the item, write the key."""

    async def put_keyed_item(
        self: MemoryChannelTable, item: LogItem, key: KeyItem, believed_until_ms: int
    ) -> LogItem | KeyItem | None:
        holder = await self._world.perform("get_key", lambda: self._world.keys.get(key.key))
        if holder is not None:
            return holder

        winner = await self.put_item(item, believed_until_ms)
        if winner is None or winner.batch == item.batch:
            await self._world.perform("put_key", lambda: self._world.keys.setdefault(key.key, key))
        return winner

    with patch.object(MemoryChannelTable, "put_keyed_item", put_keyed_item):
        yield


@contextmanager
def key_taken_tells_the_tail() -> Iterator[None]:
    """Who repeats a key is told where the log ends, not where its publication is."""
    original = ChannelLog.append_keyed

    async def append_keyed(self: ChannelLog, channel: str, tail: Tail, *arguments: Any, **key: Any) -> Any:
        outcome = await original(self, channel, tail, *arguments, **key)
        return KeyTaken(tail.position) if isinstance(outcome, KeyTaken) else outcome

    with patch.object(ChannelLog, "append_keyed", append_keyed):
        yield


@contextmanager
def keyed_sent_at_any_time() -> Iterator[None]:
    """What a node took before it was suspended for a day is sent when it wakes, the key long forgotten."""
    original = ChannelLog.append_keyed

    async def append_keyed(self: ChannelLog, *arguments: Any, commit_by_ms: int, **key: Any) -> Any:
        return await original(self, *arguments, commit_by_ms=10**18, **key)

    with patch.object(ChannelLog, "append_keyed", append_keyed):
        yield


# ---- the queue


@contextmanager
def deleted_before_dispatched() -> Iterator[None]:
    """Messages are acknowledged first; an interruption before they are taken (here every other one) loses them."""

    async def hand_on(self: Poller, messages: Sequence[Message]) -> None:
        if messages:
            try:
                await self._queue.delete([message.receipt for message in messages])
            except PortError:
                return
            if self._random() > 0.5:
                self._take([message.body for message in messages])

    with patch.object(Poller, "_hand_on", hand_on):
        yield


MUTATIONS = (
    Mutation("no hold", "I3", no_hold),
    Mutation("repeats not dropped", "I3", no_repeats_dropped),
    Mutation("holes never read", "I3", holes_ignored),
    Mutation("other epochs ignored", "I3", other_epochs_ignored),
    Mutation("no tail check", "I3", no_tail_check),
    Mutation("reply at the read position", "I3", reply_at_read_position),
    Mutation("hub before reply", "I4", hub_before_reply),
    Mutation("ring with holes", "I3", ring_with_holes),
    Mutation("no batch id", "I2", no_batch_id),
    Mutation("no rotation", "I1", no_rotation),
    Mutation("no margin", "I1", no_margin),
    Mutation("deadlines from configuration", "I1", deadlines_from_configuration),
    Mutation("belief not checked late", "I1", belief_not_checked_late, seeds=1500),
    Mutation("a second append after an unknown outcome", "I2", append_again_after_unknown),
    Mutation("history deleted instead of trimmed", "I1", history_deleted),
    Mutation("no consistent read", "I", inconsistent_reads),
    Mutation("ack before commit", "I2", ack_before_commit),
    Mutation("two appends in flight", "I", two_appends_in_flight),
    Mutation("key ignored", "I2", key_ignored),
    Mutation("key written after the append", "I2", key_written_afterwards),
    Mutation("a repeated key is told the tail", "I2", key_taken_tells_the_tail),
    Mutation("keyed publications sent at any time", "I2", keyed_sent_at_any_time, seeds=3000),
    Mutation("delete before dispatch", "late", deleted_before_dispatched),
)
