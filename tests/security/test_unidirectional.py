"""Clients that say no more than how they connect, as strangers would misuse that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import WSMsgType

from roomcast.wire.codes import Disconnect
from tests.security.mutator import Mutator
from tests.security.target import DEADLINE_S, HOST, UNI_PATH, Logs, Target, target
from tests.unit.worlds import until

SSE, HTTP_STREAM = "/connection/uni_sse", "/connection/uni_http_stream"
# The key of a handshake.
UPGRADE: Final = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
# What a client may be told: the status of a request that is none, and codes of the protocol and of
# WebSocket.
CODES: Final = {400, 1007, *(each.value.code for each in Disconnect)}
DEEP: Final = "[" * 2000
# What stands in a query in place of a `connect`.
FORGED: Final = (
    "%",
    "%00",
    "%FF%FE",
    "%ED%A0%80",
    "%7B",
    "%7B%7D%0A%7B%7D",
    "%7B%22token%22%3A7%7D",
    "%7B%22subs%22%3A%7B%22a%22%3A7%7D%7D",
    "%7B%22data%22%3A1e999%7D",
    quote('{"data":' + DEEP + "}"),
    quote('{"id":1,"connect":{}}\n{"id":2,"publish":{"channel":"plain:a","data":1}}'),
    quote(json.dumps({"subs": {f"c{number}": {"recover": True} for number in range(129)}})),
)


def asked(path: str, query: str, fields: str = "") -> bytes:
    """A GET with this query."""
    return f"GET {path}?{query} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n".encode()


async def answer(attacked: Target, request: bytes) -> bytes:
    """All of the answer, to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    try:
        writer.write(request)
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "origin", ["null", "https://evil.com", f"https://{HOST}.evil.com", f"https://{HOST}@evil.com"]
)
@pytest.mark.parametrize("path", [SSE, HTTP_STREAM, UNI_PATH])
async def test_no_other_page_hears_anything(attacked: Target, path: str, origin: str) -> None:
    token = quote(json.dumps({"token": attacked.token()}))
    said = asked(path, f"cf_connect={token}", f"Origin: {origin}\r\n{UPGRADE}")
    for method in (b"GET", b"POST", b"OPTIONS"):
        if (path, method) in {(UNI_PATH, b"POST"), (UNI_PATH, b"OPTIONS"), (HTTP_STREAM, b"GET")}:
            continue
        head = await attacked.raw(said.replace(b"GET", method, 1))
        assert head.startswith(b"HTTP/1.1 403 ")
        assert b"access-control" not in head.lower()
    assert attacked.connections == 0


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
async def test_queries_that_are_no_connect_end_at_once(attacked: Target, forged: str) -> None:
    for query in (f"cf_connect={forged}", f"cf_connect={forged}&cf_connect=%7B%7D"):
        for path, fields in ((SSE, ""), (UNI_PATH, UPGRADE)):
            reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
            writer.write(asked(path, query, fields))
            async with asyncio.timeout(DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status = head.split()[1]
                if status in (b"200", b"101"):
                    told = await reader.readuntil(b'{"disconnect":{"code":3501')
                    assert b"connect" not in told.removesuffix(b'{"disconnect":{"code":3501')
                else:
                    assert status == b"400"
            writer.close()


MUTANTS: Final = 300
SEED: Final = 66_001


def connects(token: str) -> list[bytes]:
    """What clients say, and what they might."""
    since = {"recover": True, "epoch": "e", "offset": 3}
    said: list[dict[str, Any]] = [
        {},
        {"token": token},
        {"token": token, "data": {"a": [1, None]}, "name": "page", "version": "1"},
        {"token": token, "subs": {"a": since, "plain:b": {"recover": False}}},
        {"token": token, "subs": {"a": {"recover": True}}, "headers": {"x": "y"}, "flag": 3},
    ]
    return [json.dumps(each).encode() for each in said]


async def came_of(attacked: Target, path: str, said: bytes) -> Hashable:
    """What a client is told that says this: the status, or the first push."""
    if path == UNI_PATH:
        async with attacked.session.ws_connect(attacked.url + path) as socket:
            await socket.send_frame(said, WSMsgType.TEXT)
            message = await socket.receive(DEADLINE_S)
            # Text that is none is the WebSocket protocol's own matter.
            return shape(message.data) if message.type is WSMsgType.TEXT else socket.close_code
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    try:
        if path == SSE:
            writer.write(asked(path, f"cf_connect={quote(said)}"))
        else:
            head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(said)}\r\n\r\n"
            writer.write(head.encode() + said)
        async with asyncio.timeout(DEADLINE_S):
            status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
            if status != HTTPStatus.OK:
                return status
            while not (line := (await reader.readline()).strip()):
                pass
            return shape(line.removeprefix(b"data: "))
    finally:
        writer.close()


