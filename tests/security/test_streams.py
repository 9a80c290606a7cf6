"""Streams over HTTP and their commands, attacked: they end with their peers, and cost no more than
they may.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final
from urllib.parse import quote

import pytest

from roomcast.delivery.envelope import Signal
from roomcast.gateway import stream as stream_module
from roomcast.gateway import streams as streams_module
from roomcast.gateway import writer as writer_module
from roomcast.gateway.body import BodyRoom
from roomcast.gateway.websocket import FRAME_COMMANDS_ROOM
from roomcast.wire.emulation import Emulated, emulated_json
from tests.security.target import DEADLINE_S, HOST, SIZE_LIMIT, Logs, Target, target
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
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.02)
    async with Peer.of(attacked) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        [wire] = attacked.door._streaming
        wire.write(bytes(16 * 1024 * 1024))
        assert wire.get_write_buffer_size() > 0
        peer.writer.write_eof()
        await until(lambda: len(attacked.door) == attacked.connections == 0)


# ---- bodies


def begun(path: str, size: int, came: int) -> bytes:
    """A request with a body of `size` bytes, of which so many come."""
    head, end, _ = posted(path, b"").partition(b"\r\n\r\n")
    return head.replace(b"Length: 0", b"Length: %d" % size) + end + b"{" * came


@asynccontextmanager
async def sent(attacked: Target, request: bytes) -> AsyncIterator[Peer]:
    """A peer that sent this, and hears what is answered."""
    peer = Peer(*await asyncio.open_connection("127.0.0.1", attacked.port))
    try:
        peer.writer.write(request)
        yield peer
    finally:
        peer.writer.transport.abort()


async def test_bodies_that_never_come_whole_fill_no_memory(attacked: Target) -> None:
    """Each could hold half a megabyte for ten seconds, of as many strangers as there are places."""
    room = attacked.streams._coming = BodyRoom(30_000)
    async with AsyncExitStack() as stack:
        slow: list[Peer] = []
        for path in (HTTP_STREAM, EMULATION):
            said = begun(path, 15_000, 14_000)
            slow.append(await stack.enter_async_context(sent(attacked, said)))
            await until(lambda: room.used == 14_000 * len(slow))
        for number, peer in enumerate(slow, start=1):
            # Who began first gives way.
            await stack.enter_async_context(sent(attacked, begun(EMULATION, 15_000, 14_000)))
            async with asyncio.timeout(DEADLINE_S):
                assert (await peer.reader.readline()).startswith(b"HTTP/1.1 503 "), number
            assert room.used <= 28_000
        # What comes at once needs no room.
        async with Peer.of(attacked) as peer:
            assert await said_by(attacked, peer, {"id": 2, "rpc": {}}) == 204
    await until(lambda: room.used == 0)


async def test_lengths_that_were_only_said_keep_nobody_out(attacked: Target) -> None:
    """They cost nothing, and who says them sends no more. Whose body comes in two pieces is
    another.
    """
    attacked.streams._coming = BodyRoom(30_000)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(sent(attacked, begun(EMULATION, 15_000, 1)))
        await until(lambda: len(attacked.streams._coming._coming) == 20)
        head, end, body = posted(HTTP_STREAM, connect(attacked)).partition(b"\r\n\r\n")
        honest = await stack.enter_async_context(sent(attacked, head + end))
        await until(lambda: len(attacked.streams._coming._coming) == 21)
        honest.writer.write(body)
        async with asyncio.timeout(DEADLINE_S):
            assert (await honest.reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_large_bodies_that_become_whole_at_once_are_not_decoded_at_once(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes up to 2 ms."""
    # One entry for each turn of the event loop.
    turns: list[asyncio.Handle] = []
    decoded = Counter[int]()
    loop = asyncio.get_running_loop()

    def next_turn() -> None:
        turns.append(loop.call_soon(next_turn))

    def decode(body: bytes) -> Emulated:
        decoded[len(turns)] += 1
        return emulated_json(body)

    next_turn()
    monkeypatch.setattr(streams_module, "emulated_json", decode)
    async with target(size_limit=32 * 1024) as attacked, AsyncExitStack() as stack:
        body = json.dumps({"node": "n", "session": "s", "data": "x" * 50_000}).encode()
        request = posted(EMULATION, body)
        peers = [await stack.enter_async_context(sent(attacked, request[:-1])) for _ in range(20)]
        await until(lambda: attacked.streams._coming.used == 20 * (len(body) - 1))
        for peer in peers:
            peer.writer.write(request[-1:])
        async with asyncio.timeout(DEADLINE_S):
            for peer in peers:
                assert (await peer.reader.readline()).startswith(b"HTTP/1.1 404 ")
    turns[-1].cancel()
    assert decoded.total() == 20
    assert max(decoded.values()) <= 2


