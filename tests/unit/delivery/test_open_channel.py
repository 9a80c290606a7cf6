"""An open channel over memory: what is let through in which order, and what cannot be repaired."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from roomcast.backoff import Backoff
from roomcast.delivery import open_channel as open_channel_module
from roomcast.delivery.catch_up import CatchUp
from roomcast.delivery.join_reads import JoinResult
from roomcast.log.channel_log import record_of
from roomcast.log.item import Head, LogItem
from roomcast.ports import Malformed, Rejected, Throttled
from roomcast.wire.publication import Publication, Record, StreamPosition
from tests.unit.delivery.room import (
    BELIEF_S,
    CHANNEL,
    GAP_WAIT_S,
    TAIL_CHECK_S,
    Room,
    Subscriber,
    append_raw,
    begin_another_epoch,
    items,
)
from tests.unit.worlds import no_jitter, record, settled, until


async def test_a_flood_while_a_channel_opens_loses_nothing(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_channel_module, "_OPENING_RECORDS_MAX", 3)
    await room.append()
    held = room.fleet.traffic.hold("newest", "answer")
    subscriber, joining = room.joining()
    await held.arrived()
    for offset in range(2, 9):
        room.hint(append_raw(room, offset))
    held.release()
    await joining
    assert subscriber.joined is not None
    assert subscriber.joined.position.offset == 4
    await until(lambda: subscriber.offsets == [5, 6, 7, 8])


async def test_what_comes_while_a_channel_opens_is_bounded_in_bytes(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_channel_module, "_OPENING_BYTES_MAX", 100)
    await room.append()
    held = room.fleet.traffic.hold("newest", "answer")
    subscriber, joining = room.joining()
    await held.arrived()
    for offset in range(2, 9):
        room.hint(append_raw(room, offset))
    kept = len(room.channel._waiting)
    assert 1 <= kept < 7
    held.release()
    await joining
    assert subscriber.joined is not None
    assert subscriber.joined.position.offset == 1 + kept
    await until(lambda: subscriber.offsets == list(range(2 + kept, 9)))


async def test_what_another_node_removed_is_not_recovered_for_long(room: Room) -> None:
    """The periodic check looks at what was trimmed as well."""
    await room.join()
    for _ in range(4):
        room.hint(await room.append())
    since, removed = await room.position(2), await room.writer.remove_history(CHANNEL)
    assert removed.offset == 4
    assert (await room.join(since=since)).offsets == [3, 4], "this node cannot know yet"
    await room.catch_up()
    assert (await room.join(since=since)).joined == JoinResult(removed, False, ())
    assert (await room.join(since=removed)).joined == JoinResult(removed, True, ())
    room.hint(await room.append())
    assert (await room.join(since=removed)).offsets == [5]


async def test_a_trim_that_was_made_up_hides_nothing_for_long(room: Room) -> None:
    """Who may publish to the topic can say that all is hidden. The head says how it is."""
    await room.join()
    for _ in range(4):
        room.hint(await room.append())
    since = await room.position(2)
    room.dispatcher.hide(CHANNEL, 2**53 - 1)
    assert (await room.join(since=since)).joined == JoinResult(await room.position(4), False, ())
    await room.catch_up()
    assert (await room.join(since=since)).offsets == [3, 4]


async def test_a_head_that_no_node_wrote_keeps_nobody_out(room: Room) -> None:
    """Clients come again with the same position for as long as they are refused."""
    await room.append(4)
    since = await room.position(2)
    room.fleet.world.fail_next("head", Malformed("head"), times=1000)
    assert (await room.join(since=since)).joined == JoinResult(await room.position(4), False, ())


async def test_a_trim_that_is_told_while_the_head_is_read_is_not_forgotten(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.join()
    for _ in range(4):
        room.hint(await room.append())
    since = await room.position(2)
    before = await room.writer.head(CHANNEL)
    removed = await room.writer.remove_history(CHANNEL)

    async def read_before(_: str) -> Head | None:
        room.dispatcher.hide(CHANNEL, removed.offset)
        return before

    with monkeypatch.context() as patched:
        patched.setattr(room.log, "head", read_before)
        await room.catch_up()
    assert (await room.join(since=since)).joined == JoinResult(removed, False, ())


async def test_a_trim_that_cannot_be_read_does_not_keep_the_tail_from_being_found(
    room: Room,
) -> None:
    subscriber = await room.join()
    room.hint(await room.append())
    since = await room.position(0)
    await room.writer.remove_history(CHANNEL)
    await room.append()
    room.fleet.world.fail_next("head", Rejected("for once"))
    await room.catch_up()
    await until(lambda: subscriber.offsets == [1, 2])
    await room.catch_up()
    assert (await room.join(since=since)).joined == JoinResult(await room.position(2), False, ())


async def test_a_ring_that_had_to_make_room_is_made_up_for_by_the_log(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all rings keep is bounded: a busy channel pushes out one that is not used."""
    subscriber, other = await room.join(), Subscriber()
    await room.dispatcher.join("other", other, None, lambda: room.window, other.admit)
    for _ in range(10):
        room.hint(await room.append())
    ring = room.channel.ring
    monkeypatch.setattr(room.dispatcher._rings, "_bytes_max", ring.weight)
    room.channel.ring_used()
    assert (await room.join(since=await room.position(4))).offsets == list(range(5, 11))
    assert room.fleet.traffic.calls["read_backward"] == 0
    assert other.joined is not None
    room.take(record(1, channel="other", epoch=other.joined.position.epoch))
    assert other.sink.offsets("other") == [1]
    assert len(ring) == 0
    assert (await room.join(since=await room.position(4))).offsets == list(range(5, 11))
    assert room.fleet.traffic.calls["read_backward"] == 1
    room.hint(await room.append())
    assert subscriber.offsets == list(range(1, 12))
    assert (await room.join(since=await room.position(9))).offsets == [10, 11]
    assert room.fleet.traffic.calls["read_backward"] == 1


