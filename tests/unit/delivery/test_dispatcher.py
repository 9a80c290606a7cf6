"""The dispatcher over memory: who joins and leaves, and what is let in within one tick."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from roomcast.concurrency import Portions
from roomcast.delivery import dispatcher as dispatcher_module
from roomcast.delivery.join_reads import JoinRequest, JoinResult
from roomcast.log.rules import Pending
from roomcast.ports import PortError, Rejected
from roomcast.wire.publication import StreamPosition
from tests.unit.delivery.room import (
    CHANNEL,
    Room,
    Subscriber,
    append_raw,
    begin_another_epoch,
    opened_again,
)
from tests.unit.worlds import settled, until


async def test_a_subscriber_starts_at_the_end_of_the_log(room: Room) -> None:
    await room.append(3)
    subscriber = await room.join()
    assert subscriber.joined == JoinResult(await room.position(3), None, ())
    room.hint(await room.append(), await room.append())
    assert subscriber.offsets == [4, 5]


async def test_the_first_subscriber_of_an_empty_channel_gets_an_epoch(room: Room) -> None:
    subscriber = await room.join()
    assert subscriber.joined is not None
    assert subscriber.joined.position == await room.position(0)
    assert subscriber.joined.position.epoch


@pytest.mark.parametrize("stage", ["sent", "answer"])
async def test_nothing_falls_between_the_reply_and_the_first_push(room: Room, stage: str) -> None:
    """I4. Whether the read sees what is appended meanwhile or not."""
    await room.append()
    held = room.fleet.traffic.hold("newest", stage)  # type: ignore[arg-type]  # a literal
    subscriber, joining = room.joining()
    await held.arrived()
    room.hint(append_raw(room, 2))
    room.hint(append_raw(room, 3))
    held.release()
    await joining
    room.hint(append_raw(room, 4))
    assert subscriber.joined is not None
    # Seen by the read, or come in while it was under way: the position is behind both.
    assert subscriber.joined.position.offset == 3
    assert subscriber.offsets == [4]


async def test_of_those_who_waited_for_a_read_few_are_let_in_in_a_turn(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that answers again answers all who came meanwhile at once. I4 holds for each."""
    monkeypatch.setattr(room.dispatcher, "_admissions", Portions(3))
    await room.append()
    held = room.fleet.traffic.hold("newest", "answer")
    waiting = [room.joining() for _ in range(10)]
    await held.arrived()
    held.release()
    let_in, offset = list[int](), 2
    while not let_in or let_in[-1] < len(waiting):
        await asyncio.sleep(0)
        let_in.append(sum(subscriber.joined is not None for subscriber, _ in waiting))
        room.hint(append_raw(room, offset))
        offset += 1
    assert max(after - before for before, after in pairwise([0, *let_in])) == 3
    await asyncio.gather(*(joining for _, joining in waiting))
    for subscriber, _ in waiting:
        assert subscriber.joined is not None
        assert subscriber.offsets == list(range(subscriber.joined.position.offset + 1, offset))


async def test_what_comes_in_the_tick_of_the_reply_is_pushed(room: Room) -> None:
    """I4. Between the reply and the hub nobody else gets a turn."""
    await room.join()
    item = await room.append()
    subscriber = Subscriber()

    def admit(joined: JoinResult) -> bool:
        asyncio.get_running_loop().call_soon(room.hint, item)
        return subscriber.admit(joined)

    await room.dispatcher.join(CHANNEL, subscriber, None, lambda: room.window, admit)
    await settled()
    assert subscriber.offsets == [1]


async def test_who_joins_an_open_channel_causes_no_read(room: Room) -> None:
    first = await room.join()
    room.hint(await room.append(2))
    before = room.fleet.traffic.reads
    second = await room.join()
    assert room.fleet.traffic.reads == before
    assert second.joined is not None
    assert second.joined.position.offset == 2
    room.hint(await room.append())
    assert (first.offsets, second.offsets) == ([1, 2, 3], [3])


async def test_who_is_not_admitted_leaves_nothing(room: Room) -> None:
    subscriber = Subscriber()
    await room.dispatcher.join(CHANNEL, subscriber, None, lambda: room.window, lambda _: False)
    assert len(room.dispatcher) == len(room.hub) == 0


def _at_once(room: Room, subscriber: Subscriber, since: StreamPosition | None = None) -> bool:
    return room.dispatcher.join_at_once(
        CHANNEL, subscriber, since, lambda: room.window, subscriber.admit
    )


