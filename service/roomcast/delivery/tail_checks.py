"""Schedules checks of each open channel's tail: once in a while, and soon on request.

Requested looks come first, in the order of the requests. A request is for all channels, or for
those of one topic shard. At another request, a channel that still waits keeps its place and gets
one look. A channel that had its look, or whose look is under way, gets another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

__all__ = ["TailChecks"]

# Looks come at a random time from 3/4 to 5/4 of their interval.
_EARLIEST: Final = 0.75
_JITTER: Final = 0.5
# A failed look is repeated before its interval is over, but not at once: the channel itself may be
# broken.
_RETRY_S: Final = 30.0
# The heap is rebuilt when its stale entries exceed the number of channels by this.
_STALE_MAX: Final = 64


class TailChecks:
    """The open channels by name. Seconds are monotonic; `chance` is random, in [0, 1).

    `shard_of`: the topic shard of a channel.
    """

    __slots__ = ("_asked", "_asked_at_s", "_due", "_heap", "_shard_of", "every_s")

    def __init__(self, every_s: float, shard_of: Callable[[str], int]) -> None:
        self.every_s = every_s
        self._shard_of = shard_of
        # When the look of each open channel is due; infinity = it is under way.
        self._due: dict[str, float] = {}
        # The same, the earliest first. An entry that differs from `_due` is stale.
        self._heap: list[tuple[float, str]] = []
        # Channels with requested looks. Not a plain dict: that takes ever longer to find its first
        # key as earlier keys are removed.
        self._asked: OrderedDict[str, None] = OrderedDict()
        # When looks were requested last: at all channels (None), and at those of a topic shard.
        self._asked_at_s: dict[int | None, float] = {}

    def __len__(self) -> int:
        """The number of open channels."""
        return len(self._due)

    @property
    def asked(self) -> int:
        """The number of channels whose requested looks have not begun."""
        return len(self._asked)

    def opened(self, channel: str, read_at_s: float, chance: float) -> None:
        """A channel opened: its tail is from a read that began at `read_at_s`.

        If looks were requested since then, it gets one.
        """
        self._plan(channel, read_at_s + self._interval_s(self.every_s, chance))
        asked_at_s = max(
            self._asked_at_s.get(None, -inf), self._asked_at_s.get(self._shard_of(channel), -inf)
        )
        if read_at_s <= asked_at_s:
            self._asked[channel] = None

    def closed(self, channel: str) -> None:
        """Idempotent."""
        self._asked.pop(channel, None)
        self._due.pop(channel, None)

    def ask(self, now_s: float, shard: int | None = None) -> None:
        """Request a look at each open channel that begins after now.

        `shard`: only at those of one topic shard.
        """
        self._asked |= dict.fromkeys(
            self._due
            if shard is None
            else (channel for channel in self._due if self._shard_of(channel) == shard)
        )
        self._asked_at_s[shard] = now_s

    def take(self, now_s: float) -> str | None:
        """The channel to look at next, if one is due. Its look is under way until `done`."""
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
        """When the next look is due; infinity = no channel is open.

        A channel that opens from now on is due after more than half an interval.
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
