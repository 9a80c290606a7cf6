"""A lane: what waits to be appended to one channel on this node, in its order, within bounds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final

from roomcast.log.channel_log import APPEND_DEADLINE_S
from roomcast.log.contention import Contention
from roomcast.log.item import ITEM_BYTES_MAX, ITEM_KEYS_MAX, ITEM_PUBLICATIONS_MAX
from roomcast.log.rules import Pending, Tail
from roomcast.wire.publication import Publication, StreamPosition

__all__ = ["LANE_BYTES_MAX", "LANE_PUBLICATIONS_MAX", "Lane", "Waiting", "fill"]

# What may wait in one lane: about ten full items. A channel at its ceiling drains that in a second
# or two.
LANE_PUBLICATIONS_MAX: Final = 5000
LANE_BYTES_MAX: Final = 1280 * 1024
assert ITEM_BYTES_MAX <= LANE_BYTES_MAX, "what fits an item fits an empty lane"


@dataclass(slots=True)
class Waiting:
    """A publication that is not answered yet.

    `commit_by_ms`: until when (wall clock) its key may be sent.
    """

    pending: Pending
    publication: Publication
    position: asyncio.Future[StreamPosition]
    submitted_s: float
    commit_by_ms: int

    def is_overdue(self, now_s: float, now_ms: int) -> bool:
        """Whether it has waited for too long.

        As long as an append is tried, or until its key might be forgotten when it is sent.
        """
        if self.pending.key is not None and now_ms >= self.commit_by_ms:
            return True
        return now_s - self.submitted_s > APPEND_DEADLINE_S


class Lane:
    """One channel's queue, and what is known of the end of its log and of other writers.

    `bytes`: of all that is not answered, taken or not. `known_s`: when `tail` was learned
    (monotonic seconds).
    """

    __slots__ = ("bytes", "contention", "history_ttl_ms", "known_s", "queue", "tail", "task")

    def __init__(self, contention: Contention) -> None:
        self.queue: deque[Waiting] = deque()
        self.bytes = 0
        self.history_ttl_ms = 0
        self.tail: Tail | None = None
        self.known_s = 0.0
        self.contention = contention
        self.task: asyncio.Task[None] | None = None

    def has_room(self, size: int) -> bool:
        """For another publication of `size` bytes."""
        return len(self.queue) < LANE_PUBLICATIONS_MAX and self.bytes + size <= LANE_BYTES_MAX

    def learn(self, tail: Tail | None, now_s: float) -> None:
        """The log ends there; None = not known any more."""
        self.tail = tail
        self.known_s = now_s

    def refill(self, batch: list[Waiting], now_s: float, now_ms: int) -> list[Waiting]:
        """Fill `batch`, which is known not to be in the log, from the queue.

        What is overdue leaves it and is returned.

        What is too much for an append by now goes back to the front.
        """
        pending = (waiting.pending for waiting in chain(batch, self.queue))
        count = fill(pending, self.contention.bytes_max) - len(batch)
        batch += [self.queue.popleft() for _ in range(count)]
        if count < 0:
            self.queue.extendleft(reversed(batch[count:]))
            del batch[count:]
        overdue = [waiting for waiting in batch if waiting.is_overdue(now_s, now_ms)]
        if overdue:
            batch[:] = [waiting for waiting in batch if not waiting.is_overdue(now_s, now_ms)]
        return overdue


def fill(queue: Iterable[Pending], bytes_max: int = ITEM_BYTES_MAX) -> int:
    """How many publications from the front of `queue` fit one item of `bytes_max`.

    At least one, if there is one.

    One item has no key twice: the second publication of a key must find the first one in the log.
    """
    size, count = 2, 0
    keys: set[str] = set()
    for pending in queue:
        size += pending.size
        if count and (size > bytes_max or count == ITEM_PUBLICATIONS_MAX):
            break
        if pending.key is not None:
            if pending.key in keys or len(keys) == ITEM_KEYS_MAX:
                break
            keys.add(pending.key)
        count += 1
    return count
