"""The Centrifuge client protocol, version 2, in JSON: decodes commands, encodes replies and pushes.

A text frame holds one or more JSON objects, one a line, in both directions. A command has an `id`
and exactly one request. A reply echoes the id with an error or a result of the same name. A push
has no id. `{}` is a ping from the server and a pong from the client. Empty fields are left out,
except for those that docs/protocol.md lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from roomcast.wire.codes import Failing, Unsubscribe, error_of
from roomcast.wire.keys import is_valid_key
from roomcast.wire.publication import (
    ClientInfo,
    Json,
    MalformedPublication,
    Publication,
    StreamPosition,
)
from roomcast.wire.shapes import (
    COUNT,
    FLAG,
    INTEGER,
    OBJECT,
    OBJECT_OF_OBJECTS,
    TEXT,
    checked,
    member_or_null,
)

__all__ = [
    "COMMANDS_MAX",
    "DATA_AND_TEXT_BYTES_MAX",
    "ID_MAX",
    "JSON_FRAMES",
    "LINE_END",
    "PING",
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
    "Unencodable",
    "UnsubscribeRequest",
    "command_of",
    "decode_command",
    "decode_json",
    "decode_payload",
    "decode_publications",
    "dumps",
    "encode_error",
    "encode_lines_reply",
    "encode_reply",
    "encode_stored",
    "has_too_many",
    "info_push",
    "publication_push",
    "publication_pushes",
    "refresh_push",
    "split_frame",
    "subscribe_push",
    "subscribe_result",
    "text_to_keep",
    "unsubscribe_push",
]

PING: Final = b"{}"
# Between the lines of one frame.
LINE_END: Final = b"\n"
# Commands in one frame: SDKs send a connect and all their subscriptions (128 at most) in one.
COMMANDS_MAX: Final = 1024
# The server's only RPC method of its own: the protocol's `publish` has no field for an idempotency
# key.
PUBLISH_METHOD: Final = "roomcast.publish"
# Command ids have 32 bits.
ID_MAX: Final = 2**32 - 1

# A payload and its text, each as JSON, in one publication: three quarters of a log item. The rest
# is for the publisher's info.
DATA_AND_TEXT_BYTES_MAX: Final = 96 * 1024

# JavaScript may cut a string within a surrogate pair, and writes the half as an escape of its own.
# That is not valid Unicode.
_HALF: Final = re.compile(
    # After an even number of backslashes, so that it is an escape: a high surrogate that no low one
    # follows, or a low one that no high one precedes.
    rb"(?<!\\)((?:\\\\)*)\\u(?:"
    rb"[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u)[dD][c-fC-F][0-9a-fA-F]{2})"
)
_REPLACEMENT: Final = rb"\1\\ufffd"
# A command has two members: its id and its request. So the id of a command that is not decoded
# is its first or its last member.
_ID_FIRST: Final = re.compile(rb'\s*\{\s*"id"\s*:\s*(\d{1,10})\s*,')
_ID_LAST: Final = re.compile(rb',\s*"id"\s*:\s*(\d{1,10})\s*\}\s*$')
# Bytes at the end in which the id is searched.
_ID_BYTES_MAX: Final = 64


class ProtocolViolation(ValueError):
    """A frame violates the protocol: the connection is closed with 3501."""


class Unencodable(ValueError):
    """A payload cannot be encoded as JSON again, because it is nested too deeply."""


class _BadField(ValueError):
    """A field of a request has a wrong type or value: error 107."""


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """`since`: the positions from which to recover server-side subscriptions, by channel."""

    token: str = ""
    data: Json = None
    name: str = ""
    version: str = ""
    since: Mapping[str, StreamPosition] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """`since` is set when the client asks to recover.

    `type` other than 0 is another kind of subscription. `numbered`: the client accepts a number in
    place of the channel's name. `delta`: the kind of deltas that it asks for.
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


@dataclass(frozen=True, slots=True)
class UnsubscribeRequest:
    """Ends a subscription. A client that was not subscribed gets an answer too."""

    channel: str


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """`type` other than 0 is for another kind of channel.

    `text`: the data's JSON text, to be kept. See Publication.
    """

    channel: str
    data: Json
    type: int = 0
    text: str | None = None


@dataclass(frozen=True, slots=True)
class PresenceRequest:
    """Asks for the members of a channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class PresenceStatsRequest:
    """Asks for the number of members of a channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """`limit` 0 = the position only, negative = all up to the cap. `since` is exclusive."""

    channel: str
    limit: int = 0
    since: StreamPosition | None = None
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class RpcRequest:
    """Calls one of the application's methods."""

    method: str
    data: Json


