"""Whose turn it is: what changes the subscription to one channel happens one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

__all__ = ["Turns"]


class Turns:
    """The changes under way in one connection, by channel: subscribes, and what was ordered."""

    __slots__ = ("_changes", "_first")

    def __init__(self) -> None:
        self._changes: dict[str, asyncio.Future[None]] = {}
        self._first: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._changes)

    def take(self, channel: str, change: asyncio.Future[None]) -> None:
        """Until `change` is done, what concerns the subscription to `channel` waits."""
        self._changes[channel] = change
        change.add_done_callback(partial(self._changed, channel))

    def take_first(self, channels: Iterable[str], change: asyncio.Future[None]) -> None:
        """As `take` for all `channels`; what is ordered for others waits for `change` as well."""
        self._first = change
        for channel in channels:
            self.take(channel, change)

    def before(self, channel: str) -> asyncio.Future[None] | None:
        """What an order for `channel` has to wait for. None = nothing."""
        return self._changes.get(channel, self._first)

    async def wait(self, channel: str) -> None:
        """Until nothing is under way for `channel`."""
        # What was waited for may have been followed by an order.
        while (change := self._changes.get(channel)) is not None and not change.done():
            await asyncio.wait([change])

    def _changed(self, channel: str, change: asyncio.Future[None]) -> None:
        if self._changes.get(channel) is change:
            del self._changes[channel]
