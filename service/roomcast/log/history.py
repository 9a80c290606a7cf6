"""A channel's history as clients may see it.

The run that ends at the top, less what is trimmed, old or too much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from roomcast.log.channel_log import ITEMS_A_PAGE, ChannelLog
from roomcast.ports import Clock
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.json import Unencodable
from roomcast.wire.publication import Record, StreamPosition
from roomcast.wire.sent import Sent, sent_of

__all__ = ["REPLY_BYTES_MAX", "History", "WrongEpoch", "read_history"]

# Publications in one reply, in bytes: a client pages on from the last one it got.
REPLY_BYTES_MAX: Final = 512 * 1024
# Pages that one request may read, and how often it may look for the first publication that is
# shown: once where no clock is wrong and nothing is broken. Each look reads one item for each power
# of two in what it halves.
_READS_MAX: Final = 20
_SEEKS_MAX: Final = 3


class WrongEpoch(Exception):
    """The client's position is of another epoch: error 112."""


@dataclass(frozen=True, slots=True)
class History:
    """`sent`: publications as clients get them, in the order asked for.

    `position`: the channel's top.
    """

    sent: tuple[Sent, ...]
    position: StreamPosition

    @property
    def lines(self) -> tuple[bytes, ...]:
        """In JSON."""
        return tuple(each.line for each in self.sent)


async def read_history(
    log: ChannelLog,
    clock: Clock,
    channel: str,
    options: ChannelOptions,
    *,
    since: StreamPosition | None,
    limit: int,
    reverse: bool,
) -> History:
    """At most `limit` publications.

    They begin next to `since` (exclusive), else at the end that `reverse` says.

    Raises WrongEpoch, PortError.
    """
    resolved, head = await asyncio.gather(log.resolve(channel), log.head(channel))
    position = resolved.tail.position
    if since is not None and since.epoch and since.epoch != position.epoch:
        raise WrongEpoch
    if limit == 0 or position.offset == 0:
        return History((), position)
    hidden = max(head.trim if head else 0, position.offset - options.history_size)
    cutoff_ts = clock.now_ms() - options.history_ttl_s * 1000
    if reverse:
        end = min(since.offset - 1 if since else position.offset, position.offset)
        records = await log.read_before(channel, position.epoch, end, limit)
        found = _shown(records, hidden + 1, end, cutoff_ts)[-limit:][::-1]
    else:
        start = max(since.offset if since else 0, hidden) + 1
        found = await _forward(log, channel, position, start, limit, cutoff_ts)
    return History(tuple(_bounded(found)), position)


async def _forward(
    log: ChannelLog, channel: str, position: StreamPosition, start: int, limit: int, cutoff_ts: int
) -> list[Sent]:
    found: list[Sent] = []
    after, seeks = start - 1, 0
    for _ in range(_READS_MAX):
        if after >= position.offset or len(found) >= limit:
            break
        records = await log.read_after(
            channel, position.epoch, after, min(ITEMS_A_PAGE, limit - len(found))
        )
        hole = not records or records[0].offset > after + 1
        if hole or any(record.ts < cutoff_ts for record in records):
            # What expired is hidden, and may be gone anywhere, before the run that ends at the top.
            # Items of an epoch before stand there as well, for days after they expired.
            found.clear()
            if seeks < _SEEKS_MAX:
                seeks += 1
                after = await _seek(log, channel, position, after, cutoff_ts)
                continue
            if not records:
                break
        found.extend(_shown(records, max(start, after + 1), position.offset, cutoff_ts))
        after = records[-1].last
    return found[:limit]


async def _seek(
    log: ChannelLog, channel: str, position: StreamPosition, after: int, cutoff_ts: int
) -> int:
    """The offset behind `after` before the first one that is shown.

    Found by halving what is between: a channel may hold many times more than it shows. Where that
    is not one stretch of hidden ones and one of others, it is before one of several.
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


def _shown(records: Sequence[Record], first: int, last: int, cutoff_ts: int) -> list[Sent]:
    """The publications in `first`..`last` behind the last record that is older than `cutoff_ts`.

    Clocks of writers differ, so an old record may stand behind a younger one; leaving out single
    ones would make a hole.
    """
    found: list[Sent] = []
    for record in records:
        if record.ts < cutoff_ts:
            found.clear()
            continue
        for publication in record.publications or ():
            if first <= publication.offset <= last:
                try:
                    found.append(sent_of(publication, record.ts))
                except Unencodable:
                    continue
    return found


def _bounded(found: Sequence[Sent]) -> list[Sent]:
    size = 0
    for count, each in enumerate(found):
        size += each.size
        if count and size > REPLY_BYTES_MAX:
            return list(found[:count])
    return list(found)
