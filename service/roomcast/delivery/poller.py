"""The background task that listens: long-polls this node's queue and rebuilds it when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import structlog

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.delivery.deleter import Deleter
from roomcast.delivery.ports import Gone, InstanceQueue, Message
from roomcast.delivery.queue_clock import QueueClock
from roomcast.observe.counters import QueueTally
from roomcast.ports import Clock, PortError

__all__ = ["POLLERS_MAX", "TAKE_CHARS", "Poller"]

# Receives at once while messages keep coming ten at a time; one long poll when they do not.
POLLERS_MAX: Final = 4
_FULL: Final = 10
# Of messages that are decoded in one turn of the event loop: what clients publish decides what that costs, some 10 ms for an
# envelope of 240 KiB at the worst.
TAKE_CHARS: Final = 128 * 1024
_BACKOFF: Final = Backoff(0.4, 10.0, FROM_HALF)

_log = structlog.get_logger(__name__)


class Poller:
    """Receives, hands on, then has deleted: what was not handed on comes again.

    `take` gets the bodies of each receive, TAKE_CHARS at a time, and must not raise. `rebuild` is called when the queue is gone; it
    must leave an open queue behind, or raise PortError to be called again after a pause.
    """

    def __init__(
        self,
        queue: InstanceQueue,
        clock: Clock,
        random: Callable[[], float],
        take: Callable[[Sequence[str]], None],
        rebuild: Callable[[], Awaitable[None]],
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._random = random
        self._take = take
        self._rebuild = rebuild
        self._extra: set[asyncio.Task[None]] = set()
        self._failures = 0
        # A rebuild is due. One that failed may have left a queue that can be received from, but is not subscribed.
        self._gone = False
        # How often a rebuild was asked for.
        self._asked = 0
        self._receiving: asyncio.Task[Sequence[Message]] | None = None
        self.tally = QueueTally()
        self._deleter = Deleter(queue, self.tally)
        self._queue_clock = QueueClock()

    @property
    def failures(self) -> int:
        """Receives that failed in a row."""
        return self._failures

    @property
    def is_gone(self) -> bool:
        """The queue is known to be gone, or given up, and no other is there yet."""
        return self._gone

    @property
    def lag_ms(self) -> int:
        """How late the newest message of the last receive came, less what the clocks differ; 0 when nothing came."""
        return self._queue_clock.lag_ms

    @property
    def skew_ms(self) -> int:
        """How far this node's clock is ahead of the queue's; negative: behind. See QueueClock."""
        return self._queue_clock.skew_ms

    @property
    def left(self) -> int:
        """Messages that were not deleted, since the start."""
        return self._deleter.left

    @property
    def undeleted(self) -> str:
        """Why messages cannot be deleted; "" as long as they can."""
        return self._deleter.trouble

    def rebuild_next(self) -> None:
        """Replace the queue now: it does not bring what it should. The receive that is under way is given up."""
        self._gone = True
        self._asked += 1
        if self._receiving is not None:
            self._receiving.cancel()
        # What they bring would be taken for a proof that the next queue hears.
        for extra in self._extra:
            extra.cancel()

    async def run(self) -> None:
        """Poll until cancelled; what a cancelled receive had taken comes again after its visibility time-out.

        Messages that wait to be deleted are left: at the end of a node they go with their queue.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deleter.run())
            while True:
                if await self._poll_once():
                    self._receive_more(tasks)

    async def _poll_once(self) -> bool:
        """One receive, or what has to be done instead. True = it was full: others may wait."""
        if self._gone:
            await self._try_rebuild()
            return False
        try:
            messages = await self._receive()
        except Gone:
            self.tally.receives["failed"] += 1
            _log.error("queue_gone")
            self._gone = True
            return False
        except PortError as error:
            self.tally.receives["failed"] += 1
            await self._back_off(error)
            return False
        if self._gone and not messages:
            # Given up for a rebuild: that says nothing of how the queue does.
            return False
        self._failures = 0
        self._note_lag(messages)
        await self._hand_on(messages)
        return len(messages) == _FULL

    async def _receive(self) -> Sequence[Message]:
        """One long poll, which `rebuild_next` may end: what it took is with the queue that is replaced."""
        self._receiving = asyncio.ensure_future(self._queue.receive())
        try:
            return await self._receiving
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._gone and not (task and task.cancelling()):
                return ()
            raise
        finally:
            self._receiving = None

    async def _hand_on(self, messages: Sequence[Message]) -> None:
        tally = self.tally
        tally.receives["full" if len(messages) == _FULL else "some" if messages else "empty"] += 1
        tally.messages += len(messages)
        for number, portion in enumerate(_portions(messages)):
            if number:
                # Clients have their turn: what a full receive brings is up to 2.5 MB to decode.
                await asyncio.sleep(0)
            self._take([message.body for message in portion])
            self._deleter.add(message.receipt for message in portion)

    def _note_lag(self, messages: Sequence[Message]) -> None:
        newest = max((message.sent_at_ms for message in messages), default=0)
        self._queue_clock.received(
            self._clock.now_ms() - newest if newest else None,
            self._clock.monotonic_s(),
            emptied=len(messages) < _FULL,
        )

    def _receive_more(self, tasks: asyncio.TaskGroup) -> None:
        """Further receivers, which end with the first receive that is not full."""
        if len(self._extra) < POLLERS_MAX - 1:
            task = tasks.create_task(self._drain())
            self._extra.add(task)
            task.add_done_callback(self._extra.discard)

    async def _drain(self) -> None:
        full = True
        while full:
            try:
                messages = await self._queue.receive()
            except PortError:
                # The main receiver meets the same error and decides.
                self.tally.receives["failed"] += 1
                return
            self._note_lag(messages)
            await self._hand_on(messages)
            full = len(messages) == _FULL

    async def _try_rebuild(self) -> None:
        self._deleter.forget()
        asked = self._asked
        try:
            await self._rebuild()
        except PortError as error:
            await self._back_off(error)
        else:
            self.tally.rebuilds += 1
            # Asked for meanwhile: the new queue belongs to what is lost as well.
            self._gone = self._asked != asked
            self._failures = 0

    async def _back_off(self, error: PortError) -> None:
        self._failures += 1
        _log.warning(
            "poll_failed", failures=self._failures, reason=str(error) or type(error).__name__
        )
        await asyncio.sleep(_BACKOFF.pause_s(self._failures, self._random()))


def _portions(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """`messages` in order, as many together as have TAKE_CHARS, or one that is longer."""
    portion: list[Message] = []
    size = 0
    for message in messages:
        if portion and size + len(message.body) > TAKE_CHARS:
            yield portion
            portion, size = [], 0
        portion.append(message)
        size += len(message.body)
    if portion:
        yield portion
