"""The dispatcher over memory: who joins, what is let through in which order,
and what cannot be repaired.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest

from roomcast.delivery import dispatcher as dispatcher_module
from roomcast.delivery.catch_up import CatchUp
from roomcast.delivery.dispatcher import Dispatcher, Joined, Joining, Timings
from roomcast.delivery.forms import PLAIN
from roomcast.delivery.hub import Hub
from roomcast.delivery.recovery import Rings, Window
from roomcast.log.channel_log import Appended, record_of
from roomcast.log.item import Head, LogItem
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS, Pending
from roomcast.ports import PortError, Refused, Throttled
from roomcast.testing.memory import ManualClock
from roomcast.wire.publication import Publication, Record, StreamPosition
from tests.unit.worlds import Fleet, Socket, log_over, no_jitter, record, settled, until

CHANNEL: Final = "room"
# The timers of the event loop look at the test's clock again after this long.
GAP_WAIT_S: Final = 0.001
# And the task that looks at the ends of logs after half of this.
TAIL_CHECK_S: Final = 0.002
RECOVERED_MAX: Final = 300
REPLY: Final = b'{"id":1}'
BELIEF_S: Final = (MIN_RETENTION_MS - MARGIN_MS) / 1000


class Subscriber:
    """One subscription: its reply and its pushes in the order they came."""

    join_leave = False
    form = PLAIN

    def __init__(self) -> None:
        self.sink = Socket()
        self.joined: Joined | None = None
        self.lost_channels: list[str] = []

    def lost(self, channel: str) -> None:
        self.lost_channels.append(channel)

    def admit(self, joined: Joined) -> bool:
        self.joined = joined
        self.sink.send(REPLY)
        return True

    @property
    def offsets(self) -> list[int]:
        """Of the recovered and the pushed publications.
        Fails if a push came before the reply (I4).
        """
        assert self.joined is not None, "not joined"
        assert self.sink.frames[0] == REPLY, "I4: the reply comes first"
        return [sent.offset for sent in self.joined.missed] + self.sink.offsets(CHANNEL)


class Room:
    """One node's dispatcher, and another writer to its channel,
    whose records arrive when the test says so.
    """

    def __init__(self, *, size: int = 10_000, recovered_max: int = RECOVERED_MAX) -> None:
        self.fleet = Fleet()
        self.hub = Hub()
        self.dispatcher = Dispatcher(
            log_over(self.fleet.world, self.fleet.clock),
            self.hub,
            self.fleet.clock,
            no_jitter,
            Timings(gap_wait_s=GAP_WAIT_S, tail_check_s=TAIL_CHECK_S),
            recovery_publications_max=recovered_max,
        )
        self.writer = log_over(self.fleet.world, self.fleet.clock, node="b")
        self.window = Window(size=size, trim=0, cutoff_ts=0, limit=recovered_max)

    async def append(self, count: int = 1) -> LogItem:
        """One item in the log, of which the dispatcher is not told."""
        tail = (await self.writer.resolve(CHANNEL)).tail
        pending = [
            Pending.of(json.dumps({"data": offset}))
            for offset in range(tail.top + 1, tail.top + count + 1)
        ]
        outcome = await self.writer.append(CHANNEL, tail, pending, 300_000)
        assert isinstance(outcome, Appended)
        return outcome.item

    def hint(self, *items: LogItem) -> None:
        """What the queue brings in one receive."""
        records = [record_of(item) for item in items]
        self.dispatcher.offer([each for each in records if each is not None])

    async def join(
        self, subscriber: Subscriber | None = None, since: StreamPosition | None = None
    ) -> Subscriber:
        subscriber = subscriber or Subscriber()
        await self.dispatcher.join(
            CHANNEL, subscriber, since, lambda: self.window, subscriber.admit
        )
        return subscriber

    async def catch_up(self) -> None:
        """Look at the end of each open channel once, as a node that could not hear does."""
        self.dispatcher.tails.ask(self.fleet.clock.monotonic_s())
        while (name := self.dispatcher.tails.take(self.fleet.clock.monotonic_s())) is not None:
            answered = await self.dispatcher.check_tail(name)
            self.dispatcher.tails.done(name, self.fleet.clock.monotonic_s(), 0.0, answered=answered)

    def joining(
        self, since: StreamPosition | None = None
    ) -> tuple[Subscriber, asyncio.Task[Subscriber]]:
        subscriber = Subscriber()
        return subscriber, asyncio.create_task(self.join(subscriber, since))

    async def position(self, offset: int) -> StreamPosition:
        return StreamPosition((await self.writer.resolve(CHANNEL)).tail.epoch, offset)

    def pass_time(self) -> None:
        """Longer than a hole is waited for."""
        self.fleet.clock.advance(1)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    yield room
    await room.dispatcher.close()


# ---- joining


async def test_a_subscriber_starts_at_the_end_of_the_log(room: Room) -> None:
    await room.append(3)
    subscriber = await room.join()
    assert subscriber.joined == Joined(await room.position(3), None, ())
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
    room.hint(_append_raw(room, 2))
    room.hint(_append_raw(room, 3))
    held.release()
    await joining
    room.hint(_append_raw(room, 4))
    assert subscriber.joined is not None
    # Seen by the read, or come in while it was under way: the position is behind both.
    assert subscriber.joined.position.offset == 3
    assert subscriber.offsets == [4]


def _append_raw(room: Room, offset: int) -> LogItem:
    """Append without reading the tail, which the test holds up."""
    newest = room.fleet.world.items[CHANNEL][offset - 1]
    assert isinstance(newest, LogItem)
    item = LogItem(
        CHANNEL,
        offset,
        offset,
        newest.epoch,
        json.dumps([{"data": offset}]),
        f"raw{offset}",
        "b",
        newest.ts,
        newest.expires_at,
    )
    room.fleet.world.items[CHANNEL][offset] = item
    return item


async def test_what_comes_in_the_tick_of_the_reply_is_pushed(room: Room) -> None:
    """I4. Between the reply and the hub nobody else gets a turn."""
    await room.join()
    item = await room.append()
    subscriber = Subscriber()

    def admit(joined: Joined) -> bool:
        asyncio.get_running_loop().call_soon(room.hint, item)
        return subscriber.admit(joined)

    await room.dispatcher.join(CHANNEL, subscriber, None, lambda: room.window, admit)
    await settled()
    assert subscriber.offsets == [1]


async def test_those_who_come_at_once_share_one_read(room: Room) -> None:
    await room.append(2)
    before = room.fleet.traffic.reads
    subscribers = [room.joining() for _ in range(50)]
    await asyncio.gather(*(joining for _, joining in subscribers))
    assert room.fleet.traffic.reads == before + 1
    room.hint(await room.append())
    assert all(subscriber.offsets == [3] for subscriber, _ in subscribers)


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
    room.fleet.world.fail_next("newest", Refused("no permission"))
    subscribers = [room.joining() for _ in range(3)]
    results = await asyncio.gather(*(joining for _, joining in subscribers), return_exceptions=True)
    assert all(isinstance(result, PortError) for result in results)
    assert all(subscriber.joined is None for subscriber, _ in subscribers)
    assert len(room.dispatcher) == 0
    assert (await room.join()).joined is not None


async def test_a_flood_while_a_channel_opens_loses_nothing(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_OPENING_RECORDS_MAX", 3)
    await room.append()
    held = room.fleet.traffic.hold("newest", "answer")
    subscriber, joining = room.joining()
    await held.arrived()
    for offset in range(2, 9):
        room.hint(_append_raw(room, offset))
    held.release()
    await joining
    assert subscriber.joined is not None
    assert subscriber.joined.position.offset == 4
    await until(lambda: subscriber.offsets == [5, 6, 7, 8])


async def test_what_comes_while_a_channel_opens_is_bounded_in_bytes(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_OPENING_BYTES_MAX", 100)
    await room.append()
    held = room.fleet.traffic.hold("newest", "answer")
    subscriber, joining = room.joining()
    await held.arrived()
    for offset in range(2, 9):
        room.hint(_append_raw(room, offset))
    [channel] = room.dispatcher._channels.values()
    kept = len(channel.waiting)
    assert 1 <= kept < 7
    held.release()
    await joining
    assert subscriber.joined is not None
    assert subscriber.joined.position.offset == 1 + kept
    await until(lambda: subscriber.offsets == list(range(2 + kept, 9)))


async def test_a_channel_without_history_has_no_order(room: Room) -> None:
    subscriber = Subscriber()
    room.dispatcher.join_unordered("plain", subscriber, lambda: False)
    assert not room.hub.has("plain")
    room.dispatcher.join_unordered("plain", subscriber, lambda: True)
    assert room.hub.has("plain")
    assert len(room.dispatcher) == 0
    room.dispatcher.leave("plain", subscriber)
    assert not room.hub.has("plain")


# ---- recovery


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
    assert subscriber.joined == Joined(since, True, ())
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
    assert liar.joined == Joined(await room.position(3), False, ())
    assert ahead_reads(room) == 1
    # Who comes within the second after it waits for the next read;
    # everybody else is served meanwhile.
    flood = [room.joining(since) for _ in range(50)]
    await settled()
    assert (await room.join(since=await room.position(2))).offsets == [3]
    assert ahead_reads(room) == 1
    assert not any(joining.done() for _, joining in flood)
    for _, joining in flood:
        joining.cancel()
    await asyncio.gather(*(joining for _, joining in flood), return_exceptions=True)
    # Then one read answers all who wait.
    monkeypatch.setattr(dispatcher_module, "_READ_PAUSE_S", GAP_WAIT_S)
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
    room.fleet.world.fail_next(call, Refused("on purpose"))
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


async def test_a_pause_for_one_channel_holds_up_no_other_of_the_same_connection(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_JOINS_AT_ONCE", 1)
    await room.join()
    liar = await room.join(since=StreamPosition("invented", 1))
    assert liar.joined is not None
    joinings = [
        Joining(name, Subscriber(), StreamPosition("invented too", 1), lambda: room.window)
        for name in (CHANNEL, "another")
    ]
    joining = asyncio.create_task(room.dispatcher.join_all(joinings, lambda joined: True))
    before = room.fleet.traffic.calls["newest"]
    await settled()
    assert room.fleet.traffic.calls["newest"] > before, "the other channel was opened"
    assert not joining.done()
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)


async def test_who_waited_for_a_read_ahead_has_one_that_began_after_it_came(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others claimed in vain says nothing of a client that has seen
    what was appended since.
    """
    monkeypatch.setattr(dispatcher_module, "_READ_PAUSE_S", 0.001)
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
    assert again.joined == Joined(await room.position(6), True, ())


