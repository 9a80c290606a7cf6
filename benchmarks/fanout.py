"""Measures the server's CPU time per delivery: roomcast, aiohttp's `send_str`, and a plain write.

All of them use the same thousand connections of one process and the same bytes, in rounds that take
turns.

    python -m benchmarks.fanout
"""

from __future__ import annotations

import statistics
import sys

from benchmarks.figures import Figure
from benchmarks.node import WAYS
from benchmarks.rig import CLIENTS, Process, end_in_time, rig, say

__all__ = ["measure"]

ROUNDS = 20
ROUNDS_SHORT = 5
PUBLICATIONS = 20
PAD = "x" * 150
_QUEUE_BYTES_MAX = 1024 * 1024


def measured(node: Process, crowd: Process, way: str) -> float:
    """CPU µs per delivery."""
    node.begin("broadcast", way=way, count=PUBLICATIONS, pad=PAD)
    read = crowd.ask("read", publications=PUBLICATIONS)
    cpu_s = node.answer()["cpu_s"]
    if read["missing"]:
        raise SystemExit(f"{read['missing']} clients did not get everything")
    return float(cpu_s) / PUBLICATIONS / CLIENTS * 1e6


def costs(rounds: int) -> dict[str, list[float]]:
    """CPU µs per delivery by way, round by round."""
    cost: dict[str, list[float]] = {way: [] for way in WAYS}
    with rig(queue_bytes_max=_QUEUE_BYTES_MAX) as (node, crowd):
        for way in WAYS:
            measured(node, crowd, way)
        for number in range(rounds):
            turn = number % len(WAYS)
            for way in WAYS[turn:] + WAYS[:turn]:
                cost[way].append(measured(node, crowd, way))
    return cost


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: fewer rounds."""
    rounds = ROUNDS_SHORT if short else ROUNDS
    median = {way: statistics.median(us) for way, us in costs(rounds).items()}
    return [
        Figure(
            f"fan-out to {CLIENTS:,} within the process, {way}: CPU of a delivery",
            median[way],
            median["floor"],
            "us",
            "loop of transport.write",
            rounds=rounds,
        )
        for way in WAYS
        if way != "floor"
    ]


def main() -> None:
    """Prints µs, which depend on this machine, and ratios, which depend on it less."""
    end_in_time()
    cost = costs(ROUNDS)
    sys.stdout.write(
        f"{CLIENTS} clients, {PUBLICATIONS} publications of about {len(PAD)} bytes a round\n"
    )
    for way in WAYS:
        say(f"{way}: server CPU of a delivery", cost[way], " us")
    for way in WAYS[1:]:
        say(f"{way} / floor", _ratios(cost[way], cost["floor"]))
    say("send_str / roomcast", _ratios(cost["send_str"], cost["roomcast"]))
    say("roomcast / roomcast x10", _ratios(cost["roomcast"], cost["roomcast x10"]))


def _ratios(one: list[float], other: list[float]) -> list[float]:
    """The ratios of values from the same round."""
    return [a / b for a, b in zip(one, other, strict=True)]


if __name__ == "__main__":
    main()
