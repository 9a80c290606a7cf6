"""Decodes the frames of clients to commands, in version 2 of the Centrifuge client protocol.

A text frame holds one or more JSON objects, one a line. Each is a command: an `id`, and exactly one
request. `{}` is a pong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from roomcast.frozen import frozen
from roomcast.wire.keys import is_valid_key
from roomcast.wire.publication import (
    BASE64_DATA,
    TIME_MAX,
    Json,
    Payload,
    StreamPosition,
    from_base64,
)
from roomcast.wire.shapes import (
    COUNT,
    FLAG,
    INTEGER,
    OBJECT,
    OBJECT_OF_OBJECTS,
    OBJECT_OF_TEXTS,
    TEXT,
    checked,
    member_or_null,
    whole,
)
from roomcast.wire.tags_filter import Filter, InvalidFilter, filter_of

__all__ = [
    "COMMANDS_MAX",
    "CONNECT_FRAMES",
    "DATA_AND_TEXT_BYTES_MAX",
    "HISTORY_METHOD",
    "ID_MAX",
    "JSON_FRAMES",
    "LINE_END",
    "PUBLISH_METHOD",
    "Bounds",
    "Command",
    "ConnectRequest",
    "HistoryRequest",
    "InvalidRequest",
    "OversizedRequest",
    "PingRequest",
    "Pong",
    "PresenceRequest",
    "PresenceStatsRequest",
    "ProtocolViolation",
    "PublishRequest",
    "Reader",
    "RefreshRequest",
    "Request",
    "RpcPublishRequest",
    "RpcRequest",
    "SendRequest",
    "SubRefreshRequest",
    "SubscribeRequest",
    "UnsubscribeRequest",
    "command_of",
    "decode_command",
    "decode_payload",
    "has_too_many",
    "split_frame",
    "text_to_keep",
]

# Between the lines of one frame.
LINE_END: Final = b"\n"
# Commands in one frame: SDKs send a connect and all their subscriptions (128 at most) in one.
COMMANDS_MAX: Final = 1024
# The server's RPC methods of its own: the protocol's `publish` has no field for an idempotency key,
# and its `history` none for a time.
PUBLISH_METHOD: Final = "roomcast.publish"
HISTORY_METHOD: Final = "roomcast.history"
# Command ids have 32 bits.
ID_MAX: Final = 2**32 - 1

# A payload and its text, each as JSON, in one publication: three quarters of a log item. The rest
# is for the publisher's info.
DATA_AND_TEXT_BYTES_MAX: Final = 96 * 1024

# JavaScript may cut a string within a surrogate pair, and writes the half as an escape of its own.
# That is not valid Unicode.
_HALF: Final = re.compile(
    # A high surrogate that no low one follows, or a low one that no high one precedes.
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
# Nothing to be filled in: with that, each of ten thousand halves would take microseconds.
_REPLACEMENT: Final = rb"\\ufffd"
# An escaped backslash begins no other escape. What stands for it meanwhile is in no JSON.
_BACKSLASH: Final = rb"\\"
_STAND_IN: Final = b"\0"
# A command has two members: its id and its request. So the id of a command that is not decoded
# is its first or its last member.
_ID_FIRST: Final = re.compile(rb'\s*\{\s*"id"\s*:\s*(\d{1,10})\s*,')
_ID_LAST: Final = re.compile(rb',\s*"id"\s*:\s*(\d{1,10})\s*\}\s*$')
# Bytes at the end in which the id is searched.
_ID_BYTES_MAX: Final = 64


class ProtocolViolation(ValueError):
    """A frame violates the protocol: the connection is closed with 3501."""


class _BadField(ValueError):
    """A field of a request has a wrong type or value: error 107."""


@frozen
class ConnectRequest:
    """`since`: the positions from which to recover server-side subscriptions, by channel.

    `headers`: what the client gives as headers of its request, which it cannot set there.
    """

    token: str = ""
    data: Json = None
    name: str = ""
    version: str = ""
    since: Mapping[str, StreamPosition] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@frozen
class SubscribeRequest:
    """`since` is set when the client asks to recover.

    `type` other than 0 is another kind of subscription. `numbered`: the client accepts a number in
    place of the channel's name. `delta`: the kind of deltas that it asks for. `filter`: which
    publications it asks for; None = all.
    """

    channel: str
    token: str = ""
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    since: StreamPosition | None = None
    reject_unrecovered: bool = False
    type: int = 0
    numbered: bool = False
    delta: str = ""
    data: Json = None
    filter: Filter | None = None


@frozen
class UnsubscribeRequest:
    """Ends a subscription. A client that was not subscribed gets an answer too."""

    channel: str


@frozen
class PublishRequest:
    """`type` other than 0 is for another kind of channel.

    `text`: the data's JSON text, to be kept. See Publication. `raw`: the data's bytes, in Protobuf;
    None = in JSON. If they are no JSON, they are the data as well.
    """

    channel: str
    data: Payload
    type: int = 0
    text: str | None = None
    raw: bytes | None = field(default=None, compare=False)


@frozen
class PresenceRequest:
    """Asks for the members of a channel."""

    channel: str


@frozen
class PresenceStatsRequest:
    """Asks for the number of members of a channel."""

    channel: str


@frozen
class HistoryRequest:
    """`limit` 0 = the position only, negative = all up to the cap. `since` is exclusive.

    `rpc`: it is a call of HISTORY_METHOD. Only these have a `since_ms` and `until_ms` (appended at
    that time or later, and before; None = no bound).
    """

    channel: str
    limit: int = 0
    since: StreamPosition | None = None
    reverse: bool = False
    rpc: bool = False
    since_ms: int | None = None
    until_ms: int | None = None


@frozen
class RpcRequest:
    """Calls one of the application's methods."""

    method: str
    data: Json


