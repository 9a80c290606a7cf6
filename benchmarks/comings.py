"""Measures how long a client waits while others come into and leave large channels in a loop.

One node over memory runs in a process of its own, and the clients in another: a crowd in one
channel that has history, presence, joins and leaves; and others that subscribe to it and
unsubscribe as fast as the node lets them. Rounds with them take turns with rounds without (the
floor). `leaving` is one client that is in many channels of the crowd and disconnects.

    python -m benchmarks.comings [--json]
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict
from typing import Any, Final

from benchmarks.figures import Figure
from benchmarks.floods import Neighbour, _upgraded
from benchmarks.rig import CHANNEL, Process, carry_out_lines, end_in_time, masked, percentile, widen

__all__ = ["CROWD", "LOOPING", "MAX_MS", "measure", "measured"]

CROWD: Final = 1_000
LOOPING: Final = 20
ROUNDS: Final = 3
ROUND_S: Final = 2.0
# The bound on the neighbour's 95th percentile.
MAX_MS: Final = 50.0
_QUEUE_BYTES: Final = 1024 * 1024
_PAUSE_S: Final = 0.005
# Subscribes and unsubscribes of one frame.
_TIMES: Final = 8
_SLICE_S: Final = 0.02
_READ_BYTES: Final = 256 * 1024


def _commands(*commands: dict[str, Any]) -> bytes:
    return masked("\n".join(json.dumps(each) for each in commands).encode())


def _connected(port: int) -> socket.socket:
    connected = _upgraded(port)
    connected.sendall(_commands({"id": 1, "connect": {}}))
    _read_until(connected, b'"connect"')
    return connected


def _read_until(connected: socket.socket, wanted: bytes) -> None:
    seen = b""
    while wanted not in seen:
        part = connected.recv(_READ_BYTES)
        if not part:
            raise SystemExit("the node closed a connection")
        seen = seen[-len(wanted) :] + part


class Clients:
    """The crowd, whose pushes are read and dropped, and those who come and go."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reading = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self.dropped = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            for descriptor, _ in self._reading.poll(1.0):
                try:
                    part = self._sockets[descriptor].recv(_READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    part = b""
                if not part:
                    self.dropped += 1
                    self._reading.unregister(descriptor)

    def _keep(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._sockets[connected.fileno()] = connected
        self._reading.register(connected.fileno(), select.EPOLLIN)

    def come(self, clients: int) -> dict[str, Any]:
        """Has `clients` clients subscribe."""
        for _ in range(clients):
            connected = _connected(self._port)
            connected.sendall(_commands({"id": 2, "subscribe": {"channel": CHANNEL}}))
            _read_until(connected, b'"subscribe"')
            self._keep(connected)
        return {}

    def loop(self, clients: int, seconds: float) -> dict[str, Any]:
        """Has `clients` more subscribe and unsubscribe for so long. Returns the commands sent, and
        how many of all sockets the node closed.
        """
        looping = [_connected(self._port) for _ in range(clients)]
        poll, sent, number = select.poll(), 0, 2
        rest: dict[int, bytes] = {}
        by_descriptor = {each.fileno(): each for each in looping}
        for each in looping:
            each.setblocking(False)
            poll.register(each.fileno(), select.POLLIN | select.POLLOUT)
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for descriptor, event in poll.poll(_SLICE_S * 1000):
                each = by_descriptor[descriptor]
                try:
                    if event & select.POLLIN:
                        each.recv(_READ_BYTES)
                    if event & select.POLLOUT:
                        if not rest.get(descriptor):
                            number += 2 * _TIMES
                            rest[descriptor] = _commands(*_loop(number))
                            sent += 2 * _TIMES
                        rest[descriptor] = rest[descriptor][each.send(rest[descriptor]) :]
                except BlockingIOError:
                    continue
        for each in looping:
            each.close()
        return {"sent": sent, "dropped": self.dropped}


def _loop(number: int) -> list[dict[str, Any]]:
    commands: list[dict[str, Any]] = []
    for each in range(number, number + 2 * _TIMES, 2):
        commands.append({"id": each, "subscribe": {"channel": CHANNEL}})
        commands.append({"id": each + 1, "unsubscribe": {"channel": CHANNEL}})
    return commands


def measured(
    clients: Process, neighbour: Neighbour, looping: int, seconds: float = ROUND_S
) -> list[float]:
    """The neighbour's round trips, in ms, while `looping` clients come and go."""
    if looping:
        clients.begin("loop", clients=looping, seconds=seconds)
    began_s, trips = time.monotonic(), []
    while time.monotonic() - began_s < seconds:
        trips.append(neighbour.ask("publish", {"channel": "alone", "data": 1}) * 1000)
        time.sleep(_PAUSE_S)
    if looping:
        answer = clients.answer()
        if not answer["sent"]:
            raise SystemExit("nobody came or went")
    return trips


def measure(short: bool) -> list[Figure]:  # as every benchmark of the suite has it
    """The neighbour's 95th percentile with and without those who come and go."""
    rounds = 1 if short else ROUNDS
    found: dict[int, list[float]] = {0: [], LOOPING: []}
    started: list[Process] = []
    try:
        started.append(node := Process("benchmarks.node", _QUEUE_BYTES, 0, "seen"))
        port = node.answer()["port"]
        started.append(clients := Process("benchmarks.comings", "clients", port))
        clients.ask("come", clients=CROWD)
        with closing(Neighbour(port)) as neighbour:
            neighbour.ask("publish", {"channel": "alone", "data": 1})
            for _ in range(rounds):
                for looping, p95 in found.items():
                    p95.append(percentile(measured(clients, neighbour, looping), 0.95))
    finally:
        for process in started:
            process.end()
    value, floor = (statistics.median(found[each]) for each in (LOOPING, 0))
    return [
        Figure(
            f"{LOOPING} come into and leave a channel of {CROWD:,}, p95 of a neighbour",
            value,
            floor,
            "ms",
            "nobody comes or goes",
            rounds=rounds,
        )
    ]


def serve(port: int) -> None:
    """Carries out the lines of standard input until they end."""
    widen(1)
    # The neighbour's process must not wait for this one.
    os.nice(10)
    carry_out_lines(Clients(port))


def main(*asked: str) -> None:
    """Runs the benchmark that the module's docstring describes."""
    if asked[:1] == ("clients",):
        serve(int(asked[1]))
        return
    end_in_time()
    figures = measure(short=False)
    if asked == ("--json",):
        sys.stdout.write(json.dumps([asdict(each) for each in figures]) + "\n")
        return
    for each in figures:
        verdict = "below" if each.value < MAX_MS else "NOT BELOW"
        sys.stdout.write(
            f"{each.name}: {each.value:.1f} {each.unit}, {each.ratio:.1f} times {each.floor:.1f} "
            f"({each.floor_name}); {verdict} {MAX_MS:.0f} ms\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
