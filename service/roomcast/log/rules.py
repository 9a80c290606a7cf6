"""The rules of the channel log: tails, appends, and what a reader sees.

Theory of operation. A channel's publications are numbered within an epoch, from the head's floor +
1, without a hole, and no number is used twice. The newest log item tells the tail, but only while
it is certain that the item was not deleted. DynamoDB deletes expired items in any order. So when a
tail is about to expire, the newest item may be gone, and an older one may look like the tail. Hence
every tail is valid until a certain time, which is stored in the table and never derived from
configuration. When no tail is valid any more, the head is rewritten with a new epoch (rotation).
While one is valid, a quiet channel's head is rewritten with the same epoch (renewal).
docs/architecture.md has the whole protocol.

All times in ms since 1970 unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from roomcast.frozen import frozen
from roomcast.log.item import Head, LogItem
from roomcast.wire.publication import StreamPosition
from roomcast.wire.trace_context import TraceContext
from roomcast.wire.versions import Version

__all__ = [
    "HEAD_GRACE_MS",
    "MARGIN_MS",
    "MIN_RETENTION_MS",
    "Pending",
    "Tail",
    "append_item",
    "contiguous",
    "generation_of",
    "head_tail",
    "is_of_generation",
    "item_tail",
    "new_epoch",
    "next_head",
    "renewal_due",
]

# The least life of a log item. No release may shorten it, because the validity of tails rests on
# it.
MIN_RETENTION_MS: Final = 24 * 60 * 60 * 1000
# The clock skew between nodes, plus the longest time from reading a tail to the commit of an append
# behind it.
MARGIN_MS: Final = 30 * 60 * 1000
# How long a head lives after its tail has expired. That is longer than any history_ttl (366 days at
# most), so that hidden publications stay hidden.
HEAD_GRACE_MS: Final = 400 * 24 * 60 * 60 * 1000
assert MARGIN_MS * 4 < MIN_RETENTION_MS, "a fresh tail must be valid for most of its life"

# Separates the log generation from the random part of an epoch.
_GENERATION_SEPARATOR: Final = "."


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a channel's log.

    The next append goes to `top` + 1 of `epoch`, if committed by `valid_until`.

    `expires_at` (s) is the tail item's: an append never sets an earlier one. `renewal_due` tells
    when the head of a quiet channel must be renewed, so that the epoch goes on. `newest_version`:
    of the publications up to `top`; None = none had one.
    """

    epoch: str
    top: int
    valid_until: int
    expires_at: int
    newest_version: Version | None = None

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self.epoch, self.top)


def new_epoch(generation: str, random_text: str) -> str:
    """An epoch of `generation`. A table that is restored from a backup needs another generation."""
    return f"{generation}{_GENERATION_SEPARATOR}{random_text}"


def is_of_generation(epoch: str, generation: str) -> bool:
    """Whether `epoch` was made by `new_epoch` of the same generation."""
    return generation_of(epoch) == generation


def generation_of(epoch: str) -> str:
    """The generation that `epoch` was made with."""
    return epoch.rpartition(_GENERATION_SEPARATOR)[0]


def item_tail(item: LogItem, now: int, generation: str) -> Tail | None:
    """The tail by `item`, the newest of its channel.

    None when it is not valid any more.
    """
    valid_until = item.expires_at * 1000 - MARGIN_MS
    if valid_until <= now or not is_of_generation(item.epoch, generation):
        return None
    return Tail(item.epoch, item.last, valid_until, item.expires_at, item.newest_version)


def head_tail(head: Head | None, newest: LogItem | None, now: int, generation: str) -> Tail | None:
    """The tail by `head`, when the newest log item gives no valid one.

    None when the head gives none either: the caller must rotate.
    """
    if head is None or not is_of_generation(head.epoch, generation):
        return None
    valid_until = head.tail_valid_until - MARGIN_MS
    if valid_until <= now or head.floor < (newest.last if newest else 0):
        return None
    return Tail(
        head.epoch,
        head.floor,
        valid_until,
        newest.expires_at if newest else 0,
        _newest_version(head, newest),
    )