@dataclass(frozen=True, slots=True)
class RpcPublishRequest:
    """Calls PUBLISH_METHOD: a publish whose answer contains the position.

    `key`, if any, is valid.
    """

    channel: str
    data: Json
    key: str | None = None


@dataclass(frozen=True, slots=True)
class SendRequest:
    """A message to the application, without an answer and without an id."""

    data: Json


@dataclass(frozen=True, slots=True)
class RefreshRequest:
    """A new connection token."""

    token: str


@dataclass(frozen=True, slots=True)
class SubRefreshRequest:
    """A new subscription token."""

    channel: str
    token: str


@dataclass(frozen=True, slots=True)
class PingRequest:
    """A client's own ping command: answered with error 108."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to our ping."""


@dataclass(frozen=True, slots=True)
class OversizedRequest:
    """A command that is too large to decode: answered with error 106."""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
    if isinstance(frame, str):
        try:
            frame = frame.encode()
        except UnicodeEncodeError as error:
            raise ProtocolViolation("not valid Unicode") from error
    lines = frame.rstrip(LINE_END).split(LINE_END, COMMANDS_MAX)
    if len(lines) > COMMANDS_MAX:
        raise ProtocolViolation("too many commands in one frame")
    return lines


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
        return orjson.loads(_HALF.sub(_REPLACEMENT, text))
    except orjson.JSONDecodeError as error:
        raise ProtocolViolation("not JSON, or nested too deeply") from error


