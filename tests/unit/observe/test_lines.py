"""service/roomcast/observe/lines.py: nobody waits for who reads the log."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

import pytest

from roomcast.observe.lines import WAIT_S, Lines

LINE = b"x" * 1000
# More than any pipe holds by default.
MANY = 2000


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
    assert time.monotonic() - began_s < MANY * WAIT_S / 10, "one line waited, and no other"
    before = pipe.read()
    lines.write(b"and now")
    after = pipe.read()
    assert set(before) == {LINE}
    assert after[-1] == b"and now"
    assert after[-2] == b"left out: %d" % (MANY - len(before) - len(after[:-2]))
    assert set(after[:-2]) <= {LINE}, "what was begun comes whole"
    lines.write(b"further")
    assert pipe.read() == [b"further"], "it is told once"


def test_a_line_that_is_longer_than_the_pipe_comes_as_it_is_read(pipe: Pipe) -> None:
    lines = lines_to(pipe.stream)
    lines.write(b"y" * 1_000_000)
    found: list[bytes] = []
    while b"z" not in found:
        lines.write(b"z")
        found += pipe.read()
    assert found[0] == b"y" * 1_000_000
    assert found[1].startswith(b"left out: ")
    assert found[2:] == [b"z"]


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
