"""Serves GET /connection/websocket: checks the handshake, then passes frames to the connection."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from fnmatch import fnmatchcase
from hashlib import sha1
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import structlog
from aiohttp import WSMsgType, web
from aiohttp.hdrs import METH_GET
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import WS_KEY

from roomcast.concurrency import Turns
from roomcast.gateway.address import Addresses
from roomcast.gateway.door import ANSWERS_A_TURN, SERVER, hand_over
from roomcast.gateway.keys import NODE
from roomcast.gateway.reader import ClientFrames, Encoding
from roomcast.gateway.writer import Writer, protobuf_frame, text_frame
from roomcast.node.node import Node
from roomcast.observe.counters import Limit
from roomcast.rates import Rate, Seldom, Turnstile
from roomcast.wire.commands import JSON_FRAMES
from roomcast.wire.protobuf import PROTOBUF_FRAMES

__all__ = ["FRAME_COMMANDS_ROOM", "WebSocketGateway", "origin_allowed"]

# A frame may hold this many commands of the greatest size: SDKs send a connect and all their
# subscriptions in one frame.
FRAME_COMMANDS_ROOM: Final = 4

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


_JSON: Final = Encoding("centrifuge-json", WSMsgType.TEXT, JSON_FRAMES, text_frame)
_PROTOBUF: Final = Encoding(
    "centrifuge-protobuf", WSMsgType.BINARY, PROTOBUF_FRAMES, protobuf_frame
)
_HANDSHAKE: Final = web.WebSocketResponse(
    compress=False, protocols=(_JSON.subprotocol, _PROTOBUF.subprotocol)
)
_NO_HANDSHAKE: Final = web.WebSocketReady(ok=False, protocol=None)
# For clients that cannot name a subprotocol: either of these URL parameters may ask for Protobuf.
_ENCODING_PARAMETERS: Final = ("format", "cf_protocol")
_ENCODING_VALUE: Final = "protobuf"


def _encoding(subprotocol: str | None, request: web.Request) -> Encoding:
    """The encoding that the handshake agreed on. Without a subprotocol the URL may name it."""
    if subprotocol is None:
        asked = any(request.query.get(name) == _ENCODING_VALUE for name in _ENCODING_PARAMETERS)
        return _PROTOBUF if asked else _JSON
    return _PROTOBUF if subprotocol == _PROTOBUF.subprotocol else _JSON


class _Answered(web.StreamResponse):
    """Tells aiohttp that a request has been answered, and its connection handed over."""

    async def prepare(self, request: web.BaseRequest) -> None:  # noqa: ARG002
        return None

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002
        return


_ANSWERED: Final = _Answered(status=HTTPStatus.SWITCHING_PROTOCOLS)


def _accepted(request: web.Request) -> tuple[str | None, bytes]:
    """The subprotocol of the handshake `request`, None = none that is known here, and its answer
    (RFC 6455 §4.2.2).

    Raises HTTPUpgradeRequired when it is no handshake, and HTTPBadRequest when it has a body: what
    is left of that would be taken for frames.
    """
    if request.body_exists:
        raise web.HTTPBadRequest(text="A handshake has no body.\n")
    try:
        # aiohttp has the rules of a handshake, but for the method.
        found = _HANDSHAKE.can_prepare(request)
    except ValueError:
        # It decodes, or quotes, header fields that may hold bytes that are no text.
        found = _NO_HANDSHAKE
    if request.method != METH_GET or not found.ok:
        raise web.HTTPUpgradeRequired(
            text="This is a WebSocket endpoint for Centrifuge clients.\n",
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )
    key = request.headers["Sec-WebSocket-Key"].encode()
    accepted = b64encode(sha1(key + WS_KEY, usedforsecurity=False).digest()).decode()
    chosen = "" if found.protocol is None else f"Sec-WebSocket-Protocol: {found.protocol}\r\n"
    answer = (
        f"HTTP/{request.version.major}.{request.version.minor} 101 Switching Protocols\r\n"
        "Upgrade: websocket\r\n"
        "Connection: upgrade\r\n"
        f"Sec-WebSocket-Accept: {accepted}\r\n"
        f"{chosen}"
        f"Date: {rfc822_formatted_time()}\r\n"
        f"Server: {SERVER}\r\n\r\n"
    )
    return found.protocol, answer.encode()


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
        self._turns = Turns(ANSWERS_A_TURN)
        # Handshakes that are being answered: each is about to be a connection of its node.
        self._answering = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers a client's handshake. From then on, ClientFrames serves it."""
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
        subprotocol, answer = _accepted(request)
        self._answering += 1
        try:
            # Few handshakes are answered in one turn of the event loop, as other requests are.
            await self._turns.wait()
        finally:
            self._answering -= 1
        # Without another turn from here to `node.open`: it would be counted in neither place.
        transport = request.transport
        if transport is not None:
            transport.write(answer)
            encoding = _encoding(subprotocol, request)
            writer = Writer(transport, self._queue_bytes_max, encoding.framer)
            client = ClientFrames(node, transport, writer, encoding, self._frame_bytes_max)
            client.left = hand_over(request.protocol, client)
        return _ANSWERED

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
