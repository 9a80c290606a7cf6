"""Puts this node's readings into CloudWatch once a minute, for dashboards and alarms."""

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

# A metric of standard resolution has one value a minute, and each call costs.
INTERVAL_S: Final = 60.0
# The quantile of the appends' waits for their turn. A mean would hide one hot channel among many
# quiet ones.
_TURN_PART: Final = 0.99

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Readings:
    """The sources of the readings. Each is called for every report."""

    connections: Callable[[], int]
    channels: Callable[[], int]
    # The delay of the newest message in the queue.
    queue_lag_ms: Callable[[], float]
    # Time since a canary was last heard.
    canary_age_s: Callable[[], float]
    # Whether the node serves but may miss messages. Whether it should serve but cannot.
    degraded: Callable[[], bool]
    not_ready: Callable[[], bool]

    def taken(self) -> tuple[Metric, ...]:
        """All current readings."""
        return (
            Metric("Connections", self.connections(), "Count"),
            Metric("Channels", self.channels(), "Count"),
            Metric("QueueLagMs", self.queue_lag_ms(), "Milliseconds"),
            Metric("CanaryAgeS", self.canary_age_s(), "Seconds"),
            # Its sum over the nodes is the number of such nodes.
            Metric("Degraded", self.degraded(), "Count"),
            Metric("NotReady", self.not_ready(), "Count"),
        )


@dataclass(frozen=True, slots=True)
class Appends:
    """The totals of AppendCounters at one moment."""

    attempts: Histogram
    turn_s: Histogram
    rejected: int
    unknown: int

    @classmethod
    def counted(cls, counters: AppendCounters) -> Appends:
        """The totals until now."""
        return cls(
            counters.attempts.copy(),
            counters.turn_s.copy(),
            counters.rejected,
            counters.publications["unknown"],
        )

    def since(self, earlier: Appends) -> Iterator[Metric]:
        """The readings for the time after `earlier`.

        Without any append there is no reading of an append's duration.
        """
        attempts = self.attempts.since(earlier.attempts).mean()
        if attempts is not None:
            yield Metric("AppendAttempts", attempts, "None")
        turn_s = self.turn_s.since(earlier.turn_s).quantile(_TURN_PART)
        if turn_s is not None:
            yield Metric("AppendTurnMs", turn_s * 1000, "Milliseconds")
        yield Metric("PublicationsRejected", self.rejected - earlier.rejected, "Count")
        yield Metric("PublicationsUnknown", self.unknown - earlier.unknown, "Count")


class Reporter:
    """Reports one node's readings. `run` is its background task."""

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
        # The totals that are reported already.
        self._told = Appends.counted(appends)
        self._failing: type[PortError] | None = None

    async def run(self) -> None:
        """Runs until cancelled. A failure is logged once, however long it lasts.

        Readings of a failed report are lost if they describe a moment. The next report includes
        those that are counts.
        """
        await self._report()
        # A random first wait, so that the nodes of a fleet that started together do not always call
        # at once.
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
