"""Checks the claims of connection and subscription tokens, and turns them into values.

service/roomcast/auth/verifier.py has verified the signature before. The time is passed in. The
claims are those of the Centrifuge protocol's tokens. A claim of a wrong shape makes the whole token
invalid: if it were ignored, the token could allow more than its signer meant.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from roomcast.frozen import frozen
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.names import CHANNEL_BYTES_MAX, is_valid_name
from roomcast.wire.publication import Json, Payload, from_base64
from roomcast.wire.shapes import (
    FLAG,
    NUMBER,
    OBJECT,
    OBJECTS,
    TEXT,
    TEXTS,
    checked,
    is_deeper,
    member,
    member_or_null,
)
from roomcast.wire.tags_filter import Filter, InvalidFilter, filter_of

__all__ = [
    "EARLY_S_MAX",
    "INFO_DEPTH_MAX",
    "TOKEN_TIME_MAX",
    "ConnectionClaims",
    "ServerSubscription",
    "SubscriptionClaims",
    "TokenEarly",
    "TokenError",
    "TokenExpired",
    "TokenInvalid",
    "TokenUnverifiable",
    "allow_of",
    "caps_of",
    "connection_claims",
    "data_of",
    "override_of",
    "payload_of",
    "server_filter_of",
    "subs_of",
    "subscription_claims",
]

# Seconds. JavaScript's exact integers end here. The milliseconds that some signers write by mistake
# fit as well.
TOKEN_TIME_MAX: Final = 2**53 - 1
# Seconds that a signer's clock may be ahead of ours. The tolerance applies only to `nbf`. An
# expired token is soon replaced, and `iat` does not say from when on a token is valid.
EARLY_S_MAX: Final = 30
# Nested arrays and objects in a value that is sent on. Encoders write about 250 levels, including
# those around the value.
INFO_DEPTH_MAX: Final = 128

Loads = Callable[[str], Any]


class TokenError(Exception):
    """Base of the reasons to refuse a token."""


class TokenExpired(TokenError):
    """The token was valid once: the client should fetch a new one.

    Error 109 to connect and subscribe, 3005 to refresh.
    """

    def __init__(self) -> None:
        super().__init__("token expired")


class TokenInvalid(TokenError):
    """The token was never valid. `reason` is for the log, and contains nothing of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TokenEarly(TokenError):
    """The token becomes valid in `early_s` seconds, by our clock.

    It is unknown whose clock is wrong: the client should try it again (error 100), later or at
    another node.
    """

    def __init__(self, early_s: float) -> None:
        super().__init__("not valid yet")
        self.early_s = early_s


