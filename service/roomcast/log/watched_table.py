"""Watches a channel table: whether it answers, and when an item was written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol, TypeVar

from roomcast.log.idempotency import KeyItem
from roomcast.log.item import Head, LogItem
from roomcast.log.ports import ChannelTable, Holders, Page, TailExpired
from roomcast.ports import Clock, Malformed, PortError

__all__ = [
    "FAILURES_TOLD",
    "FAILURE_COUNTS_S",
    "HANGS_S",
    "LASTS_S",
    "Streak",
    "WatchedTable",
    "WriteListener",
]

# A call that is cancelled after so long counts as a failure: DynamoDB takes milliseconds.
HANGS_S: Final = 2.0
# Failures in a row that are told, and over this time: a throttled moment fails many calls at once.
FAILURES_TOLD: Final = 2
LASTS_S: Final = 2.0
# For how long a failure counts when nobody calls any more. What has come right since would not
# show.
FAILURE_COUNTS_S: Final = 60.0

T = TypeVar("T")


class Streak:
    """Calls that fail one after the other: the failures since the last success.

    Times are monotonic seconds.
    """

    __slots__ = ("_began_s", "_last_s", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._began_s = self._last_s = 0.0

    def succeeded(self) -> None:
        """A call was answered."""
        self.failures = 0

    def failed(self, now_s: float) -> None:
        """A call was not, or with a failure."""
        if not self.failures:
            self._began_s = now_s
        self.failures += 1
        self._last_s = now_s

    def is_bad(self, now_s: float) -> bool:
        """Whether the next call will probably fail as well: that was more than bad luck."""
        return (
            self.failures >= FAILURES_TOLD
            and now_s - self._began_s >= LASTS_S
            and now_s - self._last_s <= FAILURE_COUNTS_S
        )


class WriteListener(Protocol):
    """The listener for this node's writes."""

    def wrote(self, channel: str) -> None:
        """An item of `channel` is in the table as of now. Must not raise."""


class WatchedTable:
    """A ChannelTable that watches the calls of another one, and tells `listener` about new items.

    Reads and writes are counted apart: a permission may be missing for one of them, or a partition
    may throttle one of them.
    """

    def __init__(self, table: ChannelTable, clock: Clock, listener: WriteListener) -> None:
        self._table = table
        self._clock = clock
        self._listener = listener
        self.reads = Streak()
        self.writes = Streak()

    @property
    def fails(self) -> bool:
        """Whether reads or writes fail one after the other."""
        now_s = self._clock.monotonic_s()
        return self.reads.is_bad(now_s) or self.writes.is_bad(now_s)

    def trouble(self) -> str:
        """A text about the calls that fail; "" as long as none do."""
        now_s = self._clock.monotonic_s()
        parts = [
            f"{streak.failures} {what}"
            for streak, what in ((self.reads, "reads"), (self.writes, "writes"))
            if streak.is_bad(now_s)
        ]
        return " and ".join(parts)

    async def newest(self, channel: str) -> LogItem | Head | None:
        return await self._counted(self.reads, self._table.newest(channel))

    async def head(self, channel: str) -> Head | None:
        return await self._counted(self.reads, self._table.head(channel))

    async def key(self, key: str) -> KeyItem | None:
        return await self._counted(self.reads, self._table.key(key))

    async def put_item(self, item: LogItem, tail_valid_until_ms: int) -> LogItem | None:
        holder = await self._counted(self.writes, self._table.put_item(item, tail_valid_until_ms))
        if holder is None:
            self._listener.wrote(item.channel)
        return holder

    async def put_keyed_item(
        self, item: LogItem, keys: Sequence[KeyItem], tail_valid_until_ms: int
    ) -> Holders | None:
        holders = await self._counted(
            self.writes, self._table.put_keyed_item(item, keys, tail_valid_until_ms)
        )
        if holders is None:
            self._listener.wrote(item.channel)
        return holders

    async def put_head(self, head: Head, expected_version: str | None) -> bool:
        return await self._counted(self.writes, self._table.put_head(head, expected_version))

    async def read_behind(self, channel: str, offset: int, items_max: int) -> Page:
        return await self._counted(self.reads, self._table.read_behind(channel, offset, items_max))

    async def read_forward(self, channel: str, from_offset: int, items_max: int) -> Page:
        return await self._counted(
            self.reads, self._table.read_forward(channel, from_offset, items_max)
        )

    async def read_backward(self, channel: str, to_offset: int, items_max: int) -> Page:
        return await self._counted(
            self.reads, self._table.read_backward(channel, to_offset, items_max)
        )

    async def _counted(self, streak: Streak, call: Awaitable[T]) -> T:
        begun_s = self._clock.monotonic_s()
        try:
            result = await call
        except TailExpired:
            # It was not sent.
            raise
        except Malformed:
            # The item is malformed, but the table has answered.
            streak.succeeded()
            raise
        except PortError:
            streak.failed(self._clock.monotonic_s())
            raise
        except asyncio.CancelledError:
            now_s = self._clock.monotonic_s()
            if now_s - begun_s >= HANGS_S:
                streak.failed(now_s)
            raise
        streak.succeeded()
        return result
