"""The canary's rules: slots, what silence means, and how long a canary took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.canary import (
    CANARY_CHANNEL,
    MISSED_SLOTS,
    Greeting,
    Hearing,
    Latency,
    Vigil,
    canary_item,
    latency,
    slot_at,
)
from service.core.channels import is_valid_name
from service.core.envelope import checked_pubs
from service.core.publication import Record


def test_no_client_can_name_the_channel() -> None:
    assert not is_valid_name(CANARY_CHANNEL)


@given(st.integers(1, 2**42), st.integers(1000, 3_600_000))
def test_a_slot_has_one_key(now_ms: int, interval_ms: int) -> None:
    slot = slot_at(now_ms, interval_ms)
    assert slot * interval_ms <= now_ms < (slot + 1) * interval_ms


def test_the_item_is_what_the_lambda_broadcasts() -> None:
    item = canary_item(7, node="a", batch="b", now=1000, generation="0")
    assert (item.offset, item.last, item.ts) == (7, 7, 1000)
    assert checked_pubs(item) == '[{"data":{}}]'


def test_silence_is_noticed_after_its_bound() -> None:
    vigil = Vigil(interval_s=10, now_s=0)
    assert vigil.hear(5, 3.0)
    assert not vigil.is_overdue(3.0 + 10 * MISSED_SLOTS)
    assert vigil.is_overdue(3.1 + 10 * MISSED_SLOTS)
    assert vigil.silence_s(13.0) == 10.0


def test_repeats_and_stragglers_are_not_news() -> None:
    vigil = Vigil(interval_s=10, now_s=0)
    assert vigil.hear(5, 1.0)
    assert not vigil.hear(5, 90.0)
    assert not vigil.hear(4, 90.0)
    assert vigil.slot == 5
    assert vigil.is_overdue(90.0)


@pytest.mark.parametrize(
    "greeting, newest_elsewhere, hearing",
    [
        (Greeting.HEARD, 0, Hearing.SILENT),
        (Greeting.HEARD, 9, Hearing.SILENT),
        (Greeting.NOT_HEARD, 0, Hearing.SILENT),
        (Greeting.NOT_SENT, 5, Hearing.SILENT),
        (Greeting.NOT_HEARD, 6, Hearing.DEAF),
    ],
)
def test_what_silence_means(greeting: Greeting, newest_elsewhere: int, hearing: Hearing) -> None:
    vigil = Vigil(interval_s=10, now_s=0)
    vigil.hear(5, 0.0)
    assert vigil.judge(greeting=greeting, newest_elsewhere=newest_elsewhere) is hearing


def test_latency_of_each_leg() -> None:
    record = Record(CANARY_CHANNEL, "0.canary", 7, 7, 1000, None)
    assert latency(record, 1200, 1250) == Latency(to_lambda_ms=200, to_node_ms=50)
    assert latency(record, 0, 1250) == Latency(to_lambda_ms=250, to_node_ms=0)
