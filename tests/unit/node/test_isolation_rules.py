"""A node alone that is cut off, and an outage for all: never the one for the other."""

from __future__ import annotations

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from roomcast.node.isolation_rules import is_alone

TTL_MS: Final = 60_000
HEARTBEAT_MS: Final = 15_000
FRESH_MS: Final = 75_000


def alone(taken_ms: int, sign_ms: int, now_ms: int) -> bool:
    return is_alone(
        taken_ms=taken_ms, ttl_ms=TTL_MS, sign_ms=sign_ms, fresh_ms=FRESH_MS, now_ms=now_ms
    )


def test_others_write_while_this_node_could_not() -> None:
    assert not alone(0, 59_000, 59_999), "its lease has not ended"
    assert alone(0, 59_000, 60_000)
    assert alone(0, 30_000, 60_000)
    assert not alone(0, 29_999, 60_000), "that may have been before it began"
    assert not alone(0, 0, 60_000), "nothing is known of others"


def test_a_sign_does_not_count_for_ever() -> None:
    assert alone(0, 60_000, 60_000 + FRESH_MS)
    assert not alone(0, 60_000, 60_001 + FRESH_MS), "it may be everybody's trouble by now"


@given(
    outage_ms=st.integers(100_000, 200_000),
    since_beat_ms=st.integers(0, HEARTBEAT_MS),
    others_ms=st.lists(st.integers(0, 60_000), max_size=20),
    heard_late_ms=st.integers(0, 600_000),
    skew_ms=st.integers(-10_000, 10_000),
    looks_ms=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=20),
)
def test_an_outage_for_all_makes_nobody_alone(
    outage_ms: int,
    since_beat_ms: int,
    others_ms: list[int],
    heard_late_ms: int,
    skew_ms: int,
    looks_ms: list[int],
) -> None:
    """Whatever others wrote before it, however late that is heard,
    with clocks that are wrong by seconds.
    """
    taken_ms = outage_ms - since_beat_ms
    for look_ms in looks_ms:
        now_ms = outage_ms + look_ms
        written = [outage_ms - before_ms for before_ms in others_ms]
        heard = [
            min(ms + skew_ms, ms + heard_late_ms) for ms in written if ms + heard_late_ms <= now_ms
        ]
        assert not alone(taken_ms, max(heard, default=0), now_ms)


@given(
    skew_ms=st.integers(-10_000, 10_000),
    beats=st.integers(0, HEARTBEAT_MS),
    look_ms=st.integers(0, 1_000_000),
)
def test_a_node_alone_is_found(skew_ms: int, beats: int, look_ms: int) -> None:
    """By the leases of those who go on beating, within a lease's life."""
    now_ms = 100_000 + TTL_MS + look_ms
    assert alone(100_000, min(now_ms, now_ms - beats + skew_ms), now_ms)
