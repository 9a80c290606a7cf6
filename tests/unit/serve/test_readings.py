"""What a node tells CloudWatch, after each thing that it tells of has happened to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from roomcast.delivery.envelope import checked_pubs, pack, record_text
from roomcast.log.item import LogItem
from roomcast.observe.cloudwatch import Destination, Reporter
from roomcast.ports import Rejected, UnknownOutcome
from roomcast.serve.readings import counts_of, readings_of
from tests.emf import read_all
from tests.unit.worlds import Client, Fleet, LocalNode, until


class World:
    """A node, another one to publish, and what the first tells."""

    def __init__(self, fleet: Fleet, node: LocalNode) -> None:
        self.fleet = fleet
        self.node = node
        self.lines: list[bytes] = []
        self.reporter = Reporter(
            Destination("roomcast", "chat", "a", self.lines.append),
            fleet.clock,
            lambda: 0.5,
            readings_of(node.assembly),
            counts_of(node.assembly),
        )
        self.room: Client

    def told(self) -> dict[str, tuple[float, ...]]:
        """The values of one report."""
        self.lines.clear()
        self.reporter._report(self.reporter._readings.taken())
        return {each.name: each.values for each in read_all(self.lines)}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    fleet = Fleet()

    def stream(item: LogItem) -> None:
        [(body, _)] = pack([record_text(item, checked_pubs(item))], at=fleet.clock.ms)
        fleet.clock.advance(0.06)
        fleet.world.send(body)

    fleet.world.on_insert.append(stream)
    node = fleet.node("a")
    async with node.running():
        world = World(fleet, node)
        world.room = await node.client()
        await world.room.subscribe("room")
        yield world


async def test_who_is_connected_is_told(world: World) -> None:
    assert (world.told()["Connections"], world.told()["Channels"]) == ((1,), (1,))
    other = await world.node.client()
    await other.subscribe("another")
    assert (world.told()["Connections"], world.told()["Channels"]) == ((2,), (2,))


async def test_publications_are_told_with_what_they_took(world: World) -> None:
    world.told()
    assert await world.room.publish("room", "secret") == {}
    assert await world.room.publish("plain:room", "secret") == {}
    told = world.told()
    assert (told["Publications"], told["PublicationsSignalled"]) == ((1,), (1,))
    assert len(told["PublishMs"]) == len(told["AppendTurnMs"]) == 1
    assert told["AppendAttempts"] == (1,)
    again = world.told()
    assert (again["Publications"], again["PublicationsSignalled"]) == ((0,), (0,))
    assert not {"PublishMs", "AppendTurnMs", "AppendAttempts"} & set(again)


async def test_publications_that_are_refused_are_told(world: World) -> None:
    world.told()
    world.fleet.world.fail_next("put_item", Rejected("no"))
    assert await world.room.publish("room", "x") != {}
    told = world.told()
    assert (told["PublicationsRejected"], told["PublicationsUnknown"]) == ((1,), (0,))
    assert told["Publications"] == (0,)


async def test_publications_that_are_not_known_are_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.told()
    world.fleet.world.fail_next("put_item", UnknownOutcome("lost"), times=100)

    async def slow(*_: object) -> None:
        world.fleet.clock.advance(3)
        await asyncio.sleep(0)

    monkeypatch.setattr(world.fleet.world, "pause", slow)
    assert await world.room.publish("room", "x") != {}
    told = world.told()
    assert (told["PublicationsRejected"], told["PublicationsUnknown"]) == ((0,), (1,))


async def test_what_comes_from_another_node_is_told_by_stage(world: World) -> None:
    world.told()
    other = await world.fleet.node("b").client()
    assert await other.publish("room", "x") == {}
    await until(lambda: world.room.socket.published("room"))
    told = world.told()
    assert told["DeliveryStreamMs"] == pytest.approx((1.25,)), "no time, in the first step"
    assert 50 < told["DeliveryTopicMs"][0] <= 100
    assert told["DeliveryOrderMs"] == (0,)
    assert 50 < told["DeliveryMs"][0] <= 100
    assert told["DeliveryNodeMs"]


async def test_what_is_wrong_with_the_node_is_told(world: World) -> None:
    well = world.told()
    assert (well["Degraded"], well["NotReady"]) == ((0,), (0,))
    world.node.assembly.queue_state.is_gone = True
    assert world.told()["NotReady"] == (1,)
    world.node.assembly.node.health.listening = False
    assert world.told()["NotReady"] == (0,), "it does not serve yet"
    world.node.assembly.node.health.listening = True
    world.node.assembly.node.health.draining = True
    assert world.told()["NotReady"] == (0,), "it is about to end"


async def test_lag_and_canary_are_told(world: World) -> None:
    before = world.told()["CanaryAgeS"][0]
    world.fleet.clock.advance(90)
    after = world.told()
    assert after["CanaryAgeS"][0] == pytest.approx(before + 90)
    assert after["QueueLagMs"][0] >= 0


async def test_nothing_tells_a_name_or_a_payload(world: World) -> None:
    other = await world.fleet.node("b").client()
    await world.room.publish("room", "a payload")
    await other.publish("room", "a payload")
    await until(lambda: len(world.room.socket.published("room")) == 2)
    world.told()
    text = b"".join(world.lines).decode()
    for name in ("payload", '"room"', world.room.id):
        assert name not in text
    for line in world.lines:
        texts = {value for value in json.loads(line).values() if isinstance(value, str)}
        assert texts - {"info", "metrics", "a", "chat"} == {json.loads(line)["timestamp"]}
