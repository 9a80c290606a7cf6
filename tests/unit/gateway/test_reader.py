"""What reads a client's frames once its handshake is answered, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
import structlog
from aiohttp import WebSocketError, web
from aiohttp.http import WebSocketReader
from aiohttp.test_utils import BaseTestServer, TestServer

from roomcast.client.connection import Connection
from roomcast.client.services import TURNS_AT_ONCE
from roomcast.gateway import reader as reader_module
from roomcast.gateway.admission import Admission
from roomcast.gateway.keys import NODE
from roomcast.gateway.parsing import Parsing
from roomcast.gateway.reader import CONTROL_BYTES, ClientFrames
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.gateway.writer import CLOSE_WAIT_S, text_frame
from roomcast.wire.codes import Disconnect
from tests.unit.gateway.descriptors import taken_over
from tests.unit.gateway.frames import BINARY, CLOSE, PING, PONG, TEXT, handshake, masked, parsed
from tests.unit.worlds import DEADLINE_S, Fleet, LocalNode, until

PATH: Final = "/connection/websocket"
CONNECT: Final = masked(TEXT, b'{"id":1,"connect":{}}')
_HOLDERS: Final = (WebSocketReader, WebSocketError)
GOODBYE: Final = masked(CLOSE, b"\x03\xe8")

MORE_THAN_THE_KERNEL_HOLDS = 32 * 1024 * 1024


class Served:
    """A node, and the way to it."""

    def __init__(self, node: LocalNode, server: BaseTestServer, gateway: WebSocketGateway) -> None:
        self.node = node
        self.server = server
        self.gateway = gateway
        self.visitors: list[asyncio.StreamWriter] = []

    @property
    def connections(self) -> int:
        return len(self.node.assembly.node)

    @property
    def client(self) -> ClientFrames:
        """The only client there is."""
        [client] = self.clients
        return client

    @property
    def clients(self) -> list[ClientFrames]:
        """In the order in which they came."""
        clients = [
            connection.socket._transport.get_protocol()  # type: ignore[attr-defined]  # it is a Writer
            for connection in self.node.assembly.node._connections
        ]
        assert all(isinstance(client, ClientFrames) for client in clients)
        ports = [writer.get_extra_info("sockname") for writer in self.visitors]
        return sorted(
            clients, key=lambda client: ports.index(client._transport.get_extra_info("peername"))
        )

    async def visit(self, behind: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A WebSocket. `behind`: sent in one piece with the handshake."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        self.visitors.append(writer)
        writer.write(handshake(PATH) + behind)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return reader, writer


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    node = Fleet().node()
    app = web.Application()
    app[NODE] = node.assembly.node
    gateway = WebSocketGateway(
        Admission(allowed_origins=()), message_size_limit=4096, queue_bytes_max=1024 * 1024
    )
    app.router.add_get(PATH, gateway.handle)
    async with TestServer(app) as server:
        served = Served(node, server, gateway)
        yield served
        for visitor in served.visitors:
            visitor.transport.abort()
        await until(lambda: served.connections == 0)
        await node.assembly.dispatcher.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await reader.read()


async def test_what_comes_with_the_handshake_is_taken(served: Served) -> None:
    reader, _ = await served.visit(CONNECT + masked(PING, b"early") + GOODBYE)
    frames = list(parsed(await _rest(reader)))
    assert [frame.opcode for frame in frames] == [TEXT, PONG, CLOSE]
    assert frames[-1].close_code == 1000


async def test_a_client_that_is_silent_has_no_task(served: Served) -> None:
    before = asyncio.all_tasks()
    reader, writer = await served.visit(CONNECT)
    await reader.readuntil(b"}}")
    runner = served.server.runner
    assert runner is not None
    server = runner.server
    assert server is not None
    await until(lambda: not server.connections)
    assert asyncio.all_tasks() == before
    writer.write(GOODBYE)
    await _rest(reader)


def said(first: int, count: int) -> bytes:
    """Commands, each in a frame of its own."""
    return b"".join(
        masked(TEXT, json.dumps({"id": first + index, "ping": {}}).encode())
        for index in range(count)
    )


async def answered(reader: asyncio.StreamReader, first: int, count: int) -> None:
    """As `said`, and in this order."""
    async with asyncio.timeout(DEADLINE_S):
        for number in range(first, first + count):
            await reader.readuntil(b'"id":%d' % number)


async def test_of_many_clients_few_bytes_are_parsed_in_a_turn(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of them can have the same moment: what is read of each at a time, as frames of
    nothing, held all others up for 0.3 s.
    """
    served.gateway._parsing = Parsing(1000)
    readers = []
    for _ in range(8):
        reader, _ = await served.visit(CONNECT)
        await reader.readuntil(b"}}")
        readers.append(reader)
    parse, turn = ClientFrames._parse, 0
    parsed_in: Counter[int] = Counter()

    def counted(frames: ClientFrames, data: bytes) -> None:
        parsed_in[turn] += len(data)
        parse(frames, data)

    monkeypatch.setattr(ClientFrames, "_parse", counted)
    data = said(10, 50)
    for client in served.clients:
        client.data_received(data)
    waiting = [client for client in served.clients if not client._transport.is_reading()]
    assert len(waiting) == 7, "it is not read while what came of it waits"
    while len(parsed_in) < 8:
        turn += 1
        await asyncio.sleep(0)
    assert set(parsed_in.values()) == {len(data)}, "one more than there is room for, and no more"
    for reader in readers:
        await answered(reader, 10, 50)
    assert all(client._transport.is_reading() for client in served.clients)


