"""How long the connection and its subscriptions last: what the client is told of it, and their end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from roomcast.client.deadlines import Deadlines
from roomcast.ports import Clock

__all__ = ["EXPIRY_GRACE_S", "TTL_S_MAX", "Expiry"]

# A connection or subscription whose token ran out may stay for this long: its client fetches a new token meanwhile.
EXPIRY_GRACE_S: Final = 25.0
# What a reply says at most of the time until a token ends: the protocol's field has 32 bits.
TTL_S_MAX: Final = 2**31 - 1


class Expiry:
    """`due` is called with what has ended, as by Deadlines: a channel's name, or None for the connection."""

    __slots__ = ("_clock", "_deadlines")

    def __init__(self, clock: Clock, due: Callable[[str | None], None]) -> None:
        self._clock = clock
        self._deadlines = Deadlines(due)

    def last_until(self, name: str | None, expires_at: int | None) -> dict[str, object]:
        """Hold the subscription to channel `name`, or the connection (None), to its end, and say so in a reply.

        `expires_at`: s since 1970, None = never. Its client has EXPIRY_GRACE_S more to come with a new token.
        """
        if expires_at is None:
            self.forget(name)
            return {}
        left_s = self._left_s(expires_at)
        self._deadlines.set(name, left_s + EXPIRY_GRACE_S)
        # Never 0, which would be left out: SDKs need it.
        return {"expires": True, "ttl": min(math.ceil(left_s) or 1, TTL_S_MAX)}

    def end_at(self, name: str | None, expires_at: int) -> None:
        """`name` ends then, without grace and without a word before: its client cannot refresh it."""
        self._deadlines.set(name, self._left_s(expires_at))

    def forget(self, name: str | None) -> None:
        """It does not end by time, or has ended."""
        self._deadlines.set(name, None)

    def clear(self) -> None:
        """The connection has ended."""
        self._deadlines.clear()

    def _left_s(self, expires_at: int) -> float:
        return max(0.0, expires_at - self._clock.now_ms() / 1000)
