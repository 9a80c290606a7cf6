"""Measures how much a flood without a token delays the publications of another client.

One node over memory runs in a process of its own, and the flooder in another. Rounds of each kind
of flood take turns with rounds without any (the floor). The node itself answers a publication, so
the round trip shows how long it let the client wait. `silent` measures a node with few descriptors
against the embedded AWS. More connections than it has descriptors are opened and send nothing.

    python -m benchmarks.floods
    python -m benchmarks.floods silent
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Figure
from benchmarks.lifecycle import deployment
from benchmarks.rig import CHANNEL, PATH, ROOT, Process, end_in_time, masked, percentile, say, widen
from roomcast.dev.provision import DUMMY_CREDENTIALS

__all__ = ["KINDS", "MAX_MS", "NONE", "SILENT_MAX_MS", "figures", "measure", "measured", "missed"]

NONE: Final = "none"
ROUNDS: Final = 5
ROUND_S: Final = 1.0
# The bounds on the neighbour's round trip: its 95th percentile under each flood, and its 99th with
# silent sockets.
MAX_MS: Final = 50.0
SILENT_MAX_MS: Final = 1000.0
# Of each paced flood, over all its sockets.
BYTES_A_SECOND: Final = 1_000_000
DESCRIPTORS: Final = 200
SILENT: Final = 300

_PAUSE_S: Final = 0.01
_SLICE_S: Final = 0.005
_CHUNK_BYTES: Final = 6 * 512
# RFC 6455 §5.2: masked with zeros, empty.
_PING, _PONG = struct.pack("!BB4x", 0x89, 0x80), struct.pack("!BB4x", 0x8A, 0x80)
_FRAGMENT, _FIRST = struct.pack("!BB4x", 0x00, 0x80), struct.pack("!BB4x", 0x01, 0x80)
_DEADLINE_S: Final = 20.0
# `python -m roomcast` with few descriptors.
_LIMITED: Final = (
    f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, "
    f"{DESCRIPTORS})); "
    "from roomcast.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


def _upgraded(port: int, **headers: str) -> socket.socket:
    """A socket after the handshake."""
    connected = socket.create_connection(("127.0.0.1", port), _DEADLINE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.sendall(_handshake(**headers))
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += connected.recv(4096)
    return connected


def _handshake(**headers: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {PATH} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Neighbour:
    """An honest client that publishes one publication after the other."""

    def __init__(self, port: int) -> None:
        self._socket = _upgraded(port)
        self._id = 0
        self.ask("connect", {})

    def ask(self, method: str, params: Mapping[str, Any]) -> float:
        """Seconds until the answer."""
        self._id += 1
        began_s = time.perf_counter()
        self._socket.sendall(masked(json.dumps({"id": self._id, method: params}).encode()))
        seen, wanted = b"", f'"id":{self._id},'.encode()
        while wanted not in seen:
            part = self._socket.recv(65_536)
            if not part:
                raise SystemExit("the node closed the neighbour's connection")
            seen += part
        took_s = time.perf_counter() - began_s
        if b'"error"' in seen:
            raise SystemExit(f"the neighbour was refused: {seen!r}")
        return took_s

    def close(self) -> None:
        self._socket.close()

    def publish(self) -> float:
        return self.ask("publish", {"channel": CHANNEL, "data": self._id})


# ---- the floods, each for some seconds; how many bytes or requests were sent


def _paced(port: int, begin: bytes, frame: bytes, seconds: float) -> int:
    """One socket, at BYTES_A_SECOND while the node reads."""
    with _upgraded(port) as connected:
        connected.sendall(begin)
        connected.setblocking(False)
        chunk = frame * (_CHUNK_BYTES // len(frame))
        began_s, sent = time.monotonic(), 0
        while (spent_s := time.monotonic() - began_s) < seconds:
            if sent > spent_s * BYTES_A_SECOND:
                time.sleep(_SLICE_S)
                continue
            try:
                # Whole frames or a part of one: each write continues where the last one ended.
                at = sent % len(frame)
                sent += connected.send(chunk[at:])
            except BlockingIOError:
                select.select([], [connected], [], _SLICE_S)
            except ConnectionError:
                break
        return sent


def _pings(port: int, seconds: float) -> int:
    return _paced(port, b"", _PING, seconds)


def _pongs(port: int, seconds: float) -> int:
    return _paced(port, b"", _PONG, seconds)


def _fragments(port: int, seconds: float) -> int:
    """Fragments of a message that never ends."""
    return _paced(port, _FIRST, _FRAGMENT, seconds)


def _after_close(port: int, seconds: float) -> int:
    """An error for which the node closes, then pings until the connection is gone. Repeated."""
    began_s, sent = time.monotonic(), 0
    while (left_s := seconds - (time.monotonic() - began_s)) > 0:
        sent += _paced(port, masked(b"x"), _PING, left_s)
    return sent


def _origins(port: int, seconds: float) -> int:
    """Handshakes with a foreign origin, one after the other."""
    began_s, sent = time.monotonic(), 0
    while time.monotonic() - began_s < seconds:
        with _upgraded(port, Origin="https://evil.example.com"):
            sent += 1
    return sent


def _headers(port: int, seconds: float) -> int:
    """Requests whose headers never end."""
    began_s, sent = time.monotonic(), 0
    line = b"X-%d: " + b"x" * 8000 + b"\r\n"
    while time.monotonic() - began_s < seconds:
        with socket.create_connection(("127.0.0.1", port), _DEADLINE_S) as connected:
            connected.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            try:
                for number in range(200):
                    if time.monotonic() - began_s > sent / BYTES_A_SECOND:
                        sent += connected.send(line % number)
                    else:
                        time.sleep(_SLICE_S)
            except ConnectionError:
                continue
    return sent


KINDS: Final[Mapping[str, Callable[[int, float], int]]] = {
    "pings": _pings,
    "pongs": _pongs,
    "fragments": _fragments,
    "after a close": _after_close,
    "refused origins": _origins,
    "endless headers": _headers,
}


def measured(flooding: Process, neighbour: Neighbour, kind: str) -> list[float]:
    """Round trips of the neighbour in ms during the flood `kind`."""
    if kind != NONE:
        flooding.begin("flood", kind=kind, seconds=ROUND_S)
    began_s, trips = time.monotonic(), []
    while time.monotonic() - began_s < ROUND_S:
        trips.append(neighbour.publish() * 1000)
        time.sleep(_PAUSE_S)
    if kind != NONE and not flooding.answer()["sent"]:
        raise SystemExit(f"{kind}: nothing was sent")
    return trips


def _rounds(count: int) -> dict[str, list[float]]:
    """The 95th percentile of the round trips, in ms, by kind, then by round."""
    started: list[Process] = []
    found: dict[str, list[float]] = {kind: [] for kind in (NONE, *KINDS)}
    try:
        started.append(node := Process("benchmarks.node", 1024 * 1024, 0))
        port = node.answer()["port"]
        started.append(flooding := Process("benchmarks.floods", "attack", port))
        with closing(Neighbour(port)) as neighbour:
            neighbour.publish()
            for _ in range(count):
                for kind, p95 in found.items():
                    p95.append(percentile(measured(flooding, neighbour, kind), 0.95))
    finally:
        for process in started:
            process.end()
    return found


def figures(p95: Mapping[str, Sequence[float]], floor_name: str = "no flood") -> list[Figure]:
    """One for each kind of flood. `p95`: ms, by kind, then by round; NONE is the floor."""
    floor = statistics.median(p95[NONE])
    return [
        Figure(
            f"{kind}, p95 of a neighbour",
            statistics.median(rounds),
            floor,
            "ms",
            floor_name,
            rounds=len(rounds),
        )
        for kind, rounds in p95.items()
        if kind != NONE
    ]


def missed(found: Sequence[Figure], max_ms: float = MAX_MS) -> list[str]:
    """What the neighbour waited too long for."""
    return [
        f"{each.name}: {each.value:.0f} ms, more than {max_ms:.0f}"
        for each in found
        if each.value > max_ms
    ]


def measure(short: bool) -> list[Figure]:
    """The neighbour's 95th percentile under each flood."""
    return figures(_rounds(1 if short else ROUNDS))


