"""The WebSocket endpoint over real sockets, with a node over memory behind it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from roomcast.delivery import broadcaster as broadcaster_module
from roomcast.delivery.broadcaster import CHANNELS_BYTES_MAX
from roomcast.gateway import writer as writer_module
from roomcast.gateway.admission import Admission, origin_allowed
from roomcast.gateway.deflate import Compression
from roomcast.gateway.delayed import writer_maker
from roomcast.gateway.http import add_health_routes
from roomcast.gateway.keys import HEALTH, NODE
from roomcast.gateway.websocket import FRAME_COMMANDS_ROOM, WebSocketGateway
from roomcast.rates import Rate, Turnstile
from roomcast.wire.codes import Disconnect
from tests.protobuf import command, read_messages, without_empty
from tests.unit.gateway.frames import BINARY, CLOSE, PONG, TEXT, Frame, handshake, masked, parsed
from tests.unit.worlds import DEADLINE_S, Fleet, LocalNode, no_jitter, until
from tests.websocket import PROTOBUF, WebSocket

pytest_plugins = ("pytest_aiohttp.plugin",)

PATH: Final = "/connection/websocket"
SIZE_LIMIT: Final = 65_536
QUEUE_BYTES_MAX: Final = 64 * 1024
# What a client offers, by encoding.
OFFERS: Final = {"json": (), "protobuf": (PROTOBUF,)}
IN_EITHER: Final = pytest.mark.parametrize("offered", OFFERS.values(), ids=OFFERS)


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

    async def raw(self, path: str = PATH, **headers: str) -> RawPeer:
        """A client that does what it wants; it reads only when told."""
        connected = socket.socket()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connected, ("127.0.0.1", self.server.port))
        peer = RawPeer(connected)
        await peer.write(handshake(path, **headers))
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

    @property
    def is_protobuf(self) -> bool:
        return PROTOBUF.encode() in self.head

    async def say(self, *commands: dict[str, Any]) -> None:
        if self.is_protobuf:
            await self.write(masked(BINARY, b"".join(command(each) for each in commands)))
        else:
            await self.write(
                masked(TEXT, "\n".join(json.dumps(each) for each in commands).encode())
            )

    def lines(self, frames: Sequence[Frame]) -> list[dict[str, Any]]:
        """What frames of its encoding say."""
        if self.is_protobuf:
            assert {frame.opcode for frame in frames} <= {BINARY}
            return [line for frame in frames for line in read_messages(frame.payload)]
        assert {frame.opcode for frame in frames} <= {TEXT}
        return [json.loads(line) for frame in frames for line in frame.payload.split(b"\n")]

    def close(self) -> None:
        self._socket.close()


Serve = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def serve(
    aiohttp_server: Callable[[web.Application], Awaitable[TestServer]],
) -> AsyncIterator[Serve]:
    gateways: list[Gateway] = []

    async def serve(
        *,
        origins: tuple[str, ...] = (),
        turnstile: Turnstile | None = None,
        trusted_proxies: tuple[str, ...] = (),
        write_delay_s: float = 0.0,
        compression: Compression | None = None,
        **changes: Any,
    ) -> Gateway:
        fleet = Fleet()
        node = fleet.node(**changes)
        app = web.Application()
        app[NODE], app[HEALTH] = node.assembly.node, node.assembly.node.health
        handler = WebSocketGateway(
            Admission(
                allowed_origins=origins, turnstile=turnstile, trusted_proxies=trusted_proxies
            ),
            message_size_limit=SIZE_LIMIT,
            queue_bytes_max=QUEUE_BYTES_MAX,
            make_writer=writer_maker(write_delay_s),
            compression=compression,
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


# ---- batches and compression


@IN_EITHER
@pytest.mark.parametrize("bits", [0, 9, 15])
@pytest.mark.parametrize("delay_s", [0.0, 0.002])
async def test_delayed_or_compressed_a_client_sees_the_same(
    serve: Serve, offered: tuple[str, ...], bits: int, delay_s: float
) -> None:
    gateway = await serve(write_delay_s=delay_s, compression=Compression(0, 1))
    client = await gateway.connect(protocols=offered, compress=bits)
    assert bool(client.response.compress) is bool(bits)
    assert (await client.ask("connect"))["client"]
    assert (await client.ask("subscribe", channel="room"))["recoverable"]
    data = [{"number": number, "text": "héllo " * number} for number in range(30)]
    await client.say(*({"publish": {"channel": "room", "data": each}} for each in data))
    assert await client.published("room", len(data)) == data
    replies = [line["id"] for line in client.lines if "publish" in line]
    assert replies == sorted(replies)
    client.lines.clear()
    await client.response.close()
    assert client.response.close_code == 1000


async def test_delayed_replies_come_in_one_frame(serve: Serve) -> None:
    gateway = await serve(write_delay_s=0.3)
    peer = await gateway.raw()
    commands: list[dict[str, Any]] = [{"connect": {}}, {"ping": {}}, {"ping": {}}]
    for number, each in enumerate(commands, 1):
        await peer.say({"id": number, **each})
    [frame] = parsed(await peer.read(4096))
    assert [line["id"] for line in peer.lines([frame])] == [1, 2, 3]
    peer.close()


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
        ("http://[2001:db8::1]:3000", "api.example.net", ("http://[2001:db8::1]:3000",), True),
        ("http://[2001:db8::1]:4000", "api.example.net", ("http://[2001:db8::1]:*",), True),
        ("http://1:3000", "api.example.net", ("http://[2001:db8::1]:3000",), False),
        ("http://a.com", "api.example.net", ("http://?.com",), False),
        ("http://b.com", "api.example.net", ("http://[abc].com",), False),
    ],
)
def test_origins(origin: str | None, host: str, allowed: tuple[str, ...], welcome: bool) -> None:
    assert origin_allowed(origin, host, allowed) is welcome


async def test_a_foreign_page_is_refused(gateway: Gateway) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.session.ws_connect(gateway.url(), origin="https://evil.example.com")
    assert refused.value.status == 403
    assert gateway.connections == 0
    assert gateway.node.assembly.node.services.counters.limits["origin"] == 1


async def test_an_allowed_page_is_welcome(serve: Serve) -> None:
    gateway = await serve(origins=("https://chat.example.com",))
    client = await gateway.connect(origin="https://chat.example.com")
    assert (await client.ask("connect"))["client"]


async def test_it_is_counted_as_a_websocket_while_it_is_there(gateway: Gateway) -> None:
    counters = gateway.node.assembly.node.services.counters
    client = await gateway.connect()
    assert counters.open["websocket"] == counters.opened["websocket"] == 1
    await client.response.close()
    await until(lambda: gateway.connections == 0)
    assert set(counters.open.values()) == {0}
    assert counters.opened["websocket"] == 1


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


async def test_an_address_that_comes_too_often_is_told_when_to_come_again(serve: Serve) -> None:
    gateway = await serve(turnstile=Turnstile(Rate(0.5, 2.0)))
    for _ in range(2):
        await gateway.connect()
    # Of its own word it is somebody else each time; nobody vouches for it.
    for number in range(3):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await gateway.connect(headers={"X-Forwarded-For": f"198.51.100.{number}"})
        assert refused.value.status == 429
        assert refused.value.headers is not None
        assert refused.value.headers["Retry-After"] == "2"
    counters = gateway.node.assembly.node.services.counters
    assert counters.limits["handshake_rate"] == 3
    assert gateway.connections == 2
    gateway.fleet.clock.advance(2.0)
    await gateway.connect()


async def test_behind_a_trusted_proxy_its_clients_are_told_apart(serve: Serve) -> None:
    gateway = await serve(turnstile=Turnstile(Rate(0.5, 1.0)), trusted_proxies=("127.0.0.0/8",))
    for number in range(3):
        await gateway.connect(headers={"X-Forwarded-For": f"198.51.100.{number}"})
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.connect(headers={"X-Forwarded-For": "1.1.1.1, 198.51.100.1"})
    assert refused.value.status == 429


async def test_how_connections_end_is_counted(serve: Serve) -> None:
    gateway = await serve(connection_limit=2)
    with capture_logs() as logs:
        gone, bad = await gateway.connect(), await gateway.connect()
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await gateway.connect()
        await gone.response.close()
        await bad.response.send_str("no JSON")
        counters = gateway.node.assembly.node.services.counters
        await until(lambda: counters.disconnects == {"3000": 1, "3501": 1})
        assert counters.limits["connections"] == 1
        await bad.response.close()
        await until(lambda: gateway.connections == 0)
    # One line at each end.
    assert [(line["event"], line["code"]) for line in logs if line["event"][:7] == "client_"] == [
        ("client_gone", 1000),
        ("client_closed", 3501),
    ]


async def test_a_draining_node_takes_nobody(gateway: Gateway) -> None:
    gateway.node.assembly.node.health.draining = True
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await gateway.connect()
    assert refused.value.status == 503


@pytest.mark.parametrize(
    "offered, chosen",
    [
        ("centrifuge-json", b"centrifuge-json"),
        ("centrifuge-protobuf", b"centrifuge-protobuf"),
        ("something-else, centrifuge-protobuf, centrifuge-json", b"centrifuge-protobuf"),
        ("", None),
        ("something-else", None),
    ],
)
async def test_subprotocols(gateway: Gateway, offered: str, chosen: bytes | None) -> None:
    """SDKs send the JSON one, none, or (older ones for Python) an empty header."""
    peer = await gateway.raw(Sec_WebSocket_Protocol=offered)
    headers = dict(
        line.lower().split(b": ", 1) for line in peer.head.split(b"\r\n")[1:] if b": " in line
    )
    assert headers.get(b"sec-websocket-protocol") == chosen
    assert b"sec-websocket-extensions" not in headers
    peer.close()


@pytest.mark.parametrize(
    "query, offered, opcode",
    [
        ("?format=protobuf", "", BINARY),
        ("?cf_protocol=protobuf", "", BINARY),
        ("?format=json&cf_protocol=protobuf", "something-else", BINARY),
        ("?format=json", "", TEXT),
        ("?format=Protobuf&format2=protobuf", "", TEXT),
        ("?format=protobuf", "centrifuge-json", TEXT),
        ("?format=json", "centrifuge-protobuf", BINARY),
    ],
)
async def test_an_encoding_may_be_named_in_the_url(
    gateway: Gateway, query: str, offered: str, opcode: int
) -> None:
    """A subprotocol that was agreed upon is the last word."""
    peer = await gateway.raw(PATH + query, Sec_WebSocket_Protocol=offered)
    said = command({"id": 1, "connect": {}}) if opcode == BINARY else b'{"id":1,"connect":{}}'
    await peer.write(masked(opcode, said) + masked(CLOSE, b"\x03\xe8"))
    reply, _ = parsed(await peer.rest())
    assert reply.opcode == opcode
    [line] = read_messages(reply.payload) if opcode == BINARY else [json.loads(reply.payload)]
    assert line["connect"]["client"]
    peer.close()


async def test_a_handshake_through_a_proxy_upgrades(gateway: Gateway) -> None:
    """Other answers close a proxy's connection."""
    peer = await gateway.raw(X_Forwarded_For="192.0.2.1")
    assert b"\r\nConnection: upgrade\r\n" in peer.head
    assert b"\r\nSec-WebSocket-Accept: " in peer.head
    assert b"\r\nServer: roomcast\r\n" in peer.head
    assert b"\r\nDate: " in peer.head
    peer.close()


