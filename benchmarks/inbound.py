"""Measures what a command costs that a client sends: read, decoded, decided and answered.

    python -m benchmarks.inbound

The command is the plainest that is answered with success and needs nothing but the session: an
`unsubscribe` from a channel that the client is not in. The floor is a bare aiohttp handler that
decodes each message with orjson and answers with an object of the same size. CPU is that of the
server process, in rounds that take turns.
"""

from __future__ import annotations

import json
from statistics import median
from typing import Final

from benchmarks.figures import Figure
from benchmarks.host import bare, node, usage
from benchmarks.rig import Process, end_in_time
from benchmarks.suite import run_alone

__all__ = ["measure"]

BOUND: Final = 0.7

_COMMAND: Final = json.dumps({"id": 7, "unsubscribe": {"channel": "elsewhere"}})
# Clients that send at the same time, and how many commands each has under way.
_CROWD: Final = 200
_SHAPES: Final = (
    ("one client, one command at a time", 1, 1),
    ("one client, 32 commands under way", 1, 32),
    (f"{_CROWD} clients, one command at a time each", _CROWD, 1),
)
_COMMANDS: Final = 6_000
_SHORT_ROUNDS: Final = 3
_LONG_ROUNDS: Final = 11
_RUN_S: Final = 300


def measure(short: bool) -> list[Figure]:
    """Commands a second of CPU, of one connection and of many."""
    rounds = _SHORT_ROUNDS if short else _LONG_ROUNDS
    ours: dict[str, list[float]] = {name: [] for name, _, _ in _SHAPES}
    theirs: dict[str, list[float]] = {name: [] for name, _, _ in _SHAPES}
    started: list[Process] = []
    try:
        server, port = node()
        started.append(server)
        floor, floor_port = bare()
        started.append(floor)
        asking, echoed = Process("benchmarks.callers", 1), Process("benchmarks.callers", 1)
        started += [asking, echoed]
        _come(asking, port, subscribe=True)
        _come(echoed, floor_port, subscribe=False)
        for number in range(rounds + 1):
            for name, clients, window in _SHAPES:
                one = _rate(server, asking, clients, window)
                other = _rate(floor, echoed, clients, window)
                # The first round is for what is made once.
                if number:
                    ours[name].append(one)
                    theirs[name].append(other)
    finally:
        for process in started:
            process.end()
    return [
        Figure(
            f"commands of {name}",
            median(ours[name]),
            median(theirs[name]),
            "a second of CPU",
            "bare aiohttp echo with orjson",
            BOUND,
            higher_is_better=True,
            rounds=rounds,
        )
        for name, _, _ in _SHAPES
    ]


def _come(callers: Process, port: int, *, subscribe: bool) -> None:
    if callers.ask("come", port=port, clients=_CROWD, at_once=16, subscribe=subscribe)["missing"]:
        raise SystemExit("not every client could connect")


def _rate(server: Process, callers: Process, clients: int, window: int) -> float:
    before_s, _ = usage(server)
    asked = callers.ask("ask", frame=_COMMAND, answers=_COMMANDS, clients=clients, window=window)
    if asked["missing"]:
        raise SystemExit("not every command was answered")
    after_s, _ = usage(server)
    return float(asked["answers"]) / (after_s - before_s)


if __name__ == "__main__":
    end_in_time(_RUN_S)
    run_alone(measure)
