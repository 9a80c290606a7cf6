"""Logs this node's readings once a minute in a form that CloudWatch Logs turns into metrics, for
dashboards and alarms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from roomcast.observe.counters import AppendCounters, Histogram, StageCounters
from roomcast.observe.emf import VALUES_MAX, Metric, lines
from roomcast.ports import Clock

__all__ = [
    "EVENT",
    "GROUP_DIMENSION",
    "INTERVAL_S",
    "Counts",
    "Destination",
    "Readings",
    "Reporter",
]

# A metric of standard resolution has one value a minute, and each line costs.
INTERVAL_S: Final = 60.0
# The event of these lines among the log's.
EVENT: Final = "metrics"
# The only dimension. Readings have none per node: nodes come and go, and CloudWatch bills each
# metric by the month.
GROUP_DIMENSION: Final = "AutoScalingGroupName"


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
            Metric("Connections", (self.connections(),), "Count"),
            Metric("Channels", (self.channels(),), "Count"),
            Metric("QueueLagMs", (self.queue_lag_ms(),), "Milliseconds"),
            Metric("CanaryAgeS", (self.canary_age_s(),), "Seconds"),
            # Its sum over the nodes is the number of such nodes.
            Metric("Degraded", (self.degraded(),), "Count"),
            Metric("NotReady", (self.not_ready(),), "Count"),
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted until one moment."""

    publications: Mapping[str, int]
    rejected: int
    signalled: int
    publish_s: Histogram
    attempts: Histogram
    turn_s: Histogram
    stages: Mapping[str, Histogram]

    @classmethod
    def taken(cls, appends: AppendCounters, stages: StageCounters, signalled: int) -> Counts:
        """What was counted until now. `signalled`: publications without history."""
        return cls(
            dict(appends.publications),
            appends.rejected,
            signalled,
            appends.latency_s.copy(),
            appends.attempts.copy(),
            appends.turn_s.copy(),
            {stage: took.copy() for stage, took in stages.by_stage().items()},
        )

    def since(self, earlier: Counts) -> Iterator[Metric]:
        """The readings for the time after `earlier`.

        There is no reading of the duration of what did not happen.
        """

        def counted(name: str, *outcomes: str) -> Metric:
            new = sum(self.publications[each] - earlier.publications[each] for each in outcomes)
            return Metric(name, (new,), "Count")

        yield counted("Publications", "stored", "repeated")
        yield Metric("PublicationsSignalled", (self.signalled - earlier.signalled,), "Count")
        yield Metric("PublicationsRejected", (self.rejected - earlier.rejected,), "Count")
        yield counted("PublicationsUnknown", "unknown")
        yield _durations("PublishMs", self.publish_s, earlier.publish_s)
        attempts = self.attempts.since(earlier.attempts).mean()
        yield Metric("AppendAttempts", () if attempts is None else (attempts,), "None")
        yield _durations("AppendTurnMs", self.turn_s, earlier.turn_s)
        for stage, took in self.stages.items():
            yield _durations(f"Delivery{_STAGES[stage]}Ms", took, earlier.stages[stage])


# What stages are called in the names of metrics.
_STAGES: Final[Mapping[str, str]] = {
    "stream": "Stream",
    "topic": "Topic",
    "node": "Node",
    "order": "Order",
    "all": "",
}


def _durations(name: str, now: Histogram, earlier: Histogram) -> Metric:
    added = now.since(earlier).sample(VALUES_MAX)
    return Metric(name, [each * 1000 for each in added], "Milliseconds")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a node's readings go. `group`: the Auto Scaling group's name, "" = none."""

    namespace: str
    group: str
    node: str
    # Writes one log line, and never fails.
    write: Callable[[bytes], None]


class Reporter:
    """Reports one node's readings. `run` is its background task."""

    def __init__(
        self,
        destination: Destination,
        clock: Clock,
        random: Callable[[], float],
        readings: Readings,
        counts: Callable[[], Counts],
    ) -> None:
        self._destination = destination
        self._clock = clock
        self._random = random
        self._readings = readings
        self._counts = counts
        # What is reported already.
        self._told = counts()

    async def run(self) -> None:
        """Runs until cancelled. Then it reports what was counted since the last report."""
        try:
            self._report(self._readings.taken())
            # A random first wait, so that the nodes of a fleet that started together do not always
            # report at once.
            wait_s = INTERVAL_S * self._random()
            while True:
                await asyncio.sleep(wait_s)
                self._report(self._readings.taken())
                wait_s = INTERVAL_S
        finally:
            self._report(())

    def _report(self, readings: Sequence[Metric]) -> None:
        counts = self._counts()
        to = self._destination
        for line in lines(
            (*readings, *counts.since(self._told)),
            namespace=to.namespace,
            dimensions={GROUP_DIMENSION: to.group} if to.group else {},
            at_ms=self._clock.now_ms(),
            about={"event": EVENT, "node": to.node},
        ):
            to.write(line)
        self._told = counts
