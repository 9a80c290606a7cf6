"""Reads a channel's history as clients may see it.

History is the run of publications that ends at the top, without those that are trimmed, expired, or
beyond the history's size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from roomcast.log.channel_log import ITEMS_A_PAGE, ChannelLog
from roomcast.log.times import ALWAYS, SCAN_READS_MAX, SEARCH_READS_MAX, Times, offset_before
from roomcast.ports import Clock
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.encoding import Sent, Unencodable, sent_of
from roomcast.wire.publication import Record, StreamPosition

__all__ = ["REPLY_BYTES_MAX", "History", "WrongEpoch", "read_history"]

# Bytes of publications in one reply. A client reads on from the last one that it got.
REPLY_BYTES_MAX: Final = 512 * 1024
# Stored bytes that one request in reverse decodes. A publication may take twice its bytes in the
# log, and the end of the newest item may be hidden.
_READ_BYTES_MAX: Final = 3 * REPLY_BYTES_MAX
# Pages that one request may read, and how often it may search for the first visible publication.
# One search is enough unless a clock is wrong or an item is broken. A search is binary, and reads
# one item a step.
_READS_MAX: Final = 20
_SEEKS_MAX: Final = 3
# What the search for a time reads at most.
_LOOKS_MAX: Final = SEARCH_READS_MAX + SCAN_READS_MAX + 1


class WrongEpoch(Exception):
    """The client's position is of another epoch: error 112."""