async def test_a_read_ahead_that_fails_answers_nobody_else(room: Room) -> None:
    await room.join()
    await room.append(2)
    since = await room.position(1)
    room.fleet.world.fail_next("read_forward", Refused("no permission"))
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
    monkeypatch.setattr(dispatcher_module, "_GAP_PUBLICATIONS_MAX", 100)
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
    assert subscriber.joined == Joined(await room.position(3), False, ())
    room.hint(await room.append())
    assert subscriber.offsets == [4]


async def test_too_many_missed_are_not_recovered() -> None:
    room = Room(recovered_max=10)
    await room.append(11)
    since = await room.position(0)
    assert (await room.join(since=since)).joined == Joined(await room.position(11), False, ())
    subscriber = await room.join(since=StreamPosition(since.epoch, 1))
    assert subscriber.offsets == list(range(2, 12))


async def test_what_is_hidden_by_age_is_not_recovered(room: Room) -> None:
    await room.append()
    room.fleet.clock.advance(10)
    await room.append()
    room.window = Window(size=100, trim=0, cutoff_ts=room.fleet.clock.now_ms() - 5000, limit=100)
    since = await room.position(0)
    assert (await room.join(since=since)).joined == Joined(await room.position(2), False, ())
    assert (await room.join(since=StreamPosition(since.epoch, 1))).offsets == [2]


