"""Bounds how many sockets one turn of the event loop serves.

asyncio takes all that are ready: of thousands of clients that say one small thing in the same
moment, everybody else would wait for all of them. Here the rest stays in the kernel, which hands it
out in the order in which it came.
"""

from __future__ import annotations

import asyncio
import select
import selectors
from typing import Any, Final

__all__ = ["EVENTS_A_TURN", "new_event_loop"]

# Sockets that one turn serves: some 5 ms, if each completes a request of 60 header fields.
EVENTS_A_TURN: Final = 32


def new_event_loop() -> asyncio.AbstractEventLoop:
    """For asyncio.Runner. Where there is no epoll, asyncio's own, without a bound."""
    if not hasattr(select, "epoll"):
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(_FewEvents())


class _Few:
    """An epoll that hands out so many events and no more."""

    def __init__(self) -> None:
        epoll = select.epoll()
        self._poll = epoll.poll
        self.register, self.unregister, self.modify = epoll.register, epoll.unregister, epoll.modify
        self.fileno, self.close = epoll.fileno, epoll.close

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        return self._poll(timeout, min(maxevents, EVENTS_A_TURN))


class _FewEvents(selectors.EpollSelector):
    # Not documented, but the same in all of Python's releases; a test shows that it is used.
    _selector_cls: Any = _Few
