"""Rates: token buckets, one by one and one for each of many addresses. Whoever asks says what time it is.

A bucket holds `burst` tokens at most and gets `per_s` new ones a second; what is done takes one. So in any T seconds no
more than burst + per_s × T things are done.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

__all__ = ["ADDRESSES_MAX", "Bucket", "Rate", "Turnstile"]

# Addresses that are remembered: some 20 MB. One that is forgotten early begins afresh, with a full bucket.
ADDRESSES_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` a second in the long run, `burst` at once. Both at least 1, so that there is always a next one."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        assert self.per_s > 0, "a rate of nothing is no rate"
        assert self.burst >= 1, "a bucket holds a token"


class Bucket:
    """What one of those that a rate holds for has left. Times are monotonic seconds; one that went back counts as now."""

    __slots__ = ("_at_s", "_tokens")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self._tokens = rate.burst
        self._at_s = now_s

    def take(self, rate: Rate, now_s: float) -> bool:
        """Take one if there is one."""
        self._fill(rate, now_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def owe(self, rate: Rate, now_s: float) -> float:
        """Take one in any case; seconds until it is there, 0 = it was."""
        self._fill(rate, now_s)
        self._tokens -= 1
        return max(0.0, -self._tokens / rate.per_s)

    def wait_s(self, rate: Rate, now_s: float) -> float:
        """Seconds until `take` gives one, if nobody else takes any."""
        self._fill(rate, now_s)
        return max(0.0, (1 - self._tokens) / rate.per_s)

    def _fill(self, rate: Rate, now_s: float) -> None:
        if now_s > self._at_s:
            self._tokens = min(rate.burst, self._tokens + (now_s - self._at_s) * rate.per_s)
            self._at_s = now_s


class Turnstile:
    """A bucket an address, of those that came last. A bucket that was not asked for long is full, and so can be forgotten;
    beyond `addresses_max` one that is not may be: then there are more strangers than one node can tell apart.
    """

    __slots__ = ("_addresses_max", "_buckets", "rate")

    def __init__(self, rate: Rate, addresses_max: int = ADDRESSES_MAX) -> None:
        self.rate = rate
        self._addresses_max = addresses_max
        # The one that came longest ago is first.
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._buckets)

    def wait_s(self, address: str, now_s: float) -> float:
        """0 = come in; otherwise how many seconds to stay away."""
        bucket = self._buckets.get(address)
        if bucket is None:
            if len(self._buckets) >= self._addresses_max:
                self._buckets.popitem(last=False)
            bucket = self._buckets[address] = Bucket(self.rate, now_s)
        else:
            self._buckets.move_to_end(address)
        return 0.0 if bucket.take(self.rate, now_s) else bucket.wait_s(self.rate, now_s)
