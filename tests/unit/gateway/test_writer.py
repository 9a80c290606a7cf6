"""Frames as bytes, and what becomes of a peer that does not read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.gateway import writer as writer_module
from roomcast.gateway.backlog import Backlog
from roomcast.gateway.writer import (
    FRAME_BYTES,
    PIECE_BYTES,
    Writer,
    bare_close,
    bare_json_lines,
    bare_sse_events,
    bare_text_frames,
    close_frame,
    pong_frame,
    protobuf_frame,
    text_frame,
)
from roomcast.observe.counters import ClientCounters
from roomcast.wire.codes import Disconnect
from roomcast.wire.encoding import PING, disconnect_push
from tests.protobuf import read_messages
from tests.unit.gateway.descriptors import taken_over
from tests.unit.gateway.frames import BINARY, CLOSE, PONG, TEXT, Frame, parsed
from tests.unit.worlds import until

QUEUE_BYTES_MAX: Final = 1000
# Together more than the kernel keeps for a peer that does not read.
SIZES: Final = (100, 70_000, 5, 400_000, 126, 1_000_000, 1)


@pytest.mark.parametrize(
    "size", [0, 1, 124, 125, 126, 127, 65_534, 65_535, 65_536, 65_537, 1_000_000]
)
def test_a_text_frame_holds_its_payload(size: int) -> None:
    payload = b"x" * size
    assert list(parsed(text_frame(payload))) == [Frame(TEXT, payload)]


@pytest.mark.parametrize(
    "size, header",
    [
        (0, "81 00"),
        (125, "81 7d"),
        (126, "81 7e 00 7e"),
        (65_535, "81 7e ff ff"),
        (65_536, "81 7f 00 00 00 00 00 01 00 00"),
    ],
)
def test_the_header_has_the_shortest_length(size: int, header: str) -> None:
    """RFC 6455 §5.2."""
    payload = b"x" * size
    assert text_frame(payload) == bytes.fromhex(header) + payload


@pytest.mark.parametrize("size", [0, 100, 60_000, 70_000])
def test_a_protobuf_frame_is_binary_and_says_what_its_lines_say(size: int) -> None:
    lines = [{"id": 1, "rpc": {"data": "x" * size}}, {}, {"id": 2, "publish": {}}]
    [frame] = parsed(protobuf_frame(b"\n".join(json.dumps(line).encode() for line in lines)))
    assert frame.opcode == BINARY
    assert read_messages(frame.payload) == lines


PUSHES: Final = b"\n".join([disconnect_push(Disconnect.SLOW), PING, b'{"push":{"channel":"c"}}'])
BARE: Final = [b'{"disconnect":{"code":3008,"reason":"slow"}}', b"{}", b'{"channel":"c"}']


def test_a_page_parses_each_bare_frame_whole() -> None:
    assert list(parsed(bare_text_frames(PUSHES))) == [Frame(TEXT, push) for push in BARE]


def test_bare_pushes_are_a_line_or_an_event_each() -> None:
    assert bare_json_lines(PUSHES) == b"".join(push + b"\n" for push in BARE)
    assert bare_sse_events(PUSHES) == b"".join(b"data: " + push + b"\n\n" for push in BARE)


@pytest.mark.parametrize("why", Disconnect)
def test_a_bare_close_says_why_twice(why: Disconnect) -> None:
    """Once for the client's code, and once for what is between."""
    push, close = parsed(bare_close(why))
    told = {"code": why.value.code, "reason": why.value.reason}
    assert json.loads(push.payload) == {"disconnect": told}
    assert close.close_code == why.value.code


@given(st.lists(st.integers(0, 300) | st.integers(65_530, 65_540), max_size=5))
def test_frames_can_be_told_apart(sizes: list[int]) -> None:
    payloads = [bytes([index]) * size for index, size in enumerate(sizes)]
    sent = b"".join(text_frame(payload) for payload in payloads)
    assert [frame.payload for frame in parsed(sent)] == payloads


@pytest.mark.parametrize("why", Disconnect)
def test_a_close_frame_says_why(why: Disconnect) -> None:
    [frame] = parsed(close_frame(why))
    assert frame.close_code == why.value.code
    assert frame.payload[2:].decode() == why.value.reason
    assert len(frame.payload) <= 125, "RFC 6455 §5.5"


