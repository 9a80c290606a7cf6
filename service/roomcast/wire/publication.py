"""Publications, their publishers, and their positions in a channel's log."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

from roomcast.frozen import frozen
from roomcast.wire.trace_context import Trail

__all__ = [
    "BASE64_DATA",
    "DATA_TEXT",
    "TIME_MAX",
    "ClientInfo",
    "Json",
    "MalformedPublication",
    "Payload",
    "Publication",
    "Record",
    "Stored",
    "StreamPosition",
    "from_base64",
    "to_base64",
]

# The greatest time in ms: clients' JSON and Protobuf, and the sum of two times, hold it exactly.
TIME_MAX: Final = 2**53 - 1

# A decoded JSON value: dict, list, str, int, float, bool or None.
Json = Any
# What a publication holds: a JSON value or, in a binary channel, bytes.
Payload = Any

# The field for the data's JSON text: in a stored publication, and in a line for Protobuf clients in
# place of the data.
DATA_TEXT: Final = "text"
# The field for bytes, as base64, in a line for clients and in an answer of the server API.
BASE64_DATA: Final = "b64data"
# Marks a stored publication whose data is base64 of bytes. Nodes and Lambdas of older releases pass
# over the field, or pass it on: to them the data is the text.
_IS_BASE64: Final = "b64"


class MalformedPublication(ValueError):
    """A stored or received publication has an invalid shape."""


def to_base64(data: bytes) -> str:
    """Bytes as JSON can hold them."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def from_base64(text: object) -> bytes:
    """The bytes of a base64 text, with padding and nothing else in it. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError("base64 is a string")
    return binascii.a2b_base64(text, strict_mode=True)


@frozen
class StreamPosition:
    """A position in a channel's log. `offset` counts publications within `epoch` from 1. 0 = before
    the first.
    """

    epoch: str
    offset: int


@frozen
class ClientInfo:
    """A connection's identity as other clients see it (PROTOCOL: ClientInfo).

    `user` may be "" (anonymous). `client` is the connection's id. Absent info is None. No JSON
    payload is None, because `conn_info: null` counts as absent.
    """

    user: str
    client: str
    conn_info: Json = None
    chan_info: Json = None

    def wire(self) -> dict[str, Json]:
        """The JSON object of the protocol. `user` and `client` are always present."""
        wire: dict[str, Json] = {"user": self.user, "client": self.client}
        if self.conn_info is not None:
            wire["conn_info"] = self.conn_info
        if self.chan_info is not None:
            wire["chan_info"] = self.chan_info
        return wire

    @classmethod
    def from_wire(cls, wire: Json) -> ClientInfo:
        """Reads a JSON object. Raises MalformedPublication unless it has two string ids."""
        if not isinstance(wire, dict):
            raise MalformedPublication("client info is not an object")
        user, client = wire.get("user", ""), wire.get("client", "")
        if not isinstance(user, str) or not isinstance(client, str):
            raise MalformedPublication("client info without string ids")
        return cls(user, client, wire.get("conn_info"), wire.get("chan_info"))


@frozen
class Publication:
    """One publication.

    `data`: a JSON value, or the bytes of a binary channel.

    `offset` 0 = none (a channel without history). `time`: in ms since 1970. `delta`: clients that
    asked for deltas may get it as one.

    `text`: the data's JSON text as its publisher wrote it, if that was bytes and differs from the
    encoded `data`. None = the same as the encoded `data` (service/roomcast/wire/commands.py:
    `text_to_keep`).
    """

    data: Payload
    offset: int = 0
    info: ClientInfo | None = None
    tags: Mapping[str, str] | None = None
    time: int = 0
    delta: bool = False
    text: str | None = None

    def stored(self) -> dict[str, Json]:
        """The JSON object in the log: everything except the offset, which the item's key gives."""
        stored: dict[str, Json] = {"data": self.data}
        if isinstance(self.data, bytes):
            stored = {"data": to_base64(self.data), _IS_BASE64: True}
        if self.info is not None:
            stored["info"] = self.info.wire()
        if self.tags:
            stored["tags"] = dict(self.tags)
        if self.time:
            stored["time"] = self.time
        if self.delta:
            stored["delta"] = True
        if self.text is not None:
            # Beside the data, not in its place: nodes and Lambdas of older releases ignore the
            # field or pass it on.
            stored[DATA_TEXT] = self.text
        return stored

    def wire(self) -> dict[str, Json]:
        """The JSON object of the protocol (PROTOCOL §6 Publication).

        Bytes are in BASE64_DATA in place of the data.
        """
        wire = self.stored()
        if isinstance(self.data, bytes):
            del wire[_IS_BASE64]
            wire[BASE64_DATA] = wire.pop("data")
        # On the wire this field would mark the data as a delta, and here it is none.
        wire.pop("delta", None)
        wire.pop(DATA_TEXT, None)
        if self.offset:
            wire["offset"] = self.offset
        return wire

    @classmethod
    def from_stored(cls, stored: Json, offset: int) -> Publication:
        """Reads a stored publication. Raises MalformedPublication when a field's shape must not
        reach a client.
        """
        if not isinstance(stored, dict) or "data" not in stored:
            raise MalformedPublication("publication without data")
        tags, time = stored.get("tags"), stored.get("time", 0)
        if tags is not None and not (
            isinstance(tags, dict) and all(isinstance(tag, str) for tag in tags.values())
        ):
            raise MalformedPublication("tags are not an object of strings")
        if not isinstance(time, int) or isinstance(time, bool) or not 0 <= time <= TIME_MAX:
            raise MalformedPublication("time is not a time")
        info, text = stored.get("info"), stored.get(DATA_TEXT)
        if text is not None and not isinstance(text, str):
            raise MalformedPublication("the data's text is not a string")
        data = stored["data"]
        if stored.get(_IS_BASE64) is True:
            try:
                data = from_base64(data)
            except ValueError as error:
                raise MalformedPublication("the data is not base64") from error
        return cls(
            data=data,
            offset=offset,
            info=None if info is None else ClientInfo.from_wire(info),
            tags=tags or None,
            time=time,
            delta=stored.get("delta") is True,
            text=text,
        )


