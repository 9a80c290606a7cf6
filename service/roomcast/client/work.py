"""Bounds the tasks of one connection in number, order and rate.

Commands are taken one after the other. A command that waits for the network runs as a task beside
the next ones. Three things bound these tasks: each needs a place, changes of one subscription wait
their turn, and the configuration sets rates.
"""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from math import inf
from typing import Final

import structlog

from roomcast.client.peer import Peer
from roomcast.observe.counters import ClientCounters, Limit
from roomcast.ports import Clock
from roomcast.rates import Bucket, Rate
from roomcast.wire.codes import Disconnect

__all__ = [
    "COMMANDS_UNDER_WAY_MAX",
    "PLACE_BYTES",
    "READ_SIZE",
    "SUBSCRIBE_SIZE",
    "Pace",
    "Place",
    "Work",
]

# Commands of one connection that may wait for the network at once. The next one waits for a place.
COMMANDS_UNDER_WAY_MAX: Final = 256
# Bytes of a command that one of those places is for, where its data waits for the application's
# code. A larger one takes several: decoded, it may be some twenty times as large.
PLACE_BYTES: Final = 2 * 1024
# What a subscribe counts as in these bytes. It makes calls of AWS, and others wait behind them: so
# sixteen subscribes of one connection are under way.
SUBSCRIBE_SIZE: Final = 16 * PLACE_BYTES
# What a read of history or presence counts as in these bytes. Few go on at once and the others wait
# as tasks, so sixteen of one connection are under way. With one place each, 300 connections that
# asked for totals had 77,000 tasks, through which Python went for half a second to find garbage.
READ_SIZE: Final = 16 * PLACE_BYTES

_log = structlog.get_logger(__name__)


class Place:
    """The places of one command among those of its connection. They are held from the start."""

    __slots__ = ("_count", "_places")

    def __init__(self, places: asyncio.Semaphore, count: int) -> None:
        """The caller has acquired `count` of `places`."""
        self._places: asyncio.Semaphore | None = places
        self._count = count

    def hand_over(self) -> Place:
        """Return the same place for another holder. This one then gives nothing back."""
        assert self._places is not None, "handed over while it is held"
        places, self._places = self._places, None
        return Place(places, self._count)

    def give_back(self) -> None:
        """Give the place back. Idempotent; does nothing after `hand_over`."""
        if self._places is not None:
            _release(self._places, self._count)
            self._places = None