async def test_the_ring_of_a_channel_that_is_forgotten_takes_no_room(room: Room) -> None:
    subscriber = await room.join()
    room.hint(await room.append(5))
    assert room.dispatcher._rings.bytes > 0
    held = room.fleet.traffic.hold("read_backward", "answer")
    _, joining = room.joining(StreamPosition((await room.position(0)).epoch, 0))
    room.channel.ring.clear()
    await held.arrived()
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    room.dispatcher.leave(CHANNEL, subscriber)
    assert len(room.dispatcher) == room.dispatcher._rings.bytes == 0


async def test_an_item_that_nobody_here_lacks_is_not_decoded(room: Room) -> None:
    """A node that publishes where nobody listens, or what the queue has brought already."""
    await room.join()
    room.hint(had := await room.append())
    elsewhere = replace(had, channel="elsewhere", pubs="broken")
    with capture_logs() as logs:
        room.dispatcher.offer(replace(had, pubs="broken"))
        room.dispatcher.offer(elsewhere)
    assert logs == []
    with capture_logs() as logs:
        room.dispatcher.offer(replace(await room.append(), pubs="broken"))
    assert [each["event"] for each in logs] == ["log_item_broken"]


async def test_a_channel_that_closed_since_it_was_found_keeps_nothing(room: Room) -> None:
    """An envelope's records go to one channel after the other, and a delivery can close one."""
    subscriber = await room.join()
    found, item = room.channel, await room.append()
    room.dispatcher.leave(CHANNEL, subscriber)
    late = record_of(item)
    assert late is not None
    found.offer([late])
    assert room.dispatcher.ring_bytes == 0


