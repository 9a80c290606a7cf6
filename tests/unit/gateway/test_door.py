"""The way in: so many at once and no more, and nobody for longer than they need."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import aiohttp
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from roomcast.gateway import door as door_module
from roomcast.gateway.door import (
    ANSWERS_A_TURN,
    HEADERS_MAX,
    SERVER,
    UNSENT_BYTES_MAX,
    Door,
    GiveWay,
    _Guest,
    end_proxied,
    hand_over,
    name_no_version,
)
from roomcast.gateway.parsing import Parsing
from roomcast.gateway.writer import _unsent_in_kernel as unsent_in_kernel
from tests.unit.gateway.frames import BINARY, handshake, masked
from tests.unit.worlds import DEADLINE_S, settled, until

LARGE: Final = b"x" * 8 * 1024 * 1024
GET: Final = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Visitor:
    """A socket that does what it wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def ended(self) -> bytes:
        """Whatever comes until the other side closes."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def leave(self) -> None:
        self.writer.transport.abort()


class Doors:
    def __init__(self, runner: web.AppRunner) -> None:
        self.runner = runner
        self.opened: list[Door] = []
        self.visitors: list[Visitor] = []
        self.full = 0
        self.port = 0
        # Of requests for "/".
        self.bodies: list[aiohttp.StreamReader] = []
        # Set while they are answered.
        self.answering = asyncio.Event()
        self.answering.set()

    async def small(self, request: web.Request) -> web.Response:
        self.bodies.append(request.content)
        await self.answering.wait()
        return web.Response(text="here")

    def open(self, listening: socket.socket | None = None, **options: Any) -> Door:
        listening = listening or socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        assert self.runner.server is not None
        door = Door(
            self.runner.server, listening, on_full=self._on_full, **({"places_max": 100} | options)
        )
        self.opened.append(door)
        door.open()
        return door

    def _on_full(self) -> None:
        self.full += 1

    async def visit(self, said: bytes = b"") -> Visitor:
        visitor = Visitor(*await asyncio.open_connection("127.0.0.1", self.port))
        visitor.writer.write(said)
        self.visitors.append(visitor)
        return visitor


async def _large(_request: web.Request) -> web.Response:
    return web.Response(body=LARGE)


class _Stream(asyncio.Protocol):
    """What a WebSocket's connection is handed to."""

    def __init__(self) -> None:
        self.left: Callable[[], None] | None = None
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: BaseException | None) -> None:
        assert self.left is not None
        self.left()


async def _socket(request: web.Request) -> web.StreamResponse:
    """Writes more than is read."""
    response = web.StreamResponse(status=101)
    await response.prepare(request)
    await response.write_eof()
    assert request.transport is not None
    request.transport.write(LARGE)
    stream = _Stream()
    stream.left = hand_over(request.protocol, stream)
    return response


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    app = web.Application()
    app.on_response_prepare.extend([name_no_version, end_proxied])
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
    made = Doors(runner)
    app.router.add_route("*", "/", made.small)
    app.router.add_get("/large", _large)
    app.router.add_get("/socket", _socket)
    await runner.setup()
    yield made
    for visitor in made.visitors:
        visitor.leave()
    await runner.cleanup()
    for door in made.opened:
        await until(lambda door=door: len(door) == 0)  # type: ignore[misc]
        await door.end()


# ---- several sockets