def floods() -> list[str]:
    """Prints ms, which depend on this machine, and ratios, which depend on it less. Returns what
    was missed.
    """
    p95 = _rounds(ROUNDS)
    say("no flood: p95 of the round trip", p95[NONE], " ms")
    for kind, rounds in p95.items():
        if kind != NONE:
            say(f"{kind}: p95 of the round trip", rounds, " ms")
            ratios = [one / none for one, none in zip(rounds, p95[NONE], strict=True)]
            say(f"{kind} / no flood", ratios)
    return missed(figures(p95))


def attack(port: int) -> None:
    """Carries out the lines of standard input until they end."""
    widen(1)
    for line in sys.stdin:
        asked = json.loads(line)
        sent = KINDS[asked["kind"]](port, asked["seconds"])
        sys.stdout.write(json.dumps({"sent": sent}) + "\n")
        sys.stdout.flush()


# ---- few descriptors


def _with_history(config: Path) -> Path:
    """The configuration, changed so that publications go to a table."""
    rules = '[channel.without_namespace]\nhistory_size = 10\nhistory_ttl = "60s"\n'
    config.write_text(config.read_text() + rules)
    return config


@contextmanager
def _few(config: Path) -> Iterator[tuple[int, list[str]]]:
    """A node with DESCRIPTORS descriptors: its port and its log."""
    log: list[str] = []
    node = subprocess.Popen(
        [sys.executable, "-c", _LIMITED, "serve", "--port", "0", "--config", str(config)],
        cwd=ROOT,
        env={
            "AWS_ACCESS_KEY_ID": DUMMY_CREDENTIALS.access_key_id,
            "AWS_SECRET_ACCESS_KEY": DUMMY_CREDENTIALS.secret_access_key,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert node.stderr is not None
    reading = threading.Thread(target=lambda: log.extend(node.stderr or ()), daemon=True)
    try:
        for line in node.stderr:
            if line.startswith("{") and (fields := json.loads(line))["event"] == "ready":
                break
        else:
            raise SystemExit("the node did not start")
        reading.start()
        yield fields["port"], log
    finally:
        node.kill()
        node.wait()
        if reading.ident is not None:
            reading.join()
        node.stderr.close()


def silent() -> list[str]:
    """Prints the publications of a connected client, without and with SILENT silent sockets.
    Returns what was missed.
    """
    p99: list[float] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        deployment(Path(directory)) as config,
        _few(_with_history(config)) as (port, log),
    ):
        neighbour = Neighbour(port)
        neighbour.publish()
        for what, count in (("nobody else", 0), (f"{SILENT} silent sockets", SILENT)):
            sockets = [
                socket.create_connection(("127.0.0.1", port), _DEADLINE_S) for _ in range(count)
            ]
            lines = len(log)
            trips = [neighbour.publish() * 1000 for _ in range(150)]
            p99.append(percentile(trips, 0.99))
            sys.stdout.write(
                f"{what:<24} p50 {statistics.median(trips):8.1f} ms   p99 {p99[-1]:8.1f} ms   "
                f"{len(log) - lines} lines of log\n"
            )
            for each in sockets:
                each.close()
        began_s = time.monotonic()
        Neighbour(port).close()
        neighbour.close()
        sys.stdout.write(
            f"one more, when they are gone, after {time.monotonic() - began_s:.2f} s\n"
        )
    return missed(
        [Figure(f"{SILENT} silent sockets, p99 of a neighbour", p99[1], p99[0], "ms", "none")],
        SILENT_MAX_MS,
    )


def main(*asked: str) -> None:
    """Runs the benchmark that the module's docstring describes."""
    if asked[:1] == ("attack",):
        attack(int(asked[1]))
        return
    end_in_time()
    if lines := silent() if asked == ("silent",) else floods():
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
