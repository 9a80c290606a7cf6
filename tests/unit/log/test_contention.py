"""Turns: who gives way, who tries again at once, who looks before it tries;
with times and chance of the test.
"""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.log.contention import Contention, RoundTrip
from roomcast.log.item import ITEM_BYTES_MAX

FRACTIONS: Final = st.floats(0, 1, exclude_max=True)
R: Final = 0.005


@pytest.fixture
def turns() -> Contention:
    return contention()


def contention(round_trip_s: float = R) -> Contention:
    trip = RoundTrip()
    for _ in range(1000):
        trip.took(round_trip_s)
    return Contention(trip)


def append(turns: Contention, now_s: float) -> float:
    """One append that goes in at once; returns when it is answered."""
    turns.won(now_s, now_s + R, 0.5)
    return now_s + R


# ---- round trips


def test_the_first_measurement_replaces_the_guess() -> None:
    trip = RoundTrip()
    guess_s = trip.s
    trip.took(0.004)
    assert trip.s == pytest.approx(0.004)
    assert guess_s != trip.s


def test_an_average_follows_what_is_measured_and_no_call_that_hung() -> None:
    trip = RoundTrip()
    for _ in range(200):
        trip.took(0.005)
    trip.took(8.0)
    assert trip.s < 0.0051
    for _ in range(400):
        trip.took(0.010)
    assert trip.s == pytest.approx(0.010, rel=0.01)


@given(st.lists(st.floats(0, 1e6)))
def test_an_average_stays_within_its_bounds(seconds: list[float]) -> None:
    trip = RoundTrip()
    for each in seconds:
        trip.took(each)
        assert 0.001 <= trip.s <= 1.0


# ---- a lone writer


def test_who_sees_nobody_goes_on_at_once(turns: Contention) -> None:
    assert turns.others(0) == 0
    assert not turns.must_look(0)
    append(turns, 0)
    assert turns.wait_s(R) == 0


def test_who_sees_nobody_leaves_a_gap_now_and_then(turns: Contention) -> None:
    """Long enough for a newcomer to read the end and to write behind it."""
    now_s, waits = 0.0, []
    for _ in range(40):
        now_s = append(turns, now_s)
        waits.append(turns.wait_s(now_s))
        now_s += waits[-1]
    gaps = [wait for wait in waits if wait]
    assert gaps == pytest.approx([2 * R] * len(gaps))
    assert 4 <= len(gaps) <= 5
    assert sum(gaps) < 0.25 * now_s


def test_appends_that_do_not_follow_each_other_need_no_gap(turns: Contention) -> None:
    now_s = 0.0
    for _ in range(40):
        now_s = append(turns, now_s) + 2 * R
        assert turns.wait_s(now_s - 2 * R) == 0


def test_a_gap_comes_after_appends_that_followed_each_other_all_the_way(turns: Contention) -> None:
    """What came before a pause, or before others were seen, does not count."""
    now_s = 100.0
    for _ in range(8):
        now_s = append(turns, now_s)
        assert turns.wait_s(now_s) == 0
    now_s = append(turns, now_s + 2 * R)
    for _ in range(7):
        now_s = append(turns, now_s)
        assert turns.wait_s(now_s) == 0
    turns.saw("b", now_s)
    while turns.others(now_s):
        now_s = append(turns, now_s)
    assert turns.wait_s(now_s) <= 2 * R, "the last turn that was given"
    now_s = append(turns, now_s)
    assert turns.wait_s(now_s) == 0


# ---- several


@pytest.mark.parametrize("others", [1, 2, 19])
def test_who_won_gives_every_other_writer_a_turn(turns: Contention, others: int) -> None:
    for number in range(others):
        turns.saw(f"node-{number}", 0)
    append(turns, 0)
    # A round of turns of one round trip and a half, less what the next attempt takes.
    assert turns.wait_s(R) == pytest.approx(((1 + others) * 1.5 - 2) * R)


def test_others_are_forgotten_when_they_have_not_been_seen_for_long(turns: Contention) -> None:
    turns.saw("b", 0)
    turns.saw("c", 0.3)
    assert turns.others(0.7) == 2
    assert turns.others(0.9) == 1
    assert turns.others(1.2) == 0
    assert not turns.must_look(1.2)


