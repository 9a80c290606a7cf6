"""The doctor: what a node needs is there, or the check says what is not;
and nothing of it is left.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from roomcast.cli import doctor_checks as doctor_module
from roomcast.cli.doctor_checks import CHANNEL_WRITE_UNITS_S, Check, Doctor
from roomcast.config import AwsConfig, Config
from roomcast.delivery import shard_keeper as keeper_module
from roomcast.delivery.canary_rules import CANARY_CHANNEL
from roomcast.delivery.envelope import checked_pubs, pack, record_text
from roomcast.delivery.shards import homes
from roomcast.fleet.lease_record import Lease
from roomcast.log.item import LogItem
from roomcast.node.assembly import Ports
from roomcast.ports import Rejected
from roomcast.testing.memory import (
    MemoryChannelTable,
    MemoryLeases,
    MemoryPresence,
    MemoryQueue,
    MemoryTopic,
)
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.worlds import POLL_WAIT_S, Fleet, Ids, config, no_jitter

TABLES: Final = (
    "table roomcast-channels", "table roomcast-idempotency",
    "table roomcast-presence", "table roomcast-nodes",
)  # fmt: skip
LATER: Final = ("queue", "topic to queue", "node to queue", "table to queue", "clean-up")
CEILING: Final = "ceiling of a channel"
SCALING: Final = Path(__file__).parents[3] / "docs" / "scaling.md"


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.told: list[Check] = []

    async def run(self, configured: Config | None = None) -> dict[str, Check]:
        world = self.fleet.world
        ports = Ports(
            table=MemoryChannelTable(world, self.fleet.clock),
            presence=MemoryPresence(world),
            leases=MemoryLeases(world),
            queue=MemoryQueue(world, POLL_WAIT_S),
            topic=MemoryTopic(world),
            clock=self.fleet.clock,
            new_id=Ids("doctor"),
            random=no_jitter,
        )
        checks = await Doctor(
            configured or config(), ports, node="doctor-1", tell=self.told.append
        ).run()
        assert self.told == checks, "each is told when it is done"
        assert not world.queues
        assert not world.subscriptions
        assert "doctor-1" not in world.leases
        assert not world.presence
        return {check.name: check for check in checks}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(doctor_module, "PIPELINE_S", 1.0)
    return World()


def outcomes(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.outcome for name, check in checks.items()}


async def test_all_is_well(world: World) -> None:
    world.fleet.stream_to_topic()
    checks = await world.run()
    assert outcomes(checks) == dict.fromkeys((*TABLES, *LATER), "ok") | {CEILING: "note"}


@pytest.mark.parametrize("kib, largest", [(1, 500), (64, 15), (96, 10)])
async def test_it_says_what_a_channel_takes(world: World, kib: int, largest: int) -> None:
    world.fleet.stream_to_topic()
    checks = await world.run(config(message_size_limit=kib * 1024))
    told = checks[CEILING].told
    assert f"about {CHANNEL_WRITE_UNITS_S:,} write units" in told
    assert f"some {largest} publications as large as client.message_size_limit" in told


async def test_without_history_no_log_can_be_at_its_ceiling(world: World) -> None:
    world.fleet.stream_to_topic()
    checks = await world.run(config(rules=ChannelRules()))
    assert checks[CEILING].told.startswith("no channel has history in this configuration")
    world.told.clear()
    one = ChannelRules(namespaces={"room": ChannelOptions(history_size=10, history_ttl_s=60)})
    checks = await world.run(config(rules=one))
    assert "write units" in checks[CEILING].told


def test_the_page_that_it_names_says_the_same() -> None:
    text = SCALING.read_text(encoding="utf-8")
    assert re.findall(r"\*\*([\d,]+)\s+write\s+units\s+a\s+second\*\*", text) == [
        f"{CHANNEL_WRITE_UNITS_S:,}"
    ]


async def test_it_emits_behind_what_others_emitted(world: World) -> None:
    world.fleet.stream_to_topic()
    await world.run()
    world.told.clear()
    checks = await world.run()
    assert checks["table to queue"].outcome == "ok"
    assert len(world.fleet.world.items[CANARY_CHANNEL]) == 2


async def test_a_pipeline_that_is_broken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "PIPELINE_S", 0.05)
    checks = await world.run()
    assert checks["topic to queue"].outcome == "ok"
    assert checks["table to queue"].outcome == "failed"
    assert "event source mapping" in checks["table to queue"].told


@pytest.mark.parametrize(
    "call, failed, skipped",
    [
        ("head", TABLES[0], {"table to queue"}),
        ("add", TABLES[2], set()),
        ("members", TABLES[2], set()),
        ("all", TABLES[3], set(LATER)),
        ("put", "queue", {"topic to queue", "node to queue", "table to queue"}),
        ("open", "queue", {"topic to queue", "node to queue", "table to queue"}),
        ("post", "node to queue", set()),
        ("publish", "topic to queue", set()),
        ("put_item", "table to queue", set()),
    ],
)
async def test_what_is_refused_is_named(
    world: World, call: str, failed: str, skipped: set[str]
) -> None:
    world.fleet.stream_to_topic()
    world.fleet.world.fail_next(call, Rejected("AccessDenied: no permission"))
    checks = await world.run()
    assert checks[failed].outcome == "failed"
    if call != "publish":
        assert "no permission" in checks[failed].told
    assert {name for name, check in checks.items() if check.outcome == "skipped"} == skipped
    assert sum(check.outcome == "failed" for check in checks.values()) == 1


async def test_a_permission_that_is_missing_is_named_with_its_resource(world: World) -> None:
    world.fleet.stream_to_topic()
    who, table = "arn:aws:sts::123456789012:assumed-role/node/i-1", "arn:aws:dynamodb:r:1:table/t"
    told = (
        "An error occurred (AccessDeniedException) when calling the PutItem operation: User: "
        f"{who} is not authorized to perform: dynamodb:PutItem on resource: {table} because no "
        "identity-based policy allows the dynamodb:PutItem action"
    )
    refused = Rejected(told[:120])
    # As the adapter maps it: its own text is cut.
    refused.__cause__ = ValueError(told)
    world.fleet.world.fail_next("put_item", refused)
    checks = await world.run()
    assert checks["table to queue"].outcome == "failed"
    assert f"allow dynamodb:PutItem on {table} to {who}" in checks["table to queue"].ask


async def test_clocks_that_do_not_agree_are_pointed_out(world: World) -> None:
    world.fleet.stream_to_topic()
    later = world.fleet.clock.now_ms() + 120_000
    world.fleet.world.leases["ahead"] = Lease("ahead", "q", "live", later, later, later + 60_000)
    checks = await world.run()
    assert checks[TABLES[3]].outcome == "warning"
    assert "clock is 120 s ahead" in checks[TABLES[3]].told


async def test_dead_nodes_are_pointed_out(world: World) -> None:
    world.fleet.stream_to_topic()
    now = world.fleet.clock.now_ms()
    world.fleet.world.leases["dead"] = Lease("dead", "q", "live", now - 200, now - 200, now - 100)
    world.fleet.world.leases["live"] = Lease("live", "q", "live", now, now, now + 60_000)
    checks = await world.run()
    assert checks[TABLES[3]].outcome == "warning"
    assert "1 live node, 1 dead" in checks[TABLES[3]].told
    assert set(world.fleet.world.leases) == {"dead", "live"}


# ---- topic shards


def broadcast(world: World, shards: int) -> None:
    """The Lambda, which goes by `shards` topic shards."""

    def published(item: LogItem) -> None:
        for home in homes(item.channel, shards):
            text = record_text(item, checked_pubs(item))
            for body, _ in pack([text], shards=shards, shard=home):
                world.fleet.world.send(body, home)

    world.fleet.world.on_insert.append(published)


def sharded(shards: int = 4) -> Config:
    return replace(config(), aws=AwsConfig(topic_shards=shards))


async def test_each_topic_shard_is_tried_out(world: World) -> None:
    broadcast(world, 4)
    checks = await world.run(sharded())
    later = ("topic shards", "table to topic shards")
    assert outcomes(checks) == dict.fromkeys((*TABLES, *LATER, *later), "ok") | {CEILING: "note"}
    assert list(checks)[-5:-2] == ["topic shards", "table to queue", "table to topic shards"]
    assert not any(world.fleet.world.subscribers(shard) for shard in range(4))


async def test_a_topic_shard_that_may_not_be_subscribed_is_named(world: World) -> None:
    broadcast(world, 4)
    world.fleet.world.fail_next("subscribe", Rejected("AccessDenied: no permission"))
    checks = await world.run(sharded())
    assert checks["topic shards"].outcome == "failed"
    assert "no permission" in checks["topic shards"].told
    assert checks["table to topic shards"].outcome == "skipped"


@pytest.mark.parametrize("shards, outcome", [(1, "warning"), (8, "failed")])
async def test_a_lambda_that_goes_by_another_number_is_pointed_out(
    world: World, shards: int, outcome: str
) -> None:
    broadcast(world, shards)
    checks = await world.run(sharded())
    assert checks["table to topic shards"].outcome == outcome
    assert "the stream Lambda publishes to" in checks["table to topic shards"].told


async def test_a_topic_shard_that_the_lambda_does_not_publish_to_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "PIPELINE_S", 0.05)
    send = world.fleet.world.send

    def all_but_2(body: str, shard: int | None = None) -> None:
        if shard != 2 or "signals" in body:
            send(body, shard)

    monkeypatch.setattr(world.fleet.world, "send", all_but_2)
    broadcast(world, 4)
    checks = await world.run(sharded())
    assert checks["table to topic shards"].outcome == "failed"
    assert "did not come through topic shards [2]" in checks["table to topic shards"].told


async def test_a_message_that_does_not_come_back_through_a_topic_shard_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "GREETING_WAIT_S", 0.01)
    broadcast(world, 4)
    subscribe = world.fleet.world.subscribe

    def all_but_3(name: str, shard: int | None = None) -> None:
        if shard != 3:
            subscribe(name, shard)

    monkeypatch.setattr(world.fleet.world, "subscribe", all_but_3)
    checks = await world.run(sharded())
    assert checks["topic shards"].told == "no message came back through topic shards 3 of 4"
