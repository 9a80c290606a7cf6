"""Runs the reaper's dry run for the page, one at a time, and says which permission it lacks."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from roomcast.ports import PortError

__all__ = ["ROWS_MAX", "RUN_S", "DryRun", "Reaping", "missing_permissions"]

# Seconds for one run. It waits for 45 of them when leases look expired.
RUN_S: Final = 180.0
# Lines of progress that are kept, and rows of each kind in a report.
_LINES_MAX: Final = 20
ROWS_MAX: Final = 100

# A run. It gets a function for lines of progress, and returns the reaper's report as JSON values.
DryRun = Callable[[Callable[[str], None]], Awaitable[Mapping[str, Any]]]

# The text of botocore's error for a call that the role may not make.
_REFUSED: Final = re.compile(
    r"\((?:AccessDenied\w*|AuthorizationError\w*|UnauthorizedOperation)\)"
    r" when calling the (\w+) operation"
)
# Which service an operation of the reaper is of.
_SERVICES: Final = {
    "ListSubscriptionsByTopic": "sns",
    "GetSubscriptionAttributes": "sns",
    "Scan": "dynamodb",
    "Query": "dynamodb",
    "GetItem": "dynamodb",
    "BatchGetItem": "dynamodb",
}

_log = structlog.get_logger(__name__)


def missing_permissions(reasons: Sequence[str]) -> list[str]:
    """The permissions that a role lacks, such as "sqs:ListQueues", by the reasons of failures."""
    found = {match[1] for reason in reasons if (match := _REFUSED.search(reason))}
    return sorted(f"{_SERVICES.get(operation, 'sqs')}:{operation}" for operation in found)


class Reaping:
    """One a node. `run` None: this node has no access to AWS."""

    def __init__(self, run: DryRun | None) -> None:
        self._run = run
        self._task: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=_LINES_MAX)
        self._report: Mapping[str, Any] | None = None
        self._failed = ""

    @property
    def is_available(self) -> bool:
        return self._run is not None

    def start(self) -> None:
        """Begin a run, unless one is under way."""
        if self._run is None or self._task is not None:
            return
        self._said.clear()
        self._report, self._failed = None, ""
        self._task = asyncio.create_task(self._go(self._run), name="reap dry run")
        self._task.add_done_callback(self._done)

    def state(self) -> Mapping[str, Any]:
        """How the newest run does: its progress, then its report, or why it failed."""
        return {
            "running": self._task is not None,
            "said": list(self._said),
            "report": self._report,
            "failed": self._failed,
        }

    async def close(self) -> None:
        """End a run that is under way."""
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _go(self, run: DryRun) -> None:
        try:
            async with asyncio.timeout(RUN_S):
                report = await run(self._said.append)
        except PortError as error:
            self._failed = str(error) or type(error).__name__
            self._report = {"missing": missing_permissions([self._failed])}
        except TimeoutError:
            self._failed = f"not done within {RUN_S:g} s"
        else:
            self._report = _bounded(report)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed = "a fault of this server; its log has it"
            _log.error("admin_reap_failed", exc_info=error)


def _bounded(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The report with at most ROWS_MAX rows of each kind, and how many there are."""
    kinds = ("nodes", "queues", "subscriptions", "failures")
    return {
        "live": report["live"],
        "failed": report["failed"],
        **{kind: list(report[kind][:ROWS_MAX]) for kind in kinds},
        "counts": {kind: len(report[kind]) for kind in kinds},
        "missing": missing_permissions([each["reason"] for each in report["failures"]]),
    }
