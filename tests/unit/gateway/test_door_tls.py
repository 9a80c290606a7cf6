"""The way in under TLS: the handshake has its time, and what is said behind it is as without."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

import aiohttp
import pytest
import structlog
from aiohttp import web

from roomcast.gateway.admission import Admission
from roomcast.gateway.door import _HANDSHAKES_A_TURN, _READ_BYTES_MAX, Door, _Secured
from roomcast.gateway.parsing import RECORDS_A_TURN
from roomcast.gateway.reader import ClientFrames
from roomcast.serve.http_app import build_apps
from tests.certificates import Pair, trusting
from tests.unit.gateway.frames import handshake
from tests.unit.worlds import DEADLINE_S, Fleet, config, until
from tests.websocket import WebSocket

PAIR: Final = Pair("door")
LARGE: Final = b"x" * 8 * 1024 * 1024
WEBSOCKET: Final = handshake("/connection/websocket")
CLOSING: Final = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*PAIR.write(tmp_path_factory.mktemp("door")))
    return made


class Doors:
    """Doors of one application, and who came."""

    def __init__(self, runner: web.AppRunner, context: ssl.SSLContext) -> None:
        self._runner = runner
        self._context = context
        self._opened: list[Door] = []
        self._sockets: list[socket.socket] = []
        self.port = 0
        self.url = ""

    def open(self, **options: Any) -> Door:
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        assert self._runner.server is not None
        door = Door(
            self._runner.server,
            listening,
            tls=lambda: self._context,
            **({"places_max": 100} | options),
        )
        self._opened.append(door)
        door.open()
        return door

    async def silent(self, said: bytes = b"") -> socket.socket:
        """One that says this, and no more, and reads nothing."""
        connected = socket.socket()
        self._sockets.append(connected)
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connected, ("127.0.0.1", self.port))
        await loop.sock_sendall(connected, said)
        return connected

    async def shaken(self, said: bytes) -> ssl.SSLSocket:
        """One that says this after its handshake, and then neither reads nor says goodbye."""

        def shake() -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)
            talking = trusting(PAIR).wrap_socket(plain, server_hostname="127.0.0.1")
            talking.sendall(said)
            return talking

        talking = await asyncio.to_thread(shake)
        self._sockets.append(talking)
        return talking

    async def end(self) -> None:
        for each in self._sockets:
            each.close()
        await self._runner.cleanup()
        for door in self._opened:
            await door.end()
            await until(lambda door=door: len(door) == 0)  # type: ignore[misc]


async def _size(request: web.Request) -> web.Response:
    return web.Response(text=str(len(await request.read())))


async def _large(_request: web.Request) -> web.Response:
    return web.Response(body=LARGE)


@pytest.fixture
async def doors(context: ssl.SSLContext) -> AsyncIterator[Doors]:
    app = web.Application(client_max_size=2 * len(LARGE))
    app.router.add_route("*", "/", _size)
    app.router.add_get("/large", _large)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    made = Doors(runner, context)
    yield made
    await made.end()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=trusting(PAIR))
    async with aiohttp.ClientSession(connector=connector) as made:
        yield made


# ---- what is said


async def test_requests_and_answers_of_any_size(
    doors: Doors, session: aiohttp.ClientSession
) -> None:
    doors.open()
    async with session.post(doors.url, data=BytesIO(LARGE)) as response:
        assert await response.text() == str(len(LARGE))
    async with session.get(f"{doors.url}/large") as response:
        assert await response.read() == LARGE


def test_a_connection_has_a_small_buffer() -> None:
    assert _Secured.max_size == _READ_BYTES_MAX < 64 * 1024


async def test_messages_come_through_the_transport(
    context: ssl.SSLContext, session: aiohttp.ClientSession
) -> None:
    local = Fleet().node()
    apps = build_apps(config(), local.assembly.node, metrics=bytes, demo_urls=None)
    runner = web.AppRunner(apps.clients, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    doors = Doors(runner, context)
    async with local.running():
        door = doors.open()
        url = f"{doors.url}/connection/websocket"
        members = [WebSocket(await session.ws_connect(url)) for _ in range(2)]
        for each in members:
            await each.ask("connect")
            await each.ask("subscribe", channel="room")
        assert await members[0].ask("publish", channel="room", data="hidden") == {}
        for each in members:
            assert (await each.published("room", 1))[0] == "hidden"
        writers = [each.socket for each in local.assembly.node._connections]
        assert len(writers) == 2
        assert all(each._direct is None and each._socket is None for each in writers)  # type: ignore[attr-defined]
        assert len(door) == 2
        # Who goes without a goodbye gives its place back, too.
        transport = members[0].response._response.connection.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.abort()
        await until(lambda: len(door) == 1)
        await members[1].response.close()
        await until(lambda: len(door) == 0)
        await doors.end()


# ---- who does not shake hands


@pytest.mark.parametrize(
    "said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a byte", "a beginning"]
)
async def test_who_completes_no_handshake_is_ended(doors: Doors, said: bytes) -> None:
    door = doors.open(request_s=0.05)
    visitors = [await doors.silent(said) for _ in range(5)]
    async with asyncio.timeout(DEADLINE_S):
        for each in visitors:
            with suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(each, 1) == b""
    await until(lambda: len(door) == 0)
    assert not door._shaking


async def test_who_is_silent_holds_a_place_no_longer_than_that(
    doors: Doors, session: aiohttp.ClientSession
) -> None:
    door = doors.open(request_s=0.05, places_max=2)
    for _ in range(4):
        await doors.silent()
    async with asyncio.timeout(DEADLINE_S), session.get(doors.url) as response:
        assert response.status == 200
    assert len(door) <= 2


async def test_handshakes_that_fail_are_told_seldom_and_why(doors: Doors) -> None:
    with structlog.testing.capture_logs() as events:
        door = doors.open()
        for _ in range(5):
            visitor = await doors.silent(CLOSING)
            async with asyncio.timeout(DEADLINE_S):
                while await asyncio.get_running_loop().sock_recv(visitor, 4096):
                    pass
        await until(lambda: len(door) == 0)
    told = [each for each in events if each["event"] == "tls_handshake_failed"]
    assert [each["reason"] for each in told] == ["HTTP_REQUEST"]
    assert events == told


async def test_nothing_of_a_connection_waits_for_the_collector(
    doors: Doors, session: aiohttp.ClientSession
) -> None:
    """Each has a buffer and OpenSSL's own, and the collector comes late."""

    def kept() -> int:
        return sum(type(each) is _Secured for each in gc.get_objects())

    gc.collect()
    before = kept()
    gc.disable()
    try:
        door = doors.open(request_s=0.05)
        async with session.get(doors.url, headers={"Connection": "close"}) as response:
            assert response.status == 200
        (await doors.shaken(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).close()
        await doors.silent(CLOSING)
        await doors.silent()
        (await doors.silent(b"\x16")).close()
        await until(lambda: len(door) == 4 or not door._guests)
        door.end_unread(0.0)
        await until(lambda: len(door) == 0)
        await until(lambda: kept() == before)
    finally:
        gc.enable()


async def test_few_of_very_many_handshakes_go_on_in_one_turn(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: Counter[int] = Counter()
    turn = 0
    real = SSLProtocol.buffer_updated

    def counted(self: SSLProtocol, nbytes: int) -> None:
        taken[turn] += 1
        real(self, nbytes)

    monkeypatch.setattr(SSLProtocol, "buffer_updated", counted)
    hello = ssl.MemoryBIO()
    client = trusting(PAIR).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    said = hello.read()
    door = doors.open()
    visitors = [await doors.silent() for _ in range(60)]
    await until(lambda: sum(guest.wire is not None for guest in door._shaking) == 60)
    for each in visitors:
        assert each.send(said) == len(said)
    async with asyncio.timeout(DEADLINE_S):
        while taken.total() < 60:
            turn += 1
            await asyncio.sleep(0)
    assert max(taken.values()) <= _HANDSHAKES_A_TURN


async def test_of_many_small_records_few_are_decrypted_in_one_turn(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: Counter[int] = Counter()
    turn = 0
    real = SSLProtocol.buffer_updated

    def counted(self: SSLProtocol, nbytes: int) -> None:
        taken[turn] += nbytes
        real(self, nbytes)

    door = doors.open()
    visitors = [await doors.shaken(b"GET / HTTP/1.1\r\nHost: a\r\nX: ") for _ in range(30)]
    await until(lambda: not door._shaking)
    monkeypatch.setattr(SSLProtocol, "buffer_updated", counted)
    for each in visitors:
        for _ in range(300):
            each.send(b"x")
    async with asyncio.timeout(DEADLINE_S):
        while taken.total() < 30 * 300 * 23:
            turn += 1
            await asyncio.sleep(0)
    assert max(taken.values()) <= RECORDS_A_TURN + _READ_BYTES_MAX
    for each in visitors:
        each.send(b"\r\n\r\n")
    answers = await asyncio.to_thread(lambda: [each.recv(12) for each in visitors])
    assert answers == [b"HTTP/1.1 200"] * 30, "all of it came, in order"


async def test_what_waits_for_the_socket_below_tls_is_counted(doors: Doors) -> None:
    door = doors.open()
    await doors.shaken(CLOSING.replace(b"GET /", b"GET /large"))
    guest = next(iter(door._guests))
    await until(lambda: guest.wire is not None and guest.wire.get_write_buffer_size())
    assert guest.line is not None
    assert guest.wire is not None
    below = guest.wire.get_write_buffer_size()
    assert guest.line.get_write_buffer_size() >= below > 0
    guest.wire.abort()


async def test_a_door_that_closes_waits_for_no_handshake(doors: Doors) -> None:
    door = doors.open(request_s=3600.0)
    for _ in range(3):
        await doors.silent()
    await until(lambda: len(door) == 3)
    with structlog.testing.capture_logs() as events:
        async with asyncio.timeout(DEADLINE_S):
            await door.close()
            await until(lambda: len(door) == 0)
    assert events == [], "they did not fail"


async def test_after_the_handshake_a_request_has_its_time(doors: Doors) -> None:
    door = doors.open(request_s=0.3)
    await doors.shaken(b"GET / HTTP/1.1\r\n")
    await until(lambda: len(door) == 0)


# ---- who is gone at an odd moment


@pytest.mark.parametrize(
    "request_line", [WEBSOCKET, b"GET /connection/uni_sse HTTP/1.1\r\nHost: a\r\n\r\n"]
)
async def test_who_is_gone_just_before_the_answer_leaves_nothing(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, request_line: bytes
) -> None:
    """Under TLS the end of a connection is told a turn late. It may be handed over just then."""

    async def gone(_admission: Admission) -> None:
        [guest] = door._guests
        assert guest.wire is not None
        guest.wire.abort()
        # TLS hears of it, and aiohttp does not yet.
        await asyncio.sleep(0)
        assert guest.line is not None
        assert guest.line.is_closing()
        assert guest.transport is not None

    monkeypatch.setattr(Admission, "turn", gone)
    local = Fleet().node()
    apps = build_apps(config(), local.assembly.node, metrics=bytes, demo_urls=None)
    runner = web.AppRunner(apps.clients, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    doors = Doors(runner, context)
    door = doors.open()
    await doors.shaken(request_line)
    await until(lambda: len(door) == 0)
    assert not local.assembly.node._connections
    await doors.end()


# ---- who does not say goodbye


async def test_who_is_closed_and_says_no_goodbye_is_ended(doors: Doors) -> None:
    door = doors.open()
    await doors.shaken(CLOSING)
    guest = next(iter(door._guests))
    await until(lambda: guest.line is not None and guest.line.is_closing())
    door.end_unread(0.0)
    await until(lambda: len(door) == 0)


async def test_who_says_no_goodbye_gets_all_of_the_answer_first(doors: Doors) -> None:
    door = doors.open()
    talking = await doors.shaken(CLOSING.replace(b"GET /", b"GET /large"))
    guest = next(iter(door._guests))
    await until(lambda: guest.wire is not None and guest.wire.get_write_buffer_size())
    door.end_unread(0.0)
    assert len(door) == 1, "most of it waits still"

    def read() -> int:
        size = 0
        while chunk := talking.recv(64 * 1024):
            size += len(chunk)
        return size

    assert await asyncio.to_thread(read) > len(LARGE)
    await until(lambda: guest.line is not None and guest.line.is_closing())
    door.end_unread(0.0)
    await until(lambda: len(door) == 0)


@pytest.mark.parametrize("shut", [False, True])
async def test_who_does_not_read_an_answer_is_ended(doors: Doors, shut: bool) -> None:
    door = doors.open(answer_s=0.05)
    talking = await doors.shaken(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    if shut:
        # And says no more, so that asyncio waits for the rest to be read, for ever.
        socket.socket.shutdown(talking, socket.SHUT_WR)
    await until(lambda: len(door) == 0)


async def test_a_websocket_that_says_no_goodbye_is_ended(
    context: ssl.SSLContext, session: aiohttp.ClientSession
) -> None:
    local = Fleet().node()
    apps = build_apps(config(), local.assembly.node, metrics=bytes, demo_urls=None)
    runner = web.AppRunner(apps.clients, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    doors = Doors(runner, context)
    async with local.running():
        door = doors.open()
        talking = await doors.shaken(WEBSOCKET)
        await until(lambda: len(door._streaming) == 1)
        [connection] = local.assembly.node._connections
        # It closes in the WebSocket's way, and stays there.
        talking.sendall(b"\x88\x82\x00\x00\x00\x00\x03\xe8")
        await until(lambda: len(door) == 0)
        assert connection not in local.assembly.node._connections
        await doors.end()


def test_frames_are_served_by_the_same_protocol() -> None:
    assert issubclass(ClientFrames, asyncio.Protocol)
    assert not issubclass(ClientFrames, asyncio.BufferedProtocol), "it gets bytes, also under TLS"
