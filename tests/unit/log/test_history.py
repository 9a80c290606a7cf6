"""What clients see of a channel's history: paging in both directions, and what is hidden."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from roomcast.log import channel_log
from roomcast.log.channel_log import ITEMS_A_PAGE, Appended, ChannelLog, decode_publications
from roomcast.log.history import REPLY_BYTES_MAX, History, WrongEpoch, read_history
from roomcast.log.item import Head
from roomcast.log.rules import MIN_RETENTION_MS, Pending
from roomcast.log.times import ALWAYS, CLOCKS_DIFFER_MS, Times
from roomcast.ports import PortError, Throttled
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.publication import StreamPosition
from tests.unit.worlds import Fleet, log_over, running

CHANNEL: Final = "room"
OPTIONS: Final = ChannelOptions(history_size=1000, history_ttl_s=300)


class Room:
    """A channel to write to and to read the history of."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.log = log_over(self.fleet.world, self.fleet.clock)

    async def append(self, *data: Any, log: ChannelLog | None = None) -> None:
        """One item."""
        log = log or self.log
        tail = (await log.resolve(CHANNEL)).tail
        pending = [Pending.of(json.dumps({"data": each})) for each in data]
        assert isinstance(await log.append(CHANNEL, tail, pending, 300_000), Appended)

    async def read(
        self,
        *,
        since: int | StreamPosition | None = None,
        limit: int = 100,
        reverse: bool = False,
        options: ChannelOptions = OPTIONS,
        log: ChannelLog | None = None,
        times: Times = ALWAYS,
    ) -> History:
        log = log or self.log
        if isinstance(since, int):
            since = StreamPosition((await log.resolve(CHANNEL)).tail.epoch, since)
        return await read_history(
            log,
            self.fleet.clock,
            CHANNEL,
            options,
            since=since,
            limit=limit,
            reverse=reverse,
            times=times,
        )

    async def offsets(self, **request: Any) -> list[int]:
        return offsets((await self.read(**request)).lines)


def offsets(lines: Sequence[bytes]) -> list[int]:
    return [json.loads(line)["offset"] for line in lines]


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
async def ten(room: Room) -> Room:
    """Ten publications in items of one to four."""
    for item in ([1], [2, 3], [4, 5, 6, 7], [8], [9, 10]):
        await room.append(*item)
    return room


async def test_an_empty_channel_has_a_position(room: Room) -> None:
    history = await room.read()
    assert history.lines == ()
    assert history.position.offset == 0
    assert history.position.epoch


async def test_limit_zero_asks_for_the_position_only(ten: Room) -> None:
    before = ten.fleet.traffic.calls["read_forward"]
    history = await ten.read(limit=0)
    assert history.lines == ()
    assert history.position.offset == 10
    assert ten.fleet.traffic.calls["read_forward"] == before


async def test_forward_begins_with_the_oldest(ten: Room) -> None:
    history = await ten.read()
    assert offsets(history.lines) == list(range(1, 11))
    assert [json.loads(line)["data"] for line in history.lines] == list(range(1, 11))
    assert history.position.offset == 10


@pytest.mark.parametrize("size", [1, 3, 4, 10, 11])
async def test_paging_forward_sees_everything_once(ten: Room, size: int) -> None:
    seen, since = [], 0
    while page := await ten.offsets(since=since, limit=size):
        seen += page
        since = page[-1]
    assert seen == list(range(1, 11))


@pytest.mark.parametrize("size", [1, 3, 4, 10, 11])
async def test_paging_in_reverse_sees_everything_once(ten: Room, size: int) -> None:
    seen = await ten.offsets(limit=size, reverse=True)
    while seen[-1] > 1:
        seen += await ten.offsets(since=seen[-1], limit=size, reverse=True)
    assert seen == list(range(10, 0, -1))
    assert await ten.offsets(since=1, reverse=True) == []


async def test_since_is_exclusive_and_may_be_beyond_the_end(ten: Room) -> None:
    assert await ten.offsets(since=8) == [9, 10]
    assert await ten.offsets(since=10) == []
    assert await ten.offsets(since=1000) == []
    assert await ten.offsets(since=1000, reverse=True, limit=2) == [10, 9]


async def test_a_position_of_another_epoch_is_told(ten: Room) -> None:
    with pytest.raises(WrongEpoch):
        await ten.read(since=StreamPosition("other", 3))
    assert offsets((await ten.read(since=StreamPosition("", 8))).lines) == [9, 10]


async def test_size_hides_what_is_older(ten: Room) -> None:
    options = replace(OPTIONS, history_size=3)
    assert await ten.offsets(options=options) == [8, 9, 10]
    assert await ten.offsets(options=options, since=2) == [8, 9, 10]
    assert await ten.offsets(options=options, reverse=True) == [10, 9, 8]
    assert await ten.offsets(options=options, since=8, reverse=True) == []


