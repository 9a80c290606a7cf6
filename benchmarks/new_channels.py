"""Measures how long a client waits for the table while others publish to ever-new channels.

A node as it is run, with its usual limits, serves in a process of its own. So does an AWS that
keeps connections (benchmarks/aws_stub.py), which answers at once or after a delay. Connections
publish to new channels with history as fast as the node takes it: each publication is two or three
calls. A neighbour publishes in one channel with history, asks for its history, or subscribes to a
new channel, one command at a time. Rounds with the flood take turns with rounds without (the
floor).

    python -m benchmarks.new_channels [--json] [--delay-ms MS]
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import count
from typing import Any, Final

from benchmarks.comings import _connected
from benchmarks.figures import Figure
from benchmarks.floods import Neighbour
from benchmarks.rig import Process, carry_out_lines, end_in_time, masked, percentile, widen
from benchmarks.serving import WAYS, Measured, kept, node
from benchmarks.suite import tell

__all__ = ["ASKS", "FLOODING", "figures", "flooded", "measure", "measured", "measured_asks"]

FLOODING: Final = 20
ROUNDS: Final = 5
ROUND_S: Final = 4.0
RUN_S: Final = 280
# From the flood's first frame until its connections have as much under way as they may.
_WARM_S: Final = 2.0
_PAUSE_S: Final = 0.005
# Publications of one frame; of one connection at once, and in a second from then on: as many as
# `client.publish_rate_limit` lets through by default.
_TIMES: Final = 8
_BURST: Final = 200
_RATE: Final = 100
_SLICE_S: Final = 0.02
_READ_BYTES: Final = 256 * 1024
# A node that uses less of a core than this, so often in a row, has nothing left of a flood.
_IDLE: Final = 0.15
_IDLE_S: Final = 0.25
_IDLE_TIMES: Final = 6
_SETTLE_S: Final = 60.0

# The neighbour answers none.
_NO_PINGS: Final = "ping_interval_s = 3600"

_numbers = count()


def _publish(neighbour: Neighbour) -> float:
    return neighbour.ask("publish", {"channel": "alone", "data": 1})


def _history(neighbour: Neighbour) -> float:
    return neighbour.ask("history", {"channel": "alone", "limit": 1})


def _subscribe(neighbour: Neighbour) -> float:
    """The wait for the first subscribe that a channel ever had."""
    channel = f"mine-{next(_numbers)}"
    took_s = neighbour.ask("subscribe", {"channel": channel})
    neighbour.ask("unsubscribe", {"channel": channel})
    return took_s


# What the neighbour asks for, in turn.
ASKS: Final[Mapping[str, Callable[[Neighbour], float]]] = {
    "publish": _publish,
    "history": _history,
    "subscribe": _subscribe,
}


def measured_asks(neighbour: Neighbour, seconds: float) -> dict[str, list[float]]:
    """The neighbour's waits in ms, by what it asks for."""
    found: dict[str, list[float]] = {name: [] for name in ASKS}
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s or not all(found.values()):
        for name, ask in ASKS.items():
            found[name].append(ask(neighbour) * 1000)
            time.sleep(_PAUSE_S)
    return found


def flooded(
    flooding: Process, neighbour: Neighbour, connections: int, seconds: float = ROUND_S
) -> dict[str, list[float]]:
    """The same, while so many connections publish to new channels."""
    flooding.begin("flood", connections=connections, seconds=_WARM_S + seconds)
    time.sleep(_WARM_S)
    found = measured_asks(neighbour, seconds)
    if not flooding.answer()["sent"]:
        raise SystemExit("nothing was published to new channels")
    return found


def _settle(served: Measured) -> None:
    """Waits until nothing is left of a flood."""
    give_up_s, idle = time.monotonic() + _SETTLE_S, 0
    while time.monotonic() < give_up_s:
        before_s = served.cpu_s()
        time.sleep(_IDLE_S)
        idle = idle + 1 if served.cpu_s() - before_s < _IDLE * _IDLE_S else 0
        if idle == _IDLE_TIMES:
            return
    raise SystemExit(f"the node was still busy {_SETTLE_S:.0f} s after the flood")


