"""What a node may send to SNS: within the fleet's share, whatever comes when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.allowance import (
    BURST_S,
    PER_S_MIN,
    THROTTLED_S,
    Allowance,
    nodes_assumed,
)

FLEET_PER_S = st.floats(1, 30_000)
NODES = st.integers(1, 500)
PAUSES_S = st.lists(st.floats(0, 5), min_size=1, max_size=60)


def of(fleet_per_s: float, nodes: int) -> Allowance:
    allowance = Allowance(fleet_per_s)
    allowance.share(nodes)
    return allowance


@given(FLEET_PER_S, NODES, PAUSES_S)
def test_a_node_stays_within_its_part(
    fleet_per_s: float, nodes: int, pauses_s: list[float]
) -> None:
    allowance, now_s, sent = of(fleet_per_s, nodes), 0.0, 0
    part = max(PER_S_MIN, fleet_per_s / nodes)
    for pause_s in pauses_s:
        while allowance.wait_s(now_s) == 0 and sent < 10_000:
            allowance.take(now_s)
            sent += 1
        now_s += pause_s
    assert sent <= max(2.0, part * BURST_S) + part * sum(pauses_s[:-1]) + 1e-6


@given(FLEET_PER_S, st.lists(NODES, min_size=1), PAUSES_S)
def test_all_nodes_stay_within_the_share_however_many_there_are(
    fleet_per_s: float, counts: list[int], pauses_s: list[float]
) -> None:
    """Of as many nodes as are counted, each that sends all it may."""
    allowance = Allowance(fleet_per_s)
    for nodes in counts:
        allowance.share(nodes)
        assert allowance.per_s * nodes <= max(fleet_per_s, nodes * PER_S_MIN) * (1 + 1e-9)


@given(FLEET_PER_S, NODES, st.floats(0, 100))
def test_a_signal_may_go_within_a_second_when_nothing_else_does(
    fleet_per_s: float, nodes: int, now_s: float
) -> None:
    allowance = of(fleet_per_s, nodes)
    for _ in range(3):
        wait_s = allowance.wait_s(now_s)
        assert 0 <= wait_s <= 1 / PER_S_MIN
        now_s += wait_s + 1e-6
        allowance.take(now_s)


@given(FLEET_PER_S, NODES, st.integers(0, 1000))
def test_hints_leave_room_for_signals(fleet_per_s: float, nodes: int, hints: int) -> None:
    allowance, now_s = of(fleet_per_s, nodes), 1.0
    for _ in range(hints):
        if allowance.hint_wait_s(now_s) == 0:
            allowance.take(now_s)
    assert allowance.wait_s(now_s) == 0


@given(FLEET_PER_S, NODES)
def test_a_hint_may_go_when_no_signal_does(fleet_per_s: float, nodes: int) -> None:
    allowance = of(fleet_per_s, nodes)
    assert allowance.hint_wait_s(1.0) == 0
    while allowance.wait_s(1.0) == 0 and allowance.per_s < 1000:
        allowance.take(1.0)
    assert allowance.hint_wait_s(4.0) == 0


def test_before_the_nodes_are_counted_little_goes() -> None:
    allowance = Allowance(150.0)
    assert (allowance.per_s, allowance.nodes) == (PER_S_MIN, None)
    for _ in range(2):
        assert allowance.wait_s(1.0) == 0
        allowance.take(1.0)
    assert allowance.wait_s(1.0) == 1.0
    allowance.share(3)
    assert (allowance.per_s, allowance.nodes) == (50.0, 3)
    assert allowance.wait_s(1.0) == 0, "it begins with all that may go at once"


def test_more_nodes_leave_less_at_once() -> None:
    allowance = of(150.0, 1)
    assert allowance.wait_s(1.0) == 0
    allowance.share(75)
    for _ in range(2):
        assert allowance.wait_s(1.5) == 0
        allowance.take(1.5)
    assert allowance.wait_s(1.5) == 0.5


def test_who_is_throttled_waits() -> None:
    allowance = of(150.0, 1)
    allowance.throttled(10.0)
    assert allowance.wait_s(10.0) == allowance.hint_wait_s(10.0) == THROTTLED_S
    assert allowance.wait_s(10.0 + THROTTLED_S) == 0


@given(st.one_of(st.none(), NODES), NODES)
def test_the_number_to_go_by_is_never_too_small(before: int | None, counted: int) -> None:
    assumed = nodes_assumed(before, counted)
    assert assumed >= counted
    if before is None or counted >= before:
        assert assumed == counted
    else:
        assert assumed <= before
        assert 2 * assumed >= before, "the rate at most doubles"


@given(NODES, NODES)
def test_it_gets_to_what_is_counted_soon(before: int, counted: int) -> None:
    assumed = before
    for _ in range(10):
        assumed = nodes_assumed(assumed, counted)
    assert assumed == counted


@pytest.mark.parametrize("counted", [0, -1])
def test_there_is_one_node_at_least(counted: int) -> None:
    assert nodes_assumed(None, counted) == 1
