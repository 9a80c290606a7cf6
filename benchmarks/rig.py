"""The common part of the benchmarks: a measured process, a process of clients, and the output."""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import signal
import statistics
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

__all__ = [
    "BINARY",
    "CHANNEL",
    "CLIENTS",
    "MARK",
    "NO_PING_S",
    "PATH",
    "TEXT",
    "TOKEN_KEY",
    "Process",
    "carry_out_lines",
    "end_in_time",
    "make_room",
    "masked",
    "options_of",
    "percentile",
    "quiet",
    "rig",
    "say",
    "widen",
]

ROOT: Final = Path(__file__).parents[1]
PATH: Final = "/connection/websocket"
CHANNEL: Final = "bench"
# Of the tokens that have channels: a client without an SDK is subscribed by no other way.
TOKEN_KEY: Final = "of-the-benchmarks-and-nobody-else"  # noqa: S105  # no secret of anybody
CLIENTS: Final = 1_000
# The first byte of a frame: final, and of text.
TEXT: Final = 0x81
# The same of one that holds Protobuf.
BINARY: Final = 0x82
# Occurs once in every publication, and nowhere else.
MARK: Final = "#~bench~#"
# An interval of pings so long that a run has none.
NO_PING_S: Final = 3600
# The time limit of a benchmark on any machine. Longer ones pass their own.
RUN_S: Final = 58
_DESCRIPTORS: Final = 4096


class Process:
    """One of the two processes: one line asks, one line answers."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, do: str, **arguments: object) -> None:
        """Asks without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process of the benchmark ended by itself")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        self.begin(do, **arguments)
        return self.answer()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def carry_out_lines(worker: Any) -> None:
    """The other end of a Process: has `worker` do what the lines of standard input say, until they
    end.
    """
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Mapping[str, Any] = getattr(worker, asked.pop("do"))(**asked)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


@contextmanager
def rig(*, queue_bytes_max: int, clients: int = CLIENTS) -> Iterator[tuple[Process, Process]]:
    """A node on one core and its subscribed clients on another."""
    started: list[Process] = []
    try:
        started.append(node := Process("benchmarks.node", queue_bytes_max, 0))
        port = node.answer()["port"]
        started.append(crowd := Process("benchmarks.crowd", port, 1))
        crowd.ask("come", clients=clients)
        node.ask("subscribed", count=clients)
        yield node, crowd
    finally:
        for process in started:
            process.end()


def end_in_time(run_s: int = RUN_S) -> None:
    """Ends this program and its processes after `run_s`."""

    def too_long(_signal: int, _frame: object) -> None:
        raise SystemExit(
            f"the benchmark was not done within {run_s} s: this machine is too busy to measure on"
        )

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(run_s)


def options_of(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, rounds: int, rounds_max: int
) -> argparse.Namespace:
    """What a command line asks for, with `--rounds` beside the options that `parser` has.

    From then on SIGTERM ends this program with all that it started.
    """
    parser.add_argument("--rounds", type=int, default=rounds, help=f"1 to {rounds_max}")
    options = parser.parse_args(arguments)
    if not 1 <= options.rounds <= rounds_max:
        parser.error(f"--rounds is 1 to {rounds_max}")
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended from outside"))
    return options


def masked(payload: bytes, opcode: int = TEXT) -> bytes:
    """`payload` as one frame of a client. `opcode`: its first byte.

    With a mask of zeros (RFC 6455 §5.3) it stays as it is.
    """
    if len(payload) <= 125:
        return struct.pack("!BB4x", opcode, 0x80 | len(payload)) + payload
    return struct.pack("!BBH4x", opcode, 0xFE, len(payload)) + payload


def make_room() -> None:
    """Raises the limit to a thousand sockets, for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))


def widen(core: int) -> None:
    """For the two processes: a thousand sockets, and a core of its own if there are two."""
    make_room()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core % len(cores)]})


def quiet(structlog: Any) -> None:
    """Silences the log, which would have a line for each of a thousand connects."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        # As `roomcast serve` has it.
        cache_logger_on_first_use=True,
    )


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def say(what: str, values: Sequence[float], unit: str = "") -> None:
    """One line: the median and the 90th percentile over the rounds."""
    median, p90 = statistics.median(values), percentile(values, 0.9)
    line = f"{what:<44} median {median:8.2f}{unit}   p90 {p90:8.2f}{unit}"
    sys.stdout.write(f"{line}   ({len(values)} rounds)\n")
