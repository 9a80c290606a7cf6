"""The canary's task over memory: one node emits, the others hear it, and silence is looked into."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from roomcast.delivery.canary import REBUILD_PAUSE_MAX_S, REBUILD_PAUSE_S, Canary, CanaryEars
from roomcast.delivery.canary_rules import (
    CANARY_CHANNEL,
    MISSED_INTERVALS,
    NUMBER_MAX,
    ROUND_S,
    Greeting,
    Hearing,
    canary_item,
)
from roomcast.delivery.gap_wait import UNMEASURED_MS, GapWait
from roomcast.delivery.greetings import Greetings
from roomcast.log.item import OFFSET_MAX, LogItem
from roomcast.log.rules import MIN_RETENTION_MS
from roomcast.ports import PortError, Throttled, UnknownOutcome
from roomcast.testing.memory import ManualClock, MemoryChannelTable, MemoryWorld
from roomcast.wire.publication import Record
from tests.unit.worlds import Ids, no_jitter, settled, until

INTERVAL_S: Final = 30.0
OVERDUE_S: Final = MISSED_INTERVALS * INTERVAL_S
PassTime = Callable[[float], Awaitable[None]]


@dataclass
class Heard:
    """One node's canary, with what it asks for recorded. Time passes as the test says."""

    world: MemoryWorld
    clock: ManualClock
    name: str = "a"
    greeting: Greeting = Greeting.HEARD
    elsewhere: int = 0
    # Other nodes go on hearing.
    elsewhere_grows: bool = False
    leases_fail: PortError | None = None
    rebuilds: int = 0
    caught_up: int = 0

    def __post_init__(self) -> None:
        self.ears = CanaryEars(Greetings(), self.clock, no_jitter, GapWait(), interval_s=INTERVAL_S)
        self.canary = Canary(
            self.ears,
            MemoryChannelTable(self.world, self.clock),
            self.clock,
            Ids(f"batch-of-{self.name}-"),
            no_jitter,
            node=self.name,
            generation="0",
            interval_s=INTERVAL_S,
            greeter=self,
            rebuilder=self,
            catch_up=self,
            neighbours=self,
        )

    async def greet(self) -> Greeting:
        return self.greeting

    def rebuild_next(self) -> None:
        self.rebuilds += 1

    def request(self, shard: int | None = None) -> None:
        self.caught_up += 1

    async def newest_canary_elsewhere(self) -> int:
        if self.leases_fail is not None:
            raise self.leases_fail
        self.elsewhere += self.elsewhere_grows
        return self.elsewhere

    @asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PassTime]:
        """Yields a call that lets so many seconds pass,
        and waits until what is due in them is done.
        """
        wake_at_s: list[float] = []
        woken = asyncio.Event()

        async def pause(seconds: float) -> None:
            wake_at_s.append(self.clock.monotonic_s() + seconds)
            changes = [asyncio.ensure_future(each.wait()) for each in (woken, self.ears.changed)]
            try:
                await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for change in changes:
                    change.cancel()
            woken.clear()
            self.ears.changed.clear()

        monkeypatch.setattr(self.canary, "_pause", pause)
        task = asyncio.create_task(self.canary.run())

        async def pass_time(seconds: float) -> None:
            end_s = self.clock.monotonic_s() + seconds
            while (next_s := wake_at_s[-1]) <= end_s:
                self.clock.advance(max(0.0, next_s - self.clock.monotonic_s()))
                slept = len(wake_at_s)
                woken.set()
                await until(lambda slept=slept: len(wake_at_s) > slept or task.done())  # type: ignore[misc]
                assert not task.done(), task
            self.clock.advance(max(0.0, end_s - self.clock.monotonic_s()))

        await until(lambda: wake_at_s)
        try:
            yield pass_time
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def emitted(self) -> list[LogItem]:
        return [item for item in self.world.stream if item.channel == CANARY_CHANNEL]

    @property
    def numbers(self) -> list[int]:
        return [item.offset for item in self.emitted()]

    def hear(self, item: LogItem) -> None:
        self.ears.hear(
            Record(item.channel, item.epoch, item.offset, item.last, item.ts, None), item.ts + 5
        )


@pytest.fixture
def ears() -> Heard:
    return Heard(MemoryWorld(), ManualClock())


# ---- emitting