def shape(line: str | bytes) -> Hashable:
    """What a push says, without whatever differs from one time to the next."""
    push = json.loads(line)
    if "disconnect" in push:
        code: int = push["disconnect"]["code"]
        return code
    return frozenset(push["connect"])


@pytest.mark.parametrize("path", [SSE, HTTP_STREAM, UNI_PATH])
async def test_mutated_connects_are_let_in_or_told(attacked: Target, path: str) -> None:
    mutator = Mutator(connects(attacked.token()), SEED)
    outcomes: set[Hashable] = set()
    for _ in range(MUTANTS):
        mutant = mutator.mutant()
        outcome = await came_of(attacked, path, mutant)
        assert outcome in CODES or isinstance(outcome, frozenset), (mutant, outcome)
        mutator.learn(mutant, outcome)
        outcomes.add(outcome)
    # Some got past the parser, to where tokens are looked at, and in.
    assert {3500, 3501, 3507} <= outcomes
    assert any(isinstance(outcome, frozenset) for outcome in outcomes)


async def test_a_query_without_end_is_refused_before_it_is_read(attacked: Target) -> None:
    for path, fields in ((SSE, ""), (UNI_PATH, UPGRADE)):
        said = asked(path, "cf_connect=" + "x" * 100_000, fields)
        assert (await attacked.raw(said)).split()[1] == b"400"
    assert attacked.connections == 0


async def test_to_ask_for_the_head_alone_opens_nothing(attacked: Target) -> None:
    for path in (SSE, HTTP_STREAM, UNI_PATH):
        said = asked(path, "cf_connect=%7B%7D", UPGRADE).replace(b"GET", b"HEAD", 1)
        head = await attacked.raw(said)
        assert head.split()[1] in (b"405", b"426")
    assert attacked.connections == 0


async def test_what_is_said_after_the_connect_is_nobodys_command(attacked: Target) -> None:
    """Also not in the name of who connected, and however much it is."""
    socket = await attacked.session.ws_connect(attacked.url + UNI_PATH)
    async with socket:
        await socket.send_json({"token": attacked.token()})
        result = (await socket.receive_json(timeout=DEADLINE_S))["connect"]
        commands: list[dict[str, Any]] = [
            {"id": 2, "subscribe": {"channel": "plain:a"}},
            {"id": 3, "publish": {"channel": "plain:a", "data": 1}},
            {"connect": {}},
            {},
        ]
        for command in commands * 5:
            await socket.send_json(command)
        # A command of its session is one of nobody either.
        body = {"session": result["session"], "node": result["node"], "data": "{}"}
        async with attacked.session.post(attacked.url + "/emulation", json=body) as refused:
            assert refused.status == 404
        await socket.ping()
        counters = attacked.node.assembly.node.services.counters
        assert counters.commands == {("connect", 0): 1}
        assert attacked.node.assembly.hub.names() == []
        assert attacked.connections == 1


async def test_who_goes_on_talking_waits_and_is_not_kept(logs: Logs) -> None:
    """What it says is dropped at a rate, beyond which nothing is read. When it goes, a ping finds
    that out, though its end is behind all of that.
    """
    async with (
        target(ping_interval_s=0.2) as attacked,
        attacked.session.ws_connect(attacked.url + UNI_PATH) as socket,
    ):
        await socket.send_json({"token": attacked.token()})
        assert "connect" in await socket.receive_json(timeout=DEADLINE_S)
        counters = attacked.node.assembly.node.services.counters

        async def flood() -> None:
            while True:
                await socket.send_str("x" * 4000)

        flooding = asyncio.create_task(flood())
        await until(lambda: counters.limits["control_rate"] > 0)
        [wire] = attacked.door._streaming
        await until(lambda: not wire.is_reading())
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        assert socket._writer.transport is not None
        socket._writer.transport.abort()
        await until(lambda: attacked.connections == 0)


@pytest.mark.parametrize("path", [SSE, UNI_PATH])
async def test_a_token_in_a_query_is_in_no_log(logs: Logs, path: str) -> None:
    async with target() as attacked:
        token = attacked.token("a secret name")
        query = f"cf_connect={quote(json.dumps({'token': token}))}"
        for said in (query, f"{query}%7D", f"{query}&format=protobuf"):
            reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
            writer.write(asked(path, said, UPGRADE))
            async with asyncio.timeout(DEADLINE_S):
                await reader.readuntil(b'connect":{')
            writer.close()
        await until(lambda: attacked.connections == 0)
        assert token not in logs.text()
        assert token.rpartition(".")[0] not in logs.text()


async def test_a_stranger_is_told_nothing_but_that(attacked: Target) -> None:
    body = await answer(attacked, asked(SSE, ""))
    head, _, rest = body.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    told = {"disconnect": {"code": 3507, "reason": "permission denied"}}
    assert json.loads(rest.strip().removeprefix(b"data: ")) == told
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await attacked.session.ws_connect(attacked.url + UNI_PATH, origin="https://evil.com")
