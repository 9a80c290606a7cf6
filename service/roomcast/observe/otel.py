"""A tracer over OpenTelemetry, which exports over OTLP. It needs the extra `otel`.

The SDK's thread sends spans in batches from a queue, which is bounded and drops what it has no room
for. The variables OTEL_… say where to, and how; the SDK reads them itself. Which publications are
traced is decided here and not by the SDK's sampler, so that those that are not cost nothing.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import requests
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from roomcast import __version__
from roomcast.observe.ports import NO_ATTRIBUTES, Attributes, Span
from roomcast.observe.spans import CHANNEL, DELIVER, HOOK, PUBLISH, PUT_ITEM, is_sampled
from roomcast.wire.trace_context import TraceContext

__all__ = ["ANSWER_BYTES_MAX", "FLUSH_S_MAX", "OtelTracer", "OtelTracing"]

# How long the end of a node waits for spans to be exported. A collector that does not answer must
# not hold it up.
FLUSH_S_MAX: Final = 3.0
# Bytes of a collector's answer, which says in a few how many spans it did not take.
ANSWER_BYTES_MAX: Final = 64 * 1024
# How a variable ends that has the SDK make its HTTP session with an application's credentials.
_OWN_SESSION: Final = "_CREDENTIAL_PROVIDER"
_SERVICE: Final = "roomcast"
# What the SDK calls a service without a name.
_UNNAMED: Final = "unknown_service"
_KINDS: Final[Mapping[str, trace.SpanKind]] = {
    PUBLISH: trace.SpanKind.SERVER,
    PUT_ITEM: trace.SpanKind.CLIENT,
    DELIVER: trace.SpanKind.CONSUMER,
    HOOK: trace.SpanKind.CLIENT,
}
_SAMPLED: Final = trace.TraceFlags(trace.TraceFlags.SAMPLED)

_log = structlog.get_logger(__name__)


class _OtelSpan:
    """A Span."""

    __slots__ = ("_span", "context")

    def __init__(self, span: trace.Span) -> None:
        own = span.get_span_context()
        self._span = span
        self.context = TraceContext(
            trace.format_trace_id(own.trace_id), trace.format_span_id(own.span_id)
        )

    def link(self, other: TraceContext) -> None:
        self._span.add_link(_span_context(other))

    def end(
        self,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        failure: str = "",
        at_ms: float | None = None,
    ) -> None:
        if not self._span.is_recording():
            return
        self._span.set_attributes(attributes)
        if failure:
            self._span.set_status(trace.StatusCode.ERROR, failure)
        self._span.end(_ns(at_ms))


class OtelTracer:
    """A Tracer. `random` gives fractions of 1, of which `sample_ratio` are traced."""

    is_on = True

    def __init__(
        self,
        tracer: trace.Tracer,
        *,
        sample_ratio: float,
        channel_names: bool,
        random: Callable[[], float],
    ) -> None:
        self._tracer = tracer
        self._sample_ratio = sample_ratio
        self._channel_names = channel_names
        self._random = random

    def root(
        self,
        name: str,
        channel: str,
        parent: TraceContext | None = None,
        *,
        start_ms: float | None = None,
    ) -> Span | None:
        if not is_sampled(parent, self._sample_ratio, self._random()):
            return None
        span = self._begun(name, channel, parent, start_ms)
        # With OTEL_SDK_DISABLED the SDK gives spans that are none.
        return _OtelSpan(span) if span.is_recording() else None

    def span(
        self, name: str, channel: str, parent: TraceContext, *, start_ms: float | None = None
    ) -> Span:
        return _OtelSpan(self._begun(name, channel, parent, start_ms))

    def _begun(
        self, name: str, channel: str, parent: TraceContext | None, start_ms: float | None
    ) -> trace.Span:
        # Never the context of this task: it may be of an application's own spans.
        context = Context()
        if parent is not None:
            context = trace.set_span_in_context(
                trace.NonRecordingSpan(_span_context(parent)), context
            )
        return self._tracer.start_span(
            name,
            context,
            kind=_KINDS.get(name, trace.SpanKind.INTERNAL),
            attributes={CHANNEL: channel} if channel and self._channel_names else None,
            start_time=_ns(start_ms),
        )


class _BoundedSession(requests.Session):
    """An HTTP session that takes ANSWER_BYTES_MAX of an answer, within the time of the request.

    The exporter's own would keep an answer without end in memory, for as long as it comes.
    """

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Raises RequestException."""
        until_s = time.monotonic() + (options.get("timeout") or FLUSH_S_MAX)
        response = super().send(request, **options | {"stream": True})
        body = bytearray()
        with response:
            for part in response.iter_content(ANSWER_BYTES_MAX):
                body += part
                if len(body) > ANSWER_BYTES_MAX or time.monotonic() > until_s:
                    raise requests.RequestException("an answer that has no end")
        response._content = bytes(body)  # noqa: SLF001  # it has no parameter for that
        return response


def _exporter() -> SpanExporter:
    has_own = any(name.endswith(_OWN_SESSION) for name in os.environ)
    return OTLPSpanExporter(session=None if has_own else _BoundedSession())


class OtelTracing:
    """A Tracing: the tracer of `node`, and the thread that exports its spans.

    `exporter`: None = the one over OTLP. Raises ValueError when a variable OTEL_… is not valid.
    """

    def __init__(
        self,
        *,
        node: str,
        sample_ratio: float,
        channel_names: bool,
        random: Callable[[], float],
        exporter: SpanExporter | None = None,
    ) -> None:
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=_resource(node), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter()))
        self.tracer = OtelTracer(
            self._provider.get_tracer(_SERVICE, __version__),
            sample_ratio=sample_ratio,
            channel_names=channel_names,
            random=random,
        )

    async def close(self) -> None:
        """Export what waits, for FLUSH_S_MAX at most, and drop the rest."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def shut_down() -> None:
            try:
                self._provider.shutdown()
            finally:
                try:
                    loop.call_soon_threadsafe(done.set)
                except RuntimeError:
                    # It took longer than that, and the loop is gone.
                    return

        # A thread of its own, which the end of the process does not wait for. The SDK may take as
        # long as its exporter tries again.
        threading.Thread(target=shut_down, name="spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S_MAX):
                await done.wait()
        except TimeoutError:
            _log.warning("spans_not_exported", seconds=FLUSH_S_MAX)


def _resource(node: str) -> Resource:
    """What the spans of this process have in common. OTEL_SERVICE_NAME and
    OTEL_RESOURCE_ATTRIBUTES add to it.
    """
    own = Resource.create({"service.instance.id": node, "service.version": __version__})
    if str(own.attributes.get(SERVICE_NAME, _UNNAMED)).startswith(_UNNAMED):
        own = own.merge(Resource({SERVICE_NAME: _SERVICE}))
    return own


def _span_context(of: TraceContext) -> trace.SpanContext:
    return trace.SpanContext(int(of.trace_id, 16), int(of.span_id, 16), True, _SAMPLED)


def _ns(at_ms: float | None) -> int | None:
    return None if at_ms is None else round(at_ms * 1_000_000)
