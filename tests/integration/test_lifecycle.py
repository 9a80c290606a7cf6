"""A real node on a machine of an Auto Scaling group: it says that it serves,
drains when its machine ends, and lets it go.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from roomcast.observe.cloudwatch import EVENT, GROUP_DIMENSION
from tests.emf import read_all
from tests.fakes.ec2 import FakeEc2, FakeMachine, Hook, fake_ec2
from tests.integration.serving import START_S, STOP_S, Aws, Process, deployed, environment
from tests.websocket import WebSocket

PREFIX: Final = "lifecycle-"
GROUP: Final = "chat"
LAUNCH: Final = "launching"
TERMINATE: Final = "terminating"
COMPLETE: Final = "CompleteLifecycleAction"
HEARTBEAT: Final = "RecordLifecycleActionHeartbeat"

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("lifecycle"), PREFIX) as aws:
        yield aws


@pytest.fixture
async def ec2() -> AsyncIterator[FakeEc2]:
    async with fake_ec2(GROUP, launch_hook=Hook(LAUNCH), terminate_hook=Hook(TERMINATE)) as fake:
        yield fake


@pytest.fixture
async def machine(ec2: FakeEc2) -> FakeMachine:
    return await ec2.launch()


def environ(aws: Aws, ec2: FakeEc2) -> dict[str, str]:
    """AWS is the emulator, but for what that does not have."""
    inherited = environment()
    del inherited["AWS_EC2_METADATA_DISABLED"]
    return inherited | {
        "AWS_ENDPOINT_URL": aws.endpoint,
        "AWS_ENDPOINT_URL_AUTO_SCALING": ec2.endpoint,
        "AWS_ENDPOINT_URL_CLOUDWATCH": ec2.endpoint,
    }


def config(aws: Aws, metadata: str, poll_s: float = 0.1) -> Path:
    return aws.config(
        f"node-{metadata.rpartition(':')[2]}",
        f"""
