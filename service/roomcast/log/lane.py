"""A lane: the bounded queue of publications that one node appends to one channel."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from roomcast.log.channel_log import APPEND_DEADLINE_S
from roomcast.log.contention import Contention
from roomcast.log.item import ITEM_BYTES_MAX, ITEM_KEYS_MAX, ITEM_PUBLICATIONS_MAX
from roomcast.log.rules import Pending, Tail
from roomcast.observe.ports import Span
from roomcast.wire.publication import StreamPosition

__all__ = [
    "FIRST_BYTES",
    "LANE_BYTES_MAX",
    "LANE_LITTLE_BYTES",
    "LANE_MUCH_PART",
    "LANE_PUBLICATIONS_MAX",
    "Lane",
    "Waiting",
    "fill",
]

# Bounds of one lane: about ten full items. At a channel's highest rate, they take a second or two.
LANE_PUBLICATIONS_MAX: Final = 5000
LANE_BYTES_MAX: Final = 1280 * 1024
# The last of this room is for callers who have little waiting in the lane, or a few others could
# fill it. So this part is for those who have much.
LANE_MUCH_PART: Final = 3 / 4
LANE_LITTLE_BYTES: Final = 16 * 1024
assert ITEM_BYTES_MAX <= LANE_BYTES_MAX * LANE_MUCH_PART, "what fits an item fits an empty lane"
# What a publication counts as at least, for its caller: so many of these fill the lane.
_PUBLICATION_BYTES: Final = LANE_BYTES_MAX // LANE_PUBLICATIONS_MAX
# A publication that always has room, in the lane and on the node, if its caller has none that waits
# there: however many callers fill the room, the others can say something. So beyond these bounds
# there is as much for each caller.
FIRST_BYTES: Final = 2 * 1024


@dataclass(slots=True)
class Waiting:
    """A publication that is not answered yet. Its text is all that is kept: decoded, it may take
    twenty times as many bytes.

    `commit_by_ms`: when its key may last be sent (wall clock). `caller`: in whose line its append
    waits. `span`: None = it is not traced.
    """

    pending: Pending
    position: asyncio.Future[StreamPosition]
    submitted_s: float
    commit_by_ms: int
    caller: str
    span: Span | None = None

    def is_overdue(self, now_s: float, now_ms: int) -> bool:
        """Whether it has waited too long.

        That is as long as an append may be tried, or until its key must not be sent any more.
        """
        if self.pending.key is not None and now_ms >= self.commit_by_ms:
            return True
        return now_s - self.submitted_s > APPEND_DEADLINE_S


class Lane:
    """One channel's queue, its known tail, and what is known about other writers.

    `bytes`: bytes of all publications that are not answered, whether in the append or in the queue.
    `versions`: how many of them have a version.
    `known_s`: when `tail` was learned (monotonic seconds). `turn`: set while the lane waits for a
    place.
    """

    __slots__ = (
        "_of",
        "bytes",
        "contention",
        "history_ttl_ms",
        "known_s",
        "queue",
        "tail",
        "task",
        "turn",
        "versions",
    )

    def __init__(self, contention: Contention) -> None:
        self.queue: deque[Waiting] = deque()
        self.bytes = 0
        self.versions = 0
        # What waits of each caller, in bytes, as far as there is any.
        self._of: Counter[str] = Counter()
        self.history_ttl_ms = 0
        self.tail: Tail | None = None
        self.known_s = 0.0
        self.contention = contention
        self.task: asyncio.Task[None] | None = None
        self.turn: asyncio.Future[None] | None = None

    def has_room(self, size: int, caller: str) -> bool:
        """Whether there is room for another publication of `size` bytes by `caller`."""
        weight = max(size, _PUBLICATION_BYTES)
        of_caller = self._of[caller] + weight
        if of_caller == weight and size <= FIRST_BYTES:
            return True
        part = 1.0 if of_caller <= LANE_LITTLE_BYTES else LANE_MUCH_PART
        has_place = len(self.queue) < LANE_PUBLICATIONS_MAX * part
        return has_place and self.bytes + size <= LANE_BYTES_MAX * part

    def add(self, waiting: Waiting) -> None:
        """Another publication waits, from now on until it `left`."""
        self.queue.append(waiting)
        self.bytes += waiting.pending.size
        self.versions += waiting.pending.version is not None
        self._of[waiting.caller] += max(waiting.pending.size, _PUBLICATION_BYTES)

    def left(self, waiting: Waiting) -> None:
        """`waiting`, which is not in the queue any more, was answered."""
        self.bytes -= waiting.pending.size
        self.versions -= waiting.pending.version is not None
        self._of[waiting.caller] -= max(waiting.pending.size, _PUBLICATION_BYTES)
        if not self._of[waiting.caller]:
            del self._of[waiting.caller]

    def callers(self, batch: Sequence[Waiting]) -> set[str]:
        """Who has publications in `batch`, or behind it: these need its append first."""
        return {each.caller for each in chain(batch, self.queue)}

    def learn(self, tail: Tail | None, now_s: float) -> None:
        """The log ends at `tail`; None = its end is not known any more."""
        self.tail = tail
        self.known_s = now_s

    def refill(self, batch: list[Waiting], now_s: float, now_ms: int) -> list[Waiting]:
        """Fill `batch` from the queue. It is known not to be in the log.

        Overdue publications leave it and are returned.

        Publications that are now too many for one append go back to the front of the queue.
        """
        pending = (waiting.pending for waiting in chain(batch, self.queue))
        count = fill(pending, self.contention.bytes_max) - len(batch)
        batch += [self.queue.popleft() for _ in range(count)]
        if count < 0:
            self.give_back(batch, len(batch) + count)
        overdue = [waiting for waiting in batch if waiting.is_overdue(now_s, now_ms)]
        if overdue:
            batch[:] = [waiting for waiting in batch if not waiting.is_overdue(now_s, now_ms)]
        return overdue

    def give_back(self, batch: list[Waiting], first: int) -> None:
        """Those of `batch` from index `first` on wait again, before all others."""
        self.queue.extendleft(reversed(batch[first:]))
        del batch[first:]


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
