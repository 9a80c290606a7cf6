"""service/roomcast/bench/histogram.py: quantiles that are close, and never too small."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.bench.histogram import ERROR_MAX, VALUE_US_MAX, LatencyHistogram

VALUES = st.lists(st.integers(0, VALUE_US_MAX), min_size=1, max_size=200)
SHARES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0])


def told(histogram: LatencyHistogram) -> tuple[object, ...]:
    return (
        histogram.count,
        histogram.least,
        histogram.most,
        round(histogram.mean, 6),
        list(histogram.counts()),
    )


def exact(values: Sequence[int], share: float) -> int:
    """The least value that `share` of all do not exceed, by trying each."""
    thousandths = round(share * 1000)
    return next(
        value
        for value in sorted(values)
        if sum(other <= value for other in values) * 1000 >= max(thousandths * len(values), 1)
    )


@given(VALUES, SHARES)
def test_quantiles(values: list[int], share: float) -> None:
    found, right = LatencyHistogram(values).quantile(share), exact(values, share)
    assert right <= found <= right * (1 + ERROR_MAX)


@given(VALUES)
def test_what_is_exact(values: list[int]) -> None:
    histogram = LatencyHistogram(values)
    assert (histogram.count, histogram.least, histogram.most) == (
        len(values),
        min(values),
        max(values),
    )
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    assert histogram.quantile(1) == max(values)


@given(VALUES)
def test_buckets_are_ascending_narrow_and_hold_all(values: list[int]) -> None:
    buckets = list(LatencyHistogram(values).counts())
    lower = [edge for edge, _ in buckets]
    assert lower == sorted(set(lower))
    assert sum(count for _, count in buckets) == len(values)
    for edge, count in buckets:
        inside = [value for value in values if edge <= value <= edge * (1 + ERROR_MAX)]
        assert len(inside) >= count


@given(st.lists(st.integers(0, VALUE_US_MAX)), st.lists(st.integers(0, VALUE_US_MAX)))
def test_merged_is_as_if_recorded_in_one(first: list[int], second: list[int]) -> None:
    one, other = LatencyHistogram(first), LatencyHistogram(second)
    before = told(one), told(other)
    assert told(one.merged(other)) == told(LatencyHistogram(first + second))
    assert (told(one), told(other)) == before


def test_without_durations() -> None:
    assert told(LatencyHistogram()) == (0, 0, 0, 0.0, [])
    assert LatencyHistogram().quantile(0.5) == 0


def test_durations_that_are_impossible() -> None:
    histogram = LatencyHistogram([-5, VALUE_US_MAX + 1])
    assert (histogram.least, histogram.most) == (0, VALUE_US_MAX)


def test_small_ones_have_a_bucket_each() -> None:
    assert list(LatencyHistogram(range(128)).counts()) == [(value, 1) for value in range(128)]
    assert list(LatencyHistogram([128, 129, 131]).counts()) == [(128, 2), (130, 1)]
    assert list(LatencyHistogram([129, 131]).counts()) == [(129, 1), (130, 1)]
