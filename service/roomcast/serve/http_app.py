"""Builds the HTTP applications of a node: what clients use, and what is internal.

Clients have WebSocket, streams and, in development, the demo page. Internal are health, metrics,
the server API and, where it is configured, the operations page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from roomcast.admin.reaping import DryRun
from roomcast.admin.routes import add_admin_routes
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

__all__ = ["HANDSHAKE_BURST_S", "Apps", "build_apps"]

# The burst of new connections from one address, in seconds of their rate. After an outage, a whole
# office comes back at once.
HANDSHAKE_BURST_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Apps:
    """The applications by port. Without a port of its own, `internal` is the one of `clients`."""

    clients: web.Application
    internal: web.Application


def build_apps(
    config: Config,
    node: Node,
    *,
    metrics: Callable[[], bytes],
    openmetrics: Callable[[], bytes] | None = None,
    demo_urls: Sequence[str] | None,
    shared_port: int | None = None,
    dry_run: DryRun | None = None,
) -> Apps:
    """The applications that serve `node`. `metrics`: returns the text for Prometheus;
    `openmetrics`: the same with exemplars.

    `demo_urls`: base URLs of all instances of a development set-up; None = production, without the
    demo page.

    `shared_port`: the port at which any of several processes answers what is internal; None = this
    process alone does.

    `dry_run`: the reaper's, for the operations page; None = the page has none.
    """
    give_way = GiveWay()
    clients = internal = _app(node, give_way)
    if config.server.internal_port:
        internal = _app(node, give_way)
    _add_client_routes(clients, node, config)
    if demo_urls is not None:
        from roomcast.dev.demo import add_demo_routes

        add_demo_routes(
            clients, node=node.id, peers=demo_urls, client=config.client, channels=config.channel
        )
    add_health_routes(internal)
    add_metrics_route(internal, metrics, openmetrics=openmetrics, shared_port=shared_port)
    Api(
        key=config.http_api.key,
        insecure=config.client.insecure,
        message_size_limit=config.client.message_size_limit,
    ).add_routes(internal)
    if config.admin.password_hash:
        add_admin_routes(internal, node, config, dry_run=dry_run)
    return Apps(clients, internal)


def _app(node: Node, give_way: GiveWay) -> web.Application:
    """One without routes. `give_way`: of both, because they share the event loop."""
    app = web.Application()
    app[NODE], app[HEALTH] = node, node.health
    app.on_response_prepare.extend([give_way, name_no_version, end_proxied])
    return app


def _add_client_routes(app: web.Application, node: Node, config: Config) -> None:
    client, websocket = config.client, config.websocket
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
    app.router.add_get("/connection/websocket", gateway.handle)
    app.router.add_get("/connection/uni_websocket", gateway.handle_unidirectional)
    StreamGateway(
        admission,
        message_size_limit=client.message_size_limit,
        queue_bytes_max=client.queue_max_size,
        make_writer=make_writer,
    ).add_routes(app)
