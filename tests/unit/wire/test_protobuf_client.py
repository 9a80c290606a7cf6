"""The protocol in Protobuf as `roomcast tail` speaks it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roomcast.wire.commands import ConnectRequest, HistoryRequest, Pong, SubscribeRequest
from roomcast.wire.protobuf import encode_messages
from roomcast.wire.protobuf_client import decode_replies, encode_commands
from roomcast.wire.publication import StreamPosition
from tests.frames import decode_messages


def test_the_server_understands_its_commands() -> None:
    wanted = {"channel": "c", "recover": True, "epoch": "e", "offset": 2**40, "positioned": True}
    history = {"channel": "c", "limit": 100, "since": {"offset": 5, "epoch": "e"}, "reverse": True}
    connect, subscribe, read, pong = decode_messages(
        encode_commands(
            [
                {"id": 1, "connect": {"token": "t", "name": "tail", "data": {"a": 1}}},
                {"id": 2, "subscribe": wanted},
                {"id": 3, "history": history},
                {},
            ]
        )
    )
    since = StreamPosition("e", 2**40)
    assert connect.request == ConnectRequest("t", {"a": 1}, "tail")
    assert subscribe.request == SubscribeRequest("c", since=since, positioned=True)
    assert read.request == HistoryRequest("c", 100, StreamPosition("e", 5), reverse=True)
    assert isinstance(pong.request, Pong)


def test_it_understands_the_servers_replies() -> None:
    info = {"user": "ann", "client": "x", "conn_info": {"a": [1]}}
    said: list[dict[str, Any]] = [
        {
            "id": 1,
            "connect": {"client": "x", "ping": 25, "data": [1], "subs": {"s": {"epoch": "e"}}},
        },
        {"id": 2, "error": {"code": 108, "message": "not available"}},
        {"id": 3, "history": {"publications": [], "epoch": "e", "offset": 5}},
        {},
        {"push": {"channel": "c", "unsubscribe": {"code": 2500, "reason": "lost"}}},
    ]
    published = [
        ({"b64data": "/wA=", "offset": 1, "tags": {"a": "b"}, "info": info}, "/wA="),
        ({"b64data": "", "offset": 2}, ""),
        # What was JSON comes as its text.
        ({"data": {"a": 1}, "offset": 3}, "eyJhIjoxfQ=="),
    ]
    said += [{"push": {"channel": "c", "pub": pub}} for pub, _ in published]
    frame = encode_messages("\n".join(map(json.dumps, said)).encode())
    replies = list(decode_replies(frame))
    assert replies[:2] == said[:2]
    assert replies[2] == {"id": 3, "history": {"epoch": "e", "offset": 5}}
    assert replies[3:5] == said[3:5]
    for reply, (pub, base64) in zip(replies[5:], published, strict=True):
        expected = {name: value for name, value in pub.items() if name != "data"}
        assert reply == {"push": {"channel": "c", "pub": {**expected, "b64data": base64}}}


@pytest.mark.parametrize("frame", [b"\x05\x08", b"\x01\xff", b"", b"\xff" * 20, b"\x03\x12\x01x"])
def test_what_is_no_reply_is_an_error(frame: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of several kinds
        list(decode_replies(frame))
