"""In-memory twins of every port over one shared world, for tests and simulation.

They give the guarantees of service/roomcast/ports.py, and have no clock or randomness of their own.
A test can inject the faults of AWS: a call fails, takes effect although its answer is lost, or
takes effect much later.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeVar

from roomcast.aws.presence import CHANNELS_PAGE, ENTRIES_PAGE, MEMBERS_MAX
from roomcast.aws.queue import RECEIVE_MAX, is_queue_name
from roomcast.aws.topic import check_body
from roomcast.delivery.ports import Gone, Message
from roomcast.delivery.shards import topic_of
from roomcast.fleet.deployment import Deployment, Queue, TopicSubscription
from roomcast.fleet.lease_record import Lease, Tombstone
from roomcast.log.idempotency import KeyItem
from roomcast.log.item import HEAD_OFFSET, Head, LogItem
from roomcast.log.ports import Holders, Page, TailExpired
from roomcast.ports import Clock, PortError, Rejected
from roomcast.presence.ports import Member, TooManyMembers
from roomcast.wire.publication import ClientInfo

__all__ = [
    "TOPIC_ARN",
    "Effect",
    "ManualClock",
    "MemoryChannelTable",
    "MemoryEstate",
    "MemoryLeases",
    "MemoryPresence",
    "MemoryQueue",
    "MemoryTopic",
    "MemoryWorld",
    "Stage",
]

# The base topic.
TOPIC_ARN: Final = "arn:aws:sns:eu-west-1:000000000000:memory"
# SQS holds at most this many messages in flight. Here it bounds the waiting ones. The oldest go
# first, as when they expire.
QUEUED_MAX: Final = 120_000

# The points at which a call may be held: before anything, on its way to the table, on the way back.
Stage = Literal["call", "sent", "answer"]
# The effect of a failing call: none, the full effect, or the effect once `deliver_late` is called.
Effect = Literal["none", "applied", "late"]

T = TypeVar("T")


async def _yield(_call: str, _stage: Stage) -> None:
    await asyncio.sleep(0)


@dataclass(slots=True)
class _Fault:
    error: PortError
    effect: Effect


@dataclass(slots=True)
class _Queue:
    """`waiting` and `taken` hold messages by their receipts. `arrived` is set while a receive need
    not wait.
    """

    created_at: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    waiting: dict[str, Message] = field(default_factory=dict)
    taken: dict[str, Message] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    deleted: bool = False


@dataclass(slots=True)
class ManualClock:
    """A Clock that stands still until a test moves it."""

    ms: int = 1_700_000_000_000
    elapsed_s: float = 0.0

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.elapsed_s

    def advance(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)
        self.elapsed_s += seconds


class MemoryWorld:
    """Tables, topics and queues that several nodes share.

    `stream`: every log item in the order of writing, as in the table's stream. `on_insert`: called
    at once with each item. `pause`: awaited at every stage of every call, so that a simulation can
    schedule the calls. `now_ms`: the clock of the queues, which date their messages.
    """

    def __init__(self) -> None:
        self.items: dict[str, dict[int, LogItem | Head]] = {}
        self.keys: dict[str, KeyItem] = {}
        self.stream: list[LogItem] = []
        self.on_insert: list[Callable[[LogItem], None]] = []
        self.pause: Callable[[str, Stage], Awaitable[None]] = _yield
        self.now_ms: Callable[[], int] = int
        self.published: list[str] = []
        self.queues: dict[str, _Queue] = {}
        # The queues that are subscribed to the base topic, and those by topic shard.
        self.subscriptions: set[str] = set()
        self.shard_subscriptions: dict[int, set[str]] = defaultdict(set)
        self.leases: dict[str, Lease] = {}
        self.tombstones: dict[str, Tombstone] = {}
        self.presence: dict[str, dict[tuple[str, str], Member]] = {}
        # The number of the write of each entry, by channel, node and client.
        self.presence_writes: dict[tuple[str, str, str], int] = {}
        # Entries that were marked as moved; and those that were removed without it, of which events
        # say that their clients left. By channel, node and client.
        self.presence_moved: set[tuple[str, str, str]] = set()
        self.presence_left: list[tuple[str, str, str]] = []
        self._presence_calls = 0
        self._faults: dict[str, deque[_Fault]] = defaultdict(deque)
        self._late: list[Callable[[], object]] = []
        self._receipts = 0

    def fail_next(
        self, call: str, error: PortError, effect: Effect = "none", times: int = 1
    ) -> None:
        """Makes the next `times` calls of the port method `call` raise `error`, on any node."""
        self._faults[call].extend(_Fault(error, effect) for _ in range(times))

    def deliver_late(self) -> None:
        """Lets delayed calls take effect now, in the order of sending."""
        late, self._late = self._late, []
        for effect in late:
            effect()

    def expire(self, channel: str, offset: int) -> None:
        """Deletes an item as TTL does."""
        self.items.get(channel, {}).pop(offset, None)

    def expire_key(self, key: str) -> None:
        """Deletes a key item as TTL does."""
        self.keys.pop(key, None)

    def next_presence_write(self) -> int:
        """The number of one more call that writes or removes an entry. They rise."""
        self._presence_calls += 1
        return self._presence_calls

    def reap(self, node: str, at_ms: int = 1) -> None:
        """Marks the node's lease as a reaper does."""
        self.leases[node] = replace(self.leases[node], reaped=at_ms)

    def create_queue(
        self, name: str, created_at: int = 0, tags: Mapping[str, str] | None = None
    ) -> None:
        """Creates a queue. If one of that name exists, nothing happens."""
        self.queues.setdefault(name, _Queue(created_at, tags or {}))

    def delete_queue(self, name: str) -> None:
        """Deletes the queue. Its subscription stays, as in AWS. A waiting receive ends."""
        queue = self.queues.pop(name, None)
        if queue is not None:
            queue.deleted = True
            queue.arrived.set()

    def redeliver(self, name: str) -> None:
        """Ends the visibility time-out of every message that was received and not deleted."""
        queue = self.queues[name]
        queue.waiting |= queue.taken
        queue.taken.clear()
        if queue.waiting:
            queue.arrived.set()

    def send(self, body: str, shard: int | None = None) -> None:
        """Delivers a message as SNS does: a copy to every subscribed queue that exists.

        `shard`: the topic shard that it was published to; None = the base topic.
        """
        for name in self.subscribers(shard):
            self.deliver(name, body)

    def subscribers(self, shard: int | None = None) -> Sequence[str]:
        """The names of the queues that are subscribed to a topic, in order."""
        return sorted(self._subscribed(shard))

    def subscribe(self, name: str, shard: int | None = None) -> None:
        """Subscribes a queue to a topic."""
        self._subscribed(shard).add(name)

    def unsubscribe(self, name: str, shard: int | None = None) -> None:
        """Ends the subscription of a queue to a topic."""
        self._subscribed(shard).discard(name)

    def _subscribed(self, shard: int | None) -> set[str]:
        return self.subscriptions if shard is None else self.shard_subscriptions[shard]

    def mail(self, name: str, body: str) -> None:
        """Takes a message that another node sent straight to a queue, as SQS does."""
        self.deliver(name, body)

    def deliver(self, name: str, body: str) -> None:
        """Puts a message into a queue, if it exists."""
        queue = self.queues.get(name)
        if queue is None:
            return
        self._receipts += 1
        message = Message(body, f"receipt-{self._receipts}", self.now_ms())
        queue.waiting[message.receipt] = message
        if len(queue.waiting) > QUEUED_MAX:
            del queue.waiting[next(iter(queue.waiting))]
        queue.arrived.set()

    async def perform(
        self, call: str, effect: Callable[[], T], check: Callable[[], None] | None = None
    ) -> T:
        """Carries out one call of a port, with the injected faults.

        `check` runs when the call is sent, `effect` when it arrives.
        """
        await self.pause(call, "call")
        if check is not None:
            check()
        await self.pause(call, "sent")
        fault = self._faults[call].popleft() if self._faults[call] else None
        if fault is None:
            result = effect()
            await self.pause(call, "answer")
            return result
        if fault.effect == "applied":
            effect()
        elif fault.effect == "late":
            self._late.append(effect)
        await self.pause(call, "answer")
        raise fault.error


