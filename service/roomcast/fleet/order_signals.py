"""Orders of the application for its clients, and their form as signals.

Every node carries out an order for its own connections. A node of another release ignores kinds of
signals, and members of a body, that it does not know. An order is checked by the rules of the
server API, because any program that can publish to the topic could have made it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from roomcast.auth.claims import INFO_DEPTH_MAX, TOKEN_TIME_MAX, ServerSubscription
from roomcast.delivery.envelope import EPOCH_CHARS_MAX, Signal
from roomcast.log.item import OFFSET_MAX
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.codes import CLOSE_CODE_MAX, CLOSE_CODE_MIN, DisconnectCode, is_reason
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import (
    BASE64_DATA,
    Json,
    Payload,
    StreamPosition,
    from_base64,
    to_base64,
)
from roomcast.wire.shapes import FLAG, OBJECT, checked, is_deeper, member, text, whole

__all__ = [
    "ID_CHARS_MAX",
    "ORDER_KINDS",
    "USER_CHARS_MAX",
    "WHITELIST_MAX",
    "DisconnectOrder",
    "MalformedOrder",
    "Order",
    "RefreshOrder",
    "ReplaceOrder",
    "SubscribeOrder",
    "Target",
    "UnsubscribeOrder",
    "order_of",
    "order_signal",
]


ORDER_KINDS: Final = frozenset({"disconnect", "unsubscribe", "refresh", "subscribe", "replace"})

# The longest user name: no token is longer.
USER_CHARS_MAX: Final = 8 * 1024
# A client's id is a UUID.
ID_CHARS_MAX: Final = 64
# Clients that one `disconnect` may spare. They are listed in the order.
WHITELIST_MAX: Final = 1000


class MalformedOrder(ValueError):
    """A signal of an order's kind with a malformed body."""


@dataclass(frozen=True, slots=True)
class Target:
    """The connections that an order is for. All given fields must match.

    `user` None = any user, so `client` decides; "" = anonymous users. `client`, `session` "" = any.
    """

    user: str | None = None
    client: str = ""
    session: str = ""

    def __post_init__(self) -> None:
        assert self.user is not None or self.client, "an order is never for everybody"

    @property
    def is_for_one(self) -> bool:
        """Whether there is one such connection at most: ids and sessions are unique."""
        return bool(self.client or self.session)


@dataclass(frozen=True, slots=True)
class DisconnectOrder:
    """Close the connections, except those of the clients in `whitelist`."""

    target: Target
    why: DisconnectCode
    whitelist: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UnsubscribeOrder:
    """End the subscription to `channel`; "" = every subscription."""

    target: Target
    channel: str


@dataclass(frozen=True, slots=True)
class RefreshOrder:
    """The connection lasts until `expires_at` (s since 1970), None = for ever.

    If `expired`, it ends at once.

    `info` None = the info that others see stays.
    """

    target: Target
    expired: bool = False
    expires_at: int | None = None
    info: Json = None


@dataclass(frozen=True, slots=True)
class SubscribeOrder:
    """Subscribe the connections to `channel` as `sub` says, from position `since` on.

    `expires_at`: s since 1970, None = as long as the connection lasts.
    """

    target: Target
    channel: str
    sub: ServerSubscription = field(default_factory=ServerSubscription)
    since: StreamPosition | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class ReplaceOrder:
    """Close the connections of a user that are older than the one of client `newest`.

    `since_ms`: when that one connected, in ms since 1970. Which of two is older follows from this
    alone, and from their ids where it is the same: all nodes find the same one.
    """

    target: Target
    newest: str
    since_ms: int


Order = DisconnectOrder | UnsubscribeOrder | RefreshOrder | SubscribeOrder | ReplaceOrder


def order_signal(order: Order, node: str, signal_id: str) -> Signal:
    """The signal by which `node` sends `order` to the others."""
    channel = ""
    details: dict[str, Json] = {}
    match order:
        case DisconnectOrder(_, why, whitelist):
            kind = "disconnect"
            details = {"code": why.code, "reason": why.reason, "whitelist": sorted(whitelist)}
        case UnsubscribeOrder():
            kind, channel = "unsubscribe", order.channel
        case RefreshOrder():
            kind = "refresh"
            details = {"expired": order.expired, "expires_at": order.expires_at, "info": order.info}
        case SubscribeOrder():
            kind, channel = "subscribe", order.channel
            details = _subscription(order)
        case ReplaceOrder(_, newest, since_ms):
            kind, details = "replace", {"newest": newest, "since_ms": since_ms}
    target = {
        "user": order.target.user,
        "client": order.target.client or None,
        "session": order.target.session or None,
    }
    body = {name: value for name, value in (target | details).items() if value is not None}
    return Signal(kind, signal_id, node, channel, body)


