"""A tracer that keeps its spans, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from roomcast.observe.ports import NO_ATTRIBUTES, Attributes, Span
from roomcast.observe.spans import is_sampled
from roomcast.wire.trace_context import TraceContext

__all__ = ["Kept", "Recorder"]


@dataclass(eq=False)
class Kept:
    """A Span."""

    name: str
    channel: str
    parent: TraceContext | None
    context: TraceContext
    start_ms: float | None
    links: list[TraceContext] = field(default_factory=list)
    attributes: Attributes | None = None
    failure: str = ""
    end_ms: float | None = None
    ended: bool = False

    def link(self, other: TraceContext) -> None:
        assert not self.ended, "the SDK takes no link after the end"
        self.links.append(other)

    def end(
        self,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        failure: str = "",
        at_ms: float | None = None,
    ) -> None:
        if not self.ended:
            self.ended = True
            self.attributes, self.failure, self.end_ms = attributes, failure, at_ms


class Recorder:
    """A Tracer. `chance`: what is drawn for each publication without a parent. `first`: the number
    of its first span.
    """

    is_on = True

    def __init__(self, ratio: float = 1.0, chance: float = 0.5, first: int = 1) -> None:
        self.spans: list[Kept] = []
        self.ratio = ratio
        self.chance = chance
        self._ids = itertools.count(first)

    def root(
        self,
        name: str,
        channel: str,
        parent: TraceContext | None = None,
        *,
        start_ms: float | None = None,
    ) -> Span | None:
        if not is_sampled(parent, self.ratio, self.chance):
            return None
        return self._kept(name, channel, parent, start_ms)

    def span(
        self, name: str, channel: str, parent: TraceContext, *, start_ms: float | None = None
    ) -> Span:
        return self._kept(name, channel, parent, start_ms)

    def _kept(
        self, name: str, channel: str, parent: TraceContext | None, start_ms: float | None
    ) -> Kept:
        number = next(self._ids)
        trace_id = f"{number:032x}" if parent is None else parent.trace_id
        context = TraceContext(trace_id, f"{number:016x}")
        self.spans.append(Kept(name, channel, parent, context, start_ms))
        return self.spans[-1]

    def ended(self, name: str) -> Sequence[Kept]:
        """Those of this name that have ended, in the order in which they began."""
        return [span for span in self.spans if span.name == name and span.ended]

    def below(self, parent: Kept) -> list[str]:
        """The names of the spans below `parent`, all of which have ended."""
        children = [span for span in self.spans if span.parent == parent.context]
        assert all(span.ended for span in children)
        return [span.name for span in children]
