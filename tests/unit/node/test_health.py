"""What a node says of whether it can hear and store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from roomcast.backoff import Backoff
from roomcast.delivery.canary_rules import Hearing
from roomcast.delivery.deleter import FAILURES_TOLD
from roomcast.delivery.greetings import Greetings
from roomcast.node.health import Health
from roomcast.ports import Rejected, UnknownOutcome
from tests.unit.worlds import Fleet, until


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def queue(**changes: Any) -> Any:
    """What the poller knows."""
    return SimpleNamespace(**({"is_gone": False, "failures": 0, "undeleted": ""} | changes))


def unheard(what: str) -> Any:
    """What is known of the topic shards."""
    return SimpleNamespace(trouble=lambda: what)


def test_a_node_that_hears_and_listens_is_ready() -> None:
    health = Health(listening=True)
    assert (health.reasons(), health.doubts()) == ([], [])


@pytest.mark.parametrize(
    "health, word",
    [
        (Health(), "starting"),
        (Health(listening=True, draining=True), "draining"),
        (Health(listening=True, queue=queue(is_gone=True)), "deaf"),
    ],
)
def test_what_makes_a_node_unready_is_said(health: Health, word: str) -> None:
    [reason] = health.reasons()
    assert reason.startswith(word)
    assert health.doubts() == []


def test_what_is_not_proved_makes_it_degraded_only() -> None:
    health = Health(listening=True, greetings=Greetings())
    assert health.reasons() == []
    assert len(health.doubts()) == 1


def test_keys_that_could_not_be_fetched_make_it_degraded_only() -> None:
    health = Health(listening=True, keys=SimpleNamespace(usable=False))
    assert health.reasons() == []
    [doubt] = health.doubts()
    assert "client.token.jwks_public_endpoint" in doubt


def test_messages_that_cannot_be_deleted_make_it_degraded_only() -> None:
    health = Health(listening=True, queue=queue(undeleted="no permission"))
    assert health.reasons() == []
    assert health.doubts() == ["messages cannot be deleted: no permission"]


def test_a_table_that_fails_makes_it_degraded_only() -> None:
    """Perhaps it fails everybody: then no other node would serve its clients better."""
    table = SimpleNamespace(trouble=lambda: "3 reads and 2 writes")
    lease = SimpleNamespace(failures=2)
    health = Health(listening=True, table=table, lease=lease)
    assert health.reasons() == []
    assert health.doubts() == [
        "the channels table fails: 3 reads and 2 writes in a row",
        "the nodes table fails: 2 heartbeats in a row",
    ]
    lease.failures = 1
    table.trouble = str
    assert health.doubts() == []


def test_topic_shards_that_are_not_heard_make_it_degraded_only() -> None:
    health = Health(listening=True, shards=unheard("topic shards that are not heard: 3"))
    assert health.reasons() == []
    assert health.doubts() == [
        "topic shards that are not heard: 3: their channels are read from the log"
    ]
    health.shards = unheard("")
    assert health.doubts() == []


def test_a_node_that_alone_is_cut_off_is_not_ready() -> None:
    health = Health(listening=True, isolation=SimpleNamespace(is_cut_off=lambda: True))
    [reason] = health.reasons()
    assert reason.startswith("cut off")


def test_what_is_late_is_said_when_canaries_are_not_missed_yet() -> None:
    canary = SimpleNamespace(hearing=Hearing.SILENT, latency=None, silence_s=12.0, late_s=11.0)
    [doubt] = Health(listening=True, canary=canary).doubts()
    assert doubt.startswith("what was written 11 s ago has not come")


@pytest.mark.parametrize(
    "hearing, reasons, doubts", [(Hearing.WELL, 0, 0), (Hearing.SILENT, 0, 1), (Hearing.DEAF, 1, 0)]
)
def test_what_the_canary_knows_is_said(hearing: Hearing, reasons: int, doubts: int) -> None:
    """A silent pipeline is no reason to end a node, or all would end."""
    health = Health(
        listening=True,
        canary=SimpleNamespace(hearing=hearing, latency=None, silence_s=80.0, late_s=0.0),
    )
    assert (len(health.reasons()), len(health.doubts())) == (reasons, doubts)


async def test_health_tells_of_undeleted_messages(fleet: Fleet) -> None:
    node = fleet.node()
    async with node.running():
        for _ in range(FAILURES_TOLD):
            fleet.world.fail_next("delete", Rejected("no permission"))
            before = fleet.traffic.calls["delete"]
            fleet.world.send("{}")
            await until(lambda before=before: fleet.traffic.calls["delete"] > before)  # type: ignore[misc]
        await until(node.assembly.node.health.doubts)
        assert node.assembly.node.health.doubts() == ["messages cannot be deleted: no permission"]


async def test_health_follows_the_table(fleet: Fleet) -> None:
    node = fleet.node()
    async with node.running():
        client = await node.client()
        fleet.world.fail_next("newest", Rejected("denied"), times=3)
        for _ in range(3):
            assert await client.subscribe("room") == 100
            fleet.clock.advance(1)
        [doubt] = node.assembly.node.health.doubts()
        assert doubt == "the channels table fails: 3 reads in a row"
        assert node.assembly.node.health.reasons() == []
        assert isinstance(await client.subscribe("room"), dict)
        assert node.assembly.node.health.doubts() == []


async def test_health_follows_the_queue(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roomcast.delivery.poller._BACKOFF", Backoff(0.0, 0.0))
    node = fleet.node()
    health = node.assembly.node.health
    assert health.doubts(), "nothing was heard yet"
    async with node.running():
        assert (health.reasons(), health.doubts()) == ([], [])
        fleet.world.fail_next("open", UnknownOutcome(), times=20)
        fleet.world.delete_queue(node.queue_names[-1])
        await until(health.reasons)
        assert health.reasons()[0].startswith("deaf")
        await until(lambda: not health.reasons() and not health.doubts())
