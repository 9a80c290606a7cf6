"""Limits rates with token buckets: single ones, and one for each of many addresses.

The caller passes the time. A bucket holds `burst` tokens at most and gains `per_s` tokens a second.
Each action takes one. So in any T seconds at most burst + per_s × T actions happen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["ADDRESSES_MAX", "WIDER", "Bucket", "Rate", "Seldom", "Turnstile"]

# Addresses in memory: some 20 MB. An address that is forgotten early begins again with a full
# bucket.
ADDRESSES_MAX: Final = 65_536
# How many times the rate of one address a network may have, from the narrowest network to the
# widest. A provider has many customers in one network, and one customer may have many addresses in
# it.
WIDER: Final = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` a second in the long run, `burst` at once.

    Both are at least 1, so that a token always comes.
    """

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        assert self.per_s > 0, "a rate of nothing is no rate"
        assert self.burst >= 1, "a bucket holds a token"


class Bucket:
    """The tokens left under a rate.

    Times are monotonic seconds. A time that went back counts as the latest one.
    """

    __slots__ = ("_at_s", "_tokens")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self._tokens = rate.burst
        self._at_s = now_s

    def take(self, rate: Rate, now_s: float, tokens: float = 1.0) -> bool:
        """Takes so many tokens if there are as many."""
        self._fill(rate, now_s)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def owe(self, rate: Rate, now_s: float) -> float:
        """Takes a token in any case. Returns the seconds until it is there, 0 = at once."""
        self._fill(rate, now_s)
        self._tokens -= 1
        return max(0.0, -self._tokens / rate.per_s)

    def wait_s(self, rate: Rate, now_s: float, tokens: float = 1.0) -> float:
        """The seconds until so many tokens are there, if nobody takes one. One: `take` succeeds."""
        self._fill(rate, now_s)
        return max(0.0, (tokens - self._tokens) / rate.per_s)

    def _fill(self, rate: Rate, now_s: float) -> None:
        if now_s > self._at_s:
            self._tokens = min(rate.burst, self._tokens + (now_s - self._at_s) * rate.per_s)
            self._at_s = now_s


class Seldom:
    """Limits log lines that a peer may cause at will: a rate, and a count of the dropped ones."""

    __slots__ = ("_bucket", "_passed_over", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._bucket: Bucket | None = None
        self._passed_over = 0

    def again(self, now_s: float) -> int | None:
        """Counts one more event.

        None: log nothing. Otherwise the number of events that were not logged since the last line.
        """
        if self._bucket is None:
            self._bucket = Bucket(self._rate, now_s)
        if not self._bucket.take(self._rate, now_s):
            self._passed_over += 1
            return None
        passed_over, self._passed_over = self._passed_over, 0
        return passed_over


class Turnstile:
    """A bucket for each recent address, and for each network around it.

    A bucket that was not used for long is full, and can be forgotten. Beyond `addresses_max` a
    bucket that is not full may be forgotten too: one node cannot distinguish more addresses. The
    rate of a network is that of an address times WIDER.
    """

    __slots__ = ("_addresses_max", "_buckets", "_rates")

    def __init__(self, rate: Rate, addresses_max: int = ADDRESSES_MAX) -> None:
        assert addresses_max >= len(WIDER), "there is room for one who comes"
        self._rates = tuple(Rate(rate.per_s * times, rate.burst * times) for times in WIDER)
        self._addresses_max = addresses_max
        # Least recently used first.
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        """The number of addresses and networks in memory."""
        return len(self._buckets)

    def wait_s(self, names: Sequence[str], now_s: float) -> float:
        """0 = admitted. Otherwise the seconds to stay away.

        `names`: the address, then its networks, at most as many as WIDER has. A refusal by one
        bucket takes nothing from the others, so that nobody uses up the tokens of their neighbours.
        """
        taking: list[tuple[Bucket, Rate]] = []
        # The widest first: a full network's further addresses then cannot push others out of
        # memory.
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