@frozen
class RpcPublishRequest:
    """Calls PUBLISH_METHOD: a publish whose answer contains the position.

    `key`, if any, is valid. `raw`: the bytes of `b64data`, which is for binary channels; None = it
    had `data`.
    """

    channel: str
    data: Json
    key: str | None = None
    raw: bytes | None = None


@frozen
class SendRequest:
    """A message to the application, without an answer and without an id."""

    data: Json


@frozen
class RefreshRequest:
    """A new connection token."""

    token: str


@frozen
class SubRefreshRequest:
    """A new subscription token."""

    channel: str
    token: str


@frozen
class PingRequest:
    """A client's own ping command: answered with error 108."""


@frozen
class Pong:
    """The answer to our ping."""


@frozen
class OversizedRequest:
    """A command that is too large to decode: answered with error 106."""


@frozen
class InvalidRequest:
    """A known method whose fields are wrong: answered with error 107."""

    method: str


Request = (
    ConnectRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | PublishRequest
    | PresenceRequest
    | PresenceStatsRequest
    | HistoryRequest
    | RpcRequest
    | RpcPublishRequest
    | SendRequest
    | RefreshRequest
    | SubRefreshRequest
    | PingRequest
    | Pong
    | OversizedRequest
    | InvalidRequest
)


@frozen
class Command:
    """One command. `id` is 0 only for `send` and pong. `size`: the length of the command's line or
    message in bytes.
    """

    id: int
    request: Request
    size: int


# ---- frames to commands


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of decoding.

    `command_bytes`: a larger command is not decoded. `subs`: subscriptions in one `connect`.
    """

    command_bytes: int
    subs: int


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the frames of one encoding. Both functions raise ProtocolViolation.

    `split`: splits a frame, whose size the transport has bounded, into its commands, at little
    cost. `decode`: decodes one of them.
    """

    split: Callable[[Any], Sequence[bytes]]
    decode: Callable[[bytes, Bounds], Command]


def split_frame(frame: str | bytes) -> Sequence[bytes]:
    """The lines of one text frame, one command each. Raises ProtocolViolation."""
    lines = _utf8(frame).rstrip(LINE_END).split(LINE_END, COMMANDS_MAX)
    if len(lines) > COMMANDS_MAX:
        raise ProtocolViolation("too many commands in one frame")
    return lines


def _utf8(frame: str | bytes) -> bytes:
    if isinstance(frame, bytes):
        return frame
    try:
        return frame.encode()
    except UnicodeEncodeError as error:
        raise ProtocolViolation("not valid Unicode") from error


def decode_command(line: bytes, bounds: Bounds) -> Command:
    """The command of one line. Raises ProtocolViolation."""
    if len(line) > bounds.command_bytes:
        return Command(_id_of(line), OversizedRequest(), len(line))
    fields = decode_payload(line)
    if not isinstance(fields, dict):
        raise ProtocolViolation("a command is not an object")
    if not fields:
        return Command(0, Pong(), len(line))
    return command_of(fields, len(line), bounds, is_exact=True)


JSON_FRAMES: Final = Reader(split_frame, decode_command)


def whole_frame(frame: str | bytes) -> Sequence[bytes]:
    """The one request in `frame`. Raises ProtocolViolation."""
    return (_utf8(frame),)


def decode_connect(request: bytes, bounds: Bounds) -> Command:
    """The `connect` whose `request` stands alone, without a command around it: it is all that its
    client says. Raises ProtocolViolation.
    """
    if len(request) > bounds.command_bytes:
        raise ProtocolViolation("too large for a connect")
    command = {"id": 1, "connect": decode_payload(request)}
    return command_of(command, len(request), bounds, is_exact=True)


