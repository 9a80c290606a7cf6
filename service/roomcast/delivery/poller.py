"""The background task that receives this node's messages from its queue.

It long-polls the queue, hands messages on, has them deleted, and has a queue that is gone rebuilt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import structlog

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.delivery.deleter import Deleter
from roomcast.delivery.ports import Gone, InstanceQueue, Message
from roomcast.delivery.queue_state import QueueState
from roomcast.observe.counters import QueueCounters
from roomcast.ports import Clock, PortError

__all__ = ["POLLERS_MAX", "TAKE_CHARS", "MessageTaker", "Poller", "QueueOwner"]

# Receives at once while each is full (ten messages). Otherwise there is one long poll.
POLLERS_MAX: Final = 4
_FULL: Final = 10
# Characters of messages that are decoded in one turn of the event loop. Their content decides the
# time: at worst some 10 ms for an envelope of 240 KiB.
TAKE_CHARS: Final = 128 * 1024
_BACKOFF: Final = Backoff(0.4, 10.0, FROM_HALF)

_log = structlog.get_logger(__name__)


class MessageTaker(Protocol):
    """The receiver of messages."""

    def take(self, bodies: Sequence[str], queued_at: Sequence[int] = ()) -> None:
        """Handle the bodies of one receive, TAKE_CHARS at a time. Must not raise.

        `queued_at`: when the queue had each of them (ms since 1970); empty = not known.
        """


class QueueOwner(Protocol):
    """The owner of the queue, who can replace it."""

    async def rebuild(self) -> None:
        """Open another queue. Raises PortError; then it is called again after a pause."""


class Poller:
    """Receives messages, hands them on, and then has them deleted.

    A message that was not handed on comes again.
    """

    def __init__(
        self,
        queue: InstanceQueue,
        clock: Clock,
        random: Callable[[], float],
        state: QueueState,
        intake: MessageTaker,
        owner: QueueOwner,
        *,
        pause_s: float = 0.0,
    ) -> None:
        """`pause_s`: how long messages may gather after a receive that brought some, before the
        next one; 0 = not at all.
        """
        self._queue = queue
        self._clock = clock
        self._random = random
        self._intake = intake
        self._owner = owner
        self._pause_s = pause_s
        self._state = state
        self._failures = 0
        self.counters = QueueCounters()
        self._deleter = Deleter(queue, self.counters)

    @property
    def failures(self) -> int:
        """The number of receives that failed in a row."""
        return self._failures

    @property
    def is_gone(self) -> bool:
        """Whether the queue is gone, or given up, and not yet replaced."""
        return self._state.is_gone

    @property
    def left(self) -> int:
        """The number of messages that were not deleted, since the start."""
        return self._deleter.left

    @property
    def undeleted(self) -> str:
        """The reason why messages cannot be deleted; "" as long as they can."""
        return self._deleter.trouble

    async def run(self) -> None:
        """Poll until cancelled.

        Messages that a cancelled receive had taken come again after their visibility time-out.

        Messages that wait to be deleted are left. At the end of a node they go with the queue.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deleter.run())
            while True:
                if await self._poll_once():
                    self._receive_more(tasks)

    async def _poll_once(self) -> bool:
        """Receive once, or rebuild the queue.

        True = the receive was full, so more messages may wait.
        """
        if self._state.is_gone:
            await self._try_rebuild()
            return False
        try:
            messages = await self._receive()
        except Gone:
            self.counters.receives["failed"] += 1
            _log.error("queue_gone")
            self._state.is_gone = True
            return False
        except PortError as error:
            self.counters.receives["failed"] += 1
            await self._back_off(error)
            return False
        if self._state.is_gone and not messages:
            # The receive was given up for a rebuild. That says nothing about the queue.
            return False
        self._failures = 0
        self._note_lag(messages)
        await self._hand_on(messages)
        if len(messages) == _FULL:
            # More wait already.
            return True
        if messages and self._pause_s:
            # While messages flow, a long poll answers each almost by itself, and every call costs.
            await asyncio.sleep(self._pause_s)
        return False

    async def _receive(self) -> Sequence[Message]:
        """One long poll, which `rebuild_next` may end.

        Messages that it took go with the old queue.
        """
        self._state.receiving = asyncio.ensure_future(self._queue.receive())
        try:
            return await self._state.receiving
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._state.is_gone and not (task and task.cancelling()):
                return ()
            raise
        finally:
            self._state.receiving = None

    async def _hand_on(self, messages: Sequence[Message]) -> None:
        counters = self.counters
        counters.receives[
            "full" if len(messages) == _FULL else "some" if messages else "empty"
        ] += 1
        counters.messages += len(messages)
        for number, portion in enumerate(_portions(messages)):
            if number:
                # Clients have their turn. A full receive brings up to 2.5 MB to decode.
                await asyncio.sleep(0)
            self._intake.take(
                [message.body for message in portion],
                [message.sent_at_ms for message in portion],
            )
            self._deleter.add([message.receipt for message in portion])

    def _note_lag(self, messages: Sequence[Message]) -> None:
        newest = max((message.sent_at_ms for message in messages), default=0)
        self._state.clock.received(
            self._clock.now_ms() - newest if newest else None,
            self._clock.monotonic_s(),
            emptied=len(messages) < _FULL,
        )

    def _receive_more(self, tasks: asyncio.TaskGroup) -> None:
        """Start another receiver. It ends with its first receive that is not full."""
        if len(self._state.extra) < POLLERS_MAX - 1:
            task = tasks.create_task(self._drain())
            self._state.extra.add(task)
            task.add_done_callback(self._state.extra.discard)

    async def _drain(self) -> None:
        full = True
        while full:
            try:
                messages = await self._queue.receive()
            except PortError:
                # The main receiver meets the same error and handles it.
                self.counters.receives["failed"] += 1
                return
            self._note_lag(messages)
            await self._hand_on(messages)
            full = len(messages) == _FULL

    async def _try_rebuild(self) -> None:
        self._deleter.forget()
        asked = self._state.asked
        try:
            await self._owner.rebuild()
        except PortError as error:
            await self._back_off(error)
        else:
            self.counters.rebuilds += 1
            # If another rebuild was requested meanwhile, the new queue is to be replaced as well.
            self._state.is_gone = self._state.asked != asked
            self._failures = 0

    async def _back_off(self, error: PortError) -> None:
        self._failures += 1
        _log.warning(
            "poll_failed", failures=self._failures, reason=str(error) or type(error).__name__
        )
        await asyncio.sleep(_BACKOFF.pause_s(self._failures, self._random()))


def _portions(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """`messages` in order, in portions of up to TAKE_CHARS, or of one longer message."""
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
