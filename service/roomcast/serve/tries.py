"""Repeats calls of AWS at a node's start and end, within a bound of time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.ports import Clock, PortError, Rejected

__all__ = ["END_TRIES_S", "START_TRIES_S", "Tries"]

# Seconds from the first attempt until the last may begin. It is enough for a lost answer, a
# throttled call, or a few seconds of an outage. After that, a supervisor starts the process again.
START_TRIES_S: Final = 30.0
# The same for what a node releases at its end. Somebody waits for that end, and the reaper does the
# rest.
END_TRIES_S: Final = 5.0
# Random, so that nodes that start together do not try together.
_BACKOFF: Final = Backoff(0.2, 5.0, FROM_HALF)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Tries:
    """Repeats several calls. All of them share `within_s` seconds, from the first one on."""

    def __init__(self, clock: Clock, random: Callable[[], float], within_s: float) -> None:
        self._clock = clock
        self._random = random
        self._within_s = within_s
        self._ends_s: float | None = None

    async def until_done(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat `call`, which must be safe to repeat, and return its result.

        `what` names the call in errors and logs, because messages of AWS seldom do.

        Raises Rejected at once, since it would be refused again. Raises any other PortError when
        the time is over.
        """
        if self._ends_s is None:
            self._ends_s = self._clock.monotonic_s() + self._within_s
        failures = 0
        while True:
            try:
                return await call()
            except Rejected as error:
                raise Rejected(f"{what}: {error}") from error
            except PortError as error:
                failures += 1
                pause_s = _BACKOFF.pause_s(failures, self._random())
                if self._clock.monotonic_s() + pause_s >= self._ends_s:
                    raise type(error)(
                        f"{what}: {_why(error)} (tried for {self._within_s:.0f} s)"
                    ) from error
                _log.warning("tried_again", what=what, failures=failures, reason=_why(error))
            await asyncio.sleep(pause_s)


def _why(error: PortError) -> str:
    return str(error) or type(error).__name__
