"""Watches that items in the table come back through stream, Lambda, topic and queue in time.

Any item that comes through the queue shows that all of these work. So only the time of the oldest
write since then counts.
"""

from __future__ import annotations

from math import inf
from typing import Final

__all__ = ["ROUND_S", "Rounds"]

# Seconds until an item is late. The round takes 0.3 s, and 1 s once in a hundred times. When a
# stream divides its shards or a Lambda starts, it takes some seconds, which is no fault.
ROUND_S: Final = 10.0
# It counts as late up to this part later, so that nodes that lose the pipeline together do not look
# for the fault together.
_JITTER: Final = 0.5


class Rounds:
    """The rounds of one node. Times are monotonic seconds; `chance` is random, in [0, 1)."""

    __slots__ = ("_is_told", "_since_s", "due_s")

    def __init__(self) -> None:
        # When the oldest item on its way was written; None = none is.
        self._since_s: float | None = None
        # When it will be late. Infinite when nothing is on its way, or `must_tell` has reported it.
        self.due_s = inf
        self._is_told = False

    @property
    def is_late(self) -> bool:
        """Whether `must_tell` has reported a late item and none has come since."""
        return self._is_told

    def wrote(self, now_s: float, chance: float) -> None:
        """An item is in the table as of now."""
        if self._since_s is None:
            self._since_s = now_s
            self.due_s = now_s + ROUND_S * (1 + _JITTER * chance)

    def came(self) -> None:
        """An item came through the queue."""
        self._since_s, self.due_s, self._is_told = None, inf, False

    def must_tell(self, now_s: float) -> bool:
        """Whether an item is late now. True once for each time that none comes."""
        if now_s < self.due_s:
            return False
        self.due_s, self._is_told = inf, True
        return True

    def late_s(self, now_s: float) -> float:
        """Seconds for which the late item has been on its way; 0 when none is late."""
        return now_s - self._since_s if self._is_told and self._since_s is not None else 0.0
