"""Measures the CPU of a delivery to subscribers with filters, beside one to subscribers without.

As benchmarks/mixed.py does it: `roomcast serve`, and a thousand subscribers in each of three
channels. They have no filter, all the same, or a hundred different ones. Every publication passes
all of them, so that as much is sent in each channel.

    python -m benchmarks.filters --short
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks import mixed
from benchmarks.figures import Figure
from benchmarks.suite import run_alone

__all__ = ["measure"]

ROUNDS: Final = 9
ROUNDS_SHORT: Final = 3
DIFFERENT: Final = 100
_TAGS: Final = {"ticker": "T0", "price": "150.25", "source": "X"}
_OPTIONS: Final = "allow_tags_filter = true\n"


def _filter(number: int) -> str:
    """One of three nodes, as an application has it, which what is published passes."""
    return mixed.filtered(
        {
            "op": "and",
            "nodes": [
                {"key": "ticker", "cmp": "in", "vals": ["T0", f"T{number + 1}"]},
                {"key": "price", "cmp": "gte", "val": "100"},
            ],
        }
    )


CHANNELS: Final[Mapping[str, Sequence[str]]] = {
    "none": ("plain",),
    "one": (_filter(0),),
    "different": tuple(_filter(number) for number in range(DIFFERENT)),
    "nobody": (),
}


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: few rounds."""
    rounds = ROUNDS_SHORT if short else ROUNDS
    costs = mixed.measured(
        rounds, module="benchmarks.filters", channels=CHANNELS, options=_OPTIONS, tags=_TAGS
    )
    median = {channel: statistics.median(us) for channel, us in costs.items()}
    return [
        Figure(
            f"fan-out to {mixed.SUBSCRIBERS:,} {words}, CPU of a delivery",
            median[channel],
            median["none"],
            "us",
            "subscribers without filter",
            rounds=rounds,
        )
        for channel, words in (
            ("one", "with the same filter"),
            ("different", f"with {DIFFERENT} different filters"),
        )
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        mixed.serve(int(sys.argv[2]))
    else:
        run_alone(measure)
