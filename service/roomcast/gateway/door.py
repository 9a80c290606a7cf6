"""Accepts connections while places are free, and closes those that hold a place without using it.

aiohttp's own site is not used, because its accept loop is asyncio's. That loop has no limit,
accepts a thousand connections in one turn, and logs a traceback for each one once descriptors run
out. Then calls to AWS would find no descriptor either.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import StreamReader, web
from aiohttp.http_parser import RawRequestMessage

from roomcast.concurrency import Portions, Turns
from roomcast.gateway.faults import server_logger
from roomcast.gateway.parsing import PARSED_AT_ONCE, RECORDS_A_TURN, REQUESTS_A_TURN, Parsing
from roomcast.rates import Rate, Seldom

__all__ = [
    "ANSWERS_A_TURN",
    "ANSWER_S",
    "AUTHORITY_CHARS_MAX",
    "HEADERS_MAX",
    "HEAD_BYTES_MAX",
    "LENGTH_DIGITS_MAX",
    "REQUEST_S",
    "SERVER",
    "SLASHES_MAX",
    "STREAM_END_S",
    "UNSENT_BYTES_MAX",
    "Door",
    "GiveWay",
    "end_proxied",
    "hand_over",
    "name_no_version",
    "open_line",
]

# From the accept, or from the previous answer, until a request's headers are complete. A connection
# that sends none in this time is closed. Under TLS, as long before that for the handshake.
REQUEST_S: Final = 10.0
# How long an answer may wait in this process for a peer that does not read all of it. It is enough
# for 8 MiB.
ANSWER_S: Final = 30.0
# What a WebSocket that is being closed has left when the process ends. Its client has half of that
# to answer the close.
STREAM_END_S: Final = 2.0
# Header fields of a request. Browsers send about fifteen, proxies add about ten.
HEADERS_MAX: Final = 64
# Bytes of a request before its body. Load balancers pass on no more, and each byte takes two in
# memory as long as there are more to come.
HEAD_BYTES_MAX: Final = 64 * 1024
# Digits of a Content-Length: as many as 64 bits have. Python reads none of more than 4,300, even if
# they are zeros, which would be a fault of ours.
LENGTH_DIGITS_MAX: Final = 20
# Slashes in a request's path. Our paths have three, and two more with a scheme in front. For each
# slash aiohttp looks up a route with a copy of the path before it: 8,000 in one request took 20 ms.
SLASHES_MAX: Final = 16
# Characters of the host and port in a request's target, if it has a host. A name has 253. aiohttp
# decodes it, also if it came from another alphabet: 8 KiB took 35 ms.
AUTHORITY_CHARS_MAX: Final = 320
# Requests that are answered in one turn of the event loop: some milliseconds.
ANSWERS_A_TURN: Final = 16
# The Server header: it names neither a version nor a platform.
SERVER: Final = "roomcast"

# Bytes that the kernel takes for a peer that takes none. By itself it takes 4 MB, which nothing
# counts. What is on its way is not meant, so a long way is as fast as ever.
UNSENT_BYTES_MAX: Final = 128 * 1024

# Connections that may wait for accept: a new node receives all clients of a closed one at once.
_BACKLOG: Final = 1024
# Connections that one turn of the event loop accepts: some milliseconds.
_ACCEPTS_A_TURN: Final = 8
# Messages of TLS handshakes that one turn takes: a signature takes a millisecond with a key of RSA.
_HANDSHAKES_A_TURN: Final = 8
# The pause after a failed accept: the system may lack a descriptor or memory.
_PAUSE_S: Final = 1.0
# Errors of accept(2) that concern a single connection, which is gone already and out of the queue.
# Any other error would recur at once.
_OF_ONE: Final = frozenset({
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOPROTOOPT,
    errno.EPROTO,
})  # fmt: skip
# The interval between two checks for peers that do not read.
_LOOK_S: Final = 1.0
# Bytes that are read from one connection at a time. asyncio's own 256 KiB can hold 40,000 frames,
# and all of them would be parsed before any other connection has a turn.
_READ_BYTES_MAX: Final = 8 * 1024
# Requests of one connection that wait behind the one that is being answered. Beyond that nothing is
# read from it.
_REQUESTS_WAITING: Final = 1
_TOLD: Final = Rate(per_s=1.0, burst=1.0)

_log = structlog.get_logger(__name__)


def _request(made: Any, message: RawRequestMessage, *about: Any) -> web.BaseRequest:
    """The request that `made` builds from `message`.

    Raises ValueError for no target at all, for a path with so many slashes that the look-up of its
    route would be expensive, for a host or a length that is longer than any, and for an Expect that
    is no ASCII.
    """
    if not message.path:
        # A CONNECT to nowhere has no address either, which aiohttp does not expect.
        raise ValueError("a target that is none")
    if len(message.url.raw_authority) > AUTHORITY_CHARS_MAX:
        raise ValueError("a host that no name is")
    if len(message.headers.get("Content-Length", "")) > LENGTH_DIGITS_MAX:
        raise ValueError("a length that no body has")
    if message.path.partition("?")[0].count("/") > SLASHES_MAX:
        raise ValueError("more slashes than any path here has")
    if not message.headers.get("Expect", "").isascii():
        # aiohttp would quote it in its refusal, which bytes that are no text make a fault of ours.
        raise ValueError("an Expect that nobody sends")
    request: web.BaseRequest = made(message, *about)
    return request


class _Guest(web.RequestHandler):
    """One connection: aiohttp's HTTP handler, which also reports its end to the door."""

    __slots__ = (
        "_came",
        "_door",
        "_head_bytes",
        "_newest",
        "_unwanted",
        "line",
        "unread_since_s",
        "wire",
    )

    def __init__(self, door: Door, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        # Called with the parsed request, before a route is looked up.
        self._request_factory = partial(_request, self._request_factory)
        # aiohttp would keep 32 requests, each with half a megabyte of headers.
        self._max_msg_queue_size, self._msg_queue_resume_size = _REQUESTS_WAITING, 0
        self._door = door
        # What came and waits to be parsed; nothing is read meanwhile.
        self._came = b""
        # Of the request whose headers come.
        self._head_bytes = 0
        # The body of the newest request, which may still come; None = it was answered.
        self._newest: StreamReader | None = None
        # The body whose rest is dropped as it comes; None = there is none.
        self._unwanted: StreamReader | None = None
        # Since when bytes have been waiting for the peer to read them. None = none are.
        self.unread_since_s: float | None = None
        # The transport of the socket. None = it is not there yet.
        self.wire: asyncio.Transport | None = None
        # What is spoken over: the same, or TLS over it. None = it is not there yet.
        self.line: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.line = transport
        if self.wire is None:
            self.wire = transport
            transport.max_size = _READ_BYTES_MAX  # type: ignore[attr-defined]  # of asyncio's own transport for sockets
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._unwanted is not None:
            return
        is_little = len(data) <= PARSED_AT_ONCE
        if not self._came and (is_little or self._door.parsing.has_room(len(data))):
            self._parse(data)
            return
        assert self.line is not None, "it is connected"
        if not self._came:
            self._door.parsing.wait(self)
        # aiohttp may have gone on reading meanwhile.
        self._came += data
        self.line.pause_reading()

    def parse(self) -> int:
        """Parses what waits, and reads on, unless aiohttp does not. Returns its bytes."""
        data = self.came()
        if data and self.line is not None:
            try:
                self._parse(data)
            except Exception as error:  # noqa: BLE001  # a bug: others wait behind this connection
                self.log_exception("Unhandled exception", exc_info=error)
                self.force_close()
                return len(data)
            if not (self._reading_paused or self._buffer_paused):
                self.line.resume_reading()
        return len(data)

    def came(self) -> bytes:
        """What waits to be parsed, which the caller takes over."""
        came, self._came = self._came, b""
        return came

    def _parse(self, data: bytes) -> None:
        if self._unwanted is not None:
            return
        # Of a connection that answers nothing the first request waits no longer than this turn.
        # To stop reading because of it, and to go on, would be two calls of the kernel.
        self._max_msg_queue_size = _REQUESTS_WAITING + (self._waiter is not None)
        super().data_received(data)
        if not self._messages:
            self._count_head(len(data))
        else:
            self._head_bytes = 0
            message, body = self._messages[-1]
            # What cannot be parsed waits for its answer as an error.
            error = getattr(message, "exc", None)
            if error is None:
                self._newest = body
            else:
                _let_go(error)
                self._break_off()

    def _count_head(self, size: int) -> None:
        """Counts bytes that completed no request. What comes during one is its body, or the head of
        one request that waits behind it.
        """
        if self._current_request is None and self._newest is None:
            self._head_bytes += size
            if self._head_bytes > HEAD_BYTES_MAX:
                self.force_close()

    def _break_off(self) -> None:
        """Ends the body that was coming, as what came is no part of one. aiohttp would let its
        request wait for the rest.
        """
        if self._newest is not None and not self._newest.is_eof():
            self._newest.set_exception(web.RequestPayloadError("what came is no part of a body"))
            self._newest.feed_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        try:
            super().connection_lost(exc)
        finally:
            self._came = b""
            if self._unwanted is not None:
                # aiohttp would wait for the rest, for ten seconds.
                self._unwanted.feed_eof()
            self._door.left(self)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer. If the request's body has not come by then, nobody wants the rest.

        The rest is received, so that the peer reads the answer, but not parsed: in chunks of one
        byte, 8 KiB take more than a millisecond.
        """
        if self._newest is request.content:
            self._newest = None
        if not request.content.is_eof():
            self._unwanted = request.content
            resp.force_close()
        elif request.content.exception() is not None:
            # Nothing behind it is a request.
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            if isinstance(resp, BaseException):
                # A refusal that was raised.
                _let_go(resp)

    async def start(self) -> None:
        """Closes the connection when aiohttp fails to build a request.

        aiohttp builds it outside its own error handling, so nothing would answer or close
        otherwise.
        """
        try:
            await super().start()
        except ValueError as error:
            # An address that parses but cannot be decoded, such as a host that is not valid IDNA,
            # or what `_request` refuses.
            _log.debug("request_broken", reason=type(error).__name__)
            self.force_close()
        except Exception as error:  # noqa: BLE001  # whatever it was, its place is free again
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()

    def make_room(self) -> Callable[[], None]:
        """Leaves its place to a WebSocket. Returns what gives that place back."""
        assert self.wire is not None, "it has sent a request"
        return self._door.streams(self, self.wire)

    def handle_error(self, *arguments: Any, **options: Any) -> web.StreamResponse:
        """Sets the Server header, because no signal runs for a request that cannot be parsed."""
        response = super().handle_error(*arguments, **options)
        response.headers["Server"] = SERVER
        return response


class _Secured(SSLProtocol):
    """TLS between a guest and its socket.

    asyncio would make the same of `ssl=`, with a buffer of 256 KiB for each connection, which it
    fills with zeros: 10,000 clients would take 2.5 GB. And it would decrypt as much in one turn.
    """

    max_size = _READ_BYTES_MAX

    def __init__(
        self,
        guest: _Guest,
        context: ssl.SSLContext,
        shaken: asyncio.Future[None],
        portions: Portions,
        records: Parsing,
        *,
        handshake_s: float,
        goodbye_s: float,
    ) -> None:
        """`shaken` is done when the handshake is, however it ended. `portions`: bounds what
        handshakes compute in one turn; `records`: what is decrypted in one. `goodbye_s`: from the
        close until the peer has read everything and answered it.
        """
        super().__init__(
            shaken.get_loop(),
            guest,
            context,
            shaken,
            server_side=True,
            ssl_handshake_timeout=handshake_s,  # type: ignore[arg-type]  # of typeshed; it is a delay like any
            ssl_shutdown_timeout=goodbye_s,
        )
        # Until there is a connection. Then the guest leads here, and a cycle would be freed late.
        self._guest: _Guest | None = guest
        self._wire: asyncio.Transport | None = None
        # Until the handshake is done: a future keeps the traceback of its error, which leads here.
        self._shaken: asyncio.Future[None] | None = shaken
        self._portions = portions
        # Takes what came of the handshake.
        self._taking: asyncio.Task[None] | None = None
        self._records = records
        # What came and waits to be decrypted; nothing is read meanwhile.
        self._came = b""
        # What may wait here, still encrypted, while the guest reads nothing.
        self._set_read_buffer_limits(high=_READ_BYTES_MAX)  # type: ignore[attr-defined]  # typeshed lacks it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        assert self._guest is not None, "there is one connection"
        self._guest.wire, self._guest = transport, None
        self._wire = transport
        # What waits there is counted here, so that the guest writes no more until it has gone.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def _get_write_buffer_size(self) -> int:
        waiting = 0 if self._wire is None else self._wire.get_write_buffer_size()
        size: int = super()._get_write_buffer_size()  # type: ignore[misc]  # typeshed lacks it
        return size + waiting

    def buffer_updated(self, nbytes: int) -> None:
        if self._shaken is None or self._shaken.done():
            self._shaken = None
            self._take_records(nbytes)
            return
        assert self._wire is not None, "something came of it"
        # What comes next would be read to where these bytes are.
        self._wire.pause_reading()
        self._taking = asyncio.create_task(self._take_in_turn(nbytes))

    def _take_records(self, nbytes: int) -> None:
        """Decrypts what is in the buffer, in this turn or a later one."""
        is_little = nbytes <= PARSED_AT_ONCE
        if not self._came and (is_little or self._records.has_room(nbytes)):
            super().buffer_updated(nbytes)
            return
        assert self._wire is not None, "something came of it"
        if not self._came:
            self._records.wait(self)
        # Not left in the buffer: the guest may have more read there meanwhile.
        self._came += bytes(self.get_buffer(nbytes)[:nbytes])
        self._wire.pause_reading()

    def parse(self) -> int:
        """Decrypts what waits, and reads on, unless the guest does not. Returns its bytes."""
        came, self._came = self._came, b""
        if self._wire is None or self._wire.is_closing():
            return 0
        for begin in range(0, len(came), self.max_size):
            piece = came[begin : begin + self.max_size]
            self.get_buffer(len(piece))[: len(piece)] = piece
            super().buffer_updated(len(piece))
        if self._wire is not None and not self._ssl_reading_paused:  # type: ignore[attr-defined]  # typeshed lacks it
            self._wire.resume_reading()
        return len(came)

    async def _take_in_turn(self, nbytes: int) -> None:
        await self._portions.wait()
        if self._wire is not None and not self._wire.is_closing():
            self._wire.resume_reading()
            super().buffer_updated(nbytes)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = self._shaken = None
        self._came = b""
        super().connection_lost(exc)


def _let_go(error: BaseException) -> None:
    """Frees what the functions that `error` passed through held.

    aiohttp's own of these hold the error, so only the collector would free them, with the request
    and its headers. It comes after so many objects that two thousand requests fill a gigabyte.
    """
    error.__traceback__ = None


class _Rest:
    """Takes what came behind a request, as a parser of aiohttp's would."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Aiohttp lets go."""


def open_line(request: web.BaseRequest) -> asyncio.Transport | None:
    """The connection of `request`, which `hand_over` may give away in this turn. None: it has ended
    or is about to.

    Under TLS, a protocol hears of the end a turn late. Whoever took over within that turn would
    never hear of it.
    """
    transport = request.transport
    return None if transport is None or transport.is_closing() else transport


def hand_over(handler: web.RequestHandler, successor: asyncio.Protocol) -> Callable[[], None]:
    """Has `successor` serve the connection of `handler`, whose request has been answered.

    aiohttp lets go of the connection, as if it was lost. Returns what must be called when it is.
    The successor's `data_received` gets what came behind the request in a later turn.
    """
    transport = handler.transport
    assert transport is not None, "it is open"
    rest = _Rest()
    handler.set_parser(rest)  # type: ignore[arg-type]  # it needs no more than these two methods
    transport.set_protocol(successor)
    left: Callable[[], None] = _nothing
    if isinstance(handler, _Guest):
        rest.data += handler.came()
        left = handler.make_room()
    # It must not close the transport.
    handler.transport = None
    handler.connection_lost(None)
    # aiohttp reads nothing while further requests wait behind this one. Nobody would hear that the
    # peer is gone.
    transport.resume_reading()
    if rest.data:
        # Also what is ready to be read in this very turn must not come before it.
        transport.pause_reading()
        asyncio.get_running_loop().call_soon(_go_on_reading, transport, successor, rest.data)
    return left


def _go_on_reading(transport: asyncio.Transport, successor: asyncio.Protocol, first: bytes) -> None:
    # In this order, because the successor may pause it again.
    transport.resume_reading()
    successor.data_received(first)


def _nothing() -> None:
    """For servers without a door."""


class Door:
    """Lets in at most `places_max` connections at once, through all of its sockets together.

    Connections beyond that wait in the kernel.

    `tls`: returns what handshakes that begin now have; None = there is no TLS. `on_full`: called
    when all places become taken. `request_s`, `answer_s`, `stream_end_s`: see REQUEST_S, ANSWER_S
    and STREAM_END_S.
    """

    def __init__(
        self,
        server: web.Server,
        listening: socket.socket,
        *,
        places_max: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
        on_full: Callable[[], None] = lambda: None,
        request_s: float = REQUEST_S,
        answer_s: float = ANSWER_S,
        stream_end_s: float = STREAM_END_S,
    ) -> None:
        assert places_max > 0, "somebody gets in"
        self._server = server
        self._listening = [listening]
        self._places_max = places_max
        self._tls = tls
        self._on_full = on_full
        self._request_s = request_s
        self._answer_s = answer_s
        self._stream_end_s = stream_end_s
        self._loop = asyncio.get_running_loop()
        # Those that speak plain HTTP, or have sent nothing yet.
        self._guests: set[_Guest] = set()
        # Those of them whose TLS handshake is not done.
        self._shaking: set[_Guest] = set()
        # The others: WebSockets, which have time limits of their own. Of each, its socket's.
        self._streaming: set[asyncio.Transport] = set()
        # Done when the last of these is gone; None = nobody waits for it.
        self._last_gone: asyncio.Future[None] | None = None
        self._coming: set[asyncio.Task[None]] = set()
        self._is_open = False
        self._is_accepting = False
        self._pause: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._portions = Portions(_HANDSHAKES_A_TURN)
        self._records = Parsing(RECORDS_A_TURN)
        self.parsing: Final = Parsing(REQUESTS_A_TURN)
        self._told_full = Seldom(_TOLD)
        self._told_failed = Seldom(_TOLD)

    def __len__(self) -> int:
        """The number of open connections."""
        return len(self._guests) + len(self._streaming)

    def open(self) -> None:
        """Listens, and accepts from now on. Raises OSError."""
        for each in self._listening:
            _listen(each)
        self._is_open = True
        self._looking = asyncio.create_task(self._look())
        self._go_on()

    def also(self, listening: socket.socket) -> None:
        """Listens at another address as well, while the door is open. Raises OSError."""
        assert self._is_open, "a door that is closed stays so"
        _listen(listening)
        self._stop()
        self._listening.append(listening)
        self._go_on()

    def no_longer(self, listening: socket.socket) -> None:
        """Closes one of the sockets. Connections that came through it stay. Idempotent."""
        if listening in self._listening:
            self._stop()
            self._listening.remove(listening)
            self._go_on()
        listening.close()

    async def close(self) -> None:
        """Stops accepting. Open connections stay, and are still checked. Idempotent.

        Those whose TLS handshake is not done are ended: nothing was asked of this node yet.
        """
        if self._is_open:
            self._is_open = False
            self._stop()
            if self._pause is not None:
                self._pause.cancel()
            for each in self._listening:
                each.close()
        while self._coming:
            await asyncio.wait(self._coming)
        for guest in self._shaking:
            if guest.wire is not None:
                guest.wire.abort()

    async def end(self) -> None:
        """Stops accepting and checking: for the time when all connections are gone or about
        to go. WebSockets that are still open after STREAM_END_S are ended.
        """
        await self.close()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._streaming:
            self._last_gone = self._loop.create_future()
            await asyncio.wait([self._last_gone], timeout=self._stream_end_s)
        for transport in self._streaming:
            transport.abort()
        # They are gone in the next turn.
        await asyncio.sleep(0)

    def left(self, guest: _Guest) -> None:
        """`guest` is gone; its place is free. Idempotent."""
        self._guests.discard(guest)
        self._go_on()

    def streams(self, guest: _Guest, transport: asyncio.Transport) -> Callable[[], None]:
        """`guest` became a WebSocket over `transport`, which has its place now. Its writer bounds
        the bytes that wait for the peer.

        Returns what is called when the connection is lost.
        """
        self._guests.discard(guest)
        self._streaming.add(transport)
        return partial(self._end_of, transport)

    def _end_of(self, transport: asyncio.Transport) -> None:
        self._streaming.discard(transport)
        if self._last_gone is not None and not self._streaming and not self._last_gone.done():
            self._last_gone.set_result(None)
        self._go_on()

    # ---- accepting

    def _go_on(self) -> None:
        """Accepts again, if a place is free and no pause is due."""
        is_full = len(self) >= self._places_max
        if self._is_open and not self._is_accepting and not is_full and self._pause is None:
            self._is_accepting = True
            for each in self._listening:
                self._loop.add_reader(each.fileno(), self._accept, each)

    def _stop(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            for each in self._listening:
                self._loop.remove_reader(each.fileno())

    def _accept(self, listening: socket.socket) -> None:
        """Accepts connections that wait in the kernel."""
        for _ in range(_ACCEPTS_A_TURN):
            if len(self) >= self._places_max:
                self._stop()
                self._full()
                return
            try:
                connected, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OF_ONE:
                    continue
                # _PAUSE_S bounds the rate of these lines.
                _log.error("accept_failed", reason=error.strerror, connections=len(self))
                self._stop()
                self._pause = self._loop.call_later(_PAUSE_S, self._pause_over)
                return
            connected.setblocking(False)
            guest = self._guest()
            self._guests.add(guest)
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
            # aiohttp would inflate a body as it arrives, before any key is checked: 8 KiB can
            # become 8 MiB in one turn.
            auto_decompress=False,
        )

    async def _let_in(self, guest: _Guest, connected: socket.socket) -> None:
        protocol = guest if self._tls is None else self._secured(guest, self._tls())
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connected)
        except OSError as error:
            # The connection ended before it had a transport. With one, the transport reports the
            # end.
            if guest.wire is None:
                connected.close()
                self.left(guest)
                if isinstance(protocol, _Secured):
                    protocol.connection_lost(error)

    # ---- TLS

    def _secured(self, guest: _Guest, context: ssl.SSLContext) -> _Secured:
        """What speaks TLS for `guest`, which is told of the connection after the handshake."""
        shaken = self._loop.create_future()
        shaken.add_done_callback(partial(self._shaken, guest))
        self._shaking.add(guest)
        return _Secured(
            guest,
            context,
            shaken,
            self._portions,
            self._records,
            handshake_s=self._request_s,
            goodbye_s=self._answer_s,
        )

    def _shaken(self, guest: _Guest, shaken: asyncio.Future[None]) -> None:
        """The handshake is done, or failed, or has taken REQUEST_S."""
        self._shaking.discard(guest)
        error = shaken.exception()
        if guest.line is None:
            self.left(guest)
        # Without an error, it was ended by ourselves.
        if error is not None:
            self._tell_failed(error)
            _let_go(error)

    def _tell_failed(self, error: BaseException) -> None:
        passed_over = self._told_failed.again(self._loop.time())
        if passed_over is not None:
            # OpenSSL's own word for it, such as HTTP_REQUEST for a peer that speaks no TLS.
            reason = getattr(error, "reason", None) or type(error).__name__
            if isinstance(error, ConnectionAbortedError):
                reason = "took too long"
            _log.info("tls_handshake_failed", reason=reason, passed_over=passed_over)

    # ---- peers that do not read

    async def _look(self) -> None:
        """Checks at intervals until cancelled."""
        while True:
            await asyncio.sleep(min(_LOOK_S, self._answer_s))
            self.end_unread(self._loop.time())

    def end_unread(self, now_s: float) -> None:
        """Closes connections whose answers have waited too long to be read.

        Also those that wait for nothing but the goodbye of TLS, which a peer need not say.

        `now_s`: by the event loop's clock.
        """
        for guest in list(self._guests):
            if guest.wire is None or guest.line is None:
                continue
            if not guest.wire.get_write_buffer_size():
                guest.unread_since_s = None
                if guest.line is not guest.wire and guest.line.is_closing():
                    guest.wire.abort()
            elif guest.unread_since_s is None:
                guest.unread_since_s = now_s
            elif now_s - guest.unread_since_s >= self._answer_s:
                guest.wire.abort()


