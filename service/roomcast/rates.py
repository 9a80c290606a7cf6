"""Rates: token buckets, one by one and one for each of many addresses.

Whoever asks says what time it is.

A bucket holds `burst` tokens at most and gets `per_s` new ones a second; what is done takes one. So
in any T seconds no more than burst + per_s × T things are done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["ADDRESSES_MAX", "WIDER", "Bucket", "Rate", "Seldom", "Turnstile"]

# Addresses that are remembered: some 20 MB. One that is forgotten early begins afresh, with a full
# bucket.
ADDRESSES_MAX: Final = 65_536
# How much more than one address a network may bring, from the narrowest to the widest that an
# address stands for: a provider has many customers in one, and one customer may have many addresses
# in it.
WIDER: Final = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` a second in the long run, `burst` at once.

    Both at least 1, so that there is always a next one.
    """

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        assert self.per_s > 0, "a rate of nothing is no rate"
        assert self.burst >= 1, "a bucket holds a token"


class Bucket:
    """What one of those that a rate holds for has left.

    Times are monotonic seconds; one that went back counts as now.
    """

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


class Seldom:
    """For the log of what somebody may cause at will: told at a rate, with a count of the rest."""

    __slots__ = ("_bucket", "_passed_over", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._bucket: Bucket | None = None
        self._passed_over = 0

    def again(self, now_s: float) -> int | None:
        """It happened again.

        None: say nothing. Otherwise how many were not told since the last one that was.
        """
        if self._bucket is None:
            self._bucket = Bucket(self._rate, now_s)
        if not self._bucket.take(self._rate, now_s):
            self._passed_over += 1
            return None
        passed_over, self._passed_over = self._passed_over, 0
        return passed_over


class Turnstile:
    """A bucket for each address and each network that it is in, of those that came last.

    A bucket that was not asked for long is full, and so can be forgotten; beyond `addresses_max`
    one that is not may be: then there are more strangers than one node can tell apart. The rate of
    a network is that of an address times WIDER.
    """

    __slots__ = ("_addresses_max", "_buckets", "_rates")

    def __init__(self, rate: Rate, addresses_max: int = ADDRESSES_MAX) -> None:
        assert addresses_max >= len(WIDER), "there is room for one who comes"
        self._rates = tuple(Rate(rate.per_s * times, rate.burst * times) for times in WIDER)
        self._addresses_max = addresses_max
        # The one that came longest ago is first.
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        """Addresses and networks that are remembered."""
        return len(self._buckets)

    def wait_s(self, names: Sequence[str], now_s: float) -> float:
        """0 = come in; otherwise how many seconds to stay away.

        `names`: the address, then the networks that it is in, at most as many as WIDER has. Who is
        kept out by one of them takes nothing from the others, so that nobody uses up what their
        neighbours have.
        """
        taking: list[tuple[Bucket, Rate]] = []
        # The widest first: from a network that is full, no further address makes others forgotten.
        for name, rate in reversed(list(zip(names, self._rates, strict=False))):
            bucket = self._bucket(name, rate, now_s)
            wait_s = bucket.wait_s(rate, now_s)
            if wait_s > 0:
                return wait_s
            taking.append((bucket, rate))
        for bucket, rate in taking:
            bucket.take(rate, now_s)
        return 0.0

    def _bucket(self, name: str, rate: Rate, now_s: float) -> Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self._addresses_max:
                self._buckets.popitem(last=False)
            bucket = self._buckets[name] = Bucket(rate, now_s)
        else:
            self._buckets.move_to_end(name)
        return bucket
