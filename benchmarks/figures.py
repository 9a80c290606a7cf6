"""What a benchmark found: figures, each beside the floor that was measured in the same run.

A benchmark that is part of the suite has `measure(short: bool) -> list[Figure]`. `short` asks for a
run of at most some 20 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Figure", "Skipped"]


class Skipped(Exception):
    """What is measured, or its floor, cannot run on this machine. One line: what it needs."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: `value` and `floor` have the same unit, and `ratio` is their quotient."""

    name: str
    """What was measured, such as "fan-out to 1,000, CPU of a delivery"."""
    value: float
    floor: float
    unit: str
    floor_name: str
    """What the floor is, such as "C send loop"."""
    bound: float | None = None
    """The ratio that is aimed at; None: told for comparison."""
    higher_is_better: bool = False
    """True of throughput: `bound` is then the least ratio."""
    rounds: int = 1
    """How many interleaved rounds the medians are of."""

    @property
    def ratio(self) -> float:
        """`value` ÷ `floor`; infinite where the floor is nothing."""
        return self.value / self.floor if self.floor else float("inf")

    @property
    def of_cpu(self) -> bool:
        """Whether it is CPU time, which other programs on the machine disturb least. Its name or
        unit says "CPU".
        """
        return "CPU" in f"{self.name} {self.unit}"

    @property
    def met(self) -> bool:
        """Whether the bound is reached. True where there is none."""
        if self.bound is None:
            return True
        return self.ratio >= self.bound if self.higher_is_better else self.ratio <= self.bound