def _connect(params: dict[str, Any]) -> Request:
    return ConnectRequest(
        token=_text(params, "token"),
        data=params.get("data"),
        name=_text(params, "name"),
        version=_text(params, "version"),
        since=_recoveries(params),
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


# Bits of SubscribeRequest.flag.
_COMPACTION: Final = 1
_REJECT_UNRECOVERED: Final = 2


def _subscribe(params: dict[str, Any]) -> Request:
    recover = _flag(params, "recover")
    position = StreamPosition(_text(params, "epoch"), _count(params, "offset"))
    return SubscribeRequest(
        channel=_text(params, "channel"),
        token=_text(params, "token"),
        positioned=_flag(params, "positioned"),
        recoverable=_flag(params, "recoverable"),
        join_leave=_flag(params, "join_leave"),
        since=position if recover else None,
        reject_unrecovered=bool(_count(params, "flag") & _REJECT_UNRECOVERED),
        numbered=bool(_count(params, "flag") & _COMPACTION),
        delta=_text(params, "delta"),
        type=_count(params, "type"),
        data=params.get("data"),
    )


def _publish(params: dict[str, Any]) -> Request:
    if "data" not in params:
        raise _BadField("publish without data")
    return PublishRequest(_text(params, "channel"), params["data"], _count(params, "type"))


def _history(params: dict[str, Any]) -> Request:
    since = params.get("since")
    if since is not None:
        since = checked(since, "since", OBJECT, _BadField)
        since = StreamPosition(_text(since, "epoch"), _count(since, "offset"))
    limit = member_or_null(params, "limit", INTEGER, 0, _BadField)
    reverse = _flag(params, "reverse")
    if reverse and since is not None and since.offset == 0:
        raise _BadField("nothing is before offset 0")
    return HistoryRequest(_text(params, "channel"), limit, since, reverse)


def _rpc(params: dict[str, Any]) -> Request:
    method, data = _text(params, "method"), params.get("data")
    if method != PUBLISH_METHOD:
        return RpcRequest(method, data)
    if not isinstance(data, dict) or "data" not in data:
        raise _BadField("a publication without data")
    channel, key = _text(data, "channel"), data.get("idempotency_key")
    if not channel:
        # An error inside a call does not end the connection.
        raise _BadField("a publication without channel")
    # An empty key is a mistake. Ignored, it would let a retry publish twice.
    if key is not None and not (isinstance(key, str) and is_valid_key(key)):
        raise _BadField("not an idempotency key")
    return RpcPublishRequest(channel, data["data"], key)


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
    return member_or_null(params, name, TEXT, "", _BadField)


def _flag(params: dict[str, Any], name: str) -> bool:
    return member_or_null(params, name, FLAG, False, _BadField)


def _count(params: dict[str, Any], name: str) -> int:
    return member_or_null(params, name, COUNT, 0, _BadField)


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
    if encoded == raw or (b"\\u" in raw and _HALF.search(raw)):
        return None
    text = raw.decode()
    return text if len(encoded) + len(orjson.dumps(text)) <= DATA_AND_TEXT_BYTES_MAX else None


def decode_json(text: str) -> Any:
    """`json.loads`, faster and stricter. Raises ValueError."""
    return orjson.loads(text)


def decode_publications(pubs: str, offset: int) -> tuple[Publication, ...]:
    """The publications of a log item whose first has `offset`. Raises MalformedPublication."""
    try:
        stored = orjson.loads(pubs)
    except orjson.JSONDecodeError as error:
        raise MalformedPublication("pubs is not JSON") from error
    if not isinstance(stored, list):
        raise MalformedPublication("pubs is not an array")
    return tuple(
        Publication.from_stored(entry, offset + index) for index, entry in enumerate(stored)
    )


def encode_stored(publication: Publication) -> str:
    """The text of a publication for the log. Raises Unencodable."""
    return dumps(publication.stored()).decode()


def dumps(value: Any) -> bytes:
    """JSON of what goes to clients or into the log. Raises Unencodable."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise Unencodable("nested too deeply") from error


# ---- replies and pushes to lines


def encode_reply(command_id: int, method: str, result: Mapping[str, Json]) -> bytes:
    """One reply line. `result` is always present, even if empty, because SDKs access it.

    Raises Unencodable.
    """
    return dumps({"id": command_id, method: result})


def encode_lines_reply(
    command_id: int, method: str, publications: Sequence[bytes], result: Mapping[str, Json]
) -> bytes:
    """A reply whose result always contains `publications`, encoded by `encode_publication`."""
    lines = [orjson.Fragment(line) for line in publications]
    return orjson.dumps({"id": command_id, method: {"publications": lines, **result}})


def encode_member(info: ClientInfo) -> bytes:
    """One member of the object in a presence reply: its client id and its info.

    Raises Unencodable.
    """
    return b"%b:%b" % (dumps(info.client), dumps(info.wire()))


def encode_presence_reply(command_id: int, members: bytes) -> bytes:
    """The reply to `presence`. `members`: the JSON object of infos by client id."""
    return orjson.dumps({"id": command_id, "presence": {"presence": orjson.Fragment(members)}})


def encode_error(command_id: int, error: Failing) -> bytes:
    """The line that answers a command with an error."""
    code = error_of(error)
    fields: dict[str, Json] = {"code": code.code, "message": code.message}
    if code.temporary:
        fields["temporary"] = True
    return orjson.dumps({"id": command_id, "error": fields})


def subscribe_result(
    *,
    position: StreamPosition | None,
    recoverable: bool,
    publications: Sequence[bytes] = (),
    recovered: bool = False,
    was_recovering: bool = False,
    delta: bool = False,
    number: int = 0,
) -> dict[str, Json]:
    """The result of a subscribe command. `publications`: encoded by `encode_publication`.

    `number`: the channel's number.
    """
    result: dict[str, Json] = {}
    if recoverable:
        result["recoverable"] = True
    if position is not None:
        result["positioned"] = True
        result["epoch"] = position.epoch
        if position.offset:
            result["offset"] = position.offset
    if publications:
        result["publications"] = [orjson.Fragment(line) for line in publications]
    if recovered:
        result["recovered"] = True
    if was_recovering:
        result["was_recovering"] = True
    if delta:
        result["delta"] = True
    if number:
        result["id"] = number
    return result


def publication_push(channel: str | int, publication: bytes) -> bytes:
    """The push of a `publication` that `encode_publication` wrote.

    `channel`: its name, or its number for clients that know the number.
    """
    [push] = publication_pushes(channel, (publication,))
    return push


def publication_pushes(channel: str | int, publications: Iterable[bytes]) -> list[bytes]:
    """A push for each of `publications`, as above."""
    address = (
        b'"id":%d' % channel if isinstance(channel, int) else b'"channel":' + orjson.dumps(channel)
    )
    head = b'{"push":{' + address + b',"pub":'
    return [head + publication + b"}}" for publication in publications]


def info_push(channel: str | int, kind: str, info: ClientInfo) -> bytes:
    """A `join` or `leave` push; `channel` as above. Raises Unencodable."""
    address = {"id" if isinstance(channel, int) else "channel": channel}
    return dumps({"push": address | {kind: {"info": info.wire()}}})


def unsubscribe_push(channel: str, why: Unsubscribe) -> bytes:
    """The push that ends a subscription from the server's side."""
    code = why.value
    return orjson.dumps(
        {"push": {"channel": channel, "unsubscribe": {"code": code.code, "reason": code.reason}}}
    )


def subscribe_push(channel: str, result: Mapping[str, Json]) -> bytes:
    """The push about a new server-side subscription. Raises Unencodable."""
    return dumps({"push": {"channel": channel, "subscribe": result}})


def refresh_push(lasts: Mapping[str, Json]) -> bytes:
    """The push about the connection's new expiry.

    `lasts`: `expires` and `ttl`, or empty: for ever.
    """
    return orjson.dumps({"push": {"refresh": lasts}})
