"""The lines of an export: what is in them, where a file of them ends, and the keys of a replay."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.cli.export_lines import (
    LINE_BYTES_MAX,
    Ending,
    Line,
    NoLine,
    ending,
    key_of,
    line_of,
    read_line,
)
from roomcast.wire.keys import is_valid_key

VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@given(VALUES, st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), min_size=1))
def test_a_line_is_read_as_it_was_made(data: Any, tags: dict[str, str] | None) -> None:
    publication = {"data": data, "offset": 7, "time": 5, "info": {"user": "ann", "client": "c"}}
    content = {"data": data}
    if tags is not None:
        publication["tags"] = content["tags"] = tags
    text = line_of("news", "0.e", publication)
    assert text.endswith("}\n")
    assert text[:-1].isprintable()
    assert json.loads(text) == {"channel": "news", "epoch": "0.e", **publication}
    assert read_line(text.encode()) == Line("news", "0.e", 7, content)


def test_bytes_stay_bytes() -> None:
    text = line_of("news", "0.e", {"data": None, "b64data": "AAE=", "offset": 1})
    assert read_line(text.encode()).content == {"b64data": "AAE="}


@given(st.lists(VALUES, max_size=5), st.data())
def test_a_file_that_was_cut_anywhere_is_gone_on_with(
    values: list[Any], data: st.DataObject
) -> None:
    lines = [
        line_of("news", "e", {"data": value, "offset": offset}).encode()
        for offset, value in enumerate(values, 1)
    ]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    found = ending(whole[:cut])
    kept = whole[: cut - found.torn]
    after = 0 if found.last is None else found.last.offset
    assert kept + b"".join(lines[after:]) == whole
    assert found.torn < max(map(len, lines), default=1)


@pytest.mark.parametrize(
    "tail",
    [
        b"something else",
        b"something else\n",
        b"\n",
        b'{"channel":"a","epoch":"e","offset":1,"data":1}\nsomething else',
        b'{"channel":"a","epoch":"e","offset":1,"data":1}\n\n',
        b'{"channel":"a","epoch":"e","offset":1,"data":1}\n\0\0\0',
        b'{"channel":' + b" " * LINE_BYTES_MAX,
    ],
)
def test_what_is_no_export_is_left_as_it_is(tail: bytes) -> None:
    with pytest.raises(NoLine):
        ending(tail)


def test_a_file_without_a_line() -> None:
    assert ending(b"") == Ending(0, None)
    assert ending(b'{"cha') == Ending(5, None)


@pytest.mark.parametrize(
    "text, why",
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a":NaN}', "is no JSON"),
        (b"[]", "of no export"),
        (b'{"channel":"a","epoch":"e","data":1}', "of no export"),
        (b'{"channel":"a","epoch":"e","offset":0,"data":1}', "of no export"),
        (b'{"channel":"a","epoch":"e","offset":true,"data":1}', "of no export"),
        (b'{"channel":"a","epoch":"e","offset":1.0,"data":1}', "of no export"),
        (b'{"channel":1,"epoch":"e","offset":1,"data":1}', "of no export"),
        (b'{"channel":"a","epoch":"e","offset":1}', "has no data"),
        (b'{"channel":"a","epoch":"e","offset":1,"data":1,"b64data":"MQ=="}', "has no data"),
    ],
)
def test_what_is_no_line(text: bytes, why: str) -> None:
    with pytest.raises(NoLine, match=why):
        read_line(text)


@given(st.text(max_size=255), st.text(max_size=40), st.integers(1, 2**53 - 1))
def test_a_key_is_one_of_its_place(channel: str, epoch: str, offset: int) -> None:
    key = key_of(Line(channel, epoch, offset, {"data": 1}))
    assert is_valid_key(key)
    assert key == key_of(Line(channel, epoch, offset, {"data": 2}))
    others = [(channel + "x", epoch, offset), (channel, epoch + "x", offset)]
    others.append((channel, epoch, offset % (2**53 - 1) + 1))
    assert key not in {key_of(Line(*other, {"data": 1})) for other in others}
