"""The greetings of this node that are under way, and whether its queue was proved to hear."""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["GREETINGS_MAX", "Greetings"]

# Greetings that are remembered, since one that comes late proves as much. After so many a rebuilt
# queue is taken for working all the same; the periodic look at the logs finds the rest.
GREETINGS_MAX: Final = 10


class Greetings:
    """One a node. The listener sends greetings, the intake tells which came back."""

    def __init__(self) -> None:
        # Whether the queue was proved to bring what the topic gets.
        self.hears = False
        # By id, the newest last.
        self._under_way: dict[str, asyncio.Event] = {}

    def sent(self, signal_id: str) -> asyncio.Event:
        """A greeting goes out: what is set when it comes back."""
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
        """Something that only the topic can have brought came through the queue."""
        self.hears = True
