"""service/roomcast/serve/tries.py: calls that fail are tried again within a bound.

Beyond it, the error says clearly what failed.
"""

from __future__ import annotations

import asyncio

import pytest

from roomcast.delivery.ports import Gone
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.serve import tries as tries_module
from roomcast.serve.tries import START_TRIES_S, Tries
from roomcast.testing.memory import ManualClock


class World:
    """Pauses take no time but the clock's; each attempt takes `attempt_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, random: float = 1.0) -> None:
        self.clock = ManualClock()
        self.tries = Tries(self.clock, lambda: random, START_TRIES_S)
        self.pauses: list[float] = []
        self.failures: list[PortError] = []
        self.attempts = 0
        self.attempt_s = 0.0

        sleep = self._sleep

        class Asyncio:
            def __getattr__(self, name: str) -> object:
                return sleep if name == "sleep" else getattr(asyncio, name)

        monkeypatch.setattr(tries_module, "asyncio", Asyncio())

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)

    async def call(self) -> str:
        self.attempts += 1
        self.clock.advance(self.attempt_s)
        if self.failures:
            raise self.failures.pop(0)
        return "done"


@pytest.mark.parametrize(
    "error", [UnknownOutcome("reset"), Throttled("slow down"), Gone("not yet")]
)
async def test_what_may_come_right_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: PortError
) -> None:
    world = World(monkeypatch)
    world.failures = [error] * 3
    assert await world.tries.until_done("table t", world.call) == "done"
    assert (world.attempts, world.pauses) == (4, [0.2, 0.4, 0.8])


async def test_a_refusal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.failures = [Rejected("AccessDenied")] * 2
    with pytest.raises(Rejected, match=r"^table t: AccessDenied$"):
        await world.tries.until_done("table t", world.call)
    assert (world.attempts, world.pauses) == (1, [])


@pytest.mark.parametrize("attempt_s", [0.0, 4.0])
async def test_the_bound_is_of_all_calls_together(
    monkeypatch: pytest.MonkeyPatch, attempt_s: float
) -> None:
    world = World(monkeypatch)
    world.attempt_s = attempt_s
    world.failures = [UnknownOutcome("reset")] * 3
    begun_s = world.clock.monotonic_s()
    await world.tries.until_done("table t", world.call)
    world.failures = [UnknownOutcome("reset")] * 1000
    with pytest.raises(UnknownOutcome, match=r"^queue q: reset \(tried for 30 s\)$"):
        await world.tries.until_done("queue q", world.call)
    took_s = world.clock.monotonic_s() - begun_s
    assert took_s <= START_TRIES_S + attempt_s
    assert took_s > START_TRIES_S / 2
    assert max(world.pauses) <= 5.0


@pytest.mark.parametrize("random, first_s", [(0.0, 0.1), (0.5, 0.15)])
async def test_pauses_are_jittered(
    monkeypatch: pytest.MonkeyPatch, random: float, first_s: float
) -> None:
    world = World(monkeypatch, random)
    world.failures = [Throttled()]
    await world.tries.until_done("table t", world.call)
    assert world.pauses == pytest.approx([first_s])
