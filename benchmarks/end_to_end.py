"""Measures how long a publication takes from one instance to another, beside the bare AWS calls.

Two instances of `roomcast serve` against the embedded AWS with its Lambda, 20 publications a second
in one channel. *To another instance* is from the publisher's frame to the push at a subscriber of
the other one, *same instance* to that at a subscriber of its own.

The floor is the chain of calls that it takes: PutItem of such an item, the read of the stream, the
handler, its Publish, and ReceiveMessage by a long poll. They are made by the same client of AWS
(`roomcast.aws`), through the same table, stream and topic, into a queue of their own. Both take
turns.

    python -m benchmarks.end_to_end --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

import aioboto3
import aiohttp
import orjson

from benchmarks.aws_stub import REGION, TABLE_PREFIX
from benchmarks.figures import Figure
from benchmarks.rig import PATH, end_in_time, options_of, percentile
from benchmarks.serving import WAYS, Cloud, closed, node
from roomcast.aws.channel_table import DynamoChannelTable
from roomcast.aws.clients import AwsClients, connect
from roomcast.aws.queue import SqsInstanceQueue
from roomcast.dev.provision import DUMMY_CREDENTIALS
from roomcast.log.item import LogItem
from roomcast.system import SystemClock

__all__ = ["Times", "aws", "channel_table", "figures", "item_of_one", "measure", "measured"]

ROUNDS: Final = 5
ROUNDS_MAX: Final = 20
# Of each kind in a round.
PUBLICATIONS: Final = 150
PER_S: Final = 20.0
PAD: Final = "x" * 200
# What is aimed at: a ratio, and ms.
CHAIN_MAX: Final = 1.3
SAME_INSTANCE_MS: Final = 10.0
CHANNEL: Final = "bench"
_ANSWER_S: Final = 30.0
_START_S: Final = 180
_ROUND_S: Final = 60
_LIFE_MS: Final = 24 * 60 * 60 * 1000


@dataclass(slots=True)
class Times:
    """All times in ms. `put`, `chain`: of the bare calls. `same`, `other`: to a subscriber."""

    put: list[float] = field(default_factory=list)
    chain: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)


async def paced(count: int, publish: Any) -> None:
    """Calls `publish` with 0, 1, … at PER_S, whether or not the one before is done.

    The pauses are random: the reader of the stream looks at intervals as well, and otherwise all
    would come at the same point of one.
    """
    async with asyncio.TaskGroup() as publishing:
        for number in range(count):
            publishing.create_task(publish(number))
            await asyncio.sleep(random.uniform(0.5, 1.5) / PER_S)


# ---- the bare calls


@asynccontextmanager
async def aws(cloud: Cloud) -> AsyncIterator[AwsClients]:
    """The clients of AWS that an instance has."""
    session = aioboto3.Session(
        aws_access_key_id=DUMMY_CREDENTIALS.access_key_id,
        aws_secret_access_key=DUMMY_CREDENTIALS.secret_access_key,
    )
    async with connect(region=REGION, endpoint_url=cloud.endpoint, session=session) as clients:
        yield clients


def channel_table(clients: AwsClients) -> DynamoChannelTable:
    """The table that the instances write to."""
    return DynamoChannelTable(
        clients.log, f"{TABLE_PREFIX}channels", f"{TABLE_PREFIX}idempotency", SystemClock()
    )


def item_of_one(channel: str, offset: int) -> LogItem:
    """An item with one publication, as an instance writes it."""
    now_ms = time.time_ns() // 1_000_000
    return LogItem(
        channel=channel,
        offset=offset,
        last=offset,
        epoch="0.0123456789ab",
        pubs=json.dumps([{"data": {"text": PAD}, "time": now_ms}]),
        batch=secrets.token_hex(10),
        node="bare",
        ts=now_ms,
        expires_at=(now_ms + _LIFE_MS) // 1000,
    )


class Bare:
    """The chain of calls, without anything around them."""

    def __init__(self, clients: AwsClients, topic_arn: str) -> None:
        self._table = channel_table(clients)
        self.queue = SqsInstanceQueue(
            control=clients.sqs,
            poll=clients.sqs_poll,
            sns=clients.sns,
            topic_arn=topic_arn,
            tags=dict,
        )
        self._channel = f"bare-{secrets.token_hex(4)}"
        self._offset = 0
        self._sent_s: dict[int, float] = {}
        self._came = asyncio.Condition()

    async def receive(self, times: Times) -> None:
        """Receives and deletes until cancelled."""
        async with asyncio.TaskGroup() as deleting:
            while True:
                messages = await self.queue.receive()
                now_s = time.perf_counter()
                for message in messages:
                    for record in orjson.loads(message.body).get("records", ()):
                        if record["channel"] == self._channel:
                            sent_s = self._sent_s.pop(record["offset"], now_s)
                            times.chain.append((now_s - sent_s) * 1000)
                if messages:
                    receipts = [message.receipt for message in messages]
                    deleting.create_task(self.queue.delete(receipts))
                    async with self._came:
                        self._came.notify_all()

    async def publish(self, times: Times, count: int) -> None:
        async def put(_number: int) -> None:
            self._offset += 1
            item, offset = item_of_one(self._channel, self._offset), self._offset
            sent_s = self._sent_s[offset] = time.perf_counter()
            await self._table.put_item(item, item.expires_at * 1000)
            times.put.append((time.perf_counter() - sent_s) * 1000)

        await paced(count, put)
        async with self._came:
            await asyncio.wait_for(self._came.wait_for(lambda: not self._sent_s), _ANSWER_S)


# ---- the instances


class Client:
    """A WebSocket client of one instance."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._id = 0
        self.pushed = asyncio.Queue[tuple[int, float]]()

    async def say(self, method: str, params: object) -> None:
        self._id += 1
        await self._socket.send_str(json.dumps({"id": self._id, method: params}))

    async def read(self) -> None:
        """Reads until cancelled: what was pushed, and when it came."""
        async for message in self._socket:
            now_s = time.perf_counter()
            for line in message.data.split("\n"):
                reply = orjson.loads(line)
                if not reply:
                    await self._socket.send_str("{}")
                elif "error" in reply:
                    raise SystemExit(f"an instance answered {line}")
                elif "push" in reply:
                    self.pushed.put_nowait((reply["push"]["pub"]["data"]["number"], now_s))
        raise SystemExit(f"an instance closed a connection: {self._socket.close_code}")