class Transport(asyncio.Transport):
    """Keeps what is written, as a socket whose peer does not read, or reads everything."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.buffered = 0
        self.aborted = False
        self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert (high, low) == (0, None), "it says when nothing waits any more"

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.aborted, "nothing is written to what is gone"
        self.written += bytes(data)

    def read(self) -> None:
        """The peer reads all of it."""
        self.buffered = 0

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True


class World:
    def __init__(self) -> None:
        self.transport = Transport()
        self.writer = Writer(self.transport, QUEUE_BYTES_MAX)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.02)
    return World()


async def test_frames_are_written_as_they_are(world: World) -> None:
    for frame in (b"one", b"two"):
        world.writer.send(frame)
    assert world.transport.written == b"onetwo"
    assert world.writer.closed_with is None


async def test_frames_that_are_held_go_out_in_one_piece(world: World) -> None:
    pieces: list[bytes] = []
    world.transport.write = lambda data: pieces.append(bytes(data))  # type: ignore[method-assign]
    world.writer.hold()
    for frame in (b"one", b"two"):
        world.writer.send(frame)
    assert pieces == []
    world.writer.release()
    world.writer.release()
    world.writer.send(b"three")
    assert pieces == [b"onetwo", b"three"]


async def test_a_close_comes_behind_what_is_held(world: World) -> None:
    world.writer.hold()
    world.writer.send(text_frame(b"before"))
    world.writer.close(Disconnect.SHUTDOWN)
    world.writer.send(text_frame(b"after"))
    world.writer.release()
    assert [frame.opcode for frame in parsed(world.transport.written)] == [TEXT, CLOSE]


async def test_what_is_held_for_a_slow_peer_cuts_it_off(world: World) -> None:
    world.transport.buffered = QUEUE_BYTES_MAX + 1
    world.writer.hold()
    world.writer.send(text_frame(b"one"))
    world.writer.close(Disconnect.SHUTDOWN)
    assert world.writer.closed_with is Disconnect.SLOW
    assert [frame.opcode for frame in parsed(world.transport.written)] == [CLOSE]


async def test_what_waits_up_to_the_bound_is_no_slowness(world: World) -> None:
    world.transport.buffered = QUEUE_BYTES_MAX
    world.writer.send(b"x" * 10 * QUEUE_BYTES_MAX)
    assert world.writer.closed_with is None
    assert world.writer.unsent_bytes == 11 * QUEUE_BYTES_MAX
    world.transport.read()
    world.writer.drained()
    assert len(world.transport.written) == 10 * QUEUE_BYTES_MAX
    assert world.writer.unsent_bytes == 0


async def test_a_peer_that_reads_too_slowly_is_cut_off(world: World) -> None:
    world.writer.send(text_frame(b"before"))
    world.transport.buffered = QUEUE_BYTES_MAX + 1
    for _ in range(3):
        world.writer.send(text_frame(b"after"))
    assert world.writer.closed_with is Disconnect.SLOW
    frames = list(parsed(world.transport.written))
    assert [frame.opcode for frame in frames] == [TEXT, CLOSE]
    assert frames[-1].close_code == 3008
    assert not world.transport.aborted, "it may read the close yet"
    await until(lambda: world.transport.aborted)
    world.writer.close(Disconnect.SHUTDOWN)
    world.writer.end()
    assert world.writer.closed_with is Disconnect.SLOW


async def test_nothing_is_written_to_a_transport_that_is_gone(world: World) -> None:
    world.transport.abort()
    world.writer.send(b"one")
    assert world.transport.written == b""
    assert world.writer.closed_with is None


async def test_a_close_is_a_handshake(world: World) -> None:
    """Whoever reads the socket says when the answer has come."""
    world.writer.close(Disconnect.SHUTDOWN)
    world.writer.close(Disconnect.BAD_REQUEST)
    world.writer.send(b"not after the close")
    [frame] = parsed(world.transport.written)
    assert (frame.opcode, frame.close_code, frame.payload[2:]) == (CLOSE, 3001, b"shutdown")
    assert not world.transport.aborted
    world.writer.end()
    world.writer.end()
    assert world.transport.aborted
    assert world.writer.closed_with is Disconnect.SHUTDOWN


async def test_without_an_answer_the_close_is_when_all_is_written(world: World) -> None:
    writer = Writer(
        world.transport,
        QUEUE_BYTES_MAX,
        bare_json_lines,
        last=lambda why: bare_json_lines(disconnect_push(why)),
        is_answered=False,
    )
    writer.close(Disconnect.SLOW)
    assert world.transport.written == b'{"disconnect":{"code":3008,"reason":"slow"}}\n'
    assert world.transport.closed
    assert not world.transport.aborted
    # A peer that does not read has its time, too.
    await until(lambda: world.transport.aborted)


async def test_a_peer_that_does_not_answer_the_close_is_dropped(world: World) -> None:
    world.writer.close(Disconnect.SHUTDOWN)
    await until(lambda: world.transport.aborted)
    assert world.writer.closed_with is Disconnect.SHUTDOWN


async def test_what_is_gone_can_be_closed(world: World) -> None:
    world.transport.abort()
    world.writer.close(Disconnect.SHUTDOWN)
    assert world.transport.written == b""
    assert world.writer.closed_with is Disconnect.SHUTDOWN


# ---- what waits


class Slow(Transport):
    """A socket whose peer reads when the test says so. `pieces`: what was written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        self.pieces.append(bytes(data))
        self.buffered += len(data)