async def test_who_needs_no_read_joins_at_once(room: Room) -> None:
    assert not _at_once(room, Subscriber()), "the channel is not open"
    assert len(room.dispatcher) == 0
    await room.join()
    room.hint(await room.append(2))
    new, back = Subscriber(), Subscriber()
    assert _at_once(room, new)
    assert _at_once(room, back, await room.position(1))
    assert new.joined is not None
    assert back.joined is not None
    assert (new.joined.position.offset, new.joined.recovered) == (2, None)
    assert (len(back.joined.missed), back.joined.recovered) == (1, True)
    assert room.dispatcher.counters.recoveries["recovered"] == 1
    room.hint(await room.append())
    assert (new.offsets, back.offsets[-1]) == ([3], 3)
    assert not _at_once(room, Subscriber(), await room.position(9)), "it must be read"


async def test_who_is_not_admitted_at_once_is_not_let_in(room: Room) -> None:
    await room.join()
    assert room.dispatcher.join_at_once(
        CHANNEL, Subscriber(), None, lambda: room.window, lambda _: False
    )
    assert room.hub.count(CHANNEL) == 1


async def test_a_channel_without_history_has_no_order(room: Room) -> None:
    subscriber = Subscriber()
    room.dispatcher.join_unordered("plain", subscriber, lambda: False)
    assert not room.hub.has("plain")
    room.dispatcher.join_unordered("plain", subscriber, lambda: True)
    assert room.hub.has("plain")
    assert len(room.dispatcher) == 0
    room.dispatcher.leave("plain", subscriber)
    assert not room.hub.has("plain")


async def test_a_pause_for_one_channel_holds_up_no_other_of_the_same_connection(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_JOINS_AT_ONCE", 1)
    await room.join()
    liar = await room.join(since=StreamPosition("invented", 1))
    assert liar.joined is not None
    joinings = [
        JoinRequest(name, Subscriber(), StreamPosition("invented too", 1), lambda: room.window)
        for name in (CHANNEL, "another")
    ]
    joining = asyncio.create_task(room.dispatcher.join_all(joinings, lambda joined: True))
    before = room.fleet.traffic.calls["newest"]
    await settled()
    assert room.fleet.traffic.calls["newest"] > before, "the other channel was opened"
    assert not joining.done()
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)


async def test_who_joins_while_the_channel_is_lost_joins_what_follows(room: Room) -> None:
    first = await opened_again(room)
    held = room.fleet.traffic.hold("read_backward", "answer")
    subscriber, joining = room.joining(await room.position(0))
    await held.arrived()
    await begin_another_epoch(room)
    await until(lambda: first.lost_channels)
    held.release()
    await joining
    assert subscriber.joined is not None
    assert subscriber.joined.recovered is False, "what it had is of the epoch that is over"
    room.hint(await room.append())
    assert len(subscriber.offsets) == 1


async def test_repeats_are_dropped_and_order_is_kept(room: Room) -> None:
    subscriber = await room.join()
    items = [await room.append(1 + number % 3) for number in range(6)]
    for number in (0, 2, 1, 1, 0, 4, 5, 2, 3, 5):
        room.hint(items[number])
    assert subscriber.offsets == list(range(1, items[-1].last + 1))
    assert room.fleet.traffic.calls["read_forward"] == 0


async def test_what_one_receive_brings_is_one_write(room: Room) -> None:
    subscriber = await room.join()
    room.hint(*[await room.append() for _ in range(20)])
    assert len(subscriber.sink.frames) == 2
    assert subscriber.offsets == list(range(1, 21))


async def test_only_open_channels_are_looked_at(room: Room) -> None:
    subscriber = await room.join()
    assert len(room.dispatcher.tails) == 1
    before = room.fleet.traffic.reads
    assert await room.dispatcher.check_tail("another")
    assert room.fleet.traffic.reads == before
    room.dispatcher.leave(CHANNEL, subscriber)
    assert len(room.dispatcher.tails) == 0
    assert await room.dispatcher.check_tail(CHANNEL)
    assert room.fleet.traffic.reads == before


async def test_catching_up_looks_at_every_channel_even_if_one_does_not_answer(room: Room) -> None:
    first, second = Subscriber(), Subscriber()
    for name, subscriber in (("one", first), ("two", second)):
        await room.dispatcher.join(name, subscriber, None, lambda: room.window, subscriber.admit)
        tail = (await room.writer.resolve(name)).tail
        await room.writer.append(name, tail, [Pending.of('{"data":1}')], 300_000)
    room.fleet.world.fail_next("newest", Rejected("no permission"))
    await room.catch_up()
    await settled()
    assert (first.sink.offsets("one"), second.sink.offsets("two")) in (([], [1]), ([1], []))


