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

from roomcast.delivery.fossil import delta
from roomcast.wire.publication import DATA_TEXT
from roomcast.wire.sent import DATA_HEAD, Sent

__all__ = ["FOSSIL", "PLAIN", "Chain", "Form", "Link", "Payload", "form", "whole"]

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


def whole(said: Sent, payload: Payload) -> bytes:
    """`said` for those whom no publication came before."""
    if payload is Payload.VALUE:
        return said.line
    text, rest = _parts(said)
    # A line can hold no bytes: what makes messages of lines (service/roomcast/wire/protobuf.py) knows this name.
    name = "data" if payload is Payload.TEXT else DATA_TEXT
    return b'{"%b":%b%b' % (name.encode(), orjson.dumps(text.decode()), rest)


def _parts(said: Sent) -> tuple[bytes, bytes]:
    """The text of its data, and what follows the data in its line."""
    end = len(DATA_HEAD) + said.data_bytes
    return said.line[len(DATA_HEAD) : end] if said.text is None else said.text, said.line[end:]


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
        before, (text, rest) = self._before, _parts(said)
        self._before = text
        if not said.delta or before is None:
            return Link(said, None)
        difference = delta(before, text)
        if len(difference) >= len(text):
            return Link(said, None)
        return Link(
            said, b'%b%b,"delta":true%b' % (DATA_HEAD, orjson.dumps(difference.decode()), rest)
        )