def _listen(listening: socket.socket) -> None:
    listening.setblocking(False)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Connections have what the socket has through which they came.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
    listening.listen(_BACKLOG)


async def name_no_version(_request: web.Request, response: web.StreamResponse) -> None:
    """Hides the versions of aiohttp and Python, which aiohttp would send
    (`on_response_prepare`).
    """
    response.headers["Server"] = SERVER


class GiveWay:
    """Lets other tasks run before an answer (`on_response_prepare`).

    From Python 3.12 on aiohttp begins and ends a request without such a pause. All requests that a
    peer sent at once would be answered in one turn. And on many connections, no more than
    ANSWERS_A_TURN requests are answered in the same turn.
    """

    def __init__(self) -> None:
        self._turns = Turns(ANSWERS_A_TURN)

    async def __call__(self, _request: web.Request, _response: web.StreamResponse) -> None:
        await self._turns.wait()


async def end_proxied(request: web.Request, response: web.StreamResponse) -> None:
    """Closes a proxy's connection after its first request (`on_response_prepare`).

    Load balancers keep connections for minutes, longer than REQUEST_S. A balancer could send a
    request into a connection that is just being closed for its silence, and would then answer its
    client with "bad gateway".
    """
    if "X-Forwarded-For" in request.headers:
        response.force_close()
        response.headers["Connection"] = "close"
