"""Log items and heads for tests, with everything that does not matter filled in."""

from __future__ import annotations

import json

from roomcast.log.idempotency import KeyItem, key_items
from roomcast.log.item import Head, LogItem

EPOCH = "e1"


def log_item(
    offset: int,
    last: int | None = None,
    *,
    channel: str = "room",
    batch: str = "batch",
    epoch: str = EPOCH,
    text: str = "hello",
) -> LogItem:
    last = offset if last is None else last
    return LogItem(
        channel=channel,
        offset=offset,
        last=last,
        epoch=epoch,
        pubs=json.dumps([{"data": text}] * (last - offset + 1)),
        batch=batch,
        node="node-1",
        ts=1_700_000_000_000,
        expires_at=1_700_086_400,
    )


def keyed(
    offset: int, *keys: str, channel: str = "room", batch: str = "batch"
) -> tuple[LogItem, tuple[KeyItem, ...]]:
    """A log item with a publication for each of `keys`, and their key items."""
    item = log_item(offset, offset + len(keys) - 1, channel=channel, batch=batch)
    return item, key_items(item, keys)


def head(
    version: str, *, channel: str = "room", epoch: str = EPOCH, floor: int = 0, trim: int = 0
) -> Head:
    return Head(
        channel=channel,
        epoch=epoch,
        floor=floor,
        tail_valid_until=1_700_086_400_000,
        trim=trim,
        version=version,
        expires_at=1_700_172_800,
    )
