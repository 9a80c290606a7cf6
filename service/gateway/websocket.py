"""GET /connection/websocket: checks who knocks, then moves frames between a socket and its connection."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urlsplit

import structlog
from aiohttp import WSMsgType, web

from service.connection import Connection
from service.core.codes import Disconnect
from service.gateway.writer import CLOSE_WAIT_S, Writer
from service.keys import NODE

__all__ = ["FRAME_COMMANDS_ROOM", "WebSocketGateway", "origin_allowed"]

# A frame may hold several commands of the size limit: SDKs send a connect and all their subscriptions in one.
FRAME_COMMANDS_ROOM: Final = 4

_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_log = structlog.get_logger(__name__)


def origin_allowed(origin: str | None, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a browser page of `origin` may connect: of the server's own host, or of the list ("*" stands for any text).

    Who sends no Origin is no browser, and cannot be used by a page against its user. A server that is
    addressed on this machine takes pages that this machine serves: a front end in development.
    """
    if origin is None or any(fnmatchcase(origin.lower(), pattern.lower()) for pattern in allowed):
        return True
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        if page.scheme not in ("http", "https"):
            return False
        return page.netloc.lower() == host.lower() or (
            page.hostname in _LOOPBACK_HOSTS and server.hostname in _LOOPBACK_HOSTS
        )
    except ValueError:
        return False


class WebSocketGateway:
    """The handler. `message_size_limit`: bytes of one command; a frame may be FRAME_COMMANDS_ROOM times as large."""

    def __init__(
        self, *, allowed_origins: tuple[str, ...], message_size_limit: int, queue_bytes_max: int
    ) -> None:
        self._allowed_origins = allowed_origins
        self._frame_bytes_max = message_size_limit * FRAME_COMMANDS_ROOM
        self._queue_bytes_max = queue_bytes_max

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One client from its handshake to its end."""
        origin = request.headers.get("Origin")
        if not origin_allowed(origin, request.host, self._allowed_origins):
            _log.info("origin_refused", origin=origin[:200] if origin else "")
            raise web.HTTPForbidden(
                text="This page's origin may not connect. Add it to client.allowed_origins.\n"
            )
        node = request.app[NODE]
        if not node.takes_clients():
            # Not a close code: SDKs try again after this, and a load balancer may find another node for them.
            raise web.HTTPServiceUnavailable(text="This node takes no further connections.\n")
        response = web.WebSocketResponse(
            timeout=CLOSE_WAIT_S,
            autoclose=False,
            compress=False,
            # aiohttp refuses from the limit on.
            max_msg_size=self._frame_bytes_max + 1,
            protocols=("centrifuge-json",),
        )
        if not response.can_prepare(request).ok:
            raise web.HTTPUpgradeRequired(
                text="This is a WebSocket endpoint for Centrifuge clients.\n",
                headers={"Upgrade": "websocket", "Connection": "Upgrade"},
            )
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            return response
        writer = Writer(response, transport, self._queue_bytes_max)
        connection = node.open(writer)
        try:
            await self._pump(response, connection)
        finally:
            node.closed(connection)
            if writer.closed_with is None:
                _log.info("client_gone", client=connection.session.client, code=response.close_code)
                await response.close()
            else:
                if writer.closed_with is Disconnect.SLOW:
                    _log.warning("client_slow", client=connection.session.client)
                await writer.closed()
        return response

    async def _pump(self, response: web.WebSocketResponse, connection: Connection) -> None:
        """Hand frame after frame to the connection, one at a time: what it cannot take yet stays unread."""
        while True:
            message = await response.receive()
            if message.type is WSMsgType.TEXT:
                await connection.receive(message.data)
            elif message.type is WSMsgType.BINARY:
                connection.close(Disconnect.BAD_REQUEST)
            else:
                # CLOSE, CLOSING, CLOSED or ERROR: nothing more will come.
                return
