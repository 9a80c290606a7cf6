"""Reads one client's frames after the handshake, and hands them to its connection.

aiohttp's handler of requests holds the request, its headers, the parser of HTTP, two tasks and the
frames of their coroutines for as long as it serves a WebSocket: some 12 KB. So once the handshake
is answered, the transport gets this protocol instead. aiohttp's reader of frames stays. A task runs
only while a client's frames are taken.
"""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.http import WebSocketReader

from roomcast.client import comings
from roomcast.client.connection import CROWD_BYTES, Connection, Waiting
from roomcast.client.peer import ANY_CARRIER
from roomcast.delivery.ports import Framer
from roomcast.frozen import frozen
from roomcast.gateway.deflate import INFLATED_A_TURN, Marks, Unreadable, inflated, inflating
from roomcast.gateway.frame_headers import MASKED, SHORT_HEADER, SHORT_MAX, Masks
from roomcast.gateway.parsing import PARSED_AT_ONCE, Parsing
from roomcast.gateway.writer import CLOSE_WAIT_S, Writer, pong_frame
from roomcast.hooks.events import Carrier
from roomcast.node.node import Node
from roomcast.observe.counters import Limit, Transport
from roomcast.rates import Bucket, Rate
from roomcast.wire.codes import Disconnect
from roomcast.wire.commands import Reader

__all__ = [
    "CONTROL_BYTES",
    "CONTROL_FRAMES_BURST",
    "CONTROL_FRAMES_PER_S",
    "CONTROL_RATE",
    "ClientFrames",
    "Encoding",
]

# Pings and pongs of one connection. A client that sends one every few seconds never waits. Beyond
# this rate its frames stay unread for a while.
CONTROL_FRAMES_PER_S: Final = 20.0
CONTROL_FRAMES_BURST: Final = 40.0
CONTROL_RATE: Final = Rate(CONTROL_FRAMES_PER_S, CONTROL_FRAMES_BURST)

# What one of them counts as in a turn of the event loop, among what all connections take.
CONTROL_BYTES: Final = 512

# Frames that a client may have sent before it saw this side's close. Beyond that nothing is read.
_DROPPED_MAX: Final = 2048
_DROPPED_A_TURN: Final = 64
_FRAMES: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG})
# Bytes of frames that wait to be taken. Beyond that nothing is read from the socket until all of
# them are taken.
_WAITING_BYTES: Final = 64 * 1024
# What a message costs in memory beside its own bytes.
_MESSAGE_BYTES: Final = 128

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoding of one client's frames. `frames`: the frame types that it may send.

    `may_be_packed`: its messages may be compressed, each by itself (deflate.py).
    """

    subprotocol: str
    frames: WSMsgType
    reader: Reader
    framer: Framer
    may_be_packed: bool = False


@frozen
class _Last:
    """How a client's frames ended: the code of the answer to it, and the code for the log."""

    answer: int
    told: int = WSCloseCode.ABNORMAL_CLOSURE


# The connection is gone, and nobody reads an answer.
_LOST: Final = _Last(WSCloseCode.OK)


def _unmasked() -> WebSocketError:
    return WebSocketError(WSCloseCode.PROTOCOL_ERROR, "a frame without a mask")


class _Frames(WebSocketDataQueue):
    """The frames that aiohttp's reader has read, in order: each message and its bytes.

    aiohttp's own queue is for a task that waits for a frame. `size`: bytes that wait, each message
    counted with what it costs.
    """

    __slots__ = ("size",)

    def __init__(self) -> None:
        super().__init__(
            None,  # type: ignore[arg-type]  # the protocol: nothing here uses it
            _WAITING_BYTES,
            loop=asyncio.get_running_loop(),
        )
        self.size = 0

    def feed_data(self, data: WSMessage, size: int) -> None:  # type: ignore[override]
        self._buffer.append((data, size))
        self.size += size + _MESSAGE_BYTES

    @property
    def waiting(self) -> Sized:
        """Those that were not taken yet, as they are at any time."""
        return self._buffer

    def clear(self) -> None:
        """None is taken any more."""
        self._buffer.clear()
        self.size = 0
        # Forgets the exception, which may hold the message that it is about.
        self.feed_eof()

    def take(self) -> WSMessage:
        """The oldest one. There must be one."""
        message, _ = self._buffer.popleft()
        if not self._buffer:
            self.size = 0
        # The reader decodes text, so it makes no message of another kind.
        return message  # type: ignore[return-value]


