"""The way in: accepts connections while there is a place for them, and ends those that hold one without using it.

Why not aiohttp's own site: its accept loop is asyncio's, which knows no limit, takes a thousand connections in one turn,
and at the end of the descriptors logs a traceback for each of them. Then there is none left for a call of AWS either.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from roomcast.gateway.faults import server_logger
from roomcast.rates import Rate, Seldom

__all__ = [
    "ANSWER_S",
    "HEADERS_MAX",
    "REQUEST_S",
    "SERVER",
    "SLASHES_MAX",
    "Door",
    "end_proxied",
    "give_way",
    "name_no_version",
]

# From the accept, or from the answer before, until a request's headers are complete. Who sends none is not needed.
REQUEST_S: Final = 10.0
# How long an answer may wait in this process for a peer that does not read all of it; 8 MiB are sent in that.
ANSWER_S: Final = 30.0
# Header fields of a request. Browsers send some fifteen, proxies add some ten.
HEADERS_MAX: Final = 64
# In the path of a request. Ours have three, and two more with a scheme before them. For each of them aiohttp
# looks for a route, in a copy of what stands before it: 8,000 in one request took 20 ms.
SLASHES_MAX: Final = 16
# What we call ourselves: not in which version, nor on what we run.
SERVER: Final = "roomcast"

# Connections that wait for accept: a node that comes up meets everybody whom another one closed.
_BACKLOG: Final = 1024
# Of them, those that are accepted in one turn of the event loop: some milliseconds.
_ACCEPTS_A_TURN: Final = 8
# After the system could not hand another one over: it may have no descriptor or memory for it.
_PAUSE_S: Final = 1.0
# What accept(2) reports of the one who came, and takes out of the queue with that: who was at the
# door is gone already. Whatever else it says would be said again at once.
_OF_ONE: Final = frozenset({
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOPROTOOPT,
    errno.EPROTO,
})  # fmt: skip
# Between two looks at who does not read.
_LOOK_S: Final = 1.0
# What the kernel hands over of one connection at a time. asyncio's own 256 KiB can hold 40,000 frames, all of which would
# be parsed before anybody else has a turn.
_READ_BYTES_MAX: Final = 8 * 1024
_TOLD: Final = Rate(per_s=1.0, burst=1.0)

_log = structlog.get_logger(__name__)


def _request(made: Any, message: RawRequestMessage, *about: Any) -> web.BaseRequest:
    """What `made` makes of `message`. Raises ValueError for a path that leads nowhere at a great cost."""
    if message.path.partition("?")[0].count("/") > SLASHES_MAX:
        raise ValueError("more slashes than any path here has")
    request: web.BaseRequest = made(message, *about)
    return request


class _Guest(web.RequestHandler):
    """One connection: aiohttp's server side of HTTP, which tells when it is gone."""

    __slots__ = ("_door", "is_streaming", "unread_since_s", "wire")

    def __init__(self, door: Door, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        # Called with what was parsed, before anything looks for a route.
        self._request_factory = partial(_request, self._request_factory)
        self._door = door
        # It became a WebSocket, whose own rules hold from then on.
        self.is_streaming = False
        # Since when something has been waiting for the peer to read; None = nothing is.
        self.unread_since_s: float | None = None
        self.wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.wire = transport
        transport.max_size = _READ_BYTES_MAX  # type: ignore[attr-defined]  # of asyncio's own transport for sockets
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        try:
            super().connection_lost(exc)
        finally:
            self._door.left(self)

    async def start(self) -> None:
        """Aiohttp makes the request outside of what it guards: what fails there would leave nobody to answer or to end it."""
        try:
            await super().start()
        except ValueError as error:
            # An address that can be parsed and not decoded, such as one whose host is no IDNA, or a
            # path that leads nowhere.
            _log.debug("request_broken", reason=type(error).__name__)
            self.force_close()
        except Exception as error:  # noqa: BLE001  # whatever it was, its place is free again
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()

    def set_parser(self, *arguments: Any, **options: Any) -> None:
        self.is_streaming = True
        self._door.streams(self)
        super().set_parser(*arguments, **options)

    def handle_error(self, *arguments: Any, **options: Any) -> web.StreamResponse:
        """What could not be parsed reaches no application whose signals would name us."""
        response = super().handle_error(*arguments, **options)
        response.headers["Server"] = SERVER
        return response


class Door:
    """Lets in at most `places_max` connections at once. Who comes when they are taken waits in the kernel.

    `on_full`: called when that begins. `request_s`, `answer_s`: see REQUEST_S and ANSWER_S.
    """

    def __init__(
        self,
        server: web.Server,
        listening: socket.socket,
        *,
        places_max: int,
        on_full: Callable[[], None] = lambda: None,
        request_s: float = REQUEST_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        assert places_max > 0, "somebody gets in"
        self._server = server
        self._listening = listening
        self._places_max = places_max
        self._on_full = on_full
        self._request_s = request_s
        self._answer_s = answer_s
        self._loop = asyncio.get_running_loop()
        self._guests: set[_Guest] = set()
        # Of them, those that speak plain HTTP, or nothing yet.
        self._asking: set[_Guest] = set()
        self._coming: set[asyncio.Task[None]] = set()
        self._is_open = False
        self._is_accepting = False
        self._pause: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._told_full = Seldom(_TOLD)

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._guests)

    def open(self) -> None:
        """Listen, and accept from now on. Raises OSError."""
        self._listening.setblocking(False)
        self._listening.listen(_BACKLOG)
        self._is_open = True
        self._looking = asyncio.create_task(self._look())
        self._go_on()

    async def close(self) -> None:
        """Accept nobody any more; who is inside stays, and is still looked after. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._stop()
            if self._pause is not None:
                self._pause.cancel()
            self._listening.close()
        while self._coming:
            await asyncio.wait(self._coming)

    async def end(self) -> None:
        """Close, and look after nobody any more: for when everybody is gone or about to be."""
        await self.close()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def left(self, guest: _Guest) -> None:
        """`guest` is gone; its place is free. Idempotent."""
        self._guests.discard(guest)
        self._asking.discard(guest)
        self._go_on()

    def streams(self, guest: _Guest) -> None:
        """`guest` became a WebSocket: what waits for it to be read is bounded by its writer."""
        self._asking.discard(guest)

    # ---- accepting

    def _go_on(self) -> None:
        """Accept, if there is a place and no reason to wait."""
        is_full = len(self._guests) >= self._places_max
        if self._is_open and not self._is_accepting and not is_full and self._pause is None:
            self._is_accepting = True
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def _stop(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._listening.fileno())

    def _accept(self) -> None:
        """Somebody is at the door."""
        for _ in range(_ACCEPTS_A_TURN):
            if len(self._guests) >= self._places_max:
                self._stop()
                self._full()
                return
            try:
                connected, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OF_ONE:
                    continue
                # Each of these lines is at least _PAUSE_S after the one before.
                _log.error("accept_failed", reason=error.strerror, connections=len(self._guests))
                self._stop()
                self._pause = self._loop.call_later(_PAUSE_S, self._pause_over)
                return
            connected.setblocking(False)
            guest = self._guest()
            self._guests.add(guest)
            self._asking.add(guest)
            coming = self._loop.create_task(self._let_in(guest, connected))
            self._coming.add(coming)
            coming.add_done_callback(self._coming.discard)

    def _pause_over(self) -> None:
        self._pause = None
        self._go_on()

    def _full(self) -> None:
        self._on_full()
        passed_over = self._told_full.again(self._loop.time())
        if passed_over is not None:
            _log.warning("places_taken", places=self._places_max, passed_over=passed_over)

    def _guest(self) -> _Guest:
        return _Guest(
            self,
            self._server,
            loop=self._loop,
            keepalive_timeout=self._request_s,
            logger=server_logger(),
            access_log=None,
            max_headers=HEADERS_MAX,
            # A body is inflated as it comes, before anybody asks for it or for a key: of 8 KiB, 8 MiB in one turn.
            auto_decompress=False,
        )

    async def _let_in(self, guest: _Guest, connected: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: guest, connected)
        except OSError:
            # It went as it came. With a transport, that one tells of the end.
            if guest.wire is None:
                connected.close()
                self.left(guest)

    # ---- who does not read

    async def _look(self) -> None:
        """Now and then. It ends by being cancelled."""
        while True:
            await asyncio.sleep(min(_LOOK_S, self._answer_s))
            self.end_unread(self._loop.time())

    def end_unread(self, now_s: float) -> None:
        """End those whose answers have been waiting to be read for too long. `now_s`: by the event loop's clock."""
        for guest in list(self._asking):
            if guest.wire is None:
                continue
            if not guest.wire.get_write_buffer_size():
                guest.unread_since_s = None
            elif guest.unread_since_s is None:
                guest.unread_since_s = now_s
            elif now_s - guest.unread_since_s >= self._answer_s:
                guest.wire.abort()


async def name_no_version(_request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler (`on_response_prepare`): aiohttp would tell its own version and Python's."""
    response.headers["Server"] = SERVER


async def give_way(_request: web.Request, _response: web.StreamResponse) -> None:
    """A signal handler (`on_response_prepare`): others have their turn between the requests of one connection.

    From Python 3.12 on aiohttp begins and ends a request without one, so all that were sent at once would be answered at once.
    """
    await asyncio.sleep(0)


async def end_proxied(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler (`on_response_prepare`): what came through a proxy is the last request of its connection.

    Load balancers keep connections for minutes, longer than REQUEST_S. One of them would at times send a request into
    a connection that is just being ended for its silence, and tell its client of a bad gateway.
    """
    if "X-Forwarded-For" in request.headers and not isinstance(response, web.WebSocketResponse):
        response.force_close()
        response.headers["Connection"] = "close"
