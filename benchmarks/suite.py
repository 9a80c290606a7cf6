"""The benchmarks that `python -m benchmarks` runs, and how it runs one of them.

Each runs in a process group of its own, so that what it started ends with it, also if it takes too
long.

    python -m benchmarks.suite NAME [--short]       one benchmark, as one line of JSON
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from benchmarks.figures import Figure, Skipped
from benchmarks.report import Outcome, as_json, table
from benchmarks.rig import ROOT
from roomcast.cli.terminal import has_colours

__all__ = ["MEMBERS", "Member", "collected", "run", "run_alone", "tell"]


@dataclass(frozen=True, slots=True)
class Member:
    """A benchmark of the suite: benchmarks/NAME.py, which has `measure(short: bool)`.

    It may have `notes()` as well: lines about what it measured, such as versions, and what it left
    out. `title` heads its figures.
    """

    name: str
    title: str


# One line each, in the order of the page. A test finds a benchmark with `measure` that is not here.
MEMBERS: Final = (
    Member("envelope", "An envelope that nobody here needs"),
    Member("c_floor", "Fan-out, and a loop of send in C"),
    Member("fanout", "Fan-out, and other ways to the same sockets"),
    Member("mixed", "Fan-out to subscribers of different kinds"),
    Member("filters", "Fan-out to subscribers with filters"),
    Member("transports", "Streams over HTTP, and WebSockets"),
    Member("batching", "Fan-out of what is collected, or compressed"),
    Member("peer_fanout", "Fan-out, and peers"),
    Member("publish_cpu", "An acknowledged publication"),
    Member("http_api", "The server API"),
    Member("hot_room", "One room that many publish in"),
    Member("end_to_end", "From a publisher to a subscriber"),
    Member("express", "From instance to instance, with AWS's delays"),
    Member("holes", "Reads of the log for what is on its way, computed"),
    Member("inbound", "Commands"),
    Member("arrivals", "Clients that come"),
    Member("connections", "Clients that are there"),
    Member("comings", "Clients that come and go in a large channel"),
    Member("new_channels", "Publications to ever-new channels, and a neighbour"),
    Member("floods", "Who floods, and a neighbour"),
    Member("json_floods", "Frames that are slow to read, and a neighbour"),
    Member("processes", "Several processes of one machine"),
)

# What is longer has failed: this machine is too busy to measure on.
SHORT_S_MAX: Final = 180
LONG_S_MAX: Final = 1200
# For the end of what a benchmark started.
_END_S: Final = 20
_TICK_S: Final = 0.25
_ERROR_CHARS_MAX: Final = 2000


def collected(name: str, short: bool) -> Outcome:
    """Runs a benchmark in this process. `name`: its module in benchmarks."""
    module = importlib.import_module(f"benchmarks.{name}")
    notes: Callable[[], list[str]] = getattr(module, "notes", list)
    try:
        figures = module.measure(short)
    except Skipped as reason:
        return Outcome(name, name, skipped=str(reason))
    return Outcome(name, name, tuple(figures), tuple(notes()))


def run(
    member: Member,
    short: bool,
    ticked: Callable[[float], None],
    *,
    module: str = "benchmarks.suite",
    now: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Runs a benchmark in a process of its own, within a bound in time. `ticked` is told several
    times a second how long it has run.

    It does not raise: an outcome may be a failure. `module`: what the process runs. `now`: s.
    """
    bound_s = SHORT_S_MAX if short else LONG_S_MAX
    command = [sys.executable, "-m", module, member.name, *["--short"] * short]
    begun_s = now()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=complained,
            start_new_session=True,
        )
        failure = None
        try:
            while process.poll() is None and failure is None:
                took_s = now() - begun_s
                if took_s > bound_s:
                    failure = f"was not done within {bound_s} s"
                ticked(took_s)
                time.sleep(_TICK_S)
        finally:
            _end(process)
        took_s = now() - begun_s
        if failure is None and process.returncode:
            complained.seek(0)
            failure = complained.read()[-_ERROR_CHARS_MAX:].strip() or "failed without a word"
        if failure is not None:
            return Outcome(member.name, member.title, failure=failure, took_s=took_s)
        said.seek(0)
        found = Outcome.of(json.loads(said.read()))
    return replace(found, title=member.title, took_s=took_s)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the group: in order if it can, and what is left of it after that."""
    for how, wait_s in ((signal.SIGTERM, _END_S), (signal.SIGKILL, _END_S)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def run_alone(
    measure: Callable[[bool], list[Figure]], notes: Callable[[], list[str]] = list
) -> None:
    """The command line of a benchmark that has nothing else: a table, or JSON."""
    module = sys.modules[measure.__module__]
    parser = argparse.ArgumentParser(
        description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="less, within some 20 seconds")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    try:
        figures = measure(options.short)
    except Skipped as reason:
        raise SystemExit(f"skipped: {reason}") from None
    tell(figures, notes(), as_rows=options.json)


def tell(figures: Sequence[Figure], notes: Sequence[str] = (), *, as_rows: bool) -> None:
    """Prints the figures of one benchmark: a table, or JSON (`as_rows`)."""
    outcome = Outcome("", "", tuple(figures), tuple(notes))
    if as_rows:
        told = json.dumps(as_json([outcome])["benchmarks"][0]["figures"], indent=2)
    else:
        told = table([outcome], coloured=has_colours(sys.stdout))
    sys.stdout.write(told + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """One benchmark, as one line of JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite")
    parser.add_argument("name", choices=[member.name for member in MEMBERS])
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args(arguments)
    # What it started ends in order when it is ended from outside.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended from outside"))
    # Whatever else a benchmark prints is no result.
    result, sys.stdout = sys.stdout, sys.stderr
    result.write(json.dumps(asdict(collected(options.name, options.short))) + "\n")


if __name__ == "__main__":
    main()
