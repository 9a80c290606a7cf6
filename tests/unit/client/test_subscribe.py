"""A subscriber enters presence while its position is read: I4 all the same,
and nothing is left when one of the two fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

import jwt
import pytest

from roomcast.client import subscribe as subscribe_module
from roomcast.ports import Rejected, Throttled
from roomcast.wire.channels import ChannelRules
from roomcast.wire.publication import Publication
from tests.unit.worlds import EVERYTHING, SECRET, Client, Fleet, Held, LocalNode, settled, until

RULES: Final = ChannelRules(without_namespace=EVERYTHING)
# The two ways into a channel: a command of the client, and what the server subscribes
# it to as it connects.
WAYS = pytest.mark.parametrize("way", ["command", "connect"])
BOTH = pytest.mark.parametrize("first, last", [("add", "newest"), ("newest", "add")])


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def node(fleet: Fleet) -> AsyncIterator[LocalNode]:
    made = fleet.node(insecure=False, secret=SECRET, rules=RULES)
    yield made
    await made.close()


def token(*channels: str) -> str:
    caps = [{"channels": ["*"], "match": "wildcard", "allow": ["sub", "pub", "prs", "hst"]}]
    return jwt.encode({"sub": "ann", "channels": list(channels), "caps": caps}, SECRET)


async def publish(node: LocalNode, *contents: Any) -> None:
    """As a back end does."""
    for data in contents:
        await node.assembly.node.services.appender.submit(
            "room", Publication(data), EVERYTHING.history_ttl_s * 1000
        )


class Joining:
    """A client on its way into a channel, in one of the two ways."""

    def __init__(self, client: Client, work: Coroutine[None, None, Any], way: str) -> None:
        self.client = client
        self._way = way
        self._asking = asyncio.create_task(work)

    @property
    def is_answered(self) -> bool:
        return self._asking.done()

    def give_up(self) -> None:
        """Its client has gone: there is no answer."""
        self._asking.cancel()

    async def answer(self) -> Any:
        """What it was told of the channel, or the error's code."""
        answer = await self._asking
        return (
            answer["subs"]["room"]
            if self._way == "connect" and isinstance(answer, dict)
            else answer
        )


async def joining(node: LocalNode, way: str) -> Joining:
    client = node.open()
    if way == "connect":
        return Joining(client, client.connect(token=token("room")), way)
    assert isinstance(await client.connect(token=token()), dict)
    return Joining(client, client.subscribe("room"), way)


def both_held(fleet: Fleet) -> dict[str, Held]:
    return {call: fleet.traffic.hold(call, "sent") for call in ("add", "newest")}


async def nothing_left(fleet: Fleet, node: LocalNode) -> None:
    await settled()
    await node.assembly.background.finish()
    assert fleet.world.presence == {}
    assert not len(node.assembly.hub)
    assert not len(node.assembly.dispatcher)


@WAYS
@BOTH
async def test_both_are_under_way_at_once_and_the_answer_waits_for_both(
    fleet: Fleet, node: LocalNode, way: str, first: str, last: str
) -> None:
    held = both_held(fleet)
    join = await joining(node, way)
    for each in held.values():
        await each.arrived()
    held[first].release()
    await settled()
    assert not join.is_answered
    assert not len(node.assembly.hub)
    held[last].release()
    assert (await join.answer())["positioned"]
    assert set(fleet.world.presence) == {"room"}


@WAYS
async def test_the_position_is_that_of_the_answer(fleet: Fleet, node: LocalNode, way: str) -> None:
    """I4: what is published while presence is entered is before the position,
    and what follows is pushed.
    """
    await publish(node, 1)
    held = fleet.traffic.hold("add", "sent")
    join = await joining(node, way)
    await held.arrived()
    # Its position has been read.
    await settled()
    assert len(node.assembly.dispatcher) == 1
    await publish(node, 2, 3)
    assert join.client.socket.pushes == []
    held.release()
    assert (await join.answer())["offset"] == 3
    await publish(node, 4)
    assert join.client.socket.published("room") == [4]


