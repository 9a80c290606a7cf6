"""The readings of a node for CloudWatch, and what it counts."""

from __future__ import annotations

from collections.abc import Callable

from roomcast.node.assembly import Assembly
from roomcast.observe.cloudwatch import Counts, Readings

__all__ = ["counts_of", "readings_of"]


def readings_of(assembly: Assembly) -> Readings:
    """The functions that read them. Nothing is read yet."""
    health = assembly.node.health
    return Readings(
        connections=lambda: len(assembly.node),
        channels=lambda: len(assembly.hub),
        queue_lag_ms=lambda: assembly.queue_state.lag_ms,
        canary_age_s=lambda: assembly.ears.silence_s,
        degraded=lambda: bool(health.doubts()),
        # A node that starts or drains is not ready, but has no fault.
        not_ready=lambda: health.listening and not health.draining and bool(health.reasons()),
    )


def counts_of(assembly: Assembly) -> Callable[[], Counts]:
    """The function that reads what was counted until it is called."""
    return lambda: Counts.taken(
        assembly.appender.counters,
        assembly.dispatcher.way.counters,
        assembly.node.services.publisher.signalled,
    )
