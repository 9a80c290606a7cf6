"""The two worlds that the contract suite runs on: memory,
and the real adapters against the embedded AWS.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import aioboto3

from roomcast.aws.calls import Calls
from roomcast.aws.channel_table import DynamoChannelTable
from roomcast.aws.clients import AwsClients, connect
from roomcast.aws.estate import SqsEstate
from roomcast.aws.leases import DynamoLeases
from roomcast.aws.presence import DynamoPresence
from roomcast.aws.queue import SqsInstanceQueue
from roomcast.aws.schema import (
    channels_table,
    idempotency_table,
    nodes_table,
    presence_table,
    table_schemas,
)
from roomcast.aws.topic import SnsTopic
from roomcast.delivery.ports import NodeQueue, NodeTopics
from roomcast.delivery.shards import topic_of
from roomcast.fleet.deployment import Deployment
from roomcast.fleet.ports import Leases
from roomcast.log.ports import ChannelTable
from roomcast.presence.ports import Presence
from roomcast.reaper.ports import Estate
from roomcast.testing.memory import (
    TOPIC_ARN,
    ManualClock,
    MemoryChannelTable,
    MemoryEstate,
    MemoryLeases,
    MemoryPresence,
    MemoryQueue,
    MemoryTopic,
    MemoryWorld,
)

ROOT: Final = Path(__file__).parents[2]
REGION: Final = "eu-west-1"
EMULATOR_START_S: Final = 30
EMULATOR_STOP_S: Final = 10
# Shared by all tests: the SDK reads its service models once a session.
SESSION: Final = aioboto3.Session(
    aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
)
# A long poll of these tests; SQS counts in whole seconds.
WAIT_S: Final = 1
# Of each channel, where a test asks for it.
PRESENCE_SHARDS: Final = 4
TAGS: Final = {"app": "roomcast", "node": "test"}
MEMORY_DEPLOYMENT: Final = Deployment(TOPIC_ARN, "queue")


class OpenQueue(NodeQueue, Protocol):
    """What the two queues offer beside the port."""

    @property
    def queue_url(self) -> str | None: ...

    @property
    def subscription_arn(self) -> str | None: ...


class Backend(Protocol):
    """One world, empty at the start of a test; several nodes may share it."""

    clock: ManualClock

    def table(self) -> ChannelTable: ...

    def presence(self, shards: int | None = None) -> Presence:
        """`shards`: presence shards; None = as many as the backend has."""

    def leases(self) -> Leases: ...

    def queue(self) -> OpenQueue: ...

    def topic(self) -> NodeTopics: ...

    async def make_topic_shard(self, shard: int) -> None:
        """Make its topic."""

    def estate(self, shards: int = 1) -> Estate: ...

    @property
    def deployment(self) -> Deployment:
        """Whose prefix `queue_name` begins with."""

    def queue_name(self) -> str:
        """A name that no other test uses."""

    async def delete_queue(self, name: str) -> None:
        """Somebody else deletes a queue."""

    async def create_queue(self, name: str) -> None:
        """Somebody else makes a queue."""


class MemoryBackend:
    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.clock = ManualClock()
        self.world.now_ms = self.clock.now_ms

    def table(self) -> ChannelTable:
        return MemoryChannelTable(self.world, self.clock)

    def presence(self, shards: int | None = None) -> Presence:
        return MemoryPresence(self.world)

    def leases(self) -> Leases:
        return MemoryLeases(self.world)

    def queue(self) -> OpenQueue:
        return MemoryQueue(self.world, wait_s=0.05, clock=self.clock, tags=lambda: TAGS)

    def topic(self) -> NodeTopics:
        return MemoryTopic(self.world)

    async def make_topic_shard(self, shard: int) -> None:
        """All of them are there."""

    def estate(self, shards: int = 1) -> Estate:
        return MemoryEstate(self.world, replace(MEMORY_DEPLOYMENT, shards=shards))

    @property
    def deployment(self) -> Deployment:
        return MEMORY_DEPLOYMENT

    def queue_name(self) -> str:
        return "queue"

    async def delete_queue(self, name: str) -> None:
        self.world.delete_queue(name)

    async def create_queue(self, name: str) -> None:
        self.world.create_queue(name, self.clock.now_ms())


@dataclass(slots=True)
class AwsBackend:
    clients: AwsClients
    prefix: str
    topic_arn: str
    clock: ManualClock
    presence_shards: int = 1

    def table(self) -> ChannelTable:
        names = channels_table(self.prefix), idempotency_table(self.prefix)
        return DynamoChannelTable(self.clients.log, *names, self.clock)

    def presence(self, shards: int | None = None) -> Presence:
        return DynamoPresence(
            self.clients.tables,
            presence_table(self.prefix),
            shards=lambda _channel: shards or self.presence_shards,
        )

    def leases(self) -> Leases:
        return DynamoLeases(self.clients.tables, nodes_table(self.prefix))

    def queue(self) -> OpenQueue:
        async def no_wait(_: float) -> None:
            """The emulator's queues are there at once."""

        return SqsInstanceQueue(
            control=self.clients.sqs,
            poll=self.clients.sqs_poll,
            sns=self.clients.sns,
            topic_arn=self.topic_arn,
            tags=lambda: TAGS,
            wait_s=WAIT_S,
            sleep=no_wait,
        )

    def topic(self) -> NodeTopics:
        return SnsTopic(self.clients.sns, self.topic_arn)

    async def make_topic_shard(self, shard: int) -> None:
        name = topic_of(self.topic_arn, shard).rpartition(":")[2]
        await self.clients.sns.create_topic(Name=name)

    def estate(self, shards: int = 1) -> Estate:
        deployment = replace(self.deployment, shards=shards)
        return SqsEstate(self.clients.sqs, self.clients.sns, deployment)

    @property
    def deployment(self) -> Deployment:
        return Deployment(self.topic_arn, self.prefix)

    def queue_name(self) -> str:
        return f"{self.prefix}queue"

    async def delete_queue(self, name: str) -> None:
        url = (await self.clients.sqs.get_queue_url(QueueName=name))["QueueUrl"]
        await self.clients.sqs.delete_queue(QueueUrl=url)

    async def create_queue(self, name: str) -> None:
        await self.clients.sqs.create_queue(QueueName=name)


@contextmanager
def emulator(module: str = "roomcast.dev.emulator") -> Iterator[str]:
    """The embedded AWS in a process of its own, which also ends when this one does;
    its endpoint. `module` runs it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--region", REGION],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    # Ends the read below if nothing is ever said.
    deadline = threading.Timer(EMULATOR_START_S, process.kill)
    deadline.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the emulator did not start"
        deadline.cancel()
        yield json.loads(line)["endpoint"]
    finally:
        deadline.cancel()
        process.terminate()
        try:
            process.communicate(timeout=EMULATOR_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


@asynccontextmanager
async def aws_backend(
    endpoint_url: str, prefix: str, calls: Calls | None = None, *, lean: bool = True
) -> AsyncIterator[AwsBackend]:
    """Clients, and tables and a topic of their own for one test. `calls` is told of every call."""
    async with connect(
        region=REGION, endpoint_url=endpoint_url, session=SESSION, calls=calls, lean=lean
    ) as clients:
        for schema in table_schemas(prefix):
            await clients.tables.create_table(**schema.create)
        topic: dict[str, Any] = await clients.sns.create_topic(Name=f"{prefix}topic")
        yield AwsBackend(clients, prefix, topic["TopicArn"], ManualClock())
