"""`roomcast export`: writes a channel's history as lines of JSON, through a server's HTTP API."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Final

from roomcast.cli.arguments import Subparsers, UsageError, add_command, add_server, text
from roomcast.cli.export_lines import LINE_BYTES_MAX, NoLine, ending, line_of
from roomcast.cli.history import bounds
from roomcast.cli.moments import Since, since, until
from roomcast.cli.server_api import CallFailed, Calls, add_key, call, find_key, understood
from roomcast.cli.terminal import Failed, progress_line
from roomcast.observe.redaction import json_printable, printable

__all__ = ["add"]

_EXAMPLES: Final = """\
examples:
  roomcast export news --output news.jsonl
  roomcast export news --output news.jsonl --resume
  roomcast export news --since 2026-11-29T10:00Z --until 2026-11-29T11:00Z | jq .data
  roomcast export news --since 2h | roomcast replay - news-again

Writes each publication that the channel shows as a line of JSON: channel, epoch, offset, time,
data, tags, info. It ends with what was published when it began. Interrupted or failed, it is gone
on with by --resume: behind the last whole line of the file. A torn line is cut off. Without
--output the lines are printed. The key as for `roomcast publish`.
"""

# The error of the API when a position is of another epoch.
_WRONG_EPOCH: Final = 112
_TIMES: Final = ("since", "until")
# Holes that are told one by one.
_HOLES_MAX: Final = 10


@dataclass(slots=True)
class _Export:
    """The state of an export.

    `after`: the last offset that was written, or behind which it begins. `end`: the last one that
    is wanted. `may_miss`: what is not there behind `after` is no hole, as nobody asked for it.
    """

    channel: str
    epoch: str = ""
    after: int = 0
    end: int = 0
    may_miss: bool = True
    count: int = 0
    first: int = 0
    holes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def position(self) -> Mapping[str, Any]:
        return {"offset": self.after, "epoch": self.epoch}


def add(commands: Subparsers) -> None:
    """Adds `roomcast export`."""
    parser = add_command(
        commands,
        "export",
        export,
        "write a channel's history as lines of JSON, through a server's HTTP API",
        _EXAMPLES,
    )
    add_server(parser)
    add_key(parser)
    parser.add_argument(
        "--since",
        type=since,
        metavar="WHEN",
        help="begin next to this offset; or with what was appended since then: 2h (ago), "
        "2026-11-29T10:00Z (default: the oldest)",
    )
    parser.add_argument(
        "--until",
        type=until,
        metavar="WHEN",
        help="end before what was appended then or later (default: now)",
    )
    parser.add_argument(
        "--epoch",
        type=text,
        default="",
        metavar="E",
        help="that an offset of --since counts in (default: the present one)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="a new file (default: stdout)")
    parser.add_argument(
        "--resume", action="store_true", help="go on where FILE ends; begin it, if it is not there"
    )


def export(arguments: argparse.Namespace) -> int:
    """Writes lines. Raises ConfigError, UsageError and Failed."""
    if arguments.resume and arguments.output is None:
        raise UsageError("--resume goes on with a file: give --output")
    find_key(arguments)
    doing = _Export(arguments.channel)
    with _output(arguments, doing) as write:
        try:
            _begin(arguments, doing)
            with progress_line() as draw:
                _copy(arguments, doing, write, draw)
        except KeyboardInterrupt:
            if arguments.output is None:
                raise
            raise Failed(f"interrupted; {_so_far(arguments, doing)}") from None
        except CallFailed as error:
            raise Failed(_told(arguments, doing, error)) from error
        except OSError as error:
            if arguments.output is None:
                raise
            why = error.strerror or type(error).__name__
            raise Failed(f"{arguments.output}: {why}; {_so_far(arguments, doing)}") from error
        finally:
            _tell_holes(doing)
    if arguments.output is not None:
        print(_summary(arguments, doing))
    return 0


@contextmanager
def _output(arguments: argparse.Namespace, doing: _Export) -> Iterator[Callable[[str], None]]:
    """What writes lines. Of a file that is gone on with, `doing` gets the position. Raises
    Failed.
    """
    path: Path | None = arguments.output
    if path is None:
        yield _printed
        return
    if path.exists() and not path.is_file():
        # A device may have no end, and a pipe has none that could be gone on behind.
        raise Failed(f"{path} is no file: without --output the lines are printed")
    try:
        # Without a buffer: what a full disk did not take is not tried again when it is closed.
        out = path.open("r+b" if arguments.resume and path.exists() else "x+b", buffering=0)
    except FileExistsError:
        raise Failed(f"{path} is there: go on with --resume, or name another file") from None
    with out:
        if arguments.resume:
            _find_end(path, out, doing)
        yield partial(_written, out)


def _printed(lines: str) -> None:
    sys.stdout.write(lines)
    sys.stdout.flush()


def _written(out: FileIO, lines: str) -> None:
    """Raises OSError. What is written by then outlives this process."""
    left = memoryview(lines.encode())
    while left:
        left = left[out.write(left) or 0 :]


def _find_end(path: Path, out: FileIO, doing: _Export) -> None:
    """Cuts off a torn line, and finds the position behind the last whole one. Raises Failed."""
    size = out.seek(0, os.SEEK_END)
    out.seek(max(size - 2 * LINE_BYTES_MAX, 0))
    try:
        found = ending(out.readall())
    except NoLine as error:
        raise Failed(f"{path} is no export, and is left as it is: its end {error}") from error
    if (last := found.last) is not None:
        if last.channel != doing.channel:
            raise Failed(f"{path} is an export of another channel, {last.channel}")
        doing.epoch, doing.after, doing.may_miss = last.epoch, last.offset, False
    out.truncate(size - found.torn)
    out.seek(0, os.SEEK_END)


def _begin(arguments: argparse.Namespace, doing: _Export) -> None:
    """Finds where it begins and ends. Raises CallFailed."""
    goes_on = doing.after > 0
    wanted = Since(offset=doing.after) if goes_on else arguments.since
    epoch = doing.epoch if goes_on else arguments.epoch
    params = {"channel": doing.channel, "limit": 0, **bounds(wanted, arguments.until, epoch)}
    result = Calls().made(lambda: call(arguments, "history", params))
    if any(f"{name}_time" in params and f"{name}_offset" not in result for name in _TIMES):
        raise Failed(f"{arguments.url} does not find times: its release is older than this one")
    with understood(arguments.url):
        doing.epoch, top = str(result["epoch"]), int(result["offset"])
        doing.end = int(result["until_offset"]) if "until_time" in params else top
        if "since_time" in params:
            doing.after = int(result["since_offset"])
        elif wanted is not None:
            assert wanted.offset is not None, "it is an offset or a time"
            doing.after, doing.may_miss = wanted.offset, False


def _copy(
    arguments: argparse.Namespace,
    doing: _Export,
    write: Callable[[str], None],
    draw: Callable[[float, str], None],
) -> None:
    """Writes page after page. Raises Failed."""
    calls, begin = Calls(), doing.after
    while doing.after < doing.end:
        draw(
            (doing.after - begin) / (doing.end - begin),
            f"{doing.count:,} publications, offset {doing.after:,} of {doing.end:,}",
        )
        params = {"channel": doing.channel, "limit": -1, "since": doing.position}
        result = calls.made(partial(call, arguments, "history", params))
        with understood(arguments.url):
            page = [each for each in result["publications"] if each["offset"] <= doing.end]
            offsets = [int(each["offset"]) for each in page]
            if offsets != sorted({*offsets} - {*range(doing.after + 1)}):
                raise ValueError("not in the order of offsets")
            lines = "".join(line_of(doing.channel, doing.epoch, each) for each in page)
        if not page:
            _missing(doing, doing.end)
            return
        _missing(doing, offsets[0] - 1)
        write(lines)
        doing.first = doing.first or offsets[0]
        doing.count += len(page)
        doing.after, doing.may_miss = offsets[-1], False


def _missing(doing: _Export, last: int) -> None:
    """What is between what was written and `last` is not kept any more."""
    if last > doing.after and not doing.may_miss:
        doing.holes.append((doing.after + 1, last))


def _tell_holes(doing: _Export) -> None:
    for first, last in doing.holes[:_HOLES_MAX]:
        told = f"offsets {first:,} to {last:,}" if last > first else f"offset {first:,}"
        _note(f"{told} left out: not kept any more")
    if len(doing.holes) > _HOLES_MAX:
        _note(f"and {len(doing.holes) - _HOLES_MAX:,} more such holes")


def _note(told: str) -> None:
    print(f"roomcast: {told}", file=sys.stderr, flush=True)


def _told(arguments: argparse.Namespace, doing: _Export, error: CallFailed) -> str:
    if error.code != _WRONG_EPOCH:
        return f"{error}; {_so_far(arguments, doing)}" if arguments.output else str(error)
    told = "the channel has begun another epoch, in which offsets mean other publications"
    if doing.after:
        told += f"; offset {doing.after:,} is the last of the one before that was exported"
    return (
        f"{told}; what was behind it there cannot be read any more: export the present epoch into "
        "another file, without --resume, --since OFFSET and --epoch"
    )


def _so_far(arguments: argparse.Namespace, doing: _Export) -> str:
    upto = f"is whole up to offset {doing.after}" if doing.after else "has nothing yet"
    return f"{arguments.output} {upto}: go on with --resume"


def _summary(arguments: argparse.Namespace, doing: _Export) -> str:
    if arguments.json:
        told = {
            "channel": doing.channel,
            "epoch": doing.epoch,
            "publications": doing.count,
            "first": doing.first,
            "last": doing.after if doing.count else 0,
            "holes": doing.holes,
        }
        return json_printable(json.dumps(told, ensure_ascii=False))
    if not doing.count:
        return f"Nothing to add; the end is offset {doing.end}."
    return printable(
        f"{doing.count:,} publications, offsets {doing.first} to {doing.after}, "
        f"epoch {doing.epoch}: {arguments.output}"
    )
