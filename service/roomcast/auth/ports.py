"""The port through which a connection has its tokens verified."""

from __future__ import annotations

from typing import Protocol

from roomcast.auth.claims import ConnectionClaims, SubscriptionClaims

__all__ = ["Verifier"]


class Verifier(Protocol):
    """Verifies tokens: service/roomcast/auth/verifier.py.

    Both methods raise TokenExpired, TokenEarly, TokenInvalid or TokenUnverifiable.
    """

    @property
    def enabled(self) -> bool:
        """Whether tokens can be verified at all."""

    async def connection(self, token: str, now_s: float) -> ConnectionClaims:
        """The claims of a connection token. `now_s`: seconds since 1970."""

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims:
        """The claims of a subscription token. `now_s`: seconds since 1970."""
