"""The background task that sings and listens: finds out when this node, or the whole pipeline, cannot be heard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from service.core.canary import (
    CANARY_CHANNEL,
    Greeting,
    Hearing,
    Latency,
    Vigil,
    canary_item,
    latency,
    next_number,
)
from service.core.log_item import LogItem
from service.core.publication import Record
from service.ports import ChannelTable, Clock, NewId, PortError

__all__ = ["ASK_LIMIT_S", "REBUILD_PAUSE_MAX_S", "REBUILD_PAUSE_S", "Canary"]

# Between the first two rebuilds of a queue that does not hear: SQS takes a minute to forget one. It doubles with each
# rebuild that did not help: when SNS takes messages and delivers none, a new queue helps nobody, and a fleet must not
# go on making them.
REBUILD_PAUSE_S: Final = 60.0
REBUILD_PAUSE_MAX_S: Final = 960.0

# For a canary to be written, and for the leases to be read: a table that hangs must not put off what is to be found out.
ASK_LIMIT_S: Final = 5.0

_log = structlog.get_logger(__name__)


class Canary:
    """One a node. `greet` greets this node through the topic; `rebuild` asks the poller for a new queue; `catch_up` asks for
    a look at the ends of all open channels; `newest_elsewhere` gives the newest canary in other live nodes' leases.
    """

    def __init__(
        self,
        table: ChannelTable,
        clock: Clock,
        new_id: NewId,
        random: Callable[[], float],
        *,
        node: str,
        generation: str,
        interval_s: float,
        greet: Callable[[], Awaitable[Greeting]],
        rebuild: Callable[[], None],
        catch_up: Callable[[], None],
        newest_elsewhere: Callable[[], Awaitable[int]],
    ) -> None:
        self._table = table
        self._clock = clock
        self._new_id = new_id
        self._random = random
        self._node = node
        self._generation = generation
        self._interval_ms = round(interval_s * 1000)
        self._greet = greet
        self._rebuild = rebuild
        self._catch_up = catch_up
        self._newest_elsewhere = newest_elsewhere
        self._vigil = Vigil(interval_s, clock.monotonic_s(), random())
        self._rebuild_not_before_s = float("-inf")
        self._rebuild_pause_s = REBUILD_PAUSE_S
        self.hearing = Hearing.WELL
        self.latency: Latency | None = None
        # New ones that were heard, and those that this node made.
        self.heard = 0
        self.sung = 0

    @property
    def newest(self) -> int:
        """The number of the newest canary heard: what this node's lease tells the others."""
        return self._vigil.newest

    @property
    def silence_s(self) -> float:
        """Seconds since a new canary was heard."""
        return self._vigil.silence_s(self._clock.monotonic_s())

    def hear(self, record: Record, published_at: int) -> None:
        """A canary came through the queue."""
        if not self._vigil.hear(record.offset, self._clock.monotonic_s(), self._random()):
            return
        self.heard += 1
        self.latency = latency(record, published_at, self._clock.now_ms())
        self._rebuild_pause_s = REBUILD_PAUSE_S
        if self.hearing is not Hearing.WELL:
            _log.warning("canary_heard_again", was=self.hearing.value)
            self.hearing = Hearing.WELL
        _log.debug(
            "canary_heard",
            number=record.offset,
            to_lambda_ms=self.latency.to_lambda_ms,
            to_node_ms=self.latency.to_node_ms,
        )

    async def run(self) -> None:
        """Sing where nobody else did, and ask what is wrong when nothing is heard. Runs until cancelled."""
        vigil, clock = self._vigil, self._clock
        while True:
            # What is heard meanwhile puts it off: then there is nothing to do yet.
            await asyncio.sleep(max(0.0, vigil.next_turn_s - clock.monotonic_s()))
            if vigil.must_sing(now_s := clock.monotonic_s()):
                vigil.singing(now_s, self._random())
                await self._sing()
            if vigil.must_doubt(now_s := clock.monotonic_s()):
                vigil.doubted(now_s, self._random())
                await self._diagnose()

    async def _sing(self) -> None:
        """One write, and one read if its number was taken."""
        now = self._clock.now_ms()
        number = next_number(self._vigil.known, now, self._interval_ms)
        item = canary_item(
            number, node=self._node, batch=self._new_id(), now=now, generation=self._generation
        )
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                await self._write(number, item, now)
        except (PortError, TimeoutError) as error:
            _log.warning("canary_not_sung", reason=str(error) or type(error).__name__)

    async def _write(self, number: int, item: LogItem, now: int) -> None:
        """Raises PortError."""
        # In this turn or not at all: who sleeps before it is sent may know more when it wakes.
        if await self._table.put_item(item, believed_until_ms=now + self._interval_ms) is None:
            self.sung += 1
            self._vigil.sung(number, self._clock.monotonic_s(), self._random())
            return
        self._vigil.taken(number)
        newest = await self._table.newest(CANARY_CHANNEL)
        if isinstance(newest, LogItem):
            self._vigil.taken(newest.last)

    async def _diagnose(self) -> None:
        greeting, elsewhere = await asyncio.gather(self._greet(), self._heard_elsewhere())
        now_s = self._clock.monotonic_s()
        if not self._vigil.is_overdue(now_s):
            return
        hearing = self._vigil.judge(greeting=greeting, newest_elsewhere=elsewhere)
        if hearing is not self.hearing:
            _log.error("canary_missed", hearing=hearing.value, silence_s=round(self.silence_s))
            self.hearing = hearing
        # Not heard: perhaps the subscription is gone, and a new queue with a new one is the cure, harmless if it is not.
        # Not sent: a new queue could not be subscribed either when the topic is out of order for all. Only where others
        # hear on is it this node's own trouble.
        if greeting is Greeting.NOT_HEARD or hearing is Hearing.DEAF:
            self._rebuild_in_time(now_s)
        self._catch_up()

    async def _heard_elsewhere(self) -> int | None:
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                return await self._newest_elsewhere()
        except (PortError, TimeoutError) as error:
            _log.warning("leases_not_read", reason=str(error) or "no answer in time")
            return None

    def _rebuild_in_time(self, now_s: float) -> None:
        if now_s < self._rebuild_not_before_s:
            return
        self._rebuild_not_before_s = now_s + self._rebuild_pause_s
        self._rebuild_pause_s = min(2 * self._rebuild_pause_s, REBUILD_PAUSE_MAX_S)
        self._rebuild()