async def test_who_says_little_is_heard_at_once(served: Served) -> None:
    served.gateway._parsing = Parsing(1000)
    for _ in range(4):
        await (await served.visit(CONNECT))[0].readuntil(b"}}")
    *many, one = served.clients
    for client in many:
        client.data_received(said(10, 60))
    one.data_received(said(10, 1))
    assert one._transport.is_reading()
    assert not many[-1]._transport.is_reading()


@pytest.mark.parametrize("end", ["reset", "server"])
async def test_who_is_gone_while_it_waits_to_be_parsed_keeps_nobody_waiting(
    served: Served, end: str
) -> None:
    served.gateway._parsing = Parsing(1000)
    visits = [await served.visit(CONNECT) for _ in range(4)]
    for reader, _ in visits:
        await reader.readuntil(b"}}")
    for client in served.clients:
        client.data_received(said(10, 60))
    gone = served.clients[1]
    if end == "reset":
        gone._transport.abort()
        gone.connection_lost(None)
    else:
        gone._connection.close(Disconnect.SHUTDOWN)
    for number in (0, 2, 3):
        await answered(visits[number][0], 10, 60)


async def test_a_fault_while_one_is_parsed_keeps_nobody_waiting(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.gateway._parsing = Parsing(1000)
    visits = [await served.visit(CONNECT) for _ in range(4)]
    for reader, _ in visits:
        await reader.readuntil(b"}}")
    parse, broken = ClientFrames._parse, served.clients[1]

    def failing(frames: ClientFrames, data: bytes) -> None:
        assert frames is not broken, "a fault of ours"
        parse(frames, data)

    monkeypatch.setattr(ClientFrames, "_parse", failing)
    with structlog.testing.capture_logs() as logs:
        for client in served.clients:
            client.data_received(said(10, 60))
        for number in (0, 2, 3):
            await answered(visits[number][0], 10, 60)
    assert [each["event"] for each in logs if each["log_level"] == "error"] == ["client_failed"]
    async with asyncio.timeout(DEADLINE_S):
        await visits[1][0].read()


async def test_control_frames_of_many_have_a_turn(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "CROWD_BYTES", 10 * CONTROL_BYTES)
    visits = [await served.visit(CONNECT) for _ in range(4)]
    for reader, _ in visits:
        await reader.readuntil(b"}}")
    answer, turn = ClientFrames._answer, 0
    answers: Counter[int] = Counter()

    def counted(frames: ClientFrames, message: Any) -> None:
        answers[turn] += 1
        answer(frames, message)

    monkeypatch.setattr(ClientFrames, "_answer", counted)
    for client in served.clients:
        client.data_received(masked(PING, b"x") * 20)
    while answers.total() < 80:
        turn += 1
        await asyncio.sleep(0)
    assert answers[0] == 10
    assert max(answers.values()) <= 10 + TURNS_AT_ONCE


@pytest.mark.parametrize("end", ["close", "reset", "server"])
async def test_a_connection_that_ended_is_gone_without_the_collector(
    served: Served, end: str
) -> None:
    """The collector stops everything else while it frees what many clients left."""
    reader, writer = await served.visit(
        CONNECT
        + masked(TEXT, b'{"id":2,"subscribe":{"channel":"a"}}')
        + masked(TEXT, b'{"id":3,"publish":{"channel":"a","data":1}}')
    )
    await reader.readuntil(b'{"id":3')
    [connection] = served.node.assembly.node._connections
    kept = weakref.ref(connection)
    gc.disable()
    try:
        if end == "close":
            writer.write(GOODBYE)
        elif end == "reset":
            writer.transport.abort()
        else:
            connection.close(Disconnect.SHUTDOWN)
            writer.write(GOODBYE)
        del connection
        await until(lambda: kept() is None)
    finally:
        gc.enable()


async def test_answers_to_frames_that_came_together_are_one_write(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await served.visit(CONNECT)
    await reader.readuntil(b"}}")
    client, sends = served.client, []
    wire: Any = client._transport
    write = wire.write

    def written(frame: bytes) -> None:
        sends.append(frame)
        write(frame)

    monkeypatch.setattr(wire, "write", written)
    asked = b"".join(
        masked(TEXT, json.dumps({"id": number, "unsubscribe": {"channel": "a"}}).encode())
        for number in (2, 3, 4)
    )
    client.data_received(asked)
    assert [len(list(parsed(sent))) for sent in sends] == [3]
    writer.write(GOODBYE)
    ids = [json.loads(frame.payload)["id"] for frame in list(parsed(await _rest(reader)))[:-1]]
    assert ids == [2, 3, 4]


@pytest.mark.parametrize(
    "said",
    [masked(TEXT, b"x" * 16_000, final=False), masked(TEXT, b"x" * 16_000 + b"\xff")],
    ids=["unfinished", "no UTF-8"],
)
async def test_no_frame_of_a_client_that_is_gone_waits_for_the_collector(
    served: Served, said: bytes
) -> None:
    """It comes after 100,000 objects. A client has some fifty, and a message of megabytes."""
    gc.collect()
    gc.disable()
    try:
        reader, _ = await served.visit(CONNECT + said + GOODBYE)
        await _rest(reader)
        await until(lambda: served.connections == 0)
        # Both hold what was read.
        assert [each for each in gc.get_objects() if type(each) in _HOLDERS] == []
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "said, code",
    [
        (b"\x83\x80\0\0\0\0", 1002),
        (b"\xc1\x80\0\0\0\0", 1002),
        (masked(PING, b"", final=False), 1002),
        (masked(TEXT, b"\xff"), 1007),
        (masked(TEXT, b"x" * 17_000), 1009),
        (masked(BINARY, b"{}"), 3501),
        (b"\x81\x02{}", 1002),
        (b"\x89\x00", 1002),
        (b"\x88\x02\x03\xe8", 1002),
    ],
    ids=[
        *("opcode", "compressed", "control in parts", "no UTF-8", "too large", "encoding"),
        *("no mask", "a ping without", "a close without"),
    ],
)
async def test_what_breaks_the_rules_is_closed(served: Served, said: bytes, code: int) -> None:
    reader, writer = await served.visit(CONNECT)
    await reader.readuntil(b"}}")
    # What was whole before it is answered.
    writer.write(masked(PING, b"before") + said + masked(PING, b"after") + GOODBYE)
    pong, close = parsed(await _rest(reader))
    assert (pong.payload, close.close_code) == (b"before", code)


async def test_a_fault_of_ours_closes_the_connection_and_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Connection, "take", broken)
    with structlog.testing.capture_logs() as events:
        reader, _ = await served.visit(CONNECT)
        [close] = parsed(await _rest(reader))
        assert close.opcode == CLOSE
    assert "client_failed" in [event["event"] for event in events]


