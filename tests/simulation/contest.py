"""A channel that several writers publish to at once while nothing fails: each is served, soon,
and at a fair price.

The writers are appenders over the simulated table, each with a clock of its own:
what a node is to a log. The channel is theirs alone, so that what they publish is no reason for
anything that clients are told elsewhere.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Final

from roomcast.log.appender import Appender
from roomcast.log.channel_log import ChannelLog
from roomcast.wire.publication import Publication
from tests.simulation.checker import Checker, Kind
from tests.simulation.nodes import SKEW_S_MAX, SimulatedClock
from tests.simulation.world import SimulatedTable, SimulatedWorld

__all__ = ["CHANNEL", "Contest"]

CHANNEL: Final = "contended"
WRITERS: Final = 5
SECONDS: Final = 3.0
# Of all writers together. Each of them has something to append at any time, but seldom much.
A_SECOND: Final = 600.0
TTL_MS: Final = 300_000
# Of what each writer got on average, the least that one may get.
POOREST_MIN: Final = 0.6
# The longest that a publication may wait. A round of all writers takes a tenth of it.
WAIT_S_MAX: Final = 1.5
# Writes that an append may need, on average over all of them.
ATTEMPTS_MAX: Final = 2.2


class Contest:
    """One such time, from its beginning to its judgement."""

    def __init__(self, world: SimulatedWorld, random: Random, checker: Checker) -> None:
        self._random = random
        self._checker = checker
        self._appenders = [self._writer(world, f"writer-{number}") for number in range(WRITERS)]
        self._counts = [0] * WRITERS
        self._slowest_s = 0.0

    async def run(self) -> None:
        """Publish, wait until everything is answered, and judge."""
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._publish(number))
        for appender in self._appenders:
            await appender.drain()
        self._judge()

    def _writer(self, world: SimulatedWorld, name: str) -> Appender:
        random = self._random
        clock = SimulatedClock(random.uniform(-SKEW_S_MAX, SKEW_S_MAX))
        log = ChannelLog(
            SimulatedTable(world, clock),
            clock,
            lambda: f"{random.getrandbits(64):016x}",
            random.random,
            node=name,
            generation="0",
        )
        return Appender(log, clock, lambda _: None, generation="0", random=random.random)

    async def _publish(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + SECONDS
        async with asyncio.TaskGroup() as group:
            count = 0
            while loop.time() < end_s:
                await asyncio.sleep(self._random.expovariate(A_SECOND / WRITERS))
                count += 1
                group.create_task(self._answered(number, f"writer-{number}-{count}", end_s))

    async def _answered(self, number: int, content: str, end_s: float) -> None:
        loop, checker = asyncio.get_running_loop(), self._checker
        begun_s = loop.time()
        checker.publishing(f"writer-{number}", 1, CHANNEL, content)
        await self._appenders[number].submit(CHANNEL, Publication(content), TTL_MS)
        checker.acknowledged[content] = loop.time()
        self._slowest_s = max(self._slowest_s, loop.time() - begun_s)
        self._counts[number] += loop.time() < end_s

    def _judge(self) -> None:
        poorest = min(self._counts) * WRITERS / sum(self._counts)
        if poorest < POOREST_MIN:
            self._fail(f"one of {WRITERS} writers got {poorest:.2f} of what each got on average")
        if self._slowest_s > WAIT_S_MAX:
            self._fail(f"a publication waited for {self._slowest_s:.1f} s while nothing failed")
        counted = [appender.counters for appender in self._appenders]
        appended = sum(each.batches.count for each in counted)
        attempts = 1 + sum(each.races for each in counted) / appended
        if attempts > ATTEMPTS_MAX:
            self._fail(f"an append took {attempts:.2f} writes on average")

    def _fail(self, what: str) -> None:
        self._checker.fail(Kind.STARVED, what)
