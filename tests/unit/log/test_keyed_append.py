"""Publications with an idempotency key: in the log once,
however often they are tried, and told where.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

import pytest

from roomcast.log.appender import Appender
from roomcast.log.channel_log import APPEND_DEADLINE_S, NotAppended, OutcomeUnknown, record_of
from roomcast.log.idempotency import COMMIT_WITHIN_MS, KEY_LIFE_MS, stored_key
from roomcast.log.item import LogItem
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS
from roomcast.ports import Contended, PortError, Rejected, Throttled, UnknownOutcome
from roomcast.wire.publication import Publication, StreamPosition
from tests.contract.items import log_item
from tests.unit.worlds import Fleet, log_over, logged, no_jitter, settled

CHANNEL: Final = "room"
TTL_MS: Final = 300_000
TAIL_VALID_S: Final = (MIN_RETENTION_MS - MARGIN_MS) / 1000


class Writer:
    """An appender of one node, and the data that it offers."""

    def __init__(self, fleet: Fleet, node: str = "a") -> None:
        self.offered: list[Any] = []
        self.step_s = 0.0
        self._fleet = fleet
        log = log_over(fleet.world, fleet.clock, node=node, random=self._random)
        self.appender = Appender(log, fleet.clock, self._offer, generation="0", random=no_jitter)

    def submit(
        self, data: Any, key: str | None = None, channel: str = CHANNEL
    ) -> asyncio.Future[StreamPosition]:
        return self.appender.submit(channel, Publication(data=data), TTL_MS, key)

    async def publish(
        self, data: Any, key: str | None = None, channel: str = CHANNEL
    ) -> StreamPosition:
        return await self.submit(data, key, channel)

    def _offer(self, item: LogItem) -> None:
        record = record_of(item)
        assert record is not None
        self.offered += [pub.data for pub in record.publications or ()]

    def _random(self) -> float:
        """Each back-off takes `step_s` on the clock, and no time."""
        self._fleet.clock.advance(self.step_s)
        return 0.0


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def writer(fleet: Fleet) -> Writer:
    return Writer(fleet)


async def test_a_key_is_kept_with_the_position_for_a_day(fleet: Fleet, writer: Writer) -> None:
    await writer.publish("zero")
    position = await writer.publish("one", "k")
    assert position.offset == 2
    assert logged(fleet.world) == writer.offered == ["zero", "one"]
    [key] = fleet.world.keys.values()
    assert (key.key, key.position) == (stored_key(CHANNEL, "k"), position)
    assert key.batch == fleet.world.stream[-1].batch
    assert key.expires_at * 1000 == fleet.clock.now_ms() + KEY_LIFE_MS


async def test_the_same_key_again_is_answered_with_the_first_position(
    fleet: Fleet, writer: Writer
) -> None:
    first = await writer.publish("one", "k")
    await writer.publish("two")
    other = Writer(fleet, "b")
    for again in (writer, other, Writer(fleet, "c")):
        assert await again.publish("one", "k") == first
    assert logged(fleet.world) == ["one", "two"]
    assert writer.offered == ["one", "two"], "nothing new is offered"
    # What was known of the tail still is: the next append goes behind it.
    assert (await writer.publish("three")).offset == 3


async def test_keys_are_of_one_channel(fleet: Fleet, writer: Writer) -> None:
    assert (await writer.publish("one", "k")).offset == 1
    assert (await writer.publish("one", "k", "other")).offset == 1
    assert logged(fleet.world, "other") == ["one"]


async def test_publications_with_and_without_keys_share_an_append(
    fleet: Fleet, writer: Writer
) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit(0)]
    await held.arrived()
    keys = [None, None, "k", "l", None, None, None, "m"]
    positions += [writer.submit(number, key) for number, key in enumerate(keys, 1)]
    held.release()
    assert [(await position).offset for position in positions] == list(range(1, 10))
    assert [(item.offset, item.last) for item in fleet.world.stream] == [(1, 1), (2, 9)]
    assert logged(fleet.world) == writer.offered == list(range(9))
    assert {key.key: key.offset for key in fleet.world.keys.values()} == {
        stored_key(CHANNEL, "k"): 4,
        stored_key(CHANNEL, "l"): 5,
        stored_key(CHANNEL, "m"): 9,
    }
    assert fleet.traffic.calls["put_item"] == 1, "without a key there is no transaction to pay for"
    assert fleet.traffic.calls["put_keyed_item"] == 1


async def test_those_whose_keys_were_used_are_told_where_and_the_others_go_on(
    fleet: Fleet, writer: Writer
) -> None:
    other = Writer(fleet, "b")
    used = [await other.publish(f"theirs {key}", key) for key in "ac"]
    held = fleet.traffic.hold("put_keyed_item", "sent")
    first = writer.submit("ours", "k")
    await held.arrived()
    positions = [writer.submit(f"ours {key}", key) for key in ("a", "b", "c", None)]
    held.release()
    await first
    assert [await positions[0], await positions[2]] == used
    assert [(await positions[1]).offset, (await positions[3]).offset] == [4, 5]
    assert logged(fleet.world) == ["theirs a", "theirs c", "ours", "ours b", "ours None"]
    assert writer.appender.counters.publications["repeated"] == 2
    assert writer.appender.waiting_bytes == 0


async def test_an_append_of_many_keys_whose_answer_was_lost_is_known_by_its_batch(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish("zero")
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit("one")]
    await held.arrived()
    positions += [writer.submit(key, key) for key in "abc"]
    fleet.world.fail_next("put_keyed_item", UnknownOutcome(), effect="applied", times=2)
    held.release()
    assert [(await position).offset for position in positions] == [2, 3, 4, 5]
    assert logged(fleet.world) == ["zero", "one", "a", "b", "c"]


async def test_a_transaction_that_meets_another_is_a_lost_race_and_no_throttling(
    fleet: Fleet, writer: Writer
) -> None:
    """Who was first is not told, nor whether it got in: the end is read again,
    and nothing backs off.
    """
    await writer.publish("zero")
    fleet.world.fail_next("put_keyed_item", Contended("simulated"))
    before = fleet.traffic.reads
    assert (await writer.publish("one", "k")).offset == 2
    assert fleet.traffic.reads == before + 1
    assert writer.appender.counters.races == 1
    assert writer.appender.counters.throttled == 0


async def test_a_transaction_that_meets_its_own_earlier_attempt_is_sent_again_as_it_is(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish("zero")
    fleet.world.fail_next("put_keyed_item", UnknownOutcome(), effect="late")
    fleet.world.fail_next("put_keyed_item", Contended("simulated"))
    assert (await writer.publish("one", "k")).offset == 2
    fleet.world.deliver_late()
    assert logged(fleet.world) == ["zero", "one"]


async def test_of_those_that_wait_with_one_key_the_first_is_published(
    fleet: Fleet, writer: Writer
) -> None:
    held = fleet.traffic.hold("put_keyed_item", "sent")
    positions = [writer.submit("first", "k")]
    await held.arrived()
    positions += [
        writer.submit("second", "k"),
        writer.submit("between"),
        writer.submit("third", "k"),
    ]
    held.release()
    assert [(await position).offset for position in positions] == [1, 1, 2, 1]
    assert logged(fleet.world) == ["first", "between"]


async def test_of_nodes_that_race_with_one_key_one_publishes(fleet: Fleet) -> None:
    writers = [Writer(fleet, name) for name in "abcd"]
    fleet.world.fail_next("put_keyed_item", Throttled(), times=3)
    positions = await asyncio.gather(*(each.publish("one", "k") for each in writers))
    assert len(set(positions)) == 1
    assert logged(fleet.world) == ["one"]


@pytest.mark.parametrize("effect", ["none", "applied", "late"])
async def test_after_an_unknown_outcome_the_same_transaction_is_sent_again(
    fleet: Fleet, writer: Writer, effect: str
) -> None:
    await writer.publish("zero")
    fleet.world.fail_next("put_keyed_item", UnknownOutcome(), effect=effect, times=2)  # type: ignore[arg-type]
    position = await writer.publish("one", "k")
    fleet.world.deliver_late()
    assert position.offset == 2
    assert logged(fleet.world) == writer.offered == ["zero", "one"]
    assert fleet.traffic.calls["put_keyed_item"] == 3


async def test_a_retry_elsewhere_meets_an_attempt_that_is_late(
    fleet: Fleet, writer: Writer
) -> None:
    """The first node gives up not knowing; the client asks another one;
    then the first attempt arrives.
    """
    await writer.publish("zero")
    writer.step_s = 6.0
    fleet.world.fail_next("put_keyed_item", UnknownOutcome(), effect="late", times=50)
    with pytest.raises(OutcomeUnknown):
        await writer.publish("one", "k")
    fleet.world._faults.clear()
    other = Writer(fleet, "b")
    await other.publish("theirs")
    second = await other.publish("one", "k")
    fleet.world.deliver_late()
    assert second.offset == 3
    assert await writer.publish("one", "k") == second
    assert logged(fleet.world) == ["zero", "theirs", "one"]


async def test_a_retry_finds_what_came_late(fleet: Fleet, writer: Writer) -> None:
    await writer.publish("zero")
    writer.step_s = 6.0
    fleet.world.fail_next("put_keyed_item", UnknownOutcome(), effect="late", times=50)
    with pytest.raises(OutcomeUnknown):
        await writer.publish("one", "k")
    fleet.world._faults.clear()
    fleet.world.deliver_late()
    assert (await Writer(fleet, "b").publish("one", "k")).offset == 2
    assert logged(fleet.world) == ["zero", "one"]


async def test_after_a_lost_race_the_winner_is_offered_and_ours_follows(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish("first")
    await Writer(fleet, "b").publish("theirs")
    assert (await writer.publish("ours", "k")).offset == 3
    assert logged(fleet.world) == writer.offered == ["first", "theirs", "ours"]


async def test_an_outcome_that_stays_unknown_is_told_within_the_deadline(
    fleet: Fleet, writer: Writer
) -> None:
    writer.step_s = 5.0
    fleet.world.fail_next("put_keyed_item", UnknownOutcome())
    fleet.world.fail_next("put_keyed_item", Throttled(), times=100)
    with pytest.raises(OutcomeUnknown):
        await writer.publish("one", "k")
    assert fleet.traffic.calls["put_keyed_item"] <= APPEND_DEADLINE_S / 5 + 2


@pytest.mark.parametrize("error", [Throttled(), Rejected()])
async def test_what_is_known_not_to_be_in_is_told_so(
    fleet: Fleet, writer: Writer, error: Exception
) -> None:
    writer.step_s = 10.0
    fleet.world.fail_next("put_keyed_item", error, times=100)  # type: ignore[arg-type]
    with pytest.raises(NotAppended):
        await writer.publish("one", "k")
    assert fleet.world.keys == {}


async def test_a_tail_that_expired_before_sending_is_told_and_healed(
    fleet: Fleet, writer: Writer
) -> None:
    """The tail's expiry ends it, when that is before the time that the publication itself has."""
    first = await writer.publish("one")
    fleet.clock.advance(TAIL_VALID_S - 1)
    held = fleet.traffic.hold("put_keyed_item", "call")
    position = writer.submit("two", "k")
    await held.arrived()
    fleet.clock.advance(1)
    held.release()
    with pytest.raises(NotAppended):
        await position
    assert (await writer.publish("two", "k")).epoch != first.epoch
    assert logged(fleet.world) == ["one", "two"]


