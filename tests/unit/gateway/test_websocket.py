"""The WebSocket endpoint over real sockets, with a node over memory behind it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from service.core.codes import Disconnect
from service.gateway import writer as writer_module
from service.gateway.http import add_health_routes
from service.gateway.websocket import FRAME_COMMANDS_ROOM, WebSocketGateway, origin_allowed
from service.gateway.writer import text_frame
from service.keys import HEALTH, NODE
from tests.unit.gateway.frames import CLOSE, PONG, TEXT, Frame, handshake, masked, parsed
from tests.unit.worlds import DEADLINE_S, Fleet, LocalNode, no_jitter, until
from tests.websocket import WebSocket

PATH: Final = "/connection/websocket"
SIZE_LIMIT: Final = 65_536
QUEUE_BYTES_MAX: Final = 64 * 1024


class Gateway:
    """A listening node."""

    def __init__(self, fleet: Fleet, node: LocalNode, server: TestServer) -> None:
        self.fleet = fleet
        self.node = node
        self.server = server
        self.session = aiohttp.ClientSession()
        self._opened: list[WebSocket] = []

    @property
    def connections(self) -> int:
        return len(self.node.assembly.node)

    def url(self, path: str = PATH) -> str:
        return str(self.server.make_url(path))

    async def connect(self, **options: Any) -> WebSocket:
        self._opened.append(WebSocket(await self.session.ws_connect(self.url(), **options)))
        return self._opened[-1]

    async def close(self) -> None:
        await asyncio.gather(*(opened.response.close() for opened in self._opened))
        await self.session.close()

    async def raw(self, **headers: str) -> RawPeer:
        """A client that does what it wants; it reads only when told."""
        connected = socket.socket()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connected, ("127.0.0.1", self.server.port))
        peer = RawPeer(connected)
        await peer.write(handshake(PATH, **headers))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await peer.read(1)
        peer.head = head
        assert head.startswith(b"HTTP/1.1 101"), head
        return peer


class RawPeer:
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self.head = b""

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def read(self, count: int) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await asyncio.get_running_loop().sock_recv(self._socket, count)

    async def rest(self) -> bytes:
        """Everything until the other side closes."""
        data = b""
        try:
            while part := await self.read(65_536):
                data += part
        except ConnectionResetError:
            pass
        return data

    async def say(self, *commands: dict[str, Any]) -> None:
        await self.write(masked(TEXT, "\n".join(json.dumps(command) for command in commands).encode()))

    def close(self) -> None:
        self._socket.close()


Serve = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def serve(
    aiohttp_server: Callable[[web.Application], Awaitable[TestServer]],
) -> AsyncIterator[Serve]:
    gateways: list[Gateway] = []

    async def serve(*, origins: tuple[str, ...] = (), **changes: Any) -> Gateway:
        fleet = Fleet()
        node = fleet.node(framer=text_frame, **changes)
        app = web.Application()
        app[NODE], app[HEALTH] = node.assembly.node, node.assembly.node.health
        handler = WebSocketGateway(
            allowed_origins=origins, message_size_limit=SIZE_LIMIT, queue_bytes_max=QUEUE_BYTES_MAX
        )
        app.router.add_get(PATH, handler.handle)
        add_health_routes(app)
        gateways.append(Gateway(fleet, node, await aiohttp_server(app)))
        return gateways[-1]

    yield serve
    for gateway in gateways:
        await gateway.close()
        await until(lambda gateway=gateway: gateway.connections == 0)  # type: ignore[misc]
        await gateway.node.assembly.dispatcher.close()


@pytest.fixture
async def gateway(serve: Serve) -> Gateway:
    return await serve()


# ---- the handshake


@pytest.mark.parametrize(
    "origin, host, allowed, welcome",
    [
        (None, "chat.example.com", (), True),
        ("https://chat.example.com", "chat.example.com", (), True),
        ("https://CHAT.example.com", "chat.example.com", (), True),
        ("https://chat.example.com:8443", "chat.example.com:8443", (), True),
        ("https://chat.example.com:8443", "chat.example.com", (), False),
        ("https://evil.example.com", "chat.example.com", (), False),
        ("https://chat.example.com.evil.com", "chat.example.com", (), False),
        ("null", "chat.example.com", (), False),
        ("", "chat.example.com", (), False),
        ("file://", "", (), False),
        ("chrome-extension://chat.example.com", "chat.example.com", (), False),
        ("http://[", "chat.example.com", (), False),
        ("http://localhost:3000", "127.0.0.1:8000", (), True),
        ("http://[::1]:3000", "localhost:8000", (), True),
        ("http://localhost:3000", "chat.example.com", (), False),
        ("http://evil.example.com", "127.0.0.1:8000", (), False),
        ("http://localhost.evil.com", "127.0.0.1:8000", (), False),
        ("https://a.example.com", "api.example.net", ("https://*.example.com",), True),
        ("https://A.Example.com", "api.example.net", ("https://*.EXAMPLE.com",), True),
        ("https://example.com", "api.example.net", ("https://*.example.com",), False),
        ("http://a.example.com", "api.example.net", ("https://*.example.com",), False),
        ("https://a.example.com.evil.com", "api.example.net", ("https://*.example.com",), False),
        ("https://b.com", "api.example.net", ("https://a.com", "https://b.com"), True),
        ("https://whoever.com", "api.example.net", ("*",), True),
        ("null", "api.example.net", ("*",), True),
    ],
)
def test_origins(origin: str | None, host: str, allowed: tuple[str, ...], welcome: bool) -> None:
    assert origin_allowed(origin, host, allowed) is welcome


async def test_a_foreign_page_is_refused(gateway: Gateway) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.session.ws_connect(gateway.url(), origin="https://evil.example.com")
    assert refused.value.status == 403
    assert gateway.connections == 0


async def test_an_allowed_page_is_welcome(serve: Serve) -> None:
    gateway = await serve(origins=("https://chat.example.com",))
    client = await gateway.connect(origin="https://chat.example.com")
    assert (await client.ask("connect"))["client"]


async def test_what_is_no_websocket_is_told(gateway: Gateway) -> None:
    async with gateway.session.get(gateway.url()) as response:
        assert response.status == 426
        assert "WebSocket" in await response.text()


async def test_a_full_node_says_so_before_the_handshake(serve: Serve) -> None:
    """SDKs try again, and a load balancer sends them elsewhere."""
    gateway = await serve(connection_limit=1)
    first = await gateway.connect()
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.connect()
    assert refused.value.status == 503
    await first.response.close()
    await until(lambda: gateway.connections == 0)
    await gateway.connect()


async def test_a_draining_node_takes_nobody(gateway: Gateway) -> None:
    gateway.node.assembly.node.health.draining = True
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.connect()
    assert refused.value.status == 503


@pytest.mark.parametrize(
    "offered, chosen",
    [("centrifuge-json", b"centrifuge-json"), ("", None), ("something-else", None)],
)
async def test_subprotocols(gateway: Gateway, offered: str, chosen: bytes | None) -> None:
    """SDKs send the JSON one, none, or (older ones for Python) an empty header."""
    peer = await gateway.raw(Sec_WebSocket_Protocol=offered)
    headers = dict(line.lower().split(b": ", 1) for line in peer.head.split(b"\r\n")[1:] if b": " in line)
    assert headers.get(b"sec-websocket-protocol") == chosen
    assert b"sec-websocket-extensions" not in headers
    peer.close()


# ---- frames


async def test_commands_are_answered_in_json_lines(gateway: Gateway) -> None:
    client = await gateway.connect()
    ids = await client.say(
        {"connect": {}},
        {"subscribe": {"channel": "room"}},
        {"publish": {"channel": "room", "data": "grüße \u2028 \U0001f600"}},
    )
    for command_id in ids:
        assert "error" not in await client.answer(command_id)
    assert await client.published("room", 1) == ["grüße \u2028 \U0001f600"]


async def test_frames_of_every_length_arrive_whole(gateway: Gateway) -> None:
    """What a header can get wrong; shorter ones: test_writer.py."""
    client = await gateway.connect()
    await client.ask("connect")
    await client.ask("subscribe", channel="plain:room")
    surrounding = len(
        '{"push":{"channel":"plain:room","pub":{"data":"","info":{"user":"","client":""},"time":}}}'
    )
    overhead = surrounding + 36 + 13
    sizes = [overhead, 65_535, 65_536, 65_537]
    sent = ["x" * (size - overhead) for size in sizes]
    for data in sent:
        assert await client.ask("publish", channel="plain:room", data=data) == {}
    assert await client.published("plain:room", 4) == sent
    pushes = [line for line in client.lines if "push" in line]
    assert [len(json.dumps(push, separators=(",", ":"))) for push in pushes] == sizes


@pytest.mark.parametrize(
    "frame, code", [("not JSON", 3501), ('{"id":2,"nothing":{}}', 3501), ('{"send":{}}', 3508)]
)
async def test_a_close_says_why(gateway: Gateway, frame: str, code: int) -> None:
    client = await gateway.connect()
    await client.ask("connect")
    await client.response.send_str(frame)
    assert await client.closed() == code
    await until(lambda: gateway.connections == 0)


async def test_replies_come_before_the_close(gateway: Gateway) -> None:
    peer = await gateway.raw()
    await peer.say({"id": 1, "connect": {}}, {"id": 2, "rpc": {"method": "m"}}, {"send": {}})
    await peer.write(masked(CLOSE, b"\x0b\xb9"))
    frames = list(parsed(await peer.rest()))
    assert [frame.opcode for frame in frames] == [TEXT, TEXT, CLOSE]
    assert [json.loads(frame.payload)["id"] for frame in frames[:-1]] == [1, 2]
    assert frames[-1].close_code == 3508
    peer.close()


async def test_binary_frames_are_not_of_this_protocol(gateway: Gateway) -> None:
    client = await gateway.connect()
    await client.response.send_bytes(b'{"id":1,"connect":{}}')
    assert await client.closed() == 3501


async def test_a_frame_may_hold_more_than_one_command_of_the_largest_size(gateway: Gateway) -> None:
    client = await gateway.connect()
    large = "x" * (SIZE_LIMIT - 100)
    ids = await client.say({"connect": {}}, *[{"publish": {"channel": "room", "data": large}}] * 3)
    for command_id in ids:
        assert "error" not in await client.answer(command_id)


async def test_a_command_that_is_too_large_is_an_error_and_a_frame_ends_the_connection(
    gateway: Gateway,
) -> None:
    client = await gateway.connect()
    await client.ask("connect")
    assert await client.ask("publish", channel="room", data="x" * SIZE_LIMIT) == 106
    assert await client.ask("publish", channel="room", data="x") == {}
    await client.response.send_str("x" * (SIZE_LIMIT * FRAME_COMMANDS_ROOM + 1))
    assert await client.closed() == 1009
    await until(lambda: gateway.connections == 0)


async def test_a_message_in_fragments_is_one(gateway: Gateway) -> None:
    peer = await gateway.raw()
    frame = b'{"id":1,"connect":{}}\n{"id":2,"rpc":{"method":"m"}}'
    await peer.write(masked(TEXT, frame[:10], final=False))
    await peer.write(masked(0x9, b"between"))
    await peer.write(masked(0x0, frame[10:20], final=False) + masked(0x0, frame[20:]))
    await peer.write(masked(CLOSE, b"\x03\xe8"))
    frames = list(parsed(await peer.rest()))
    assert frames[0] == Frame(PONG, b"between")
    assert [json.loads(frame.payload)["id"] for frame in frames[1:3]] == [1, 2]
    assert frames[-1].close_code == 1000
    peer.close()


async def test_text_that_is_no_unicode_ends_the_connection(gateway: Gateway) -> None:
    peer = await gateway.raw()
    await peer.write(masked(TEXT, b'{"id":1,"connect":{"data":"\xff"}}'))
    [frame] = parsed(await peer.rest())
    assert frame.close_code == 1007
    peer.close()
    await until(lambda: gateway.connections == 0)


# ---- the end


async def test_a_client_that_closes_leaves_nothing(gateway: Gateway) -> None:
    client = await gateway.connect()
    await client.ask("connect")
    await client.ask("subscribe", channel="all:room")
    await client.response.close()
    assert client.response.close_code == 1000
    await until(lambda: gateway.connections == 0 and not gateway.fleet.world.presence)
    assert len(gateway.node.assembly.dispatcher) == 0


async def test_a_client_that_is_torn_off_leaves_nothing(gateway: Gateway) -> None:
    peer = await gateway.raw()
    await peer.say({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "all:room"}})
    await until(lambda: gateway.fleet.world.presence)
    peer.close()
    await until(lambda: gateway.connections == 0 and not gateway.fleet.world.presence)


async def test_a_drain_closes_with_word_to_go_elsewhere(gateway: Gateway) -> None:
    clients = [await gateway.connect() for _ in range(3)]
    for client in clients:
        await client.ask("connect")
    await gateway.node.assembly.node.drain(0, no_jitter)
    assert [await client.closed() for client in clients] == [3001] * 3
    await until(lambda: gateway.connections == 0)


async def test_a_peer_that_ignores_the_close_is_dropped(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.05)
    peer = await gateway.raw()
    await peer.say({"id": 1, "connect": {}})
    await until(lambda: gateway.connections == 1)
    await gateway.node.assembly.node.drain(0, no_jitter)
    await until(lambda: gateway.connections == 0)
    frames = list(parsed(await peer.rest()))
    assert frames[-1].close_code == 3001
    peer.close()


async def test_a_peer_that_does_not_read_is_cut_off_and_others_are_not(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.05)
    slow = await gateway.raw()
    await slow.say({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "plain:room"}})
    fast = await gateway.connect()
    await fast.ask("connect")
    await fast.ask("subscribe", channel="plain:room")
    await until(lambda: gateway.connections == 2)
    [cut_off] = [
        connection
        for connection in gateway.node.assembly.node._connections
        if connection.session.client != fast.lines[0]["connect"]["client"]
    ]
    large, sent = "x" * 60_000, 0
    # Nothing flushes signals here: only so many may wait.
    while cut_off.socket.closed_with is None:  # type: ignore[attr-defined]  # it is a Writer
        assert await fast.ask("publish", channel="plain:room", data=large) == {}
        sent += 1
        assert sent < 500, "the socket's own buffers are smaller than that"
    assert cut_off.socket.closed_with is Disconnect.SLOW  # type: ignore[attr-defined]
    await until(lambda: gateway.connections == 1)
    assert await fast.published("plain:room", sent) == [large] * sent
    assert await fast.ask("publish", channel="plain:room", data="the others go on") == {}
    slow.close()


async def test_a_slow_peer_that_reads_at_last_is_told_why(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.3)
    slow = await gateway.raw()
    await slow.say({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "plain:room"}})
    fast = await gateway.connect()
    await fast.ask("connect")
    await until(lambda: gateway.connections == 2)
    [connection] = [
        each
        for each in gateway.node.assembly.node._connections
        if each.session.client != fast.lines[0]["connect"]["client"]
    ]
    await until(lambda: connection.session.channels)
    while connection.socket.closed_with is None:  # type: ignore[attr-defined]  # it is a Writer
        assert await fast.ask("publish", channel="plain:room", data="x" * 60_000) == {}
    frames = list(parsed(await slow.rest()))
    assert frames[-1].close_code == 3008
    assert {frame.opcode for frame in frames[:-1]} == {TEXT}
    slow.close()


# ---- health


async def health(gateway: Gateway, what: str) -> tuple[int, dict[str, Any]]:
    async with gateway.session.get(gateway.url(f"/health/{what}")) as response:
        assert response.content_type == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, await response.json()


async def test_health_of_a_node(gateway: Gateway) -> None:
    node_health = gateway.node.assembly.node.health
    status, body = await health(gateway, "ready")
    assert (status, body["status"], body["node"], body["connections"]) == (200, "degraded", "a", 0)
    assert len(body["reasons"]) == 1
    async with gateway.node.running():
        client = await gateway.connect()
        status, body = await health(gateway, "ready")
        assert (status, body["status"], body["connections"], body["reasons"]) == (200, "ok", 1, [])
        node_health.draining = True
        status, body = await health(gateway, "ready")
        assert (status, body["status"]) == (503, "unready")
        assert body["reasons"][0].startswith("draining")
        status, body = await health(gateway, "live")
        assert (status, body["status"], body["node"]) == (200, "ok", "a")
        await client.response.close()
