"""Who sends too much, or nothing, or never reads: they are made to wait or are ended,
and the log does not grow with them.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
from aiohttp import helpers
from aiohttp.helpers import parse_content_type

from roomcast.client import work as work_module
from roomcast.gateway import body as body_module
from roomcast.gateway import http as http_module
from roomcast.gateway import reader as reader_module
from roomcast.gateway import writer as writer_module
from roomcast.gateway.door import (
    AUTHORITY_CHARS_MAX,
    HEAD_BYTES_MAX,
    LENGTH_DIGITS_MAX,
    SLASHES_MAX,
)
from roomcast.gateway.reader import CONTROL_RATE
from roomcast.gateway.writer import CLOSE_WAIT_S
from roomcast.observe.counters import Limit
from roomcast.rates import Rate
from tests.security.target import DEADLINE_S, HOST, KEY, PATH, Logs, Target, target, watched
from tests.unit.gateway.frames import CLOSE, PING, PONG, TEXT, Frame, handshake, masked, parsed
from tests.unit.worlds import until
from tests.websocket import WebSocket

# Longer than a test may take: what would wait for it fails.
NEVER_S: Final = 3600.0


async def test_handshakes_that_come_at_once_open_no_more_than_there_may_be(logs: Logs) -> None:
    """Each of them asked before any of the others was a connection."""
    async with target(connection_limit=2) as attacked:
        raws = [await asyncio.open_connection("127.0.0.1", attacked.port) for _ in range(20)]
        # Nobody else has a turn meanwhile: they come together.
        for _, writer in raws:
            writer.write(handshake(PATH))
        async with asyncio.timeout(DEADLINE_S):
            heads = [await reader.readuntil(b"\r\n\r\n") for reader, _ in raws]
        assert sorted(head.split()[1] for head in heads) == [b"101"] * 2 + [b"503"] * 18
        assert attacked.connections == 2
        for _, writer in raws:
            writer.transport.abort()
        # Their places are free again.
        await attacked.still_serves()


class Raw:
    """A client after its handshake, which does what it wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def upgraded(cls, attacked: Target) -> AsyncIterator[Raw]:
        made = cls(*await asyncio.open_connection("127.0.0.1", attacked.port))
        try:
            made.writer.write(handshake(PATH))
            async with asyncio.timeout(DEADLINE_S):
                assert (await made.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            yield made
        finally:
            made.writer.transport.abort()
            with suppress(ConnectionError):
                await made.writer.wait_closed()

    async def frames(self, count: int) -> list[Frame]:
        """The next ones, each of less than 126 bytes."""
        found: list[Frame] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < count:
                head = await self.reader.readexactly(2)
                assert head[1] <= 125
                found += parsed(head + await self.reader.readexactly(head[1]))
        return found

    async def ended(self) -> bytes:
        """Whatever comes until the other side is gone."""
        async with asyncio.timeout(DEADLINE_S):
            data = b""
            try:
                while part := await self.reader.read(65_536):
                    data += part
            except ConnectionError:
                pass
            return data


# ---- pings and pongs


async def test_a_ping_is_answered_with_what_it_holds(attacked: Target) -> None:
    async with Raw.upgraded(attacked) as client:
        payloads = [b"", b"hello", b"x" * 125]
        client.writer.write(b"".join(masked(PING, each) for each in payloads))
        assert await client.frames(3) == [Frame(PONG, each) for each in payloads]


class _Sleeps:
    """In place of asyncio.sleep, for what waits as long as it is told to:
    time goes on, and the test does not wait.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.slept_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self._clock.advance(seconds)


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_control_frames_have_a_rate(
    attacked: Target, monkeypatch: pytest.MonkeyPatch, opcode: int
) -> None:
    """The first ones at once, then each in its time:
    whoever sends a thousand is read for 48 seconds.
    """
    sleeps = _Sleeps(attacked.node.clock)
    monkeypatch.setattr(reader_module, "sleep", sleeps)
    async with Raw.upgraded(attacked) as client:
        client.writer.write(masked(opcode, b"") * 1000 + masked(PING, b"last"))
        while Frame(PONG, b"last") not in await client.frames(1):
            pass
        assert len(sleeps.slept_s) == pytest.approx(1001 - CONTROL_RATE.burst, abs=2)
        assert sum(sleeps.slept_s) == pytest.approx(
            (1001 - CONTROL_RATE.burst) / CONTROL_RATE.per_s, rel=0.02
        )
        limits = attacked.node.assembly.node.services.counters.limits
        assert limits[Limit.CONTROL_RATE.value] == len(sleeps.slept_s)


@pytest.fixture
def halted(attacked: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Who is to wait waits until the end of the test, however long the others take.
    How long they were to.
    """
    del attacked
    waits: list[float] = []
    is_over = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await is_over.wait()

    monkeypatch.setattr(reader_module, "sleep", sleep)
    yield waits
    is_over.set()


async def test_who_floods_waits_and_a_neighbour_does_not(
    attacked: Target, halted: list[float]
) -> None:
    async with Raw.upgraded(attacked) as flooding:
        flooding.writer.write(masked(PING, b"") * 40_000)
        assert len(await flooding.frames(int(CONTROL_RATE.burst))) == CONTROL_RATE.burst
        async with await attacked.upgrade() as response:
            neighbour = WebSocket(response)
            assert (await neighbour.ask("connect", token=attacked.token()))["client"]
            for number in range(50):
                assert await neighbour.ask("publish", channel="plain:a", data=number) == {}


@pytest.mark.usefixtures("halted")
async def test_few_of_them_are_kept_while_it_waits(
    attacked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is not read is counted with what it costs,
    so that the socket's reading stops.
    """
    read_bytes = 0
    received = reader_module.ClientFrames.data_received

    def data_received(self: Any, data: bytes) -> None:
        nonlocal read_bytes
        read_bytes += len(data)
        received(self, data)

    monkeypatch.setattr(reader_module.ClientFrames, "data_received", data_received)
    async with Raw.upgraded(attacked) as flooding:
        [wire] = attacked.door._streaming
        flooding.writer.write(masked(PING, b"") * 1_000_000)
        await until(lambda: not wire.is_reading())
        assert read_bytes < 64 * 1024
        wire.abort()


async def test_who_pings_and_reads_nothing_and_goes_is_no_fault(logs: Logs) -> None:
    async with target() as attacked:
        for _ in range(20):
            async with Raw.upgraded(attacked) as client:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads
                client.writer.write(masked(PING, b"x" * 125) * 1000)
                await client.writer.drain()
                connected = client.writer.get_extra_info("socket")
                # It goes without a word.
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await attacked.still_serves()
    assert logs.faults() == []


# ---- the end of a connection


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is dropped for not answering a close in time."""
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", NEVER_S)


@pytest.mark.usefixtures("patient")
async def test_the_answer_to_a_close_is_found_behind_what_was_sent_before(attacked: Target) -> None:
    async with Raw.upgraded(attacked) as client:
        client.writer.write(
            masked(TEXT, b"nonsense") + masked(PING, b"") * 500 + masked(TEXT, b"{}") * 500
        )
        [close] = await client.frames(1)
        assert close.close_code == 3501
        client.writer.write(masked(CLOSE, close.payload[:2]))
        assert await client.ended() == b"", "no pong and no second close"
        await until(lambda: attacked.connections == 0)


@pytest.mark.usefixtures("patient")
async def test_after_a_close_only_so_much_is_read(
    attacked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    is_over, is_gone = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds:
            is_over.set()
            await is_gone.wait()
        await asyncio.sleep(0)

    monkeypatch.setattr(reader_module, "sleep", sleep)
    async with Raw.upgraded(attacked) as client:
        [wire] = attacked.door._streaming
        client.writer.write(masked(TEXT, b"nonsense") + masked(PING, b"") * 100_000)
        async with asyncio.timeout(DEADLINE_S):
            await is_over.wait()
        turns = reader_module._DROPPED_MAX // reader_module._DROPPED_A_TURN
        assert slept == [0.0] * (turns - 1) + [CLOSE_WAIT_S]
        wire.abort()
        is_gone.set()


async def test_who_closes_and_does_not_read_is_gone_all_the_same(
    attacked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "CLOSE_WAIT_S", 0.02)
    async with Raw.upgraded(attacked) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        [wire] = attacked.door._streaming
        wire.write(b"\x81\x7f" + struct.pack("!Q", 8 * 1024 * 1024) + bytes(8 * 1024 * 1024))
        assert wire.get_write_buffer_size() > 0
        client.writer.write(masked(CLOSE, struct.pack("!H", 1000)))
        await until(lambda: len(attacked.door) == 0)


# ---- what never comes to its end


async def test_a_silent_socket_is_ended() -> None:
    async with target(times={"request_s": 0.05}) as attacked:
        for said in (b"", b"G", f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\n".encode()):
            reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
            writer.write(said)
            async with asyncio.timeout(DEADLINE_S):
                assert await reader.read() == b""
            writer.close()
        await until(lambda: len(attacked.door) == 0)


async def test_who_asks_and_never_reads_the_answers_is_ended() -> None:
    """Each answer is small; there is no end to the questions."""
    async with target(times={"answer_s": 0.05}) as attacked:
        reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port, limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        asked = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
        while len(attacked.door) or not writer.transport.get_write_buffer_size():
            if not writer.transport.get_write_buffer_size():
                writer.write(asked * 5000)
            await asyncio.sleep(0)
        writer.transport.abort()
        del reader


async def test_a_body_that_comes_to_no_end_is_not_waited_for(
    attacked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "BODY_S", 0.05)
    head = (
        f"POST /api/publish HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\n"
        "Content-Type: application/json\r\n"
        'Content-Length: 100\r\n\r\n{"a'
    )
    assert (await attacked.raw(head.encode())).startswith(b"HTTP/1.1 408")


UNFINISHED: Final = pytest.mark.parametrize(
    "said",
    [
        masked(TEXT, b"{", final=False),
        masked(TEXT, b"{", final=False) + masked(0, b"", final=False) * 10_000,
        masked(TEXT, b"{" * 1000)[:-1],
        b"\x81",
    ],
    ids=["a fragment", "many fragments", "most of a frame", "a byte"],
)


@UNFINISHED
async def test_a_stranger_with_a_message_that_is_never_finished_is_as_stale_as_one_without(
    said: bytes,
) -> None:
    async with target(stale_close_delay_s=0.1) as attacked, Raw.upgraded(attacked) as stranger:
        stranger.writer.write(said)
        assert struct.pack("!H", 3502) in await stranger.ended()


@UNFINISHED
async def test_nobody_answers_pings_within_a_message_that_is_never_finished(said: bytes) -> None:
    async with (
        target(ping_interval_s=0.1, pong_timeout_s=0.05) as attacked,
        Raw.upgraded(attacked) as client,
    ):
        token = attacked.token().encode()
        client.writer.write(masked(TEXT, b'{"id":1,"connect":{"token":"%s"}}' % token) + said)
        assert struct.pack("!H", 3012) in await client.ended()


async def test_header_fields_have_a_number_and_a_length(attacked: Target) -> None:
    for fields in (b"X-A: 1\r\n" * 1000, b"X-A: " + b"x" * 20_000 + b"\r\n"):
        head = await attacked.raw(b"GET /health/live HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
        assert b" 400 " in head.partition(b"\r\n")[0]


@pytest.mark.usefixtures("logs")
async def test_all_that_is_before_a_body_has_a_length() -> None:
    """Sixty-four fields of 8 KiB took a megabyte of memory, for as long as more could come."""
    request, field = b"GET /health/live HTTP/1.1\r\nHost: a\r\n", b"X-A: " + b"x" * 8000 + b"\r\n"
    most = HEAD_BYTES_MAX // len(field)
    fits, exceeds = request + field * (most - 1), request + field * (most + 1)
    async with target(times={"request_s": NEVER_S}) as attacked:
        reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
        # Twice: what is answered does not count.
        writer.write((fits + b"\r\n") * 2)
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                await reader.readuntil(b"}")
            writer.write(exceeds)
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        await until(lambda: len(attacked.door) == 0)


# ---- the log


async def test_pages_that_are_refused_are_one_line_a_second_and_counted(attacked: Target) -> None:
    async def refused(times: int) -> list[tuple[str, int]]:
        with watched() as logs:
            for number in range(times):
                said = handshake(PATH, Origin=f"https://evil-{number}.com")
                assert (await attacked.raw(said)).startswith(b"HTTP/1.1 403")
        return [(event["origin"], event["passed_over"]) for event in logs.events]

    assert await refused(20) == [("https://evil-0.com", 0)]
    attacked.node.clock.advance(1.0)
    assert await refused(20) == [("https://evil-0.com", 19)]
    assert attacked.node.assembly.node.services.counters.limits[Limit.ORIGIN.value] == 40


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        handshake(PATH, Sec_WebSocket_Protocol="xmpp"),
        handshake(PATH).replace(b"Version: 13", b"Version: 7"),
        handshake(PATH).replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        handshake(PATH).replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Lock"),
        # Bytes that are no text, where aiohttp decodes or quotes them.
        handshake(PATH).replace(b"-Key: ", b"-Key: \xff"),
        handshake(PATH).replace(b"Version: 13", b"Version: \xff"),
        handshake(PATH).replace(b"Upgrade: websocket", b"Upgrade: \xff"),
        handshake(PATH).replace(b"Connection: Upgrade", b"Connection: \xff"),
    ],
    ids=range(9),
)
async def test_a_malformed_handshake_is_no_line(attacked: Target, said: bytes) -> None:
    with watched() as logs:
        for _ in range(20):
            head = await attacked.raw(said)
            assert head.startswith((b"HTTP/1.0 400", b"HTTP/1.1 4", b"HTTP/1.1 101"))
        await until(lambda: attacked.connections == 0)
    told = [event["event"] for event in logs.events if event["log_level"] != "debug"]
    assert [record.getMessage() for record in logs.records] == []
    assert set(told) <= {"client_gone"}


@pytest.mark.parametrize("path", [PATH, "/health/live", "/nowhere"])
async def test_an_expectation_that_is_no_text_is_no_fault(attacked: Target, path: str) -> None:
    """The answer of aiohttp would quote it."""
    said = f"GET {path} HTTP/1.1\r\nHost: a\r\nExpect: ".encode()
    assert (await attacked.raw(said + b"a\r\n\r\n")).startswith(b"HTTP/1.1 417 ")
    assert await attacked.raw(said + b"\xff\r\n\r\n") == b""


def test_the_rate_is_one_that_nobody_meets_who_is_honest() -> None:
    """Browsers ping never, libraries every 10 to 30 seconds."""
    assert Rate(per_s=20.0, burst=40.0) == CONTROL_RATE


async def test_requests_of_one_connection_let_others_have_their_turn(
    attacked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.12 on a request that need not wait is begun and ended in the turn
    in which it was read.
    """
    loop = asyncio.get_running_loop()
    turns = 0
    answered_in: list[int] = []
    made = http_module._json

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    def answered(body: object, status: int) -> Any:
        answered_in.append(turns)
        return made(body, status)

    turn()
    monkeypatch.setattr(http_module, "_json", answered)
    _, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
    await until(lambda: len(answered_in) == 100)
    writer.transport.abort()
    assert max(answered_in.count(each) for each in set(answered_in)) <= 2


async def test_who_is_gone_publishes_no_more(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left behind would have to wait for its rate, publication after publication."""
    async with target(publish_rate_limit=1.0) as attacked:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            attacked.node.clock.advance(seconds)
            await asyncio.sleep(0)

        monkeypatch.setattr(work_module, "sleep", sleep)
        async with Raw.upgraded(attacked) as client:
            connect = json.dumps({"id": 1, "connect": {"token": attacked.token()}})
            client.writer.write(masked(TEXT, connect.encode()))
            for number in range(2, 1000):
                said = b'{"id":%d,"publish":{"channel":"plain:a","data":1}}' % number
                client.writer.write(masked(TEXT, said))
            await until(lambda: len(slept) > 5)
        before = len(slept)
        await until(lambda: attacked.connections == 0)
        assert len(slept) - before < 100


@pytest.mark.parametrize(
    "line",
    [
        b"GET http://xn--" + b"a" * 100 + b"/ HTTP/1.1",
        b"GET http://xn--\xff/ HTTP/1.1",
        b"GET http://[::1/ HTTP/1.1",
        b"GET http://[v1.a]/ HTTP/1.1",
        b"GET http://a:99999/ HTTP/1.1",
        b"GET http://a:b/ HTTP/1.1",
        b"GET http://%/ HTTP/1.1",
        b"CONNECT ",
        b"CONNECT \r\na:80 HTTP/1.1",
    ],
)
async def test_an_address_that_cannot_be_decoded_holds_no_place(logs: Logs, line: bytes) -> None:
    """Aiohttp makes the request outside of what it guards:
    who sent it would be neither answered nor ended.
    """
    async with target(times={"request_s": 0.2}) as attacked:
        reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
        writer.write(line + b"\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            await reader.read()
        writer.close()
        await until(lambda: len(attacked.door) == 0)
        # A task that ended with an error is told of when nobody holds it any more.
        gc.collect()
        await asyncio.sleep(0)


async def test_no_route_is_looked_for_where_a_path_has_thousands_of_parts(attacked: Target) -> None:
    """For each part, aiohttp searches and copies what stands before it.

    8 KiB took 20 ms, in which nobody else was served.
    """
    for path in (b"/" * 8000, b"/a" * 4000, b"http://a" + b"/" * 8000, b"/" * (SLASHES_MAX + 1)):
        assert await attacked.raw(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n") == b"", path[
            :20
        ]
    await until(lambda: len(attacked.door) == 0)
    for path in (b"/" * SLASHES_MAX, b"/a?" + b"/" * 8000):
        answer = await attacked.raw(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404"), path[:20]


@pytest.mark.parametrize("asked", ["GET http://{}/health/live", "CONNECT {}"])
async def test_no_host_that_is_longer_than_any_is_decoded(attacked: Target, asked: str) -> None:
    """8 KiB that say that they come from another alphabet took 35 ms."""

    async def answer(size: int) -> bytes:
        host = "a." * (size // 2 - 1) + ":8"
        assert len(host) == size
        return await attacked.raw(f"{asked.format(host)} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    assert (await answer(AUTHORITY_CHARS_MAX)).startswith(b"HTTP/1.1 ")
    assert await answer(AUTHORITY_CHARS_MAX + 2) == b""
    await until(lambda: len(attacked.door) == 0)


@pytest.mark.parametrize("path", ["/connection/http_stream", "/emulation", "/api/publish"])
async def test_a_length_of_thousands_of_zeros_is_no_fault_of_ours(
    attacked: Target, path: str
) -> None:
    """Python refuses to read it, though the parser of HTTP did."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
    )
    most = LENGTH_DIGITS_MAX - 1
    for zeros, is_answered in ((most, True), (most + 1, False), (5000, False)):
        length = "0" * zeros + "2"
        answer = await attacked.raw(f"{head}Content-Length: {length}\r\n\r\n{{}}".encode())
        assert answer.startswith(b"HTTP/1.1 ") == is_answered
        assert not answer.startswith(b"HTTP/1.1 500")


@pytest.mark.parametrize("path", ["/connection/http_stream", "/emulation", "/api/publish"])
async def test_no_parameters_of_a_type_are_parsed(
    attacked: Target, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The standard library's parser, which aiohttp uses, took a second for 8 KiB of semicolons, for
    anybody and before a key is looked at.
    """
    parsed_types: list[str] = []

    def parse(raw: str) -> Any:
        parsed_types.append(raw)
        return parse_content_type(raw)

    monkeypatch.setattr(helpers, "parse_content_type", parse)
    kind = "application/json" + "; a=b" * 10
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Type: {kind}\r\n"
    assert await attacked.raw(head.encode() + b"Content-Length: 2\r\n\r\n{}")
    assert kind not in parsed_types


async def test_no_body_is_inflated(attacked: Target) -> None:
    """Of 8 KiB 8 MiB would be made in one turn, for anybody and before a key is looked at."""
    packed = gzip.compress(b" " * 1_000_000)
    head = b"POST /api/publish HTTP/1.1\r\nHost: a\r\nX-API-Key: %s\r\n"
    head += b"Content-Type: application/json\r\n"
    head += b"Content-Encoding: gzip\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    writer.write(head % (KEY.encode(), len(packed)) + packed)
    async with asyncio.timeout(DEADLINE_S):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 415")
