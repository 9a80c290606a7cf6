"""The tracer over OpenTelemetry's own SDK, with an exporter in memory."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import pytest

from roomcast.observe import spans
from roomcast.wire.trace_context import TraceContext
from tests.requirements import find_opentelemetry, obtain

obtain("otel", find_opentelemetry, module=True)

from opentelemetry.sdk.trace import ReadableSpan  # noqa: E402  # it is an extra
from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)

from roomcast.observe import otel as module  # noqa: E402
from roomcast.observe.otel import ANSWER_BYTES_MAX, OtelTracing  # noqa: E402

PARENT: Final = TraceContext("a" * 32, "b" * 16)


def tracing(
    exporter: Any, *, ratio: float = 1.0, chance: float = 0.5, channels: bool = False
) -> OtelTracing:
    return OtelTracing(
        node="node-1",
        sample_ratio=ratio,
        channel_names=channels,
        random=lambda: chance,
        exporter=exporter,
    )


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_spans_are_exported_with_what_was_said_of_them(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    traced = tracing(exporter)
    root = traced.tracer.root(spans.PUBLISH, "secret:room", PARENT, start_ms=1_700_000_000_000)
    assert root is not None
    below = traced.tracer.span(spans.APPEND, "secret:room", root.context, start_ms=1.5)
    below.end({spans.ATTEMPTS: 2}, at_ms=2.75)
    below.end({spans.ATTEMPTS: 3})
    root.link(TraceContext("c" * 32, "d" * 16))
    root.end({spans.OUTCOME: "unknown"}, failure="unknown")
    await traced.close()
    publish, append = by_name(exporter)["publish"], by_name(exporter)["append"]
    assert publish.parent is not None
    assert f"{publish.parent.span_id:016x}" == PARENT.span_id
    own = publish.get_span_context()
    assert own is not None
    assert f"{own.trace_id:032x}" == PARENT.trace_id
    assert root.context.span_id == f"{own.span_id:016x}"
    assert publish.start_time == 1_700_000_000_000_000_000
    assert publish.attributes == {"roomcast.outcome": "unknown"}, "no channel's name"
    assert publish.status.description == "unknown"
    assert [f"{link.context.trace_id:032x}" for link in publish.links] == ["c" * 32]
    assert append.parent is not None
    assert append.parent.span_id == own.span_id
    assert (append.start_time, append.end_time) == (1_500_000, 2_750_000)
    assert append.attributes == {"roomcast.attempts": 2}, "only the first end counts"
    assert not caplog.records, "and the SDK has nothing to warn of"
    about = publish.resource.attributes
    assert (about["service.name"], about["service.instance.id"]) == ("roomcast", "node-1")


async def test_channels_have_names_if_they_may(exporter: InMemorySpanExporter) -> None:
    traced = tracing(exporter, channels=True)
    span = traced.tracer.root(spans.PUBLISH, "room")
    assert span is not None
    span.end()
    await traced.close()
    assert by_name(exporter)["publish"].attributes == {"roomcast.channel": "room"}


def test_chance_decides_unless_a_caller_did(exporter: InMemorySpanExporter) -> None:
    rarely = tracing(exporter, ratio=0.1, chance=0.1).tracer
    assert rarely.root(spans.PUBLISH, "room") is None
    assert rarely.root(spans.PUBLISH, "room", PARENT) is not None
    always = tracing(exporter, ratio=1.0, chance=0.999).tracer
    assert always.root(spans.PUBLISH, "room") is not None
    unsampled = TraceContext("a" * 32, "b" * 16, sampled=False)
    assert always.root(spans.PUBLISH, "room", unsampled) is None


def test_an_sdk_that_is_disabled_records_nothing(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing(exporter).tracer.root(spans.PUBLISH, "room") is None


async def test_a_service_may_have_another_name(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    traced = tracing(exporter)
    span = traced.tracer.root(spans.PUBLISH, "room")
    assert span is not None
    span.end()
    await traced.close()
    assert by_name(exporter)["publish"].resource.attributes["service.name"] == "chat"


class Stuck:
    """A collector that takes nothing and does not answer."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def export(self, _spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.released.wait(30)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


async def test_a_collector_that_does_not_answer_holds_up_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FLUSH_S_MAX", 0.05)
    stuck = Stuck()
    traced: Any = tracing(stuck)
    try:
        span = traced.tracer.root(spans.PUBLISH, "room")
        span.end()
        await traced.close()
        assert not stuck.released.is_set()
    finally:
        stuck.released.set()


async def test_an_answer_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, most = 0, 64 * 1024 * 1024
    over = threading.Event()

    def answer(listening: socket.socket) -> None:
        nonlocal sent
        connected, _ = listening.accept()
        with connected, suppress(OSError):
            connected.recv(64 * 1024)
            connected.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            while sent < most:
                connected.sendall(b"x" * 64 * 1024)
                sent += 64 * 1024
        over.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{port}/")
        answering = threading.Thread(target=answer, args=(listening,))
        answering.start()
        traced = tracing(None)
        span = traced.tracer.root(spans.PUBLISH, "room")
        assert span is not None
        span.end()
        await traced.close()
        assert await asyncio.to_thread(over.wait, 30)
        answering.join()
    assert ANSWER_BYTES_MAX < sent < most // 2, "but for what the kernel took"
