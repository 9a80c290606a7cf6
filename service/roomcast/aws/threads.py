"""Makes a boto3 client awaitable: each call runs in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

__all__ = ["THREADS", "ThreadedClient"]

# Calls at once, of all clients.
THREADS: Final = 16
# Not the event loop's own, which waits for its threads at the end, however long they hang.
_threads: Final = ThreadPoolExecutor(THREADS, "aws")


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
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_threads, partial(operation, **parameters))

        return call
