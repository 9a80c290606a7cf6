"""service/roomcast/observe/lines.py: nobody waits for who reads the log."""

from __future__ import annotations

import fcntl
import io
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from roomcast.observe import lines as module
from roomcast.observe.lines import WAITING_BYTES_MAX, Lines

LINE = b"x" * 1000
# More than any pipe holds by default.
MANY = 2000
DEADLINE_S = 30.0


class Pipe:
    """A pipe that is read when `read` says so."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        self.stream: BinaryIO = os.fdopen(writing, "wb")
        self._begun = b""

    def read(self) -> list[bytes]:
        """The lines that are whole by now."""
        with suppress(BlockingIOError):
            while part := os.read(self._reading, 1 << 20):
                self._begun += part
        *lines, self._begun = self._begun.split(b"\n")
        return lines

    def wait(self) -> None:
        """Until there is something to read: who always looks keeps the writer from writing."""
        assert select.select([self._reading], [], [], DEADLINE_S)[0], "nothing came"

    def stop_reading(self) -> None:
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1

    def close(self) -> None:
        self.stop_reading()
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def threadless(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_options: object) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading, "Thread", refused)


def lines_to(stream: BinaryIO) -> Lines:
    return Lines(stream, lambda number: b"left out: %d" % number)


def test_lines_come_whole_and_in_order(pipe: Pipe) -> None:
    lines = lines_to(pipe.stream)
    for number in range(10):
        lines.write(b"%d" % number)
    assert pipe.read() == [b"%d" % number for number in range(10)]


def test_a_reader_that_hangs_keeps_nobody_waiting(pipe: Pipe) -> None:
    lines = lines_to(pipe.stream)
    began_s = time.monotonic()
    for _ in range(MANY):
        lines.write(LINE)
    assert time.monotonic() - began_s < 1, "none of them waited"
    # What had waited is written as it is read.
    before: list[bytes] = []
    while len(before) * len(LINE) < WAITING_BYTES_MAX:
        before += pipe.read()
    lines.flush(DEADLINE_S)
    before += pipe.read()
    assert set(before) == {LINE}, "what was begun comes whole"
    lines.write(b"and now")
    assert pipe.read() == [b"left out: %d" % (MANY - len(before)), b"and now"]
    lines.write(b"further")
    assert pipe.read() == [b"further"], "it is told once"


def test_a_reader_that_reads_gets_all(pipe: Pipe) -> None:
    """So many lines at once are more than a pipe holds."""
    lines = lines_to(pipe.stream)
    number_of_them = WAITING_BYTES_MAX // 1100
    for number in range(number_of_them):
        lines.write(b"%d " % number + LINE)
    found: list[bytes] = []
    while len(found) < number_of_them:
        found += pipe.read()
    assert found == [b"%d " % number + LINE for number in range(number_of_them)]


def test_a_slow_reader_keeps_nobody_waiting(pipe: Pipe) -> None:
    """It reads on after each line, which waits in memory meanwhile."""
    lines = lines_to(pipe.stream)
    found: list[bytes] = []
    slowest_s = 0.0
    for _ in range(MANY):
        began_s = time.thread_time()
        lines.write(LINE)
        slowest_s = max(slowest_s, time.thread_time() - began_s)
        found += pipe.read()
    while len(found) < MANY:
        found += pipe.read()
    assert set(found) == {LINE}
    assert slowest_s < 0.05


def test_lines_of_several_processes_come_whole(pipe: Pipe, threadless: None) -> None:
    """Also those that waited: each of them writes to the pipe that they share."""
    # So that each write fills it, and the next one is the other's.
    fcntl.fcntl(pipe.stream, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    writers = lines_to(pipe.stream), lines_to(pipe.stream)
    contents = b"a" * 1000, b"b" * 1001
    for lines, content in zip(writers, contents, strict=True):
        for _ in range(100):
            lines.write(content)
    found: list[bytes] = []
    while len(found) < 200:
        for lines in writers:
            found += pipe.read()
            lines.flush(0)
    assert set(found) == set(contents)


def test_the_end_waits_for_a_reader_and_not_for_long(pipe: Pipe) -> None:
    lines = lines_to(pipe.stream)
    for _ in range(MANY // 2):
        lines.write(LINE)
    began_s = time.monotonic()
    lines.flush(0.05)
    assert 0.05 <= time.monotonic() - began_s < DEADLINE_S, "nobody reads"
    reading = threading.Thread(target=lines.flush, args=(DEADLINE_S,))
    reading.start()
    found: list[bytes] = []
    while reading.is_alive():
        found += pipe.read()
    assert len([*found, *pipe.read()]) == MANY // 2


def test_where_there_is_no_thread_the_next_line_goes_on(pipe: Pipe, threadless: None) -> None:
    lines = lines_to(pipe.stream)
    for _ in range(MANY):
        lines.write(LINE)
    found = pipe.read()
    while b"last" not in found:
        lines.write(b"last")
        found += pipe.read()
    assert set(found[: found.index(b"last") - 1]) == {LINE}


@pytest.mark.parametrize("what", ["terminal", "shared pipe"])
def test_what_seems_to_have_room_keeps_nobody_waiting(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal has room for one character, or another process takes the room that there was."""

    class Poll:
        def register(self, _descriptor: int, _events: int) -> None: ...

        def poll(self, _timeout_ms: float = 0) -> list[int]:
            return [1]

    of_system = SimpleNamespace(poll=Poll, POLLOUT=select.POLLOUT, PIPE_BUF=select.PIPE_BUF)
    monkeypatch.setattr(module, "select", of_system)
    reading, descriptor = os.openpty() if what == "terminal" else os.pipe()
    with os.fdopen(descriptor, "wb") as stream:
        lines = lines_to(stream)

        def write() -> None:
            for _ in range(MANY):
                lines.write(LINE)

        writing = threading.Thread(target=write)
        writing.start()
        try:
            writing.join(10)
            assert not writing.is_alive(), "it waits"
            assert os.get_blocking(descriptor), "others write to it as well"
        finally:
            # Who waits for it goes on.
            os.close(reading)
            writing.join()
            lines.flush(DEADLINE_S)


def test_descriptors_are_closed_with_their_lines(pipe: Pipe) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    lines = lines_to(pipe.stream)
    assert count() == before + 1
    del lines
    assert count() == before


def test_a_line_that_is_longer_than_the_pipe_comes_as_it_is_read(pipe: Pipe) -> None:
    lines = lines_to(pipe.stream)
    lines.write(b"y" * 2 * WAITING_BYTES_MAX)
    lines.write(b"left out")
    found: list[bytes] = []
    while not found:
        pipe.wait()
        found += pipe.read()
    lines.flush(DEADLINE_S)
    lines.write(b"z")
    assert found == [b"y" * 2 * WAITING_BYTES_MAX]
    assert pipe.read() == [b"left out: 1", b"z"]


def test_a_reader_that_is_gone(pipe: Pipe) -> None:
    lines = lines_to(pipe.stream)
    pipe.stop_reading()
    for _ in range(MANY):
        lines.write(LINE)


def test_a_stream_that_is_closed_or_in_memory() -> None:
    stream = io.BytesIO()
    lines = lines_to(stream)
    lines.write(b"one")
    assert stream.getvalue() == b"one\n"
    stream.close()
    lines.write(b"two")