async def test_time_to_live_hides_what_is_older(ten: Room) -> None:
    ten.fleet.clock.advance(200)
    await ten.append(11)
    ten.fleet.clock.advance(200)
    assert await ten.offsets() == [11]
    assert await ten.offsets(reverse=True) == [11]
    ten.fleet.clock.advance(200)
    history = await ten.read()
    assert history.lines == ()
    assert history.position.offset == 11, "what is hidden is not undone"


async def test_what_was_trimmed_is_hidden(ten: Room) -> None:
    head = ten.fleet.world.items[CHANNEL][0]
    assert isinstance(head, Head)
    ten.fleet.world.items[CHANNEL][0] = replace(head, trim=6)
    assert await ten.offsets() == [7, 8, 9, 10]
    assert await ten.offsets(reverse=True, limit=2) == [10, 9]
    assert await ten.offsets(reverse=True) == [10, 9, 8, 7]


async def test_a_reply_is_bounded_in_bytes_and_can_be_continued(room: Room) -> None:
    for number in range(10):
        await room.append(str(number) * 100_000)
    page = await room.offsets()
    assert page == [1, 2, 3, 4, 5]
    assert len(page) * 100_000 <= REPLY_BYTES_MAX
    assert await room.offsets(since=page[-1]) == [6, 7, 8, 9, 10]
    assert await room.offsets(reverse=True) == [10, 9, 8, 7, 6]


@pytest.mark.parametrize("reverse", [False, True])
async def test_of_large_publications_little_is_decoded_and_others_have_their_turn(
    room: Room, monkeypatch: pytest.MonkeyPatch, *, reverse: bool
) -> None:
    for number in range(60):
        await room.append(f"{number:02d}" + "x" * 60_000)
    turns, decoded = 0, Counter[int]()

    async def pass_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def counted(text: str, offset: int) -> Any:
        decoded[turns] += len(text)
        return decode_publications(text, offset)

    monkeypatch.setattr(channel_log, "decode_publications", counted)
    async with running(pass_turns()):
        shown = offsets((await room.read(limit=300, reverse=reverse)).lines)
    assert shown == (list(range(60, 52, -1)) if reverse else list(range(1, 9)))
    # Forward, nothing is decoded behind what has no place in the reply.
    assert sum(decoded.values()) < (4 * REPLY_BYTES_MAX if reverse else 10 * 60_100)
    assert max(decoded.values()) < 2 * 60_100


