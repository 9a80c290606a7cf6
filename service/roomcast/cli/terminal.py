"""Formats the output of commands: tables, colours, progress lines and failures."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from roomcast.observe.redaction import printable

__all__ = [
    "COLOURS",
    "Failed",
    "coloured",
    "has_blocks",
    "has_colours",
    "progress",
    "progress_line",
    "span",
    "table",
]

COLOURS: Final[Mapping[str, str]] = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}
# The largest first. A text has two of them at most.
_UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_GAP: Final = "  "
# Of a progress line: more is no easier to read.
_BAR_CHARS_MAX: Final = 100


class Failed(Exception):
    """The command failed. One line."""


def has_colours(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose user has not asked for plain text."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def has_blocks(stream: TextIO) -> bool:
    """Whether the encoding of `stream` has characters to draw bars with."""
    try:
        "█▏░×…".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def progress() -> Callable[[str], None]:
    """Writes progress lines to stderr for a person. A script's stderr is for errors."""
    if not sys.stderr.isatty():
        return lambda _line: None
    return lambda line: print(printable(f"… {line}"), file=sys.stderr, flush=True)


@contextmanager
def progress_line() -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr for a person, which is drawn anew with each call, and gone at the end.

    What is called with: how much is done (0 to 1), and what is told beside it.
    """
    if not sys.stderr.isatty():
        yield lambda _done, _told: None
        return
    from roomcast.bench.chart import progress_bar

    blocks = has_blocks(sys.stderr)

    def draw(done: float, told: str) -> None:
        width = min(shutil.get_terminal_size().columns - 1, _BAR_CHARS_MAX)
        line = progress_bar(done, printable(told), width, blocks=blocks)
        print(f"\r{line}", end="", file=sys.stderr, flush=True)

    try:
        yield draw
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def span(milliseconds: int) -> str:
    """A duration in two units at most: "3d 4h", "12m 5s", "0s"."""
    left = max(milliseconds, 0) // 1000
    parts: list[str] = []
    for unit, seconds in _UNITS:
        count, left = divmod(left, seconds)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return " ".join(part for part in parts[:2] if part) or "0s"


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    colours: Callable[[Sequence[str]], str] | None,
) -> str:
    """Lines with columns under their headings. Numbers are aligned to the right. What a terminal
    would obey is escaped, because others may have written the cells.

    `colours`: the colour of each row (a key of COLOURS, "" = none). None = no colours at all.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    columns = list(zip(*[headings, *rows], strict=True))
    widths = [max(map(len, column)) for column in columns]
    to_the_right = [
        all(cell[:1].isdigit() or not cell for cell in column[1:]) for column in columns
    ]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, to_the_right, strict=True)
        )
        return _GAP.join(padded).rstrip()

    if colours is None:
        return "\n".join([line(headings), *map(line, rows)])
    return "\n".join(
        [coloured("bold", line(headings)), *(coloured(colours(row), line(row)) for row in rows)]
    )


def coloured(colour: str, text: str) -> str:
    """`text` in that colour, a key of COLOURS. "" = as it is."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if colour else text
