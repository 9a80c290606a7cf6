"""Builds the HTTP application of a node.

It has WebSocket, health, metrics, the server API, and the demo page in development.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web

from roomcast.config import Config
from roomcast.gateway.admission import Admission
from roomcast.gateway.api.server import Api
from roomcast.gateway.backlog import Backlog
from roomcast.gateway.deflate import Compression
from roomcast.gateway.delayed import writer_maker
from roomcast.gateway.door import GiveWay, end_proxied, name_no_version
from roomcast.gateway.http import add_health_routes, add_metrics_route
from roomcast.gateway.keys import HEALTH, NODE
from roomcast.gateway.streams import StreamGateway
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.node.assembly import rate
from roomcast.node.node import Node
from roomcast.rates import Turnstile

__all__ = ["HANDSHAKE_BURST_S", "build_app"]

# The burst of new connections from one address, in seconds of their rate. After an outage, a whole
# office comes back at once.
HANDSHAKE_BURST_S: Final = 10.0


def build_app(
    config: Config,
    node: Node,
    *,
    metrics: Callable[[], bytes],
    demo_urls: Sequence[str] | None,
    shared_port: int | None = None,
) -> web.Application:
    """The application that serves `node`. `metrics`: returns the text for Prometheus.

    `demo_urls`: base URLs of all instances of a development set-up; None = production, without the
    demo page.

    `shared_port`: the port that several processes share; None = this one has its port for itself.
    """
    client, websocket = config.client, config.websocket
    app = web.Application()
    app[NODE], app[HEALTH] = node, node.health
    handshakes = rate(client.handshake_rate_limit, HANDSHAKE_BURST_S)
    admission = Admission(
        allowed_origins=client.allowed_origins,
        turnstile=Turnstile(handshakes) if handshakes else None,
        trusted_proxies=client.trusted_proxies,
    )
    backlog = Backlog(client.queue_total_max_size, node.services.counters)
    make_writer = writer_maker(client.write_delay_ms / 1000, backlog)
    gateway = WebSocketGateway(
        admission,
        message_size_limit=client.message_size_limit,
        queue_bytes_max=client.queue_max_size,
        make_writer=make_writer,
        compression=Compression(websocket.compression_min_size, websocket.compression_level)
        if websocket.compression
        else None,
    )
    app.on_response_prepare.extend([GiveWay(), name_no_version, end_proxied])
    app.router.add_get("/connection/websocket", gateway.handle)
    app.router.add_get("/connection/uni_websocket", gateway.handle_unidirectional)
    StreamGateway(
        admission,
        message_size_limit=client.message_size_limit,
        queue_bytes_max=client.queue_max_size,
        make_writer=make_writer,
    ).add_routes(app)
    add_health_routes(app)
    add_metrics_route(app, metrics, shared_port=shared_port)
    Api(
        key=config.http_api.key,
        insecure=client.insecure,
        message_size_limit=client.message_size_limit,
    ).add_routes(app)
    if demo_urls is not None:
        from roomcast.dev.demo import add_demo_routes

        add_demo_routes(app, node=node.id, peers=demo_urls, client=client, channels=config.channel)
    return app
