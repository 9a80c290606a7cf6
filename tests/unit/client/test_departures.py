"""Connections that end together leave their channels in turns."""

from __future__ import annotations

import asyncio

from roomcast.client.departures import EXPIRY_LEAVES, LEAVES_A_TURN, Departures
from roomcast.client.lifetime import Deadlines
from tests.unit.worlds import Client, Fleet, LocalNode


async def inside(node: LocalNode, channels: int) -> Client:
    """A client that is in so many channels of its own, whose names do not matter."""
    client = await node.client()
    for number in range(channels):
        await client.subscribe(f"plain:{client.id}-{number}")
    return client


def left(node: LocalNode) -> int:
    return len(node.assembly.node.services.departures)


async def test_of_connections_that_end_at_once_few_channels_are_left_in_a_turn() -> None:
    """A thousand of them, with 128 channels each, held up all others for half a second."""
    node, channels = Fleet().node(), LEAVES_A_TURN // 4
    clients = [await inside(node, channels) for _ in range(10)]
    hub = node.assembly.node.services.dispatcher._hub
    remaining = []
    for client in clients:
        node.assembly.node.closed(client.connection)
    for _ in range(4):
        remaining.append(len(hub.names()))
        await asyncio.sleep(0)
    assert remaining == [6 * channels, 2 * channels, 0, 0]
    assert left(node) == 0
    assert len(node.assembly.node) == 0
    await node.close()


async def test_who_leaves_alone_has_left_at_once() -> None:
    node = Fleet().node()
    client = await inside(node, LEAVES_A_TURN // 4)
    node.assembly.node.closed(client.connection)
    assert not node.assembly.node.services.dispatcher._hub.names()
    await node.close()


async def test_at_the_end_of_a_node_nobody_is_left_inside() -> None:
    node = Fleet().node()
    clients = [await inside(node, LEAVES_A_TURN // 4) for _ in range(6)]
    for client in clients:
        node.assembly.node.closed(client.connection)
    assert left(node)
    node.assembly.node.services.departures.finish()
    assert not left(node)
    assert not node.assembly.node.services.dispatcher._hub.names()
    await node.close()


async def test_one_with_more_channels_than_a_turn_has_room_for_leaves_in_several() -> None:
    class Crowd:
        def __init__(self, size: int) -> None:
            self.size = size
            self.steps: list[int] = []

        def leave_some(self, most: int) -> int:
            left = min(most, self.size)
            self.size -= left
            self.steps += [left] if left else []
            return left

    departures, large, small = Departures(), Crowd(2 * LEAVES_A_TURN + 1), Crowd(1)
    departures.leave(large)
    departures.leave(small)
    for _ in range(3):
        await asyncio.sleep(0)
    assert large.steps == [LEAVES_A_TURN, LEAVES_A_TURN, 1]
    assert small.steps == [1]
    assert len(departures) == 0


class Owner:
    """Notes what expires."""

    def __init__(self, departures: Departures) -> None:
        self.ends = Deadlines(self, departures)
        self.expiries: list[str | None] = []

    def expired(self, name: str | None) -> None:
        self.expiries.append(name)

    def fire(self) -> None:
        """As the event loop does when it is time: here, for several in one turn."""
        assert self.ends._timer is not None
        self.ends._timer.cancel()
        self.ends._fire()


async def test_of_tokens_that_expire_at_once_few_are_told_in_a_turn() -> None:
    """Two hundred connections, each with 128 channels of such tokens, took a second."""
    departures, few = Departures(), LEAVES_A_TURN // EXPIRY_LEAVES
    owners = [Owner(departures) for _ in range(3)]
    for owner in owners:
        for number in range(few):
            owner.ends.set(f"c{number}", 0.0)
    # All timers fire in one turn.
    for owner in owners:
        owner.fire()
    told = []
    for _ in range(4):
        told.append([len(owner.expiries) for owner in owners])
        await asyncio.sleep(0)
    assert told == [[few, 0, 0], [few, few, 0], [few, few, few], [few, few, few]]


async def test_a_token_that_is_renewed_or_gone_before_its_turn_has_not_expired() -> None:
    departures, few = Departures(), LEAVES_A_TURN // EXPIRY_LEAVES
    first, second, third = (Owner(departures) for _ in range(3))
    for number in range(few):
        first.ends.set(f"c{number}", 0.0)
    for name in ("renewed", "ended", "late"):
        second.ends.set(name, 0.0)
    third.ends.set("closed", 0.0)
    for owner in (first, second, third):
        owner.fire()
    second.ends.set("renewed", 60.0)
    second.ends.set("ended", None)
    third.ends.stop()
    for _ in range(3):
        await asyncio.sleep(0)
    assert second.expiries == ["late"]
    assert third.expiries == []
    assert len(second.ends) == 1
    second.ends.stop()
    first.ends.stop()
