"""Where a time is in a channel's log, against a model whose writers' clocks differ."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from roomcast.log.times import (
    CLOCKS_DIFFER_MS,
    SCAN_ITEMS,
    SCAN_READS_MAX,
    SEARCH_READS_MAX,
    Look,
    Span,
    offset_before,
)

START_MS: Final = 1_000_000


@dataclass(slots=True)
class Log:
    """Items, of which some may be gone. It counts what is read."""

    spans: Sequence[Span]
    searches: int = 0
    scans: int = 0

    @property
    def top(self) -> int:
        return self.spans[-1].last if self.spans else 0

    def look(self, look: Look) -> list[Span]:
        if look.items_max == 1:
            self.searches += 1
        else:
            self.scans += 1
        at = bisect_right(self.spans, look.offset, key=lambda span: span.offset) - 1
        if at < 0 or self.spans[at].last < look.offset:
            return []
        return list(self.spans[at : at + look.items_max])

    def before(self, at_ms: int, hidden: int = 0) -> int:
        search = offset_before(hidden, self.top, at_ms)
        try:
            look = next(search)
            while True:
                look = search.send(self.look(look))
        except StopIteration as found:
            return int(found.value)

    def expected(self, at_ms: int, hidden: int = 0) -> int:
        """By looking at all of them."""
        for span in self.spans:
            if span.last > hidden and span.ts >= at_ms:
                return max(span.offset, hidden + 1) - 1
        return max(self.top, hidden)


@st.composite
def logs(draw: st.DrawFn, differ_ms: int) -> Log:
    """Items of writers whose clocks differ by `differ_ms` at most."""
    offset, now_ms, spans = 1, START_MS, []
    for size, pause_ms, wrong_ms in draw(
        st.lists(
            st.tuples(
                st.integers(1, 4), st.integers(0, 3 * CLOCKS_DIFFER_MS), st.integers(0, differ_ms)
            ),
            max_size=60,
        )
    ):
        now_ms += pause_ms
        spans.append(Span(offset, offset + size - 1, now_ms + wrong_ms))
        offset += size
    return Log(spans)


@given(logs(CLOCKS_DIFFER_MS), st.data())
def test_it_is_the_first_of_that_time_or_later(log: Log, data: st.DataObject) -> None:
    edges = [span.ts + step for span in log.spans for step in (-1, 0, 1)]
    at_ms = data.draw(st.sampled_from([*edges, 0, START_MS, 2**53 - 1]))
    hidden = data.draw(st.integers(0, log.top))
    assert log.before(at_ms, hidden) == log.expected(at_ms, hidden)
    assert log.searches <= math.log2(log.top + 1) + 1


@given(logs(20 * CLOCKS_DIFFER_MS), st.data())
def test_clocks_that_differ_by_more_make_no_search_endless(log: Log, data: st.DataObject) -> None:
    at_ms = data.draw(st.integers(START_MS, START_MS + 100 * CLOCKS_DIFFER_MS))
    assert 0 <= log.before(at_ms) <= log.top
    assert log.searches <= SEARCH_READS_MAX
    assert log.scans <= SCAN_READS_MAX


@given(logs(CLOCKS_DIFFER_MS), st.data())
def test_what_has_expired_is_before_every_time(log: Log, data: st.DataObject) -> None:
    """TTL deletes in any order what history does not show any more."""
    gone = data.draw(st.integers(0, len(log.spans)))
    left = Log([span for index, span in enumerate(log.spans) if index >= gone or index % 3 == 0])
    at_ms = max((span.ts for span in log.spans[:gone]), default=0) + 1
    if left.top == log.top:
        assert left.before(at_ms) == log.expected(at_ms)


def test_what_is_appended_later_moves_nothing() -> None:
    spans = [Span(offset, offset, START_MS + offset * 10) for offset in range(1, 1001)]
    at_ms = START_MS + 5000
    assert {Log(spans[:count]).before(at_ms) for count in range(500, 1001)} == {499}


def test_in_a_quiet_channel_the_search_alone_finds_it() -> None:
    log = Log([Span(n, n, START_MS + n * 60_000) for n in range(1, 1001)])
    assert log.before(START_MS + 500 * 60_000) == 499
    assert (log.searches, log.scans) == (10, 0)


def test_the_reads_are_bounded_however_many_offsets_there_are() -> None:
    log = Log([Span(1, 2**53 - 2, 1), Span(2**53 - 1, 2**53 - 1, START_MS)])
    assert log.before(START_MS) == 2**53 - 2
    assert log.searches <= SEARCH_READS_MAX


def test_a_time_with_too_many_items_begins_too_early_and_leaves_nothing_out() -> None:
    old = [Span(offset, offset, START_MS - 5000) for offset in range(1, 11)]
    count = SCAN_ITEMS * SCAN_READS_MAX + 10
    nearly = [Span(10 + n, 10 + n, START_MS - 1) for n in range(1, count + 1)]
    new = [Span(10 + count + n, 10 + count + n, START_MS + 5000) for n in range(1, 2 * count)]
    log = Log([*old, *nearly, *new])
    assert log.before(START_MS) == 10 + count - 10
    assert log.expected(START_MS) == 10 + count
    assert log.scans == SCAN_READS_MAX
