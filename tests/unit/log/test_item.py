"""service/roomcast/log/item.py: items as DynamoDB spells them, there and back,
and what is not one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.log.item import (
    HEAD_OFFSET,
    ITEM_PUBLICATIONS_MAX,
    OFFSET_MAX,
    Head,
    LogItem,
    MalformedItem,
    parse_head,
    parse_item,
    parse_log_item,
)
from roomcast.wire.trace_context import TraceContext

TEXT = st.text(max_size=8)
TIMES = st.integers(0, 2**53)
EPOCHS = st.text(min_size=1, max_size=8)
TRACE = TraceContext("a" * 32, "b" * 16)
TRACES = st.none() | st.just(TRACE)


@st.composite
def log_items(draw: st.DrawFn) -> LogItem:
    offset = draw(st.integers(1, OFFSET_MAX))
    last = draw(st.integers(offset, min(OFFSET_MAX, offset + ITEM_PUBLICATIONS_MAX - 1)))
    return LogItem(
        channel=draw(TEXT),
        offset=offset,
        last=last,
        epoch=draw(EPOCHS),
        pubs=draw(TEXT),
        batch=draw(TEXT),
        node=draw(TEXT),
        ts=draw(TIMES),
        expires_at=draw(TIMES),
        trace=draw(TRACES),
    )


@st.composite
def heads(draw: st.DrawFn) -> Head:
    floor = draw(st.integers(0, OFFSET_MAX))
    return Head(
        channel=draw(TEXT),
        epoch=draw(EPOCHS),
        floor=floor,
        tail_valid_until=draw(TIMES),
        trim=draw(st.integers(0, floor)),
        version=draw(TEXT),
        expires_at=draw(TIMES),
    )


HEADS = heads()
ITEM = LogItem("c", 4, 5, "e", "[]", "b", "n", 6, 7)
HEAD = Head("c", "e", 3, 4, 2, "v", 6)


@given(log_items() | HEADS)
def test_items_come_back_as_they_were_written(item: LogItem | Head) -> None:
    assert parse_item(item.attributes()) == item


@given(log_items() | HEADS)
def test_attributes_are_what_dynamodb_takes(item: LogItem | Head) -> None:
    for value in item.attributes().values():
        ((kind, text),) = value.items()
        assert kind in ("S", "N")
        assert isinstance(text, str)
        assert kind == "S" or int(text) >= 0


@given(HEADS)
def test_a_head_is_at_offset_zero(head: Head) -> None:
    assert head.attributes()["offset"] == {"N": str(HEAD_OFFSET)}


@pytest.mark.parametrize(
    "name", ["channel", "offset", "last", "epoch", "pubs", "batch", "expires_at"]
)
def test_a_log_item_needs_what_is_acted_on(name: str) -> None:
    attributes = ITEM.attributes()
    del attributes[name]
    with pytest.raises(MalformedItem):
        parse_item(attributes)


@pytest.mark.parametrize(
    "name", ["channel", "epoch", "floor", "believe_until", "version", "expires_at"]
)
def test_a_head_needs_what_is_acted_on(name: str) -> None:
    attributes = HEAD.attributes()
    del attributes[name]
    with pytest.raises(MalformedItem):
        parse_item(attributes)


def test_what_only_informs_may_be_absent() -> None:
    attributes = ITEM.attributes()
    del attributes["node"], attributes["ts"]
    assert parse_log_item(attributes) == LogItem("c", 4, 5, "e", "[]", "b", "", 0, 7)
    head = HEAD.attributes()
    del head["trim"]
    assert parse_head(head) == Head("c", "e", 3, 4, 0, "v", 6)


def test_the_trace_of_an_append_is_55_characters_of_its_item() -> None:
    traced = replace(ITEM, trace=TRACE)
    assert traced.attributes() == ITEM.attributes() | {"trace": {"S": TRACE.traceparent()}}
    assert "trace" not in ITEM.attributes(), "what is not traced pays nothing"


@pytest.mark.parametrize(
    "trace",
    [
        {"S": ""},
        {"S": "not a trace"},
        {"S": "x" * 300_000},
        {"S": f"00-{'0' * 32}-{'b' * 16}-01"},
        # Nobody records it.
        {"S": f"00-{'a' * 32}-{'b' * 16}-00"},
        {"N": "1"},
        {"NULL": True},
        {"M": {"S": {"S": "x"}}},
        {},
    ],
)
def test_a_trace_that_is_none_takes_nothing_from_its_item(trace: Mapping[str, Any]) -> None:
    assert parse_log_item(ITEM.attributes() | {"trace": trace}) == ITEM


def test_a_head_hides_nothing_beyond_its_floor() -> None:
    """A forged one would hide what is published from then on, and each head after it as well."""
    forged = HEAD.attributes() | {"trim": {"N": str(OFFSET_MAX)}}
    assert parse_head(forged).trim == HEAD.floor


@pytest.mark.parametrize(
    "changed",
    [
        {"epoch": {"S": ""}},
        {"epoch": {"N": "1"}},
        {"pubs": {"L": []}},
        {"offset": {"N": "-1"}},
        {"offset": {"N": "6"}},
        {"offset": {"N": "1.5"}},
        {"offset": {"N": "one"}},
        {"offset": {"S": "4"}},
        {"last": {"N": "3"}},
        {"last": {"N": str(4 + ITEM_PUBLICATIONS_MAX)}},
        {"offset": {"N": str(OFFSET_MAX)}, "last": {"N": str(OFFSET_MAX + 1)}},
        {"expires_at": {"NULL": True}},
    ],
    ids=str,
)
def test_damaged_log_items(changed: dict[str, Any]) -> None:
    with pytest.raises(MalformedItem):
        parse_item({**ITEM.attributes(), **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"epoch": {"S": ""}},
        {"floor": {"N": "-1"}},
        {"floor": {"N": str(OFFSET_MAX + 1)}},
        {"version": {"N": "1"}},
        {"believe_until": {"S": "4"}},
    ],
    ids=str,
)
def test_damaged_heads(changed: dict[str, Any]) -> None:
    with pytest.raises(MalformedItem):
        parse_item({**HEAD.attributes(), **changed})


VALUES = (
    st.fixed_dictionaries({"S": TEXT})
    | st.fixed_dictionaries(
        {"N": st.integers(-5, 600).map(str) | st.sampled_from(["", "1e3", "x"])}
    )
    | st.sampled_from([{"NULL": True}, {"BOOL": False}, {"L": []}, {"M": {}}, {}])
)


@given(st.dictionaries(st.sampled_from(sorted({*ITEM.attributes(), *HEAD.attributes()})), VALUES))
def test_somebody_elses_item_is_malformed_at_worst(attributes: dict[str, Any]) -> None:
    try:
        item = parse_item(attributes)
    except MalformedItem:
        return
    assert parse_item(item.attributes()) == item


def test_a_log_item_is_bounded() -> None:
    most = ITEM_PUBLICATIONS_MAX
    LogItem("c", 1, most, "e", "[]", "b", "n", 0, 0)
    with pytest.raises(AssertionError, match="I7"):
        LogItem("c", 1, most + 1, "e", "[]", "b", "n", 0, 0)
    with pytest.raises(AssertionError, match="I1"):
        LogItem("c", OFFSET_MAX, OFFSET_MAX + 1, "e", "[]", "b", "n", 0, 0)
    with pytest.raises(AssertionError, match="epoch"):
        LogItem("c", 1, 1, "", "[]", "b", "n", 0, 0)
    with pytest.raises(AssertionError, match="epoch"):
        Head("c", "", 0, 0, 0, "v", 0)
    with pytest.raises(AssertionError, match="floor"):
        Head("c", "e", -1, 0, 0, "v", 0)
