"""Writes lines to a stream whose reader may be slow, hang, or be gone.

A pipe that nobody reads, such as that of a log collector that hangs, is full after 64 KiB. A write
would then wait, and with it the event loop and all clients. So what finds no room waits in memory,
within a bound, and a thread writes it as the reader makes room. The thread lives no longer than
something waits.
"""

from __future__ import annotations

import atexit
import os
import select
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, Final

__all__ = ["END_S", "WAITING_BYTES_MAX", "Lines", "tell"]

# Bytes of lines that wait for a slow reader. Those of a reader that hangs are left out beyond it.
WAITING_BYTES_MAX: Final = 1024 * 1024
# How long the process may wait at its end until what waits is written.
END_S: Final = 0.5
# A pause after a write that found no room, though there seemed to be some: a terminal has room for
# one character and not for more, and of a pipe that several processes have, another one took it.
_PAUSE_S: Final = 0.01
# Writes after which others may write their lines.
_WRITES_A_TURN: Final = 16


class Lines:
    """Never fails, and never waits. `left_out` makes the line that says how many were."""

    def __init__(self, stream: BinaryIO, left_out: Callable[[int], bytes]) -> None:
        self._stream = stream
        self._left_out = left_out
        self._lock = threading.Lock()
        # Whole lines, but for the first, which may have been begun.
        self._waiting = bytearray()
        self._missing = 0
        # Whether the thread is there, and whether the end of the process waits for it.
        self._is_draining = False
        self._is_awaited = False
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
        """Write `line` and a line break, now or later, or leave it out."""
        with self._lock:
            if self._poll is None:
                with suppress(OSError, ValueError):  # it is closed
                    self._stream.write(line + b"\n")
                    self._stream.flush()
                return
            if self._waiting and len(self._waiting) + len(line) >= WAITING_BYTES_MAX:
                self._missing += 1
                return
            if self._missing:
                self._waiting += self._left_out(self._missing) + b"\n"
                self._missing = 0
            self._waiting += line + b"\n"
            if not self._is_draining:
                self._go_on()
                if self._waiting:
                    self._begin_to_drain()

    def flush(self, within_s: float) -> None:
        """Wait until what waits is written, for so long at most."""
        ends_s = time.monotonic() + within_s
        while self._waits() and time.monotonic() < ends_s:
            time.sleep(_PAUSE_S)

    def _waits(self) -> bool:
        with self._lock:
            self._go_on()
            return bool(self._waiting)

    def _go_on(self) -> None:
        """Write what waits, as far as the reader has made room. The caller has the lock."""
        assert self._poll is not None, "it has a descriptor"
        try:
            for _ in range(_WRITES_A_TURN):
                if not self._waiting or not self._poll.poll(0):
                    return
                # So much can be written to a pipe or a socket without a wait, where there is room,
                # and other processes that have the pipe write nothing amidst a line.
                end = self._waiting.rfind(b"\n", 0, select.PIPE_BUF) + 1
                written = os.write(self._descriptor, self._waiting[: end or select.PIPE_BUF])
                del self._waiting[:written]
        except BlockingIOError:
            # It was room for less, or another process took it.
            return
        except (OSError, ValueError):
            # The reader is gone, or the stream is closed.
            self._waiting.clear()

    def _begin_to_drain(self) -> None:
        self._is_draining = True
        try:
            threading.Thread(target=self._drain, name="log lines", daemon=True).start()
            if not self._is_awaited:
                self._is_awaited = True
                atexit.register(self.flush, END_S)
        except RuntimeError:
            # The system has no place for a thread, or the process ends. The next line goes on.
            self._is_draining = False

    def _drain(self) -> None:
        # One of its own, since two threads may not wait with the same.
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while True:
            # Lines are taken meanwhile. An error is found where it is written.
            poll.poll()
            with self._lock:
                before = len(self._waiting)
                self._go_on()
                if not self._waiting:
                    self._is_draining = False
                    return
                is_stuck = len(self._waiting) == before
            if is_stuck:
                time.sleep(_PAUSE_S)


def tell(line: str) -> None:
    """Write one line to stderr, as `Lines` does: what ends must not wait for who reads why."""
    encoded = line.encode(sys.stderr.encoding or "utf-8", "backslashreplace")
    Lines(sys.stderr.buffer, lambda number: b"%d lines left out" % number).write(encoded)


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
