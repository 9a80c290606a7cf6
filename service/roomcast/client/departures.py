"""Ends subscriptions, of connections that are gone or whose tokens expired: few in one turn of the
event loop.

Many connections may end in the same turn, each with as many channels as a client may have, and many
tokens expire in the same second. Whoever opened the connections decides when. The hub goes on
meanwhile, as what it sends to a connection that has ended goes nowhere.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from roomcast.concurrency import Budget

__all__ = ["EXPIRY_LEAVES", "LEAVES_A_TURN", "Departures"]

# Subscriptions that are ended in one turn: some 2 ms. So many channels of one connection are left
# at once.
LEAVES_A_TURN: Final = 256
# What an end by expiry counts as: the client is told as well, or closed.
EXPIRY_LEAVES: Final = 8


class Leaving(Protocol):
    """What has yet to end."""

    def leave_some(self, most: int) -> int:
        """End some. Returns what that counts as, about `most` at most; 0 = nothing is left."""


class Departures:
    """One a node. As long as few leave, nobody waits; the others go in later turns, in order."""

    __slots__ = ("_budget", "_is_going", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[Leaving] = deque()
        self._budget = Budget(LEAVES_A_TURN, self._go)
        self._is_going = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def leave(self, leaving: Leaving) -> None:
        """End all that `leaving` has, from now on."""
        self._waiting.append(leaving)
        self._go()

    def finish(self) -> None:
        """End all that are left, at once: for the end of the node."""
        while self._waiting:
            if not self._waiting[0].leave_some(LEAVES_A_TURN):
                self._waiting.popleft()

    def _go(self) -> None:
        if self._is_going:
            # Who leaves may have others leave.
            return
        self._is_going = True
        try:
            while self._waiting and self._budget.left > 0:
                if ended := self._waiting[0].leave_some(self._budget.left):
                    self._budget.take(ended)
                else:
                    self._waiting.popleft()
        finally:
            self._is_going = False
