"""What nodes say of themselves when DynamoDB fails one of them, or all;
and when what they write does not come round.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Final

import aiohttp
import pytest

from roomcast.delivery.canary_rules import ROUND_S
from tests.chaos.proxy import Fault, FaultProxy, Phase
from tests.integration.serving import Aws, Process, deployed, pump
from tests.websocket import WebSocket

PREFIX: Final = "table-faults-"
LEASE_S: Final = 4.0
PROBE_S: Final = 1.0
# What a node says of itself has no event.
LOOK_S: Final = 0.1
# From a fault to a word about it: heartbeats twice a second,
# each of which may hang for as long as its retries.
TOLD_S: Final = 30.0
# A machine that does much else is late.
SLACK_S: Final = 15.0
DYNAMODB: Final = frozenset({"dynamodb"})
FAULTS: Final = (Fault.RESET_AFTER, Fault.THROTTLED, Fault.DENIED, Fault.SWALLOWED)

CONFIG: Final = f"""
[client]
insecure = true
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
[node]
drain_s = 0
lease_ttl_s = {LEASE_S}
heartbeat_s = 0.5
canary_interval_s = 1
queue_probe_s = {PROBE_S}
"""
# Canaries are so rare that only what was written tells soon.
RARE: Final = CONFIG.replace("canary_interval_s = 1", "canary_interval_s = 120")

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("table-faults"), PREFIX) as aws, pump(aws):
        yield aws


async def said(process: Process) -> dict[str, Any]:
    """What a node says of itself now."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{process.url}/health/ready") as response,
    ):
        body: dict[str, Any] = json.loads(await response.read())
        assert response.status == (503 if body["status"] == "unready" else 200)
        return body


async def until_said(process: Process, within_s: float, status: str, word: str = "") -> float:
    """Wait until a node says `status`, or one of several,
    and `word` among its reasons; how long that took.
    """
    since_s = time.monotonic()
    while True:
        body = await said(process)
        if body["status"] in status.split() and any(
            word in reason for reason in body["reasons"] or [""]
        ):
            return time.monotonic() - since_s
        assert time.monotonic() - since_s < within_s + SLACK_S, (body, process.log[-3000:])
        await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def nodes(aws: Aws, *endpoints: str, text: str = CONFIG) -> AsyncIterator[list[Process]]:
    """One node at each endpoint of AWS, started together and ended in order."""
    started = [
        Process(aws.config(f"node-{index}", text, endpoint_url=endpoint), "--port", "0")
        for index, endpoint in enumerate(endpoints)
    ]
    try:
        for process in started:
            await asyncio.to_thread(process.ready)
        yield started
        for process in started:
            process.signal()
        for process in started:
            assert await asyncio.to_thread(process.ended) == 0, process.log
            assert "Traceback" not in process.log, process.log
    finally:
        for process in started:
            await asyncio.to_thread(process.close)


async def subscribed(process: Process, channel: str) -> Any:
    """What a client is answered that subscribes: the result, or the code of an error."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{process.url}/connection/websocket") as response,
    ):
        client = WebSocket(response)
        await client.ask("connect")
        return await client.ask("subscribe", channel=channel)


async def test_a_node_that_alone_is_cut_off_from_the_table_is_not_ready(aws: Aws) -> None:
    async with (
        FaultProxy(aws.endpoint, Random(1)) as proxy,
        nodes(aws, proxy.url, aws.endpoint) as both,
    ):
        alone, other = both
        for process in both:
            await until_said(process, TOLD_S, "ok")
        for fault in FAULTS:
            await proxy.enter(Phase("no table", {fault: 1.0}, services=DYNAMODB))
            # Where calls hang, so short a lease ends before two of them have failed.
            await until_said(alone, TOLD_S, "degraded unready", "table fails")
            assert await subscribed(alone, f"room {fault}") == 100
            await until_said(alone, TOLD_S, "unready", "cut off")
            assert (await said(other))["status"] == "ok"
            await proxy.calm_down()
            await until_said(alone, TOLD_S, "ok")
            assert isinstance(await subscribed(alone, f"room {fault}"), dict)


async def test_a_fault_of_the_table_for_all_leaves_them_ready(aws: Aws) -> None:
    async with (
        FaultProxy(aws.endpoint, Random(1)) as proxy,
        nodes(aws, proxy.url, proxy.url) as both,
    ):
        for process in both:
            await until_said(process, TOLD_S, "ok")
        await proxy.enter(Phase("no table", {Fault.ERROR: 1.0}, services=DYNAMODB))
        for process in both:
            await until_said(process, TOLD_S, "degraded", "the nodes table fails")
        # Long after both leases have ended, and each has looked around for the other.
        since_s = time.monotonic()
        while time.monotonic() - since_s < 3 * LEASE_S:
            assert [(await said(process))["status"] for process in both] == ["degraded"] * 2
            await asyncio.sleep(LOOK_S)
        await proxy.calm_down()
        for process in both:
            await until_said(process, TOLD_S, "ok")


async def test_what_was_written_and_does_not_come_round_tells_of_a_lost_subscription(
    aws: Aws,
) -> None:
    async with (
        nodes(aws, aws.endpoint, text=RARE) as (process,),
        aiohttp.ClientSession() as session,
    ):
        await until_said(process, TOLD_S, "ok")
        client = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
        await client.ask("connect")
        assert await client.ask("publish", channel="room", data="heard") == {}
        sns, [before] = aws.client("sns"), aws.subscriptions_of(process.node)
        for each in sns.list_subscriptions_by_topic(TopicArn=aws.made.topic_arn)["Subscriptions"]:
            if each["Endpoint"] == before:
                sns.unsubscribe(SubscriptionArn=each["SubscriptionArn"])
        # It replaces the queue at once, and has none meanwhile. After that it is degraded only
        # until the new queue is proved, which may take less time than lies between two looks.
        is_told: Callable[[], bool] = asyncio.create_task(
            until_said(process, 1.5 * ROUND_S + 2 * PROBE_S, "degraded unready")
        ).done
        while not is_told():
            assert await client.ask("publish", channel="room", data="not heard") == {}
            await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(process.said, "queue_rebuilt")
        await client.ask("publish", channel="room", data="heard again")
        await until_said(process, TOLD_S, "ok")
        [after] = aws.subscriptions_of(process.node)
        assert after != before
