"""Work that runs beside other work, for as long as that takes, or for many things, so many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["beside", "each", "each_to_its_end"]

T = TypeVar("T")
R = TypeVar("R")


@asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """`work` runs for the time of the context, and is given up at its end."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def each(at_once: int, items: Sequence[T], work: Callable[[T], Awaitable[R]]) -> list[R]:
    """`work` of every item, in order, `at_once` of them at a time. The first error ends all of it."""
    results: dict[int, R] = {}
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for index, item in waiting:
            results[index] = await work(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(items))]


async def each_to_its_end(
    at_once: int, items: Sequence[T], work: Callable[[T], Awaitable[object]]
) -> list[Exception]:
    """`work` of every item, whatever becomes of the others, `at_once` of them at a time. The errors."""
    failures: list[Exception] = []

    async def to_its_end(item: T) -> None:
        try:
            await work(item)
        except Exception as error:  # noqa: BLE001  # whoever asked decides
            failures.append(error)

    await each(at_once, items, to_its_end)
    return failures