async def test_forward_nothing_is_read_behind_what_fills_the_reply(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither behind the limit nor behind the bytes, nor again what has been read."""
    decoded: list[int] = []

    def counted(text: str, offset: int) -> Any:
        decoded.append(offset)
        return decode_publications(text, offset)

    monkeypatch.setattr(channel_log, "decode_publications", counted)
    monkeypatch.setattr(channel_log, "ITEMS_A_PAGE", 4)
    for number in range(30):
        await room.append(f"{number:02d}" + "x" * 60_000)
    pages = room.fleet.traffic.calls["read_forward"]
    assert await room.offsets(limit=300) == list(range(1, 9))
    assert decoded == list(range(1, 10))
    assert room.fleet.traffic.calls["read_forward"] == pages + 3
    decoded.clear()
    assert await room.offsets(since=8, limit=2) == [9, 10]
    assert decoded == [9, 10]


async def test_what_one_read_found_leaves_less_room_for_the_next(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(text: str, offset: int) -> Any:
        decoded.append(offset)
        return decode_publications(text, offset)

    monkeypatch.setattr(channel_log, "decode_publications", counted)
    for _ in range(2 * ITEMS_A_PAGE):
        await room.append("x" * 4000)
    shown = await room.offsets(limit=300)
    assert ITEMS_A_PAGE < len(shown) < 2 * ITEMS_A_PAGE
    assert decoded == [*shown, shown[-1] + 1]


async def test_what_is_hidden_takes_no_room_in_the_reply(room: Room) -> None:
    """Much that has expired stands before what has not."""
    for number in range(12):
        await room.append(f"{number:02d}" + "x" * 60_000)
    room.fleet.clock.advance(OPTIONS.history_ttl_s + 1)
    for number in range(12):
        await room.append(f"{number:02d}" + "x" * 60_000)
    assert await room.offsets(limit=300) == list(range(13, 21))
    assert await room.offsets(limit=300, since=3) == list(range(13, 21))
    assert await room.offsets(limit=2) == [13, 14]


async def test_forward_reads_over_pages(room: Room) -> None:
    count = 2 * ITEMS_A_PAGE + 50
    for number in range(count):
        await room.append(number)
    assert await room.offsets(limit=1000) == list(range(1, count + 1))
    assert await room.offsets(limit=1000, reverse=True) == list(range(count, 0, -1))


@pytest.mark.parametrize("reverse", [False, True])
async def test_history_is_the_run_that_ends_at_the_top(ten: Room, reverse: bool) -> None:
    """What expired is deleted in any order."""
    ten.fleet.world.expire(CHANNEL, 2)
    assert sorted(await ten.offsets(reverse=reverse)) == [4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("old", [1, 3, 150])
async def test_items_of_an_epoch_before_hide_nothing(room: Room, reverse: bool, old: int) -> None:
    """They stay in the table for days after they expired, before what is visible."""
    for number in range(old):
        await room.append(number)
    room.fleet.clock.advance(MIN_RETENTION_MS / 1000)
    await room.append("new")
    await room.append("newer")
    assert sorted(await room.offsets(reverse=reverse)) == [old + 1, old + 2]
    assert await room.offsets(since=old, limit=1) == [old + 1]
    assert await room.offsets(limit=1) == [old + 1]


@pytest.mark.parametrize("reverse", [False, True])
async def test_the_epoch_before_another_log_generation_is_not_shown(
    room: Room, reverse: bool
) -> None:
    await room.append("old")
    restored = log_over(room.fleet.world, room.fleet.clock, node="b", generation="1")
    await room.append("new", log=restored)
    assert await room.offsets(reverse=reverse, log=restored) == [2]


async def test_a_log_that_does_not_answer_is_told(ten: Room) -> None:
    ten.fleet.world.fail_next("read_forward", Throttled(), times=1000)
    step = ten.fleet.clock

    def slow() -> float:
        step.advance(1.0)
        return 0.0

    with pytest.raises(PortError):
        await ten.read(log=log_over(ten.fleet.world, ten.fleet.clock, node="b", random=slow))


@pytest.fixture
async def hour(room: Room) -> Room:
    """Sixty items of two publications, one a minute; the first has time 0 of `at`."""
    for minute in range(60):
        await room.append(2 * minute, 2 * minute + 1)
        room.fleet.clock.advance(60)
    return room


HOURS: Final = ChannelOptions(history_size=1000, history_ttl_s=86_400)


def at(room: Room, minute: float) -> int:
    """The time of the item of that minute, of the hour that is over."""
    return room.fleet.clock.now_ms() - int((60 - minute) * 60_000)


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_part_by_time(hour: Room, reverse: bool) -> None:
    async def part(first: float | None, end: float | None, /, **request: Any) -> list[int]:
        times = Times(
            None if first is None else at(hour, first), None if end is None else at(hour, end)
        )
        found = await hour.offsets(
            times=times, options=HOURS, limit=500, reverse=reverse, **request
        )
        return sorted(found)

    assert await part(10, 12) == [21, 22, 23, 24]
    assert await part(9.5, 11.5) == [21, 22, 23, 24]
    assert await part(None, 1) == [1, 2]
    assert await part(59, None) == [119, 120]
    assert await part(12, 12) == await part(12, 10) == []
    assert await part(61, None) == await part(None, -1) == []
    assert await part(-1, 61) == list(range(1, 121))
    if reverse:
        assert await part(10, 12, since=23) == [21, 22]
    else:
        assert await part(10, 12, since=22) == [23, 24]
        assert await part(10, 12, since=1) == [21, 22, 23, 24]


async def test_times_are_told_as_offsets_at_few_reads(hour: Room) -> None:
    reads = hour.fleet.traffic.reads
    history = await hour.read(limit=0, options=HOURS, times=Times(at(hour, 10), at(hour, 12)))
    assert (history.lines, history.position.offset) == ((), 120)
    assert history.found() == {"since_offset": 20, "until_offset": 24}
    assert hour.fleet.traffic.reads - reads <= 2 + 2 * 9
    assert (await hour.read(limit=0)).found() == {}
    assert (await Room().read(times=Times(1, 2))).found() == {"since_offset": 0, "until_offset": 0}


async def test_what_is_hidden_is_hidden_by_time_as_well(hour: Room) -> None:
    times = Times(at(hour, 0), None)
    short = ChannelOptions(history_size=3, history_ttl_s=86_400)
    assert await hour.offsets(times=times, options=short) == [118, 119, 120]
    old = ChannelOptions(history_size=1000, history_ttl_s=150)
    assert await hour.offsets(times=times, options=old) == [117, 118, 119, 120]
    await hour.log.remove_history(CHANNEL)
    history = await hour.read(times=times, options=HOURS)
    assert (history.lines, history.found()) == ((), {"since_offset": 120})


async def test_of_writers_whose_clocks_differ_nothing_is_left_out(room: Room) -> None:
    behind = Fleet()
    other = log_over(room.fleet.world, behind.clock, node="b")
    behind.clock.advance(-CLOCKS_DIFFER_MS / 1000)
    for number in range(20):
        await room.append(number, log=room.log if number % 2 else other)
        for clock in (room.fleet.clock, behind.clock):
            clock.advance(0.1)
    ts = room.fleet.clock.now_ms() - 1000
    # The twelfth was the first that was appended then: offset 11 of the other clock is "older".
    assert (await room.offsets(times=Times(ts, None)))[0] == 12
