"""service/roomcast/observe/lines.py: nobody waits for who reads the log."""

from __future__ import annotations

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
from roomcast.observe.lines import WAIT_S, WAITS_S, Lines

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
    took_s = time.monotonic() - began_s
    assert took_s < MANY * WAIT_S / 10, "all of them waited no longer than one may"
    before = pipe.read()
    lines.write(b"and now")
    after = pipe.read()
    assert set(before) == {LINE}
    assert after[-1] == b"and now"
    assert after[-2] == b"left out: %d" % (MANY - len(before) - len(after[:-2]))
    assert set(after[:-2]) <= {LINE}, "what was begun comes whole"
    lines.write(b"further")
    assert pipe.read() == [b"further"], "it is told once"


def test_a_reader_that_reads_gets_all(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand lines at once are more than a pipe holds."""
    # However busy the machine is.
    monkeypatch.setattr(module, "WAIT_S", 60.0)
    monkeypatch.setattr(module, "WAITS_S", 60.0)
    lines = lines_to(pipe.stream)
    found: list[bytes] = []
    written = threading.Event()

    def read() -> None:
        while not written.is_set():
            found.extend(pipe.read())

    reading = threading.Thread(target=read)
    reading.start()
    try:
        for number in range(MANY):
            lines.write(b"%d " % number + LINE)
    finally:
        written.set()
        reading.join()
    found += pipe.read()
    assert len(found) == MANY
    assert not any(line.startswith(b"left out") for line in found)


def test_a_slow_reader_keeps_nobody_waiting_for_most_of_the_time(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads a little whenever somebody waits for it."""
    now_s = 0.0

    class Poll:
        def register(self, _descriptor: int, _events: int) -> None: ...

        def poll(self, timeout_ms: float) -> list[int]:
            nonlocal now_s
            now_s += timeout_ms / 2000
            return [1] if timeout_ms else []

    of_system = SimpleNamespace(poll=Poll, POLLOUT=select.POLLOUT, PIPE_BUF=select.PIPE_BUF)
    monkeypatch.setattr(module, "select", of_system)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s))
    lines = lines_to(pipe.stream)
    for _ in range(100):
        lines.write(b"x")
    assert now_s <= WAITS_S + WAIT_S
    now_s += 1.0
    pipe.read()
    lines.write(b"y")
    assert pipe.read()[-1] == b"y"


@pytest.mark.parametrize("what", ["terminal", "shared pipe"])
def test_what_seems_to_have_room_keeps_nobody_waiting(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal has room for one character, or another process takes the room that there was."""

    class Poll:
        def register(self, _descriptor: int, _events: int) -> None: ...

        def poll(self, _timeout_ms: float) -> list[int]:
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
