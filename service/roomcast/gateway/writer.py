"""Writes to one socket, and cuts off a slow peer.

aiohttp's `send_str` builds the frame anew for every socket, and does not wait for the peer to read
it. Here the sockets share one frame. What a peer has yet to read waits here, and its size is
checked before each write. The transport has one piece of it at a time: it copies what it keeps, or,
from Python 3.12 on, counts all the pieces that it has at each write.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
from collections import deque
from collections.abc import Callable
from socket import socket
from typing import Final, TypedDict

from roomcast.delivery.ports import Framer
from roomcast.gateway.backlog import Backlog
from roomcast.wire.codes import REASON_BYTES_MAX, Closing, Disconnect, code_of
from roomcast.wire.encoding import bare_pushes, disconnect_push
from roomcast.wire.protobuf import encode_messages

__all__ = [
    "BINARY_DATA",
    "CLOSE_WAIT_S",
    "FRAME_BYTES",
    "PIECE_BYTES",
    "TEXT",
    "Writer",
    "WriterOptions",
    "bare_close",
    "bare_json_lines",
    "bare_sse_events",
    "bare_text_frames",
    "binary_frame",
    "close_frame",
    "each_push",
    "frame_header",
    "json_lines",
    "pong_frame",
    "protobuf_frame",
    "sse_events",
    "text_frame",
]

# The time for a peer to answer our close frame, or to read the frames before it.
CLOSE_WAIT_S: Final = 1.0
# Bytes of frames that wait, which go to the transport together. The clients that begin to read in
# the same turn of the event loop are sent no more than that in it.
PIECE_BYTES: Final = 64 * 1024
# What a frame that waits takes in memory beside its own bytes.
FRAME_BYTES: Final = 48

_FIN: Final = 0x80
# Of the first frame of a compressed message (RFC 7692 §6).
_RSV1: Final = 0x40
TEXT: Final = 0x1
BINARY_DATA: Final = 0x2
_CLOSE, _PONG = 0x8, 0xA
# RFC 6455 §5.2: lengths up to 125 stand in the header itself, longer ones in 16 bits, then in 64.
_LENGTH_7_MAX, _LENGTH_16_MAX = 125, 0xFFFF
# SIOCOUTQNSD of Linux (linux/sockios.h): bytes in a socket's kernel buffer that were never sent,
# because the peer takes no more. Megabytes of small messages wait there before the transport's own
# buffer holds any.
_UNSENT_REQUEST: Final = 0x894B
_UNSENT: Final = struct.Struct("i")


def text_frame(payload: bytes) -> bytes:
    """`payload` (UTF-8) as one unfragmented, unmasked text frame (RFC 6455 §5.2)."""
    length = len(payload)
    if length <= _LENGTH_7_MAX:
        return _SHORT_TEXTS[length] + payload
    return frame_header(TEXT, length) + payload


def binary_frame(payload: bytes) -> bytes:
    """`payload` as one unfragmented, unmasked binary frame."""
    return frame_header(BINARY_DATA, len(payload)) + payload


def protobuf_frame(lines: bytes) -> bytes:
    """`lines` of JSON, as Protobuf messages in one unfragmented, unmasked binary frame."""
    return binary_frame(encode_messages(lines))


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping with `payload`, of at most 125 bytes (RFC 6455 §5.5.3)."""
    return frame_header(_PONG, len(payload)) + payload


def close_frame(why: Closing) -> bytes:
    """The close frame with the code and reason of `why` (RFC 6455 §5.5.1)."""
    code = code_of(why)
    payload = struct.pack("!H", code.code) + code.reason.encode()[:REASON_BYTES_MAX]
    return frame_header(_CLOSE, len(payload)) + payload


def frame_header(opcode: int, length: int, *, compressed: bool = False) -> bytes:
    """The header of a frame that is a whole message of `length` bytes."""
    first = _FIN | opcode | (_RSV1 if compressed else 0)
    if length <= _LENGTH_7_MAX:
        return struct.pack("!BB", first, length)
    if length <= _LENGTH_16_MAX:
        return struct.pack("!BBH", first, 126, length)
    return struct.pack("!BBQ", first, 127, length)


def json_lines(lines: bytes) -> bytes:
    """`lines` of JSON as a stream has them: each ends with a line break."""
    return lines + b"\n"


def sse_events(lines: bytes) -> bytes:
    """`lines` of JSON as events of Server-Sent Events, one each (WHATWG HTML §9.2)."""
    return b"data: " + lines.replace(b"\n", b"\n\ndata: ") + b"\n\n"


# For clients that send nothing, and so need not tell pushes from replies.


def each_push(frame: Framer) -> Framer:
    """Frames the pushes in lines, each by itself: a page parses a message whole."""
    return lambda lines: b"".join([frame(push) for push in bare_pushes(lines)])


bare_text_frames: Final = each_push(text_frame)


def bare_json_lines(lines: bytes) -> bytes:
    """As `json_lines`, of the pushes in `lines`."""
    return json_lines(b"\n".join(bare_pushes(lines)))


def bare_sse_events(lines: bytes) -> bytes:
    """As `sse_events`, of the pushes in `lines`."""
    return sse_events(b"\n".join(bare_pushes(lines)))


