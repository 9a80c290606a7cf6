"""In what form a channel's publications go to a subscriber: under its name or number, whole or as differences.

A client may ask for shorter pushes when it subscribes: that its channel is named by a number (channel compaction), and
that a publication comes as its difference from the one before it (Fossil delta). Those who asked for the same get the
same bytes. In JSON, who gets differences gets whole payloads as text as well; in Protobuf payloads are text anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import orjson

from service.core.fossil import delta
from service.core.recovery import Sent

__all__ = ["FOSSIL", "PLAIN", "Chain", "Form", "Link", "Payload", "form", "whole"]

# What clients call it, and `allowed_delta_types`.
FOSSIL: Final = "fossil"


class Payload(Enum):
    """What stands for a publication's data. VALUE: the data. TEXT: its JSON text, or a difference of such. BYTES: the
    data, or a difference of its JSON text.
    """

    VALUE = auto()
    TEXT = auto()
    BYTES = auto()


@dataclass(frozen=True, slots=True)
class Form:
    """What one subscriber gets. `numbered`: its channel's number instead of the name."""

    numbered: bool = False
    payload: Payload = Payload.VALUE


PLAIN: Final = Form()


def form(*, numbered: bool, delta: bool, binary: bool) -> Form:
    """What a client gets that may have a number, or differences, and speaks Protobuf or JSON.

    No numbers in Protobuf: where long.js is there, centrifuge-js has them as objects, and finds none equal to another.
    """
    numbered = numbered and not binary
    if not delta:
        return Form(numbered)
    return Form(numbered, Payload.BYTES if binary else Payload.TEXT)


def whole(line: bytes, payload: Payload) -> bytes:
    """`line`, a publication as `encode_publication` wrote it, for those whom no publication came before."""
    if payload is not Payload.TEXT:
        return line
    fields = orjson.loads(line)
    fields["data"] = orjson.dumps(fields["data"]).decode()
    return orjson.dumps(fields)


@dataclass(frozen=True, slots=True)
class Link:
    """One publication of a chain. `difference`: None = there is none, or it would be longer than the whole."""

    line: bytes
    difference: bytes | None

    def said(self, payload: Payload) -> bytes:
        """For those whom the publication before it has reached."""
        return whole(self.line, payload) if self.difference is None else self.difference


class Chain:
    """A channel's publications in the order in which they go out; remembers the last one's data."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text: bytes | None = None

    def links(self, published: Sequence[Sent]) -> list[Link]:
        return [self._link(sent) for sent in published]

    def _link(self, sent: Sent) -> Link:
        fields = orjson.loads(sent.line)
        before, text = self._text, orjson.dumps(fields["data"])
        self._text = text
        if not sent.delta or before is None:
            return Link(sent.line, None)
        difference = delta(before, text)
        if len(difference) >= len(text):
            return Link(sent.line, None)
        fields["data"] = difference.decode()
        fields["delta"] = True
        return Link(sent.line, orjson.dumps(fields))