@pytest.mark.parametrize("stage", ["newest", "put_keyed_item"])
async def test_a_node_that_slept_does_not_publish_what_its_key_may_have_outlived(
    fleet: Fleet, writer: Writer, stage: str
) -> None:
    """Meanwhile another node published it, and TTL deleted the key. The tail is still valid."""
    other = Writer(fleet, "b")
    await other.appender.submit(CHANNEL, Publication(data="zero"), 7 * 24 * 3_600_000)
    held = fleet.traffic.hold(stage, "call")
    sleeping = writer.submit("one", "k")
    await held.arrived()
    fleet.traffic._held.clear()
    await other.publish("one", "k")
    fleet.world.expire_key(stored_key(CHANNEL, "k"))
    fleet.clock.advance(COMMIT_WITHIN_MS / 1000)
    held.release()
    with pytest.raises(NotAppended):
        await sleeping
    assert logged(fleet.world) == ["zero", "one"]


async def test_a_node_that_slept_does_not_send_what_its_key_may_have_outlived(
    fleet: Fleet, writer: Writer
) -> None:
    """Another node had published it, and nothing came behind it:
    neither a lost race nor a taken key would stop it.
    """
    other = Writer(fleet, "b")
    await other.appender.submit(CHANNEL, Publication(data="zero"), 7 * 24 * 3_600_000)
    await other.publish("one", "k")
    held = fleet.traffic.hold("put_keyed_item", "call")
    sleeping = writer.submit("one", "k")
    await held.arrived()
    fleet.world.expire_key(stored_key(CHANNEL, "k"))
    fleet.clock.advance(COMMIT_WITHIN_MS / 1000)
    held.release()
    with pytest.raises(NotAppended):
        await sleeping
    assert logged(fleet.world) == ["zero", "one"]