class Instances:
    """A publisher and a subscriber on one instance, and a subscriber on the other."""

    def __init__(self, publisher: Client, same: Client, other: Client) -> None:
        self._publisher = publisher
        self._same = same
        self._other = other
        self._sent_s: list[float] = []

    async def publish(self, times: Times, count: int) -> None:
        sent_s: dict[int, float] = {}

        async def send(number: int) -> None:
            sent_s[number] = time.perf_counter()
            data = {"text": PAD, "number": number}
            await self._publisher.say("publish", {"channel": CHANNEL, "data": data})

        await paced(count, send)
        async with asyncio.timeout(_ANSWER_S):
            for client, found in ((self._same, times.same), (self._other, times.other)):
                for _ in range(count):
                    number, came_s = await client.pushed.get()
                    found.append((came_s - sent_s[number]) * 1000)


async def _instances(ports: Sequence[int], stack: AsyncExitStack) -> Instances:
    session = await stack.enter_async_context(aiohttp.ClientSession())
    clients: list[Client] = []
    for port in (ports[0], ports[0], ports[1]):
        url = f"http://127.0.0.1:{port}{PATH}"
        client = Client(await stack.enter_async_context(session.ws_connect(url)))
        await client.say("connect", {})
        if clients:
            await client.say("subscribe", {"channel": CHANNEL})
        clients.append(client)
    reading = await stack.enter_async_context(_Reading())
    for client in clients:
        reading.start(client.read())
    return Instances(*clients)


class _Reading:
    """Tasks that are cancelled at the end. An error of one is raised there."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    def start(self, reading: Any) -> None:
        self._tasks.append(asyncio.create_task(reading))

    async def __aexit__(self, *_about: object) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(
                outcome, asyncio.CancelledError
            ):
                raise outcome


# ---- results


async def _rounds(cloud: Cloud, ports: Sequence[int], rounds: int, count: int) -> Times:
    times = Times()
    async with AsyncExitStack() as stack:
        clients = await stack.enter_async_context(aws(cloud))
        bare = Bare(clients, cloud.topic_arn)
        await bare.queue.open(f"{TABLE_PREFIX}bare-{secrets.token_hex(4)}")
        stack.push_async_callback(bare.queue.close)
        reading = await stack.enter_async_context(_Reading())
        reading.start(bare.receive(times))
        instances = await _instances(ports, stack)
        # The first ones look for the end of the log.
        for part in (bare, instances):
            await part.publish(times, 5)
        for found in (times.put, times.chain, times.same, times.other):
            found.clear()
        for number in range(rounds):
            for part in (bare, instances)[:: -1 if number % 2 else 1]:
                await part.publish(times, count)
            sys.stderr.write(f"end_to_end: round {number + 1} of {rounds}\n")
    return times


def measured(rounds: int, publications: int = PUBLICATIONS) -> Times:
    """All times of all rounds."""
    with ExitStack() as stack:
        cloud = stack.enter_context(closed())
        ports = [stack.enter_context(node(cloud, WAYS["lean"])).port for _ in range(2)]
        return asyncio.run(_rounds(cloud, ports, rounds, publications))


def figures(times: Times, rounds: int) -> list[Figure]:
    """What is told of `times`."""
    return [
        Figure(
            "end to end, to another instance, p50",
            percentile(times.other, 0.5),
            percentile(times.chain, 0.5),
            "ms",
            "bare chain of calls, p50",
            CHAIN_MAX,
            rounds=rounds,
        ),
        Figure(
            "end to end, to another instance, p99",
            percentile(times.other, 0.99),
            percentile(times.chain, 0.99),
            "ms",
            "bare chain of calls, p99",
            rounds=rounds,
        ),
        Figure(
            "end to end, same instance, p99",
            percentile(times.same, 0.99),
            percentile(times.put, 0.99) + SAME_INSTANCE_MS,
            "ms",
            f"bare PutItem, p99, and {SAME_INSTANCE_MS:g} ms",
            1.0,
            rounds=rounds,
        ),
    ]


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: one round of fewer publications."""
    rounds, count = (2, 60) if short else (ROUNDS, PUBLICATIONS)
    return figures(measured(rounds, count), rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints ms, which depend on this machine, and ratios, which depend on it less."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = options_of(parser, arguments, ROUNDS, ROUNDS_MAX)
    end_in_time(_START_S + options.rounds * _ROUND_S)
    times = measured(options.rounds)
    found = figures(times, options.rounds)
    if options.json:
        rows = [asdict(figure) | {"ratio": figure.ratio} for figure in found]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for name, values in asdict(times).items():
        parts = "   ".join(
            f"p{part} {percentile(values, part / 100):7.1f}" for part in (50, 90, 99)
        )
        sys.stdout.write(f"{name:<8}{parts} ms   ({len(values)})\n")
    for figure in found:
        bound = "" if figure.bound is None else f"   at most {figure.bound:g}"
        sys.stdout.write(f"{figure.name} / {figure.floor_name}: {figure.ratio:.2f}{bound}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