async def test_reading_stops_while_much_waits_and_goes_on_afterwards(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = asyncio.Event()

    async def wait() -> None:
        await may_go_on.wait()

    take: Callable[..., Any] = Connection.take
    monkeypatch.setattr(Connection, "take", lambda *_: wait())
    reader, writer = await served.visit(CONNECT)
    await until(lambda: served.connections)
    wire = served.client._transport
    writer.write(masked(PING, b"") * 2000 + masked(PING, b"last"))
    await until(lambda: not wire.is_reading())
    monkeypatch.setattr(Connection, "take", take)
    monkeypatch.setattr("roomcast.gateway.reader.sleep", lambda _: asyncio.sleep(0))
    may_go_on.set()
    async with asyncio.timeout(DEADLINE_S):
        await reader.readuntil(b"last")
    assert wire.is_reading()
    writer.write(GOODBYE)
    await _rest(reader)


async def test_who_is_torn_off_while_a_frame_waits_is_gone_when_it_is_done(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = asyncio.Event()

    async def wait() -> None:
        await may_go_on.wait()

    monkeypatch.setattr(Connection, "take", lambda *_: wait())
    _, writer = await served.visit(CONNECT)
    await until(lambda: served.connections)
    client = served.client
    await until(lambda: client._task)
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    )
    writer.transport.abort()
    await until(lambda: client._is_lost)
    assert served.connections == 1
    may_go_on.set()
    await until(lambda: served.connections == 0)


@pytest.mark.parametrize("end", ["abort", "close", "eof"])
@pytest.mark.parametrize("waits", [False, True])
async def test_a_descriptor_that_another_socket_has_got_gets_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, waits: bool, end: str
) -> None:
    """Also while the client's last frame waits, and its subscriptions are still there."""
    may_go_on = asyncio.Event()

    async def wait() -> None:
        await may_go_on.wait()

    reader, visitor = await served.visit(CONNECT)
    await reader.readuntil(b"}}")
    client = served.client
    ours = client._transport.get_extra_info("socket")
    number = ours.fileno()
    if waits:
        monkeypatch.setattr(Connection, "take", lambda *_: wait())
        visitor.write(masked(TEXT, b"{}"))
        await until(lambda: client._task)
    if end == "eof":
        visitor.write_eof()
    else:
        getattr(client._transport, end)()
    await until(lambda: ours.fileno() == -1)
    assert client._is_over is not waits
    with taken_over(number):
        client._writer.send(text_frame(b"secret"))
    assert b"secret" not in await _rest(reader)
    may_go_on.set()


async def test_who_says_no_more_and_does_not_read_is_gone_soon(served: Served) -> None:
    """Its place would be kept until it misses a ping."""
    _, writer = await served.visit(CONNECT)
    await until(lambda: served.connections)
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a stream's
    wire = served.client._transport
    wire.write(b"x" * MORE_THAN_THE_KERNEL_HOLDS)
    await until(wire.get_write_buffer_size)
    writer.write_eof()
    # Long before a ping is missed.
    async with asyncio.timeout(10 * CLOSE_WAIT_S):
        await until(lambda: served.connections == 0)