class MemoryChannelTable:
    """A ChannelTable."""

    def __init__(self, world: MemoryWorld, clock: Clock) -> None:
        self._world = world
        self._clock = clock

    async def newest(self, channel: str) -> LogItem | Head | None:
        def effect() -> LogItem | Head | None:
            items = self._items(channel)
            return items[max(items)] if items else None

        return await self._world.perform("newest", effect)

    async def head(self, channel: str) -> Head | None:
        return await self._world.perform("head", lambda: self._head(channel))

    async def key(self, key: str) -> KeyItem | None:
        return await self._world.perform("key", lambda: self._world.keys.get(key))

    async def put_item(self, item: LogItem, tail_valid_until_ms: int) -> LogItem | None:
        return await self._world.perform(
            "put_item", lambda: self._write(item), self._resting_on(tail_valid_until_ms)
        )

    async def put_keyed_item(
        self, item: LogItem, keys: Sequence[KeyItem], tail_valid_until_ms: int
    ) -> Holders | None:
        def effect() -> Holders | None:
            taken = tuple(self._world.keys[key.key] for key in keys if key.key in self._world.keys)
            winner = self._winner(item)
            if taken or winner is not None:
                return Holders(winner, taken)
            self._write(item)
            self._world.keys |= {key.key: key for key in keys}
            return None

        return await self._world.perform(
            "put_keyed_item", effect, self._resting_on(tail_valid_until_ms)
        )

    async def put_head(self, head: Head, expected_version: str | None) -> bool:
        def effect() -> bool:
            stored = self._head(head.channel)
            if (None if stored is None else stored.version) != expected_version:
                return False
            self._world.items.setdefault(head.channel, {})[HEAD_OFFSET] = head
            return True

        return await self._world.perform("put_head", effect)

    async def read_behind(self, channel: str, offset: int, items_max: int) -> Page:
        assert items_max >= 1, "a page holds an item"

        def effect() -> Page:
            items = [item for item in self._log_items(channel) if item.offset > offset]
            return Page(tuple(items[:items_max]), len(items) > items_max)

        return await self._world.perform("read_behind", effect)

    async def read_forward(self, channel: str, from_offset: int, items_max: int) -> Page:
        assert items_max >= 1, "a page holds an item"

        def effect() -> Page:
            items = self._log_items(channel)
            before = [item for item in items if item.offset < from_offset]
            spanning = [item for item in before[-1:] if item.last >= from_offset]
            items = spanning + items[len(before) :]
            return Page(tuple(items[:items_max]), len(items) > items_max)

        return await self._world.perform("read_forward", effect)

    async def read_backward(self, channel: str, to_offset: int, items_max: int) -> Page:
        assert items_max >= 1, "a page holds an item"

        def effect() -> Page:
            items = [item for item in self._log_items(channel) if item.offset <= to_offset]
            return Page(tuple(items[-items_max:]), len(items) > items_max)

        return await self._world.perform("read_backward", effect)

    def _resting_on(self, until_ms: int) -> Callable[[], None]:
        def check() -> None:
            if self._clock.now_ms() >= until_ms:
                raise TailExpired

        return check

    def _write(self, item: LogItem) -> LogItem | None:
        """Puts `item` in if its offset is free. Otherwise returns the item that holds the
        offset.
        """
        winner = self._winner(item)
        if winner is not None:
            return winner
        self._world.items.setdefault(item.channel, {})[item.offset] = item
        self._world.stream.append(item)
        for listener in self._world.on_insert:
            listener(item)
        return None

    def _winner(self, item: LogItem) -> LogItem | None:
        """The item that holds the offset of `item`."""
        winner = self._items(item.channel).get(item.offset)
        assert not isinstance(winner, Head), "I1: only the head has offset 0"
        return winner

    def _items(self, channel: str) -> dict[int, LogItem | Head]:
        return self._world.items.get(channel, {})

    def _head(self, channel: str) -> Head | None:
        head = self._items(channel).get(HEAD_OFFSET)
        assert head is None or isinstance(head, Head), "only a head has offset 0"
        return head

    def _log_items(self, channel: str) -> list[LogItem]:
        return [
            item for _, item in sorted(self._items(channel).items()) if isinstance(item, LogItem)
        ]


