"""Work of one connection that runs beside its commands, until it is done or the connection has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import structlog

from roomcast.client.peer import Peer
from roomcast.wire.codes import Disconnect

__all__ = ["Place", "Tasks"]

_log = structlog.get_logger(__name__)


class Place:
    """One of a connection's places, taken until it is given back: by whoever does it first."""

    __slots__ = ("_places",)

    def __init__(self, places: asyncio.Semaphore) -> None:
        """Of `places`, one that was acquired."""
        self._places: asyncio.Semaphore | None = places

    def hand_over(self) -> Place:
        """The place is another's business from here on."""
        assert self._places is not None, "handed over while it is held"
        places, self._places = self._places, None
        return Place(places)

    def give_back(self) -> None:
        """Idempotent, and nothing after it was handed over."""
        if self._places is not None:
            self._places.release()
            self._places = None


class Tasks:
    """`places` bounds what `start` runs at once. What fails closes the connection."""

    __slots__ = ("_is_over", "_peer", "_places", "_tasks")

    def __init__(self, peer: Peer, places: asyncio.Semaphore) -> None:
        self._peer = peer
        self._places = places
        self._is_over = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` beside the commands that follow, as soon as there is a place."""
        try:
            await self._places.acquire()
        except asyncio.CancelledError:
            work.close()
            raise
        task = self.track(work)
        task.add_done_callback(lambda _: self._places.release())
        return task

    def track(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` at once; the caller bounds how much that is. After the end it is cancelled before it begins."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        if self._is_over:
            task.cancel()
        return task

    def cancel(self) -> None:
        """The connection has ended."""
        self._is_over = True
        for task in self._tasks:
            task.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours: the client must not be left waiting for an answer.
            _log.error("command_failed", client=self._peer.client, exc_info=error)
            self._peer.close(Disconnect.SERVER_ERROR)