def in_chunks(path: str, *fields: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json"]
    return "\r\n".join([*lines, "Transfer-Encoding: chunked", *fields, "", ""]).encode()


def _has(room: BodyRoom, used: int) -> bool:
    return room.used == used


async def test_bodies_in_chunks_that_never_end_fill_no_memory(attacked: Target) -> None:
    """Nothing tells how much is to come. The one that has kept its room for longest gives way."""
    attacked.streams._coming = room = BodyRoom(2)
    async with AsyncExitStack() as stack:
        slow = []
        for number in range(3):
            said = in_chunks(EMULATION) + b"1\r\n{\r\n"
            slow.append(await stack.enter_async_context(sent(attacked, said)))
            held = min(number + 1, 2)
            await until(partial(_has, room, held))
        async with asyncio.timeout(DEADLINE_S):
            assert (await slow[0].reader.readline()).startswith(b"HTTP/1.1 503 ")
    await until(lambda: room.used == 0)


@pytest.mark.parametrize("path", [HTTP_STREAM, SSE, EMULATION])
async def test_chunks_beyond_what_a_body_may_have_are_not_parsed(
    attacked: Target, path: str
) -> None:
    """In chunks of one byte, 8 KiB take more than a millisecond."""
    said = in_chunks(path) + b"1\r\nx\r\n" * (2 * SIZE_LIMIT * FRAME_COMMANDS_ROOM + 1)
    assert (await attacked.raw(said)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", [HTTP_STREAM, EMULATION])
@pytest.mark.parametrize(
    "behind", [b"x\r\n", b"ffffffffffffffffff\r\n", b"-1\r\n", b"2\r\n{}x\r\n", b"\r\n\r\n"]
)
async def test_what_is_no_chunk_is_no_request(attacked: Target, path: str, behind: bytes) -> None:
    assert (await attacked.raw(in_chunks(path) + behind)).split()[1] == b"400"


@pytest.mark.parametrize("path", [HTTP_STREAM, SSE, EMULATION])
@pytest.mark.parametrize("behind", [b"x\r\n", b"1\r\n{}\r\n", b"1\r\n{GET / HTTP/1.1\r\n\r\n"])
async def test_a_broken_chunk_holds_no_place(attacked: Target, path: str, behind: bytes) -> None:
    """Nothing more would come for its request, which had waited for as long as a body may take."""
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    writer.write(in_chunks(path) + b"1\r\n{\r\n")
    await until(lambda: attacked.streams._coming.used > 0)
    writer.write(behind)
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        # One answer, and the end.
        assert b"HTTP/" not in await reader.read()
    assert attacked.streams._coming.used == 0
    await until(lambda: len(attacked.door) == 0)
    writer.close()


@pytest.mark.parametrize("turns", range(6))
async def test_a_chunk_that_is_broken_before_its_request_is_looked_at(
    attacked: Target, turns: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    writer.write(NEXT + in_chunks(EMULATION))
    for _ in range(turns):
        await asyncio.sleep(0)
    writer.write(b"x\r\n")
    async with asyncio.timeout(DEADLINE_S):
        statuses = [line.split()[1] for line in (await reader.read()).split(b"HTTP/")[1:]]
    assert statuses[-1] == b"400"
    await until(lambda: len(attacked.door) == 0)
    writer.close()


@pytest.mark.parametrize("path", [HTTP_STREAM, SSE, EMULATION])
async def test_a_body_has_one_length(attacked: Target, path: str) -> None:
    """With two, a proxy and this server may disagree on where the next request begins."""
    said = in_chunks(path, "Content-Length: 5") + b"0\r\n\r\n"
    assert (await attacked.raw(said)).split()[1] == b"400"


async def said_by(attacked: Target, peer: Peer, *commands: dict[str, object]) -> int:
    """The status of the answer to commands of `peer`."""
    data = "\n".join(json.dumps(each) for each in commands)
    body = {"session": peer.session, "node": peer.node, "data": data}
    async with attacked.session.post(attacked.url + EMULATION, json=body) as answer:
        return answer.status


# ---- who may


@pytest.mark.parametrize(
    "origin", ["null", "https://evil.com", f"https://{HOST}.evil.com", f"https://{HOST}@evil.com"]
)
@pytest.mark.parametrize("path", [HTTP_STREAM, SSE, EMULATION])
async def test_no_other_page_opens_a_stream_or_speaks_in_one(
    attacked: Target, path: str, origin: str
) -> None:
    """Also not with a session that was stolen."""
    async with Peer.of(attacked) as peer:
        body = json.dumps({"session": peer.session, "node": peer.node, "data": "no command"})
        for said in (
            posted(path, body.encode(), f"Origin: {origin}"),
            posted(path, b"", f"Origin: {origin}").replace(b"POST", b"OPTIONS"),
        ):
            head = await attacked.raw(said)
            assert head.startswith(b"HTTP/1.1 403 ")
            assert b"access-control" not in head.lower()
        assert attacked.connections == 1


def asked(commands: bytes, *fields: str) -> bytes:
    """A GET of events, as a page has a browser make one for a picture: without an Origin."""
    lines = [f"GET {SSE}?cf_connect={quote(commands)} HTTP/1.1", f"Host: {HOST}", *fields, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    "site, status",
    [("cross-site", 403), ("same-site", 403), ("Cross-Site", 403), ("same-origin", 200)],
)
async def test_a_page_that_does_not_say_its_origin_is_another(
    attacked: Target, logs: Logs, site: str, status: int
) -> None:
    """For a GET whose answer it cannot read, it need not say it."""
    head = await attacked.raw(asked(connect(attacked), f"Sec-Fetch-Site: {site}"))
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    told = [event["origin"] for event in logs.events if event["event"] == "origin_refused"]
    assert told == (["untold"] if status == 403 else [])


async def test_any_page_may_where_any_origin_may(logs: Logs) -> None:
    async with target(origins=("*",)) as attacked:
        head = await attacked.raw(asked(connect(attacked), "Sec-Fetch-Site: cross-site"))
        assert head.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("between", [b"\n", b"\n\n", b"\r\n"])
async def test_who_cannot_read_the_answer_to_a_get_says_no_more_than_connect(
    attacked: Target, between: bytes
) -> None:
    """Over plain HTTP, browsers do not tell that another site's page asks."""
    async with Peer.of(attacked) as peer:
        assert await said_by(attacked, peer, {"id": 2, "subscribe": {"channel": "plain:a"}}) == 204
        evil = {"id": 2, "publish": {"channel": "plain:a", "data": "of another page"}}
        head = await attacked.raw(asked(connect(attacked) + between + json.dumps(evil).encode()))
        assert head.startswith(b"HTTP/1.1 400 ")
        assert attacked.connections == 1
        good = {"id": 3, "publish": {"channel": "plain:a", "data": "its own"}}
        assert await said_by(attacked, peer, good) == 204
        async with asyncio.timeout(DEADLINE_S):
            lines = [json.loads(await peer.reader.readline()) for _ in range(3)]
        assert [line["push"]["pub"]["data"] for line in lines if "push" in line] == ["its own"]


@pytest.mark.parametrize("origin", ["https://a\x01b", "https://a\x7f", "https://a, b", "a\tb", "é"])
async def test_nothing_but_an_origin_gets_into_an_answer(logs: Logs, origin: str) -> None:
    async with target(origins=("*",)) as attacked:
        said = posted(HTTP_STREAM, connect(attacked), f"Origin: {origin}")
        assert b"access-control" not in (await attacked.raw(said)).lower()
        assert b"credentials" not in (await attacked.raw(said)).lower()


async def test_nobody_speaks_for_another(attacked: Target) -> None:
    async with Peer.of(attacked) as peer:
        for session in ("", "guessed", peer.session[:-1], peer.session + "a", peer.session.upper()):
            other = Peer(peer.reader, peer.writer)
            other.session, other.node = session, peer.node
            assert await said_by(attacked, other, {"id": 9, "publish": {"channel": "a"}}) == 404
        assert (
            await said_by(attacked, peer, {"id": 2, "publish": {"channel": "a", "data": 1}}) == 204
        )
        async with asyncio.timeout(DEADLINE_S):
            assert json.loads(await peer.reader.readline())["id"] == 2


async def test_no_session_is_in_the_log(logs: Logs) -> None:
    """At no level, and also not when commands cannot be passed on or are malformed."""
    async with target() as attacked, Peer.of(attacked) as peer:
        emulation = attacked.node.assembly.node.emulation
        await emulation.take("another", peer.session + "!", b"x")
        for body in ({"session": peer.session}, {"session": peer.session, "frames": ["?"]}):
            emulation.heard(Signal("commands", "id", "another", "", body))
        assert await said_by(attacked, peer, {"id": 2, "nonsense": {}}) == 204
        await emulation.finish()
        assert "commands_malformed" in logs.text()
        assert peer.session not in logs.text()


# ---- what other nodes say


async def test_forged_messages_reach_nobody(attacked: Target) -> None:
    async with Peer.of(attacked) as peer:
        emulation = attacked.node.assembly.node.emulation
        for number, body in enumerate(
            (
                None,
                7,
                {"session": "guessed", "frames": ["MQ=="] * 1000},
                {"session": peer.session, "frames": "MQ=="},
                {"session": peer.session, "frames": ["MQ==", "not Base64"]},
                {"session": peer.session, "frames": [["MQ=="]]},
                {"session": [peer.session], "frames": []},
                {"session": "s" * 100_000, "frames": []},
            )
        ):
            emulation.heard(Signal("commands", f"{number}", "forger", "", body))
            emulation.heard(Signal("commands_taken", f"{number}", "forger", "", body))
        await emulation.finish()
        assert (
            await said_by(attacked, peer, {"id": 2, "publish": {"channel": "a", "data": 1}}) == 204
        )
        async with asyncio.timeout(DEADLINE_S):
            assert json.loads(await peer.reader.readline())["id"] == 2


# ---- floods


async def test_commands_beyond_the_rate_do_not_pile_up(logs: Logs) -> None:
    async with target(command_rate_limit=1.0) as attacked, Peer.of(attacked) as peer:
        [stream] = attacked.node.assembly.node.emulation.sessions._by_name.values()
        assert isinstance(stream, stream_module.ClientStream)
        statuses = [
            await said_by(attacked, peer, *({"id": number, "ping": {}} for number in range(2, 400)))
            for _ in range(stream_module.WAITING_MAX + 10)
        ]
        assert statuses[-1] == 429
        assert 204 in statuses
        assert len(stream._frames) <= stream_module.WAITING_MAX
        assert stream._waiting_bytes <= stream_module.WAITING_BYTES_MAX
