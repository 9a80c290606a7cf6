"""Notices that the process was suspended, because waiting requests may then be too old to carry
out.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from roomcast.client.lifetime import SLEPT_S
from roomcast.ports import Clock

__all__ = ["AWAKE_CHECK_S", "UNREAD_S", "Watch"]

# The interval between checks. With SLEPT_S, it is the longest suspension that goes unnoticed.
AWAKE_CHECK_S: Final = 60.0
# Requests that waited in sockets during a suspension have all been read after this time, even
# behind others.
UNREAD_S: Final = 120.0

_log = structlog.get_logger(__name__)


class Watch:
    """Notices that the process was suspended, as pings do for the connections of clients.

    Requests that are read after a suspension may have been sent long before. Their callers may have
    repeated them elsewhere with the same idempotency key.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The wall clock, because the monotonic clock stands still while the machine is suspended.
        self._awake_ms = clock.now_ms()
        self._woke_s: float | None = None

    def look(self) -> None:
        """Checks for a suspension. To be called at least every AWAKE_CHECK_S."""
        now_ms = self._clock.now_ms()
        if now_ms - self._awake_ms > (AWAKE_CHECK_S + SLEPT_S) * 1000:
            self._woke_s = self._clock.monotonic_s()
            _log.warning("slept", seconds=(now_ms - self._awake_ms) // 1000)
        self._awake_ms = now_ms

    def may_have_waited(self) -> bool:
        """Whether a request that is read now may have been sent before a suspension."""
        self.look()
        return self._woke_s is not None and self._clock.monotonic_s() - self._woke_s < UNREAD_S

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(AWAKE_CHECK_S)
            self.look()
