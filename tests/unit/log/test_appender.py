"""Group commit over memory: one append in flight a channel,
every accepted publication answered once.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count, pairwise
from math import inf
from typing import Any, Final

import pytest
import structlog

from roomcast.aws.clients import LOG_CONNECTIONS_MAX
from roomcast.log import appender as appender_module
from roomcast.log.appender import ANSWERED_AT_ONCE, APPENDS_AT_ONCE, Appender, Full, TooLarge
from roomcast.log.channel_log import (
    APPEND_DEADLINE_S,
    READ_DEADLINE_S,
    NeverAppended,
    NotAppended,
    OffsetsUsedUp,
    OutcomeUnknown,
    record_of,
)
from roomcast.log.item import ITEM_BYTES_MAX, ITEM_PUBLICATIONS_MAX, OFFSET_MAX, LogItem
from roomcast.log.lane import (
    FIRST_BYTES,
    LANE_BYTES_MAX,
    LANE_MUCH_PART,
    LANE_PUBLICATIONS_MAX,
)
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import Stage
from roomcast.wire.encoding import Unencodable
from roomcast.wire.publication import Publication, Record, StreamPosition
from tests.contract.items import log_item
from tests.unit.worlds import Fleet, log_over, logged, no_jitter, settled, until

CHANNEL: Final = "room"
TTL_MS: Final = 300_000
TAIL_VALID_S: Final = (MIN_RETENTION_MS - MARGIN_MS) / 1000
# What one call takes that is not answered.
HANGS_S: Final = 8.0


class Writer:
    """An appender of one node, and the records that it offers."""

    def __init__(self, fleet: Fleet, node: str = "a", chance: float = 0.0) -> None:
        self.offered: list[Record] = []
        self.log = log_over(fleet.world, fleet.clock, node=node, random=self._random)
        self.appender = Appender(
            self.log, fleet.clock, self._take, generation="0", random=lambda: chance
        )
        self.step_s = 0.0
        self.back_offs = 0
        self._fleet = fleet

    def submit(
        self, data: Any, channel: str = CHANNEL, key: str | None = None, caller: str = ""
    ) -> asyncio.Future[StreamPosition]:
        return self.appender.submit(channel, Publication(data=data), TTL_MS, key, caller=caller)

    async def publish(self, data: Any) -> StreamPosition:
        return await self.submit(data)

    @property
    def offered_data(self) -> list[Any]:
        return [pub.data for record in self.offered for pub in record.publications or ()]

    def _take(self, item: LogItem) -> None:
        if (record := record_of(item)) is not None:
            self.offered.append(record)

    def _random(self) -> float:
        """Each back-off takes `step_s` on the clock, and no time."""
        self.back_offs += 1
        self._fleet.clock.advance(self.step_s)
        return 0.0


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def writer(fleet: Fleet) -> Writer:
    return Writer(fleet)


async def test_a_publication_is_answered_when_it_is_in_the_log(
    fleet: Fleet, writer: Writer
) -> None:
    """I2."""
    held = fleet.traffic.hold("put_item", "sent")
    position = writer.submit("one")
    await held.arrived()
    await settled()
    assert not position.done()
    assert writer.offered == []
    held.release()
    assert (await position).offset == 1
    assert logged(fleet.world) == ["one"]
    assert writer.offered_data == ["one"]


async def test_the_record_is_offered_before_the_publisher_is_answered(fleet: Fleet) -> None:
    """The local fast path: what was acknowledged is on its way to local subscribers."""
    order: list[str] = []
    log = log_over(fleet.world, fleet.clock)
    appender = Appender(
        log, fleet.clock, lambda _: order.append("offered"), generation="0", random=no_jitter
    )
    position = appender.submit(CHANNEL, Publication(data=1), TTL_MS)
    position.add_done_callback(lambda _: order.append("answered"))
    await position
    await settled()
    assert order == ["offered", "answered"]


async def test_the_offered_record_is_what_the_log_has(fleet: Fleet, writer: Writer) -> None:
    published = Publication(data={"a": [1]}, tags={"k": "v"}, time=7)
    position = await writer.appender.submit(CHANNEL, published, TTL_MS)
    [item] = fleet.world.stream
    assert writer.offered == [
        Record(
            CHANNEL,
            position.epoch,
            1,
            1,
            item.ts,
            (Publication(data={"a": [1]}, offset=1, tags={"k": "v"}, time=7),),
        )
    ]
    assert json.loads(item.pubs) == [published.stored()]


async def test_what_comes_during_an_append_goes_into_the_next(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit(0)]
    await held.arrived()
    positions += [writer.submit(number) for number in range(1, 11)]
    held.release()
    offsets = [(await position).offset for position in positions]
    assert offsets == list(range(1, 12))
    assert [(item.offset, item.last) for item in fleet.world.stream] == [(1, 1), (2, 11)]
    assert logged(fleet.world) == list(range(11))
    assert fleet.traffic.calls["newest"] == 1, "the tail is read once"


async def test_channels_do_not_wait_for_each_other(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    first = writer.submit("a", "one")
    await held.arrived()
    second = writer.submit("b", "two")
    await held.arrived(2)
    held.release()
    assert (await first).offset == (await second).offset == 1


async def test_one_append_in_flight_a_channel(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit(number) for number in range(2 * ITEM_PUBLICATIONS_MAX)]
    await held.arrived()
    await settled()
    assert held.count == 1
    held.release()
    await asyncio.gather(*positions)


async def test_items_are_bounded_in_number_and_bytes(fleet: Fleet, writer: Writer) -> None:
    numbers = [writer.submit(number) for number in range(1200)]
    await asyncio.gather(*numbers)
    assert [item.last - item.offset + 1 for item in fleet.world.stream] == [500, 500, 200]
    large = [writer.submit("x" * 50_000, "large") for _ in range(5)]
    await asyncio.gather(*large)
    items = [item for item in fleet.world.stream if item.channel == "large"]
    assert [item.last - item.offset + 1 for item in items] == [2, 2, 1]
    assert all(len(item.pubs) <= ITEM_BYTES_MAX for item in items)


@pytest.mark.parametrize("effect", ["none", "applied", "late"])
async def test_after_an_unknown_outcome_the_same_batch_is_sent_again(
    fleet: Fleet, writer: Writer, effect: str
) -> None:
    await writer.publish("zero")
    fleet.world.fail_next("put_item", UnknownOutcome(), effect=effect, times=2)  # type: ignore[arg-type]
    held = fleet.traffic.hold("put_item", "answer")
    one = writer.submit("one")
    await held.arrived()
    two = writer.submit("two")
    held.release()
    positions = [await one, await two]
    fleet.world.deliver_late()
    assert [position.offset for position in positions] == [2, 3]
    assert logged(fleet.world) == ["zero", "one", "two"]
    assert writer.offered_data == ["zero", "one", "two"]
    assert len({item.batch for item in fleet.world.stream}) == len(fleet.world.stream) == 3


async def test_after_a_lost_race_the_winner_is_offered_and_ours_follows(
    fleet: Fleet, writer: Writer
) -> None:
    other = Writer(fleet, "b")
    await writer.publish("first")
    await other.publish("theirs")
    position = await writer.publish("ours")
    assert position.offset == 3
    assert logged(fleet.world) == ["first", "theirs", "ours"]
    assert writer.offered_data == ["first", "theirs", "ours"], "a free catch-up"
    assert [item.node for item in fleet.world.stream] == ["a", "b", "a"]


async def test_who_is_far_behind_reads_the_tail_instead_of_losing_race_after_race(
    fleet: Fleet, writer: Writer
) -> None:
    other = Writer(fleet, "b")
    await writer.publish("first")
    for number in range(40):
        await other.publish(number)
    before = fleet.traffic.calls["put_item"]
    assert (await writer.publish("last")).offset == 42
    assert fleet.traffic.calls["put_item"] - before <= 5


async def test_nodes_that_write_at_once_leave_no_hole_and_keep_each_ones_order(
    fleet: Fleet,
) -> None:
    writers = [Writer(fleet, name) for name in "abc"]
    fleet.world.fail_next("put_item", Throttled(), times=5)
    positions = []
    for number in range(60):
        positions += [
            writer.submit([name, number]) for name, writer in zip("abc", writers, strict=True)
        ]
        await asyncio.sleep(0)
    offsets = [(await position).offset for position in positions]
    assert sorted(offsets) == list(range(1, 181))
    data = logged(fleet.world)
    for name in "abc":
        assert [number for who, number in data if who == name] == list(range(60))
    for offset, published in zip(
        offsets, ([name, number] for number in range(60) for name in "abc"), strict=True
    ):
        assert data[offset - 1] == published


class Overtaking:
    """Another node that comes before each of the next `times` appends,
    which take `step_s` on the clock each.
    """

    def __init__(self, fleet: Fleet, epoch: str, times: float = inf, step_s: float = 0.0) -> None:
        self.races = 0
        self.before_each: Callable[[], object] = lambda: None
        self._fleet = fleet
        self._epoch = epoch
        self._times = times
        self._step_s = step_s
        fleet.world.pause = self._pause

    async def _pause(self, call: str, stage: Stage) -> None:
        if call == "put_item" and stage == "call" and self.races < self._times:
            self.races += 1
            self.before_each()
            self._fleet.clock.advance(self._step_s)
            items = self._fleet.world.items[CHANNEL]
            offset = max(items) + 1
            batch = f"theirs {self.races}"
            items[offset] = replace(log_item(offset, text="theirs"), epoch=self._epoch, batch=batch)
        await asyncio.sleep(0)


async def test_an_append_that_cannot_win_is_known_not_to_be_in(
    fleet: Fleet, writer: Writer
) -> None:
    """Somebody is always quicker. Time ends it, and no number of races."""
    first = await writer.publish("first")
    overtaking = Overtaking(fleet, first.epoch, step_s=0.25)
    with pytest.raises(NotAppended, match="too long"):
        await writer.publish("ours")
    assert overtaking.races == APPEND_DEADLINE_S / 0.25 + 1
    assert "ours" not in logged(fleet.world)
    assert writer.appender.waiting_bytes == 0


async def test_who_loses_often_pauses_and_then_reads_the_end_again(fleet: Fleet) -> None:
    """So that many writers of one channel do not spin,
    and nobody tries with what it knew before a pause.
    """
    writer = Writer(fleet, chance=0.5)
    first = await writer.publish("first")
    overtaking = Overtaking(fleet, first.epoch, times=30)
    behind = fleet.world.perform
    reads: list[int] = []

    async def counted(call: str, *arguments: Any) -> Any:
        if call == "read_behind":
            reads.append(overtaking.races)
        return await behind(call, *arguments)

    fleet.world.perform = counted  # type: ignore[assignment]  # counts
    assert (await writer.publish("ours at last")).offset == 32
    # After the first race, for which it had not looked, and after each one for which it paused.
    assert reads == [1, *range(24, 31)]
    assert writer.appender.counters.turn_s.sum > 0
    assert writer.appender.counters.losses.sum == 30


async def test_what_comes_while_races_are_lost_joins_the_append(
    fleet: Fleet, writer: Writer
) -> None:
    first = await writer.publish("first")
    overtaking = Overtaking(fleet, first.epoch, times=3)
    came: list[asyncio.Future[StreamPosition]] = []
    overtaking.before_each = lambda: came.append(writer.submit(f"during race {overtaking.races}"))
    assert (await writer.publish("ours")).offset == 5
    assert [(await position).offset for position in came] == [6, 7, 8]
    assert fleet.world.stream[-1].pubs.count("during race") == 3
    assert len({item.batch for item in fleet.world.stream}) == len(fleet.world.stream)


async def test_a_fault_of_delivery_does_not_change_what_an_append_came_to(fleet: Fleet) -> None:
    """Neither when it is in, nor when a race was lost, which is known."""

    def broken(item: LogItem) -> None:
        raise RuntimeError("simulated")

    log = log_over(fleet.world, fleet.clock)
    appender = Appender(log, fleet.clock, broken, generation="0", random=no_jitter)
    assert (await appender.submit(CHANNEL, Publication(data=1), TTL_MS)).offset == 1
    await Writer(fleet, "b").publish("theirs")
    assert (await appender.submit(CHANNEL, Publication(data=2), TTL_MS)).offset == 3
    assert logged(fleet.world) == [1, "theirs", 2]


async def test_subscribers_of_a_writing_node_get_what_others_wrote_without_a_hole(
    fleet: Fleet,
) -> None:
    """It reads on from where it was: also what it would have found much later in its queue."""
    writer, other = Writer(fleet), Writer(fleet, "b")
    await writer.publish("first")
    for number in range(5):
        await other.publish(number)
        if number == 2:
            await writer.publish("ours")
    await writer.publish("last")
    assert writer.offered_data == ["first", 0, 1, 2, "ours", 3, 4, "last"]


async def test_a_lone_writer_reads_nothing_and_waits_for_nobody(
    fleet: Fleet, writer: Writer
) -> None:
    for number in range(5):
        await writer.publish(number)
    assert fleet.traffic.reads == 1
    assert fleet.traffic.calls["put_item"] == 5
    assert writer.appender.counters.writers.sum == 0


async def test_who_is_met_at_the_end_of_the_log_is_another_writer(
    fleet: Fleet, writer: Writer
) -> None:
    """Also by a node that knew nothing of the channel before, and lost no race."""
    await Writer(fleet, "b").publish("theirs")
    await writer.publish("ours")
    counters = writer.appender.counters
    assert (counters.losses.sum, counters.writers.sum) == (0, 1)


async def test_nobody_gives_way_to_itself(fleet: Fleet, writer: Writer) -> None:
    await writer.publish("ours")
    again = Writer(fleet)
    await again.publish("ours, whose end was read")
    assert again.appender.counters.writers.sum == 0


async def test_the_end_is_read_again_after_each_refusal_for_want_of_room(
    fleet: Fleet, writer: Writer
) -> None:
    """Others write while it waits."""
    await writer.publish("first")
    await Writer(fleet, "b").publish("theirs")
    await writer.publish("ours")
    before = fleet.traffic.calls["read_behind"]
    fleet.world.fail_next("put_item", Throttled(), times=3)
    await writer.publish("at last")
    assert fleet.traffic.calls["read_behind"] - before == 1 + 3


async def test_who_took_the_offset_of_a_repeated_key_is_known_from_then_on(
    fleet: Fleet, writer: Writer
) -> None:
    """The others of that append go behind it at once, and subscribers here get it."""
    await writer.publish("first")
    theirs = Writer(fleet, "b")
    assert (await theirs.submit("once", key="k")).offset == 2
    before = fleet.traffic.calls["put_keyed_item"]
    positions = [writer.submit("once", key="k"), writer.submit("ours", key="l")]
    assert [(await position).offset for position in positions] == [2, 3]
    assert fleet.traffic.calls["put_keyed_item"] - before == 2
    assert writer.offered_data == ["first", "once", "ours"]


async def test_an_end_that_was_learned_long_ago_is_not_followed(
    fleet: Fleet, writer: Writer
) -> None:
    """There may be much behind it. The node remembers that others write for longer than that."""
    await writer.publish("first")
    await Writer(fleet, "b").publish("theirs")
    await writer.publish("ours")
    calls = fleet.traffic.calls
    for age_s, followed, resolved in ((0.02, 1, 0), (0.1, 0, 1)):
        before = calls.copy()
        fleet.clock.advance(age_s)
        await writer.publish("ours")
        assert (calls - before)["read_behind"] == followed
        assert (calls - before)["newest"] == resolved


async def test_races_that_are_lost_tell_how_long_a_write_takes(fleet: Fleet) -> None:
    """Or who loses most would pause as if the table were as near as ever."""
    writer = Writer(fleet, chance=0.5)
    first = await writer.publish("first")
    Overtaking(fleet, first.epoch, times=24, step_s=0.05)
    await writer.publish("ours at last")
    assert writer.appender.counters.turn_s.sum > 0.004


async def test_a_log_that_has_no_offset_left_refuses_and_says_so(
    fleet: Fleet, writer: Writer
) -> None:
    """Somebody else wrote there: no append of ours would lead to it."""
    first = await writer.publish("first")
    last = replace(log_item(OFFSET_MAX), epoch=first.epoch, batch="forged", expires_at=10**12)
    fleet.world.items[CHANNEL][OFFSET_MAX] = last
    with structlog.testing.capture_logs() as logs, pytest.raises(OffsetsUsedUp, match="offset"):
        await Writer(fleet, "b").publish("ours")
    assert [log["event"] for log in logs] == ["append_failed"]
    assert writer.appender.waiting_bytes == 0


async def test_what_was_too_much_for_the_table_goes_in_parts_and_in_its_order(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(0)
    fleet.world.fail_next("put_item", Throttled(), times=2)
    positions = [writer.submit(f"{number}".ljust(1000)) for number in range(100)]
    assert [(await position).offset for position in positions] == list(range(2, 102))
    assert [int(each) for each in logged(fleet.world)] == [0, *range(100)]
    first, second, *_ = fleet.world.stream[1:]
    assert ITEM_BYTES_MAX // 8 < len(first.pubs) <= ITEM_BYTES_MAX // 4
    assert len(first.pubs) < len(second.pubs)


@pytest.mark.parametrize("error", [Throttled, UnknownOutcome])
async def test_who_cannot_look_tries_with_a_tail_that_is_still_valid(
    fleet: Fleet, writer: Writer, error: type[PortError]
) -> None:
    other = Writer(fleet, "b")
    await writer.publish("first")
    await other.publish("theirs")
    await writer.publish("ours")
    writer.step_s = 0.5
    for call in ("read_behind", "newest"):
        fleet.world.fail_next(call, error("simulated"), times=100)
    positions = [writer.submit(number) for number in range(50)]
    assert [(await position).offset for position in positions] == list(range(4, 54))


async def test_a_fault_of_ours_in_finding_the_end_leaves_nobody_without_an_answer(
    fleet: Fleet, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_channel: str) -> None:
        raise RuntimeError("simulated")

    monkeypatch.setattr(writer.log, "resolve", broken)
    with pytest.raises(OutcomeUnknown):
        await writer.publish("one")


@pytest.mark.parametrize(
    "begun", [False, True], ids=["before its first step", "waiting for its turn"]
)
async def test_a_lane_that_is_cancelled_leaves_nobody_without_an_answer(
    fleet: Fleet, writer: Writer, begun: bool
) -> None:
    await writer.publish("first")
    await Writer(fleet, "b").publish("theirs")
    await writer.publish("ours")
    waiting = writer.submit("one more")
    lane = writer.appender._lanes[CHANNEL]
    assert lane.task is not None
    if begun:
        await asyncio.sleep(0)
        assert lane.contention.wait_s(fleet.clock.monotonic_s()) > 0
    lane.task.cancel()
    await settled()
    after = writer.submit("after")
    await settled()
    await writer.appender.drain()
    assert after.done()
    assert waiting.done()
    assert writer.appender.waiting_bytes == 0


async def test_what_came_late_is_tried_for_its_own_time_when_an_answer_is_lost(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish("zero")
    held = fleet.traffic.hold("put_item", "answer")
    positions = [writer.submit("under way")]
    await held.arrived()
    positions.append(writer.submit("old"))
    fleet.clock.advance(APPEND_DEADLINE_S)
    positions += [writer.submit(number) for number in range(3)]
    fleet.world.fail_next("put_item", UnknownOutcome(), "applied")
    held.release()
    assert [(await position).offset for position in positions] == [2, 3, 4, 5, 6]


# ---- how long anybody waits


class Down:
    """The named calls of the world hang, for `HANGS_S` on the clock each, and fail.
    None hangs before `begin` is set.
    """

    def __init__(self, fleet: Fleet, *calls: str, error: type[PortError] = UnknownOutcome) -> None:
        self.calls = 0
        self.begin = asyncio.Event()
        self._fleet = fleet
        self._names = calls
        self._error = error
        fleet.world.pause = self._pause

    async def _pause(self, call: str, stage: Stage) -> None:
        # Whoever was answered learns it before time passes.
        await asyncio.sleep(0)
        if call in self._names and stage == "sent":
            self.calls += 1
            await self.begin.wait()
            self._fleet.clock.advance(HANGS_S)
            self._fleet.world.fail_next(call, self._error("simulated"))


class Waits:
    """How long publications waited for their answers, on the clock, and what these were."""

    def __init__(self, fleet: Fleet) -> None:
        self.seconds: list[float] = []
        self.answers: list[type[BaseException] | None] = []
        self._clock = fleet.clock

    def add(self, position: asyncio.Future[StreamPosition]) -> None:
        begin_s = self._clock.monotonic_s()

        def answered(done: asyncio.Future[StreamPosition]) -> None:
            self.seconds.append(self._clock.monotonic_s() - begin_s)
            error = done.exception()
            self.answers.append(None if error is None else type(error))

        position.add_done_callback(answered)


@pytest.mark.parametrize("keyed", [True, False])
async def test_who_waits_behind_others_does_not_pay_for_their_failures(
    fleet: Fleet, writer: Writer, keyed: bool
) -> None:
    """Only what was sent is unknown. What was not is failed when its turn comes too late,
    and known not to be in.
    """
    await writer.publish("zero")
    put = "put_keyed_item" if keyed else "put_item"
    down, waits = Down(fleet, put), Waits(fleet)
    first = writer.submit("first", key="0" if keyed else None)
    waits.add(first)
    await until(lambda: down.calls)
    for number in range(200):
        waits.add(writer.submit("x" * 1000, key=str(number + 1) if keyed else None))
    down.begin.set()
    await writer.appender.drain()
    await settled()
    assert waits.answers == [OutcomeUnknown] + [NotAppended] * 200
    assert max(waits.seconds) <= APPEND_DEADLINE_S + 2 * HANGS_S
    assert down.calls <= APPEND_DEADLINE_S / HANGS_S + 1
    assert logged(fleet.world) == ["zero"]
    assert writer.appender._bytes == 0


@pytest.mark.parametrize(
    "down_calls", [("put_item",), ("newest", "put_item")], ids=["writes", "all"]
)
async def test_nobody_waits_for_longer_than_two_deadlines(
    fleet: Fleet, writer: Writer, down_calls: tuple[str, ...]
) -> None:
    """Whatever is in front when it comes: others that are tried,
    and others that come all the time.
    """
    await writer.publish("zero")
    down, waits = Down(fleet, *down_calls), Waits(fleet)
    hang = fleet.world.pause
    submitted = 0

    async def come(call: str, stage: Stage) -> None:
        nonlocal submitted
        if stage == "call" and submitted < 3000:
            for _ in range(20):
                submitted += 1
                waits.add(writer.submit("x" * 3000))
        await hang(call, stage)

    fleet.world.pause = come
    down.begin.set()
    waits.add(writer.submit("first"))
    await writer.appender.drain()
    await settled()
    assert len(waits.answers) > 100
    assert None not in waits.answers
    assert max(waits.seconds) <= 2 * APPEND_DEADLINE_S + 2 * HANGS_S
    # Writing is tried all the time, and only what was sent may be in.
    assert down.calls >= 5
    assert OutcomeUnknown in waits.answers


@pytest.mark.parametrize("key", [None, "k"])
async def test_the_time_that_it_takes_to_find_the_tail_counts(
    fleet: Fleet, writer: Writer, key: str | None
) -> None:
    down = Down(fleet, "put_item", "put_keyed_item")
    down.begin.set()
    hang = fleet.world.pause

    async def slow(call: str, stage: Stage) -> None:
        if (call, stage) == ("newest", "answer"):
            fleet.clock.advance(APPEND_DEADLINE_S - HANGS_S)
        await hang(call, stage)

    fleet.world.pause = slow
    begin_s = fleet.clock.monotonic_s()
    with pytest.raises(OutcomeUnknown):
        await writer.submit("one", key=key)
    assert fleet.clock.monotonic_s() - begin_s <= APPEND_DEADLINE_S + HANGS_S


async def test_a_tail_that_cannot_be_read_is_tried_once_for_all_who_wait(
    fleet: Fleet, writer: Writer
) -> None:
    down, waits = Down(fleet, "newest"), Waits(fleet)
    for number in range(200):
        waits.add(writer.submit(number, key=str(number)))
    down.begin.set()
    await writer.appender.drain()
    await settled()
    assert waits.answers == [NotAppended] * 200
    assert max(waits.seconds) <= READ_DEADLINE_S + HANGS_S
    assert down.calls == 1
    assert writer.appender._bytes == 0
    fleet.world.pause = fleet.traffic._pause
    assert (await writer.publish("room again")).offset == 1


async def test_what_is_in_front_of_the_deadline_is_sent(fleet: Fleet, writer: Writer) -> None:
    """Waiting alone is no failure."""
    await writer.publish("zero")
    held = fleet.traffic.hold("put_item", "answer")
    positions = [writer.submit("first")]
    await held.arrived()
    positions.append(writer.submit("second"))
    fleet.clock.advance(APPEND_DEADLINE_S)
    held.release()
    assert [(await position).offset for position in positions] == [2, 3]


async def test_who_joins_an_append_late_has_a_deadline_of_its_own(
    fleet: Fleet, writer: Writer
) -> None:
    first = await writer.publish("first")
    overtaking = Overtaking(fleet, first.epoch, times=4, step_s=10.0)
    late: list[asyncio.Future[StreamPosition]] = []

    def come() -> None:
        if overtaking.races > 1:
            late.append(writer.submit(overtaking.races))

    overtaking.before_each = come
    with pytest.raises(NotAppended):
        await writer.publish("ours")
    assert [(await position).offset for position in late] == [6, 7, 8]
    assert "ours" not in logged(fleet.world)


@pytest.mark.parametrize("call", ["newest", "put_item"])
async def test_what_the_table_refuses_is_never_appended(
    fleet: Fleet, writer: Writer, call: str
) -> None:
    """It would refuse it again: not a matter of time, as a throttled call is."""
    fleet.world.fail_next(call, Rejected("no permission"))
    with pytest.raises(NeverAppended):
        await writer.publish("one")
    writer.step_s = 10.0
    fleet.world.fail_next(call, Throttled("slow down"), times=20)
    with pytest.raises(NotAppended) as failure:
        await writer.publish("one")
    assert failure.type is NotAppended


async def test_a_tail_that_expired_before_sending_is_told_and_healed(
    fleet: Fleet, writer: Writer
) -> None:
    first = await writer.publish("one")
    held = fleet.traffic.hold("put_item", "call")
    position = writer.submit("two")
    await held.arrived()
    fleet.clock.advance(TAIL_VALID_S)
    held.release()
    with pytest.raises(NotAppended):
        await position
    again = await writer.publish("two again")
    assert again.epoch != first.epoch
    assert logged(fleet.world) == ["one", "two again"]


async def test_an_outcome_that_stays_unknown_is_told_and_the_tail_read_again(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish("one")
    writer.step_s = 6.0
    fleet.world.fail_next("put_item", UnknownOutcome(), effect="late", times=50)
    with pytest.raises(OutcomeUnknown):
        await writer.publish("lost or not")
    fleet.world._faults.clear()
    writer.step_s = 0.0
    fleet.world.deliver_late()
    assert (await writer.publish("three")).offset == 3
    assert logged(fleet.world) == ["one", "lost or not", "three"]


async def test_a_tail_that_cannot_be_read_fails_those_who_wait_and_no_others(
    fleet: Fleet, writer: Writer
) -> None:
    fleet.world.fail_next("newest", Rejected("no permission"))
    with pytest.raises(NotAppended):
        await writer.publish("one")
    assert (await writer.publish("two")).offset == 1


async def test_a_fault_of_ours_leaves_no_publisher_without_an_answer(
    fleet: Fleet, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(writer.log, "append", broken)
        with pytest.raises(OutcomeUnknown):
            await writer.publish("one")
    assert (await writer.publish("two")).offset == 1


async def test_a_channel_that_expired_goes_on_in_another_epoch(
    fleet: Fleet, writer: Writer
) -> None:
    first = await writer.publish("one")
    fleet.clock.advance(TAIL_VALID_S - 1)
    assert (await writer.publish("two")).epoch == first.epoch
    fleet.clock.advance(MIN_RETENTION_MS / 1000)
    third = await writer.publish("three")
    assert third.epoch != first.epoch
    assert third.offset == 3


async def test_publications_wait_within_bounds(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit("in flight")]
    await held.arrived()
    positions += [
        writer.submit(number, caller=f"user {number % 100}")
        for number in range(LANE_PUBLICATIONS_MAX)
    ]
    with pytest.raises(Full):
        writer.submit("one too many", caller="user 1")
    positions.append(writer.submit("another channel has room", "other"))
    held.release()
    await asyncio.gather(*positions)
    assert (await writer.publish("room again")).offset == LANE_PUBLICATIONS_MAX + 2
    assert "one too many" not in logged(fleet.world)


async def test_large_appends_that_are_in_at_once_are_answered_in_turns(
    fleet: Fleet, writer: Writer
) -> None:
    """A table that answers again answers all of them."""
    await asyncio.gather(*(writer.submit(0, f"c{number}") for number in range(10)))
    held = fleet.traffic.hold("put_item", "answer")
    first = [writer.submit(0, f"c{number}") for number in range(10)]
    await held.arrived()
    large = [
        writer.submit(each, f"c{number}", caller=f"user {each}")
        for number in range(8)
        for each in range(ANSWERED_AT_ONCE + 1)
    ]
    small = [writer.submit(each, f"c{number}") for number in (8, 9) for each in range(3)]
    held.release()
    await asyncio.gather(*first)
    answered = [0]
    while answered[-1] < len(large):
        await asyncio.sleep(0)
        answered.append(sum(position.done() for position in large))
        assert len(answered) < 100
    assert max(after - before for before, after in pairwise(answered)) == ANSWERED_AT_ONCE + 1
    assert all(position.done() for position in small)


async def test_bytes_wait_within_bounds(
    fleet: Fleet, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    large = "x" * 100_000
    much = int(LANE_BYTES_MAX * LANE_MUCH_PART)
    positions = [writer.submit(large) for _ in range(much // len(large))]
    with pytest.raises(Full):
        writer.submit(large)
    for name in ("NODE_BYTES_MAX", "MUCH_BYTES_MAX"):
        monkeypatch.setattr(appender_module, name, much + 1000)
    with pytest.raises(Full):
        writer.submit(large, "other")
    held.release()
    await asyncio.gather(*positions)
    assert writer.appender._bytes == 0, "what was answered counts no more"
    await asyncio.gather(*(writer.submit(large) for _ in positions))


async def test_few_callers_leave_the_others_room_in_the_same_channel(
    fleet: Fleet, writer: Writer
) -> None:
    """Whatever the sizes of what they publish. Who fills a room made it 111 for all others."""
    held = fleet.traffic.hold("newest")
    positions = []
    for size in (60_000, 1_000, 1):
        with suppress(Full):
            for number in count():
                caller = f"user {number % 3}"
                positions.append(writer.submit("x" * size, caller=caller))
    positions += [writer.submit("y" * 1900, caller="user other") for _ in range(8)]
    with pytest.raises(Full):
        writer.submit("y" * 60_000, caller="user other")
    held.release()
    await asyncio.gather(*positions)
    [lane] = writer.appender._lanes.values()
    assert (lane.bytes, lane._of) == (0, {})


async def test_many_callers_leave_each_other_room_for_something_small_in_the_same_channel(
    fleet: Fleet, writer: Writer
) -> None:
    held = fleet.traffic.hold("newest")
    positions = list[asyncio.Future[StreamPosition]]()
    for number in range(200):
        with suppress(Full):
            positions.extend(writer.submit("x", caller=f"user {number}") for _ in count())
    with pytest.raises(Full):
        writer.submit("y" * FIRST_BYTES, caller="user other")
    positions.append(writer.submit("y" * (FIRST_BYTES - 100), caller="user other"))
    with pytest.raises(Full):
        writer.submit("y", caller="user other")
    held.release()
    await asyncio.gather(*positions)


async def test_who_finds_no_room_leaves_nothing_behind(
    fleet: Fleet, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ever-new channels, each refusal left a kilobyte until an append ended."""
    held = fleet.traffic.hold("put_item", "sent")
    position = writer.submit("x" * FIRST_BYTES)
    monkeypatch.setattr(appender_module, "MUCH_BYTES_MAX", FIRST_BYTES)
    monkeypatch.setattr(appender_module, "NODE_BYTES_MAX", FIRST_BYTES)
    for number in range(20):
        with pytest.raises(Full):
            writer.submit("x" * FIRST_BYTES, f"channel {number}")
    assert len(writer.appender._lanes) == 1
    held.release()
    await position


