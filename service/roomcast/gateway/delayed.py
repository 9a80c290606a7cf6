"""Writes what goes to one connection within a short time in one piece (option client.write_delay).

A write is a system call, and one of ten messages costs a fraction of ten. Where the transport
allows it, the piece is one frame as well: the client then has one event for all of its messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, Unpack

from roomcast.delivery.ports import Framer
from roomcast.gateway.backlog import Backlog
from roomcast.gateway.writer import (
    Writer,
    WriterOptions,
    binary_frame,
    protobuf_frame,
    text_frame,
)
from roomcast.wire.codes import Closing
from roomcast.wire.commands import LINE_END
from roomcast.wire.protobuf import encode_messages

__all__ = [
    "HELD_BYTES_MAX",
    "HELD_FRAMES_MAX",
    "WRITES_A_TURN",
    "DelayedWriter",
    "Delays",
    "WriterMaker",
    "writer_maker",
]

# What is collected for one connection at most: beyond either bound it goes out at once.
HELD_BYTES_MAX: Final = 64 * 1024
HELD_FRAMES_MAX: Final = 1000
# Writes before other tasks have their turn: some 5 ms.
WRITES_A_TURN: Final = 500

# Makes one piece of what was collected.
Join = Callable[[Sequence[bytes]], bytes]


def _plain_lines(lines: bytes) -> bytes:
    """Lines of JSON that get their frame when they are written."""
    return lines


def _text_frame_of(parts: Sequence[bytes]) -> bytes:
    return text_frame(LINE_END.join(parts))


def _binary_frame_of(parts: Sequence[bytes]) -> bytes:
    return binary_frame(b"".join(parts))


# What is collected instead of these frames, and what makes one frame of it. Frames of other kinds
# are written one behind the other.
_IN_ONE: Final[Mapping[Framer, tuple[Framer, Join]]] = {
    text_frame: (_plain_lines, _text_frame_of),
    protobuf_frame: (encode_messages, _binary_frame_of),
}


class WriterMaker(Protocol):
    """Makes the Writer of a connection; the arguments are a Writer's."""

    def __call__(
        self,
        transport: asyncio.Transport,
        queue_bytes_max: int,
        framer: Framer,
        **options: Unpack[WriterOptions],
    ) -> Writer: ...


def writer_maker(delay_s: float, backlog: Backlog | None = None) -> WriterMaker:
    """`delay_s`: for how long a connection's frames are collected; 0 = they are not. `backlog`:
    what bounds the bytes that wait for all connections; None = nothing does.
    """
    if delay_s:
        return partial(DelayedWriter, Delays(delay_s), backlog=backlog)
    return partial(Writer, backlog=backlog)


class Delays:
    """The writers that hold something, the longest first: `delay_s` is the same for all."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._due: deque[tuple[float, DelayedWriter]] = deque()
        self._next: asyncio.Handle | None = None

    def begin(self, writer: DelayedWriter) -> None:
        """Has `writer` flush after the delay."""
        loop = asyncio.get_running_loop()
        at_s = loop.time() + self._delay_s
        self._due.append((at_s, writer))
        if self._next is None:
            self._next = loop.call_at(at_s, self._flush_due)

    def _flush_due(self) -> None:
        loop, self._next = asyncio.get_running_loop(), None
        for _ in range(WRITES_A_TURN):
            if not self._due:
                return
            at_s, writer = self._due[0]
            if at_s > loop.time():
                self._next = loop.call_at(at_s, self._flush_due)
                return
            self._due.popleft()
            writer.due()
        self._next = loop.call_soon(self._flush_due)


class DelayedWriter(Writer):
    """A Writer that collects frames, within bounds, until `delays` says that it is time.

    Control frames do not wait. What ends the connection flushes first, where that is possible.
    """

    __slots__ = ("_collected", "_collected_bytes", "_delays", "_is_due", "_join")

    def __init__(
        self,
        delays: Delays,
        transport: asyncio.Transport,
        queue_bytes_max: int,
        framer: Framer,
        *,
        backlog: Backlog | None = None,
        **options: Unpack[WriterOptions],
    ) -> None:
        framer, self._join = _IN_ONE.get(framer, (framer, b"".join))
        super().__init__(transport, queue_bytes_max, framer, backlog=backlog, **options)
        self._delays = delays
        self._collected: list[bytes] = []
        self._collected_bytes = 0
        # Whether `delays` knows of this writer.
        self._is_due = False

    @property
    def unsent_bytes(self) -> int:
        return super().unsent_bytes + self._collected_bytes

    def send(self, frame: bytes) -> None:
        if self.closed_with is not None or self.is_gone:
            return
        self._collected.append(frame)
        self._collected_bytes += len(frame)
        if self._collected_bytes >= HELD_BYTES_MAX or len(self._collected) >= HELD_FRAMES_MAX:
            self._flush()
        elif not self._is_due:
            self._is_due = True
            self._delays.begin(self)

    def send_control(self, frame: bytes) -> None:
        super().send(frame)

    def due(self) -> None:
        """The delay is over."""
        self._is_due = False
        self._flush()

    def _flush(self) -> None:
        collected = self._collected
        self._forget()
        if collected:
            super().send(self._join(collected))

    def _forget(self) -> None:
        self._collected, self._collected_bytes = [], 0

    def hold(self) -> None:
        """Frames are held in any case."""

    def release(self) -> None:
        """They go out when it is time."""

    def lost(self) -> None:
        self._forget()
        super().lost()

    def close(self, why: Closing) -> None:
        self._flush()
        super().close(why)

    def answer_close(self, code: int) -> None:
        self._flush()
        super().answer_close(code)

    def half_closed(self) -> None:
        self._flush()
        super().half_closed()
