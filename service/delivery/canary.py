"""The background task that sings and listens: finds out when this node, or the whole pipeline, cannot be heard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from service.core.canary import Greeting, Hearing, Latency, Vigil, canary_item, latency, slot_at
from service.core.publication import Record
from service.ports import BeliefEnded, ChannelTable, Clock, NewId, PortError

__all__ = ["REBUILD_PAUSE_S", "Canary"]

# Between two rebuilds of a queue that does not hear: SQS takes a minute to forget one, and a fault of SNS itself
# must not make a fleet create queues without end.
REBUILD_PAUSE_S: Final = 60.0

_log = structlog.get_logger(__name__)


class Canary:
    """One a node. `greet` greets this node through the topic; `rebuild` asks the poller for a new queue; `catch_up` reads the
    tails of all open channels; `newest_elsewhere` gives the newest slot in other live nodes' leases.
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
        catch_up: Callable[[], Awaitable[None]],
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
        self._vigil = Vigil(interval_s, clock.monotonic_s())
        self._rebuilt_at_s = float("-inf")
        self.hearing = Hearing.WELL
        self.latency: Latency | None = None

    @property
    def slot(self) -> int:
        """The newest slot heard: what this node's lease tells the others."""
        return self._vigil.slot

    @property
    def silence_s(self) -> float:
        """Seconds since a canary was heard."""
        return self._vigil.silence_s(self._clock.monotonic_s())

    def hear(self, record: Record, published_at: int) -> None:
        """A canary came through the queue."""
        if not self._vigil.hear(record.offset, self._clock.monotonic_s()):
            return
        self.latency = latency(record, published_at, self._clock.now_ms())
        if self.hearing is not Hearing.WELL:
            _log.warning("canary_heard_again", was=self.hearing.value)
            self.hearing = Hearing.WELL
        _log.debug(
            "canary_heard",
            slot=record.offset,
            to_lambda_ms=self.latency.to_lambda_ms,
            to_node_ms=self.latency.to_node_ms,
        )

    async def run(self) -> None:
        """Sing where nobody else did, and ask what is wrong when nothing is heard. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._until_next_turn_s())
            slot = slot_at(self._clock.now_ms(), self._interval_ms)
            if self._vigil.slot < slot:
                await self._sing(slot)
            if self._vigil.is_overdue(self._clock.monotonic_s()):
                await self._diagnose()

    def _until_next_turn_s(self) -> float:
        """To a random moment in the first half of the next slot, so that one node is first and the rest hear it."""
        into_slot_ms = self._clock.now_ms() % self._interval_ms
        return (self._interval_ms - into_slot_ms + self._random() * self._interval_ms / 2) / 1000

    async def _sing(self, slot: int) -> None:
        now = self._clock.now_ms()
        item = canary_item(slot, node=self._node, batch=self._new_id(), now=now, generation=self._generation)
        try:
            # In this slot or not at all.
            await self._table.put_item(item, believed_until_ms=(slot + 1) * self._interval_ms)
        except BeliefEnded:
            pass
        except PortError as error:
            _log.warning("canary_not_sung", reason=str(error))

    async def _diagnose(self) -> None:
        greeting, elsewhere = await self._greet(), 0
        try:
            elsewhere = await self._newest_elsewhere()
        except PortError as error:
            _log.warning("leases_not_read", reason=str(error))
        if not self._vigil.is_overdue(self._clock.monotonic_s()):
            return
        hearing = self._vigil.judge(greeting=greeting, newest_elsewhere=elsewhere)
        if hearing is not self.hearing:
            _log.error("canary_missed", hearing=hearing.value, silence_s=round(self.silence_s))
            self.hearing = hearing
        now_s = self._clock.monotonic_s()
        if greeting is Greeting.NOT_HEARD and now_s - self._rebuilt_at_s >= REBUILD_PAUSE_S:
            # Perhaps the subscription is gone: a new queue with a new one is the cure, and harmless if it is not.
            self._rebuilt_at_s = now_s
            self._rebuild()
        await self._catch_up()
