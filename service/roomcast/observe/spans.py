"""The names of spans and of their attributes, which spans are recorded, and a tracer that records
none.

publish ─ append ─┬─ put_item                        each write of the append
                  ├─ deliver                         to subscribers of the node that wrote it
                  └─ way ─┬─ stream, lambda, queue   for each other node with subscribers
                          └─ deliver
"""

from __future__ import annotations

from typing import Final

from roomcast.observe.ports import Span, Tracer
from roomcast.wire.trace_context import TraceContext

__all__ = [
    "APPEND",
    "ATTEMPTS",
    "BY",
    "CHANNEL",
    "DELIVER",
    "HOOK",
    "HOOK_NAME",
    "LOSSES",
    "NO_TRACER",
    "OUTCOME",
    "PUBLICATIONS",
    "PUBLISH",
    "PUT_ITEM",
    "SUBSCRIBERS",
    "TURN_MS",
    "WAY",
    "WRITERS",
    "NoTracer",
    "is_sampled",
]

PUBLISH: Final = "publish"
APPEND: Final = "append"
PUT_ITEM: Final = "put_item"
WAY: Final = "way"
DELIVER: Final = "deliver"
# A request to a back end, in a trace of its own that the back end goes on with.
HOOK: Final = "hook"

CHANNEL: Final = "roomcast.channel"
OUTCOME: Final = "roomcast.outcome"
PUBLICATIONS: Final = "roomcast.publications"
ATTEMPTS: Final = "roomcast.attempts"
LOSSES: Final = "roomcast.losses"
TURN_MS: Final = "roomcast.turn_ms"
WRITERS: Final = "roomcast.writers"
BY: Final = "roomcast.by"
SUBSCRIBERS: Final = "roomcast.subscribers"
HOOK_NAME: Final = "roomcast.hook"


def is_sampled(parent: TraceContext | None, ratio: float, chance: float) -> bool:
    """Whether a publication is traced: as its caller decided, or else `ratio` of all.

    `chance`: a fraction of 1, drawn for this publication.
    """
    return chance < ratio if parent is None else parent.sampled


class _NoSpan:
    """A Span that nobody records."""

    context = TraceContext("0" * 32, "0" * 16, sampled=False)

    def link(self, *_: object) -> None:
        pass

    def end(self, *_: object, **__: object) -> None:
        pass


class NoTracer:
    """A Tracer that records nothing."""

    is_on = False

    def root(self, *_: object, **__: object) -> None:
        return None

    def span(self, *_: object, **__: object) -> Span:
        return _NoSpan()


NO_TRACER: Final[Tracer] = NoTracer()
