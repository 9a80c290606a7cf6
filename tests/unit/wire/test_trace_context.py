"""W3C trace contexts: their grammar, what others may write, and the stages of a trail."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.wire.trace_context import (
    BY_EXPRESS,
    BY_STREAM,
    TRACEPARENT_CHARS_MAX,
    TRAIL_MS_MAX,
    TraceContext,
    Trail,
    parse_traceparent,
    stages,
)

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
SPAN: Final = "b7ad6b7169203331"
CONTEXT: Final = TraceContext(TRACE, SPAN)
HEX: Final = "0123456789abcdef"
NOW: Final = 1_700_000_000_000


def hex_of(digits: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=digits, max_size=digits)


contexts = st.builds(
    TraceContext,
    hex_of(32).filter(lambda text: set(text) != {"0"}),
    hex_of(16).filter(lambda text: set(text) != {"0"}),
    st.booleans(),
)


def test_the_example_of_the_recommendation_is_read_and_written() -> None:
    text = f"00-{TRACE}-{SPAN}-01"
    assert parse_traceparent(text) == CONTEXT
    assert CONTEXT.traceparent() == text
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00") == TraceContext(TRACE, SPAN, sampled=False)


@given(contexts)
def test_what_is_written_is_read_again_and_has_55_characters(context: TraceContext) -> None:
    text = context.traceparent()
    assert len(text) == 55
    assert parse_traceparent(text) == context


@given(contexts, hex_of(2), hex_of(2), st.none() | st.text(max_size=300))
def test_later_versions_may_say_more_and_this_one_may_not(
    context: TraceContext, version: str, flags: str, more: str | None
) -> None:
    text = f"{version}-{context.trace_id}-{context.span_id}-{flags}"
    text += "" if more is None else f"-{more}"
    found = parse_traceparent(text)
    may_have_more = version != "00" and re.fullmatch("[ -~]*", more or "") is not None
    if version == "ff" or len(text) > TRACEPARENT_CHARS_MAX or not (more is None or may_have_more):
        assert found is None
    else:
        sampled = int(flags, 16) % 2 == 1
        assert found == TraceContext(context.trace_id, context.span_id, sampled)


# Near the grammar, so that some of it is nearly right.
@given(st.lists(st.sampled_from([*HEX, "-", "A", "\n", "é", "00", TRACE, SPAN]), max_size=40))
def test_any_text_is_a_context_of_the_grammar_or_none(parts: list[str]) -> None:
    text = "".join(parts)
    found = parse_traceparent(text)
    if found is None:
        return
    assert re.match("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-|$)", text)
    assert parse_traceparent(found.traceparent()) == found
    assert text[3:52] == f"{found.trace_id}-{found.span_id}"


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        b"00",
        {},
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'١' * 32}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-" + "x" * 300,
        f"01-{TRACE}-{SPAN}-01x",
    ],
)
def test_what_has_another_grammar_is_no_context(text: Any) -> None:
    assert parse_traceparent(text) is None


def trail(appended: int = 0, at: int = 0, queued: int = 0, by: str = BY_STREAM) -> Trail:
    return Trail(CONTEXT, by, appended, at, queued, NOW)


def test_the_stages_of_a_record_follow_each_other() -> None:
    assert stages(trail(NOW - 500, NOW - 300, NOW - 100)) == [
        ("stream", NOW - 500, NOW - 300),
        ("lambda", NOW - 300, NOW - 100),
        ("queue", NOW - 100, NOW),
    ]
    assert stages(trail(NOW - 90, 0, NOW - 30, BY_EXPRESS)) == [
        ("express", NOW - 90, NOW - 30),
        ("queue", NOW - 30, NOW),
    ]
    assert stages(trail(queued=NOW - 30)) == [("queue", NOW - 30, NOW)]
    assert stages(trail()) == []


def test_clocks_that_differ_make_no_stage_that_ends_before_it_begins() -> None:
    assert stages(trail(NOW - 100, NOW - 200, NOW + 5)) == [
        ("stream", NOW - 100, NOW - 100),
        ("lambda", NOW - 100, NOW),
    ]


@given(*(st.integers(0, 2**53 - 1) | st.integers(NOW - 10, NOW + 10) for _ in range(3)))
def test_times_that_others_made_up_are_not_believed(appended: int, at: int, queued: int) -> None:
    last = 0
    for name, begin, end in stages(trail(appended, at, queued)):
        assert name in ("stream", "lambda", "queue")
        assert NOW - TRAIL_MS_MAX <= begin <= end <= NOW
        assert last in (0, begin)
        last = end
    assert last in (0, NOW)
