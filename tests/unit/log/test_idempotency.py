"""Keys, key items, and how long they count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.log.idempotency import (
    COMMIT_WITHIN_MS,
    KEY_LIFE_MS,
    RETRY_WITHIN_MS,
    UNREAD_WITHIN_MS,
    KeyItem,
    key_items,
    parse_key_item,
    stored_key,
)
from roomcast.log.item import OFFSET_MAX, MalformedItem
from roomcast.log.rules import MARGIN_MS
from roomcast.wire.keys import KEY_CHARS_MAX, is_valid_key
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import StreamPosition
from tests.contract.items import log_item

KEY = KeyItem(key="room\nk", epoch="e", offset=7, batch="b", expires_at=9)
NAMES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=KEY_CHARS_MAX
)


@pytest.mark.parametrize(
    "key", ["k", "~", " ", "x" * KEY_CHARS_MAX, "6f1c2a5e-8c1d-4d2f-9d1a-0c5f3f1b7a10"]
)
def test_what_a_client_may_choose(key: str) -> None:
    assert is_valid_key(key)


@pytest.mark.parametrize(
    "key", ["", "x" * (KEY_CHARS_MAX + 1), "a\nb", "\x00", "\x7f", "ä", "\u2028"]
)
def test_what_it_may_not(key: str) -> None:
    assert not is_valid_key(key)


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_no_two_channels_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    for channel, key in (one, other):
        assert is_valid_name(channel)
        assert is_valid_key(key)
    assert (stored_key(*one) == stored_key(*other)) == (one == other)


def test_a_key_remembers_where_its_publication_is() -> None:
    item = replace(log_item(7, 9, batch="b"), ts=1_700_000_000_999)
    expires_at = 1_700_000_000 + 24 * 3600
    first, last = key_items(item, ["k", None, "l"])
    assert first == KeyItem("room\nk", item.epoch, 7, "b", expires_at)
    assert last == KeyItem("room\nl", item.epoch, 9, "b", expires_at)
    assert last.position == StreamPosition(item.epoch, 9)


@given(st.builds(KeyItem, NAMES, NAMES, st.integers(1, OFFSET_MAX), st.text(), st.integers(0)))
def test_a_key_item_is_read_as_it_was_written(key: KeyItem) -> None:
    assert parse_key_item(key.attributes()) == key
    assert parse_key_item({**key.attributes(), "new": {"S": "in a later release"}}) == key


@pytest.mark.parametrize("name", ["key", "epoch", "offset", "batch", "expires_at"])
def test_a_key_item_without_an_attribute_is_malformed(name: str) -> None:
    attributes = {other: value for other, value in KEY.attributes().items() if other != name}
    for broken in (attributes, {**attributes, name: {"B": "x"}}):
        with pytest.raises(MalformedItem):
            parse_key_item(broken)


@pytest.mark.parametrize(
    "change",
    [
        {"key": {"S": ""}},
        {"epoch": {"S": ""}},
        {"offset": {"N": "0"}},
        {"offset": {"N": "many"}},
        {"offset": {"N": str(OFFSET_MAX + 1)}},
    ],
    ids=str,
)
def test_values_out_of_range_are_malformed(change: dict[str, dict[str, str]]) -> None:
    with pytest.raises(MalformedItem):
        parse_key_item({**KEY.attributes(), **change})


def test_no_attempt_outlives_the_key_of_the_first_one() -> None:
    """The first attempt is at 0 by a clock that is slow, the last one by one that is fast."""
    first_key_expires = -MARGIN_MS / 2 + KEY_LIFE_MS
    last_is_sent_until = RETRY_WITHIN_MS + UNREAD_WITHIN_MS + COMMIT_WITHIN_MS + MARGIN_MS / 2
    assert last_is_sent_until <= first_key_expires
