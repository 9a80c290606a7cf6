"""In what form a channel's publications go to a subscriber: under its name or number, whole or as differences.

A client may ask for shorter pushes when it subscribes: that its channel is named by a number (channel compaction), and
that a publication comes as its difference from the one before it (Fossil delta). Those who asked for the same get the
same bytes. In JSON, who gets differences gets whole payloads as text as well; in Protobuf payloads are bytes anyway, those
that their publisher sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import orjson

from service.core.fossil import delta
from service.core.protocol import encode_publication
from service.core.publication import DATA_TEXT, Json, Publication
from service.core.recovery import Sent

__all__ = ["FOSSIL", "PLAIN", "Chain", "Form", "Link", "Payload", "form", "sent_of", "whole"]

# What clients call it, and `allowed_delta_types`.
FOSSIL: Final = "fossil"


class Payload(Enum):
    """What stands for a publication's data. VALUE: the data. TEXT: its JSON text as a string. BYTES: the same as bytes, for
    Protobuf. Those who get differences get them in place of TEXT or BYTES.
    """

    VALUE = auto()
    TEXT = auto()
    BYTES = auto()


@dataclass(frozen=True, slots=True)
class Form:
    """What one subscriber gets. `numbered`: its channel's number instead of the name; `delta`: differences."""

    numbered: bool = False
    payload: Payload = Payload.VALUE
    delta: bool = False


PLAIN: Final = Form()


def form(*, numbered: bool, delta: bool, binary: bool) -> Form:
    """What a client gets that may have a number, or differences, and speaks Protobuf or JSON.

    No numbers in Protobuf: where long.js is there, centrifuge-js has them as objects, and finds none equal to another.
    """
    if binary:
        return Form(False, Payload.BYTES, delta)
    return Form(numbered, Payload.TEXT if delta else Payload.VALUE, delta)


def sent_of(publication: Publication, ts: int) -> Sent:
    """`publication`, of an append at `ts` (ms), as clients get it. Raises Unencodable."""
    text = None if publication.text is None else publication.text.encode()
    return Sent(publication.offset, encode_publication(publication), ts, publication.delta, text)


def whole(said: Sent, payload: Payload) -> bytes:
    """`said` for those whom no publication came before."""
    if payload is Payload.VALUE or (payload is Payload.BYTES and said.text is None):
        return said.line
    fields = orjson.loads(said.line)
    text = _text(said, fields.pop("data"))
    # A line can hold no bytes: what makes messages of lines (service/core/protobuf.py) knows this name.
    fields["data" if payload is Payload.TEXT else DATA_TEXT] = text.decode()
    return orjson.dumps(fields)


def _text(said: Sent, data: Json) -> bytes:
    """Of its data."""
    return orjson.dumps(data) if said.text is None else said.text


@dataclass(frozen=True, slots=True)
class Link:
    """One publication of a chain. `difference`: None = there is none, or it would be longer than the whole."""

    sent: Sent
    difference: bytes | None

    def said(self, payload: Payload) -> bytes:
        """For those whom the publication before it has reached."""
        return whole(self.sent, payload) if self.difference is None else self.difference


class Chain:
    """A channel's publications in the order in which they go out; remembers the last one's data."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: bytes | None = None

    def links(self, published: Sequence[Sent]) -> list[Link]:
        return [self._link(sent) for sent in published]

    def _link(self, said: Sent) -> Link:
        fields = orjson.loads(said.line)
        before, text = self._before, _text(said, fields["data"])
        self._before = text
        if not said.delta or before is None:
            return Link(said, None)
        difference = delta(before, text)
        if len(difference) >= len(text):
            return Link(said, None)
        fields["data"] = difference.decode()
        fields["delta"] = True
        return Link(said, orjson.dumps(fields))
