"""service/roomcast/setup/checks.py: what cannot be read is told, and the rest goes on.

What is wrong is in test_rules.py, and over the embedded AWS in
tests/integration/test_doctor_setup.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from roomcast.account.ports import NotAllowed
from roomcast.account.readings import Key
from roomcast.account.rules import Finding
from roomcast.config import AwsConfig, AwsSqsConfig, Config, ConsumerConfig
from roomcast.fleet.lease_record import Lease
from roomcast.ports import UnknownOutcome
from roomcast.setup.checks import NODES_MAX, SetupChecks, WantedTable
from roomcast.setup.readings import (
    Function,
    Queue,
    StreamMapping,
    Subscription,
    Table,
    Topic,
)
from roomcast.testing.memory import ManualClock, MemoryChannelTable, MemoryLeases, MemoryWorld

TOPIC: Final = "arn:aws:sns:eu-west-1:123456789012:chat"
QUEUE: Final = "arn:aws:sqs:eu-west-1:123456789012:q"


class Reader:
    """A SetupReader. `denied`, `broken`: calls that are refused, or not answered."""

    def __init__(self) -> None:
        self.denied: set[str] = set()
        self.broken: set[str] = set()
        self.calls: list[str] = []
        self.mapped: Sequence[StreamMapping] = [
            StreamMapping("u", "f", "Enabled", "", "OK", ["{}"], True)
        ]

    def _reads(self, name: str) -> None:
        self.calls.append(name)
        if name in self.denied:
            raise NotAllowed(f"some:{name}")
        if name in self.broken:
            raise UnknownOutcome("EndpointConnectionError: Could not connect")

    async def table(self, name: str) -> Table | None:
        self._reads("table")
        arn = f"arn:aws:dynamodb:eu-west-1:123456789012:table/{name}"
        if name == "t-presence":
            return Table(arn, "NEW_AND_OLD_IMAGES", "arn:stream", key="arn:key")
        return Table(arn, "NEW_IMAGE", "arn:stream", key="arn:key")

    async def expires_by(self, table: str) -> str:
        self._reads("expires_by")
        return "expires_at"

    async def mappings(self, stream_arn: str) -> Sequence[StreamMapping]:
        self._reads("mappings")
        return self.mapped

    async def function(self, name: str) -> Function:
        self._reads("function")
        return Function(name, TOPIC if name == "f" else "", "")

    async def topic(self, arn: str) -> Topic | None:
        self._reads("topic")
        return Topic(arn, "arn:key")

    async def subscription(self, arn: str) -> Subscription | None:
        self._reads("subscription")
        return Subscription(arn, TOPIC, QUEUE, True, "", False)

    async def queue(self, url: str) -> Queue | None:
        self._reads("queue")
        policy = '{"Statement":{"Effect":"Allow","Principal":"*","Action":"*"}}'
        # That of a consumer.
        return Queue(QUEUE, policy, "arn:its-key" if url == "u" else "")

    async def key(self, key: str) -> Key:
        self._reads("key")
        return Key(key, True, True, "{}", [])


class World:
    def __init__(self) -> None:
        self.reader = Reader()
        self.memory = MemoryWorld()
        self.clock = ManualClock()
        self.aws = AwsConfig(topic_arn=TOPIC)
        self.consumers: tuple[ConsumerConfig, ...] = ()
        self.events: tuple[str, ...] = ()
        self.lives("n1")

    def lives(self, node: str) -> None:
        now = self.clock.now_ms()
        self.memory.leases[node] = Lease(
            node, "q", "live", now, now, now + 60_000, queue_url="url", subscription_arn="s"
        )

    async def run(self) -> dict[str, Finding]:
        told: list[Finding] = []
        checks = SetupChecks(
            replace(
                Config(),
                aws=self.aws,
                consumers=self.consumers,
                client=replace(Config().client, events=self.events),
            ),
            self.reader,
            MemoryLeases(self.memory),
            MemoryChannelTable(self.memory, self.clock),
            self.clock,
            [
                WantedTable("t-channels", True, "expires_at"),
                WantedTable("t-nodes", False, ""),
                WantedTable("t-presence", False, "", has_events=True),
            ],
            told.append,
            region="eu-west-1",
            version="1",
            key_bytes_min=32,
        )
        assert await checks.run() == told
        return {each.name: each for each in told}


@pytest.fixture
def world() -> World:
    return World()


def needs_attention(found: dict[str, Finding]) -> dict[str, str]:
    return {
        name: each.outcome for name, each in found.items() if each.outcome not in ("ok", "note")
    }


async def test_all_is_well(world: World) -> None:
    found = await world.run()
    assert needs_attention(found) == {}
    assert "key of KMS: tables, topic" in found


@pytest.mark.parametrize(
    "call", ["table", "expires_by", "mappings", "function", "topic", "subscription", "queue", "key"]
)
async def test_what_may_not_be_read_is_told_with_its_permission_and_is_no_failure(
    world: World, call: str
) -> None:
    world.reader.denied = {call}
    found = await world.run()
    assert needs_attention(found) == {"rest of the set-up": "skipped"}
    assert f"some:{call}" in found["rest of the set-up"].told
    assert "releases" in found, "the rest goes on"


async def test_who_may_read_nothing_has_one_line_of_it(world: World) -> None:
    calls: Any = {"table", "topic", "queue"}
    world.reader.denied = calls
    found = await world.run()
    told = found["rest of the set-up"].told
    assert told == "could not be read, for want of some:queue, some:table, some:topic"


async def test_what_cannot_be_reached_is_told_and_is_no_failure(world: World) -> None:
    world.reader.broken = {"mappings", "key"}
    found = await world.run()
    assert needs_attention(found) == {
        "event source mapping": "skipped",
        "key of KMS: tables, topic": "skipped",
    }
    assert "no way to this service" in found["event source mapping"].ask


async def test_leases_that_cannot_be_read(world: World) -> None:
    world.memory.fail_next("all", UnknownOutcome("no answer in time"))
    found = await world.run()
    assert needs_attention(found) == {"releases": "skipped"}


async def test_an_emulator_needs_no_lambda(world: World) -> None:
    world.reader.mapped = []
    assert needs_attention(await world.run()) == {"event source mapping": "failed"}
    world.aws = replace(world.aws, endpoint_url="http://127.0.0.1:5000")
    assert (await world.run())["event source mapping"].outcome == "note"


async def test_the_events_lambda_is_looked_for_where_events_are_wanted(world: World) -> None:
    assert "events Lambda" not in await world.run()
    world.events = ("connected",)
    assert (await world.run())["events Lambda"].outcome == "ok"
    world.reader.mapped = []
    assert (await world.run())["events Lambda"].outcome == "failed"
    world.aws = replace(world.aws, endpoint_url="http://127.0.0.1:5000")
    assert (await world.run())["events Lambda"].outcome == "note"


async def test_the_events_lambda_is_not_taken_for_the_stream_lambda(world: World) -> None:
    marked = '{"dynamodb":{"NewImage":{"events":{"S":[{"exists":true}]}}}}'
    events = StreamMapping("e", "events", "Enabled", "", "OK", [marked], True)
    world.reader.mapped = [*world.reader.mapped, events]
    assert needs_attention(await world.run()) == {}


async def test_queues_of_consumers_that_are_enabled(world: World) -> None:
    def consumer(name: str, *, enabled: bool = True, region: str = "") -> ConsumerConfig:
        return ConsumerConfig(name, enabled, "aws_sqs", AwsSqsConfig(queues=("u",), region=region))

    world.consumers = (
        consumer("orders"),
        consumer("off", enabled=False),
        consumer("near", region="eu-west-1"),
        consumer("far", region="us-east-1"),
    )
    found = await world.run()
    assert needs_attention(found) == {"consumer orders": "warning", "consumer near": "warning"}
    assert found["consumer far"].outcome == "note"
    assert "consumer off" not in found
    assert "key of KMS: queues of consumers" in found


async def test_of_a_large_fleet_some_queues_are_looked_at(world: World) -> None:
    for number in range(2 * NODES_MAX):
        world.lives(f"m{number}")
    found = await world.run()
    assert found["queues of nodes"].told.startswith(f"{NODES_MAX}: ")
    assert world.reader.calls.count("queue") == NODES_MAX
