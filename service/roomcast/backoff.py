"""Pauses between attempts that fail: each twice as long as the one before, up to the longest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["EVEN", "FROM_HALF", "FROM_NOTHING", "Backoff"]

# What chance makes of a pause: nothing, half to all of it, any part of it.
EVEN: Final = (1.0, 1.0)
FROM_HALF: Final = (0.5, 1.0)
FROM_NOTHING: Final = (0.0, 1.0)

# 2.0 ** 1024 is beyond a float. No pause needs so many steps from the first to the longest.
_DOUBLINGS_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Backoff:
    """`first_s` after one failure, twice that after two in a row, and so on up to `max_s`; seconds.

    `jitter`: the factors between which chance chooses, so that those who failed together do not all
    come back together.
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
        """The pause after so many failures in a row, at least one. `random`: from [0, 1)."""
        assert failures >= 1, "nobody pauses after a success"
        longest_s = min(self.max_s, self.first_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
        least, most = self.jitter
        return longest_s * (least + random * (most - least))
