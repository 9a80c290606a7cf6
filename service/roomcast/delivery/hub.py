"""Sends a channel's publications, joins and leaves to its subscribers on this node.

A frame is made once for all subscribers that take the same form, and sent to each of their sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import Final, Protocol

from roomcast.delivery.forms import Chain, Form, Link, Payload, whole
from roomcast.delivery.fossil import Search
from roomcast.delivery.ports import Framer, Sink
from roomcast.observe.counters import FanoutCounters
from roomcast.wire.commands import LINE_END
from roomcast.wire.encoding import Sent, publication_push, publication_pushes, told_push

__all__ = ["FRAME_BYTES_SOFT_MAX", "SEARCHED_A_TURN", "Hub", "Subscriber"]

# Lines are joined into frames of up to about this size. A longer line has a frame of its own.
FRAME_BYTES_SOFT_MAX: Final = 64 * 1024
# Bytes that are searched for differences in one turn of the event loop, in all channels: some 5 ms.
# Further publications of the turn go out whole. To wait for another turn is no choice: between a
# subscriber's reply and its first push nothing may be let through.
SEARCHED_A_TURN: Final = 32 * 1024


class Subscriber(Protocol):
    """One subscription of one connection. It is compared by identity."""

    @property
    def sink(self) -> Sink: ...

    @property
    def form(self) -> Form:
        """The form in which it takes publications. It does not change while it is in the hub."""

    @property
    def join_leave(self) -> bool:
        """Whether it gets join and leave pushes."""

    def lost(self, channel: str) -> None:
        """The channel cannot be continued: tell the client to subscribe again. Must not raise."""


class _Group:
    """Subscribers of a channel that get the same bytes, in the order in which they came.

    `fresh`: the ones that take differences and have got no publication yet.
    """

    __slots__ = ("fresh", "members")

    def __init__(self) -> None:
        self.members: dict[Subscriber, None] = {}
        self.fresh: dict[Subscriber, None] = {}

    def add(self, subscriber: Subscriber) -> None:
        self.members[subscriber] = None
        if subscriber.form.delta:
            self.fresh[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        self.members.pop(subscriber, None)
        self.fresh.pop(subscriber, None)


class _Room:
    """One channel's subscribers. For some of them, `number` stands for its name."""

    __slots__ = ("chain", "groups", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.groups: dict[tuple[Framer, Form], _Group] = {}
        self.chain = Chain()


class Hub:
    """All local subscriptions. Every method runs in one tick of the event loop."""

    def __init__(self) -> None:
        # By channel. None of them is empty.
        self._rooms: dict[str, _Room] = {}
        # The numbers of channels whose first subscriber is about to be added, and the last number
        # given.
        self._reserved: dict[str, int] = {}
        self._number = 0
        # What may still be searched in this turn. None: nothing was yet.
        self._search: Search | None = None
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
            room = self._rooms[channel] = _Room(self.number(channel))
            del self._reserved[channel]
        kind = (subscriber.sink.framer, subscriber.form)
        if (group := room.groups.get(kind)) is None:
            group = room.groups[kind] = _Group()
        group.add(subscriber)

    def remove(self, channel: str, subscriber: Subscriber) -> None:
        """Idempotent."""
        if (room := self._rooms.get(channel)) is None:
            return
        kind = (subscriber.sink.framer, subscriber.form)
        if (group := room.groups.get(kind)) is None:
            return
        group.remove(subscriber)
        if not group.members:
            del room.groups[kind]
        if not room.groups:
            del self._rooms[channel]

    def has(self, channel: str) -> bool:
        return channel in self._rooms

    def __len__(self) -> int:
        """The number of channels with subscribers on this node."""
        return len(self._rooms)

    @property
    def subscriptions(self) -> int:
        """The number of subscriptions to all channels. Takes time for each channel."""
        return sum(map(self.count, self._rooms))

    def names(self) -> Sequence[str]:
        """The names of these channels, as of now."""
        return list(self._rooms)

    def count(self, channel: str) -> int:
        """The number of subscribers of `channel` on this node."""
        room = self._rooms.get(channel)
        return sum(len(group.members) for group in room.groups.values()) if room else 0

    def publish(self, channel: str, published: Sequence[Sent]) -> None:
        """Send publications of `channel`, in order, to every subscriber.

        Each socket gets as few writes as the size of frames allows.
        """
        if (room := self._rooms.get(channel)) is None or not published:
            return
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
                self._send(group.members, framer, payloads[kind], len(published))
            else:
                links = links or room.chain.links(published, self._search_of_turn())
                self._send_links(group, framer, form.payload, address, links)

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
    ) -> None:
        """Send differences.

        A subscriber that has got none yet gets the first publication whole.
        """
        lines = publication_pushes(address, [link.line(payload) for link in links])
        if group.fresh:
            first = publication_push(address, whole(links[0].sent, payload))
            self._send(group.fresh, framer, _payloads([first, *lines[1:]]), len(links))
        others = (
            [each for each in group.members if each not in group.fresh]
            if group.fresh
            else group.members
        )
        group.fresh.clear()
        if others:
            self._send(others, framer, _payloads(lines), len(links))

    def tell(self, channel: str, told: Collection[bytes]) -> int:
        """Send joins and leaves, in order, to the subscribers that take them.

        `told`: a field of `encode_told` for each. Each socket gets as few writes as the size of
        frames allows. Returns the number of these subscribers.
        """
        if (room := self._rooms.get(channel)) is None:
            return 0
        count = 0
        for (framer, form), group in room.groups.items():
            takers = [subscriber for subscriber in group.members if subscriber.join_leave]
            if takers:
                address = room.number if form.numbered else channel
                lines = [told_push(address, each) for each in told]
                self._send(takers, framer, _payloads(lines), len(lines))
                count += len(takers)
        return count

    def _send(
        self,
        subscribers: Collection[Subscriber],
        framer: Framer,
        payloads: Sequence[bytes],
        pushes: int,
    ) -> None:
        # Counted for all at once, because counting for each socket would cost time.
        counters, count = self.counters, len(subscribers)
        counters.pushes += pushes * count
        counters.frames += len(payloads) * count
        for payload in payloads:
            frame = framer(payload)
            counters.bytes += len(frame) * count
            for subscriber in subscribers:
                subscriber.sink.send(frame)

    def lost(self, channel: str) -> None:
        """End every subscription of `channel`: it cannot be continued."""
        if (room := self._rooms.pop(channel, None)) is None:
            return
        for group in room.groups.values():
            for subscriber in group.members:
                subscriber.lost(channel)


def _lines(published: Iterable[Sent], payload: Payload) -> Iterable[bytes]:
    if payload is Payload.VALUE:
        # The form that most take: the line as it was made.
        return [sent.line for sent in published]
    return [whole(sent, payload) for sent in published]


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
