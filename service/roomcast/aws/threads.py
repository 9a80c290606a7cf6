"""Makes a boto3 client awaitable: each call runs in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["ThreadedClient"]


class ThreadedClient:
    """The operations of a boto3 client, which several threads may use at once.

    A cancelled call goes on in its thread until the client's own time-outs end it. It may take
    effect.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        operation = getattr(self._client, name)

        async def call(**parameters: Any) -> Any:
            return await asyncio.to_thread(operation, **parameters)

        return call
