"""Express hints between real nodes: they arrive without the stream, and the stream, when it comes,
brings nothing twice.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.integration.serving import Aws, Process, deployed, pump, serving
from tests.websocket import WebSocket

FAST: Final = "fast:room"
SLOW: Final = "room"
DEADLINE_S: Final = 30.0
CONFIG: Final = """
[client]
insecure = true
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
force_recovery = true
[[channel.namespaces]]
name = "fast"
history_size = 100
history_ttl = "300s"
force_recovery = true
express = true
[node]
drain_s = 0
tail_check_s = 3600
"""
# As an older release, or a configuration that was not changed yet.
WITHOUT: Final = CONFIG.replace("express = true\n", "")

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(180)]


@pytest.fixture(params=[1, 4], ids=["one topic", "topic shards"])
def aws(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Aws]:
    with deployed(tmp_path, "express-", request.param) as aws:
        yield aws


@asynccontextmanager
async def client(process: Process) -> AsyncIterator[WebSocket]:
    await asyncio.to_thread(process.ready)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{process.url}/connection/websocket") as response,
    ):
        socket = WebSocket(response)
        await socket.ask("connect")
        yield socket


async def metric(process: Process, name: str) -> float:
    """Of a node's metrics, one by its name and labels."""
    async with aiohttp.ClientSession() as session:
        text = await (await session.get(f"{process.url}/metrics")).text()
    [value] = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(value)


async def until(process: Process, name: str, value: float) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await metric(process, name) < value:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.05)


async def publish(socket: WebSocket, channel: str, *data: Any) -> None:
    for each in data:
        assert await socket.ask("publish", channel=channel, data=each) == {}


async def test_publications_arrive_without_the_stream_and_once(aws: Aws) -> None:
    config = aws.config("fast", CONFIG)
    with serving(config) as reading, serving(config) as writing:
        async with client(reading) as bob, client(writing) as ann:
            at = await bob.ask("subscribe", channel=FAST)
            await bob.ask("subscribe", channel=SLOW)
            await until(writing, "roomcast_express_rate", 1)
            if aws.made.topic_shards > 1:
                await until(reading, 'roomcast_topic_shard_steps_total{outcome="heard"}', 1)
            # There is no stream: only hints can bring it.
            await publish(ann, FAST, *range(5))
            assert await bob.published(FAST, 5) == list(range(5))
            reads = await metric(reading, "roomcast_gaps_filled_total")
            await publish(ann, SLOW, "by the stream")
            with pump(aws):
                # The stream brings in its order what was appended: the others came before.
                assert await bob.published(SLOW, 1) == ["by the stream"]
                await publish(ann, FAST, 5)
                await publish(ann, SLOW, "once more")
                await bob.published(SLOW, 2)
                assert await bob.published(FAST, 6) == list(range(6))
            assert await metric(reading, "roomcast_gaps_filled_total") == reads == 0
            heard = await metric(reading, 'roomcast_express_heard_total{outcome="first"}')
            assert 5 <= heard <= 6
            assert await metric(writing, 'roomcast_express_hints_total{outcome="sent"}') == 6
            assert aws.log(FAST) == [(at["epoch"], number + 1, number) for number in range(6)]
            # Whoever comes back is brought up to date, on either node.
            for process in (reading, writing):
                async with client(process) as again:
                    answer = await again.ask(
                        "subscribe", channel=FAST, recover=True, epoch=at["epoch"], offset=4
                    )
                    assert answer["recovered"]
                    assert [each["data"] for each in answer["publications"]] == [4, 5]


async def test_nodes_with_and_without_the_option_work_together(aws: Aws) -> None:
    with (
        serving(aws.config("fast", CONFIG)) as fast,
        serving(aws.config("slow", WITHOUT)) as slow,
        pump(aws),
    ):
        async with client(fast) as ann, client(slow) as bob:
            for socket in (ann, bob):
                await socket.ask("subscribe", channel=FAST)
            await until(fast, "roomcast_express_rate", 1)
            for number in range(10):
                await publish((ann, bob)[number % 2], FAST, number)
            for socket in (ann, bob):
                assert await socket.published(FAST, 10) == list(range(10))
            assert await metric(fast, 'roomcast_express_hints_total{outcome="sent"}') > 0
            assert await metric(slow, 'roomcast_express_hints_total{outcome="sent"}') == 0
