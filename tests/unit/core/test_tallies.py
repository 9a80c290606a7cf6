"""Histograms that count each value once, and labels that stay few."""

from __future__ import annotations

from functools import reduce
from math import inf
from operator import add

from hypothesis import given
from hypothesis import strategies as st

from service.core.codes import Disconnect, DisconnectCode
from service.core.tallies import LATENCY_BOUNDS_S, ClientTally, Histogram, Limit


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


def test_codes_that_applications_make_up_are_counted_together() -> None:
    tally = ClientTally()
    for code in range(4000, 4999):
        tally.closed(DisconnectCode(code, "mine"))
    tally.closed(DisconnectCode(3500, "another reason"))
    tally.closed(Disconnect.SLOW)
    tally.closed(Disconnect.SLOW.value)
    assert tally.disconnects == {"application": 1000, "3008": 2}


def test_every_limit_is_there_before_it_is_hit() -> None:
    tally = ClientTally()
    assert tally.limits == {limit.value: 0 for limit in Limit}
    tally.limited(Limit.CHANNELS)
    assert tally.limits["channels"] == 1
