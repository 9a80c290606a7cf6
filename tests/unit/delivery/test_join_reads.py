"""Reads that clients cause: who shares which, what must wait, and what a recovery brings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import pytest

from roomcast.delivery import join_reads as join_reads_module
from roomcast.delivery import open_channel as open_channel_module
from roomcast.delivery.envelope import EPOCH_CHARS_MAX
from roomcast.delivery.join_reads import READ_BACK_MIN, JoinResult
from roomcast.delivery.recovery import Window
from roomcast.log.channel_log import ITEMS_A_PAGE, Appended
from roomcast.log.rules import Pending
from roomcast.ports import PortError, Rejected
from roomcast.testing.memory import ManualClock
from roomcast.wire.publication import StreamPosition
from tests.unit.delivery.room import (
    BELIEF_S,
    CHANNEL,
    GAP_WAIT_S,
    Room,
    Subscriber,
    begin_another_epoch,
    opened_again,
)
from tests.unit.worlds import log_over, settled, until


async def test_those_who_come_at_once_share_one_read(room: Room) -> None:
    await room.append(2)
    before = room.fleet.traffic.reads
    subscribers = [room.joining() for _ in range(50)]
    await asyncio.gather(*(joining for _, joining in subscribers))
    assert room.fleet.traffic.reads == before + 1
    room.hint(await room.append())
    assert all(subscriber.offsets == [3] for subscriber, _ in subscribers)


async def test_a_cancelled_join_leaves_nothing_and_takes_nothing_from_others(room: Room) -> None:
    held = room.fleet.traffic.hold("newest", "sent")
    _, first = room.joining()
    other, second = room.joining()
    await held.arrived()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    held.release()
    await second
    room.hint(await room.append())
    assert other.offsets == [1]
    room.dispatcher.leave(CHANNEL, other)
    assert len(room.dispatcher) == len(room.hub) == 0

    held = room.fleet.traffic.hold("newest", "sent")
    _, alone = room.joining()
    await held.arrived()
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    held.release()
    await settled()
    assert len(room.dispatcher) == len(room.hub) == 0


async def test_a_log_that_does_not_answer_is_told_to_all_who_wait(room: Room) -> None:
    room.fleet.world.fail_next("newest", Rejected("no permission"))
    subscribers = [room.joining() for _ in range(3)]
    results = await asyncio.gather(*(joining for _, joining in subscribers), return_exceptions=True)
    assert all(isinstance(result, PortError) for result in results)
    assert all(subscriber.joined is None for subscriber, _ in subscribers)
    assert len(room.dispatcher) == 0
    assert (await room.join()).joined is not None


async def test_a_read_that_everybody_left_keeps_its_place_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on. Otherwise who comes and goes makes more reads at once than there are places."""
    monkeypatch.setattr(open_channel_module, "JOIN_READS_AT_ONCE", 2)
    room = Room()
    held = room.fleet.traffic.hold("newest")

    async def join(channel: str) -> None:
        subscriber = Subscriber()
        await room.dispatcher.join(channel, subscriber, None, lambda: room.window, subscriber.admit)

    gone = [asyncio.create_task(join(f"channel {number}")) for number in range(10)]
    await held.arrived(2)
    for each in gone:
        each.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    late = [asyncio.create_task(join(f"later {number}")) for number in range(3)]
    await settled()
    assert held.count == 2
    held.release()
    await asyncio.gather(*late)
    places = room.dispatcher._shared.join_reads
    await until(lambda: places.free == 2)
    assert not places.waiting


async def test_recovery_from_recent_publications_reads_nothing(room: Room) -> None:
    await room.join()
    for _ in range(20):
        room.hint(await room.append(3))
    since = await room.position(7)
    before = room.fleet.traffic.reads
    subscribers = [room.joining(since) for _ in range(50)]
    await asyncio.gather(*(joining for _, joining in subscribers))
    assert room.fleet.traffic.reads == before
    for subscriber, _ in subscribers:
        assert subscriber.joined is not None
        assert subscriber.joined.recovered is True
        assert subscriber.offsets == list(range(8, 61))


