"""Collects channels' publications for a while, so that one write a socket brings many of them.

A channel is collected once for all of its subscribers on the node. So a batch costs no memory a
connection, and its frames are made once.

Who subscribes while publications wait was told a position behind them, or comes after them. It gets
what follows its own coming (`Batch.late`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from roomcast.wire.channels import Batching
from roomcast.wire.encoding import Sent

__all__ = [
    "BATCHES_BYTES_MAX",
    "BATCH_BYTES_MAX",
    "COMINGS_MAX",
    "PUSHES_A_TURN",
    "Batch",
    "Batches",
    "Flusher",
    "Member",
]

# Bytes of the publications that wait in one channel, and in all of a node. Beyond either bound the
# channel's go out at once.
BATCH_BYTES_MAX: Final = 256 * 1024
BATCHES_BYTES_MAX: Final = 64 * 1024 * 1024
# Places in a batch at which subscribers may have come. What follows each is encoded by itself: with
# one behind each of 760 publications, that took seven seconds.
COMINGS_MAX: Final = 4
# What a publication takes in memory beside its text.
_OVERHEAD_BYTES: Final = 200
# Pushes to subscribers before other tasks have their turn: some 5 ms. Batches of many channels may
# be due at once.
PUSHES_A_TURN: Final = 1_000

# A subscription of one connection. It is compared by identity.
Member = object


class Batch:
    """One channel's publications that wait.

    `count`: how many were collected. `late`: how many of `published` are not for a subscriber that
    came meanwhile. `comings`: at how many places of it some came; `_came_at`: the last of these.
    """

    __slots__ = ("_came_at", "batching", "bytes", "comings", "count", "late", "published", "timer")

    def __init__(self, batching: Batching) -> None:
        self.batching = batching
        self.published: list[Sent] = []
        self.late: dict[Member, int] = {}
        self.comings = 0
        self._came_at = 0
        self.count = 0
        self.bytes = 0
        # Runs as long as something waits.
        self.timer: asyncio.TimerHandle | None = None

    @property
    def has_room(self) -> bool:
        """Whether another may join before what waits goes out."""
        return self.comings < COMINGS_MAX or self._came_at == len(self.published)

    def joined(self, member: Member) -> None:
        if self.published:
            self.late[member] = here = len(self.published)
            self.comings += here != self._came_at
            self._came_at = here

    def left(self, member: Member) -> None:
        self.late.pop(member, None)

    def empty(self) -> None:
        """Nothing waits any more."""
        self.published, self.late, self.bytes = [], {}, 0
        self.comings = self._came_at = 0


class Flusher(Protocol):
    """The hub."""

    def flush(self, channel: str) -> int:
        """Send what waits in the batch of `channel`. Returns the number of pushes."""


class Batches:
    """The batches of a node's channels. `flusher` sends them when they are due."""

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher
        self._bytes = 0
        self._is_closed = False
        # Channels whose time is over, and the turn in which further ones are sent.
        self._due: deque[str] = deque()
        self._turn: asyncio.Handle | None = None
        # Publications that did not go out, because a newer one did.
        self.superseded = 0

    @property
    def bytes(self) -> int:
        """Bytes of all publications that wait."""
        return self._bytes

    def add(
        self, channel: str, batch: Batch, published: Sequence[Sent], *, keep: bool = False
    ) -> bool:
        """Collect publications of `channel`. False: the batch must be flushed now.

        `keep`: also those that a newer one makes superfluous, because some subscriber may not get
        the newer one.
        """
        batching = batch.batching
        batch.count += len(published)
        if batching.latest and not keep:
            self.superseded += len(batch.published) + len(published) - 1
            self._forget(batch)
            published = published[-1:]
        batch.published += published
        added = sum(each.size for each in published) + len(published) * _OVERHEAD_BYTES
        batch.bytes += added
        self._bytes += added
        if (
            batch.count >= batching.size
            or batch.bytes > BATCH_BYTES_MAX
            or self._bytes > BATCHES_BYTES_MAX
            or self._is_closed
        ):
            return False
        if batch.timer is None:
            loop = asyncio.get_running_loop()
            batch.timer = loop.call_later(batching.delay_s, self._due_now, channel)
        return True

    def take(self, batch: Batch) -> tuple[Sequence[Sent], Mapping[Member, int]]:
        """What waits, and for whom how many of that are not. Nothing waits any more."""
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        published, late = batch.published, batch.late
        self._forget(batch)
        batch.count = 0
        return published, late

    def _forget(self, batch: Batch) -> None:
        self._bytes -= batch.bytes
        batch.empty()

    def close(self) -> None:
        """Nothing is collected any more. The caller must flush what waits."""
        self._is_closed = True

    def _due_now(self, channel: str) -> None:
        self._due.append(channel)
        if self._turn is None:
            self._send_due()

    def _send_due(self) -> None:
        self._turn, pushes = None, 0
        while self._due:
            if pushes >= PUSHES_A_TURN:
                self._turn = asyncio.get_running_loop().call_soon(self._send_due)
                return
            pushes += self._flusher.flush(self._due.popleft())