async def test_a_hole_that_fills_by_itself_costs_no_read(room: Room) -> None:
    subscriber = await room.join()
    first, second = await room.append(), await room.append()
    room.hint(second)
    await settled()
    assert subscriber.offsets == []
    room.hint(first)
    assert subscriber.offsets == [1, 2]
    room.pass_time()
    await settled()
    assert room.fleet.traffic.calls["read_forward"] == 0


async def test_a_hole_is_filled_from_the_log_after_a_while(room: Room) -> None:
    subscriber = await room.join()
    await room.append(2)
    await room.append()
    room.hint(await room.append())
    await settled()
    assert room.fleet.traffic.calls["read_forward"] == 0
    room.pass_time()
    await until(lambda: subscriber.offsets == [1, 2, 3, 4])
    assert room.fleet.traffic.calls["read_forward"] == 1
    room.hint(*items(room))
    assert subscriber.offsets == [1, 2, 3, 4]


async def test_a_pointer_is_read_at_once(room: Room) -> None:
    subscriber = await room.join()
    item = await room.append(2)
    room.take(record(1, 2, epoch=item.epoch, pointer=True))
    await until(lambda: subscriber.offsets == [1, 2])


async def test_a_long_hole_is_filled_in_several_reads(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_channel_module, "GAP_PUBLICATIONS_MAX", 100)
    subscriber = await room.join()
    for _ in range(250):
        await room.append()
    room.hint(await room.append())
    room.pass_time()
    await until(lambda: subscriber.offsets == list(range(1, 252)))
    assert room.fleet.traffic.calls["read_forward"] == 3
    assert subscriber.lost_channels == []


async def test_publications_that_come_while_a_hole_is_read_are_in_order(room: Room) -> None:
    subscriber = await room.join()
    first = await room.append()
    room.hint(await room.append())
    held = room.fleet.traffic.hold("read_forward", "answer")
    room.pass_time()
    await held.arrived()
    room.hint(await room.append(), first, await room.append())
    assert subscriber.offsets == [1, 2, 3, 4]
    held.release()
    await settled()
    room.hint(await room.append())
    assert subscriber.offsets == [1, 2, 3, 4, 5]


async def test_a_hole_in_the_log_is_told(room: Room) -> None:
    """I3: every publication, or word that it cannot be had."""
    subscribers = [await room.join() for _ in range(3)]
    await room.append()
    room.hint(await room.append())
    room.fleet.world.expire(CHANNEL, 1)
    room.pass_time()
    await until(lambda: all(each.lost_channels == [CHANNEL] for each in subscribers))
    assert [each.offsets for each in subscribers] == [[], [], []]
    assert len(room.dispatcher) == len(room.hub) == 0
    again = await room.join(since=await room.position(0))
    assert again.joined == JoinResult(await room.position(2), False, ())


async def test_publications_that_were_made_up_hide_no_others_for_long(room: Room) -> None:
    """Those that get their offsets are taken for repeats. The log says that it has none of them."""
    subscriber = await room.join()
    first = await room.append()
    room.hint(first)
    room.take(record(2, 500, epoch=first.epoch))
    room.hint(await room.append())
    assert subscriber.offsets == list(range(1, 501))
    await room.catch_up()
    assert subscriber.lost_channels == [CHANNEL]
    again = await room.join()
    room.hint(await room.append())
    assert again.offsets == [3]


async def test_what_came_while_the_end_of_the_log_was_read_is_not_made_up(room: Room) -> None:
    subscriber = await room.join()
    held = room.fleet.traffic.hold("newest", "answer")
    looking = asyncio.create_task(room.catch_up())
    await held.arrived()
    # That one has been read. The writer's own read is not held.
    room.fleet.traffic.hold("newest", "answer").release()
    room.hint(await room.append(3))
    held.release()
    await looking
    assert subscriber.offsets == [1, 2, 3]
    assert subscriber.lost_channels == []