class TokenUnverifiable(TokenError):
    """The token cannot be judged now: its key could not be fetched yet.

    The client should try again (error 100).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ServerSubscription:
    """One subscription that the server makes for a client when it connects.

    `data` goes to the client itself, `info` to other clients. In a binary channel, `data` may be
    bytes. `raw`: those of a token's `b64data`, which are also the data if they are no JSON.
    `server_tags_filter`: it gets the publications whose tags pass; None = all. A hook gives it as
    an object of the protocol's FilterNode. `cache_recover`: it begins with the newest publication,
    where the channel recovers in mode `cache`.
    """

    info: Json = None
    data: Payload = None
    override: ChannelOverride = field(default_factory=ChannelOverride)
    raw: bytes | None = None
    server_tags_filter: Json = None
    cache_recover: bool = False


@frozen
class ConnectionClaims:
    """The identity of a connecting client. `user` "" = anonymous.

    `expires_at`: when a refresh is due, in s since 1970. None = never.

    `info` is for other clients. `meta` never leaves the server. `subs`: by channel. The channel
    names are valid, but their namespaces may be unknown.
    """

    user: str
    expires_at: int | None
    info: Json = None
    meta: Json = None
    subs: Mapping[str, ServerSubscription] = field(default_factory=dict)
    caps: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class SubscriptionClaims:
    """The subscription that a token allows, and its changes to the channel's options.

    `allow`: further capabilities in the channel. `server_tags_filter`: which publications the
    client gets, at most; None = all.

    The caller must compare `user` and `channel` with the connection and its request. A `client`
    other than "" binds the token to one connection: the caller must compare it with the
    connection's id.
    """

    user: str
    channel: str
    expires_at: int | None
    info: Json = None
    client: str = ""
    override: ChannelOverride = field(default_factory=ChannelOverride)
    allow: frozenset[Capability] = frozenset()
    server_tags_filter: Filter | None = None


def connection_claims(
    claims: Json,
    now_s: float,
    *,
    audience: str = "",
    issuer: str = "",
    user_id_claim: str = "",
    loads: Loads = json.loads,
) -> ConnectionClaims:
    """Checks the claims of a connection token. `audience` and `issuer` "" = not required.

    `user_id_claim`: the claim that names the user; "" = `sub`. `loads` decodes the JSON in
    `b64info`. Raises TokenExpired, TokenEarly or TokenInvalid.
    """
    valid = _checked(claims, now_s, audience, issuer)
    if "channel" in valid:
        # Otherwise a token for one channel would open a connection.
        raise TokenInvalid("a subscription token where a connection token belongs")
    return ConnectionClaims(
        user=_user(valid, user_id_claim),
        expires_at=_expires_at(valid, now_s),
        info=_payload(valid, "info", loads),
        meta=valid.get("meta"),
        subs=_subs(valid, loads),
        caps=_caps(valid),
    )


def subscription_claims(
    claims: Json,
    now_s: float,
    *,
    audience: str = "",
    issuer: str = "",
    user_id_claim: str = "",
    loads: Loads = json.loads,
) -> SubscriptionClaims:
    """Checks the claims of a subscription token. Arguments and errors are those of
    `connection_claims`.
    """
    valid = _checked(claims, now_s, audience, issuer)
    channel = _text(valid, "channel", "")
    if not channel:
        raise TokenInvalid("a subscription token without channel")
    return SubscriptionClaims(
        user=_user(valid, user_id_claim),
        channel=channel,
        expires_at=_expires_at(valid, now_s),
        info=_payload(valid, "info", loads),
        client=_text(valid, "client", ""),
        override=_override(valid),
        allow=_allow(valid),
        server_tags_filter=_filter(valid),
    )


def _checked(claims: Json, now_s: float, audience: str, issuer: str) -> Mapping[str, Json]:
    """Checks the claims that both kinds share.

    Invalidity takes precedence over expiry, because a new token would not help.
    """
    if not isinstance(claims, dict):
        raise TokenInvalid("claims are not an object")
    if audience:
        found = claims.get("aud")
        if found != audience and not (isinstance(found, list) and audience in found):
            raise TokenInvalid("another audience")
    if issuer and claims.get("iss") != issuer:
        raise TokenInvalid("another issuer")
    if "iat" in claims:
        _time(claims, "iat")
    early_s = _time(claims, "nbf") - now_s if "nbf" in claims else 0.0
    # Expiry first, because waiting cannot help then.
    if "exp" in claims and now_s >= _time(claims, "exp"):
        raise TokenExpired
    if early_s > EARLY_S_MAX:
        raise TokenEarly(early_s)
    return claims


def _expires_at(claims: Mapping[str, Json], now_s: float) -> int | None:
    """The end of the connection or subscription: `expire_at` (0 = never), else the token's own."""
    if "expire_at" in claims:
        expires_at = _time(claims, "expire_at")
        if expires_at == 0:
            return None
        if now_s >= expires_at:
            raise TokenExpired
    elif "exp" in claims:
        expires_at = _time(claims, "exp")
    else:
        return None
    return math.ceil(expires_at)


def _time(claims: Mapping[str, Json], name: str) -> float:
    # A null would otherwise make a token that never expires.
    found = checked(claims[name], name, NUMBER, TokenInvalid)
    # Written so that NaN fails too.
    if not 0 <= found <= TOKEN_TIME_MAX:
        raise TokenInvalid(f"{name} is out of range")
    return found


def _text(claims: Mapping[str, Json], name: str, default: str) -> str:
    return member(claims, name, TEXT, default, TokenInvalid)


def _user(claims: Mapping[str, Json], name: str) -> str:
    """The user. Application's own ids may be numbers, which Centrifugo takes as well."""
    if not name:
        return _text(claims, "sub", "")
    found = claims.get(name, "")
    # A bool is an int to Python.
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    return _text(claims, name, "")


def _payload(claims: Mapping[str, Json], name: str, loads: Loads) -> Json:
    """A claim that clients see.

    `b64…`, if set, is base64 of JSON and takes precedence over the plain claim.
    """
    encoded = _text(claims, f"b64{name}", "")
    payload = claims.get(name)
    if encoded:
        try:
            payload = loads(base64.b64decode(encoded, validate=True).decode())
        except (binascii.Error, ValueError, RecursionError) as error:
            raise TokenInvalid(f"b64{name} is not base64 of JSON") from error
    if is_deeper(payload, INFO_DEPTH_MAX):
        # It could not be encoded again, and would break every push with it.
        raise TokenInvalid(f"{name} is nested too deeply")
    return payload


