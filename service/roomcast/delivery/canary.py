"""Emits canaries, and keeps what this node hears of them.

The background task emits them, and looks for the fault when none comes.

A canary that does not come is missed after some intervals. An item that this node wrote, or a
canary that it knows to be in the table, must come through the queue sooner. When that is late, the
task looks for the fault at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import structlog

from roomcast.backoff import Backoff
from roomcast.delivery.canary_rules import (
    CANARY_CHANNEL,
    CanarySchedule,
    Greeting,
    Hearing,
    Latency,
    Rounds,
    canary_item,
    latency,
    next_number,
)
from roomcast.delivery.gap_wait import GapWait
from roomcast.delivery.greetings import Greetings
from roomcast.delivery.ports import CatchUpRequest, QueueRebuilder
from roomcast.log.item import LogItem
from roomcast.log.ports import ChannelTable
from roomcast.ports import Clock, NewId, PortError
from roomcast.wire.publication import Record

__all__ = [
    "ASK_LIMIT_S",
    "REBUILD_PAUSE_MAX_S",
    "REBUILD_PAUSE_S",
    "Canary",
    "CanaryEars",
    "Greeter",
    "OtherEars",
]

# Pause between the first two rebuilds of a queue that brings nothing: SQS takes a minute to forget
# a queue. The pause doubles with each rebuild that did not help. When SNS takes messages and
# delivers none, a new queue helps nobody, and a fleet must not go on making queues.
REBUILD_PAUSE_S: Final = 60.0
REBUILD_PAUSE_MAX_S: Final = 960.0
_REBUILDS: Final = Backoff(REBUILD_PAUSE_S, REBUILD_PAUSE_MAX_S)

# Time limit for writing a canary, and for reading the leases. A table that hangs must not delay the
# search for the fault.
ASK_LIMIT_S: Final = 5.0
# Numbers that are remembered because this node tried to emit them, with any outcome. A canary with
# one of them may be its own.
_TRIED_MAX: Final = 16

_log = structlog.get_logger(__name__)


class Greeter(Protocol):
    """Sends a greeting to this node through the topic."""

    async def greet(self) -> Greeting: ...


class OtherEars(Protocol):
    """What the leases of other nodes say."""

    async def newest_canary_elsewhere(self) -> int:
        """The newest canary that another node has heard, as its lease says; 0 = none.

        Raises PortError.
        """


class CanaryEars:
    """What this node hears of canaries, and of everything else that must come through the queue.

    One a node. It starts nothing: the intake and the table report to it, and `Canary` reads it.
    """

    def __init__(
        self,
        greetings: Greetings,
        clock: Clock,
        random: Callable[[], float],
        gap_wait: GapWait,
        *,
        interval_s: float,
    ) -> None:
        self._greetings = greetings
        # What the canaries take decides how long a hole waits.
        self.gap_wait = gap_wait
        self._clock = clock
        self._random = random
        self.schedule = CanarySchedule(interval_s, clock.monotonic_s(), random())
        self.rounds = Rounds()
        # Set when something is due sooner than it was before.
        self.changed = asyncio.Event()
        # Numbers that this node tried to emit.
        self.tried: deque[int] = deque(maxlen=_TRIED_MAX)
        self.hearing = Hearing.WELL
        self.latency: Latency | None = None
        # When the newest canary of another node was emitted, in ms by that node's clock, but not
        # after it was heard; 0 = none.
        self.emitted_elsewhere_ms = 0
        # New canaries that were heard.
        self.heard = 0

    @property
    def newest(self) -> int:
        """The number of the newest canary heard. This node's lease tells it to the others."""
        return self.schedule.newest

    @property
    def silence_s(self) -> float:
        """Seconds since a new canary was heard."""
        return self.schedule.silence_s(self._clock.monotonic_s())

    @property
    def late_s(self) -> float:
        """Seconds for which the oldest missing item has been on its way.

        0 when nothing is late.
        """
        return self.rounds.late_s(self._clock.monotonic_s())

    def greeted(self, greeting: str) -> None:
        """The hello with this id, which this node sent to itself, came through the queue."""
        self._greetings.greeted(greeting)

    def wrote(self) -> None:
        """An item is in the table as of now: it must come through the queue."""
        before_s = self.rounds.due_s
        self.rounds.wrote(self._clock.monotonic_s(), self._random())
        if self.rounds.due_s < before_s:
            self.changed.set()

    def came(self) -> None:
        """Something from the table came through the queue."""
        if self.rounds.came() and not self.schedule.is_overdue(self._clock.monotonic_s()):
            self._hears_again()

    def hear(self, record: Record, lambda_at: int) -> None:
        """A canary came through the queue. That proves as much as a greeting."""
        self._greetings.heard()
        self.came()
        if not self.schedule.hear(record.offset, self._clock.monotonic_s(), self._random()):
            return
        self.heard += 1
        took = self.latency = latency(record, lambda_at, self._clock.now_ms())
        self.gap_wait.took(took.to_lambda_ms + took.to_node_ms)
        if record.offset not in self.tried:
            self.emitted_elsewhere_ms = min(record.ts, self._clock.now_ms())
        self._hears_again()
        _log.debug(
            "canary_heard",
            number=record.offset,
            to_lambda_ms=took.to_lambda_ms,
            to_node_ms=took.to_node_ms,
        )

    def _hears_again(self) -> None:
        if self.hearing is not Hearing.WELL:
            _log.warning("canary_heard_again", was=self.hearing.value)
            self.hearing = Hearing.WELL


