"""Signals on their way to the topic: packed, held to a rate, shed beyond a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from roomcast.delivery import broadcaster as broadcaster_module
from roomcast.delivery import signals
from roomcast.delivery.allowance import THROTTLED_S, Allowance
from roomcast.delivery.broadcaster import (
    CHANNELS_BYTES_MAX,
    CLIENT_BYTES_MAX,
    FIRST_BYTES,
    LITTLE_BYTES,
    MESSAGES_PER_S,
    MUCH_BYTES_MAX,
    PUBLISHES_AT_ONCE,
    ROOM_PART_MIN,
    SIGNAL_BYTES_MAX,
    WAITING_BYTES_MAX,
    Broadcaster,
    can_be_sent,
)
from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX, Signal, parse, signal_text
from roomcast.ports import Throttled, UnknownOutcome
from roomcast.testing.memory import MemoryTopic, Stage
from roomcast.wire.encoding import stored_of
from roomcast.wire.publication import ClientInfo, Publication
from tests.unit.worlds import DEADLINE_S, Fleet, settled, until

CHANNEL: Final = "plain:room"


def pub(data: Any, number: int = 0) -> Signal:
    return signals.publication("a", f"id{number}", CHANNEL, stored_of(Publication(data=data)))


NO_JSON = Signal("pub", "1", "a", CHANNEL, {"data": float("nan")})


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.allowance = Allowance(150.0)
        self.allowance.share(1)
        self.broadcaster = Broadcaster(
            MemoryTopic(self.fleet.world), self.fleet.clock, self.allowance
        )

    @property
    def sent(self) -> list[list[Any]]:
        """The data in each message."""
        return [
            [signal.body["data"] for signal in parse(body).signals]
            for body in self.fleet.world.published
        ]

    async def flushed(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.broadcaster.flushed()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(broadcaster_module, "FLUSH_INTERVAL_S", 0.0)
    world = World()
    running = asyncio.create_task(world.broadcaster.run())
    yield world
    assert not running.done(), running
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_signals_travel_together_and_in_order(world: World) -> None:
    assert all(world.broadcaster.send(pub(number, number)) for number in range(50))
    await world.flushed()
    assert world.sent == [list(range(50))]


async def test_nothing_to_send_is_nothing_to_wait_for(world: World) -> None:
    await world.flushed()
    assert world.sent == []


async def test_a_message_is_bounded_in_bytes(world: World) -> None:
    large = "x" * 100_000
    for number in range(5):
        assert world.broadcaster.send(pub(large, number))
    await world.flushed()
    assert [len(message) for message in world.sent] == [2, 2, 1]
    assert all(len(body.encode()) <= ENVELOPE_BYTES_MAX for body in world.fleet.world.published)


async def test_messages_are_held_to_a_rate(world: World) -> None:
    """The rest waits: SNS's quota is the whole account's."""
    half = "x" * 120_000
    for number in range(45):
        assert world.broadcaster.send(pub(half, number))
    await until(lambda: len(world.sent) == 20)
    await settled()
    assert len(world.sent) == 20, "a burst, and no more as long as no time passes"
    world.fleet.clock.advance(2 / MESSAGES_PER_S)
    await until(lambda: len(world.sent) == 22)
    await settled()
    assert len(world.sent) == 22
    world.fleet.clock.advance(10)
    await world.flushed()
    assert sum(len(message) for message in world.sent) == 45


@pytest.mark.parametrize("nodes, at_once, a_second", [(10, 15, 15), (75, 2, 2), (1000, 2, 1)])
async def test_nodes_share_the_quota(world: World, nodes: int, at_once: int, a_second: int) -> None:
    world.allowance.share(nodes)
    for number in range(at_once + a_second + 1):
        assert world.broadcaster.send(pub("x" * 125_000, number))
    await until(lambda: len(world.sent) == at_once)
    await settled()
    assert len(world.sent) == at_once
    world.fleet.clock.advance(1)
    await until(lambda: len(world.sent) == at_once + a_second)
    await settled()
    assert len(world.sent) == at_once + a_second


async def test_the_fewer_messages_the_fuller_they_are(world: World) -> None:
    world.allowance.share(1000)
    for number in range(2):
        assert world.broadcaster.send(pub(number))
        await until(lambda number=number: len(world.sent) == number + 1)  # type: ignore[misc]
    for number in range(2, 50):
        assert world.broadcaster.send(pub(number))
        await settled()
    world.fleet.clock.advance(1)
    await world.flushed()
    assert world.sent == [[0], [1], list(range(2, 50))]


async def test_where_few_messages_go_little_may_wait(world: World) -> None:
    world.fleet.traffic.hold("publish")
    order = Signal("disconnect", "1", "a", "", {"user": "ann", "reason": "x" * 100_000})
    for nodes, part in ((15, 1 / 2), (1000, ROOM_PART_MIN)):
        world.allowance.share(nodes)
        world.broadcaster = Broadcaster(
            MemoryTopic(world.fleet.world), world.fleet.clock, world.allowance
        )
        assert CLIENT_BYTES_MAX * part - 51_000 < fill(world, "ann") <= CLIENT_BYTES_MAX * part
        fill(world)
        assert world.broadcaster.waiting_bytes <= CHANNELS_BYTES_MAX * part
        assert world.broadcaster.send(order), "they have room of their own"
        while world.broadcaster.send(order):
            pass
        assert world.broadcaster.waiting_bytes <= WAITING_BYTES_MAX * part


async def test_who_is_throttled_leaves_the_quota_to_the_others(world: World) -> None:
    world.fleet.world.fail_next("publish", Throttled())
    assert world.broadcaster.send(pub("lost"))
    await world.flushed()
    assert world.broadcaster.send(pub("later"))
    world.fleet.clock.advance(THROTTLED_S - 0.1)
    await settled()
    assert world.sent == []
    world.fleet.clock.advance(0.1)
    await world.flushed()
    assert world.sent == [["later"]]


async def test_too_much_is_shed_and_room_comes_back(world: World) -> None:
    held = world.fleet.traffic.hold("publish")
    assert world.broadcaster.send(pub("first"))
    await held.arrived()
    large = "x" * 100_000
    accepted = 0
    while world.broadcaster.send(pub(large, accepted)):
        accepted += 1
    assert accepted == CHANNELS_BYTES_MAX // (len(large) + 95)
    assert world.broadcaster.send(pub("a small one fits")) is True
    held.release()
    while world.broadcaster._waiting:
        world.fleet.clock.advance(1)
        await asyncio.sleep(0)
    await world.flushed()
    assert world.broadcaster._bytes == world.broadcaster._channels_bytes == 0
    assert world.broadcaster.send(pub(large))


def fill(world: World, client: str = "", size: int = 50_000) -> int:
    """Publish as much as is taken of `client`, in many channels; "" = of a back end. The bytes."""
    before, number = world.broadcaster.waiting_bytes, 0
    while world.broadcaster.send(
        signals.publication(
            "a",
            f"{client}{number}",
            f"plain:{number}",
            stored_of(Publication("x" * size, info=ClientInfo("", client) if client else None)),
        )
    ):
        number += 1
    return world.broadcaster.waiting_bytes - before


async def test_channels_cannot_take_the_room_of_orders(world: World) -> None:
    order = Signal("disconnect", "1", "a", "", {"user": "ann", "reason": "x" * 100_000})
    world.fleet.traffic.hold("publish")
    assert CHANNELS_BYTES_MAX - fill(world) < 51_000
    for kind in (signals.join, signals.leave):
        assert not all(
            world.broadcaster.send(kind("a", f"{n}", CHANNEL, ClientInfo("u", "c")))
            for n in range(1000)
        )
    # The first of each of many clients, which is beyond the bound, takes none of it either.
    for number in range(1000):
        fill(world, f"bob {number}", 1000)
    assert world.broadcaster.waiting_bytes > CHANNELS_BYTES_MAX + 1_000_000
    orders = 0
    while world.broadcaster.send(order):
        orders += 1
    assert orders == (WAITING_BYTES_MAX - CHANNELS_BYTES_MAX) // 100_100 > 15


async def test_one_client_cannot_take_the_room_of_the_others(world: World) -> None:
    held = world.fleet.traffic.hold("publish")
    assert CLIENT_BYTES_MAX - 51_000 < fill(world, "ann") <= CLIENT_BYTES_MAX
    assert world.broadcaster.counters.signals["shed"] == 1
    assert not all(
        world.broadcaster.send(signals.join("a", f"{n}", CHANNEL, ClientInfo("", "ann")))
        for n in range(1000)
    )
    assert CLIENT_BYTES_MAX - 51_000 < fill(world, "bob") <= CLIENT_BYTES_MAX
    assert 0 < fill(world) <= CHANNELS_BYTES_MAX - 2 * CLIENT_BYTES_MAX + 51_000
    held.release()
    while world.broadcaster._waiting:
        world.fleet.clock.advance(1)
        await asyncio.sleep(0)
    await world.flushed()
    assert not world.broadcaster._client_bytes, "nobody is remembered who waits for nothing"
    assert fill(world, "ann") > CLIENT_BYTES_MAX - 51_000


async def test_few_clients_cannot_take_the_room_of_the_others(world: World) -> None:
    world.fleet.traffic.hold("publish")
    for size in (50_000, 1):
        for number in range(10):
            fill(world, f"ann {number}", size)
    assert world.broadcaster.waiting_bytes > MUCH_BYTES_MAX - 60_000
    assert LITTLE_BYTES / 2 < fill(world, "bob", 1_000) <= LITTLE_BYTES


async def test_many_clients_leave_each_other_room_for_something_small(world: World) -> None:
    world.fleet.traffic.hold("publish")
    for size in (30_000, 1):
        for number in range(250):
            fill(world, f"ann {number}", size)
    assert world.broadcaster.waiting_bytes > CHANNELS_BYTES_MAX - 100
    assert fill(world, "bob", FIRST_BYTES) == 0
    assert 0 < fill(world, "bob", FIRST_BYTES - 300) <= FIRST_BYTES
    assert fill(world, "bob", 1) == 0


async def test_a_signal_that_is_too_large_or_no_json_is_shed(world: World) -> None:
    for never in (pub("x" * SIGNAL_BYTES_MAX), NO_JSON):
        assert not can_be_sent(never)
        assert not world.broadcaster.send(never)
    around = len(signal_text(pub("")))
    for size, fits in ((SIGNAL_BYTES_MAX - around, True), (SIGNAL_BYTES_MAX - around + 1, False)):
        assert can_be_sent(pub("x" * size)) is fits
        assert world.broadcaster.send(pub("x" * size)) is fits
    await world.flushed()
    assert [len(message) for message in world.sent] == [1]


class Hanging:
    """The first calls of the topic do not come back before `release` is set."""

    def __init__(self, world: World, count: int) -> None:
        self.release = asyncio.Event()
        self.calls = 0
        self._count = count
        world.fleet.world.pause = self._pause

    async def _pause(self, call: str, stage: Stage) -> None:
        await asyncio.sleep(0)
        if call == "publish" and stage == "call":
            self.calls += 1
            if self.calls <= self._count:
                await self.release.wait()


async def test_a_call_that_hangs_does_not_hold_up_the_others(world: World) -> None:
    hanging = Hanging(world, 1)
    assert world.broadcaster.send(pub("hangs"))
    await until(lambda: hanging.calls)
    assert world.broadcaster.send(pub("goes on"))
    await until(lambda: world.sent == [["goes on"]])
    flushing = asyncio.create_task(world.flushed())
    await settled()
    assert not flushing.done(), "the end of a node waits for what is under way"
    hanging.release.set()
    await flushing
    assert world.sent == [["goes on"], ["hangs"]]


async def test_calls_that_hang_are_bounded(world: World) -> None:
    hanging = Hanging(world, 100)
    for number in range(PUBLISHES_AT_ONCE + 2):
        assert world.broadcaster.send(pub("x" * 125_000, number))
    await until(lambda: hanging.calls >= PUBLISHES_AT_ONCE)
    await settled()
    assert hanging.calls == PUBLISHES_AT_ONCE
    hanging.release.set()
    await world.flushed()
    assert sum(len(message) for message in world.sent) == PUBLISHES_AT_ONCE + 2


async def test_the_end_leaves_no_call_under_way() -> None:
    world = World()
    hanging = Hanging(world, 1)
    running = asyncio.create_task(world.broadcaster.run())
    assert world.broadcaster.send(pub("hangs"))
    await until(lambda: hanging.calls)
    running.cancel()
    [end] = await asyncio.gather(running, return_exceptions=True)
    assert isinstance(end, asyncio.CancelledError)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_was_shed_sends_nothing(world: World) -> None:
    assert not world.broadcaster.send(NO_JSON)
    await world.flushed()
    assert world.sent == []


async def test_a_message_that_was_not_sent_is_not_missed(world: World) -> None:
    world.fleet.world.fail_next("publish", UnknownOutcome())
    assert world.broadcaster.send(pub("lost"))
    await world.flushed()
    assert world.broadcaster.send(pub("sent"))
    await world.flushed()
    assert world.sent == [["sent"]]


async def test_who_waits_for_a_signal_is_told_what_the_topic_says(world: World) -> None:
    refused = UnknownOutcome("simulated")
    world.fleet.world.fail_next("publish", refused)
    waiting = [world.broadcaster.publish(pub("one")), world.broadcaster.publish(pub("two"))]
    assert world.broadcaster.send(pub("nobody waits for this one"))
    held = world.fleet.traffic.hold("publish")
    await held.arrived()
    assert not any(sent is None or sent.done() for sent in waiting)
    held.release()
    assert [await sent for sent in waiting if sent is not None] == [refused] * 2
    again = world.broadcaster.publish(pub("one"))
    assert again is not None
    assert await again is None
    assert world.broadcaster.publish(NO_JSON) is None


async def test_who_waits_no_more_disturbs_nothing(world: World) -> None:
    held = world.fleet.traffic.hold("publish")
    gone, stays = world.broadcaster.publish(pub("one")), world.broadcaster.publish(pub("two"))
    assert gone is not None
    assert stays is not None
    await held.arrived()
    gone.cancel()
    held.release()
    assert await stays is None
