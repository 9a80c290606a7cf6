"""The channel log over memory: resolving, rotating and renewing tails,
appending once, reading runs.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Final

import pytest

from roomcast.log.channel_log import (
    FOLLOWED_ITEMS_MAX,
    ITEMS_A_PAGE,
    READ_DEADLINE_S,
    Appended,
    ChannelLog,
    Lost,
    NotAppended,
    OutcomeUnknown,
    Postponed,
    record_of,
)
from roomcast.log.item import Head, LogItem
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS, Pending
from roomcast.ports import Contended, PortError, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import ManualClock, MemoryWorld
from roomcast.wire.encoding import encode_stored
from roomcast.wire.publication import Publication, Record
from tests.contract.items import log_item
from tests.unit.worlds import Fleet, log_over, logged

CHANNEL: Final = "room"
TTL_MS: Final = 300_000
HOUR_S: Final = 3600.0
TAIL_VALID_S: Final = (MIN_RETENTION_MS - MARGIN_MS) / 1000


async def read_before(log: ChannelLog, top: int, publications_max: int) -> list[Record]:
    return await log.forms_before(lambda record: record, CHANNEL, "e1", top, publications_max)


def pending(*texts: str) -> list[Pending]:
    return [Pending.of(encode_stored(Publication(data=text))) for text in texts]


async def append(log: ChannelLog, *texts: str, ttl_ms: int = TTL_MS) -> LogItem:
    tail = (await log.resolve(CHANNEL)).tail
    outcome = await log.append(CHANNEL, tail, pending(*texts), ttl_ms)
    assert isinstance(outcome, Appended)
    return outcome.item


def data(records: list[Record]) -> list[str]:
    return [publication.data for record in records for publication in record.publications or ()]


def put(world: MemoryWorld, *items: LogItem) -> None:
    for item in items:
        world.items.setdefault(item.channel, {})[item.offset] = item


def head_of(world: MemoryWorld) -> Head:
    head = world.items[CHANNEL][0]
    assert isinstance(head, Head)
    return head


# ---- resolve


async def test_an_empty_channel_has_an_epoch_that_stays() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock, generation="7")
    first = await log.resolve(CHANNEL)
    assert first.tail.top == 0
    assert first.newest is None
    assert first.tail.epoch.startswith("7.")
    assert (await log.resolve(CHANNEL)).tail == first.tail
    assert fleet.traffic.calls["put_head"] == 1


async def test_nodes_that_come_at_once_agree_on_one_epoch() -> None:
    fleet = Fleet()
    held = fleet.traffic.hold("put_head")
    logs = [log_over(fleet.world, fleet.clock, node=name) for name in "abc"]
    resolving = [asyncio.create_task(log.resolve(CHANNEL)) for log in logs]
    await held.arrived(3)
    held.release()
    tails = {(await each).tail for each in resolving}
    assert len(tails) == 1
    assert fleet.traffic.calls["put_head"] == 3


async def test_the_newest_item_tells_the_tail() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    await append(log, "one")
    item = await append(log, "two", "three")
    resolved = await log.resolve(CHANNEL)
    assert resolved.newest == item
    assert (resolved.tail.epoch, resolved.tail.top) == (item.epoch, 3)
    assert resolved.tail.valid_until == item.expires_at * 1000 - MARGIN_MS


@pytest.mark.parametrize("items", [0, 2])
async def test_a_tail_is_valid_until_shortly_before_it_may_be_deleted(items: int) -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    first = (await log.resolve(CHANNEL)).tail
    for _ in range(items):
        await append(log, "x")
    fleet.clock.advance(TAIL_VALID_S - 1)
    assert (await log.resolve(CHANNEL)).tail.epoch == first.epoch
    fleet.clock.advance(1)
    rotated = (await log.resolve(CHANNEL)).tail
    assert rotated.epoch != first.epoch
    assert rotated.top == items, "offsets go on: none is bound to two contents"


async def test_after_a_rotation_items_may_be_deleted_in_any_order() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    for text in ("one", "two", "three"):
        await append(log, text)
    fleet.clock.advance(TAIL_VALID_S)
    rotated = (await log.resolve(CHANNEL)).tail
    for offset in (3, 1, 2):
        fleet.world.expire(CHANNEL, offset)
        now = (await log.resolve(CHANNEL)).tail
        assert (now.epoch, now.top) == (rotated.epoch, rotated.top)
    item = await append(log, "four")
    assert (item.epoch, item.offset) == (rotated.epoch, 4)


async def test_offsets_go_on_when_everything_expired_before_the_rotation() -> None:
    """The head, which lives much longer, has what the deleted items cannot tell any more."""
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    await append(log, "one")
    fleet.clock.advance(TAIL_VALID_S)
    first = (await log.resolve(CHANNEL)).tail
    fleet.world.expire(CHANNEL, 1)
    fleet.clock.advance(TAIL_VALID_S)
    second = (await log.resolve(CHANNEL)).tail
    assert second.epoch != first.epoch
    assert second.top == 1


async def test_another_generation_begins_another_epoch_behind_the_old_one() -> None:
    fleet = Fleet()
    before = await append(log_over(fleet.world, fleet.clock, generation="0"), "one")
    after = log_over(fleet.world, fleet.clock, generation="1")
    resolved = await after.resolve(CHANNEL)
    assert resolved.tail.epoch.startswith("1.")
    assert resolved.tail.epoch != before.epoch
    assert resolved.tail.top == 1
    assert (await append(after, "two")).offset == 2


@pytest.mark.parametrize("error", [Throttled(), UnknownOutcome()])
@pytest.mark.parametrize("call", ["newest", "put_head"])
async def test_a_failed_call_of_a_resolve_is_tried_again(call: str, error: PortError) -> None:
    fleet = Fleet()
    fleet.world.fail_next(call, error, times=3)
    assert (await log_over(fleet.world, fleet.clock).resolve(CHANNEL)).tail.top == 0


async def test_a_rotation_whose_answer_was_lost_is_found() -> None:
    fleet = Fleet()
    fleet.world.fail_next("put_head", UnknownOutcome(), effect="applied")
    tail = (await log_over(fleet.world, fleet.clock).resolve(CHANNEL)).tail
    assert head_of(fleet.world).epoch == tail.epoch


async def test_a_late_head_of_an_earlier_attempt_changes_nothing() -> None:
    fleet = Fleet()
    fleet.world.fail_next("put_head", UnknownOutcome(), effect="late")
    log = log_over(fleet.world, fleet.clock)
    tail = (await log.resolve(CHANNEL)).tail
    fleet.world.deliver_late()
    assert (await log.resolve(CHANNEL)).tail == tail


async def test_a_resolve_gives_up_within_its_bounds() -> None:
    fleet = Fleet()
    fleet.world.fail_next("newest", Throttled("slow down"), times=1000)
    with pytest.raises(Throttled):
        await log_over(fleet.world, fleet.clock).resolve(CHANNEL)
    tries = fleet.traffic.calls["newest"]
    assert tries <= 20

    def slow() -> float:
        fleet.clock.advance(READ_DEADLINE_S + 1)
        return 0.0

    with pytest.raises(Throttled):
        await log_over(fleet.world, fleet.clock, random=slow).resolve(CHANNEL)
    assert fleet.traffic.calls["newest"] == tries + 2


async def test_what_is_refused_is_not_tried_again() -> None:
    fleet = Fleet()
    fleet.world.fail_next("newest", Rejected("no permission"))
    with pytest.raises(Rejected):
        await log_over(fleet.world, fleet.clock).resolve(CHANNEL)
    assert fleet.traffic.calls["newest"] == 1


# ---- renew


@pytest.mark.parametrize("texts", [(), ("one", "two")])
async def test_a_quiet_channel_that_is_renewed_keeps_its_epoch(texts: tuple[str, ...]) -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    first = (await log.resolve(CHANNEL)).tail
    if texts:
        await append(log, *texts)
    for _ in range(20):
        fleet.clock.advance(10 * HOUR_S)
        renewed = (await log.renew(CHANNEL)).tail
        assert (renewed.epoch, renewed.top) == (first.epoch, len(texts))
    item = await append(log, "at last")
    assert (item.epoch, item.offset) == (first.epoch, len(texts) + 1)


async def test_renewing_what_was_renewed_writes_nothing() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    await append(log, "one")
    await log.renew(CHANNEL)
    written = fleet.traffic.calls["put_head"]
    fleet.clock.advance(14 * HOUR_S)
    await log.renew(CHANNEL)
    await log.renew(CHANNEL)
    assert fleet.traffic.calls["put_head"] == written + 1


@pytest.mark.parametrize("call", ["head", "put_head"])
async def test_a_renewal_that_fails_is_for_the_next_time(call: str) -> None:
    """The tail is known all the same: nobody who subscribes now must suffer for it."""
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    await append(log, "one")
    fleet.clock.advance(14 * HOUR_S)
    fleet.world.fail_next(call, Throttled("simulated"))
    assert (await log.renew(CHANNEL)).tail.top == 1
    before = fleet.world.items[CHANNEL][0]
    await log.renew(CHANNEL)
    assert fleet.world.items[CHANNEL][0] != before, "renewed the next time"


async def test_nodes_that_renew_at_once_keep_the_epoch() -> None:
    fleet = Fleet()
    logs = [log_over(fleet.world, fleet.clock, node=name) for name in "ab"]
    first = (await logs[0].resolve(CHANNEL)).tail
    fleet.clock.advance(14 * HOUR_S)
    held = fleet.traffic.hold("put_head")
    renewing = [asyncio.create_task(log.renew(CHANNEL)) for log in logs]
    await held.arrived(2)
    held.release()
    await asyncio.gather(*renewing)
    fleet.clock.advance(14 * HOUR_S)
    assert (await logs[0].resolve(CHANNEL)).tail.epoch == first.epoch


async def test_an_append_during_a_renewal_is_not_covered_up() -> None:
    """The head says that nothing is behind its floor; an item there tells the tail all the same."""
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    await append(log, "one")
    fleet.clock.advance(14 * HOUR_S)
    held = fleet.traffic.hold("put_head")
    renewing = asyncio.create_task(log.renew(CHANNEL))
    await held.arrived()
    await append(log_over(fleet.world, fleet.clock, node="b"), "two")
    held.release()
    await renewing
    assert (await log.resolve(CHANNEL)).tail.top == 2


# ---- append


async def test_an_append_is_one_item_and_continues_the_log() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock, node="n7")
    await append(log, "one")
    item = await append(log, "two", "three")
    assert (item.offset, item.last, item.node, item.ts) == (2, 3, "n7", fleet.clock.now_ms())
    assert fleet.world.items[CHANNEL][2] == item
    assert [entry["data"] for entry in json.loads(item.pubs)] == ["two", "three"]


async def test_an_item_never_expires_before_the_one_it_stands_on() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    long = await append(log, "kept for a week", ttl_ms=7 * 24 * 3_600_000)
    short = await append(log, "kept for seconds", ttl_ms=1000)
    assert short.expires_at == long.expires_at
    fleet.clock.advance(8 * 24 * HOUR_S)
    later = await append(log, "much later", ttl_ms=1000)
    assert later.expires_at * 1000 == fleet.clock.now_ms() + MIN_RETENTION_MS


@pytest.mark.parametrize("effect", ["none", "applied", "late"])
async def test_an_append_of_unknown_outcome_goes_in_once(effect: str) -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    tail = (await log.resolve(CHANNEL)).tail
    fleet.world.fail_next("put_item", UnknownOutcome(), effect=effect, times=3)  # type: ignore[arg-type]
    outcome = await log.append(CHANNEL, tail, pending("one"), TTL_MS)
    fleet.world.deliver_late()
    assert isinstance(outcome, Appended)
    assert logged(fleet.world) == ["one"]
    assert [item.batch for item in fleet.world.stream] == [outcome.item.batch]
    assert fleet.traffic.calls["put_item"] == 4


async def test_a_lost_race_brings_the_winner() -> None:
    fleet = Fleet()
    ours, theirs = (log_over(fleet.world, fleet.clock, node=name) for name in "ab")
    tail = (await ours.resolve(CHANNEL)).tail
    winner = await append(theirs, "theirs")
    assert await ours.append(CHANNEL, tail, pending("ours"), TTL_MS) == Lost(winner)
    assert logged(fleet.world) == ["theirs"]


async def test_a_race_lost_after_an_unknown_outcome_is_lost_for_certain() -> None:
    fleet = Fleet()
    ours = log_over(fleet.world, fleet.clock)
    tail = (await ours.resolve(CHANNEL)).tail
    fleet.world.fail_next("put_item", UnknownOutcome())
    held = fleet.traffic.hold("put_item", "answer")
    appending = asyncio.create_task(ours.append(CHANNEL, tail, pending("ours"), TTL_MS))
    await held.arrived()
    fleet.world.items[CHANNEL][1] = replace(log_item(1), epoch=tail.epoch, batch="theirs")
    held.release()
    outcome = await appending
    assert isinstance(outcome, Lost)
    assert outcome.holder is not None
    assert outcome.holder.batch == "theirs"


def ticking(clock: ManualClock, seconds: float = 5.0) -> float:
    clock.advance(seconds)
    return 0.0


@pytest.mark.parametrize(
    "error, outcome", [(Throttled("slow down"), Postponed), (Contended("a transaction"), Lost)]
)
async def test_an_attempt_that_is_known_not_to_be_in_is_told_at_once(
    error: Throttled | Contended, outcome: type[Postponed | Lost]
) -> None:
    """Whoever appends may have more to append by then, and knows whose turn it is."""
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    tail = (await log.resolve(CHANNEL)).tail
    fleet.world.fail_next("put_item", error)
    assert isinstance(await log.append(CHANNEL, tail, pending("one"), TTL_MS), outcome)
    assert fleet.traffic.calls["put_item"] == 1


async def test_what_follows_a_tail_is_read_on_from_there() -> None:
    fleet = Fleet()
    log, other = log_over(fleet.world, fleet.clock), log_over(fleet.world, fleet.clock, node="b")
    tail = (await log.resolve(CHANNEL)).tail
    assert await log.follow(CHANNEL, tail) == ()
    for text in ("one", "two", "three"):
        await append(other, text)
    assert await log.follow(CHANNEL, tail) == tuple(fleet.world.stream)
    assert await log.follow(CHANNEL, replace(tail, top=2)) == (fleet.world.stream[2],)


async def test_what_is_too_much_to_follow_or_of_another_epoch_is_to_be_resolved() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    tail = (await log.resolve(CHANNEL)).tail
    for number in range(FOLLOWED_ITEMS_MAX + 1):
        await append(log, str(number))
    assert await log.follow(CHANNEL, tail) is None
    assert await log.follow(CHANNEL, replace(tail, top=1)) is not None
    assert await log.follow(CHANNEL, replace(tail, top=FOLLOWED_ITEMS_MAX, epoch="another")) is None


async def test_what_does_not_begin_next_to_the_tail_is_no_continuation_of_it() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    first = await append(log, "one")
    for text in ("two", "three"):
        await append(log, text)
    tail = (await log.resolve(CHANNEL)).tail
    del fleet.world.items[CHANNEL][first.last + 1]
    assert await log.follow(CHANNEL, replace(tail, top=first.last)) is None


async def test_an_append_whose_outcome_stays_unknown_is_not_called_failed() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock, random=lambda: ticking(fleet.clock))
    tail = (await log.resolve(CHANNEL)).tail
    fleet.world.fail_next("put_item", UnknownOutcome())
    fleet.world.fail_next("put_item", Throttled(), times=100)
    with pytest.raises(OutcomeUnknown):
        await log.append(CHANNEL, tail, pending("one"), TTL_MS)


async def test_nothing_is_sent_when_the_tail_has_expired() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    tail = (await log.resolve(CHANNEL)).tail
    fleet.clock.advance(TAIL_VALID_S)
    with pytest.raises(NotAppended):
        await log.append(CHANNEL, tail, pending("one"), TTL_MS)
    assert fleet.world.stream == []


async def test_a_tail_that_expires_between_attempts_leaves_the_outcome_unknown() -> None:
    """The first attempt may arrive yet: nobody but its client may send the content again."""
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock, random=lambda: ticking(fleet.clock))
    tail = (await log.resolve(CHANNEL)).tail
    fleet.clock.advance(TAIL_VALID_S - 2)
    fleet.world.fail_next("put_item", UnknownOutcome(), effect="late")
    with pytest.raises(OutcomeUnknown):
        await log.append(CHANNEL, tail, pending("one"), TTL_MS)
    fleet.world.deliver_late()
    assert logged(fleet.world) == ["one"]


async def test_what_is_refused_is_not_in_unless_an_earlier_attempt_may_be() -> None:
    fleet = Fleet()
    log = log_over(fleet.world, fleet.clock)
    tail = (await log.resolve(CHANNEL)).tail
    fleet.world.fail_next("put_item", Rejected("no permission"))
    with pytest.raises(NotAppended):
        await log.append(CHANNEL, tail, pending("one"), TTL_MS)
    fleet.world.fail_next("put_item", UnknownOutcome())
    fleet.world.fail_next("put_item", Rejected("no permission"))
    with pytest.raises(OutcomeUnknown):
        await log.append(CHANNEL, tail, pending("one"), TTL_MS)


# ---- read


def run(first: int, count: int, size: int = 1, epoch: str = "e1") -> list[LogItem]:
    """`count` items of `size` publications each, whose data is "hello"."""
    return [
        log_item(offset, offset + size - 1, epoch=epoch)
        for offset in range(first, first + count * size, size)
    ]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


async def test_a_forward_read_begins_with_the_item_that_spans_the_position(fleet: Fleet) -> None:
    put(fleet.world, *run(1, 4, size=3))
    records = await log_over(fleet.world, fleet.clock).read_after(CHANNEL, "e1", 4, 100)
    assert [(record.offset, record.last) for record in records] == [(4, 6), (7, 9), (10, 12)]


async def test_a_forward_read_goes_over_pages_and_stops_when_it_has_enough(fleet: Fleet) -> None:
    put(fleet.world, *run(1, 3 * ITEMS_A_PAGE))
    log = log_over(fleet.world, fleet.clock)
    records = await log.read_after(CHANNEL, "e1", 10, 10_000)
    assert [record.offset for record in records] == list(range(11, 3 * ITEMS_A_PAGE + 1))
    before = fleet.traffic.calls["read_forward"]
    records = await log.read_after(CHANNEL, "e1", 0, ITEMS_A_PAGE + 1)
    assert len(records) == 2 * ITEMS_A_PAGE
    assert fleet.traffic.calls["read_forward"] == before + 2


async def test_a_forward_read_stops_at_a_hole_and_at_another_epoch(fleet: Fleet) -> None:
    log = log_over(fleet.world, fleet.clock)
    put(fleet.world, *run(1, 3), *run(6, 2))
    assert [record.offset for record in await log.read_after(CHANNEL, "e1", 0, 100)] == [1, 2, 3]
    put(fleet.world, *run(4, 2, epoch="e2"))
    assert [record.offset for record in await log.read_after(CHANNEL, "e1", 0, 100)] == [1, 2, 3]
    assert [record.offset for record in await log.read_after(CHANNEL, "e2", 3, 100)] == [4, 5]


async def test_a_forward_read_stops_before_what_is_broken(fleet: Fleet) -> None:
    put(fleet.world, *run(1, 4), replace(log_item(3), pubs="{"))
    records = await log_over(fleet.world, fleet.clock).read_after(CHANNEL, "e1", 0, 100)
    assert [record.offset for record in records] == [1, 2]


async def test_a_backward_read_is_the_run_that_ends_at_the_top(fleet: Fleet) -> None:
    log = log_over(fleet.world, fleet.clock)
    put(fleet.world, *run(1, 2), *run(4, 3, size=2))
    records = await read_before(log, 9, 100)
    assert [(record.offset, record.last) for record in records] == [(4, 5), (6, 7), (8, 9)]
    put(fleet.world, log_item(4, 5, epoch="e0"))
    assert [record.offset for record in await read_before(log, 9, 100)] == [6, 8]
    assert await read_before(log, 5, 100) == []


async def test_a_backward_read_goes_over_pages_and_stops_when_it_has_enough(fleet: Fleet) -> None:
    put(fleet.world, *run(1, 3 * ITEMS_A_PAGE))
    log = log_over(fleet.world, fleet.clock)
    records = await read_before(log, 3 * ITEMS_A_PAGE, 10_000)
    assert [record.offset for record in records] == list(range(1, 3 * ITEMS_A_PAGE + 1))
    before = fleet.traffic.calls["read_backward"]
    records = await read_before(log, 3 * ITEMS_A_PAGE, ITEMS_A_PAGE + 1)
    assert records[0].offset <= 2 * ITEMS_A_PAGE
    assert records[-1].offset == 3 * ITEMS_A_PAGE
    assert fleet.traffic.calls["read_backward"] == before + 2


async def test_a_backward_read_begins_behind_what_is_broken(fleet: Fleet) -> None:
    put(fleet.world, *run(1, 5), replace(log_item(3), pubs="[]"))
    records = await read_before(log_over(fleet.world, fleet.clock), 5, 100)
    assert [record.offset for record in records] == [4, 5]


async def test_reads_are_tried_again_within_a_bound(fleet: Fleet) -> None:
    put(fleet.world, *run(1, 1))
    log = log_over(fleet.world, fleet.clock, random=lambda: ticking(fleet.clock, 1.0))
    fleet.world.fail_next("read_forward", Throttled(), times=3)
    assert data(await log.read_after(CHANNEL, "e1", 0, 10)) == ["hello"]
    fleet.world.fail_next("read_backward", UnknownOutcome(), times=100)
    with pytest.raises(UnknownOutcome):
        await read_before(log, 1, 10)
    assert fleet.traffic.calls["read_backward"] <= READ_DEADLINE_S + 2


@pytest.mark.parametrize(
    "pubs", ["", "{", "[]", "[1]", '[{"data":1},{"data":2}]', '[{"nothing":1}]', "null"]
)
def test_what_somebody_else_wrote_wrongly_is_no_record(pubs: str) -> None:
    assert record_of(replace(log_item(1), pubs=pubs)) is None


def test_a_record_has_what_the_item_has() -> None:
    item = log_item(3, 4)
    record = record_of(item)
    assert record is not None
    assert (record.channel, record.epoch, record.offset, record.last, record.ts) == (
        item.channel,
        item.epoch,
        3,
        4,
        item.ts,
    )
    assert record.publications == (Publication("hello", 3), Publication("hello", 4))
