"""Notices that the process was suspended: what was sent with a key before that may be too old to be carried out."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from roomcast.client.lifetime import SLEPT_S
from roomcast.ports import Clock

__all__ = ["AWAKE_CHECK_S", "UNREAD_S", "Watch"]

# How often it is looked whether the process was suspended. With SLEPT_S, the longest suspension that goes unnoticed.
AWAKE_CHECK_S: Final = 60.0
# What waited in sockets during a suspension has been read so long after it at the latest, behind other requests too.
UNREAD_S: Final = 120.0

_log = structlog.get_logger(__name__)


class Watch:
    """Notices that the process was suspended, as pings do for the connections of clients: requests that are read
    after that may have been sent long before, and their callers may have gone elsewhere with the same key.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The wall clock: a suspended machine's monotonic clock stands still.
        self._awake_ms = clock.now_ms()
        self._woke_s: float | None = None

    def look(self) -> None:
        """To be called every AWAKE_CHECK_S at the least."""
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
