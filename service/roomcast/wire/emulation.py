"""Reads what SDKs post to /emulation: further commands of a client whose replies come as a stream.

JSON: {"node": "…", "session": "…", "data": "<commands>"}. Protobuf: the message EmulationRequest
(client.proto of Centrifuge).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError

from roomcast.wire.protobuf_schema import message_class

__all__ = ["Emulated", "MalformedEmulation", "emulated_json", "emulated_protobuf"]

_REQUEST: Final = message_class("EmulationRequest")
# Quotes around strings, and bytes outside of strings, in a request. SDKs send 12, and 13. What has
# more may take long to decode: 150,000 arrays, or 50,000 names.
_QUOTES_MAX: Final = 32
_OUTSIDE_BYTES_MAX: Final = 256


class MalformedEmulation(ValueError):
    """A request that no SDK sends."""


@dataclass(frozen=True, slots=True)
class Emulated:
    """`frame`: commands of the client with this `session`, which is on `node`."""

    node: str
    session: str
    frame: bytes


def emulated_json(body: bytes) -> Emulated:
    """Raises MalformedEmulation. The caller bounds the size of `body`."""
    if not _is_flat(body):
        raise MalformedEmulation("more than a few strings")
    try:
        fields = orjson.loads(body)
    except ValueError as error:
        raise MalformedEmulation("not JSON") from error
    if not isinstance(fields, dict):
        raise MalformedEmulation("not an object")
    node, session, data = (fields.get(name) for name in ("node", "session", "data"))
    if not (isinstance(node, str) and isinstance(session, str) and isinstance(data, str)):
        raise MalformedEmulation("without node, session or data")
    return Emulated(node, session, data.encode())


def emulated_protobuf(body: bytes) -> Emulated:
    """Raises MalformedEmulation. The caller bounds the size of `body`."""
    message: Any = _REQUEST()
    try:
        message.ParseFromString(body)
    except (DecodeError, ValueError) as error:
        raise MalformedEmulation("not an EmulationRequest") from error
    return Emulated(message.node, message.session, message.data)


def _is_flat(body: bytes) -> bool:
    """Whether JSON is hardly more than a few strings, whatever is in them. Not exact for what is no
    JSON.
    """
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    parts = bare.split(b'"', _QUOTES_MAX + 1)
    return len(parts) <= _QUOTES_MAX + 1 and sum(map(len, parts[::2])) <= _OUTSIDE_BYTES_MAX
