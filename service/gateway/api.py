"""POST /api/publish: the server API of Centrifugo, as far as this release has it, for back ends in the same network.

JSON in and out: `{"result": {…}}` or `{"error": {"code", "message"}}`, both with status 200; other statuses are
for requests that never reached a method (no key, no JSON, too large).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from aiohttp import web

from service.connection import SLEPT_S, Services
from service.core.channels import is_valid_name
from service.core.codes import Error
from service.core.idempotency import is_valid_key
from service.core.protocol import Unencodable
from service.core.publication import Json, Publication
from service.keys import NODE
from service.log.appender import Full, TooLarge
from service.log.channel_log import NotAppended, OutcomeUnknown
from service.ports import Clock

__all__ = ["AWAKE_CHECK_S", "BODY_ROOM_BYTES", "UNREAD_S", "Api", "Publish", "Watch", "read_publish"]

# What a request may hold besides the publication's data.
BODY_ROOM_BYTES: Final = 16 * 1024
# How often it is looked whether the process was suspended. With SLEPT_S, the longest suspension that goes unnoticed.
AWAKE_CHECK_S: Final = 60.0
# What waited in sockets during a suspension has been read so long after it at the latest, behind other requests too.
UNREAD_S: Final = 120.0

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


@dataclass(frozen=True, slots=True)
class _Call:
    """`received_ms`: when its first bytes were read (wall clock). `late`: they may have waited for that for long."""

    services: Services
    params: Json
    received_ms: int
    late: bool


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


class Watch:
    """Notices that the process was suspended, as pings do for the connections of clients: requests that are read
    after that may have been sent long before, and their callers may have gone elsewhere with the same key.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The wall clock: a suspended machine's monotonic clock stands still.
        self._awake_ms = clock.now_ms()
        self._woke_s: float | None = None

    def look(self) -> None:
        """To be called every AWAKE_CHECK_S at the least."""
        now_ms = self._clock.now_ms()
        if now_ms - self._awake_ms > (AWAKE_CHECK_S + SLEPT_S) * 1000:
            self._woke_s = self._clock.monotonic_s()
            _log.warning("slept", seconds=(now_ms - self._awake_ms) // 1000)
        self._awake_ms = now_ms

    def may_have_waited(self) -> bool:
        """Whether a request that is read now may have been sent before a suspension."""
        self.look()
        return self._woke_s is not None and self._clock.monotonic_s() - self._woke_s < UNREAD_S

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(AWAKE_CHECK_S)
            self.look()


class Api:
    """`key` "" = no call is taken, unless `insecure`. `message_size_limit`: bytes of a publication's data."""

    def __init__(self, *, key: str, insecure: bool, message_size_limit: int) -> None:
        self._key = key.encode()
        self._insecure = insecure
        self._body_bytes_max = message_size_limit + BODY_ROOM_BYTES

    def add_routes(self, app: web.Application) -> None:
        """One route a method, and a task that runs as long as the application does."""
        app.router.add_post("/api/publish", self._handler(self._publish))
        app.cleanup_ctx.append(_watch)

    def _handler(
        self, method: Callable[[_Call], Awaitable[dict[str, Json]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            # Before the body is waited for: what is sent with a key counts from here.
            services = request.app[NODE].services
            received_ms, late = services.clock.now_ms(), request.app[_WATCH].may_have_waited()
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
                return _answer({"result": await method(_Call(services, params, received_ms, late))}, 200)
            except _Refused as refused:
                return _answer({"error": _wire(refused.error)}, 200)

        return handle

    def _may_call(self, request: web.Request) -> bool:
        if self._insecure:
            return True
        given = request.headers.get("X-API-Key", "").encode(errors="surrogateescape")
        return bool(self._key) and hmac.compare_digest(given, self._key)

    async def _publish(self, call: _Call) -> dict[str, Json]:
        services, request = call.services, read_publish(call.params)
        if isinstance(request, Error):
            raise _Refused(request)
        options = services.policy.rules.options(request.channel)
        if options is None:
            raise _Refused(Error.UNKNOWN_CHANNEL)
        if request.key is not None and call.late:
            # It may have been published elsewhere so long ago that the key is forgotten.
            raise _Refused(Error.TOO_MANY_REQUESTS)
        published = Publication(request.data, tags=request.tags, time=call.received_ms)
        try:
            if not options.has_history or request.skip_history:
                if request.key is not None:
                    raise _Refused(Error.NOT_AVAILABLE)
                services.publisher.send(request.channel, published)
                return {}
            position = await services.publisher.store(
                request.channel, options, published, request.key, call.received_ms
            )
        except (Full, TooLarge, Unencodable) as failure:
            raise _Refused(services.publisher.error(failure)) from None
        except (NotAppended, OutcomeUnknown) as failure:
            _log.warning("api_publish_failed", channel=request.channel, reason=str(failure))
            raise _Refused(services.publisher.error(failure)) from failure
        return {"offset": position.offset, "epoch": position.epoch}


async def _watch(app: web.Application) -> AsyncIterator[None]:
    app[_WATCH] = watch = Watch(app[NODE].services.clock)
    running = asyncio.create_task(watch.run())
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def _wire(error: Error) -> dict[str, Any]:
    return {"code": error.value.code, "message": error.value.message}


def _answer(body: Json, status: int) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


_WATCH: Final = web.AppKey("watch", Watch)
