"""Streams over HTTP and their commands, attacked: they end with their peers, and cost no more than
they may.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from roomcast.gateway import stream as stream_module
from roomcast.gateway import streams as streams_module
from tests.security.target import DEADLINE_S, HOST, Logs, Target, target, watched
from tests.unit.worlds import until

HTTP_STREAM, SSE, EMULATION = "/connection/http_stream", "/connection/sse", "/emulation"


def posted(path: str, body: bytes, *fields: str) -> bytes:
    """A request with JSON. `fields`: further ones of the header."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json"]
    lines += [*fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def connect(attacked: Target) -> bytes:
    return json.dumps({"id": 1, "connect": {"token": attacked.token()}}).encode()


class Peer:
    """A client that does what it wants with its socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.session = self.node = ""

    @classmethod
    @asynccontextmanager
    async def of(cls, attacked: Target, behind: bytes = b"") -> AsyncIterator[Peer]:
        """One with a stream. `behind`: sent in one piece with its request."""
        made = cls(*await asyncio.open_connection("127.0.0.1", attacked.port))
        try:
            made.writer.write(posted(HTTP_STREAM, connect(attacked)) + behind)
            async with asyncio.timeout(DEADLINE_S):
                assert (await made.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                result = json.loads(await made.reader.readline())["connect"]
            made.session, made.node = result["session"], result["node"]
            yield made
        finally:
            made.writer.transport.abort()


@pytest.fixture
async def logs() -> AsyncIterator[Logs]:
    with watched() as logs:
        yield logs
    assert logs.faults() == []


@pytest.fixture
async def attacked(logs: Logs) -> AsyncIterator[Target]:
    async with target() as attacked:
        yield attacked
        await attacked.still_serves()


# ---- the end of a stream


NEXT: Final = f"GET /health/live HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@pytest.mark.parametrize("behind", [NEXT, NEXT * 3, posted(EMULATION, b"{}")], ids=range(3))
async def test_who_asks_for_more_behind_its_stream_is_heard_when_it_goes(
    attacked: Target, behind: bytes
) -> None:
    """Nothing would be read from it any more, so it would keep its place."""
    async with Peer.of(attacked, behind):
        [wire] = attacked.door._streaming
        assert wire.is_reading()
    await until(lambda: len(attacked.door) == attacked.connections == 0)


async def test_who_says_no_more_and_does_not_read_is_gone_all_the_same(
    attacked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "CLOSE_WAIT_S", 0.02)
    async with Peer.of(attacked) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        [wire] = attacked.door._streaming
        wire.write(bytes(16 * 1024 * 1024))
        assert wire.get_write_buffer_size() > 0
        peer.writer.write_eof()
        await until(lambda: len(attacked.door) == attacked.connections == 0)


# ---- bodies


async def test_bodies_that_never_come_whole_fill_no_memory(
    attacked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each could hold half a megabyte for ten seconds, of as many strangers as there are places."""
    monkeypatch.setattr(streams_module, "_COMING_BYTES_MAX", 30_000)
    head = (
        f"POST {EMULATION} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        "Content-Length: 14000\r\n\r\n{"
    ).encode()
    slow = [await asyncio.open_connection("127.0.0.1", attacked.port) for _ in range(2)]
    for _, writer in slow:
        writer.write(head)
    gateway = attacked.streams
    await until(lambda: gateway._coming_bytes == 28_000)
    for path in (EMULATION, HTTP_STREAM):
        said = head.replace(EMULATION.encode(), path.encode())
        assert (await attacked.raw(said)).startswith(b"HTTP/1.1 503 ")
    # What comes at once needs no room.
    async with Peer.of(attacked) as peer:
        assert await said_by(attacked, peer, {"id": 2, "rpc": {}}) == 204
    for _, writer in slow:
        writer.transport.abort()
    await until(lambda: gateway._coming_bytes == 0)


@pytest.mark.parametrize("path", [HTTP_STREAM, SSE, EMULATION])
async def test_a_body_in_chunks_is_not_parsed(attacked: Target, path: str) -> None:
    """In chunks of one byte, 8 KiB take more than a millisecond."""
    said = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert (await attacked.raw(said + b"1\r\n{\r\n" * 100)).startswith(b"HTTP/1.1 411 ")


async def said_by(attacked: Target, peer: Peer, *commands: dict[str, object]) -> int:
    """The status of the answer to commands of `peer`."""
    data = "\n".join(json.dumps(each) for each in commands)
    body = {"session": peer.session, "node": peer.node, "data": data}
    async with attacked.session.post(attacked.url + EMULATION, json=body) as answer:
        return answer.status
