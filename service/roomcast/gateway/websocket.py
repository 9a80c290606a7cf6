"""Serves WebSockets: checks the handshake, then passes frames to the connection.

GET /connection/websocket       commands and their replies, as Centrifuge SDKs speak them
GET /connection/uni_websocket   for clients without an SDK: they say no more than how they connect
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import replace
from hashlib import sha1
from http import HTTPStatus
from typing import Final

from aiohttp import WSMsgType, web
from aiohttp.hdrs import METH_GET
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import WS_KEY

from roomcast.gateway.admission import Admission
from roomcast.gateway.carriers import carrier_of
from roomcast.gateway.deflate import Agreed, Compression, Deflater, agree
from roomcast.gateway.delayed import WriterMaker
from roomcast.gateway.door import SERVER, hand_over, open_line
from roomcast.gateway.keys import NODE
from roomcast.gateway.parsing import FRAMES_A_TURN, Parsing
from roomcast.gateway.reader import ClientFrames, Encoding
from roomcast.gateway.stream import limit_silence, new_session
from roomcast.gateway.writer import (
    BINARY_DATA,
    TEXT,
    Writer,
    bare_close,
    bare_text_frames,
    each_push,
    protobuf_frame,
    text_frame,
)
from roomcast.observe.counters import Transport
from roomcast.wire.commands import CONNECT_FRAMES, JSON_FRAMES
from roomcast.wire.protobuf import PROTOBUF_FRAMES, encode_messages

__all__ = ["ANSWERED", "CONNECT_PARAMETER", "FRAME_COMMANDS_ROOM", "WebSocketGateway"]

# A frame may hold this many commands of the greatest size: SDKs send a connect and all their
# subscriptions in one frame.
FRAME_COMMANDS_ROOM: Final = 4
# The URL parameter that has what the client would say first.
CONNECT_PARAMETER: Final = "cf_connect"

_JSON: Final = Encoding("centrifuge-json", WSMsgType.TEXT, JSON_FRAMES, text_frame)
_PROTOBUF: Final = Encoding(
    "centrifuge-protobuf", WSMsgType.BINARY, PROTOBUF_FRAMES, protobuf_frame
)
_BARE_JSON: Final = Encoding("", WSMsgType.TEXT, CONNECT_FRAMES, bare_text_frames)
_HANDSHAKE: Final = web.WebSocketResponse(
    compress=False, protocols=(_JSON.subprotocol, _PROTOBUF.subprotocol)
)
_BARE_HANDSHAKE: Final = web.WebSocketResponse(compress=False)
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


class _Packing:
    """What handshakes may agree on about compression: one framer each for all who agree on it."""

    def __init__(self, compression: Compression) -> None:
        kinds = ((_JSON, TEXT, bytes), (_PROTOBUF, BINARY_DATA, encode_messages))
        self._encodings = {
            (encoding.subprotocol, is_narrow): replace(
                encoding,
                framer=Deflater(compression, opcode, payload, is_narrow=is_narrow),
                may_be_packed=True,
            )
            for encoding, opcode, payload in kinds
            for is_narrow in (False, True)
        }
        for is_narrow in (False, True):
            push = Deflater(compression, TEXT, bytes, is_narrow=is_narrow)
            self._encodings[_BARE_JSON.subprotocol, is_narrow] = replace(
                _BARE_JSON, framer=each_push(push), may_be_packed=True
            )

    def encoding(self, plain: Encoding, agreed: Agreed) -> Encoding:
        """As `plain`, compressed."""
        return self._encodings[plain.subprotocol, agreed.is_narrow]


class _Answered(web.StreamResponse):
    """Tells aiohttp that a request has been answered, and its connection handed over."""

    async def prepare(self, request: web.BaseRequest) -> None:  # noqa: ARG002
        return None

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002
        return


ANSWERED: Final = _Answered(status=HTTPStatus.SWITCHING_PROTOCOLS)


def _accepted(
    request: web.Request, handshake: web.WebSocketResponse, agreed: Agreed | None
) -> tuple[str | None, bytes]:
    """The subprotocol of the handshake `request`, None = none that `handshake` knows, and its
    answer (RFC 6455 §4.2.2). `agreed`: on compression; None = there is none.

    Raises HTTPUpgradeRequired when it is no handshake, and HTTPBadRequest when it has a body: what
    is left of that would be taken for frames.
    """
    if request.body_exists:
        raise web.HTTPBadRequest(text="A handshake has no body.\n")
    try:
        # aiohttp has the rules of a handshake, but for the method.
        found = handshake.can_prepare(request)
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
    if agreed is not None:
        chosen += f"Sec-WebSocket-Extensions: {agreed.answer}\r\n"
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


class WebSocketGateway:
    """The handlers of WebSocket requests.

    `message_size_limit`: bytes of one command. A frame may be FRAME_COMMANDS_ROOM times as large.
    `compression`: for clients that offer it; None = for none.
    """

    def __init__(
        self,
        admission: Admission,
        *,
        message_size_limit: int,
        queue_bytes_max: int,
        make_writer: WriterMaker = Writer,
        compression: Compression | None = None,
    ) -> None:
        self._admission = admission
        self._make_writer = make_writer
        self._packing = None if compression is None else _Packing(compression)
        self._frame_bytes_max = message_size_limit * FRAME_COMMANDS_ROOM
        self._queue_bytes_max = queue_bytes_max
        self._parsing = Parsing(FRAMES_A_TURN)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers a client's handshake. From then on, ClientFrames serves it."""
        shaken = await self._shake_hands(request, _HANDSHAKE)
        if shaken is not None:
            transport, subprotocol, agreed = shaken
            encoding = _encoding(subprotocol, request)
            is_binary = encoding is _PROTOBUF
            encoding = self._packed(encoding, agreed)
            writer = self._make_writer(
                transport, self._queue_bytes_max, encoding.framer, is_binary=is_binary
            )
            self._hand_over(request, transport, writer, encoding)
        return ANSWERED

    async def handle_unidirectional(self, request: web.Request) -> web.StreamResponse:
        """As `handle`, for a client that says no more than how it connects."""
        shaken = await self._shake_hands(request, _BARE_HANDSHAKE)
        if shaken is not None:
            transport, _, agreed = shaken
            encoding = self._packed(_BARE_JSON, agreed)
            writer = self._make_writer(
                transport,
                self._queue_bytes_max,
                encoding.framer,
                last=bare_close,
                session=new_session(request.app[NODE].services.badge),
                is_unidirectional=True,
            )
            client = self._hand_over(request, transport, writer, encoding)
            limit_silence(transport, request.app[NODE].services.limits.silence_s)
            if asked := request.query.get(CONNECT_PARAMETER):
                client.take_first(asked)
        return ANSWERED

    async def _shake_hands(
        self, request: web.Request, handshake: web.WebSocketResponse
    ) -> tuple[asyncio.Transport, str | None, Agreed | None] | None:
        """Answers. Returns the connection, its subprotocol, and what was agreed on about
        compression. None: the connection has ended.

        The caller hands the connection over in the same turn: in another, it would be counted
        neither as a request nor as a client. Raises HTTPException.
        """
        self._admission.check(request)
        agreed = self._agreed(request)
        subprotocol, answer = _accepted(request, handshake, agreed)
        await self._admission.turn()
        transport = open_line(request)
        if transport is None:
            return None
        transport.write(answer)
        return transport, subprotocol, agreed

    def _agreed(self, request: web.Request) -> Agreed | None:
        """What a handshake agrees on about compression; None = there is none."""
        if self._packing is None:
            return None
        return agree(request.headers.getall("Sec-WebSocket-Extensions", ()))

    def _packed(self, plain: Encoding, agreed: Agreed | None) -> Encoding:
        """As `plain`, compressed where that was agreed on."""
        if self._packing is None or agreed is None:
            return plain
        return self._packing.encoding(plain, agreed)

    def _hand_over(
        self,
        request: web.Request,
        transport: asyncio.Transport,
        writer: Writer,
        encoding: Encoding,
    ) -> ClientFrames:
        node = request.app[NODE]
        kind = Transport.UNI_WEBSOCKET if writer.is_unidirectional else Transport.WEBSOCKET
        client = ClientFrames(
            node,
            transport,
            writer,
            encoding,
            self._frame_bytes_max,
            self._parsing,
            carrier_of(request, node, kind, is_binary=writer.is_binary),
        )
        client.left = hand_over(request.protocol, client)
        return client
