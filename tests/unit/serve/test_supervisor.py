"""service/roomcast/serve/supervisor.py: real processes, which do what a test has them do."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Final

import pytest
import structlog

from roomcast.aws.errors import CALL_LIMIT_S
from roomcast.cli.leaving import LEAVE_S
from roomcast.ec2.lifecycle import RELEASE_LEAVING_S
from roomcast.node.node import ANSWERS_S
from roomcast.serve import supervision, supervisor
from roomcast.serve.entry import Address, Worker, bound
from roomcast.serve.process import FINISH_S
from roomcast.serve.supervisor import (
    DRAIN_JITTER,
    END_S,
    _Supervisor,
    shares_ports,
    supervise,
)
from roomcast.serve.tries import END_TRIES_S
from tests.processes import left_behind
from tests.unit.worlds import DEADLINE_S, until

# Speaks as a process does. Its arguments: the descriptor, its number, and what it does:
# at its start, when it is told to listen, and at SIGTERM.
PROCESS: Final = """
import os, signal, socket, sys, threading, time
descriptor, number, start, opened, term = sys.argv[1:]
def do(what):
    if what.isdigit():
        os._exit(int(what))
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
def live():
    while True:
        talk.sendall(b"alive\\n")
        time.sleep(0.02)
talk = socket.socket(fileno=int(descriptor))
signal.signal(signal.SIGTERM, lambda *_: do(term))
do(start)
threading.Thread(target=live, daemon=True).start()
talk.sendall(f"started node-{number} {number}\\n".encode())
for line in talk.makefile():
    if line == "open\\n":
        do(opened)
