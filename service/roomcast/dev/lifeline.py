"""Tells a child of the supervisor when to end: at a signal, or at the end of its input.

The supervisor holds the other end of the input pipe. So its children end with it, even when it is
killed.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from types import FrameType
from typing import Final

__all__ = ["Lifeline"]

_READ_BYTES: Final = 4096


class Lifeline:
    """Waits for the end. Create it once, in the main thread: it takes over SIGTERM and SIGINT.

    It uses one thread and `select`, no Event. A signal handler must not take a lock that the
    interrupted code may hold.
    """

    def __init__(self) -> None:
        self._ended = False
        self._stdin = sys.stdin.fileno()
        # A signal writes to this pipe, which ends a running `select`.
        self._wake_reader, wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for wanted in (signal.SIGTERM, signal.SIGINT):
            signal.signal(wanted, self._on_signal)

    def wait(self, timeout_s: float | None) -> bool:
        """Waits up to `timeout_s` (None: without end). Returns whether the process should end."""
        if self._ended:
            return True
        ready, _, _ = select.select([self._stdin, self._wake_reader], [], [], timeout_s)
        if self._wake_reader in ready:
            os.read(self._wake_reader, _READ_BYTES)
        if self._stdin in ready and not os.read(self._stdin, _READ_BYTES):
            self._ended = True
        return self._ended

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._ended = True
