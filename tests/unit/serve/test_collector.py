"""The garbage collector: what a client or a back end has decoded does not set it going."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator

import orjson
import pytest

from roomcast.config import Config
from roomcast.config.options import MESSAGE_SIZE_LIMIT_MAX
from roomcast.gateway.api.methods import CONTAINERS_MAX
from roomcast.serve.collector import OBJECTS_MIN, look_seldom
from roomcast.serve.serve import serve
from roomcast.wire.commands import Bounds, PublishRequest, decode_command


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """The generation of each collection, as they come."""
    generations: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            generations.append(info["generation"])

    gc.collect()
    gc.callbacks.append(note)
    yield generations
    gc.callbacks.remove(note)


def test_the_largest_command_and_request_are_gone_before_anything_is_collected(
    collections: list[int],
) -> None:
    look_seldom()
    head, tail = b'{"id":1,"publish":{"channel":"c","data":[', b"]}}"
    arrays = b",".join([b"[]"] * ((MESSAGE_SIZE_LIMIT_MAX - len(head + tail)) // 3))
    body = b"[" + b",".join([b"[]"] * (CONTAINERS_MAX - 1)) + b"]"
    for _ in range(10):
        command = decode_command(head + arrays + tail, Bounds(MESSAGE_SIZE_LIMIT_MAX, 1))
        assert isinstance(command.request, PublishRequest)
        del command
        assert len(orjson.loads(body)) == CONTAINERS_MAX - 1
    assert collections == []


def test_a_server_begins_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Before all else: this one finds its address taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code = asyncio.run(
            serve(
                Config(),
                host="127.0.0.1",
                port=taken.getsockname()[1],
                demo_urls=None,
                exit_on_stdin_close=False,
            )
        )
    assert code == 1
    assert "cannot listen" in capsys.readouterr().err
    assert gc.get_threshold()[0] == OBJECTS_MIN
