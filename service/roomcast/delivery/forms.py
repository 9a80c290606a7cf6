"""Encodes publications in the form that a subscriber takes: name or number, whole or differences.

A client may ask for shorter pushes when it subscribes. Channel compaction: a number stands for the
channel's name. Fossil delta: a publication comes as its difference from the one before it.
Subscribers with the same form get the same bytes. In JSON, a client that takes differences gets
whole payloads as text as well. In Protobuf, payloads are always bytes, as the publisher sent them.
In a binary channel all subscribers take Protobuf, and its lines hold base64 in every form.

A form may also say which publications a subscriber gets: those whose tags pass a filter (sieve.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import orjson

from roomcast.delivery.fossil import Search, delta
from roomcast.delivery.tags_filters import TagsFilter
from roomcast.frozen import frozen
from roomcast.wire.encoding import BASE64_HEAD, DATA_HEAD, Sent
from roomcast.wire.publication import DATA_TEXT, from_base64, to_base64

__all__ = [
    "FOSSIL",
    "PLAIN",
    "Chain",
    "Form",
    "Link",
    "Payload",
    "form",
    "whole",
    "whole_lines",
]


# The name of the delta format in the protocol and in `allowed_delta_types`.
FOSSIL: Final = "fossil"


class Payload(Enum):
    """How a publication's data is encoded.

    VALUE: the data. TEXT: its JSON text as a string. BYTES: the same as bytes, for Protobuf.
    Differences come in place of TEXT or BYTES.
    """

    VALUE = auto()
    TEXT = auto()
    BYTES = auto()


@dataclass(frozen=True, slots=True)
class Form:
    """The form of one subscriber's pushes.

    `numbered`: the channel's number stands for the name. `delta`: it takes differences. `filter`:
    it gets what passes; None = everything. A difference is from the publication before, which must
    have come. So a form with both, which a new token may bring about, gets whole publications.
    """

    numbered: bool = False
    payload: Payload = Payload.VALUE
    delta: bool = False
    filter: TagsFilter | None = None


PLAIN: Final = Form()


def form(
    *, numbered: bool, delta: bool, binary: bool, tags_filter: TagsFilter | None = None
) -> Form:
    """The form for a client that asked for numbers or differences, in Protobuf (`binary`) or JSON.

    Channel numbers are not used in Protobuf: with long.js, centrifuge-js decodes them as objects,
    of which no two are equal.
    """
    if binary:
        return Form(False, Payload.BYTES, delta, tags_filter)
    return Form(numbered, Payload.TEXT if delta else Payload.VALUE, delta, tags_filter)


def whole(sent: Sent, payload: Payload) -> bytes:
    """The line of `sent` for a subscriber that did not get the publication before it."""
    if payload is Payload.VALUE or sent.is_binary:
        return sent.line
    text, rest = _parts(sent)
    # A line of JSON cannot hold bytes. The encoder to Protobuf (service/roomcast/wire/protobuf.py)
    # knows this name.
    name = "data" if payload is Payload.TEXT else DATA_TEXT
    return b'{"%b":%b%b' % (name.encode(), orjson.dumps(text.decode()), rest)


def whole_lines(published: Iterable[Sent], payload: Payload) -> list[bytes]:
    """The lines of `published`, each whole."""
    return [whole(sent, payload) for sent in published]


def _parts(sent: Sent) -> tuple[bytes, bytes]:
    """The text of the data, and the rest of the line behind it."""
    end = len(DATA_HEAD) + sent.data_bytes
    return sent.line[len(DATA_HEAD) : end] if sent.text is None else sent.text, sent.line[end:]


def _bytes_and_rest(sent: Sent) -> tuple[bytes, bytes]:
    """The bytes of a binary publication, and the rest of the line behind them."""
    end = len(BASE64_HEAD) + sent.data_bytes
    # Without the quotes.
    return from_base64(sent.line[len(BASE64_HEAD) + 1 : end - 1].decode("ascii")), sent.line[end:]


@frozen
class Link:
    """One publication of a chain, and its difference from the one before.

    `difference`: None = there is none, or it would be longer than the whole data, or too much was
    searched already.
    """

    sent: Sent
    difference: bytes | None

    def line(self, payload: Payload) -> bytes:
        """The line for a subscriber that got the publication before it."""
        return whole(self.sent, payload) if self.difference is None else self.difference


class Chain:
    """A channel's publications in the order in which they go out.

    It remembers the last one's data.
    """

    __slots__ = ("_before", "_was_binary")

    def __init__(self) -> None:
        self._before: bytes | None = None
        self._was_binary = False

    def links(self, published: Sequence[Sent], search: Search) -> list[Link]:
        """Their differences, as far as `search` lasts. The others have none."""
        return [self._link(sent, search) for sent in published]

    def _link(self, sent: Sent, search: Search) -> Link:
        before, is_binary = self._before, sent.is_binary
        data, rest = _bytes_and_rest(sent) if is_binary else _parts(sent)
        has_changed = self._was_binary != is_binary
        self._before, self._was_binary = data, is_binary
        if not sent.delta or before is None or has_changed:
            return Link(sent, None)
        difference = delta(before, data, search, is_text=not is_binary)
        if difference is None or len(difference) >= len(data):
            return Link(sent, None)
        if is_binary:
            head, written = BASE64_HEAD, orjson.dumps(to_base64(difference))
        else:
            head, written = DATA_HEAD, orjson.dumps(difference.decode())
        return Link(sent, b'%b%b,"delta":true%b' % (head, written, rest))
