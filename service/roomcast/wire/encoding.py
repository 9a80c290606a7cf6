"""Encodes what goes out: the text of a publication for the log, and the clients' lines of JSON.

A publication is encoded once for all clients (`Sent`). A reply echoes the id of its command with an
error, or with a result that has the name of the request. A push has no id. `{}` is a ping. Empty
fields are left out, except for those that docs/protocol.md lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from roomcast.frozen import frozen
from roomcast.wire.codes import Closing, Failing, Unsubscribe, code_of, error_of
from roomcast.wire.publication import (
    BASE64_DATA,
    ClientInfo,
    Json,
    Publication,
    Stored,
    StreamPosition,
)

__all__ = [
    "BASE64_HEAD",
    "DATA_HEAD",
    "PING",
    "Sent",
    "Unencodable",
    "bare_pushes",
    "disconnect_push",
    "dumps",
    "encode_called_history",
    "encode_error",
    "encode_lines_reply",
    "encode_member",
    "encode_presence_reply",
    "encode_push",
    "encode_reply",
    "encode_stored",
    "encode_told",
    "publication_push",
    "publication_pushes",
    "refresh_push",
    "sent_of",
    "stored_of",
    "subscribe_push",
    "subscribe_result",
    "tags_of",
    "told_push",
    "unsubscribe_push",
]

PING: Final = b"{}"
# What stands around a push, which is all that clients get who send nothing.
_PUSH_HEAD, _PUSH_TAIL = b'{"push":', b"}"
# The beginning of a publication's line, directly before its data. So the data can be replaced
# without decoding.
DATA_HEAD: Final = b'{"data":'
# The same, where the data is bytes: base64 of them.
BASE64_HEAD: Final = b'{"%b":' % BASE64_DATA.encode()


class Unencodable(ValueError):
    """A payload cannot be encoded as JSON again, because it is nested too deeply."""


def dumps(value: Any) -> bytes:
    """JSON of what goes to clients or into the log. Raises Unencodable."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise Unencodable("nested too deeply") from error


# ---- publications


@frozen
class Sent:
    """A publication in the clients' form.

    `line`: its JSON, the only kept form. `ts`: the time of its append (ms). `delta`: whether it may
    be sent as a delta to the previous one. `data_bytes`: the length of its data in the line.
    `text`: the data's text as it was written, where it is known.
    """

    offset: int
    line: bytes
    ts: int
    delta: bool = False
    text: bytes | None = None
    data_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.line) + len(self.text or b"")

    @property
    def is_binary(self) -> bool:
        """Whether the data is bytes, which stand in the line as base64."""
        return self.line.startswith(BASE64_HEAD)


def stored_of(publication: Publication) -> Stored:
    """`publication` in its stored form. Raises Unencodable."""
    fields = publication.stored()
    return Stored(fields, dumps(fields).decode())


def encode_stored(publication: Publication) -> str:
    """The text of a publication for the log. Raises Unencodable."""
    return dumps(publication.stored()).decode()


def sent_of(publication: Publication, ts: int) -> Sent:
    """`publication`, of an append at `ts` (ms), in the clients' form. Raises Unencodable.

    Its line is without what surrounds it in a push or a reply.
    """
    fields = publication.wire()
    text = None
    if isinstance(publication.data, bytes):
        head, data = BASE64_HEAD, dumps(fields.pop(BASE64_DATA))
    else:
        head, data = DATA_HEAD, dumps(fields.pop("data"))
        if publication.text is not None:
            text = publication.text.encode()
            data = _on_one_line(text, publication.data) or data
    line = head + data + (b"," + dumps(fields)[1:] if fields else b"}")
    return Sent(publication.offset, line, ts, publication.delta, text, len(data))


def _on_one_line(text: bytes, data: Json) -> bytes | None:
    """`text` without line breaks; None = it is not JSON of `data`, as no node would have it."""
    try:
        if orjson.loads(text) != data:
            return None
    except (orjson.JSONDecodeError, RecursionError):
        return None
    # Within strings JSON has them as escapes only.
    return text.translate(None, b"\r\n")


_NO_TAGS: Final[Mapping[str, str]] = {}


