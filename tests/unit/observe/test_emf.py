"""Lines in CloudWatch's embedded metric format."""

from __future__ import annotations

import json
import select
from math import inf, nan
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.observe.emf import LINE_BYTES_MAX, METRICS_MAX, VALUE_MAX, VALUES_MAX, Metric, lines
from tests.emf import read, read_all

AT_MS: Final = 1_700_000_000_123


def written(*metrics: Metric, group: str = "chat") -> list[bytes]:
    return list(
        lines(
            metrics,
            namespace="roomcast",
            dimensions={"AutoScalingGroupName": group} if group else {},
            at_ms=AT_MS,
            about={"event": "metrics", "node": "i-1-abc"},
        )
    )


def test_a_line_is_a_log_line_with_metrics() -> None:
    [line] = written(
        Metric("Connections", (3,), "Count"), Metric("PublishMs", (1.5, 20.25), "Milliseconds")
    )
    assert json.loads(line) == {
        "timestamp": "2023-11-14T22:13:20.123000Z",
        "level": "info",
        "event": "metrics",
        "node": "i-1-abc",
        "_aws": {
            "Timestamp": AT_MS,
            "CloudWatchMetrics": [
                {
                    "Namespace": "roomcast",
                    "Dimensions": [["AutoScalingGroupName"]],
                    "Metrics": [
                        {"Name": "Connections", "Unit": "Count"},
                        {"Name": "PublishMs", "Unit": "Milliseconds"},
                    ],
                }
            ],
        },
        "AutoScalingGroupName": "chat",
        "Connections": 3,
        "PublishMs": [1.5, 20.25],
    }


def test_without_a_group_there_is_no_dimension() -> None:
    [metric] = read_all(written(Metric("Connections", (3,), "Count"), group=""))
    assert metric.dimensions == ()


def test_durations_have_few_digits_and_counts_all_of_theirs() -> None:
    [a, b] = read_all(
        written(
            Metric("A", (1234.5678, 0.00123456), "Milliseconds"),
            Metric("B", (123_456_789, True), "Count"),
        )
    )
    assert a.values == (1235, 0.001235)
    assert b.values == (123_456_789, 1)


def test_what_is_no_number_is_left_out_and_what_has_none() -> None:
    told = written(
        Metric("A", (nan, 1.0, inf), "Count"),
        Metric("B", (-inf,), "Count"),
        Metric("C", (), "Count"),
    )
    assert [(each.name, each.values) for each in read_all(told)] == [("A", (1,))]
    assert written(Metric("B", (nan,), "Count")) == []
    assert written() == []


def test_more_than_the_format_takes_of_one_metric_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        written(Metric("A", [1.0] * (VALUES_MAX + 1), "Count"))


VALUES: Final = st.one_of(
    st.integers(0, 2**53), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 60_000)
)
METRICS: Final = st.lists(
    st.builds(
        Metric,
        st.from_regex(r"[A-Za-z]{1,40}", fullmatch=True),
        st.lists(VALUES, max_size=VALUES_MAX),
        st.sampled_from(("Count", "Milliseconds", "Seconds", "None")),
    ),
    max_size=2 * METRICS_MAX,
    unique_by=lambda metric: metric.name,
)


@given(METRICS, st.text('abc "\\{}é', max_size=100))
def test_any_readings_are_lines_as_the_format_has_them(metrics: list[Metric], group: str) -> None:
    told = written(*metrics, group=group)
    for line in told:
        # With its line break no longer than what a pipe takes at once.
        assert len(line) < LINE_BYTES_MAX
        assert b"\n" not in line
    found = [each for line in told for each in read(line)]
    assert {each.namespace for each in found} <= {"roomcast"}
    assert {each.dimensions for each in found} <= {
        (("AutoScalingGroupName", group),) if group else ()
    }
    expected = {
        each.name: (each.unit, [value for value in each.values if abs(value) <= VALUE_MAX])
        for each in metrics
    }
    assert [each.name for each in found] == [
        name for name, (_, values) in expected.items() if values
    ]
    for each in found:
        unit, values = expected[each.name]
        assert each.unit == unit
        assert each.values == pytest.approx(values, rel=0.001, abs=1e-300)


def test_a_pipe_takes_a_line_at_once() -> None:
    assert LINE_BYTES_MAX <= select.PIPE_BUF


def test_as_few_lines_as_hold_them() -> None:
    assert len(written(*(Metric(f"M{number}", (number,), "Count") for number in range(30)))) == 1
    long = [Metric(f"M{number}", [0.1234] * VALUES_MAX, "Milliseconds") for number in range(8)]
    told = written(*long)
    assert 1 < len(told) < len(long)
    # Each holds what it can.
    assert all(LINE_BYTES_MAX / 2 < len(line) < LINE_BYTES_MAX for line in told[:-1])
    assert [each.name for each in read_all(told)] == [each.name for each in long]


def test_a_line_has_no_more_metrics_than_the_format_takes() -> None:
    told = written(*(Metric(f"{number:02x}", (1,), "None") for number in range(METRICS_MAX + 1)))
    assert [len(list(read(line))) for line in told] == [METRICS_MAX, 1]
