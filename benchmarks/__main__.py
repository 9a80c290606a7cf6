"""Runs the benchmarks of the suite one after the other, and prints each figure beside its floor.

    python -m benchmarks                                the whole suite
    python -m benchmarks c_floor                        one of it
    python -m benchmarks --out docs/benchmarks.md       and write the page, with its charts
    python -m benchmarks --short --against benchmarks/baseline.json

The exit code is 1 if a benchmark failed, or if a ratio got worse by a quarter (--against). An aim
that is missed is said, and fails nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TextIO

from benchmarks.baseline import Baseline, best, ratios, unmeasured, worse
from benchmarks.report import Outcome, as_json, charts, table, with_figures
from benchmarks.setting import setting
from benchmarks.suite import MEMBERS, Member, run
from roomcast.cli.terminal import has_colours

__all__ = ["Progress", "held", "main"]

# How often a figure that got worse is measured again.
AGAIN: Final = 2

Run = Callable[[Member], Outcome]


class Progress:
    """Says on stderr which benchmark runs and for how long: on a terminal in one line that changes,
    elsewhere in a line at the end of each.
    """

    def __init__(self, stream: TextIO, count: int) -> None:
        self._stream = stream
        self._count = count
        self._begun = 0
        self._line = ""

    def begin(self, member: Member, again: bool) -> None:
        self._begun += not again
        part = "again" if again else f"{self._begun} of {self._count}"
        self._line = f"{part}: {member.name}"

    def ticked(self, seconds: float) -> None:
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{self._line} … {seconds:.0f} s")
            self._stream.flush()

    def end(self, outcome: Outcome) -> None:
        clear = "\r\x1b[K" if self._stream.isatty() else ""
        state = "failed" if outcome.failure else "skipped" if outcome.skipped else "done"
        self._stream.write(f"{clear}{self._line}: {state} after {outcome.took_s:.0f} s\n")
        self._stream.flush()


def held(
    outcomes: Sequence[Outcome], baseline: Baseline, again: Run, say: Callable[[str], object]
) -> tuple[list[Outcome], bool]:
    """The best of each figure, and whether all hold against `baseline`.

    What got worse, or failed, is measured `AGAIN` times more, and the best counts: other programs
    on the machine make a ratio worse for a while, but not better than the code can do.
    """
    found = list(outcomes)
    for _ in range(AGAIN):
        names = {each.member for each in worse(found, baseline)}
        names |= {outcome.name for outcome in found if outcome.failure}
        if not names:
            break
        members = [member for member in MEMBERS if member.name in names]
        retried = {member.name: again(member) for member in members}
        found = [
            best(outcome, retried[outcome.name]) if outcome.name in retried else outcome
            for outcome in found
        ]
    lost = unmeasured(found, baseline)
    for each in worse(found, baseline):
        say(f"worse by a quarter: {each}\n")
    for line in lost:
        say(f"no longer measured: {line}\n")
    return found, not lost and not worse(found, baseline)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [member.name for member in MEMBERS]
    parser.add_argument("name", nargs="*", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--short", action="store_true", help="less of each, within 20 s or so")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="a page to write the figures into")
    parser.add_argument(
        "--against", type=Path, help="fail on what is worse by a quarter; default: what is in it"
    )
    parser.add_argument("--write-baseline", type=Path, help="the file for --against")
    options = parser.parse_args(arguments)
    if unknown := set(options.name) - set(names):
        parser.error(f"no benchmark of the suite: {', '.join(sorted(unknown))}")
    if options.out and options.name:
        parser.error("--out needs the whole suite: the page has all of it")
    baseline = _read(options.against) if options.against else {}
    chosen = options.name or [name for name in names if not options.against or name in baseline]
    members = [member for member in MEMBERS if member.name in chosen]
    # What it started ends with it when it is ended from outside.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended from outside"))

    progress = Progress(sys.stderr, len(members))

    def measured(member: Member, again: bool = False) -> Outcome:
        progress.begin(member, again)
        outcome = run(member, options.short, progress.ticked)
        progress.end(outcome)
        return outcome

    outcomes = [measured(member) for member in members]
    holds = True
    if options.against:
        outcomes, holds = held(
            outcomes, baseline, lambda member: measured(member, again=True), sys.stderr.write
        )
    if options.json:
        found = {"setting": setting(options.short), **as_json(outcomes)}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write(table(outcomes, coloured=has_colours(sys.stdout)) + "\n")
    if options.write_baseline:
        before = _read(options.write_baseline) if options.write_baseline.exists() else {}
        text = json.dumps({**before, **ratios(outcomes)}, indent=2, sort_keys=True)
        options.write_baseline.write_text(text + "\n", encoding="utf-8")
    if options.out:
        _write(options.out, outcomes, options.short)
    for outcome in outcomes:
        if outcome.failure:
            sys.stderr.write(f"{outcome.name}: {outcome.failure}\n")
    return int(not holds or any(outcome.failure for outcome in outcomes))


def _read(path: Path) -> Baseline:
    baseline: Baseline = json.loads(path.read_text(encoding="utf-8"))
    return baseline


def _write(page: Path, outcomes: Sequence[Outcome], short: bool) -> None:
    text = with_figures(page.read_text(encoding="utf-8"), outcomes, setting(short))
    page.write_text(text, encoding="utf-8")
    for name, svg in charts(outcomes).items():
        page.with_name(name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
