"""What of one connection ends at a time: one timer for all of it, whatever ends first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["TIMER_S_MAX", "Deadlines"]

# Some event loops refuse timers beyond a month or two; a later deadline is looked at again then.
TIMER_S_MAX: Final = 30 * 24 * 3600.0


class Deadlines:
    """`due` is called with the name of what has ended, once. A name is a channel's, or None for the connection."""

    __slots__ = ("_due", "_ends", "_fires_at", "_timer")

    def __init__(self, due: Callable[[str | None], None]) -> None:
        self._due = due
        # In the time of the event loop.
        self._ends: dict[str | None, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = float("inf")

    def __len__(self) -> int:
        return len(self._ends)

    def set(self, name: str | None, in_s: float | None) -> None:
        """`in_s` seconds from now; None = never, or not any more."""
        if in_s is None:
            # The timer may fire for nothing, once.
            self._ends.pop(name, None)
            return
        self._ends[name] = asyncio.get_running_loop().time() + in_s
        self._arm()

    def clear(self) -> None:
        """Nothing ends any more: the connection has."""
        self._ends.clear()
        self._disarm()

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        ends = min(*self._ends.values(), loop.time() + TIMER_S_MAX)
        if ends < self._fires_at:
            self._disarm()
            self._timer, self._fires_at = loop.call_at(ends, self._fire), ends

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._fires_at = None, float("inf")

    def _fire(self) -> None:
        # A timer may come before its time, by the loop's resolution.
        now = max(asyncio.get_running_loop().time(), self._fires_at)
        self._timer, self._fires_at = None, float("inf")
        for name in sorted(
            (name for name, ends in self._ends.items() if ends <= now), key=self._ends.__getitem__
        ):
            # What was due before it may have ended this one too.
            if self._ends.pop(name, None) is not None:
                self._due(name)
        if self._ends:
            self._arm()
