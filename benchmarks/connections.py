"""Measures what open connections cost while nothing is said: memory, and the CPU of pings.

    python -m benchmarks.connections
    python -m benchmarks.connections --clients 50000 --seconds 600

Memory is the growth of the process's resident bytes, ÷ connections, beside that of a bare aiohttp
server whose handler waits for a message. Each server is a fresh process, and clients have come and
gone before, so that what is made once is not counted. Pings come as often as 50,000 clients would
get them, whatever the number of clients is.
"""

from __future__ import annotations

import argparse
import resource
from statistics import median
from typing import Final

from benchmarks.figures import Figure
from benchmarks.host import bare, node, usage
from benchmarks.rig import Process, end_in_time
from benchmarks.suite import tell
from roomcast.serve.descriptors import RESERVED

__all__ = ["measure"]

MEMORY_BOUND_KB: Final = 16.0
PING_CORES_BOUND: Final = 0.25
# The configuration's default, and the crowd whose pings are measured.
PING_INTERVAL_S: Final = 25.0
PINGED_CLIENTS: Final = 50_000

_AT_ONCE: Final = 64
_SHORT_CLIENTS: Final = 2_000
_LONG_CLIENTS: Final = 10_000
_WARM_CLIENTS: Final = 200
_SHORT_SECONDS: Final = 5.0
_LONG_SECONDS: Final = 60.0
_SLACK_S: Final = 120.0


def measure(short: bool) -> list[Figure]:
    """Memory of an idle subscribed connection, and the CPU of pings."""
    clients = min(_SHORT_CLIENTS if short else _LONG_CLIENTS, _clients_max())
    rounds = 1 if short else 3
    return [
        memory(min(clients, _SHORT_CLIENTS), rounds),
        pings(clients, _SHORT_SECONDS if short else _LONG_SECONDS),
    ]


def memory(clients: int, rounds: int) -> Figure:
    """KB of resident memory for each of `clients`."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_grown(*node(), clients, subscribe=True))
        theirs.append(_grown(*bare(), clients, subscribe=False))
    return Figure(
        f"idle subscribed connection of {clients:,}, resident memory",
        median(ours),
        median(theirs),
        "KB",
        "bare aiohttp WebSocket",
        # The bound is absolute.
        MEMORY_BOUND_KB / median(theirs),
        rounds=rounds,
    )


def _grown(server: Process, port: int, clients: int, *, subscribe: bool) -> float:
    callers = Process("benchmarks.callers", 1)
    try:
        _come(callers, port, _WARM_CLIENTS, subscribe=subscribe)
        callers.ask("leave")
        before = server.ask("settle", clients=0)["resident"]
        _come(callers, port, clients, subscribe=subscribe)
        after = server.ask("settle", clients=clients)["resident"]
        return float(after - before) / clients / 1024
    finally:
        callers.end()
        server.end()


def pings(clients: int, seconds: float, crowd: int = PINGED_CLIENTS) -> Figure:
    """Share of a core for the pings of `crowd` clients, measured on `clients` for `seconds`.

    They get as many pings a second as the crowd would. Raises SystemExit when one of them is lost.
    """
    interval_s = PING_INTERVAL_S * min(1.0, clients / crowd)
    server, port = node(ping_interval_s=interval_s)
    callers = Process("benchmarks.callers", 1)
    try:
        _come(callers, port, clients, subscribe=True)
        # From the first ping on, they come evenly.
        callers.ask("stay", seconds=interval_s)
        before_s, _ = usage(server)
        stayed = callers.ask("stay", seconds=seconds)
        after_s, _ = usage(server)
    finally:
        callers.end()
        server.end()
    if stayed["lost"] or stayed["open"] != clients:
        raise SystemExit(f"{stayed['lost']} of {clients} clients were lost")
    per_s = stayed["pings"] / seconds
    expected = crowd / PING_INTERVAL_S
    if clients < crowd and not 0.8 < per_s / expected < 1.2:
        raise SystemExit(f"{per_s:.0f} pings a second came, of {expected:.0f}")
    return Figure(
        f"pings of {crowd:,} clients ({per_s:,.0f}/s, on {clients:,} connections), CPU",
        (after_s - before_s) / seconds,
        1.0,
        "cores",
        "one core",
        PING_CORES_BOUND,
    )


def _come(callers: Process, port: int, clients: int, *, subscribe: bool) -> None:
    came = callers.ask("come", port=port, clients=clients, at_once=_AT_ONCE, subscribe=subscribe)
    if came["missing"]:
        raise SystemExit(f"{came['missing']} of {clients} clients could not connect")


def _clients_max() -> int:
    """As many as the descriptors of one process allow."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 2 * RESERVED


def main() -> None:
    """Prints a table. With `--clients`, only the pings of so many, for `--seconds`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--seconds", type=float, default=_LONG_SECONDS)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    end_in_time(round(asked.seconds + 2 * PING_INTERVAL_S + _SLACK_S + (asked.clients or 0) / 200))
    if asked.clients is None:
        figures = measure(asked.short)
    else:
        clients = min(asked.clients, _clients_max())
        figures = [pings(clients, asked.seconds, max(asked.clients, clients))]
    tell(figures, as_rows=asked.json)


if __name__ == "__main__":
    main()
