"""Finds where a time is in a channel's log, at a bounded number of reads.

Offsets ascend with appends. The times of appends nearly do: an append is made after the one below
it is in, but perhaps by another node, whose clock differs. Where a time is, is defined without
clocks that agree: before the first publication whose append has that time or a later one. What is
in the log stays, so that place does not change once something has been appended at that time or
later.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

from roomcast.frozen import frozen

__all__ = [
    "ALWAYS",
    "CLOCKS_DIFFER_MS",
    "SCAN_ITEMS",
    "SCAN_READS_MAX",
    "SEARCH_READS_MAX",
    "Look",
    "Span",
    "Times",
    "offset_before",
]

# How far the clocks of two writers may be apart. Clocks that are kept by NTP differ by some
# milliseconds. If they differ by more than this, a place is found that is some publications off.
CLOCKS_DIFFER_MS: Final = 1000
# Reads of a search: an offset has 53 bits, and each read halves what is left.
SEARCH_READS_MAX: Final = 53
# Then the items of the time in which clocks may differ are looked at one by one. A channel has some
# ten appends a second.
SCAN_ITEMS: Final = 25
SCAN_READS_MAX: Final = 20


@frozen
class Times:
    """What is asked for: from `since_ms` on, and before `until_ms`. None = no bound."""

    since_ms: int | None = None
    until_ms: int | None = None


ALWAYS: Final = Times()


@frozen
class Span:
    """An item of the log: its first and last offset, and the time of its append (ms)."""

    offset: int
    last: int
    ts: int


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be read: the item with `offset` if `items_max` is 1, else as many from it on.

    The answer has the items that there are, ascending and without a hole. It is empty where the
    item with `offset` is not there, as it has expired.
    """

    offset: int
    items_max: int


def offset_before(hidden: int, top: int, at_ms: int) -> Generator[Look, Sequence[Span], int]:
    """The last offset before the first one behind `hidden` whose append has the time `at_ms` or a
    later one; `top` if there is none.

    Asks for what is to be read. It is exact as long as clocks differ by CLOCKS_DIFFER_MS at most,
    and that time has no more than SCAN_READS_MAX * SCAN_ITEMS items; else it may be too low.
    """
    # All before `low` is older: what is before an item that is older by the difference of clocks,
    # is older itself. `known` is the first offset known not to be older.
    low, high = hidden + 1, top + 1
    known = high
    while low < high:
        middle = (low + high) // 2
        found = yield Look(middle, 1)
        if not found:
            low = middle + 1
            continue
        span = found[0]
        if span.ts < at_ms - CLOCKS_DIFFER_MS:
            low = span.last + 1
        else:
            high = max(low, span.offset)
        if span.ts >= at_ms:
            known = min(known, max(span.offset, hidden + 1))
    at = low
    for _ in range(SCAN_READS_MAX):
        if at >= known:
            break
        found = yield Look(at, SCAN_ITEMS)
        for span in found:
            if span.ts >= at_ms or at >= known:
                return min(max(span.offset, at), known) - 1
            at = span.last + 1
        if not found:
            # Deleted meanwhile, so it had expired.
            break
    return min(at, known) - 1
