"""The protocol in Protobuf: decodes commands, and converts lines of JSON to messages.

All replies and pushes exist as lines of JSON (service/roomcast/wire/encoding.py). This module
converts them to messages, and commands to the values that their JSON would have. So no other module
knows of two encodings. A frame holds one or more messages, each preceded by its length as a varint.
An empty message is a ping from the server and a pong from the client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError, Message

from roomcast.wire.commands import (
    COMMANDS_MAX,
    ID_MAX,
    Bounds,
    Command,
    InvalidRequest,
    OversizedRequest,
    Pong,
    ProtocolViolation,
    PublishRequest,
    Reader,
    command_of,
    decode_payload,
    has_too_many,
    text_to_keep,
)
from roomcast.wire.protobuf_schema import SCHEMA, Field, FieldShape, message_class
from roomcast.wire.publication import BASE64_DATA, DATA_TEXT, from_base64
from roomcast.wire.tags_filter import NODES_MAX

__all__ = [
    "PROTOBUF_FRAMES",
    "decode_message",
    "encode_messages",
    "fill",
    "split_messages",
    "with_length",
]

# Protobuf's limit for 64 bits.
_VARINT_BYTES_MAX: Final = 10
# The first byte of a message that begins with a command's id (field 1, a varint). Fields are
# written in the order of their numbers.
_ID_FIRST: Final = 0x08

_COMMAND: Final = message_class("Command")
_REPLY: Final = message_class("Reply")


# ---- frames to commands


def split_messages(frame: bytes) -> Sequence[bytes]:
    """The messages of one binary frame, one command each. Raises ProtocolViolation."""
    if not frame:
        raise ProtocolViolation("an empty frame")
    messages: list[bytes] = []
    at = 0
    while at < len(frame):
        length, at = _varint(frame, at)
        if length > len(frame) - at:
            raise ProtocolViolation("a message longer than its frame")
        if len(messages) == COMMANDS_MAX:
            raise ProtocolViolation("too many commands in one frame")
        messages.append(frame[at : at + length])
        at += length
    return messages


def _varint(frame: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and the position after it."""
    number = 0
    for index, byte in enumerate(frame[at : at + _VARINT_BYTES_MAX]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise ProtocolViolation("a length that does not end")


def decode_message(encoded: bytes, bounds: Bounds) -> Command:
    """The command of one message, without its length. Raises ProtocolViolation."""
    if not encoded:
        return Command(0, Pong(), 0)
    size = len(encoded)
    if size > bounds.command_bytes:
        return Command(_id_of(encoded), OversizedRequest(), size)
    message: Any = _COMMAND()
    try:
        message.ParseFromString(encoded)
    except (DecodeError, RecursionError, ValueError) as error:
        # The pure Python parser raises UnicodeDecodeError, which is a ValueError. Older parsers do
        # not count nesting.
        raise ProtocolViolation("a message that cannot be parsed") from error
    if has_too_many(message.connect.subs, bounds):
        if not message.id:
            raise ProtocolViolation("a command without id")
        return Command(message.id, InvalidRequest("connect"), size)
    for sub in message.connect.subs.values():
        # Nobody reads the filters in it, and each would take its time.
        sub.ClearField("tf")
    if _has_too_many_nodes(message.subscribe):
        if not message.id:
            raise ProtocolViolation("a command without id")
        return Command(message.id, InvalidRequest("subscribe"), size)
    fields, is_exact = _read(message, SCHEMA["Command"])
    command = command_of(fields, size, bounds, is_exact=is_exact)
    request = command.request
    if isinstance(request, PublishRequest):
        raw = message.publish.data
        request = replace(request, text=text_to_keep(raw, request.data), raw=raw)
        return replace(command, request=request)
    if request == InvalidRequest("publish") and message.publish.type >= 0:
        return replace(command, request=_publish_of_bytes(message.publish))
    return command


def _publish_of_bytes(publish: Any) -> PublishRequest:
    """A `publish` whose data is no JSON, or is empty. The channel decides whether it takes it."""
    raw = publish.data
    return PublishRequest(publish.channel, raw, publish.type, raw=raw)


PROTOBUF_FRAMES: Final = Reader(split_messages, decode_message)


def _id_of(encoded: bytes) -> int:
    """The id of a command that is too large to decode.

    Raises ProtocolViolation when it is not the first field.
    """
    if encoded[0] != _ID_FIRST:
        raise ProtocolViolation("too large, and without an id that could be found")
    command_id, _ = _varint(encoded, 1)
    if not 0 < command_id <= ID_MAX:
        raise ProtocolViolation("a command's id is not a positive number of 32 bits")
    return command_id


def _has_too_many_nodes(subscribe: Any) -> bool:
    """Whether its filter has more nodes than are read. To read 30,000 would take 100 ms."""
    if not subscribe.HasField("tf"):
        return False
    waiting, count = [subscribe.tf], 1
    while waiting:
        nodes = waiting.pop().nodes
        count += len(nodes)
        if count > NODES_MAX:
            return True
        waiting += nodes
    return False


def _read(message: Message, schema: Mapping[str, Field]) -> tuple[dict[str, Any], bool]:
    """The JSON values of a request. False = it holds bytes that are not JSON, or JSON that cannot
    be passed on.
    """
    fields: dict[str, Any] = {}
    is_exact = True
    for descriptor, value in message.ListFields():
        field = schema[descriptor.name]
        if field.shape is FieldShape.MESSAGE:
            fields[field.name], is_right = _read(value, SCHEMA[field.of])
        elif field.shape is FieldShape.MAP:
            read = {key: _read(each, SCHEMA[field.of]) for key, each in value.items()}
            fields[field.name] = {key: each for key, (each, _) in read.items()}
            is_right = all(right for _, right in read.values())
        elif field.shape is FieldShape.LIST:
            # The nodes of a filter, which hold no JSON.
            fields[field.name] = [_read(each, SCHEMA[field.of])[0] for each in value]
            is_right = True
        elif field.shape is FieldShape.SCALARS:
            fields[field.name], is_right = list(value), True
        elif field.shape is FieldShape.JSON:
            fields[field.name], is_right = _payload(value)
        elif field.shape is FieldShape.TEXTS:
            fields[field.name], is_right = dict(value), True
        else:
            fields[field.name], is_right = value, True
        is_exact = is_exact and is_right
    return fields, is_exact


def _payload(text: bytes) -> tuple[Any, bool]:
    try:
        return decode_payload(text), True
    except ProtocolViolation:
        # In this encoding the application wrote these bytes. The frame itself is valid.
        return None, False


# ---- lines to messages


def encode_messages(lines: bytes) -> bytes:
    """The payload of one binary frame with what `lines` say: one or more replies and pushes, with
    LINE_END between them.

    Fields that the table does not know, and values that a field cannot hold, are left out.
    """
    return b"".join(_encode_reply(orjson.loads(line)) for line in lines.split(b"\n"))


def _encode_reply(values: Mapping[str, Any]) -> bytes:
    message = _REPLY()
    fill(message, values, SCHEMA["Reply"])
    encoded: bytes = message.SerializeToString()
    return with_length(encoded)


def with_length(encoded: bytes) -> bytes:
    """A message as it stands in a frame."""
    return _length(len(encoded)) + encoded


def _length(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def fill(message: Message, values: Mapping[str, Any], schema: Mapping[str, Field]) -> None:
    """Give `message`, whose fields `schema` has, the values that its JSON would have."""
    for name, value in values.items():
        field = schema.get(name)
        if field is None:
            if name == DATA_TEXT and schema is SCHEMA["Publication"]:
                message.data = value.encode()
            elif name == BASE64_DATA and "data" in schema:
                message.data = from_base64(value)
            continue
        if field.shape is FieldShape.JSON:
            # A delta is no JSON: it is written unchanged.
            is_difference = schema is SCHEMA["Publication"] and values.get("delta") is True
            setattr(message, name, value.encode() if is_difference else orjson.dumps(value))
        elif field.shape is FieldShape.SCALAR:
            try:
                setattr(message, name, value)
            except (TypeError, ValueError):
                # A value by another writer, such as a time beyond 64 bits. The rest must still be
                # delivered.
                continue
        else:
            _fill_messages(getattr(message, name), value, field)


def _fill_messages(target: Any, value: Any, field: Field) -> None:
    """Fills `target`, the message, list or map of messages for `value`."""
    if field.shape is FieldShape.TEXTS:
        target.update(value)
        return
    schema = SCHEMA[field.of]
    if field.shape is FieldShape.LIST:
        for each in value:
            fill(target.add(), each, schema)
    elif field.shape is FieldShape.MAP:
        for key, each in value.items():
            fill(target[key], each, schema)
    else:
        # An empty result is present too, because SDKs access it.
        target.SetInParent()
        fill(target, value, schema)
