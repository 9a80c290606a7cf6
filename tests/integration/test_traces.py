"""The trace of one publication over two real nodes, read back from a collector in memory."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.integration.serving import STOP_S, deployed, environment, pump, serving
from tests.requirements import find_opentelemetry, obtain
from tests.websocket import WebSocket

obtain("otel", find_opentelemetry, module=True)

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402  # an extra
    ExportTraceServiceRequest,
)

CHANNEL: Final = "room-of-ann"
PAYLOAD: Final = "what nobody else may read"
KEY: Final = "a key of this test"
TRACE_ID: Final = "0af7651916cd43dd8448eb211c80319c"
CALLER: Final = "b7ad6b7169203331"
CONFIG: Final = f"""
[client]
insecure = true
[http_api]
key = "{KEY}"
[channel.without_namespace]
history_size = 10
history_ttl = "60s"
[node]
drain_s = 0
[tracing]
enabled = true
# Only callers decide here.
sample_ratio = 0.0
"""

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Span:
    name: str
    trace_id: str
    id: str
    parent: str
    node: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]


class Collector:
    """Takes OTLP over HTTP, and keeps what it got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._changed = threading.Condition()

    def take(self, body: bytes) -> None:
        with self._changed:
            self.bodies.append(body)
            self._changed.notify_all()

    def until(self, *names: str) -> list[Span]:
        """The spans, as soon as there is one of each name."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: set(names) <= {span.name for span in self.spans()}, STOP_S
            ), [span.name for span in self.spans()]
            return self.spans()

    def spans(self) -> list[Span]:
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {each.key: each.value.string_value for each in resource.resource.attributes}
                assert about["service.name"] == "roomcast"
                found += [
                    Span(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        about["service.instance.id"],
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        {
                            each.key: each.value.string_value or each.value.int_value
                            for each in span.attributes
                        },
                    )
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
        return found


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector and its address."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_request(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


async def publish(session: aiohttp.ClientSession, url: str, data: str, **headers: str) -> None:
    answer = await session.post(
        f"{url}/api/publish",
        json={"channel": CHANNEL, "data": data},
        headers={"X-API-Key": KEY, **headers},
    )
    assert (await answer.json())["result"]["offset"] >= 1


async def test_one_trace_from_the_caller_to_the_push_on_another_node(tmp_path: Path) -> None:
    with deployed(tmp_path, "traces-") as aws, collecting() as (collector, endpoint), pump(aws):
        config = aws.config("traces", CONFIG)
        environ = environment() | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with serving(config, environ) as writing, serving(config, environ) as reading:
            await asyncio.gather(*(asyncio.to_thread(each.ready) for each in (writing, reading)))
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{reading.url}/connection/websocket") as response,
            ):
                bob = WebSocket(response)
                await bob.ask("connect")
                await bob.ask("subscribe", channel=CHANNEL)
                await publish(session, writing.url, "not traced")
                traceparent = f"00-{TRACE_ID}-{CALLER}-01"
                await publish(session, writing.url, PAYLOAD, traceparent=traceparent)
                assert await bob.published(CHANNEL, 2) == ["not traced", PAYLOAD]
                await asyncio.to_thread(collector.until, "publish", "append", "way")
                accept = {"Accept": "application/openmetrics-text"}
                answer = await session.get(f"{writing.url}/metrics", headers=accept)
                assert f'trace_id="{TRACE_ID}"' in await answer.text()
            for process in (writing, reading):
                process.signal(signal.SIGTERM)
            # What had not been exported is, before they end.
            assert [process.ended() for process in (writing, reading)] == [0, 0]
            nodes = {writing.node: "a", reading.node: "b"}
    spans = collector.spans()
    assert {span.trace_id for span in spans} == {TRACE_ID}
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans), "each was exported once"

    def path(span: Span) -> str:
        above = by_id.get(span.parent)
        if above is None:
            assert span.parent == CALLER, "one trace, which is connected"
        return f"{'' if above is None else path(above)}/{nodes[span.node]}:{span.name}"

    append, way = "/a:publish/a:append", "/a:publish/a:append/b:way"
    assert sorted(map(path, spans)) == sorted(
        [
            "/a:publish",
            append,
            f"{append}/a:put_item",
            way,
            *(f"{way}/b:{name}" for name in ("stream", "lambda", "queue", "deliver")),
        ]
    )
    stages = {span.name: span for span in spans}
    for before, after in (("stream", "lambda"), ("lambda", "queue"), ("queue", "deliver")):
        assert stages[before].end_ns == stages[after].start_ns
    assert all(0 < span.start_ns <= span.end_ns for span in spans)
    assert stages["deliver"].attributes == {"roomcast.by": "stream", "roomcast.subscribers": 1}
    for body in collector.bodies:
        assert not any(each.encode() in body for each in (PAYLOAD, CHANNEL, KEY))
