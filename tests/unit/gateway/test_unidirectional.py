"""Clients that say no more than how they connect, over real sockets: WebSocket, HTTP, events."""

from __future__ import annotations

import asyncio
import json
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from roomcast.auth.verifier import sign_connection
from roomcast.client import lifetime as lifetime_module
from roomcast.client.connection import Connection
from roomcast.config import ProxyConfig
from roomcast.fleet.order_signals import (
    DisconnectOrder,
    RefreshOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
)
from roomcast.gateway.admission import Admission
from roomcast.gateway.deflate import Compression
from roomcast.gateway.delayed import writer_maker
from roomcast.gateway.keys import NODE
from roomcast.gateway.reader import CONTROL_FRAMES_BURST, ClientFrames
from roomcast.gateway.streams import StreamGateway
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.gateway.writer import Writer
from roomcast.hooks import (
    Carrier,
    ConnectEvent,
    ConnectHook,
    ConnectReply,
    Disconnected,
    Refused,
    ServerSubscription,
)
from roomcast.hooks.calls import Hooks
from roomcast.hooks.passed_headers import PassedHeaders
from roomcast.rates import Rate, Turnstile
from roomcast.wire.codes import DisconnectCode
from tests.unit.worlds import DEADLINE_S, SECRET, Fleet, LocalNode, until

pytest_plugins = ("pytest_aiohttp.plugin",)

SIZE_LIMIT: Final = 4096
QUEUE_BYTES_MAX: Final = 64 * 1024
WEBSOCKET, SSE = "/connection/uni_websocket", "/connection/uni_sse"
HTTP_STREAM, EMULATION = "/connection/uni_http_stream", "/emulation"
PAGES: Final = "https://app.example.com"
Push = dict[str, Any]


class Client(ABC):
    """It reads pushes. The end of its connection is None."""

    @abstractmethod
    async def push(self) -> Push | None: ...

    @abstractmethod
    def leave(self) -> None:
        """Go without a word."""

    async def connected(self) -> Push:
        push = await self.push()
        assert push is not None
        assert list(push) == ["connect"]
        result: Push = push["connect"]
        return result

    async def pushes(self, count: int) -> list[Push | None]:
        return [await self.push() for _ in range(count)]


class StreamClient(Client):
    """Over HTTP, as lines or as events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self._end = b"\n\n" if "event-stream" in response.content_type else b"\n"
        self._buffer = b""

    async def push(self) -> Push | None:
        async with asyncio.timeout(DEADLINE_S):
            while self._end not in self._buffer:
                if not (data := await self.response.content.readany()):
                    assert self._buffer.strip() == b"", "the last push is whole"
                    return None
                self._buffer += data
        head, _, self._buffer = self._buffer.partition(self._end)
        push: Push = json.loads(head.lstrip(b"\n").removeprefix(b"data: "))
        return push

    def leave(self) -> None:
        self.response.close()


class WebSocketClient(Client):
    """Each text message is one push."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def push(self) -> Push | None:
        message = await self.socket.receive(DEADLINE_S)
        if message.type is not WSMsgType.TEXT:
            return None
        push: Push = json.loads(message.data)
        return push

    def leave(self) -> None:
        assert self.socket._writer.transport is not None
        self.socket._writer.transport.abort()


class Server:
    def __init__(self, node: LocalNode, server: TestServer) -> None:
        self.local = node
        self.node = node.assembly.node
        self.http = aiohttp.ClientSession()
        self._server = server
        self._clients: list[Client] = []

    def url(self, path: str) -> str:
        return str(self._server.make_url(path))

    @property
    def over_the_network(self) -> list[Connection]:
        """Its connections, but for those of the test itself."""
        return [each for each in self.node._connections if isinstance(each.socket, Writer)]

    async def open(self, over: str, request: Any = None, **options: Any) -> Client:
        """`request`: a `connect`, or what stands in its place."""
        text = request if isinstance(request, str) else json.dumps(request or {})
        client: Client
        if over.startswith("websocket"):
            params = {"cf_connect": text} if over.endswith("query") else {}
            response = await self.http.ws_connect(self.url(WEBSOCKET), params=params, **options)
            client = WebSocketClient(response)
            if not params:
                await response.send_str(text)
        else:
            if over == "http_stream":
                answer = self.http.post(self.url(HTTP_STREAM), data=text.encode(), **options)
            elif over == "sse, posted":
                answer = self.http.post(self.url(SSE), data=text.encode(), **options)
            else:
                answer = self.http.get(self.url(SSE), params={"cf_connect": text}, **options)
            response = await answer
            assert response.status == 200, await response.text()
            client = StreamClient(response)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            client.leave()
        await self.http.close()
        await until(lambda: not self.over_the_network)
        await self.local.close()


