"""Surveys and the list of nodes: what all nodes have,
as the leases and the nodes themselves tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from roomcast.delivery.envelope import Signal
from roomcast.fleet import node_info as node_info_module
from roomcast.fleet import node_info_signals as signals_module
from roomcast.fleet.lease_record import Lease
from roomcast.fleet.node_info import ANSWERS_AT_ONCE, SURVEYS_MAX, Counted, NodeInfo
from roomcast.fleet.node_info_signals import Answer, answer_signal, survey_signal
from roomcast.ports import Rejected
from roomcast.testing.memory import ManualClock, MemoryLeases, MemoryWorld
from tests.unit.worlds import Fleet, LocalNode, until

LATER_MS: Final = 10**15


def lease(node: str, **changes: Any) -> Lease:
    return replace(Lease(node, f"q-{node}", "live", 1, 1, LATER_MS), **changes)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def nodes(fleet: Fleet) -> AsyncIterator[tuple[LocalNode, LocalNode]]:
    """Two nodes that hear each other, and whose leases are there."""
    made = (fleet.node("a"), fleet.node("b"))
    for name in "ab":
        fleet.world.leases[name] = lease(name)
    async with AsyncExitStack() as running:
        for node in made:
            await running.enter_async_context(node.running())
        yield made
        for node in made:
            for connection in list(node.assembly.node._connections):
                node.assembly.node.closed(connection)


async def test_all_nodes_are_asked(nodes: tuple[LocalNode, LocalNode]) -> None:
    here, there = nodes
    for node, channels in ((here, ["one", "plain:x"]), (there, ["one", "two"]), (there, ["one"])):
        client = await node.client()
        for channel in channels:
            await client.subscribe(channel)
    for node in nodes:
        counted = await node.assembly.node.node_info.channels("")
        assert counted == Counted({"one": 3, "plain:x": 1, "two": 1}, whole=True)
    assert await here.assembly.node.node_info.channels("*o*e*") == Counted({"one": 3}, whole=True)
    assert await here.assembly.node.node_info.channels("nothing") == Counted({}, whole=True)


async def test_those_who_ask_at_once_share_the_answer(
    nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = nodes
    asked: list[Signal] = []
    heard = there.assembly.node.node_info.heard

    def note(signal: Signal) -> None:
        asked.append(signal)
        heard(signal)

    monkeypatch.setitem(there.assembly.intake._handlers, "survey", note)
    results = await asyncio.gather(*(here.assembly.node.node_info.channels("") for _ in range(5)))
    assert results == [Counted({}, whole=True)] * 5
    assert [signal.kind for signal in asked if signal.node == "a"] == ["survey"]


async def test_a_node_that_does_not_answer_makes_it_partial(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_info_module, "ANSWERS_WAIT_S", 0.2)
    here, there = nodes
    client = await there.client()
    await client.subscribe("one")
    fleet.world.leases["deaf"] = lease("deaf")
    with capture_logs() as logs:
        counted = await here.assembly.node.node_info.channels("")
    assert counted == Counted({"one": 1}, whole=False)
    assert [entry["nodes"] for entry in logs if entry["event"] == "survey_unanswered"] == [["deaf"]]


async def test_whoever_is_dead_or_only_starts_is_not_waited_for(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    fleet.world.leases["dead"] = lease("dead", expires_at=1)
    fleet.world.leases["reaped"] = lease("reaped", reaped=1)
    fleet.world.leases["new"] = lease("new", state="starting")
    assert await nodes[0].assembly.node.node_info.channels("") == Counted({}, whole=True)


async def test_a_node_answers_under_the_lease_that_it_has_now(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    here, there = nodes
    fleet.world.leases["b-2"] = lease("b-2")
    del fleet.world.leases["b"]
    there.assembly.node.services.presence.move("b-2")
    assert await here.assembly.node.node_info.channels("") == Counted({}, whole=True)


async def test_an_answer_that_does_not_fit_says_so(
    nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals_module, "ANSWER_BYTES_MAX", 100)
    monkeypatch.setattr(node_info_module, "_NAMES_A_TURN", 2)
    here, there = nodes
    client = await there.client()
    for number in range(20):
        await client.subscribe(f"channel-{number:02d}")
    counted = await here.assembly.node.node_info.channels("")
    assert counted is not None
    assert 0 < len(counted.channels) < 20
    assert not counted.whole


async def test_too_many_surveys_at_once(
    nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    node_info = nodes[0].assembly.node.node_info
    asking = [
        asyncio.create_task(node_info.channels(f"{number}*")) for number in range(SURVEYS_MAX)
    ]
    await until(lambda: len(node_info._under_way) == SURVEYS_MAX)
    assert await node_info.channels("one more") is None
    assert all(counted == Counted({}, whole=True) for counted in await asyncio.gather(*asking))
    assert await node_info.channels("one more") is not None
    assert not node_info._surveys


class Alone:
    """A NodeInfo without a node around it."""

    lease = "a"

    def __init__(self) -> None:
        self.world = MemoryWorld()
        self.sent: list[Signal] = []
        self.takes = True
        self.background: set[asyncio.Task[None]] = set()
        self.node_info = NodeInfo(
            MemoryLeases(self.world),
            self,
            ManualClock(),
            lambda: str(len(self.sent)),
            self,
            self,
            self,
            node="a",
        )

    def start(self, work: Coroutine[None, None, None]) -> None:
        self.background.add(asyncio.ensure_future(work))

    def numbers(self, held: Lease) -> Lease:
        return replace(held, connections=77)

    def names(self) -> list[str]:
        return ["one", "gone"]

    def count(self, channel: str) -> int:
        return 1 if channel == "one" else 0

    def send(self, signal: Signal) -> bool:
        self.sent.append(signal)
        return self.takes


async def test_a_survey_that_is_shed_is_not_waited_for() -> None:
    alone = Alone()
    alone.takes = False
    assert await alone.node_info.channels("") is None


async def test_others_are_answered_with_what_is_here() -> None:
    alone = Alone()
    alone.node_info.heard(survey_signal("b", "7", "o*"))
    await asyncio.gather(*alone.background)
    assert alone.sent == [answer_signal(Answer("a", {"one": 1}), "a", "0", "7")]
    alone.takes = False
    with capture_logs() as logs:
        alone.node_info.heard(survey_signal("b", "8", ""))
        await asyncio.gather(*alone.background)
    assert [entry["event"] for entry in logs] == ["answer_shed"]


async def test_a_flood_of_surveys_is_answered_within_a_bound() -> None:
    """Each question makes every node speak:
    whoever may publish to the topic could make them shout.
    """
    alone = Alone()
    for number in range(3 * ANSWERS_AT_ONCE):
        alone.node_info.heard(survey_signal("b", str(number), "o*"))
    assert len(alone.background) == ANSWERS_AT_ONCE
    await asyncio.gather(*alone.background)
    alone.node_info.heard(survey_signal("b", "later", "o*"))
    await asyncio.gather(*alone.background)
    assert len(alone.sent) == ANSWERS_AT_ONCE + 1


async def test_what_nobody_asked_or_understands_is_passed_over() -> None:
    alone = Alone()
    alone.node_info.heard(answer_signal(Answer("b", {"one": 1}), "b", "1", "unknown"))
    with capture_logs() as logs:
        alone.node_info.heard(Signal("answer", "1", "b", "", {"survey": 5}))
        alone.node_info.heard(Signal("survey", "1", "b", "", None))
    assert [entry["event"] for entry in logs] == ["survey_malformed"] * 2
    assert not alone.background


async def test_when_the_leases_cannot_be_read() -> None:
    alone = Alone()
    for ask in (alone.node_info.channels(""), alone.node_info.nodes()):
        alone.world.fail_next("all", Rejected("simulated"))
        with pytest.raises(Rejected):
            await ask
    assert not alone.node_info._under_way


async def test_one_who_gives_up_does_not_take_the_others_answer_away(
    nodes: tuple[LocalNode, LocalNode],
) -> None:
    node_info = nodes[0].assembly.node.node_info
    hasty, patient = (asyncio.create_task(node_info.channels("")) for _ in range(2))
    await until(lambda: node_info._surveys)
    hasty.cancel()
    assert await patient == Counted({}, whole=True)


async def test_the_nodes_that_live_are_listed_the_oldest_first() -> None:
    alone = Alone()
    alone.world.leases = {
        "young": lease("young", started_at=9, connections=5),
        "a": lease("a", started_at=5),
        "dead": lease("dead", expires_at=1),
        "reaped": lease("reaped", reaped=3),
        "old": lease("old", started_at=2),
    }
    found = await alone.node_info.nodes()
    assert [(each.node, each.connections) for each in found] == [
        ("old", 0),
        ("a", 77),
        ("young", 5),
    ]
    alone.world.leases["last"] = lease("last", expires_at=1, heartbeat_at=9)
    _, dead = await alone.node_info.nodes_and_dead()
    assert dead[0].node == "last"
    assert {each.node for each in dead} == {"last", "dead", "reaped"}
