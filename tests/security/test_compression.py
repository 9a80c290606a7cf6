"""Compressed messages that are bombs, that are none, or that nobody agreed on."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import zlib
from collections.abc import AsyncIterator, Generator
from typing import Any, Final

import pytest

from roomcast.client.connection import TURN_BYTES
from roomcast.client.services import TURNS_AT_ONCE
from roomcast.gateway import deflate as deflate_module
from roomcast.gateway import reader as reader_module
from roomcast.gateway.deflate import Compression, deflated, inflated, inflating
from tests.security.target import DEADLINE_S, PATH, SIZE_LIMIT, UNI_PATH, Logs, Target, target
from tests.unit.gateway.frames import BINARY, CLOSE, PING, PONG, TEXT, handshake, masked
from tests.unit.worlds import until
from tests.websocket import WebSocket

OFFER: Final = "permessage-deflate; client_max_window_bits"
FRAME_BYTES_MAX: Final = 4 * SIZE_LIMIT
SEED: Final = 7692
MUTANTS: Final = 300


@pytest.fixture
async def packing(logs: Logs) -> AsyncIterator[Target]:
    """A node that compresses."""
    async with target(
        compression=Compression(0, 1), command_rate_limit=0.0, publish_rate_limit=0.0
    ) as attacked:
        yield attacked
        await attacked.still_serves()


class Peer:
    """A client of raw frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.head = b""

    @classmethod
    async def of(cls, attacked: Target, offer: str = OFFER, path: str = PATH) -> Peer:
        peer = cls(*await asyncio.open_connection("127.0.0.1", attacked.port))
        headers = {"Sec_WebSocket_Extensions": offer} if offer else {}
        peer.write(handshake(path, **headers))
        peer.head = await peer._reader.readuntil(b"\r\n\r\n")
        assert peer.head.startswith(b"HTTP/1.1 101")
        return peer

    @classmethod
    async def connected(cls, attacked: Target, offer: str = OFFER) -> Peer:
        peer = await cls.of(attacked, offer)
        peer.write(
            masked(TEXT, json.dumps({"id": 1, "connect": {"token": attacked.token()}}).encode())
        )
        _, payload = await peer.frame()
        assert b'"connect"' in payload
        return peer

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def frame(self) -> tuple[int, bytes]:
        """The opcode of the next frame, and its payload, inflated."""
        async with asyncio.timeout(DEADLINE_S):
            first, length = await self._reader.readexactly(2)
            if length == 126:
                [length] = struct.unpack("!H", await self._reader.readexactly(2))
            elif length == 127:
                [length] = struct.unpack("!Q", await self._reader.readexactly(8))
            payload = await self._reader.readexactly(length)
        if first & 0x40:
            payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
        return first & 0x0F, payload

    async def close_code(self) -> int:
        """Reads on until the server closes."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                self._writer.close()
                return int(struct.unpack("!H", payload[:2])[0])

    def gone(self) -> None:
        self._writer.close()


def marked(frame: bytes) -> bytes:
    return bytes([frame[0] | 0x40]) + frame[1:]


def packed(payload: bytes, opcode: int = TEXT) -> bytes:
    """A client's compressed frame."""
    return marked(masked(opcode, deflated(payload, 9)))


PING_COMMAND: Final = json.dumps({"id": 7, "publish": {"channel": "plain:a", "data": "x" * 300}})


async def test_what_was_agreed_on_is_answered(packing: Target) -> None:
    peer = await Peer.connected(packing)
    assert (
        b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
        b"client_no_context_takeover\r\n"
    ) in peer.head
    for _ in range(2):
        peer.write(packed(PING_COMMAND.encode()))
        assert await peer.frame() == (TEXT, b'{"id":7,"publish":{}}')
    peer.gone()