class MemoryPresence:
    """A Presence."""

    def __init__(self, world: MemoryWorld) -> None:
        self._world = world

    async def add(self, channel: str, member: Member) -> None:
        key, number = (member.node, member.info.client), self._world.next_presence_write()

        def effect() -> None:
            if number > self._world.presence_writes.get((channel, *key), 0):
                self._world.presence.setdefault(channel, {})[key] = member
                self._world.presence_writes[channel, *key] = number

        await self._world.perform("add", effect)

    async def remove(self, channel: str, member: Member) -> None:
        key, number = (member.node, member.info.client), self._world.next_presence_write()

        def effect() -> None:
            if number > self._world.presence_writes.get((channel, *key), 0):
                self._world.presence_writes.pop((channel, *key), None)
                self._remove(channel, key)

        await self._world.perform("remove", effect)

    async def moved(self, channel: str, member: Member) -> None:
        await self._world.perform("moved", lambda: self._move(channel, member.node, (member.info,)))

    async def keep_out(self, channel: str, member: Member) -> None:
        key, number = (member.node, member.info.client), self._world.next_presence_write()

        def effect() -> None:
            if number > self._world.presence_writes.get((channel, *key), 0):
                self._remove(channel, key)
                self._world.presence_writes[channel, *key] = number

        await self._world.perform("keep_out", effect)

    def abandon(self, channel: str, member: Member) -> None:
        """It remembers nothing."""

    async def members(self, channel: str) -> Sequence[Member]:
        def effect() -> Sequence[Member]:
            members = list(self._world.presence.get(channel, {}).values())
            if len(members) > MEMBERS_MAX:
                raise TooManyMembers(f"more than {MEMBERS_MAX} members")
            return members

        return await self._world.perform("members", effect)

    async def channels(self, node: str) -> Sequence[str]:
        return await self._world.perform("channels", lambda: self._channels(node)[:CHANNELS_PAGE])

    async def entries(self, node: str, channel: str) -> Sequence[ClientInfo]:
        def effect() -> Sequence[ClientInfo]:
            return [member.info for member in self._entries(node, channel)[:ENTRIES_PAGE]]

        return await self._world.perform("entries", effect)

    async def clear(self, node: str, channel: str, moved: Collection[str] = ()) -> bool:
        def effect() -> bool:
            entries = self._entries(node, channel)
            infos = [member.info for member in entries[:ENTRIES_PAGE]]
            self._move(channel, node, [info for info in infos if info.client in moved])
            for member in entries[:ENTRIES_PAGE]:
                self._take(channel, (node, member.info.client))
                self._world.presence_writes.pop((channel, node, member.info.client), None)
            if not self._world.presence.get(channel, True):
                del self._world.presence[channel]
            if len(entries) > ENTRIES_PAGE:
                return False
            for key in [key for key in self._world.presence_writes if key[:2] == (channel, node)]:
                del self._world.presence_writes[key]
            return True

        return await self._world.perform("clear", effect)

    def _remove(self, channel: str, key: tuple[str, str]) -> None:
        self._take(channel, key)
        if not self._world.presence.get(channel):
            self._world.presence.pop(channel, None)

    def _move(self, channel: str, node: str, infos: Iterable[ClientInfo]) -> None:
        """Mark those of the entries that exist."""
        members = self._world.presence.get(channel, {})
        self._world.presence_moved |= {
            (channel, node, info.client) for info in infos if (node, info.client) in members
        }

    def _take(self, channel: str, key: tuple[str, str]) -> None:
        """Remove an entry, if there is one: the mark goes with it."""
        if self._world.presence.get(channel, {}).pop(key, None) is None:
            return
        if (channel, *key) in self._world.presence_moved:
            self._world.presence_moved.remove((channel, *key))
        else:
            self._world.presence_left.append((channel, *key))

    def _channels(self, node: str) -> list[str]:
        kept_out = {channel for channel, other, _ in self._world.presence_writes if other == node}
        entered = {channel for channel in self._world.presence if self._entries(node, channel)}
        return sorted(kept_out | entered)

    def _entries(self, node: str, channel: str) -> list[Member]:
        members = self._world.presence.get(channel, {})
        return [members[key] for key in sorted(members) if key[0] == node]


