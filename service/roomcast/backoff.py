"""Computes the pauses between failing attempts: each twice the previous one, up to a maximum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["EVEN", "FROM_HALF", "FROM_NOTHING", "Backoff"]

# The factors of the jitter: none, half to all of the pause, any part of it.
EVEN: Final = (1.0, 1.0)
FROM_HALF: Final = (0.5, 1.0)
FROM_NOTHING: Final = (0.0, 1.0)

# 2.0 ** 1024 is beyond a float. No pause needs this many doublings.
_DOUBLINGS_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Backoff:
    """`first_s` after one failure, twice that after two in a row, and so on up to `max_s`. Seconds.

    `jitter`: the range of the random factor. It spreads the attempts of callers that failed
    together.
    """

    first_s: float
    max_s: float
    jitter: tuple[float, float] = EVEN

    def __post_init__(self) -> None:
        assert 0 <= self.first_s <= self.max_s <= self.first_s * 2**_DOUBLINGS_MAX, (
            "the longest pause can be reached"
        )
        assert 0 <= self.jitter[0] <= self.jitter[1], "no pause is negative"

    def pause_s(self, failures: int, random: float = 0.0) -> float:
        """The pause after `failures` in a row, at least one. `random`: from [0, 1)."""
        assert failures >= 1, "nobody pauses after a success"
        longest_s = min(self.max_s, self.first_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
        least, most = self.jitter
        return longest_s * (least + random * (most - least))
