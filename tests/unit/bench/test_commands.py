"""service/roomcast/bench/commands.py: the server's own codec reads what a client sends."""

from __future__ import annotations

import json

import pytest

from roomcast.bench import commands
from roomcast.wire.commands import (
    ConnectRequest,
    PublishRequest,
    SubscribeRequest,
    decode_command,
    split_frame,
)
from roomcast.wire.publication import StreamPosition
from tests.frames import BOUNDS


def test_the_server_reads_it() -> None:
    frame = commands.lines(
        [
            commands.connect(1, "a.b.c", "0.1"),
            commands.subscribe(2, "news", None),
            commands.subscribe(3, "news", ("e", 7)),
            commands.publish(4, 'a"b', '{"n": 1}'),
        ]
    )
    lines = split_frame(frame)
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 3, 4]
    requests = [decode_command(line, BOUNDS).request for line in lines]
    assert requests == [
        ConnectRequest("a.b.c", name="roomcast bench", version="0.1"),
        SubscribeRequest("news", positioned=True, recoverable=True),
        SubscribeRequest("news", positioned=True, recoverable=True, since=StreamPosition("e", 7)),
        PublishRequest('a"b', {"n": 1}),
    ]


def test_replies() -> None:
    assert list(commands.replies('{"id":1}\n{}\n')) == [{"id": 1}, {}]


@pytest.mark.parametrize("frame", ["", "x", "[]", '{"id":1}\n\n{}'])
def test_what_is_no_reply(frame: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        list(commands.replies(frame))
