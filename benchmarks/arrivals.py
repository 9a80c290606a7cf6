"""Measures what clients cost who come: connect and subscribe, and a storm that recovers.

    python -m benchmarks.arrivals

One who comes: accept, upgrade, `connect` and `subscribe` in one frame, close. The floor is a bare
aiohttp server: accept, upgrade, close. Both are measured in rounds that take turns. The storm: all
clients open their connections at once, and recover publications that they missed.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from benchmarks.figures import Figure
from benchmarks.host import bare, node, usage
from benchmarks.rig import Process, end_in_time
from benchmarks.suite import run_alone

__all__ = ["measure"]

CPU_BOUND: Final = 1.8
STORM_CLIENTS: Final = 5_000
STORM_BOUND_S: Final = 10.0

_CLIENTS: Final = 500
_AT_ONCE: Final = 32
_SHORT_ROUNDS: Final = 3
_LONG_ROUNDS: Final = 11
_SHORT_STORM_CLIENTS: Final = 1_000
# What each of the storm's clients missed.
_MISSED: Final = 20
_RUN_S: Final = 300


def measure(short: bool) -> list[Figure]:
    """CPU of one who comes, and how long a storm takes."""
    return [
        coming(_SHORT_ROUNDS if short else _LONG_ROUNDS),
        storm(_SHORT_STORM_CLIENTS if short else STORM_CLIENTS),
    ]


def coming(rounds: int) -> Figure:
    """CPU µs of one client that connects, subscribes and leaves."""
    ours, theirs = [], []
    started: list[Process] = []
    try:
        server, port = node()
        started.append(server)
        floor, floor_port = bare()
        started.append(floor)
        started.append(callers := Process("benchmarks.callers", 1))
        for number in range(rounds + 1):
            one = _cost(server, callers, port, subscribe=True)
            other = _cost(floor, callers, floor_port, subscribe=False)
            # The first round is for what is made once.
            if number:
                ours.append(one)
                theirs.append(other)
    finally:
        for process in started:
            process.end()
    return Figure(
        "connect, subscribe and close, CPU",
        median(ours),
        median(theirs),
        "µs",
        "bare aiohttp WebSocket: accept, upgrade, close",
        CPU_BOUND,
        rounds=rounds,
    )


def _cost(server: Process, callers: Process, port: int, *, subscribe: bool) -> float:
    before_s, _ = usage(server)
    came = callers.ask("come", port=port, clients=_CLIENTS, at_once=_AT_ONCE, subscribe=subscribe)
    if came["missing"] or callers.ask("leave")["left"]:
        raise SystemExit("not every client came and went")
    server.ask("settle", clients=0)
    after_s, _ = usage(server)
    return (after_s - before_s) / _CLIENTS * 1e6


def storm(clients: int) -> Figure:
    """Wall seconds until `clients` that come at once are all served with what they missed."""
    started: list[Process] = []
    try:
        server, port = node()
        started.append(server)
        started.append(callers := Process("benchmarks.callers", 1))
        since = server.ask("publish", count=_MISSED)
        came = callers.ask("come", port=port, clients=clients, at_once=clients, recover=since)
    finally:
        for process in started:
            process.end()
    if came["missing"] or came["recovered"] != clients:
        raise SystemExit(f"not everybody recovered: {came}")
    return Figure(
        f"{clients:,} clients come at once and recover {_MISSED} publications each, wall time",
        came["wall_s"],
        STORM_BOUND_S * clients / STORM_CLIENTS,
        "s",
        f"{STORM_CLIENTS:,} in {STORM_BOUND_S:.0f} s",
        1.0,
    )


if __name__ == "__main__":
    end_in_time(_RUN_S)
    run_alone(measure)
