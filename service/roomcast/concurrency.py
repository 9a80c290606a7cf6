"""Work beside other work: within a context, so many at a time, or one call for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar

__all__ = ["SharedCall", "beside", "each", "each_to_its_end"]

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
    """`work` of every item, whatever becomes of the others, `at_once` of them at a time.

    The errors.
    """
    failures: list[Exception] = []

    async def to_its_end(item: T) -> None:
        try:
            await work(item)
        except Exception as error:  # noqa: BLE001  # whoever asked decides
            failures.append(error)

    await each(at_once, items, to_its_end)
    return failures


class SharedCall(Generic[T]):
    """One call whose result is for all who ask while it is under way, and after its end.

    It begins at once. Whoever is cancelled while waiting takes nothing from the others: the call
    goes on, and its end is told to `ended` even when nobody waits any more. An error is for those
    who wait; if there are none, nobody hears of it.
    """

    __slots__ = ("_ended", "task")

    def __init__(
        self,
        work: Coroutine[None, None, T],
        ended: Callable[[], object] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self._ended = ended
        # For whoever has to cancel the call itself.
        self.task: Final = asyncio.create_task(work, name=name)
        self.task.add_done_callback(self._done)

    @property
    def done(self) -> bool:
        return self.task.done()

    async def result(self) -> T:
        """What the call returns, or raises."""
        return await asyncio.shield(self.task)

    def _done(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            # Retrieved, or the loop would complain of an error that nobody waited for.
            task.exception()
        if self._ended is not None:
            self._ended()
