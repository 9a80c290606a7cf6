"""What an application publishes, and its text in the log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from roomcast.log.item import ITEM_BYTES_MAX, ITEM_PUBLICATIONS_MAX
from roomcast.log.rules import Pending
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import Json, Publication
from roomcast.wire.shapes import DEPTH_MAX, is_deeper

__all__ = ["InvalidMessage", "Message", "pending_of"]

# The brackets around the publications of an item.
_BRACKETS_BYTES: Final = 2


class InvalidMessage(ValueError):
    """The log cannot hold this. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Message:
    """One publication.

    `data`: a JSON value, at most 512 deep. `tags`: texts by name. `delta`: clients that asked for
    differences may get it as one (where the server's own publications do, by `delta_publish`).
    """

    data: Json
    tags: Mapping[str, str] | None = None
    delta: bool = False


def pending_of(channel: str, messages: Sequence[Message], now_ms: int) -> list[Pending]:
    """`messages` as they wait to be appended to `channel`, in their order. Raises InvalidMessage.

    They become one item of the log, so together they have its bounds: 500, and 128 KiB.
    """
    if not is_valid_name(channel):
        raise InvalidMessage("a channel's name has 1 to 255 printable ASCII characters")
    if not 1 <= len(messages) <= ITEM_PUBLICATIONS_MAX:
        raise InvalidMessage(f"{channel}: 1 to {ITEM_PUBLICATIONS_MAX} messages at once")
    pending = [Pending.of(_text(channel, message, now_ms)) for message in messages]
    if sum(each.size for each in pending) + _BRACKETS_BYTES > ITEM_BYTES_MAX:
        raise InvalidMessage(f"{channel}: more than {ITEM_BYTES_MAX} bytes at once")
    return pending


def _text(channel: str, message: Message, now_ms: int) -> str:
    if is_deeper(message.data, DEPTH_MAX):
        raise InvalidMessage(f"{channel}: data is nested more than {DEPTH_MAX} deep")
    tags = message.tags or {}
    if not all(isinstance(text, str) for tag in tags.items() for text in tag):
        raise InvalidMessage(f"{channel}: tags are texts by name")
    stored = Publication(message.data, tags=message.tags, time=now_ms, delta=message.delta).stored()
    try:
        text = json.dumps(stored, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        # Half a surrogate pair is text in Python, and none in UTF-8.
        text.encode()
        # Python writes any integer, and no reader of the log takes one that no double holds.
        json.loads(text, parse_int=_in_range)
    except (TypeError, ValueError) as error:
        raise InvalidMessage(f"{channel}: data is no JSON value: {error}") from error
    return text


def _in_range(number: str) -> None:
    """Raises ValueError for an integer that is infinite as a double."""
    if math.isinf(float(number)):
        raise ValueError("a number that no double holds")
