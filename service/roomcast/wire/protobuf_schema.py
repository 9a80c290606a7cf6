"""Defines the Protobuf messages of the Centrifuge protocol: one table, and the classes built from
it.

The numbers are the protocol's. A request has the fields that service/roomcast/wire/commands.py
reads, and a parser skips all others. A reply or push has the fields that this server may send.
`bytes` always hold the text of a JSON value.

The classes live in their own pool. The process may hold another library's classes of the same
protocol, and a pool takes each name only once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

__all__ = ["SCHEMA", "Field", "FieldShape", "message_class"]

# As in a .proto file: type, name, number. Capitalized types are messages of this table.
_MESSAGES: Final = {
    # ---- from clients
    "Command": """
        uint32 id = 1; ConnectRequest connect = 4; SubscribeRequest subscribe = 5;
        UnsubscribeRequest unsubscribe = 6; PublishRequest publish = 7;
        PresenceRequest presence = 8; PresenceStatsRequest presence_stats = 9;
        HistoryRequest history = 10; PingRequest ping = 11; SendRequest send = 12;
        RPCRequest rpc = 13; RefreshRequest refresh = 14; SubRefreshRequest sub_refresh = 15""",
    "ConnectRequest": """
        string token = 1; bytes data = 2; map<string,SubscribeRequest> subs = 3;
        string name = 4; string version = 5; map<string,string> headers = 6""",
    "SubscribeRequest": """
        string channel = 1; string token = 2; bool recover = 3; string epoch = 6;
        uint64 offset = 7; bytes data = 8; bool positioned = 9; bool recoverable = 10;
        bool join_leave = 11; string delta = 12; FilterNode tf = 13; int64 flag = 14;
        int32 type = 15""",
    "FilterNode": """
        string op = 1; string key = 2; string cmp = 3; string val = 4; repeated string vals = 5;
        repeated FilterNode nodes = 6""",
    "UnsubscribeRequest": "string channel = 1",
    "PublishRequest": "string channel = 1; bytes data = 2; int32 type = 3",
    "PresenceRequest": "string channel = 1",
    "PresenceStatsRequest": "string channel = 1",
    "HistoryRequest": """
        string channel = 1; int32 limit = 7; StreamPosition since = 8; bool reverse = 9""",
    "StreamPosition": "uint64 offset = 1; string epoch = 2",
    "PingRequest": "",
    "SendRequest": "bytes data = 1",
    "RPCRequest": "bytes data = 1; string method = 2",
    "RefreshRequest": "string token = 1",
    "SubRefreshRequest": "string channel = 1; string token = 2",
    # ---- to clients
    "Reply": """
        uint32 id = 1; Error error = 2; Push push = 4; ConnectResult connect = 5;
        SubscribeResult subscribe = 6; UnsubscribeResult unsubscribe = 7;
        PublishResult publish = 8; PresenceResult presence = 9;
        PresenceStatsResult presence_stats = 10; HistoryResult history = 11;
        PingResult ping = 12; RPCResult rpc = 13; RefreshResult refresh = 14;
        SubRefreshResult sub_refresh = 15""",
    "Error": "uint32 code = 1; string message = 2; bool temporary = 3",
    "ConnectResult": """
        string client = 1; string version = 2; bool expires = 3; uint32 ttl = 4; bytes data = 5;
        map<string,SubscribeResult> subs = 6; uint32 ping = 7; bool pong = 8;
        string session = 9; string node = 10; int64 time = 11""",
    "SubscribeResult": """
        bool expires = 1; uint32 ttl = 2; bool recoverable = 3; string epoch = 6;
        repeated Publication publications = 7; bool recovered = 8; uint64 offset = 9;
        bool positioned = 10; bytes data = 11; bool was_recovering = 12; bool delta = 13;
        int64 id = 14""",
    "UnsubscribeResult": "",
    "PublishResult": "",
    "PresenceResult": "map<string,ClientInfo> presence = 1",
    "PresenceStatsResult": "uint32 num_clients = 1; uint32 num_users = 2",
    "HistoryResult": "repeated Publication publications = 1; string epoch = 2; uint64 offset = 3",
    "PingResult": "",
    "RPCResult": "bytes data = 1",
    "RefreshResult": "string client = 1; string version = 2; bool expires = 3; uint32 ttl = 4",
    "SubRefreshResult": "bool expires = 1; uint32 ttl = 2",
    "Push": """
        int64 id = 1; string channel = 2; Publication pub = 4; Join join = 5; Leave leave = 6;
        Unsubscribe unsubscribe = 7; Message message = 8; Subscribe subscribe = 9;
        Disconnect disconnect = 11; Refresh refresh = 12""",
    "Publication": """
        bytes data = 4; ClientInfo info = 5; uint64 offset = 6; map<string,string> tags = 7;
        bool delta = 8; int64 time = 9; string channel = 10; string epoch = 14""",
    "ClientInfo": "string user = 1; string client = 2; bytes conn_info = 3; bytes chan_info = 4",
    "Join": "ClientInfo info = 1",
    "Leave": "ClientInfo info = 1",
    "Unsubscribe": "uint32 code = 2; string reason = 3",
    "Message": "bytes data = 1",
    "Subscribe": """
        bool recoverable = 1; string epoch = 4; uint64 offset = 5; bool positioned = 6;
        bytes data = 7""",
    "Disconnect": "uint32 code = 1; string reason = 2; bool reconnect = 3",
    "Refresh": "bool expires = 1; uint32 ttl = 2",
    "EmulationRequest": "string node = 1; string session = 2; bytes data = 3",
}

_FILE: Final = "roomcast/client.proto"
_PACKAGE: Final = "roomcast.client"
_REPEATED: Final = "repeated "
_MAP: Final = "map<string,"


class FieldShape(Enum):
    """The shape of a field's value. SCALAR: a number, boolean or text. SCALARS: a list of them.
    JSON: the text of a value.
    """

    SCALAR = auto()
    SCALARS = auto()
    JSON = auto()
    MESSAGE = auto()
    LIST = auto()
    MAP = auto()
    TEXTS = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    `of`: the name of the scalar type or message. For lists and maps: that of the elements.

    LIST is a list of messages. MAP maps texts to messages, TEXTS maps texts to texts.
    """

    name: str
    number: int
    shape: FieldShape
    of: str


