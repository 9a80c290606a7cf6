"""service/roomcast/wire/protobuf_schema.py: the table has the protocol's numbers,
and what the rest of the code needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest
from centrifuge.protocol import client_pb2
from google.protobuf import descriptor_pb2

from roomcast.wire import commands
from roomcast.wire.protobuf_schema import SCHEMA, Field, FieldShape, message_class


def messages(file: Any) -> Mapping[str, descriptor_pb2.DescriptorProto]:
    """The declarations in a file, by name."""
    declared = descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb)
    return {message.name: message for message in declared.message_type}


OURS: Final = messages(message_class("Command").DESCRIPTOR.file)
THEIRS: Final = messages(client_pb2.DESCRIPTOR)


def _fields(message: descriptor_pb2.DescriptorProto) -> Mapping[str, tuple[Any, ...]]:
    """(number, type, one or many, last part of the message's name),
    and those of a map's entries.
    """
    entries = {
        entry.name: _fields(entry) for entry in message.nested_type if entry.options.map_entry
    }
    return {
        field.name: (
            field.number,
            field.type,
            field.label,
            *entries.get(of := field.type_name.rpartition(".")[2], {"": of}).items(),
        )
        for field in message.field
    }


@pytest.mark.parametrize("message", SCHEMA)
def test_fields_are_those_of_the_published_sdk(message: str) -> None:
    theirs = _fields(THEIRS[message])
    ours = _fields(OURS[message])
    assert {name: field for name, field in ours.items() if name in theirs} == {
        name: field for name, field in theirs.items() if name in ours
    }
    # What an SDK does not know yet has a number that it does not know either.
    numbers = {number for number, *_ in theirs.values()}
    assert [
        name for name, (number, *_) in ours.items() if name not in theirs and number in numbers
    ] == []


def test_an_sdk_knows_most_of_it() -> None:
    unknown = [
        f"{message}.{name}"
        for message in SCHEMA
        for name in _fields(OURS[message])
        if name not in _fields(THEIRS[message])
    ]
    assert len(unknown) <= 4, unknown


def test_every_message_is_declared() -> None:
    assert set(OURS) == set(SCHEMA)


def test_both_libraries_live_in_one_process() -> None:
    ours, theirs = (
        message_class("Error")(),
        client_pb2.Error(code=100, message="internal server error"),
    )
    ours.ParseFromString(theirs.SerializeToString())
    assert [value for _, value in ours.ListFields()] == [100, "internal server error"]
    assert type(ours) is not type(theirs)


class Asked(dict[str, Any]):
    """A request without fields, which knows what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return default

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return True

    def __getitem__(self, key: str) -> Any:
        self.names.add(key)
        return {}


@pytest.mark.parametrize("method", commands._DECODERS)
def test_a_request_has_the_fields_that_are_read_of_it(method: str) -> None:
    asked = Asked()
    commands._DECODERS[method](asked)
    assert asked.names == set(SCHEMA[SCHEMA["Command"][method].of])


def test_every_method_is_a_command_and_has_a_result() -> None:
    methods = set(commands._DECODERS)
    assert set(SCHEMA["Command"]) == {"id", *methods}
    assert set(SCHEMA["Reply"]) == {"id", "error", "push", *methods - {"send"}}


@pytest.mark.parametrize(
    "message, field",
    [
        ("Command", Field("id", 1, FieldShape.SCALAR, "uint32")),
        ("Command", Field("publish", 7, FieldShape.MESSAGE, "PublishRequest")),
        ("PublishRequest", Field("data", 2, FieldShape.JSON, "bytes")),
        ("FilterNode", Field("vals", 5, FieldShape.SCALARS, "string")),
        ("HistoryResult", Field("publications", 1, FieldShape.LIST, "Publication")),
        ("PresenceResult", Field("presence", 1, FieldShape.MAP, "ClientInfo")),
        ("Publication", Field("tags", 7, FieldShape.TEXTS, "string")),
    ],
)
def test_the_table_is_read_as_it_is_meant(message: str, field: Field) -> None:
    assert SCHEMA[message][field.name] == field


def test_what_requests_hold_is_of_few_shapes() -> None:
    """The decoder goes by it."""
    names, shapes = ["Command"], set()
    for name in names:
        for field in SCHEMA[name].values():
            shapes.add(field.shape)
            if field.shape is FieldShape.MESSAGE:
                names.append(field.of)
    assert shapes == {
        FieldShape.SCALAR,
        FieldShape.SCALARS,
        FieldShape.JSON,
        FieldShape.MESSAGE,
        FieldShape.LIST,
        FieldShape.MAP,
        FieldShape.TEXTS,
    }
