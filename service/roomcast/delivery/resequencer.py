"""Puts one channel's records in order: drops repeats and holds records until holes are filled.

Theory of operation. Records of a channel arrive repeated, reordered, or not at all; the log holds
them all. The resequencer knows the last offset it let through (`top`), and lets a record through
only when it continues there. A record ahead of `top` is held. The hole before it gets a short while
to fill by itself. Then it must be read from the log. Holding only saves reads: a held record that
is dropped is in the log too. Two things cannot be repaired: a hole in the log itself, and another
epoch. Then subscribers must be told.

Why there are epochs. An offset alone does not say which publication is meant, because offsets can
be used again: a channel whose items have all expired starts at 1 again. Take a channel of three
publications, and a client that sees them and goes away:

    epoch x    1 "a"    2 "b"    3 "c"    the client leaves with offset 3; then all three expire
    epoch y    1 "d"    2 "e"    3 "f"    the client comes back with offset 3

By its offset the client stands at the end and has missed nothing, though it has seen none of "d",
"e" and "f". Had it left with offset 1, it would get "e" and "f" behind "a", as if nothing were
missing. A position is therefore an epoch and an offset: (x, 3) is no place in y, and the client
learns that it cannot be recovered. The same holds for records. A record of x says nothing about
what comes next in y. So the resequencer drops it, and asks for a read of the log to decide which of
the two is the channel's epoch.

Express hints (express.py) are records that their writer sent itself, ahead of the stream. They may
pass, and may be held, as any record. But they say nothing of what is missing: they are lost more
often, and overtake each other and the stream. A hole before one of them is filled by the stream a
moment later. So a hint never leads to a read of the log. The stream's records do, as if there were
no hints. What was held for long because of a hint alone is dropped: it may have been made up, and
no read would show that.

Pure: monotonic seconds come in; publications and requests for reads go out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from roomcast.delivery.gap_wait import GapWait
from roomcast.wire.encoding import Unencodable, sent_of
from roomcast.wire.publication import Publication, Record, StreamPosition
from roomcast.wire.trace_context import Trail

__all__ = [
    "EXPRESS_HELD_S",
    "HELD_BYTES_MAX",
    "HELD_PUBLICATIONS_MAX",
    "Next",
    "Resequencer",
    "weight",
]

# Publications of one channel that are held ahead of a hole. Beyond either bound they are dropped,
# and read from the log later.
HELD_PUBLICATIONS_MAX: Final = 1000
HELD_BYTES_MAX: Final = 1024 * 1024
# How long an express hint is held, in s. The stream brings what is before it much sooner, or never.
EXPRESS_HELD_S: Final = 5.0
# Epochs that are known not to be the channel's. Their records are late ones of an earlier epoch, or
# come from another table.
_REFUTED_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Next:
    """Publications that come next, ascending and without a hole.

    `ts`: the time of their append in ms. `held_s`: how long they were held. `trail`: how their
    record came, if it is traced.
    """

    publications: tuple[Publication, ...]
    ts: int
    held_s: float = 0.0
    trail: Trail | None = None


def weight(record: Record) -> int:
    """Bytes of the record's publications as clients get them.

    A publication that cannot be encoded counts as much as everything that may be held.
    """
    try:
        return sum(sent_of(each, record.ts).size for each in record.publications or ())
    except Unencodable:
        return HELD_BYTES_MAX


class Resequencer:
    """The order of one channel, from a position that a consistent read of the log gave.

    `gap_wait`: how long a hole may fill by itself, as of when it is seen.

    `read_at`: when the log must be read after `top` (monotonic s); None = nothing is missing.
    `doubted`: an epoch that a record claims and that must be looked up in the log; None = no doubt.
    """

    __slots__ = (
        "_express",
        "_gap_wait",
        "_held",
        "_held_bytes",
        "_held_publications",
        "_known",
        "_refuted",
        "doubted",
        "epoch",
        "read_at",
        "top",
    )

    def __init__(self, position: StreamPosition, gap_wait: GapWait) -> None:
        assert position.epoch, "a channel always has an epoch"
        self.epoch = position.epoch
        self.top = position.offset
        self.read_at: float | None = None
        self.doubted: str | None = None
        self._gap_wait = gap_wait
        # The held records, their weights, and since when they are held, by first offset.
        self._held: dict[int, tuple[Record, int, float]] = {}
        self._held_publications = 0
        self._held_bytes = 0
        # Until when express hints are held, with their first offsets, in this order.
        self._express: deque[tuple[float, int]] = deque()
        # The greatest offset that is known to be in the log.
        self._known = position.offset
        self._refuted: deque[str] = deque(maxlen=_REFUTED_MAX)

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self.epoch, self.top)

    @property
    def known(self) -> int:
        """The greatest offset that is known to exist; above `top` while something is missing."""
        return self._known

    def offer(self, record: Record, now_s: float) -> list[Next]:
        """Take one record, from any source.

        Returns the publications that may go to subscribers now, in order.
        """
        if record.epoch != self.epoch:
            if not record.express and not self.has_refuted(record.epoch):
                self.doubted = record.epoch
            return []
        self._drop_old_express(now_s)
        if record.last <= self.top:
            return []
        if record.express:
            return self._offer_express(record, now_s)
        self._known = max(self._known, record.last)
        passed: list[Next] = []
        if record.publications is None:
            self.read_at = now_s
        elif record.offset <= self.top + 1:
            passed.append(self._pass(record))
            self._pass_held(passed, now_s)
        else:
            self._hold(record, now_s)
        self._await_hole(now_s)
        return passed

    def _offer_express(self, record: Record, now_s: float) -> list[Next]:
        if record.offset > self.top + 1:
            self._hold(record, now_s)
            return []
        passed = [self._pass(record)]
        self._pass_held(passed, now_s)
        if self.top >= self._known:
            self.read_at = None
        return passed

    def exists(self, top: int, now_s: float) -> None:
        """The log reaches `top`. Missing publications up to there must be read at once."""
        if top > self._known:
            self._known = top
        if self.top < self._known:
            self.read_at = now_s

    def disclaim(self) -> None:
        """Records claimed what is not in the log: forget all that is known beyond `top`."""
        self._known, self.read_at = self.top, None
        self._held.clear()
        self._express.clear()
        self._held_publications = self._held_bytes = 0

    def refute(self, epoch: str) -> None:
        """The log says that `epoch` is not the channel's."""
        self._refuted.append(epoch)
        if self.doubted == epoch:
            self.doubted = None

    def has_refuted(self, epoch: str) -> bool:
        """Whether `epoch` was refuted lately. Epochs that are over do not come back."""
        return epoch in self._refuted

    def reading(self) -> int:
        """A read after `top` begins. Returns the offset that it must reach, for `read`."""
        self.read_at = None
        return self._known

    def read(
        self, records: Iterable[Record], must_reach: int, now_s: float
    ) -> tuple[list[Next], bool]:
        """Take the records of a consistent read after `top`.

        Returns the publications that may go to subscribers, and False if the log has a hole, of
        which they must be told. `must_reach` is from `reading`: the read must have everything that
        was known to exist before it began.
        """
        passed: list[Next] = []
        for record in records:
            passed.extend(self.offer(record, now_s))
        whole = self.top >= must_reach
        if whole:
            self._await_hole(now_s)
        return passed, whole

    def postpone(self, until_s: float) -> None:
        """The read failed: try again at `until_s`."""
        self.read_at = until_s

    def _pass(self, record: Record, held_s: float = 0.0) -> Next:
        assert record.publications is not None
        assert record.offset <= self.top + 1 <= record.last, "I3: no hole, no repeat"
        publications = record.publications[self.top + 1 - record.offset :]
        assert publications[0].offset == self.top + 1, "I3: offsets are those of the key"
        self.top = record.last
        self._known = max(self._known, self.top)
        return Next(publications, record.ts, held_s, record.trail)

    def _pass_held(self, passed: list[Next], now_s: float) -> None:
        while self._held:
            first = min(self._held)
            if first > self.top + 1:
                return
            record, since_s = self._take_held(first)
            if record.last > self.top:
                passed.append(self._pass(record, now_s - since_s))

    def _take_held(self, first: int) -> tuple[Record, float]:
        """The record, and since when it was held."""
        record, size, since_s = self._held.pop(first)
        self._held_publications -= record.last - record.offset + 1
        self._held_bytes -= size
        return record, since_s

    def _drop_old_express(self, now_s: float) -> None:
        while self._express and self._express[0][0] <= now_s:
            _, first = self._express.popleft()
            if first in self._held and self._held[first][0].express:
                self._take_held(first)

    def _hold(self, record: Record, now_s: float) -> None:
        """Keep `record` if there is room.

        Otherwise the record is dropped. What the stream brought is known to exist, so it becomes a
        part of the hole.
        """
        held = self._held.get(record.offset)
        if held is not None:
            if record.express or not held[0].express:
                return
            # What the stream brings counts.
            self._take_held(record.offset)
        count = record.last - record.offset + 1
        if self._held_publications + count > HELD_PUBLICATIONS_MAX:
            return
        if record.express and len(self._express) >= HELD_PUBLICATIONS_MAX:
            return
        size = weight(record)
        if self._held_bytes + size > HELD_BYTES_MAX:
            return
        self._held[record.offset] = (record, size, now_s)
        if record.express:
            self._express.append((now_s + EXPRESS_HELD_S, record.offset))
        self._held_publications += count
        self._held_bytes += size

    def _await_hole(self, now_s: float) -> None:
        if self.top >= self._known:
            self.read_at = None
        elif self.read_at is None:
            self.read_at = now_s + self._gap_wait.s
