"""Serves the transports of clients that no WebSocket reaches, as Centrifuge SDKs speak them.

POST /connection/http_stream   commands in the body; replies and pushes in the answer's body
GET  /connection/sse           `connect` in the query (`cf_connect`); the answer is events
POST /emulation                further commands of either, for the node that has the client

Clients without an SDK say no more than how they connect, and get pushes alone:

POST /connection/uni_http_stream   the `connect` in the body
GET  /connection/uni_sse           the same in the query, or nothing; or in the body of a POST
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

from roomcast.concurrency import Portions
from roomcast.delivery.ports import Framer
from roomcast.fleet.emulation_signals import FRAMES_BYTES_MAX, Outcome
from roomcast.gateway.admission import Admission
from roomcast.gateway.body import BODY_S, BodyRoom, PushedOut, body_of, media_type
from roomcast.gateway.carriers import carrier_of
from roomcast.gateway.delayed import WriterMaker
from roomcast.gateway.door import SERVER, hand_over, open_line
from roomcast.gateway.keys import NODE
from roomcast.gateway.stream import ClientStream, new_session
from roomcast.gateway.websocket import ANSWERED, CONNECT_PARAMETER, FRAME_COMMANDS_ROOM
from roomcast.gateway.writer import (
    Writer,
    bare_json_lines,
    bare_sse_events,
    json_lines,
    sse_events,
)
from roomcast.observe.counters import Transport
from roomcast.wire.codes import Closing
from roomcast.wire.commands import CONNECT_FRAMES, JSON_FRAMES, Reader
from roomcast.wire.emulation import MalformedEmulation, emulated_json, emulated_protobuf
from roomcast.wire.encoding import disconnect_push
from roomcast.wire.protobuf import PROTOBUF_FRAMES, encode_messages

__all__ = ["StreamGateway"]

# A preflight's answer may be kept for so long.
_PREFLIGHT_S: Final = 300
_BINARY_TYPE: Final = "application/octet-stream"
# The JSON text of a string may be twice as long as what it says.
_ESCAPED: Final = 2
# Bytes of all bodies that have not come whole, as far as they came. Anybody can begin one.
_COMING_BYTES_MAX: Final = 32 * 1024 * 1024
# Larger requests to /emulation take up to 2 ms each to decode, and anybody can have many become
# whole at once. So many are decoded in one turn of the event loop.
_LARGE_BYTES: Final = 32 * 1024
_LARGE_A_TURN: Final = 2


@dataclass(frozen=True, slots=True)
class _Form:
    """How a stream is written and its commands are read. `first`: what goes before all else."""

    kind: Transport
    content_type: str
    reader: Reader
    framer: Framer
    first: bytes = b""

    def last(self, why: Closing) -> bytes:
        """The last bytes of the stream."""
        return self.framer(disconnect_push(why))


_JSON: Final = _Form(
    Transport.HTTP_STREAM, "application/json; charset=utf-8", JSON_FRAMES, json_lines
)
_PROTOBUF: Final = _Form(Transport.HTTP_STREAM, _BINARY_TYPE, PROTOBUF_FRAMES, encode_messages)
# A browser takes the stream for open once it has read something. Not CR LF: the older npm
# eventsource, with which the SDK's own tests run, loses the event that comes in one piece with it.
_EVENTS: Final = _Form(
    Transport.SSE, "text/event-stream; charset=utf-8", JSON_FRAMES, sse_events, b"\n"
)
_BARE_JSON: Final = replace(
    _JSON, kind=Transport.UNI_HTTP_STREAM, reader=CONNECT_FRAMES, framer=bare_json_lines
)
_BARE_EVENTS: Final = replace(
    _EVENTS, kind=Transport.UNI_SSE, reader=CONNECT_FRAMES, framer=bare_sse_events
)

# SDKs connect anew after 404 and 5xx. Others refuse these commands alone.
_ANSWERS: Final[Mapping[Outcome, tuple[HTTPStatus, str | None]]] = {
    Outcome.TAKEN: (HTTPStatus.NO_CONTENT, None),
    Outcome.UNKNOWN: (HTTPStatus.NOT_FOUND, "No node has such a session.\n"),
    Outcome.BUSY: (HTTPStatus.TOO_MANY_REQUESTS, "Too many requests of this session wait.\n"),
    Outcome.LOST: (HTTPStatus.SERVICE_UNAVAILABLE, "The session's node did not answer.\n"),
}


class StreamGateway:
    """The handler of these requests.

    `message_size_limit`: bytes of one command. A request may have FRAME_COMMANDS_ROOM times as
    many.
    """

    def __init__(
        self,
        admission: Admission,
        *,
        message_size_limit: int,
        queue_bytes_max: int,
        make_writer: WriterMaker = Writer,
    ) -> None:
        self._admission = admission
        self._make_writer = make_writer
        self._frame_bytes_max = message_size_limit * FRAME_COMMANDS_ROOM
        self._queue_bytes_max = queue_bytes_max
        self._coming = BodyRoom(_COMING_BYTES_MAX)
        self._large = Portions(_LARGE_A_TURN)

    def add_routes(self, app: web.Application) -> None:
        """Adds the routes, and those of their preflight requests."""
        routes = [
            web.post("/connection/http_stream", self._http_stream),
            # A HEAD opens nothing.
            web.get("/connection/sse", self._sse, allow_head=False),
            web.post("/connection/sse", self._sse_posted),
            web.post("/emulation", self._emulation),
            web.post("/connection/uni_http_stream", self._uni_http_stream),
            web.get("/connection/uni_sse", self._uni_sse, allow_head=False),
            web.post("/connection/uni_sse", self._uni_sse_posted),
        ]
        app.router.add_routes(routes)
        for path in dict.fromkeys(route.path for route in routes):
            app.router.add_options(path, self._preflight)

    async def _http_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._open(request, _PROTOBUF if _is_binary(request) else _JSON, self._posted)

    async def _sse_posted(self, request: web.Request) -> web.StreamResponse:
        return await self._open(request, _EVENTS, self._posted)

    async def _sse(self, request: web.Request) -> web.StreamResponse:
        return await self._open(request, _EVENTS, _asked)

    async def _uni_http_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._open(request, _BARE_JSON, self._posted)

    async def _uni_sse_posted(self, request: web.Request) -> web.StreamResponse:
        return await self._open(request, _BARE_EVENTS, self._posted)

    async def _uni_sse(self, request: web.Request) -> web.StreamResponse:
        return await self._open(request, _BARE_EVENTS, _asked_or_nothing)

    async def _open(
        self,
        request: web.Request,
        form: _Form,
        commands: Callable[[web.Request], Awaitable[bytes]],
    ) -> web.StreamResponse:
        """Answers with a stream, after which ClientStream serves the client."""
        origin, node = self._admission.check(request), request.app[NODE]
        with self._admission.answering():
            frame = await commands(request)
        await self._admission.turn()
        # Without another turn from here to `node.open`: it would be counted in neither place.
        transport = open_line(request)
        if transport is not None:
            transport.write(_head(form, origin) + form.first)
            writer = self._make_writer(
                transport,
                self._queue_bytes_max,
                form.framer,
                last=form.last,
                is_answered=False,
                session=new_session(node.services.badge),
            )
            limits = node.services.limits
            stream = ClientStream(
                node,
                transport,
                writer,
                form.reader,
                node.emulation.sessions,
                form.kind,
                silence_s=limits.silence_s,
                carrier=carrier_of(request, node, form.kind, is_binary=writer.is_binary),
            )
            stream.left = hand_over(request.protocol, stream)
            stream.take(frame)
        return ANSWERED

    async def _posted(self, request: web.Request) -> bytes:
        """The commands in a body. Raises HTTPException."""
        return await self._body(request, self._frame_bytes_max)

    async def _body(self, request: web.Request, bytes_max: int) -> bytes:
        """Raises HTTPException."""
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise web.HTTPUnsupportedMediaType(
                text="A body is taken as it is, without an encoding.\n"
            )
        body = await _whole_body(request, bytes_max, self._coming)
        if body is None:
            raise _too_large()
        if not body:
            raise web.HTTPBadRequest(text="The body has the first commands.\n")
        return body

    async def _emulation(self, request: web.Request) -> web.Response:
        headers = _cors(self._admission.check_origin(request))
        try:
            response = await self._emulate(request)
        except web.HTTPException as refused:
            _count_refused(request)
            # A page that may not read it would take its stream for broken.
            refused.headers.update(headers)
            raise
        response.headers.update(headers)
        return response

    async def _emulate(self, request: web.Request) -> web.Response:
        if _is_binary(request):
            body, read = await self._body(request, self._frame_bytes_max), emulated_protobuf
        else:
            body, read = await self._body(request, self._frame_bytes_max * _ESCAPED), emulated_json
        if len(body) > _LARGE_BYTES:
            await self._large.wait()
        try:
            emulated = read(body)
        except MalformedEmulation as error:
            _count_refused(request)
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"{error}\n")
        if len(emulated.frame) > FRAMES_BYTES_MAX:
            raise _too_large()
        node = request.app[NODE]
        outcome = await node.emulation.take(emulated.node, emulated.session, emulated.frame)
        status, text = _ANSWERS[outcome]
        return web.Response(status=status, text=text)

    async def _preflight(self, request: web.Request) -> web.Response:
        origin = self._admission.check_origin(request)
        return web.Response(
            status=HTTPStatus.NO_CONTENT,
            headers={
                **_cors(origin),
                "Access-Control-Allow-Methods": "POST, GET, OPTIONS",
                "Access-Control-Allow-Headers": "Content-Type",
                "Access-Control-Max-Age": str(_PREFLIGHT_S),
            },
        )


async def _asked(request: web.Request) -> bytes:
    """The command in a query, whose length the parser of HTTP bounds. Raises HTTPBadRequest.

    It is one, which must be `connect`: any page can have a browser make a GET without an Origin.
    Whoever cannot read the answer has no session, so it stays at that.
    """
    command = request.query.get(CONNECT_PARAMETER, "").strip()
    if not command or "\n" in command:
        raise web.HTTPBadRequest(
            text=f"The parameter {CONNECT_PARAMETER} has one command, which is connect.\n"
        )
    return command.encode(errors="replace")


async def _asked_or_nothing(request: web.Request) -> bytes:
    """The `connect` in a query, whose length the parser of HTTP bounds."""
    return (request.query.get(CONNECT_PARAMETER) or "{}").encode(errors="replace")


def _count_refused(request: web.Request) -> None:
    request.app[NODE].emulation.counters.requested("here", "refused")


def _is_binary(request: web.Request) -> bool:
    return media_type(request) == _BINARY_TYPE


async def _whole_body(request: web.Request, bytes_max: int, room: BodyRoom) -> bytes | None:
    """As `body_of`. Raises HTTPException."""
    try:
        return await body_of(request, bytes_max, room)
    except PushedOut as error:
        raise web.HTTPServiceUnavailable(
            text="The body came too slowly: others needed its room.\n"
        ) from error
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(
            text=f"The body was not complete within {BODY_S:g} s.\n"
        ) from error
    except web.RequestPayloadError as error:
        raise web.HTTPBadRequest(text="The body is not encoded as its headers say.\n") from error


def _too_large() -> web.HTTPException:
    return web.HTTPRequestEntityTooLarge(0, 0, text="The request is too large.\n")


def _head(form: _Form, origin: str | None) -> bytes:
    """The head of an answer whose body lasts as long as its connection (RFC 9112 §6.3)."""
    headers = {
        "Content-Type": form.content_type,
        # Proxies that keep an answer until it is whole would keep it for ever.
        "X-Accel-Buffering": "no",
        "Cache-Control": ("private, no-cache, no-store, no-transform, must-revalidate, max-age=0"),
        "Pragma": "no-cache",
        "X-Content-Type-Options": "nosniff",
        **_cors(origin),
        "Date": rfc822_formatted_time(),
        "Server": SERVER,
        "Connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode()


def _cors(origin: str | None) -> Mapping[str, str]:
    """What lets a page of `origin`, which was allowed, read the answer."""
    if origin is None:
        return {}
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
