"""Keeps this node's queue subscribed to the topics of the topic shards that it wants.

`ShardBook` is what the node knows of its topic shards; the rules are in shard_rules.py.
`ShardKeeper` is the background task: it subscribes, proves, unsubscribes, and requests looks at the
log for what is not heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Final, Protocol

import structlog

from roomcast.delivery import signals
from roomcast.delivery.envelope import pack, signal_text
from roomcast.delivery.greetings import GREETINGS_MAX, Greetings
from roomcast.delivery.ports import CatchUpRequest, ShardSubscriptions, ShardTopics
from roomcast.delivery.shard_rules import STEPS_AT_ONCE, Act, ShardPlan, Step
from roomcast.observe.counters import ShardCounters
from roomcast.ports import Clock, NewId, PortError

__all__ = ["GREETING_WAIT_S", "BaseEars", "ShardBook", "ShardKeeper"]

# How long a greeting through a topic shard may take, to be published and to come back. A
# subscription that takes longer to take effect is greeted again.
GREETING_WAIT_S: Final = 2.0
assert STEPS_AT_ONCE <= GREETINGS_MAX, "a greeting that is waited for is remembered"

_log = structlog.get_logger(__name__)


class BaseEars(Protocol):
    """Whoever must know that what came through the base topic should come round."""

    def wrote(self) -> None:
        """An item is in the table as of now."""


class ShardBook:
    """What this node knows of its topic shards. One a node.

    It starts nothing: the dispatcher, the intake, the table and the listener report to it, and
    `ShardKeeper` reads it.
    """

    def __init__(
        self, shards: int, base: BaseEars, clock: Clock, random: Callable[[], float]
    ) -> None:
        """`base`: hears of writes whose records come through the base topic."""
        self.plan = ShardPlan(shards)
        self.greetings = Greetings()
        # Set when something may be due sooner than it was before.
        self.changed = asyncio.Event()
        # The keeper's steps that are under way.
        self.steps: set[asyncio.Task[None]] = set()
        self._base = base
        self._clock = clock
        self._random = random

    def of(self, channel: str) -> int:
        """The topic shard of `channel`; 0 when there are none."""
        return self.plan.of(channel)

    def opened(self, channel: str) -> None:
        """`channel` has its first subscriber. Called before its position is read."""
        if self._has_shards:
            with self._noted():
                self.plan.opened(channel, self._clock.monotonic_s())

    def closed(self, channel: str) -> None:
        """`channel` has no subscriber any more."""
        if self._has_shards:
            with self._noted():
                self.plan.closed(channel, self._clock.monotonic_s())

    def wrote(self, channel: str) -> None:
        """An item of `channel` is in the table as of now."""
        if self.plan.is_on_base(channel):
            self._base.wrote()
        elif self.plan.wrote(channel, self._clock.monotonic_s(), self._chance()):
            self.changed.set()

    def came(self, shard: int | None, shards: int, canary: int) -> None:
        """An envelope with records came. See `ShardPlan.came`."""
        if self.plan.came(shard, shards, canary, self._clock.monotonic_s(), self._chance()):
            self.changed.set()

    def greeted(self, greeting: str) -> None:
        """A greeting of this node came through the queue."""
        self.greetings.greeted(greeting)

    async def replacing(self) -> None:
        """The queue is about to be removed: end all calls that might subscribe it once more."""
        self.plan.replacing()
        steps = list(self.steps)
        for step in steps:
            step.cancel()
        await asyncio.gather(*steps, return_exceptions=True)

    def replaced(self) -> None:
        """The node has another queue, which is subscribed to the base topic only."""
        with self._noted():
            self.plan.replaced(self._clock.monotonic_s())

    def trouble(self) -> str:
        """What this node may not hear, as a text; "" = nothing for long."""
        return self.plan.trouble(self._clock.monotonic_s())

    @property
    def _has_shards(self) -> bool:
        return self.plan.number > 1

    def _chance(self) -> float:
        return self._random() if self._has_shards else 0.0

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Wake the keeper if the change makes something due sooner than it was before."""
        before_s = self.plan.next_s()
        yield
        if self.plan.next_s() < before_s:
            self.changed.set()


class ShardKeeper:
    """The background task of the topic shards. One a node."""

    def __init__(
        self,
        book: ShardBook,
        subscriptions: ShardSubscriptions,
        topics: ShardTopics,
        clock: Clock,
        new_id: NewId,
        random: Callable[[], float],
        *,
        node: str,
        catch_up: CatchUpRequest,
    ) -> None:
        self._book = book
        self._subscriptions = subscriptions
        self._topics = topics
        self._clock = clock
        self._new_id = new_id
        self._random = random
        self._node = node
        self._catch_up = catch_up
        self.counters = ShardCounters()

    async def run(self) -> None:
        """Do what is due, until cancelled. The poller must run."""
        plan = self._book.plan
        async with asyncio.TaskGroup() as steps:
            while True:
                self._book.changed.clear()
                if plan.next_s() <= (now_s := self._clock.monotonic_s()):
                    for shard in plan.take_looks(now_s, self._random()):
                        self._catch_up.request(shard)
                    while (step := plan.take_step(now_s, self._random())) is not None:
                        task = steps.create_task(self._carry_out(step))
                        self._book.steps.add(task)
                        task.add_done_callback(self._book.steps.discard)
                await self._until_due()

    async def join(self, shard: int) -> bool:
        """Subscribe the queue to `shard`, and greet through it. Returns whether that was heard.

        Raises PortError.
        """
        await self._subscriptions.subscribe(shard)
        greeting = signals.hello(self._node, self._new_id())
        body, _ = next(pack([signal_text(greeting)], signals=True))
        heard = self._book.greetings.sent(greeting.id)
        with suppress(TimeoutError):
            async with asyncio.timeout(GREETING_WAIT_S):
                await self._topics.publish_to(shard, body)
                await heard.wait()
        return heard.is_set()

    async def _carry_out(self, step: Step) -> None:
        outcome, reason = "failed", "its greeting was not heard in time"
        try:
            if step.act is Act.LEAVE:
                await self._subscriptions.unsubscribe(step.shard)
                outcome = "left"
            elif await self.join(step.shard):
                outcome = "heard"
        except PortError as error:
            reason = str(error) or type(error).__name__
        except asyncio.CancelledError:
            reason = "the queue is replaced"
            raise
        finally:
            self._done(step, outcome, reason)

    def _done(self, step: Step, outcome: str, reason: str) -> None:
        self.counters.steps[outcome] += 1
        if outcome == "failed":
            _log.warning("topic_shard_failed", shard=step.shard, act=step.act.value, reason=reason)
        self._book.plan.done(
            step, self._clock.monotonic_s(), self._random(), succeeded=outcome != "failed"
        )
        self._book.changed.set()

    async def _until_due(self) -> None:
        """Wait until something is due, or changes."""
        next_s = self._book.plan.next_s()
        if next_s == inf:
            await self._book.changed.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, next_s - self._clock.monotonic_s())):
                await self._book.changed.wait()
