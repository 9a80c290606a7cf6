"""Streams over HTTP over real sockets, with nodes over memory behind them."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from roomcast.gateway import stream as stream_module
from roomcast.gateway.admission import Admission
from roomcast.gateway.keys import NODE
from roomcast.gateway.streams import StreamGateway
from roomcast.gateway.websocket import FRAME_COMMANDS_ROOM
from roomcast.gateway.writer import Writer
from roomcast.rates import Rate, Turnstile
from roomcast.wire.codes import Disconnect
from roomcast.wire.protobuf_schema import message_class
from tests.protobuf import command, read_messages
from tests.unit.worlds import DEADLINE_S, Fleet, LocalNode, until

pytest_plugins = ("pytest_aiohttp.plugin",)

SIZE_LIMIT: Final = 4096
QUEUE_BYTES_MAX: Final = 64 * 1024
HTTP_STREAM, SSE, EMULATION = "/connection/http_stream", "/connection/sse", "/emulation"
PAGES: Final = "https://app.example.com"
CONNECT: Final = b'{"id":1,"connect":{}}'
BINARY: Final = {"Content-Type": "application/octet-stream"}
JSON: Final = {"Content-Type": "application/json"}
HEAD: Final = (
    f"POST {HTTP_STREAM} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(CONNECT)}\r\n\r\n"
).encode()


class Stream:
    """A client: it reads lines of its stream, and says more by requests of its own."""

    def __init__(self, server: Server, response: aiohttp.ClientResponse, form: str) -> None:
        self.response = response
        self._server = server
        self._form = form
        self._buffer = b""
        self.session = self.node = ""

    async def line(self) -> dict[str, Any]:
        """The next reply or push."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found, self._buffer = self._cut(self._buffer)
                if found is not None:
                    return found
                data = await self.response.content.readany()
                assert data, "the stream ended"
                self._buffer += data

    def _cut(self, data: bytes) -> tuple[dict[str, Any] | None, bytes]:
        if self._form == "protobuf":
            # Its messages here are shorter than 128 bytes, or come in one piece.
            lines = read_messages(data) if data else []
            return (lines[0], b"") if lines else (None, data)
        end = b"\n\n" if self._form == "sse" else b"\n"
        head, found, rest = data.lstrip(b"\n").partition(end)
        if not found:
            return None, data
        line: dict[str, Any] = json.loads(head.removeprefix(b"data: "))
        return line, rest

    async def connected(self) -> dict[str, Any]:
        result: dict[str, Any] = (await self.line())["connect"]
        self.session, self.node = result["session"], result["node"]
        return result

    async def say(self, *commands: dict[str, Any], **changes: Any) -> int:
        """The status of the answer."""
        data = "\n".join(json.dumps(each) for each in commands)
        body = {"session": self.session, "node": self.node, "data": data, **changes}
        return await self._server.emulate(json.dumps(body).encode())

    async def end(self) -> bytes:
        """What was left until the stream ended."""
        async with asyncio.timeout(DEADLINE_S):
            return self._buffer + await self.response.content.read()