[client]
insecure = true
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
presence = true
[node]
drain_s = 0.5
imds_endpoint = "{metadata}"
lifecycle_poll_s = {poll_s}
""",
        # From the environment.
        endpoint_url="",
        autoscaling_group=GROUP,
        launch_hook=LAUNCH,
        terminate_hook=TERMINATE,
        metrics_namespace="roomcast",
    )


@dataclass(slots=True)
class Node:
    """One that serves, and a client of it that is in a room."""

    process: Process
    client: WebSocket

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.ended, STOP_S)

    def logged(self, event: str) -> list[str]:
        return [line for line in self.process.lines if f'"event":"{event}"' in line]


@asynccontextmanager
async def running(aws: Aws, ec2: FakeEc2, metadata: str, **options: Any) -> AsyncIterator[Node]:
    process = Process(config(aws, metadata, **options), "--port", "0", environ=environ(aws, ec2))
    try:
        await asyncio.to_thread(process.ready)
        async with aiohttp.ClientSession() as session:
            client = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
            await client.ask("connect")
            await client.ask("subscribe", channel="room")
            yield Node(process, client)
    finally:
        await asyncio.to_thread(process.close)
    assert "Traceback" not in process.log, process.log


async def test_the_life_of_a_machine(aws: Aws, ec2: FakeEc2, machine: FakeMachine) -> None:
    assert machine.state == "Pending:Wait"
    async with running(aws, ec2, machine.endpoint) as node:
        await ec2.until(lambda: machine.state == "InService")
        assert node.process.node.startswith(f"{machine.id}-")
        assert len(aws.left_of(node.process.node)) >= 4
        await asyncio.to_thread(node.process.said, EVENT)

        left: list[Any] = []

        async def look(operation: str) -> None:
            if operation == COMPLETE:
                left.extend(await asyncio.to_thread(aws.left_of, node.process.node))

        # Once the hook is completed the machine may vanish: nothing may be left when that is said.
        ec2.before = look
        ec2.terminate(machine)
        assert await node.client.closed() == 3001
        await ec2.until(lambda: machine.state == "Terminated")
        assert await node.ended() == 0, node.process.log
    assert left == []
    assert machine.ends == ["CONTINUE", "CONTINUE"]
    assert [operation for operation, _ in ec2.calls] == [COMPLETE, HEARTBEAT, COMPLETE]
    told = read_all(node.logged(EVENT))
    assert {each.dimensions for each in told} == {((GROUP_DIMENSION, GROUP),)}
    assert {each.name for each in told} >= {
        "Connections",
        "Channels",
        "QueueLagMs",
        "CanaryAgeS",
        "Degraded",
        "NotReady",
        "PublicationsRejected",
        "PublicationsUnknown",
    }
    assert {each.values for each in told if each.name == "NotReady"} == {(0,)}


async def test_a_node_that_serves_before_its_group_waits(aws: Aws, ec2: FakeEc2) -> None:
    machine = await ec2.launch(prepared=False)
    async with running(aws, ec2, machine.endpoint) as node:
        await ec2.until(lambda: ec2.called(COMPLETE))
        assert machine.state == "Pending"
        ec2.prepare(machine)
        await ec2.until(lambda: machine.state == "InService")
        await asyncio.to_thread(node.process.said, "launch_hook_completed")
        assert ec2.called(COMPLETE) == [machine.id] * 2
        # In order, so that its lease is not found by the next machine of that id.
        node.process.signal()
        assert await node.ended() == 0, node.process.log


async def test_a_node_that_never_becomes_ready_lets_its_machine_be_given_up(
    aws: Aws, ec2: FakeEc2, machine: FakeMachine
) -> None:
    path = config(aws, machine.endpoint)
    path.write_text(path.read_text().replace(aws.made.topic_arn, f"{aws.made.topic_arn}-missing"))
    process = Process(path, "--port", "0", environ=environ(aws, ec2))
    try:
        assert await asyncio.to_thread(process.ended, START_S) == 1, process.log
    finally:
        await asyncio.to_thread(process.close)
    assert "cannot start" in process.log
    assert (machine.ends, machine.state) == ([], "Pending:Wait"), "its node did not serve"
    ec2.time_out(machine)
    assert (machine.ends, machine.state) == (["timeout"], "Terminating:Wait"), "abandoned"


async def test_a_machine_that_the_load_balancer_still_holds(
    aws: Aws, ec2: FakeEc2, machine: FakeMachine
) -> None:
    """It drains at once, which is what the load balancer waits for,
    and is there when the group asks.
    """
    async with running(aws, ec2, machine.endpoint) as node:
        await ec2.until(lambda: machine.state == "InService")
        ec2.deregister(machine)
        assert await node.client.closed() == 3001
        await ec2.until(lambda: ec2.called(COMPLETE).count(machine.id) > 1)
        assert aws.left_of(node.process.node) == []
        ec2.terminate(machine)
        await ec2.until(lambda: machine.state == "Terminated")
        assert await node.ended() == 0, node.process.log
    assert machine.ends == ["CONTINUE", "CONTINUE"]


async def test_a_spot_instance_that_is_taken_away(
    aws: Aws, ec2: FakeEc2, machine: FakeMachine
) -> None:
    async with running(aws, ec2, machine.endpoint) as node:
        machine.notice = '{"action":"terminate","time":"2017-09-18T08:22:00Z"}'
        assert await node.client.closed() == 3001
        assert await node.ended() == 0, node.process.log
        assert aws.left_of(node.process.node) == []
        assert len(node.logged("node_has_to_end")) == 1


async def test_a_signal_and_the_group_at_once_are_one_drain(
    aws: Aws, ec2: FakeEc2, machine: FakeMachine
) -> None:
    async with running(aws, ec2, machine.endpoint) as node:
        await ec2.until(lambda: machine.state == "InService")
        ec2.terminate(machine)
        node.process.signal(signal.SIGTERM)
        assert await node.client.closed() == 3001
        node.process.signal(signal.SIGTERM)
        await ec2.until(lambda: machine.state == "Terminated")
        assert await node.ended() == 0, node.process.log
        assert len(node.logged("draining")) == 1


async def test_a_group_that_answers_errors_holds_up_nobody(
    aws: Aws, ec2: FakeEc2, machine: FakeMachine
) -> None:
    ec2.failure = (403, "AccessDenied")
    async with running(aws, ec2, machine.endpoint) as node:
        await ec2.until(lambda: len(ec2.called(COMPLETE)) == 1)
        assert await node.client.ask("publish", channel="room", data=1) == {}
        ec2.terminate(machine)
        assert await node.client.closed() == 3001
        assert await node.ended() == 0, node.process.log
        assert aws.left_of(node.process.node) == []
        assert len(node.logged("machine_not_let_go")) == 1
    assert machine.state == "Terminating:Wait", "its hook has a time-out"


async def test_metadata_that_fail_later_change_nothing(
    aws: Aws, ec2: FakeEc2, machine: FakeMachine
) -> None:
    async with running(aws, ec2, machine.endpoint) as node:
        await ec2.until(lambda: machine.state == "InService")
        machine.broken = 500
        await asyncio.to_thread(node.process.said, "instance_metadata_failed")
        assert await node.client.ask("publish", channel="room", data=1) == {}
        machine.broken = 0
        await asyncio.to_thread(node.process.said, "instance_metadata_works_again")
        node.process.signal()
        assert await node.client.closed() == 3001
        assert await node.ended() == 0, node.process.log
        assert len(node.logged("instance_metadata_failed")) == 1


async def test_without_metadata_it_serves_as_anywhere(aws: Aws, ec2: FakeEc2) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with running(aws, ec2, f"http://127.0.0.1:{closed.getsockname()[1]}") as node:
            assert not node.process.node.startswith("i-")
            assert await node.client.ask("publish", channel="room", data=1) == {}
            node.process.signal()
            assert await node.client.closed() == 3001
            assert await node.ended() == 0, node.process.log
            assert aws.left_of(node.process.node) == []
            assert len(node.logged("instance_metadata_unreachable")) == 1
    assert not ec2.calls


async def test_two_nodes_of_a_machine_let_it_go_together(
    aws: Aws, ec2: FakeEc2, machine: FakeMachine
) -> None:
    """The first one that is through leaves it to the other."""
    async with (
        running(aws, ec2, machine.endpoint, poll_s=0.1) as first,
        running(aws, ec2, machine.endpoint, poll_s=3600) as second,
    ):
        await ec2.until(lambda: machine.state == "InService")
        ec2.terminate(machine)
        assert await first.ended() == 0, first.process.log
        assert len(first.logged("machine_left_to_others")) == 1
        assert machine.state == "Terminating:Wait"
        assert await second.client.ask("publish", channel="room", data=1) == {}
        second.process.signal()
        await ec2.until(lambda: machine.state == "Terminated")
        assert await second.ended() == 0, second.process.log


@asynccontextmanager
async def two_processes(aws: Aws, poll_s: float) -> AsyncIterator[tuple[FakeEc2, Process]]:
    """A machine in service whose supervisor runs two, and that waits at no launch hook."""
    terminate = Hook(TERMINATE)
    async with fake_ec2(GROUP, launch_hook=None, terminate_hook=terminate) as ec2:
        machine = await ec2.launch()
        path = config(aws, machine.endpoint, poll_s)
        path.write_text(path.read_text().replace(f'launch_hook = "{LAUNCH}"\n', ""))
        process = Process(path, "--port", "0", "--processes", "2", environ=environ(aws, ec2))
        try:
            await asyncio.to_thread(process.told, "ready", 2, START_S)
            yield ec2, process
            await ec2.until(lambda: machine.state == "Terminated")
            assert await asyncio.to_thread(process.ended) == 0, process.log
        finally:
            await asyncio.to_thread(process.close)
        assert ec2.called(COMPLETE) == [machine.id]
    assert "Traceback" not in process.log


async def test_the_processes_of_a_machine_let_it_go_once_when_all_have_drained(aws: Aws) -> None:
    left: list[Any] = []
    async with two_processes(aws, poll_s=0.1) as (ec2, process):
        nodes = [each["node"] for each in process.told("ready", 2)]
        (machine,) = ec2.machines.values()
        assert all(node.startswith(f"{machine.id}-") for node in nodes)

        async def look(operation: str) -> None:
            if operation == COMPLETE:
                for node in nodes:
                    left.extend(await asyncio.to_thread(aws.left_of, node))

        ec2.before = look
        ec2.terminate(machine)
    assert left == []
    assert len(process.told("machine_let_go", 1)) == 1
    assert len(process.told("machine_left_to_others", 1)) == 1


async def test_a_process_that_was_killed_does_not_hold_its_machine(aws: Aws) -> None:
    """Its lease lives on for a while; its supervisor knows better."""
    async with two_processes(aws, poll_s=3600) as (ec2, process):
        os.kill(process.told("process_started", 2)[1]["pid"], signal.SIGKILL)
        await asyncio.to_thread(process.said, "process_failed")
        (machine,) = ec2.machines.values()
        ec2.terminate(machine)
        process.signal()
