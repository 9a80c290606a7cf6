"""The background task that sings and listens: finds out when this node, or the whole pipeline, cannot be heard.

A canary that does not come is missed after some intervals. What this node has written itself, and what it knows to have been
sung, must come round sooner; when that is late, the same questions are asked at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from roomcast.backoff import Backoff
from roomcast.delivery.canary_rules import (
    CANARY_CHANNEL,
    Greeting,
    Hearing,
    Latency,
    Vigil,
    canary_item,
    latency,
    next_number,
)
from roomcast.delivery.rounds import Rounds
from roomcast.log.item import LogItem
from roomcast.log.ports import ChannelTable
from roomcast.ports import Clock, NewId, PortError
from roomcast.wire.publication import Record

__all__ = ["ASK_LIMIT_S", "REBUILD_PAUSE_MAX_S", "REBUILD_PAUSE_S", "Canary"]

# Between the first two rebuilds of a queue that does not hear: SQS takes a minute to forget one. It doubles with each
# rebuild that did not help: when SNS takes messages and delivers none, a new queue helps nobody, and a fleet must not
# go on making them.
REBUILD_PAUSE_S: Final = 60.0
REBUILD_PAUSE_MAX_S: Final = 960.0
_REBUILDS: Final = Backoff(REBUILD_PAUSE_S, REBUILD_PAUSE_MAX_S)

# For a canary to be written, and for the leases to be read: a table that hangs must not put off what is to be found out.
ASK_LIMIT_S: Final = 5.0
# Numbers that this node tried to sing, whatever came of it: when one of them is heard, it may be its own.
_TRIED_MAX: Final = 16

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
        self._rounds = Rounds()
        self._changed = asyncio.Event()
        self._tried: deque[int] = deque(maxlen=_TRIED_MAX)
        self._rebuild_not_before_s = float("-inf")
        self._rebuilds_in_a_row = 0
        self.hearing = Hearing.WELL
        self.latency: Latency | None = None
        # When the newest canary was sung that others sang: by their clocks, in ms, and not after it was heard; 0 = none.
        self.sung_elsewhere_ms = 0
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

    @property
    def late_s(self) -> float:
        """For how long something has been on its way that should have come round; 0 when nothing is late."""
        return self._rounds.late_s(self._clock.monotonic_s())

    def wrote(self) -> None:
        """Something of this node is in the table as of now: it must come round."""
        before_s = self._rounds.due_s
        self._rounds.wrote(self._clock.monotonic_s(), self._random())
        if self._rounds.due_s < before_s:
            self._changed.set()

    def came(self) -> None:
        """Something from the table came through the queue."""
        was_late = self._rounds.is_late
        self._rounds.came()
        if was_late and not self._vigil.is_overdue(self._clock.monotonic_s()):
            self._hears_again()

    def hear(self, record: Record, published_at: int) -> None:
        """A canary came through the queue."""
        self.came()
        if not self._vigil.hear(record.offset, self._clock.monotonic_s(), self._random()):
            return
        self.heard += 1
        self.latency = latency(record, published_at, self._clock.now_ms())
        if record.offset not in self._tried:
            self.sung_elsewhere_ms = min(record.ts, self._clock.now_ms())
        self._rebuilds_in_a_row = 0
        self._hears_again()
        _log.debug(
            "canary_heard",
            number=record.offset,
            to_lambda_ms=self.latency.to_lambda_ms,
            to_node_ms=self.latency.to_node_ms,
        )

    def _hears_again(self) -> None:
        if self.hearing is not Hearing.WELL:
            _log.warning("canary_heard_again", was=self.hearing.value)
            self.hearing = Hearing.WELL

    async def run(self) -> None:
        """Sing where nobody else did, and ask what is wrong when nothing is heard. Runs until cancelled."""
        vigil, clock = self._vigil, self._clock
        while True:
            # What is heard meanwhile puts it off: then there is nothing to do yet.
            turn_s = min(vigil.next_turn_s, self._rounds.due_s)
            await self._pause(max(0.0, turn_s - clock.monotonic_s()))
            if vigil.must_sing(now_s := clock.monotonic_s()):
                vigil.singing(now_s, self._random())
                await self._sing()
            is_late = self._rounds.must_tell(now_s := clock.monotonic_s())
            if is_late or vigil.must_doubt(now_s):
                vigil.doubted(now_s, self._random())
                await self._diagnose()

    async def _pause(self, seconds: float) -> None:
        """Until the next turn, or until that comes sooner than was known."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

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
        self._tried.append(number)
        # In this turn or not at all: who sleeps before it is sent may know more when it wakes.
        if await self._table.put_item(item, believed_until_ms=now + self._interval_ms) is None:
            self.sung += 1
            self._vigil.sung(number, self._clock.monotonic_s(), self._random())
            return
        self._vigil.taken(number)
        if self.newest and number == self.newest + 1:
            # Sung since this node heard the one before it.
            self.wrote()
        newest = await self._table.newest(CANARY_CHANNEL)
        if isinstance(newest, LogItem):
            self._vigil.taken(newest.last)

    async def _diagnose(self) -> None:
        greeting, elsewhere = await asyncio.gather(self._greet(), self._heard_elsewhere())
        now_s = self._clock.monotonic_s()
        if not (self._rounds.is_late or self._vigil.is_overdue(now_s)):
            return
        hearing = self._vigil.judge(greeting=greeting, newest_elsewhere=elsewhere)
        if hearing is not self.hearing:
            _log.error(
                "canary_missed",
                hearing=hearing.value,
                silence_s=round(self.silence_s),
                late_s=round(self.late_s),
            )
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
        self._rebuilds_in_a_row += 1
        self._rebuild_not_before_s = now_s + _REBUILDS.pause_s(self._rebuilds_in_a_row)
        self._rebuild()
