"""A channel's history over days, against a naive model: many items, several epochs,
a trimmed head, TTL at work.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomcast.log.channel_log import Appended, ChannelLog
from roomcast.log.history import read_history
from roomcast.log.item import ITEM_PUBLICATIONS_MAX, LogItem
from roomcast.log.rules import Pending
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.publication import StreamPosition
from tests.unit.worlds import Fleet, log_over

CHANNEL: Final = "room"
DAY_S: Final = 24 * 3600
WEEK: Final = ChannelOptions(history_size=1_000_000, history_ttl_s=7 * DAY_S)
# What clients ask for at most by default, and what they recover at most.
LIMIT: Final = 300


@dataclass(frozen=True, slots=True)
class Written:
    """One publication as it was appended. `item`: the offset that its item begins with."""

    offset: int
    data: int
    epoch: str
    ts: int
    item: int


class World:
    """The log, and a naive account of what was written to it."""

    def __init__(self, options: ChannelOptions = WEEK) -> None:
        self.fleet = Fleet()
        self.options = options
        self.generation = 0
        self.written: list[Written] = []
        self.trimmed = 0
        self._count = 0

    @property
    def log(self) -> ChannelLog:
        return log_over(
            self.fleet.world,
            self.fleet.clock,
            node=f"n{self.generation}",
            generation=str(self.generation),
        )

    async def append(self, publications: int, items: int) -> None:
        """`items` log items with `publications` publications each."""
        for _ in range(items):
            tail = (await self.log.resolve(CHANNEL)).tail
            data = range(self._count + 1, self._count + publications + 1)
            self._count += publications
            pending = [Pending.of(f'{{"data":{each}}}') for each in data]
            outcome = await self.log.append(
                CHANNEL, tail, pending, self.options.history_ttl_s * 1000
            )
            assert isinstance(outcome, Appended)
            item = outcome.item
            self.written += [
                Written(item.offset + index, each, item.epoch, item.ts, item.offset)
                for index, each in enumerate(data)
            ]

    def quiet(self, hours: int) -> None:
        self.fleet.clock.advance(hours * 3600)

    async def remove_history(self) -> None:
        self.trimmed = (await self.log.remove_history(CHANNEL)).offset

    def restore(self) -> None:
        """A new log generation: whatever comes begins a new epoch."""
        self.generation += 1

    def expire(self, *, every_third_stays: bool) -> None:
        """TTL deletes what has expired, or some of it: it does so in no order."""
        now_s = self.fleet.clock.now_ms() // 1000
        items = self.fleet.world.items.get(CHANNEL, {})
        expired = [
            offset
            for offset, item in items.items()
            if isinstance(item, LogItem)
            and item.expires_at < now_s
            and (offset % 3 or not every_third_stays)
        ]
        for offset in expired:
            self.fleet.world.expire(CHANNEL, offset)

    async def visible(self) -> tuple[StreamPosition, list[Written]]:
        """What a client may see now, from the account:
        one publication after the other, from the top down.
        """
        position = (await self.log.resolve(CHANNEL)).tail.position
        cutoff = self.fleet.clock.now_ms() - self.options.history_ttl_s * 1000
        items = self.fleet.world.items[CHANNEL]
        seen: list[Written] = []
        wanted = position.offset
        for each in reversed(self.written):
            hidden = (
                each.offset <= self.trimmed
                or each.offset <= position.offset - self.options.history_size
            )
            if each.epoch != position.epoch or each.ts < cutoff or hidden or each.item not in items:
                break
            assert each.offset == wanted, "the account itself has no hole"
            seen.append(each)
            wanted -= 1
        return position, seen[::-1]

    async def read(self, since: int | None, limit: int, reverse: bool) -> list[tuple[int, int]]:
        """Offsets and data as the log gives them."""
        epoch = (await self.log.resolve(CHANNEL)).tail.epoch
        history = await read_history(
            self.log,
            self.fleet.clock,
            CHANNEL,
            self.options,
            since=None if since is None else StreamPosition(epoch, since),
            limit=limit,
            reverse=reverse,
        )
        publications = [json.loads(line) for line in history.lines]
        return [(each["offset"], each["data"]) for each in publications]

    async def paged(self, limit: int, reverse: bool) -> list[tuple[int, int]]:
        """Everything, page by page, each from where the last one ended."""
        seen: list[tuple[int, int]] = []
        since: int | None = None
        while page := await self.read(since, limit, reverse):
            seen += page
            since = page[-1][0]
        return seen


def shown(written: list[Written]) -> list[tuple[int, int]]:
    return [(each.offset, each.data) for each in written]


async def check(world: World, limits: list[int], sinces: list[int]) -> None:
    """Pages from every end and from anywhere are what the account says."""
    position, visible = await world.visible()
    for limit in limits:
        # A page of one for thousands takes long and says nothing that a page of a few does not.
        limit = max(limit, len(visible) // 20)  # noqa: PLW2901
        assert await world.paged(limit, reverse=False) == shown(visible)
        assert await world.paged(limit, reverse=True) == shown(visible)[::-1]
    for number in sinces:
        since = number % (position.offset + 3)
        for limit in limits:
            after = [each for each in visible if each.offset > since]
            assert await world.read(since, limit, reverse=False) == shown(after[:limit])
            if since:
                before = [each for each in visible if each.offset < since]
                assert await world.read(since, limit, reverse=True) == shown(before[::-1][:limit])


LIMITS: Final = st.lists(st.integers(1, LIMIT), min_size=1, max_size=2, unique=True)
SINCES: Final = st.lists(st.integers(0, 1_000_000), min_size=2, max_size=4)
# Publications in each item, items: few large ones, or many small ones.
APPENDS: Final = st.one_of(
    st.tuples(st.integers(200, ITEM_PUBLICATIONS_MAX), st.integers(1, 2)),
    st.tuples(st.integers(1, 3), st.integers(10, 90)),
)
QUIET_H: Final = st.one_of(st.integers(0, 3), st.integers(12, 60), st.integers(165, 170))
ACTIONS: Final = st.sampled_from(["", "", "", "remove", "restore", "expire", "expire all"])
STRETCHES: Final = st.lists(st.tuples(APPENDS, ACTIONS, QUIET_H), min_size=3, max_size=9)


@settings(max_examples=30)
@given(
    STRETCHES,
    LIMITS,
    SINCES,
    st.sampled_from([WEEK.history_size, 700]),
    st.sampled_from([1, 24, 168]),
)
def test_pages_are_what_was_written(
    stretches: list[tuple[tuple[int, int], str, int]],
    limits: list[int],
    sinces: list[int],
    size: int,
    ttl_h: int,
) -> None:
    """`ttl_h` below a day: much that is hidden is still in the table."""
    world = World(replace(WEEK, history_size=size, history_ttl_s=ttl_h * 3600))

    async def run() -> None:
        for (publications, items), action, quiet_h in stretches:
            await world.append(publications, items)
            if action == "remove":
                await world.remove_history()
                await world.append(2, 30)
            if action == "restore":
                world.restore()
                await world.append(2, 30)
            world.quiet(quiet_h)
            if action.startswith("expire"):
                world.expire(every_third_stays=action == "expire")
        await check(world, limits, sinces)

    asyncio.run(run())


@pytest.mark.parametrize("limit", [40, LIMIT])
async def test_a_week_is_paged_through_far_beyond_what_a_recovery_brings(limit: int) -> None:
    world = World()
    for _ in range(7):
        await world.append(1, 100)
        await world.append(ITEM_PUBLICATIONS_MAX, 1)
        world.quiet(23)
    _, visible = await world.visible()
    assert len(visible) == 4200
    assert await world.paged(limit, reverse=False) == shown(visible)
    assert await world.paged(limit, reverse=True) == shown(visible)[::-1]
    world.quiet(24)
    _, visible = await world.visible()
    assert len(visible) == 3600, "the first day is hidden now"
    assert await world.paged(limit, reverse=False) == shown(visible)
    assert await world.paged(limit, reverse=True) == shown(visible)[::-1]


@pytest.mark.parametrize("limit", [1, 10, LIMIT])
async def test_forward_begins_with_the_oldest_that_is_shown_behind_thousands_that_are_not(
    limit: int,
) -> None:
    """They are kept for a day and shown for an hour."""
    world = World(replace(WEEK, history_ttl_s=3600))
    await world.append(1, 2500)
    world.quiet(2)
    await world.append(1, 400)
    _, visible = await world.visible()
    assert len(visible) == 400
    assert await world.read(None, limit, reverse=False) == shown(visible[:limit])
    assert await world.read(17, limit, reverse=False) == shown(visible[:limit])


@pytest.mark.parametrize("limit", [1, 10, LIMIT])
async def test_forward_begins_with_the_oldest_of_a_long_epoch_behind_another(limit: int) -> None:
    world = World()
    await world.append(3, 40)
    world.restore()
    await world.append(1, 2500)
    _, visible = await world.visible()
    assert len(visible) == 2500
    assert await world.read(None, limit, reverse=False) == shown(visible[:limit])
