"""service/roomcast/fleet/draining.py: one node has another one drain, and hears that it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from roomcast.delivery.envelope import Signal
from roomcast.fleet.drain_signals import Drains, drain_signal
from roomcast.fleet.draining import ASKED_MAX, Draining
from roomcast.fleet.lease_record import NODE_CHARS_MAX
from roomcast.fleet.mailbox import NodeUnknown
from roomcast.log.appender import Full
from roomcast.ports import Rejected, UnknownOutcome
from tests.unit.fleet.pairs import Pair, running
from tests.unit.worlds import settled, until


class World(Pair):
    """`ended`: those that were told to end, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []
        for name, node in self.nodes.items():
            node.assembly.node.draining._end = partial(self.ended.append, name)

    def of(self, node: str) -> Draining:
        return self.nodes[node].assembly.node.draining


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running(World()) as world:
        yield world
        for node in world.nodes.values():
            await node.assembly.node.draining.finish()
            assert not len(node.assembly.node.draining._asking)
            await node.close()


async def test_another_node_ends_and_says_what_it_has_left(world: World) -> None:
    client = await world.nodes["b"].client()
    with capture_logs() as logs:
        assert await world.of("a").drain("b") == Drains(1)
        world.nodes["b"].assembly.node.closed(client.connection)
        assert await world.of("a").drain("b") == Drains(0), "again, to hear how far it is"
    assert world.ended == ["b"]
    told = [line for line in logs if line["event"] == "drain_ordered"]
    assert told == [{"event": "drain_ordered", "log_level": "warning", "by": "a", "connections": 1}]


async def test_the_node_that_is_asked_may_be_the_one(world: World) -> None:
    assert await world.of("a").drain("a") == Drains(0)
    assert world.ended == ["a"]
    assert world.fleet.traffic.calls["post"] == 0


@pytest.mark.parametrize("node", ["c", "", "n" * (NODE_CHARS_MAX + 1)])
async def test_a_node_that_there_is_not(world: World, node: str) -> None:
    with pytest.raises(NodeUnknown):
        await world.of("a").drain(node)
    assert world.ended == []


async def test_a_node_that_does_not_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.of("a")._asking, "_within_s", 0.01)
    world.lease("c", world.nodes["b"].queue_names[-1])
    with pytest.raises(UnknownOutcome, match="no answer within"):
        await world.of("a").drain("c")
    assert world.ended == [], "an order for another lease than its own is for nobody here"


async def test_a_queue_that_refuses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise Rejected("sqs:SendMessage is denied")

    monkeypatch.setattr(world.of("a")._asking._mailbox, "send", refused)
    with pytest.raises(Rejected, match="denied"):
        await world.of("a").drain("b")


async def test_an_answer_that_cannot_be_sent_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise Rejected("sqs:SendMessage is denied")

    monkeypatch.setattr(world.of("b")._asking._mailbox, "send", refused)
    with capture_logs() as logs:
        world.of("b").heard(drain_signal("a", "id", "b"))
        await world.of("b").finish()
    assert world.ended == ["b"]
    assert [(line["event"], line.get("to")) for line in logs] == [
        ("drain_ordered", None),
        ("drain_not_answered", "a"),
    ]


async def test_orders_that_wait_are_bounded(world: World) -> None:
    # Its order waits for good: the node it is for hears nothing.
    held = world.fleet.traffic.hold("post")
    asked = [asyncio.create_task(world.of("a").drain("b")) for _ in range(ASKED_MAX)]
    await until(lambda: len(world.of("a")._asking) == ASKED_MAX)
    with pytest.raises(Full):
        await world.of("a").drain("b")
    held.release()
    assert await asyncio.gather(*asked) == [Drains(0)] * ASKED_MAX


@pytest.mark.parametrize("kind", ["drain", "drains"])
@pytest.mark.parametrize("body", [None, [], {}, {"node": 1}, {"drain": "x", "connections": -1}])
async def test_a_malformed_one_ends_nobody(world: World, kind: str, body: Any) -> None:
    with capture_logs() as logs:
        world.of("a").heard(Signal(kind, "id", "b", "", body))
    await settled()
    assert [line["event"] for line in logs] == ["drain_malformed"]
    assert world.ended == []


async def test_an_answer_to_nothing_is_passed_over(world: World) -> None:
    world.of("a").heard(Signal("drains", "id", "b", "", {"drain": "x", "connections": 1}))
    assert world.ended == []