CONNECT_FRAMES: Final = Reader(whole_frame, decode_connect)


def _id_of(line: bytes) -> int:
    """The id of a command that is too large to decode.

    Raises ProtocolViolation when it is neither the first nor the last member.
    """
    found = _ID_FIRST.match(line[:_ID_BYTES_MAX]) or _ID_LAST.search(line[-_ID_BYTES_MAX:])
    if found is None or not 0 < (command_id := int(found[1])) <= ID_MAX:
        raise ProtocolViolation("too large, and without an id that could be found")
    return command_id


def command_of(fields: dict[str, Any], size: int, bounds: Bounds, *, is_exact: bool) -> Command:
    """The command in the decoded `fields`, whatever their encoding was. Raises ProtocolViolation.

    `size`: of the encoded command, in bytes. `is_exact`: False = a value in it cannot be passed on.
    """
    command_id = fields.get("id", 0)
    if not INTEGER.fits(command_id) or not 0 <= command_id <= ID_MAX:
        raise ProtocolViolation("a command's id is not a positive number of 32 bits")
    for method, decode in _DECODERS.items():
        params = fields.get(method)
        if params is None:
            continue
        if command_id == 0 and method != "send":
            raise ProtocolViolation("a command without id")
        if not isinstance(params, dict):
            raise ProtocolViolation("a request is not an object")
        try:
            if not is_exact:
                raise _BadField("a value that cannot be passed on")
            if method == "connect" and has_too_many(params.get("subs"), bounds):
                raise _BadField("more subs than there may be")
            return Command(command_id, decode(params), size)
        except _BadField:
            return Command(command_id, InvalidRequest(method), size)
    raise ProtocolViolation("a command without a known method")


def has_too_many(subs: object, bounds: Bounds) -> bool:
    """Whether a `connect` has more `subs` than may be processed. Each one has a cost."""
    return isinstance(subs, Sized) and len(subs) > bounds.subs


