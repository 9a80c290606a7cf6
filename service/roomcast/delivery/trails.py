"""Makes the spans of what comes to this node and goes to its subscribers.

A traced record has its trail with it (service/roomcast/wire/trace_context.py): by whom and when it
was handed on. Its spans are made at once, when it has gone to the subscribers. What is dropped as a
repeat, or read from the log, has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from roomcast.observe.ports import Tracer
from roomcast.observe.spans import BY, DELIVER, SUBSCRIBERS, WAY
from roomcast.ports import Clock
from roomcast.wire.trace_context import BY_TABLE, TraceContext, Trail, stages

__all__ = ["Trails"]


class Trails:
    """One a node. `subscribers`: the number of them that a channel has on this node."""

    def __init__(self, tracer: Tracer, clock: Clock, subscribers: Callable[[str], int]) -> None:
        self._tracer = tracer
        self._clock = clock
        self._subscribers = subscribers
        # Whether any trail is to be told of. Looked at by each record.
        self.is_on = tracer.is_on

    def received(self, trail: Trail, queued_at: int = 0) -> Trail:
        """`trail` of what this node has now. `queued_at`: when its queue had it; 0 = not known."""
        return replace(
            trail,
            queued_at=queued_at,
            received_at=self._clock.now_ms(),
            received_s=self._clock.monotonic_s(),
        )

    def met(self, trace: TraceContext) -> Trail:
        """The trail of an item that this node wrote, or met in the table."""
        return self.received(Trail(trace, BY_TABLE))

    def delivered(self, channels: Iterable[str], trails: Iterable[Trail]) -> None:
        """What came by `trails` has gone to the subscribers of `channels`, or into their batch."""
        names = list(channels)
        subscribers = sum(map(self._subscribers, names))
        # A broadcast names no channel: it may have a thousand.
        channel = names[0] if len(names) == 1 else ""
        for trail in trails:
            self._tell(trail, channel, subscribers)

    def _tell(self, trail: Trail, channel: str, subscribers: int) -> None:
        took_ms = (self._clock.monotonic_s() - trail.received_s) * 1000
        end_ms = trail.received_at + took_ms
        parent, whole = trail.context, None
        if before := stages(trail):
            whole = self._tracer.span(WAY, channel, parent, start_ms=before[0][1])
            parent = whole.context
        for name, begin, until in before:
            self._tracer.span(name, channel, parent, start_ms=begin).end(at_ms=until)
        deliver = self._tracer.span(DELIVER, channel, parent, start_ms=trail.received_at)
        deliver.end({BY: trail.by, SUBSCRIBERS: subscribers}, at_ms=end_ms)
        if whole is not None:
            whole.end({BY: trail.by}, at_ms=end_ms)
