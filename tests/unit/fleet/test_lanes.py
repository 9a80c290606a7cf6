"""service/roomcast/fleet/lanes.py: one batch after the other, by key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from roomcast.fleet.lanes import Lanes
from tests.unit.worlds import settled, until


class Way:
    """Sends to nowhere. Everything waits until `open` is set, and has what `outcomes` say."""

    def __init__(self, *, leaves_out: bool = True) -> None:
        self.sent: list[tuple[str, list[str]]] = []
        self.outcomes: list[str] = []
        self.open = asyncio.Event()
        self.lanes: Lanes[str, str, str] = Lanes(
            self._send,
            room=10,
            stops=lambda outcome: outcome == "stop",
            leaves_out=leaves_out,
            cut_off="cut off",
            name="test",
        )

    async def _send(self, key: str, things: Sequence[str]) -> str:
        self.sent.append((key, list(things)))
        await self.open.wait()
        return self.outcomes.pop(0) if self.outcomes else "sent"

    def add(self, key: str, *things: str) -> list[asyncio.Future[str]]:
        return [self.lanes.add(key, thing, len(thing)) for thing in things]


async def test_what_comes_meanwhile_follows_together_as_far_as_it_fits() -> None:
    way = Way()
    first = way.add("a", "1")
    await settled()
    others = way.add("a", "22222", "33333", "4", "x" * 20, "5")
    assert way.lanes.waiting("a") == 5
    way.open.set()
    assert await asyncio.gather(*first, *others) == ["sent"] * 6
    assert [things for _, things in way.sent] == [
        ["1"],
        ["22222", "33333"],
        ["4"],
        ["x" * 20],
        ["5"],
    ]
    await until(lambda: not way.lanes)
    assert "a" not in way.lanes
    assert way.lanes.waiting("a") == 0


async def test_keys_do_not_wait_for_each_other() -> None:
    way = Way()
    waiting = way.add("a", "1") + way.add("b", "2")
    await settled()
    assert way.sent == [("a", ["1"]), ("b", ["2"])]
    assert len(way.lanes) == 2
    way.open.set()
    await asyncio.gather(*waiting)


async def test_what_follows_an_outcome_that_stops_has_the_same() -> None:
    way = Way()
    way.outcomes = ["stop"]
    waiting = way.add("a", "1")
    await settled()
    waiting += way.add("a", "2", "3")
    way.open.set()
    assert await asyncio.gather(*waiting) == ["stop"] * 3
    assert len(way.sent) == 1
    assert await asyncio.gather(*way.add("a", "4")) == ["sent"], "who comes later begins anew"


@pytest.mark.parametrize("leaves_out", [True, False])
async def test_what_nobody_waits_for_may_be_left_out(leaves_out: bool) -> None:
    way = Way(leaves_out=leaves_out)
    waiting = way.add("a", "1")
    await settled()
    waiting += way.add("a", "2", "3")
    waiting[1].cancel()
    way.open.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert way.sent[1] == ("a", ["3"] if leaves_out else ["2", "3"])


async def test_what_waits_at_the_end_is_told() -> None:
    way = Way()
    waiting = way.add("a", "1")
    await settled()
    waiting += way.add("a", "2")
    [carrying] = way.lanes._carrying
    carrying.cancel()
    assert await asyncio.gather(*waiting) == ["cut off"] * 2
    assert not way.lanes