# ---- frames


@IN_EITHER
async def test_commands_are_answered(gateway: Gateway, offered: Sequence[str]) -> None:
    client = await gateway.connect(protocols=offered)
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


@IN_EITHER
async def test_replies_come_before_the_close(gateway: Gateway, offered: Sequence[str]) -> None:
    peer = await gateway.raw(Sec_WebSocket_Protocol=",".join(offered))
    await peer.say({"id": 1, "connect": {}}, {"id": 2, "rpc": {"method": "m"}}, {"send": {}})
    await peer.write(masked(CLOSE, b"\x0b\xb9"))
    frames = list(parsed(await peer.rest()))
    assert [line["id"] for line in peer.lines(frames[:-1])] == [1, 2]
    assert frames[-1].close_code == 3508
    peer.close()


async def test_binary_frames_are_not_json(gateway: Gateway) -> None:
    client = await gateway.connect()
    await client.response.send_bytes(b'{"id":1,"connect":{}}')
    assert await client.closed() == 3501


async def test_text_frames_are_not_protobuf(gateway: Gateway) -> None:
    client = await gateway.connect(protocols=[PROTOBUF])
    await client.response.send_str('{"id":1,"connect":{}}')
    assert await client.closed() == 3501


@pytest.mark.parametrize(
    "frame", [b"", b"\x80", b"\x09\x08\x01", b"\x02\x08\x02", b'{"id":1,"connect":{}}']
)
async def test_a_binary_frame_that_makes_no_sense_ends_the_connection(
    gateway: Gateway, frame: bytes
) -> None:
    client = await gateway.connect(protocols=[PROTOBUF])
    await client.ask("connect")
    await client.response.send_bytes(frame)
    assert await client.closed() == 3501
    await until(lambda: gateway.connections == 0)


