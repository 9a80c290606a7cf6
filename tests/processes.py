"""Whether processes that a test did not start itself have ended, and a pipe that nobody reads."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# The end of somebody else's child has no event; it closes its files first,
# and is gone a moment later.
GONE_POLL_S: Final = 0.01


def is_gone(pid: int) -> bool:
    """Has `pid` ended? Whoever should reap it may take its time: a zombie is gone."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
            == "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return True


def left_behind(pids: Iterable[int], deadline_s: float) -> list[int]:
    """Those of `pids` that are still there when `deadline_s` seconds have passed;
    returns as soon as all are gone.
    """
    give_up_s = time.monotonic() + deadline_s
    left = list(pids)
    while left := [pid for pid in left if not is_gone(pid)]:
        if time.monotonic() > give_up_s:
            break
        time.sleep(GONE_POLL_S)
    return left


@contextmanager
def unread() -> Iterator[int]:
    """The end of a full pipe that whoever writes would wait for."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
        os.write(writing, b"x" * select.PIPE_BUF)
        yield writing
    finally:
        os.close(reading)
        os.close(writing)
