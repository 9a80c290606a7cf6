"""Helpers for concurrent work: a background task, bounded parallel work, turns of many, and a
shared call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar

__all__ = ["Portions", "SharedCall", "Turns", "beside", "each", "each_to_its_end"]

T = TypeVar("T")
R = TypeVar("R")


@asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Runs `work` during the context, and cancels it at the end."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def each(at_once: int, items: Sequence[T], work: Callable[[T], Awaitable[R]]) -> list[R]:
    """Runs `work` on every item, in order, `at_once` at a time. The first error ends all of it."""
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
    """Runs `work` on every item, `at_once` at a time. An error does not stop the others.

    Returns the errors.
    """
    failures: list[Exception] = []

    async def to_its_end(item: T) -> None:
        try:
            await work(item)
        except Exception as error:  # noqa: BLE001  # whoever asked decides
            failures.append(error)

    await each(at_once, items, to_its_end)
    return failures


class Turns:
    """Bounds how many go on in one turn of the event loop: `at_once`.

    A pause alone does not: all that pause at once go on in the same turn.
    """

    __slots__ = ("_places",)

    def __init__(self, at_once: int) -> None:
        self._places = asyncio.Semaphore(at_once)

    async def wait(self) -> None:
        """Waits for a later turn that has room. First come, first served."""
        async with self._places:
            await asyncio.sleep(0)


class Portions:
    """Bounds how many go on in one turn of the event loop: `a_turn`. As long as there are fewer,
    nobody waits.
    """

    __slots__ = ("_a_turn", "_left", "_waiting")

    def __init__(self, a_turn: int) -> None:
        self._a_turn = self._left = a_turn
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Returns at once if this turn has room, or else in a later one. First come, first
        served.
        """
        loop = asyncio.get_running_loop()
        if self._left and not self._waiting:
            self._take(loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._left == self._a_turn:
            loop.call_soon(self._next_turn, loop)
        self._left -= 1

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._a_turn
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            # Whoever waited for a turn that is done gave up.
            if not turn.done():
                self._take(loop)
                turn.set_result(None)


class SharedCall(Generic[T]):
    """One call whose result is shared by all callers of `result`, during the call and after its
    end.

    The call begins at once. A waiter that is cancelled does not affect the others: the call goes
    on, and `ended` receives its end even if no caller waits any more. An error goes to the waiters.
    If there are none, it is dropped.
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
        # For cancelling the call itself.
        self.task: Final = asyncio.create_task(work, name=name)
        self.task.add_done_callback(self._done)

    @property
    def done(self) -> bool:
        return self.task.done()

    async def result(self) -> T:
        """Returns or raises as the call does."""
        return await asyncio.shield(self.task)

    def _done(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            # Retrieved, because otherwise asyncio logs an error that no caller awaited.
            task.exception()
        if self._ended is not None:
            self._ended()