async def test_the_kernel_takes_little_for_who_reads_nothing(doors: Doors) -> None:
    door = doors.open()
    await _unread(doors, door, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    [guest] = door._guests
    assert guest.wire is not None
    # The kernel takes whole pieces of memory.
    await until(lambda: guest.wire is not None and unsent_in_kernel(guest.wire) > 0)
    assert unsent_in_kernel(guest.wire) <= UNSENT_BYTES_MAX + 128 * 1024
    assert guest.wire.get_write_buffer_size() > len(LARGE) // 2, "here it is counted"


async def test_two_sockets_share_the_places(doors: Doors) -> None:
    door = doors.open(places_max=2)
    own = doors.port
    shared = socket.create_server(("127.0.0.1", 0))
    door.also(shared)
    first = await doors.visit(GET)
    doors.port = shared.getsockname()[1]
    second = await doors.visit(GET)
    assert (await first.head()).startswith(b"HTTP/1.1 200")
    assert (await second.head()).startswith(b"HTTP/1.1 200")
    third = await doors.visit(GET)
    await until(lambda: doors.full)
    assert len(door) == 2
    first.leave()
    assert (await third.head()).startswith(b"HTTP/1.1 200")

    door.no_longer(shared)
    door.no_longer(shared)
    with pytest.raises(ConnectionRefusedError):
        await doors.visit()
    second.writer.write(GET)
    assert b"HTTP/1.1 200" in await second.head(), "who came through it stays"
    second.leave()
    doors.port = own
    assert (await (await doors.visit(GET)).head()).startswith(b"HTTP/1.1 200")


async def test_the_door_closes_all_of_its_sockets(doors: Doors) -> None:
    door = doors.open()
    shared = socket.create_server(("127.0.0.1", 0))
    door.also(shared)
    ports = [doors.port, shared.getsockname()[1]]
    await door.close()
    for doors.port in ports:
        with pytest.raises(ConnectionRefusedError):
            await doors.visit()


# ---- places


async def test_who_comes_when_all_places_are_taken_gets_one_when_somebody_leaves(
    doors: Doors,
) -> None:
    with structlog.testing.capture_logs() as events:
        door = doors.open(places_max=3)
        inside = [await doors.visit() for _ in range(3)]
        await until(lambda: len(door) == 3)
        waiting = [await doors.visit(GET) for _ in range(3)]
        await until(lambda: doors.full == 1)
        for number, visitor in enumerate(inside, start=1):
            visitor.leave()
            # One for one: the others wait on.
            assert (await waiting[number - 1].head()).startswith(b"HTTP/1.1 200")
            assert len(door) == 3
    assert [event["event"] for event in events][:1] == ["places_taken"]
    assert len(events) <= 1 + doors.full


async def test_hundreds_at_once_come_in_turn(doors: Doors) -> None:
    """More than the places, and more than are accepted in one turn."""
    door = doors.open(places_max=70)
    most = 0

    async def visit() -> None:
        nonlocal most
        visitor = await doors.visit(GET)
        assert (await visitor.head()).startswith(b"HTTP/1.1 200")
        most = max(most, len(door))
        visitor.leave()

    await asyncio.gather(*(visit() for _ in range(300)))
    assert most <= 70


async def test_full_again_and_again_is_told_seldom(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = doors.open(places_max=1)
    monkeypatch.setattr(door, "_loop", _Stopped(asyncio.get_running_loop()))
    with structlog.testing.capture_logs() as events:
        for turn in range(1, 6):
            visitor = await doors.visit()
            await until(lambda turn=turn: doors.full == turn)  # type: ignore[misc]
            visitor.leave()
            await until(lambda: len(door) == 0)
    assert [(event["event"], event["passed_over"]) for event in events] == [("places_taken", 0)]


class _Stopped:
    """An event loop whose clock stands still."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def time(self) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class _Poor(socket.socket):
    """The system has no descriptor for another one, so many times."""

    failures = 0
    asked = 0
    error = errno.EMFILE

    def accept(self) -> Any:
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise OSError(self.error, "told by the system")
        return super().accept()


def _poor(failures: int, error: int = errno.EMFILE) -> _Poor:
    made = _Poor()
    made.bind(("127.0.0.1", 0))
    made.failures, made.error = failures, error
    return made


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_without_a_descriptor_it_waits_and_says_so_once(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(door_module, "_PAUSE_S", 0.02)
    listening = _poor(3, error)
    with structlog.testing.capture_logs() as events:
        doors.open(listening)
        visitor = await doors.visit(GET)
        assert (await visitor.head()).startswith(b"HTTP/1.1 200")
    told = [event for event in events if event["event"] == "accept_failed"]
    assert len(told) == 3, "one for each pause"
    assert told[0]["reason"] == "told by the system"


async def test_in_a_pause_it_asks_for_nothing(doors: Doors) -> None:
    listening = _poor(10**9)
    door = doors.open(listening)
    await doors.visit(GET)
    await until(lambda: listening.asked == 1)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert listening.asked == 1
    await door.close()


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EPROTO, errno.ENETUNREACH])
async def test_who_is_gone_before_it_was_accepted_is_passed_over(doors: Doors, error: int) -> None:
    with structlog.testing.capture_logs() as events:
        doors.open(_poor(40, error))
        visitor = await doors.visit(GET)
        assert (await visitor.head()).startswith(b"HTTP/1.1 200")
    assert events == []


async def test_what_is_said_again_at_once_is_waited_for_and_told(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed accept is retried after a pause: at once, it would take a whole core."""
    monkeypatch.setattr(door_module, "_PAUSE_S", 0.02)
    with structlog.testing.capture_logs() as events:
        doors.open(_poor(2, errno.EINVAL))
        visitor = await doors.visit(GET)
        assert (await visitor.head()).startswith(b"HTTP/1.1 200")
    assert [event["event"] for event in events] == ["accept_failed"] * 2


async def test_after_the_close_nobody_gets_in_and_who_is_inside_stays(doors: Doors) -> None:
    door = doors.open()
    inside = await doors.visit(GET)
    await inside.head()
    await door.close()
    await door.close()
    with pytest.raises(OSError, match=r"refused|reset|Connect"):
        await doors.visit(GET)
    inside.writer.write(GET)
    assert await inside.reader.readexactly(4) == b"here"
    assert (await inside.head()).startswith(b"HTTP/1.1 200")


# ---- who does not ask


@pytest.mark.parametrize(
    "said",
    [b"", b"GET", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n"],
    ids=["nothing", "a word", "most"],
)
async def test_who_completes_no_request_is_ended(doors: Doors, said: bytes) -> None:
    door = doors.open(request_s=0.05)
    visitor = await doors.visit(said)
    assert await visitor.ended() == b""
    await until(lambda: len(door) == 0)


async def test_who_says_a_little_now_and_then_is_ended_too(doors: Doors) -> None:
    doors.open(request_s=0.05)
    visitor = await doors.visit(b"GET / HTTP/1.1\r\nHost: a\r\n")
    ended = asyncio.create_task(visitor.ended())
    while not ended.done():
        visitor.writer.write(b"X: 1\r\n")
        await asyncio.wait([ended], timeout=0.005)
    # Some fields fewer than are too many, or some more: it is ended for the one or for the other.
    assert not ended.result() or ended.result().startswith(b"HTTP/1.0 400")


async def test_who_asks_no_further_is_ended(doors: Doors) -> None:
    doors.open(request_s=0.05)
    visitor = await doors.visit(GET)
    assert (await visitor.ended()).endswith(b"here")


async def test_what_came_through_a_proxy_is_the_last_request_of_its_connection(
    doors: Doors,
) -> None:
    """Which may keep it for longer than we do, and must not send another one just then."""
    doors.open(request_s=3600.0)
    visitor = await doors.visit(GET.replace(b"Host", b"X-Forwarded-For: 192.0.2.1\r\nHost"))
    answer = await visitor.ended()
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"here")
    visitor = await doors.visit(GET + GET)
    assert (await visitor.head()).startswith(b"HTTP/1.1 200")
    assert (await visitor.head()).startswith(b"hereHTTP/1.1 200")


async def test_who_becomes_a_websocket_may_be_silent(doors: Doors) -> None:
    door = doors.open(request_s=0.02)
    visitor = await doors.visit(handshake("/socket"))
    await visitor.head()
    other = await doors.visit()
    await other.ended()
    assert len(door) == 1


async def test_too_many_header_fields_are_refused(doors: Doors) -> None:
    doors.open()
    fields = b"".join(b"X-%d: 1\r\n" % number for number in range(HEADERS_MAX))
    visitor = await doors.visit(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    assert b" 400 " in (await visitor.head()).partition(b"\r\n")[0]
    most = b"".join(b"X-%d: 1\r\n" % number for number in range(HEADERS_MAX - 1))
    visitor = await doors.visit(b"GET / HTTP/1.1\r\nHost: a\r\n" + most + b"\r\n")
    assert b" 200 " in (await visitor.head()).partition(b"\r\n")[0]


# ---- who does not read


async def _unread(doors: Doors, door: Door, said: bytes) -> Visitor:
    """A visitor to whom more is written than the kernel takes."""
    visitor = await doors.visit(said)
    visitor.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads
    await until(lambda: any(g.wire and g.wire.get_write_buffer_size() for g in door._guests))
    return visitor


async def test_who_does_not_read_an_answer_is_ended(doors: Doors) -> None:
    door = doors.open(answer_s=0.02)
    await _unread(doors, door, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: len(door) == 0)


async def test_who_is_being_closed_and_does_not_read_is_ended(doors: Doors) -> None:
    """An idle one: the transport waits until everything is written, which it never is."""
    door = doors.open(answer_s=0.02, request_s=0.01)
    await _unread(doors, door, b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await until(lambda: len(door) == 0)


async def test_who_reads_in_time_is_not_ended(doors: Doors) -> None:
    door = doors.open(answer_s=10.0)
    visitor = await _unread(doors, door, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    door.end_unread(100.0)
    door.end_unread(109.0)
    visitor.writer.transport.resume_reading()  # type: ignore[attr-defined]
    await visitor.head()
    async with asyncio.timeout(DEADLINE_S):
        assert await visitor.reader.readexactly(len(LARGE)) == LARGE
    door.end_unread(109.5)
    # It counts from the next time on that something waits.
    visitor.writer.transport.pause_reading()  # type: ignore[attr-defined]
    visitor.writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: any(g.wire and g.wire.get_write_buffer_size() for g in door._guests))
    door.end_unread(111.0)
    door.end_unread(120.0)
    assert len(door) == 1
    door.end_unread(121.0)
    await until(lambda: len(door) == 0)


async def test_few_requests_of_one_connection_wait_for_their_turn(doors: Doors) -> None:
    """Each may have half a megabyte of headers."""
    doors.open()
    doors.answering.clear()
    head = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 4000) for number in range(3))
    visitor = await doors.visit(GET.replace(b"\r\n\r\n", b"\r\n" + head + b"\r\n") * 40)
    await until(lambda: len(doors.bodies) == 1)
    (guest,) = doors.opened[0]._guests
    assert guest.wire is not None
    await until(lambda: not guest.wire.is_reading())  # type: ignore[union-attr]
    assert len(guest._messages) == 1
    doors.answering.set()
    for _ in range(40):
        await visitor.head()
        async with asyncio.timeout(DEADLINE_S):
            assert await visitor.reader.readexactly(4) == b"here"


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is not freed at once stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "said, status",
    [(GET, b"200"), (GET.replace(b"/ ", b"/nowhere "), b"404"), (GET[:-2] + b"x\r\n\r\n", b"400")],
)
async def test_nothing_of_a_request_waits_for_the_collector(
    doors: Doors, said: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector comes after 100,000 objects. A request has some fifty, and up to a megabyte."""
    requests: list[weakref.ref[web.BaseRequest]] = []
    finish = _Guest.finish_response

    async def finished(guest: _Guest, request: web.BaseRequest, *about: Any) -> Any:
        requests.append(weakref.ref(request))
        return await finish(guest, request, *about)

    monkeypatch.setattr(_Guest, "finish_response", finished)
    door = doors.open()
    visitor = await doors.visit(said)
    assert (await visitor.head()).split()[1] == status
    visitor.leave()
    await until(lambda: len(door) == 0)
    doors.bodies.clear()
    await settled()
    assert [each() for each in requests] == [None]


async def test_of_a_body_that_nobody_wants_the_rest_is_not_parsed(doors: Doors) -> None:
    """Chunks of one byte take a hundred times as long to parse as to receive."""
    doors.open()
    visitor = await doors.visit(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    )
    # Its answer does not wait for the rest, and says that no request may follow.
    assert b"Connection: close" in await visitor.head()
    (body,) = doors.bodies
    read = body.total_bytes
    visitor.writer.write(b"1\r\nx\r\n" * 1000)
    visitor.writer.write_eof()
    # By the end, all of it was received.
    await visitor.ended()
    assert body.total_bytes == read


async def test_who_leaves_amidst_a_body_that_nobody_wants_leaves_no_task(doors: Doors) -> None:
    door = doors.open()
    before = len(asyncio.all_tasks())
    visitor = await doors.visit(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    await visitor.head()
    visitor.leave()
    await until(lambda: len(door) == 0)
    await settled()
    assert len(asyncio.all_tasks()) <= before


async def test_a_websocket_that_does_not_read_is_its_writers_business(doors: Doors) -> None:
    door = doors.open(answer_s=10.0)
    visitor = await doors.visit(handshake("/socket"))
    visitor.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads
    await until(lambda: any(wire.get_write_buffer_size() for wire in door._streaming))
    for now_s in (100.0, 200.0, 300.0):
        door.end_unread(now_s)
    await asyncio.sleep(0)
    assert len(door) == 1


async def test_a_websocket_has_its_place_until_it_is_gone(doors: Doors) -> None:
    door = doors.open()
    visitor = await doors.visit(handshake("/socket"))
    await visitor.head()
    await until(lambda: not door._guests)
    assert len(door) == 1
    server = doors.runner.server
    assert server is not None
    await until(lambda: not server.connections)
    visitor.leave()
    await until(lambda: len(door) == 0)


async def test_the_end_waits_for_websockets_and_ends_those_that_stay(doors: Doors) -> None:
    door = doors.open(stream_end_s=0.05)
    visitor = await doors.visit(handshake("/socket"))
    await visitor.head()
    await until(lambda: bool(door._streaming))
    await door.end()
    assert len(door) == 0
    patient = doors.open(stream_end_s=DEADLINE_S)
    visitor = await doors.visit(handshake("/socket"))
    await visitor.head()
    await until(lambda: bool(patient._streaming))
    ending = asyncio.create_task(patient.end())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not ending.done()
    visitor.leave()
    async with asyncio.timeout(DEADLINE_S / 2):
        await ending


async def test_what_comes_with_a_handshake_is_handed_over(doors: Doors) -> None:
    door = doors.open()
    await doors.visit(handshake("/socket") + b"early")
    await until(lambda: bool(door._streaming))
    [wire] = door._streaming
    stream = wire.get_protocol()
    assert isinstance(stream, _Stream)
    await until(lambda: stream.data == b"early")


# ---- turns


async def test_of_one_connection_little_is_read_in_one_turn(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    received: Callable[..., None] = _Stream.data_received

    def data_received(self: Any, data: bytes) -> None:
        sizes.append(len(data))
        received(self, data)

    monkeypatch.setattr(_Stream, "data_received", data_received)
    doors.open()
    visitor = await doors.visit(handshake("/socket"))
    await visitor.head()
    visitor.writer.write(masked(BINARY, b"x" * 1_000_000))
    await until(lambda: sum(sizes) > 1_000_000)
    assert max(sizes) <= 8 * 1024


async def parsed_in_turns(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, a_turn: int, count: int
) -> tuple[list[Visitor], list[_Guest]]:
    """`count` connections that have said nothing yet, from both sides.
    Together, `a_turn` bytes of what they say are parsed in a turn.
    """
    door = doors.open()
    monkeypatch.setattr(door, "parsing", Parsing(a_turn))
    visitors = [await doors.visit() for _ in range(count)]
    await until(lambda: len(door) == count)
    await settled()
    return visitors, list(door._guests)


async def test_of_many_connections_few_bytes_are_parsed_in_one_turn(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight KiB of each, in chunks of one byte, held everybody up for 0.3 s."""
    visitors, guests = await parsed_in_turns(doors, monkeypatch, 1000, 8)
    parse, turn = _Guest._parse, 0
    parsed: Counter[int] = Counter()

    def counted(guest: _Guest, data: bytes) -> None:
        parsed[turn] += len(data)
        parse(guest, data)

    monkeypatch.setattr(_Guest, "_parse", counted)
    request = GET.replace(b"\r\n\r\n", b"\r\nX-Long: %b\r\n\r\n" % (b"x" * 1000))
    for guest in guests:
        guest.data_received(request)
    assert [guest.wire.is_reading() for guest in guests if guest.wire] == [True] + [False] * 7
    while len(parsed) < 8:
        turn += 1
        await asyncio.sleep(0)
    assert set(parsed.values()) == {len(request)}
    for visitor in visitors:
        assert (await visitor.head()).startswith(b"HTTP/1.1 200")
        visitor.writer.write(GET)
        await visitor.reader.readexactly(len("here"))
        assert (await visitor.head()).startswith(b"HTTP/1.1 200"), "it is read on"


async def test_a_request_in_pieces_is_parsed_in_their_order(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    [visitor], [guest] = await parsed_in_turns(doors, monkeypatch, 10, 1)
    body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n" + b"x" * 899
    for piece in (body[:500], body[500:700], body[700:], b"y" + GET):
        guest.data_received(piece)
    assert (await visitor.head()).startswith(b"HTTP/1.1 200")
    await visitor.reader.readexactly(len("here"))
    assert (await visitor.head()).startswith(b"HTTP/1.1 200")
    assert doors.bodies[0].total_bytes == 900, "and what followed was another request"


async def test_what_waits_to_be_parsed_is_handed_over_behind_the_rest(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    [visitor], [guest] = await parsed_in_turns(doors, monkeypatch, 10, 1)
    guest.data_received(handshake("/socket") + b"early")
    guest.data_received(b"and late" * 100)
    await until(lambda: bool(guest._door._streaming))
    [wire] = guest._door._streaming
    stream = wire.get_protocol()
    assert isinstance(stream, _Stream)
    visitor.writer.write(b", at last")
    await until(lambda: stream.data == b"early" + b"and late" * 100 + b", at last")


async def test_who_is_gone_while_it_waits_to_be_parsed_is_nobody(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors, guests = await parsed_in_turns(doors, monkeypatch, 10, 3)
    for guest in guests:
        guest.data_received(GET + b"x" * 300)
    assert guests[1].wire is not None
    guests[1].wire.abort()
    await until(lambda: len(guests[0]._door) < 3)
    heads = [asyncio.ensure_future(visitor.head()) for visitor in visitors]
    done, left = await asyncio.wait(heads, timeout=DEADLINE_S)
    assert not left
    assert sum(head.exception() is None for head in done) == 2


async def test_a_fault_while_one_is_parsed_keeps_nobody_waiting(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors, guests = await parsed_in_turns(doors, monkeypatch, 10, 3)
    parse = _Guest._parse

    def failing(guest: _Guest, data: bytes) -> None:
        assert guest is not guests[1], "a fault of ours"
        parse(guest, data)

    monkeypatch.setattr(_Guest, "_parse", failing)
    for guest in guests:
        guest.data_received(GET + b"x" * 300)
    heads = [asyncio.ensure_future(visitor.head()) for visitor in visitors]
    _, left = await asyncio.wait(heads, timeout=DEADLINE_S)
    assert not left
    assert sum(head.exception() is None for head in heads) == 2


# ---- what we are called


@pytest.mark.parametrize(
    "said",
    [GET, b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", b"nonsense\r\n\r\n", handshake("/socket")],
    ids=["found", "not found", "no HTTP", "a WebSocket"],
)
async def test_no_answer_names_a_version(doors: Doors, said: bytes) -> None:
    doors.open()
    visitor = await doors.visit(said)
    head = await visitor.head()
    assert [line for line in head.split(b"\r\n") if line.lower().startswith(b"server:")] == [
        f"Server: {SERVER}".encode()
    ]
    assert b"aiohttp" not in head
    assert b"Python" not in head


async def test_few_of_very_many_requests_are_answered_in_one_turn() -> None:
    give_way, turn = GiveWay(), 0
    answered_in: list[int] = []

    async def answered() -> None:
        await give_way(make_mocked_request("GET", "/"), web.Response())
        answered_in.append(turn)

    answering = asyncio.gather(*(answered() for _ in range(10 * ANSWERS_A_TURN)))
    while not answering.done():
        turn += 1
        await asyncio.sleep(0)
    assert len(answered_in) == 10 * ANSWERS_A_TURN
    assert max(Counter(answered_in).values()) <= ANSWERS_A_TURN
