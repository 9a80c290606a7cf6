"""Helpers for concurrent work: a background task, bounded parallel work, bounds of one turn of the
event loop, places that callers share fairly, and a shared call.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar

__all__ = [
    "Budget",
    "FairPlaces",
    "Lines",
    "Portions",
    "SharedCall",
    "Tally",
    "Turns",
    "beside",
    "each",
    "each_to_its_end",
]

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


class Budget:
    """What may be done in one turn of the event loop, counted as its user likes.

    `left`: of this turn's; 0 or less = the rest has to wait. `go_on` is called at the beginning of
    the turn that follows one in which something was taken, and then all is left again.
    """

    __slots__ = ("_a_turn", "_go_on", "left")

    def __init__(self, a_turn: int, go_on: Callable[[], object]) -> None:
        self._a_turn = self.left = a_turn
        self._go_on = go_on

    def take(self, cost: int = 1) -> None:
        """Something is done that costs more than nothing. It may cost more than is left."""
        if self.left == self._a_turn:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self.left -= cost

    def _next_turn(self) -> None:
        self.left = self._a_turn
        self._go_on()


class Portions:
    """Bounds how many go on in one turn of the event loop: `a_turn`. As long as there are fewer,
    nobody waits.
    """

    __slots__ = ("_budget", "_waiting")

    def __init__(self, a_turn: int) -> None:
        self._budget = Budget(a_turn, self._go_on)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Returns at once if this turn has room, or else in a later one. First come, first
        served.
        """
        if self._budget.left and not self._waiting:
            self._budget.take()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _go_on(self) -> None:
        while self._waiting and self._budget.left:
            turn = self._waiting.popleft()
            # Whoever waited for a turn that is done gave up.
            if not turn.done():
                self._budget.take()
                turn.set_result(None)


class Tally:
    """Counts what all take together in one turn of the event loop. `turn`: its number; `taken`:
    what they took in it so far.
    """

    __slots__ = ("taken", "turn")

    def __init__(self) -> None:
        self.taken = 0
        self.turn = 0

    def take(self, cost: int) -> int:
        """Somebody takes something, which costs more than nothing. Returns what all took so far."""
        if not self.taken:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self.taken += cost
        return self.taken

    def _next_turn(self) -> None:
        self.taken = 0
        self.turn += 1


class Lines(Generic[T]):
    """Who waits, each in the line of a caller. First come, first served within a line, and the
    lines take turns. A line that is new has its first turn soon: every other one is for those that
    are, so that neither kind keeps the other waiting. A line is new unless it had a turn in this
    round of the others. So who is the first of a line waits for two turns of each other line at
    most, however long these are.

    One may stand in the lines of several callers. It is served once, in the first turn of any.
    """

    __slots__ = ("_callers", "_is_turn_of_new", "_lines", "_new")

    def __init__(self) -> None:
        # The line whose turn is next is the first. One that is empty has had a turn in this round.
        self._lines: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._new: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._is_turn_of_new = True
        # In whose lines each one stands.
        self._callers: dict[T, set[str]] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._callers)

    def stand(self, one: T, caller: str) -> None:
        """`one` stands in the line of `caller`, also if it stands elsewhere. Idempotent."""
        self._callers.setdefault(one, set()).add(caller)
        line = self._lines.get(caller)
        if line is None:
            line = self._new.setdefault(caller, OrderedDict())
        line.setdefault(one)

    def leave(self, one: T) -> None:
        """`one` stands nowhere any more. Idempotent."""
        for caller in self._callers.pop(one, ()):
            line = self._new.get(caller)
            if line is None:
                del self._lines[caller][one]
                continue
            del line[one]
            if not line:
                del self._new[caller]
        if not self._callers:
            self._lines.clear()

    def next(self) -> T | None:
        """Serves the next one, which leaves. None = nobody waits."""
        if not self._callers:
            return None
        line = self._next_line()
        one = next(iter(line))
        self.leave(one)
        return one

    def _next_line(self) -> OrderedDict[T, None]:
        """The line that has its turn, which is not empty. From then on, it is the last."""
        self._is_turn_of_new = not self._is_turn_of_new
        if not self._is_turn_of_new or not self._new:
            while self._lines:
                caller, line = self._lines.popitem(last=False)
                if line:
                    self._lines[caller] = line
                    return line
        caller, line = self._new.popitem(last=False)
        self._lines[caller] = line
        return line


class FairPlaces:
    """Bounds how many go on at once: `at_once`. Who waits for a place stands in the line of its
    caller, and the lines take turns. `a_turn`: of those who waited, so many go on in one turn of
    the event loop.

    `free`: the places for who comes next. Nobody waits while there is one.
    """

    __slots__ = ("_budget", "_kept", "_lines", "free")

    def __init__(self, at_once: int, a_turn: int) -> None:
        self.free = at_once
        self._budget = Budget(a_turn, self._hand_over)
        # Places for those who wait, in a later turn of the event loop.
        self._kept = 0
        self._lines: Lines[asyncio.Future[None]] = Lines()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._lines)

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """A place for one caller, as soon as there is one."""
        await self.take(caller)
        try:
            yield
        finally:
            self.give_back()

    async def take(self, caller: str) -> None:
        """The same, for who gives it back. Who is cancelled has none."""
        if self.free:
            self.free -= 1
        else:
            await self.wait(self.stand({caller}))

    def stand(self, callers: Iterable[str]) -> asyncio.Future[None]:
        """Stands in the lines of `callers`, of which there is one at least. For `wait`, which must
        follow.
        """
        assert not self.free, "nobody waits while a place is free"
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for caller in callers:
            self._lines.stand(turn, caller)
        return turn

    def join(self, turn: asyncio.Future[None], caller: str) -> None:
        """Who stands there waits on behalf of `caller` as well."""
        if not turn.done():
            self._lines.stand(turn, caller)

    async def wait(self, turn: asyncio.Future[None]) -> None:
        """Waits for a place, which the caller gives back. Who is cancelled has none."""
        try:
            await turn
        except asyncio.CancelledError:
            self._lines.leave(turn)
            if not turn.cancelled():
                # It got the place in the same moment.
                self.give_back()
            raise

    def give_back(self) -> None:
        """The place goes to who is next, or is free."""
        self._kept += 1
        self._hand_over()

    def _hand_over(self) -> None:
        while self._kept and self._budget.left and (turn := self._lines.next()) is not None:
            # Whoever waited for a turn that is done was cancelled.
            if not turn.done():
                self._budget.take()
                self._kept -= 1
                turn.set_result(None)
        if not self._lines:
            self.free += self._kept
            self._kept = 0


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
