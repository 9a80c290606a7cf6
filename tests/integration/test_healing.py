"""I5: a node that cannot hear notices within a bound, says so, heals itself,
and its subscribers miss nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import aiohttp
import centrifuge
import pytest

from tests.acceptance.peers import Peer, PyPeer, Refused
from tests.acceptance.roomcast import Aws, Dev, emulator
from tests.chaos.proxy import FaultProxy, Phase

CANARY_S: Final = 1
PROBE_S: Final = 1
# The canary's turn comes once an interval, at a random time;
# 2.5 intervals of silence make it doubt.
NOTICE_S: Final = 4 * CANARY_S + PROBE_S
# A long poll of SQS ends first, then a new queue is there after 1.5 s, and is proved.
POLL_S: Final = 20
HEAL_S: Final = POLL_S + 10
# On a machine that does much else.
SLACK_S: Final = 15
# What a node says of itself has no event.
LOOK_S: Final = 0.05

# The look at the log's end is far away: it would find what the healing under test does not.
CONFIG: Final = f"""
[client]
insecure = true
[channel.without_namespace]
history_size = 1000
history_ttl = "300s"
force_recovery = true
[node]
drain_s = 0
lease_ttl_s = 5
heartbeat_s = 0.5
canary_interval_s = {CANARY_S}
queue_probe_s = {PROBE_S}
tail_check_s = 3600
"""

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True, slots=True)
class Place:
    """Two nodes, and the AWS behind them."""

    dev: Dev
    aws: Aws

    def queues_of(self, index: int) -> list[str]:
        return [url for url in self.aws.queues() if self.dev.nodes[index] in url]

    def subscriptions_of(self, index: int) -> list[dict[str, str]]:
        return [
            each for each in self.aws.subscriptions() if self.dev.nodes[index] in each["Endpoint"]
        ]

    async def said(self, index: int) -> dict[str, Any]:
        """What a node says of itself now."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.dev.urls[index]}/health/ready") as response,
        ):
            body: dict[str, Any] = json.loads(await response.read())
            assert response.status == (503 if body["status"] == "unready" else 200)
            return body

    async def until(
        self, index: int, within_s: float, wanted: Callable[[dict[str, Any]], bool]
    ) -> float:
        """Wait until a node says what is wanted; how long that took."""
        since_s = time.monotonic()
        said = await self.said(index)
        while not wanted(said):
            assert time.monotonic() - since_s < within_s + SLACK_S, f"{said}\n{self.dev.report}"
            await asyncio.sleep(LOOK_S)
            said = await self.said(index)
        return time.monotonic() - since_s


def is_ok(said: dict[str, Any]) -> bool:
    return bool(said["status"] == "ok")


def is_not_ok(said: dict[str, Any]) -> bool:
    return not is_ok(said)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("healing") / "healing.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture
def place(config: Path) -> Iterator[Place]:
    """Of each test alone: a node rebuilds a queue that does not hear once a minute at most."""
    dev = Dev("--config", str(config))
    try:
        dev.until_ready()
        aws = Aws(dev.aws_endpoint)
        yield Place(dev, aws)
        dev.stop()
        assert "Traceback" not in dev.stderr, dev.stderr
        aws.close()
    finally:
        dev.close()


@pytest.fixture
async def peers() -> AsyncIterator[Callable[[str], Awaitable[Peer]]]:
    opened: list[Peer] = []

    async def connected(url: str) -> Peer:
        peer = PyPeer(url)
        opened.append(peer)
        await peer.connect()
        return peer

    yield connected
    for peer in opened:
        await peer.close()


async def publish(peer: Peer, *data: str) -> None:
    for each in data:
        await peer.publish("news", each)


async def until_received(peer: Peer, last: str, within_s: float) -> list[Any]:
    """All that came, as soon as `last` did. Offsets must be without hole and repeat."""
    give_up_s = time.monotonic() + within_s + SLACK_S
    while not any(data == last for _, data in peer.received("news")):
        assert time.monotonic() < give_up_s, f"{last} did not come: {peer.received('news')}"
        await asyncio.sleep(LOOK_S)
    received = peer.received("news")
    assert [offset for offset, _ in received] == list(range(1, len(received) + 1))
    return [data for _, data in received]


