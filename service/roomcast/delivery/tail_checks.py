"""When to look at the end of each open channel's log: once in a while, and soon when asked.

Looks that were asked for come first, in the order of asking. When all are asked for again, a
channel that still waits keeps its place and gets one look. A channel that had its look, or whose
look is under way, gets another.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

__all__ = ["TailChecks"]

# Looks come at a random moment from 3/4 to 5/4 of their interval.
_EARLIEST: Final = 0.75
_JITTER: Final = 0.5
# A look that failed is repeated sooner than the interval says, but not at once: the channel may be
# what is broken.
_RETRY_S: Final = 30.0
# Stale entries of the heap, besides as many as there are channels, before it is made anew.
_STALE_MAX: Final = 64


class TailChecks:
    """The open channels by name. Seconds are monotonic; `chance` is random, in [0, 1)."""

    __slots__ = ("_asked", "_asked_at_s", "_due", "_heap", "every_s")

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        # When each open channel is due; infinity = its look is under way.
        self._due: dict[str, float] = {}
        # The same, the earliest first; an entry that differs from `_due` counts no more.
        self._heap: list[tuple[float, str]] = []
        # A plain dict takes ever longer for its first key as the ones before it go.
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._asked_at_s = -inf

    def __len__(self) -> int:
        """Open channels."""
        return len(self._due)

    @property
    def asked(self) -> int:
        """Channels whose looks were asked for and have not begun."""
        return len(self._asked)

    def opened(self, channel: str, read_at_s: float, chance: float) -> None:
        """Its end was found by a read that began at `read_at_s`.

        If all looks were asked for since then, it gets another one.
        """
        self._plan(channel, read_at_s + self._interval_s(self.every_s, chance))
        if read_at_s <= self._asked_at_s:
            self._asked[channel] = None

    def closed(self, channel: str) -> None:
        """Idempotent."""
        self._asked.pop(channel, None)
        self._due.pop(channel, None)

    def ask(self, now_s: float) -> None:
        """Each open channel is to have a look that begins after now."""
        self._asked |= dict.fromkeys(self._due)
        self._asked_at_s = now_s

    def take(self, now_s: float) -> str | None:
        """The channel to look at next, if there is one. Its look is under way until `done`."""
        channel: str | None = None
        if self._asked:
            channel, _ = self._asked.popitem(last=False)
        elif self._earliest_s() <= now_s and self._heap:
            _, channel = heappop(self._heap)
        if channel is not None:
            self._due[channel] = inf
        return channel

    def done(self, channel: str, now_s: float, chance: float, *, answered: bool) -> None:
        """The look is over. `answered`: whether the log answered."""
        if channel in self._due:
            every_s = self.every_s if answered else min(self.every_s, _RETRY_S)
            self._plan(channel, now_s + self._interval_s(every_s, chance))

    def next_s(self) -> float:
        """When the next look is due; infinity = nothing is open.

        What is opened from now on is due later than half an interval.
        """
        return -inf if self._asked else self._earliest_s()

    def _interval_s(self, every_s: float, chance: float) -> float:
        return every_s * (_EARLIEST + _JITTER * chance)

    def _earliest_s(self) -> float:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else inf

    def _plan(self, channel: str, due_s: float) -> None:
        self._due[channel] = due_s
        heappush(self._heap, (due_s, channel))
        if len(self._heap) > 2 * len(self._due) + _STALE_MAX:
            self._heap = [(at_s, name) for name, at_s in self._due.items() if at_s < inf]
            heapify(self._heap)