@frozen
class Stored:
    """A publication as it is stored, or sent as a signal: its `fields`, and their JSON `text`."""

    fields: dict[str, Json]
    text: str


@frozen
class Record:
    """One log item for subscribers: offsets `offset`..`last` of (channel, epoch).

    `ts`: the time of its append, in ms since 1970 (0 = unknown). `publications` holds one entry per
    offset, ascending. None = a pointer: the publications must be read from the log.

    `express`: it came as an express hint (service/roomcast/delivery/express.py), so it tells of
    itself and of nothing else. `trail`: how it came, if it is traced; None = it is not.
    """

    channel: str
    epoch: str
    offset: int
    last: int
    ts: int
    publications: tuple[Publication, ...] | None
    express: bool = False
    trail: Trail | None = field(default=None, compare=False)

    @classmethod
    def from_stored(
        cls,
        channel: str,
        epoch: str,
        offset: int,
        last: int,
        ts: int,
        pubs: Json,
        *,
        express: bool = False,
        trail: Trail | None = None,
    ) -> Record:
        """`pubs`: the stored forms of its publications; None = a pointer, which has no trail.

        Raises MalformedPublication unless there is one an offset.
        """
        if pubs is None:
            return cls(channel, epoch, offset, last, ts, None, express)
        if not isinstance(pubs, list) or len(pubs) != last - offset + 1:
            raise MalformedPublication("not one publication an offset")
        publications = tuple(
            Publication.from_stored(stored, offset + index) for index, stored in enumerate(pubs)
        )
        return cls(channel, epoch, offset, last, ts, publications, express, trail)

    def __post_init__(self) -> None:
        assert 1 <= self.offset <= self.last, "I1: a record covers at least one offset, from 1"
        assert self.publications is None or len(self.publications) == self.last - self.offset + 1, (
            "I1: one publication an offset"
        )
