"""Writes lines to a stream whose reader may be slow, hang, or be gone.

A pipe that nobody reads, such as that of a log collector that hangs, is full after 64 KiB. A write
would then wait, and with it the event loop and all clients.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
import weakref
from collections.abc import Callable
from typing import BinaryIO, Final

__all__ = ["WAITS_S", "WAIT_S", "Lines"]

# How long one line may wait for a reader that may only have had no turn yet. If it reads nothing in
# that time, no line waits until it reads on.
WAIT_S: Final = 0.1
# How long lines may wait for a slow reader in one second.
WAITS_S: Final = 0.5
_SECOND_S: Final = 1.0


class Lines:
    """Never fails, and never waits for long. `left_out` makes the line that says how many were."""

    def __init__(self, stream: BinaryIO, left_out: Callable[[int], bytes]) -> None:
        self._stream = stream
        self._left_out = left_out
        self._lock = threading.Lock()
        # Bytes of lines that were begun.
        self._rest = b""
        self._missing = 0
        self._hangs = False
        # How long lines have waited in this second, and when it began.
        self._waited_s = 0.0
        self._began_s = time.monotonic()
        self._poll: select.poll | None = None
        try:
            self._descriptor = stream.fileno()
        except (OSError, ValueError):
            # It is in memory.
            return
        if (own := _own(self._descriptor)) is not None:
            self._descriptor = own
            weakref.finalize(self, os.close, own)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write `line` and a line break, or leave it out."""
        with self._lock:
            try:
                self._write(line + b"\n")
            except (OSError, ValueError):
                # The reader is gone, or the stream is closed.
                self._rest = b""

    def _write(self, line: bytes) -> None:
        if self._poll is None:
            self._stream.write(line)
            self._stream.flush()
            return
        if not self._go_on():
            self._missing += 1
            return
        if self._missing:
            self._rest = self._left_out(self._missing) + b"\n"
            self._missing = 0
        self._rest += line
        self._go_on()

    def _go_on(self) -> bool:
        """Write what was begun, as far as the reader makes room. Whether that is all."""
        while self._rest:
            if not self._has_room():
                return False
            # So much can be written to a pipe or a socket without a wait, where there is room.
            try:
                written = os.write(self._descriptor, self._rest[: select.PIPE_BUF])
            except BlockingIOError:
                # It was room for less, or another process took it.
                return False
            self._rest = self._rest[written:]
        return True

    def _has_room(self) -> bool:
        assert self._poll is not None, "it has a descriptor"
        if self._poll.poll(0):
            self._hangs = False
            return True
        now_s = time.monotonic()
        if now_s - self._began_s >= _SECOND_S:
            self._began_s, self._waited_s = now_s, 0.0
        if self._hangs or self._waited_s >= WAITS_S:
            return False
        self._hangs = not self._poll.poll(WAIT_S * 1000)
        self._waited_s += time.monotonic() - now_s
        return not self._hangs


def _own(descriptor: int) -> int | None:
    """Another descriptor of the same pipe or terminal, which never waits. None: it is neither, or
    may not be opened.

    A terminal has room for one character and waits with those behind it, and of a pipe that several
    processes have, another one may take the room. The descriptor itself is not changed: other
    processes share its flags.
    """
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(kind) or os.isatty(descriptor):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        pass
    return None
