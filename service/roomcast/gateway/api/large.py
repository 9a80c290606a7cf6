"""Bounds what large requests take once they are decoded, of all callers together.

Decoded, a request takes up to sixty times its bytes, and a batch of a thousand commands a
millisecond and more. Hundreds of them may be complete in the same moment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from roomcast.concurrency import Portions

__all__ = ["LARGE_BYTES", "UNDER_WAY_BYTES", "LargeRequests"]

# A shorter request waits for nobody here.
LARGE_BYTES: Final = 4 * 1024
# Bytes of the large ones that are carried out at once: some 200 MB once they are decoded. It is
# twice what one may have.
UNDER_WAY_BYTES: Final = 4 * 1024 * 1024
# Large ones that are decoded in one turn of the event loop.
_LARGE_A_TURN: Final = 1


class LargeRequests:
    """One for all requests of the API. First come, first served."""

    def __init__(self) -> None:
        self._left = UNDER_WAY_BYTES
        self._portions = Portions(_LARGE_A_TURN)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """When a request of `size` bytes may be decoded, and until it is carried out."""
        if size <= LARGE_BYTES:
            yield
            return
        await self._take(size)
        try:
            await self._portions.wait()
            yield
        finally:
            self._give_back(size)

    async def _take(self, size: int) -> None:
        if not self._waiting and self._has_room(size):
            self._left -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It got the room in the same moment.
                self._give_back(size)
            else:
                self._go_on()
            raise

    def _give_back(self, size: int) -> None:
        self._left += size
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._has_room(self._waiting[0][0])):
            size, turn = self._waiting.popleft()
            # Whoever waited for a turn that is done was cancelled.
            if not turn.done():
                self._left -= size
                turn.set_result(None)

    def _has_room(self, size: int) -> bool:
        return size <= self._left
