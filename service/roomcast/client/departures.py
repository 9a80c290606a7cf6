"""Ends the subscriptions of connections that are gone: few in one turn of the event loop.

Many connections may end in the same turn, each with as many channels as a client may have. Whoever
opened them decides when. The hub goes on meanwhile, as what it sends to a connection that has ended
goes nowhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sized
from typing import Final, Protocol

__all__ = ["LEAVES_A_TURN", "Departures"]

# Subscriptions that are ended in one turn: some 2 ms. So many channels of one connection are left
# at once.
LEAVES_A_TURN: Final = 256


class Leaving(Sized, Protocol):
    """The subscriptions of a connection that has ended, as many as it still has."""

    def leave_some(self, most: int) -> None:
        """End some: `most`, or all if there are fewer."""


class Departures:
    """One a node. As long as few leave, nobody waits; the others go in later turns, in order."""

    __slots__ = ("_left", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[Leaving] = deque()
        # How many this turn may still end.
        self._left = LEAVES_A_TURN

    def __len__(self) -> int:
        """The number of connections that still have subscriptions."""
        return len(self._waiting)

    def leave(self, leaving: Leaving) -> None:
        """End all subscriptions of `leaving`, from now on. It must make no more."""
        if len(leaving):
            self._waiting.append(leaving)
            self._go()

    def finish(self) -> None:
        """End all that are left, at once: for the end of the node."""
        while self._waiting:
            leaving = self._waiting.popleft()
            leaving.leave_some(len(leaving))

    def _go(self) -> None:
        while self._waiting and self._left:
            if self._left == LEAVES_A_TURN:
                asyncio.get_running_loop().call_soon(self._next_turn)
            leaving = self._waiting[0]
            before = len(leaving)
            leaving.leave_some(self._left)
            self._left -= before - len(leaving)
            if not len(leaving):
                self._waiting.popleft()

    def _next_turn(self) -> None:
        self._left = LEAVES_A_TURN
        self._go()
