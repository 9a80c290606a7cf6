"""GET /connection/websocket: checks who knocks, then moves frames between a socket and its connection."""

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
from roomcast.wire.json import JSON_FRAMES, Reader
from roomcast.wire.protobuf import PROTOBUF_FRAMES

__all__ = [
    "CONTROL_FRAMES_BURST",
    "CONTROL_FRAMES_PER_S",
    "CONTROL_RATE",
    "FRAME_COMMANDS_ROOM",
    "WebSocketGateway",
    "origin_allowed",
]

# A frame may hold several commands of the size limit: SDKs send a connect and all their subscriptions in one.
FRAME_COMMANDS_ROOM: Final = 4

# Pings and pongs of one connection. Who sends one in some seconds never waits; beyond it nothing is read for a while.
CONTROL_FRAMES_PER_S: Final = 20.0
CONTROL_FRAMES_BURST: Final = 40.0
CONTROL_RATE: Final = Rate(CONTROL_FRAMES_PER_S, CONTROL_FRAMES_BURST)

# After a close from this side: what a client may have sent before it heard of it. Beyond that nothing is read.
_DROPPED_MAX: Final = 2048
_DROPPED_A_TURN: Final = 64
_FRAMES: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG})

# As browsers write it. A path, a user or a second one would let "https://*.example.com" stand for other hosts.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,\\]*|null", re.IGNORECASE)
# Of one that is refused, in the log.
_ORIGIN_CHARS_MAX: Final = 200
# Lines a second about pages that are refused: a page tries again and again, and anybody can pretend to be one.
_TOLD: Final = Rate(per_s=1.0, burst=1.0)
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
_PROTOBUF: Final = _Encoding(
    "centrifuge-protobuf", WSMsgType.BINARY, PROTOBUF_FRAMES, protobuf_frame
)
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
        self._refused = Seldom(_TOLD)
        # Handshakes that are being answered: each is about to be a connection of its node.
        self._answering = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One client from its handshake to its end."""
        # Two of them are none of a browser's, and fit no pattern.
        origin = ", ".join(given) if (given := request.headers.getall("Origin", ())) else None
        # Not `request.host`: without the header it asks the resolver for this machine's name, and all others wait.
        if not origin_allowed(origin, request.headers.get("Host", ""), self._allowed_origins):
            self._tell_refused(origin, request.app[NODE])
            raise web.HTTPForbidden(
                text="This page's origin may not connect. Add it to client.allowed_origins.\n"
            )
        node = request.app[NODE]
        self._let_through(request, node)
        if not node.takes_clients(self._answering):
            node.services.counters.limited(Limit.CONNECTIONS)
            # Not a close code: SDKs try again after this, and a load balancer may find another node for them.
            raise web.HTTPServiceUnavailable(text="This node takes no further connections.\n")
        response = web.WebSocketResponse(
            timeout=CLOSE_WAIT_S,
            autoclose=False,
            # aiohttp answers pings as fast as they come, and lets nobody else have a turn meanwhile.
            autoping=False,
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
            # No browser's is longer, nor has a path or a password that would be told here.
            told = (
                origin[:_ORIGIN_CHARS_MAX] if origin and _ORIGIN.fullmatch(origin) else "malformed"
            )
            _log.info("origin_refused", origin=told, passed_over=passed_over)

    def _let_through(self, request: web.Request, node: Node) -> None:
        """Refuse who comes too often, before anything is spent on them. SDKs try again later, as after any other status."""
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
    """Pings and pongs of one client, at CONTROL_RATE: they are in no command, so nothing else counts them."""

    def __init__(self, writer: Writer, node: Node) -> None:
        self._writer = writer
        self._clock = node.services.clock
        self._counters = node.services.counters
        self._bucket = Bucket(CONTROL_RATE, self._clock.monotonic_s())

    async def take(self, message: WSMessage) -> None:
        """Answer a ping, in its time. Nothing is read meanwhile, so a client that sends many has to wait as well."""
        if self._writer.is_gone:
            # What it left behind is not waited for.
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
    """Hand frame after frame to the connection, one at a time: what it cannot take yet stays unread.

    Returns when nothing more will come. What comes after a close from this side is dropped, for the answer to it.
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
            # What it left behind is not waited for: it may be many publications, each of which has to wait for its rate.
            return
        elif message.type is encoding.frames:
            await connection.receive(message.data, encoding.reader)
        elif message.type in (WSMsgType.PING, WSMsgType.PONG):
            await control.take(message)
        else:
            connection.close(Disconnect.BAD_REQUEST)


async def _answer_close(response: web.WebSocketResponse, transport: asyncio.Transport) -> None:
    """The peer closed, or broke the protocol. It may not read what is said to that, nor what was written before."""
    asyncio.get_running_loop().call_later(CLOSE_WAIT_S, transport.abort)
    await response.close()