os._exit(0)
"""
SERVES: Final = ("", "", "0")

Logs = list[Any]


class Host:
    """`does`: what each process does, by its number, at its next start."""

    def __init__(
        self, does: Mapping[int, tuple[str, str, str]], logs: Logs, stop_within_s: float
    ) -> None:
        self.does = dict(does)
        self.stop = asyncio.Event()
        self.logs = logs
        numbers = [10 + each for each in does]
        self._supervisor = _Supervisor(self._command, 8000, numbers, self.stop, stop_within_s)
        self.running = asyncio.create_task(self._supervisor.run())

    def _command(self, worker: Worker) -> list[str]:
        assert worker.port == 8000
        does = self.does[worker.own_port - 10]
        arguments = [str(worker.descriptor), str(worker.own_port), *does]
        return [sys.executable, "-c", PROCESS, *arguments]

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.logs if each["event"] == event]

    async def until(self, holds: Callable[[], Any]) -> None:
        await until(lambda: holds() or self.running.done())
        assert holds(), self.logs

    async def code(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            return await self.running

    @property
    def pids(self) -> list[int]:
        return [each["pid"] for each in self.told("process_started")]


@asynccontextmanager
async def host(
    *does: tuple[str, str, str], stop_within_s: float = DEADLINE_S
) -> AsyncIterator[Host]:
    with structlog.testing.capture_logs() as logs:
        made = Host(dict(enumerate(does)), logs, stop_within_s)
        try:
            yield made
        finally:
            made.stop.set()
            await asyncio.gather(made.running, return_exceptions=True)
    assert left_behind(made.pids, DEADLINE_S) == []


async def test_all_serve_and_all_end() -> None:
    async with host(SERVES, SERVES, SERVES) as three:
        await three.until(lambda: len(three.told("process_serves")) == 3)
        assert {each["node"] for each in three.told("process_serves")} == {
            "node-10", "node-11", "node-12"
        }  # fmt: skip
        three.stop.set()
        assert await three.code() == 0, three.logs


async def test_the_others_wait_for_the_first() -> None:
    async with host(("2", "", "0"), SERVES) as two:
        assert await two.code() == 2
        assert len(two.pids) == 1
        assert not two.told("processes_given_up"), "it said why itself"


async def test_a_first_one_that_is_told_to_end_while_it_starts() -> None:
    async with host(("0", "", "0"), SERVES) as two:
        assert await two.code() == 0
        assert len(two.pids) == 1


async def test_a_first_one_that_is_killed() -> None:
    async with host(("dies", "", "0"), SERVES) as two:
        assert await two.code() == 1
        assert len(two.told("processes_given_up")) == 1


async def test_one_that_fails_is_started_again() -> None:
    async with host(SERVES, ("", "dies", "0")) as two:
        await two.until(lambda: two.told("process_failed"))
        two.does[1] = SERVES
        await two.until(lambda: len(two.told("process_serves")) == 3)
        assert two.told("process_failed")[0]["code"] == -signal.SIGKILL
        assert len(two.pids) == 3
        two.stop.set()
        assert await two.code() == 0, "it has come right"


async def test_one_that_fails_again_and_again_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "DEATHS_MAX", 2)
    async with host(SERVES, ("", "dies", "0")) as two:
        assert await two.code() == 1
        (given_up,) = two.told("processes_given_up")
        assert "process 1 failed 2 times" in given_up["reason"]


async def test_one_that_ends_in_order_is_not_started_again_and_the_last_one_ends_all() -> None:
    async with host(SERVES, ("", "0", "0")) as two:
        await two.until(lambda: two.told("process_left"))
        assert not two.running.done()
        assert len(two.pids) == 2
    async with host(("", "0", "0"), ("", "0", "0")) as two:
        assert await two.code() == 0


async def test_one_that_does_not_end_in_time_is_killed() -> None:
    async with host(SERVES, ("", "", "stays"), stop_within_s=0.5) as two:
        await two.until(lambda: len(two.told("process_serves")) == 2)
        two.stop.set()
        assert await two.code() == 1
        assert 1 in [each["process"] for each in two.told("process_killed")]


async def test_one_that_hangs_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HUNG_S", 0.2)
    async with host(("", "hangs", "0")) as one:
        await one.until(lambda: one.told("process_failed"))
        assert len(one.told("process_hangs")) == 1
        assert one.told("process_failed")[0]["code"] == -signal.SIGKILL
        await one.until(lambda: len(one.pids) > 1)


async def test_one_that_hangs_before_its_first_sign_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "BEGIN_S", 0.2)
    async with host(("hangs", "", "0"), SERVES) as two:
        assert await two.code() == 1
        assert len(two.told("process_hangs")) == len(two.pids) == 1
        assert two.told("processes_given_up")


async def test_a_supervisor_that_was_suspended_kills_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "HUNG_S", 2.0)
    async with host(SERVES, SERVES) as two:
        await two.until(lambda: len(two.told("process_serves")) == 2)
        time.sleep(2.5)  # noqa: ASYNC251  # as if it was: the event loop stands still
        two.stop.set()
        assert await two.code() == 0, two.logs
        assert not two.told("process_hangs")


async def test_an_end_that_is_a_failure_is_told() -> None:
    async with host(SERVES, ("", "", "1")) as two:
        await two.until(lambda: len(two.told("process_serves")) == 2)
        two.stop.set()
        assert await two.code() == 1


async def test_a_stop_before_anybody_serves() -> None:
    async with host(SERVES, SERVES) as two:
        two.stop.set()
        assert await two.code() == 0, two.logs


async def test_a_program_that_cannot_be_started_is_told_of() -> None:
    def command(_worker: Worker) -> list[str]:
        return ["/nothing/is/here"]

    with structlog.testing.capture_logs() as logs:
        made = _Supervisor(command, 8000, [0, 0], asyncio.Event(), 1.0)
        assert await made.run() == 1
    assert next(each["event"] for each in logs) == "process_not_started"


async def test_a_lack_of_descriptors_at_a_restart_ends_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = socket.socketpair, 0

    def lacking() -> tuple[socket.socket, socket.socket]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENFILE, "Too many open files in system")
        return real()

    monkeypatch.setattr("roomcast.serve.supervisor.socket.socketpair", lacking)
    async with host(SERVES, ("", "dies", "0")) as two:
        await two.until(lambda: two.told("process_not_started"))
        two.does[1] = SERVES
        await two.until(lambda: len(two.told("process_serves")) == 3)
        two.stop.set()
        assert await two.code() == 0, two.logs


def test_a_process_is_not_killed_while_it_still_gives_back() -> None:
    """The same sum as for systemd: tests/deploy/test_template.py."""
    given_back_s = 5 * CALL_LIMIT_S + END_TRIES_S
    finished_s = 3 * ANSWERS_S + FINISH_S + given_back_s + RELEASE_LEAVING_S
    assert finished_s + 2 * LEAVE_S < END_S
    assert DRAIN_JITTER == 1.5, "0.5 + a fraction: service/roomcast/node/node.py"


# ---- what is refused


def never(_worker: Worker) -> list[str]:
    raise AssertionError("nothing is started")


@pytest.mark.parametrize("platform, shares", [("linux", True), ("darwin", False), ("win32", False)])
def test_only_linux_divides_connections(platform: str, shares: bool) -> None:
    assert shares_ports(platform) is shares


async def test_where_ports_are_not_shared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("roomcast.serve.supervisor.shares_ports", lambda: False)
    code = await supervise(
        never, host="127.0.0.1", port=0, processes=2, drain_s=0.0, exit_on_stdin_close=False
    )
    assert code == 2
    assert capsys.readouterr().err == (
        "roomcast: several processes share a port only on Linux: use --processes 1\n"
    )


async def test_ports_that_there_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    code = await supervise(
        never, host="127.0.0.1", port=65_530, processes=6, drain_s=0.0, exit_on_stdin_close=False
    )
    assert code == 2
    assert "choose a lower --port" in capsys.readouterr().err


async def test_a_port_that_somebody_else_has(capsys: pytest.CaptureFixture[str]) -> None:
    server = await asyncio.start_server(
        lambda _reader, _writer: None, "127.0.0.1", 0, reuse_port=True
    )
    port = server.sockets[0].getsockname()[1]
    try:
        code = await supervise(
            never, host="127.0.0.1", port=port, processes=2, drain_s=0.0, exit_on_stdin_close=False
        )
    finally:
        server.close()
        await server.wait_closed()
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err, (
        "also if it would share it"
    )


@pytest.mark.parametrize("name", ["a" * 70, "..", "192.0.2.1", "no-such-host.invalid"])
async def test_a_host_that_is_not_ours(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = await supervise(
        never, host=name, port=0, processes=2, drain_s=0.0, exit_on_stdin_close=False
    )
    assert code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"roomcast: cannot listen on {name}:0: ")
    assert said.endswith("; choose another --host\n")


async def test_an_own_port_that_somebody_else_has(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as held:
        port = neighbours(held)
        code = await supervise(
            never, host="127.0.0.1", port=port, processes=2, drain_s=0.0, exit_on_stdin_close=False
        )
    assert code == 1
    said = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port + 2}" in said
    assert "port of its own" in said


async def test_an_internal_port_that_somebody_else_has(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as held:
        port = neighbours(held)
        code = await supervise(
            never,
            host="127.0.0.1",
            port=0,
            processes=2,
            drain_s=0.0,
            exit_on_stdin_close=False,
            internal=Address("127.0.0.1", port + 2),
        )
    assert code == 1
    said = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port + 2}" in said
    assert said.endswith("; choose another server.internal_port\n")


@pytest.mark.parametrize(
    "port, internal_port, said",
    [
        (8000, 8000, "too close"),
        (8000, 8002, "too close"),
        (8002, 8000, "too close"),
        (8000, 65_534, "choose a lower server.internal_port"),
    ],
)
async def test_ports_that_get_into_each_others_way(
    port: int, internal_port: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = await supervise(
        never,
        host="127.0.0.1",
        port=port,
        processes=2,
        drain_s=0.0,
        exit_on_stdin_close=False,
        internal=Address("127.0.0.1", internal_port),
    )
    assert code == 2
    assert said in capsys.readouterr().err


async def test_each_process_has_an_internal_port_of_its_own() -> None:
    given: list[Worker] = []

    def command(worker: Worker) -> list[str]:
        given.append(worker)
        return ["/nothing/is/here"]

    with structlog.testing.capture_logs():
        made = _Supervisor(command, 8000, [8001], asyncio.Event(), 1.0, internal_ports=[9001])
        assert await made.run() == 1
    assert [(each.own_port, each.own_internal_port) for each in given] == [(8001, 9001)]


def neighbours(held: ExitStack) -> int:
    """The first of three ports that are held; somebody listens on the third."""
    while True:
        try:
            with ExitStack() as tried:
                first = tried.enter_context(bound("127.0.0.1", 0))
                port = first.getsockname()[1]
                tried.enter_context(bound("127.0.0.1", port + 1))
                tried.enter_context(bound("127.0.0.1", port + 2)).listen()
                held.push(tried.pop_all())
                return int(port)
        except OSError:
            continue