@WAYS
async def test_others_are_told_when_it_is_in(fleet: Fleet, node: LocalNode, way: str) -> None:
    bob = await node.client(token=token("room"))
    held = fleet.traffic.hold("add", "sent")
    join = await joining(node, way)
    await held.arrived()
    await settled()
    assert bob.socket.told("room", "join") == [bob.id]
    held.release()
    await join.answer()
    await until(lambda: bob.socket.told("room", "join") == [bob.id, join.client.id])
    # It hears of itself as well, behind its answer.
    kinds = [next(iter(line.keys() - {"id"})) for line in join.client.socket.lines]
    assert kinds[-2:] == ["subscribe" if way == "command" else "connect", "push"]


@WAYS
async def test_when_presence_fails_the_read_ends_and_nobody_is_let_in(
    fleet: Fleet, node: LocalNode, way: str
) -> None:
    fleet.world.fail_next("add", Throttled("slow down"), effect="applied")
    held = fleet.traffic.hold("newest", "sent")
    join = await joining(node, way)
    await held.arrived()
    await settled()
    held.release()
    assert await join.answer() == 100
    assert join.client.socket.pushes == []
    await nothing_left(fleet, node)
    assert fleet.traffic.calls["put_head"] == 1, (
        "what was begun for all who come was carried to its end"
    )


@WAYS
async def test_when_the_log_fails_the_entry_is_written_first_and_then_removed(
    fleet: Fleet, node: LocalNode, way: str
) -> None:
    """Given up on its way, it could arrive after it was removed."""
    fleet.world.fail_next("newest", Rejected("no permission"))
    held = fleet.traffic.hold("add", "sent")
    join = await joining(node, way)
    await held.arrived()
    await settled()
    assert fleet.traffic.calls["remove"] == 0
    held.release()
    assert await join.answer() == 100
    await nothing_left(fleet, node)
    assert fleet.traffic.calls["remove"] == 1
    # And it may come again.
    assert isinstance(await (await joining(node, way)).answer(), dict)


@WAYS
@pytest.mark.parametrize("call", ["add", "newest"])
async def test_what_takes_too_long_leaves_nothing(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch, way: str, call: str
) -> None:
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", 0.02)
    held = fleet.traffic.hold(call, "sent")
    join = await joining(node, way)
    assert await join.answer() == 100
    held.release()
    await nothing_left(fleet, node)


@WAYS
async def test_when_both_are_too_slow_or_fail_it_is_one_error(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    for call in ("add", "newest"):
        fleet.world.fail_next(call, Rejected("no permission"))
    assert await (await joining(node, way)).answer() == 100
    await nothing_left(fleet, node)
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", 0.02)
    held = both_held(fleet)
    assert await (await joining(node, way)).answer() == 100
    for each in held.values():
        each.release()
    await nothing_left(fleet, node)


@WAYS
@pytest.mark.parametrize("done", [(), ("add",), ("newest",)])
async def test_who_goes_away_meanwhile_leaves_nothing(
    fleet: Fleet, node: LocalNode, way: str, done: tuple[str, ...]
) -> None:
    held = both_held(fleet)
    join = await joining(node, way)
    for each in held.values():
        await each.arrived()
    for call in done:
        held[call].release()
    await settled()
    node.assembly.node.closed(join.client.connection)
    join.give_up()
    await settled()
    assert not join.client.connection._work.tasks, "nobody works for a client that is gone"
    for each in held.values():
        each.release()
    await nothing_left(fleet, node)
    assert join.client.socket.told("room", "join") == []


@WAYS
async def test_one_of_many_that_fails_takes_nothing_from_the_others(
    fleet: Fleet, node: LocalNode, way: str
) -> None:
    held = fleet.traffic.hold("newest", "sent")
    fleet.world.fail_next("add", Throttled("slow down"))
    failing, fine = await joining(node, way), await joining(node, way)
    await held.arrived()
    await settled()
    held.release()
    assert await failing.answer() == 100
    assert (await fine.answer())["positioned"]
    await node.assembly.background.finish()
    assert [client for _, client in fleet.world.presence["room"]] == [fine.client.id]
    assert fleet.traffic.calls["newest"] == 1, "one read for both"
