"""Measures how much sooner a publication is at another instance with express hints.

Two instances of `roomcast serve` against the embedded AWS with its Lambda, behind a proxy that
makes calls take as long as AWS typically does (benchmarks/delays.py). One publishes now in a
channel with express hints and now in one without, a few times a second; a subscriber of the other
instance tells when it got them. So both are measured at the same time, through the same stream,
topic and queue.

    python -m benchmarks.express [--short]
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

import aiohttp
import orjson

from benchmarks.aws_stub import REGION, TABLE_PREFIX
from benchmarks.figures import Figure
from benchmarks.rig import PATH, percentile
from benchmarks.serving import WAYS, Cloud, Measured, child, emulator, node
from benchmarks.suite import run_alone
from roomcast.dev.provision import DUMMY_CREDENTIALS, provision

__all__ = ["EXPRESS", "PLAIN", "figures", "measure", "measured"]

PLAIN: Final = "bench"
EXPRESS: Final = "express:bench"
PUBLICATIONS: Final = 120
SHORT_PUBLICATIONS: Final = 30
# Slow enough that the stream is idle in between, as most streams of a chat are.
PER_S: Final = 2.0
PAD: Final = "x" * 200
# What is aimed at: a third of the time.
RATIO_MAX: Final = 1 / 3
_WARM: Final = 4
_ANSWER_S: Final = 30.0
_OPTIONS: Final = (
    WAYS["lean"]
    + """
[[channel.namespaces]]
name = "express"
history_size = 100
history_ttl = "300s"
express = true"""
)


@contextmanager
def cloud() -> Iterator[Cloud]:
    """The embedded AWS with its Lambda, behind the proxy."""
    pipe = subprocess.PIPE
    with (
        emulator() as upstream,
        child("-m", "benchmarks.delays", upstream, stdin=pipe, stdout=pipe) as proxy,
    ):
        assert proxy.stdout is not None
        endpoint = json.loads(proxy.stdout.readline())["endpoint"]
        made = provision(upstream, TABLE_PREFIX, region=REGION, credentials=DUMMY_CREDENTIALS)
        with child(
            *("-m", "benchmarks.delays", "--pump", "--endpoint", endpoint, "--region", REGION),
            *("--stream-arn", made.stream_arn, "--topic-arn", made.topic_arn),
            stdin=pipe,
        ):
            yield Cloud("delayed", endpoint, made.topic_arn, "")


class Client:
    """A WebSocket client that keeps when what came: by channel and number, in s."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._id = 0
        self.came = asyncio.Queue[tuple[str, int, float]]()
        self._subscribed = asyncio.Semaphore(0)

    async def subscribed(self, *channels: str) -> None:
        """Returns when it is: what is published from then on comes."""
        for channel in channels:
            await self.say("subscribe", {"channel": channel})
        async with asyncio.timeout(_ANSWER_S):
            for _ in channels:
                await self._subscribed.acquire()

    async def say(self, method: str, params: object) -> None:
        self._id += 1
        await self._socket.send_str(json.dumps({"id": self._id, method: params}))

    async def read(self) -> None:
        """Reads until cancelled."""
        async for message in self._socket:
            now_s = time.perf_counter()
            for line in message.data.split("\n"):
                reply: dict[str, Any] = orjson.loads(line)
                if not reply:
                    await self._socket.send_str("{}")
                elif "error" in reply:
                    raise SystemExit(f"an instance answered {line}")
                elif "subscribe" in reply:
                    self._subscribed.release()
                elif "push" in reply:
                    push = reply["push"]
                    number = push["pub"]["data"]["number"]
                    self.came.put_nowait((push["channel"], number, now_s))
        raise SystemExit(f"an instance closed a connection: {self._socket.close_code}")


async def _published(publisher: Client, subscriber: Client, count: int) -> dict[str, list[float]]:
    """Publishes `count` times, half of them in each channel. Returns the ms until they came."""
    sent_s: dict[int, float] = {}
    took_ms: dict[str, list[float]] = {PLAIN: [], EXPRESS: []}
    for number in range(count):
        channel = (PLAIN, EXPRESS)[number % 2]
        sent_s[number] = time.perf_counter()
        await publisher.say(
            "publish", {"channel": channel, "data": {"text": PAD, "number": number}}
        )
        # At random, as the stream is read at intervals.
        await asyncio.sleep(random.uniform(0.5, 1.5) / PER_S)
    async with asyncio.timeout(_ANSWER_S):
        for _ in range(count):
            channel, number, came_s = await subscriber.came.get()
            took_ms[channel].append((came_s - sent_s[number]) * 1000)
    return took_ms


async def _clients(nodes: list[Measured], publications: int) -> dict[str, list[float]]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        clients: list[Client] = []
        for measured_node in nodes:
            url = f"http://127.0.0.1:{measured_node.port}{PATH}"
            client = Client(await stack.enter_async_context(session.ws_connect(url)))
            await client.say("connect", {})
            clients.append(client)
        publisher, subscriber = clients
        reading = [asyncio.create_task(each.read()) for each in clients]
        try:
            await subscriber.subscribed(PLAIN, EXPRESS)
            # The first ones look for the ends of the logs, and the nodes count each other.
            took_ms: dict[str, list[float]] = {}
            for count in (_WARM, publications):
                publishing = asyncio.create_task(_published(publisher, subscriber, count))
                await asyncio.wait([publishing, *reading], return_when=asyncio.FIRST_COMPLETED)
                for each in reading:
                    if each.done():
                        publishing.cancel()
                        await each
                took_ms = await publishing
            return took_ms
        finally:
            for each in reading:
                each.cancel()
            await asyncio.gather(*reading, return_exceptions=True)


def measured(publications: int) -> dict[str, list[float]]:
    """The times in ms from a publisher's frame to the push at the other instance, by channel."""
    with cloud() as aws, node(aws, _OPTIONS) as writing, node(aws, _OPTIONS) as reading:
        return asyncio.run(_clients([writing, reading], publications))


def figures(took_ms: dict[str, list[float]]) -> list[Figure]:
    """What is told of the times."""
    return [
        Figure(
            f"express hint, to another instance, p{part}",
            percentile(took_ms[EXPRESS], part / 100),
            percentile(took_ms[PLAIN], part / 100),
            "ms",
            f"by the stream alone, p{part}",
            RATIO_MAX if part == 50 else None,
            rounds=len(took_ms[EXPRESS]),
        )
        for part in (50, 90)
    ]


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: fewer publications."""
    return figures(measured(SHORT_PUBLICATIONS if short else PUBLICATIONS))


if __name__ == "__main__":
    run_alone(measure)
