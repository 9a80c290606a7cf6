"""The canary's rules: numbers that only grow, whose turn it is, what silence means,
and how long a canary took.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.canary_rules import (
    CANARY_CHANNEL,
    MISSED_INTERVALS,
    NUMBER_MAX,
    REPEATS_MAX,
    ROUND_S,
    CanarySchedule,
    Greeting,
    Hearing,
    Latency,
    Rounds,
    canary_item,
    is_number,
    latency,
    next_number,
)
from roomcast.delivery.envelope import checked_pubs
from roomcast.log.item import OFFSET_MAX
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import Record

INTERVAL_S: Final = 10.0


def test_no_client_can_name_the_channel() -> None:
    assert not is_valid_name(CANARY_CHANNEL)


def test_the_item_is_what_the_lambda_broadcasts() -> None:
    item = canary_item(7, node="a", batch="b", now=1000, generation="0")
    assert (item.offset, item.last, item.ts) == (7, 7, 1000)
    assert checked_pubs(item) == '[{"data":{}}]'


def test_latency_of_each_leg() -> None:
    record = Record(CANARY_CHANNEL, "0.canary", 7, 7, 1000, None)
    assert latency(record, 1200, 1250) == Latency(to_lambda_ms=200, to_node_ms=50)
    assert latency(record, 0, 1250) == Latency(to_lambda_ms=250, to_node_ms=0)


# ---- numbers


@given(st.integers(1, NUMBER_MAX - 1), st.integers(-(2**50), 2**50), st.integers(1000, 3_600_000))
def test_behind_what_is_known_no_clock_counts(known: int, now_ms: int, interval_ms: int) -> None:
    assert next_number(known, now_ms, interval_ms) == known + 1


@given(
    st.sampled_from([0, NUMBER_MAX, NUMBER_MAX + 1, OFFSET_MAX]),
    st.integers(-(2**42), NUMBER_MAX * 1000),
    st.integers(1000, 3_600_000),
)
def test_who_knows_nothing_begins_with_its_clock_as_others_do(
    known: int, now_ms: int, interval_ms: int
) -> None:
    """So does who knows a number that nothing comes behind: another program may have written it."""
    number = next_number(known, now_ms, interval_ms)
    assert is_number(number)
    assert now_ms < interval_ms or number * interval_ms <= now_ms < (number + 1) * interval_ms


def test_numbers_have_an_end_that_is_no_crash() -> None:
    number = next_number(OFFSET_MAX, 2**60, 1000)
    assert canary_item(number, node="a", batch="b", now=1000, generation="0").offset == NUMBER_MAX


# ---- turns


def test_an_interval_without_news_makes_a_node_emit() -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    assert not schedule.must_emit(9.9)
    assert schedule.must_emit(10.0)
    schedule.hear(5, 9.0, 0.0)
    assert not schedule.must_emit(18.9)
    schedule.hear(5, 18.0, 0.0)
    schedule.hear(4, 18.5, 0.0)
    assert schedule.must_emit(19.0), "what is not new puts nothing off"


@given(st.floats(0, 1, exclude_max=True))
def test_turns_spread_over_half_an_interval(chance: float) -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, chance)
    assert 10 <= schedule.next_turn_s <= 15
    schedule.hear(5, 100.0, chance)
    assert 110 <= schedule.next_turn_s <= 115


def test_who_sang_waits_an_interval_and_who_could_not_half_of_one() -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    schedule.emitting(10.0, 0.0)
    assert not schedule.must_emit(14.9)
    assert schedule.must_emit(15.0)
    schedule.emitting(15.0, 0.0)
    schedule.emitted(7, 15.5, 0.0)
    assert not schedule.must_emit(25.4)
    assert schedule.must_emit(25.5)
    assert (schedule.known, schedule.newest) == (7, 0)


def test_what_is_heard_while_singing_counts() -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    schedule.emitting(10.0, 0.0)
    schedule.hear(8, 10.5, 0.0)
    schedule.taken(7)
    assert schedule.known == 8
    assert not schedule.must_emit(20.4)
    schedule.emitting(20.5, 0.0)
    schedule.hear(9, 20.9, 1.0)
    schedule.emitted(10, 21.0, 0.0)
    assert not schedule.must_emit(35.8)
    assert schedule.must_emit(35.9)


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_canary_in_vain_is_followed_by_another_before_anybody_doubts(
    first: float, second: float
) -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, first)
    schedule.emitting(schedule.next_turn_s, second)
    assert not schedule.is_overdue(schedule.next_turn_s)


# ---- silence


def test_silence_is_noticed_after_its_bound() -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    assert schedule.hear(5, 3.0, 0.999)
    assert not schedule.is_overdue(2.9 + 10 * MISSED_INTERVALS)
    assert schedule.is_overdue(3.0 + 10 * MISSED_INTERVALS)
    assert not schedule.must_doubt(3.0 + 10 * MISSED_INTERVALS), (
        "nodes fall silent together and ask one by one"
    )
    assert schedule.must_doubt(8.0 + 10 * MISSED_INTERVALS)
    assert schedule.silence_s(13.0) == 10.0


def test_it_is_asked_again_each_interval_until_something_is_heard() -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    schedule.emitting(25.0, 0.999)
    assert schedule.must_doubt(25.0)
    schedule.doubted(25.0, 0.0)
    assert not schedule.must_doubt(34.9)
    assert schedule.must_doubt(35.0)
    schedule.doubted(35.0, 0.0)
    schedule.hear(1, 36.0, 0.0)
    assert not schedule.must_doubt(60.9)


def test_repeats_and_stragglers_are_not_news() -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    assert schedule.hear(5, 1.0, 0.0)
    assert not schedule.hear(4, 20.0, 0.0)
    assert not schedule.hear(5, 90.0, 0.0)
    assert not schedule.hear(4, 90.0, 0.0)
    assert schedule.newest == 5
    assert schedule.is_overdue(90.0)


@pytest.mark.parametrize("number", [NUMBER_MAX + 1, OFFSET_MAX, 0, -1])
def test_what_no_canary_can_be_is_passed_over(number: int) -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    schedule.hear(5, 1.0, 0.0)
    assert not schedule.hear(number, 2.0, 0.0)
    assert not schedule.hear(number, 200.0, 0.0)
    schedule.taken(number)
    assert (schedule.newest, schedule.known) == (5, 5)
    assert schedule.is_overdue(200.0)


def test_a_number_that_is_too_high_is_forgotten_when_nothing_follows() -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    assert schedule.hear(5, 1.0, 0.0)
    assert schedule.hear(NUMBER_MAX - 7, 2.0, 0.0)
    assert not schedule.hear(6, 11.0, 0.0), "for all that it knows yet, that is an old one"
    assert schedule.hear(7, 2.0 + 10 * MISSED_INTERVALS, 0.0)
    assert (schedule.newest, schedule.known) == (7, 7)
    assert schedule.hear(8, 40.0, 0.0)
    assert not schedule.hear(6, 200.0, 0.0), "it came before"


def test_a_repeat_is_no_sign_of_life_however_long_the_silence() -> None:
    """What is not deleted comes again, also to a node that hears nothing new."""
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    numbers = range(1, REPEATS_MAX + 1)
    for number in numbers:
        schedule.hear(number, float(number), 0.0)
    for number in numbers:
        assert not schedule.hear(number, 10_000.0, 0.0)
    assert schedule.is_overdue(10_000.0)


@pytest.mark.parametrize(
    "greeting, elsewhere, hearing",
    [
        (Greeting.HEARD, [0], Hearing.SILENT),
        (Greeting.HEARD, [9], Hearing.SILENT),
        (Greeting.HEARD, [9, 10], Hearing.SILENT),
        (Greeting.NOT_HEARD, [0], Hearing.SILENT),
        (Greeting.NOT_HEARD, [5], Hearing.SILENT),
        (Greeting.NOT_HEARD, [None], Hearing.SILENT),
        # An outage of the topic: the last canary reached the others, and there it ends.
        (Greeting.NOT_HEARD, [6], Hearing.SILENT),
        (Greeting.NOT_HEARD, [6, 6, 6], Hearing.SILENT),
        (Greeting.NOT_SENT, [6], Hearing.SILENT),
        (Greeting.NOT_SENT, [6, 6, 6], Hearing.SILENT),
        # The others hear on.
        (Greeting.NOT_HEARD, [6, 7], Hearing.DEAF),
        (Greeting.NOT_SENT, [6, 7], Hearing.DEAF),
        (Greeting.NOT_SENT, [6, None, 7], Hearing.DEAF),
        (Greeting.NOT_SENT, [6, 6, 7, 7], Hearing.DEAF),
        # A look that failed is no look at nothing.
        (Greeting.NOT_SENT, [None, 6], Hearing.SILENT),
        # They hear what this node has heard as well.
        (Greeting.NOT_SENT, [3, 4, 5], Hearing.SILENT),
    ],
)
def test_what_silence_means(
    greeting: Greeting, elsewhere: list[int | None], hearing: Hearing
) -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    schedule.hear(5, 0.0, 0.0)
    for newest in elsewhere:
        judged = schedule.judge(greeting=greeting, newest_elsewhere=newest)
    assert judged is hearing


def test_another_silence_is_another_matter() -> None:
    schedule = CanarySchedule(INTERVAL_S, 0, 0.0)
    schedule.hear(5, 0.0, 0.0)
    schedule.judge(greeting=Greeting.NOT_SENT, newest_elsewhere=6)
    schedule.hear(6, 30.0, 0.0)
    assert schedule.judge(greeting=Greeting.NOT_SENT, newest_elsewhere=7) is Hearing.SILENT


# ---- whole fleets, whatever their clocks say

STEP_S: Final = 0.1
# From a canary to every node; with a turn in vain it stays under what makes a node doubt.
PIPELINE_S: Final = 1.0
YEAR_S: Final = 31_536_000


@dataclass
class Emitter:
    """A node of the model: its schedule, its clock, and whether it hears."""

    schedule: CanarySchedule
    clock_off_s: float
    deaf_from_s: float = float("inf")


@dataclass
class Fleet:
    """Nodes, a table that all agree on, and a pipeline that takes its time."""

    random: Random
    now_s: float = 0.0
    emitters: list[Emitter] = field(default_factory=list)
    table: set[int] = field(default_factory=set)
    under_way: list[tuple[float, int]] = field(default_factory=list)
    canaries: int = 0

    def join(self, clock_off_s: float) -> Emitter:
        emitter = Emitter(CanarySchedule(INTERVAL_S, self.now_s, self.random.random()), clock_off_s)
        self.emitters.append(emitter)
        return emitter

    def clock_s(self, off_s: float) -> float:
        return 2 * YEAR_S + self.now_s + off_s

    def until(self, end_s: float) -> None:
        while self.now_s < end_s:
            self.now_s += STEP_S
            arrived = [number for at_s, number in self.under_way if at_s <= self.now_s]
            self.under_way = [each for each in self.under_way if each[0] > self.now_s]
            for emitter in self.random.sample(self.emitters, len(self.emitters)):
                for number in arrived:
                    if self.now_s < emitter.deaf_from_s:
                        emitter.schedule.hear(number, self.now_s, self.random.random())
                if emitter.schedule.must_emit(self.now_s):
                    self.emit(emitter)
                if emitter.schedule.must_doubt(self.now_s):
                    emitter.schedule.doubted(self.now_s, self.random.random())

    def emit(self, emitter: Emitter) -> None:
        schedule, chance = emitter.schedule, self.random.random()
        schedule.emitting(self.now_s, chance)
        number = next_number(
            schedule.known,
            round(self.clock_s(emitter.clock_off_s) * 1000),
            round(INTERVAL_S * 1000),
        )
        if number in self.table:
            schedule.taken(number)
            schedule.taken(max(self.table))
            return
        self.table.add(number)
        self.canaries += 1
        schedule.emitted(number, self.now_s, chance)
        # Sometimes it comes twice, and the order is not that of the canaries.
        for _ in range(self.random.choice((1, 1, 2))):
            self.under_way.append((self.now_s + self.random.uniform(0, PIPELINE_S), number))

    def overdue(self) -> list[Emitter]:
        return [emitter for emitter in self.emitters if emitter.schedule.is_overdue(self.now_s)]


SEEDS: Final = st.integers(0, 2**32)
OFF_S: Final = st.one_of(st.floats(-1, 1), st.floats(-600, 600), st.floats(-YEAR_S, YEAR_S))


@given(SEEDS, st.lists(OFF_S, min_size=1, max_size=5), st.data())
def test_nobody_doubts_whoever_comes_goes_or_starts_anew(
    seed: int, clocks_off_s: list[float], data: st.DataObject
) -> None:
    """A node that is far ahead leaves, all start anew with other clocks:
    the rest hear one another all the time.
    """
    fleet = Fleet(Random(seed))
    for off_s in clocks_off_s:
        fleet.join(off_s)
    for _ in range(data.draw(st.integers(2, 4))):
        for _ in range(data.draw(st.integers(1, 200))):
            fleet.until(fleet.now_s + 10 * STEP_S)
            assert fleet.overdue() == []
        match data.draw(st.sampled_from(["leave", "join", "all anew"])):
            case "leave" if len(fleet.emitters) > 1:
                fleet.emitters.pop(data.draw(st.integers(0, len(fleet.emitters) - 1)))
            case "all anew":
                count = len(fleet.emitters)
                fleet.emitters.clear()
                # Clocks that are set back: by them it is the time of a canary that was emitted
                # before.
                emitted = data.draw(st.sampled_from(sorted(fleet.table) or [1]))
                back_s = INTERVAL_S * emitted - fleet.clock_s(0)
                for off_s in data.draw(
                    st.lists(st.just(back_s) | OFF_S, min_size=count, max_size=count)
                ):
                    fleet.join(off_s)
            case _:
                fleet.join(data.draw(OFF_S))


@given(SEEDS, st.lists(OFF_S, min_size=2, max_size=5))
def test_a_deaf_node_is_found_whatever_its_clock_says(seed: int, clocks_off_s: list[float]) -> None:
    """It goes on emitting and keeps the others well, and knows itself to be deaf all the same."""
    fleet = Fleet(Random(seed))
    deaf, *others = [fleet.join(off_s) for off_s in clocks_off_s]
    fleet.until(3 * INTERVAL_S)
    deaf.deaf_from_s = fleet.now_s
    looks = []
    for _ in range(8):
        fleet.until(fleet.now_s + INTERVAL_S)
        assert fleet.overdue() in ([], [deaf])
        if fleet.overdue():
            newest = max(emitter.schedule.newest for emitter in others)
            looks.append(deaf.schedule.judge(greeting=Greeting.NOT_SENT, newest_elsewhere=newest))
    assert deaf.schedule.judge(greeting=Greeting.NOT_HEARD, newest_elsewhere=newest) is Hearing.DEAF
    assert looks[2:] == [Hearing.DEAF] * len(looks[2:])
    assert len(looks) >= 5


@given(SEEDS, st.lists(OFF_S, min_size=2, max_size=5))
def test_a_pipeline_that_falls_silent_is_nobodys_deafness(
    seed: int, clocks_off_s: list[float]
) -> None:
    """They hear nothing any more, though some heard the last canary and some did not."""
    fleet = Fleet(Random(seed))
    for off_s in clocks_off_s:
        fleet.join(off_s)
    fleet.until(3 * INTERVAL_S)
    for emitter in fleet.emitters:
        emitter.deaf_from_s = fleet.now_s + fleet.random.uniform(0, 3)
    fleet.until(fleet.now_s + 5 * INTERVAL_S)
    assert fleet.overdue() == fleet.emitters
    newest = max(emitter.schedule.newest for emitter in fleet.emitters)
    for emitter in fleet.emitters:
        for _ in range(3):
            for greeting in (Greeting.NOT_SENT, Greeting.NOT_HEARD):
                assert (
                    emitter.schedule.judge(greeting=greeting, newest_elsewhere=newest)
                    is Hearing.SILENT
                )


# What another program writes: anything, and numbers near those of canaries above all.
FORGED: Final = st.one_of(
    st.sampled_from([1, NUMBER_MAX - 1, NUMBER_MAX, NUMBER_MAX + 1, OFFSET_MAX]),
    st.integers(1, OFFSET_MAX),
    st.integers(1, NUMBER_MAX),
    st.integers(2 * YEAR_S // 10 - 100, 2 * YEAR_S // 10 + 1000),
)
# From what a node heard last until it hears again: the silence that makes it doubt and begin anew,
# half an interval for its doubt and a turn, and the way through the pipeline.
HEALED_S: Final = (MISSED_INTERVALS + 0.5 + 1.5) * INTERVAL_S + PIPELINE_S


@given(
    SEEDS,
    st.lists(OFF_S, min_size=1, max_size=5),
    st.lists(
        st.tuples(FORGED, st.booleans(), st.booleans(), st.integers(0, 100)), min_size=1, max_size=4
    ),
)
def test_forged_numbers_silence_nobody_for_long(
    seed: int, clocks_off_s: list[float], forgeries: list[tuple[int, bool, bool, int]]
) -> None:
    """In the table, in the topic or in both, one after the other: nobody has to be started anew."""
    fleet = Fleet(Random(seed))
    for off_s in clocks_off_s:
        fleet.join(off_s)
    fleet.until(3 * INTERVAL_S)
    for number, in_table, in_topic, pause in forgeries:
        if in_table:
            fleet.table.add(number)
        if in_topic:
            fleet.under_way.append((fleet.now_s, number))
        fleet.until(fleet.now_s + pause * STEP_S)
    for _ in range(30):
        fleet.until(fleet.now_s + INTERVAL_S)
        assert (
            max(emitter.schedule.silence_s(fleet.now_s) for emitter in fleet.emitters) <= HEALED_S
        )
    deaf, *others = fleet.emitters
    if others:
        deaf.deaf_from_s = fleet.now_s
        for _ in range(8):
            fleet.until(fleet.now_s + INTERVAL_S)
            newest = max(emitter.schedule.newest for emitter in others)
            if deaf.schedule.is_overdue(fleet.now_s):
                hearing = deaf.schedule.judge(greeting=Greeting.NOT_HEARD, newest_elsewhere=newest)
        assert hearing is Hearing.DEAF


@given(SEEDS, st.lists(OFF_S, min_size=1, max_size=5))
def test_about_one_canary_an_interval_whatever_the_clocks_say(
    seed: int, clocks_off_s: list[float]
) -> None:
    fleet = Fleet(Random(seed))
    for off_s in clocks_off_s:
        fleet.join(off_s)
    # By then all have heard the same.
    fleet.until(5 * INTERVAL_S)
    before = fleet.canaries
    fleet.until(45 * INTERVAL_S)
    assert fleet.canaries - before <= 41


# ---- what must come round


def test_what_comes_round_in_time_is_not_late() -> None:
    rounds = Rounds()
    assert rounds.due_s == inf
    rounds.wrote(0.0, 0.0)
    assert rounds.due_s == ROUND_S
    assert not rounds.must_tell(ROUND_S - 0.1)
    assert not rounds.came()
    assert (rounds.due_s, rounds.is_late) == (inf, False)
    assert not rounds.must_tell(ROUND_S)


def test_the_oldest_write_counts() -> None:
    rounds = Rounds()
    for second in range(9):
        rounds.wrote(float(second), 0.0)
    assert rounds.must_tell(ROUND_S)
    assert rounds.late_s(ROUND_S + 2) == ROUND_S + 2


def test_lateness_is_told_once_until_something_comes() -> None:
    rounds = Rounds()
    rounds.wrote(0.0, 0.0)
    assert rounds.must_tell(ROUND_S)
    rounds.wrote(ROUND_S, 0.0)
    assert not rounds.must_tell(10 * ROUND_S)
    assert rounds.is_late
    rounds.came()
    assert (rounds.is_late, rounds.late_s(20 * ROUND_S)) == (False, 0.0)
    rounds.wrote(20 * ROUND_S, 0.0)
    assert rounds.must_tell(21 * ROUND_S)


def test_nodes_do_not_ask_together() -> None:
    rounds = Rounds()
    rounds.wrote(0.0, 0.99)
    assert ROUND_S < rounds.due_s < 1.5 * ROUND_S