async def test_a_deleted_queue_is_rebuilt(
    place: Place, peers: Callable[[str], Awaitable[Peer]]
) -> None:
    writer, reader = [await peers(url) for url in place.dev.ws_urls]
    await reader.subscribe("news")
    await publish(writer, "before")
    await until_received(reader, "before", 0)

    [queue] = place.queues_of(1)
    [subscription] = place.subscriptions_of(1)
    place.aws.sqs.delete_queue(QueueUrl=queue)
    await publish(writer, "meanwhile 1", "meanwhile 2")
    # The canaries that do not come make it read the log, long before the long poll has ended.
    received = await until_received(reader, "meanwhile 2", NOTICE_S)
    assert received == ["before", "meanwhile 1", "meanwhile 2"]

    place.dev.until_said("queue_rebuilt")
    await place.until(1, HEAL_S, is_ok)
    [rebuilt] = place.queues_of(1)
    assert rebuilt != queue
    [subscribed] = place.subscriptions_of(1)
    assert subscribed["SubscriptionArn"] != subscription["SubscriptionArn"]
    await publish(writer, "after")
    assert await until_received(reader, "after", 0) == [*received, "after"]
    assert is_ok(await place.said(0)), "the other node has nothing to do with it"


async def test_a_subscription_that_is_gone_is_noticed(
    place: Place, peers: Callable[[str], Awaitable[Peer]]
) -> None:
    writer, reader = [await peers(url) for url in place.dev.ws_urls]
    await reader.subscribe("news")
    await publish(writer, "before")
    await until_received(reader, "before", 0)
    await place.until(1, NOTICE_S, lambda said: is_ok(said) and said["pipeline_ms"] is not None)

    [subscription] = place.subscriptions_of(1)
    place.aws.sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])
    await publish(writer, "meanwhile")
    noticing = asyncio.create_task(place.until(1, NOTICE_S, is_not_ok))
    assert await until_received(reader, "meanwhile", NOTICE_S) == ["before", "meanwhile"]
    assert await noticing > CANARY_S
    missed = json.loads(place.dev.until_said("canary_missed"))
    assert missed["level"] == "error"
    assert missed["hearing"] in ("deaf", "silent")

    await publish(writer, "while deaf")
    assert (await until_received(reader, "while deaf", NOTICE_S))[2:] == ["while deaf"]
    await place.until(1, HEAL_S, is_ok)
    place.dev.until_said("canary_heard_again")
    [subscribed] = place.subscriptions_of(1)
    assert subscribed["Endpoint"] != subscription["Endpoint"]
    await publish(writer, "after")
    assert (await until_received(reader, "after", 0))[3:] == ["after"]
    assert is_ok(await place.said(0)), "the other node has nothing to do with it"


@asynccontextmanager
async def behind_a_proxy(config: Path) -> AsyncIterator[tuple[Place, FaultProxy]]:
    """What blocks, in threads: the proxy is a task of ours."""
    with emulator() as endpoint:
        aws = Aws(endpoint)
        async with FaultProxy(endpoint, Random(1)) as proxy:
            dev = Dev("--config", str(config), "--aws-endpoint", proxy.url)
            try:
                await asyncio.to_thread(dev.until_ready)
                yield Place(dev, aws), proxy
                await asyncio.to_thread(dev.stop)
                assert "Traceback" not in dev.stderr, dev.stderr
            finally:
                await asyncio.to_thread(dev.close)
        aws.close()


async def test_an_outage_of_aws_is_survived(
    config: Path, peers: Callable[[str], Awaitable[Peer]]
) -> None:
    async with behind_a_proxy(config) as (place, proxy):
        writer, reader = [await peers(url) for url in place.dev.ws_urls]
        await reader.subscribe("news")
        await publish(writer, "before")
        await until_received(reader, "before", 0)

        await proxy.enter(Phase("down", down=True, pump=True))
        # Nothing is acknowledged that is not in the log.
        with pytest.raises((Refused, centrifuge.CentrifugeError)):
            await publish(writer, "meanwhile")
        for index in (0, 1):
            await place.until(index, HEAL_S, lambda said: bool(said["status"] == "unready"))
        place.dev.until_said("poll_failed")
        await proxy.calm_down()

        # The longest back-off is 10 s; a queue that is being replaced has to be proved.
        for index in (0, 1):
            await place.until(index, HEAL_S, is_ok)
        await publish(writer, "after")
        received = await until_received(reader, "after", 0)
        # What was not acknowledged may have come about, once.
        assert received in (["before", "after"], ["before", "meanwhile", "after"])
        assert [event for event in reader.events if event["event"] == "unsubscribed"] == []
        # For the next messages nobody has to be told anything: both nodes hear again.
        await publish(reader, "the other way")
        assert (await until_received(reader, "the other way", 0))[-1] == "the other way"
        for peer in (writer, reader):
            await peer.close()
