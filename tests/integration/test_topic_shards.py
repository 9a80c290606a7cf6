"""Real nodes with topic shards: who hears what, that the way works from end to end,
and that nothing is left of a node that is stopped or killed.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from roomcast.delivery.shards import shard_of, topic_arns
from roomcast.reaper.rules import REAP_GRACE_MS
from tests.contract.backends import ROOT
from tests.integration.serving import (
    Aws,
    Process,
    deployed,
    environment,
    pump,
    reaping,
    serving,
)
from tests.websocket import WebSocket

SHARDS: Final = 4
ROOM: Final = "room"
DEADLINE_S: Final = 45
LOOK_S: Final = 0.1
COMMAND_S: Final = 60
TTL_S: Final = 60
CONFIG: Final = f"""
[client]
insecure = true
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
force_recovery = true
[node]
drain_s = 0
lease_ttl_s = {TTL_S}
tail_check_s = 3600
"""

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(240)]


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Aws]:
    with deployed(tmp_path, "shards-", SHARDS) as aws, pump(aws):
        yield aws


def subscribed(aws: Aws, shard: int | None = None) -> set[str]:
    """The queues that are subscribed to the topic of `shard`; None = the base topic."""
    arn = topic_arns(aws.made.topic_arn, SHARDS)[0 if shard is None else 1 + shard]
    answer = aws.client("sns").list_subscriptions_by_topic(TopicArn=arn)
    return {each["Endpoint"].rpartition(":")[2] for each in answer["Subscriptions"]}


async def until(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + DEADLINE_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < give_up_s
        await asyncio.sleep(LOOK_S)


async def client(session: aiohttp.ClientSession, process: Process) -> WebSocket:
    await asyncio.to_thread(process.ready)
    socket = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
    await socket.ask("connect")
    return socket


async def test_nodes_hear_the_topic_shards_that_they_serve_and_leave_nothing(aws: Aws) -> None:
    config = aws.config("shards", CONFIG)
    its_shard = shard_of(ROOM, SHARDS)
    async with aiohttp.ClientSession() as session:
        with serving(config) as reading, serving(config) as killed, serving(config) as writing:
            reader, other = await client(session, reading), await client(session, killed)
            writer = await client(session, writing)
            for socket in (reader, other):
                await socket.ask("subscribe", channel=ROOM)
            await until(lambda: len(subscribed(aws, its_shard)) == 2)
            assert len(subscribed(aws)) == 3
            for number in range(20):
                await writer.ask("publish", channel=ROOM, data=number)
            assert await reader.published(ROOM, 20) == list(range(20))
            assert not any(subscribed(aws, n) for n in range(SHARDS) if n != its_shard)
            metrics = await (await session.get(f"{reading.url}/metrics")).text()
            assert "roomcast_topic_shards_heard 1.0" in metrics
            killed.signal(signal.SIGKILL)
            killed.ended()
            for process in (reading, writing):
                process.signal()
                assert process.ended() == 0, process.log
    assert subscribed(aws) == subscribed(aws, its_shard) != set(), "those of the one killed"
    async with reaping(aws, TTL_S * 1000 + REAP_GRACE_MS + 1000, SHARDS) as reaper:
        report = await reaper.run()
    assert (len(report.nodes), report.failed) == (1, 0)
    assert not aws.client("sns").list_subscriptions()["Subscriptions"]
    assert not aws.client("sqs").list_queues().get("QueueUrls", [])


def test_the_doctor_tries_out_each_topic_shard(aws: Aws) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "roomcast", "doctor", "--json"),
            *("--config", str(aws.config("well", CONFIG))),
        ],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    for name in ("topic shards", "table to topic shards"):
        assert checks[name]["outcome"] == "ok", checks[name]
    assert not aws.client("sns").list_subscriptions()["Subscriptions"]
