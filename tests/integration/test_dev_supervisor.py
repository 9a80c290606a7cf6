"""`roomcast dev` as a process: what it starts, says and survives, with stubs for the instances."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import is_gone, left_behind

ROOT: Final = Path(__file__).parents[2]
STUB: Final = (sys.executable, str(Path(__file__).with_name("stub_instance.py")))
# Of one step, on a machine that does much else.
DEADLINE_S: Final = 30.0
RUN: Final = """
import asyncio, json, sys
from roomcast.dev.supervisor import DevOptions, run_dev
sys.exit(asyncio.run(run_dev(DevOptions(**json.loads(sys.argv[1])))))
"""


class Dev:
    """One run of the supervisor; stderr is collected while it runs."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps({"port": 0, "serve": STUB, **options})],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready: dict[str, Any] = {}
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._collect)
        self._reader.start()

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()

    @property
    def stderr(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def until_ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        assert readable, self.stderr
        self.ready = json.loads(self.process.stdout.readline())
        return self.ready

    def until_said(self, text: str, times: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: "".join(self._lines).count(text) >= times, DEADLINE_S
            ), f"{text!r} is not in {''.join(self._lines)}"

    def wait(self) -> int:
        """The exit code; by then nothing that held our stderr is left."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert not self._reader.is_alive(), "a child was left behind"
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for instance in self.ready.get("instances", ()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(instance["pid"], signal.SIGKILL)
        self._reader.join(DEADLINE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def dev(**options: Any) -> Iterator[Dev]:
    run = Dev(options)
    try:
        yield run
    finally:
        run.close()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An emulator that runs already."""
    process = subprocess.Popen(
        [sys.executable, "-m", "roomcast.dev.emulator"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
    assert readable
    try:
        yield json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.communicate(timeout=DEADLINE_S)


def test_from_start_to_orderly_stop() -> None:
    with dev() as run:
        ready = run.until_ready()
        assert set(ready) == {"event", "instances", "aws_endpoint", "pid", "pump"}
        assert ready["event"] == "ready"
        assert ready["pid"] == run.process.pid
        assert len({instance["url"] for instance in ready["instances"]}) == 2
        for instance in ready["instances"]:
            assert instance["node"] == f"stub-{instance['url'].rpartition(':')[2]}"
            # A Ctrl-C in the terminal must not reach it.
            assert os.getsid(instance["pid"]) == instance["pid"]
        run.process.terminate()
        assert run.wait() == 0
        # Only now is all of stderr collected: another thread reads it.
        for instance in ready["instances"]:
            assert f"  {instance['url']}/\n" in run.stderr
        assert run.stderr.count("stub: ended while AWS answered") == 2
        assert "\x1b" not in run.stderr  # no terminal, no colours
        assert run.process.stdout is not None
        assert run.process.stdout.read() == ""


def test_nothing_outlives_a_killed_supervisor() -> None:
    with dev() as run:
        ready = run.until_ready()
        run.process.kill()
        run.wait()
        pids = [ready["pump"]["pid"], *(instance["pid"] for instance in ready["instances"])]
        assert left_behind(pids, DEADLINE_S) == []
        port = int(ready["aws_endpoint"].rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_ctrl_c_again_kills_at_once(endpoint: str) -> None:
    with dev(aws_endpoint=endpoint, serve=[*STUB, "--stub-ignores-sigterm"]) as run:
        run.until_ready()
        run.process.send_signal(signal.SIGINT)
        run.until_said("Ctrl-C again")
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0


def test_suspended_children_are_ended_too(endpoint: str) -> None:
    with dev(aws_endpoint=endpoint) as run:
        ready = run.until_ready()
        for pid in (ready["pump"]["pid"], ready["instances"][0]["pid"]):
            os.kill(pid, signal.SIGSTOP)
        run.process.terminate()
        assert run.wait() == 0
        assert run.stderr.count("stub: ended while AWS answered") == 2


def test_an_instance_that_dies_is_reported_and_the_others_go_on(endpoint: str) -> None:
    with dev(aws_endpoint=endpoint) as run:
        first, second = run.until_ready()["instances"]
        os.kill(first["pid"], signal.SIGKILL)
        run.until_said(f"({first['node']}) ended: SIGKILL")
        assert run.process.poll() is None
        assert not is_gone(second["pid"])
        os.kill(second["pid"], signal.SIGKILL)
        assert run.wait() == 1
        assert "every instance has ended" in run.stderr.splitlines()[-1]


def test_an_instance_that_dies_is_started_again_if_asked_for(endpoint: str) -> None:
    with dev(aws_endpoint=endpoint, restart=True, instances=1) as run:
        (instance,) = run.until_ready()["instances"]
        os.kill(instance["pid"], signal.SIGKILL)
        run.until_said(f"{instance['url']}  {instance['node']}, pid", times=2)
        run.process.terminate()
        assert run.wait() == 0


def test_a_pump_that_dies_is_reported(endpoint: str) -> None:
    with dev(aws_endpoint=endpoint, instances=1) as run:
        os.kill(run.until_ready()["pump"]["pid"], signal.SIGKILL)
        run.until_said("the stream pump ended (SIGKILL)")
        run.process.terminate()
        assert run.wait() == 0


def test_an_instance_that_cannot_start_ends_the_run(endpoint: str) -> None:
    with dev(aws_endpoint=endpoint, instances=1, serve=[*STUB, "--stub-fails"]) as run:
        assert run.wait() == 1
        last = run.stderr.splitlines()[-1]
        assert last.startswith("roomcast dev: the instance on port ")
        assert "exit code 3" in last


def test_an_endpoint_without_an_emulator_is_one_line() -> None:
    with socket.socket() as unused:  # bound but not listening: nobody else gets the port
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with dev(aws_endpoint=url) as run:
            assert run.wait() == 1
            assert run.stderr == f"roomcast dev: no AWS emulator answers at {url}\n"


def test_a_signal_while_starting_is_an_orderly_end() -> None:
    with dev() as run:
        run.until_said("emulator")
        run.process.terminate()
        assert run.wait() == 0