def test_where_calls_are_slow_others_are_remembered_for_longer() -> None:
    slow = contention(0.5)
    slow.saw("b", 0)
    assert slow.others(9) == 1
    assert slow.others(11) == 0


def test_whoever_knows_of_others_looks_before_it_tries(turns: Contention) -> None:
    turns.saw("b", 0)
    assert turns.must_look(0.1)


def test_who_lost_tries_again_at_once_many_times_and_then_pauses(turns: Contention) -> None:
    """As long as for a round trip of each other writer, by chance."""
    pauses = []
    for number in range(30):
        turns.saw("b", number * R)
        turns.saw("c", number * R)
        pauses.append(turns.lose((number - 1) * R, number * R, 0.75))
    assert pauses == pytest.approx([0] * 23 + [0.75 * 2 * R] * 7)
    append(turns, 0.2)
    assert turns.lost == 0
    assert turns.lose(0.2 - R, 0.2, 0.75) == 0


# ---- throttling


def test_refusals_make_a_gap_and_time_closes_it(turns: Contention) -> None:
    append(turns, 100 - R)
    for _ in range(10):
        turns.throttled()
    append(turns, 100)
    wide_s = turns.wait_s(100 + R)
    assert wide_s > 0.2
    append(turns, 101)
    assert 0 < turns.wait_s(101 + R) < wide_s
    now_s = 101.0
    for _ in range(100):
        now_s += 5
        append(turns, now_s)
    assert turns.wait_s(now_s + R) == 0


def test_those_who_are_throttled_together_do_not_come_back_together() -> None:
    """From half to one and a half of the gap, by chance."""
    waits = []
    for chance in (0.0, 0.5, 0.999):
        turns = contention()
        turns.throttled()
        turns.won(0, 0, chance)
        waits.append(turns.wait_s(0))
    assert waits == pytest.approx([0.5 * waits[1], waits[1], 1.499 * waits[1]])
    assert waits[1] > 0


def test_gaps_of_those_who_share_a_partition_become_alike() -> None:
    """Each refusal multiplies them, each second adds the same rate to both."""
    wide, narrow = contention(), contention()
    for _ in range(12):
        wide.throttled()
    narrow.throttled()
    now_s = 0.0
    for _ in range(60):
        now_s += 1
        for turns in (wide, narrow):
            turns.throttled()
            append(turns, now_s)
    assert wide.wait_s(now_s + R) == pytest.approx(narrow.wait_s(now_s + R), rel=0.05)


def test_who_is_throttled_tries_with_half_as_much_and_with_more_again_when_it_goes_in(
    turns: Contention,
) -> None:
    """A partition that has little left never has room for a large item while
    others write small ones.
    """
    assert turns.bytes_max == ITEM_BYTES_MAX
    sizes = []
    for _ in range(6):
        turns.throttled()
        sizes.append(turns.bytes_max)
    assert sizes == [ITEM_BYTES_MAX // 2, ITEM_BYTES_MAX // 4, ITEM_BYTES_MAX // 8, *[8 * 1024] * 3]
    now_s = 0.0
    for _ in range(20):
        now_s = append(turns, now_s)
    assert turns.bytes_max == ITEM_BYTES_MAX


# ---- bounds


@given(
    st.floats(0, 100),
    st.lists(st.tuples(st.sampled_from("swlt"), st.floats(0, 5), FRACTIONS), max_size=200),
)
def test_nobody_is_made_to_wait_for_long(
    round_trip_s: float, events: list[tuple[str, float, float]]
) -> None:
    turns, now_s = contention(round_trip_s), 0.0
    for number, (event, after_s, chance) in enumerate(events):
        now_s += after_s
        pause_s = 0.0
        if event == "s":
            turns.saw(f"node-{number}", now_s)
        elif event == "w":
            turns.won(now_s, now_s, chance)
        elif event == "l":
            pause_s = turns.lose(now_s, now_s, chance)
        else:
            turns.throttled()
        assert 0 <= pause_s <= 3
        assert 0 <= turns.wait_s(now_s) <= 3
        assert turns.others(now_s) <= 64
