"""One client that stops reading, and fifty that do not, over real sockets:
it is cut off, and they notice nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from roomcast.delivery.recovery import RING_BYTES_MAX
from roomcast.gateway.admission import Admission
from roomcast.gateway.keys import HEALTH, NODE
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.gateway.writer import CLOSE_WAIT_S, Writer
from roomcast.wire.channels import ChannelRules
from roomcast.wire.codes import Disconnect
from roomcast.wire.publication import Publication
from tests.protobuf import command, read_messages
from tests.unit.gateway.frames import BINARY, CLOSE, TEXT, Frame, handshake, masked, parsed
from tests.unit.worlds import HISTORY, Fleet, LocalNode
from tests.websocket import DEADLINE_S, PROTOBUF, WebSocket

PATH: Final = "/connection/websocket"
CHANNEL: Final = "room"
JSON: Final = "centrifuge-json"
EITHER: Final = pytest.mark.parametrize("subprotocol", [JSON, PROTOBUF])
READERS: Final = 50
PUBLICATION_BYTES: Final = 4096
QUEUE_BYTES_MAX: Final = 128 * 1024
# What the kernel keeps for a peer that does not read must not hide what this process keeps.
KERNEL_BYTES: Final = 16 * 1024
# Enough to fill the kernel's buffers of both sides and the queue, and as much again behind the cut.
PUBLICATIONS: Final = 100
assert PUBLICATIONS * PUBLICATION_BYTES < RING_BYTES_MAX, "who comes back recovers everything"
# So often in a row, with a publication that others got in between, a peer takes nothing.
STUCK: Final = 5
# A loaded machine is late; a fault is later still.
SLACK_S: Final = 5.0


class Stalled:
    """A client that subscribes and then does not read until it is told to."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    @classmethod
    async def subscribed(cls, port: int, subprotocol: str) -> Stalled:
        connected = socket.socket()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connected, ("127.0.0.1", port))
        await loop.sock_sendall(connected, handshake(PATH, Sec_WebSocket_Protocol=subprotocol))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await loop.sock_recv(connected, 1)
        commands = ({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": CHANNEL}})
        if subprotocol == PROTOBUF:
            frame = masked(BINARY, b"".join(command(each) for each in commands))
        else:
            frame = masked(TEXT, "\n".join(json.dumps(each) for each in commands).encode())
        await loop.sock_sendall(connected, frame)
        return cls(connected)

    async def rest(self) -> bytes:
        """Everything that is there for it, until the server is gone."""
        data = b""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while part := await asyncio.get_running_loop().sock_recv(self._socket, 65_536):
                    data += part
            except ConnectionResetError:
                pass
        return data

    def close(self) -> None:
        self._socket.close()


class Server:
    """A node over memory behind a real gateway."""

    def __init__(self, node: LocalNode, port: int, session: aiohttp.ClientSession) -> None:
        self.node = node
        self.port = port
        self._session = session

    @property
    def writers(self) -> list[Writer]:
        writers = [connection.socket for connection in self.node.assembly.node._connections]
        return [writer for writer in writers if isinstance(writer, Writer)]

    async def reader(self, subprotocol: str = JSON, **subscribe: Any) -> WebSocket:
        url = f"http://127.0.0.1:{self.port}{PATH}"
        client = WebSocket(await self._session.ws_connect(url, protocols=[subprotocol]))
        await client.ask("connect")
        assert isinstance(await client.ask("subscribe", channel=CHANNEL, **subscribe), dict)
        return client

    async def stalled(self, subprotocol: str = JSON) -> tuple[Stalled, Writer]:
        """A client that does not read, and the server's end of it."""
        before = set(self.writers)
        peer = await Stalled.subscribed(self.port, subprotocol)
        await self.until(lambda: self.subscribers == len(before) + 1)
        [writer] = set(self.writers) - before
        return peer, writer

    @property
    def subscribers(self) -> int:
        return sum(
            CHANNEL in connection._subscriptions
            for connection in self.node.assembly.node._connections
        )

    async def publish(self, number: int, size: int = PUBLICATION_BYTES) -> None:
        published = Publication(f"{number:06d}" + "x" * size)
        await self.node.assembly.appender.submit(CHANNEL, published, 300_000)

    @staticmethod
    async def until(condition: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110  # looked at every turn, without waiting
                await asyncio.sleep(0)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    rules = ChannelRules(without_namespace=replace(HISTORY, history_size=1000))
    node = Fleet().node(rules=rules)
    app = web.Application()
    app[NODE], app[HEALTH] = node.assembly.node, node.assembly.node.health
    gateway = WebSocketGateway(
        Admission(allowed_origins=()), message_size_limit=65_536, queue_bytes_max=QUEUE_BYTES_MAX
    )
    app.router.add_get(PATH, gateway.handle)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    with socket.socket() as listening:
        # Sockets that are accepted inherit it.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        listening.bind(("127.0.0.1", 0))
        await web.SockSite(runner, listening, backlog=128).start()
        async with aiohttp.ClientSession() as session:
            yield Server(node, listening.getsockname()[1], session)
        await runner.cleanup()
    await node.assembly.dispatcher.close()


@EITHER
async def test_a_client_that_stops_reading_is_cut_off_and_the_others_get_everything(
    server: Server, subprotocol: str
) -> None:
    readers = [await server.reader((JSON, PROTOBUF)[number % 2]) for number in range(READERS)]
    peer, writer = await server.stalled(subprotocol)
    most, cut_off_at, gone_at = 0, None, None
    for number in range(1, PUBLICATIONS + 1):
        await server.publish(number)
        most = max(most, writer.waiting_bytes)
        if cut_off_at is None and writer.closed_with is not None:
            cut_off_at = time.monotonic()
        # Nobody waits for it: each publication is with every reader before the next one is made.
        await asyncio.gather(*(reader.published(CHANNEL, number) for reader in readers))
    assert writer.closed_with is Disconnect.SLOW
    assert cut_off_at is not None
    await server.until(lambda: writer not in server.writers)
    gone_at = time.monotonic()

    assert gone_at - cut_off_at <= CLOSE_WAIT_S + SLACK_S
    # One frame may begin below the bound; then come at most its rest and a close frame.
    assert QUEUE_BYTES_MAX < most <= QUEUE_BYTES_MAX + 2 * PUBLICATION_BYTES
    assert writer.waiting_bytes == 0, "what waited for it is given back"
    assert server.subscribers == READERS
    for reader in readers:
        assert [int(data[:6]) for data in reader.data(CHANNEL)] == list(range(1, PUBLICATIONS + 1))
        assert reader.pushes(CHANNEL, "unsubscribe") == []
    assert len(await peer.rest()) < PUBLICATIONS * PUBLICATION_BYTES
    peer.close()


@EITHER
async def test_a_client_that_reads_on_at_last_is_told_why_and_recovers(
    server: Server, subprotocol: str
) -> None:
    reader = await server.reader()
    peer, writer = await server.stalled(subprotocol)
    number = 0
    while writer.closed_with is None:
        number += 1
        assert number < PUBLICATIONS, "it is cut off before"
        await server.publish(number)
    frames = list(parsed(await peer.rest()))
    peer.close()
    assert frames[-1].opcode == CLOSE
    assert frames[-1].close_code == 3008
    position, got = seen(frames)
    assert got == list(range(1, len(got) + 1)), "in order, as far as it came"
    assert len(got) < number

    await server.publish(number + 1)
    again = await server.reader(subprotocol, recover=True, epoch=position, offset=len(got))
    [reply] = [line["subscribe"] for line in again.lines if "subscribe" in line]
    assert reply["recovered"] is True
    missed = [int(publication["data"][:6]) for publication in reply["publications"]]
    assert missed == list(range(len(got) + 1, number + 2))
    assert len(await reader.published(CHANNEL, number + 1)) == number + 1


async def test_what_waits_for_many_that_do_not_read_is_bounded(server: Server) -> None:
    reader = await server.reader()
    stalled = [await server.stalled((JSON, PROTOBUF)[number % 2]) for number in range(10)]
    most = 0
    for number in range(1, PUBLICATIONS + 1):
        await server.publish(number)
        most = max(most, sum(writer.waiting_bytes for _, writer in stalled))
        await reader.published(CHANNEL, number)
    assert all(writer.closed_with is Disconnect.SLOW for _, writer in stalled)
    assert most <= len(stalled) * (QUEUE_BYTES_MAX + 2 * PUBLICATION_BYTES)
    await server.until(lambda: len(server.writers) == 1)
    for peer, _ in stalled:
        peer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what waits in the kernel")
async def test_a_slow_client_of_small_messages_is_told_that_it_is_slow(server: Server) -> None:
    """The kernel holds all of them, the ping too: far from the queue's bound,
    and a pong cannot come.
    """
    reader = await server.reader()
    peer, writer = await server.stalled()
    idle = await server.reader()
    number = stuck = 0
    # On a busy machine something may be under way for a moment, to a peer that has room.
    while stuck < STUCK:
        number += 1
        assert number < 10_000, "the kernel's buffer ends"
        await server.publish(number, size=0)
        await reader.published(CHANNEL, number)
        stuck = stuck + 1 if writer.unsent_bytes else 0
    assert writer.waiting_bytes == 0, "nothing that waits in this process"
    for connection in list(server.node.assembly.node._connections):
        connection._lifetime._ping()
        connection._lifetime._no_pong()
    assert writer.closed_with is Disconnect.SLOW
    assert [other.closed_with for other in server.writers if other is not writer] == [
        Disconnect.NO_PONG
    ] * 2
    for client in (reader, idle):
        assert await client.closed() == Disconnect.NO_PONG.value.code
    peer.close()


def seen(frames: list[Frame]) -> tuple[str, list[int]]:
    """The epoch of the subscribe reply, and the numbers of the publications that came."""
    texts = [frame.payload for frame in frames if frame.opcode == TEXT]
    lines = [json.loads(line) for text in texts for line in text.split(b"\n")]
    lines += [
        line for frame in frames if frame.opcode == BINARY for line in read_messages(frame.payload)
    ]
    [reply] = [line["subscribe"] for line in lines if "subscribe" in line]
    return reply["epoch"], [
        int(line["push"]["pub"]["data"][:6]) for line in lines if "push" in line
    ]
