"""service/roomcast/wire/emulation.py: requests to /emulation."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.wire.emulation import (
    Emulated,
    MalformedEmulation,
    emulated_json,
    emulated_protobuf,
)
from roomcast.wire.protobuf_schema import message_class

TEXT = st.text(max_size=20)


@given(TEXT, TEXT, TEXT)
def test_what_an_sdk_posts_in_json(node: str, session: str, data: str) -> None:
    body = orjson.dumps({"session": session, "node": node, "data": data})
    assert emulated_json(body) == Emulated(node, session, data.encode())


@given(TEXT, TEXT, st.binary(max_size=40))
def test_what_an_sdk_posts_in_protobuf(node: str, session: str, data: bytes) -> None:
    message: Any = message_class("EmulationRequest")(node=node, session=session, data=data)
    assert emulated_protobuf(message.SerializeToString()) == Emulated(node, session, data)


def test_the_fields_have_their_numbers() -> None:
    """Those of client.proto of Centrifuge: node 1, session 2, data 3."""
    assert emulated_protobuf(b"\x0a\x01n\x12\x01s\x1a\x01d") == Emulated("n", "s", b"d")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"session":"s","node":"n"}',
        b'{"session":"s","node":"n","data":{}}',
        b'{"session":1,"node":"n","data":""}',
        b'{"session":"s","node":null,"data":""}',
        b'{"session":"s","node":"n","data":"\\ud800"}',
        b"\xff",
    ],
)
def test_what_no_sdk_posts(body: bytes) -> None:
    with pytest.raises(MalformedEmulation):
        emulated_json(body)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (emulated_json, emulated_protobuf):
        try:
            read(body)
        except MalformedEmulation:
            continue


@given(st.text('"\\{[,:} a\n', max_size=200))
def test_what_looks_like_json_within_a_string_is_none(data: str) -> None:
    body = orjson.dumps({"session": "s", "node": "n", "data": data, "more": True})
    assert emulated_json(body).frame == data.encode()


@pytest.mark.parametrize(
    "more",
    [
        b"[" + b"[]," * 60_000 + b"[]]",
        b"[" + b"0," * 60_000 + b"0]",
        b"[" + rb'"\\",' * 60_000 + b'""]',
        b"{" + b",".join(b'"%d":0' % number for number in range(40_000)) + b"}",
        b"[" * 1000 + b"]" * 1000,
        b" " * 60_000 + b"0",
    ],
    ids=["arrays", "numbers", "strings", "names", "depth", "spaces"],
)
def test_nothing_is_decoded_that_takes_long(more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orjson, "loads", pytest.fail)
    for body in (more, b'{"session":"s","node":"n","data":"d","more":' + more + b"}"):
        with pytest.raises(MalformedEmulation):
            emulated_json(body)