class Canary:
    """The background task that emits canaries and looks for faults. One a node."""

    def __init__(
        self,
        ears: CanaryEars,
        table: ChannelTable,
        clock: Clock,
        new_id: NewId,
        random: Callable[[], float],
        *,
        node: str,
        generation: str,
        interval_s: float,
        greeter: Greeter,
        rebuilder: QueueRebuilder,
        catch_up: CatchUpRequest,
        neighbours: OtherEars,
    ) -> None:
        self._ears = ears
        self._table = table
        self._clock = clock
        self._new_id = new_id
        self._random = random
        self._node = node
        self._generation = generation
        self._interval_ms = round(interval_s * 1000)
        self._greeter = greeter
        self._rebuilder = rebuilder
        self._catch_up = catch_up
        self._neighbours = neighbours
        self._rebuild_not_before_s = float("-inf")
        self._rebuilds_in_a_row = 0
        # The number of canaries heard until the last rebuild.
        self._heard_at_rebuild = 0
        # Canaries that this node made.
        self.emitted = 0

    async def run(self) -> None:
        """Emit a canary when no other node does, and look for the fault when none is heard.

        Runs until cancelled.
        """
        schedule, clock = self._ears.schedule, self._clock
        while True:
            # A canary that is heard during the pause postpones both turns.
            turn_s = min(schedule.next_turn_s, self._ears.rounds.due_s)
            await self._pause(max(0.0, turn_s - clock.monotonic_s()))
            if schedule.must_emit(now_s := clock.monotonic_s()):
                schedule.emitting(now_s, self._random())
                await self._emit()
            is_late = self._ears.rounds.must_tell(now_s := clock.monotonic_s())
            if is_late or schedule.must_doubt(now_s):
                schedule.doubted(now_s, self._random())
                await self._diagnose()

    async def _pause(self, seconds: float) -> None:
        """Wait until the next turn, or until one is due sooner."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ears.changed.wait()
        self._ears.changed.clear()

    async def _emit(self) -> None:
        """Write one canary. If its number was taken, read the newest one."""
        now = self._clock.now_ms()
        number = next_number(self._ears.schedule.known, now, self._interval_ms)
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
        self._ears.tried.append(number)
        # Send it within an interval or not at all: a node that sleeps before it sends may know more
        # when it wakes.
        if await self._table.put_item(item, tail_valid_until_ms=now + self._interval_ms) is None:
            self.emitted += 1
            self._ears.schedule.emitted(number, self._clock.monotonic_s(), self._random())
            return
        self._ears.schedule.taken(number)
        if self._ears.newest and number == self._ears.newest + 1:
            # Another node emitted it after this one heard the number before it.
            self._ears.wrote()
        newest = await self._table.newest(CANARY_CHANNEL)
        if isinstance(newest, LogItem):
            self._ears.schedule.taken(newest.last)

    async def _diagnose(self) -> None:
        greeting, elsewhere = await asyncio.gather(self._greeter.greet(), self._heard_elsewhere())
        now_s = self._clock.monotonic_s()
        if not (self._ears.rounds.is_late or self._ears.schedule.is_overdue(now_s)):
            return
        hearing = self._ears.schedule.judge(greeting=greeting, newest_elsewhere=elsewhere)
        if hearing is not self._ears.hearing:
            _log.error(
                "canary_missed",
                hearing=hearing.value,
                silence_s=round(self._ears.silence_s),
                late_s=round(self._ears.late_s),
            )
            self._ears.hearing = hearing
        # Not heard: the subscription may be gone. A new queue with a new subscription would cure
        # that, and does no harm otherwise. Not sent: if the topic fails for all nodes, a new queue
        # could not be subscribed either. Only if others go on hearing does the fault lie with this
        # node.
        if greeting is Greeting.NOT_HEARD or hearing is Hearing.DEAF:
            self._rebuild_in_time(now_s)
        self._catch_up.request()

    async def _heard_elsewhere(self) -> int | None:
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                return await self._neighbours.newest_canary_elsewhere()
        except (PortError, TimeoutError) as error:
            _log.warning("leases_not_read", reason=str(error) or "no answer in time")
            return None

    def _rebuild_in_time(self, now_s: float) -> None:
        if now_s < self._rebuild_not_before_s:
            return
        if self._ears.heard != self._heard_at_rebuild:
            self._heard_at_rebuild, self._rebuilds_in_a_row = self._ears.heard, 0
        self._rebuilds_in_a_row += 1
        self._rebuild_not_before_s = now_s + _REBUILDS.pause_s(self._rebuilds_in_a_row)
        self._rebuilder.rebuild_next()
