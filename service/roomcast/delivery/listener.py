"""This node's queue from start to end: opened, proved by a greeting of its own, rebuilt when it is gone, closed.

The greeting goes to the topic and comes back through the queue. Until it was heard nothing proves that the
subscription works; a position read from the log before that might miss what is published meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from roomcast.delivery import signals
from roomcast.delivery.canary_rules import Greeting
from roomcast.delivery.envelope import pack, signal_text
from roomcast.delivery.ports import InstanceQueue, Topic
from roomcast.ports import NewId, PortError

__all__ = ["GREETINGS_MAX", "Listener"]

# Greetings before a rebuilt queue is taken for working all the same; the periodic tail check finds the rest.
GREETINGS_MAX: Final = 10

_log = structlog.get_logger(__name__)


class Listener:
    """Owns the queue. `catch_up` asks for a look at the ends of all open channels, after a time of not hearing."""

    def __init__(
        self,
        queue: InstanceQueue,
        topic: Topic,
        new_id: NewId,
        *,
        node: str,
        queue_name: Callable[[], str],
        greeting_wait_s: float,
        opened: Callable[[str], Awaitable[None]],
        catch_up: Callable[[], None],
    ) -> None:
        """`queue_name` gives a fresh name a call; `opened` is told the name before the queue is created."""
        self._queue = queue
        self._topic = topic
        self._new_id = new_id
        self._node = node
        self._queue_name = queue_name
        self._greeting_wait_s = greeting_wait_s
        self._opened = opened
        self._catch_up = catch_up
        # The newest greetings by id: one that comes late proves as much.
        self._greetings: dict[str, asyncio.Event] = {}
        self._hears = False
        self._proving: asyncio.Task[None] | None = None

    @property
    def hears(self) -> bool:
        """Whether this queue was proved to bring what the topic gets."""
        return self._hears

    async def open(self) -> None:
        """A queue of its own, once what one before, or an attempt that failed, may have left is removed. Raises PortError."""
        await self._queue.close()
        name = self._queue_name()
        await self._opened(name)
        await self._queue.open(name)

    def greeted(self, signal_id: str) -> None:
        """A greeting of this node came back."""
        heard = self._greetings.get(signal_id)
        if heard is not None:
            self._hears = True
            heard.set()

    def heard(self) -> None:
        """Something that only the topic can have brought came through the queue."""
        self._hears = True

    async def prove(self) -> bool:
        """Greet and wait until it is heard; False = not within the time configured. The poller must run."""
        return await self.greet() is Greeting.HEARD

    async def greet(self) -> Greeting:
        """One greeting, and what became of it within the time configured. The poller must run."""
        greeting = signals.hello(self._node, self._new_id())
        body, _ = next(pack([signal_text(greeting)], signals=True))
        heard = self._greetings[greeting.id] = asyncio.Event()
        if len(self._greetings) > GREETINGS_MAX:
            del self._greetings[next(iter(self._greetings))]
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
        self._hears = False
        await self.open()
        _log.warning("queue_rebuilt")
        # What was missed so far; the proof may take long when the topic itself is out of order.
        self._catch_up()
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
            if await self.prove() or self._hears:
                break
            await asyncio.sleep(self._greeting_wait_s)
        self._catch_up()