@pytest.mark.parametrize("pointer", [True, False])
async def test_an_offset_that_was_made_up_ends_no_subscription(room: Room, pointer: bool) -> None:
    """Who may publish to the topic can claim any offset. The log says where it ends."""
    subscriber = await room.join()
    first, missed = await room.append(), await room.append()
    room.hint(first)
    for claimed in (4, 2**53 - 2):
        room.take(record(claimed, epoch=first.epoch, pointer=pointer))
        room.pass_time()
        await until(lambda: room.channel.order.known == missed.last)
    assert subscriber.offsets == [1, 2]
    room.hint(await room.append(2))
    assert subscriber.offsets == [1, 2, 3, 4], "nothing of what was claimed is kept"
    assert subscriber.lost_channels == []


async def test_what_comes_while_a_claim_is_looked_up_is_not_forgotten_with_it(room: Room) -> None:
    subscriber = await room.join()
    first = await room.append()
    room.hint(first)
    room.take(record(9, epoch=first.epoch, pointer=True))
    held = room.fleet.traffic.hold("newest", "answer")
    await held.arrived()
    append_raw(room, 2)
    room.hint(append_raw(room, 3))
    held.release()
    await until(lambda: subscriber.offsets == [1, 2, 3])
    assert subscriber.lost_channels == []


async def test_a_claim_that_cannot_be_looked_up_counts_as_a_hole(room: Room) -> None:
    subscriber = await room.join()
    first = await room.append()
    room.fleet.world.fail_next("newest", Rejected("for ever"), times=1000)
    room.take(record(9, epoch=first.epoch, pointer=True))
    await until(lambda: subscriber.lost_channels == [CHANNEL])


async def test_a_hole_that_was_filled_by_another_way_while_it_was_read_is_none(room: Room) -> None:
    """TTL took what is missing from the log, and it came after all."""
    subscriber = await room.join()
    items = [await room.append() for _ in range(4)]
    room.hint(items[3])
    held = room.fleet.traffic.hold("read_forward")
    room.pass_time()
    await held.arrived()
    room.hint(items[0])
    room.hint(items[1])
    for offset in (1, 2):
        room.fleet.world.expire(CHANNEL, offset)
    held.release()
    await until(lambda: subscriber.offsets == [1, 2, 3, 4])
    assert subscriber.lost_channels == []


async def test_a_publication_that_is_broken_in_the_log_is_a_hole(room: Room) -> None:
    subscriber = await room.join()
    item = await room.append()
    broken = room.fleet.world.items[CHANNEL][1]
    assert isinstance(broken, LogItem)
    object.__setattr__(broken, "pubs", "{")
    room.take(record(1, epoch=item.epoch, pointer=True))
    await until(lambda: subscriber.lost_channels == [CHANNEL])


async def test_a_gap_read_that_fails_is_tried_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_channel_module, "_GAP_RETRY_S", GAP_WAIT_S)
    subscriber = await room.join()
    await room.append()
    room.hint(await room.append())
    room.fleet.world.fail_next("read_forward", Rejected("for a while"), times=3)
    room.pass_time()
    for failed in (1, 2, 3):
        await until(lambda failed=failed: room.fleet.traffic.calls["read_forward"] == failed)  # type: ignore[misc]
        await settled()
        room.pass_time()
    await until(lambda: subscriber.offsets == [1, 2])
    assert subscriber.lost_channels == []


async def test_a_log_that_never_answers_ends_the_subscriptions(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_channel_module, "_GAP_RETRY_S", 0.0)
    subscriber = await room.join()
    await room.append()
    room.hint(await room.append())
    room.fleet.world.fail_next("read_forward", Rejected("for ever"), times=1000)
    room.pass_time()
    await until(lambda: subscriber.lost_channels == [CHANNEL])
    assert room.fleet.traffic.calls["read_forward"] == open_channel_module._GAP_FAILURES_MAX


