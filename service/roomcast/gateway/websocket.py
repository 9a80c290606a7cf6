"""Serves GET /connection/websocket: checks the handshake, then passes frames to the connection."""

from __future__ import annotations

import asyncio
import math
import re
from asyncio import sleep
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urlsplit

import structlog
from aiohttp import WSMessage, WSMsgType, web

from roomcast.client.connection import Connection
from roomcast.delivery.ports import Framer
from roomcast.gateway.address import Addresses
from roomcast.gateway.keys import NODE
from roomcast.gateway.writer import CLOSE_WAIT_S, Writer, pong_frame, protobuf_frame, text_frame
from roomcast.node.node import Node
from roomcast.observe.counters import Limit
from roomcast.rates import Bucket, Rate, Seldom, Turnstile
from roomcast.wire.codes import Disconnect
from roomcast.wire.commands import JSON_FRAMES, Reader
from roomcast.wire.protobuf import PROTOBUF_FRAMES

__all__ = [
    "CONTROL_FRAMES_BURST",
    "CONTROL_FRAMES_PER_S",
    "CONTROL_RATE",
    "FRAME_COMMANDS_ROOM",
    "WebSocketGateway",
    "origin_allowed",
]

# A frame may hold this many commands of the greatest size: SDKs send a connect and all their
# subscriptions in one frame.
FRAME_COMMANDS_ROOM: Final = 4

# Pings and pongs of one connection. A client that sends one every few seconds never waits. Beyond
# this rate its frames stay unread for a while.
CONTROL_FRAMES_PER_S: Final = 20.0
CONTROL_FRAMES_BURST: Final = 40.0
CONTROL_RATE: Final = Rate(CONTROL_FRAMES_PER_S, CONTROL_FRAMES_BURST)

# Frames that a client may have sent before it saw this side's close. Beyond that nothing is read.
_DROPPED_MAX: Final = 2048
_DROPPED_A_TURN: Final = 64
_FRAMES: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG})

# An origin as browsers write it. A path, a user or a second origin in it could make
# "https://*.example.com" match other hosts.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,\\]*|null", re.IGNORECASE)
# Characters of a refused origin in the log.
_ORIGIN_CHARS_MAX: Final = 200
# Log lines a second about refused origins: a page retries again and again, and any client can
# pretend to be a page.
_TOLD: Final = Rate(per_s=1.0, burst=1.0)
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """The encoding of one client's frames. `frames`: the frame types that it may send."""

    subprotocol: str
    frames: WSMsgType
    reader: Reader
    framer: Framer


_JSON: Final = _Encoding("centrifuge-json", WSMsgType.TEXT, JSON_FRAMES, text_frame)
_PROTOBUF: Final = _Encoding(
    "centrifuge-protobuf", WSMsgType.BINARY, PROTOBUF_FRAMES, protobuf_frame
)
# For clients that cannot name a subprotocol: either of these URL parameters may ask for Protobuf.
_ENCODING_PARAMETERS: Final = ("format", "cf_protocol")
_ENCODING_VALUE: Final = "protobuf"


def _encoding(subprotocol: str | None, request: web.Request) -> _Encoding:
    """The encoding that the handshake agreed on. Without a subprotocol the URL may name it."""
    if subprotocol is None:
        asked = any(request.query.get(name) == _ENCODING_VALUE for name in _ENCODING_PARAMETERS)
        return _PROTOBUF if asked else _JSON
    return _PROTOBUF if subprotocol == _PROTOBUF.subprotocol else _JSON


