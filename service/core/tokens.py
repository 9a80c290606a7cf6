"""Claims of connection and subscription tokens: from decoded JSON to what a connection may rest on.

The signature was verified before (service/auth.py); time is passed in. See the tokens of the Centrifuge protocol.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.core.publication import Json

__all__ = [
    "TOKEN_TIME_MAX",
    "ConnectionClaims",
    "SubscriptionClaims",
    "TokenError",
    "TokenExpired",
    "TokenInvalid",
    "connection_claims",
    "subscription_claims",
]

# Seconds. JavaScript's whole numbers end here; also takes the milliseconds that some signers write by mistake.
TOKEN_TIME_MAX: Final = 2**53 - 1

Loads = Callable[[str], Any]


class TokenError(Exception):
    """Base of why a token is not accepted."""


class TokenExpired(TokenError):
    """It was good once: the client is to fetch a new one (error 109 to connect and subscribe, 3005 to refresh)."""

    def __init__(self) -> None:
        super().__init__("token expired")


class TokenInvalid(TokenError):
    """It was never good. `reason` is for the log, and holds nothing of the token's content."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ConnectionClaims:
    """Who connects. `user` "" = anonymous; `expires_at`: s since 1970 when a refresh is due, None = never."""

    user: str
    expires_at: int | None
    info: Json = None


@dataclass(frozen=True, slots=True)
class SubscriptionClaims:
    """Who may subscribe to what. The caller must compare `user` and `channel` with the connection and its request,
    and `client` with the connection's id unless it is "" (a token bound to one connection).
    """

    user: str
    channel: str
    expires_at: int | None
    info: Json = None
    client: str = ""


def connection_claims(
    claims: Json, now_s: float, *, audience: str = "", issuer: str = "", loads: Loads = json.loads
) -> ConnectionClaims:
    """Check the claims of a connection token. `audience` and `issuer` "" = not required.

    `loads` decodes the JSON in `b64info`. Raises TokenExpired or TokenInvalid.
    """
    checked = _checked(claims, now_s, audience, issuer)
    if "channel" in checked:
        # Otherwise a token that was given out for one channel would open a connection.
        raise TokenInvalid("a subscription token where a connection token belongs")
    return ConnectionClaims(
        user=_text(checked, "sub", ""), expires_at=_expires_at(checked, now_s), info=_info(checked, loads)
    )


def subscription_claims(
    claims: Json, now_s: float, *, audience: str = "", issuer: str = "", loads: Loads = json.loads
) -> SubscriptionClaims:
    """Check the claims of a subscription token; arguments and errors as for `connection_claims`."""
    checked = _checked(claims, now_s, audience, issuer)
    channel = _text(checked, "channel", "")
    if not channel:
        raise TokenInvalid("a subscription token without channel")
    return SubscriptionClaims(
        user=_text(checked, "sub", ""),
        channel=channel,
        expires_at=_expires_at(checked, now_s),
        info=_info(checked, loads),
        client=_text(checked, "client", ""),
    )


def _checked(claims: Json, now_s: float, audience: str, issuer: str) -> Mapping[str, Json]:
    """What both kinds share. An invalid token is invalid even when it is expired too: a new one would not help."""
    if not isinstance(claims, dict):
        raise TokenInvalid("claims are not an object")
    if audience:
        found = claims.get("aud")
        if found != audience and not (isinstance(found, list) and audience in found):
            raise TokenInvalid("another audience")
    if issuer and claims.get("iss") != issuer:
        raise TokenInvalid("another issuer")
    if "nbf" in claims and now_s < _time(claims, "nbf"):
        raise TokenInvalid("not valid yet")
    if "exp" in claims and now_s >= _time(claims, "exp"):
        raise TokenExpired
    return claims


def _expires_at(claims: Mapping[str, Json], now_s: float) -> int | None:
    """`expire_at` says how long what the token opened lasts (0 = for ever); without it that is as long as the token."""
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
    # A null would otherwise be a token that never expires.
    found = claims[name]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TokenInvalid(f"{name} is not a number")
    # Written so that NaN fails too.
    if not 0 <= found <= TOKEN_TIME_MAX:
        raise TokenInvalid(f"{name} is out of range")
    return found


def _text(claims: Mapping[str, Json], name: str, default: str) -> str:
    found = claims.get(name, default)
    if not isinstance(found, str):
        raise TokenInvalid(f"{name} is not a string")
    return found


def _info(claims: Mapping[str, Json], loads: Loads) -> Json:
    """`b64info`, where it is set, is base64 of JSON and goes before `info`."""
    encoded = _text(claims, "b64info", "")
    if not encoded:
        return claims.get("info")
    try:
        return loads(base64.b64decode(encoded, validate=True).decode())
    except (binascii.Error, ValueError, RecursionError) as error:
        raise TokenInvalid("b64info is not base64 of JSON") from error
