"""When calls that fail one after the other are told."""

from __future__ import annotations

from roomcast.streaks import FAILURE_COUNTS_S, FAILURES_TOLD, LASTS_S, Streak


def test_two_failures_in_a_row_are_told_when_they_last() -> None:
    streak = Streak()
    streak.failed(10.0)
    assert not streak.is_bad(10.0 + LASTS_S), "one may be bad luck"
    streak.failed(10.1)
    assert FAILURES_TOLD == 2
    assert not streak.is_bad(10.1), "both may be of one throttled moment"
    assert streak.is_bad(10.0 + LASTS_S)


def test_a_success_ends_it() -> None:
    streak = Streak()
    for second in range(10):
        streak.failed(float(second))
    assert streak.is_bad(10.0)
    streak.succeeded()
    assert not streak.is_bad(10.0)
    streak.failed(11.0)
    assert not streak.is_bad(11.0 + LASTS_S)


def test_when_nobody_calls_any_more_it_is_forgotten() -> None:
    streak = Streak()
    streak.failed(0.0)
    streak.failed(5.0)
    assert streak.is_bad(5.0 + FAILURE_COUNTS_S)
    assert not streak.is_bad(5.1 + FAILURE_COUNTS_S)
