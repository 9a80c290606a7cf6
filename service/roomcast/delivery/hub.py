"""Sends a channel's publications, joins and leaves to its subscribers on this node.

A frame is made once for all subscribers that take the same form, and sent to each of their sockets.
Publications of some channels are collected for a while before that (batches.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

from roomcast.concurrency import Budget
from roomcast.delivery.batches import PUSHES_A_TURN, Batch, Batches, Member
from roomcast.delivery.forms import (
    Chain,
    Form,
    Link,
    Payload,
    whole,
    whole_lines,
)
from roomcast.delivery.fossil import Search
from roomcast.delivery.ports import Framer, Sink
from roomcast.delivery.sieve import CHANNEL_NODES_MAX, Sieve, Sieves
from roomcast.delivery.tags_filters import TagsFilter, TagsFilters
from roomcast.observe.counters import FanoutCounters
from roomcast.wire.channels import Batching
from roomcast.wire.commands import LINE_END
from roomcast.wire.encoding import Sent, publication_push, publication_pushes, told_push
from roomcast.wire.tags_filter import Filter

__all__ = ["FRAME_BYTES_SOFT_MAX", "LOST_A_TURN", "SEARCHED_A_TURN", "Hub", "Subscriber"]

# Lines are joined into frames of up to about this size. A longer line has a frame of its own.
FRAME_BYTES_SOFT_MAX: Final = 64 * 1024
# Bytes that are searched for differences in one turn of the event loop, in all channels: some 5 ms.
# Further publications of the turn go out whole. To wait for another turn is no choice: between a
# subscriber's reply and its first push nothing may be let through.
SEARCHED_A_TURN: Final = 32 * 1024
# Subscribers that are told in one turn that their channel is lost: some 5 ms. It may have
# thousands, and a log that begins anew loses all channels.
LOST_A_TURN: Final = 128


class Subscriber(Protocol):
    """One subscription of one connection. It is compared by identity."""

    @property
    def sink(self) -> Sink: ...

    @property
    def form(self) -> Form:
        """The form in which it takes publications. Only the hub changes it while it is there."""

    @property
    def join_leave(self) -> bool:
        """Whether it gets join and leave pushes."""

    def lost(self, channel: str) -> None:
        """The channel cannot be continued: tell the client to subscribe again. Must not raise."""


class _Group:
    """Subscribers of a channel that get the same bytes, in the order in which they came, each with
    its sink: a delivery that looks at less has less to fetch from memory.

    `fresh`: the ones that take differences and have got no publication yet.
    """

    __slots__ = ("fresh", "members")

    def __init__(self) -> None:
        self.members: dict[Subscriber, Sink] = {}
        self.fresh: dict[Subscriber, None] = {}

    def add(self, subscriber: Subscriber) -> bool:
        """False = it was there."""
        before = len(self.members)
        self.members[subscriber] = subscriber.sink
        if subscriber.form.delta:
            self.fresh[subscriber] = None
        return len(self.members) > before

    def remove(self, subscriber: Subscriber) -> bool:
        """False = it was not there."""
        self.fresh.pop(subscriber, None)
        return self.members.pop(subscriber, None) is not None


class _Room:
    """One channel's subscribers. For some of them, `number` stands for its name.

    `batch`: None = publications go out at once. `sieve`: those with filters; None = there are none.
    `groups`: all others. `published`: how many came since they were last counted.
    """

    __slots__ = ("batch", "chain", "groups", "number", "published", "sieve")

    def __init__(self, number: int, batching: Batching | None) -> None:
        self.number = number
        self.groups: dict[tuple[Framer, Form], _Group] = {}
        self.chain = Chain()
        self.published = 0
        self.batch = None if batching is None else Batch(batching)
        self.sieve: Sieve | None = None

    @property
    def newest_only(self) -> bool:
        """Whether only the newest of the publications that were collected goes out."""
        return self.batch is not None and self.batch.batching.latest


# Nobody came while the publications waited, because they did not wait.
_NOBODY: Final[Mapping[Member, int]] = {}


def _at_once(channel: str) -> None:
    """No channel's publications are collected."""


