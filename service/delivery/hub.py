"""Channel to local subscribers: a line is framed once and the same bytes go to every socket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from service.core.protocol import join_lines
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

    def __init__(self, framer: Framer) -> None:
        self._framer = framer
        # Insertion-ordered sets of subscribers.
        self._channels: dict[str, dict[Subscriber, None]] = {}

    def add(self, channel: str, subscriber: Subscriber) -> None:
        self._channels.setdefault(channel, {})[subscriber] = None

    def remove(self, channel: str, subscriber: Subscriber) -> None:
        """Idempotent."""
        subscribers = self._channels.get(channel)
        if subscribers is not None:
            subscribers.pop(subscriber, None)
            if not subscribers:
                del self._channels[channel]

    def has(self, channel: str) -> bool:
        return channel in self._channels

    def __len__(self) -> int:
        """Channels with subscribers on this node."""
        return len(self._channels)

    def publish(self, channel: str, lines: Sequence[bytes]) -> None:
        """Send `lines` (pushes of `channel`, in order) to every subscriber, in as few writes as frames allow."""
        subscribers = self._channels.get(channel)
        if subscribers is None:
            return
        for frame in self._frames(lines):
            for subscriber in subscribers:
                subscriber.sink.send(frame)

    def tell(self, channel: str, line: bytes) -> None:
        """Send a join or leave push to those who want such."""
        subscribers = self._channels.get(channel)
        if subscribers is None:
            return
        frame = self._framer(line)
        for subscriber in subscribers:
            if subscriber.join_leave:
                subscriber.sink.send(frame)

    def lost(self, channel: str) -> None:
        """End every subscription of `channel` with word that it cannot be continued."""
        for subscriber in self._channels.pop(channel, ()):
            subscriber.lost(channel)

    def _frames(self, lines: Sequence[bytes]) -> Iterator[bytes]:
        batch: list[bytes] = []
        size = 0
        for line in lines:
            if batch and size + len(line) > FRAME_BYTES_SOFT_MAX:
                yield self._framer(join_lines(batch))
                batch, size = [], 0
            batch.append(line)
            size += len(line) + 1
        if batch:
            yield self._framer(join_lines(batch))