async def test_recovery_from_the_log_is_one_read_for_all(room: Room) -> None:
    for _ in range(20):
        await room.append(3)
    since = await room.position(0)
    subscribers = [room.joining(StreamPosition(since.epoch, offset)) for offset in range(50)]
    await asyncio.gather(*(joining for _, joining in subscribers))
    assert room.fleet.traffic.calls["read_backward"] == 1
    room.hint(await room.append())
    for offset, (subscriber, _) in enumerate(subscribers):
        assert subscriber.offsets == list(range(offset + 1, 62))


async def test_who_missed_little_does_not_wait_for_all_that_a_recovery_may_bring() -> None:
    """On a slow table that would take longer than a join may, each time again."""
    room, top = Room(recovered_max=10_000), 7 * ITEMS_A_PAGE
    for _ in range(top):
        await room.append()
    subscriber = await room.join(since=await room.position(top - 50))
    assert subscriber.offsets == list(range(top - 49, top + 1))
    assert room.fleet.traffic.calls["read_backward"] == 3


async def test_those_who_missed_a_little_more_each_cost_no_read_each() -> None:
    room, top = Room(recovered_max=10_000), 7 * ITEMS_A_PAGE
    for _ in range(top):
        await room.append()
    for missed in (50, READ_BACK_MIN, *range(READ_BACK_MIN + 1, top, 50), top):
        subscriber = await room.join(since=await room.position(top - missed))
        assert subscriber.offsets == list(range(top - missed + 1, top + 1))
    # Three pages, twice as many, and all of them.
    assert room.fleet.traffic.calls["read_backward"] == 3 + 6 + 7


@pytest.mark.parametrize("offsets, pages", [((0, 490), 5), ((490, 480, 20, 0), 3 + 5)])
async def test_who_missed_more_than_others_has_a_read_that_goes_so_far(
    offsets: tuple[int, ...], pages: int
) -> None:
    room, top = Room(recovered_max=10_000), 5 * ITEMS_A_PAGE
    for _ in range(top):
        await room.append()
    epoch = (await room.position(0)).epoch
    subscribers = [room.joining(StreamPosition(epoch, offset)) for offset in offsets]
    await asyncio.gather(*(joining for _, joining in subscribers))
    for (subscriber, _), offset in zip(subscribers, offsets, strict=True):
        assert subscriber.offsets == list(range(offset + 1, top + 1))
    assert room.fleet.traffic.calls["read_backward"] == pages


async def test_recovery_goes_on_while_publications_come_in(room: Room) -> None:
    await room.append(3)
    first = await room.join()
    since = await room.position(1)
    held = room.fleet.traffic.hold("read_backward", "answer")
    subscriber, joining = room.joining(since)
    await held.arrived()
    room.hint(await room.append(2))
    held.release()
    await joining
    room.hint(await room.append())
    assert subscriber.offsets == [2, 3, 4, 5, 6]
    assert first.offsets == [4, 5, 6]


async def test_nothing_missed_is_recovered_without_a_read(room: Room) -> None:
    await room.append(3)
    since = await room.position(3)
    subscriber = await room.join(since=since)
    assert subscriber.joined == JoinResult(since, True, ())
    assert room.fleet.traffic.calls["read_backward"] == 0


async def test_an_empty_epoch_stands_for_the_channels_own(room: Room) -> None:
    await room.append(3)
    subscriber = await room.join(since=StreamPosition("", 1))
    assert subscriber.offsets == [2, 3]


async def test_a_client_that_is_ahead_of_this_node_moves_everybody(room: Room) -> None:
    """It comes from a node that heard more: what it has seen is in the log."""
    first = await room.join()
    await room.append(2)
    await room.append(2)
    subscriber = await room.join(since=await room.position(3))
    assert first.offsets == [1, 2, 3, 4]
    assert subscriber.joined is not None
    assert subscriber.joined.recovered is True
    assert subscriber.offsets == [4]
    room.hint(await room.append())
    assert (first.offsets[4:], subscriber.offsets) == ([5], [4, 5])


