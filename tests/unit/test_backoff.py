"""Pauses that double: how long they are, and what chance makes of them."""

from __future__ import annotations

import pytest

from roomcast.backoff import EVEN, FROM_HALF, FROM_NOTHING, Backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(0.2, 5.0)
    pauses = [backoff.pause_s(failures) for failures in range(1, 8)]
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.pause_s(1_000_000) == 5.0


@pytest.mark.parametrize(
    "jitter, shortest, middle, longest",
    [
        (EVEN, 4.0, 4.0, 4.0),
        (FROM_HALF, 2.0, 3.0, 4.0),
        (FROM_NOTHING, 0.0, 2.0, 4.0),
        ((0.5, 1.5), 2.0, 4.0, 6.0),
    ],
)
def test_chance_chooses_between_two_factors(
    jitter: tuple[float, float], shortest: float, middle: float, longest: float
) -> None:
    backoff = Backoff(1.0, 60.0, jitter)
    assert [backoff.pause_s(3, random) for random in (0.0, 0.5, 1.0)] == [shortest, middle, longest]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(AssertionError, match="can be reached"):
        Backoff(2.0, 1.0)
    with pytest.raises(AssertionError, match="can be reached"):
        Backoff(0.0, 1.0)
    with pytest.raises(AssertionError, match="negative"):
        Backoff(1.0, 2.0, (-0.5, 1.0))
    with pytest.raises(AssertionError, match="success"):
        Backoff(1.0, 2.0).pause_s(0)
