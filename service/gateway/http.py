"""GET /health/live and /health/ready: whether this process runs, and whether it should get clients."""

from __future__ import annotations

import orjson
from aiohttp import web

from service.keys import HEALTH, NODE

__all__ = ["add_health_routes"]


def add_health_routes(app: web.Application) -> None:
    """For the load balancer and for people; both answer with a JSON object."""
    app.router.add_get("/health/live", _live)
    app.router.add_get("/health/ready", _ready)


async def _live(request: web.Request) -> web.Response:
    return _json({"status": "ok", "node": request.app[NODE].id}, 200)


async def _ready(request: web.Request) -> web.Response:
    """Ready speaks of this node alone: it can hear its queue and is not about to end."""
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