class Server:
    def __init__(self, node: LocalNode, server: TestServer) -> None:
        self.local = node
        self.node = node.assembly.node
        self.http = aiohttp.ClientSession()
        self._server = server
        self.streams: list[Stream] = []

    def url(self, path: str) -> str:
        return str(self._server.make_url(path))

    async def open(self, form: str = "json", frame: bytes = CONNECT, **options: Any) -> Stream:
        if form == "sse":
            answer = self.http.get(self.url(SSE), params={"cf_connect": frame.decode()}, **options)
        elif form == "protobuf":
            answer = self.http.post(self.url(HTTP_STREAM), data=frame, headers=BINARY, **options)
        else:
            headers = JSON | options.pop("headers", {})
            answer = self.http.post(self.url(HTTP_STREAM), data=frame, headers=headers, **options)
        response = await answer
        assert response.status == 200, await response.text()
        self.streams.append(Stream(self, response, form))
        return self.streams[-1]

    async def by_hand(self) -> asyncio.StreamWriter:
        """The way to the server of a client that is connected, and does what it wants."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        writer.write(HEAD + CONNECT)
        async with asyncio.timeout(DEADLINE_S):
            while b'"session"' not in await reader.readline():
                pass
        return writer

    async def connect(self, form: str = "json", **options: Any) -> Stream:
        frame = command({"id": 1, "connect": {}}) if form == "protobuf" else CONNECT
        stream = await self.open(form, frame, **options)
        await stream.connected()
        return stream

    async def emulate(self, body: bytes, headers: Mapping[str, str] = JSON) -> int:
        async with self.http.post(self.url(EMULATION), data=body, headers=headers) as answer:
            await answer.read()
            return answer.status

    async def close(self) -> None:
        for stream in self.streams:
            stream.response.close()
        await self.http.close()
        await until(lambda: len(self.node.emulation.sessions) == 0)
        await self.local.close()


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve(
    aiohttp_server: Callable[[web.Application], Awaitable[TestServer]],
) -> AsyncIterator[Serve]:
    servers: list[Server] = []

    async def serve(turnstile: Turnstile | None = None, **changes: Any) -> Server:
        node = Fleet().node(**changes)
        app = web.Application()
        app[NODE] = node.assembly.node
        StreamGateway(
            Admission(allowed_origins=(PAGES,), turnstile=turnstile),
            message_size_limit=SIZE_LIMIT,
            queue_bytes_max=QUEUE_BYTES_MAX,
        ).add_routes(app)
        servers.append(Server(node, await aiohttp_server(app)))
        return servers[-1]

    yield serve
    for server in servers:
        await server.close()


@pytest.fixture
async def server(serve: Serve) -> Server:
    return await serve()


# ---- a client's life


@pytest.mark.parametrize("form", ["json", "sse", "protobuf"])
async def test_what_a_client_does(server: Server, form: str) -> None:
    stream = await server.connect(form)
    assert stream.node == server.node.id
    if form == "protobuf":
        data = command({"id": 2, "subscribe": {"channel": "news"}})
        message: Any = message_class("EmulationRequest")(
            node=stream.node, session=stream.session, data=data
        )
        assert await server.emulate(message.SerializeToString(), headers=BINARY) == 204
    else:
        assert await stream.say({"id": 2, "subscribe": {"channel": "news"}}) == 204
    assert "subscribe" in await stream.line()
    async with asyncio.timeout(DEADLINE_S):
        writer = await server.local.client()
        await writer.publish("news", {"text": "line\nbreak"})
    push = (await stream.line())["push"]
    assert push["pub"]["data"] == {"text": "line\nbreak"}


async def test_no_pong_is_asked_for_and_none_is_missed(serve: Serve) -> None:
    server = await serve(ping_interval_s=0.05, pong_timeout_s=0.02)
    stream = await server.open()
    assert "pong" not in await stream.connected()
    for _ in range(3):
        assert await stream.line() == {}, "a ping"


async def test_a_session_is_a_secret_of_its_own(server: Server) -> None:
    sessions = {(await server.connect()).session for _ in range(3)}
    assert len(sessions) == 3
    assert all(len(session) >= 32 for session in sessions)


async def test_commands_keep_their_order_and_what_needs_none_too(server: Server) -> None:
    stream = await server.open(frame=CONNECT + b'\n{"id":2,"subscribe":{"channel":"room"}}')
    await stream.connected()
    assert (await stream.line())["id"] == 2
    publishes = [{"id": n, "publish": {"channel": "room", "data": n}} for n in range(3, 43)]
    for start in range(0, 40, 10):
        assert await stream.say(*publishes[start : start + 10]) == 204
    seen: list[int] = []
    while len(seen) < 40:
        line = await stream.line()
        if "push" in line and "pub" in line["push"]:
            seen.append(line["push"]["pub"]["data"])
    assert seen == list(range(3, 43))


@pytest.mark.parametrize("form", ["json", "sse", "protobuf"])
async def test_the_last_words_of_a_stream_say_why(server: Server, form: str) -> None:
    stream = await server.connect(form)
    [connection] = server.node._connections
    connection.close(Disconnect.SHUTDOWN)
    push = (await stream.line())["push"]["disconnect"]
    assert (push["code"], push["reason"]) == (3001, "shutdown")
    assert await stream.end() == b""
    assert await stream.say({"id": 2, "rpc": {}}) == 404


async def test_who_leaves_is_gone_with_all_it_had(server: Server) -> None:
    stream = await server.connect()
    await stream.say({"id": 2, "subscribe": {"channel": "room"}})
    await stream.line()
    stream.response.close()
    await until(lambda: len(server.node) == 0)
    assert len(server.local.assembly.hub.names()) == 0
    assert await stream.say({"id": 3, "publish": {"channel": "room", "data": 1}}) == 404
    assert server.node.services.counters.disconnects == {"3000": 1}


async def test_a_client_that_does_not_read_is_cut_off(server: Server) -> None:
    stream = await server.connect()
    await stream.say({"id": 2, "subscribe": {"channel": "room"}})
    await stream.line()
    writer = await server.local.client()
    # The peer's kernel and the reader's buffer hold some megabytes before anything waits here.
    with capture_logs() as logs:
        for _ in range(1000):
            await writer.publish("room", "x" * 60_000)
            if server.node.services.counters.disconnects:
                break
        await until(lambda: len(server.node) == 1)
    assert server.node.services.counters.disconnects == {"3008": 1}
    assert [line["event"] for line in logs if line["event"][:7] == "client_"] == ["client_slow"]


async def test_who_says_something_wrong_is_told_so(server: Server) -> None:
    stream = await server.connect()
    assert await stream.say(data="no JSON") == 204
    assert (await stream.line())["push"]["disconnect"]["code"] == 3501
    await stream.end()


async def test_a_stream_that_does_not_connect_ends(serve: Serve) -> None:
    server = await serve(insecure=False, stale_close_delay_s=0.05)
    stream = await server.open(frame=b'{"id":1,"connect":{}}')
    assert (await stream.line())["error"]["code"] == 101
    assert (await stream.line())["push"]["disconnect"]["code"] == 3502
    assert await stream.end() == b""


# ---- what is counted


def counted(by_transport: Mapping[str, int]) -> dict[str, int]:
    return {transport: count for transport, count in by_transport.items() if count}


async def test_connections_are_counted_by_their_transport(server: Server) -> None:
    counters = server.node.services.counters
    streams = [await server.connect(form) for form in ("json", "protobuf", "sse")]
    assert counted(counters.open) == {"http_stream": 2, "sse": 1}
    for stream in streams:
        stream.response.close()
    await until(lambda: len(server.node) == 0)
    assert counted(counters.open) == {}
    assert counted(counters.opened) == {"http_stream": 2, "sse": 1}


async def test_requests_are_counted_by_what_became_of_them(server: Server) -> None:
    stream = await server.connect()
    assert await stream.say({"id": 2, "rpc": {}}) == 204
    assert await stream.say({"id": 3, "rpc": {}}, session="guessed") == 404
    assert await stream.say({"id": 3, "rpc": {}}, node="nobody", session="guessed") == 404
    assert await server.emulate(b"{") == 400
    assert await server.emulate(b"") == 400
    assert await server.emulate(b"x" * 100_000) == 413
    requests = server.node.emulation.counters.requests
    assert {key: number for key, number in requests.items() if number} == {
        ("here", "taken"): 1,
        ("here", "unknown"): 1,
        ("mailbox", "unknown"): 1,
        ("here", "refused"): 3,
    }
    assert server.node.emulation.mailbox_counters.signals["no_node"] == 1


# ---- who may


@pytest.mark.parametrize("path", [HTTP_STREAM, SSE, EMULATION])
async def test_a_page_that_is_not_allowed_gets_nothing(server: Server, path: str) -> None:
    headers = {"Origin": "https://evil.example.com"}
    for method in ("POST", "OPTIONS"):
        async with server.http.request(
            method, server.url(path), headers=headers, data=CONNECT
        ) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
    assert len(server.node) == 0


async def test_a_page_that_is_allowed_may_read(server: Server) -> None:
    headers = {"Origin": PAGES, **JSON}
    stream = await server.connect(headers=headers)
    assert stream.response.headers["Access-Control-Allow-Origin"] == PAGES
    body = json.dumps({"session": stream.session, "node": stream.node, "data": ""}).encode()
    async with server.http.post(server.url(EMULATION), data=body, headers=headers) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == PAGES
    async with server.http.options(server.url(EMULATION), headers=headers) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type"
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("data, status", [(b"", 400), (b"{", 400), (b"x" * 100_000, 413)])
async def test_a_page_may_read_why_it_is_refused(server: Server, data: bytes, status: int) -> None:
    """Its SDK would take the stream for broken otherwise, where one command was too large."""
    headers = {"Origin": PAGES, **JSON}
    async with server.http.post(server.url(EMULATION), data=data, headers=headers) as answer:
        assert answer.status == status
        assert answer.headers["Access-Control-Allow-Origin"] == PAGES


async def test_without_a_content_type_commands_are_json(server: Server) -> None:
    """As with any other, but for that of Protobuf."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server._server.port)
    writer.write(HEAD.replace(b"Content-Type: application/json\r\n", b"") + CONNECT)
    async with asyncio.timeout(DEADLINE_S):
        assert b"application/json" in await reader.readuntil(b"\r\n\r\n")
        assert b'"session"' in await reader.readline()
    writer.transport.abort()


