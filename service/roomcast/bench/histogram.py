"""Counts durations in buckets whose width grows with the duration, and tells quantiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

__all__ = ["ERROR_MAX", "VALUE_US_MAX", "LatencyHistogram"]

# A power of two has 2^6 buckets, so a bucket is at most a 64th of its values wide.
_BITS: Final = 6
ERROR_MAX: Final = 2**-_BITS
# Below this, each value has a bucket of its own.
_EXACT: Final = 2 << _BITS
# An hour. It bounds the number of buckets to some 1,700. What took longer counts as this.
VALUE_US_MAX: Final = 3_600_000_000


class LatencyHistogram:
    """Durations in whole microseconds. `least`, `most` and `mean` are exact, quantiles within
    ERROR_MAX.
    """

    __slots__ = ("_buckets", "_sum", "count", "least", "most")

    def __init__(self, values_us: Iterable[int] = ()) -> None:
        self._buckets: dict[int, int] = {}
        self._sum = self.count = self.least = self.most = 0
        for value_us in values_us:
            self.record(value_us)

    def record(self, value_us: int) -> None:
        """Counts one duration. A negative one counts as 0, one beyond VALUE_US_MAX as that."""
        value = min(max(value_us, 0), VALUE_US_MAX)
        bucket = _bucket(value)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self._sum += value
        self.least = min(value, self.least) if self.count else value
        self.most = max(value, self.most)
        self.count += 1

    @property
    def mean(self) -> float:
        """0 without durations."""
        return self._sum / self.count if self.count else 0.0

    def quantile(self, share: float) -> int:
        """The least duration that `share` (0 to 1) of all do not exceed. 0 without durations.

        It is never too small, and too large by ERROR_MAX at most.
        """
        assert 0 <= share <= 1, "a share of all"
        # Thousandths of a percent as whole numbers: 0.9 * 10 is not 9 in every case.
        rank = max(1, -(-round(share * 100_000) * self.count // 100_000))
        for bucket, _, upper_us, count in self._sorted():
            assert count > 0, bucket
            rank -= count
            if rank <= 0:
                return min(upper_us, self.most)
        return self.most

    def merged(self, other: LatencyHistogram) -> LatencyHistogram:
        """The durations of both."""
        both = LatencyHistogram()
        for each in (self, other):
            both._add(each)
        return both

    def _add(self, other: LatencyHistogram) -> None:
        if not other.count:
            return
        for bucket, _, _, count in other._sorted():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.least = min(self.least, other.least) if self.count else other.least
        self.most = max(self.most, other.most)
        self._sum += round(other.mean * other.count)
        self.count += other.count

    def counts(self) -> Iterator[tuple[int, int]]:
        """(the least duration that a bucket may hold, how many are in it), ascending, without empty
        ones. None is below `least`.
        """
        for _, lower_us, _, count in self._sorted():
            yield max(lower_us, self.least), count

    def _sorted(self) -> Iterator[tuple[int, int, int, int]]:
        """(bucket, its least and greatest duration, how many are in it), ascending."""
        for bucket in sorted(self._buckets):
            lower_us, upper_us = _edges(bucket)
            yield bucket, lower_us, upper_us, self._buckets[bucket]


def _bucket(value: int) -> int:
    if value < _EXACT:
        return value
    shift = value.bit_length() - _BITS - 1
    return (shift << _BITS) + (value >> shift)


def _edges(bucket: int) -> tuple[int, int]:
    """The least and the greatest value of a bucket."""
    if bucket < _EXACT:
        return bucket, bucket
    shift = (bucket >> _BITS) - 1
    leading = bucket - (shift << _BITS)
    return leading << shift, ((leading + 1) << shift) - 1
