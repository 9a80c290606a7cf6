"""How long a hole may fill by itself: within bounds, and what the way of a canary takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.gap_wait import (
    CANARIES_MAX,
    FACTOR,
    GAP_WAIT_MS_MAX,
    GAP_WAIT_MS_MIN,
    PART,
    UNMEASURED_MS,
    GapWait,
)

# Clocks may be wrong by years, in either direction.
TOOK_MS = st.integers(-(10**12), 10**12)
USUAL_MS = st.integers(150, 1300)


def heard(took_ms: list[int], fixed_ms: int = 0) -> GapWait:
    gap_wait = GapWait(fixed_ms)
    for each in took_ms:
        gap_wait.took(each)
    return gap_wait


def test_before_the_first_canary_it_is_what_is_typical() -> None:
    assert GapWait().s == UNMEASURED_MS / 1000


@given(st.lists(TOOK_MS, min_size=1))
def test_it_stays_within_its_bounds(took_ms: list[int]) -> None:
    assert GAP_WAIT_MS_MIN / 1000 <= heard(took_ms).s <= GAP_WAIT_MS_MAX / 1000


@given(st.integers(1, 10_000), st.lists(TOOK_MS))
def test_what_is_configured_stays(fixed_ms: int, took_ms: list[int]) -> None:
    assert heard(took_ms, fixed_ms).s == fixed_ms / 1000


@given(st.lists(USUAL_MS, min_size=1, max_size=CANARIES_MAX))
def test_most_canaries_come_within_it(took_ms: list[int]) -> None:
    wait_ms = heard(took_ms).s * 1000
    within = [each for each in took_ms if FACTOR * each <= wait_ms or each <= GAP_WAIT_MS_MIN]
    assert len(within) >= PART * len(took_ms)


@given(st.lists(USUAL_MS, min_size=1, max_size=CANARIES_MAX), st.integers(0), st.integers(0))
def test_it_grows_with_what_they_took(took_ms: list[int], place: int, more_ms: int) -> None:
    later = list(took_ms)
    later[place % len(later)] += more_ms
    assert heard(later).s >= heard(took_ms).s


@given(
    st.lists(USUAL_MS, min_size=CANARIES_MAX, max_size=CANARIES_MAX),
    st.lists(TOOK_MS, max_size=int((1 - PART) * CANARIES_MAX)),
)
def test_a_few_that_came_late_change_little(took_ms: list[int], odd_ms: list[int]) -> None:
    usual_ms = min(max(FACTOR * max(took_ms), GAP_WAIT_MS_MIN), GAP_WAIT_MS_MAX)
    assert heard(took_ms + odd_ms).s <= usual_ms / 1000


@given(st.lists(TOOK_MS), st.lists(USUAL_MS, min_size=CANARIES_MAX, max_size=CANARIES_MAX))
def test_what_was_long_ago_is_forgotten(before_ms: list[int], took_ms: list[int]) -> None:
    assert heard(before_ms + took_ms).s == heard(took_ms).s


@pytest.mark.parametrize(
    "took_ms, wait_ms",
    [([300], 450), ([300] * 18 + [9000, 9000], 450), ([300] * 17 + [900] * 3, 1350), ([40], 200)],
)
def test_examples(took_ms: list[int], wait_ms: int) -> None:
    assert heard(took_ms).s == wait_ms / 1000
