"""Lag and the clocks' difference, told apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.queue_clock import WINDOW_S, QueueClock


def test_a_clock_that_is_wrong_is_no_lag() -> None:
    for skew_ms in (-60_000, 0, 5_000):
        clock = QueueClock()
        for second in range(30):
            clock.received(skew_ms + 20, float(second), emptied=True)
            assert (clock.lag_ms, clock.skew_ms) == (0, skew_ms + 20)


def test_what_is_late_is_lag_whatever_the_clock_says() -> None:
    for skew_ms in (-60_000, 0, 5_000):
        clock = QueueClock()
        clock.received(skew_ms, 0.0, emptied=True)
        clock.received(skew_ms + 2_000, 1.0, emptied=True)
        assert (clock.lag_ms, clock.skew_ms) == (2_000, skew_ms)
        clock.received(None, 2.0, emptied=True)
        assert (clock.lag_ms, clock.skew_ms) == (0, skew_ms)


def test_a_backlog_is_not_taken_for_a_wrong_clock_however_long_it_lasts() -> None:
    clock = QueueClock()
    clock.received(10, 0.0, emptied=True)
    for second in range(1, round(3 * WINDOW_S)):
        clock.received(8_010, float(second), emptied=False)
        assert (clock.lag_ms, clock.skew_ms) == (8_000, 10)


def test_a_clock_that_is_set_is_seen_after_the_window() -> None:
    clock = QueueClock()
    clock.received(5_000, 0.0, emptied=True)
    clock.received(0, 1.0, emptied=True)
    assert (clock.lag_ms, clock.skew_ms) == (0, 0), "back: at once"
    for second in range(2, round(2 * WINDOW_S)):
        clock.received(5_000, float(second), emptied=True)
    assert (clock.lag_ms, clock.skew_ms) == (0, 5_000), "ahead: when the others are forgotten"


@given(
    skew_ms=st.integers(-100_000, 100_000),
    late_ms=st.lists(st.integers(0, 10_000), min_size=1, max_size=50),
)
def test_the_readings_add_up_and_the_window_is_bounded(skew_ms: int, late_ms: list[int]) -> None:
    clock = QueueClock()
    for second, late in enumerate(late_ms):
        clock.received(skew_ms + late, float(second), emptied=True)
        assert clock.lag_ms + clock.skew_ms == skew_ms + late
        assert clock.skew_ms >= skew_ms, "a message does not come before it was sent"
        assert len(clock._parts) <= 11
