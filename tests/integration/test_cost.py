"""What two nodes call in AWS under a known load, and what `roomcast cost` says of it."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from roomcast.cost.calls import Load, Pace, calls_of
from tests.integration.serving import Process, deployed, pump, serving
from tests.websocket import WebSocket

CHANNEL: Final = "room"
PUBLICATIONS: Final = 20
# How far the formula may be from what is counted; and a call more or less, which a moment's work
# that began before may be.
PART: Final = 0.1
CALLS: Final = 3
DEADLINE_S: Final = 20.0
HEARTBEAT_S: Final = 1.0
TAIL_CHECK_S: Final = 1.0
CONFIG: Final = f"""
[client]
insecure = true
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
force_recovery = true
[node]
drain_s = 0
heartbeat_s = {HEARTBEAT_S}
tail_check_s = {TAIL_CHECK_S}
"""

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(120)]


async def counters(session: aiohttp.ClientSession, node: Process) -> Counter[str]:
    """What `node` has counted: its calls, by operation, and "messages" out of its queue."""
    async with session.get(f"{node.url}/metrics") as response:
        text = await response.text()
    counted: Counter[str] = Counter()
    for operation, count in re.findall(
        r'^roomcast_aws_call_seconds_count\{operation="([^"]+)",[^}]*\} (\S+)$', text, re.MULTILINE
    ):
        counted[operation] += int(float(count))
    [messages] = re.findall(r"^roomcast_queue_messages_total (\S+)$", text, re.MULTILINE)
    counted["messages"] = int(float(messages))
    return counted


async def grown(
    session: aiohttp.ClientSession, node: Process, before: Counter[str], messages: int
) -> Counter[str]:
    """What `node` has counted since `before`, once so many messages have come."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = await counters(session, node) - before
            if found["messages"] >= messages:
                return found
            await asyncio.sleep(0.02)


async def test_the_calls_of_a_known_load_are_those_of_the_formula(tmp_path: Path) -> None:
    with deployed(tmp_path, "cost-") as aws, pump(aws):
        config = aws.config("cost", CONFIG)
        with serving(config) as writing, serving(config) as reading:
            for node in (writing, reading):
                await asyncio.to_thread(node.ready)
            async with AsyncExitStack() as stack:
                session = await stack.enter_async_context(aiohttp.ClientSession())
                sockets = [
                    WebSocket(
                        await stack.enter_async_context(
                            session.ws_connect(f"{node.url}/connection/websocket")
                        )
                    )
                    for node in (writing, reading)
                ]
                ann, bob = sockets
                for socket in sockets:
                    await socket.ask("connect")
                    await socket.ask("subscribe", channel=CHANNEL)
                # The first of them opens connections and the lane.
                await ann.ask("publish", channel=CHANNEL, data=-1)
                await bob.published(CHANNEL, 1)
                nodes = (writing, reading)
                before = [await counters(session, node) for node in nodes]
                began_s = time.monotonic()
                for number in range(PUBLICATIONS):
                    await ann.ask("publish", channel=CHANNEL, data=number)
                    # Each has come round when the next is published, so none shares a message.
                    found = [
                        await grown(session, node, earlier, number + 1)
                        for node, earlier in zip(nodes, before, strict=True)
                    ]
                took_s = time.monotonic() - began_s
    counted = sum(found, Counter[str]())
    del counted["messages"]
    load = Load(
        instances=2,
        publications_s=PUBLICATIONS / took_s,
        channels=1,
        # So many that each node has one of them.
        clients=20,
        writers=1,
        # Nobody came or went.
        stay_s=1e9,
    )
    told = calls_of(
        load,
        Pace(
            # The next publication waits for the last one, so no call finds much to share.
            append_s=0.001,
            receive_s=0.001,
            stream_polls_s=1000,
            heartbeat_s=HEARTBEAT_S,
            tail_check_s=TAIL_CHECK_S,
            reports_s=0,
        ),
    )
    of_nodes = {
        operation: rate_s * took_s
        for operation, rate_s in told.operations.items()
        if operation not in ("lambda.Invoke", "sns.PublishBatch")
    }
    assert counted.keys() == of_nodes.keys(), "calls that the formula does not know"
    for operation, expected in of_nodes.items():
        assert counted[operation] == pytest.approx(expected, rel=PART, abs=CALLS), (
            operation,
            took_s,
            of_nodes,
            counted,
        )
