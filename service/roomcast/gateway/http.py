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

__all__ = ["add_health_routes", "add_metrics_route"]

# Prometheus's text format.
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NOT_HERE: Final = "several processes share this port: scrape each at its own, the ones after it\n"


def add_health_routes(app: web.Application) -> None:
    """Adds both routes, for the load balancer and for people. Each answers with a JSON object."""
    app.router.add_get("/health/live", _live)
    app.router.add_get("/health/ready", _ready)


def add_metrics_route(
    app: web.Application, text: Callable[[], bytes], *, shared_port: int | None = None
) -> None:
    """Adds the route for monitoring from inside the network. The load balancer does not
    forward it.

    `text` takes some milliseconds. It is called once for all who ask in one turn of the event loop.

    `shared_port`: the port that several processes share. There the answer is 404: any of them may
    get the request, so counters would jump.
    """
    app.router.add_get("/metrics", _Metrics(text, shared_port).answer)


class _Metrics:
    def __init__(self, text: Callable[[], bytes], shared_port: int | None) -> None:
        self._text = text
        self._shared_port = shared_port
        # The call that has not begun: who asks now gets its result.
        self._next: SharedCall[bytes] | None = None

    async def answer(self, request: web.Request) -> web.Response:
        if self._shared_port is not None and _port_of(request) == self._shared_port:
            return web.Response(text=_NOT_HERE, status=404, headers={"Cache-Control": "no-store"})
        if self._next is None:
            self._next = SharedCall(self._made(), name="metrics")
        headers = {"Content-Type": _METRICS_TYPE, "Cache-Control": "no-store"}
        return web.Response(body=await self._next.result(), headers=headers)

    async def _made(self) -> bytes:
        self._next = None
        return self._text()


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
