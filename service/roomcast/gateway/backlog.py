"""Bounds the bytes that wait in a node for all clients that read slowly.

Each client has a bound of its own (client.queue_max_size), and tens of thousands of these are more
than a machine has. Beyond the bound for all, the clients with the most that waits are cut off, with
what waits for them, until there is room again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import nlargest
from typing import Final, Protocol

import structlog

from roomcast.observe.counters import ClientCounters, Limit
from roomcast.rates import Rate, Seldom
from roomcast.wire.codes import Closing, Disconnect

__all__ = ["CUTS_A_TURN", "ROOM_PART", "Backlog", "Waiter"]

# Clients that are cut off in one turn of the event loop: some 5 ms. So much more than the bound may
# wait as comes meanwhile.
CUTS_A_TURN: Final = 64
# The part of the bound that is free again then. Otherwise each further write would cut off one
# more, and look for it among all.
ROOM_PART: Final = 1 / 8
_TOLD: Final = Rate(per_s=1.0, burst=1.0)

_log = structlog.get_logger(__name__)


class Waiter(Protocol):
    """The writer of a client. It is compared by identity."""

    def close(self, why: Closing) -> None:
        """Nothing waits for it any more. Idempotent."""


class Backlog:
    """One a node. `counters` get how many bytes wait, and how many clients are cut off."""

    __slots__ = ("_bytes_max", "_counters", "_cut", "_of", "_told")

    def __init__(self, bytes_max: int, counters: ClientCounters) -> None:
        self._bytes_max = bytes_max
        self._counters = counters
        # Bytes by client; none of them is 0.
        self._of: dict[Waiter, int] = {}
        self._cut: asyncio.Handle | None = None
        self._told = Seldom(_TOLD)

    def waits(self, waiter: Waiter, size: int) -> None:
        """So many bytes wait for a client now; 0 = none do."""
        before = self._of.get(waiter, 0)
        if size:
            self._of[waiter] = size
        elif before:
            del self._of[waiter]
        self._counters.unsent_bytes += size - before
        if self._counters.unsent_bytes > self._bytes_max and self._cut is None:
            self._next_turn()

    def _next_turn(self) -> None:
        # Not at once: whoever writes to many clients goes on with the others.
        self._cut = asyncio.get_running_loop().call_soon(self._cut_off)

    def _cut_off(self) -> None:
        """Cut off those with the most that waits, as many as a turn has time for."""
        self._cut = None
        counters, size, cut = self._counters, self._counters.unsent_bytes, 0
        if size <= self._bytes_max:
            return
        for waiter in _largest(self._of, CUTS_A_TURN):
            if counters.unsent_bytes <= self._bytes_max * (1 - ROOM_PART):
                break
            counters.limited(Limit.BACKLOG)
            waiter.close(Disconnect.SLOW)
            cut += 1
        if counters.unsent_bytes > self._bytes_max and self._cut is None:
            self._next_turn()
        passed_over = self._told.again(asyncio.get_running_loop().time())
        if passed_over is not None:
            _log.warning(
                "clients_cut_off", waiting_bytes=size, clients=cut, passed_over=passed_over
            )


def _largest(sizes: dict[Waiter, int], most: int) -> list[Waiter]:
    size_of: Callable[[Waiter], int] = sizes.__getitem__
    return nlargest(most, sizes, key=size_of)