async def test_few_callers_leave_room_for_the_others(
    fleet: Fleet, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sizes of what they publish."""
    monkeypatch.setattr(appender_module, "NODE_BYTES_MAX", 1_000_000)
    monkeypatch.setattr(appender_module, "MUCH_BYTES_MAX", 800_000)
    monkeypatch.setattr(appender_module, "LITTLE_BYTES", 20_000)
    held = fleet.traffic.hold("newest")
    positions = []
    for size in (50_000, 1_000, 1):
        for number in count():
            caller = f"user {number % 3}"
            try:
                position = writer.submit("x" * size, f"{size} {number}", caller=caller)
            except Full:
                break
            positions.append(position)
    assert writer.appender.waiting_bytes > 799_900
    positions += [writer.submit("y" * 1900, f"mine {n}", caller="user other") for n in range(10)]
    with pytest.raises(Full):
        writer.submit("y" * 1900, "mine", caller="user other")
    held.release()
    await asyncio.gather(*positions)
    assert writer.appender.waiting_bytes == 0
    assert not writer.appender._bytes_of


async def test_many_callers_leave_each_other_room_for_something_small(
    fleet: Fleet, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender_module, "NODE_BYTES_MAX", 100_000)
    monkeypatch.setattr(appender_module, "MUCH_BYTES_MAX", 50_000)
    monkeypatch.setattr(appender_module, "LITTLE_BYTES", 10_000)
    held = fleet.traffic.hold("newest")
    positions = []
    for size in (5_000, 100):
        for number in range(30):
            with suppress(Full):
                for _ in count():
                    caller = f"user {number}"
                    positions.append(writer.submit("x" * size, f"{number}", caller=caller))
    assert writer.appender.waiting_bytes > 99_000
    with pytest.raises(Full):
        writer.submit("y" * FIRST_BYTES, "mine", caller="user other")
    positions.append(writer.submit("y" * (FIRST_BYTES - 100), "mine", caller="user other"))
    with pytest.raises(Full):
        writer.submit("y" * 500, "mine", caller="user other")
    held.release()
    await asyncio.gather(*positions)
    assert not writer.appender._bytes_of


async def test_what_waits_is_kept_as_text_alone(fleet: Fleet, writer: Writer) -> None:
    """I7. Decoded, empty arrays take twenty times the bytes that are counted."""

    class Data(dict[str, int]):
        """Data whose end can be seen."""

    held = fleet.traffic.hold("put_item", "sent")
    data = [Data(a=1), Data(b=2)]
    alive = [weakref.ref(each) for each in data]
    positions = [writer.submit(data.pop()) for _ in alive]
    await held.arrived()
    assert [each() for each in alive] == [None, None], "under way or in the queue"
    held.release()
    await asyncio.gather(*positions)
    assert writer.offered_data == [{"b": 2}, {"a": 1}]


async def test_what_exceeds_an_item_is_not_accepted(fleet: Fleet, writer: Writer) -> None:
    around = len('{"data":""},[]')
    position = writer.submit("x" * (ITEM_BYTES_MAX - around))
    with pytest.raises(TooLarge):
        writer.submit("x" * (ITEM_BYTES_MAX - around + 1))
    assert (await position).offset == 1
    [item] = fleet.world.stream
    assert len(item.pubs) < ITEM_BYTES_MAX


async def test_what_cannot_be_written_as_json_is_not_accepted(fleet: Fleet, writer: Writer) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    with pytest.raises(Unencodable):
        writer.submit(deep)
    await writer.appender.drain()
    assert fleet.world.stream == []


async def test_a_publisher_that_went_away_takes_nothing_back(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    first, second = writer.submit("one"), writer.submit("two")
    await held.arrived()
    first.cancel()
    held.release()
    assert (await second).offset == 2
    assert logged(fleet.world) == ["one", "two"]


async def test_drain_waits_for_every_accepted_publication(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit(number, f"channel{number % 3}") for number in range(9)]
    await held.arrived(3)
    draining = asyncio.create_task(writer.appender.drain())
    await settled()
    assert not draining.done()
    held.release()
    await draining
    assert all(position.done() for position in positions)
    await writer.appender.drain()


async def test_a_stopped_append_tells_its_publishers(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    position = writer.submit("one")
    await held.arrived()
    [task] = [each for each in asyncio.all_tasks() if each.get_name() == f"append {CHANNEL}"]
    task.cancel()
    with pytest.raises(OutcomeUnknown):
        await position


async def test_lanes_that_are_idle_are_forgotten(
    fleet: Fleet, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender_module, "_IDLE_LANES_MAX", 2)
    for number in range(5):
        await writer.submit("x", f"channel{number}")
    await until(lambda: len(writer.appender._lanes) == 2)
    assert (await writer.submit("y", "channel0")).offset == 2
    assert all(isinstance(item, LogItem) for item in fleet.world.stream)


# ---- callers that publish to very many channels

FLOODED: Final = 4 * APPENDS_AT_ONCE
# Appends that a neighbour waits for: those under way, and a few in turn.
FEW: Final = APPENDS_AT_ONCE + 16


def flood(writer: Writer, callers: int = 3) -> list[asyncio.Future[StreamPosition]]:
    """Each publishes to FLOODED new channels."""
    return [
        writer.submit(number, f"new-{caller}-{number}", caller=f"flood-{caller}")
        for number in range(FLOODED)
        for caller in range(callers)
    ]


async def appended_before(fleet: Fleet, position: asyncio.Future[StreamPosition]) -> int:
    """How many appends were made until `position` is known."""
    await position
    return len(fleet.world.stream)


async def test_so_many_appends_are_made_at_once_and_no_more(fleet: Fleet, writer: Writer) -> None:
    """More would wait among the calls, where nobody knows whose they are."""
    assert APPENDS_AT_ONCE == LOG_CONNECTIONS_MAX
    held = fleet.traffic.hold("newest")
    positions = flood(writer, callers=1)
    await held.arrived(APPENDS_AT_ONCE)
    await settled()
    assert held.count == APPENDS_AT_ONCE
    held.release()
    await asyncio.gather(*positions)
    await writer.appender.drain()
    assert len(fleet.world.stream) == FLOODED


async def test_who_publishes_waits_for_few_of_others_whatever_they_publish(
    fleet: Fleet, writer: Writer
) -> None:
    positions = flood(writer)
    await settled_a_little()
    for number in range(5):
        before = len(fleet.world.stream)
        mine = writer.submit(number, "mine", caller="neighbour")
        assert await appended_before(fleet, mine) - before <= FEW
    assert not all(position.done() for position in positions), "the flood was not over"
    await asyncio.gather(*positions)


async def test_who_publishes_where_another_did_waits_not_behind_its_other_channels(
    fleet: Fleet, writer: Writer
) -> None:
    positions = flood(writer)
    theirs = writer.submit("theirs", "shared", caller="flood-0")
    await settled_a_little()
    before = len(fleet.world.stream)
    mine = writer.submit("mine", "shared", caller="neighbour")
    assert await appended_before(fleet, mine) - before <= FEW
    assert (await theirs, await mine) == (
        StreamPosition(mine.result().epoch, 1),
        StreamPosition(mine.result().epoch, 2),
    ), "in their order, and in one append"
    assert not all(position.done() for position in positions)
    await asyncio.gather(*positions)


async def test_what_waits_behind_a_full_append_waits_in_its_own_lines(
    fleet: Fleet, writer: Writer
) -> None:
    """Who waits for the next append of a channel waits for this one as well."""
    held = fleet.traffic.hold("newest")
    theirs = [
        writer.submit(number, "shared", caller="flood-0")
        for number in range(2 * ITEM_PUBLICATIONS_MAX)
    ]
    await held.arrived()
    positions = flood(writer)
    mine = writer.submit("mine", "shared", caller="neighbour")
    held.release()
    # Three appends of the channel: what is before it in the channel goes in before it.
    assert await appended_before(fleet, mine) <= APPENDS_AT_ONCE + 3 * 16
    assert all(each.done() for each in theirs)
    await asyncio.gather(*positions)


async def test_what_is_overdue_before_it_has_a_place_is_known_not_to_be_in(
    fleet: Fleet, writer: Writer
) -> None:
    held = fleet.traffic.hold("newest")
    others = [writer.submit(0, f"other-{number}") for number in range(APPENDS_AT_ONCE)]
    await held.arrived(APPENDS_AT_ONCE)
    late = writer.submit("late", "late")
    fleet.clock.advance(APPEND_DEADLINE_S + 1)
    with pytest.raises(NotAppended):
        await late
    assert held.count == APPENDS_AT_ONCE, "nothing was sent for it"
    held.release()
    await asyncio.gather(*others, return_exceptions=True)
    assert (await writer.submit("on time", "late")).offset == 1


async def settled_a_little() -> None:
    """Until the first appends are under way, and long before a flood is over."""
    for _ in range(3):
        await asyncio.sleep(0)
