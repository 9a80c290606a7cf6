"""Says in JSON's values what a token allows: for `roomcast checktoken` and the operations page."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterable
from typing import Any

from roomcast.auth.claims import ConnectionClaims, SubscriptionClaims
from roomcast.wire.capabilities import Capability

__all__ = ["names_a_channel", "summary"]


def names_a_channel(token: str) -> bool:
    """Whether it is a token for one channel. What it says is not verified yet."""
    try:
        claims = json.loads(urlsafe_b64decode(token.split(".")[1] + "=="))
    except (ValueError, IndexError, RecursionError):
        return False
    return isinstance(claims, dict) and "channel" in claims


def summary(claims: ConnectionClaims | SubscriptionClaims) -> dict[str, Any]:
    """As JSON has it. `expires_at`: s since 1970, None = never."""
    if isinstance(claims, ConnectionClaims):
        about: dict[str, Any] = {
            "kind": "connection",
            "subscribed_to": sorted(claims.subs),
            "caps": [
                {"channels": list(grant.channels), "allow": _names(grant.allow)}
                | ({"match": "wildcard"} if grant.is_pattern else {})
                for grant in claims.caps
            ],
        }
    else:
        about = {
            "kind": "subscription",
            "channel": claims.channel,
            "client": claims.client,
            "allow": _names(claims.allow),
        }
    return {
        **about,
        "user": claims.user,
        "expires_at": claims.expires_at,
        "info": claims.info,
    }


def _names(allow: Iterable[Capability]) -> list[str]:
    return sorted(capability.value for capability in allow)
