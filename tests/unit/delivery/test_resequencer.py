"""service/roomcast/delivery/resequencer.py: everything once, in order, without a hole,
whatever arrives in whatever order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomcast.delivery import resequencer as resequencer_module
from roomcast.delivery.gap_wait import GapWait
from roomcast.delivery.resequencer import (
    EXPRESS_HELD_S,
    HELD_BYTES_MAX,
    HELD_PUBLICATIONS_MAX,
    Next,
    Resequencer,
    weight,
)
from roomcast.wire.publication import Publication, Record, StreamPosition

GAP_WAIT_S = 0.5


def record(
    offset: int, last: int | None = None, *, epoch: str = "e", pointer: bool = False
) -> Record:
    end = last or offset
    publications = tuple(Publication(each, each) for each in range(offset, end + 1))
    return Record("c", epoch, offset, end, 1000 + offset, None if pointer else publications)


def begin(top: int = 0) -> Resequencer:
    return Resequencer(StreamPosition("e", top), GapWait(round(GAP_WAIT_S * 1000)))


def offsets(passed: list[Next]) -> list[int]:
    return [publication.offset for each in passed for publication in each.publications]


# ---- one thing at a time


def test_what_comes_next_passes_at_once() -> None:
    order = begin(4)
    (passed,) = order.offer(record(5, 7), 0.0)
    assert [publication.offset for publication in passed.publications] == [5, 6, 7]
    assert passed.ts == 1005
    assert order.position == StreamPosition("e", 7)
    assert (order.known, order.read_at, order.doubted) == (7, None, None)


@pytest.mark.parametrize("offset, last", [(1, 1), (3, 5), (5, 5)])
def test_a_repeat_is_dropped(offset: int, last: int) -> None:
    order = begin(5)
    assert order.offer(record(offset, last), 0.0) == []
    assert order.offer(record(offset, last, pointer=True), 0.0) == []
    assert (order.top, order.known, order.read_at) == (5, 5, None)


def test_of_a_record_across_the_top_only_the_rest_passes() -> None:
    order = begin(5)
    assert offsets(order.offer(record(3, 7), 0.0)) == [6, 7]
    assert offsets(order.offer(record(7, 8), 0.0)) == [8]


def test_what_is_ahead_is_held_until_the_hole_is_filled() -> None:
    order = begin()
    assert order.offer(record(3, 4), 10.0) == []
    assert order.offer(record(6), 10.1) == []
    assert order.offer(record(3, 4), 10.2) == []
    assert order.known == 6
    passed = order.offer(record(1, 2), 10.3)
    assert offsets(passed) == [1, 2, 3, 4]
    # Since it came for the first time.
    assert [each.held_s for each in passed] == pytest.approx([0.0, 0.3])
    assert offsets(order.offer(record(5), 10.4)) == [5, 6]
    assert order.read_at is None


def test_what_is_held_keeps_its_own_time() -> None:
    order = begin()
    order.offer(record(2), 0.0)
    assert [each.ts for each in order.offer(record(1), 0.0)] == [1001, 1002]


def test_a_held_record_that_was_overtaken_is_forgotten() -> None:
    order = begin()
    order.offer(record(3), 0.0)
    order.offer(record(5, 6), 0.0)
    assert offsets(order.offer(record(1, 4), 0.0)) == [1, 2, 3, 4, 5, 6]
    assert order._held == {}
    assert order._held_publications == order._held_bytes == 0


# ---- when the log is to be read


def test_a_hole_has_a_while_to_fill_by_itself() -> None:
    order = begin()
    order.offer(record(2), 10.0)
    assert order.read_at == 10.0 + GAP_WAIT_S
    order.offer(record(4), 10.4)
    assert order.read_at == 10.0 + GAP_WAIT_S, "what comes later does not put it off"
    order.offer(record(1), 10.45)
    assert order.read_at == 10.0 + GAP_WAIT_S, "there is another hole"
    order.offer(record(3), 10.46)
    assert order.read_at is None


def test_a_pointer_is_to_be_read_at_once() -> None:
    order = begin()
    assert order.offer(record(1, 2, pointer=True), 10.0) == []
    assert (order.read_at, order.known, order.top) == (10.0, 2, 0)
    order = begin()
    order.offer(record(3), 10.0)
    order.offer(record(2, pointer=True), 10.1)
    assert order.read_at == 10.1


def test_what_the_log_is_seen_to_hold_is_to_be_read_at_once() -> None:
    order = begin(5)
    order.exists(5, 10.0)
    order.exists(3, 10.0)
    assert (order.read_at, order.known) == (None, 5)
    order.offer(record(7), 10.0)
    order.exists(7, 10.2)
    assert (order.read_at, order.known) == (10.2, 7)
    order.exists(9, 10.3)
    assert (order.read_at, order.known) == (10.3, 9)


def test_what_was_made_up_is_forgotten_with_all_that_is_held() -> None:
    order = begin(5)
    order.offer(record(9), 10.0)
    order.offer(record(100, pointer=True), 10.0)
    order.disclaim()
    assert (order.top, order.known, order.read_at) == (5, 5, None)
    assert offsets(order.offer(record(6, 8), 10.1)) == [6, 7, 8]
    assert (order.known, order.read_at) == (8, None), "9 is not there any more"


def test_nothing_is_wished_for_while_a_read_is_under_way() -> None:
    order = begin()
    order.exists(3, 10.0)
    assert order.reading() == 3
    assert order.read_at is None
    assert offsets(order.offer(record(1), 10.1)) == [1]
    order.offer(record(5), 10.2)
    passed, whole = order.read([record(1, 2), record(3)], 3, 10.3)
    assert whole
    assert offsets(passed) == [2, 3]
    assert order.read_at is not None, "4 became a hole meanwhile"
    assert order.read_at <= 10.3 + GAP_WAIT_S


def test_a_read_that_failed_is_put_off() -> None:
    order = begin()
    order.exists(3, 10.0)
    order.reading()
    order.postpone(11.0)
    assert order.read_at == 11.0
    assert order.reading() == 3


@pytest.mark.parametrize(
    "found, out, whole",
    [
        ([], [], False),
        ([record(1)], [1], False),
        ([record(2, 3)], [], False),
        ([record(1), record(3)], [1], False),
        ([record(1, 3)], [1, 2, 3], True),
        ([record(1), record(2), record(3, 9)], [1, 2, 3, 4, 5, 6, 7, 8, 9], True),
    ],
)
def test_a_read_that_misses_what_is_known_tells_of_a_hole(
    found: list[Record], out: list[int], whole: bool
) -> None:
    order = begin()
    order.exists(3, 10.0)
    must_reach = order.reading()
    passed, told = order.read(found, must_reach, 10.1)
    assert offsets(passed) == out
    assert told is whole


def test_what_becomes_known_during_a_read_need_not_be_in_it() -> None:
    order = begin()
    order.exists(2, 10.0)
    must_reach = order.reading()
    order.exists(4, 10.1)
    passed, whole = order.read([record(1, 2)], must_reach, 10.2)
    assert whole
    assert offsets(passed) == [1, 2]
    assert order.read_at is not None


# ---- bounds


def test_held_publications_are_bounded_and_the_rest_comes_from_the_log() -> None:
    order = begin()
    for start in range(2, 3002, 500):
        order.offer(record(start, start + 499), 0.0)
    assert order._held_publications == HELD_PUBLICATIONS_MAX
    assert offsets(order.offer(record(1), 0.0)) == list(range(1, 1002))
    assert order._held_publications == 0
    assert order.known == 3001
    assert order.read_at is not None
    passed, whole = order.read([record(1002, 3001)], order.reading(), 1.0)
    assert whole
    assert offsets(passed) == list(range(1002, 3002))


def large(offset: int, size: int) -> Record:
    """One publication of about `size` bytes."""
    return Record("c", "e", offset, offset, 0, (Publication("x" * size, offset),))


def test_held_bytes_are_bounded_and_the_rest_comes_from_the_log() -> None:
    order = begin()
    size = HELD_BYTES_MAX // 10
    for offset in range(2, 22):
        order.offer(large(offset, size), 0.0)
    assert len(order._held) == 9
    assert 9 * size <= order._held_bytes <= HELD_BYTES_MAX
    order.offer(record(22), 0.0)
    assert 22 in order._held, "a small one fits yet"
    assert offsets(order.offer(record(1), 0.0)) == list(range(1, 11))
    assert order.known == 22
    assert order.read_at is not None, "what was not held is a hole"
    found = [large(offset, size) for offset in range(11, 22)]
    passed, whole = order.read(found, order.reading(), 1.0)
    assert whole
    assert offsets(passed) == list(range(11, 23))
    assert order._held_bytes == 0


def test_what_cannot_be_written_is_not_held() -> None:
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    order = begin()
    record_of_it = Record("c", "e", 3, 3, 0, (Publication(deep, 3),))
    assert weight(record_of_it) == HELD_BYTES_MAX
    order.offer(record(2), 0.0)
    order.offer(record_of_it, 0.0)
    assert list(order._held) == [2]
    assert order.known == 3


def test_a_hole_waits_for_as_long_as_is_right_when_it_is_seen() -> None:
    gap_wait = GapWait()
    order = Resequencer(StreamPosition("e", 0), gap_wait)
    gap_wait.took(400)
    order.offer(record(2), 10.0)
    assert order.read_at == 10.6
    gap_wait.took(900)
    order.offer(record(3), 10.1)
    assert order.read_at == 10.6
    order.offer(record(1), 10.2)
    order.offer(record(5), 11.0)
    assert order.read_at == 12.35


def test_a_channel_always_has_an_epoch() -> None:
    with pytest.raises(AssertionError, match="epoch"):
        Resequencer(StreamPosition("", 0), GapWait())


# ---- epochs


def test_another_epoch_is_doubted_and_delivers_nothing() -> None:
    order = begin(2)
    assert order.offer(record(3, epoch="other"), 10.0) == []
    assert order.offer(record(1, pointer=True, epoch="other"), 10.0) == []
    assert order.doubted == "other"
    assert (order.top, order.known, order.read_at) == (2, 2, None)
    assert offsets(order.offer(record(3), 10.1)) == [3]
    assert order.doubted == "other"


def test_a_refuted_epoch_is_not_doubted_again() -> None:
    order = begin()
    order.offer(record(1, epoch="old"), 0.0)
    order.refute("old")
    assert order.doubted is None
    order.offer(record(2, epoch="old"), 0.0)
    assert order.doubted is None
    order.offer(record(1, epoch="older"), 0.0)
    assert order.doubted == "older"


def test_refuting_one_epoch_leaves_the_doubt_about_another() -> None:
    order = begin()
    order.offer(record(1, epoch="a"), 0.0)
    order.offer(record(1, epoch="b"), 0.0)
    order.refute("a")
    assert order.doubted == "b"


def test_refuted_epochs_are_bounded() -> None:
    order = begin()
    for number in range(100):
        order.refute(str(number))
    assert len(order._refuted) < 20
    order.offer(record(1, epoch="99"), 0.0)
    assert order.doubted is None
    order.offer(record(1, epoch="0"), 0.0)
    assert order.doubted == "0"


# ---- express hints


def hint(offset: int, last: int | None = None, *, epoch: str = "e", data: str = "") -> Record:
    made = record(offset, last, epoch=epoch)
    if data:
        made = replace(made, publications=(Publication(data, offset),))
    return replace(made, express=True)


def test_a_hint_that_comes_next_passes_and_its_record_is_a_repeat() -> None:
    order = begin(4)
    assert offsets(order.offer(hint(5, 6), 0.0)) == [5, 6]
    assert (order.top, order.known, order.read_at) == (6, 6, None)
    assert order.offer(record(5, 6), 0.0) == []
    assert offsets(order.offer(hint(6, 7), 0.0)) == [7]


def test_a_hint_shows_no_hole_and_fills_one() -> None:
    order = begin()
    assert order.offer(hint(3), 10.0) == []
    assert (order.read_at, order.known) == (None, 0)
    # The stream does.
    assert order.offer(record(2), 10.1) == []
    assert (order.read_at, order.known) == (10.1 + GAP_WAIT_S, 2)
    assert offsets(order.offer(hint(1), 10.2)) == [1, 2, 3]
    assert (order.read_at, order.known) == (None, 3)


def test_a_hint_that_fills_a_part_of_a_hole_leaves_its_time() -> None:
    order = begin()
    order.offer(record(3), 10.0)
    assert offsets(order.offer(hint(1), 10.1)) == [1]
    assert order.read_at == 10.0 + GAP_WAIT_S


def test_a_hint_of_another_epoch_raises_no_doubt() -> None:
    order = begin()
    assert order.offer(hint(1, epoch="x"), 0.0) == []
    assert (order.doubted, order.top) == (None, 0)


def test_a_hint_is_not_held_for_long() -> None:
    order = begin()
    order.offer(hint(2, data="forged"), 0.0)
    order.offer(hint(4), 1.0)
    (passed,) = order.offer(record(1), EXPRESS_HELD_S)
    assert [each.offset for each in passed.publications] == [1]
    assert offsets(order.offer(record(2, 3), EXPRESS_HELD_S)) == [2, 3, 4], "4 came later"
    assert order._held_publications == order._held_bytes == 0


def test_what_the_stream_brings_takes_the_place_of_a_hint() -> None:
    order = begin()
    order.offer(hint(2, data="forged"), 0.0)
    order.offer(record(2), 0.1)
    order.offer(hint(2, data="forged"), 0.2)
    passed = order.offer(record(1), EXPRESS_HELD_S + 1)
    assert [each.data for some in passed for each in some.publications] == [1, 2]
    assert order._held_publications == order._held_bytes == 0


def test_hints_ahead_are_bounded() -> None:
    order = begin()
    for offset in range(2, 3 * HELD_PUBLICATIONS_MAX):
        order.offer(hint(offset), 0.0)
        order.offer(hint(offset), 0.0)
    assert len(order._held) == len(order._express) == HELD_PUBLICATIONS_MAX
    # They take no place from others for ever.
    order.offer(record(3 * HELD_PUBLICATIONS_MAX), EXPRESS_HELD_S)
    assert list(order._held) == [3 * HELD_PUBLICATIONS_MAX]
    assert not order._express


def test_what_is_disclaimed_is_disclaimed_of_hints_too() -> None:
    order = begin()
    order.offer(hint(3), 0.0)
    order.disclaim()
    assert (order._held, list(order._express)) == ({}, [])


# ---- all together: any log, any order of arrival, with a shell that reads the
# log when it is asked to


@dataclass
class Shell:
    """Does for one resequencer what the dispatcher does: reads when `read_at` has come,
    and tells of a hole.
    """

    log: list[Record]
    order: Resequencer
    read_publications_max: int
    start: int
    now_s: float = 0.0
    out: list[int] = field(default_factory=list)
    reading: tuple[int, list[Record], bool] | None = None
    reads: int = 0
    lost: bool = False

    def offer(self, index: int, pointer: bool) -> None:
        offered = self.log[index]
        if pointer:
            offered = record(offered.offset, offered.last, pointer=True)
        self._take(self.order.offer(offered, self.now_s))
        self.check()

    def hint(self, index: int) -> None:
        before = self.order.read_at
        self._take(self.order.offer(replace(self.log[index], express=True), self.now_s))
        assert self.order.read_at in (None, before), "a hint never leads to a read"
        self.check()

    def attend(self) -> None:
        read_at = self.order.read_at
        if not self.lost and self.reading is None and read_at is not None and read_at <= self.now_s:
            self.begin_read()

    def begin_read(self) -> None:
        """What a consistent read gives: from the item that spans the next offset,
        to a hole or the limit.
        """
        must_reach, after = self.order.reading(), self.order.top
        found: list[Record] = []
        count = 0
        for each in self.log:
            if each.last <= after:
                continue
            if found and each.offset != found[-1].last + 1:
                break
            found.append(each)
            count += each.last - each.offset + 1
            if count >= self.read_publications_max:
                break
        self.reads += 1
        self.reading = (must_reach, found, count >= self.read_publications_max)

    def finish_read(self) -> None:
        if self.reading is None:
            return
        (must_reach, found, cut_off), self.reading = self.reading, None
        reach = min(must_reach, found[-1].last) if cut_off else must_reach
        passed, whole = self.order.read(found, reach, self.now_s)
        self._take(passed)
        if not whole:
            self.lost = True
        elif reach < must_reach:
            self.order.exists(must_reach, self.now_s)
        self.check()

    def _take(self, passed: list[Next]) -> None:
        for each in passed:
            assert each.publications, "nothing is announced as next"
            numbers = [publication.offset for publication in each.publications]
            assert all(publication.data == publication.offset for publication in each.publications)
            self.out.extend(numbers)

    def check(self) -> None:
        """What holds after every step."""
        order = self.order
        assert self.out == list(range(self.start + 1, order.top + 1)), "I3: in order, once, no hole"
        held = [each for each, _, _ in order._held.values()]
        assert order._held_publications == sum(each.last - each.offset + 1 for each in held)
        assert order._held_publications <= HELD_PUBLICATIONS_MAX
        assert order._held_bytes == sum(weight(each) for each in held)
        assert order._held_bytes <= resequencer_module.HELD_BYTES_MAX
        assert order.known >= order.top
        if order.known > order.top:
            assert self.reading or self.lost or order.read_at is not None, (
                "a hole is never forgotten"
            )
        if order.read_at is not None:
            assert order.read_at <= self.now_s + GAP_WAIT_S, "a hole is not left open for longer"

    def settle(self) -> None:
        """No more records come: the tail check tells where the log ends, and the holes are read."""
        self.order.exists(self.log[-1].last, self.now_s)
        for _ in range(len(self.log) + 2):
            self.finish_read()
            if self.lost or self.order.read_at is None:
                return
            self.now_s = max(self.now_s, self.order.read_at)
            self.attend()
        raise AssertionError("reading does not come to an end")


SIZES = st.lists(st.sampled_from([1, 1, 1, 2, 3, 400]), min_size=1, max_size=12)
ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(
            ["offer", "offer", "offer", "hint", "hint", "pointer", "attend", "finish", "exists"]
        ),
        st.integers(0, 100),
        st.sampled_from([0.0, 0.01, 0.3, GAP_WAIT_S]),
    ),
    max_size=50,
)


def make_log(sizes: list[int]) -> list[Record]:
    log: list[Record] = []
    offset = 1
    for size in sizes:
        log.append(record(offset, offset + size - 1))
        offset += size
    return log


def arrive(shell: Shell, arrivals: list[tuple[str, int, float]]) -> None:
    for kind, number, pause_s in arrivals:
        shell.now_s += pause_s
        index = number % len(shell.log)
        match kind:
            case "offer" | "pointer":
                shell.offer(index, kind == "pointer")
            case "hint":
                shell.hint(index)
            case "attend":
                shell.attend()
            case "finish":
                shell.finish_read()
            case _:
                shell.order.exists(shell.log[index].last, shell.now_s)
                shell.check()
        if shell.lost:
            return


@settings(max_examples=250)
@given(
    SIZES,
    ARRIVALS,
    st.integers(0, 1000),
    st.sampled_from([1, 2, 500, 10_000]),
    st.sampled_from([HELD_BYTES_MAX, 100, 0]),
)
def test_every_publication_passes_once_and_in_order(
    sizes: list[int],
    arrivals: list[tuple[str, int, float]],
    start: int,
    read_max: int,
    held_bytes_max: int,
) -> None:
    log = make_log(sizes)
    start %= log[-1].last + 1
    shell = Shell(log, begin(start), read_max, start)
    with patch.object(resequencer_module, "HELD_BYTES_MAX", held_bytes_max):
        arrive(shell, arrivals)
        shell.settle()
    assert not shell.lost, "nothing is missing in this log"
    assert shell.out == list(range(start + 1, log[-1].last + 1))
    assert shell.order.read_at is None
    assert (shell.order._held, shell.order._held_publications, shell.order._held_bytes) == (
        {},
        0,
        0,
    )
    assert shell.order.doubted is None


@settings(max_examples=100)
@given(SIZES, ARRIVALS, st.integers(0, 11), st.sampled_from([1, 2, 500, 10_000]))
def test_a_hole_in_the_log_is_told_and_never_jumped_over(
    sizes: list[int], arrivals: list[tuple[str, int, float]], missing: int, read_max: int
) -> None:
    whole = make_log(sizes)
    hole = whole[missing % len(whole)]
    log = [each for each in whole if each is not hole]
    if not log or log[-1].last < hole.offset:
        return  # the end of a log that is shorter
    shell = Shell(log, begin(), read_max, 0)
    arrive(shell, arrivals)
    if not shell.lost:
        shell.settle()
    assert shell.lost
    assert shell.out == list(range(1, shell.order.top + 1))
    assert shell.order.top < hole.offset


@given(SIZES, st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=5))
def test_a_shuffle_without_loss_needs_no_read(
    sizes: list[int], permutation: list[int], repeated: list[int]
) -> None:
    log = make_log([min(size, 50) for size in sizes])  # within what may be held
    shell = Shell(log, begin(), 1, 0)
    for index in [*permutation, *repeated]:
        if index < len(log):
            shell.offer(index, pointer=False)
    assert shell.out == list(range(1, log[-1].last + 1))
    assert shell.order.read_at is None
    assert shell.reads == 0