async def test_a_publication_that_cannot_be_written_keeps_its_offset(room: Room) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    subscriber = await room.join()
    assert subscriber.joined is not None
    epoch = subscriber.joined.position.epoch
    room.take(Record(CHANNEL, epoch, 1, 1, 1, (Publication(data=deep, offset=1),)))
    assert subscriber.offsets == [1]
    assert subscriber.sink.published(CHANNEL) == [None]


async def test_a_lost_last_publication_is_found_by_catching_up(room: Room) -> None:
    """I5."""
    subscriber = await room.join()
    room.hint(await room.append())
    await room.append(2)
    await room.append()
    await settled()
    assert subscriber.offsets == [1]
    await room.catch_up()
    await until(lambda: subscriber.offsets == [1, 2, 3, 4])


async def test_the_periodic_check_finds_it_too(room: Room) -> None:
    """As soon as its time has come, and not before."""
    subscriber = await room.join()
    await room.append()
    catch_up = CatchUp(
        room.dispatcher.tails, room.dispatcher.check_tail, room.fleet.clock, no_jitter
    )
    watching = asyncio.create_task(catch_up.run())
    await settled()
    assert subscriber.offsets == []
    room.fleet.clock.advance(TAIL_CHECK_S)
    await until(lambda: subscriber.offsets == [1])
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_channel_that_opens_while_all_are_asked_for_is_looked_at_too(room: Room) -> None:
    """Its read began before; what this node did not hear may have come since."""
    held = room.fleet.traffic.hold("newest", "answer")
    subscriber, joining = room.joining()
    await held.arrived()
    room.dispatcher.tails.ask(room.fleet.clock.monotonic_s())
    assert room.dispatcher.tails.asked == 0
    held.release()
    await joining
    assert subscriber.offsets == []
    assert room.dispatcher.tails.asked == 1


async def test_a_look_says_whether_the_log_answered(room: Room) -> None:
    await room.join()
    room.fleet.world.fail_next("newest", Rejected("no permission"))
    assert not await room.dispatcher.check_tail(CHANNEL)
    assert await room.dispatcher.check_tail(CHANNEL)


async def test_catching_up_costs_one_read_a_channel_when_nothing_was_missed(room: Room) -> None:
    """It also reads the trim now and then, where a recovery could need no read."""
    await room.join()
    before = room.fleet.traffic.reads
    await room.catch_up()
    assert room.fleet.traffic.reads == before + 1
    room.hint(await room.append())
    for reads in (2, 1, 1):
        before = room.fleet.traffic.reads
        await room.catch_up()
        assert room.fleet.traffic.reads == before + reads


async def test_the_check_keeps_a_quiet_channels_epoch(room: Room) -> None:
    subscriber = await room.join()
    for _ in range(10):
        room.fleet.clock.advance(12 * 3600)
        await room.catch_up()
    room.hint(await room.append())
    assert subscriber.offsets == [1]
    assert subscriber.lost_channels == []


async def test_another_epoch_that_is_real_ends_the_subscriptions(room: Room) -> None:
    subscriber = await room.join()
    room.hint(await room.append())
    item = await begin_another_epoch(room)
    await until(lambda: subscriber.lost_channels == [CHANNEL])
    again = await room.join(since=StreamPosition(item.epoch, 1))
    assert again.offsets == [2]


async def test_the_periodic_check_finds_another_epoch(room: Room) -> None:
    subscriber = await room.join()
    room.fleet.clock.advance(BELIEF_S + 3600)
    await room.append()
    await room.catch_up()
    assert subscriber.lost_channels == [CHANNEL]


async def test_a_straggler_of_an_epoch_before_is_looked_up_once(room: Room) -> None:
    subscriber = await room.join()
    before = room.fleet.traffic.reads
    for offset in (7, 8):
        room.take(record(offset, epoch="before"))
        await settled()
    assert room.fleet.traffic.reads == before + 1
    room.hint(await room.append())
    assert subscriber.offsets == [1]
    assert subscriber.lost_channels == []