class Work:
    """The tasks, places and turns of one connection. A task that fails closes the connection."""

    __slots__ = ("_changes", "_first_change", "_is_over", "_peer", "_places", "_tasks")

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._places = asyncio.Semaphore(COMMANDS_UNDER_WAY_MAX)
        self._is_over = False
        self._tasks: set[asyncio.Task[None]] = set()
        # The newest unfinished change of each subscription, by channel.
        self._changes: dict[str, asyncio.Future[None]] = {}
        # The change by `connect`. Orders for any channel wait for it.
        self._first_change: asyncio.Future[None] | None = None

    @property
    def tasks(self) -> int:
        """The number of running tasks."""
        return len(self._tasks)

    @property
    def changes(self) -> int:
        """The number of channels whose subscription is being changed."""
        return len(self._changes)

    def cancel(self) -> None:
        """The connection has ended."""
        self._is_over = True
        for task in self._tasks:
            task.cancel()

    # ---- how much

    async def place(self, size: int = 0) -> Place:
        """Wait for the place of a command of `size` bytes. The caller gives it back.

        Commands are taken one after the other, so only one waits.
        """
        count = min(-(-size // PLACE_BYTES) or 1, COMMANDS_UNDER_WAY_MAX)
        taken = 0
        try:
            while taken < count:
                await self._places.acquire()
                taken += 1
        except asyncio.CancelledError:
            _release(self._places, taken)
            raise
        return Place(self._places, count)

    async def place_in_time(self, pace: Pace | None, until_s: float, size: int = 0) -> Place | None:
        """The same, as soon as `pace` lets it as well.

        None, at once: it would not be its time by `until_s` (monotonic seconds).
        """
        if pace is not None and await pace.keep(until_s) is None:
            return None
        return await self.place(size)

    async def start(self, work: Coroutine[None, None, None], size: int = 0) -> asyncio.Task[None]:
        """Run `work` beside the commands that follow, as soon as it has a place.

        `size`: bytes of its command, if `work` keeps the data.
        """
        return self._begin(work, await self._place_for(work, size))

    async def _place_for(self, work: Coroutine[None, None, None], size: int) -> Place:
        try:
            return await self.place(size)
        except asyncio.CancelledError:
            work.close()
            raise

    def track(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` at once. The caller bounds the number of such tasks.

        After the end of the connection, `work` is cancelled before its first step.
        """
        return self._begin(work)

    def _begin(
        self,
        work: Coroutine[None, None, None],
        place: Place | None = None,
        channel: str | None = None,
    ) -> asyncio.Task[None]:
        """Run `work`. At its end, `place` is given back, and the change of `channel` is over."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        if channel is not None:
            self._changes[channel] = task
        # One callback for all of it, since each costs a turn of its own.
        task.add_done_callback(partial(self._finished, place, channel))
        if self._is_over:
            task.cancel()
        return task

    def _finished(self, place: Place | None, channel: str | None, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug: the client must not be left waiting for an answer.
            _log.error("command_failed", client=self._peer.client, exc_info=error)
            self._peer.close(Disconnect.SERVER_ERROR)
        if place is not None:
            place.give_back()
        if channel is not None:
            self._changed(channel, task)

    # ---- in which order: changes of the subscription to one channel, one after the other

    def is_changing(self, channel: str) -> bool:
        """Whether a change is under way for `channel`."""
        change = self._changes.get(channel) if self._changes else None
        return change is not None and not change.done()

    async def turn(self, channel: str) -> None:
        """Wait until no change is under way for `channel`."""
        # Meanwhile an order may have begun another change.
        while (change := self._changes.get(channel)) is not None and not change.done():
            await asyncio.wait([change])

    async def start_change(
        self, channel: str, work: Coroutine[None, None, None], size: int = 0
    ) -> None:
        """As `start`. Other changes of the subscription to `channel` wait until `work` is done."""
        self._begin(work, await self._place_for(work, size), channel)

    def track_change(
        self, channel: str, work: Callable[[], Coroutine[None, None, None]]
    ) -> asyncio.Task[None]:
        """As `track`, but `work` waits its turn among the changes of `channel`."""
        before = self._changes.get(channel, self._first_change)
        return self._begin(_after(before, work), channel=channel)

    def first_change(self, channels: Iterable[str], change: asyncio.Future[None]) -> None:
        """Have `channels`, and orders for all other channels, wait until `change` is done."""
        self._first_change = change
        for channel in channels:
            self._changes[channel] = change
            change.add_done_callback(partial(self._changed, channel))

    def _changed(self, channel: str, change: asyncio.Future[None]) -> None:
        if self._changes.get(channel) is change:
            del self._changes[channel]


def _release(places: asyncio.Semaphore, count: int) -> None:
    for _ in range(count):
        places.release()


async def _after(
    change: asyncio.Future[None] | None, work: Callable[[], Coroutine[None, None, None]]
) -> None:
    if change is not None:
        await asyncio.wait([change])
    await work()


class Pace:
    """The rate of one kind of thing on one connection. A wait is counted under `limit`."""

    __slots__ = ("_bucket", "_clock", "_counters", "_limit", "_rate")

    def __init__(self, rate: Rate, limit: Limit, clock: Clock, counters: ClientCounters) -> None:
        self._rate = rate
        self._limit = limit
        self._clock = clock
        self._counters = counters
        self._bucket = Bucket(rate, clock.monotonic_s())

    def take(self) -> bool:
        """Whether the rate allows the next one at once. Then it counts."""
        return self._bucket.take(self._rate, self._clock.monotonic_s())

    async def keep(self, until_s: float = inf) -> float | None:
        """Wait until the rate allows the next one; returns for how long (s). 0 = it was, at once.

        The caller reads nothing meanwhile, so the client waits as well. None, at once: it would not
        be its time by `until_s` (monotonic seconds). Then the next one does not count.
        """
        now_s = self._clock.monotonic_s()
        if self._bucket.take(self._rate, now_s):
            return 0.0
        self._counters.limited(self._limit)
        wait_s = self._bucket.wait_s(self._rate, now_s)
        if now_s + wait_s > until_s:
            return None
        self._bucket.owe(self._rate, now_s)
        self._counters.throttled_s += wait_s
        await sleep(wait_s)
        return wait_s
