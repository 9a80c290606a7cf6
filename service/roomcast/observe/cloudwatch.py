"""Puts this node's readings where dashboards and alarms find them, once a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from roomcast.observe.counters import AppendCounters, Histogram
from roomcast.observe.ports import Metric, Metrics
from roomcast.ports import PortError

__all__ = ["INTERVAL_S", "Appends", "Readings", "Reporter"]

# What a metric of standard resolution has room for; each call costs.
INTERVAL_S: Final = 60.0
# Of appends, those whose wait for their turn is told. A mean would hide one hot channel among many quiet ones.
_TURN_PART: Final = 0.99

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Readings:
    """Where the readings come from, asked for each time."""

    connections: Callable[[], int]
    channels: Callable[[], int]
    # How late the newest message came out of the queue.
    queue_lag_ms: Callable[[], float]
    # How long ago a canary was heard.
    canary_age_s: Callable[[], float]
    # Whether the node serves and yet may not hear all; whether it should serve and cannot.
    degraded: Callable[[], bool]
    not_ready: Callable[[], bool]

    def taken(self) -> tuple[Metric, ...]:
        """All of them now."""
        return (
            Metric("Connections", self.connections(), "Count"),
            Metric("Channels", self.channels(), "Count"),
            Metric("QueueLagMs", self.queue_lag_ms(), "Milliseconds"),
            Metric("CanaryAgeS", self.canary_age_s(), "Seconds"),
            # Summed over the nodes: how many of them.
            Metric("Degraded", self.degraded(), "Count"),
            Metric("NotReady", self.not_ready(), "Count"),
        )


@dataclass(frozen=True, slots=True)
class Appends:
    """What AppendCounters had counted at one moment."""

    attempts: Histogram
    turn_s: Histogram
    rejected: int
    unknown: int

    @classmethod
    def counted(cls, counters: AppendCounters) -> Appends:
        """Up to now."""
        return cls(
            counters.attempts.copy(),
            counters.turn_s.copy(),
            counters.rejected,
            counters.publications["unknown"],
        )

    def since(self, earlier: Appends) -> Iterator[Metric]:
        """What was counted after `earlier`. Where nothing was appended there is no reading of what an append took."""
        attempts = self.attempts.since(earlier.attempts).mean()
        if attempts is not None:
            yield Metric("AppendAttempts", attempts, "None")
        turn_s = self.turn_s.since(earlier.turn_s).quantile(_TURN_PART)
        if turn_s is not None:
            yield Metric("AppendTurnMs", turn_s * 1000, "Milliseconds")
        yield Metric("PublicationsRejected", self.rejected - earlier.rejected, "Count")
        yield Metric("PublicationsUnknown", self.unknown - earlier.unknown, "Count")


class Reporter:
    """One a node; `run` is its background task."""

    def __init__(
        self,
        metrics: Metrics,
        random: Callable[[], float],
        readings: Readings,
        appends: AppendCounters,
    ) -> None:
        self._metrics = metrics
        self._random = random
        self._readings = readings
        self._counters = appends
        # What was told of them up to now.
        self._told = Appends.counted(appends)
        self._failing: type[PortError] | None = None

    async def run(self) -> None:
        """Until cancelled. A failure is logged, once as long as it lasts.

        What was read of the moment is then of no use any more. What was counted is told by the next reading.
        """
        await self._report()
        # The rest at a time of its own: a fleet that started together does not call at once for ever.
        wait_s = INTERVAL_S * self._random()
        while True:
            await asyncio.sleep(wait_s)
            await self._report()
            wait_s = INTERVAL_S

    async def _report(self) -> None:
        appends = Appends.counted(self._counters)
        try:
            await self._metrics.put((*self._readings.taken(), *appends.since(self._told)))
        except PortError as error:
            if self._failing is not type(error):
                _log.warning("metrics_not_put", reason=str(error))
            self._failing = type(error)
            return
        self._told = appends
        if self._failing is not None:
            _log.info("metrics_put_again")
            self._failing = None
