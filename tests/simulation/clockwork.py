"""An event loop whose time is virtual: it jumps to the next timer instead of waiting, so that days take milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

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
            raise Stuck
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Deterministic: the order of callbacks is the order in which they were made, or of their timers."""

    def __init__(self) -> None:
        self._travel = _TimeTravel()
        super().__init__(self._travel)

    def time(self) -> float:
        return self._travel.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a virtual loop and cancel whatever it leaves behind."""
    loop = VirtualLoop()
    # Errors that nobody awaits are the simulation's to find: the checker sees what they lead to.
    loop.set_exception_handler(lambda *_: None)
    try:
        return loop.run_until_complete(main)
    finally:
        _cancel_all(loop)
        loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    """Ends may start further tasks, which end as well."""
    for _ in range(_ROUNDS_MAX):
        pending = asyncio.all_tasks(loop)
        if not pending:
            return
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.wait(pending, timeout=_ROUND_S))
    raise AssertionError(f"tasks that do not end when they are cancelled: {asyncio.all_tasks(loop)}")
