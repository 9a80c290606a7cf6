"""service/roomcast/bench/chart.py: bars of histograms and of progress."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.bench.chart import ROWS_MAX, chart, milliseconds, progress_bar
from roomcast.bench.histogram import VALUE_US_MAX, LatencyHistogram


def test_a_chart() -> None:
    histogram = LatencyHistogram([10_100] * 40 + [10_900] * 20 + [17_000] * 1)
    assert chart(histogram, 40, blocks=True) == [
        "10.0 - 13.0  ███████████████████████  60",
        "13.0 - 16.0                            0",
        "16.0 - 20.0  ▍                         1",
    ]
    assert chart(histogram, 40, blocks=False) == [
        "10.0 - 13.0  #######################  60",
        "13.0 - 16.0                            0",
        "16.0 - 20.0  #                         1",
    ]


def test_the_wider_the_coarser() -> None:
    edges = [
        len(chart(LatencyHistogram([10_000, most]), 60, blocks=True))
        for most in (60_000, 200_000, 2_000_000, VALUE_US_MAX)
    ]
    assert edges == [8, 7, 12, 6]
    assert chart(LatencyHistogram([10, VALUE_US_MAX]), 60, blocks=False)[-1].startswith(
        "1,000,000 - "
    )


def test_nothing() -> None:
    assert chart(LatencyHistogram(), 40, blocks=True) == []


@given(
    st.lists(st.integers(0, VALUE_US_MAX), min_size=1, max_size=50),
    st.integers(1, 120),
    st.booleans(),
)
def test_charts(values: list[int], width: int, blocks: bool) -> None:
    lines = chart(LatencyHistogram(values), width, blocks=blocks)
    assert 1 <= len(lines) <= ROWS_MAX
    assert len({len(line) for line in lines}) == 1
    counts = [int(line.split()[-1].replace(",", "")) for line in lines]
    assert sum(counts) == len(values)
    assert counts[0]
    assert counts[-1]
    for line, count in zip(lines, counts, strict=True):
        assert bool(re.search("[█▏▎▍▌▋▊▉#]", line)) == bool(count), "what is there is seen"
    if width > 60:
        assert len(lines[0]) == width


@pytest.mark.parametrize(
    "value_us, told",
    [
        (0, "0.00"),
        (40, "0.04"),
        (1234, "1.23"),
        (9994, "9.99"),
        (9996, "10.0"),
        (99_940, "99.9"),
        (99_960, "100"),
        (1_234_500, "1,234"),
    ],
)
def test_milliseconds(value_us: int, told: str) -> None:
    assert milliseconds(value_us) == told


def test_progress() -> None:
    assert progress_bar(0.5, "half", 20, blocks=True) == "██████░░░░░░  half  "
    assert progress_bar(0.5, "half", 20, blocks=False) == "######......  half  "
    assert progress_bar(2, "all", 20, blocks=False) == "#############  all  "
    assert progress_bar(-1, "none", 20, blocks=False) == "............  none  "
    assert progress_bar(0, "too long for this", 12, blocks=False) == "........  to"
