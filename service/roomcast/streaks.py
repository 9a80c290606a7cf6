"""Detects calls that fail in a row, as opposed to single failures."""

from __future__ import annotations

from typing import Final

__all__ = ["FAILURES_TOLD", "FAILURE_COUNTS_S", "LASTS_S", "Streak"]

# In a row, and over this time, because a throttled moment fails many calls at once.
FAILURES_TOLD: Final = 2
LASTS_S: Final = 2.0
# How long a failure counts without further calls: nothing would show that the service has
# recovered.
FAILURE_COUNTS_S: Final = 60.0


class Streak:
    """The failures since the last success. Times are monotonic seconds."""

    __slots__ = ("_began_s", "_last_s", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._began_s = self._last_s = 0.0

    def succeeded(self) -> None:
        """A call succeeded."""
        self.failures = 0

    def failed(self, now_s: float) -> None:
        """A call failed or was not answered."""
        if not self.failures:
            self._began_s = now_s
        self.failures += 1
        self._last_s = now_s

    def is_bad(self, now_s: float) -> bool:
        """Whether the next call will probably fail too."""
        return (
            self.failures >= FAILURES_TOLD
            and now_s - self._began_s >= LASTS_S
            and now_s - self._last_s <= FAILURE_COUNTS_S
        )