async def ann(event: ConnectEvent) -> ConnectReply:
    """Whoever connects is Ann, in the channels that it names in its data."""
    data = event.data
    channels = data["channels"] if isinstance(data, dict) else []
    subs = {channel: ServerSubscription() for channel in channels}
    return ConnectReply("ann", subs=subs, data="welcome")


async def no_opinion(_: ConnectEvent) -> None:
    return None


Serve = Callable[..., Awaitable[Server]]
EACH: Final = ("websocket", "websocket, query", "http_stream", "sse", "sse, posted")
OVER: Final = pytest.mark.parametrize("over", EACH)
# Those whose query or body is read before anything is opened.
REQUESTS: Final = ("http_stream", "sse", "sse, posted")


@pytest.fixture
async def serve(
    aiohttp_server: Callable[[web.Application], Awaitable[TestServer]],
) -> AsyncIterator[Serve]:
    servers: list[Server] = []

    async def serve(
        turnstile: Turnstile | None = None,
        *,
        hook: ConnectHook = ann,
        write_delay_s: float = 0.0,
        compression: Compression | None = None,
        **changes: Any,
    ) -> Server:
        node = Fleet().node(hooks=Hooks(connect=hook), **changes)
        app = web.Application()
        app[NODE] = node.assembly.node
        admission = Admission(allowed_origins=(PAGES,), turnstile=turnstile)
        make_writer = writer_maker(write_delay_s)
        sockets = WebSocketGateway(
            admission,
            message_size_limit=SIZE_LIMIT,
            queue_bytes_max=QUEUE_BYTES_MAX,
            make_writer=make_writer,
            compression=compression,
        )
        app.router.add_get(WEBSOCKET, sockets.handle_unidirectional)
        StreamGateway(
            admission,
            message_size_limit=SIZE_LIMIT,
            queue_bytes_max=QUEUE_BYTES_MAX,
            make_writer=make_writer,
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


@OVER
async def test_what_a_client_gets(server: Server, over: str) -> None:
    client = await server.open(over, {"data": {"channels": ["news"]}, "name": "page"})
    connect = await client.connected()
    assert connect["client"] in {each.client for each in server.node._connections}
    assert connect["version"] == server.node.services.version
    assert connect["ping"] == 25
    assert connect["node"] == server.node.id
    assert len(connect["session"]) >= 32
    assert "pong" not in connect
    assert connect["data"] == "welcome"
    assert list(connect["subs"]) == ["news"]
    writer = await server.local.client()
    await writer.publish("news", {"text": "line\nbreak", "push": [{}, "}"]})
    assert await client.push() == {
        "channel": "news",
        "pub": {
            "data": {"text": "line\nbreak", "push": [{}, "}"]},
            "offset": 1,
            "info": {"user": "ann", "client": writer.id},
            "time": server.local.clock.now_ms(),
        },
    }


@OVER
async def test_a_hook_knows_how_a_client_came(serve: Serve, over: str) -> None:
    events: list[ConnectEvent] = []

    async def hook(event: ConnectEvent) -> ConnectReply:
        events.append(event)
        return ConnectReply("ann")

    server = await serve(hook=hook)
    proxy = ProxyConfig(http_headers=("Cookie",), emulated_headers=("Authorization",))
    server.node.services.hooks.passed = PassedHeaders([proxy])
    said = {"headers": {"authorization": "mine", "cookie": "forged", "x-more": "1"}}
    client = await server.open(over, said, headers={"Cookie": "s=1", "X-More": "1"})
    await client.connected()
    [event] = events
    transport = "uni_" + over.partition(",")[0]
    assert event.carrier == Carrier(transport, "json", {"cookie": "s=1"}, {"authorization": "mine"})


@OVER
async def test_what_is_published_together_is_one_push_each(server: Server, over: str) -> None:
    client = await server.open(over, {"data": {"channels": ["news"]}})
    await client.connected()
    writer = await server.local.client()
    await writer.say(*({"publish": {"channel": "news", "data": n}} for n in range(20)))
    pushes = await client.pushes(20)
    assert [push["pub"]["data"] for push in pushes if push] == list(range(20))


@OVER
async def test_what_the_application_does_to_it(server: Server, over: str) -> None:
    client = await server.open(over)
    connect = await client.connected()
    assert "subs" not in connect
    orders, target = server.node.orders, Target(client=connect["client"])
    orders.give(SubscribeOrder(target, "all:room", ServerSubscription(data="in")))
    subscribed = await client.push()
    assert subscribed is not None
    assert subscribed["channel"] == "all:room"
    assert subscribed["subscribe"]["data"] == "in"
    assert subscribed["subscribe"]["epoch"]
    join = {"user": "ann", "client": connect["client"]}
    # A node hears of its own joins as of others'.
    assert await client.push() == {"channel": "all:room", "join": {"info": join}}
    now_s = server.local.clock.now_ms() // 1000
    orders.give(RefreshOrder(target, expires_at=now_s + 60))
    assert await client.push() == {"refresh": {"expires": True, "ttl": 60}}
    orders.give(UnsubscribeOrder(target, "all:room"))
    assert await client.push() == {
        "channel": "all:room",
        "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
    }
    orders.give(DisconnectOrder(target, DisconnectCode(4100, "moved")))
    assert await client.push() == {"disconnect": {"code": 4100, "reason": "moved"}}
    assert await client.push() is None
    if isinstance(client, WebSocketClient):
        assert client.socket.close_code == 4100


@OVER
async def test_it_recovers_from_where_it_was(server: Server, over: str) -> None:
    client = await server.open(over, {"data": {"channels": ["news"]}})
    was = (await client.connected())["subs"]["news"]
    client.leave()
    writer = await server.local.client()
    for number in range(3):
        await writer.publish("news", number)
    since = {"recover": True, "epoch": was["epoch"], "offset": 1}
    back = await server.open(over, {"data": {"channels": ["news"]}, "subs": {"news": since}})
    sub = (await back.connected())["subs"]["news"]
    assert (sub["was_recovering"], sub["recovered"], sub["offset"]) == (True, True, 1)
    assert [(each["offset"], each["data"]) for each in sub["publications"]] == [(2, 1), (3, 2)]
    await writer.publish("news", 3)
    push = await back.push()
    assert push is not None
    assert (push["pub"]["offset"], push["pub"]["data"]) == (4, 3)


@OVER
async def test_what_cannot_be_recovered_is_told(server: Server, over: str) -> None:
    since = {"recover": True, "epoch": "of another log", "offset": 1}
    client = await server.open(over, {"data": {"channels": ["news"]}, "subs": {"news": since}})
    sub = (await client.connected())["subs"]["news"]
    assert sub["was_recovering"]
    assert "recovered" not in sub
    assert "publications" not in sub


@OVER
async def test_pings_come_and_no_pong_is_missed(serve: Serve, over: str) -> None:
    server = await serve(ping_interval_s=0.05, pong_timeout_s=0.02)
    client = await server.open(over)
    await client.connected()
    assert await client.pushes(3) == [{}] * 3


@OVER
async def test_the_system_tells_of_a_peer_that_vanished(serve: Serve, over: str) -> None:
    """No pong does."""
    server = await serve(ping_interval_s=20.0, pong_timeout_s=5.0)
    await (await server.open(over)).connected()
    [connection] = server.over_the_network
    assert isinstance(connection.socket, Writer)
    wire = connection.socket._transport.get_extra_info("socket")
    assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000


@OVER
async def test_who_goes_is_gone_with_all_it_had(server: Server, over: str) -> None:
    client = await server.open(over, {"data": {"channels": ["news"]}})
    await client.connected()
    assert server.local.assembly.hub.names() == ["news"]
    client.leave()
    await until(lambda: len(server.node) == 0)
    assert server.local.assembly.hub.names() == []
    assert server.node.services.counters.disconnects == {"3000": 1}


@OVER
async def test_it_is_counted_by_its_transport(server: Server, over: str) -> None:
    counters, name = server.node.services.counters, f"uni_{over.partition(',')[0]}"
    client = await server.open(over)
    await client.connected()
    assert {kind: count for kind, count in counters.open.items() if count} == {name: 1}
    client.leave()
    await until(lambda: len(server.node) == 0)
    assert not any(counters.open.values())
    assert {kind: count for kind, count in counters.opened.items() if count} == {name: 1}


@OVER
async def test_when_the_node_ends_it_is_told(server: Server, over: str) -> None:
    client = await server.open(over)
    await client.connected()
    await server.node.drain(0.0, lambda: 0.0)
    assert await client.push() == {"disconnect": {"code": 3001, "reason": "shutdown"}}
    assert await client.push() is None


@OVER
async def test_one_that_does_not_read_is_cut_off(server: Server, over: str) -> None:
    client = await server.open(over, {"data": {"channels": ["news"]}})
    await client.connected()
    writer = await server.local.client()
    # The peer's kernel and the reader's buffer hold some megabytes before anything waits here.
    for _ in range(1000):
        await writer.publish("news", "x" * 60_000)
        if server.node.services.counters.disconnects:
            break
    await until(lambda: len(server.node) == 1)
    assert server.node.services.counters.disconnects == {"3008": 1}


# ---- delayed and compressed


@OVER
async def test_delayed_a_client_sees_the_same(serve: Serve, over: str) -> None:
    server = await serve(write_delay_s=0.002)
    client = await server.open(over, {"data": {"channels": ["news"]}})
    connect = await client.connected()
    writer = await server.local.client()
    await writer.say(*({"publish": {"channel": "news", "data": n}} for n in range(20)))
    pushes = await client.pushes(20)
    assert [push["pub"]["data"] for push in pushes if push] == list(range(20))
    order = DisconnectOrder(Target(client=connect["client"]), DisconnectCode(4100, "moved"))
    server.node.orders.give(order)
    assert await client.push() == {"disconnect": {"code": 4100, "reason": "moved"}}
    assert await client.push() is None


@pytest.mark.parametrize("over", ["websocket", "websocket, query"])
@pytest.mark.parametrize("bits", [0, 9, 15])
@pytest.mark.parametrize("delay_s", [0.0, 0.002])
async def test_compressed_a_client_sees_the_same(
    serve: Serve, over: str, bits: int, delay_s: float
) -> None:
    server = await serve(write_delay_s=delay_s, compression=Compression(0, 1))
    request = {"data": {"channels": ["news"]}, "name": "x" * 500}
    client = await server.open(over, request, compress=bits)
    assert isinstance(client, WebSocketClient)
    assert bool(client.socket.compress) is bool(bits)
    await client.connected()
    # What is passed over may be compressed or not.
    for number in range(5):
        await client.socket.send_str("nothing " * number)
    writer = await server.local.client()
    data = [{"number": number, "text": "héllo " * number} for number in range(20)]
    await writer.say(*({"publish": {"channel": "news", "data": each}} for each in data))
    pushes = await client.pushes(len(data))
    assert [push["pub"]["data"] for push in pushes if push] == data
    assert all(push and push["channel"] == "news" for push in pushes)
    size = sum(len(json.dumps(push)) for push in pushes)
    assert (server.local.assembly.hub.counters.bytes < size * 0.8) is bool(bits)
    await client.socket.close()
    assert client.socket.close_code == 1000


async def test_what_is_compressed_is_shared(serve: Serve) -> None:
    server = await serve(compression=Compression(0, 1))
    for bits in (15, 15, 9, 9, 0, 0):
        await (await server.open("websocket", compress=bits)).connected()
    assert len({each.socket.framer for each in server.over_the_network}) == 3


async def test_what_is_passed_over_leaves_nothing(serve: Serve) -> None:
    server = await serve(compression=Compression(0, 1))
    client = await server.open("websocket", compress=15, autoping=False)
    assert isinstance(client, WebSocketClient)
    await client.connected()
    for _ in range(20):
        await client.socket.send_str("nothing")
    await client.socket.ping()
    assert (await client.socket.receive(DEADLINE_S)).type is WSMsgType.PONG
    [connection] = server.over_the_network
    assert isinstance(connection.socket, Writer)
    frames = connection.socket._transport.get_protocol()
    assert isinstance(frames, ClientFrames)
    assert frames._marks is not None
    assert frames._marks._waiting == []


# ---- tokens, and how connecting fails


def short_token(server: Server) -> str:
    """It is good for a moment."""
    clock = server.local.clock
    token = sign_connection("ann", SECRET, 1, now_s=clock.now_ms() / 1000)
    clock.advance(0.9)
    return token


@OVER
async def test_a_token_says_who_it_is_and_until_when(
    serve: Serve, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime_module, "EXPIRY_GRACE_S", 0.0)
    server = await serve(hook=no_opinion, insecure=False, secret=SECRET)
    client = await server.open(over, {"token": short_token(server)})
    connect = await client.connected()
    assert (connect["expires"], connect["ttl"]) == (True, 1)
    assert [each.user for each in server.over_the_network] == ["ann"]
    # No other way is there for it to stay than an order of the application.
    assert await client.push() == {"disconnect": {"code": 3005, "reason": "connection expired"}}
    assert await client.push() is None


@OVER
async def test_the_application_may_let_it_stay_beyond_its_token(
    serve: Serve, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime_module, "EXPIRY_GRACE_S", 0.0)
    server = await serve(hook=no_opinion, insecure=False, secret=SECRET, ping_interval_s=0.3)
    client = await server.open(over, {"token": short_token(server)})
    await client.connected()
    server.node.orders.give(RefreshOrder(Target("ann")))
    assert await client.push() == {"refresh": {}}
    # The ping is later than the end of the token was.
    assert await client.pushes(2) == [{}, {}]


@OVER
@pytest.mark.parametrize("ttl_s, key, code", [(-10, SECRET, 3005), (60, "of another" * 9, 3500)])
async def test_a_bad_token_is_told(
    serve: Serve, over: str, ttl_s: int, key: str, code: int
) -> None:
    server = await serve(hook=no_opinion, insecure=False, secret=SECRET)
    now_s = server.local.clock.now_ms() / 1000 + min(ttl_s, 0)
    token = sign_connection("ann", key, abs(ttl_s) - 1, now_s=now_s)
    client = await server.open(over, {"token": token})
    push = await client.push()
    assert push is not None
    assert push["disconnect"]["code"] == code
    assert await client.push() is None


@OVER
async def test_who_has_no_token_is_told(serve: Serve, over: str) -> None:
    server = await serve(hook=no_opinion, insecure=False, secret=SECRET)
    client = await server.open(over)
    assert await client.push() == {"disconnect": {"code": 3507, "reason": "permission denied"}}
    assert await client.push() is None
    counters = server.node.services.counters
    await until(lambda: counters.disconnects)
    assert counters.disconnects == {"3507": 1}
    assert counters.commands == {("connect", 101): 1}


@OVER
@pytest.mark.parametrize(
    "answer, code, reason",
    [
        (Refused(400, "not today"), 3507, "not today"),
        (Refused(1999, "tomorrow", temporary=True), 3004, "internal server error"),
        (Refused(109, "old"), 3005, "connection expired"),
        (Disconnected(4501, "banned"), 4501, "banned"),
        (ConnectReply("ann", subs={"no:where": ServerSubscription()}), 3501, "bad request"),
    ],
    ids=["refused", "not now", "old token", "disconnected", "unknown channel"],
)
async def test_what_the_application_says_against_it(
    serve: Serve, over: str, answer: Exception | ConnectReply, code: int, reason: str
) -> None:
    async def hook(_: ConnectEvent) -> ConnectReply:
        if isinstance(answer, Exception):
            raise answer
        return answer

    server = await serve(hook=hook)
    client = await server.open(over)
    assert await client.push() == {"disconnect": {"code": code, "reason": reason}}
    assert await client.push() is None
    if isinstance(client, WebSocketClient):
        assert client.socket.close_code == code


@OVER
@pytest.mark.parametrize(
    "request_text",
    [
        "no JSON",
        "null",
        "[]",
        '"{}"',
        '{"token":7}',
        '{"subs":[]}',
        '{"id":1,"connect":{}}\n{"id":2}',
        json.dumps({"subs": {f"c{number}": {} for number in range(129)}}),
        json.dumps({"data": "x" * SIZE_LIMIT}),
    ],
)
async def test_what_is_no_connect_is_told(serve: Serve, over: str, request_text: str) -> None:
    server = await serve(message_size_limit=SIZE_LIMIT)
    client = await server.open(over, request_text)
    assert await client.push() == {"disconnect": {"code": 3501, "reason": "bad request"}}
    assert await client.push() is None


async def test_without_anything_in_the_query_nothing_is_asked_for(server: Server) -> None:
    async with server.http.get(server.url(SSE)) as response:
        assert (await StreamClient(response).connected())["data"] == "welcome"


async def test_a_socket_that_never_says_how_it_connects_is_stale(serve: Serve) -> None:
    server = await serve(stale_close_delay_s=0.05)
    response = await server.http.ws_connect(server.url(WEBSOCKET))
    client = WebSocketClient(response)
    assert await client.push() == {"disconnect": {"code": 3502, "reason": "stale"}}
    assert await client.push() is None
    assert response.close_code == 3502


async def test_a_connect_in_a_binary_message_is_none(server: Server) -> None:
    response = await server.http.ws_connect(server.url(WEBSOCKET))
    await response.send_bytes(b"{}")
    client = WebSocketClient(response)
    assert await client.push() == {"disconnect": {"code": 3501, "reason": "bad request"}}
    assert await client.push() is None


# ---- it says no more


@pytest.mark.parametrize("over", ["websocket", "websocket, query"])
async def test_what_a_socket_says_further_is_passed_over(server: Server, over: str) -> None:
    client = await server.open(over)
    assert isinstance(client, WebSocketClient)
    await client.connected()
    for text in ("{}", '{"id":2,"publish":{"channel":"news","data":1}}', "no JSON", "x" * 10_000):
        await client.socket.send_str(text)
    await client.socket.send_bytes(b"\0")
    await client.socket.ping(b"still there?")
    connect = next(iter(server.node._connections)).client
    server.node.orders.give(SubscribeOrder(Target(client=connect), "plain:a"))
    push = await client.push()
    assert push is not None
    assert push["channel"] == "plain:a"
    # The ping is behind all of that.
    await until(lambda: server.node.services.counters.received_bytes == len("{}"))
    assert server.local.assembly.hub.names() == ["plain:a"]
    assert len(server.node) == 1


async def test_what_it_says_further_has_a_rate(server: Server) -> None:
    client = await server.open("websocket")
    assert isinstance(client, WebSocketClient)
    await client.connected()
    for _ in range(round(CONTROL_FRAMES_BURST) + 5):
        await client.socket.send_str("{}")
    counters = server.node.services.counters
    await until(lambda: counters.limits["control_rate"] > 0)
    assert len(server.node) == 1


@OVER
async def test_the_server_api_finds_it_by_its_session(server: Server, over: str) -> None:
    connect = await (client := await server.open(over)).connected()
    other = await (await server.open("sse")).connected()
    goodbye = DisconnectCode(4501, "only you")
    server.node.orders.give(DisconnectOrder(Target("ann", session="guessed"), goodbye))
    session = connect["session"]
    assert session != other["session"]
    server.node.orders.give(DisconnectOrder(Target("ann", session=session), goodbye))
    assert await client.push() == {"disconnect": {"code": 4501, "reason": "only you"}}
    await until(lambda: len(server.node) == 1)


@OVER
async def test_nobody_speaks_in_its_name(server: Server, over: str) -> None:
    """Its session is for the server API; commands need one of another kind."""
    connect = await (await server.open(over)).connected()
    body = {"session": connect["session"], "node": connect["node"], "data": "{}"}
    async with server.http.post(server.url(EMULATION), json=body) as answer:
        assert answer.status == 404


# ---- who may


@pytest.mark.parametrize("path", [WEBSOCKET, HTTP_STREAM, SSE])
async def test_a_page_that_is_not_allowed_gets_nothing(server: Server, path: str) -> None:
    headers = {"Origin": "https://evil.example.com"}
    methods = ("GET",) if path == WEBSOCKET else ("POST", "OPTIONS")
    for method in (*methods, *(("GET",) if path == SSE else ())):
        async with server.http.request(method, server.url(path), headers=headers) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
    assert len(server.node) == 0


@pytest.mark.parametrize("over", REQUESTS)
async def test_a_page_that_is_allowed_may_read(server: Server, over: str) -> None:
    client = await server.open(over, headers={"Origin": PAGES})
    assert isinstance(client, StreamClient)
    headers = client.response.headers
    assert headers["Access-Control-Allow-Origin"] == PAGES
    assert headers["X-Accel-Buffering"] == "no"
    assert "no-store" in headers["Cache-Control"]
    kind = "application/json" if over == "http_stream" else "text/event-stream"
    assert client.response.content_type == kind
    path = HTTP_STREAM if over == "http_stream" else SSE
    async with server.http.options(server.url(path), headers={"Origin": PAGES}) as answer:
        assert answer.status == 204


async def test_limits_are_those_of_others(serve: Serve) -> None:
    server = await serve(connection_limit=1, turnstile=Turnstile(Rate(0.5, 4.0)))
    await (await server.open("http_stream")).connected()
    async with server.http.post(server.url(HTTP_STREAM), data=b"{}") as answer:
        assert answer.status == 503
    async with server.http.get(server.url(SSE)) as answer:
        assert answer.status == 503
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        await server.http.ws_connect(server.url(WEBSOCKET))
    for path in (SSE, WEBSOCKET):
        async with server.http.get(server.url(path)) as answer:
            assert answer.status == 429


@OVER
async def test_a_user_has_so_many_connections_and_no_more(serve: Serve, over: str) -> None:
    server = await serve(user_connection_limit=1)
    await (await server.open("sse")).connected()
    client = await server.open(over)
    assert await client.push() == {"disconnect": {"code": 3504, "reason": "connection limit"}}
    assert await client.push() is None


async def test_what_opens_nothing(server: Server) -> None:
    for path in (HTTP_STREAM, SSE):
        async with server.http.post(server.url(path)) as answer:
            assert answer.status == 400
        async with server.http.post(server.url(path), data=b"x" * (4 * SIZE_LIMIT + 1)) as answer:
            assert answer.status == 413
    async with server.http.get(server.url(HTTP_STREAM)) as answer:
        assert answer.status == 405
    async with server.http.head(server.url(SSE)) as answer:
        assert answer.status == 405
    async with server.http.get(server.url(WEBSOCKET), params={"cf_connect": "{}"}) as answer:
        assert answer.status == 426
    async with server.http.get(server.url(SSE), params={"cf_connect": "x" * 10_000}) as answer:
        assert answer.status == 400
    assert len(server.node) == 0


async def test_no_subprotocol_is_agreed_on(server: Server) -> None:
    """Those that there are have replies, or are in Protobuf."""
    offered = ("centrifuge-protobuf", "centrifuge-json")
    client = await server.open("websocket, query", protocols=offered)
    assert isinstance(client, WebSocketClient)
    assert client.socket.protocol is None
    await client.connected()