async def test_clients_of_both_encodings_meet_in_a_channel(gateway: Gateway) -> None:
    json_client, protobuf_client = [
        await gateway.connect(protocols=offered) for offered in OFFERS.values()
    ]
    everybody = (json_client, protobuf_client)
    for client in everybody:
        await client.ask("connect")
    for client in everybody:
        assert (await client.ask("subscribe", channel="all:room"))["recoverable"] is True
    for client, data in zip(
        everybody, ({"from": "json", "n": [1, 2.5, None]}, "protobuf"), strict=True
    ):
        assert await client.ask("publish", channel="all:room", data=data) == {}
    for client in everybody:
        assert await client.published("all:room", 2) == [
            {"from": "json", "n": [1, 2.5, None]},
            "protobuf",
        ]
    in_json = [without_empty(each, "Publication") for each in json_client.pushes("all:room", "pub")]
    assert protobuf_client.pushes("all:room", "pub") == in_json
    members = [
        line["connect"]["client"] for each in everybody for line in each.lines if "connect" in line
    ]
    joins = [push["info"]["client"] for push in json_client.pushes("all:room", "join")]
    assert joins == members
    # User "" is empty, and therefore not there in Protobuf.
    assert protobuf_client.pushes("all:room", "join") == [{"info": {"client": members[1]}}]
    for client in everybody:
        assert set((await client.ask("presence", channel="all:room"))["presence"]) == set(members)
        history = await client.ask("history", channel="all:room", limit=-1)
        assert [publication["offset"] for publication in history["publications"]] == [1, 2]
    await json_client.response.close()
    left = await protobuf_client.until(lambda: protobuf_client.pushes("all:room", "leave"))
    assert left == [{"info": {"client": members[0]}}]


