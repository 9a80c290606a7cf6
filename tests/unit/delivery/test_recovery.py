"""service/roomcast/delivery/recovery.py: the ring against a plain list,
and what a client that comes back is told.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomcast.delivery.recovery import (
    RING_BYTES_MAX,
    RINGS_BYTES_MAX,
    Answer,
    LogNeeded,
    Recovered,
    Ring,
    Rings,
    Trim,
    Unrecovered,
    Window,
    recover,
)
from roomcast.log.item import Head
from roomcast.wire.encoding import Sent
from roomcast.wire.publication import StreamPosition

LINE = b"x" * (RING_BYTES_MAX + 10)


def sent(offset: int, size: int = 10, ts: int = 0) -> Sent:
    return Sent(offset, LINE[:size], ts)


def run(first: int, last: int, size: int = 10) -> list[Sent]:
    return [sent(offset, size, offset) for offset in range(first, last + 1)]


def held(ring: Ring) -> list[Sent]:
    return list(ring._sent)


def check(ring: Ring, publications_max: int) -> None:
    inside = held(ring)
    assert len(ring) == len(inside) <= publications_max
    assert ring._bytes == sum(len(each.line) for each in inside) <= RING_BYTES_MAX
    assert all(after.offset == before.offset + 1 for before, after in pairwise(inside))
    assert ring.first == (inside[0].offset if inside else 0)


# ---- the ring

SIZES = st.sampled_from([1, 10, 1000, RING_BYTES_MAX // 3, RING_BYTES_MAX // 2, RING_BYTES_MAX])


@given(
    st.integers(1, 6),
    st.lists(
        st.lists(st.tuples(st.sampled_from([1, 1, 1, 1, 1, 3]), SIZES), max_size=8), max_size=8
    ),
)
def test_the_ring_is_the_end_of_what_was_appended(
    publications_max: int, batches: list[list[tuple[int, int]]]
) -> None:
    ring = Ring(publications_max)
    plain: list[Sent] = []
    offset = 0
    for batch in batches:
        fresh: list[Sent] = []
        for step, size in batch:
            offset += step
            if step > 1:
                plain.clear()  # a hole
            fresh.append(sent(offset, size))
            plain.append(fresh[-1])
        ring.append(fresh)
        check(ring, publications_max)
        inside = held(ring)
        assert inside == plain[len(plain) - len(inside) :]
        # It keeps as much as it may: the next older one would break a bound.
        if len(inside) < len(plain):
            older = plain[-len(inside) - 1]
            full = len(inside) == publications_max
            assert full or sum(len(each.line) for each in [older, *inside]) > RING_BYTES_MAX


@given(
    st.integers(1, 8),
    st.integers(0, 6),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 5), SIZES), max_size=8),
)
def test_what_is_prepended_continues_the_ring_backwards(
    publications_max: int, top: int, kept: int, older: list[tuple[int, int]]
) -> None:
    ring = Ring(publications_max)
    ring.append(run(top - min(kept, top) + 1, top))
    before = held(ring)
    offered: list[Sent] = []
    for missing, size in older:  # ascending, now and then with a hole, perhaps beyond the top
        offset = (offered[-1].offset if offered else 0) + 1 + missing // 5
        offered.append(sent(offset, size))
    ring.prepend(offered, top)
    check(ring, publications_max)
    inside = held(ring)
    added = inside[: len(inside) - len(before)]
    assert inside[len(added) :] == before, "what was there stays"
    assert all(each in offered for each in added)
    assert not inside or before or inside[-1].offset == top, "an empty ring begins at the top"
    # It takes all that fits and continues.
    wanted = inside[0].offset - 1 if inside else top
    following = [each for each in offered if each.offset == wanted]
    if following:
        full = len(inside) == publications_max
        assert full or ring._bytes + len(following[0].line) > RING_BYTES_MAX


@given(st.integers(1, 6), st.integers(0, 12), st.integers(0, 12), st.integers(0, 13))
def test_what_is_after_an_offset(publications_max: int, first: int, top: int, offset: int) -> None:
    ring = Ring(publications_max)
    everything = run(first + 1, top)
    ring.append(everything)
    found = ring.after(offset, top)
    reachable = [each for each in everything if each.offset > offset]
    covered = offset >= top or (bool(held(ring)) and held(ring)[0].offset <= offset + 1)
    assert found == (reachable if covered and offset < top else [] if covered else None)


def test_a_ring_that_does_not_end_at_the_top_says_so() -> None:
    ring = Ring(5)
    assert ring.after(0, 3) is None
    assert ring.after(3, 3) == []
    ring.append(run(1, 3))
    assert ring.after(1, 3) == run(2, 3)
    assert ring.after(1, 4) is None
    ring.append([sent(6)])
    assert held(ring) == [sent(6)]


def test_a_publication_larger_than_the_ring_leaves_it_empty() -> None:
    ring = Ring(5)
    ring.append([*run(1, 2), sent(3, RING_BYTES_MAX + 1)])
    check(ring, 5)
    assert len(ring) == 0
    ring.append(run(4, 5))
    assert held(ring) == run(4, 5)


# ---- all rings of a node


def test_a_ring_weighs_more_than_its_lines() -> None:
    """Many small publications cost memory for each one as well."""
    ring = Ring(100)
    assert ring.weight == 0
    ring.append(run(1, 100, size=1))
    assert ring.weight > 100 * 100
    ring.clear()
    assert (len(ring), ring.weight, ring.first, ring.after(1, 100)) == (0, 0, 0, None)


def test_the_rings_used_least_recently_are_emptied_first() -> None:
    first, second, third, fourth = (ring_of(1, 10) for _ in range(4))
    rings = Rings(3 * first.weight)
    for ring in (first, second, third):
        rings.used(ring)
    rings.used(first)
    rings.used(fourth)
    assert [len(ring) for ring in (first, second, third, fourth)] == [10, 0, 10, 10]
    assert rings.bytes == 3 * first.weight
    # What was emptied comes in again.
    second.append(run(11, 20))
    rings.used(second)
    assert [len(ring) for ring in (first, second, third, fourth)] == [10, 10, 0, 10]


def test_a_ring_that_is_forgotten_takes_no_room() -> None:
    first, second = ring_of(1, 10), ring_of(1, 10)
    rings = Rings(first.weight)
    rings.used(first)
    rings.drop(first)
    rings.drop(first)
    rings.used(second)
    assert (len(first), len(second), rings.bytes) == (10, 10, second.weight)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["append", "used", "drop"]), SIZES),
        max_size=40,
    )
)
def test_all_rings_together_are_bounded(steps: list[tuple[int, str, int]]) -> None:
    bytes_max = 2 * RING_BYTES_MAX
    rings, several = Rings(bytes_max), [Ring(4) for _ in range(6)]
    tops = [0] * 6
    known: set[int] = set()
    for number, step, size in steps:
        ring = several[number]
        if step == "append":
            tops[number] += 1
            ring.append([sent(tops[number], size)])
        if step == "drop":
            rings.drop(ring)
            ring.clear()
            known.discard(number)
        else:
            rings.used(ring)
            known.add(number)
        assert rings.bytes == sum(several[each].weight for each in known) <= bytes_max
        # The one that was just used keeps everything.
        check(ring, 4)
        assert step != "append" or held(ring)[-1].offset == tops[number]


def test_the_ring_that_was_used_last_is_never_emptied() -> None:
    """It was used in order to answer somebody."""
    first, second = ring_of(1, 10), ring_of(1, 10)
    rings = Rings(first.weight - 1)
    rings.used(first)
    assert len(first) == 10
    rings.used(second)
    assert (len(first), len(second)) == (0, 10)
    assert 100 * RING_BYTES_MAX <= RINGS_BYTES_MAX


# ---- recovery

OPEN = Window(size=100, trim=0, cutoff_ts=0, limit=100)
POSITION = StreamPosition("e", 5)


def ring_of(first: int, last: int) -> Ring:
    ring = Ring(100)
    ring.append(run(first, last))
    return ring


@pytest.mark.parametrize(
    "since, window, answer",
    [
        (StreamPosition("e", 3), OPEN, Recovered(tuple(run(4, 5)))),
        (StreamPosition("", 3), OPEN, Recovered(tuple(run(4, 5)))),
        (StreamPosition("e", 5), OPEN, Recovered(())),
        (StreamPosition("e", 2), OPEN, Recovered(tuple(run(3, 5)))),
        # The ring begins at 3.
        (StreamPosition("e", 1), OPEN, LogNeeded(ahead=False)),
        (StreamPosition("e", 6), OPEN, LogNeeded(ahead=True)),
        # Other epochs, among them the one that SDKs send after "state invalidated".
        (StreamPosition("f", 5), OPEN, Unrecovered()),
        (StreamPosition("_", 0), OPEN, Unrecovered()),
        (StreamPosition("f", 6), OPEN, Unrecovered()),
        # Too many.
        (StreamPosition("e", 3), Window(100, 0, 0, limit=2), Recovered(tuple(run(4, 5)))),
        (StreamPosition("e", 3), Window(100, 0, 0, limit=1), Unrecovered()),
        (StreamPosition("e", 3), Window(size=1, trim=0, cutoff_ts=0, limit=100), Unrecovered()),
        (StreamPosition("e", 5), Window(size=1, trim=0, cutoff_ts=0, limit=100), Recovered(())),
        # Trimmed, too old.
        (
            StreamPosition("e", 3),
            Window(100, trim=3, cutoff_ts=0, limit=100),
            Recovered(tuple(run(4, 5))),
        ),
        (StreamPosition("e", 3), Window(100, trim=4, cutoff_ts=0, limit=100), Unrecovered()),
        (StreamPosition("e", 5), Window(100, trim=5, cutoff_ts=0, limit=100), Recovered(())),
        (
            StreamPosition("e", 3),
            Window(100, trim=0, cutoff_ts=4, limit=100),
            Recovered(tuple(run(4, 5))),
        ),
        (StreamPosition("e", 3), Window(100, trim=0, cutoff_ts=5, limit=100), Unrecovered()),
        (StreamPosition("e", 5), Window(100, trim=0, cutoff_ts=99, limit=100), Recovered(())),
        # What is not to be seen is not worth a read either.
        (StreamPosition("e", 0), Window(size=4, trim=0, cutoff_ts=0, limit=100), Unrecovered()),
        (StreamPosition("e", 0), Window(100, trim=1, cutoff_ts=0, limit=100), Unrecovered()),
    ],
    ids=str,
)
def test_what_a_client_that_comes_back_is_told(
    since: StreamPosition, window: Window, answer: Answer
) -> None:
    assert recover(since, POSITION, ring_of(3, 5), window) == answer


NEWEST = Window(size=1, trim=0, cutoff_ts=0, limit=1, newest_only=True)


@pytest.mark.parametrize(
    "since, first, window, answer",
    [
        # However little or much was missed, and whichever epoch that was in.
        *(
            (since, 3, NEWEST, Recovered(tuple(run(5, 5))))
            for since in (
                StreamPosition("", 0),
                StreamPosition("e", 0),
                StreamPosition("e", 4),
                StreamPosition("f", 5),
                StreamPosition("f", 9),
                # Without an epoch, nobody knows which publication was seen there.
                StreamPosition("", 5),
            )
        ),
        (StreamPosition("e", 5), 3, NEWEST, Recovered(())),
        (StreamPosition("e", 6), 3, NEWEST, LogNeeded(ahead=True)),
        (StreamPosition("", 0), 6, NEWEST, LogNeeded(ahead=False)),
        # Hidden, and too old. Who has it has what there is.
        (StreamPosition("e", 4), 3, replace(NEWEST, trim=5), Unrecovered()),
        (StreamPosition("e", 5), 3, replace(NEWEST, trim=5), Recovered(())),
        (StreamPosition("e", 4), 3, replace(NEWEST, cutoff_ts=6), Unrecovered()),
        (StreamPosition("e", 4), 3, replace(NEWEST, cutoff_ts=5), Recovered(tuple(run(5, 5)))),
    ],
    ids=str,
)
def test_who_wants_the_newest_gets_that(
    since: StreamPosition, first: int, window: Window, answer: Answer
) -> None:
    assert recover(since, POSITION, ring_of(first, 5), window) == answer


@pytest.mark.parametrize("since", [StreamPosition("", 0), StreamPosition("e", 0)], ids=str)
def test_of_a_channel_without_publications_nothing_can_be_had(since: StreamPosition) -> None:
    """As in Centrifugo: only who was shown one can have all there is."""
    assert recover(since, StreamPosition("e", 0), Ring(1), NEWEST) == Unrecovered()


def naive(since: StreamPosition, top: int, first_in_ring: int, window: Window) -> Answer:
    """Said once more, from the log's side: `run` gives each publication its offset as its time."""
    if since.epoch not in ("", "e"):
        return Unrecovered()
    if since.offset > top:
        return LogNeeded(ahead=True)
    missed = run(since.offset + 1, top)
    if not missed:
        return Recovered(())
    newest = run(1, top)[-window.size :] if window.size else []
    if len(missed) > window.limit or any(
        each not in newest or each.offset <= window.trim for each in missed
    ):
        return Unrecovered()
    if any(each.offset < first_in_ring for each in missed):
        return LogNeeded(ahead=False)
    if any(each.ts < window.cutoff_ts for each in missed):
        return Unrecovered()
    return Recovered(tuple(missed))