class Hub:
    """All local subscriptions. Every method runs in one tick of the event loop.

    `batching`: how the publications of a channel are collected; None = they are not.
    """

    def __init__(self, batching: Callable[[str], Batching | None] = _at_once) -> None:
        self._batching = batching
        self.batches = Batches(self)
        # By channel. None of them is empty.
        self._rooms: dict[str, _Room] = {}
        # The numbers of channels whose first subscriber is about to be added, and the last number
        # given.
        self._reserved: dict[str, int] = {}
        self._number = 0
        # What may still be searched in this turn. None: nothing was yet.
        self._search: Search | None = None
        # Subscribers of lost channels that are yet to be told.
        self._losing: deque[tuple[str, deque[Subscriber]]] = deque()
        self._budget = Budget(LOST_A_TURN, self._tell_lost)
        self.filters = TagsFilters()
        self.sieves = Sieves(self._send_pushes)
        # The number of subscriptions to all channels.
        self.subscriptions = 0
        self.counters = FanoutCounters()

    def number(self, channel: str) -> int:
        """The number that stands for `channel` as long as it has subscribers.

        The caller must add a subscriber in the same tick.
        """
        if (room := self._rooms.get(channel)) is not None:
            return room.number
        if channel not in self._reserved:
            self._number += 1
            self._reserved[channel] = self._number
        return self._reserved[channel]

    def add(self, channel: str, subscriber: Subscriber) -> None:
        if (room := self._rooms.get(channel)) is None:
            room = self._rooms[channel] = _Room(self.number(channel), self._batching(channel))
            del self._reserved[channel]
        if room.batch is not None:
            if not room.batch.has_room:
                self.flush(channel)
            room.batch.joined(subscriber)
        self.subscriptions += self._enter(channel, room, subscriber)

    def _enter(self, channel: str, room: _Room, subscriber: Subscriber) -> bool:
        """False = it was there."""
        if subscriber.form.filter is not None:
            if room.sieve is None:
                room.sieve = Sieve(self.sieves, channel, room.number, newest_only=room.newest_only)
            return room.sieve.add(subscriber)
        kind = (subscriber.sink.framer, subscriber.form)
        if (group := room.groups.get(kind)) is None:
            group = room.groups[kind] = _Group()
        return group.add(subscriber)

    def _exit(self, room: _Room, subscriber: Subscriber) -> bool:
        """False = it was not there."""
        if (sieve := room.sieve) is not None and subscriber.form.filter is not None:
            was_there = sieve.remove(subscriber)
            if not sieve.groups:
                sieve.drop()
                room.sieve = None
            return was_there
        kind = (subscriber.sink.framer, subscriber.form)
        if (group := room.groups.get(kind)) is None:
            return False
        was_there = group.remove(subscriber)
        if not group.members:
            del room.groups[kind]
        return was_there

    # ---- filters

    def shared_filter(self, tree: Filter | None) -> TagsFilter | None:
        """The filter for a subscriber's form, which equal trees share."""
        return None if tree is None else self.filters.shared(tree)

    def has_room_for(self, channel: str, tags_filter: TagsFilter | None) -> bool:
        """Whether a subscriber with this filter may be added to `channel`: there are not too many
        different ones.
        """
        if tags_filter is None:
            return True
        room = self._rooms.get(channel)
        if room is None or room.sieve is None:
            return self.filters.has_room
        sieve = room.sieve
        return tags_filter in sieve.filters or (
            self.filters.has_room and sieve.nodes + tags_filter.nodes <= CHANNEL_NODES_MAX
        )

    def change_filter(
        self, channel: str, subscriber: Subscriber, change: Callable[[], None]
    ) -> None:
        """`change` sets another filter in the form of `subscriber`, for what is published from now
        on. The caller has asked `has_room_for`.
        """
        self.flush(channel)
        if (room := self._rooms.get(channel)) is None:
            return
        if room.sieve is not None:
            self.sieves.drain(room.sieve)
        was_there = self._exit(room, subscriber)
        change()
        if was_there:
            self._enter(channel, room, subscriber)

    # ---- who is there

    def remove(self, channel: str, subscriber: Subscriber) -> None:
        """Idempotent."""
        if (room := self._rooms.get(channel)) is None:
            return
        if not self._exit(room, subscriber):
            return
        self.subscriptions -= 1
        is_empty = not room.groups and room.sieve is None
        if room.batch is not None:
            room.batch.left(subscriber)
            if is_empty:
                self.batches.take(room.batch)
        if is_empty:
            del self._rooms[channel]

    def has(self, channel: str) -> bool:
        return channel in self._rooms

    def __len__(self) -> int:
        """The number of channels with subscribers on this node."""
        return len(self._rooms)

    def names(self) -> Sequence[str]:
        """The names of these channels, as of now."""
        return list(self._rooms)

    def count(self, channel: str) -> int:
        """The number of subscribers of `channel` on this node."""
        if (room := self._rooms.get(channel)) is None:
            return 0
        count = sum(len(group.members) for group in room.groups.values())
        return count if room.sieve is None else count + len(room.sieve)

    def count_published(self, channel: str) -> int:
        """How many publications of `channel` came since this was last asked, or since it got its
        first subscriber here.
        """
        if (room := self._rooms.get(channel)) is None:
            return 0
        published, room.published = room.published, 0
        return published

    def publish(self, channel: str, published: Sequence[Sent]) -> None:
        """Send publications of `channel`, in order, to every subscriber, or collect them.

        Each socket gets as few writes as the size of frames allows.
        """
        if (room := self._rooms.get(channel)) is None or not published:
            return
        room.published += len(published)
        if room.batch is None:
            if room.sieve is not None:
                room.sieve.publish(published)
            self._deliver(channel, room, published, _NOBODY)
        elif not self.batches.add(channel, room.batch, published, keep=room.sieve is not None):
            self.flush(channel)

    def flush(self, channel: str) -> int:
        """Send what waits in the batch of `channel`. Returns the number of pushes."""
        room = self._rooms.get(channel)
        if room is None or room.batch is None or not room.batch.published:
            return 0
        before = self.counters.pushes
        published, late = self.batches.take(room.batch)
        if room.sieve is not None:
            room.sieve.publish(published, late)
        if len(published) > 1 and room.newest_only:
            # They were kept for who has a filter.
            self.batches.superseded += len(published) - 1
            late = {each: 1 for each, count in late.items() if count == len(published)}
            published = published[-1:]
        self._deliver(channel, room, published, late)
        return self.counters.pushes - before

    async def end_batches(self) -> None:
        """Send what waits in all channels. From here on, each publication goes out at once."""
        self.batches.close()
        pushes = 0
        for channel in self.names():
            pushes += self.flush(channel)
            if pushes > PUSHES_A_TURN:
                pushes = 0
                await asyncio.sleep(0)
        await self.sieves.end()

    def _deliver(
        self,
        channel: str,
        room: _Room,
        published: Sequence[Sent],
        late: Mapping[Member, int],
    ) -> None:
        """Send publications to every subscriber. `late`: as in a Batch."""
        # By the channel's name or number and the payload: most groups share them.
        payloads: dict[tuple[str | int, Payload], list[bytes]] = {}
        links: list[Link] = []
        for (framer, form), group in room.groups.items():
            address = room.number if form.numbered else channel
            if not form.delta:
                kind = (address, form.payload)
                if kind not in payloads:
                    lines = _lines(published, form.payload)
                    payloads[kind] = _payloads(publication_pushes(address, lines))
                sinks: Collection[Sink] = group.members.values()
                if late:
                    sinks = [sink for each, sink in group.members.items() if each not in late]
                    came = [each for each in group.members if each in late]
                    for first, some in _by_first(came, late):
                        rest = _lines(published[first:], form.payload)
                        pushes = publication_pushes(address, rest)
                        self._send(some, framer, _payloads(pushes), len(pushes))
                if sinks:
                    self._send(sinks, framer, payloads[kind], len(published))
            else:
                links = links or room.chain.links(published, self._search_of_turn())
                self._send_links(group, framer, form.payload, address, links, late)

    def _search_of_turn(self) -> Search:
        if self._search is None:
            self._search = Search(SEARCHED_A_TURN)
            asyncio.get_running_loop().call_soon(self._end_turn)
        return self._search

    def _end_turn(self) -> None:
        self._search = None

    def _send_links(
        self,
        group: _Group,
        framer: Framer,
        payload: Payload,
        address: str | int,
        links: Sequence[Link],
        late: Mapping[Member, int],
    ) -> None:
        """Send differences.

        A subscriber that has got none yet gets the first publication whole. So does one that came
        late, which has got none either.
        """
        lines = publication_pushes(address, [link.line(payload) for link in links])
        others: Collection[Sink] = group.members.values()
        if fresh := group.fresh:
            others = [sink for each, sink in group.members.items() if each not in fresh]
            group.fresh = {each: None for each in fresh if late.get(each, 0) == len(links)}
            came = [each for each in fresh if each not in group.fresh]
            for first, some in _by_first(came, late):
                begin = publication_push(address, whole(links[first].sent, payload))
                rest = [begin, *lines[first + 1 :]]
                self._send(some, framer, _payloads(rest), len(rest))
        if others:
            self._send(others, framer, _payloads(lines), len(links))

    def tell(self, channel: str, told: Collection[bytes]) -> int:
        """Send joins and leaves, in order, to the subscribers that take them.

        `told`: a field of `encode_told` for each. Each socket gets as few writes as the size of
        frames allows. Returns the number of these subscribers.
        """
        if (room := self._rooms.get(channel)) is None:
            return 0
        if room.batch is not None:
            # They do not overtake what was published before.
            self.flush(channel)
        count = 0
        for (framer, form), group in room.groups.items():
            takers = [sink for each, sink in group.members.items() if each.join_leave]
            if takers:
                address = room.number if form.numbered else channel
                lines = [told_push(address, each) for each in told]
                self._send(takers, framer, _payloads(lines), len(lines))
                count += len(takers)
        return count if room.sieve is None else count + room.sieve.tell(told)

    def _send(
        self,
        sinks: Collection[Sink],
        framer: Framer,
        payloads: Sequence[bytes],
        pushes: int,
    ) -> None:
        # Counted for all at once, because counting for each socket would cost time.
        counters, count = self.counters, len(sinks)
        counters.pushes += pushes * count
        counters.frames += len(payloads) * count
        for payload in payloads:
            frame = framer(payload)
            counters.bytes += len(frame) * count
            for sink in sinks:
                sink.send(frame)

    def _send_pushes(
        self, sinks: Collection[Sink], framer: Framer, pushes: Sequence[bytes]
    ) -> None:
        self._send(sinks, framer, _payloads(pushes), len(pushes))

    def lost(self, channel: str) -> None:
        """End every subscription of `channel`: it cannot be continued. Nothing of it goes out any
        more. Of many subscribers, the last are told in later turns.
        """
        self.flush(channel)
        if (room := self._rooms.pop(channel, None)) is None:
            return
        losing = deque(each for group in room.groups.values() for each in group.members)
        if room.sieve is not None:
            losing += room.sieve.takers()
            room.sieve.drop()
        self.subscriptions -= len(losing)
        self._losing.append((channel, losing))
        self._tell_lost()

    def _tell_lost(self) -> None:
        while self._losing and self._budget.left:
            channel, losing = self._losing[0]
            if losing:
                self._budget.take()
                losing.popleft().lost(channel)
            else:
                self._losing.popleft()


def _by_first(
    members: Iterable[Subscriber], late: Mapping[Member, int]
) -> Iterable[tuple[int, list[Sink]]]:
    """The sinks of `members` by the index of the first publication that is for them."""
    by_first: dict[int, list[Sink]] = {}
    for each in members:
        by_first.setdefault(late.get(each, 0), []).append(each.sink)
    return by_first.items()


def _lines(published: Iterable[Sent], payload: Payload) -> list[bytes]:
    if payload is Payload.VALUE:
        # The form that most take: the line as it was made.
        return [sent.line for sent in published]
    return whole_lines(published, payload)


def _payloads(lines: Iterable[bytes]) -> list[bytes]:
    """The lines, joined into as few parts as FRAME_BYTES_SOFT_MAX allows, one for each frame."""
    payloads: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and size + len(line) > FRAME_BYTES_SOFT_MAX:
            payloads.append(LINE_END.join(batch))
            batch, size = [], 0
        batch.append(line)
        size += len(line) + 1
    if batch:
        payloads.append(LINE_END.join(batch))
    return payloads