async def test_a_protobuf_client_is_pinged_and_answers(serve: Serve) -> None:
    gateway = await serve(ping_interval_s=0.01, pong_timeout_s=1.0)
    client = await gateway.connect(protocols=[PROTOBUF])
    await client.ask("connect")
    for pings in (1, 2, 3):
        await client.until(lambda pings=pings: client.lines.count({}) >= pings)  # type: ignore[misc]
        await client.response.send_bytes(b"\x00")
    assert await client.ask("publish", channel="room", data=1) == {}
    # Without an answer it is not kept.
    assert await client.closed() == 3012


async def test_bytes_that_are_no_json_are_refused_and_the_connection_lives(
    gateway: Gateway,
) -> None:
    client = await gateway.connect(protocols=[PROTOBUF])
    await client.ask("connect")
    assert await client.ask("publish", channel="room", data=b"\xff\xd8\xff") == 107
    assert await client.ask("publish", channel="room", data=b'{"n" : 1}') == {}


@IN_EITHER
async def test_a_frame_may_hold_more_than_one_command_of_the_largest_size(
    gateway: Gateway, offered: Sequence[str]
) -> None:
    client = await gateway.connect(protocols=offered)
    large = "x" * (SIZE_LIMIT - 100)
    ids = await client.say({"connect": {}}, *[{"publish": {"channel": "room", "data": large}}] * 3)
    for command_id in ids:
        assert "error" not in await client.answer(command_id)


