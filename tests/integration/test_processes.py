"""`roomcast serve --processes 2`: two nodes behind one port, what a killed one leaves,
and the end of all.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from roomcast.reaper.rules import REAP_GRACE_MS
from tests.contract.backends import ROOT
from tests.integration.serving import (
    SILENT_S,
    START_S,
    STOP_S,
    Aws,
    Process,
    deployed,
    environment,
    pump,
    reaping,
)
from tests.processes import left_behind
from tests.websocket import WebSocket

PREFIX: Final = "processes-"
ROOM: Final = "room"
TTL_S: Final = 60
AHEAD_MS: Final = TTL_S * 1000 + REAP_GRACE_MS - SILENT_S * 1000
# The kernel gives a new connection to either of two: so many miss one once in 2^40 times.
CONNECTIONS: Final = 40

CONFIG: Final = f"""
[client]
insecure = true
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
force_recovery = true
presence = true
[node]
processes = 2
drain_s = 0
lease_ttl_s = {TTL_S}
heartbeat_s = 0.5
"""

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("processes"), PREFIX) as aws, pump(aws):
        yield aws


@dataclass(slots=True)
class Host:
    """A supervisor with two processes. `nodes`: by their names, their own URLs."""

    supervisor: Process
    session: aiohttp.ClientSession
    nodes: dict[str, str]

    async def member(self, url: str) -> WebSocket:
        socket = WebSocket(await self.session.ws_connect(f"{url}/connection/websocket"))
        await socket.ask("connect")
        await socket.ask("subscribe", channel=ROOM)
        return socket

    def pid(self, node: str) -> int:
        serves = self.supervisor.told("process_serves", 2)
        starts = self.supervisor.told("process_started", 2)
        index = next(each["process"] for each in serves if each["node"] == node)
        return int(next(each["pid"] for each in starts if each["process"] == index))

    async def answering(self) -> set[str]:
        """The nodes that get new connections of the shared port."""
        found = set()
        for _ in range(CONNECTIONS):
            async with self.session.get(
                f"{self.supervisor.url}/health/ready", headers={"Connection": "close"}
            ) as response:
                assert response.status == 200
                found.add((await response.json())["node"])
        return found


@asynccontextmanager
async def host(config: Path, *options: str) -> AsyncIterator[Host]:
    process = Process(config, "--port", "0", *options)
    try:
        ready = await asyncio.to_thread(process.told, "ready", 2, START_S)
        process.port = ready[0]["port"]
        assert ready[1]["port"] == process.port
        nodes = {each["node"]: f"http://127.0.0.1:{each['own_port']}" for each in ready}
        assert len(nodes) == len(set(nodes.values())) == 2
        async with aiohttp.ClientSession() as session:
            yield Host(process, session, nodes)
    finally:
        await asyncio.to_thread(process.close)
    assert "Traceback" not in process.log, process.log


async def reap(aws: Aws) -> set[str]:
    """Cleans up after the dead. Returns who they were."""
    async with reaping(aws, AHEAD_MS) as reaper:
        return {each.node for each in (await reaper.run()).nodes}


async def test_two_processes_are_two_nodes_behind_one_port(aws: Aws) -> None:
    async with host(aws.config("two", CONFIG)) as two:
        assert await two.answering() == set(two.nodes)
        for node in two.nodes:
            assert len(aws.queues_of(node)) == 1
        assert set(two.nodes) <= aws.leases()

        first, second = [await two.member(url) for url in two.nodes.values()]
        assert await first.ask("publish", channel=ROOM, data="from the first") == {}
        assert await second.published(ROOM, 1) == ["from the first"]
        assert await second.ask("publish", channel=ROOM, data="from the second") == {}
        assert (await first.published(ROOM, 2))[1:] == ["from the second"]

        # Any of them may answer at the shared port, where counters would jump.
        async with two.session.get(f"{two.supervisor.url}/metrics") as response:
            assert response.status == 404
            assert "own" in await response.text()
        for url in two.nodes.values():
            async with two.session.get(f"{url}/metrics") as response:
                assert "\nroomcast_connections 1.0\n" in await response.text()

        two.supervisor.signal()
        assert [await each.closed() for each in (first, second)] == [3001, 3001]
        assert await asyncio.to_thread(two.supervisor.ended) == 0
    assert [aws.left_of(node) for node in two.nodes] == [[], []]


async def test_one_that_is_killed_is_started_again_and_the_other_one_serves_on(aws: Aws) -> None:
    async with host(aws.config("killed", CONFIG)) as two:
        (dead, dead_url), (living, url) = two.nodes.items()
        gone, stays = await two.member(dead_url), await two.member(url)
        held = len(aws.left_of(dead))
        assert held >= 4, "queue, subscription, lease, presence"
        os.kill(two.pid(dead), signal.SIGKILL)
        await gone.closed()
        # The kernel closes a dead process's sockets in no order that is promised. A connection that
        # reaches one which listens still is reset; so the end of all of them is waited for.
        failed = await asyncio.to_thread(two.supervisor.said, "process_failed")
        assert failed["code"] == -signal.SIGKILL
        # New connections go to the other one, and to the third if that is there already.
        answering = await two.answering()
        assert living in answering
        assert dead not in answering
        assert await stays.ask("publish", channel=ROOM, data="still here") == {}

        third = (await asyncio.to_thread(two.supervisor.told, "ready", 3, START_S))[2]
        assert third["node"] not in two.nodes
        assert await two.answering() == {living, third["node"]}
        newcomer = await two.member(f"http://127.0.0.1:{third['own_port']}")
        assert await newcomer.ask("publish", channel=ROOM, data="back") == {}
        assert (await stays.published(ROOM, 2))[-1] == "back"

        while dead not in await reap(aws):  # noqa: ASYNC110  # nothing tells that it beat no more
            await asyncio.sleep(0.2)
        assert aws.left_of(dead) == []
        for node in (living, third["node"]):
            assert aws.left_of(node), "the reaper took what lives"

        two.supervisor.signal()
        assert [await each.closed() for each in (stays, newcomer)] == [3001, 3001]
        assert await asyncio.to_thread(two.supervisor.ended) == 0
    assert [aws.left_of(node) for node in (dead, living, third["node"])] == [[], [], []]


async def test_one_that_ends_in_order_is_not_started_again(aws: Aws) -> None:
    async with host(aws.config("left", CONFIG)) as two:
        first, second = two.nodes
        os.kill(two.pid(first), signal.SIGTERM)
        await asyncio.to_thread(two.supervisor.said, "process_left")
        assert await two.answering() == {second}
        os.kill(two.pid(second), signal.SIGTERM)
        assert await asyncio.to_thread(two.supervisor.ended) == 0, "nobody is left"
    assert [aws.left_of(node) for node in two.nodes] == [[], []]
    assert len(two.supervisor.told("process_started", 2)) == 2


async def test_processes_whose_supervisor_is_killed_end_in_order(aws: Aws) -> None:
    async with host(aws.config("orphans", CONFIG)) as two:
        members = [await two.member(url) for url in two.nodes.values()]
        pids = [two.pid(node) for node in two.nodes]
        two.supervisor.signal(signal.SIGKILL)
        assert [await each.closed() for each in members] == [3001, 3001]
        assert await asyncio.to_thread(left_behind, pids, START_S) == []
    assert [aws.left_of(node) for node in two.nodes] == [[], []]


@pytest.mark.parametrize(
    "options, code, said",
    [
        ('[hooks]\nconnect = "not_there:connect"\n', 2, "hooks.connect"),
        ("", 1, "cannot start"),
    ],
)
async def test_what_keeps_one_from_starting_is_told_once(
    aws: Aws, options: str, code: int, said: str
) -> None:
    config = aws.config(f"refused-{code}", CONFIG + options)
    if not options:
        config.write_text(
            config.read_text().replace(aws.made.topic_arn, f"{aws.made.topic_arn}-no")
        )
    told: list[Any] = []
    for processes in ("1", "2"):
        process = Process(config, "--port", "0", "--processes", processes)
        try:
            assert await asyncio.to_thread(process.ended, START_S) == code, process.log
        finally:
            await asyncio.to_thread(process.close)
        told.append([line for line in process.lines if line.startswith("roomcast: ")])
    assert told[0] == told[1]
    assert len(told[0]) == 1
    assert said in told[0][0]
    assert not aws.queues_of(""), "none was left"


@contextmanager
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_log_that_nobody_reads_keeps_nobody_from_serving_and_ending(
    aws: Aws, processes: str
) -> None:
    config = aws.config("unread", CONFIG)
    with full_pipe() as unread:
        supervisor = subprocess.Popen(
            [*(sys.executable, "-m", "roomcast", "serve", "--config", str(config)),
             *("--port", "0", "--processes", processes)],
            cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=unread, stderr=unread,
        )  # fmt: skip
        try:
            give_up_s = time.monotonic() + START_S
            while len(aws.leases()) < int(processes):
                assert time.monotonic() < give_up_s, "it does not begin to serve"
                time.sleep(0.1)
            supervisor.send_signal(signal.SIGTERM)
            assert supervisor.wait(STOP_S) == 0
        finally:
            supervisor.kill()
            supervisor.wait()
    assert not aws.leases()
    assert not aws.queues_of("")
