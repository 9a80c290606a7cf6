"""`roomcast replay`: publishes the lines of an export in a channel, each once and in their order,
through a server's HTTP API.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from roomcast.cli.arguments import (
    COUNT_MAX,
    Subparsers,
    add_address,
    add_command,
    number,
    text,
    whole,
)
from roomcast.cli.export_lines import LINE_BYTES_MAX, Line, NoLine, key_of, read_line
from roomcast.cli.server_api import CallFailed, Calls, add_key, batch, error_of, find_key
from roomcast.cli.terminal import Failed, progress_line
from roomcast.observe.redaction import json_printable

__all__ = ["BATCH_LINES_MAX", "add"]

_EXAMPLES: Final = """\
examples:
  roomcast replay news.jsonl news-again
  roomcast replay news.jsonl news-again --rate 50
  roomcast replay news.jsonl news-again --from-line 121
  set -o pipefail; roomcast export news | roomcast replay - news-again

Publishes each line in CHANNEL, with its data and its tags, one after the other. Who published it
(info) and when (time) cannot be kept: they are those of the replay. Each line has an idempotency
key made of its channel, epoch and offset. So a replay that was interrupted may be run again within
22 hours, and publishes nothing twice. It stops at the first line that fails. CHANNEL must have
history. The key of the API as for `roomcast publish`.
"""

# Publications with keys that one append takes.
BATCH_LINES_MAX: Final = 99
# A request has 2 MiB at most, where a character may take more bytes than here, and 65,536 arrays
# and objects.
_BATCH_BYTES_MAX: Final = 256 * 1024
_BATCH_CONTAINERS_MAX: Final = 30_000
# Batches a second, if there is a rate.
_BATCHES_A_SECOND: Final = 10
_RATE_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A line, its number in the file, and the bytes up to its end."""

    number: int
    line: Line
    end: int

    def command(self, channel: str) -> Any:
        """Publishes it in `channel`."""
        key = key_of(self.line)
        return {"publish": {"channel": channel, **self.line.content, "idempotency_key": key}}


def add(commands: Subparsers) -> None:
    """Adds `roomcast replay`."""
    parser = add_command(
        commands,
        "replay",
        replay,
        "publish the lines of an export in a channel, through a server's HTTP API",
        _EXAMPLES,
    )
    parser.add_argument("file", type=text, metavar="FILE", help="of an export; - = standard input")
    parser.add_argument("channel", type=text, metavar="CHANNEL")
    add_address(parser)
    add_key(parser)
    parser.add_argument(
        "--rate",
        type=number(0.1, _RATE_MAX),
        metavar="N",
        help="publications a second at most (default: as fast as they are taken)",
    )
    parser.add_argument(
        "--from-line",
        type=whole(1, COUNT_MAX),
        default=1,
        metavar="N",
        help="pass over the lines before this one",
    )


def replay(arguments: argparse.Namespace) -> int:
    """Publishes. Raises ConfigError and Failed."""
    find_key(arguments)
    done = Done()
    with _input(arguments.file) as (file, size), progress_line() as draw:
        try:
            pace = Pace(arguments.rate)
            for lines in _batches(file, arguments.from_line, pace.lines_max):
                _publish(arguments, lines, done)
                if size:
                    # Of a pipe nobody knows how much will come.
                    draw(lines[-1].end / size, f"{done.lines:,} publications")
                pace.keep(len(lines))
        except KeyboardInterrupt:
            raise Failed(f"interrupted; {_go_on(arguments, done)}") from None
    if arguments.json:
        print(json_printable(json.dumps({"published": done.lines, "last_line": done.number})))
    else:
        print(f"{done.lines:,} publications in {arguments.channel}.")
    return 0


@dataclass(slots=True)
class Done:
    """How many lines are in the channel, and the number of the last one."""

    lines: int = 0
    number: int = 0


