"""Channel to local subscribers: a line is framed once an encoding, and the same bytes go to every socket of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from service.core.protocol import join_lines
from service.core.tallies import FanoutTally
from service.ports import Framer, Sink

__all__ = ["FRAME_BYTES_SOFT_MAX", "Hub", "Subscriber"]

# Lines are joined into frames up to about this size; a single longer line has a frame of its own.
FRAME_BYTES_SOFT_MAX: Final = 64 * 1024


class Subscriber(Protocol):
    """One subscription of one connection. Identity is the object's."""

    @property
    def sink(self) -> Sink: ...

    @property
    def join_leave(self) -> bool:
        """Whether join and leave pushes go to it."""

    def lost(self, channel: str) -> None:
        """The channel cannot be continued: tell the client to subscribe again. Must not raise."""


class Hub:
    """All local subscriptions. Every method runs in one tick of the event loop."""

    def __init__(self) -> None:
        # Of each channel, those who share frames: insertion-ordered sets of subscribers. None of them is empty.
        self._channels: dict[str, dict[Framer, dict[Subscriber, None]]] = {}
        self.tally = FanoutTally()

    def add(self, channel: str, subscriber: Subscriber) -> None:
        groups = self._channels.setdefault(channel, {})
        groups.setdefault(subscriber.sink.framer, {})[subscriber] = None

    def remove(self, channel: str, subscriber: Subscriber) -> None:
        """Idempotent."""
        groups, framer = self._channels.get(channel, {}), subscriber.sink.framer
        if (subscribers := groups.get(framer)) is None:
            return
        subscribers.pop(subscriber, None)
        if not subscribers:
            del groups[framer]
        if not groups:
            del self._channels[channel]

    def has(self, channel: str) -> bool:
        return channel in self._channels

    def __len__(self) -> int:
        """Channels with subscribers on this node."""
        return len(self._channels)

    @property
    def subscriptions(self) -> int:
        """Of all channels. Looks at each of them."""
        return sum(len(group) for groups in self._channels.values() for group in groups.values())

    def names(self) -> Sequence[str]:
        """Of these channels, as they are now."""
        return list(self._channels)

    def count(self, channel: str) -> int:
        """Subscribers of `channel` on this node."""
        return sum(map(len, self._channels.get(channel, {}).values()))

    def publish(self, channel: str, lines: Sequence[bytes]) -> None:
        """Send `lines` (pushes of `channel`, in order) to every subscriber, in as few writes as frames allow."""
        groups = self._channels.get(channel)
        if groups is None:
            return
        payloads, tally = _payloads(lines), self.tally
        for framer, subscribers in groups.items():
            # Once for all of them: nothing is counted for each socket.
            tally.pushes += len(lines) * len(subscribers)
            tally.frames += len(payloads) * len(subscribers)
            for payload in payloads:
                frame = framer(payload)
                tally.bytes += len(frame) * len(subscribers)
                for subscriber in subscribers:
                    subscriber.sink.send(frame)

    def tell(self, channel: str, line: bytes) -> None:
        """Send a join or leave push to those who want such."""
        for framer, subscribers in self._channels.get(channel, {}).items():
            told = [subscriber for subscriber in subscribers if subscriber.join_leave]
            if told:
                frame = framer(line)
                self.tally.pushes += len(told)
                self.tally.frames += len(told)
                self.tally.bytes += len(frame) * len(told)
                for subscriber in told:
                    subscriber.sink.send(frame)

    def lost(self, channel: str) -> None:
        """End every subscription of `channel` with word that it cannot be continued."""
        for subscribers in self._channels.pop(channel, {}).values():
            for subscriber in subscribers:
                subscriber.lost(channel)


def _payloads(lines: Sequence[bytes]) -> list[bytes]:
    payloads: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and size + len(line) > FRAME_BYTES_SOFT_MAX:
            payloads.append(join_lines(batch))
            batch, size = [], 0
        batch.append(line)
        size += len(line) + 1
    if batch:
        payloads.append(join_lines(batch))
    return payloads
