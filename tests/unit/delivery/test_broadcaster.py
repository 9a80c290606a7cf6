"""Signals on their way to the topic: packed, held to a rate, shed beyond a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from service.adapters.memory import MemoryTopic
from service.core import signals
from service.core.envelope import ENVELOPE_BYTES_MAX, Signal, parse
from service.core.publication import Publication
from service.delivery import broadcaster as broadcaster_module
from service.delivery.broadcaster import MESSAGES_PER_S, SIGNAL_BYTES_MAX, WAITING_BYTES_MAX, Broadcaster
from service.ports import Throttled
from tests.unit.worlds import DEADLINE_S, Fleet, settled, until

CHANNEL: Final = "plain:room"


def pub(data: Any, number: int = 0) -> Signal:
    return signals.publication("a", f"id{number}", CHANNEL, Publication(data=data))


class World:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.broadcaster = Broadcaster(MemoryTopic(self.fleet.world), self.fleet.clock)

    @property
    def sent(self) -> list[list[Any]]:
        """The data in each message."""
        return [
            [signal.body["data"] for signal in parse(body).signals] for body in self.fleet.world.published
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


async def test_too_much_is_shed_and_room_comes_back(world: World) -> None:
    held = world.fleet.traffic.hold("publish")
    assert world.broadcaster.send(pub("first"))
    await held.arrived()
    large = "x" * 100_000
    accepted = 0
    while world.broadcaster.send(pub(large, accepted)):
        accepted += 1
    assert accepted == WAITING_BYTES_MAX // (len(large) + 95)
    assert world.broadcaster.send(pub("a small one fits")) is True
    held.release()
    while world.broadcaster._waiting:
        world.fleet.clock.advance(1)
        await asyncio.sleep(0)
    await world.flushed()
    assert world.broadcaster._bytes == 0
    assert world.broadcaster.send(pub(large))


async def test_a_signal_that_is_too_large_or_no_json_is_shed(world: World) -> None:
    assert not world.broadcaster.send(pub("x" * SIGNAL_BYTES_MAX))
    assert not world.broadcaster.send(pub(float("nan")))
    await world.flushed()
    assert world.sent == []


async def test_a_message_that_was_not_sent_is_not_missed(world: World) -> None:
    world.fleet.world.fail_next("publish", Throttled())
    assert world.broadcaster.send(pub("lost"))
    await world.flushed()
    assert world.broadcaster.send(pub("sent"))
    await world.flushed()
    assert world.sent == [["sent"]]
