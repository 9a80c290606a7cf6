"""Serves the health checks (GET /health/live and /health/ready) and the metrics (GET /metrics).

Live: this process runs. Ready: it should get clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import orjson
from aiohttp import web

from roomcast.concurrency import SharedCall
from roomcast.gateway.keys import HEALTH, NODE

__all__ = ["add_health_routes", "add_metrics_route", "wants_openmetrics"]

# Prometheus's text format, and the one that has exemplars.
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS: Final = "application/openmetrics-text"
_OPENMETRICS_TYPE: Final = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"
# Characters of an Accept that is looked at. Prometheus sends some 400; 64 KiB of commas took 35 ms.
_ACCEPT_CHARS_MAX: Final = 2048
# Those that what we write is right for.
_OPENMETRICS_VERSIONS: Final = frozenset({"1.0.0", "0.0.1"})
_NOT_HERE: Final = "several processes share this port: scrape each at its own, the ones after it\n"


def add_health_routes(app: web.Application) -> None:
    """Adds both routes, for the load balancer and for people. Each answers with a JSON object."""
    app.router.add_get("/health/live", _live)
    app.router.add_get("/health/ready", _ready)


def add_metrics_route(
    app: web.Application,
    text: Callable[[], bytes],
    *,
    openmetrics: Callable[[], bytes] | None = None,
    shared_port: int | None = None,
) -> None:
    """Adds the route for monitoring from inside the network. The load balancer does not
    forward it.

    `text` takes some milliseconds. It is called once for all who ask in one turn of the event loop.
    So is `openmetrics`, for those who would rather have that format; None = nobody gets it.

    `shared_port`: the port that several processes share. There the answer is 404: any of them may
    get the request, so counters would jump.
    """
    app.router.add_get("/metrics", _Metrics(text, openmetrics, shared_port).answer)


class _Form:
    """One form of the metrics: `content_type`, and what makes it."""

    def __init__(self, make: Callable[[], bytes], content_type: str) -> None:
        self._make = make
        self.content_type = content_type
        # The call that has not begun: who asks now gets its result.
        self._next: SharedCall[bytes] | None = None

    async def now(self) -> bytes:
        if self._next is None:
            self._next = SharedCall(self._made(), name="metrics")
        return await self._next.result()

    async def _made(self) -> bytes:
        self._next = None
        return self._make()


class _Metrics:
    def __init__(
        self,
        text: Callable[[], bytes],
        openmetrics: Callable[[], bytes] | None,
        shared_port: int | None,
    ) -> None:
        self._text = _Form(text, _METRICS_TYPE)
        self._openmetrics = _Form(openmetrics, _OPENMETRICS_TYPE) if openmetrics else self._text
        self._shared_port = shared_port

    async def answer(self, request: web.Request) -> web.Response:
        if self._shared_port is not None and _port_of(request) == self._shared_port:
            return web.Response(text=_NOT_HERE, status=404, headers={"Cache-Control": "no-store"})
        accept = ",".join(request.headers.getall("Accept", ()))
        form = self._openmetrics if wants_openmetrics(accept) else self._text
        headers = {"Content-Type": form.content_type, "Cache-Control": "no-store"}
        return web.Response(body=await form.now(), headers=headers)


def wants_openmetrics(accept: str) -> bool:
    """Whether a request with this Accept header (RFC 9110 §12.5.1) names OpenMetrics, in a version
    that there is, and likes plain text no better.
    """
    if len(accept) > _ACCEPT_CHARS_MAX:
        return False
    likes = {_OPENMETRICS: 0.0, "text/plain": 0.0}
    for part in accept.lower().split(","):
        name, *parameters = (each.strip() for each in part.split(";"))
        fields = dict(each.partition("=")[::2] for each in parameters)
        if name in likes and (
            name != _OPENMETRICS or fields.get("version", "1.0.0") in _OPENMETRICS_VERSIONS
        ):
            likes[name] = max(likes[name], _weight(fields.get("q", "1")))
    return 0 < likes[_OPENMETRICS] >= likes["text/plain"]


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def _port_of(request: web.Request) -> int | None:
    """The port of this machine at which `request` came in."""
    address = request.get_extra_info("sockname")
    return address[1] if isinstance(address, tuple) else None


async def _live(request: web.Request) -> web.Response:
    return _json({"status": "ok", "node": request.app[NODE].id}, 200)


async def _ready(request: web.Request) -> web.Response:
    """Reports on this node alone: it receives from its queue and is not about to stop."""
    node = request.app[NODE]
    health = request.app[HEALTH]
    reasons, doubts = health.reasons(), health.doubts()
    latency = health.canary.latency if health.canary is not None else None
    body = {
        "status": "unready" if reasons else "degraded" if doubts else "ok",
        "node": node.id,
        "connections": len(node),
        "reasons": reasons + doubts,
        "pipeline_ms": None if latency is None else latency.to_lambda_ms + latency.to_node_ms,
    }
    return _json(body, 503 if reasons else 200)


def _json(body: object, status: int) -> web.Response:
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
