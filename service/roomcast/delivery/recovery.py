"""Recovers clients that come back: finds the missed publications, or that they cannot be had.

A ring keeps a channel's recent publications as they were sent. So many clients that reconnect at
once cost the log one read or none.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Final

from roomcast.frozen import frozen
from roomcast.log.item import Head
from roomcast.wire.encoding import Sent
from roomcast.wire.publication import StreamPosition

__all__ = [
    "RINGS_BYTES_MAX",
    "RING_BYTES_MAX",
    "Answer",
    "LogNeeded",
    "Recovered",
    "Ring",
    "Rings",
    "Trim",
    "Unrecovered",
    "Window",
    "before_newest",
    "recover",
]

# Bytes of publications that a channel's ring keeps, and so the bytes of one recovery. It is half of
# a connection's smallest outgoing queue, so that a recovery never makes a client look slow.
RING_BYTES_MAX: Final = 512 * 1024
# Bytes that the rings of all channels of a node keep together. When a ring was emptied, its channel
# is recovered from the log.
RINGS_BYTES_MAX: Final = 256 * 1024 * 1024
# Bytes of memory that a publication in a ring takes besides its line: two objects and their place
# in a queue.
_SENT_BYTES: Final = 160


class Ring:
    """The newest publications of one channel without a hole, bounded in number and bytes."""

    __slots__ = ("_bytes", "_publications_max", "_sent")

    def __init__(self, publications_max: int) -> None:
        self._sent: deque[Sent] = deque()
        self._bytes = 0
        self._publications_max = publications_max

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def weight(self) -> int:
        """Bytes of memory, approximately."""
        return self._bytes + len(self._sent) * _SENT_BYTES

    def clear(self) -> None:
        """Empty the ring. The log has the publications."""
        self._sent.clear()
        self._bytes = 0

    @property
    def first(self) -> int:
        """The offset of the oldest publication; 0 when empty."""
        return self._sent[0].offset if self._sent else 0

    def append(self, sent: Sequence[Sent]) -> None:
        """Add newer publications. A hole before them empties the ring first."""
        for each in sent:
            if self._sent and each.offset != self._sent[-1].offset + 1:
                self.clear()
            self._sent.append(each)
            self._bytes += each.size
        while len(self._sent) > self._publications_max or self._bytes > RING_BYTES_MAX:
            self._bytes -= self._sent.popleft().size

    def prepend(self, older: Sequence[Sent], top: int) -> None:
        """Add older publications (ascending), as far as they continue the ring and there is room.

        Those of an empty ring must reach `top`.
        """
        for each in reversed(older):
            wanted = self._sent[0].offset - 1 if self._sent else top
            if each.offset > wanted:
                continue
            full = (
                len(self._sent) >= self._publications_max
                or self._bytes + each.size > RING_BYTES_MAX
            )
            if each.offset != wanted or full:
                return
            self._sent.appendleft(each)
            self._bytes += each.size

    def after(self, offset: int, top: int) -> list[Sent] | None:
        """The publications in (`offset`, `top`]; None when the ring does not reach back so far."""
        if offset >= top:
            return []
        if not self._sent or self._sent[0].offset > offset + 1 or self._sent[-1].offset != top:
            return None
        return list(islice(self._sent, offset + 1 - self._sent[0].offset, None))


class Rings:
    """Bounds the memory of all rings of a node.

    Beyond the bound, the least recently used rings are emptied, but never the last one used.
    """

    def __init__(self, bytes_max: int = RINGS_BYTES_MAX) -> None:
        self._weights: OrderedDict[Ring, int] = OrderedDict()
        self._bytes_max = bytes_max
        self.bytes = 0

    def append(self, ring: Ring, sent: Sequence[Sent]) -> None:
        """Add newer publications to `ring`."""
        ring.append(sent)
        self.used(ring)

    def used(self, ring: Ring) -> None:
        """Mark `ring` as used: it got publications or served a recovery."""
        self.drop(ring)
        self._weights[ring] = weight = ring.weight
        self.bytes += weight
        while self.bytes > self._bytes_max and len(self._weights) > 1:
            oldest, weight = self._weights.popitem(last=False)
            self.bytes -= weight
            oldest.clear()

    def drop(self, ring: Ring) -> None:
        """Remove the ring of a closed channel. Idempotent."""
        self.bytes -= self._weights.pop(ring, 0)


@dataclass(slots=True)
class Trim:
    """The hidden offsets of a channel: those up to `offset`.

    The channel's head has the offset. It was last read at `read_at_s` (monotonic s). Between two
    reads, other nodes send hints that more is hidden. `hints` counts them.
    """

    offset: int = 0
    hints: int = 0
    read_at_s: float = -inf

    def hint(self, offset: int) -> None:
        """Another node says that offsets up to `offset` are hidden."""
        self.offset = max(self.offset, offset)
        self.hints += 1

    def read(self, head: Head | None, hints: int, now_s: float) -> None:
        """Take the offset of the head, even if it is less than a hint's: a hint may be made up.

        `hints`: their count before the head was read. A later hint may be newer than the head.
        """
        offset = head.trim if head else 0
        self.offset = offset if self.hints == hints else max(self.offset, offset)
        self.read_at_s = now_s


@frozen
class Window:
    """The visible part of a channel's history.

    It has the newest `size` publications, but none at or before offset `trim`, and none that was
    appended before `cutoff_ts` (ms). One recovery brings `limit` at most. `newest_only`: it brings
    the newest one, whatever else was missed.
    """

    size: int
    trim: int
    cutoff_ts: int
    limit: int
    newest_only: bool = False


@frozen
class Recovered:
    """All missed publications that are wanted, ascending."""

    sent: tuple[Sent, ...]


@frozen
class Unrecovered:
    """The missed publications cannot be had, or are too many."""


@frozen
class LogNeeded:
    """The log must be read first.

    `ahead`: read after the channel's top, because the client has seen more than this node.
    Otherwise read what the ring no longer holds.
    """

    ahead: bool


Answer = Recovered | Unrecovered | LogNeeded


def recover(since: StreamPosition, position: StreamPosition, ring: Ring, window: Window) -> Answer:
    """The answer to a client that saw everything up to `since`, with the channel at `position`.

    An empty epoch in `since` stands for the channel's own (Centrifuge protocol: subscribe,
    recovery).
    """
    is_of_epoch = since.epoch in ("", position.epoch)
    if not is_of_epoch and not window.newest_only:
        return Unrecovered()
    if is_of_epoch and since.offset > position.offset:
        return LogNeeded(ahead=True)
    if window.newest_only:
        if not position.offset:
            return Unrecovered()
        since = before_newest(since, position)
    missed = position.offset - since.offset
    if missed > min(window.limit, window.size) or since.offset < window.trim:
        return Unrecovered() if missed else Recovered(())
    sent = ring.after(since.offset, position.offset)
    if sent is None:
        return LogNeeded(ahead=False)
    if sent and sent[0].ts < window.cutoff_ts:
        return Unrecovered()
    return Recovered(tuple(sent))


def before_newest(since: StreamPosition, position: StreamPosition) -> StreamPosition:
    """From where a client recovers that saw everything up to `since` and wants the newest only."""
    if since == position:
        return since
    return StreamPosition(position.epoch, max(position.offset - 1, 0))
