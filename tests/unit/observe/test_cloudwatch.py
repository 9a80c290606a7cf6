"""The readings of a node, put once a minute."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import pytest
import structlog
from structlog.testing import capture_logs

from roomcast.observe import cloudwatch as reporter_module
from roomcast.observe.cloudwatch import INTERVAL_S, Readings, Reporter
from roomcast.observe.counters import AppendCounters
from roomcast.observe.ports import Metric
from roomcast.ports import PortError, Rejected, Throttled
from tests.unit.worlds import running, until

PAGE: Final = Path(__file__).parents[3] / "docs" / "metrics.md"


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
        self.counters = AppendCounters()
        self.reporter = Reporter(self, lambda: 0.5, readings, self.counters)

    async def put(self, readings: Sequence[Metric]) -> None:
        self.attempts += 1
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        self.put_readings.append(readings)

    def told(self, name: str) -> list[float]:
        """By each report that had it."""
        return [
            each.value for readings in self.put_readings for each in readings if each.name == name
        ]

    def append(self, attempts: int, turn_s: float) -> None:
        """One went in."""
        self.counters.attempts.add(attempts)
        self.counters.turn_s.add(turn_s)

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

    monkeypatch.setattr("roomcast.observe.cloudwatch.asyncio.sleep", recorded)
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
        "PublicationsRejected": (0, "Count"),
        "PublicationsUnknown": (0, "Count"),
    }
    assert world.put_readings[-1][0] == Metric("Connections", 4, "Count")


async def test_what_was_counted_is_told_once_with_what_appends_took(slept: list[float]) -> None:
    world = World()
    # Before it runs, nobody has told of it.
    world.append(3, 0.2)
    world.counters.publications |= {
        "full": 1,
        "not_stored": 2,
        "unknown": 4,
        "too_large": 8,
        "stored": 16,
        "repeated": 32,
    }
    async with world.running():
        await until(lambda: len(world.put_readings) > 3)
        for _ in range(99):
            world.append(1, 0.0)
        world.append(11, 0.03)
        world.counters.publications["not_stored"] += 5
        seen = len(world.put_readings)
        await until(lambda: len(world.put_readings) > seen + 3)
    reports = len(world.put_readings)
    assert world.told("PublicationsRejected") == [
        3,
        *[0] * (seen - 1),
        5,
        *[0] * (reports - seen - 1),
    ]
    assert world.told("PublicationsUnknown") == [4, *[0] * (reports - 1)]
    # No reading where nothing was appended: a mean of nothing is not 0.
    assert world.told("AppendAttempts") == [3, 1.1]
    # All but one in a hundred waited for at most so long; in the steps of the histogram.
    assert world.told("AppendTurnMs") == [250, 0]
    units = {each.name: each.unit for readings in world.put_readings for each in readings}
    _, _, listed = PAGE.read_text(encoding="utf-8").partition("\n## In CloudWatch\n")
    assert (
        dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", listed.partition("\n## ")[0], re.MULTILINE))
        == units
    )


async def test_what_was_counted_while_readings_were_not_put_is_told_later(
    slept: list[float],
) -> None:
    world = World()
    with capture_logs():
        async with world.running():
            await until(lambda: world.put_readings)
            world.fails = Throttled("slow down")
            world.counters.publications["full"] += 7
            world.append(2, 0.0)
            seen = world.attempts
            await until(lambda: world.attempts > seen + 3)
            world.counters.publications["full"] += 1
            world.fails = None
            reports = len(world.put_readings)
            await until(lambda: len(world.put_readings) > reports + 1)
    assert sum(world.told("PublicationsRejected")) == 8
    assert world.told("AppendAttempts") == [2]


async def test_what_is_counted_while_a_reading_is_on_its_way_is_told_by_the_next(
    slept: list[float],
) -> None:
    world = World()
    put = world.put

    async def counted_meanwhile(readings: Sequence[Metric]) -> None:
        if len(world.put_readings) == 1:
            world.counters.publications["unknown"] += 1
        await put(readings)

    world.put = counted_meanwhile  # type: ignore[method-assign]
    async with world.running():
        await until(lambda: len(world.put_readings) > 3)
    assert world.told("PublicationsUnknown")[:4] == [0, 0, 1, 0]


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
            world.fails = Rejected("no")
            await until(lambda: world.attempts > 20)
            world.fails = None
            await until(lambda: world.put_readings)
    assert [line["event"] for line in logs] == [
        "metrics_not_put",
        "metrics_not_put",
        "metrics_put_again",
    ]