def decode_payload(text: bytes) -> Json:
    """The JSON value of `text`. Raises ProtocolViolation, also for numbers beyond a double.

    JavaScript writes half an emoji as a lone surrogate, which is not valid Unicode. It becomes
    U+FFFD, as in a page.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return orjson.loads(_without_halves(text))
    except orjson.JSONDecodeError as error:
        raise ProtocolViolation("not JSON, or nested too deeply") from error


def _without_halves(text: bytes) -> bytes:
    """JSON with U+FFFD for each half of a character; what is no JSON stays none."""
    if _STAND_IN in text:
        return text
    return _HALF.sub(_REPLACEMENT, _escapes(text)).replace(_STAND_IN, _BACKSLASH)


def _escapes(text: bytes) -> bytes:
    """JSON in which each backslash begins an escape of a character."""
    return text.replace(_BACKSLASH, _STAND_IN)


def _connect(params: dict[str, Any]) -> Request:
    return ConnectRequest(
        token=_text(params, "token"),
        data=params.get("data"),
        name=_text(params, "name"),
        version=_text(params, "version"),
        since=_recoveries(params),
        headers=member_or_null(params, "headers", OBJECT_OF_TEXTS, {}, _BadField),
    )


def _recoveries(params: dict[str, Any]) -> dict[str, StreamPosition]:
    """The positions in a connect's `subs`. SDKs list their server-side subscriptions that can be
    recovered.
    """
    subs = params.get("subs")
    if subs is None:
        return {}
    if not OBJECT_OF_OBJECTS.fits(subs):
        raise _BadField("subs are not objects")
    return {
        channel: StreamPosition(_text(sub, "epoch"), _count(sub, "offset"))
        for channel, sub in subs.items()
        if _flag(sub, "recover")
    }


# Of the history's bounds, in ms since 1970.
_TIME: Final = whole(0, TIME_MAX)
# Bits of SubscribeRequest.flag.
_COMPACTION: Final = 1
_REJECT_UNRECOVERED: Final = 2


def _subscribe(params: dict[str, Any]) -> Request:
    recover, flag = _flag(params, "recover"), _count(params, "flag")
    position = StreamPosition(_text(params, "epoch"), _count(params, "offset"))
    return SubscribeRequest(
        channel=_text(params, "channel"),
        token=_text(params, "token"),
        positioned=_flag(params, "positioned"),
        recoverable=_flag(params, "recoverable"),
        join_leave=_flag(params, "join_leave"),
        since=position if recover else None,
        reject_unrecovered=bool(flag & _REJECT_UNRECOVERED),
        numbered=bool(flag & _COMPACTION),
        delta=_text(params, "delta"),
        type=_count(params, "type"),
        data=params.get("data"),
        filter=_filter(params.get("tf")),
    )


def _filter(node: object) -> Filter | None:
    if node is None:
        return None
    try:
        return filter_of(node)
    except InvalidFilter as error:
        raise _BadField(str(error)) from error


def _publish(params: dict[str, Any]) -> Request:
    if "data" not in params:
        raise _BadField("publish without data")
    return PublishRequest(_text(params, "channel"), params["data"], _count(params, "type"))


def _history(params: dict[str, Any]) -> HistoryRequest:
    since = params.get("since")
    if since is not None:
        since = checked(since, "since", OBJECT, _BadField)
        since = StreamPosition(_text(since, "epoch"), _count(since, "offset"))
    limit = member_or_null(params, "limit", INTEGER, 0, _BadField)
    reverse = _flag(params, "reverse")
    if reverse and since is not None and since.offset == 0:
        raise _BadField("nothing is before offset 0")
    return HistoryRequest(_text(params, "channel"), limit, since, reverse)


def _history_by_time(data: Json) -> Request:
    if not isinstance(data, dict):
        raise _BadField("no channel to read")
    request = _history(data)
    if not request.channel:
        raise _BadField("no channel to read")
    since_ms, until_ms = _time(data, "since_time"), _time(data, "until_time")
    return replace(request, rpc=True, since_ms=since_ms, until_ms=until_ms)


def _time(params: dict[str, Any], name: str) -> int | None:
    value = params.get(name)
    return None if value is None else checked(value, name, _TIME, _BadField)


def _rpc(params: dict[str, Any]) -> Request:
    method, data = _text(params, "method"), params.get("data")
    if method == HISTORY_METHOD:
        return _history_by_time(data)
    if method != PUBLISH_METHOD:
        return RpcRequest(method, data)
    if not isinstance(data, dict) or ("data" in data) == (BASE64_DATA in data):
        raise _BadField("a publication without data, or with two")
    channel, key = _text(data, "channel"), data.get("idempotency_key")
    if not channel:
        # An error inside a call does not end the connection.
        raise _BadField("a publication without channel")
    # An empty key is a mistake. Ignored, it would let a retry publish twice.
    if key is not None and not (isinstance(key, str) and is_valid_key(key)):
        raise _BadField("not an idempotency key")
    if BASE64_DATA not in data:
        return RpcPublishRequest(channel, data["data"], key)
    try:
        return RpcPublishRequest(channel, None, key, from_base64(data[BASE64_DATA]))
    except ValueError as error:
        raise _BadField("not base64") from error


# In order of precedence.
_DECODERS: Final[Mapping[str, Callable[[dict[str, Any]], Request]]] = {
    "connect": _connect,
    "ping": lambda _: PingRequest(),
    "subscribe": _subscribe,
    "unsubscribe": lambda params: UnsubscribeRequest(_text(params, "channel")),
    "publish": _publish,
    "presence": lambda params: PresenceRequest(_text(params, "channel")),
    "presence_stats": lambda params: PresenceStatsRequest(_text(params, "channel")),
    "history": _history,
    "rpc": _rpc,
    "send": lambda params: SendRequest(params.get("data")),
    "refresh": lambda params: RefreshRequest(_text(params, "token")),
    "sub_refresh": lambda params: SubRefreshRequest(
        _text(params, "channel"), _text(params, "token")
    ),
}


def _text(params: dict[str, Any], name: str) -> str:
    value = params.get(name)
    return "" if value is None else checked(value, name, TEXT, _BadField)


def _flag(params: dict[str, Any], name: str) -> bool:
    value = params.get(name)
    return False if value is None else checked(value, name, FLAG, _BadField)


def _count(params: dict[str, Any], name: str) -> int:
    value = params.get(name)
    return 0 if value is None else checked(value, name, COUNT, _BadField)


# ---- payloads


def text_to_keep(raw: bytes, data: Json) -> str | None:
    """`raw`, the text of `data`, if it must be kept beside it for clients that get payloads as
    bytes.

    None: encoding `data` gives the same bytes. Or `raw` contains a lone surrogate, which no client
    may get. Or both together are too large.
    """
    try:
        encoded = orjson.dumps(data)
    except orjson.JSONEncodeError:
        # It will be refused.
        return None
    if encoded == raw or (b"\\u" in raw and _HALF.search(_escapes(raw))):
        return None
    text = raw.decode()
    return text if len(encoded) + len(orjson.dumps(text)) <= DATA_AND_TEXT_BYTES_MAX else None