class Behind:
    """A writer whose peer does not read, and what waits for it."""

    def __init__(self, count: int = 2000, size: int = 100) -> None:
        self.counters = ClientCounters()
        self.transport = Slow()
        backlog = Backlog(10**9, self.counters)
        self.writer = Writer(self.transport, 10**9, backlog=backlog)
        self.frames = [text_frame(b"%d " % number * size) for number in range(count)]
        for frame in self.frames:
            self.writer.send(frame)


async def test_the_transport_has_one_piece_at_a_time() -> None:
    """It would look at all that it has with each write, or copy it."""
    behind = Behind()
    transport, writer = behind.transport, behind.writer
    assert transport.pieces == [behind.frames[0]]
    assert writer.unsent_bytes == sum(map(len, behind.frames))
    while writer.unsent_bytes:
        transport.read()
        writer.drained()
    assert len(transport.pieces) < len(behind.frames) / 50
    assert max(map(len, transport.pieces)) <= PIECE_BYTES
    assert transport.written == b"".join(behind.frames)


async def test_a_frame_that_is_larger_than_a_piece_is_one() -> None:
    behind = Behind(3, PIECE_BYTES)
    for _ in behind.frames:
        behind.transport.read()
        behind.writer.drained()
    assert behind.transport.pieces == behind.frames


async def test_who_begins_to_read_is_sent_one_piece_in_a_turn() -> None:
    behind = Behind()
    transport, writer = behind.transport, behind.writer
    transport.read()
    transport.get_write_buffer_size = lambda: 0  # type: ignore[method-assign]  # it reads on
    before = len(transport.pieces)
    writer.drained()
    for turn in range(1, 4):
        assert len(transport.pieces) == before + turn
        writer.send(text_frame(b"later %d" % turn))
        await asyncio.sleep(0)
    await until(lambda: not writer.unsent_bytes)
    later = [text_frame(b"later %d" % turn) for turn in range(1, 4)]
    assert transport.written == b"".join([*behind.frames, *later])


async def test_what_waits_is_counted_and_what_does_not_is_not() -> None:
    behind = Behind()
    size = sum(map(len, behind.frames))
    waiting = len(behind.frames) - 1
    assert behind.counters.unsent_bytes == size + waiting * FRAME_BYTES
    behind.transport.read()
    behind.writer.drained()
    assert size / 2 < behind.counters.unsent_bytes < size + waiting * FRAME_BYTES
    while behind.writer.unsent_bytes:
        behind.transport.read()
        behind.writer.drained()
    assert behind.counters.unsent_bytes == 0


@pytest.mark.parametrize("end", ["close", "answer_close", "half_closed"])
async def test_what_waits_goes_out_before_the_end(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "CLOSE_WAIT_S", 0.01)
    behind = Behind(100)
    if end == "close":
        behind.writer.close(Disconnect.SHUTDOWN)
    elif end == "answer_close":
        behind.writer.answer_close(1000)
    else:
        behind.writer.half_closed()
    opcodes = [frame.opcode for frame in parsed(behind.transport.written)]
    assert opcodes == [TEXT] * 100 + ([] if end == "half_closed" else [CLOSE])
    assert behind.counters.unsent_bytes == 0, "it has its time to end, and no more"
    await until(lambda: behind.transport.aborted)


