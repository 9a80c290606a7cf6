"""The readings of a node, logged once a minute."""

from __future__ import annotations

import asyncio
import re
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import pytest

from roomcast.observe.cloudwatch import INTERVAL_S, Counts, Destination, Readings, Reporter
from roomcast.observe.counters import AppendCounters, StageCounters
from roomcast.testing.memory import ManualClock
from tests.emf import Read, read_all
from tests.unit.worlds import running, until

PAGE: Final = Path(__file__).parents[3] / "docs" / "metrics.md"
STAGES: Final = {
    "stream": "DeliveryStreamMs",
    "topic": "DeliveryTopicMs",
    "node": "DeliveryNodeMs",
    "order": "DeliveryOrderMs",
    "all": "DeliveryMs",
}


class World:
    def __init__(self) -> None:
        self.connections = 3
        self.signalled = 0
        self.lines: list[bytes] = []
        self.appends = AppendCounters()
        self.stages = StageCounters()
        self.clock = ManualClock()
        readings = Readings(
            connections=lambda: self.connections,
            channels=lambda: 2,
            queue_lag_ms=lambda: 40.5,
            canary_age_s=lambda: 12.5,
            degraded=lambda: True,
            not_ready=lambda: False,
        )
        self.reporter = Reporter(
            Destination("roomcast", "chat", "a", self.lines.append),
            self.clock,
            lambda: 0.5,
            readings,
            lambda: Counts.taken(self.appends, self.stages, self.signalled),
        )

    @property
    def metrics(self) -> list[Read]:
        """Of all lines."""
        return read_all(self.lines)

    @property
    def reports(self) -> int:
        return len(self.told("Publications"))

    def told(self, name: str) -> list[tuple[float, ...]]:
        """By each report that had it."""
        return [each.values for each in self.metrics if each.name == name]

    def running(self) -> AbstractAsyncContextManager[asyncio.Task[None]]:
        return running(self.reporter.run())

    async def more_reports(self) -> None:
        seen = self.reports
        await until(lambda: self.reports > seen + 1)


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
    return waits


def everything_happens(world: World) -> None:
    """Something of each kind that is told of."""
    world.appends.appended((0.004, 0.2), attempts=3, losses=0, turn_s=0.03, writers=0)
    world.appends.repeated((0.004,))
    world.appends.publications["full"] += 1
    world.appends.publications["not_stored"] += 2
    world.appends.publications["unknown"] += 4
    world.appends.publications["too_large"] += 8
    world.signalled += 16
    for took in world.stages.by_stage().values():
        took.add(0.3)


async def test_the_readings_are_those_of_the_moment(slept: list[float]) -> None:
    world = World()
    async with world.running():
        await until(lambda: world.reports == 1)
        first = {each.name: (each.values, each.unit) for each in world.metrics}
        world.connections = 4
        await world.more_reports()
    assert first == {
        "Connections": ((3,), "Count"),
        "Channels": ((2,), "Count"),
        "QueueLagMs": ((40.5,), "Milliseconds"),
        "CanaryAgeS": ((12.5,), "Seconds"),
        "Degraded": ((1,), "Count"),
        "NotReady": ((0,), "Count"),
        "Publications": ((0,), "Count"),
        "PublicationsSignalled": ((0,), "Count"),
        "PublicationsRejected": ((0,), "Count"),
        "PublicationsUnknown": ((0,), "Count"),
    }
    assert world.told("Connections")[-1] == (4,)


async def test_they_are_put_for_the_group_and_for_nobody_else(slept: list[float]) -> None:
    world = World()
    everything_happens(world)
    async with world.running():
        await until(lambda: world.reports == 1)
    assert {(each.namespace, each.dimensions) for each in world.metrics} == {
        ("roomcast", (("AutoScalingGroupName", "chat"),))
    }


async def test_what_happened_is_told_once(slept: list[float]) -> None:
    world = World()
    async with world.running():
        await until(lambda: world.reports == 1)
        everything_happens(world)
        await world.more_reports()
        await world.more_reports()
    expected = {
        "Publications": (3,),
        "PublicationsSignalled": (16,),
        "PublicationsRejected": (3,),
        "PublicationsUnknown": (4,),
    }
    for name, values in expected.items():
        assert [each for each in world.told(name) if each != (0,)] == [values], name
    # Those of no report, where nothing happened.
    assert world.told("AppendAttempts") == [(3,)]
    [publish] = world.told("PublishMs")
    assert len(publish) == 3
    # In the steps of the histogram.
    assert 2.5 < publish[0] <= publish[1] <= 5
    assert 100 < publish[2] <= 250
    [(turn,)] = world.told("AppendTurnMs")
    assert 25 < turn <= 50
    for name in STAGES.values():
        [(took,)] = world.told(name)
        assert 250 < took <= 500, name


async def test_of_much_that_happened_a_sample_is_told(slept: list[float]) -> None:
    world = World()
    async with world.running():
        await until(lambda: world.reports == 1)
        for _ in range(990):
            world.stages.all.add(0.004)
        for _ in range(10):
            world.stages.all.add(9.0)
        await world.more_reports()
    [values] = world.told("DeliveryMs")
    assert len(values) == 100
    # One of them in a hundred, as it was.
    assert [each > 5 for each in values] == [False] * 99 + [True]
    assert values[-1] > 5000


async def test_what_was_counted_before_the_end_is_told_and_no_reading_with_it() -> None:
    world = World()
    async with world.running():
        await until(lambda: world.reports == 1)
        everything_happens(world)
    assert world.told("PublicationsUnknown") == [(0,), (4,)]
    # Autoscaling goes by the mean of them.
    assert len(world.told("Connections")) == 1


async def test_the_page_lists_what_is_told(slept: list[float]) -> None:
    world = World()
    async with world.running():
        await until(lambda: world.reports == 1)
        everything_happens(world)
        await world.more_reports()
    _, _, part = PAGE.read_text(encoding="utf-8").partition("\n## In CloudWatch\n")
    nodes = part.partition("\n## ")[0].partition("\n### ")[0]
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \|", nodes, re.MULTILINE)
    assert dict(listed) == {each.name: each.unit for each in world.metrics}


async def test_the_lines_say_whose_they_are(slept: list[float]) -> None:
    world = World()
    async with world.running():
        await until(lambda: world.lines)
    assert b'"event":"metrics"' in world.lines[0]
    assert b'"node":"a"' in world.lines[0]
    assert f'"Timestamp":{world.clock.ms}'.encode() in world.lines[0]


async def test_a_fleet_does_not_put_them_all_at_once(slept: list[float]) -> None:
    world = World()
    async with world.running():
        await until(lambda: world.reports > 2)
    assert slept[:2] == [INTERVAL_S / 2, INTERVAL_S]
