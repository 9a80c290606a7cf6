"""Receives from one queue, carries out what comes, and takes it out of the queue.

    receive → lines (a FIFO queue's groups) → carried out → deleted
                                            → failed: hidden for a while, or left to the queue

A message is deleted only when it is done. So one whose node died comes again, to any node, and its
idempotency key makes one publication of both attempts. Nothing is received before the messages of
the receive before are settled: what a node works on is bounded by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.concurrency import each
from roomcast.config import AwsSqsConfig
from roomcast.consumers.messages import QueueMessage
from roomcast.consumers.ports import WorkQueue
from roomcast.consumers.rules import REASONS, Failed, again_s, lines_of
from roomcast.observe.counters import ConsumerCounters, count
from roomcast.ports import Clock, PortError
from roomcast.rates import Rate, Seldom

__all__ = ["FINISH_S", "SETTLE_S", "Consumer", "Work"]

# Seconds that messages under way have at the node's end. A publication takes milliseconds; one that
# takes longer comes again, and its key finds it.
FINISH_S: Final = 5.0
# Seconds for the calls that follow: to delete what is done, and let the rest come again.
SETTLE_S: Final = 5.0
# Between receives that fail, and after messages that may succeed another time: each receive of a
# message is one fewer that it has before it is moved to the dead-letter queue.
_PAUSES: Final = Backoff(0.5, 30.0, FROM_HALF)
# Lines of the log for each cause.
_LINES: Final = Rate(1.0, 1.0)
_FULL: Final = 10

_log = structlog.get_logger(__name__)


class Work(Protocol):
    """What carries messages out."""

    async def carry_out(self, message: QueueMessage, form: AwsSqsConfig, received_ms: int) -> None:
        """Raises Failed."""


@dataclass(slots=True)
class _Batch:
    """The messages of one receive. `done`: receipts to delete. `pauses`: seconds by receipt, of
    those that come again. `settled`: receipts of all about which is decided.
    """

    received_ms: int
    done: list[str] = field(default_factory=list)
    pauses: dict[str, int] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)


class Consumer:
    """Of one queue. `run` until `end`, or until cancelled."""

    def __init__(
        self,
        name: str,
        queue: WorkQueue,
        form: AwsSqsConfig,
        work: Work,
        clock: Clock,
        random: Callable[[], float],
        counters: ConsumerCounters,
    ) -> None:
        """`name`: the consumer's, which may have other queues too, and the same `counters`."""
        self._name = name
        self._queue = queue
        self._form = form
        self._work = work
        self._clock = clock
        self._random = random
        self._counters = counters
        self._stop = asyncio.Event()
        self._overdue = asyncio.Event()
        self._failures = 0
        self._seldom = {reason: Seldom(_LINES) for reason in REASONS}

    def stop(self) -> None:
        """Begin no further message, and receive none. Returns at once."""
        self._stop.set()

    def give_up(self) -> None:
        """Wait no longer for messages under way: they come again at once. Returns at once."""
        self._overdue.set()

    async def run(self) -> None:
        """Receive until `stop`. Messages that a cancelled receive had taken come again after their
        visibility time-out.
        """
        await self._before(self._look())
        while not self._stop.is_set():
            messages = await self._before(self._received())
            if messages:
                await self._batch(messages)

    async def _look(self) -> None:
        """Warn if nothing takes out what can never be carried out."""
        try:
            receives_max = await self._queue.receives_max()
        except PortError as error:
            _log.warning("consumer_queue_not_read", **self._whose, reason=_why(error))
            return
        if not receives_max:
            _log.warning(
                "consumer_without_dead_letters",
                **self._whose,
                advice="give the queue a RedrivePolicy: what cannot be carried out comes again "
                "until it expires",
            )

    async def _received(self) -> Sequence[QueueMessage]:
        """One receive. After a failure it is empty, and has taken a while."""
        counters = self._counters
        try:
            messages = await self._queue.receive()
        except PortError as error:
            counters.receives["failed"] += 1
            self._failures += 1
            _log.warning(
                "consumer_receive_failed",
                **self._whose,
                failures=self._failures,
                reason=_why(error),
            )
            await self._pause()
            return ()
        counters.receives[
            "full" if len(messages) == _FULL else "some" if messages else "empty"
        ] += 1
        counters.messages += len(messages)
        oldest_ms = min((message.sent_ms for message in messages), default=None)
        counters.ages_s[self._queue.url] = (
            0.0 if oldest_ms is None else max(0.0, (self._clock.now_ms() - oldest_ms) / 1000)
        )
        return messages

    async def _before(
        self, call: Awaitable[Sequence[QueueMessage] | None]
    ) -> Sequence[QueueMessage]:
        """The result of `call`, unless `stop` comes first."""
        task, stopped = asyncio.ensure_future(call), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
            return (task.result() or ()) if task.done() else ()
        finally:
            for each_ in (task, stopped):
                each_.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)

    async def _batch(self, messages: Sequence[QueueMessage]) -> None:
        batch = _Batch(self._clock.now_ms())
        lines = lines_of(messages)
        working = asyncio.ensure_future(
            each(self._form.max_concurrency, lines, lambda line: self._line(batch, line))
        )
        overdue = asyncio.ensure_future(self._overdue.wait())
        try:
            await asyncio.wait((working, overdue), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each_ in (working, overdue):
                each_.cancel()
            await asyncio.gather(working, overdue, return_exceptions=True)
        if not working.cancelled():
            # A fault of ours, which ends the node.
            working.result()
        for message in messages:
            if message.receipt not in batch.settled:
                self._left(batch, [message], 0)
        await self._settle(batch)

    async def _line(self, batch: _Batch, line: Sequence[QueueMessage]) -> None:
        """Messages one after the other, up to one that fails: the others must not overtake it."""
        for index, message in enumerate(line):
            if self._stop.is_set():
                return
            if self._is_over(batch):
                self._left(batch, line[index:], None)
                return
            try:
                await self._work.carry_out(message, self._form, batch.received_ms)
            except Failed as failed:
                pause_s = self._failed(batch, message, failed)
                self._left(batch, line[index + 1 :], pause_s)
                return
            batch.settled.add(message.receipt)
            batch.done.append(message.receipt)
            self._counters.done += 1

    def _is_over(self, batch: _Batch) -> bool:
        """Whether others receive the messages already. By the wall clock: the process may have been
        suspended.
        """
        return self._clock.now_ms() - batch.received_ms >= self._form.visibility_timeout_s * 1000

    def _failed(self, batch: _Batch, message: QueueMessage, failed: Failed) -> int | None:
        """Decides when `message` comes again: in so many seconds; None = when its visibility
        time-out is over, until the queue has had enough of it.
        """
        batch.settled.add(message.receipt)
        count(self._counters.failed, failed.reason)
        pause_s = None
        if failed.again:
            pause_s = batch.pauses[message.receipt] = again_s(message.receives, self._random())
        passed_over = self._seldom[failed.reason].again(self._clock.monotonic_s())
        if passed_over is not None:
            _log.warning(
                "consumer_message_failed",
                **self._whose,
                message=message.id,
                receives=message.receives,
                reason=failed.reason,
                why=failed.why,
                again_in_s=pause_s,
                passed_over=passed_over,
            )
        return pause_s

    def _left(self, batch: _Batch, messages: Sequence[QueueMessage], pause_s: int | None) -> None:
        """Messages that were not begun. `pause_s`: as for those that failed."""
        for message in messages:
            batch.settled.add(message.receipt)
            self._counters.left += 1
            if pause_s is not None:
                batch.pauses[message.receipt] = pause_s

    async def _settle(self, batch: _Batch) -> None:
        """Tells the queue what was decided. Nothing is lost if it does not hear it."""
        try:
            if batch.done:
                await self._queue.delete(batch.done)
        except PortError as error:
            self._counters.delete_failures += 1
            _log.warning("consumer_delete_failed", **self._whose, reason=_why(error))
        try:
            if batch.pauses:
                await self._queue.hide(batch.pauses)
        except PortError as error:
            _log.warning("consumer_hide_failed", **self._whose, reason=_why(error))
        if batch.pauses and not batch.done:
            self._failures += 1
            await self._pause()
        elif batch.done:
            self._failures = 0

    async def _pause(self) -> None:
        """After failures in a row; shorter when `stop` comes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PAUSES.pause_s(self._failures, self._random())):
                await self._stop.wait()

    @property
    def _whose(self) -> dict[str, str]:
        return {"consumer": self._name, "queue": self._queue.url}


def _why(error: PortError) -> str:
    return str(error) or type(error).__name__