def _newest_version(head: Head | None, newest: LogItem | None) -> Version | None:
    """The newest version that is known of a channel, by the later of both that has one.

    A release that knew no versions wrote none. Then an older one is better than none.
    """
    by_head = head.newest_version if head else None
    by_item = newest.newest_version if newest else None
    is_head_later = head is not None and head.floor >= (newest.last if newest else 0)
    return (by_head or by_item) if is_head_later else (by_item or by_head)


def next_head(
    channel: str,
    head: Head | None,
    newest: LogItem | None,
    *,
    epoch: str,
    version: str,
    read_at: int,
    trim: int = 0,
) -> Head:
    """The head that rotates or renews a channel, and hides offsets up to `trim`.

    With a new `epoch` it rotates, with the tail's own it renews.

    `read_at`: the time BEFORE `head` and `newest` were read. The new validity is counted from
    there, not from now. It never ends before the old one, on which others rely: a process may have
    been suspended since `read_at`.
    """
    tail_valid_until = max(read_at + MIN_RETENTION_MS, head.tail_valid_until if head else 0)
    return Head(
        channel=channel,
        epoch=epoch,
        floor=max(newest.last if newest else 0, head.floor if head else 0),
        tail_valid_until=tail_valid_until,
        trim=max(trim, head.trim if head else 0),
        version=version,
        expires_at=(tail_valid_until + HEAD_GRACE_MS) // 1000,
        newest_version=_newest_version(head, newest),
    )


def renewal_due(tail: Tail, now: int) -> bool:
    """Whether less than half of the least life remains.

    Then a node with subscribers of the channel renews its head.
    """
    return tail.valid_until - now < MIN_RETENTION_MS // 2


@frozen
class Pending:
    """One publication that waits to be appended.

    `text`: the JSON text of its stored form. `key`: its idempotency key. `version`: None = it has
    none.
    """

    text: str
    size: int
    key: str | None = None
    version: Version | None = None

    @classmethod
    def of(cls, text: str, key: str | None = None, version: Version | None = None) -> Pending:
        """Compute `size`: bytes of UTF-8, with the comma that joins it to the next."""
        return cls(text, len(text.encode()) + 1, key, version)


def append_item(
    channel: str,
    tail: Tail,
    publications: Sequence[Pending],
    *,
    batch: str,
    node: str,
    now: int,
    history_ttl_ms: int,
    trace: TraceContext | None = None,
    newest_version: Version | None = None,
    told: bool = False,
) -> LogItem:
    """The item that appends `publications` behind `tail`. `trace`: the span of this append.

    It never expires before the item that it follows. `newest_version`: of the publications; None =
    none of them has one, so the tail's goes on. `told`: back ends are told of them.
    """
    lives_until = (now + max(history_ttl_ms, MIN_RETENTION_MS)) // 1000
    return LogItem(
        channel=channel,
        offset=tail.top + 1,
        last=tail.top + len(publications),
        epoch=tail.epoch,
        pubs="[" + ",".join(pending.text for pending in publications) + "]",
        batch=batch,
        node=node,
        ts=now,
        expires_at=max(lives_until, tail.expires_at),
        trace=trace,
        newest_version=newest_version or tail.newest_version,
        told=told,
    )


def contiguous(items: Sequence[LogItem], epoch: str) -> tuple[LogItem, ...]:
    """The longest run at the END of `items` (ascending) that is of `epoch` and has no hole.

    History is the run that ends at the top: expired items may be missing anywhere before it.
    """
    run: list[LogItem] = []
    for item in reversed(items):
        if item.epoch != epoch or (run and item.last + 1 != run[-1].offset):
            break
        run.append(item)
    return tuple(reversed(run))