async def test_the_answer_is_for_proxies_to_leave_alone(server: Server) -> None:
    for form, kind in (
        ("json", "application/json"),
        ("sse", "text/event-stream"),
        ("protobuf", "application/octet-stream"),
    ):
        headers = (await server.connect(form)).response.headers
        assert headers["Content-Type"].startswith(kind)
        assert headers["X-Accel-Buffering"] == "no"
        assert "no-store" in headers["Cache-Control"]
        assert "no-transform" in headers["Cache-Control"]
        assert "Access-Control-Allow-Origin" not in headers


async def test_limits_are_those_of_websockets(serve: Serve) -> None:
    server = await serve(connection_limit=1, turnstile=Turnstile(Rate(0.5, 2.0)))
    await server.connect()
    async with server.http.post(server.url(HTTP_STREAM), data=CONNECT) as answer:
        assert answer.status == 503
    async with server.http.get(server.url(SSE), params={"cf_connect": "{}"}) as answer:
        assert answer.status == 429
        assert answer.headers["Retry-After"] == "2"


# ---- what is no request


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 1000, 400),
        (b"[]" * 30_000, 413),
        (b'{"session":"s","node":"n"}', 400),
        (b'{"session":"guessed","node":"n","data":"{}"}', 404),
        (b"x" * (2 * SIZE_LIMIT * FRAME_COMMANDS_ROOM + 1), 413),
    ],
)
async def test_what_no_sdk_posts(server: Server, body: bytes, status: int) -> None:
    assert await server.emulate(body) == status