async def test_of_a_slow_peer_nothing_waits_any_more(world: World) -> None:
    behind = Behind()
    behind.writer.close(Disconnect.SLOW)
    assert [frame.opcode for frame in parsed(behind.transport.written)] == [TEXT, CLOSE]
    assert behind.counters.unsent_bytes == 0
    behind.transport.read()
    behind.writer.drained()
    behind.writer.send(text_frame(b"after"))
    assert behind.transport.written.endswith(close_frame(Disconnect.SLOW))
    behind.writer.end()


async def test_who_is_gone_has_nothing_that_waits() -> None:
    behind = Behind()
    behind.writer.lost()
    assert behind.counters.unsent_bytes == 0
    assert behind.writer.unsent_bytes == len(behind.frames[0]), "the transport's own"


# ---- over a real socket


class Serving(asyncio.Protocol):
    """Tells its writer when the transport may write again, as whoever serves a client does."""

    writer: Writer | None = None

    def resume_writing(self) -> None:
        if self.writer is not None:
            self.writer.drained()


@pytest.fixture
async def connected() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """A transport, and the socket of its peer, which reads nothing by itself."""
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    transport, _ = await loop.create_connection(Serving, sock=ours)
    try:
        yield transport, peer
    finally:
        transport.abort()
        peer.close()


async def test_frames_stay_whole_and_in_order_when_the_kernel_takes_a_part(
    connected: tuple[asyncio.Transport, socket.socket],
) -> None:
    transport, peer = connected
    writer = Writer(transport, queue_bytes_max=10_000_000)
    serving = transport.get_protocol()
    assert isinstance(serving, Serving)
    serving.writer = writer
    frames = [text_frame(bytes([65 + number]) * size) for number, size in enumerate(SIZES)]
    # First into the kernel, then behind what waits in the transport, then into the kernel again.
    for frame in frames:
        writer.send(frame)
    assert transport.get_write_buffer_size() > 0
    read = await _read(peer, sum(map(len, frames)))
    await until(lambda: writer.unsent_bytes == 0)
    writer.send(text_frame(b"last"))
    read += await _read(peer, len(text_frame(b"last")))
    assert read == b"".join([*frames, text_frame(b"last")])


async def test_a_frame_for_a_peer_that_is_gone_is_no_error(
    connected: tuple[asyncio.Transport, socket.socket],
) -> None:
    transport, peer = connected
    writer = Writer(transport, QUEUE_BYTES_MAX)
    peer.close()
    for _ in range(3):
        writer.send(text_frame(b"to nobody"))
    await until(lambda: writer.is_gone)


async def test_while_nothing_waits_frames_go_past_the_transport(
    connected: tuple[asyncio.Transport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is asyncio's own, and not for others by its name."""
    transport, peer = connected
    monkeypatch.setattr(type(transport), "write", None)
    Writer(transport, QUEUE_BYTES_MAX).send(text_frame(b"one"))
    assert peer.recv(100) == text_frame(b"one")


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_descriptor_that_another_socket_has_got_is_not_written_to(
    connected: tuple[asyncio.Transport, socket.socket], is_told: bool
) -> None:
    transport, peer = connected
    writer = Writer(transport, QUEUE_BYTES_MAX)
    number = transport.get_extra_info("socket").fileno()
    if is_told:
        # As whoever serves the transport does.
        writer.lost()
    transport.abort()
    await until(lambda: transport.get_extra_info("socket").fileno() == -1)
    with taken_over(number):
        writer.send(text_frame(b"secret"))
        writer.hold()
        writer.send(text_frame(b"secret"))
        writer.release()
        writer.send(text_frame(b"secret"))
    assert peer.recv(1) == b""


async def test_under_tls_the_transport_writes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        extra = {"sslcontext": object(), "socket": ours}
        monkeypatch.setattr(world.transport, "get_extra_info", extra.get)
        Writer(world.transport, QUEUE_BYTES_MAX).send(text_frame(b"in the clear?"))
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(1)
    assert world.transport.written == text_frame(b"in the clear?")


async def _read(peer: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    read = b""
    while len(read) < size:
        read += await asyncio.wait_for(loop.sock_recv(peer, 65_536), 10)
    return read


@pytest.mark.parametrize("size", [0, 125])
def test_a_pong_has_the_payload_of_its_ping(size: int) -> None:
    """RFC 6455 §5.5.3."""
    assert list(parsed(pong_frame(b"x" * size))) == [Frame(PONG, b"x" * size)]
