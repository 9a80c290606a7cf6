"""What is known to be in the table must come round, through stream, Lambda, topic and queue: soon,
or something is wrong.

Whatever comes through the queue from the table shows that all of them work. So only the oldest
write counts behind which nothing came.
"""

from __future__ import annotations

from math import inf
from typing import Final

__all__ = ["ROUND_S", "Rounds"]

# The way round takes 0.3 s, and 1 s once in a hundred times. A stream that divides its shards, or a
# Lambda that starts, takes some seconds: those are no fault.
ROUND_S: Final = 10.0
# Up to this part later, so that nodes which lose the pipeline together do not ask together.
_JITTER: Final = 0.5


class Rounds:
    """Of one node. Times are monotonic seconds; `chance` is random, in [0, 1)."""

    __slots__ = ("_is_told", "_since_s", "due_s")

    def __init__(self) -> None:
        # Since when something is on its way, None = nothing is.
        self._since_s: float | None = None
        # When it is late; infinite when nothing is on its way, or when it was said that it is late.
        self.due_s = inf
        self._is_told = False

    @property
    def is_late(self) -> bool:
        """It was said that what is on its way is late, and nothing has come since."""
        return self._is_told

    def wrote(self, now_s: float, chance: float) -> None:
        """Something is in the table as of now."""
        if self._since_s is None:
            self._since_s = now_s
            self.due_s = now_s + ROUND_S * (1 + _JITTER * chance)

    def came(self) -> None:
        """Something came round."""
        self._since_s, self.due_s, self._is_told = None, inf, False

    def must_tell(self, now_s: float) -> bool:
        """It is late as of now; once for each time that nothing comes."""
        if now_s < self.due_s:
            return False
        self.due_s, self._is_told = inf, True
        return True

    def late_s(self, now_s: float) -> float:
        """For how long what is late has been on its way; 0 when nothing is late."""
        return now_s - self._since_s if self._is_told and self._since_s is not None else 0.0
