"""What a connection needs of whoever verifies its tokens."""

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
        """Whether tokens are looked at."""

    async def connection(self, token: str, now_s: float) -> ConnectionClaims:
        """What a connection token claims. `now_s`: seconds since 1970."""

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims:
        """What a subscription token claims. `now_s`: seconds since 1970."""
