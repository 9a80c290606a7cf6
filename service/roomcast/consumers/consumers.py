"""All consumers of a node: their start, and their end before the rest of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog

from roomcast.config import ConsumerConfig
from roomcast.consumers.commands import Commands
from roomcast.consumers.consumer import FINISH_S, SETTLE_S, Consumer
from roomcast.consumers.ports import WorkQueue
from roomcast.consumers.rules import REASONS
from roomcast.node.node import Node
from roomcast.observe.counters import ConsumerCounters
from roomcast.ports import Clock

__all__ = ["Consumers", "QueueOf", "enabled"]

# The queue of a consumer with this URL.
QueueOf = Callable[[ConsumerConfig, str], WorkQueue]

_log = structlog.get_logger(__name__)


def enabled(consumers: Sequence[ConsumerConfig]) -> Sequence[ConsumerConfig]:
    """Those that are to run."""
    return [consumer for consumer in consumers if consumer.enabled]


class Consumers:
    """Built before the node serves. `counters`: of each consumer that is enabled, by its name."""

    def __init__(
        self,
        configs: Sequence[ConsumerConfig],
        queue_of: QueueOf,
        node: Node,
        clock: Clock,
        random: Callable[[], float],
        *,
        message_size_limit: int,
    ) -> None:
        """`message_size_limit`: bytes of a publication's data."""
        self.counters: Mapping[str, ConsumerCounters] = {
            config.name: ConsumerCounters(failed=dict.fromkeys(REASONS, 0))
            for config in enabled(configs)
        }
        work = Commands(node, message_size_limit)
        self._consumers = [
            Consumer(
                config.name,
                queue_of(config, url),
                config.aws_sqs,
                work,
                clock,
                random,
                self.counters[config.name],
            )
            for config in enabled(configs)
            for url in config.aws_sqs.queues
        ]
        # Set when no consumer runs.
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Run until cancelled. It does not end with `end`."""
        self._idle.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                for consumer in self._consumers:
                    tasks.create_task(consumer.run())
        finally:
            self._idle.set()
        # Whoever started it takes its end for a fault.
        await asyncio.get_running_loop().create_future()

    async def end(self) -> None:
        """Receive nothing more, and wait for what is under way: FINISH_S for the messages, and
        SETTLE_S for what the queues are told. What was not done by then comes again. Idempotent.
        """
        for consumer in self._consumers:
            consumer.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                await self._idle.wait()
        for consumer in self._consumers:
            consumer.give_up()
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("consumers_not_ended", within_s=FINISH_S + SETTLE_S)
