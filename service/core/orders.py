"""Orders: what an application wants done to its clients, wherever they are, and how that travels as a signal.

Every node carries out an order for the connections that it has. A node of another release that does not know the
kind of a signal passes over it, and what it does not know of a body as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from service.core.channels import ChannelOverride, is_valid_name
from service.core.codes import DisconnectCode
from service.core.envelope import Signal
from service.core.publication import Json, StreamPosition
from service.core.tokens import ServerSubscription

__all__ = [
    "ORDER_KINDS",
    "DisconnectOrder",
    "MalformedOrder",
    "Order",
    "RefreshOrder",
    "SubscribeOrder",
    "Target",
    "UnsubscribeOrder",
    "order_of",
    "order_signal",
]


ORDER_KINDS: Final = frozenset({"disconnect", "unsubscribe", "refresh", "subscribe"})


class MalformedOrder(ValueError):
    """A signal of an order's kind that is none."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which connections an order is for: those that everything fits which is told.

    `user` None = whoever `client` is; "" = users without a name. `client`, `session` "" = any.
    """

    user: str | None = None
    client: str = ""
    session: str = ""

    def __post_init__(self) -> None:
        assert self.user is not None or self.client, "an order is never for everybody"


@dataclass(frozen=True, slots=True)
class DisconnectOrder:
    """Close the connections, but for the clients in `whitelist`."""

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
    """The connection lasts until `expires_at` (s since 1970), None = for ever; or it is `expired`, and ends at once.

    `info` None = what others see of the client stays.
    """

    target: Target
    expired: bool = False
    expires_at: int | None = None
    info: Json = None


@dataclass(frozen=True, slots=True)
class SubscribeOrder:
    """Subscribe the connections to `channel` as `sub` says, and send what was published behind `since`.

    `expires_at`: s since 1970, None = as long as the connection lasts.
    """

    target: Target
    channel: str
    sub: ServerSubscription = field(default_factory=ServerSubscription)
    since: StreamPosition | None = None
    expires_at: int | None = None


Order = DisconnectOrder | UnsubscribeOrder | RefreshOrder | SubscribeOrder


def order_signal(order: Order, node: str, signal_id: str) -> Signal:
    """`order` as `node` tells it to the others."""
    channel = ""
    said: dict[str, Json] = {}
    match order:
        case DisconnectOrder(_, why, whitelist):
            kind = "disconnect"
            said = {"code": why.code, "reason": why.reason, "whitelist": sorted(whitelist)}
        case UnsubscribeOrder():
            kind, channel = "unsubscribe", order.channel
        case RefreshOrder():
            kind = "refresh"
            said = {"expired": order.expired, "expires_at": order.expires_at, "info": order.info}
        case SubscribeOrder():
            kind, channel = "subscribe", order.channel
            said = _subscription(order)
    target = {
        "user": order.target.user,
        "client": order.target.client or None,
        "session": order.target.session or None,
    }
    body = {name: value for name, value in (target | said).items() if value is not None}
    return Signal(kind, signal_id, node, channel, body)


def _subscription(order: SubscribeOrder) -> dict[str, Json]:
    since, override = order.since, order.sub.override
    said = {each.name: getattr(override, each.name) for each in fields(ChannelOverride)}
    return {
        "info": order.sub.info,
        "data": order.sub.data,
        "override": {name: value for name, value in said.items() if value is not None},
        "since": None if since is None else {"epoch": since.epoch, "offset": since.offset},
        "expires_at": order.expires_at,
    }


def order_of(signal: Signal) -> Order:
    """The order in a signal of one of ORDER_KINDS. Raises MalformedOrder."""
    body = signal.body
    if not isinstance(body, dict):
        raise MalformedOrder("the body of an order is not an object")
    user, client, session = body.get("user"), _text(body, "client"), _text(body, "session")
    if not (isinstance(user, str) or (user is None and client)):
        raise MalformedOrder("an order for nobody")
    target = Target(user, client, session)
    match signal.kind:
        case "disconnect":
            why = DisconnectCode(_whole(body, "code") or 0, _text(body, "reason"))
            return DisconnectOrder(target, why, _texts(body, "whitelist"))
        case "unsubscribe":
            return UnsubscribeOrder(target, signal.channel)
        case "refresh":
            expires_at = _whole(body, "expires_at")
            return RefreshOrder(target, _flag(body, "expired"), expires_at, body.get("info"))
        case "subscribe" if is_valid_name(signal.channel):
            sub = ServerSubscription(body.get("info"), body.get("data"), _override(body))
            return SubscribeOrder(target, signal.channel, sub, _since(body), _whole(body, "expires_at"))
    raise MalformedOrder("an order of an unknown kind, or for no channel")


def _text(body: Mapping[str, Any], name: str) -> str:
    found = body.get(name, "")
    if not isinstance(found, str):
        raise MalformedOrder(f"{name} is not a string")
    return found


def _texts(body: Mapping[str, Any], name: str) -> frozenset[str]:
    found = body.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise MalformedOrder(f"{name} is not a list of strings")
    return frozenset(found)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    found = body.get(name, False)
    if not isinstance(found, bool):
        raise MalformedOrder(f"{name} is not true or false")
    return found


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    found = body.get(name)
    if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
        raise MalformedOrder(f"{name} is not a whole number")
    return found


def _override(body: Mapping[str, Any]) -> ChannelOverride:
    said = body.get("override", {})
    if not isinstance(said, dict):
        raise MalformedOrder("override is not an object")
    return ChannelOverride(
        **{each.name: _flag(said, each.name) for each in fields(ChannelOverride) if each.name in said}
    )


def _since(body: Mapping[str, Any]) -> StreamPosition | None:
    said = body.get("since")
    if said is None:
        return None
    if not isinstance(said, dict):
        raise MalformedOrder("since is not an object")
    offset = _whole(said, "offset") or 0
    if offset < 0:
        raise MalformedOrder("an offset below 0")
    return StreamPosition(_text(said, "epoch"), offset)
