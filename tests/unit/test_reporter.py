"""The readings of a node, put once a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import pytest
import structlog
from structlog.testing import capture_logs

from service import reporter as reporter_module
from service.ports import Metric, PortError, Refused, Throttled
from service.reporter import INTERVAL_S, Readings, Reporter
from tests.unit.worlds import running, until


class World:
    def __init__(self) -> None:
        self.connections = 3
        self.put_readings: list[Sequence[Metric]] = []
        self.fails: PortError | None = None
        self.attempts = 0
        readings = Readings(
            connections=lambda: self.connections,
            channels=lambda: 2,
            queue_lag_ms=lambda: 40.5,
            canary_age_s=lambda: 12.5,
            degraded=lambda: True,
            not_ready=lambda: False,
        )
        self.reporter = Reporter(self, lambda: 0.5, readings)

    async def put(self, readings: Sequence[Metric]) -> None:
        self.attempts += 1
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        self.put_readings.append(readings)

    def running(self) -> AbstractAsyncContextManager[asyncio.Task[None]]:
        return running(self.reporter.run())


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for; nothing takes any time."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def recorded(delay: float) -> None:
        if delay:
            waits.append(delay)
        await sleep(0)

    monkeypatch.setattr("service.reporter.asyncio.sleep", recorded)
    monkeypatch.setattr(reporter_module, "_log", structlog.get_logger())
    return waits


async def test_the_readings_are_those_of_the_moment(slept: list[float]) -> None:
    world = World()
    async with world.running():
        await until(lambda: world.put_readings)
        world.connections = 4
        seen = len(world.put_readings)
        await until(lambda: len(world.put_readings) > seen + 1)
    assert {each.name: (each.value, each.unit) for each in world.put_readings[0]} == {
        "Connections": (3, "Count"),
        "Channels": (2, "Count"),
        "QueueLagMs": (40.5, "Milliseconds"),
        "CanaryAgeS": (12.5, "Seconds"),
        "Degraded": (1, "Count"),
        "NotReady": (0, "Count"),
    }
    assert world.put_readings[-1][0] == Metric("Connections", 4, "Count")


async def test_a_fleet_does_not_put_them_all_at_once(slept: list[float]) -> None:
    world = World()
    async with world.running():
        await until(lambda: len(world.put_readings) > 2)
    assert slept[:2] == [INTERVAL_S / 2, INTERVAL_S]


async def test_a_failure_is_logged_once_and_ends_nothing(slept: list[float]) -> None:
    world = World()
    with capture_logs() as logs:
        async with world.running():
            world.fails = Throttled("slow down")
            await until(lambda: world.attempts > 10)
            world.fails = Refused("no")
            await until(lambda: world.attempts > 20)
            world.fails = None
            await until(lambda: world.put_readings)
    assert [line["event"] for line in logs] == ["metrics_not_put", "metrics_not_put", "metrics_put_again"]