def bare_close(why: Closing) -> bytes:
    """The push that says why, and the close frame."""
    return bare_text_frames(disconnect_push(why)) + close_frame(why)


# Those whose frames hold Protobuf, and those for clients that send nothing.
BINARY: Final = frozenset[Framer]({protobuf_frame, encode_messages})
UNIDIRECTIONAL: Final = frozenset[Framer]({bare_text_frames, bare_json_lines, bare_sse_events})


# The headers of text frames by length, as most answers have them.
_SHORT_TEXTS: Final = tuple(frame_header(TEXT, length) for length in range(_LENGTH_7_MAX + 1))


class WriterOptions(TypedDict, total=False):
    """What most Writers do without."""

    last: Callable[[Closing], bytes]
    is_answered: bool
    session: str
    is_binary: bool | None
    is_unidirectional: bool | None


class Writer:
    """The Socket of a connection.

    `queue_bytes_max` bounds the bytes that wait for a slow peer, and `backlog` those for all peers;
    None = nothing does. Whoever serves the transport calls `drained` when it may write again
    (`resume_writing`). `last` makes the last bytes of this side. `is_answered`: they are a close
    frame, which the peer answers. `is_binary`: whether the frames hold Protobuf;
    `is_unidirectional`: whether they are for a client that sends nothing; None = as of the framers
    that are known here.
    """

    __slots__ = (
        "_backlog",
        "_direct",
        "_ending",
        "_held",
        "_is_answered",
        "_last",
        "_queue",
        "_queue_bytes",
        "_socket",
        "_transport",
        "closed_with",
        "framer",
        "is_binary",
        "is_unidirectional",
        "queue_bytes_max",
        "session",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        queue_bytes_max: int,
        framer: Framer = text_frame,
        *,
        last: Callable[[Closing], bytes] = close_frame,
        is_answered: bool = True,
        session: str = "",
        is_binary: bool | None = None,
        is_unidirectional: bool | None = None,
        backlog: Backlog | None = None,
    ) -> None:
        self._transport = transport
        # It says when it has written all that it has.
        transport.set_write_buffer_limits(high=0)
        self._backlog = backlog
        # Frames that wait behind what the transport has, and their bytes; None = it has nothing, or
        # all that waits.
        self._queue: deque[bytes] | None = None
        self._queue_bytes = 0
        self._socket = _plain_socket(transport)
        # The socket, as long as no bytes wait in the transport, as the answer to the handshake may
        # at first. Nobody else writes to it, so none do while the kernel takes every frame whole.
        # None: some may wait, or something else has to be looked at before a write.
        self._direct = self._socket
        if self._socket is not None and transport.get_write_buffer_size():
            self._direct = None
        # Frames that go out together, while there may be more of them; None = each goes at once.
        self._held: list[bytes] | None = None
        self.queue_bytes_max = queue_bytes_max
        self.framer = framer
        self.session = session
        self._last = last
        self._is_answered = is_answered
        self._ending: asyncio.TimerHandle | None = None
        self.is_binary = framer in BINARY if is_binary is None else is_binary
        self.is_unidirectional = (
            framer in UNIDIRECTIONAL if is_unidirectional is None else is_unidirectional
        )
        # Why this side closed; None while it has not.
        self.closed_with: Closing | None = None

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the peer has not taken: in this process, and on Linux also in the kernel."""
        return self.waiting_bytes + _unsent_in_kernel(self._transport)

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be written any more, for whatever reason."""
        return self._transport.is_closing()

    def send(self, frame: bytes) -> None:
        """Writes one frame, unless the connection is closing. Cuts off a peer that reads too
        slowly.
        """
        if (direct := self._direct) is None:
            self._send_behind(frame)
            return
        # Past the transport, whose own write costs a sixth of a delivery
        # (docs/decisions/0052-past-the-transport.md).
        try:
            sent = direct.send(frame)
        except OSError:
            # The kernel has no room, or the peer is gone: the transport knows what to do.
            sent = 0
        if sent < len(frame):
            self._direct = None
            self._write(frame[sent:])

    def send_control(self, frame: bytes) -> None:
        """Writes a control frame, which may overtake other frames."""
        self.send(frame)

    def lost(self) -> None:
        """The transport is about to close: nothing is written past it from here on, and nothing
        waits any more.

        Whoever serves the transport must say so before its socket is closed. Idempotent.
        """
        self._direct = self._queue = None
        self._queue_bytes = 0
        if self._backlog is not None:
            self._backlog.waits(self, 0)

    def drained(self) -> None:
        """The transport has written all that it had: it gets the next piece of what waits."""
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            return
        if self._queue is None:
            self._write(b"")
            return
        self._write(self._next_piece(PIECE_BYTES))
        if self._queue is not None and not self._transport.get_write_buffer_size():
            # The peer reads. Others have their turn before the next one.
            asyncio.get_running_loop().call_soon(self.drained)

    def hold(self) -> None:
        """Keeps further frames until `release`, which must follow in the same turn."""
        self._held, self._direct = [], None

    def release(self) -> None:
        """Writes what was kept, in one piece. Idempotent."""
        held, self._held = self._held, None
        if held:
            self.send(b"".join(held))

    def _send_behind(self, frame: bytes) -> None:
        """Writes one frame behind those that may wait in the transport, or are held."""
        if self.closed_with is not None or self._transport.is_closing():
            return
        if self._held is not None:
            self._held.append(frame)
            return
        waiting = self.waiting_bytes
        if waiting > self.queue_bytes_max:
            self.close(Disconnect.SLOW)
        elif waiting:
            if self._queue is None:
                self._queue = deque()
            self._queue.append(frame)
            self._queue_bytes += len(frame)
            self._note_waiting()
        else:
            self._write(frame)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait in this process."""
        return self._transport.get_write_buffer_size() + self._queue_bytes

    def _write(self, piece: bytes) -> None:
        """Gives `piece` to the transport, behind which the rest of the queue waits."""
        if piece:
            self._transport.write(piece)
        self._note_waiting()
        # The write may have met an error.
        if not self.waiting_bytes and not self._transport.is_closing() and self.closed_with is None:
            self._direct = self._socket

    def _note_waiting(self) -> None:
        if self._backlog is not None:
            frames = 0 if self._queue is None else len(self._queue)
            self._backlog.waits(self, self.waiting_bytes + frames * FRAME_BYTES)

    def _next_piece(self, most: int | None = None) -> bytes:
        """Takes the frames that waited first: of `most` bytes, or one; None = all of them."""
        taken: list[bytes] = []
        size = 0
        while self._queue and (not taken or most is None or size + len(self._queue[0]) <= most):
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        self._queue_bytes -= size
        if not self._queue:
            self._queue = None
        return b"".join(taken)

    def close(self, why: Closing) -> None:
        """Begins the closing handshake. The transport is gone at most CLOSE_WAIT_S later.

        Idempotent. What waits goes out first, but for a peer that reads too slowly: it is told
        sooner so, and gets what it missed when it comes back.

        The reader of the socket must call `end` once the answer has come. aiohttp's own close would
        go on reading whatever the peer sends, without a turn for other tasks.
        """
        self.release()
        if self.closed_with is not None:
            return
        self.closed_with = why
        waiting = b"" if why is Disconnect.SLOW else self._next_piece()
        self.lost()
        if not self._transport.is_closing():
            # A close frame behind a full buffer will hardly be read, but it costs nothing to try.
            self._transport.write(waiting + self._last(why))
            if not self._is_answered:
                # No answer comes: what waits is written, and that is the end.
                self._transport.close()
        self._ending = asyncio.get_running_loop().call_later(CLOSE_WAIT_S, self._transport.abort)

    def answer_close(self, code: int) -> None:
        """Answers a peer that closed, or broke the protocol, with `code`, and closes the transport.

        The peer may read neither this answer nor the frames before it. Then the transport is gone
        CLOSE_WAIT_S later.
        """
        self.release()
        waiting = self._next_piece()
        self.lost()
        if not self._transport.is_closing():
            self._transport.write(waiting + frame_header(_CLOSE, 2) + struct.pack("!H", code))
            self._transport.close()
        self._abort_in_time()

    def half_closed(self) -> None:
        """The peer says no more. The transport closes once what waits is written, which a peer that
        does not read would put off for long.
        """
        waiting = self._next_piece()
        self.lost()
        if waiting and not self._transport.is_closing():
            self._transport.write(waiting)
        self._abort_in_time()

    def _abort_in_time(self) -> None:
        """Ends a transport that is closing, if the peer does not take what waits.

        Under TLS something may always wait: bytes in the transport below, or the peer's goodbye.
        """
        if self._transport.get_write_buffer_size() or _is_encrypted(self._transport):
            asyncio.get_running_loop().call_later(CLOSE_WAIT_S, self._transport.abort)

    def end(self) -> None:
        """Closes the transport: neither side reads any more.

        Idempotent.
        """
        if self._ending is not None:
            self._ending.cancel()
        self.lost()
        self._transport.abort()


def _is_encrypted(transport: asyncio.Transport) -> bool:
    return transport.get_extra_info("sslcontext") is not None


def _plain_socket(transport: asyncio.Transport) -> socket | None:
    """The transport's own socket; None = it is not to be had, or TLS is in between."""
    if _is_encrypted(transport):
        return None
    # asyncio hands out a wrapper that sends nothing. A second socket over the same descriptor would
    # have to be kept from closing it, and `os.write` costs more than `send` in the kernel.
    found = getattr(transport.get_extra_info("socket"), "_sock", None)
    return found if isinstance(found, socket) else None


def _unsent_in_kernel(transport: asyncio.Transport) -> int:
    """Bytes; 0 where the system does not tell."""
    connected = transport.get_extra_info("socket")
    try:
        answer = fcntl.ioctl(connected.fileno(), _UNSENT_REQUEST, bytes(_UNSENT.size))
    except (AttributeError, OSError, ValueError):
        # Not a socket, another operating system, or closed meanwhile.
        return 0
    unsent: int = _UNSENT.unpack(answer)[0]
    return unsent
