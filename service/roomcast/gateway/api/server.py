"""Serves POST /api/<method>: reads the request, calls the method and writes the answer.

JSON in and out, as in Centrifugo's server API.

The answer is `{"result": {…}}` or `{"error": {"code", "message"}}`, both with status 200. Other
statuses are for requests that reached no method (no key, no JSON, too large). The answer to a batch
is `{"replies": […]}`.

a request → key, type, length → body → JSON → parameters (fields.py) → handler of the method →
answer

POST /api itself takes the older form (commands.py) through the same steps.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import orjson
import structlog
from aiohttp import web

from roomcast.concurrency import Turns
from roomcast.gateway.api import channels, clients, nodes, publishing
from roomcast.gateway.api.batch import BATCH_BODY_BYTES_MAX, Batch
from roomcast.gateway.api.commands import Commands, split
from roomcast.gateway.api.fields import read
from roomcast.gateway.api.large import LargeRequests
from roomcast.gateway.api.methods import (
    COMMANDS_A_TURN,
    COMMANDS_AT_A_TIME,
    ApiCall,
    Containers,
    Method,
    Parents,
)
from roomcast.gateway.api.openapi import description
from roomcast.gateway.api.refusals import Refusal, wire
from roomcast.gateway.api.watch import Watch
from roomcast.gateway.body import BODY_S, body_of, media_type
from roomcast.gateway.keys import NODE
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = ["METHODS", "Api"]

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        publishing.PUBLISH,
        publishing.BROADCAST,
        clients.SUBSCRIBE,
        clients.UNSUBSCRIBE,
        clients.DISCONNECT,
        clients.REFRESH,
        channels.HISTORY,
        channels.HISTORY_REMOVE,
        channels.PRESENCE,
        channels.PRESENCE_STATS,
        channels.CHANNELS,
        nodes.INFO,
        nodes.DRAIN,
    )
}

_JSON: Final = "application/json"
# The Authorization scheme of the older form. Its name is case-insensitive (RFC 9110 §11.1).
_KEY_SCHEME: Final = "apikey "

Decoding = Callable[[bytes], Json]
Answering = Callable[[ApiCall, Json], Awaitable[bytes]]

_log = structlog.get_logger(__name__)


class Api:
    """The routes of the API. `key` "" = every call is refused, unless `insecure`.

    `message_size_limit`: bytes of a publication's data.
    """

    def __init__(self, *, key: str, insecure: bool, message_size_limit: int) -> None:
        self._key = key.encode()
        self._insecure = insecure
        self._payload_bytes_max = message_size_limit
        self._turns = Turns(COMMANDS_A_TURN // COMMANDS_AT_A_TIME)
        self._large = LargeRequests()

    def add_routes(self, app: web.Application) -> None:
        """Adds a route for each method, one for their description, and the task that watches for
        suspensions.
        """
        app.router.add_get("/api/openapi.json", self._describe)
        for method in METHODS.values():
            bytes_max = method.body_bytes_max(self._payload_bytes_max)
            app.router.add_post(f"/api/{method.name}", self._handler(_alone(method), bytes_max))
        app.router.add_post(
            "/api/batch", self._handler(_batch(Batch(METHODS)), BATCH_BODY_BYTES_MAX)
        )
        app.router.add_post("/api/{method}", self._unknown)
        older = self._handler(Commands(METHODS).carry_out, BATCH_BODY_BYTES_MAX, split)
        app.router.add_post("/api", older)
        app.cleanup_ctx.append(_watch)

    def _handler(
        self, answering: Answering, body_bytes_max: int, decoding: Decoding = orjson.loads
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def carried_out(
            request: web.Request, received_ms: int, late: bool, body: bytes
        ) -> web.Response:
            containers = Containers()
            try:
                containers.take(body)
            except Refusal as refused:
                return _refusal(413, refused.error, refused.why)
            try:
                params = decoding(body)
            except ValueError:
                return _refusal(400, Error.BAD_REQUEST, "the body is not JSON")
            except Refusal as refused:
                return _refusal(200, refused.error, refused.why)
            parents = Parents(request.headers.getall("traceparent", ()))
            call = ApiCall(
                request.app[NODE],
                received_ms,
                late,
                self._payload_bytes_max,
                containers,
                self._turns,
                parents,
            )
            try:
                return _answer(await answering(call, params), 200)
            except Refusal as refused:
                return _refusal(200, refused.error, refused.why)
            except Exception:  # noqa: BLE001  # a caller gets JSON, whatever happened
                # A fault of this server: the caller learns no details.
                _log.exception("api_fault", path=request.path)
                return _refusal(500, Error.INTERNAL)

        async def handle(request: web.Request) -> web.Response:
            # Before the body is read: the age of an idempotency key counts from here.
            node = request.app[NODE]
            received_ms, late = node.services.clock.now_ms(), request.app[_WATCH].may_have_waited()
            if not self._may_call(request):
                return _refusal(401, Error.UNAUTHORIZED)
            if media_type(request) != _JSON:
                # A page of another origin cannot send this type without a preflight request.
                return _refusal(415, Error.BAD_REQUEST, f"Content-Type must be {_JSON}")
            if request.headers.get("Content-Encoding", "identity").lower() != "identity":
                return _refusal(
                    415, Error.BAD_REQUEST, "a body is taken as it is, without a Content-Encoding"
                )
            if request.content_length is None:
                return _refusal(411, Error.BAD_REQUEST, "Content-Length is required")
            try:
                body = await body_of(request, body_bytes_max)
            except TimeoutError:
                return _refusal(
                    408, Error.BAD_REQUEST, f"the body was not complete within {BODY_S:g} s"
                )
            except web.RequestPayloadError:
                return _refusal(
                    400, Error.BAD_REQUEST, "the body is not encoded as its headers say"
                )
            if body is None:
                return _refusal(
                    413, Error.LIMIT_EXCEEDED, f"the request is larger than {body_bytes_max} bytes"
                )
            async with self._large.of(len(body)):
                return await carried_out(request, received_ms, late, body)

        return handle

    async def _describe(self, request: web.Request) -> web.Response:
        if not self._may_call(request):
            return _refusal(401, Error.UNAUTHORIZED)
        return _answer(orjson.dumps(description(METHODS.values())), 200)

    async def _unknown(self, request: web.Request) -> web.Response:
        if not self._may_call(request):
            return _refusal(401, Error.UNAUTHORIZED)
        return _refusal(404, Error.METHOD_NOT_FOUND)

    def _may_call(self, request: web.Request) -> bool:
        if self._insecure:
            return True
        given = request.headers.get("X-API-Key")
        if given is None:
            scheme = request.headers.get("Authorization", "")
            given = (
                scheme[len(_KEY_SCHEME) :]
                if scheme[: len(_KEY_SCHEME)].lower() == _KEY_SCHEME
                else ""
            )
        encoded = given.encode(errors="surrogateescape")
        return bool(self._key) and hmac.compare_digest(encoded, self._key)


def _alone(method: Method) -> Answering:
    async def answer(call: ApiCall, params: Json) -> bytes:
        return orjson.dumps({"result": await method.handler(call, read(method.fields, params))})

    return answer


def _batch(batch: Batch) -> Answering:
    async def answer(call: ApiCall, params: Json) -> bytes:
        return orjson.dumps(await batch.carry_out(call, params))

    return answer


async def _watch(app: web.Application) -> AsyncIterator[None]:
    app[_WATCH] = watch = Watch(app[NODE].services.clock)
    running = asyncio.create_task(watch.run())
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def _refusal(status: int, error: Error, why: str = "") -> web.Response:
    return _answer(orjson.dumps({"error": wire(error, why)}), status)


def _answer(body: bytes, status: int) -> web.Response:
    return web.Response(body=body, status=status, content_type=_JSON)


_WATCH: Final = web.AppKey("watch", Watch)
