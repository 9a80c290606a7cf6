"""The protocol in Protobuf as its clients speak it: encodes commands, and decodes replies.

Both are the dictionaries that their JSON would be, but for payloads: those of publications are
base64, as the server API has them in a binary channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError, Message

from roomcast.wire.protobuf import fill, split_messages, with_length
from roomcast.wire.protobuf_schema import SCHEMA, Field, FieldShape, message_class
from roomcast.wire.publication import BASE64_DATA, to_base64

__all__ = ["decode_replies", "encode_commands"]

_COMMAND: Final = message_class("Command")
_REPLY: Final = message_class("Reply")


def encode_commands(commands: Sequence[Mapping[str, Any]]) -> bytes:
    """The payload of one binary frame. An empty command is a pong."""
    return b"".join(map(_encoded, commands))


def _encoded(command: Mapping[str, Any]) -> bytes:
    message = _COMMAND()
    fill(message, command, SCHEMA["Command"])
    return with_length(message.SerializeToString())


def decode_replies(frame: bytes) -> Iterator[dict[str, Any]]:
    """The replies and pushes in the payload of one frame. An empty one is a ping.

    Raises ValueError.
    """
    for encoded in split_messages(frame):
        message = _REPLY()
        try:
            message.ParseFromString(encoded)
        except (DecodeError, RecursionError) as error:
            raise ValueError("a message that cannot be parsed") from error
        yield _values(message, SCHEMA["Reply"])


def _values(message: Message, schema: Mapping[str, Field]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if schema is SCHEMA["Publication"]:
        # No bytes are bytes, too.
        values[BASE64_DATA] = to_base64(getattr(message, "data"))  # noqa: B009  # its type has none
    for descriptor, value in message.ListFields():
        field = schema[descriptor.name]
        match field.shape:
            case FieldShape.MESSAGE:
                values[field.name] = _values(value, SCHEMA[field.of])
            case FieldShape.LIST:
                values[field.name] = [_values(each, SCHEMA[field.of]) for each in value]
            case FieldShape.MAP:
                found = {key: _values(each, SCHEMA[field.of]) for key, each in value.items()}
                values[field.name] = found
            case FieldShape.TEXTS:
                values[field.name] = dict(value)
            case FieldShape.JSON if schema is not SCHEMA["Publication"]:
                values[field.name] = orjson.loads(value)
            case FieldShape.SCALAR:
                values[field.name] = value
    return values
