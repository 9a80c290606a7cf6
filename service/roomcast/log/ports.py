"""The channel table as the log needs it: conditional writes and strongly consistent reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from roomcast.log.idempotency import KeyItem
from roomcast.log.item import Head, LogItem
from roomcast.ports import PortError

__all__ = ["ChannelTable", "Holders", "Page", "TailExpired"]


class TailExpired(PortError):
    """Not sent: the tail on which this append rests is no longer valid (checked after signing)."""


@dataclass(frozen=True, slots=True)
class Holders:
    """What stands in the way of a conditional write.

    The log item at its offset, and the key items of keys that are taken.

    At least one of them. DynamoDB may name some of several reasons only.
    """

    item: LogItem | None = None
    keys: tuple[KeyItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Log items ascending by offset.

    `more`: the table holds further items in the direction of reading.
    """

    items: tuple[LogItem, ...]
    more: bool


class ChannelTable(Protocol):
    """The items of the `channels` table, and the keys of table `idempotency`.

    Every read is strongly consistent. An item that no node wrote raises Malformed, or is left out
    where several are read: a hole then.
    """

    async def newest(self, channel: str) -> LogItem | Head | None:
        """The item with the greatest key: the newest log item, else the head, else None."""

    async def head(self, channel: str) -> Head | None:
        """The head item."""

    async def key(self, key: str) -> KeyItem | None:
        """The key item (see `stored_key`), expired or not."""

    async def put_item(self, item: LogItem, tail_valid_until_ms: int) -> LogItem | None:
        """Write `item` if its key is free: None = it is written now.

        Otherwise the item that holds the key (the caller compares `batch`). One attempt, no retry
        inside.

        Raises TailExpired (the wall clock, read after signing, is past `tail_valid_until_ms`: not
        sent), Contended, Throttled, UnknownOutcome, Refused.
        """

    async def put_keyed_item(
        self, item: LogItem, keys: Sequence[KeyItem], tail_valid_until_ms: int
    ) -> Holders | None:
        """Write `item` and all `keys` if all their keys are free, or none of them.

        Keys go into table `idempotency`. None = they are written now. Otherwise who holds them (the
        caller compares `batch`). A key item counts as long as it is there, expired or not. `keys`:
        1 to ITEM_KEYS_MAX, all different.

        One attempt, and the same errors as `put_item`.
        """

    async def put_head(self, head: Head, expected_version: str | None) -> bool:
        """Write `head` if the stored head's version is `expected_version`.

        None: if there is no head.

        False = the condition failed. Raises Throttled, UnknownOutcome, Refused.
        """

    async def read_behind(self, channel: str, offset: int, items_max: int) -> Page:
        """Items whose key is > `offset`, ascending.

        What was appended behind an item that ends at `offset`.
        """

    async def read_forward(self, channel: str, from_offset: int, items_max: int) -> Page:
        """Items that cover offsets ≥ `from_offset`, ascending.

        They begin with the one that spans it, if any.
        """

    async def read_backward(self, channel: str, to_offset: int, items_max: int) -> Page:
        """The last `items_max` items whose key is ≤ `to_offset`, returned ascending."""