async def test_what_another_node_removed_is_not_recovered_for_long(room: Room) -> None:
    """The periodic check looks at what was trimmed as well."""
    await room.join()
    for _ in range(4):
        room.hint(await room.append())
    since, removed = await room.position(2), await room.writer.remove_history(CHANNEL)
    assert removed.offset == 4
    assert (await room.join(since=since)).offsets == [3, 4], "this node cannot know yet"
    await room.catch_up()
    assert (await room.join(since=since)).joined == Joined(removed, False, ())
    assert (await room.join(since=removed)).joined == Joined(removed, True, ())
    room.hint(await room.append())
    assert (await room.join(since=removed)).offsets == [5]


async def test_a_trim_that_was_made_up_hides_nothing_for_long(room: Room) -> None:
    """Who may publish to the topic can say that all is hidden. The head says how it is."""
    await room.join()
    for _ in range(4):
        room.hint(await room.append())
    since = await room.position(2)
    room.dispatcher.hide(CHANNEL, 2**53 - 1)
    assert (await room.join(since=since)).joined == Joined(await room.position(4), False, ())
    await room.catch_up()
    assert (await room.join(since=since)).offsets == [3, 4]


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
        patched.setattr(room.dispatcher._log, "head", read_before)
        await room.catch_up()
    assert (await room.join(since=since)).joined == Joined(removed, False, ())


