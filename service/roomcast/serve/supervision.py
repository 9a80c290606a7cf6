"""Decides what a supervisor does about its processes: who listens, and what follows an end.

One process starts first. What keeps it from serving keeps all of them, so it is told once. Then the
others start, and all begin to listen together. Otherwise the first would get all clients that come
meanwhile, and keep them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from roomcast.backoff import FROM_HALF, Backoff

__all__ = [
    "DEATHS_MAX",
    "DEATHS_WITHIN_S",
    "FIRST",
    "OPEN_S",
    "GiveUp",
    "Leave",
    "Restart",
    "Supervision",
    "Verdict",
]

# The process that starts before the others.
FIRST: Final = 0
# How long processes that are ready wait for the others before they listen without them.
OPEN_S: Final = 60.0
# A process that failed so often in so many seconds ends all of them. Whoever watches the supervisor
# begins anew then.
DEATHS_MAX: Final = 10
DEATHS_WITHIN_S: Final = 600.0
# The pauses before a restart, by the number of failures in that time.
_RESTARTS: Final = Backoff(0.5, 30.0, FROM_HALF)
# Exit codes that need no words of the supervisor: an orderly end, and failures that the process
# itself has told in a line on stderr.
_EXPLAINED: Final = frozenset({0, 1, 2})


@dataclass(frozen=True, slots=True)
class Restart:
    """The process is started again, after `pause_s` seconds."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Leave:
    """The process ended in order, and had its reason. It is not started again."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """All processes end, and the supervisor with `code`. `why` "": the process itself said it."""

    code: int
    why: str


Verdict = Restart | Leave | GiveUp


class Supervision:
    """What is known of the processes 0 to `number` - 1."""

    def __init__(self, number: int) -> None:
        assert number > 0, "somebody serves"
        # The processes that have started and live, and whether each is ready.
        self._ready: dict[int, bool] = {}
        # Those that have neither started nor ended yet.
        self._awaited = set(range(number))
        self._has_begun = False
        # Those that have given everything back, and ask whether to release the machine.
        self._asking: set[int] = set()
        self._over: set[int] = set()
        self._number = number
        self._deaths: dict[int, deque[float]] = {index: deque() for index in range(number)}

    def started(self, index: int) -> None:
        """The process may listen from now on."""
        self._has_begun = True
        self._awaited.discard(index)
        self._ready[index] = True

    def judged(self, index: int, *, ready: bool) -> None:
        """The process found itself ready, or not ready."""
        if index in self._ready:
            self._ready[index] = ready

    def waited_enough(self) -> None:
        """Processes that have not started yet keep the others from listening no longer."""
        self._awaited.clear()

    def listeners(self) -> frozenset[int]:
        """The processes that listen on the shared port.

        They are those that are ready. If none is, they are all that have started: their answers say
        why, and clients may be served late, which is better than not at all.
        """
        if self._awaited:
            return frozenset()
        ready = frozenset(index for index, is_ready in self._ready.items() if is_ready)
        return ready or frozenset(self._ready)

    def asks(self, index: int) -> None:
        """The process has given back everything that it held. Who releases the machine?"""
        self._asking.add(index)

    def over(self, index: int) -> None:
        """The process is gone, and will not be started again."""
        self._forget(index)
        self._over.add(index)

    def releaser(self) -> int | None:
        """The process that releases the machine, once all that are left ask. None = not yet."""
        left = set(range(self._number)) - self._over
        return min(left) if left and left <= self._asking else None

    def ended(self, index: int, code: int, now_s: float, random: float) -> Verdict:
        """What follows the end of a process that nobody asked to end.

        `code`: its exit code, or the negative number of the signal that killed it. `random`: from
        [0, 1).
        """
        self._forget(index)
        if code == 0 and self._has_begun:
            return Leave()
        if not self._has_begun:
            if code in _EXPLAINED:
                return GiveUp(code, "")
            return GiveUp(1, f"the first process ended with {code} before it was ready")
        deaths = self._deaths[index]
        deaths.append(now_s)
        while deaths[0] <= now_s - DEATHS_WITHIN_S:
            deaths.popleft()
        if len(deaths) >= DEATHS_MAX:
            return GiveUp(
                1,
                f"process {index} failed {len(deaths)} times within {DEATHS_WITHIN_S:.0f} s, the "
                f"last time with {code}",
            )
        return Restart(_RESTARTS.pause_s(len(deaths), random))

    def _forget(self, index: int) -> None:
        self._ready.pop(index, None)
        self._awaited.discard(index)
        self._asking.discard(index)
