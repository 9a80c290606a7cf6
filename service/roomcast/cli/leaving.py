"""Ends the process in time, though threads and tasks of an application's code go on.

A hook that waits in a thread for a service that does not answer cannot be ended, nor one that
passes over its cancellation. Python would wait for them at its end, for as long as they like.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from roomcast.observe.lines import tell
from roomcast.serve.few_events import new_event_loop

__all__ = ["LEAVE_S", "leave_within", "run_to_its_end"]

# Seconds for what such code has to put in order itself.
LEAVE_S: Final = 2.0


def leave_within(within_s: float, code: int) -> threading.Timer:
    """Ends this process with `code`, unless it has ended by itself by then, or this is cancelled.

    Nothing must be left to do but to wait for threads and tasks.
    """
    timer = threading.Timer(within_s, _leave, (within_s, code))
    timer.daemon = True
    timer.start()
    return timer


def run_to_its_end(work: Coroutine[Any, Any, int]) -> int:
    """The exit code that `work` returns. Tasks and threads that it leaves have LEAVE_S to end."""
    timers: list[threading.Timer] = []

    async def watched() -> int:
        code = await work
        timers.append(leave_within(LEAVE_S, code))
        return code

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(watched())
    finally:
        for timer in timers:
            timer.cancel()


def _leave(within_s: float, code: int) -> None:
    with suppress(ValueError):  # it is closed
        tell(
            f"roomcast: what still goes on {within_s:g} s after the end, such as a thread of a "
            "hook, is left"
        )
    os._exit(code)