async def test_the_time_of_keys_does_not_bind_what_has_none(fleet: Fleet, writer: Writer) -> None:
    await writer.publish("zero")
    read_ms = fleet.clock.now_ms() - COMMIT_WITHIN_MS
    plain = writer.appender.submit(CHANNEL, Publication(data="plain"), TTL_MS, received_ms=read_ms)
    keyed = writer.submit("keyed", "k")
    assert [(await plain).offset, (await keyed).offset] == [2, 3]


@pytest.mark.parametrize("error", [Contended, Throttled])
@pytest.mark.parametrize("key", [None, "k"])
async def test_after_an_unknown_outcome_a_refusal_says_nothing(
    fleet: Fleet, writer: Writer, error: type[PortError], key: str | None
) -> None:
    """I2: the attempt before may yet arrive, and only the same write may follow it."""
    await writer.publish("zero")
    put = "put_keyed_item" if key else "put_item"
    fleet.world.fail_next(put, UnknownOutcome(), effect="late")
    fleet.world.fail_next(put, error("simulated"))
    lost = fleet.traffic.hold(put, "answer")
    positions = [writer.submit("plain"), writer.submit("another", key)]
    await lost.arrived()
    refused = fleet.traffic.hold(put, "answer")
    lost.release()
    await refused.arrived()
    fleet.world.deliver_late()
    refused.release()
    assert [(await position).offset for position in positions] == [2, 3]
    assert logged(fleet.world) == ["zero", "plain", "another"]


