"""The methods that read channels, and history_remove: history, presence, presence_stats,
channels.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import orjson
import structlog

from roomcast.delivery.envelope import EPOCH_CHARS_MAX
from roomcast.gateway.api.fields import (
    CHANNEL,
    FLAG,
    SAFE_MAX,
    Object,
    Parameter,
    Schema,
    Text,
    Whole,
)
from roomcast.gateway.api.methods import CALLER, ApiCall, Method, Params, known
from roomcast.gateway.api.refusals import Refusal, bad_field
from roomcast.log.history import WrongEpoch, read_history
from roomcast.log.times import Times
from roomcast.ports import PortError
from roomcast.presence.ports import TooManyMembers
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Error
from roomcast.wire.encoding import Sent
from roomcast.wire.names import CHANNEL_BYTES_MAX
from roomcast.wire.publication import TIME_MAX, Json, StreamPosition

__all__ = ["CHANNELS", "HISTORY", "HISTORY_REMOVE", "PRESENCE", "PRESENCE_STATS"]

_LIMIT_MAX: Final = 2**31 - 1

_log = structlog.get_logger(__name__)

T = TypeVar("T")


async def _history(call: ApiCall, asked: Params) -> Mapping[str, Json]:
    options, services = _with_history(call, asked["channel"]), call.node.services
    said, reverse, most = asked["since"], asked["reverse"], services.limits.history_publications_max
    since = None if said is None else StreamPosition(said["epoch"], said["offset"])
    if reverse and since is not None and since.offset == 0:
        raise bad_field("since.offset", "must be above 0 with reverse: nothing is before it")
    times = Times(asked["since_time"], asked["until_time"])
    try:
        async with services.histories.of(CALLER):
            history = await read_history(
                services.log,
                services.clock,
                asked["channel"],
                options,
                since=since,
                limit=most if asked["limit"] < 0 else min(asked["limit"], most),
                reverse=reverse,
                times=times,
            )
    except WrongEpoch:
        raise Refusal(Error.UNRECOVERABLE_POSITION) from None
    except PortError as error:
        raise _failed("history", asked["channel"], error) from error
    return {
        "publications": [orjson.Fragment(_line(sent)) for sent in history.sent],
        "epoch": history.position.epoch,
        "offset": history.position.offset,
        **history.found(),
    }


def _line(sent: Sent) -> bytes:
    """A publication in the answer. `data` stands beside bytes as well: cent asks for it."""
    return b'{"data":null,' + sent.line[1:] if sent.is_binary else sent.line


async def _history_remove(call: ApiCall, asked: Params) -> Mapping[str, Json]:
    channel, services = asked["channel"], call.node.services
    _with_history(call, channel)
    try:
        top = await services.log.remove_history(channel)
    except PortError as error:
        raise _failed("history_remove", channel, error) from error
    services.hide(channel, top.offset)
    return {}


async def _presence(call: ApiCall, asked: Params) -> Mapping[str, Json]:
    members = await _read(call, asked["channel"], call.node.services.presence.whole_list)
    return {"presence": orjson.Fragment(members)}


async def _presence_stats(call: ApiCall, asked: Params) -> Mapping[str, Json]:
    clients, users = await _read(call, asked["channel"], call.node.services.presence.totals)
    return {"num_clients": clients, "num_users": users}


async def _channels(call: ApiCall, asked: Params) -> Mapping[str, Json]:
    try:
        counted = await call.node.node_info.channels(asked["pattern"])
    except PortError as error:
        raise _failed("channels", "", error) from error
    if counted is None:
        raise Refusal(Error.TOO_MANY_REQUESTS)
    return {
        "channels": {name: {"num_clients": clients} for name, clients in counted.channels.items()},
        "partial": not counted.whole,
    }


def _with_history(call: ApiCall, channel: str) -> ChannelOptions:
    options = known(call, channel)
    if not options.has_history:
        raise Refusal(Error.NOT_AVAILABLE, "the channel has no history")
    return options


async def _read(call: ApiCall, channel: str, read: Callable[[str], Awaitable[T]]) -> T:
    if not known(call, channel).presence:
        raise Refusal(Error.NOT_AVAILABLE, "the channel has no presence")
    try:
        return await read(channel)
    except TooManyMembers as error:
        raise Refusal(Error.LIMIT_EXCEEDED, "the channel has too many members") from error
    except PortError as error:
        raise _failed("presence", channel, error) from error


def _failed(method: str, channel: str, error: PortError) -> Refusal:
    _log.warning("api_failed", method=method, channel=channel, reason=str(error))
    return Refusal(Error.INTERNAL)


_CHANNEL: Final = Parameter("channel", CHANNEL, "Which channel.", required=True)
_INFO: Final[Schema] = {"$ref": "#/components/schemas/ClientInfo"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}

HISTORY: Final = Method(
    "history",
    "Read publications that a channel keeps.",
    (
        _CHANNEL,
        Parameter(
            "limit",
            Whole(-_LIMIT_MAX - 1, _LIMIT_MAX),
            "How many at most. 0: only the position; below 0: as many as an answer may hold "
            "(`client.history_max_publication_limit`, and 512 KiB).",
            default=0,
        ),
        Parameter(
            "since",
            Object(
                (
                    Parameter("offset", Whole(0, SAFE_MAX), "Begin next to it.", default=0),
                    Parameter(
                        "epoch",
                        Text(EPOCH_CHARS_MAX),
                        "Must be the channel's; empty: any.",
                        default="",
                    ),
                )
            ),
            "Where to begin, exclusive. Without it: at the oldest, or with `reverse` at the "
            "newest.",
        ),
        Parameter("reverse", FLAG, "From the newest to the oldest.", default=False),
        Parameter(
            "since_time",
            Whole(0, TIME_MAX),
            "Only what is not before the first publication that was appended at this time or later "
            "(ms since 1970).",
        ),
        Parameter(
            "until_time",
            Whole(0, TIME_MAX),
            "Only what is before the first publication that was appended at this time or later (ms "
            "since 1970).",
        ),
    ),
    {
        "type": "object",
        "required": ["publications", "epoch", "offset"],
        "properties": {
            "publications": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Publication"},
            },
            "epoch": {"type": "string"},
            "offset": {"type": "integer", "minimum": 0, "description": "The newest, shown or not."},
            "since_offset": {**_COUNT, "description": "The last one before `since_time`."},
            "until_offset": {**_COUNT, "description": "The last one before `until_time`."},
        },
    },
    _history,
)
HISTORY_REMOVE: Final = Method(
    "history_remove",
    "Hide what a channel keeps.",
    (_CHANNEL,),
    {"type": "object"},
    _history_remove,
)
PRESENCE: Final = Method(
    "presence",
    "List who is in a channel.",
    (_CHANNEL,),
    {
        "type": "object",
        "required": ["presence"],
        "properties": {
            "presence": {
                "type": "object",
                "additionalProperties": _INFO,
                "description": "By the client's id.",
            }
        },
    },
    _presence,
)
PRESENCE_STATS: Final = Method(
    "presence_stats",
    "Count who is in a channel.",
    (_CHANNEL,),
    {
        "type": "object",
        "required": ["num_clients", "num_users"],
        "properties": {"num_clients": _COUNT, "num_users": _COUNT},
    },
    _presence_stats,
)
CHANNELS: Final = Method(
    "channels",
    "List channels that have subscribers, on all nodes.",
    (
        Parameter(
            "pattern",
            Text(CHANNEL_BYTES_MAX),
            "Which: `*` stands for any text, `?` for one character, `[ab]` for one of several. "
            "Empty: all.",
            default="",
        ),
    ),
    {
        "type": "object",
        "required": ["channels", "partial"],
        "properties": {
            "channels": {
                "type": "object",
                "additionalProperties": {"type": "object", "properties": {"num_clients": _COUNT}},
            },
            "partial": {
                "type": "boolean",
                "description": (
                    "A node did not answer in time, or had more channels than fit: there may be "
                    "more."
                ),
            },
        },
    },
    _channels,
)