class Pace:
    """Keeps a rate of publications a second. None = there is none."""

    def __init__(
        self,
        rate: float | None,
        sleep: Callable[[float], None] = time.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._sleep = sleep
        self._now_s = now_s
        self._next_s = now_s()
        self.lines_max = BATCH_LINES_MAX
        if rate is not None:
            self.lines_max = max(1, min(BATCH_LINES_MAX, int(rate / _BATCHES_A_SECOND)))

    def keep(self, published: int) -> None:
        """Waits until there is room for more. A server that was slow is not caught up with."""
        if self._rate is None:
            return
        self._next_s = max(self._next_s + published / self._rate, self._now_s())
        if (wait_s := self._next_s - self._now_s()) > 0:
            self._sleep(wait_s)


@contextmanager
def _input(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """The file, and its size; 0 = not known."""
    if name == "-":
        yield sys.stdin.buffer, 0
        return
    with open(name, "rb") as file:  # noqa: PTH123  # a name, as the shell has it
        yield file, os.fstat(file.fileno()).st_size


def _batches(file: BinaryIO, from_line: int, lines_max: int) -> Iterator[Sequence[_Numbered]]:
    """The lines, as many together as one request takes. Raises Failed at the first that is none,
    once those before it are published.
    """
    lines: list[_Numbered] = []
    size = containers = end = number = 0
    while raw := file.readline(LINE_BYTES_MAX + 1):
        number, end = number + 1, end + len(raw)
        if number < from_line:
            continue
        try:
            if len(raw) > LINE_BYTES_MAX:
                raise NoLine(f"has more than {LINE_BYTES_MAX} bytes")
            numbered = _Numbered(number, read_line(raw), end)
        except NoLine as error:
            if lines:
                yield lines
            torn = "" if raw.endswith(b"\n") else ": it is torn; export --resume makes it whole"
            raise Failed(f"line {number} {error}{torn}; what is before it is published") from error
        of_line = raw.count(b"{") + raw.count(b"[")
        if lines and (
            len(lines) == lines_max
            or size + len(raw) > _BATCH_BYTES_MAX
            or containers + of_line > _BATCH_CONTAINERS_MAX
        ):
            yield lines
            lines, size, containers = [], 0, 0
        lines.append(numbered)
        size, containers = size + len(raw), containers + of_line
    if lines:
        yield lines


def _publish(arguments: argparse.Namespace, lines: Sequence[_Numbered], done: Done) -> None:
    """Publishes `lines`, and those again that failed in passing: their keys allow it.

    Raises Failed at the first that cannot be published.
    """
    calls, left = Calls(), list(lines)
    while left:
        commands = [each.command(arguments.channel) for each in left]
        try:
            try:
                replies = batch(arguments, commands, stop_at_error=True)
            except CallFailed as error:
                calls.failed(error)
                continue
            errors = [
                error_of(reply, f"line {each.number}")
                for reply, each in zip(replies, left, strict=True)
            ]
            failed = next((at for at, error in enumerate(errors) if error), len(left))
            if failed:
                done.lines += failed
                done.number = left[failed - 1].number
                calls.went_on()
            if failed < len(left) and (why := errors[failed]) is not None:
                overtaken = errors[failed:].count(None)
                calls.failed(_with_overtaking(why, overtaken))
        except CallFailed as error:
            raise Failed(f"{error}; {_go_on(arguments, done)}") from error
        left = left[failed:]


def _with_overtaking(error: CallFailed, overtaken: int) -> CallFailed:
    """Says that lines behind the failed one got in. They were in one request, and in other appends
    than the one that failed.
    """
    if not overtaken:
        return error
    told = f"{error}; {overtaken} lines behind it are in the channel already"
    return CallFailed(told, code=error.code, may_pass=error.may_pass)


def _go_on(arguments: argparse.Namespace, done: Done) -> str:
    here = f"{done.lines:,} lines are published"
    if arguments.file == "-":
        return f"{here}: run it again within 22 hours, which publishes none of them twice"
    where = max(done.number + 1, arguments.from_line)
    names = " ".join(shlex.quote(each) for each in (arguments.file, arguments.channel))
    return f"{here}: go on with roomcast replay {names} --from-line {where}"
