"""Histograms that count each value once, and labels that stay few."""

from __future__ import annotations

from functools import reduce
from math import inf
from operator import add

from hypothesis import given
from hypothesis import strategies as st

from roomcast.observe.counters import (
    ATTEMPT_BOUNDS,
    LATENCY_BOUNDS_S,
    TURN_BOUNDS_S,
    AppendCounters,
    ClientCounters,
    Histogram,
    Limit,
    StageCounters,
)
from roomcast.wire.codes import Disconnect, DisconnectCode


@given(st.lists(st.one_of(st.floats(0, 100), st.sampled_from(LATENCY_BOUNDS_S)), max_size=50))
def test_a_bucket_holds_what_is_not_above_its_bound(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert histogram.count == len(values)
    # One after the other: from Python 3.12 on, sum() makes up for what rounding loses.
    assert histogram.sum == reduce(add, values, 0.0)
    buckets = list(histogram.cumulative())
    assert [bound for bound, _ in buckets] == [*LATENCY_BOUNDS_S, inf]
    assert [number for _, number in buckets] == [
        sum(value <= bound for value in values) for bound, _ in buckets
    ]


@given(st.lists(st.integers(1, 30)), st.lists(st.integers(1, 30)))
def test_what_was_added_since_is_what_was_added(before: list[int], after: list[int]) -> None:
    histogram, alone = Histogram(ATTEMPT_BOUNDS), Histogram(ATTEMPT_BOUNDS)
    for value in before:
        histogram.add(value)
    earlier = histogram.copy()
    for value in after:
        histogram.add(value)
        alone.add(value)
    added = histogram.since(earlier)
    assert list(added.cumulative()) == list(alone.cumulative())
    assert (added.count, added.sum) == (alone.count, alone.sum)
    assert added.mean() == (sum(after) / len(after) if after else None)
    assert earlier.count == len(before), "a copy stays as it is"


def test_of_no_value_there_is_no_mean_and_no_sample() -> None:
    assert Histogram().mean() is None
    assert Histogram().sample(100) == []


def test_what_is_above_every_bound_counts_as_the_last_in_a_sample() -> None:
    beyond = Histogram()
    beyond.add(LATENCY_BOUNDS_S[-1] + 1)
    assert beyond.sample(100) == [LATENCY_BOUNDS_S[-1]]


@given(
    st.lists(st.floats(0, 100), max_size=300),
    st.integers(1, 100),
    st.sampled_from((LATENCY_BOUNDS_S, TURN_BOUNDS_S)),
)
def test_a_sample_is_spread_as_the_values_are(
    values: list[float], number: int, bounds: tuple[float, ...]
) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.add(value)
    sample = histogram.sample(number)
    assert len(sample) == min(len(values), number)
    assert sample == sorted(sample)
    last = bounds[-1]
    for index, told in enumerate(sample):
        # The value at the middle of its share, in the same step.
        value = sorted(values)[int((index + 0.5) * len(values) / len(sample))]
        step = next((bound for bound in bounds if value <= bound), last)
        below = max((bound for bound in bounds if bound < step), default=0.0)
        assert told == last if value > last else below <= told <= step


def test_a_sample_has_no_wait_where_nobody_waited() -> None:
    histogram = Histogram(TURN_BOUNDS_S)
    for _ in range(3):
        histogram.add(0.0)
    assert histogram.sample(100) == [0.0, 0.0, 0.0]


def test_stages_have_the_names_that_they_are_told_by() -> None:
    stages = StageCounters()
    assert list(stages.by_stage()) == ["stream", "topic", "node", "order", "all"]
    assert stages.by_stage()["all"] is stages.all


def test_what_is_rejected_is_known_not_to_be_in_and_may_be_tried_again() -> None:
    counters = AppendCounters()
    for index, outcome in enumerate(counters.publications):
        counters.publications[outcome] = 10**index
    assert counters.rejected == counters.publications["full"] + counters.publications["not_stored"]


def test_codes_that_applications_make_up_are_counted_together() -> None:
    counters = ClientCounters()
    for code in range(4000, 4999):
        counters.closed(DisconnectCode(code, "mine"))
    counters.closed(DisconnectCode(3500, "another reason"))
    counters.closed(Disconnect.SLOW)
    counters.closed(Disconnect.SLOW.value)
    assert counters.disconnects == {"application": 1000, "3008": 2}


def test_every_limit_is_there_before_it_is_hit() -> None:
    counters = ClientCounters()
    assert counters.limits == {limit.value: 0 for limit in Limit}
    counters.limited(Limit.CHANNELS)
    assert counters.limits["channels"] == 1