@IN_EITHER
async def test_a_command_that_is_too_large_is_an_error_and_a_frame_ends_the_connection(
    gateway: Gateway, offered: Sequence[str]
) -> None:
    client = await gateway.connect(protocols=offered)
    await client.ask("connect")
    assert await client.ask("publish", channel="room", data="x" * SIZE_LIMIT) == 106
    assert await client.ask("publish", channel="room", data="x") == {}
    too_large = b"x" * (SIZE_LIMIT * FRAME_COMMANDS_ROOM + 1)
    await client.response.send_frame(
        too_large, WSMsgType.BINARY if client.is_protobuf else WSMsgType.TEXT
    )
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


@IN_EITHER
async def test_a_peer_that_does_not_read_is_cut_off_and_others_are_not(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, offered: Sequence[str]
) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.05)
    slow = await gateway.raw(Sec_WebSocket_Protocol=",".join(offered))
    await slow.say({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "plain:room"}})
    fast = await gateway.connect(protocols=offered)
    await fast.ask("connect")
    await fast.ask("subscribe", channel="plain:room")
    await until(lambda: gateway.connections == 2)
    [cut_off] = [
        connection
        for connection in gateway.node.assembly.node._connections
        if connection.session.client != fast.lines[0]["connect"]["client"]
    ]
    large, sent = "x" * 60_000, 0
    # Nothing flushes signals here: only so many may wait, and of one client fewer.
    for name in ("CLIENT_BYTES_MAX", "MUCH_BYTES_MAX"):
        monkeypatch.setattr(broadcaster_module, name, CHANNELS_BYTES_MAX)
    while cut_off.socket.closed_with is None:  # type: ignore[attr-defined]  # it is a Writer
        assert await fast.ask("publish", channel="plain:room", data=large) == {}
        sent += 1
        assert sent < 500, "the socket's own buffers are smaller than that"
    assert cut_off.socket.closed_with is Disconnect.SLOW  # type: ignore[attr-defined]
    await until(lambda: gateway.connections == 1)
    assert await fast.published("plain:room", sent) == [large] * sent
    assert await fast.ask("publish", channel="plain:room", data="the others go on") == {}
    slow.close()


@IN_EITHER
async def test_a_slow_peer_that_reads_at_last_is_told_why(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, offered: Sequence[str]
) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.3)
    slow = await gateway.raw(Sec_WebSocket_Protocol=",".join(offered))
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
    for name in ("CLIENT_BYTES_MAX", "MUCH_BYTES_MAX"):
        monkeypatch.setattr(broadcaster_module, name, CHANNELS_BYTES_MAX)
    with capture_logs() as logs:
        while connection.socket.closed_with is None:  # type: ignore[attr-defined]  # it is a Writer
            assert await fast.ask("publish", channel="plain:room", data="x" * 60_000) == {}
        frames = list(parsed(await slow.rest()))
        await until(lambda: gateway.connections == 1)
    assert frames[-1].close_code == 3008
    ends = [(line["event"], line["code"]) for line in logs if line["event"][:7] == "client_"]
    assert ends == [("client_slow", 3008)]
    assert len(slow.lines(frames[:-1])) > 2
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
