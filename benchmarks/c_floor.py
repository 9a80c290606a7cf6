"""Measures the CPU of a delivery by `roomcast serve`, in units of a loop of send(2) in C.

The floor is benchmarks/floor.c, compiled here: the bytes that roomcast sends, to as many
connections, and nothing around it. What `roomcast serve` spends is that of publications over its
HTTP API to a channel, less that of as many to a channel that nobody reads.

    python -m benchmarks.c_floor [--short] [--json]
"""

from __future__ import annotations

from typing import Final

from benchmarks.contest import DELIVERIES, DELIVERIES_SHORT, c_loop, contest, medians, serve
from benchmarks.figures import Figure
from benchmarks.suite import run_alone

__all__ = ["measure"]

# The ratio that is aimed at, by subscribers.
BOUNDS: Final = {1_000: 1.30, 5_000: 1.40, 9_000: 1.40}
ROUNDS: Final = 15
ROUNDS_SHORT: Final = 7


def measure(short: bool) -> list[Figure]:
    """`short`: 1,000 subscribers alone. Raises Skipped where no C compiler is."""
    figures = []
    rounds = ROUNDS_SHORT if short else ROUNDS
    for clients, bound in BOUNDS.items():
        cost = medians(
            contest(
                {"roomcast": serve, "floor": c_loop},
                clients=clients,
                rounds=rounds,
                deliveries=DELIVERIES_SHORT if short else DELIVERIES,
            )
        )
        figures.append(
            Figure(
                name=f"fan-out to {clients:,}, CPU of a delivery",
                value=cost["roomcast"],
                floor=cost["floor"],
                unit="µs",
                floor_name="C send loop",
                bound=bound,
                rounds=rounds,
            )
        )
        if short:
            break
    return figures


if __name__ == "__main__":
    run_alone(measure)
