"""Deletes handled messages from the queue, so that a slow delete delays no receive.

The number of waiting receipts is bounded. Beyond the bound, after a failure, and at the end,
messages are left in the queue. They come again and are dropped as repeats, or they go with the
queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final

import structlog

from roomcast.delivery.ports import Gone, InstanceQueue
from roomcast.observe.counters import QueueCounters
from roomcast.ports import PortError

__all__ = ["DELETES_AT_ONCE", "FAILURES_TOLD", "RECEIPTS_MAX", "Deleter"]

# As many as the receives at once. Both take about as long, so deletes keep up.
DELETES_AT_ONCE: Final = 4
# Receipts that may wait: a second of full receives or more. Beyond it the oldest are dropped. Their
# messages are the first to become visible again, with other receipts.
RECEIPTS_MAX: Final = 1000
# Failed deletes in a row before the node reports trouble. A single throttled one is no trouble.
FAILURES_TOLD: Final = 3
# The most that SQS deletes in one call.
_TOGETHER: Final = 10

_log = structlog.get_logger(__name__)


class Deleter:
    """One a poller. `add` takes the receipts of handled messages."""

    def __init__(self, queue: InstanceQueue, counters: QueueCounters | None = None) -> None:
        self._queue = queue
        self._counters = counters or QueueCounters()
        self._waiting: deque[str] = deque()
        self._added = asyncio.Event()
        self._failures = 0
        self._reason = ""
        # Messages that were not deleted since the start, and the number at which that is logged
        # again.
        self.left = 0
        self._log_at = 1

    @property
    def trouble(self) -> str:
        """The reason why messages cannot be deleted; "" as long as they can."""
        return self._reason if self._failures >= FAILURES_TOLD else ""

    def add(self, receipts: Iterable[str]) -> None:
        """Delete them soon. Returns at once."""
        self._waiting.extend(receipts)
        if dropped := max(0, len(self._waiting) - RECEIPTS_MAX):
            for _ in range(dropped):
                self._waiting.popleft()
            self._leave(dropped, "too many wait")
        self._added.set()

    def forget(self) -> None:
        """The queue is gone: drop the waiting receipts."""
        self._waiting.clear()
        self._failures = 0

    async def run(self) -> None:
        """Delete the messages of added receipts, until cancelled."""
        async with asyncio.TaskGroup() as deletes:
            for _ in range(DELETES_AT_ONCE):
                deletes.create_task(self._delete_on())

    async def _delete_on(self) -> None:
        while True:
            while not self._waiting:
                self._added.clear()
                await self._added.wait()
            receipts = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
            try:
                await self._queue.delete(receipts)
            except Gone:
                self._counters.delete_failures += 1
                # The next receive finds that out as well, and has the queue rebuilt.
                self._leave(len(receipts), "the queue is gone")
            except PortError as error:
                self._failures += 1
                self._counters.delete_failures += 1
                self._reason = str(error) or type(error).__name__
                self._leave(len(receipts), self._reason)
            else:
                self._failures, self._log_at = 0, self.left + 1
                self._counters.deleted += len(receipts)

    def _leave(self, messages: int, reason: str) -> None:
        """Count `messages` as left. The first are logged, and then each doubling of the number."""
        self.left += messages
        if self.left < self._log_at:
            return
        self._log_at = 2 * self.left
        _log.warning("messages_not_deleted", messages=messages, left=self.left, reason=reason)
