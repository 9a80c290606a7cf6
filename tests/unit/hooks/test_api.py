"""service/roomcast/hooks/api.py: the registry of the methods that clients may call,
and what counts as an async function.
"""

from __future__ import annotations

from functools import partial

import pytest

from roomcast.hooks import (
    METHOD_CHARS_MAX,
    RESERVED_METHODS,
    Json,
    RpcEvent,
    RpcRegistry,
    is_async,
)
from roomcast.wire.commands import PUBLISH_METHOD


async def answer(event: RpcEvent) -> Json:
    return event.data


def test_a_method_is_found_by_its_name() -> None:
    registry = RpcRegistry()
    assert registry.method("profile.get")(answer) is answer
    assert registry.find("profile.get") is answer
    assert registry.find("profile") is None
    assert len(registry) == 1


def test_our_own_method_is_reserved() -> None:
    assert PUBLISH_METHOD.startswith(RESERVED_METHODS)
    with pytest.raises(ValueError, match=r"the server's own: roomcast\.publish"):
        RpcRegistry().method(PUBLISH_METHOD)


@pytest.mark.parametrize("name", ["", "x" * (METHOD_CHARS_MAX + 1), None, answer])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a method"):
        RpcRegistry().method(name)


def test_two_methods_of_one_name() -> None:
    registry = RpcRegistry()
    registry.method("twice")(answer)
    with pytest.raises(ValueError, match="two methods are called twice"):
        registry.method("twice")


def test_a_method_must_be_async() -> None:
    def plain(event: RpcEvent) -> Json:
        return event.data

    with pytest.raises(TypeError, match="the method slow is not an async function"):
        RpcRegistry().method("slow")(plain)


class Callable:
    async def __call__(self, event: RpcEvent) -> Json:
        return event.data

    async def method(self, event: RpcEvent) -> Json:
        return event.data


def test_what_is_called_asynchronously() -> None:
    assert is_async(answer)
    assert is_async(partial(answer))
    assert is_async(Callable())
    assert is_async(Callable().method)
    assert not is_async(Callable)
    assert not is_async(len)
    assert not is_async(5)
