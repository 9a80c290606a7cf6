"""The methods that command a user's clients on any node: subscribe, unsubscribe, disconnect,
refresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Final

from roomcast.auth.claims import ServerSubscription
from roomcast.delivery.envelope import EPOCH_CHARS_MAX
from roomcast.fleet.order_signals import (
    ID_CHARS_MAX,
    USER_CHARS_MAX,
    WHITELIST_MAX,
    DisconnectOrder,
    Order,
    RefreshOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
)
from roomcast.gateway.api.fields import (
    BASE64,
    CHANNEL,
    FLAG,
    INFO,
    SAFE_MAX,
    ListOf,
    Object,
    Parameter,
    Schema,
    Text,
    Whole,
)
from roomcast.gateway.api.methods import ApiCall, Method, Params, decoded, known, sized
from roomcast.gateway.api.refusals import Refusal, bad_field
from roomcast.log.appender import Full, TooLarge
from roomcast.ports import PortError
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.codes import (
    CLOSE_CODE_MAX,
    CLOSE_CODE_MIN,
    REASON_BYTES_MAX,
    Disconnect,
    DisconnectCode,
    Error,
    is_reason,
)
from roomcast.wire.publication import Json, StreamPosition

__all__ = ["DISCONNECT", "REFRESH", "SUBSCRIBE", "UNSUBSCRIBE"]

_SINCE: Final = Object(
    (
        Parameter(
            "offset", Whole(0, SAFE_MAX), "The last publication that the client has.", default=0
        ),
        Parameter(
            "epoch",
            Text(EPOCH_CHARS_MAX),
            "The epoch that it counts in; empty: the present one.",
            default="",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class _Given:
    """An order that was given. `future`: done when it is sent."""

    future: asyncio.Future[None]
    size: int = 0

    def may_precede(self, asked: Params) -> bool:  # noqa: ARG002
        # Orders for the same clients that are given together share a message, or follow each other
        # to the same queue.
        return True

    async def result(self) -> Mapping[str, Json]:
        try:
            # A back end that hangs up does not take its order back.
            await asyncio.shield(self.future)
        except PortError as failure:
            raise Refusal(Error.INTERNAL, "the order may not have reached everybody") from failure
        return {}


def _disconnect(_: ApiCall, asked: Params) -> Order:
    why = Disconnect.FORCE_NO_RECONNECT.value
    if (said := asked["disconnect"]) is not None and (said["code"] or said["reason"]):
        why = DisconnectCode(
            _code(said["code"]) if said["code"] else why.code, _reason(said["reason"])
        )
    return DisconnectOrder(_target(asked), why, frozenset(asked["whitelist"]))


def _unsubscribe(call: ApiCall, asked: Params) -> Order:
    if channel := asked["channel"]:
        known(call, CHANNEL.read(channel, "channel"))
    return UnsubscribeOrder(_target(asked), channel)


def _refresh(call: ApiCall, asked: Params) -> Order:
    info = sized(call, "info", asked["info"])
    return RefreshOrder(_target(asked), asked["expired"], asked["expire_at"] or None, info)


def _subscribe(call: ApiCall, asked: Params) -> Order:
    options = known(call, asked["channel"])
    given = asked["override"] or {}
    said = {name: switch["value"] for name, switch in given.items() if switch is not None}
    raw = asked["b64data"] if options.is_binary else None
    sub = ServerSubscription(
        _info(call, asked, "info"),
        _info(call, asked, "data") if raw is None else _bytes(call, raw),
        ChannelOverride(**said),
    )
    since = asked["recover_since"]
    position = None if since is None else StreamPosition(since["epoch"], since["offset"])
    return SubscribeOrder(
        _target(asked), asked["channel"], sub, position, asked["expire_at"] or None
    )


def _target(asked: Params) -> Target:
    user, client = asked["user"], asked["client"]
    if user is None and not client:
        raise bad_field("user", "is required, unless there is a client")
    return Target(user, client, asked["session"])


def _method(
    name: str,
    summary: str,
    parameters: tuple[Parameter, ...],
    order: Callable[[ApiCall, Params], Order],
    *,
    payloads: int = 1,
) -> Method:
    """The method that gives the order that `order` makes of its parameters."""

    def begin(call: ApiCall, asked: Params) -> _Given:
        """Raises Refusal."""
        try:
            return _Given(call.node.orders.give(order(call, asked)))
        except (Full, TooLarge) as failure:
            raise Refusal(call.node.services.publisher.error(failure)) from None

    async def handler(call: ApiCall, asked: Params) -> Mapping[str, Json]:
        return await begin(call, asked).result()

    return Method(name, summary, parameters, _EMPTY, handler, payloads=payloads, begin=begin)


def _info(call: ApiCall, asked: Params, name: str) -> Json:
    raw = asked[f"b64{name}"]
    return sized(call, name, asked[name] if raw is None else decoded(call, f"b64{name}", raw))


def _bytes(call: ApiCall, raw: bytes) -> bytes:
    if len(raw) > call.payload_bytes_max:
        raise Refusal(
            Error.LIMIT_EXCEEDED, f"b64data is larger than {call.payload_bytes_max} bytes"
        )
    return raw


def _code(code: int) -> int:
    if not CLOSE_CODE_MIN <= code <= CLOSE_CODE_MAX:
        raise bad_field("disconnect.code", f"must be from {CLOSE_CODE_MIN} to {CLOSE_CODE_MAX}")
    return code


def _reason(reason: str) -> str:
    if not is_reason(reason):
        raise bad_field(
            "disconnect.reason", f"must be at most {REASON_BYTES_MAX} bytes of text, and no JSON"
        )
    return reason


_USER: Final = Text(USER_CHARS_MAX)
_ID: Final = Text(ID_CHARS_MAX)
_TARGET: Final = (
    Parameter(
        "user",
        _USER,
        'Whose connections; "" are those without a user. Required, unless `client` is there.',
    ),
    Parameter("client", _ID, "Only the connection with this id.", default=""),
    Parameter(
        "session",
        _ID,
        "Only the connection with this session: a stream over HTTP, or a client without an SDK. "
        "Other WebSockets have none.",
        default="",
    ),
)
_EMPTY: Final[Schema] = {"type": "object"}
_SWITCH: Final = Object((Parameter("value", FLAG, "On or off.", required=True),))
_EXPIRE_AT: Final = Whole(0, SAFE_MAX)

DISCONNECT: Final = _method(
    "disconnect",
    "Close connections.",
    (
        *_TARGET,
        Parameter(
            "whitelist",
            ListOf(_ID, WHITELIST_MAX),
            "Ids of clients whose connections stay.",
            default=(),
        ),
        Parameter(
            "disconnect",
            Object(
                (
                    Parameter(
                        "code",
                        Whole(0, CLOSE_CODE_MAX),
                        f"Of the close frame, {CLOSE_CODE_MIN} to {CLOSE_CODE_MAX}; 0: 3503. SDKs "
                        "do not reconnect for 3500 to 3999 and 4500 to 4999.",
                        default=0,
                    ),
                    Parameter(
                        "reason",
                        Text(REASON_BYTES_MAX),
                        "What the client is told. No JSON.",
                        default="",
                    ),
                )
            ),
            'Why. Without it: 3503, "force disconnect".',
        ),
    ),
    _disconnect,
)
UNSUBSCRIBE: Final = _method(
    "unsubscribe",
    "End subscriptions, whoever made them.",
    (
        *_TARGET,
        Parameter("channel", Text(255), "Of which channel; empty: of every one.", required=True),
    ),
    _unsubscribe,
)
REFRESH: Final = _method(
    "refresh",
    "Set how long connections last.",
    (
        *_TARGET,
        Parameter("expired", FLAG, "They have expired: close them with 3005.", default=False),
        Parameter(
            "expire_at",
            _EXPIRE_AT,
            "When they expire, in s since 1970. 0, or without it: never.",
            default=0,
        ),
        Parameter("info", INFO, "What others see of the client from now on."),
    ),
    _refresh,
)
SUBSCRIBE: Final = _method(
    "subscribe",
    "Subscribe connections to a channel for as long as they last.",
    (
        *_TARGET,
        Parameter("channel", CHANNEL, "Which channel.", required=True),
        Parameter("info", INFO, "What others in the channel see of the client there."),
        Parameter("b64info", BASE64, "The same as base64 of its JSON text; goes before `info`."),
        Parameter("data", INFO, "Goes to the client with the news that it is subscribed."),
        Parameter(
            "b64data",
            BASE64,
            "The same as base64 of its JSON text, or of any bytes if the channel is binary; goes "
            "before `data`.",
        ),
        Parameter("recover_since", _SINCE, "Send what was published since."),
        Parameter(
            "override",
            Object(
                tuple(
                    Parameter(each.name, _SWITCH, f"In place of the channel's `{each.name}`.")
                    for each in fields(ChannelOverride)
                )
            ),
            "Options of this subscription.",
        ),
        Parameter(
            "expire_at",
            _EXPIRE_AT,
            "When it ends, in s since 1970: the connection is then closed with 3006.",
            default=0,
        ),
    ),
    _subscribe,
    payloads=2,
)
