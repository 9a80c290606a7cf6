"""Publications with a version: what is stale never gets into the log, whoever writes beside."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.contention import VirtualClock
from roomcast.log.appender import ANSWERED_AT_ONCE, Appender
from roomcast.log.channel_log import (
    APPEND_DEADLINE_S,
    ChannelLog,
    NotAppended,
    OutcomeUnknown,
)
from roomcast.log.rules import MARGIN_MS, MIN_RETENTION_MS
from roomcast.log.versions import is_stale
from roomcast.ports import Contended, Rejected, Throttled, UnknownOutcome
from roomcast.testing.memory import MemoryChannelTable, MemoryWorld, Stage
from roomcast.wire.publication import Publication, StreamPosition
from roomcast.wire.versions import Version
from tests.simulation import clockwork
from tests.simulation.mishaps import Mishaps
from tests.unit.worlds import Fleet, log_over, logged, no_jitter, settled

CHANNEL: Final = "room"
TTL_MS: Final = 300_000
TAIL_VALID_S: Final = (MIN_RETENTION_MS - MARGIN_MS) / 1000


class Writer:
    """An appender of one node."""

    def __init__(self, fleet: Fleet, node: str = "a") -> None:
        log = log_over(fleet.world, fleet.clock, node=node, random=no_jitter)
        self.appender = Appender(log, fleet.clock, lambda _: None, generation="0", random=no_jitter)

    def submit(
        self, number: int, epoch: str = "", key: str | None = None
    ) -> asyncio.Future[StreamPosition]:
        """Number 0 = without a version."""
        data = f"{epoch}{number}"
        version = Version(number, epoch) if number else None
        return self.appender.submit(CHANNEL, Publication(data), TTL_MS, key, version=version)

    async def publish(self, number: int, epoch: str = "", key: str | None = None) -> int:
        return (await self.submit(number, epoch, key)).offset


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def writer(fleet: Fleet) -> Writer:
    return Writer(fleet)


async def test_what_is_stale_is_answered_with_the_end_of_the_log(
    fleet: Fleet, writer: Writer
) -> None:
    assert await writer.publish(5) == 1
    assert await writer.publish(0) == 2
    first = fleet.traffic.calls["put_item"]
    answers = [await writer.submit(number) for number in (4, 5)]
    assert {answer.offset for answer in answers} == {2}
    assert answers[0].epoch == fleet.world.stream[0].epoch
    assert fleet.traffic.calls["put_item"] == first, "nothing is written"
    assert await writer.publish(6) == 3
    assert logged(fleet.world) == ["5", "0", "6"]
    assert writer.appender.counters.publications["stale"] == 2
    assert writer.appender.counters.publications["stored"] == 3


async def test_another_epoch_of_versions_begins_anew(fleet: Fleet, writer: Writer) -> None:
    for number, epoch in ((5, "a"), (1, "b"), (1, "b"), (2, "b")):
        await writer.publish(number, epoch)
    assert logged(fleet.world) == ["a5", "b1", "b2"]


async def test_publications_without_a_version_carry_it_on_for_other_nodes(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(5)
    await writer.publish(0)
    assert fleet.world.stream[-1].newest_version == Version(5)
    other = Writer(fleet, "b")
    await other.publish(4)
    assert await other.publish(6) == 3
    # This one still knows the tail of before.
    await writer.publish(6)
    assert logged(fleet.world) == ["5", "0", "6"]


async def test_a_stale_publication_is_told_the_end_of_the_log_as_it_is_now(
    fleet: Fleet, writer: Writer
) -> None:
    """Not as the node knew it when it wrote there last."""
    await writer.publish(5)
    other = Writer(fleet, "b")
    for number in (6, 7):
        await other.publish(number)
    assert await writer.publish(4) == 3


async def test_by_a_version_of_another_epoch_that_came_meanwhile_it_is_not_stale(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(5, "a")
    await Writer(fleet, "b").publish(1, "b")
    await writer.publish(3, "a")
    assert logged(fleet.world) == ["a5", "b1", "a3"]


async def test_when_the_log_cannot_be_read_what_is_known_decides(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(5)
    fleet.clock.advance(60.0)
    for _ in range(20):
        fleet.world.fail_next("newest", Throttled("busy"))
        fleet.world.fail_next("read_behind", Throttled("busy"))
    assert await asyncio.wait_for(writer.publish(4), 30) == 1


async def test_an_append_decides_publication_by_publication(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit(0)]
    await held.arrived()
    positions += [writer.submit(number) for number in (3, 2, 0, 3, 4, 1)]
    held.release()
    # What others of the same append make stale is answered with the end of those before it.
    assert [(await each).offset for each in positions] == [1, 2, 2, 3, 3, 4, 4]
    assert logged(fleet.world) == ["0", "3", "0", "4"]
    assert len(fleet.world.stream) == 2
    assert fleet.world.stream[-1].newest_version == Version(4)
    assert writer.appender.waiting_bytes == 0


async def test_what_others_of_an_append_make_stale_fails_with_them(
    fleet: Fleet, writer: Writer
) -> None:
    """Nothing newer is in the log, so it is not stale."""
    await writer.publish(1)
    fleet.world.fail_next("put_item", Rejected("no"))
    positions = [writer.submit(number) for number in (3, 2)]
    for position in positions:
        with pytest.raises(NotAppended):
            await position
    assert await writer.publish(2) == 2


async def test_what_waited_too_long_is_answered_once(fleet: Fleet, writer: Writer) -> None:
    """Though nothing with a version is left when the append is tried again."""
    await writer.publish(1)
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit(number) for number in (3, 2)]
    await held.arrived()
    fleet.clock.advance(APPEND_DEADLINE_S - 1)
    later = writer.submit(0)
    fleet.world.fail_next("put_item", Throttled("busy"))
    fleet.clock.advance(2.0)
    held.release()
    assert (await later).offset == 2
    for position in positions:
        with pytest.raises(NotAppended):
            await position
    assert writer.appender.counters.publications["stale"] == 0
    assert writer.appender.waiting_bytes == 0


async def test_a_lost_race_is_decided_anew_by_the_winner(fleet: Fleet, writer: Writer) -> None:
    await writer.publish(1)
    held = fleet.traffic.hold("put_item", "call")
    stale, newer = writer.submit(2), writer.submit(4)
    await held.arrived()
    other = asyncio.ensure_future(Writer(fleet, "b").publish(3))
    await held.arrived(2)
    held.release()
    await asyncio.gather(stale, newer, other)
    versions = [int(data) for data in logged(fleet.world)]
    assert versions == sorted(set(versions))
    assert {1, 4} <= set(versions)


async def test_an_unknown_outcome_is_tried_again_and_not_taken_for_newer_than_itself(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(1)
    fleet.world.fail_next("put_item", UnknownOutcome("lost"), "applied")
    assert await writer.publish(2) == 2
    assert logged(fleet.world) == ["1", "2"]


async def test_who_heard_of_an_unknown_outcome_may_publish_it_again(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(1)
    fleet.world.fail_next("put_item", UnknownOutcome("lost"), "applied")
    fleet.world.fail_next("put_item", Rejected("no"))
    with pytest.raises(OutcomeUnknown):
        await writer.publish(2)
    assert await writer.publish(2) == 2
    assert logged(fleet.world) == ["1", "2"]


# ---- with keys


async def test_a_key_that_is_used_tells_its_position_though_it_is_stale(
    fleet: Fleet, writer: Writer
) -> None:
    assert await writer.publish(1, key="k") == 1
    assert await writer.publish(2) == 2
    for again in (writer, Writer(fleet, "b")):
        assert await again.publish(1, key="k") == 1
    assert await writer.publish(1, key="other") == 2
    assert logged(fleet.world) == ["1", "2"]
    # As in Centrifugo, a key of what was stale is free.
    assert await writer.publish(3, key="other") == 3


async def test_a_key_behind_a_newer_version_of_the_same_append_is_looked_up_afterwards(
    fleet: Fleet, writer: Writer
) -> None:
    assert await writer.publish(1, key="k") == 1
    held = fleet.traffic.hold("put_item", "sent")
    positions = [writer.submit(0)]
    await held.arrived()
    positions += [writer.submit(3), writer.submit(1, key="k"), writer.submit(2, key="free")]
    positions += [writer.submit(4)]
    held.release()
    assert [(await each).offset for each in positions] == [2, 3, 1, 3, 4]
    assert logged(fleet.world) == ["1", "0", "3", "4"]


async def test_a_key_that_cannot_be_looked_up_is_not_known_to_be_stale(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(2)
    fleet.world.fail_next("key", Rejected("no"))
    with pytest.raises(NotAppended):
        await writer.publish(1, key="k")
    assert await writer.publish(1, key="k") == 1


# ---- as long as the log lasts


async def test_it_outlives_the_epoch_and_what_is_hidden(fleet: Fleet, writer: Writer) -> None:
    await writer.publish(5)
    log = log_over(fleet.world, fleet.clock)
    await log.remove_history(CHANNEL)
    assert await Writer(fleet, "b").publish(5) == 1
    fleet.clock.advance(TAIL_VALID_S + 1)
    epochs = {fleet.world.stream[-1].epoch}
    answer = await writer.submit(4)
    epochs.add(answer.epoch)
    assert len(epochs) == 2, "another epoch of the log began"
    assert answer.offset == 1
    assert await writer.publish(6) == 2
    assert logged(fleet.world) == ["5", "6"]


async def test_a_renewed_head_tells_it_when_the_items_are_gone(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(5)
    fleet.clock.advance(TAIL_VALID_S * 0.7)
    await log_over(fleet.world, fleet.clock).renew(CHANNEL)
    fleet.clock.advance(TAIL_VALID_S * 0.7)
    del fleet.world.items[CHANNEL][1]
    answer = await writer.submit(5)
    assert (answer.epoch, answer.offset) == (fleet.world.stream[0].epoch, 1)


async def test_what_a_release_without_versions_wrote_last_forgets_it(
    fleet: Fleet, writer: Writer
) -> None:
    """docs/guarantees.md says so."""
    await writer.publish(5)
    before = fleet.world.stream[0]
    fleet.world.items[CHANNEL][2] = replace(
        before, offset=2, last=2, batch="theirs", newest_version=None
    )
    assert await writer.publish(4) == 3


async def test_much_that_is_stale_is_answered_in_a_turn_for_itself(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.publish(9)
    answers = [writer.submit(1) for _ in range(ANSWERED_AT_ONCE + 1)]
    await settled()
    assert {(await answer).offset for answer in answers} == {1}
    assert len(fleet.world.stream) == 1


# ---- whatever the schedule


@dataclass(frozen=True, slots=True)
class Node:
    """One that publishes versions one behind the other, some of them old, with so many
    seconds between.
    """

    versions: list[tuple[int, str]]
    pause_s: float
    keyed: bool


NODES: Final = st.lists(
    st.builds(
        Node,
        versions=st.lists(
            st.tuples(st.integers(0, 40), st.sampled_from(["", "", "a", "b"])),
            min_size=1,
            max_size=12,
        ),
        pause_s=st.sampled_from([0.0, 0.001, 0.02]),
        keyed=st.booleans(),
    ),
    min_size=2,
    max_size=3,
)


@settings(max_examples=20, deadline=None)
@given(nodes=NODES, trouble=st.sampled_from([0.0, 0.1, 0.3]), seed=st.integers(0, 2**32))
def test_no_stale_publication_is_in_the_log(nodes: list[Node], trouble: float, seed: int) -> None:
    mishaps = Mishaps()
    with mishaps.collected():
        clockwork.run(_publish_all(nodes, trouble, Random(seed)), mishaps)
    assert not mishaps.found, mishaps.found[:3]


async def _publish_all(nodes: list[Node], trouble: float, random: Random) -> None:
    world = MemoryWorld()

    async def pause(call: str, stage: Stage) -> None:
        if stage == "call":
            return
        await asyncio.sleep(random.uniform(0.002, 0.02))
        if stage == "sent" and call in ("put_item", "put_keyed_item") and random.random() < trouble:
            error = random.choice((Throttled, Contended, UnknownOutcome))("simulated")
            is_applied = isinstance(error, UnknownOutcome) and random.random() < 0.5
            world.fail_next(call, error, "applied" if is_applied else "none")

    world.pause = pause
    answered: dict[str, int] = {}

    async def publish(name: str, node: Node) -> None:
        clock = VirtualClock()
        log = ChannelLog(
            MemoryChannelTable(world, clock),
            clock,
            lambda: f"{random.getrandbits(64):016x}",
            random.random,
            node=name,
            generation="0",
        )
        appender = Appender(log, clock, lambda _: None, generation="0", random=random.random)
        answers = {}
        for index, (number, epoch) in enumerate(node.versions):
            content = f"{name} {index} {number} {epoch}"
            version = Version(number, epoch) if number else None
            key = content[:60] if node.keyed else None
            answers[content] = appender.submit(
                CHANNEL, Publication(content), TTL_MS, key, version=version
            )
            await asyncio.sleep(node.pause_s)
        await appender.drain()
        answered.update((content, answer.result().offset) for content, answer in answers.items())

    await asyncio.gather(*(publish(f"node-{number}", node) for number, node in enumerate(nodes)))
    newest: Version | None = None
    versions: dict[int, Version | None] = {0: None}
    found: dict[str, int] = {}
    for item in world.stream:
        for offset, stored in enumerate(json.loads(item.pubs), item.offset):
            _, _, number, epoch = stored["data"].split(" ")
            version = Version(int(number), epoch) if int(number) else None
            assert not is_stale(version, newest), f"{stored['data']} behind {newest}"
            newest = versions[offset] = version or newest
            assert found.setdefault(stored["data"], offset) == offset, "I2"
        assert item.newest_version == newest
    for content, offset in answered.items():
        if content in found:
            assert found[content] == offset
        else:
            # It was stale when it was answered.
            _, _, number, epoch = content.split(" ")
            assert is_stale(Version(int(number), epoch), versions[offset]), content
