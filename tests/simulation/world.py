"""The simulated AWS: tables, stream, Lambda, topic and queues that delay, repeat, reorder, lose,
throttle and forget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from random import Random
from typing import TypeVar

from roomcast.delivery.envelope import checked_pubs, pack, record_text
from roomcast.delivery.shards import homes
from roomcast.log.channel_log import decode_publications
from roomcast.log.item import HEAD_OFFSET, Head, LogItem
from roomcast.log.ports import Page
from roomcast.log.rules import MARGIN_MS
from roomcast.ports import Clock, PortError, Throttled, UnknownOutcome
from roomcast.testing.memory import MemoryChannelTable, MemoryWorld
from roomcast.wire.encoding import sent_of
from roomcast.wire.publication import MalformedPublication
from tests.simulation.reasons import Position, Readable, Truth

T = TypeVar("T")

# A request may be under way for this long; with twice the clock skew it stays below MARGIN.
REQUEST_S_MAX = 60.0
VISIBILITY_S = 12.0
# How long a subscription to a topic shard may take to take effect.
SUBSCRIBING_S_MAX = 5.0


@dataclass(slots=True)
class Faults:
    """Probabilities a call or message, and bounds in seconds. All zero: a world without faults."""

    throttled: float = 0.0
    unknown: float = 0.0
    slow: float = 0.0
    latency_s: float = 0.01
    hint_lost: float = 0.0
    hint_repeated: float = 0.0
    hint_late_s: float = 0.1
    # Of messages with express hints, beyond what happens to all messages.
    express_lost: float = 0.0
    express_late_s: float = 0.0


@dataclass(slots=True)
class Fate:
    """What the simulation does to one node; the world asks for it by the task that calls."""

    dead: bool = False
    # Done when the process goes on.
    frozen: asyncio.Future[None] | None = None
    frozen_at_s: float = 0.0
    thawed_at_s: float = -inf
    # Called with the seconds it took, before anything goes on.
    woken: Callable[[float], None] = lambda _: None

    def freeze(self, seconds: float) -> None:
        if self.frozen is None:
            loop = asyncio.get_running_loop()
            self.frozen = loop.create_future()
            self.frozen_at_s = loop.time()
            loop.call_later(seconds, self.thaw)

    def thaw(self) -> None:
        frozen, self.frozen = self.frozen, None
        if frozen is not None:
            self.thawed_at_s = asyncio.get_running_loop().time()
            self.woken(self.thawed_at_s - self.frozen_at_s)
            frozen.set_result(None)


FATE: ContextVar[Fate | None] = ContextVar("fate", default=None)

_ANSWERS_ONLY = ("receive", "delete", "open", "close", "subscribe", "unsubscribe")
# The calls that an outage of reads takes away.
READS = frozenset({"newest", "head", "read_behind", "read_forward", "read_backward"})


class SimulatedWorld(MemoryWorld):
    """A MemoryWorld in which every call meets the faults of the moment.
    `random` decides, so a seed repeats all.
    """

    def __init__(self, random: Random, faults: Faults) -> None:
        super().__init__()
        self.random = random
        self.faults = faults
        self.calls = 0
        # By how much nodes' clocks may be wrong; `now_ms` is right.
        self.skew_ms = 0
        # Every head there ever was, in the order of writing, as `stream` has the log items.
        self.heads: list[Head] = []
        # When each item of `stream` was written.
        self.written_s: list[float] = []
        # What is or was in the log: (channel, epoch, offset).
        self.committed: set[tuple[str, str, int]] = set()
        # Calls that are refused for now; None = all of them.
        self.down: frozenset[str] | None = frozenset()
        # When a call was last refused, lost, slow or suspended:
        # errors that clients are told come from that.
        self.troubled_s = -inf
        # Until then nothing arrives in a queue.
        self.silent_until_s = 0.0
        # Queues in which nothing arrives for good, as with a policy that refuses the topic.
        self.deaf: set[str] = set()
        # Whether nothing arrives in a queue, whatever else may be said of it.
        self.is_cut_off: Callable[[str], bool] = lambda _: False
        # The number of topic shards that the Lambda goes by.
        self.shards = 1
        # Subscriptions to topic shards that have not taken effect, by queue and topic shard.
        self._subscribing: dict[tuple[str, int], asyncio.TimerHandle] = {}
        # Until then the stream brings nothing; later it brings all.
        self._still_until_s = 0.0
        self.on_insert.append(self._streamed)
        self._unread: list[LogItem] = []
        self._lambda_due = False
        self._nevers: list[asyncio.Future[None]] = []

    async def perform(
        self, call: str, effect: Callable[[], T], check: Callable[[], None] | None = None
    ) -> T:
        fate = FATE.get()
        self.calls += 1
        if call == "put_head":
            effect = self._noting_heads(effect)
        await self._stand_still(fate)
        if check is not None:
            check()
        faults, random = self.faults, self.random
        await asyncio.sleep(self._latency())
        if fate is not None and fate.dead:
            if random.random() < 0.5:
                _unheard(effect)  # it was on its way when its sender died
            await self._never()
        roll = random.random()
        if self.down is None or call in self.down:
            self._note_trouble()
            raise Throttled("simulated outage")
        if roll < faults.throttled:
            self._note_trouble()
            raise Throttled("simulated")
        if roll < faults.throttled + faults.unknown:
            return await self._lose_answer(call, effect)
        result = effect()
        await asyncio.sleep(self._latency())
        await self._stand_still(fate)
        return result

    async def _lose_answer(self, call: str, effect: Callable[[], T]) -> T:
        random = self.random
        kind = random.choice(("nothing", "applied", "late"))
        if kind == "applied":
            effect()
        elif kind == "late" and call not in _ANSWERS_ONLY:
            late_s = random.uniform(0, REQUEST_S_MAX)
            asyncio.get_running_loop().call_later(late_s, _unheard, effect)
        if call in ("receive", "delete"):
            asyncio.get_running_loop().call_later(VISIBILITY_S, self.redeliver_all)
        await asyncio.sleep(self._latency())
        self._note_trouble()
        raise UnknownOutcome("simulated")

    async def _stand_still(self, fate: Fate | None) -> None:
        """A process that is suspended goes on later as if nothing had
        happened; a dead one never.
        """
        if fate is None:
            return
        if fate.dead:
            await self._never()
        while fate.frozen is not None:
            self._note_trouble()
            await asyncio.shield(fate.frozen)
            self._note_trouble()
        if fate.dead:
            await self._never()

    def _note_trouble(self) -> None:
        self.troubled_s = asyncio.get_running_loop().time()

    def _latency(self) -> float:
        if self.random.random() < self.faults.slow:
            self._note_trouble()
            return self.random.uniform(0, REQUEST_S_MAX / 2)
        return self.random.uniform(0, self.faults.latency_s)

    async def _never(self) -> None:
        """What a dead process waits for. Kept, or its tasks would be taken for
        tasks that nobody holds.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._nevers.append(future)
        await future

    def redeliver_all(self) -> None:
        for name in list(self.queues):
            self.redeliver(name)

    # ---- stream, Lambda, topic

    def _streamed(self, item: LogItem) -> None:
        self.written_s.append(asyncio.get_running_loop().time())
        self.committed.update(
            (item.channel, item.epoch, offset) for offset in range(item.offset, item.last + 1)
        )
        self._unread.append(item)
        if not self._lambda_due:
            self._lambda_due = True
            delay = self.random.uniform(0.01, 0.05 + self.faults.hint_late_s)
            asyncio.get_running_loop().call_later(delay, self._run_lambda)

    def stand_still(self, seconds: float) -> None:
        """The stream brings nothing for so long from now."""
        self._still_until_s = asyncio.get_running_loop().time() + seconds
        if self._lambda_due:
            self._run_lambda()

    def _run_lambda(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._still_until_s:
            loop.call_at(self._still_until_s, self._run_lambda)
            return
        self._lambda_due = False
        items, self._unread = self._unread, []
        self.random.shuffle(items)  # order is promised for one item only
        by_home: dict[int | None, list[LogItem]] = {}
        for item in items:
            for home in homes(item.channel, self.shards):
                by_home.setdefault(home, []).append(item)
        for home, of_home in by_home.items():
            for body, _ in pack(_texts(of_home), shards=self.shards, shard=home):
                self.send(body, home)
                if self.random.random() < self.faults.hint_repeated:
                    self.send(body, home)  # the batch was retried

    def send(self, body: str, shard: int | None = None) -> None:
        """From a topic to each queue on its own: late, twice, or not at all."""
        loop, faults, random = asyncio.get_running_loop(), self.faults, self.random
        is_express = '"express":[' in body
        for name in self.subscribers(shard):
            copies = (
                0 if random.random() < faults.hint_lost or loop.time() < self.silent_until_s else 1
            )
            copies += random.random() < faults.hint_repeated
            if is_express and random.random() < faults.express_lost:
                copies = 0
            for _ in range(copies):
                late_s = random.uniform(0, faults.hint_late_s)
                if is_express:
                    late_s += random.uniform(0, faults.express_late_s)
                loop.call_later(late_s, self._arrive, name, body)

    def mail(self, name: str, body: str) -> None:
        """From a node into one queue: late, and perhaps twice. SQS loses nothing, as long as there
        is the queue.
        """
        loop, faults, random = asyncio.get_running_loop(), self.faults, self.random
        copies = 1 + (random.random() < faults.hint_repeated)
        for _ in range(copies):
            loop.call_later(random.uniform(0, faults.hint_late_s), self._bring, name, body)

    def _bring(self, name: str, body: str) -> None:
        if not self.is_cut_off(name):
            self.deliver(name, body)

    def _arrive(self, name: str, body: str) -> None:
        if name in self.queues and name not in self.deaf and not self.is_cut_off(name):
            self.deliver(name, body)

    def subscribe(self, name: str, shard: int | None = None) -> None:
        """To the base topic at once, since a node proves that in its own time as well."""
        if shard is None:
            super().subscribe(name)
        elif name not in self.subscribers(shard) and (name, shard) not in self._subscribing:
            self._subscribing[name, shard] = asyncio.get_running_loop().call_later(
                self.random.uniform(0, SUBSCRIBING_S_MAX), self._subscribed_to, name, shard
            )

    def unsubscribe(self, name: str, shard: int | None = None) -> None:
        if shard is not None and (late := self._subscribing.pop((name, shard), None)):
            late.cancel()
        super().unsubscribe(name, shard)

    def _subscribed_to(self, name: str, shard: int) -> None:
        del self._subscribing[name, shard]
        super().subscribe(name, shard)

    # ---- what the log is

    def _noting_heads(self, effect: Callable[[], T]) -> Callable[[], T]:
        """Whenever it takes place: an answer may be lost, or a write late."""

        def noting() -> T:
            result = effect()
            if result:
                known = {head.version for head in self.heads}
                heads = (items.get(HEAD_OFFSET) for items in self.items.values())
                new = [
                    head for head in heads if isinstance(head, Head) and head.version not in known
                ]
                if any(head.epoch not in {known.epoch for known in self.heads} for head in new):
                    # Who is about to join is asked to come again.
                    self._note_trouble()
                self.heads += new
            return result

        return noting

    def truth(self, channel: str) -> Truth:
        """What the log of `channel` is right now."""
        epoch, top = self.end(channel)
        items = self.items.get(channel, {})
        readable: dict[int, Readable] = {}
        for item in items.values():
            if isinstance(item, LogItem) and item.epoch == epoch:
                readable |= _readable(item)
        head = items.get(HEAD_OFFSET)
        # Nodes' clocks decide when an epoch is over.
        current = frozenset(
            self._epoch(channel, self.now_ms() + skew) for skew in (-self.skew_ms, 0, self.skew_ms)
        )
        trim = head.trim if isinstance(head, Head) else 0
        return Truth(epoch, top, trim, readable, is_ending=len(current | {epoch}) > 1)

    def end(self, channel: str) -> Position:
        """Where its log ends: of the epoch that a reader would find now,
        or else of the one that was the last.
        """
        epoch = self._epoch(channel, self.now_ms())
        if epoch is None:
            newest, head = self._newest_and_head(channel)
            told = (
                head
                if head is not None and head.floor >= (newest.last if newest else 0)
                else newest
            )
            epoch = told.epoch if told is not None else ""
        written = [
            item.last for item in self.stream if item.channel == channel and item.epoch == epoch
        ]
        began = [
            head.floor for head in self.heads if head.channel == channel and head.epoch == epoch
        ]
        return epoch, max(written, default=began[0] if began else 0)

    def ends_alike(self, channel: str) -> set[Position]:
        """Where the log ends, and where the epochs before ended since which
        nothing was published.
        """
        end = self.end(channel)
        alike = {end}
        began = {head.epoch: head.floor for head in reversed(self.heads) if head.channel == channel}
        epochs = list(began)
        for epoch in epochs[epochs.index(end[0]) :] if end[0] in began else ():
            written = [
                item.last for item in self.stream if item.channel == channel and item.epoch == epoch
            ]
            alike.add((epoch, max(written, default=began[epoch])))
            if written:
                break
        return alike

    def _epoch(self, channel: str, now_ms: int) -> str | None:
        """The tail that the newest item, and else the head, tells at `now_ms`;
        None = a new epoch begins.
        """
        newest, head = self._newest_and_head(channel)
        if newest is not None and newest.expires_at * 1000 - MARGIN_MS > now_ms:
            return newest.epoch
        if head is None or head.tail_valid_until - MARGIN_MS <= now_ms:
            return None
        return head.epoch if newest is None or head.floor >= newest.last else None

    def _newest_and_head(self, channel: str) -> tuple[LogItem | None, Head | None]:
        items = self.items.get(channel, {})
        newest, head = items[max(items)] if items else None, items.get(HEAD_OFFSET)
        return newest if isinstance(newest, LogItem) else None, head if isinstance(
            head, Head
        ) else None

    # ---- the table forgets

    def expire_some(self, now_ms: int) -> None:
        """TTL deletes some of the expired items, in any order."""
        for channel in sorted(self.items):
            expired = [
                offset
                for offset, item in sorted(self.items[channel].items())
                if item.expires_at * 1000 < now_ms
            ]
            for offset in expired:
                if self.random.random() < 0.6:
                    self.expire(channel, offset)
        for key in sorted(self.keys):
            if self.keys[key].expires_at * 1000 < now_ms and self.random.random() < 0.6:
                self.expire_key(key)


class SimulatedTable(MemoryChannelTable):
    """One node's way to the table."""

    def __init__(self, world: SimulatedWorld, clock: Clock) -> None:
        super().__init__(world, clock)
        # By channel: since when all reads of a stretch of its log failed.
        self._unanswered_since_s: dict[str, float] = {}

    def unanswered_s(self, channel: str) -> float:
        """For how long all reads of a stretch of the log have failed."""
        now_s = asyncio.get_running_loop().time()
        return now_s - self._unanswered_since_s.get(channel, now_s)

    async def read_forward(self, channel: str, from_offset: int, items_max: int) -> Page:
        begun_s = asyncio.get_running_loop().time()
        try:
            page = await super().read_forward(channel, from_offset, items_max)
        except PortError:
            self._unanswered_since_s.setdefault(channel, begun_s)
            raise
        self._unanswered_since_s.pop(channel, None)
        return page


def _unheard(effect: Callable[[], object]) -> None:
    """What a call does whose answer nobody gets, such as that there is no such queue."""
    with suppress(PortError):
        effect()


def _texts(items: list[LogItem]) -> Iterator[str]:
    """Of those that are whole: the Lambda skips the others."""
    for item in items:
        try:
            yield record_text(item, checked_pubs(item))
        except MalformedPublication:
            continue


@lru_cache(maxsize=1024)
def _readable(item: LogItem) -> dict[int, Readable]:
    try:
        publications = decode_publications(item.pubs, item.offset)
    except MalformedPublication:
        return {}
    return {each.offset: Readable(item.ts, len(sent_of(each, 0).line)) for each in publications}
