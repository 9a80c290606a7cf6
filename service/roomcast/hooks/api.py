"""The types of an application's hooks, and the registry of the RPC methods that clients may call.

Applications import them, with the events and replies, from `roomcast.hooks`. A hook is an async
function that the section [hooks] of the configuration names. It runs in the server's process, on
its event loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from roomcast.hooks.events import (
    ConnectEvent,
    ConnectReply,
    PublishEvent,
    PublishReply,
    RefreshEvent,
    RefreshReply,
    RpcEvent,
    SubRefreshEvent,
    SubRefreshReply,
    SubscribeEvent,
    SubscribeReply,
)
from roomcast.wire.publication import Json

__all__ = [
    "METHOD_CHARS_MAX",
    "RESERVED_METHODS",
    "ConnectHook",
    "LifeHook",
    "PublishHook",
    "RefreshHook",
    "RpcMethod",
    "RpcMethods",
    "RpcRegistry",
    "SubRefreshHook",
    "SubscribeHook",
    "is_async",
]

# None: no opinion, and the configuration decides.
ConnectHook = Callable[[ConnectEvent], Awaitable[ConnectReply | None]]
SubscribeHook = Callable[[SubscribeEvent], Awaitable[SubscribeReply | None]]
PublishHook = Callable[[PublishEvent], Awaitable[PublishReply | None]]
# None: it does not go on.
RefreshHook = Callable[[RefreshEvent], Awaitable[RefreshReply | None]]
SubRefreshHook = Callable[[SubRefreshEvent], Awaitable[SubRefreshReply | None]]
# Called as the process starts, or as it ends.
LifeHook = Callable[[], Awaitable[None]]
# The returned value is the answer.
RpcMethod = Callable[[RpcEvent], Awaitable[Json]]

_Method = TypeVar("_Method", bound=RpcMethod)

# The prefix of the server's own methods.
RESERVED_METHODS: Final = "roomcast."
METHOD_CHARS_MAX: Final = 255


class RpcMethods(Protocol):
    """Where the methods that clients may call are found."""

    def find(self, name: str) -> RpcMethod | None:
        """What answers the method `name`. None = there is none."""


class RpcRegistry:
    """The methods that clients may call, by name."""

    def __init__(self) -> None:
        self._methods: dict[str, RpcMethod] = {}

    def __len__(self) -> int:
        return len(self._methods)

    def method(self, name: str) -> Callable[[_Method], _Method]:
        """A decorator that registers the function as the method `name`.

        Raises ValueError for an invalid name, TypeError for a function that is not async.
        """
        if not isinstance(name, str) or not 0 < len(name) <= METHOD_CHARS_MAX:
            raise ValueError(f"the name of a method has 1 to {METHOD_CHARS_MAX} characters")
        if name.startswith(RESERVED_METHODS):
            raise ValueError(
                f"methods that begin with {RESERVED_METHODS} are the server's own: {name}"
            )
        if name in self._methods:
            raise ValueError(f"two methods are called {name}")

        def register(function: _Method) -> _Method:
            if not is_async(function):
                raise TypeError(f"the method {name} is not an async function")
            self._methods[name] = function
            return function

        return register

    def find(self, name: str) -> RpcMethod | None:
        """The function of the method `name`. None = there is none."""
        return self._methods.get(name)


def is_async(function: object) -> bool:
    """Whether `function` is an async function, or an object with an async `__call__`."""
    called = getattr(type(function), "__call__", None)  # noqa: B004  # its kind is asked for, not whether it exists
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