async def test_what_opens_no_stream(server: Server) -> None:
    for answer in (
        server.http.post(server.url(HTTP_STREAM)),
        server.http.post(server.url(SSE)),
        server.http.get(server.url(SSE)),
        server.http.get(server.url(SSE), params={"cf_connect": ""}),
    ):
        async with answer as response:
            assert response.status == 400
    async with server.http.post(
        server.url(HTTP_STREAM), data=b"x" * (SIZE_LIMIT * FRAME_COMMANDS_ROOM + 1)
    ) as response:
        assert response.status == 413
    async with server.http.post(
        server.url(HTTP_STREAM), data=CONNECT, headers={"Content-Encoding": "gzip"}
    ) as response:
        assert response.status == 415
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        async with server.http.request(method, server.url(HTTP_STREAM)) as response:
            assert response.status == 405
    async with server.http.head(server.url(SSE), params={"cf_connect": "{}"}) as response:
        assert response.status == 405
    assert len(server.node) == 0


async def test_what_waits_of_one_session_is_bounded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "WAITING_MAX", 3)
    stream = await server.connect()
    [connection] = server.node._connections
    release = asyncio.Event()

    async def slow(*_: Any) -> None:
        await release.wait()

    monkeypatch.setattr(type(connection), "receive", slow)
    # One is being taken, and three wait.
    assert [await stream.say({"id": n, "rpc": {}}) for n in range(2, 7)] == [204] * 4 + [429]
    release.set()


