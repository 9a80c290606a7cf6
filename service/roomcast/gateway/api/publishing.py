"""The methods publish and broadcast."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import field
from typing import Final

import structlog

from roomcast.delivery.broadcaster import SIGNAL_BYTES_MAX
from roomcast.delivery.publisher import Publisher
from roomcast.frozen import frozen
from roomcast.gateway.api.fields import (
    ABSENT,
    BYTES,
    CHANNEL,
    FLAG,
    KEY,
    PAYLOAD,
    TAGS,
    ListOf,
    Parameter,
    Schema,
    Text,
    Whole,
)
from roomcast.gateway.api.methods import (
    BODY_ROOM_BYTES,
    CALLER,
    COMMANDS_AT_A_TIME,
    ApiCall,
    Method,
    Params,
    UnderWay,
    decoded,
    known,
    payload_bytes,
)
from roomcast.gateway.api.refusals import Refusal, bad_field, wire
from roomcast.log.appender import Full, TooLarge
from roomcast.log.channel_log import NotAppended, OutcomeUnknown
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Error
from roomcast.wire.commands import text_to_keep
from roomcast.wire.encoding import Unencodable, stored_of
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import Json, Payload, Publication, Stored, StreamPosition
from roomcast.wire.versions import VERSION_EPOCH_CHARS_MAX, VERSION_MAX, Version, version_of

__all__ = ["BROADCAST", "BROADCAST_AT_ONCE", "BROADCAST_CHANNELS_MAX", "PUBLISH"]

# Each channel is an append of its own. More channels need several calls.
BROADCAST_CHANNELS_MAX: Final = 1000
# Appends of one broadcast that run at once.
BROADCAST_AT_ONCE: Final = 256
# Room for a channel's name in a request, with quotes, comma and white space. Longer names are
# refused one by one.
_NAME_CHARS_MAX: Final = 1024
_NAME_BYTES: Final = 260
# The longest text of a publication that shares its signal with others of a broadcast. A character
# takes at most 6 bytes of it. A longer one might not fit beside the names of channels.
_TOGETHER_CHARS_MAX: Final = 16 * 1024
assert _TOGETHER_CHARS_MAX * 6 + COMMANDS_AT_A_TIME * _NAME_BYTES < SIGNAL_BYTES_MAX * 0.9

_log = structlog.get_logger(__name__)


@frozen
class _Data:
    """What is published: `data` of `size` bytes, and its text as in a Publication."""

    data: Payload
    size: int
    text: str | None = None


@frozen
class _Kind:
    """In what form a publication goes: as bytes or as JSON, and whether as a difference."""

    is_binary: bool
    delta: bool


@frozen
class _Content:
    """The publication of one call, for one channel or several.

    `raw`: the bytes of the request's `b64data`; None = it has `data`, which is in `_data`.
    """

    raw: bytes | None
    tags: Mapping[str, str] | None
    key: str | None
    skip_history: bool
    delta: bool
    time: int
    version: Version | None
    # By whether a channel is binary: what it gets, or why it gets nothing.
    _data: dict[bool, _Data | tuple[Error, str]]
    _stored: dict[_Kind, Stored] = field(default_factory=dict)

    def data(self, call: ApiCall, options: ChannelOptions) -> _Data:
        """What a channel with `options` gets. Raises Refusal."""
        is_binary = options.is_binary
        if (made := self._data.get(is_binary)) is None:
            try:
                made = self._bytes() if is_binary else self._value(call)
            except Refusal as refused:
                # Not the refusal itself: it holds this object, which would hold it.
                made = refused.error, refused.why
            self._data[is_binary] = made
        if isinstance(made, tuple):
            raise Refusal(*made)
        if not options.takes(made.data):
            raise bad_field("data", "must be an object in this channel")
        return made

    def _bytes(self) -> _Data:
        if self.raw is None:
            raise bad_field("b64data", "is required: the channel is binary")
        return _Data(self.raw, len(self.raw))

    def _value(self, call: ApiCall) -> _Data:
        if not self.raw:
            raise bad_field("data", "is required")
        data = decoded(call, "b64data", self.raw)
        return _Data(data, payload_bytes(call, "data", data), text_to_keep(self.raw, data))

    def publication(self, call: ApiCall, options: ChannelOptions) -> Publication:
        """Raises Refusal."""
        made, delta = self.data(call, options), _may_differ(options, self)
        return Publication(made.data, tags=self.tags, time=self.time, delta=delta, text=made.text)

    def stored(self, call: ApiCall, options: ChannelOptions) -> tuple[_Kind, Stored]:
        """Its stored form, which is made once for all channels of a kind. Raises Refusal and
        Unencodable.
        """
        # In any case: of channels of one kind, some take objects alone.
        publication = self.publication(call, options)
        kind = _Kind(options.is_binary, publication.delta)
        if kind not in self._stored:
            self._stored[kind] = stored_of(publication)
        return kind, self._stored[kind]


@frozen
class _Begun:
    """A publication in `channel` that was handed over. `size`: bytes of its data.

    `future`: None = it was not stored.
    """

    channel: str
    publisher: Publisher
    size: int
    future: asyncio.Future[StreamPosition] | None

    def may_precede(self, asked: Params) -> bool:
        # A channel's publications are appended in the order in which they are handed over. What
        # is not stored would overtake them.
        return bool(asked["channel"] == self.channel and not asked["skip_history"])

    async def result(self) -> Mapping[str, Json]:
        if self.future is None:
            return {}
        try:
            position = await self.future
        except (NotAppended, OutcomeUnknown) as failure:
            _log.warning("api_publish_failed", channel=self.channel, reason=str(failure))
            raise Refusal(self.publisher.error(failure)) from failure
        return {"offset": position.offset, "epoch": position.epoch}


def _begin(call: ApiCall, asked: Params) -> _Begun:
    """Raises Refusal."""
    return _handed_over(call, asked["channel"], _content(call, asked))


async def _publish(call: ApiCall, asked: Params) -> Mapping[str, Json]:
    return await _begin(call, asked).result()


async def _broadcast(call: ApiCall, asked: Params) -> Mapping[str, Json]:
    content, under_way = _content(call, asked), UnderWay(call.turns, BROADCAST_AT_ONCE)
    services = call.node.services
    begun: list[_Begun | Mapping[str, Json]] = []
    unstored = _Unstored(call, content, begun)
    for channel in asked["channels"]:
        # A publication in a channel without history waits for nothing else.
        await under_way.begin()
        try:
            if not is_valid_name(channel):
                raise bad_field("channel", "must be a channel's name")
            options = _options(call, channel, content)
            if _is_stored(options, content):
                position = _submitted(call, channel, options, content)
                size = content.data(call, options).size
                begun.append(_Begun(channel, services.publisher, size, position))
                position.add_done_callback(under_way.end)
                continue
            unstored.add(channel, options)
        except Refusal as refused:
            # Not the refusal itself: it holds this function, which would hold it.
            begun.append({"error": wire(refused.error, refused.why)})
        under_way.end()
    unstored.send_all()
    return {"responses": [await _response(one) for one in begun]}


class _Unstored:
    """The channels of a broadcast whose publications are not stored, and wait for each other: one
    signal is for COMMANDS_AT_A_TIME of them, to whose subscribers here this turn delivers it.

    `answers`: of all channels of the broadcast so far.
    """

    def __init__(
        self, call: ApiCall, content: _Content, answers: list[_Begun | Mapping[str, Json]]
    ) -> None:
        self._call = call
        self._publisher = call.node.services.publisher
        self._content = content
        self._answers = answers
        # By their stored form's kind: that form, the places of their answers, and the channels.
        self._waiting: dict[_Kind, tuple[Stored, dict[int, str]]] = {}

    def add(self, channel: str, options: ChannelOptions) -> None:
        """Raises Refusal."""
        try:
            kind, stored = self._content.stored(self._call, options)
        except Unencodable as failure:
            raise Refusal(self._publisher.error(failure)) from None
        _, waiting = self._waiting.setdefault(kind, (stored, {}))
        waiting[len(self._answers)] = channel
        # Until there is one.
        self._answers.append({})
        if len(waiting) == COMMANDS_AT_A_TIME or len(stored.text) > _TOGETHER_CHARS_MAX:
            self._send(kind)

    def send_all(self) -> None:
        for kind in list(self._waiting):
            self._send(kind)

    def _send(self, kind: _Kind) -> None:
        stored, waiting = self._waiting.pop(kind)
        answer: Mapping[str, Json] = {"result": {}}
        try:
            parent = self._call.parents.next()
            self._publisher.send_all(list(waiting.values()), stored, parent)
        except (Full, TooLarge) as failure:
            answer = {"error": wire(self._publisher.error(failure))}
        for place in waiting:
            self._answers[place] = answer


async def _response(one: _Begun | Mapping[str, Json]) -> Mapping[str, Json]:
    if not isinstance(one, _Begun):
        return one
    try:
        return {"result": await one.result()}
    except Refusal as refused:
        return {"error": wire(refused.error, refused.why)}


def _content(call: ApiCall, asked: Params) -> _Content:
    given, raw = asked["data"], asked["b64data"]
    made: dict[bool, _Data | tuple[Error, str]] = {}
    if not raw and given is not ABSENT:
        # As in Centrifugo's API, an empty `b64data` beside `data` says nothing.
        raw, made = None, {False: _Data(given, payload_bytes(call, "data", given))}
    elif raw is None:
        raise bad_field("data", "is required")
    elif len(raw) > call.payload_bytes_max:
        # The bytes are delivered unchanged, white space included.
        raise Refusal(
            Error.LIMIT_EXCEEDED, f"b64data is larger than {call.payload_bytes_max} bytes"
        )
    return _Content(
        raw,
        asked["tags"],
        asked["idempotency_key"],
        asked["skip_history"],
        asked["delta"],
        call.received_ms,
        version_of(asked["version"], asked["version_epoch"]),
        made,
    )


def _handed_over(call: ApiCall, channel: str, content: _Content) -> _Begun:
    """Raises Refusal."""
    options, publisher = _options(call, channel, content), call.node.services.publisher
    position = None
    if _is_stored(options, content):
        position = _submitted(call, channel, options, content)
    else:
        try:
            _, stored = content.stored(call, options)
            publisher.send(channel, stored, call.parents.next())
        except (Full, TooLarge, Unencodable) as failure:
            raise Refusal(publisher.error(failure)) from None
    return _Begun(channel, publisher, content.data(call, options).size, position)


def _options(call: ApiCall, channel: str, content: _Content) -> ChannelOptions:
    """The options of `channel`. Raises Refusal when `content` cannot be published there."""
    options = known(call, channel)
    if content.key is not None and call.late:
        # The caller may have published it elsewhere so long ago that its key has expired.
        raise Refusal(Error.TOO_MANY_REQUESTS)
    if content.key is not None and not _is_stored(options, content):
        raise Refusal(Error.NOT_AVAILABLE, "an idempotency_key needs history")
    return options


def _is_stored(options: ChannelOptions, content: _Content) -> bool:
    return options.has_history and not content.skip_history


def _may_differ(options: ChannelOptions, content: _Content) -> bool:
    return bool(options.allowed_delta_types) and (content.delta or options.delta_publish)


def _submitted(
    call: ApiCall, channel: str, options: ChannelOptions, content: _Content
) -> asyncio.Future[StreamPosition]:
    """Raises Refusal."""
    services = call.node.services
    try:
        return services.appender.submit(
            channel,
            content.publication(call, options),
            options.history_ttl_s * 1000,
            content.key or call.key,
            received_ms=call.received_ms,
            caller=CALLER,
            parent=call.parents.next(),
            version=content.version,
        )
    except (Full, TooLarge, Unencodable) as failure:
        raise Refusal(services.publisher.error(failure)) from None


_CONTENT: Final = (
    Parameter(
        "data",
        PAYLOAD,
        "What is published: any JSON value, or an object where `publication_data_format` says so. "
        "Required, unless `b64data` is there.",
        default=ABSENT,
    ),
    Parameter(
        "b64data",
        BYTES,
        "The same as base64 of its JSON text; goes before `data`, unless it is empty. In a binary "
        "channel: base64 of any bytes, also of none, and required.",
    ),
    Parameter("tags", TAGS, "Strings that go to subscribers with the publication."),
    Parameter(
        "idempotency_key",
        KEY,
        "In each channel, what is published with one key is published once, for 24 hours. At most "
        "64 printable ASCII characters; empty: none.",
    ),
    Parameter(
        "skip_history",
        FLAG,
        "Send it without storing: best effort, and without an offset.",
        default=False,
    ),
    Parameter(
        "delta",
        FLAG,
        "Subscribers who asked for it may get it as its difference from the publication before, "
        "where the channel's `allowed_delta_types` say so.",
        default=False,
    ),
    Parameter(
        "version",
        Whole(0, VERSION_MAX),
        "How new the state is that the publication has. If the channel's log has this version "
        "already, or a newer one, nothing is published, and the result is where the log ends. "
        "Without history it means nothing. 0: none.",
        default=0,
    ),
    Parameter(
        "version_epoch",
        Text(VERSION_EPOCH_CHARS_MAX),
        "Among which versions `version` counts: one of another epoch than the newest is newer. "
        "Empty: the number alone counts.",
        default="",
    ),
)

_POSITION: Final[Schema] = {
    "type": "object",
    "properties": {
        "offset": {
            "type": "integer",
            "minimum": 1,
            "description": "Where it is in the channel's log.",
        },
        "epoch": {"type": "string", "description": "The epoch that `offset` counts in."},
    },
    "description": "Empty when it was not stored.",
}
_ERROR: Final[Schema] = {"$ref": "#/components/schemas/Error"}

PUBLISH: Final = Method(
    "publish",
    "Publish in one channel.",
    (Parameter("channel", CHANNEL, "Where to publish.", required=True), *_CONTENT),
    _POSITION,
    _publish,
    begin=_begin,
)
BROADCAST: Final = Method(
    "broadcast",
    "Publish the same in many channels.",
    (
        Parameter(
            "channels",
            ListOf(Text(_NAME_CHARS_MAX), BROADCAST_CHANNELS_MAX, 1),
            "Where to publish. One name that no channel can have does not keep the others from it.",
            required=True,
        ),
        *_CONTENT,
    ),
    {
        "type": "object",
        "required": ["responses"],
        "properties": {
            "responses": {
                "type": "array",
                "description": "One for each channel, in the order of `channels`.",
                "items": {"type": "object", "properties": {"result": _POSITION, "error": _ERROR}},
            }
        },
    },
    _broadcast,
    room_bytes=BODY_ROOM_BYTES + BROADCAST_CHANNELS_MAX * _NAME_BYTES,
)
