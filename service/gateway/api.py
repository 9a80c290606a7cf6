"""POST /api/publish: the server API of Centrifugo, as far as this release has it, for back ends in the same network.

JSON in and out: `{"result": {…}}` or `{"error": {"code", "message"}}`, both with status 200; other statuses are
for requests that never reached a method (no key, no JSON, too large).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from aiohttp import web

from service.connection import Services
from service.core.channels import is_valid_name
from service.core.codes import Error
from service.core.idempotency import is_valid_key
from service.core.protocol import Unencodable
from service.core.publication import Json, Publication
from service.keys import NODE
from service.log.appender import Full
from service.log.channel_log import NotAppended, OutcomeUnknown

__all__ = ["BODY_ROOM_BYTES", "Api", "Publish", "read_publish"]

# What a request may hold besides the publication's data.
BODY_ROOM_BYTES: Final = 16 * 1024

_log = structlog.get_logger(__name__)


class _Refused(Exception):
    """The method answers with an error."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.name)
        self.error = error


@dataclass(frozen=True, slots=True)
class Publish:
    """A checked request of `publish`."""

    channel: str
    data: Json
    tags: dict[str, str] | None
    key: str | None
    skip_history: bool


def read_publish(params: Json) -> Publish | Error:
    """The request in `params`, or the error that answers it."""
    if not isinstance(params, dict) or "data" not in params:
        return Error.BAD_REQUEST
    channel, tags = params.get("channel"), params.get("tags")
    key, skip_history = params.get("idempotency_key"), params.get("skip_history", False)
    if not isinstance(channel, str) or not is_valid_name(channel) or not isinstance(skip_history, bool):
        return Error.BAD_REQUEST
    if tags is not None and not (
        isinstance(tags, dict) and all(isinstance(tag, str) for tag in tags.values())
    ):
        return Error.BAD_REQUEST
    if key in (None, ""):
        key = None
    elif not isinstance(key, str) or not is_valid_key(key):
        return Error.BAD_REQUEST
    return Publish(channel, params["data"], tags or None, key, skip_history)


class Api:
    """`key` "" = no call is taken, unless `insecure`. `message_size_limit`: bytes of a publication's data."""

    def __init__(self, *, key: str, insecure: bool, message_size_limit: int) -> None:
        self._key = key.encode()
        self._insecure = insecure
        self._body_bytes_max = message_size_limit + BODY_ROOM_BYTES

    def add_routes(self, app: web.Application) -> None:
        """One route a method."""
        app.router.add_post("/api/publish", self._handler(self._publish))

    def _handler(
        self, method: Callable[[Services, Json], Awaitable[dict[str, Json]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            if not self._may_call(request):
                return _answer({"error": _wire(Error.UNAUTHORIZED)}, 401)
            if request.content_type != "application/json":
                # A page of another origin cannot send this type without asking first.
                return _answer({"error": _wire(Error.BAD_REQUEST)}, 415)
            if request.content_length is None:
                return _answer({"error": _wire(Error.BAD_REQUEST)}, 411)
            if request.content_length > self._body_bytes_max:
                return _answer({"error": _wire(Error.LIMIT_EXCEEDED)}, 413)
            try:
                params = orjson.loads(await request.read())
            except orjson.JSONDecodeError:
                return _answer({"error": _wire(Error.BAD_REQUEST)}, 400)
            try:
                return _answer({"result": await method(request.app[NODE].services, params)}, 200)
            except _Refused as refused:
                return _answer({"error": _wire(refused.error)}, 200)

        return handle

    def _may_call(self, request: web.Request) -> bool:
        if self._insecure:
            return True
        given = request.headers.get("X-API-Key", "").encode(errors="surrogateescape")
        return bool(self._key) and hmac.compare_digest(given, self._key)

    async def _publish(self, services: Services, params: Json) -> dict[str, Json]:
        request = read_publish(params)
        if isinstance(request, Error):
            raise _Refused(request)
        options = services.policy.rules.options(request.channel)
        if options is None:
            raise _Refused(Error.UNKNOWN_CHANNEL)
        received_ms = services.clock.now_ms()
        published = Publication(request.data, tags=request.tags, time=received_ms)
        try:
            if not options.has_history or request.skip_history:
                if request.key is not None:
                    raise _Refused(Error.NOT_AVAILABLE)
                services.publisher.send(request.channel, published)
                return {}
            position = await services.publisher.store(
                request.channel, options, published, request.key, received_ms
            )
        except Unencodable:
            raise _Refused(Error.BAD_REQUEST) from None
        except Full:
            raise _Refused(Error.TOO_MANY_REQUESTS) from None
        except NotAppended as error:
            _log.warning("api_publish_refused", channel=request.channel, reason=str(error))
            raise _Refused(Error.TOO_MANY_REQUESTS) from error
        except OutcomeUnknown as error:
            _log.warning("api_publish_unknown", channel=request.channel, reason=str(error))
            raise _Refused(Error.INTERNAL) from error
        return {"offset": position.offset, "epoch": position.epoch}


def _wire(error: Error) -> dict[str, Any]:
    return {"code": error.value.code, "message": error.value.message}


def _answer(body: Json, status: int) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