def _subscription(order: SubscribeOrder) -> dict[str, Json]:
    since, override, data = order.since, order.sub.override, order.sub.data
    is_bytes = isinstance(data, bytes)
    override_flags = {each.name: getattr(override, each.name) for each in fields(ChannelOverride)}
    return {
        "info": order.sub.info,
        "data": None if is_bytes else data,
        BASE64_DATA: to_base64(data) if is_bytes else None,
        "override": {name: value for name, value in override_flags.items() if value is not None},
        "since": None if since is None else {"epoch": since.epoch, "offset": since.offset},
        "expires_at": order.expires_at,
    }


def order_of(signal: Signal) -> Order:
    """The order in a signal of one of ORDER_KINDS. Raises MalformedOrder."""
    body = checked(signal.body, "the body of an order", OBJECT, MalformedOrder)
    target = _target(body)
    match signal.kind:
        case "disconnect":
            return DisconnectOrder(target, _why(body), _ids(body, "whitelist"))
        case "unsubscribe" if signal.channel == "" or is_valid_name(signal.channel):
            return UnsubscribeOrder(target, signal.channel)
        case "refresh":
            return RefreshOrder(target, _flag(body, "expired"), _time(body), _payload(body, "info"))
        case "subscribe" if is_valid_name(signal.channel):
            sub = ServerSubscription(_payload(body, "info"), _data(body), _override(body))
            return SubscribeOrder(target, signal.channel, sub, _since(body), _time(body))
        case "replace" if target.user:
            since_ms = _whole(body, "since_ms", 0, TOKEN_TIME_MAX) or 0
            return ReplaceOrder(target, _text(body, "newest", ID_CHARS_MAX), since_ms)
    raise MalformedOrder("an order of an unknown kind, or for no channel")


def _target(body: Mapping[str, Any]) -> Target:
    user = _text(body, "user", USER_CHARS_MAX) if body.get("user") is not None else None
    client, session = _text(body, "client", ID_CHARS_MAX), _text(body, "session", ID_CHARS_MAX)
    if user is None and not client:
        raise MalformedOrder("an order for nobody")
    return Target(user, client, session)


def _why(body: Mapping[str, Any]) -> DisconnectCode:
    code, reason = _whole(body, "code", CLOSE_CODE_MIN, CLOSE_CODE_MAX), body.get("reason", "")
    if code is None:
        raise MalformedOrder("a close without a code")
    if not isinstance(reason, str) or not is_reason(reason):
        raise MalformedOrder("a reason that no close frame can give")
    return DisconnectCode(code, reason)


def _text(body: Mapping[str, Any], name: str, chars_max: int) -> str:
    return member(body, name, text(chars_max), "", MalformedOrder)


def _ids(body: Mapping[str, Any], name: str) -> frozenset[str]:
    found = body.get(name, [])
    if not isinstance(found, list) or len(found) > WHITELIST_MAX:
        raise MalformedOrder(f"{name} is not a list of at most {WHITELIST_MAX} ids")
    if not all(isinstance(each, str) and len(each) <= ID_CHARS_MAX for each in found):
        raise MalformedOrder(f"{name} is not a list of ids")
    return frozenset(found)


def _payload(body: Mapping[str, Any], name: str) -> Json:
    found = body.get(name)
    if is_deeper(found, INFO_DEPTH_MAX):
        # Encoders would fail, and lose everything that is sent in the same message.
        raise MalformedOrder(f"{name} is nested too deeply")
    return found


def _data(body: Mapping[str, Any]) -> Payload:
    if BASE64_DATA not in body:
        return _payload(body, "data")
    try:
        return from_base64(body[BASE64_DATA])
    except ValueError as error:
        raise MalformedOrder("data is not base64") from error


def _flag(body: Mapping[str, Any], name: str) -> bool:
    return member(body, name, FLAG, False, MalformedOrder)


def _whole(body: Mapping[str, Any], name: str, minimum: int, maximum: int) -> int | None:
    found = body.get(name)
    if found is None:
        return None
    return checked(found, name, whole(minimum, maximum), MalformedOrder)


def _time(body: Mapping[str, Any]) -> int | None:
    """The time of an order. 0 stands for no time, as in the API, and not for a past one."""
    return _whole(body, "expires_at", 0, TOKEN_TIME_MAX) or None


def _override(body: Mapping[str, Any]) -> ChannelOverride:
    override = member(body, "override", OBJECT, {}, MalformedOrder)
    return ChannelOverride(
        **{
            each.name: _flag(override, each.name)
            for each in fields(ChannelOverride)
            if each.name in override
        }
    )


def _since(body: Mapping[str, Any]) -> StreamPosition | None:
    since = body.get("since")
    if since is None:
        return None
    since = checked(since, "since", OBJECT, MalformedOrder)
    offset = _whole(since, "offset", 0, OFFSET_MAX) or 0
    return StreamPosition(_text(since, "epoch", EPOCH_CHARS_MAX), offset)