@settings(max_examples=200)
@given(
    st.builds(StreamPosition, st.sampled_from(["e", "e", "e", "", "f"]), st.integers(0, 10)),
    st.integers(0, 9),
    st.integers(1, 9),
    st.builds(
        Window,
        size=st.integers(0, 10),
        trim=st.integers(0, 10),
        cutoff_ts=st.integers(0, 10),
        limit=st.integers(0, 10),
    ),
)
def test_recovery_is_all_that_was_missed_or_nothing(
    since: StreamPosition, top: int, first: int, window: Window
) -> None:
    position = StreamPosition("e", top)
    answer = recover(since, position, ring_of(first, top), window)
    assert answer == naive(since, top, first, window)
    if isinstance(answer, Recovered):
        assert [each.offset for each in answer.sent] == list(range(since.offset + 1, top + 1))


@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10))
def test_a_read_of_the_log_settles_it(since: int, top: int, first: int) -> None:
    """Never asks for the log twice: what was read answers."""
    ring = ring_of(first + 1, top)
    position = StreamPosition("e", top)
    if recover(StreamPosition("e", since), position, ring, OPEN) == LogNeeded(ahead=False):
        ring.prepend(run(1, top), top)
        assert recover(StreamPosition("e", since), position, ring, OPEN) == Recovered(
            tuple(run(since + 1, top))
        )


# ---- what is hidden


def head(trim: int) -> Head:
    return Head("c", "e", 9, 1, trim, "v", 1)


def test_what_another_node_hides_is_hidden_until_the_head_is_read() -> None:
    trim = Trim()
    trim.hint(5)
    trim.hint(3)
    assert trim.offset == 5
    trim.read(head(4), hints=2, now_s=7.0)
    assert (trim.offset, trim.read_at_s) == (4, 7.0)
    trim.read(None, hints=2, now_s=8.0)
    assert trim.offset == 0


def test_a_head_that_was_read_before_a_hint_takes_nothing_back() -> None:
    trim = Trim()
    before = trim.hints
    trim.hint(5)
    trim.read(head(4), before, now_s=7.0)
    assert trim.offset == 5
