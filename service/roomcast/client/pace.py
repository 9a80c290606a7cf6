"""How fast one connection may do one kind of thing: beyond its rate, the next one waits for its time."""

from __future__ import annotations

from asyncio import sleep
from math import inf

from roomcast.observe.counters import ClientCounters, Limit
from roomcast.ports import Clock
from roomcast.rates import Bucket, Rate

__all__ = ["Pace"]


class Pace:
    """A rate for one connection; None = as fast as it likes. Whoever waits is counted under `limit`."""

    __slots__ = ("_bucket", "_clock", "_counters", "_limit", "_rate")

    def __init__(
        self, rate: Rate | None, limit: Limit, clock: Clock, counters: ClientCounters
    ) -> None:
        self._rate = rate
        self._limit = limit
        self._clock = clock
        self._counters = counters
        self._bucket = Bucket(rate, clock.monotonic_s()) if rate else None

    async def keep(self, until_s: float = inf) -> bool:
        """Wait until it is time for the next one. Nothing is to be read meanwhile, so that the client waits as well.

        False, at once: that would be after `until_s` (monotonic seconds). Then the next one does not count.
        """
        if self._rate is None or self._bucket is None:
            return True
        now_s = self._clock.monotonic_s()
        wait_s = self._bucket.wait_s(self._rate, now_s)
        if wait_s > 0:
            self._counters.limited(self._limit)
            if now_s + wait_s > until_s:
                return False
        self._bucket.owe(self._rate, now_s)
        if wait_s > 0:
            self._counters.throttled_s += wait_s
            await sleep(wait_s)
        return True
