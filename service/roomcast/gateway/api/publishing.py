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
    BASE64,
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
    Parents,
    UnderWay,
    decoded,
    known,
    payload_bytes,
)
from roomcast.gateway.api.refusals import Refusal, bad_field, wire
from roomcast.log.appender import Full, TooLarge
from roomcast.log.channel_log import NotAppended, OutcomeUnknown
from roomcast.wire.channels import ChannelOptions, is_valid_name
from roomcast.wire.codes import Error
from roomcast.wire.commands import text_to_keep
from roomcast.wire.encoding import Unencodable, stored_of
from roomcast.wire.publication import Json, Publication, Stored, StreamPosition
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
class _Content:
    """The publication of one call, for one channel or several."""

    data: Json
    size: int
    text: str | None
    tags: Mapping[str, str] | None
    key: str | None
    skip_history: bool
    delta: bool
    time: int
    version: Version | None
    # By whether it may go as a difference: what `stored` has made.
    _stored: dict[bool, Stored] = field(default_factory=dict)

    def publication(self, delta: bool) -> Publication:
        return Publication(self.data, tags=self.tags, time=self.time, delta=delta, text=self.text)

    def stored(self, delta: bool) -> Stored:
        """Its stored form, which is made once for all channels. Raises Unencodable."""
        if delta not in self._stored:
            self._stored[delta] = stored_of(self.publication(delta))
        return self._stored[delta]


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
    unstored = _Unstored(services.publisher, content, begun, call.parents)
    for channel in asked["channels"]:
        # A publication in a channel without history waits for nothing else.
        await under_way.begin()
        try:
            if not is_valid_name(channel):
                raise bad_field("channel", "must be a channel's name")
            options = _options(call, channel, content)
            if _is_stored(options, content):
                position = _submitted(call, channel, options, content)
                begun.append(_Begun(channel, services.publisher, content.size, position))
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
        self,
        publisher: Publisher,
        content: _Content,
        answers: list[_Begun | Mapping[str, Json]],
        parents: Parents,
    ) -> None:
        self._parents = parents
        self._publisher = publisher
        self._content = content
        self._answers = answers
        # By whether it may go as a difference: the places of their answers, and the channels.
        self._waiting: dict[bool, dict[int, str]] = {}

    def add(self, channel: str, options: ChannelOptions) -> None:
        """Raises Refusal."""
        delta = _may_differ(options, self._content)
        try:
            size = len(self._content.stored(delta).text)
        except Unencodable as failure:
            raise Refusal(self._publisher.error(failure)) from None
        waiting = self._waiting.setdefault(delta, {})
        waiting[len(self._answers)] = channel
        # Until there is one.
        self._answers.append({})
        if len(waiting) == COMMANDS_AT_A_TIME or size > _TOGETHER_CHARS_MAX:
            self._send(delta)

    def send_all(self) -> None:
        for delta in list(self._waiting):
            self._send(delta)

    def _send(self, delta: bool) -> None:
        waiting = self._waiting.pop(delta)
        answer: Mapping[str, Json] = {"result": {}}
        try:
            stored = self._content.stored(delta)
            self._publisher.send_all(list(waiting.values()), stored, self._parents.next())
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
    text = None
    if (raw := asked["b64data"]) is not None:
        if len(raw) > call.payload_bytes_max:
            # The bytes are delivered unchanged, white space included.
            raise Refusal(
                Error.LIMIT_EXCEEDED, f"b64data is larger than {call.payload_bytes_max} bytes"
            )
        data = decoded(call, "b64data", raw)
        text = text_to_keep(raw, data)
    elif (data := asked["data"]) is ABSENT:
        raise bad_field("data", "is required")
    return _Content(
        data,
        payload_bytes(call, "data", data),
        text,
        asked["tags"],
        asked["idempotency_key"],
        asked["skip_history"],
        asked["delta"],
        call.received_ms,
        version_of(asked["version"], asked["version_epoch"]),
    )


def _handed_over(call: ApiCall, channel: str, content: _Content) -> _Begun:
    """Raises Refusal."""
    options, publisher = _options(call, channel, content), call.node.services.publisher
    position = None
    if _is_stored(options, content):
        position = _submitted(call, channel, options, content)
    else:
        try:
            stored = content.stored(_may_differ(options, content))
            publisher.send(channel, stored, call.parents.next())
        except (Full, TooLarge, Unencodable) as failure:
            raise Refusal(publisher.error(failure)) from None
    return _Begun(channel, publisher, content.size, position)


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
            content.publication(_may_differ(options, content)),
            options.history_ttl_s * 1000,
            content.key,
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
        "What is published: any JSON value. Required, unless `b64data` is there.",
        default=ABSENT,
    ),
    Parameter("b64data", BASE64, "The same as base64 of its JSON text; goes before `data`."),
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
