"""GET /connection/websocket: checks who knocks, then moves frames between a socket and its connection."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urlsplit

import structlog
from aiohttp import WSMsgType, web

from service.client.connection import Connection
from service.core.codes import Disconnect
from service.core.protobuf import PROTOBUF_FRAMES
from service.core.protocol import JSON_FRAMES, Reader
from service.core.rates import Turnstile
from service.core.tallies import Limit
from service.gateway.address import Addresses
from service.gateway.writer import CLOSE_WAIT_S, Writer, protobuf_frame, text_frame
from service.keys import NODE
from service.node import Node
from service.ports import Framer

__all__ = ["FRAME_COMMANDS_ROOM", "WebSocketGateway", "origin_allowed"]

# A frame may hold several commands of the size limit: SDKs send a connect and all their subscriptions in one.
FRAME_COMMANDS_ROOM: Final = 4

# As browsers write it. A path, a user or a second one would let "https://*.example.com" stand for other hosts.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,\\]*|null", re.IGNORECASE)
# Of one that is refused, in the log.
_ORIGIN_CHARS_MAX: Final = 200
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """What one client's frames hold. `frames`: the type of those that it may send."""

    subprotocol: str
    frames: WSMsgType
    reader: Reader
    framer: Framer


_JSON: Final = _Encoding("centrifuge-json", WSMsgType.TEXT, JSON_FRAMES, text_frame)
_PROTOBUF: Final = _Encoding("centrifuge-protobuf", WSMsgType.BINARY, PROTOBUF_FRAMES, protobuf_frame)
# For clients that cannot name a subprotocol: parameters of the URL, either of which may ask for Protobuf.
_ENCODING_PARAMETERS: Final = ("format", "cf_protocol")
_ENCODING_VALUE: Final = "protobuf"


def _encoding(subprotocol: str | None, request: web.Request) -> _Encoding:
    """What was agreed upon in the handshake; without a subprotocol the URL may say it."""
    if subprotocol is None:
        asked = any(request.query.get(name) == _ENCODING_VALUE for name in _ENCODING_PARAMETERS)
        return _PROTOBUF if asked else _JSON
    return _PROTOBUF if subprotocol == _PROTOBUF.subprotocol else _JSON


def origin_allowed(origin: str | None, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a browser page of `origin` may connect: of the server's own host, or of the list ("*" stands for any text).

    Who sends no Origin is no browser, and cannot be used by a page against its user. A server that is
    addressed on this machine takes pages that this machine serves: a front end in development.
    """
    if origin is None or "*" in allowed:
        return True
    if not _ORIGIN.fullmatch(origin):
        return False
    if any(fnmatchcase(origin.lower(), pattern.lower()) for pattern in allowed):
        return True
    if not host:
        return False
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
    """The handler. `message_size_limit`: bytes of one command; a frame may be FRAME_COMMANDS_ROOM times as large.

    `turnstile`: for how many may come from one address; None = for any number. `trusted_proxies`: networks of those who
    may say in whose name they come.
    """

    def __init__(
        self,
        *,
        allowed_origins: tuple[str, ...],
        message_size_limit: int,
        queue_bytes_max: int,
        turnstile: Turnstile | None = None,
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._turnstile = turnstile
        self._addresses = Addresses(trusted_proxies)
        self._allowed_origins = allowed_origins
        self._frame_bytes_max = message_size_limit * FRAME_COMMANDS_ROOM
        self._queue_bytes_max = queue_bytes_max

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One client from its handshake to its end."""
        # Two of them are none of a browser's, and fit no pattern.
        origin = ", ".join(given) if (given := request.headers.getall("Origin", ())) else None
        # Not `request.host`: without the header it asks the resolver for this machine's name, and all others wait.
        if not origin_allowed(origin, request.headers.get("Host", ""), self._allowed_origins):
            # No browser's is longer, nor has a path or a password that would be told here.
            told = origin[:_ORIGIN_CHARS_MAX] if origin and _ORIGIN.fullmatch(origin) else "malformed"
            _log.info("origin_refused", origin=told)
            request.app[NODE].services.tally.limited(Limit.ORIGIN)
            raise web.HTTPForbidden(
                text="This page's origin may not connect. Add it to client.allowed_origins.\n"
            )
        node = request.app[NODE]
        self._let_through(request, node)
        if not node.takes_clients():
            node.services.tally.limited(Limit.CONNECTIONS)
            # Not a close code: SDKs try again after this, and a load balancer may find another node for them.
            raise web.HTTPServiceUnavailable(text="This node takes no further connections.\n")
        response = web.WebSocketResponse(
            timeout=CLOSE_WAIT_S,
            autoclose=False,
            compress=False,
            # aiohttp refuses from the limit on.
            max_msg_size=self._frame_bytes_max + 1,
            protocols=(_JSON.subprotocol, _PROTOBUF.subprotocol),
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
        encoding = _encoding(response.ws_protocol, request)
        writer = Writer(response, transport, self._queue_bytes_max, encoding.framer)
        connection = node.open(writer)
        try:
            await self._pump(response, connection, encoding)
        finally:
            node.closed(connection)
            node.services.tally.closed(writer.closed_with or Disconnect.CONNECTION_CLOSED)
            if writer.closed_with is None:
                _log.info("client_gone", client=connection.session.client, code=response.close_code)
                await response.close()
            else:
                if writer.closed_with is Disconnect.SLOW:
                    _log.warning("client_slow", client=connection.session.client)
                await writer.closed()
        return response

    def _let_through(self, request: web.Request, node: Node) -> None:
        """Refuse who comes too often, before anything is spent on them. SDKs try again later, as after any other status."""
        if self._turnstile is None:
            return
        address = self._addresses.client(request.remote or "", request.headers.getall("X-Forwarded-For", ()))
        wait_s = self._turnstile.wait_s(address, node.services.clock.monotonic_s())
        if wait_s > 0:
            node.services.tally.limited(Limit.HANDSHAKE_RATE)
            raise web.HTTPTooManyRequests(
                text="Too many connections are opened from this address.\n",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )

    async def _pump(
        self, response: web.WebSocketResponse, connection: Connection, encoding: _Encoding
    ) -> None:
        """Hand frame after frame to the connection, one at a time: what it cannot take yet stays unread."""
        while True:
            message = await response.receive()
            if message.type is encoding.frames:
                await connection.receive(message.data, encoding.reader)
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                connection.close(Disconnect.BAD_REQUEST)
            else:
                # CLOSE, CLOSING, CLOSED or ERROR: nothing more will come.
                return
