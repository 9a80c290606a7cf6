"""Opens, proves, rebuilds and closes this node's queue.

A greeting goes to the topic and comes back through the queue. Until then nothing proves that the
subscription works. A position that was read from the log before the proof might miss later
publications.
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
from roomcast.ports import NewId, PortError, Rejected

__all__ = ["Listener", "QueueHolder", "QueueSubscriber"]

_log = structlog.get_logger(__name__)


# Letters of a random id in the name of a queue.
_NONCE_CHARS: Final = 8


class QueueHolder(Protocol):
    """This node's lease, which records its queue."""

    async def hold(self, queue: str) -> None:
        """Record that this node holds `queue`, before it is created. Raises PortError."""


class QueueSubscriber(Protocol):
    """Whoever subscribes the queue to further topics."""

    async def replacing(self) -> None:
        """The queue is about to be removed: nobody may subscribe it any more."""

    def replaced(self) -> None:
        """There is another queue, which is subscribed to the base topic only."""


class Listener:
    """Owns the queue. After a time without one it requests a look at all open channels."""

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
        shards: QueueSubscriber,
    ) -> None:
        """`queue_prefix`: the beginning of queue names. The rest is new for each queue.

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
        self._shards = shards
        self._greetings = greetings
        self._proving: asyncio.Task[None] | None = None

    @property
    def hears(self) -> bool:
        """Whether it is proved that this queue gets the topic's messages."""
        return self._greetings.hears

    async def open(self) -> None:
        """Open a queue. First, the remains of an earlier one or of a failed attempt are removed.

        Where this node may not remove it, it is left to the reaper. Raises PortError.
        """
        try:
            await self._queue.close()
        except Rejected as error:
            # It would be refused each time, and this node would hear nothing for as long as it
            # lives. The reaper ends what no lease names.
            _log.error("queue_left_behind", reason=str(error))
            self._queue.abandon()
        name = f"{self._queue_prefix}{self._new_id()[:_NONCE_CHARS]}"
        await self._holder.hold(name)
        await self._queue.open(name)

    async def prove(self) -> bool:
        """Send a greeting and wait for it. False = it did not come within the configured time.

        The poller must run.
        """
        return await self.greet() is Greeting.HEARD

    async def greet(self) -> Greeting:
        """Send one greeting. Returns its outcome in the configured time. The poller must run."""
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
        """Open a new queue in place of one that is gone. Raises PortError."""
        self._greetings.hears = False
        await self._shards.replacing()
        await self.open()
        _log.warning("queue_rebuilt")
        self._shards.replaced()
        # For what was missed so far. The proof may take long when the topic itself fails.
        self._catch_up.request()
        self.prove_later()

    def prove_later(self) -> None:
        """Send greetings in the background until one comes back, then request a catch-up."""
        if self._proving is not None:
            # A proof of an earlier queue says nothing about this one.
            self._proving.cancel()
        self._proving = asyncio.create_task(self._prove_and_catch_up(), name="prove queue")

    async def close(self) -> None:
        """Remove the queue. Raises PortError when the queue or its subscription may still exist."""
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
