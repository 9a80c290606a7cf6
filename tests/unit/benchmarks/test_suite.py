"""Which benchmarks the suite has, and how it runs one."""

from __future__ import annotations

import ast
import io
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from benchmarks import __main__ as command
from benchmarks import suite
from benchmarks.figures import Figure, Skipped
from benchmarks.report import Outcome
from benchmarks.suite import MEMBERS, Member, collected, run

ROOT: Final = Path(__file__).parents[3]
LINUX: Final = pytest.mark.skipif(sys.platform != "linux", reason="process groups of Linux")


def measuring(text: str) -> bool:
    """Whether a module's text has `measure(short)`."""
    return any(
        isinstance(each, ast.FunctionDef)
        and each.name == "measure"
        and [argument.arg for argument in each.args.args] == ["short"]
        for each in ast.parse(text).body
    )


def test_every_benchmark_with_figures_is_in_the_suite_once() -> None:
    found = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if measuring(path.read_text(encoding="utf-8"))
    }
    assert sorted(found) == sorted(member.name for member in MEMBERS)
    assert len({member.title for member in MEMBERS}) == len(MEMBERS)


# ---- one benchmark


MADE_UP: Final = Member("made_up", "Made up")
START: Final = """
from benchmarks import suite
suite.MEMBERS = (suite.Member("made_up", "Made up"),)
suite.main()
"""


def make_up(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """A benchmark with that text, for processes that run the module `start`."""
    # A folder of the same name elsewhere on the path is another part of the package.
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "made_up.py").write_text(text)
    (folder / "start.py").write_text(START)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def running(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


HEAD: Final = "from benchmarks.figures import Figure, Skipped\n"


@LINUX
def test_figures_and_notes_come_back_whatever_else_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_up(
        monkeypatch,
        tmp_path,
        f"{HEAD}def measure(short):\n    print('chatter')\n"
        "    return [Figure('x', 3.0, 2.0, 'us', 'floor', rounds=1 if short else 9)]\n"
        "def notes():\n    return ['a 1.0']\n",
    )
    ticks: list[float] = []
    for short, rounds in ((True, 1), (False, 9)):
        found = run(MADE_UP, short, ticks.append, module="start")
        assert found.failure is None
        assert found.figures == (Figure("x", 3.0, 2.0, "us", "floor", rounds=rounds),)
        assert (found.name, found.title, found.notes) == ("made_up", "Made up", ("a 1.0",))
    assert ticks
    assert ticks[0] >= 0


@LINUX
def test_what_cannot_run_here_is_skipped_and_what_breaks_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_up(
        monkeypatch,
        tmp_path,
        f"{HEAD}def measure(short):\n"
        "    raise Skipped('needs a compiler') if short else ValueError('broken')\n",
    )
    assert run(MADE_UP, True, lambda _: None, module="start").skipped == "needs a compiler"
    broken = run(MADE_UP, False, lambda _: None, module="start")
    assert broken.skipped is None
    assert broken.failure
    assert broken.failure.endswith("ValueError: broken")


@LINUX
def test_what_takes_too_long_ends_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    make_up(
        monkeypatch,
        tmp_path,
        "import pathlib, subprocess, sys, time\n"
        "def measure(short):\n"
        "    wait = 'import signal; signal.alarm(30); signal.pause()'\n"
        "    child = subprocess.Popen([sys.executable, '-c', wait])\n"
        f"    pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "    child.wait()\n",
    )

    def now() -> float:
        """As if the time were over as soon as the child is there."""
        return 1e6 if started.exists() and started.read_text() else 0.0

    found = run(MADE_UP, True, lambda _: None, module="start", now=now)
    assert found.failure == f"was not done within {suite.SHORT_S_MAX} s"
    give_up_s = time.monotonic() + 5
    while running(int(started.read_text())):
        assert time.monotonic() < give_up_s


def test_a_benchmark_of_this_process_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def skipping(short: bool) -> list[Figure]:
        raise Skipped("not here" if short else "nowhere")

    monkeypatch.setattr("benchmarks.envelope.measure", skipping)
    assert collected("envelope", short=True) == Outcome("envelope", "envelope", skipped="not here")


# ---- all of them


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_says_which_and_how_long() -> None:
    for stream, changing in ((io.StringIO(), False), (Terminal(), True)):
        progress = command.Progress(stream, 2)
        progress.begin(Member("one", "The first"), again=False)
        progress.ticked(3.2)
        assert ("1 of 2: one … 3 s" in stream.getvalue()) is changing
        progress.end(Outcome("one", "The first", took_s=4.4))
        progress.begin(Member("one", "The first"), again=True)
        progress.end(Outcome("one", "The first", failure="no", took_s=5.6))
        lines = [line.rpartition("\x1b[K")[2] for line in stream.getvalue().split("\n")]
        assert lines[:-1] == ["1 of 2: one: done after 4 s", "again: one: failed after 6 s"]
        assert ("\r" in stream.getvalue()) is changing


def outcome(ratio: float) -> Outcome:
    return Outcome("envelope", "An envelope", (Figure("x, CPU", ratio, 1.0, "us", "floor"),))


@pytest.mark.parametrize(
    "again, holds, measured", [((1.4, 1.1), True, 2), ((1.1,), True, 1), ((1.4, 1.3), False, 2)]
)
def test_what_got_worse_is_measured_twice_more_and_the_best_counts(
    again: tuple[float, ...], holds: bool, measured: int
) -> None:
    left = [outcome(ratio) for ratio in again]
    said: list[str] = []
    found, held = command.held(
        [outcome(1.5)], {"envelope": {"x, CPU": 1.0}}, lambda _: left.pop(0), said.append
    )
    assert held is holds
    assert len(again) - len(left) == measured
    assert found[0].figures[0].ratio == min(again)
    assert said == ([] if holds else ["worse by a quarter: x, CPU: 1.30 × floor, which was 1.00\n"])


def test_what_failed_is_measured_again_as_well() -> None:
    failed = Outcome("envelope", "An envelope", failure="too busy")
    left = [failed, outcome(1.0)]
    found, held = command.held(
        [failed], {"envelope": {"x, CPU": 1.0}}, lambda _: left.pop(0), lambda _: None
    )
    assert held
    assert found == [outcome(1.0)]


def test_a_figure_that_nobody_measures_any_longer_does_not_hold() -> None:
    said: list[str] = []
    baseline = {"envelope": {"x, CPU": 1.0, "y, CPU": 1.0}}
    assert not command.held([outcome(1.0)], baseline, lambda _: outcome(1.0), said.append)[1]
    assert said == ["no longer measured: An envelope: y, CPU\n"]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["elsewhere"], "no benchmark of the suite: elsewhere"),
        (["envelope", "--out", "page.md"], "--out needs the whole suite"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert complaint in capsys.readouterr().err
