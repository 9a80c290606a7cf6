"""What servers of a contest are given, and how their CPU is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from benchmarks.contest import (
    PAYLOAD_BYTES,
    Lost,
    compiled,
    contest,
    medians,
    on_core,
    payload,
)
from benchmarks.figures import Skipped
from benchmarks.peer_fanout import PEERS, Peer
from benchmarks.rig import MARK
from benchmarks.serving import cpu_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and sched_setaffinity")


def test_a_publication_has_its_size_and_the_mark_once() -> None:
    assert len(payload()) == PAYLOAD_BYTES
    assert payload().count(MARK) == 1
    # As every encoder writes it again.
    assert json.dumps(json.loads(payload()), separators=(",", ":")) == payload()


def test_cpu_is_that_of_all_threads_and_of_nobody_else() -> None:
    # A thread of its own spends at least as much as it says, and then both stay.
    spend = (
        "import threading, time\n"
        "def spend():\n"
        "    while time.thread_time() < 0.2: pass\n"
        "    print('spent', flush=True); threading.Event().wait()\n"
        "threading.Thread(target=spend, daemon=True).start(); input()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", spend], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found_s = cpu_s(process.pid)
        assert found_s >= 0.2
        begin_s = time.process_time()
        while time.process_time() < begin_s + 0.1:
            pass
        assert cpu_s(process.pid) < found_s + 0.05
        process.communicate(b"\n")


def test_what_is_started_on_a_core_stays_on_it() -> None:
    before = os.sched_getaffinity(0)
    show = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
    for core in (0, 1):
        with on_core(core), on_core(core):
            shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
        assert shown.split() == [str(sorted(before)[core % len(before)])]
    assert os.sched_getaffinity(0) == before


def test_medians_are_by_name() -> None:
    assert medians({"a": [1.0, 9.0, 2.0], "b": [4.0]}) == {"a": 2.0, "b": 4.0}


class Scripted:
    """A contestant whose deliveries cost what a list says. None: not everybody got everything."""

    def __init__(self, name: str, costs: list[float | None], turns: list[str]) -> None:
        self._name, self._costs, self._turns = name, costs, turns

    def delivery_us(self, _count: int) -> float:
        self._turns.append(self._name)
        cost = self._costs.pop(0)
        if cost is None:
            raise Lost("3 of 9 clients")
        return cost


def scripted(**costs: list[float | None]) -> tuple[Any, list[str]]:
    """What `contest` enters, and the order of the turns that it takes."""
    turns: list[str] = []

    def enter(name: str) -> Callable[[int], AbstractContextManager[Scripted]]:
        return lambda _clients: nullcontext(Scripted(name, costs[name], turns))

    return {name: enter(name) for name in costs}, turns


def test_contestants_take_turns_and_what_comes_first_changes() -> None:
    enter, turns = scripted(a=[9.0, 1.0, 2.0], b=[9.0, 3.0, 4.0])
    cost = contest(enter, clients=10, rounds=2, deliveries=100)
    assert cost == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert turns == ["a", "b", "a", "b", "b", "a"]


def test_who_does_not_reach_everybody_is_left_out_and_the_others_go_on() -> None:
    enter, _ = scripted(a=[9.0, 1.0, None], b=[9.0, 3.0, 4.0])
    lost: dict[str, str] = {}
    cost = contest(enter, clients=10, rounds=2, deliveries=100, lost=lost)
    assert cost == {"b": [3.0, 4.0]}
    assert lost == {"a": "3 of 9 clients"}
    enter, _ = scripted(a=[9.0, None])
    with pytest.raises(Lost):
        contest(enter, clients=10, rounds=1, deliveries=100)


def test_without_a_compiler_the_floor_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Skipped, match="C compiler"), compiled():
        pass


def test_a_peer_that_is_not_here_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Peer("Absent", "absent", "websocket", ("no-such-library",))
    with pytest.raises(Skipped, match=r"no-such-library \(the extra bench\)"):
        absent.version()
    monkeypatch.setenv("PATH", "")
    for peer in PEERS:
        if peer.programs:
            with pytest.raises(Skipped, match=f"needs {peer.programs[0]}"):
                peer.version()
