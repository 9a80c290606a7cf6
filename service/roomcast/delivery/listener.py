"""This node's queue from start to end.

It is opened, proved by a greeting of its own, rebuilt when it is gone, and closed.

The greeting goes to the topic and comes back through the queue. Until it was heard nothing proves
that the subscription works; a position read from the log before that might miss what is published
meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import structlog

from roomcast.delivery import signals
from roomcast.delivery.canary_rules import Greeting
from roomcast.delivery.envelope import pack, signal_text
from roomcast.delivery.greetings import GREETINGS_MAX, Greetings
from roomcast.delivery.ports import CatchUpRequest, InstanceQueue, Topic
from roomcast.ports import NewId, PortError, Refused

__all__ = ["Listener", "QueueHolder"]

_log = structlog.get_logger(__name__)


# Letters of a random id in the name of a queue.
_NONCE_CHARS: Final = 8


class QueueHolder(Protocol):
    """This node's lease, which says what it holds."""

    async def hold(self, queue: str) -> None:
        """Say that this node holds `queue`, before it is created. Raises PortError."""


class Listener:
    """Owns the queue. After a time of not hearing it asks for a look at all open channels."""

    def __init__(
        self,
        queue: InstanceQueue,
        topic: Topic,
        greetings: Greetings,
        new_id: NewId,
        *,
        node: str,
        queue_prefix: str,
        greeting_wait_s: float,
        holder: QueueHolder,
        catch_up: CatchUpRequest,
    ) -> None:
        """`queue_prefix`: a queue's name is that, and something new.

        SQS refuses a name that was deleted less than a minute ago.
        """
        self._queue = queue
        self._topic = topic
        self._new_id = new_id
        self._node = node
        self._queue_prefix = queue_prefix
        self._greeting_wait_s = greeting_wait_s
        self._holder = holder
        self._catch_up = catch_up
        self._greetings = greetings
        self._proving: asyncio.Task[None] | None = None

    @property
    def hears(self) -> bool:
        """Whether this queue was proved to bring what the topic gets."""
        return self._greetings.hears

    async def open(self) -> None:
        """A queue of its own, once what an earlier one, or a failed attempt, left is removed.

        Where this node may not remove it, it is left to the reaper. Raises PortError.
        """
        try:
            await self._queue.close()
        except Refused as error:
            # It would be refused each time, and this node would hear nothing for as long as it
            # lives. The reaper ends what no lease names.
            _log.error("queue_left_behind", reason=str(error))
            self._queue.abandon()
        name = f"{self._queue_prefix}{self._new_id()[:_NONCE_CHARS]}"
        await self._holder.hold(name)
        await self._queue.open(name)

    async def prove(self) -> bool:
        """Greet and wait until it is heard; False = not within the time configured.

        The poller must run.
        """
        return await self.greet() is Greeting.HEARD

    async def greet(self) -> Greeting:
        """One greeting, and what became of it within the time configured. The poller must run."""
        greeting = signals.hello(self._node, self._new_id())
        body, _ = next(pack([signal_text(greeting)], signals=True))
        heard = self._greetings.sent(greeting.id)
        try:
            async with asyncio.timeout(self._greeting_wait_s):
                await self._topic.publish(body)
        except (TimeoutError, PortError) as error:
            _log.error(
                "queue_not_proved",
                reason=str(error) or "the topic did not take the greeting in time",
            )
            return Greeting.NOT_SENT
        try:
            async with asyncio.timeout(self._greeting_wait_s):
                await heard.wait()
        except TimeoutError:
            _log.error("queue_not_proved", reason="the greeting was not heard in time")
            return Greeting.NOT_HEARD
        return Greeting.HEARD

    async def rebuild(self) -> None:
        """A new queue in place of one that is gone. Raises PortError."""
        self._greetings.hears = False
        await self.open()
        _log.warning("queue_rebuilt")
        # What was missed so far; the proof may take long when the topic itself is out of order.
        self._catch_up.request()
        self.prove_later()

    def prove_later(self) -> None:
        """Greet in the background until it is heard, then have read what was missed meanwhile."""
        if self._proving is not None:
            # Of a queue before this one: what it has found out does not hold any more.
            self._proving.cancel()
        self._proving = asyncio.create_task(self._prove_and_catch_up(), name="prove queue")

    async def close(self) -> None:
        """Raises PortError when the queue or its subscription may still be there."""
        if self._proving is not None:
            self._proving.cancel()
            await asyncio.gather(self._proving, return_exceptions=True)
        await self._queue.close()

    async def _prove_and_catch_up(self) -> None:
        for _ in range(GREETINGS_MAX):
            if await self.prove() or self.hears:
                break
            await asyncio.sleep(self._greeting_wait_s)
        self._catch_up.request()