async def test_what_waited_beyond_its_time_is_not_sent_at_all(fleet: Fleet, writer: Writer) -> None:
    """Its time counts from when it was read, which may be long before it came into the lane."""
    read_ms = fleet.clock.now_ms() - COMMIT_WITHIN_MS
    late = writer.appender.submit(CHANNEL, Publication(data=1), TTL_MS, "late", received_ms=read_ms)
    in_time = writer.appender.submit(
        CHANNEL, Publication(data=2), TTL_MS, "k", received_ms=read_ms + 1
    )
    with pytest.raises(NotAppended):
        await late
    assert (await in_time).offset == 1
    assert fleet.traffic.calls["put_keyed_item"] == 1


async def test_where_a_key_was_used_can_be_looked_up(fleet: Fleet, writer: Writer) -> None:
    position = await writer.publish("one", "k")
    log = log_over(fleet.world, fleet.clock)
    assert await log.key_position(CHANNEL, "k") == position
    assert await log.key_position(CHANNEL, "another") is None
    assert await log.key_position("other", "k") is None


async def test_an_expired_key_counts_until_it_is_deleted(fleet: Fleet, writer: Writer) -> None:
    first = await writer.publish("one", "k")
    fleet.clock.advance(3 * KEY_LIFE_MS / 1000)
    assert await writer.publish("one", "k") == first
    fleet.world.expire_key(stored_key(CHANNEL, "k"))
    assert (await writer.publish("one", "k")).offset == 2


async def test_an_offset_that_is_ours_already_is_success_whatever_the_key_says(
    fleet: Fleet, writer: Writer
) -> None:
    """An emulator may report one of the two conditions only."""
    first = await writer.publish("zero")
    fleet.world.fail_next("put_keyed_item", UnknownOutcome(), effect="applied")
    held = fleet.traffic.hold("put_keyed_item", "answer")
    position = writer.submit("one", "k")
    await held.arrived()
    fleet.world.keys.clear()
    held.release()
    assert await position == replace(first, offset=2)
    assert logged(fleet.world) == ["zero", "one"]


async def test_a_race_lost_after_an_unknown_outcome_is_lost_for_certain(
    fleet: Fleet, writer: Writer
) -> None:
    first = await writer.publish("zero")
    fleet.world.fail_next("put_keyed_item", UnknownOutcome())
    held = fleet.traffic.hold("put_keyed_item", "answer")
    position = writer.submit("one", "k")
    await held.arrived()
    fleet.world.items[CHANNEL][2] = replace(
        log_item(2, text="theirs"), epoch=first.epoch, batch="theirs"
    )
    held.release()
    assert (await position).offset == 3
    assert logged(fleet.world) == ["zero", "theirs", "one"]


@pytest.mark.parametrize("key", ["", "x" * 65, "a\nb", "ä"])
async def test_a_malformed_key_is_not_accepted(fleet: Fleet, writer: Writer, key: str) -> None:
    with pytest.raises(AssertionError, match="malformed"):
        writer.submit("one", key)
    await settled()
    assert fleet.traffic.calls.total() == 0
