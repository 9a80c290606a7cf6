"""The background task that reads the ends of open channels' logs and delivers what was missed.

It takes a few looks at once, and slows down when they fail.

A look has one of two reasons. Each channel has its turn once in a while. And a node that may have
missed messages requests a look at all of them. A request does not wait for the looks. When the
table does not answer, looks fail one by one. After a few failures in a row, single looks follow
with pauses between them, until one is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Final

import structlog

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.delivery.tail_checks import TailChecks
from roomcast.ports import Clock

__all__ = ["FAILURES_IN_A_ROW_MAX", "LOOKS_AT_ONCE", "PAUSE_MAX_S", "CatchUp"]

# Channels whose tails are read at once. This bounds the load on the table while the node serves its
# clients.
LOOKS_AT_ONCE: Final = 8
# Looks that may fail in a row before the others must wait: as many as go on at once. Each failed
# after the log's own retries.
FAILURES_IN_A_ROW_MAX: Final = 8
# The longest pause between two looks while they fail.
PAUSE_MAX_S: Final = 30.0
_BACKOFF: Final = Backoff(1.0, PAUSE_MAX_S, FROM_HALF)

_log = structlog.get_logger(__name__)


class CatchUp:
    """One a node.

    `look` reads the end of a channel's log and delivers what was missed; False = the log did not
    answer.
    """

    def __init__(
        self,
        tails: TailChecks,
        look: Callable[[str], Awaitable[bool]],
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._tails = tails
        self._look = look
        self._clock = clock
        self._random = random
        self._changed = asyncio.Event()
        self._under_way = 0
        self._failures = 0
        # Failed looks that began together count as one.
        self._failed_rounds = 0
        # Monotonic seconds before which no look begins.
        self._not_before_s = -inf

    @property
    def failures(self) -> int:
        """The number of looks that failed in a row."""
        return self._failures

    def request(self, shard: int | None = None) -> None:
        """Request a look at all open channels, as this node may have missed something.

        `shard`: at those of one topic shard only. Returns at once.
        """
        self._tails.ask(self._clock.monotonic_s(), shard)
        self._changed.set()

    async def run(self) -> None:
        """Take the looks that are due, until cancelled."""
        async with asyncio.TaskGroup() as looks:
            while True:
                while self._may_begin() and (
                    channel := self._tails.take(self._clock.monotonic_s())
                ):
                    self._under_way += 1
                    looks.create_task(self._look_at(channel))
                await self._until_changed()

    def _places(self) -> int:
        return 1 if self._failures >= FAILURES_IN_A_ROW_MAX else LOOKS_AT_ONCE

    def _may_begin(self) -> bool:
        return self._under_way < self._places() and self._clock.monotonic_s() >= self._not_before_s

    async def _until_changed(self) -> None:
        """Wait until another look may begin, as far as is known now, or until something changes."""
        self._changed.clear()
        # A channel that opens meanwhile is due later than this.
        wait_s = self._tails.every_s / 2
        if self._under_way < self._places():
            next_s = max(self._tails.next_s(), self._not_before_s)
            wait_s = min(wait_s, max(0.0, next_s - self._clock.monotonic_s()))
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()

    async def _look_at(self, channel: str) -> None:
        answered = False
        try:
            answered = await self._look(channel)
        finally:
            self._under_way -= 1
            self._tails.done(channel, self._clock.monotonic_s(), self._random(), answered=answered)
            self._changed.set()
        if answered:
            self._succeeded()
        else:
            self._failed()

    def _succeeded(self) -> None:
        if self._failures >= FAILURES_IN_A_ROW_MAX:
            _log.warning("catch_up_goes_on", channels_asked=self._tails.asked)
        self._failures, self._failed_rounds, self._not_before_s = 0, 0, -inf

    def _failed(self) -> None:
        self._failures += 1
        if self._failures < FAILURES_IN_A_ROW_MAX:
            return
        if self._failures == FAILURES_IN_A_ROW_MAX:
            _log.error(
                "catch_up_interrupted", channels_asked=self._tails.asked, channels=len(self._tails)
            )
        pause_s = _BACKOFF.pause_s(self._failed_rounds + 1, self._random())
        self._not_before_s = self._clock.monotonic_s() + pause_s
        if not self._under_way:
            self._failed_rounds += 1