def ahead_reads(room: Room) -> int:
    return room.fleet.traffic.calls["read_forward"]


async def test_who_claims_to_be_ahead_of_the_log_costs_a_read_a_second(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can claim it, and as often as it likes."""
    await room.append(3)
    await room.join()
    since = await room.position(10**12)
    liar = await room.join(since=since)
    assert liar.joined == JoinResult(await room.position(3), False, ())
    assert ahead_reads(room) == 1
    # A client that comes within the second after it waits for the next read. All others are served
    # meanwhile.
    flood = [room.joining(since) for _ in range(50)]
    await settled()
    assert (await room.join(since=await room.position(2))).offsets == [3]
    assert ahead_reads(room) == 1
    assert not any(joining.done() for _, joining in flood)
    for _, joining in flood:
        joining.cancel()
    await asyncio.gather(*(joining for _, joining in flood), return_exceptions=True)
    # Then one read answers all who wait.
    monkeypatch.setattr(join_reads_module, "_READ_PAUSE_S", GAP_WAIT_S)
    room.pass_time()
    flood = [room.joining(since) for _ in range(50)]
    await asyncio.gather(*(joining for _, joining in flood))
    assert ahead_reads(room) == 2, "for the first, and a pause later one for all who came"
    assert all(subscriber.joined == liar.joined for subscriber, _ in flood)


# What a subscriber claims, and the read that it causes.
CLAIMS: Final[dict[str, tuple[str, Callable[[str], StreamPosition]]]] = {
    "another epoch": ("newest", lambda epoch: StreamPosition("another", 1)),
    "ahead": ("read_forward", lambda epoch: StreamPosition(epoch, 10**6)),
    "behind": ("read_backward", lambda epoch: StreamPosition(epoch, 1)),
}


@pytest.mark.parametrize("claim", CLAIMS)
async def test_a_read_for_a_subscriber_that_failed_is_not_tried_again_at_once_for_all(
    room: Room, claim: str
) -> None:
    call, since = CLAIMS[claim]
    item = await room.append(3)
    await room.join()
    before = room.fleet.traffic.calls[call]
    room.fleet.world.fail_next(call, Rejected("on purpose"))
    first, *others = [room.joining(since(item.epoch))[1] for _ in range(50)]
    with pytest.raises(PortError):
        await first
    await settled()
    assert room.fleet.traffic.calls[call] == before + 1
    assert not any(joining.done() for joining in others)
    for joining in others:
        joining.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.mark.parametrize("claim", CLAIMS)
async def test_who_goes_away_while_it_is_read_for_does_not_make_the_next_one_read_at_once(
    room: Room, claim: str
) -> None:
    """Otherwise whoever comes and goes has as many reads as it likes."""
    call, since = CLAIMS[claim]
    item = await room.append(3)
    await room.join()
    held = room.fleet.traffic.hold(call)
    _, gone = room.joining(since(item.epoch))
    await held.arrived()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    held.release()
    before = room.fleet.traffic.calls[call]
    _, waiting = room.joining(since(item.epoch))
    await settled()
    assert room.fleet.traffic.calls[call] == before
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_who_waited_for_a_read_ahead_has_one_that_began_after_it_came(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that failed says nothing about a client that has seen a later append."""
    monkeypatch.setattr(join_reads_module, "_READ_PAUSE_S", 0.001)
    await room.append(3)
    await room.join()
    held = room.fleet.traffic.hold("read_forward", "answer")
    liar, lying = room.joining(await room.position(99))
    await held.arrived()
    await room.append(2)
    honest, joining = room.joining(await room.position(4))
    late, coming_late = room.joining(await room.position(5))
    held.release()
    await asyncio.gather(lying, joining, coming_late)
    assert liar.joined is not None
    assert liar.joined.recovered is False
    assert (honest.offsets, late.offsets) == ([5], [])
    for subscriber in (honest, late):
        assert subscriber.joined is not None
        assert subscriber.joined.recovered is True
    await room.append()
    again = await room.join(since=await room.position(6))
    assert again.joined == JoinResult(await room.position(6), True, ())


async def test_a_read_ahead_that_fails_answers_nobody_else(room: Room) -> None:
    await room.join()
    await room.append(2)
    since = await room.position(1)
    room.fleet.world.fail_next("read_forward", Rejected("no permission"))
    subscribers = [room.joining(since) for _ in range(5)]
    results = await asyncio.gather(*(joining for _, joining in subscribers), return_exceptions=True)
    assert [isinstance(result, PortError) for result in results] == [
        True,
        False,
        False,
        False,
        False,
    ]
    assert all(subscriber.offsets == [2] for subscriber, _ in subscribers[1:])


async def test_a_client_that_is_far_ahead_is_reached_in_several_reads(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_reads_module, "GAP_PUBLICATIONS_MAX", 100)
    first = await room.join()
    for _ in range(250):
        await room.append()
    subscriber = await room.join(since=await room.position(249))
    assert subscriber.offsets == [250]
    assert first.offsets == list(range(1, 251))
    assert ahead_reads(room) == 3


@pytest.mark.parametrize(
    "since", [StreamPosition("", 99), StreamPosition("other", 1), StreamPosition("_", 0)]
)
async def test_a_position_that_the_log_does_not_have_is_told(
    room: Room, since: StreamPosition
) -> None:
    await room.append(3)
    subscriber = await room.join(since=since)
    assert subscriber.joined == JoinResult(await room.position(3), False, ())
    room.hint(await room.append())
    assert subscriber.offsets == [4]


async def test_too_many_missed_are_not_recovered() -> None:
    room = Room(recovered_max=10)
    await room.append(11)
    since = await room.position(0)
    assert (await room.join(since=since)).joined == JoinResult(await room.position(11), False, ())
    subscriber = await room.join(since=StreamPosition(since.epoch, 1))
    assert subscriber.offsets == list(range(2, 12))


async def test_what_is_hidden_by_age_is_not_recovered(room: Room) -> None:
    await room.append()
    room.fleet.clock.advance(10)
    await room.append()
    room.window = Window(size=100, trim=0, cutoff_ts=room.fleet.clock.now_ms() - 5000, limit=100)
    since = await room.position(0)
    assert (await room.join(since=since)).joined == JoinResult(await room.position(2), False, ())
    assert (await room.join(since=StreamPosition(since.epoch, 1))).offsets == [2]


async def test_what_the_log_lost_is_not_recovered(room: Room) -> None:
    for _ in range(4):
        await room.append()
    since = await room.position(0)
    room.fleet.world.expire(CHANNEL, 2)
    assert (await room.join(since=since)).joined == JoinResult(await room.position(4), False, ())
    channel = room.channel
    assert len(channel.ring) == 2, "what was read is kept for others, and counted"
    assert room.dispatcher._rings.bytes == channel.ring.weight
    assert (await room.join(since=StreamPosition(since.epoch, 2))).offsets == [3, 4]


async def test_a_recovery_whose_read_fails_is_told(room: Room) -> None:
    await room.append(3)
    since = await room.position(0)
    room.fleet.world.fail_next("read_backward", Rejected("no permission"))
    with pytest.raises(PortError):
        await room.join(since=since)
    assert len(room.dispatcher) == 0
    assert (await room.join(since=since)).offsets == [1, 2, 3]


async def test_what_was_read_for_a_channel_that_is_lost_is_not_kept(room: Room) -> None:
    first = await opened_again(room)
    held = room.fleet.traffic.hold("read_backward", "answer")
    _, joining = room.joining(await room.position(0))
    await held.arrived()
    await begin_another_epoch(room)
    await until(lambda: first.lost_channels)
    await room.join()
    held.release()
    await asyncio.gather(joining, return_exceptions=True)
    assert len(room.dispatcher) == 1
    assert room.dispatcher._rings.bytes == 0


async def test_who_comes_from_the_next_epoch_is_not_refused_by_a_node_that_missed_its_beginning(
    room: Room,
) -> None:
    subscriber = await room.join()
    room.hint(await room.append())
    room.fleet.clock.advance(BELIEF_S + 3600)
    items = [await room.append(), await room.append()]
    since = StreamPosition(items[0].epoch, items[0].last)
    assert (await room.join(since=since)).offsets == [items[1].offset]
    assert subscriber.lost_channels == [CHANNEL]


async def test_a_client_cannot_make_a_node_deaf_to_an_epoch_that_has_just_begun(room: Room) -> None:
    """A node whose clock is behind keeps to the old epoch a little longer.

    It then denies the next one.
    """
    subscriber = await room.join()
    room.hint(await room.append())
    clock = ManualClock()
    clock.advance((room.fleet.clock.now_ms() - clock.now_ms()) / 1000 + BELIEF_S + 1)
    ahead = log_over(room.fleet.world, clock, node="ahead")
    tail = (await ahead.renew(CHANNEL)).tail
    room.fleet.clock.advance(BELIEF_S - 1)
    comer = await room.join(since=tail.position)
    assert comer.joined is not None
    assert comer.joined.recovered is False
    outcome = await ahead.append(CHANNEL, tail, [Pending.of('{"data":2}')], 300_000)
    assert isinstance(outcome, Appended)
    room.hint(outcome.item)
    await until(lambda: subscriber.lost_channels == [CHANNEL])


async def test_an_epoch_that_is_longer_than_any_costs_no_read_and_no_memory(room: Room) -> None:
    await room.append()
    await room.join()
    before = room.fleet.traffic.calls["newest"]
    comer = await room.join(since=StreamPosition("e" * (EPOCH_CHARS_MAX + 1), 1))
    assert comer.joined is not None
    assert comer.joined.recovered is False
    assert room.fleet.traffic.calls["newest"] == before
    assert not room.dispatcher._reads[CHANNEL].epochs.denied


async def test_those_of_an_epoch_before_cost_one_read_together(room: Room) -> None:
    await room.append()
    await room.join()
    before = room.fleet.traffic.calls["newest"]
    held = room.fleet.traffic.hold("newest", "answer")
    comers = [room.joining(StreamPosition("before", number)) for number in range(50)]
    await held.arrived()
    late = room.joining(StreamPosition("before", 1))
    await settled()
    held.release()
    await asyncio.gather(*(joining for _, joining in [*comers, late]))
    after = await room.join(since=StreamPosition("before", 7))
    assert room.fleet.traffic.calls["newest"] == before + 1
    for subscriber in (*(each for each, _ in [*comers, late]), after):
        assert subscriber.joined is not None
        assert subscriber.joined.recovered is False


async def test_who_claims_epochs_that_never_were_costs_a_read_a_second(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epoch_reads() -> int:
        return room.fleet.traffic.calls["newest"] - before

    await room.join()
    before = room.fleet.traffic.calls["newest"]
    first = await room.join(since=StreamPosition("invented", 1))
    assert first.joined is not None
    assert first.joined.recovered is False
    flood = [room.joining(StreamPosition(f"invented-{number}", 1)) for number in range(50)]
    await settled()
    assert epoch_reads() == 1
    assert not any(joining.done() for _, joining in flood)
    for _, joining in flood:
        joining.cancel()
    await asyncio.gather(*(joining for _, joining in flood), return_exceptions=True)
    # Then one read answers all who wait.
    monkeypatch.setattr(join_reads_module, "_READ_PAUSE_S", GAP_WAIT_S)
    room.pass_time()
    flood = [room.joining(StreamPosition(f"invented-{number}", 1)) for number in range(50)]
    await settled()
    room.pass_time()
    await asyncio.gather(*(joining for _, joining in flood))
    assert epoch_reads() <= 3, (
        "for the first, and a pause later for those who came when that had begun"
    )
    assert all(subscriber.joined == first.joined for subscriber, _ in flood)


async def test_a_log_that_does_not_say_its_epoch_refuses_nobody(room: Room) -> None:
    await room.join()
    room.fleet.world.fail_next("newest", Rejected("on purpose"))
    subscriber, joining = room.joining(StreamPosition("another", 1))
    with pytest.raises(PortError):
        await joining
    assert subscriber.joined is None