@dataclass(frozen=True, slots=True)
class History:
    """A part of a channel's history.

    `sent`: publications as clients get them, in the requested order.

    `position`: the channel's top.

    `since_offset`, `until_offset`: the last offset before each of the two times that were asked
    for; None = it was not.
    """

    sent: tuple[Sent, ...]
    position: StreamPosition
    since_offset: int | None = None
    until_offset: int | None = None

    @property
    def lines(self) -> tuple[bytes, ...]:
        """The publications as lines of JSON."""
        return tuple(each.line for each in self.sent)

    def found(self) -> dict[str, int]:
        """The offsets that were found by times, as an answer names them."""
        named = (("since_offset", self.since_offset), ("until_offset", self.until_offset))
        return {name: offset for name, offset in named if offset is not None}


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A record of offsets `offset`..`last`, whose publications are encoded for clients."""

    offset: int
    last: int
    ts: int
    sent: tuple[Sent, ...]


async def read_history(
    log: ChannelLog,
    clock: Clock,
    channel: str,
    options: ChannelOptions,
    *,
    since: StreamPosition | None,
    limit: int,
    reverse: bool,
    times: Times = ALWAYS,
) -> History:
    """Read up to `limit` publications.

    They begin next to `since` (exclusive). Without it, they begin with the oldest, or in `reverse`
    with the newest. With `times`, they are those of a part of the history (see
    service/roomcast/log/times.py); to find it takes some reads more.

    Raises WrongEpoch, PortError.
    """
    resolved, head = await asyncio.gather(log.resolve(channel), log.head(channel))
    position = resolved.tail.position
    if since is not None and since.epoch and since.epoch != position.epoch:
        raise WrongEpoch
    hidden = max(head.trim if head else 0, position.offset - options.history_size, 0)
    cutoff_ts = clock.now_ms() - options.history_ttl_s * 1000
    after = await _before(log, channel, position, hidden, cutoff_ts, times.since_ms)
    until = await _before(log, channel, position, hidden, cutoff_ts, times.until_ms)
    top = position.offset if until is None else until
    hidden = hidden if after is None else max(hidden, after)
    if limit == 0 or hidden >= top:
        return History((), position, after, until)
    if reverse:
        end = min(since.offset - 1 if since else top, top)
        records = await log.forms_before(
            _encoded, channel, position.epoch, end, limit, _READ_BYTES_MAX
        )
        shown = _Shown(hidden + 1, end, cutoff_ts)
        for record in records:
            shown.add(record)
        found = shown.sent[-limit:][::-1]
    else:
        start = max(since.offset if since else 0, hidden) + 1
        end_position = StreamPosition(position.epoch, top)
        found = await _forward(log, channel, end_position, start, limit, cutoff_ts)
    return History(tuple(_bounded(found)), position, after, until)


async def _before(
    log: ChannelLog,
    channel: str,
    position: StreamPosition,
    hidden: int,
    cutoff_ts: int,
    at_ms: int | None,
) -> int | None:
    """The last offset before `at_ms`, of those that are shown or the one before them; None = there
    is no such bound. Raises PortError.
    """
    if at_ms is None:
        return None
    search = offset_before(hidden, position.offset, max(at_ms, cutoff_ts))
    try:
        look = next(search)
        for _ in range(_LOOKS_MAX):
            look = search.send(await log.spans(channel, position.epoch, look))
    except StopIteration as found:
        return int(found.value)
    raise AssertionError("a search that does not end")


async def _forward(
    log: ChannelLog, channel: str, position: StreamPosition, start: int, limit: int, cutoff_ts: int
) -> list[Sent]:
    found: list[Sent] = []
    after, seeks = start - 1, 0
    for _ in range(_READS_MAX):
        left = limit - len(found)
        bytes_left = REPLY_BYTES_MAX - sum(each.size for each in found)
        if after >= position.offset or left <= 0 or bytes_left < 0:
            break
        shown = _Shown(max(start, after + 1), position.offset, cutoff_ts)
        records = await log.forms_after(
            _encoded,
            channel,
            position.epoch,
            after,
            min(ITEMS_A_PAGE, left),
            partial(shown.fills, left, bytes_left),
        )
        hole = not records or records[0].offset > after + 1
        if hole or any(record.ts < cutoff_ts for record in records):
            # Before the visible run, expired records are hidden, and any of them may be deleted.
            # Items of an earlier epoch may be there as well, for days after they expired.
            found.clear()
            if seeks < _SEEKS_MAX:
                seeks += 1
                after = await _seek(log, channel, position, after, cutoff_ts)
                continue
            if not records:
                break
        found.extend(shown.sent)
        after = records[-1].last
    return found[:limit]


async def _seek(
    log: ChannelLog, channel: str, position: StreamPosition, after: int, cutoff_ts: int
) -> int:
    """The last hidden offset behind `after`; the first visible one follows it.

    It is found by binary search, because a channel may hold many times more than is visible. If
    hidden and visible records alternate, it is the end of one of several hidden runs.
    """
    low, high = after + 1, position.offset + 1
    while low < high:
        middle = (low + high) // 2
        record = await log.read_at(channel, position.epoch, middle)
        if record is None or record.ts < cutoff_ts:
            low = middle + 1 if record is None else record.last + 1
        else:
            high = max(low, record.offset)
    return low - 1


def _encoded(record: Record) -> _Encoded:
    sent = []
    for publication in record.publications or ():
        try:
            sent.append(sent_of(publication, record.ts))
        except Unencodable:
            continue
    return _Encoded(record.offset, record.last, record.ts, tuple(sent))


class _Shown:
    """The publications in `first`..`last` that follow the last record older than `cutoff_ts`.

    Clocks of writers differ, so an older record may follow a newer one. To leave out single records
    would make a hole.
    """

    __slots__ = ("_bytes", "_cutoff_ts", "_first", "_last", "sent")

    def __init__(self, first: int, last: int, cutoff_ts: int) -> None:
        self._first = first
        self._last = last
        self._cutoff_ts = cutoff_ts
        self.sent: list[Sent] = []
        self._bytes = 0

    def add(self, record: _Encoded) -> None:
        """Records are added in ascending order."""
        if record.ts < self._cutoff_ts:
            self.sent.clear()
            self._bytes = 0
            return
        for each in record.sent:
            if self._first <= each.offset <= self._last:
                self.sent.append(each)
                self._bytes += each.size

    def fills(self, publications_max: int, bytes_max: int, record: _Encoded) -> bool:
        """Add `record`. Whether a reply with room for so much has no place for what follows."""
        self.add(record)
        return len(self.sent) >= publications_max or self._bytes > bytes_max


def _bounded(found: Sequence[Sent]) -> list[Sent]:
    size = 0
    for count, each in enumerate(found):
        size += each.size
        if count and size > REPLY_BYTES_MAX:
            return list(found[:count])
    return list(found)
