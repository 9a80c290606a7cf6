"""What goes wrong inside without a client's seeing it: errors nobody awaits,
background tasks that end, error logs.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import structlog

__all__ = ["Mishaps"]

# What faults of AWS may bring a node to say at this level.
# Everything else there is a fault of ours.
_EXPECTED: Final = frozenset(
    {"queue_gone", "queue_not_proved", "canary_missed", "lease_lost", "catch_up_interrupted"}
)
_ERRORS: Final = frozenset({"error", "critical", "exception"})
_ERROR: Final = 40


class Mishaps:
    """Collects them for the time of one run."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def failed(self, context: Mapping[str, Any]) -> None:
        """What an event loop tells its exception handler."""
        self._add(str(context["message"]), context.get("exception"))

    def task_failed(self, task: asyncio.Task[Any]) -> None:
        """One whose error nobody looked at."""
        self._add(f"{task.get_name()} failed and nobody looked", task.exception())

    def background_task_ended(self, name: str, task: asyncio.Task[Any]) -> None:
        """One that is to run until it is cancelled."""
        if not task.cancelled():
            self._add(f"the background task {name} ended by itself", task.exception())

    @contextmanager
    def collected(self, *, shown: bool = False) -> Iterator[None]:
        """Take note of error logs and warnings meanwhile. `shown`:
        logs go where they went before as well.
        """
        before = structlog.get_config()

        def note(logger: object, method: str, event: Any) -> Any:
            if method in _ERRORS and event["event"] not in _EXPECTED:
                self._add(f"logged {event}", None)
            if not shown:
                raise structlog.DropEvent
            return event

        wrapper = (
            before["wrapper_class"] if shown else structlog.make_filtering_bound_logger(_ERROR)
        )
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            structlog.configure(processors=[note, *before["processors"]], wrapper_class=wrapper)
            try:
                yield
            finally:
                structlog.configure(**before)
        self.found += [f"warning: {each.message}" for each in warned]

    def _add(self, what: str, error: BaseException | None) -> None:
        self.found.append(what if error is None else f"{what}: {error!r}{_place(error)}")


def _place(error: BaseException) -> str:
    """The file and line in which it was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    return f" at {traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