def tags_of(sent: Sent) -> Mapping[str, str]:
    """The tags of a publication. They are decoded from its line, because few ask for them."""
    head = BASE64_HEAD if sent.is_binary else DATA_HEAD
    rest = sent.line[len(head) + sent.data_bytes :]
    if b'"tags":' not in rest:
        return _NO_TAGS
    tags: Mapping[str, str] = orjson.loads(b"{" + rest[1:]).get("tags", _NO_TAGS)
    return tags


def publication_push(channel: str | int, publication: bytes) -> bytes:
    """The push of a `publication`, the line of a Sent.

    `channel`: its name, or its number for clients that know the number.
    """
    [push] = publication_pushes(channel, (publication,))
    return push


def publication_pushes(channel: str | int, publications: Iterable[bytes]) -> list[bytes]:
    """A push for each of `publications`, as above."""
    address = (
        b'"id":%d' % channel if isinstance(channel, int) else b'"channel":' + orjson.dumps(channel)
    )
    head = _PUSH_HEAD + b"{" + address + b',"pub":'
    return [head + publication + b"}}" for publication in publications]


def bare_pushes(lines: bytes) -> list[bytes]:
    """The pushes in `lines`, without what stands around each. A ping stays as it is."""
    return [
        line.removeprefix(_PUSH_HEAD)[: -len(_PUSH_TAIL)] if line != PING else line
        for line in lines.split(b"\n")
    ]


# ---- replies and other pushes


def encode_reply(command_id: int, method: str, result: Mapping[str, Json]) -> bytes:
    """One reply line. `result` is always present, even if empty, because SDKs access it.

    Raises Unencodable.
    """
    return dumps({"id": command_id, method: result})


def encode_lines_reply(
    command_id: int, method: str, publications: Sequence[bytes], result: Mapping[str, Json]
) -> bytes:
    """A reply whose result always contains `publications`, the lines of Sent."""
    lines = [orjson.Fragment(line) for line in publications]
    return orjson.dumps({"id": command_id, method: {"publications": lines, **result}})


def encode_called_history(
    command_id: int, publications: Sequence[bytes], result: Mapping[str, Json]
) -> bytes:
    """The same as the reply to a call, whose data is JSON in both encodings."""
    lines = [orjson.Fragment(line) for line in publications]
    return orjson.dumps({"id": command_id, "rpc": {"data": {"publications": lines, **result}}})


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
    """The result of a subscribe command. `publications`: the lines of Sent.

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


def encode_told(kind: str, info: ClientInfo) -> bytes:
    """The field of a `join` or `leave` push, for `told_push`. Raises Unencodable."""
    return dumps({kind: {"info": info.wire()}})[1:-1]


def told_push(channel: str | int, told: bytes) -> bytes:
    """A `join` or `leave` push with a field of `encode_told`; `channel` as above."""
    address = orjson.dumps({"id" if isinstance(channel, int) else "channel": channel})
    return b'{"push":%b,%b}}' % (address[:-1], told)


def unsubscribe_push(channel: str, why: Unsubscribe) -> bytes:
    """The push that ends a subscription from the server's side."""
    code = why.value
    return orjson.dumps(
        {"push": {"channel": channel, "unsubscribe": {"code": code.code, "reason": code.reason}}}
    )


def disconnect_push(why: Closing) -> bytes:
    """The push before the end of a connection that has no close frame. SDKs decide by its code
    whether they come back.
    """
    code = code_of(why)
    return orjson.dumps({"push": {"disconnect": {"code": code.code, "reason": code.reason}}})


def subscribe_push(channel: str, result: Mapping[str, Json]) -> bytes:
    """The push about a new server-side subscription. Raises Unencodable."""
    return dumps({"push": {"channel": channel, "subscribe": result}})


def encode_push(kind: str, fields: Mapping[str, Json]) -> bytes:
    """The push of this kind about the connection itself. Raises Unencodable."""
    return dumps({"push": {kind: fields}})


def refresh_push(lasts: Mapping[str, Json]) -> bytes:
    """The push about the connection's new expiry.

    `lasts`: `expires` and `ttl`, or empty: for ever.
    """
    return orjson.dumps({"push": {"refresh": lasts}})
