"""Sends things one batch after the other: what comes while one is under way follows together in the
next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

__all__ = ["Lanes"]

Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing")
# What became of a thing that was sent.
Outcome = TypeVar("Outcome")


class Lanes(Generic[Key, Thing, Outcome]):
    """A lane for each key, as long as something waits in it. Its things keep their order.

    `send` sends a batch, and does not raise. A batch has things of at most `room` together, or one.
    What follows an outcome that `stops` its lane is not sent, and has the same one. `leaves_out`:
    whether things for which nobody waits any more are not sent. `cut_off`: the
    outcome of what is under way, and waits, when the event loop ends.
    """

    def __init__(
        self,
        send: Callable[[Key, Sequence[Thing]], Awaitable[Outcome]],
        *,
        room: int,
        stops: Callable[[Outcome], bool],
        leaves_out: bool,
        cut_off: Outcome,
        name: str,
    ) -> None:
        """`name`: of the tasks."""
        self._send = send
        self._room = room
        self._stops = stops
        self._leaves_out = leaves_out
        self._cut_off = cut_off
        self._name = name
        self._lanes: dict[Key, deque[_Waiting[Thing, Outcome]]] = {}
        self._carrying: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """The number of lanes."""
        return len(self._lanes)

    def __contains__(self, key: Key) -> bool:
        """Whether something of `key` is under way."""
        return key in self._lanes

    def waiting(self, key: Key) -> int:
        """How many of `key` wait for what is under way."""
        return len(self._lanes.get(key, ()))

    def add(self, key: Key, thing: Thing, size: int) -> asyncio.Future[Outcome]:
        """Send `thing`. The future tells what became of it."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = deque()
            carrying = asyncio.create_task(self._carry(key, lane), name=self._name)
            self._carrying.add(carrying)
            carrying.add_done_callback(self._carrying.discard)
        waiting: _Waiting[Thing, Outcome] = _Waiting(thing, size)
        lane.append(waiting)
        return waiting.outcome

    async def _carry(self, key: Key, lane: deque[_Waiting[Thing, Outcome]]) -> None:
        batch, outcome = list[_Waiting[Thing, Outcome]](), self._cut_off
        try:
            while batch := self._batch(lane):
                outcome = self._cut_off
                outcome = await self._send(key, [waiting.thing for waiting in batch])
                _tell(batch, outcome)
                if self._stops(outcome):
                    break
        finally:
            del self._lanes[key]
            _tell([*batch, *lane], outcome)

    def _batch(self, lane: deque[_Waiting[Thing, Outcome]]) -> list[_Waiting[Thing, Outcome]]:
        """The oldest ones, as many as fit. They leave `lane`, and so do those that are left out."""
        batch, size = list[_Waiting[Thing, Outcome]](), 0
        while lane:
            if self._leaves_out and lane[0].outcome.done():
                lane.popleft()
                continue
            size += lane[0].size
            if batch and size > self._room:
                break
            batch.append(lane.popleft())
        return batch


class _Waiting(Generic[Thing, Outcome]):
    """A thing that waits."""

    __slots__ = ("outcome", "size", "thing")

    def __init__(self, thing: Thing, size: int) -> None:
        self.thing = thing
        self.size = size
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


def _tell(batch: Iterable[_Waiting[Thing, Outcome]], outcome: Outcome) -> None:
    for waiting in batch:
        if not waiting.outcome.done():
            waiting.outcome.set_result(outcome)
