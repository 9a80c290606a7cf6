"""boto3's clients as if they were aioboto3's: each call runs in a thread, and is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["ThreadedClient"]


class ThreadedClient:
    """The operations of a boto3 client, which may be used by several threads at once.

    A call that is cancelled goes on in its thread until the client's own time-outs end it: it may
    have happened.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        operation = getattr(self._client, name)

        async def call(**parameters: Any) -> Any:
            return await asyncio.to_thread(operation, **parameters)

        return call
