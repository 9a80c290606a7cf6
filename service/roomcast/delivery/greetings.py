"""Keeps this node's greetings that are under way, and whether one has proved the queue."""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["GREETINGS_MAX", "Greetings"]

# Greetings that are remembered: one that comes late proves as much. After so many, a rebuilt queue
# counts as working without a proof, and the periodic tail checks find what it misses.
GREETINGS_MAX: Final = 10


class Greetings:
    """One a node. The listener sends greetings, and the intake reports those that come back."""

    def __init__(self) -> None:
        # Whether it is proved that the queue gets the topic's messages.
        self.hears = False
        # The event of each greeting by its id, the newest last.
        self._under_way: dict[str, asyncio.Event] = {}

    def sent(self, signal_id: str) -> asyncio.Event:
        """A greeting goes out. Returns the event that is set when it comes back."""
        came = self._under_way[signal_id] = asyncio.Event()
        if len(self._under_way) > GREETINGS_MAX:
            del self._under_way[next(iter(self._under_way))]
        return came

    def greeted(self, signal_id: str) -> None:
        """A greeting of this node came back."""
        came = self._under_way.get(signal_id)
        if came is not None:
            self.hears = True
            came.set()

    def heard(self) -> None:
        """A message that must have gone through the topic came through the queue."""
        self.hears = True
