"""The port for traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from roomcast.wire.trace_context import TraceContext

__all__ = ["NO_ATTRIBUTES", "Attributes", "Span", "Tracer", "Tracing"]


# What a span says of itself, by name. No payload, token, user or client.
Attributes = Mapping[str, str | int | float]
NO_ATTRIBUTES: Final[Attributes] = {}


class Span(Protocol):
    """One recorded step of a trace. One that does not end is never exported."""

    @property
    def context(self) -> TraceContext:
        """Its place in the trace, for the spans below it."""

    def link(self, other: TraceContext) -> None:
        """Say that `other`, of another trace, belongs to it."""

    def end(
        self,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        failure: str = "",
        at_ms: float | None = None,
    ) -> None:
        """End it. `failure`: why its step failed, of few texts; "" = it did not. `at_ms`: when
        (ms since 1970); None = now. A second call does nothing.
        """


class Tracer(Protocol):
    """Makes spans, and hands those that ended to an exporter, which may drop them.

    No method waits, and none raises. Times are in ms since 1970; None = now. The names of channels
    are only recorded if they are configured to be.
    """

    @property
    def is_on(self) -> bool:
        """Whether any span may be recorded. It does not change."""

    def root(
        self,
        name: str,
        channel: str,
        parent: TraceContext | None = None,
        *,
        start_ms: float | None = None,
    ) -> Span | None:
        """The first span of this node for a publication in `channel`; None = it is not recorded.

        `parent`: the caller's span, which decides; None = chance does.
        """

    def span(
        self, name: str, channel: str, parent: TraceContext, *, start_ms: float | None = None
    ) -> Span:
        """A span below `parent`, which is recorded."""


class Tracing(Protocol):
    """A tracer with its exporter, which runs beside the event loop."""

    @property
    def tracer(self) -> Tracer: ...

    async def close(self) -> None:
        """Export what waits, within a bound, and drop the rest. Does not raise."""
