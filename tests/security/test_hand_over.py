"""Sockets that begin and end in every odd way leave nothing, and disturb nobody."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from typing import Final

import pytest
from aiohttp import web

from roomcast.gateway.door import hand_over
from tests.security.target import DEADLINE_S, HOST, PATH, Target, target, watched
from tests.unit.worlds import until

SESSIONS: Final = 150
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _MASKED = 0x80, 0x80
_HANDSHAKE: Final = (
    f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


def frame(kind: int, payload: bytes, *, first: int = _FINAL, masked: int = _MASKED) -> bytes:
    """One frame as clients send it: its mask is zero, which changes nothing."""
    size = len(payload)
    length = bytes([masked | size]) if size < 126 else struct.pack("!BH", masked | 126, size)
    return bytes([first | kind]) + length + (bytes(4) if masked else b"") + payload


def commands(chance: random.Random, connect: str) -> list[bytes]:
    """What a client says that means well, frame after frame."""
    channel = chance.choice(("plain:room", "room", "other", "shut:room"))
    said: list[dict[str, object]] = [
        {"id": 1, "connect": {"token": connect}},
        {"id": 2, "subscribe": {"channel": channel}},
        {"id": 3, "publish": {"channel": channel, "data": "x" * chance.randrange(300)}},
        {"id": 4, "presence": {"channel": channel}},
        {"id": 5, "history": {"channel": channel, "limit": 5}},
        {"id": 6, "unsubscribe": {"channel": channel}},
    ]
    return [frame(_TEXT, json.dumps(each).encode()) for each in said[: chance.randrange(7)]]


def oddity(chance: random.Random) -> bytes:
    """A frame that means well or not."""
    return chance.choice(
        (
            b"",
            frame(_PING, b"p" * chance.randrange(126)),
            frame(_PONG, b""),
            frame(_BINARY, b"\x00\xff\x00"),
            frame(_TEXT, b"\xff\xfe"),
            frame(_TEXT, b"{}", masked=0),
            frame(_TEXT, b"[1]", first=_FINAL | 0x40),
            frame(_TEXT, b'{"id":', first=0),
            frame(0x0, b"9}"),
            frame(0x3, b""),
            frame(_PING, b"p" * 126),
            frame(_CLOSE, b""),
            frame(_CLOSE, b"\x03"),
            frame(_CLOSE, struct.pack("!H", chance.choice((0, 999, 1000, 1005, 3500, 65535)))),
            bytes([_FINAL | _TEXT, _MASKED | 127]) + struct.pack("!Q", 2**63 - 1) + bytes(4),
            b"GET / HTTP/1.1\r\n\r\n",
        )
    )


async def session(node: Target, seed: int) -> None:
    """One socket, from its first byte to its end."""
    chance = random.Random(seed)
    parts = [_HANDSHAKE, *commands(chance, node.token(f"user{seed % 3}"))]
    if chance.random() < 0.7:
        parts.insert(chance.randrange(1, len(parts) + 1), oddity(chance))
    said = b"".join(parts)
    if chance.random() < 0.3:
        said = said[: chance.randrange(len(said))]
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        # In pieces or at once: frames may come with the handshake, and be cut anywhere.
        cuts = sorted(chance.sample(range(len(said) + 1), min(len(said), chance.randrange(4))))
        for begin, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
            writer.write(said[begin:end])
            await writer.drain()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        match chance.choice(("read", "half", "reset", "leave")):
            case "half":
                writer.write_eof()
                async with asyncio.timeout(DEADLINE_S):
                    await reader.read()
            case "read" if said.startswith(_HANDSHAKE):
                async with asyncio.timeout(DEADLINE_S):
                    await reader.readuntil(b"\r\n\r\n")
            case "reset":
                its: socket.socket = writer.get_extra_info("socket")
                its.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case _:
                pass
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the node may end it at any moment
    finally:
        writer.close()


@pytest.mark.parametrize("seed", range(3))
async def test_sockets_that_begin_and_end_in_odd_ways_leave_nothing(seed: int) -> None:
    with watched() as logs:
        async with target() as node:
            before = len(asyncio.all_tasks())
            for begin in range(0, SESSIONS, 25):
                numbers = range(begin, begin + 25)
                await asyncio.gather(*(session(node, seed * SESSIONS + each) for each in numbers))
                await until(lambda: node.connections == 0)
            await node.still_serves()
            await until(lambda: len(node.door) <= 1)
            await until(lambda: len(asyncio.all_tasks()) <= before + 1)
    assert logs.faults() == []


@pytest.mark.parametrize(
    "named, body",
    [
        ("Content-Length: 5", b"hello"),
        ("Content-Length: 200000", b""),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
    ],
)
async def test_a_handshake_with_a_body_is_refused(named: str, body: bytes) -> None:
    """The rest of the body would be taken for frames."""
    async with target() as node:
        lines = _HANDSHAKE.removesuffix(b"\r\n") + named.encode() + b"\r\n\r\n"
        assert (await node.raw(lines + body)).startswith(b"HTTP/1.1 400 ")
        await node.still_serves()


class _Heard(asyncio.Protocol):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data


async def test_what_came_behind_a_handshake_comes_before_what_is_read_next() -> None:
    heard = _Heard()
    with socket.socket() as client:

        async def handle(request: web.Request) -> web.StreamResponse:
            # It is ready to be read in the turn in which the transport is handed over.
            client.sendall(b"second")
            await asyncio.sleep(0)
            hand_over(request.protocol, heard)
            return web.Response()

        app = web.Application()
        app.router.add_get(PATH, handle)
        runner = web.AppRunner(app, handle_signals=False)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            client.connect(runner.addresses[0])
            client.sendall(_HANDSHAKE + b"first ")
            await until(lambda: len(heard.data) == len(b"first second"))
        finally:
            client.close()
            await runner.cleanup()
    assert heard.data == b"first second"