async def test_the_last_one_who_leaves_closes_the_channel(room: Room) -> None:
    first, second = await room.join(), await room.join()
    room.dispatcher.leave(CHANNEL, first)
    room.hint(await room.append())
    assert (first.offsets, second.offsets) == ([], [1])
    room.dispatcher.leave(CHANNEL, second)
    room.dispatcher.leave(CHANNEL, second)
    assert len(room.dispatcher) == len(room.hub) == 0
    room.hint(await room.append())
    assert second.offsets == [1]


async def test_the_end_stops_what_is_under_way(room: Room) -> None:
    await room.join()
    await room.append()
    room.hint(await room.append())
    held = room.fleet.traffic.hold("read_forward", "answer")
    room.pass_time()
    await held.arrived()
    _, joining = room.joining(await room.position(0))
    await room.dispatcher.close()
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


def joining_all(room: Room, *channels: str, plain: str = "") -> list[JoinRequest]:
    """To recover everything in `channels`, and into `plain`, which has no history."""
    since = StreamPosition("", 0)
    joinings = [
        JoinRequest(channel, Subscriber(), since, lambda: room.window) for channel in channels
    ]
    return [*joinings, JoinRequest(plain, Subscriber())] if plain else joinings


async def test_all_of_them_are_let_in_in_one_tick(room: Room) -> None:
    await room.append(3)
    joinings = joining_all(room, CHANNEL, "another", plain="plain")
    in_hub: list[str] = []

    def admit(joined: Any) -> bool:
        in_hub.extend(room.hub.names())
        assert [one and one.position.offset for one in joined] == [3, 0, None]
        assert [sent.offset for sent in joined[0].missed] == [1, 2, 3]
        assert (joined[1].recovered, joined[1].missed) == (True, ())
        return True

    await room.dispatcher.join_all(joinings, admit)
    assert in_hub == []
    assert set(room.hub.names()) == {CHANNEL, "another", "plain"}


async def test_a_position_is_as_of_the_tick_in_which_the_slowest_is_there(room: Room) -> None:
    await room.append()
    await room.append()
    await room.join()
    joinings = joining_all(room, CHANNEL, "slow")
    held = room.fleet.traffic.hold("newest")
    told: list[Any] = []

    def admit(joined: Any) -> bool:
        told.extend(joined)
        return True

    joining = asyncio.create_task(room.dispatcher.join_all(joinings, admit))
    await held.arrived()
    room.hint(append_raw(room, 3))
    held.release()
    await joining
    assert [sent.offset for sent in told[0].missed] == [1, 2, 3]
    room.hint(append_raw(room, 4))
    assert joinings[0].subscriber.sink.offsets(CHANNEL) == [4]  # type: ignore[attr-defined]  # a Socket


async def test_if_one_cannot_be_had_nobody_is_let_in(room: Room) -> None:
    await room.append(2)
    room.fleet.world.fail_next("newest", Rejected("simulated"))
    with pytest.raises(Rejected):
        await room.dispatcher.join_all(joining_all(room, "one", "two", CHANNEL), lambda _: True)
    assert (len(room.hub), len(room.dispatcher)) == (0, 0)
    await room.dispatcher.join_all(joining_all(room, "one", "two"), lambda _: False)
    assert (len(room.hub), len(room.dispatcher)) == (0, 0)


@pytest.mark.parametrize("losses", [1, 2])
async def test_channels_that_are_lost_meanwhile_are_joined_once_more(
    room: Room, losses: int
) -> None:
    """They open anew, behind what they were lost for. If that happens again, nobody is let in."""
    await room.join()
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    joining = asyncio.create_task(
        room.dispatcher.join_all(joining_all(room, CHANNEL, "slow"), lambda _: True, ready)
    )
    for _ in range(losses):
        held = room.fleet.traffic.hold("newest")
        await settled()
        room.channel.lose("the test says so")
        if not ready.done():
            ready.set_result(None)
        await held.arrived()
        held.release()
    if losses == 1:
        await joining
        assert (len(room.hub), len(room.dispatcher)) == (2, 2)
    else:
        with pytest.raises(PortError, match="closed while"):
            await joining
        assert (len(room.hub), len(room.dispatcher)) == (0, 0)


async def test_the_log_is_not_read_for_all_at_once(room: Room) -> None:
    names = [f"c{number}" for number in range(dispatcher_module._JOINS_AT_ONCE * 2)]
    held = room.fleet.traffic.hold("newest")
    joining = asyncio.create_task(
        room.dispatcher.join_all(joining_all(room, *names), lambda _: True)
    )
    await held.arrived()
    await settled()
    assert held.count == dispatcher_module._JOINS_AT_ONCE
    held.release()
    await joining
    assert len(room.hub) == len(names)
