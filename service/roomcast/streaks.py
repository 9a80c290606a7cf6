"""Calls that fail one after the other: when that says more than that one of them had bad luck."""

from __future__ import annotations

from typing import Final

__all__ = ["FAILURES_TOLD", "FAILURE_COUNTS_S", "LASTS_S", "Streak"]

# In a row, and over this time: a throttled moment fails many calls at once.
FAILURES_TOLD: Final = 2
LASTS_S: Final = 2.0
# For how long a failure counts when nobody calls any more. What has come right since would not
# show.
FAILURE_COUNTS_S: Final = 60.0


class Streak:
    """The failures since the last success. Times are monotonic seconds."""

    __slots__ = ("_began_s", "_last_s", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._began_s = self._last_s = 0.0

    def succeeded(self) -> None:
        """A call was answered."""
        self.failures = 0

    def failed(self, now_s: float) -> None:
        """A call was not, or with a failure."""
        if not self.failures:
            self._began_s = now_s
        self.failures += 1
        self._last_s = now_s

    def is_bad(self, now_s: float) -> bool:
        """Whether the next call will probably fail as well."""
        return (
            self.failures >= FAILURES_TOLD
            and now_s - self._began_s >= LASTS_S
            and now_s - self._last_s <= FAILURE_COUNTS_S
        )