class ClientFrames(asyncio.Protocol):
    """The protocol of one client's transport. It belongs to `node` from here on.

    `frame_bytes_max`: a longer message is refused (1009). `parsing`: what bounds that of all
    connections. `left` is called when the connection is
    lost.
    """

    __slots__ = (
        "_bucket",
        "_came",
        "_connection",
        "_dropped",
        "_encoding",
        "_frame_bytes_max",
        "_frames",
        "_is_heard",
        "_is_lost",
        "_is_over",
        "_is_paused",
        "_marks",
        "_masks",
        "_node",
        "_parser",
        "_parsing",
        "_task",
        "_transport",
        "_writer",
        "left",
    )

    def __init__(
        self,
        node: Node,
        transport: asyncio.Transport,
        writer: Writer,
        encoding: Encoding,
        frame_bytes_max: int,
        parsing: Parsing,
        carrier: Carrier = ANY_CARRIER,
    ) -> None:
        self._node = node
        self._transport = transport
        self._writer = writer
        self._encoding = encoding
        self._frames = _Frames()
        self._parsing = parsing
        # What came and waits to be parsed; nothing is read meanwhile.
        self._came = b""
        # None = no frame is taken any more.
        self._parser: WebSocketReader | None = WebSocketReader(
            self._frames,
            # aiohttp refuses a message of exactly this size already.
            frame_bytes_max + 1,
            compress=False,
            decode_text=not encoding.may_be_packed,
        )
        self._masks = Masks()
        # Of messages that may be compressed; None = they must not be.
        self._marks = Marks() if encoding.may_be_packed else None
        self._frame_bytes_max = frame_bytes_max
        self.left: Callable[[], None] | None = None
        # Finishes a frame that something has to be waited for, and takes the ones behind it.
        self._task: asyncio.Task[None] | None = None
        # Frames since the close of this side.
        self._dropped = 0
        # The rate of pings and pongs; None = there was none.
        self._bucket: Bucket | None = None
        # Whether the client has said all that it has to say.
        self._is_heard = False
        self._is_paused = False
        self._is_lost = False
        self._is_over = False
        self._connection: Connection = node.open(writer, carrier)
        node.services.counters.came(self._kind)

    @property
    def _kind(self) -> Transport:
        """What it is counted as."""
        unidirectional = self._writer.is_unidirectional
        return Transport.UNI_WEBSOCKET if unidirectional else Transport.WEBSOCKET

    # ---- what the transport calls

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        is_little = len(data) <= PARSED_AT_ONCE
        if not self._came and (is_little or self._parsing.has_room(len(data))):
            self._parse(data)
            return
        if not self._came:
            self._parsing.wait(self)
        # Nothing comes while it is not read; if something did, it would be in order.
        self._came += data
        self._transport.pause_reading()

    def parse(self) -> int:
        """Take what waits to be parsed, and read on. Returns its bytes; 0 = nobody wants it."""
        data, self._came = self._came, b""
        if self._parser is None:
            return 0
        try:
            self._parse(data)
        except Exception as error:  # noqa: BLE001  # a bug: others wait behind this client
            self._failed(error)
            return len(data)
        if not self._is_paused:
            self._transport.resume_reading()
        return len(data)

    def _parse(self, data: bytes) -> None:
        assert self._parser is not None, "frames are taken"
        if self._marks is not None:
            data = self._marks.take(data)
        masked = data
        # Most of what comes is one short frame.
        size = len(data) - SHORT_HEADER
        if not (self._masks.is_between and 0 <= size <= SHORT_MAX and data[1] == MASKED | size):
            masked = self._masks.masked(data)
        self._parser.feed_data(masked)
        if len(masked) < len(data) and self._frames.exception() is None:
            self._frames.set_exception(_unmasked())
        if self._task is None:
            self._go_on()
        if self._frames.size > _WAITING_BYTES and self._task is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """The client says no more."""
        self._writer.half_closed()

    def resume_writing(self) -> None:
        self._writer.drained()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        # First of all: the transport closes its descriptor next.
        self._writer.lost()
        self._is_lost = True
        if self.left is not None:
            self.left()
            self.left = None
        if self._task is None:
            self._end(_LOST)

    # ---- frames

    def take_first(self, frame: str) -> None:
        """Take `frame` as if the client had sent it, before all that it sends."""
        data: str | bytes = frame
        if self._marks is not None:
            self._marks.came_plain()
            data = frame.encode(errors="replace")
        self._frames.feed_data(WSMessage(WSMsgType.TEXT, data, None), len(frame))
        self._go_on()

    def _go_on(self) -> None:
        """Takes frames until something has to be waited for. Then a task goes on."""
        try:
            waiting = self._take_frames()
        except Exception as error:  # noqa: BLE001  # a bug: the client must not be left waiting
            self._failed(error)
        else:
            if waiting is not None:
                self._task = asyncio.get_running_loop().create_task(self._finish(waiting))

    async def _finish(self, waiting: Waiting) -> None:
        try:
            await waiting
            while (further := self._take_frames()) is not None:
                await further
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(error)
        finally:
            self._task = None
            if self._is_lost:
                self._end(_LOST)
            elif self._is_paused:
                self._is_paused = False
                if not self._came:
                    self._transport.resume_reading()

    def _failed(self, error: Exception) -> None:
        _log.error("client_failed", client=self._connection.client, exc_info=error)
        self._end(_Last(WSCloseCode.OK))

    def _take_frames(self) -> Waiting | None:
        """Takes frames, one after the other. One that cannot be taken yet stays where it is.

        Returns what has to be waited for before the next one. None: no frame is left.
        """
        frames = self._frames.waiting
        is_held = len(frames) > 1
        if is_held:
            # One write for all answers costs a fraction of one each.
            self._writer.hold()
        try:
            while frames and not self._is_over:
                if (waiting := self._take(self._frames.take())) is not None:
                    return waiting
        finally:
            if is_held:
                self._writer.release()
        broken = self._frames.exception()
        if broken is not None:
            if not isinstance(broken, WebSocketError):
                raise broken
            self._end(_Last(broken.code))
        return None

    def _take(self, message: WSMessage) -> Waiting | None:
        """Takes one frame. Returns what has to be waited for before the next one.

        After a close from this side, frames are dropped until the client answers it.
        """
        kind = message.type
        if kind not in _FRAMES:
            # It is a close.
            self._end(_Last(WSCloseCode.OK, message.data))
        elif self._writer.is_gone:
            # Its remaining frames may be many publications, and each would wait for its rate.
            self._end(_LOST)
        elif self._writer.closed_with is not None:
            self._dropped += 1
            if self._dropped % _DROPPED_A_TURN == 0:
                return sleep(0 if self._dropped < _DROPPED_MAX else CLOSE_WAIT_S)
        elif kind is self._encoding.frames and not self._is_heard:
            self._is_heard = self._writer.is_unidirectional
            if self._marks is None:
                return self._connection.take(message.data, self._encoding.reader)
            return self._take_unpacked(message.data, self._marks)
        elif kind is WSMsgType.PING or kind is WSMsgType.PONG:
            return self._take_control(message)
        elif self._is_heard:
            if self._marks is not None:
                # It is passed over, and so is its mark.
                self._marks.next()
            return self._take_control(message)
        else:
            self._connection.close(Disconnect.BAD_REQUEST)
        return None

    def _take_unpacked(self, data: bytes, marks: Marks) -> Waiting | None:
        """Takes a message that may be compressed.

        It is inflated only now that nothing else of this client has to be waited for: a few bytes
        may become a message of the greatest size, and so may the ones behind them. The connection
        counts its commands by their size, and has the next message wait for a turn.
        """
        if not marks.next():
            return self._take_message(data)
        if len(data) > INFLATED_A_TURN:
            return self._take_large(data)
        try:
            return self._take_message(inflated(data, self._frame_bytes_max))
        except Unreadable as error:
            self._refuse(error)
            return None

    async def _take_large(self, packed: bytes) -> None:
        """Takes a message that takes several turns of the event loop to inflate, in each of which
        few connections go on.
        """
        steps = inflating(packed, self._frame_bytes_max)
        while not self._takes_nothing:
            await self._node.services.turns.wait()
            try:
                next(steps)
            except StopIteration as done:
                if not self._takes_nothing and (waiting := self._take_message(done.value)):
                    await waiting
                return
            except Unreadable as error:
                self._refuse(error)
                return

    @property
    def _takes_nothing(self) -> bool:
        return self._is_lost or self._writer.is_gone or self._writer.closed_with is not None

    def _take_message(self, message: bytes) -> Waiting | None:
        """Takes a message that is inflated, as far as it was compressed."""
        is_text = self._encoding.frames is WSMsgType.TEXT
        try:
            frame = message.decode() if is_text else message
        except UnicodeDecodeError:
            self._end(_Last(WSCloseCode.INVALID_TEXT))
            return None
        return self._connection.take(frame, self._encoding.reader)

    def _refuse(self, error: Unreadable) -> None:
        """Ends a client whose message cannot be inflated."""
        if error.is_too_large:
            self._node.services.counters.limited(Limit.MESSAGE_SIZE)
        self._end(
            _Last(WSCloseCode.MESSAGE_TOO_BIG if error.is_too_large else WSCloseCode.INVALID_TEXT)
        )

    def _take_control(self, message: WSMessage) -> Waiting | None:
        """Answers a ping once the rate allows it, and passes over what is none. No command holds
        pings, pongs and what is not heard, so no other limit counts them.

        Nothing is read meanwhile, so a client that sends many has to wait as well.
        """
        services = self._node.services
        now_s = services.clock.monotonic_s()
        if self._bucket is None:
            self._bucket = Bucket(CONTROL_RATE, now_s)
        wait_s = self._bucket.owe(CONTROL_RATE, now_s)
        if wait_s > 0:
            services.counters.limited(Limit.CONTROL_RATE)
            return self._answer_later(message, wait_s)
        if services.crowd.take(CONTROL_BYTES) > CROWD_BYTES:
            return self._answer_in_turn(message)
        self._answer(message)
        return None

    async def _answer_in_turn(self, message: WSMessage) -> None:
        await self._node.services.turns.wait()
        self._answer(message)

    async def _answer_later(self, message: WSMessage, wait_s: float) -> None:
        await sleep(wait_s)
        self._answer(message)

    def _answer(self, message: WSMessage) -> None:
        if message.type is WSMsgType.PING:
            self._writer.send_control(pong_frame(bytes(message.data)))

    # ---- the end

    def _end(self, last: _Last) -> None:
        """No more frames can come. Idempotent."""
        if self._is_over:
            return
        self._is_over = True
        # At once: otherwise they wait for the collector, which comes after thousands of clients.
        self._parser = None
        self._came = b""
        self._frames.clear()
        writer, client, user = self._writer, self._connection.client, self._connection.user
        self._node.closed(self._connection)
        self._node.services.counters.went(self._kind)
        self._node.services.counters.closed(writer.closed_with or Disconnect.CONNECTION_CLOSED)
        if writer.closed_with is None:
            comings.gone(client, user, last.told)
            writer.answer_close(last.answer)
        else:
            if writer.closed_with is Disconnect.SLOW:
                comings.slow(client, user, Disconnect.SLOW.value)
            writer.end()