@pytest.mark.parametrize("size", [FRAME_BYTES_MAX + 1, 10_000_000, 1_000_000_000])
async def test_a_bomb_is_refused(packing: Target, size: int) -> None:
    peer = await Peer.connected(packing)
    # One kilobyte of these is a megabyte.
    unit = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = unit.compress(b"\x00" * min(size, 10_000_000)) + unit.flush(zlib.Z_SYNC_FLUSH)
    if size > 10_000_000:
        again = unit.compress(b"\x00" * 10_000_000) + unit.flush(zlib.Z_SYNC_FLUSH)
        bomb += again * (size // 10_000_000)
    peer.write(marked(masked(TEXT, bomb[:-4])))
    assert await peer.close_code() == 1009
    limits = packing.node.assembly.node.services.counters.limits
    assert limits["message_size"] == (1 if len(bomb) < FRAME_BYTES_MAX else 0)


@pytest.mark.parametrize("path", [PATH, UNI_PATH])
async def test_a_bomb_of_somebody_who_said_nothing_is_refused(packing: Target, path: str) -> None:
    peer = await Peer.of(packing, path=path)
    peer.write(packed(b" " * (FRAME_BYTES_MAX + 1)))
    assert await peer.close_code() == 1009


async def test_what_is_passed_over_is_not_inflated(
    packing: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await Peer.of(packing, path=UNI_PATH)
    peer.write(packed(json.dumps({"token": packing.token()}).encode()))
    _, payload = await peer.frame()
    assert payload.startswith(b'{"connect"')
    inflated_since: list[bytes] = []
    monkeypatch.setattr(reader_module, "inflated", lambda data, _: inflated_since.append(data))
    peer.write(packed(b" " * (FRAME_BYTES_MAX + 1)) * 20 + masked(PING, b"behind"))
    assert await peer.frame() == (PONG, b"behind")
    assert inflated_since == []
    peer.gone()


async def test_many_that_are_just_small_enough_leave_others_their_turn(
    packing: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some hundred bytes each: a few kilobytes, which are read at once, would be megabytes."""
    turns: list[int] = [0]

    def counted(data: bytes, bytes_max: int) -> bytes:
        turns[-1] += len(unpacked := inflated(data, bytes_max))
        return unpacked

    async def count_turns() -> None:
        while True:
            await asyncio.sleep(0)
            turns.append(0)

    monkeypatch.setattr(reader_module, "inflated", counted)
    counting = asyncio.create_task(count_turns())
    peer = await Peer.connected(packing)
    command = {"id": 1, "publish": {"channel": "plain:b", "data": "x" * (SIZE_LIMIT - 200)}}
    lines = b"\n".join([json.dumps(command).encode()] * 4)
    assert len(lines) <= FRAME_BYTES_MAX
    one = packed(lines)
    assert len(one) < 400
    peer.write(one * 100)
    async with await packing.upgrade() as response:
        neighbour = WebSocket(response)
        await neighbour.ask("connect", token=packing.token("bob"))
        assert await neighbour.ask("publish", channel="plain:c", data=1) == {}
    await until(lambda: sum(turns) == 100 * len(lines))
    counting.cancel()
    assert max(turns) <= TURN_BYTES + len(lines)
    peer.gone()


async def test_large_ones_that_take_long_to_inflate_leave_others_their_turn(
    packing: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message may be all tables: its bytes cost time, though they become little."""
    turns: list[int] = [0]

    def counted(packed: bytes, bytes_max: int) -> Generator[None, None, bytes]:
        steps = inflating(packed, bytes_max)
        while True:
            turns[-1] += 1
            try:
                next(steps)
            except StopIteration as done:
                return bytes(done.value)
            yield

    async def count_turns() -> None:
        while True:
            await asyncio.sleep(0)
            turns.append(0)

    for module in (deflate_module, reader_module):
        monkeypatch.setattr(module, "INFLATED_A_TURN", 512)
    monkeypatch.setattr(reader_module, "inflating", counted)
    peers = [await Peer.connected(packing) for _ in range(3 * TURNS_AT_ONCE)]
    counting = asyncio.create_task(count_turns())
    chance = random.Random(SEED)
    data = chance.randbytes(1500).hex()
    one = packed(json.dumps({"id": 7, "publish": {"channel": "plain:a", "data": data}}).encode())
    parts = (len(one) - 8 + 4 + 511) // 512
    assert parts > 3
    for peer in peers:
        peer.write(one * 2)
    for peer in peers:
        for _ in range(2):
            assert await peer.frame() == (TEXT, b'{"id":7,"publish":{}}')
    counting.cancel()
    assert sum(turns) == parts * 2 * len(peers)
    assert max(turns) <= TURNS_AT_ONCE
    for peer in peers:
        peer.gone()


@pytest.mark.parametrize("what", ["broken", "bomb", "no text", "gone"])
async def test_a_large_one_that_is_none_ends_its_connection_alone(
    packing: Target, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for module in (deflate_module, reader_module):
        monkeypatch.setattr(module, "INFLATED_A_TURN", 512)
    noise = random.Random(SEED).randbytes(2000)
    text = noise.hex().encode()
    payload = {"bomb": text + b" " * FRAME_BYTES_MAX, "no text": noise}.get(what, text)
    # What is broken begins behind the first part.
    rest = b"\x00\x00\xff\xff\xff" if what == "broken" else b""
    frame = marked(masked(TEXT, deflated(payload, 9) + rest))
    peer = await Peer.connected(packing)
    peer.write(frame)
    if what == "gone":
        peer.gone()
        return
    assert await peer.close_code() == {"bomb": 1009}.get(what, 1007)


async def test_a_message_in_parts_is_compressed_as_a_whole(packing: Target) -> None:
    peer = await Peer.connected(packing)
    whole = deflated(PING_COMMAND.encode(), 1)
    peer.write(
        marked(masked(TEXT, whole[:5], final=False))
        + masked(PING, b"between")
        + masked(0, b"", final=False)
        + masked(0, whole[5:])
    )
    assert await peer.frame() == (PONG, b"between")
    assert await peer.frame() == (TEXT, b'{"id":7,"publish":{}}')
    peer.gone()


BROKEN: Final = {
    "marked ping": (marked(masked(PING, b"x")), 1002),
    "marked close": (marked(masked(CLOSE, b"")), 1002),
    "marked twice": (marked(masked(TEXT, b"a", final=False)) + marked(masked(0, b"b")), 1002),
    "marked late": (masked(TEXT, b"{}", final=False) + marked(masked(0, b"b")), 1002),
    "another bit": (bytes([masked(TEXT, b"{}")[0] | 0x20]) + masked(TEXT, b"{}")[1:], 1002),
    "not compressed": (marked(masked(TEXT, b"\xff\xff\xff")), 1007),
    "no text, compressed": (packed(b'{"id":1,"ping":"\xff\xfe"}'), 1007),
    "no text": (masked(TEXT, b"\xff\xfe"), 1007),
    "no command": (packed(b"no command"), 3501),
    "nothing": (packed(b""), 3501),
    "of the other kind": (packed(b"{}", BINARY), 3501),
}


@pytest.mark.parametrize("frames, code", BROKEN.values(), ids=BROKEN)
async def test_what_is_not_as_it_should_be_ends_the_connection(
    packing: Target, frames: bytes, code: int
) -> None:
    peer = await Peer.connected(packing)
    peer.write(frames)
    assert await peer.close_code() == code


@pytest.mark.parametrize("offer", ["", "permessage-gzip", "permessage-deflate; made_up"])
async def test_a_compressed_message_that_nobody_agreed_on_is_refused(
    packing: Target, offer: str
) -> None:
    peer = await Peer.connected(packing, offer)
    assert b"Sec-WebSocket-Extensions" not in peer.head
    peer.write(packed(b"{}"))
    assert await peer.close_code() == 1002


async def test_where_it_is_off_nobody_agrees(attacked: Target) -> None:
    peer = await Peer.connected(attacked)
    assert b"Sec-WebSocket-Extensions" not in peer.head
    peer.write(packed(b"{}"))
    assert await peer.close_code() == 1002


async def test_mutated_messages_are_answered_or_refused(packing: Target) -> None:
    chance = random.Random(SEED)
    codes: dict[int, int] = {}
    whole = deflated(PING_COMMAND.encode(), 6)
    for _ in range(MUTANTS):
        mutant = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(mutant))
            mutant[place] ^= 1 << chance.randrange(8)
        peer = await Peer.connected(packing)
        frames: Any = marked(masked(TEXT, bytes(mutant[: chance.randrange(1, len(mutant) + 1)])))
        peer.write(frames + masked(CLOSE, struct.pack("!H", 1000)))
        code = await peer.close_code()
        codes[code] = codes.get(code, 0) + 1
    assert codes.keys() <= {1000, 1007, 1009, 3501}
    assert len(codes) >= 3