class MemoryLeases:
    """A Leases."""

    def __init__(self, world: MemoryWorld) -> None:
        self._world = world

    async def put(self, lease: Lease) -> None:
        def effect() -> None:
            self._world.tombstones.pop(lease.node, None)
            self._world.leases[lease.node] = replace(lease, reaped=0)

        await self._world.perform("put", effect)

    async def heartbeat(self, lease: Lease) -> bool:
        def effect() -> bool:
            stored = self._world.leases.get(lease.node)
            if stored is None or stored.reaped:
                return False
            self._world.leases[lease.node] = replace(lease, reaped=0)
            return True

        return await self._world.perform("heartbeat", effect)

    async def drop(self, node: str) -> None:
        def effect() -> None:
            self._world.tombstones.pop(node, None)
            self._world.leases.pop(node, None)

        await self._world.perform("drop", effect)

    async def all(self) -> Sequence[Lease]:
        return await self._world.perform("all", lambda: list(self._world.leases.values()))

    async def reap(self, lease: Lease, at_ms: int) -> bool:
        def effect() -> bool:
            stored = self._world.leases.get(lease.node)
            if stored is None or stored.heartbeat_at != lease.heartbeat_at:
                return False
            self._world.reap(lease.node, stored.reaped or at_ms)
            return True

        return await self._world.perform("reap", effect)

    async def put_tombstone(self, node: str, at_ms: int) -> None:
        def effect() -> None:
            tombstone, lease = self._world.tombstones.get(node), self._world.leases.get(node)
            if tombstone is not None:
                self._world.tombstones[node] = replace(tombstone, cleared_at=at_ms)
            elif lease is not None and lease.reaped:
                del self._world.leases[node]
                self._world.tombstones[node] = Tombstone(node, lease.instance, at_ms)

        await self._world.perform("put_tombstone", effect)

    async def tombstones(self) -> Sequence[Tombstone]:
        return await self._world.perform(
            "tombstones", lambda: list(self._world.tombstones.values())
        )

    async def drop_tombstone(self, tombstone: Tombstone) -> None:
        def effect() -> None:
            if self._world.tombstones.get(tombstone.node) == tombstone:
                del self._world.tombstones[tombstone.node]

        await self._world.perform("drop_tombstone", effect)


