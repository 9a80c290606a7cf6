"""service/roomcast/client/lifetime.py: everything ends when it should, with one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from roomcast.client import lifetime as lifetime_module
from roomcast.client.departures import Departures
from roomcast.client.lifetime import Deadlines
from tests.unit.worlds import standing_still, until


class Owner:
    """Calls `expired` with what is due."""

    def __init__(self, expired: Callable[[str | None], None]) -> None:
        self.expired = expired


def timers(loop: asyncio.AbstractEventLoop) -> int:
    """Timers that will fire."""
    return sum(not each.cancelled() for each in loop._scheduled)  # type: ignore[attr-defined]  # nothing public tells


async def test_the_earliest_comes_first_and_there_is_one_timer() -> None:
    due: list[str | None] = []
    ends = Deadlines(Owner(due.append), Departures())
    loop = asyncio.get_running_loop()
    before = timers(loop)
    with standing_still():
        for number in range(100, 0, -1):
            ends.set(f"c{number}", 0.0005 * number)
        ends.set(None, 0.1)
    assert timers(loop) == before + 1
    await until(lambda: len(ends) == 0)
    assert due == [*(f"c{number}" for number in range(1, 101)), None]
    assert timers(loop) == before


async def test_a_later_end_replaces_an_earlier_one() -> None:
    due: list[str | None] = []
    ends = Deadlines(Owner(due.append), Departures())
    with standing_still():
        ends.set(None, 0.0)
        ends.set(None, 3600.0)
        ends.set("a", 0.001)
    await until(lambda: due)
    assert due == ["a"]
    assert len(ends) == 1
    ends.set(None, 0.001)
    await until(lambda: len(ends) == 0)
    assert due == ["a", None]


async def test_what_ends_no_more_is_forgotten() -> None:
    due: list[str | None] = []
    ends = Deadlines(Owner(due.append), Departures())
    with standing_still():
        ends.set("a", 0.001)
        ends.set("b", 0.002)
        ends.set("a", None)
        ends.set("never", None)
    await until(lambda: due)
    assert due == ["b"]


async def test_the_end_of_one_may_end_all() -> None:
    due: list[str | None] = []

    def end(name: str | None) -> None:
        due.append(name)
        ends.stop()

    ends = Deadlines(Owner(end), Departures())
    before = timers(asyncio.get_running_loop())
    for name in ("a", "b", None):
        ends.set(name, 0.0)
    await until(lambda: due)
    assert due == ["a"]
    assert timers(asyncio.get_running_loop()) == before
    ends.stop()


async def test_the_end_of_one_may_set_another() -> None:
    due: list[str | None] = []

    def end(name: str | None) -> None:
        due.append(name)
        if len(due) < 3:
            ends.set(name, 0.0)

    ends = Deadlines(Owner(end), Departures())
    ends.set("a", 0.0)
    await until(lambda: len(due) == 3)
    assert len(ends) == 0


async def test_no_timer_is_longer_than_loops_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime_module, "TIMER_S_MAX", 0.001)
    due: list[str | None] = []
    ends = Deadlines(Owner(due.append), Departures())
    with standing_still():
        ends.set(None, 3600.0)
        assert ends._fires_at <= asyncio.get_running_loop().time() + 0.001
    for _ in range(3):
        first = ends._fires_at
        await until(lambda first=first: ends._fires_at > first)  # type: ignore[misc]  # mypy and defaults of lambdas
    assert due == []
    ends.set(None, 0.0)
    await until(lambda: due)


async def test_a_later_end_leaves_the_timer_alone() -> None:
    ends = Deadlines(Owner(lambda _: None), Departures())
    ends.set("a", 3600.0)
    timer = ends._timer
    ends.set("b", 7200.0)
    ends.set("a", 10_000.0)
    assert ends._timer is timer
    ends.set("c", 60.0)
    assert ends._timer is not timer
    ends.stop()
