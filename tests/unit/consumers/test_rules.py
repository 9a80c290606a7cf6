"""service/roomcast/consumers/rules.py: what comes again and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.consumers.messages import QueueMessage
from roomcast.consumers.rules import (
    AGAIN_S_MAX,
    REASONS,
    again_s,
    failure_among,
    failure_of,
    is_too_old,
    lines_of,
)
from roomcast.log.idempotency import (
    COMMIT_WITHIN_MS,
    KEY_LIFE_MS,
    RETRY_WITHIN_MS,
)
from roomcast.log.rules import MARGIN_MS
from roomcast.wire.codes import Error


def message(id_: str, group: str = "") -> QueueMessage:
    return QueueMessage(id_, "", {}, f"receipt of {id_}", 1, 1_000, 1, group)


def test_what_may_succeed_another_time_comes_again() -> None:
    again = {error for error in Error if failure_of(error, "").again}
    assert again == {Error.INTERNAL, Error.REFUSED, Error.TOO_MANY_REQUESTS}
    assert {failure_of(error, "").reason for error in Error} <= set(REASONS)
    assert failure_of(Error.BAD_REQUEST, "why").why == "why"


def response(error: Error | None) -> dict[str, Any]:
    if error is None:
        return {"result": {}}
    return {"error": {"code": error.value.code, "message": error.value.message}}


@pytest.mark.parametrize(
    "errors, expected",
    [
        ([], None),
        ([None, None], None),
        ([None, Error.UNKNOWN_CHANNEL], ("unknown_channel", False)),
        ([Error.UNKNOWN_CHANNEL, Error.INTERNAL, None], ("internal", True)),
        ([Error.TOO_MANY_REQUESTS, Error.BAD_REQUEST], ("too_many_requests", True)),
    ],
)
def test_a_broadcast_fails_as_the_channel_that_may_yet_succeed(
    errors: list[Error | None], expected: tuple[str, bool] | None
) -> None:
    failure = failure_among([response(error) for error in errors])
    assert (failure and (failure.reason, failure.again)) == expected


def test_pauses_grow_and_have_a_bound() -> None:
    assert [again_s(receives, 0.999) for receives in (0, 1, 2, 3)] == [5, 5, 10, 20]
    assert again_s(1, 0.0) == 2
    assert again_s(10_000, 0.999) == AGAIN_S_MAX


def test_no_attempt_outlives_the_key_of_the_first() -> None:
    first_ms = message("a").first_received_ms
    last_ms = first_ms + RETRY_WITHIN_MS
    assert not is_too_old(message("a"), last_ms)
    assert is_too_old(message("a"), last_ms + 1)
    # Its append is sent within that time, by a clock that may differ.
    assert last_ms + COMMIT_WITHIN_MS + MARGIN_MS < first_ms + KEY_LIFE_MS


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "a", "b"])), max_size=10))
def test_lines_keep_the_order_of_groups(found: list[tuple[int, str]]) -> None:
    messages = [message(str(number), group) for number, group in found]
    lines = lines_of(messages)
    assert sorted(map(id, messages)) == sorted(id(each) for line in lines for each in line)
    for line in lines:
        assert len({each.group for each in line}) == 1
        assert line[0].group or len({each.id for each in line}) == 1
        places = [next(n for n, one in enumerate(messages) if one is each) for each in line]
        assert places == sorted(places)
    groups = [line[0].group for line in lines if line[0].group]
    assert len(groups) == len(set(groups))