async def test_who_hears_nothing_for_an_interval_emits(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(INTERVAL_S - 1)
        assert ears.emitted() == []
        await pass_time(1)
        [first] = ears.emitted()
        assert first.offset == ears.clock.now_ms() // round(INTERVAL_S * 1000)
        assert first.expires_at == (first.ts + MIN_RETENTION_MS) // 1000
        for _ in range(5):
            ears.hear(ears.emitted()[-1])
            await pass_time(INTERVAL_S)
    assert ears.numbers == list(range(first.offset, first.offset + 6))


async def test_what_is_heard_is_not_emitted(ears: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(INTERVAL_S)
        [emitted] = ears.emitted()
        for _ in range(5):
            await pass_time(INTERVAL_S - 1)
            ears.ears.hear(
                Record(
                    CANARY_CHANNEL,
                    emitted.epoch,
                    ears.ears.newest + 1000,
                    emitted.last,
                    emitted.ts,
                    None,
                ),
                0,
            )
    assert ears.emitted() == [emitted]


async def test_of_two_who_emit_at_once_one_is_heard(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Heard(ears.world, ears.clock, name="b")
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(INTERVAL_S)
        [first] = ears.emitted()
        for each in (ears, other):
            each.hear(first)
        await pass_time(INTERVAL_S)
        await other.canary._emit()
        assert [item.node for item in ears.emitted()] == ["a", "a"]
        for each in (ears, other):
            each.hear(ears.emitted()[-1])
        await pass_time(INTERVAL_S)
    assert ears.numbers == [first.offset + number for number in range(3)]


@pytest.mark.parametrize("off_s", [-86_400, -600, 600, 86_400])
async def test_a_node_whose_clock_is_wrong_changes_nothing_when_it_leaves(
    ears: Heard, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    wrong = Heard(ears.world, ManualClock(ears.clock.ms + round(off_s * 1000)), name="wrong")
    await wrong.canary._emit()
    ears.hear(ears.emitted()[-1])
    async with ears.running(monkeypatch) as pass_time:
        for _ in range(5):
            await pass_time(INTERVAL_S)
            ears.hear(ears.emitted()[-1])
    assert [item.node for item in ears.emitted()] == ["wrong", *"aaaaa"]
    assert ears.numbers == list(range(ears.numbers[0], ears.numbers[0] + 6))
    assert (ears.ears.hearing, ears.caught_up) == (Hearing.WELL, 0)


@pytest.mark.parametrize("old", [1, 2, 40])
async def test_a_fleet_that_starts_anew_below_what_was_emitted_goes_behind_it(
    ears: Heard, monkeypatch: pytest.MonkeyPatch, old: int
) -> None:
    """A clock was ahead then, or is behind now:
    the number is taken by a canary that nobody hears any more.
    """
    before = Heard(ears.world, ManualClock(ears.clock.ms + round(INTERVAL_S * 1000)), name="before")
    for _ in range(old):
        await before.canary._emit()
    reads: list[str] = []
    pause = ears.world.pause

    async def counted(call: str, stage: str) -> None:
        if call == "newest" and stage == "call":
            reads.append(call)
        await pause(call, stage)  # type: ignore[arg-type]

    ears.world.pause = counted
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(INTERVAL_S)
        assert len(ears.emitted()) == old
        await pass_time(INTERVAL_S / 2)
        assert ears.numbers[old:] == [ears.numbers[old - 1] + 1]
        ears.hear(ears.emitted()[-1])
        await pass_time(INTERVAL_S)
        assert ears.numbers[old:] == [ears.numbers[old - 1] + 1, ears.numbers[old - 1] + 2]
    assert reads == ["newest"], "one read a turn, where a number was taken"
    assert ears.caught_up == 0


async def test_a_canary_whose_answer_was_lost_is_followed_by_the_next(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ears.running(monkeypatch) as pass_time:
        ears.ears.hear(Record(CANARY_CHANNEL, "e", 7, 7, 0, None), 0)
        ears.world.fail_next("put_item", UnknownOutcome(), effect="applied")
        await pass_time(INTERVAL_S)
        assert ears.numbers == [8]
        await pass_time(INTERVAL_S / 2)
        assert ears.numbers == [8], "its own canary held the number"
        await pass_time(INTERVAL_S / 2)
    assert ears.numbers == [8, 9]


async def test_who_lost_and_cannot_read_the_newest_goes_behind_who_won(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Heard(ears.world, ears.clock, name="before")
    for each in (ears, before):
        each.ears.hear(Record(CANARY_CHANNEL, "e", 7, 7, 0, None), 0)
    await before.canary._emit()
    ears.world.fail_next("newest", Throttled("simulated"))
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(INTERVAL_S)
        assert ears.numbers == [8]
        await pass_time(INTERVAL_S / 2)
    assert ears.numbers == [8, 9]


async def test_one_failure_of_the_table_is_made_up_for_before_anybody_doubts(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ears.running(monkeypatch) as pass_time:
        ears.world.fail_next("put_item", Throttled("simulated"), times=2)
        await pass_time(2 * INTERVAL_S)
        assert len(ears.emitted()) == 1
        ears.hear(ears.emitted()[-1])
        await pass_time(INTERVAL_S)
    assert ears.caught_up == 0


async def test_who_slept_sings_what_it_knows_when_it_wakes(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the decision and the request;
    wall clock and monotonic clock may both have gone on.
    """
    pause = ears.world.pause

    async def asleep(call: str, stage: str) -> None:
        if (call, stage) == ("put_item", "call"):
            ears.clock.advance(3600)
        await pause(call, stage)  # type: ignore[arg-type]

    async with ears.running(monkeypatch) as pass_time:
        ears.world.pause = asleep
        await pass_time(INTERVAL_S)
        ears.world.pause = pause
        assert ears.emitted() == []
        await pass_time(1)
        [emitted] = ears.emitted()
        assert ears.clock.now_ms() - emitted.ts <= 1000


@pytest.mark.parametrize("in_table", [False, True])
async def test_a_record_at_the_end_of_all_numbers_ends_nothing(
    ears: Heard, monkeypatch: pytest.MonkeyPatch, in_table: bool
) -> None:
    """Another program has written it: nodes emit and hear on as if it had not."""
    forged = Record(CANARY_CHANNEL, "e", OFFSET_MAX, OFFSET_MAX, 0, None)
    if in_table:
        item = canary_item(
            OFFSET_MAX, node="b", batch="forged", now=ears.clock.now_ms(), generation="0"
        )
        await MemoryChannelTable(ears.world, ears.clock).put_item(
            item, tail_valid_until_ms=item.ts + 1
        )
    async with ears.running(monkeypatch) as pass_time:
        ears.ears.hear(forged, 0)
        for _ in range(5):
            await pass_time(INTERVAL_S)
            ears.hear(ears.emitted()[-1])
            ears.ears.hear(forged, 0)
    assert ears.ears.hearing is Hearing.WELL
    assert ears.ears.newest == ears.emitted()[-1].offset
    assert len(ears.emitted()) == 5 + in_table


@pytest.mark.parametrize("number", [NUMBER_MAX - 1, NUMBER_MAX])
async def test_a_number_that_is_too_high_makes_a_node_degraded_for_one_silence(
    ears: Heard, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async with ears.running(monkeypatch) as pass_time:
        ears.ears.hear(Record(CANARY_CHANNEL, "e", number, number, 0, None), 0)
        states = []
        for _ in range(10):
            await pass_time(INTERVAL_S)
            ears.hear(ears.emitted()[-1])
            states.append(ears.ears.hearing)
    assert states[-6:] == [Hearing.WELL] * 6
    assert ears.rebuilds == 0, "its greeting came back"


# ---- hearing


async def test_what_is_heard_keeps_all_well(ears: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ears.running(monkeypatch) as pass_time:
        for _ in range(6):
            await pass_time(INTERVAL_S)
            ears.hear(ears.emitted()[-1])
    assert ears.ears.hearing is Hearing.WELL
    assert (ears.rebuilds, ears.caught_up) == (0, 0)
    assert ears.ears.newest == ears.emitted()[-1].offset
    assert ears.ears.latency is not None
    assert ears.ears.latency.to_lambda_ms == 5


def test_what_new_canaries_took_says_how_long_holes_wait(ears: Heard) -> None:
    def heard(number: int, took_ms: int) -> float:
        now = ears.clock.now_ms()
        record = Record(CANARY_CHANNEL, "e", number, number, now - took_ms, None)
        ears.ears.hear(record, now - took_ms // 3)
        return ears.ears.gap_wait.s

    assert ears.ears.gap_wait.s == UNMEASURED_MS / 1000
    assert heard(7, 400) == 0.6
    assert heard(7, 900) == 0.6, "SQS may repeat it, and it is old then"
    assert heard(8, 900) == 1.35


async def test_a_silent_pipeline_is_told_and_made_up_for(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The own greeting is heard: it is not this node, and a new queue would not help."""
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(OVERDUE_S - 1)
        assert (ears.ears.hearing, ears.caught_up) == (Hearing.WELL, 0)
        await pass_time(1)
        assert ears.ears.hearing.value == "silent"
        assert ears.rebuilds == 0
        for looks in (1, 2, 3):
            assert ears.caught_up == looks
            await pass_time(INTERVAL_S)
        assert len(ears.emitted()) >= 5, "it goes on emitting"
        ears.hear(ears.emitted()[-1])
        assert ears.ears.hearing.value == "well"
        await pass_time(OVERDUE_S - 1)
        assert ears.caught_up == 4


async def test_a_deaf_node_knows_though_it_emits_for_all(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others hear it, and have no reason to emit themselves."""
    ears.greeting = Greeting.NOT_HEARD
    other = Heard(ears.world, ears.clock, name="b")

    async def newest_elsewhere() -> int:
        other.hear(ears.emitted()[-1])
        return other.ears.newest

    monkeypatch.setattr(ears, "newest_canary_elsewhere", newest_elsewhere)
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(OVERDUE_S)
        assert ears.ears.hearing.value == "silent", "the others may have heard the last one"
        assert (ears.rebuilds, ears.caught_up) == (1, 1)
        await pass_time(INTERVAL_S)
        assert ears.ears.hearing is Hearing.DEAF
        assert {item.node for item in ears.emitted()} == {"a"}


async def test_what_comes_while_it_is_asked_settles_it(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was suspended finds the canaries in its queue when it wakes."""

    async def greet() -> Greeting:
        ears.hear(ears.emitted()[-1])
        return Greeting.HEARD

    monkeypatch.setattr(ears, "greet", greet)
    async with ears.running(monkeypatch) as pass_time:
        ears.clock.advance(10_000)
        await pass_time(1)
        assert (ears.ears.hearing, ears.caught_up) == (Hearing.WELL, 0)
        await pass_time(OVERDUE_S - 2)
        assert ears.caught_up == 0


# ---- what must come round


async def test_what_was_written_and_does_not_come_round_is_looked_into_soon(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.greeting = Greeting.NOT_HEARD
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(1)
        ears.ears.wrote()
        await settled()
        await pass_time(ROUND_S - 1)
        assert (ears.ears.hearing, ears.rebuilds) == (Hearing.WELL, 0)
        await pass_time(1)
        assert ears.ears.hearing.value == "silent"
        assert (ears.rebuilds, ears.caught_up) == (1, 1)
        assert ears.ears.late_s == ROUND_S
        for _ in range(10):
            ears.ears.wrote()
            await pass_time(1)
        assert ears.caught_up == 1, "asked once, and then in each interval"
        await pass_time(INTERVAL_S)
        assert ears.caught_up == 2
        ears.ears.came()
        assert (ears.ears.hearing.value, ears.ears.late_s) == ("well", 0)
        await pass_time(ROUND_S)
        assert ears.caught_up == 2


async def test_whatever_comes_from_the_table_shows_that_it_does(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ears.running(monkeypatch) as pass_time:
        for number in range(1, 20):
            ears.ears.wrote()
            await settled()
            await pass_time(ROUND_S - 1)
            if number % 2:
                ears.ears.came()
            else:
                ears.ears.hear(Record(CANARY_CHANNEL, "e", number, number, 0, None), 0)
    assert (ears.ears.hearing, ears.caught_up) == (Hearing.WELL, 0)


async def test_records_that_come_do_not_make_up_for_canaries_that_do_not(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(OVERDUE_S)
        assert ears.ears.hearing.value == "silent"
        ears.ears.wrote()
        await settled()
        await pass_time(ROUND_S)
        ears.ears.came()
        assert ears.ears.hearing.value == "silent"


async def test_a_canary_that_others_sang_and_that_was_not_heard_must_come_too(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deaf node whose clients write nothing: in its turn it finds the number taken."""
    ears.greeting = Greeting.NOT_HEARD
    ears.ears.hear(Record(CANARY_CHANNEL, "e", 7, 7, 0, None), 0)
    other = Heard(ears.world, ears.clock, name="b")
    other.ears.hear(Record(CANARY_CHANNEL, "e", 7, 7, 0, None), 0)
    await other.canary._emit()
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(INTERVAL_S)
        await pass_time(ROUND_S - 1)
        assert (ears.ears.hearing, ears.rebuilds) == (Hearing.WELL, 0)
        await pass_time(1)
        assert (ears.ears.hearing.value, ears.rebuilds) == ("silent", 1)
        assert ears.clock.monotonic_s() < OVERDUE_S + ears.ears.silence_s


async def test_when_others_sang_last(ears: Heard) -> None:
    """By their clocks, never later than now; and what this node tried to emit may be its own."""
    now = ears.clock.now_ms()

    def heard(number: int, ts: int) -> int:
        ears.ears.hear(Record(CANARY_CHANNEL, "e", number, number, ts, None), 0)
        return ears.ears.emitted_elsewhere_ms

    assert ears.ears.emitted_elsewhere_ms == 0
    assert heard(7, now - 300) == now - 300
    assert heard(6, now) == now - 300, "old news"
    ears.world.fail_next("put_item", UnknownOutcome(), effect="applied")
    await ears.canary._emit()
    assert heard(8, now) == now - 300, "perhaps its own"
    assert heard(9, now + 5_000) == now


# ---- new queues


async def test_a_deaf_node_gets_a_new_queue_but_not_without_end(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.greeting, ears.elsewhere, ears.elsewhere_grows = Greeting.NOT_HEARD, 10**9, True
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(OVERDUE_S)
        assert (ears.ears.hearing.value, ears.rebuilds, ears.caught_up) == ("silent", 1, 1)
        await pass_time(REBUILD_PAUSE_S - 1)
        assert (ears.ears.hearing.value, ears.rebuilds) == ("deaf", 1)
        await pass_time(1)
        assert ears.rebuilds == 2
        # After 120, 240, 480, 960 s, and so on.
        await pass_time(3600)
        assert ears.rebuilds == 7
        for _ in range(3):
            await pass_time(REBUILD_PAUSE_MAX_S)
        assert ears.rebuilds == 10
        # Heard in between: another silence is another fault.
        ears.ears.hear(Record(CANARY_CHANNEL, "e", 10**9, 10**9, 0, None), 0)
        ears.elsewhere = 2 * 10**9
        assert ears.ears.hearing.value == "well"
        await pass_time(REBUILD_PAUSE_MAX_S + REBUILD_PAUSE_S)
        assert ears.rebuilds == 14


async def test_a_deaf_node_that_cannot_greet_gets_a_new_queue_too(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on hearing: topic and pipeline are in order, and it is this node."""
    ears.greeting, ears.elsewhere, ears.elsewhere_grows = Greeting.NOT_SENT, 10**9, True
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(OVERDUE_S)
        assert (ears.ears.hearing.value, ears.rebuilds) == ("silent", 0)
        await pass_time(INTERVAL_S)
        assert (ears.ears.hearing.value, ears.rebuilds) == ("deaf", 1)
        await pass_time(REBUILD_PAUSE_S - 1)
        assert ears.rebuilds == 1
        await pass_time(3600)
    assert ears.rebuilds == 7


async def test_a_topic_that_delivers_nothing_makes_nobody_deaf(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others heard one canary more before it began: that is all, and it grows no more."""
    ears.greeting, ears.elsewhere = Greeting.NOT_HEARD, 10**9
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(3600)
        assert ears.ears.hearing is Hearing.SILENT
        assert ears.rebuilds > 1, "but perhaps the subscription is gone"


async def test_leases_that_could_not_be_read_once_are_no_sign_of_growth(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.greeting, ears.elsewhere, ears.leases_fail = (
        Greeting.NOT_SENT,
        10**9,
        Throttled("simulated"),
    )
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(OVERDUE_S)
        assert (ears.ears.hearing.value, ears.caught_up) == ("silent", 1)
        ears.leases_fail = None
        await pass_time(5 * INTERVAL_S)
        assert (ears.ears.hearing.value, ears.rebuilds) == ("silent", 0)
        ears.elsewhere += 1
        await pass_time(INTERVAL_S)
        assert (ears.ears.hearing.value, ears.rebuilds) == ("deaf", 1)


@pytest.mark.parametrize("elsewhere", [0, 10**9])
async def test_an_outage_of_the_topic_makes_nobody_change_queues(
    ears: Heard, monkeypatch: pytest.MonkeyPatch, elsewhere: int
) -> None:
    """The last canary reached some nodes and not others, and nothing comes after it:
    new queues could not be subscribed.
    """
    ears.greeting, ears.elsewhere = Greeting.NOT_SENT, elsewhere
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(3600)
    assert ears.ears.hearing is Hearing.SILENT
    assert ears.rebuilds == 0
    assert ears.caught_up > 100


async def test_a_fault_of_the_table_or_of_the_leases_ends_nothing(
    ears: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears.world.fail_next("put_item", Throttled("simulated"), times=8)
    ears.leases_fail = Throttled("simulated")
    async with ears.running(monkeypatch) as pass_time:
        await pass_time(OVERDUE_S + 3 * INTERVAL_S)
        assert ears.ears.hearing is Hearing.SILENT
        assert len(ears.emitted()) == 1
        assert ears.caught_up >= 3
