"""The readings of a node for CloudWatch."""

from __future__ import annotations

from roomcast.node.assembly import Assembly
from roomcast.observe.cloudwatch import Readings

__all__ = ["readings_of"]


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
