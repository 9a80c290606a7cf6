"""The lines of an export: makes them, reads them, and finds where a file of them ends.

A line is a JSON object: `channel`, `epoch`, `offset`, then of the publication `time` (ms), `data`
(or `b64data`), `tags` and `info`, as far as it has them.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from roomcast.cli.moments import OFFSET_MAX
from roomcast.cli.server_api import decoded
from roomcast.observe.redaction import json_printable

__all__ = ["LINE_BYTES_MAX", "Ending", "Line", "NoLine", "ending", "key_of", "line_of", "read_line"]

# A publication has 128 KiB at most in the log. An escape of a character is six times as long.
LINE_BYTES_MAX: Final = 1024 * 1024
# What a line has of its publication, in this order.
_FIELDS: Final = ("time", "data", "b64data", "tags", "info")
_HEAD: Final = b'{"channel":'
# Characters of a digest in a key: 132 bits, which no two numberings share.
_DIGEST_CHARS: Final = 22


class NoLine(ValueError):
    """The text is no line of an export. Says why, without what is in it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One publication. `content`: what of it can be published again: its data, and its tags."""

    channel: str
    epoch: str
    offset: int
    content: Mapping[str, Any]


def line_of(channel: str, epoch: str, publication: Mapping[str, Any]) -> str:
    """The line for `publication`, as the API tells it, with its end.

    Raises LookupError, ValueError, TypeError for what is none.
    """
    offset = publication["offset"]
    if not _is_offset(offset):
        raise ValueError("no offset")
    told = {"channel": channel, "epoch": epoch, "offset": offset}
    told |= {name: publication[name] for name in _FIELDS if name in publication}
    if "b64data" in told:
        # The API has a null in its place, which clients of Centrifugo's API look for.
        told.pop("data", None)
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return json_printable(text) + "\n"


def read_line(text: bytes) -> Line:
    """The publication in a line. Raises NoLine."""
    try:
        told = decoded(text)
    except ValueError:
        raise NoLine("is no JSON") from None
    match told:
        case {"channel": str(channel), "epoch": str(epoch), "offset": offset} if _is_offset(offset):
            pass
        case _:
            raise NoLine("has no channel, epoch and offset: it is of no export")
    if not (_is_text(channel) and _is_text(epoch)):
        raise NoLine("has half a character in its channel or its epoch")
    content = {name: told[name] for name in ("data", "b64data") if name in told}
    if len(content) != 1:
        raise NoLine("has no data")
    if (tags := told.get("tags")) is not None:
        content["tags"] = tags
    return Line(channel, epoch, offset, content)


def _is_offset(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= OFFSET_MAX


def _is_text(value: str) -> bool:
    """Half a surrogate pair is text in Python, and none in UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def key_of(line: Line) -> str:
    """The idempotency key of a publication: the same for the same place of the same numbering."""
    numbering = hashlib.sha256(f"{line.channel}\n{line.epoch}".encode()).digest()
    return f"replay:{urlsafe_b64encode(numbering).decode()[:_DIGEST_CHARS]}:{line.offset}"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a file of lines ends. `torn`: bytes behind the last end of a line. `last`: the last
    whole line; None = there is none.
    """

    torn: int
    last: Line | None


def ending(tail: bytes) -> Ending:
    """How a file ends whose last bytes are `tail`: all of them, or 2 * LINE_BYTES_MAX.

    Raises NoLine for what is no export.
    """
    whole = tail.rfind(b"\n") + 1
    torn = tail[whole:]
    if torn[: len(_HEAD)] != _HEAD[: len(torn)] or len(torn) > LINE_BYTES_MAX:
        raise NoLine("does not end as an export does")
    if not whole:
        return Ending(len(torn), None)
    return Ending(len(torn), read_line(tail[tail.rfind(b"\n", 0, whole - 1) + 1 : whole]))