def origin_allowed(origin: str | None, host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a browser page of `origin` may connect.

    Allowed are the server's own host and the patterns of `allowed`, in which "*" stands for any
    text. A client without an Origin is no browser, so no page can use it against its user. A server
    that is addressed on this machine also accepts pages that this machine serves: a front end in
    development.
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
    """The handler of WebSocket requests.

    `message_size_limit`: bytes of one command. A frame may be FRAME_COMMANDS_ROOM times as large.

    `turnstile`: limits new connections from one address. None = no limit. `trusted_proxies`:
    networks of the proxies whose X-Forwarded-For is believed.
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
        self._refused = Seldom(_TOLD)
        # Handshakes that are being answered: each is about to be a connection of its node.
        self._answering = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serves one client from its handshake to its end."""
        # No browser sends two Origins. Joined, they match no pattern.
        origin = ", ".join(given) if (given := request.headers.getall("Origin", ())) else None
        # Not `request.host`: without the header it resolves this machine's name, which blocks the
        # event loop.
        if not origin_allowed(origin, request.headers.get("Host", ""), self._allowed_origins):
            self._tell_refused(origin, request.app[NODE])
            raise web.HTTPForbidden(
                text="This page's origin may not connect. Add it to client.allowed_origins.\n"
            )
        node = request.app[NODE]
        self._let_through(request, node)
        if not node.takes_clients(self._answering):
            node.services.counters.limited(Limit.CONNECTIONS)
            # Not a close code: SDKs retry after this status, and a load balancer may send them to
            # another node.
            raise web.HTTPServiceUnavailable(text="This node takes no further connections.\n")
        response = web.WebSocketResponse(
            timeout=CLOSE_WAIT_S,
            autoclose=False,
            # aiohttp answers pings as fast as they come, and no other task runs meanwhile.
            autoping=False,
            compress=False,
            # aiohttp refuses a message of exactly this size already.
            max_msg_size=self._frame_bytes_max + 1,
            protocols=(_JSON.subprotocol, _PROTOBUF.subprotocol),
        )
        if not response.can_prepare(request).ok:
            raise web.HTTPUpgradeRequired(
                text="This is a WebSocket endpoint for Centrifuge clients.\n",
                headers={"Upgrade": "websocket", "Connection": "Upgrade"},
            )
        self._answering += 1
        try:
            await response.prepare(request)
        finally:
            self._answering -= 1
        # Without another turn from here to `node.open`: it would be counted in neither place.
        transport = request.transport
        if transport is None:
            return response
        encoding = _encoding(response.ws_protocol, request)
        writer = Writer(transport, self._queue_bytes_max, encoding.framer)
        connection = node.open(writer)
        try:
            await _pump(response, connection, encoding, writer, _Control(writer, node))
        finally:
            node.closed(connection)
            node.services.counters.closed(writer.closed_with or Disconnect.CONNECTION_CLOSED)
            if writer.closed_with is None:
                _log.info("client_gone", client=connection.session.client, code=response.close_code)
                await _answer_close(response, transport)
            else:
                if writer.closed_with is Disconnect.SLOW:
                    _log.warning("client_slow", client=connection.session.client)
                writer.end()
        return response

    def _tell_refused(self, origin: str | None, node: Node) -> None:
        node.services.counters.limited(Limit.ORIGIN)
        passed_over = self._refused.again(node.services.clock.monotonic_s())
        if passed_over is not None:
            # No browser's Origin is longer, or holds a path or a password that must stay out of the
            # log.
            told = (
                origin[:_ORIGIN_CHARS_MAX] if origin and _ORIGIN.fullmatch(origin) else "malformed"
            )
            _log.info("origin_refused", origin=told, passed_over=passed_over)

    def _let_through(self, request: web.Request, node: Node) -> None:
        """Refuses addresses that connect too often, before any work is spent on them.

        SDKs retry later, as after any other status.
        """
        if self._turnstile is None:
            return
        names = self._addresses.client(
            request.remote or "", request.headers.getall("X-Forwarded-For", ())
        )
        wait_s = self._turnstile.wait_s(names, node.services.clock.monotonic_s())
        if wait_s > 0:
            node.services.counters.limited(Limit.HANDSHAKE_RATE)
            raise web.HTTPTooManyRequests(
                text="Too many connections are opened from this address.\n",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )


class _Control:
    """Limits one client's pings and pongs to CONTROL_RATE. No command holds them, so no other limit
    counts them.
    """

    def __init__(self, writer: Writer, node: Node) -> None:
        self._writer = writer
        self._clock = node.services.clock
        self._counters = node.services.counters
        self._bucket = Bucket(CONTROL_RATE, self._clock.monotonic_s())

    async def take(self, message: WSMessage) -> None:
        """Answers a ping once the rate allows it.

        Nothing is read meanwhile, so a client that sends many has to wait as well.
        """
        if self._writer.is_gone:
            # A client that is gone needs no answers to its remaining pings.
            return
        wait_s = self._bucket.owe(CONTROL_RATE, self._clock.monotonic_s())
        if wait_s > 0:
            self._counters.limited(Limit.CONTROL_RATE)
            await sleep(wait_s)
        if message.type is WSMsgType.PING:
            self._writer.send(pong_frame(bytes(message.data)))


async def _pump(
    response: web.WebSocketResponse,
    connection: Connection,
    encoding: _Encoding,
    writer: Writer,
    control: _Control,
) -> None:
    """Hands frame after frame to the connection, one at a time. A frame that it cannot take yet
    stays unread.

    Returns when no more frames can come. After a close from this side, frames are dropped until the
    client answers it.
    """
    dropped = 0
    while True:
        message = await response.receive()
        if message.type not in _FRAMES:
            # CLOSE, CLOSING, CLOSED or ERROR.
            return
        if writer.closed_with is not None:
            if writer.is_gone:
                return
            dropped += 1
            if dropped % _DROPPED_A_TURN == 0:
                await sleep(0 if dropped < _DROPPED_MAX else CLOSE_WAIT_S)
        elif writer.is_gone:
            # A client that is gone: its remaining frames may be many publications, and each would
            # wait for its rate.
            return
        elif message.type is encoding.frames:
            await connection.receive(message.data, encoding.reader)
        elif message.type in (WSMsgType.PING, WSMsgType.PONG):
            await control.take(message)
        else:
            connection.close(Disconnect.BAD_REQUEST)


async def _answer_close(response: web.WebSocketResponse, transport: asyncio.Transport) -> None:
    """Answers a peer that closed, or broke the protocol.

    The peer may read neither this answer nor the frames before it.
    """
    asyncio.get_running_loop().call_later(CLOSE_WAIT_S, transport.abort)
    await response.close()