def _field(text: str) -> Field:
    declared, number = text.strip().split(" = ")
    kind, name = declared.rsplit(" ", 1)
    if kind.startswith(_REPEATED):
        of = kind.removeprefix(_REPEATED)
        return Field(
            name, int(number), FieldShape.LIST if of in _MESSAGES else FieldShape.SCALARS, of
        )
    if kind.startswith(_MAP):
        of = kind.removeprefix(_MAP).removesuffix(">")
        return Field(name, int(number), FieldShape.TEXTS if of == "string" else FieldShape.MAP, of)
    if kind == "bytes":
        return Field(name, int(number), FieldShape.JSON, kind)
    return Field(
        name, int(number), FieldShape.MESSAGE if kind in _MESSAGES else FieldShape.SCALAR, kind
    )


# Name of a message → name of a field → the field.
SCHEMA: Final[Mapping[str, Mapping[str, Field]]] = {
    message: {field.name: field for field in map(_field, filter(str.strip, fields.split(";")))}
    for message, fields in _MESSAGES.items()
}

_TYPES: Final[Mapping[str, int]] = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "int32", "int64", "string", "uint32", "uint64")
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field in fields.values():
            is_one = field.shape in (FieldShape.SCALAR, FieldShape.JSON, FieldShape.MESSAGE)
            _declare(
                message, field.name, field.number, _entry(message, name, field), repeated=not is_one
            )
    return file


def _entry(message: descriptor_pb2.DescriptorProto, name: str, field: Field) -> str:
    """The declared type of `field`. On the wire, a map is a list of entries, which are messages of
    their own.
    """
    if field.shape not in (FieldShape.MAP, FieldShape.TEXTS):
        return field.of
    entry = message.nested_type.add(name=f"{field.name.title()}Entry")
    entry.options.map_entry = True
    _declare(entry, "key", 1, "string")
    _declare(entry, "value", 2, field.of)
    return f"{name}.{entry.name}"


def _declare(
    message: descriptor_pb2.DescriptorProto,
    name: str,
    number: int,
    of: str,
    *,
    repeated: bool = False,
) -> None:
    one, many = (
        descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
    )
    field = message.field.add(name=name, number=number, label=many if repeated else one)
    if of in _TYPES:
        field.type = _TYPES[of]
    else:
        field.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{of}"


_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(_file().SerializeToString())


def message_class(name: str) -> type[Message]:
    """The class of message `name` of SCHEMA."""
    found: type[Message] = message_factory.GetMessageClass(
        _POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    )
    return found