async def test_a_trim_that_cannot_be_read_does_not_keep_the_tail_from_being_found(
    room: Room,
) -> None:
    subscriber = await room.join()
    room.hint(await room.append())
    since = await room.position(0)
    await room.writer.remove_history(CHANNEL)
    await room.append()
    room.fleet.world.fail_next("head", Refused("for once"))
    await room.catch_up()
    await until(lambda: subscriber.offsets == [1, 2])
    await room.catch_up()
    assert (await room.join(since=since)).joined == Joined(await room.position(2), False, ())


async def test_a_ring_that_had_to_make_room_is_made_up_for_by_the_log(room: Room) -> None:
    """What all rings keep is bounded: a busy channel pushes out one that is not used."""
    subscriber, other = await room.join(), Subscriber()
    await room.dispatcher.join("other", other, None, lambda: room.window, other.admit)
    for _ in range(10):
        room.hint(await room.append())
    ring = room.dispatcher._channels[CHANNEL].ring
    room.dispatcher._rings = Rings(ring.weight)
    room.dispatcher._ring_used(room.dispatcher._channels[CHANNEL])
    assert (await room.join(since=await room.position(4))).offsets == list(range(5, 11))
    assert room.fleet.traffic.calls["read_backward"] == 0
    assert other.joined is not None
    room.dispatcher.offer_one(record(1, channel="other", epoch=other.joined.position.epoch))
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
    room.dispatcher._channels[CHANNEL].ring.clear()
    await held.arrived()
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    room.dispatcher.leave(CHANNEL, subscriber)
    assert len(room.dispatcher) == room.dispatcher._rings.bytes == 0


async def test_what_the_log_lost_is_not_recovered(room: Room) -> None:
    for _ in range(4):
        await room.append()
    since = await room.position(0)
    room.fleet.world.expire(CHANNEL, 2)
    assert (await room.join(since=since)).joined == Joined(await room.position(4), False, ())
    [channel] = room.dispatcher._channels.values()
    assert len(channel.ring) == 2, "what was read is kept for others, and counted"
    assert room.dispatcher._rings.bytes == channel.ring.weight
    assert (await room.join(since=StreamPosition(since.epoch, 2))).offsets == [3, 4]


async def test_a_recovery_whose_read_fails_is_told(room: Room) -> None:
    await room.append(3)
    since = await room.position(0)
    room.fleet.world.fail_next("read_backward", Refused("no permission"))
    with pytest.raises(PortError):
        await room.join(since=since)
    assert len(room.dispatcher) == 0
    assert (await room.join(since=since)).offsets == [1, 2, 3]


async def _opened_again(room: Room) -> Subscriber:
    """Somebody in a channel of three publications which this node has
    forgotten: its ring is empty.
    """
    first = await room.join()
    await room.append(3)
    room.hint(*_items(room))
    room.dispatcher.leave(CHANNEL, first)
    return await room.join()


async def test_who_joins_while_the_channel_is_lost_is_told(room: Room) -> None:
    first = await _opened_again(room)
    held = room.fleet.traffic.hold("read_backward", "answer")
    subscriber, joining = room.joining(await room.position(0))
    await held.arrived()
    await _begin_another_epoch(room)
    await until(lambda: first.lost_channels)
    held.release()
    with pytest.raises(PortError):
        await joining
    assert subscriber.joined is None
    assert len(room.dispatcher) == len(room.hub) == 0


async def test_what_was_read_for_a_channel_that_is_lost_is_not_kept(room: Room) -> None:
    first = await _opened_again(room)
    held = room.fleet.traffic.hold("read_backward", "answer")
    _, joining = room.joining(await room.position(0))
    await held.arrived()
    await _begin_another_epoch(room)
    await until(lambda: first.lost_channels)
    await room.join()
    held.release()
    await asyncio.gather(joining, return_exceptions=True)
    assert len(room.dispatcher) == 1
    assert room.dispatcher._rings.bytes == 0


def _items(room: Room) -> list[LogItem]:
    return [item for item in room.fleet.world.items[CHANNEL].values() if isinstance(item, LogItem)]


async def _begin_another_epoch(room: Room) -> LogItem:
    room.fleet.clock.advance(BELIEF_S + 3600)
    item = await room.append()
    room.hint(item)
    return item