class MemoryQueue:
    """A NodeQueue.

    `wait_s` bounds a long poll. `clock` and `tags` set the creation time and the tags that others
    see.
    """

    def __init__(
        self,
        world: MemoryWorld,
        wait_s: float,
        *,
        clock: Clock | None = None,
        tags: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._world = world
        self._wait_s = wait_s
        self._clock = clock
        self._tags = tags
        self._name: str | None = None

    @property
    def queue_url(self) -> str | None:
        return None if self._name is None else f"memory:queue:{self._name}"

    @property
    def subscription_arn(self) -> str | None:
        return None if self._name is None else _subscription_arn(self._name)

    async def open(self, name: str) -> None:
        if self._name is not None:
            raise Rejected("close the queue before another is opened")
        if not is_queue_name(name):
            raise Rejected(f"not a queue name: {name[:100]!r}")
        self._name = name

        def effect() -> None:
            self._world.create_queue(
                name, self._clock.now_ms() if self._clock else 0, dict(self._tags())
            )
            self._world.subscribe(name)

        try:
            await self._world.perform("open", effect)
        except Rejected:
            self._name = None
            raise

    async def subscribe(self, shard: int) -> None:
        name = self._name
        if name is None:
            raise Gone("the queue is not open")
        await self._world.perform("subscribe", lambda: self._world.subscribe(name, shard))

    async def unsubscribe(self, shard: int) -> None:
        if (name := self._name) is not None:
            await self._world.perform("unsubscribe", lambda: self._world.unsubscribe(name, shard))

    async def receive(self) -> Sequence[Message]:
        queue = self._queue()
        try:
            async with asyncio.timeout(self._wait_s):
                await queue.arrived.wait()
        except TimeoutError:
            pass

        def effect() -> Sequence[Message]:
            if queue.deleted:
                raise Gone("the queue was deleted")
            receipts = list(queue.waiting)[:RECEIVE_MAX]
            for receipt in receipts:
                queue.taken[receipt] = queue.waiting.pop(receipt)
            if not queue.waiting:
                queue.arrived.clear()
            return [queue.taken[receipt] for receipt in receipts]

        return await self._world.perform("receive", effect)

    async def post(self, queue: str, body: str) -> None:
        def effect() -> None:
            if queue not in self._world.queues:
                raise Gone("the queue does not exist")
            self._world.mail(queue, body)

        await self._world.perform("post", effect)

    async def delete(self, receipts: Sequence[str]) -> None:
        queue = self._queue()

        def effect() -> None:
            for receipt in receipts:
                queue.taken.pop(receipt, None)

        await self._world.perform("delete", effect)

    async def close(self) -> None:
        name = self._name
        if name is None:
            return

        def effect() -> None:
            for shard in (None, *self._world.shard_subscriptions):
                self._world.unsubscribe(name, shard)
            self._world.delete_queue(name)

        await self._world.perform("close", effect)
        self._name = None

    def abandon(self) -> None:
        self._name = None

    def _queue(self) -> _Queue:
        queue = None if self._name is None else self._world.queues.get(self._name)
        if queue is None:
            raise Gone("the queue is not open, or was deleted")
        return queue


class MemoryEstate:
    """An Estate. The deployment's base topic is TOPIC_ARN."""

    def __init__(self, world: MemoryWorld, deployment: Deployment) -> None:
        self._world = world
        self._deployment = deployment

    async def queues(self) -> Sequence[str]:
        def effect() -> Sequence[str]:
            return [
                name
                for name in self._world.queues
                if name.startswith(self._deployment.queue_prefix)
            ]

        return await self._world.perform("queues", effect)

    async def queue(self, name: str) -> Queue | None:
        def effect() -> Queue | None:
            queue = self._world.queues.get(name)
            return None if queue is None else Queue(name, queue.created_at, queue.tags)

        return await self._world.perform("queue", effect)

    async def subscriptions(self) -> Sequence[TopicSubscription]:
        shards = self._deployment.shards

        def effect() -> Sequence[TopicSubscription]:
            return [
                TopicSubscription(_subscription_arn(name, shard), self._deployment.queue_arn(name))
                for shard in (None, *range(shards if shards > 1 else 0))
                for name in self._world.subscribers(shard)
            ]

        return await self._world.perform("subscriptions", effect)

    async def unsubscribe(self, arn: str) -> None:
        def effect() -> None:
            world = self._world
            for shard in (None, *world.shard_subscriptions):
                for name in world.subscribers(shard):
                    if _subscription_arn(name, shard) == arn:
                        world.unsubscribe(name, shard)

        await self._world.perform("unsubscribe", effect)

    async def delete_queue(self, name: str) -> None:
        await self._world.perform("delete_queue", lambda: self._world.delete_queue(name))

    async def post(self, name: str, body: str) -> None:
        def effect() -> None:
            if name in self._world.queues:
                self._world.mail(name, body)

        await self._world.perform("post", effect)


def _subscription_arn(queue: str, shard: int | None = None) -> str:
    return f"{topic_of(TOPIC_ARN, shard)}:{queue}"


class MemoryTopic:
    """A NodeTopics. `world.published` keeps every body, in order."""

    def __init__(self, world: MemoryWorld) -> None:
        self._world = world

    async def publish(self, body: str) -> None:
        await self._publish(body, None)

    async def publish_to(self, shard: int, body: str) -> None:
        await self._publish(body, shard)

    async def _publish(self, body: str, shard: int | None) -> None:
        check_body(body)

        def effect() -> None:
            self._world.published.append(body)
            self._world.send(body, shard)

        await self._world.perform("publish", effect)
