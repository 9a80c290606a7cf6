"""Measures how long publications are on their way from other nodes' appends to this node's sockets.

Each stage ends where somebody knows two times: the writer puts that of its append into the item,
and the stream Lambda writes into the envelope when it had the records. Traces have stages of the
same times, and one more: service/roomcast/wire/trace_context.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from roomcast.delivery.resequencer import Next
from roomcast.observe.counters import StageCounters
from roomcast.ports import Clock
from roomcast.wire.publication import Record

__all__ = ["Way"]


class Way:
    """One a node."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.counters = StageCounters()

    def came(self, records: Sequence[Record], lambda_at: int) -> None:
        """`records` came, which the Lambda had at `lambda_at` (ms; 0 = not known)."""
        if records and lambda_at:
            self.counters.topic.add(_s(self._clock.now_ms() - lambda_at))
            for record in records:
                took_s = _s(lambda_at - record.ts)
                self.counters.stream.add(took_s)
                if record.trail is not None:
                    trace_id = record.trail.context.trace_id
                    self.counters.stream.exemplify(took_s, trace_id, lambda_at / 1000)

    def passed(self, runs: Iterable[Next]) -> None:
        """`runs` go to subscribers now."""
        now_ms = self._clock.now_ms()
        for run in runs:
            self.counters.order.add(run.held_s)
            took_s = _s(now_ms - run.ts)
            self.counters.all.add(took_s)
            if run.trail is not None:
                trace_id = run.trail.context.trace_id
                self.counters.all.exemplify(took_s, trace_id, now_ms / 1000)
                self.counters.order.exemplify(run.held_s, trace_id, now_ms / 1000)

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """The messages of one receive are taken, and given to the sockets."""
        started_s = self._clock.monotonic_s()
        yield
        self.counters.node.add(self._clock.monotonic_s() - started_s)


def _s(ms: int) -> float:
    """Seconds between two clocks, of which one may be ahead."""
    return max(0, ms) / 1000