def _data(grant: Mapping[str, Json], loads: Loads) -> dict[str, Any]:
    """`data` and `raw` of a ServerSubscription."""
    encoded = _text(grant, "b64data", "")
    if not encoded:
        return {"data": _payload(grant, "data", loads)}
    try:
        raw = from_base64(encoded)
    except ValueError as error:
        raise TokenInvalid("b64data is not base64") from error
    try:
        value = loads(raw.decode())
    except (ValueError, RecursionError):
        return {"data": raw, "raw": raw}
    if is_deeper(value, INFO_DEPTH_MAX):
        raise TokenInvalid("data is nested too deeply")
    return {"data": value, "raw": raw}


def _subs(claims: Mapping[str, Json], loads: Loads) -> Mapping[str, ServerSubscription]:
    """The server-side subscriptions. `channels` is the short form of `subs`, which takes
    precedence.
    """
    subs = {channel: ServerSubscription() for channel in _texts(claims, "channels")}
    for channel, grant in _object(claims, "subs").items():
        if not isinstance(grant, dict):
            raise TokenInvalid("subs are not objects")
        subs[channel] = ServerSubscription(
            info=_payload(grant, "info", loads),
            **_data(grant, loads),
            override=_override(grant),
            server_tags_filter=_filter(grant),
        )
    if not all(is_valid_name(channel) for channel in subs):
        raise TokenInvalid("a subscription to what is no channel name")
    return subs


def _override(claims: Mapping[str, Json]) -> ChannelOverride:
    """The changes in {"presence": {"value": true}, …}, by the names of ChannelOverride. Others are
    ignored.
    """
    flags: dict[str, bool] = {}
    override = _object(claims, "override")
    for each in fields(ChannelOverride):
        if override.get(each.name) is None:
            continue
        value = _object(override, each.name).get("value", False)
        flags[each.name] = checked(value, f"override of {each.name}", FLAG, TokenInvalid)
    return ChannelOverride(**flags)


def _filter(claims: Mapping[str, Json]) -> Filter | None:
    """The filter in a token. One that cannot be read would let too much through."""
    node = claims.get("server_tags_filter")
    if node is None:
        return None
    try:
        return filter_of(node)
    except InvalidFilter as error:
        raise TokenInvalid(f"server_tags_filter is no filter: {error}") from error


_CAPABILITIES: Final = {capability.value: capability for capability in Capability}
# By `match`. Regular expressions are refused, because some never finish.
_PATTERNS: Final = {"": False, "wildcard": True}


def _caps(claims: Mapping[str, Json]) -> tuple[Grant, ...]:
    """The grants. The first one that covers a channel counts, so none may be ignored."""
    caps = claims.get("caps")
    if caps is None:
        return ()
    if not OBJECTS.fits(caps):
        raise TokenInvalid("caps are not objects")
    return tuple(_grant(entry) for entry in caps)


def _grant(entry: Mapping[str, Json]) -> Grant:
    is_pattern = _PATTERNS.get(_text(entry, "match", ""))
    if is_pattern is None:
        raise TokenInvalid("caps with a match that is not known")
    channels = _texts(entry, "channels")
    if any(len(channel) > CHANNEL_BYTES_MAX for channel in channels):
        raise TokenInvalid("caps for what is no channel name")
    return Grant(channels, _allow(entry), is_pattern)


def _allow(claims: Mapping[str, Json]) -> frozenset[Capability]:
    """The capabilities of a subscription. Unknown ones are ignored: they allow nothing."""
    names = _texts(claims, "allow")
    return frozenset(_CAPABILITIES[name] for name in names if name in _CAPABILITIES)


def _texts(claims: Mapping[str, Json], name: str) -> tuple[str, ...]:
    return tuple(member_or_null(claims, name, TEXTS, [], TokenInvalid))


def _object(claims: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    return member_or_null(claims, name, OBJECT, {}, TokenInvalid)


# Replies of hooks over HTTP have the same forms. All raise TokenInvalid.
payload_of: Final = _payload
data_of: Final = _data
server_filter_of: Final = _filter
subs_of: Final = _subs
override_of: Final = _override
caps_of: Final = _caps
allow_of: Final = _allow
