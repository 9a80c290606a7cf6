"""What goes to one connection within a short time goes out in one piece."""

from __future__ import annotations

import asyncio
import json
import socket
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.gateway import delayed as module
from roomcast.gateway import writer as writer_module
from roomcast.gateway.delayed import HELD_BYTES_MAX, HELD_FRAMES_MAX, writer_maker
from roomcast.gateway.writer import (
    Writer,
    json_lines,
    pong_frame,
    protobuf_frame,
    sse_events,
    text_frame,
)
from roomcast.wire.codes import Disconnect
from roomcast.wire.protobuf import encode_messages
from tests.protobuf import read_messages
from tests.unit.gateway.frames import BINARY, CLOSE, PONG, TEXT, parsed
from tests.unit.gateway.test_writer import QUEUE_BYTES_MAX, Transport
from tests.unit.worlds import until

# So that it does not pass while a test runs, and so that it does.
LONG_S: Final = 3600.0
SHORT_S: Final = 0.005

LINES: Final = [{"id": 1, "publish": {}}, {}, {"id": 2, "rpc": {"data": "é" * 200}}]


class Pieces(Transport):
    """Keeps what is written at once apart."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        self.pieces.append(bytes(data))


def made(
    delay_s: float = LONG_S, framer: Any = text_frame, **options: Any
) -> tuple[Writer, Pieces]:
    transport = Pieces()
    writer = writer_maker(delay_s)(transport, QUEUE_BYTES_MAX, framer, **options)
    return writer, transport


def send(writer: Writer, *lines: object) -> None:
    """As the hub and the peer do."""
    for line in lines:
        writer.send(writer.framer(json.dumps(line).encode()))


async def test_without_a_delay_it_is_a_plain_writer() -> None:
    writer, transport = made(0.0)
    assert type(writer) is Writer
    send(writer, 1)
    assert transport.pieces == [text_frame(b"1")]


async def test_text_is_one_frame_of_many_lines() -> None:
    writer, transport = made(SHORT_S)
    send(writer, *LINES)
    assert transport.pieces == []
    await until(lambda: transport.pieces)
    [piece] = transport.pieces
    [frame] = parsed(piece)
    assert frame.opcode == TEXT
    assert [json.loads(line) for line in frame.payload.split(b"\n")] == LINES
    assert not writer.is_binary


async def test_protobuf_is_one_frame_of_many_messages() -> None:
    writer, transport = made(SHORT_S, protobuf_frame)
    send(writer, *LINES)
    await until(lambda: transport.pieces)
    [piece] = transport.pieces
    [frame] = parsed(piece)
    assert frame.opcode == BINARY
    assert read_messages(frame.payload) == LINES
    assert writer.is_binary


@pytest.mark.parametrize("framer", [json_lines, sse_events, encode_messages])
async def test_of_a_stream_it_is_one_piece(framer: Any) -> None:
    writer, transport = made(SHORT_S, framer, session="a")
    send(writer, *LINES)
    await until(lambda: transport.pieces)
    lines = [framer(json.dumps(line).encode()) for line in LINES]
    assert transport.pieces == [b"".join(lines)]


async def test_what_comes_later_waits_as_long() -> None:
    writer, transport = made(SHORT_S)
    send(writer, 1)
    await until(lambda: transport.pieces)
    send(writer, 2, 3)
    assert len(transport.pieces) == 1
    await until(lambda: len(transport.pieces) == 2)
    assert transport.pieces[1] == text_frame(b"2\n3")


@pytest.mark.parametrize("count, size", [(HELD_FRAMES_MAX, 1), (4, HELD_BYTES_MAX // 4)])
async def test_no_more_than_this_is_collected(count: int, size: int) -> None:
    writer, transport = made()
    for _ in range(count - 1):
        writer.send(b"x" * size)
    assert transport.pieces == []
    assert writer.unsent_bytes == (count - 1) * size
    writer.send(b"x" * size)
    assert transport.pieces == [text_frame(b"\n".join([b"x" * size] * count))]
    assert writer.unsent_bytes == 0


async def test_control_frames_do_not_wait() -> None:
    writer, transport = made()
    send(writer, 1)
    writer.send_control(pong_frame(b"x"))
    assert [frame.opcode for frame in parsed(transport.written)] == [PONG]


@pytest.mark.parametrize("end", ["close", "answer_close"])
async def test_a_close_comes_behind_what_is_collected(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.01)
    writer, transport = made()
    send(writer, 1, 2)
    if end == "close":
        writer.close(Disconnect.SHUTDOWN)
        await until(lambda: transport.aborted)
    else:
        transport.close = lambda: None  # type: ignore[method-assign]
        writer.answer_close(1000)
    assert [frame.opcode for frame in parsed(transport.written)] == [TEXT, CLOSE]


async def test_who_is_gone_gets_nothing_and_nothing_is_kept_for_it() -> None:
    writer, transport = made(SHORT_S)
    other, others = made(SHORT_S)
    send(writer, 1)
    transport.abort()
    writer.lost()
    assert writer.unsent_bytes == 0
    send(writer, 2)
    assert writer.unsent_bytes == 0
    send(other, 3)
    await until(lambda: others.pieces)
    assert transport.pieces == []


async def test_who_says_no_more_gets_what_was_collected() -> None:
    writer, transport = made()
    send(writer, 1)
    writer.half_closed()
    assert transport.pieces == [text_frame(b"1")]


async def test_a_slow_peer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.01)
    writer, transport = made(SHORT_S)
    transport.buffered = QUEUE_BYTES_MAX + 1
    send(writer, 1)
    await until(lambda: writer.closed_with)
    assert writer.closed_with is Disconnect.SLOW
    await until(lambda: transport.aborted)


async def test_a_turn_writes_to_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITES_A_TURN", 3)
    maker = writer_maker(SHORT_S)
    transports = [Pieces() for _ in range(10)]
    for transport in transports:
        send(maker(transport, QUEUE_BYTES_MAX, text_frame), 1)
    loop = asyncio.get_running_loop()
    turns: list[int] = []
    now = loop.time() + 1.0
    loop.time = lambda: now  # type: ignore[method-assign]  # all are due at once
    try:
        while not transports[-1].pieces and len(turns) < 100:
            turns.append(sum(len(each.pieces) for each in transports))
            await asyncio.sleep(0)
    finally:
        del loop.time
    turns.append(sum(len(each.pieces) for each in transports))
    assert turns[-1] == 10
    assert max(after - before for before, after in pairwise(turns)) <= 3


@given(
    st.lists(
        st.integers(0, 40_000) | st.sampled_from(["due", "pong", "hold", "release"]), max_size=30
    )
)
async def test_whatever_is_sent_arrives_whole_and_in_order(steps: list[int | str]) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    reader, other = await asyncio.open_connection(sock=theirs)
    writer: Any = writer_maker(LONG_S)(transport, 10_000_000, text_frame)
    wanted: list[str] = []
    for step in steps:
        if isinstance(step, int):
            wanted.append(f"{len(wanted)} {'x' * step}")
            send(writer, wanted[-1])
        elif step == "due":
            writer.due()
        elif step == "pong":
            writer.send_control(pong_frame(b""))
        else:
            getattr(writer, step)()
    writer.answer_close(1000)
    frames = list(parsed(await reader.read()))
    assert frames[-1].opcode == CLOSE
    lines = b"\n".join(frame.payload for frame in frames if frame.opcode == TEXT)
    assert [json.loads(line) for line in lines.splitlines()] == wanted
    other.close()
