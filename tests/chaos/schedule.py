"""What goes wrong when, from a seed: phases of trouble with AWS one after the other,
and strikes at the instances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from tests.chaos.proxy import Fault, Phase

__all__ = ["Schedule", "Strike", "Timed"]

# Weights: an outage is long, for the rest a few seconds show what there is to see.
_PHASES: Final[tuple[tuple[float, Phase], ...]] = (
    (1, Phase("slow", {Fault.SLOW: 0.6}, pump=True)),
    (1, Phase("errors", {Fault.ERROR: 0.2, Fault.ERROR_AFTER: 0.2}, pump=True)),
    (1, Phase("throttled", {Fault.THROTTLED: 0.5}, pump=True)),
    (1, Phase("resets", {Fault.RESET: 0.2, Fault.RESET_AFTER: 0.3}, pump=True)),
    (1, Phase("late", {Fault.LATE: 0.3, Fault.SLOW: 0.3})),
    (1, Phase("black hole", {Fault.SWALLOWED: 0.7})),
    (2, Phase("down", down=True, pump=True)),
    (1, Phase("expired", {Fault.EXPIRED: 1.0}, pump=True)),
)
_CALM: Final = Phase("calm")
# Part of a phase's time that is calm after it: one kind of trouble shall not only hide the next.
_CALM_PART: Final = 0.2
# How long each lasts, about; a long run has more of them, a short one shorter ones.
# The outage takes twice as long.
_PHASE_S: Final = 5.0
# Between two strikes, on average.
_STRIKE_EVERY_S: Final = 5.0


class Strike(StrEnum):
    """What is done to an instance, or to a client's way to one."""

    KILL = "kill -9"
    SUSPEND = "suspend"
    DELETE_QUEUE = "delete queue"
    UNSUBSCRIBE = "unsubscribe"
    CUT = "cut clients"


@dataclass(frozen=True, slots=True)
class Timed:
    """What begins `at_s` seconds after the start."""

    at_s: float
    what: Phase | Strike


@dataclass(frozen=True, slots=True)
class Schedule:
    """The same for the same seed and duration."""

    seed: int
    duration_s: float
    timed: tuple[Timed, ...]

    @classmethod
    def of(cls, seed: int, duration_s: float) -> Schedule:
        random = Random(f"schedule {seed}")
        timed = [*_phases(random, duration_s), *_strikes(random, duration_s)]
        return cls(seed, duration_s, tuple(sorted(timed, key=lambda each: each.at_s)))


def _phases(random: Random, duration_s: float) -> Iterator[Timed]:
    """Every kind at least once, and all of them equally often."""
    weights = sum(weight for weight, _ in _PHASES)
    rounds = max(1, round(duration_s / (weights * _PHASE_S)))
    unit_s = duration_s / rounds / weights
    at_s = 0.0
    for _ in range(rounds):
        for weight, phase in random.sample(_PHASES, len(_PHASES)):
            yield Timed(at_s, phase)
            at_s += weight * unit_s * (1 - _CALM_PART)
            yield Timed(at_s, _CALM)
            at_s += weight * unit_s * _CALM_PART


def _strikes(random: Random, duration_s: float) -> Iterator[Timed]:
    """Every kind at least once, if there is time, at random moments."""
    count = max(len(Strike), round(duration_s / _STRIKE_EVERY_S))
    kinds: list[Strike] = []
    while len(kinds) < count:
        kinds += random.sample(list(Strike), len(Strike))
    for index, kind in enumerate(kinds[:count]):
        yield Timed((index + random.random()) * duration_s / count, kind)
