"""The channel log's rules: its tail, how it is appended to, what a reader sees.

Theory of operation. A channel's publications are numbered within an epoch, from the head's floor +
1, with no hole and no number used twice. The newest log item tells the tail, but only while it is
certain not to be deleted: DynamoDB deletes expired items in any order, so a tail that is about to
expire may be an older one by the time somebody appends behind it. Hence every tail is valid until a
certain time, which is stored in the table and never derived from configuration. When no tail is
valid any more, the head is rewritten with a new epoch (rotation); while one is, a quiet channel's
head is rewritten with the same epoch (renewal). docs/architecture.md tells the whole protocol.

All times in ms since 1970 unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from roomcast.log.item import Head, LogItem
from roomcast.wire.publication import StreamPosition

__all__ = [
    "HEAD_GRACE_MS",
    "MARGIN_MS",
    "MIN_RETENTION_MS",
    "Pending",
    "Tail",
    "append_item",
    "contiguous",
    "head_tail",
    "is_of_generation",
    "item_tail",
    "new_epoch",
    "next_head",
    "renewal_due",
]

# What a log item lives at the least, in every release there was or will be: that a tail is valid
# rests on it.
MIN_RETENTION_MS: Final = 24 * 60 * 60 * 1000
# Clock skew between nodes, plus the longest time from reading a tail to the commit of an append on
# it.
MARGIN_MS: Final = 30 * 60 * 1000
# A head outlives its own word, and every history_ttl there is (366 days at most): what it hides
# stays hidden.
HEAD_GRACE_MS: Final = 400 * 24 * 60 * 60 * 1000
assert MARGIN_MS * 4 < MIN_RETENTION_MS, "a fresh tail must be valid for most of its life"

# Separates the log generation from the random part of an epoch.
_GENERATION_SEPARATOR: Final = "."


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a channel's log.

    The next append goes to `top` + 1 of `epoch`, if committed by `valid_until`.

    `expires_at` (s) is the tail item's: an append never sets an earlier one. When the head of a
    quiet channel is to be renewed, lest the epoch ends, tells `renewal_due`.
    """

    epoch: str
    top: int
    valid_until: int
    expires_at: int

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self.epoch, self.top)


def new_epoch(generation: str, random_text: str) -> str:
    """An epoch of `generation`: restoring the table from a backup calls for another generation."""
    return f"{generation}{_GENERATION_SEPARATOR}{random_text}"


def is_of_generation(epoch: str, generation: str) -> bool:
    """Whether `epoch` was made by `new_epoch` of the same generation."""
    return epoch.rpartition(_GENERATION_SEPARATOR)[0] == generation


def item_tail(item: LogItem, now: int, generation: str) -> Tail | None:
    """The tail that `item`, the newest of its channel, tells.

    None when it is not valid any more.
    """
    valid_until = item.expires_at * 1000 - MARGIN_MS
    if valid_until <= now or not is_of_generation(item.epoch, generation):
        return None
    return Tail(item.epoch, item.last, valid_until, item.expires_at)


def head_tail(head: Head | None, newest: LogItem | None, now: int, generation: str) -> Tail | None:
    """The tail that `head` tells beside a newest log item whose own tail is not valid.

    None: rotate.
    """
    if head is None or not is_of_generation(head.epoch, generation):
        return None
    valid_until = head.tail_valid_until - MARGIN_MS
    if valid_until <= now or head.floor < (newest.last if newest else 0):
        return None
    return Tail(head.epoch, head.floor, valid_until, newest.expires_at if newest else 0)


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

    It rotates with a new `epoch`, and renews with the tail's own.

    `read_at`: the time BEFORE `head` and `newest` were read; the new word holds from there, not
    from now. It never ends before the old one: others rest on that, and a process may have slept
    since `read_at`.
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
    )


def renewal_due(tail: Tail, now: int) -> bool:
    """Whether under half of the shortest life remains.

    Then whoever serves subscribers of the channel renews its head.
    """
    return tail.valid_until - now < MIN_RETENTION_MS // 2


@dataclass(frozen=True, slots=True)
class Pending:
    """One publication that waits to be appended.

    The JSON text of its stored form, and its idempotency key.
    """

    text: str
    size: int
    key: str | None = None

    @classmethod
    def of(cls, text: str, key: str | None = None) -> Pending:
        """`size` in bytes of UTF-8, with the comma that joins it to the next."""
        return cls(text, len(text.encode()) + 1, key)


def append_item(
    channel: str,
    tail: Tail,
    publications: Sequence[Pending],
    *,
    batch: str,
    node: str,
    now: int,
    history_ttl_ms: int,
) -> LogItem:
    """The item that appends `publications` behind `tail`.

    It never expires before what it stands on.
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