# ---- order


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
    room.hint(*_items(room))
    assert subscriber.offsets == [1, 2, 3, 4]


async def test_a_pointer_is_read_at_once(room: Room) -> None:
    subscriber = await room.join()
    item = await room.append(2)
    room.dispatcher.offer_one(record(1, 2, epoch=item.epoch, pointer=True))
    await until(lambda: subscriber.offsets == [1, 2])


async def test_a_long_hole_is_filled_in_several_reads(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_GAP_PUBLICATIONS_MAX", 100)
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
    assert again.joined == Joined(await room.position(2), False, ())


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
    room.dispatcher.offer_one(record(1, epoch=item.epoch, pointer=True))
    await until(lambda: subscriber.lost_channels == [CHANNEL])


async def test_a_gap_read_that_fails_is_tried_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_GAP_RETRY_S", GAP_WAIT_S)
    subscriber = await room.join()
    await room.append()
    room.hint(await room.append())
    room.fleet.world.fail_next("read_forward", Refused("for a while"), times=3)
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
    monkeypatch.setattr(dispatcher_module, "_GAP_RETRY_S", 0.0)
    subscriber = await room.join()
    await room.append()
    room.hint(await room.append())
    room.fleet.world.fail_next("read_forward", Refused("for ever"), times=1000)
    room.pass_time()
    await until(lambda: subscriber.lost_channels == [CHANNEL])
    assert room.fleet.traffic.calls["read_forward"] == dispatcher_module._GAP_FAILURES_MAX


async def test_a_publication_that_cannot_be_written_keeps_its_offset(room: Room) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    subscriber = await room.join()
    assert subscriber.joined is not None
    epoch = subscriber.joined.position.epoch
    room.dispatcher.offer_one(Record(CHANNEL, epoch, 1, 1, 1, (Publication(data=deep, offset=1),)))
    assert subscriber.offsets == [1]
    assert subscriber.sink.published(CHANNEL) == [None]


# ---- what was lost, and other epochs


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
    room.fleet.world.fail_next("newest", Refused("no permission"))
    assert not await room.dispatcher.check_tail(CHANNEL)
    assert await room.dispatcher.check_tail(CHANNEL)


async def test_catching_up_costs_one_read_a_channel_when_nothing_was_missed(room: Room) -> None:
    """And now and then one for what was trimmed,
    where something could be recovered without a read.
    """
    await room.join()
    before = room.fleet.traffic.reads
    await room.catch_up()
    assert room.fleet.traffic.reads == before + 1
    room.hint(await room.append())
    for reads in (2, 1, 1):
        before = room.fleet.traffic.reads
        await room.catch_up()
        assert room.fleet.traffic.reads == before + reads


async def test_catching_up_looks_at_every_channel_even_if_one_does_not_answer(room: Room) -> None:
    first, second = Subscriber(), Subscriber()
    for name, subscriber in (("one", first), ("two", second)):
        await room.dispatcher.join(name, subscriber, None, lambda: room.window, subscriber.admit)
        tail = (await room.writer.resolve(name)).tail
        await room.writer.append(name, tail, [Pending.of('{"data":1}')], 300_000)
    room.fleet.world.fail_next("newest", Refused("no permission"))
    await room.catch_up()
    await settled()
    assert (first.sink.offsets("one"), second.sink.offsets("two")) in (([], [1]), ([1], []))


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
    item = await _begin_another_epoch(room)
    await until(lambda: subscriber.lost_channels == [CHANNEL])
    again = await room.join(since=StreamPosition(item.epoch, 1))
    assert again.offsets == [2]


async def test_who_comes_from_the_next_epoch_is_not_refused_by_a_node_that_missed_its_beginning(
    room: Room,
) -> None:
    subscriber = await room.join()
    room.hint(await room.append())
    room.fleet.clock.advance(BELIEF_S + 3600)
    items = [await room.append(), await room.append()]
    since = StreamPosition(items[0].epoch, items[0].last)
    with pytest.raises(PortError):
        await room.join(since=since)
    assert subscriber.lost_channels == [CHANNEL]
    assert (await room.join(since=since)).offsets == [items[1].offset]


async def test_a_client_cannot_make_a_node_deaf_to_an_epoch_that_has_just_begun(room: Room) -> None:
    """A node whose clock is behind believes the epoch before a little longer,
    and then denies the next one.
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
    monkeypatch.setattr(dispatcher_module, "_READ_PAUSE_S", GAP_WAIT_S)
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
    room.fleet.world.fail_next("newest", Refused("on purpose"))
    subscriber, joining = room.joining(StreamPosition("another", 1))
    with pytest.raises(PortError):
        await joining
    assert subscriber.joined is None


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
        room.dispatcher.offer_one(record(offset, epoch="before"))
        await settled()
    assert room.fleet.traffic.reads == before + 1
    room.hint(await room.append())
    assert subscriber.offsets == [1]
    assert subscriber.lost_channels == []


@pytest.fixture
def retried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "_DOUBT_RETRY_S", GAP_WAIT_S)
    monkeypatch.setattr(dispatcher_module, "_DOUBT_RETRY_MAX_S", GAP_WAIT_S)


@pytest.mark.usefixtures("retried_at_once")
async def test_a_doubt_that_could_not_be_cleared_is_looked_into_again(room: Room) -> None:
    """Without another record, which may never come."""
    subscriber = await room.join()
    room.fleet.clock.advance(BELIEF_S + 3600)
    item = await room.append()
    before = room.fleet.traffic.calls["newest"]
    room.fleet.world.fail_next("newest", Refused("no permission"), times=3)
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
    room.fleet.world.fail_next("newest", Refused("no permission"), times=1000)
    before = room.fleet.traffic.calls["newest"]
    room.dispatcher.offer_one(record(7, epoch="before"))
    await settled()
    room.hint(first, third)
    room.pass_time()
    await until(lambda: subscriber.offsets == [1, 2, 3])

    def given_up() -> bool:
        room.pass_time()
        order = room.dispatcher._channels[CHANNEL].resequencer
        return order is not None and order.doubted is None

    await until(given_up)
    checks = room.fleet.traffic.calls["newest"] - before
    assert checks == dispatcher_module._DOUBT_FAILURES_MAX
    assert room.dispatcher._channels[CHANNEL].timer is None
    # The next record of that epoch begins anew.
    room.dispatcher.offer_one(record(8, epoch="before"))
    await until(lambda: room.fleet.traffic.calls["newest"] - before > checks)


# ---- leaving


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
    monkeypatch.setattr(dispatcher_module, "_GAP_RETRY_S", 0.0)
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


# ---- joining several channels at once


def joining_all(room: Room, *channels: str, plain: str = "") -> list[Joining]:
    """To recover everything in `channels`, and into `plain`, which has no history."""
    since = StreamPosition("", 0)
    joinings = [Joining(channel, Subscriber(), since, lambda: room.window) for channel in channels]
    return [*joinings, Joining(plain, Subscriber())] if plain else joinings


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
    room.hint(_append_raw(room, 3))
    held.release()
    await joining
    assert [sent.offset for sent in told[0].missed] == [1, 2, 3]
    room.hint(_append_raw(room, 4))
    assert joinings[0].subscriber.sink.offsets(CHANNEL) == [4]  # type: ignore[attr-defined]  # a Socket


async def test_if_one_cannot_be_had_nobody_is_let_in(room: Room) -> None:
    await room.append(2)
    room.fleet.world.fail_next("newest", Refused("simulated"))
    with pytest.raises(Refused):
        await room.dispatcher.join_all(joining_all(room, "one", "two", CHANNEL), lambda _: True)
    assert (len(room.hub), len(room.dispatcher)) == (0, 0)
    await room.dispatcher.join_all(joining_all(room, "one", "two"), lambda _: False)
    assert (len(room.hub), len(room.dispatcher)) == (0, 0)


async def test_a_channel_that_is_lost_meanwhile_keeps_all_out(room: Room) -> None:
    await room.join()
    held = room.fleet.traffic.hold("newest")
    joining = asyncio.create_task(
        room.dispatcher.join_all(joining_all(room, CHANNEL, "slow"), lambda _: True)
    )
    await held.arrived()
    room.dispatcher._lose(room.dispatcher._channels[CHANNEL], "the test says so")
    held.release()
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


async def test_what_is_hidden_is_not_recovered_any_more(room: Room) -> None:
    await room.append(3)
    await room.join(since=await room.position(0))
    room.dispatcher.hide(CHANNEL, 2)
    room.dispatcher.hide(CHANNEL, 1)
    room.dispatcher.hide("nobody is there", 1)
    recovering = await room.join(since=await room.position(1))
    assert recovering.joined == Joined(await room.position(3), False, ())
    visible = await room.join(since=await room.position(2))
    assert visible.offsets == [3]
