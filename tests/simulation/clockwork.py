"""An event loop whose time is virtual: it jumps to the next timer instead of waiting,
so that days take milliseconds.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.simulation.mishaps import Mishaps

T = TypeVar("T")

# Rounds of cancelling what a run leaves behind, each of so many virtual seconds.
_ROUNDS_MAX = 20
_ROUND_S = 3600.0


class Stuck(RuntimeError):
    """Nothing is ready and no timer is set: the simulated world waits for ever."""


class _TimeTravel(selectors.DefaultSelector):
    """Instead of waiting for sockets, moves the clock."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing is ready and no timer is set")
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Deterministic: the order of callbacks is the order in which they were
    made, or of their timers.

    Errors that nobody awaits are mishaps: those of callbacks,
    and of tasks that were forgotten before or after their end.
    """

    def __init__(self, mishaps: Mishaps) -> None:
        self._travel = _TimeTravel()
        super().__init__(self._travel)
        self._mishaps = mishaps
        self._made: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.set_exception_handler(lambda _, context: mishaps.failed(context))

    def time(self) -> float:
        return self._travel.now_s

    def create_task(self, *arguments: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(*arguments, **options)
        self._made.add(task)
        return task

    def end(self) -> None:
        """Cancel whatever is left behind; ends may start further tasks, which end as well."""
        for _ in range(_ROUNDS_MAX):
            pending = asyncio.all_tasks(self)
            if not pending:
                break
            for task in pending:
                task.cancel()
            self.run_until_complete(asyncio.wait(pending, timeout=_ROUND_S))
        else:
            raise AssertionError(
                f"tasks that do not end when they are cancelled: {asyncio.all_tasks(self)}"
            )
        # Those that nobody holds any more have told the exception handler.
        for task in self._made:
            if not task.cancelled() and task._log_traceback:
                self._mishaps.task_failed(task)


def run(main: Coroutine[Any, Any, T], mishaps: Mishaps) -> T:
    """Run `main` on a virtual loop and cancel whatever it leaves behind."""
    loop = VirtualLoop(mishaps)
    try:
        return loop.run_until_complete(main)
    finally:
        # Tasks that nobody holds and that never ended are destroyed now, and not in another run.
        gc.collect()
        loop.end()
        loop.close()
