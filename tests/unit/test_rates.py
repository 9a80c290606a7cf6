"""Token buckets: never more than the rate, never less, and bounded memory."""

from __future__ import annotations

from itertools import accumulate
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.rates import WIDER, Bucket, Rate, Seldom, Turnstile

RATES: Final = st.builds(Rate, st.floats(0.01, 1000), st.floats(1, 1000))
PAUSES_S: Final = st.lists(st.floats(0, 60), max_size=200)
EPSILON: Final = 1e-6


@given(RATES, PAUSES_S, st.floats(-1e6, 1e9))
def test_in_any_time_no_more_is_done_than_burst_and_rate_give(
    rate: Rate, pauses: list[float], start: float
) -> None:
    bucket = Bucket(rate, start)
    taken = [now for now in accumulate(pauses, initial=start) if bucket.take(rate, now)]
    for first, begin in enumerate(taken):
        for last in range(first, len(taken)):
            done, room = last - first + 1, rate.burst + (taken[last] - begin) * rate.per_s
            assert done <= room * (1 + EPSILON) + 1e-3


@given(RATES, st.integers(1, 50))
def test_the_whole_burst_is_there_at_once_and_no_more(rate: Rate, asked: int) -> None:
    bucket = Bucket(rate, 0.0)
    assert sum(bucket.take(rate, 0.0) for _ in range(asked)) == min(asked, int(rate.burst))


@given(RATES, PAUSES_S)
def test_after_the_wait_there_is_one(rate: Rate, pauses: list[float]) -> None:
    bucket, now = Bucket(rate, 0.0), 0.0
    for pause in pauses:
        now += pause
        if not bucket.take(rate, now):
            now += bucket.wait_s(rate, now) + EPSILON
            assert bucket.take(rate, now)


@given(RATES, st.integers(1, 100))
def test_who_waits_for_what_they_owe_keeps_the_rate(rate: Rate, things: int) -> None:
    bucket, now = Bucket(rate, 0.0), 0.0
    for done in range(1, things + 1):
        wait = bucket.owe(rate, now)
        assert wait <= 1 / rate.per_s + EPSILON * max(1.0, now)
        now += wait
        assert done <= rate.burst + now * rate.per_s + 1e-3


def test_a_clock_that_goes_back_gives_nothing() -> None:
    rate = Rate(1.0, 1.0)
    bucket = Bucket(rate, 100.0)
    assert bucket.take(rate, 100.0)
    assert not bucket.take(rate, 50.0)
    assert not bucket.take(rate, 100.5)
    assert bucket.take(rate, 101.0)


@pytest.mark.parametrize("per_s, burst", [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.5)])
def test_a_rate_always_lets_another_one_through(per_s: float, burst: float) -> None:
    with pytest.raises(AssertionError):
        Rate(per_s, burst)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 5)), max_size=200),
    st.integers(3, 8),
    RATES,
)
def test_a_turnstile_remembers_few_and_is_as_strict_as_their_buckets(
    comers: list[tuple[str, float]], most: int, rate: Rate
) -> None:
    turnstile, now, alone = Turnstile(rate, most), 0.0, dict[str, Bucket]()
    for address, pause in comers:
        now += pause
        allowed = turnstile.wait_s([address], now) == 0
        assert len(turnstile) <= most
        expected = alone.setdefault(address, Bucket(rate, 0.0)).take(rate, now)
        # Who was forgotten may come in once too often; nobody is kept out who would not be.
        assert allowed or not expected
        if len({name for name, _ in comers}) <= most:
            assert allowed == expected


def test_the_one_that_came_longest_ago_is_forgotten() -> None:
    turnstile = Turnstile(Rate(1.0, 1.0), 3)
    for address in "abca":
        turnstile.wait_s([address], 0.0)
    assert turnstile.wait_s(["d"], 0.0) == 0
    assert turnstile.wait_s(["a"], 0.0) == 1.0
    assert turnstile.wait_s(["b"], 0.0) == 0


def test_the_wait_of_an_address_shrinks() -> None:
    turnstile = Turnstile(Rate(0.5, 1.0))
    assert [turnstile.wait_s(["a"], now) for now in (0.0, 0.0, 1.0, 2.0)] == [0.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("level", range(1, len(WIDER)))
def test_a_network_has_a_rate_too_whatever_addresses_come_from_it(level: int) -> None:
    turnstile, most = Turnstile(Rate(1.0, 2.0)), WIDER[level]
    # All that is narrower differs.
    comers = [
        [f"{number}-{narrower}" for narrower in range(level)] + ["net"] for number in range(200)
    ]
    assert sum(turnstile.wait_s(each, 0.0) == 0 for each in comers) == 2 * most
    assert turnstile.wait_s(comers[-1], 0.0) == 1 / most
    assert turnstile.wait_s(["elsewhere", "wide elsewhere"], 0.0) == 0


def test_who_is_kept_out_uses_up_nothing_of_the_neighbours() -> None:
    turnstile = Turnstile(Rate(1.0, 1.0))
    assert [turnstile.wait_s(["loud", "net"], 0.0) == 0 for _ in range(100)].count(True) == 1
    assert [turnstile.wait_s([f"quiet-{number}", "net"], 0.0) for number in range(3)] == [0, 0, 0]


def test_from_a_network_that_is_full_no_address_is_remembered() -> None:
    turnstile = Turnstile(Rate(1.0, 1.0))
    for number in range(1000):
        turnstile.wait_s([f"{number}", "net"], 0.0)
    assert len(turnstile) == WIDER[1] + 1


@given(RATES, PAUSES_S)
def test_what_is_told_seldom_is_told_at_the_rate_and_counted_in_all(
    rate: Rate, pauses: list[float]
) -> None:
    seldom, bucket, now, told = Seldom(rate), Bucket(rate, 0.0), 0.0, 0
    untold = 0
    for pause in pauses:
        now += pause
        passed_over = seldom.again(now)
        if bucket.take(rate, now):
            assert passed_over == untold
            told, untold = told + 1 + untold, 0
        else:
            assert passed_over is None
            untold += 1
    assert told + untold == len(pauses)
