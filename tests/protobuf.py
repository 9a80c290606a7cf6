"""What Protobuf messages say, as the JSON that they stand for:
to compare one encoding with the other.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf.message import Message

from roomcast.wire.protobuf import encode_messages
from roomcast.wire.protobuf_schema import SCHEMA, Field, FieldShape, message_class

__all__ = ["as_it_is", "command", "parsed", "read_messages", "without_empty"]


def read_messages(payload: bytes, name: str = "Reply") -> list[dict[str, Any]]:
    """The objects that the messages of one frame's payload stand for.
    Fails unless it consists of such messages.
    """
    return [_said(_parsed(name, encoded), SCHEMA[name]) for encoded in _split(payload)]


def parsed(payload: bytes, name: str = "Reply") -> list[Any]:
    """The messages of one frame's payload, whose `bytes` are what they are."""
    return [_parsed(name, encoded) for encoded in _split(payload)]


def command(fields: Mapping[str, Any]) -> bytes:
    """A command, from what its JSON would be, as one message with its length."""
    message = message_class("Command")()
    _say(message, fields, SCHEMA["Command"])
    encoded: bytes = message.SerializeToString()
    return _varint(len(encoded)) + encoded


def without_empty(values: Mapping[str, Any], name: str = "Reply") -> dict[str, Any]:
    """`values` of message `name` as Protobuf has them: what is 0, false or empty is not there."""
    stripped: dict[str, Any] = {}
    for key, value in values.items():
        field = SCHEMA[name].get(key)
        assert field is not None, (
            f"{name} has no {key}: add it to service/roomcast/wire/protobuf_schema.py"
        )
        if field.shape is FieldShape.MESSAGE:
            stripped[key] = without_empty(value, field.of)
        elif field.shape is FieldShape.JSON:
            stripped[key] = value
        elif field.shape is FieldShape.LIST and value:
            stripped[key] = [without_empty(each, field.of) for each in value]
        elif field.shape is FieldShape.MAP and value:
            stripped[key] = {each: without_empty(of, field.of) for each, of in value.items()}
        elif value:
            stripped[key] = value
    return stripped


def as_it_is(payload: bytes) -> bytes:
    """A framer that leaves lines as they are,
    having seen that Protobuf says all that is in them.
    """
    lines = [without_empty(orjson.loads(line)) for line in payload.split(b"\n")]
    assert read_messages(encode_messages(payload)) == lines
    return payload


def _parsed(name: str, encoded: bytes) -> Message:
    message = message_class(name)()
    message.ParseFromString(encoded)
    return message


def _said(message: Message, schema: Mapping[str, Field]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        field = schema[descriptor.name]
        match field.shape:
            case FieldShape.JSON:
                # A difference is no JSON, and what is published in a binary channel need be none.
                is_difference = schema is SCHEMA["Publication"] and message.delta
                if is_difference:
                    said[field.name] = value.decode(errors="replace")
                elif schema is SCHEMA["Publication"] and not _is_json(value):
                    said["b64data"] = b64encode(value).decode()
                else:
                    said[field.name] = json.loads(value)
            case FieldShape.MESSAGE:
                said[field.name] = _said(value, SCHEMA[field.of])
            case FieldShape.LIST:
                said[field.name] = [_said(each, SCHEMA[field.of]) for each in value]
            case FieldShape.MAP:
                said[field.name] = {key: _said(value[key], SCHEMA[field.of]) for key in value}
            case FieldShape.SCALARS:
                said[field.name] = list(value)
            case FieldShape.TEXTS:
                said[field.name] = dict(value)
            case FieldShape.SCALAR:
                said[field.name] = value
    return said


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _say(message: Message, fields: Mapping[str, Any], schema: Mapping[str, Field]) -> None:
    for name, value in fields.items():
        field = schema[name]
        if field.shape is FieldShape.MESSAGE:
            getattr(message, name).SetInParent()
            _say(getattr(message, name), value, SCHEMA[field.of])
        elif field.shape is FieldShape.SCALARS:
            getattr(message, name).extend(value)
        elif field.shape is FieldShape.LIST:
            for each in value:
                _say(getattr(message, name).add(), each, SCHEMA[field.of])
        elif field.shape is FieldShape.MAP:
            for key, each in value.items():
                _say(getattr(message, name)[key], each, SCHEMA[field.of])
        elif field.shape is FieldShape.TEXTS:
            getattr(message, name).update(value)
        else:
            # Payloads may also be given as bytes, which need not be JSON.
            is_value = field.shape is FieldShape.JSON and not isinstance(value, bytes)
            setattr(message, name, json.dumps(value).encode() if is_value else value)


def _split(payload: bytes) -> list[bytes]:
    messages: list[bytes] = []
    at = 0
    while at < len(payload):
        length = shift = 0
        while True:
            length |= (payload[at] & 0x7F) << shift
            shift += 7
            at += 1
            if payload[at - 1] < 0x80:
                break
        assert at + length <= len(payload)
        messages.append(payload[at : at + length])
        at += length
    return messages


def _varint(number: int) -> bytes:
    return (
        bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + _varint(number >> 7)
    )
