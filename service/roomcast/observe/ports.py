"""The port for readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Metric", "Metrics"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One reading. `unit`: Count, Milliseconds, Seconds or None (a plain number)."""

    name: str
    value: float
    unit: str


class Metrics(Protocol):
    """Takes readings of this node for dashboards and alarms."""

    async def put(self, readings: Sequence[Metric]) -> None:
        """Puts all readings or none.

        A repeat after UnknownOutcome counts twice. Raises Throttled, UnknownOutcome, Rejected.
        """
