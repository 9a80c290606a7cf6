"""The port of the log: a channel table with conditional writes and strongly consistent reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from roomcast.log.idempotency import KeyItem
from roomcast.log.item import Head, LogItem
from roomcast.ports import PortError

__all__ = ["ChannelTable", "Holders", "Page", "TailExpired"]


class TailExpired(PortError):
    """The write was not sent: its tail was no longer valid when the request had been signed."""


@dataclass(frozen=True, slots=True)
class Holders:
    """The items for which a conditional write failed.

    They are the log item at its offset, and the key items of keys that are taken.

    There is at least one. DynamoDB may report only some of several reasons.
    """

    item: LogItem | None = None
    keys: tuple[KeyItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Log items ascending by offset.

    `more`: the table has further items in the direction of the read.
    """

    items: tuple[LogItem, ...]
    more: bool


class ChannelTable(Protocol):
    """The items of the `channels` table, and the keys of table `idempotency`.

    Every read is strongly consistent. A read of one item that no node wrote raises Malformed. A
    read of several leaves such an item out, which makes a hole.
    """

    async def newest(self, channel: str) -> LogItem | Head | None:
        """The item with the greatest key: the newest log item, else the head, else None."""

    async def head(self, channel: str) -> Head | None:
        """The head item."""

    async def key(self, key: str) -> KeyItem | None:
        """The key item (see `stored_key`), expired or not."""

    async def put_item(self, item: LogItem, tail_valid_until_ms: int) -> LogItem | None:
        """Write `item` if its key is free: None = it is written now.

        Otherwise it returns the item with that key; the caller compares `batch`. It makes one
        attempt, without retries.

        Raises TailExpired (not sent: the wall clock, read after signing, was past
        `tail_valid_until_ms`), Contended, Throttled, UnknownOutcome, Rejected.
        """

    async def put_keyed_item(
        self, item: LogItem, keys: Sequence[KeyItem], tail_valid_until_ms: int
    ) -> Holders | None:
        """Write `item` and all `keys` if all of their keys are free. Otherwise write nothing.

        Keys go into table `idempotency`. None = all are written now. Otherwise it returns the items
        that hold the keys; the caller compares `batch`. A key item counts as long as it exists,
        expired or not. `keys`: 1 to ITEM_KEYS_MAX, all different.

        It makes one attempt, and raises the same errors as `put_item`.
        """

    async def put_head(self, head: Head, expected_version: str | None) -> bool:
        """Write `head` if the stored head's version is `expected_version`.

        With None, write it if there is no head.

        False = the condition failed. Raises Throttled, UnknownOutcome, Rejected.
        """

    async def read_behind(self, channel: str, offset: int, items_max: int) -> Page:
        """Items whose key is > `offset`, ascending.

        These were appended behind the item that ends at `offset`.
        """

    async def read_forward(self, channel: str, from_offset: int, items_max: int) -> Page:
        """Items that cover offsets ≥ `from_offset`, ascending.

        They begin with the item that spans it, if any.
        """

    async def read_backward(self, channel: str, to_offset: int, items_max: int) -> Page:
        """The last `items_max` items whose key is ≤ `to_offset`, returned ascending."""