async def test_one_who_goes_on_talking_on_its_stream_is_cut_off(server: Server) -> None:
    writer = await server.by_hand()
    async with asyncio.timeout(DEADLINE_S):
        assert len(server.node) == 1
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        await until(lambda: len(server.node) == 0)
    writer.close()


async def test_one_who_says_no_more_is_gone(server: Server) -> None:
    writer = await server.by_hand()
    async with asyncio.timeout(DEADLINE_S):
        writer.write_eof()
        await until(lambda: len(server.node) == 0)
    writer.close()


# ---- who is not there any more

LINUX: Final = pytest.mark.skipif(sys.platform != "linux", reason="options of Linux's sockets")
# From asm-generic/socket.h and linux/bpf_common.h: a filter of one instruction, "return 0".
_SO_ATTACH_FILTER: Final = 26
_DROP_ALL: Final = struct.pack("HBBI", 0x06, 0, 0, 0)


def vanish(writer: asyncio.StreamWriter) -> None:
    """From now on the kernel drops whatever comes for this peer, without an acknowledgement: as if
    its machine, or the way to it, was gone.
    """
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    described = struct.pack("HP", 1, ctypes.addressof(program))
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


@LINUX
async def test_a_peer_that_vanishes_without_a_word_is_gone(serve: Serve) -> None:
    """No pong would tell. The system ends the connection, as nobody acknowledges the pings."""
    server = await serve(ping_interval_s=0.1, pong_timeout_s=0.1)
    gone, stays = await server.by_hand(), await server.by_hand()
    assert len(server.node) == 2
    vanish(gone)
    await until(lambda: len(server.node) == 1)
    assert server.node.services.counters.disconnects == {"3000": 1}
    stays.close()
    gone.close()


@LINUX
async def test_a_peer_that_takes_nothing_for_as_long_is_gone(serve: Serve) -> None:
    """Its kernel acknowledges all that fits, and then says that there is no room."""
    server = await serve(ping_interval_s=0.1, pong_timeout_s=0.1)
    with socket.socket() as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.connect(("127.0.0.1", server._server.port))
        subscribe = b'\n{"id":2,"subscribe":{"channel":"room"}}'
        size = len(CONNECT + subscribe)
        head = HEAD.replace(b"%d\r\n\r\n" % len(CONNECT), b"%d\r\n\r\n" % size)
        connected.sendall(head + CONNECT + subscribe)
        await until(lambda: len(server.local.assembly.hub.names()) == 1)
        writer = await server.local.client()
        await writer.publish("room", "x" * 60_000)
        await until(lambda: server.node.services.counters.disconnects)
    assert server.node.services.counters.disconnects == {"3000": 1}


@LINUX
async def test_silence_is_bounded_by_the_ping_and_its_answer(serve: Serve) -> None:
    server = await serve(ping_interval_s=25.0, pong_timeout_s=8.0)
    writer = await server.by_hand()
    [connection] = server.node._connections
    assert isinstance(connection.socket, Writer)
    wire = connection.socket._transport.get_extra_info("socket")
    assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 33_000
    writer.close()


# ---- bodies in chunks


def chunked(body: bytes, size: int) -> bytes:
    """`body` in chunks of `size` bytes, as a proxy may send it on (RFC 9112 §7.1)."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_proxy_may_send_a_body_on_in_chunks(server: Server, size: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server._server.port)
    head = HEAD.replace(f"Content-Length: {len(CONNECT)}".encode(), b"Transfer-Encoding: chunked")
    writer.write(head + chunked(CONNECT, size))
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        connected = json.loads(await reader.readline())["connect"]
    said = {"session": connected["session"], "node": connected["node"]}
    body = json.dumps(said | {"data": '{"id":2,"rpc":{}}'}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    async with server.http.post(server.url(EMULATION), data=pieces(), headers=JSON) as answer:
        assert answer.status == 204
    async with asyncio.timeout(DEADLINE_S):
        assert json.loads(await reader.readline())["id"] == 2
    writer.transport.abort()
    await until(lambda: len(server.node) == 0)


async def test_a_body_in_chunks_is_no_longer_than_others(server: Server) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000

    for path in (HTTP_STREAM, EMULATION):
        async with server.http.post(server.url(path), data=endless(), headers=JSON) as answer:
            assert answer.status == 413
    assert len(server.node) == 0