@contextmanager
def _rig(delay_s: float) -> Iterator[tuple[Measured, Process]]:
    with (
        kept(delay_s) as cloud,
        node(cloud, WAYS["lean"], client=_NO_PINGS, with_limits=True) as served,
    ):
        flooding = Process("benchmarks.new_channels", "--flood", served.port)
        try:
            yield served, flooding
        finally:
            flooding.end()


def measured(delay_s: float, rounds: int) -> dict[str, dict[bool, list[float]]]:
    """The neighbour's 95th percentiles in ms, by what it asks for, without and with a flood."""
    found: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in ASKS}
    with _rig(delay_s) as (served, flooding), closing(Neighbour(served.port)) as neighbour:
        for ask in ASKS.values():
            ask(neighbour)
        for _ in range(rounds):
            for with_flood in (False, True):
                waits = (
                    flooded(flooding, neighbour, FLOODING)
                    if with_flood
                    else measured_asks(neighbour, ROUND_S)
                )
                for name, each in waits.items():
                    found[name][with_flood].append(percentile(each, 0.95))
            _settle(served)
    return found


def measure(short: bool) -> list[Figure]:
    """The neighbour's 95th percentiles, beside those without a flood."""
    return figures(0.0, 1 if short else ROUNDS)


def figures(delay_s: float, rounds: int) -> list[Figure]:
    """The same, where each call of the table takes `delay_s`."""
    return [
        Figure(
            f"{FLOODING} publish to ever-new channels, p95 of a neighbour's {name}",
            statistics.median(waits[True]),
            statistics.median(waits[False]),
            "ms",
            "nobody else publishes",
            rounds=rounds,
        )
        for name, waits in measured(delay_s, rounds).items()
    ]


# ---- the flood, in a process of its own


def _commands(number: int) -> bytes:
    return masked(
        "\n".join(
            json.dumps({"id": each, "publish": {"channel": f"new-{each}", "data": each}})
            for each in range(number, number + _TIMES)
        ).encode()
    )


class Flood:
    """Connections that publish, each to a channel that nobody has used."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._numbers = count(2, _TIMES)
        self._stored = 0

    def flood(self, connections: int, seconds: float) -> dict[str, Any]:
        """Publishes for so long. Returns how many publications were sent, and how many of them were
        answered as stored.
        """
        sockets = [_connected(self._port) for _ in range(connections)]
        poll, sent, self._stored = select.poll(), 0, 0
        for each in sockets:
            each.setblocking(False)
            poll.register(each.fileno(), select.POLLIN)
        by_descriptor = {each.fileno(): each for each in sockets}
        rest = dict.fromkeys(by_descriptor, b"")
        began_s = time.monotonic()
        while (spent_s := time.monotonic() - began_s) < seconds:
            due = connections * (_BURST + _RATE * spent_s)
            while sent < due:
                for descriptor, each in by_descriptor.items():
                    if not rest[descriptor]:
                        rest[descriptor] = _commands(next(self._numbers))
                        sent += _TIMES
                    self._send(each, rest)
                if all(rest.values()):
                    break
            for descriptor, _ in poll.poll(_SLICE_S * 1000):
                self._receive(by_descriptor[descriptor])
        for each in sockets:
            each.close()
        return {"sent": sent, "stored": self._stored}

    def _send(self, connected: socket.socket, rest: dict[int, bytes]) -> None:
        """Sends what is left of a frame, as far as the node reads it."""
        descriptor = connected.fileno()
        try:
            rest[descriptor] = rest[descriptor][connected.send(rest[descriptor]) :]
        except BlockingIOError:
            return

    def _receive(self, connected: socket.socket) -> None:
        if not (part := connected.recv(_READ_BYTES)):
            raise SystemExit("the node closed a connection of the flood")
        self._stored += part.count(b'"publish"')


def _flood(port: int) -> None:
    """Carries out the lines of standard input until they end."""
    widen(1)
    # The neighbour's process must not wait for this one.
    os.nice(10)
    carry_out_lines(Flood(port))


def main() -> None:
    """Runs the benchmark that the module's docstring describes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.new_channels")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of each call of the table")
    parser.add_argument("--flood", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood is not None:
        _flood(options.flood)
        return
    end_in_time(RUN_S)
    tell(figures(options.delay_ms / 1000, ROUNDS), as_rows=options.json)


if __name__ == "__main__":
    main()