@pytest.fixture
def retried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = Backoff(GAP_WAIT_S, GAP_WAIT_S, (0.5, 1.5))
    monkeypatch.setattr(open_channel_module, "_DOUBT_BACKOFF", at_once)


@pytest.mark.usefixtures("retried_at_once")
async def test_a_doubt_that_could_not_be_cleared_is_looked_into_again(room: Room) -> None:
    """Without another record, which may never come."""
    subscriber = await room.join()
    room.fleet.clock.advance(BELIEF_S + 3600)
    item = await room.append()
    before = room.fleet.traffic.calls["newest"]
    room.fleet.world.fail_next("newest", Rejected("no permission"), times=3)
    room.hint(item)
    for checks in (1, 2, 3):
        await until(lambda checks=checks: room.fleet.traffic.calls["newest"] == before + checks)  # type: ignore[misc]
        await settled()
        assert room.fleet.traffic.calls["newest"] == before + checks, "not before its time"
        assert subscriber.lost_channels == []
        room.pass_time()
    await until(lambda: subscriber.lost_channels == [CHANNEL])


@pytest.mark.usefixtures("retried_at_once")
async def test_doubts_are_looked_into_within_a_bound(room: Room) -> None:
    """And the channel's own records go out meanwhile, holes and all."""
    subscriber = await room.join()
    first = await room.append()
    await room.append()
    third = await room.append()
    room.fleet.world.fail_next("newest", Rejected("no permission"), times=1000)
    before = room.fleet.traffic.calls["newest"]
    room.take(record(7, epoch="before"))
    await settled()
    room.hint(first, third)
    room.pass_time()
    await until(lambda: subscriber.offsets == [1, 2, 3])

    def given_up() -> bool:
        room.pass_time()
        return room.channel.order.doubted is None

    await until(given_up)
    checks = room.fleet.traffic.calls["newest"] - before
    assert checks == open_channel_module._DOUBT_FAILURES_MAX
    assert room.channel._timer is None
    # The next record of that epoch begins anew.
    room.take(record(8, epoch="before"))
    await until(lambda: room.fleet.traffic.calls["newest"] - before > checks)


async def test_what_was_under_way_for_a_closed_channel_is_dropped(room: Room) -> None:
    first = await room.join()
    await room.append()
    room.hint(await room.append())
    held = room.fleet.traffic.hold("read_forward", "answer")
    room.pass_time()
    await held.arrived()
    room.dispatcher.leave(CHANNEL, first)
    second = await room.join()
    held.release()
    await settled()
    assert first.offsets == second.offsets == []
    room.hint(await room.append())
    assert second.offsets == [3]


async def test_a_failure_of_a_closed_channel_is_nothing_to_who_came_after(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_channel_module, "_GAP_RETRY_S", 0.0)
    first = await room.join()
    await room.append()
    room.hint(await room.append())
    room.fleet.world.fail_next("read_forward", Throttled("for ever"), times=1000)
    held = room.fleet.traffic.hold("read_forward", "answer")
    room.pass_time()
    await held.arrived()
    room.dispatcher.leave(CHANNEL, first)
    second = await room.join()
    room.fleet.clock.advance(60)
    held.release()
    for _ in range(50):
        room.fleet.clock.advance(60)
        await settled()
    assert second.lost_channels == []
    room.hint(await room.append())
    assert second.offsets == [3]


async def test_what_is_hidden_is_not_recovered_any_more(room: Room) -> None:
    await room.append(3)
    await room.join(since=await room.position(0))
    room.dispatcher.hide(CHANNEL, 2)
    room.dispatcher.hide(CHANNEL, 1)
    room.dispatcher.hide("nobody is there", 1)
    recovering = await room.join(since=await room.position(1))
    assert recovering.joined == JoinResult(await room.position(3), False, ())
    visible = await room.join(since=await room.position(2))
    assert visible.offsets == [3]
