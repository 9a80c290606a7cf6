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


class MalformedEmulation(ValueError):
    """A request that no SDK sends."""


@dataclass(frozen=True, slots=True)
class Emulated:
    """`frame`: commands of the client with this `session`, which is on `node`."""

    node: str
    session: str
    frame: bytes


def emulated_json(body: bytes) -> Emulated:
    """Raises MalformedEmulation. The caller bounds the size and the containers of `body`."""
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
