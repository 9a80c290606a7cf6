"""service/roomcast/log/rules.py: until when a tail is valid,
what an append and a head say, what a reader sees.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomcast.log.item import Head, LogItem
from roomcast.log.rules import (
    HEAD_GRACE_MS,
    MARGIN_MS,
    MIN_RETENTION_MS,
    Pending,
    Tail,
    append_item,
    contiguous,
    head_tail,
    is_of_generation,
    item_tail,
    new_epoch,
    next_head,
    renewal_due,
)

HOUR_MS = 60 * 60 * 1000
NOW = 1_700_000_000_000
EPOCH = "g1.abc"


def item(
    offset: int = 1, last: int | None = None, *, epoch: str = EPOCH, expires_at: int = NOW // 1000
) -> LogItem:
    return LogItem("c", offset, last or offset, epoch, "[]", "b", "n", NOW, expires_at)


def head(floor: int = 0, *, epoch: str = EPOCH, tail_valid_until: int = NOW, trim: int = 0) -> Head:
    return Head("c", epoch, floor, tail_valid_until, trim, "v", 0)


def test_the_constants_that_no_release_may_lower() -> None:
    assert MIN_RETENTION_MS >= 24 * HOUR_MS
    assert MARGIN_MS >= HOUR_MS // 2
    # Longer than the longest history_ttl: what a head hides must not come back
    # while its items live.
    assert HEAD_GRACE_MS > 366 * 24 * HOUR_MS


# ---- generations

GENERATIONS = st.text("ab.-", min_size=1, max_size=6)
RANDOM_TEXTS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=10)


@given(GENERATIONS, GENERATIONS, RANDOM_TEXTS)
def test_an_epoch_is_of_the_generation_that_made_it(
    mine: str, other: str, random_text: str
) -> None:
    epoch = new_epoch(mine, random_text)
    assert is_of_generation(epoch, mine)
    assert is_of_generation(epoch, other) == (mine == other)


def test_two_epochs_of_a_generation_differ() -> None:
    assert new_epoch("g", "a") != new_epoch("g", "b")


# ---- how long a tail is valid


def test_a_log_item_is_a_tail_until_half_an_hour_before_it_may_be_deleted() -> None:
    newest = item(4, 6, expires_at=NOW // 1000)
    end = NOW - MARGIN_MS
    assert item_tail(newest, end - 1, "g1") == Tail(EPOCH, 6, end, NOW // 1000)
    assert item_tail(newest, end, "g1") is None
    assert item_tail(newest, end + 1, "g1") is None


def test_a_head_is_a_tail_until_half_an_hour_before_its_word_ends() -> None:
    end = NOW - MARGIN_MS
    newest = item(1, 5, expires_at=77)
    assert head_tail(head(5), newest, end - 1, "g1") == Tail(EPOCH, 5, end, 77)
    assert head_tail(head(5), newest, end, "g1") is None
    assert head_tail(head(5), None, end - 1, "g1") == Tail(EPOCH, 5, end, 0)
    assert head_tail(None, newest, end - 1, "g1") is None
    assert head_tail(None, None, end - 1, "g1") is None


@pytest.mark.parametrize("floor, tells", [(4, False), (5, True), (6, True)])
def test_a_head_says_nothing_beneath_the_newest_item(floor: int, tells: bool) -> None:
    tail = head_tail(head(floor), item(1, 5), NOW - 2 * MARGIN_MS, "g1")
    assert (tail is not None) is tells
    assert tail is None or tail.top == floor


def test_a_tail_of_another_generation_is_exhausted() -> None:
    early = NOW - 2 * MARGIN_MS
    assert item_tail(item(), early, "g1") is not None
    assert item_tail(item(), early, "g2") is None
    assert head_tail(head(), None, early, "g1") is not None
    assert head_tail(head(), None, early, "g2") is None


def test_a_tail_has_a_position() -> None:
    position = Tail(EPOCH, 5, 0, 0).position
    assert (position.epoch, position.offset) == (EPOCH, 5)


def test_renewal_is_due_under_half_of_the_shortest_life() -> None:
    half = MIN_RETENTION_MS // 2
    assert not renewal_due(Tail(EPOCH, 1, NOW + half, 0), NOW)
    assert renewal_due(Tail(EPOCH, 1, NOW + half - 1, 0), NOW)


# ---- heads


@given(
    st.none() | st.integers(0, 50),
    st.none() | st.integers(1, 50),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, NOW),
)
def test_a_head_never_takes_back(
    floor: int | None, newest: int | None, old_trim: int, trim: int, read_at: int
) -> None:
    old = None if floor is None else head(floor, epoch="g1.old", trim=old_trim)
    last = None if newest is None else item(1, newest, epoch="g1.old")
    made = next_head("c", old, last, epoch="g1.new", version="w", read_at=read_at, trim=trim)
    assert made.floor == max(floor or 0, newest or 0)
    assert made.trim == max(trim, old_trim if old else 0)
    assert next_head("c", old, last, epoch="e", version="w", read_at=0).trim == (
        old_trim if old else 0
    )
    assert (made.channel, made.epoch, made.version) == ("c", "g1.new", "w")
    # Its word counts from before the read on which it rests, and never ends before the old one.
    assert made.tail_valid_until == max(
        read_at + MIN_RETENTION_MS, old.tail_valid_until if old else 0
    )
    assert made.expires_at * 1000 > made.tail_valid_until + HEAD_GRACE_MS - 1000


@given(st.integers(0, 9), st.none() | st.integers(1, 9))
def test_a_fresh_head_is_a_tail_at_once_and_for_most_of_a_day(
    floor: int, newest: int | None
) -> None:
    last = None if newest is None else item(1, newest, expires_at=NOW // 1000)
    made = next_head("c", head(floor), last, epoch=EPOCH, version="w", read_at=NOW)
    tail = head_tail(made, last, NOW, "g1")
    assert tail is not None
    assert tail.top == made.floor
    assert not renewal_due(tail, NOW)
    assert head_tail(made, last, NOW + 23 * HOUR_MS, "g1") == tail
    assert head_tail(made, last, NOW + 24 * HOUR_MS - MARGIN_MS, "g1") is None


# ---- appends

TEXTS = st.lists(
    st.integers(0, 99).map(lambda number: json.dumps({"data": number})), min_size=1, max_size=5
)


@given(
    TEXTS,
    st.integers(0, 1000),
    st.integers(0, 100).map(lambda hours: hours * HOUR_MS + 1),
    st.integers(0, 80).map(lambda hours: (NOW + hours * HOUR_MS) // 1000),
)
def test_an_append_continues_its_tail_and_outlives_it(
    texts: list[str], top: int, history_ttl_ms: int, expires_at: int
) -> None:
    tail = Tail(EPOCH, top, NOW + 1, expires_at)
    made = append_item(
        "c",
        tail,
        [Pending.of(text) for text in texts],
        batch="b",
        node="n",
        now=NOW,
        history_ttl_ms=history_ttl_ms,
    )
    assert (made.channel, made.epoch, made.batch, made.node, made.ts) == ("c", EPOCH, "b", "n", NOW)
    assert (made.offset, made.last) == (top + 1, top + len(texts))
    assert json.loads(made.pubs) == [json.loads(text) for text in texts]
    assert made.expires_at >= tail.expires_at
    assert made.expires_at >= (NOW + MIN_RETENTION_MS) // 1000
    assert made.expires_at >= (NOW + history_ttl_ms) // 1000
    assert made.expires_at in {
        expires_at,
        (NOW + MIN_RETENTION_MS) // 1000,
        (NOW + history_ttl_ms) // 1000,
    }
    followed = item_tail(made, NOW, "g1")
    assert followed == Tail(EPOCH, made.last, made.expires_at * 1000 - MARGIN_MS, made.expires_at)


def test_a_size_counts_bytes_and_the_comma() -> None:
    assert Pending.of("{}").size == 3
    assert Pending.of('"ä😀"').size == 9


# ---- what a reader sees


@st.composite
def damaged_logs(draw: st.DrawFn) -> list[LogItem]:
    """Ascending items of two epochs, some missing."""
    items: list[LogItem] = []
    offset = 1
    for epoch in ("old", "new"):
        for _ in range(draw(st.integers(0, 6))):
            last = offset + draw(st.integers(0, 2))
            if draw(st.integers(0, 4)):
                items.append(item(offset, last, epoch=epoch))
            offset = last + 1
    return items


@given(damaged_logs(), st.sampled_from(["old", "new"]))
def test_history_is_the_whole_run_at_the_end(items: list[LogItem], epoch: str) -> None:
    def is_run(run: Sequence[LogItem]) -> bool:
        whole = all(before.last + 1 == after.offset for before, after in pairwise(run))
        return whole and all(each.epoch == epoch for each in run)

    runs = [items[start:] for start in range(len(items) + 1) if is_run(items[start:])]
    assert list(contiguous(items, epoch)) == max(runs, key=len)


# ---- all together: I1 under deletion in any order and clocks that differ


@dataclass
class Model:
    """One channel's table in true time, written by nodes whose clocks differ by less
    than half of MARGIN.

    A write happens between reading and deletion without pause:
    what a paused writer may do is the business of the append's own check, and of the simulation.
    """

    now: int = NOW
    head: Head | None = None
    items: list[LogItem] = field(default_factory=list)
    bound: dict[tuple[str, int], str] = field(default_factory=dict)
    ids: count[int] = field(default_factory=count)

    @property
    def newest(self) -> LogItem | None:
        return max(self.items, key=lambda item: item.offset, default=None)

    def resolve(self, clock: int) -> Tail:
        for _ in range(2):
            newest = self.newest
            tail = item_tail(newest, clock, "g") if newest else None
            tail = tail or head_tail(self.head, newest, clock, "g")
            if tail is not None:
                return tail
            self.write_head(clock, new_epoch("g", str(next(self.ids))))
        raise AssertionError("a rotated channel has a tail")

    def write_head(self, clock: int, epoch: str) -> None:
        self.head = next_head(
            "c", self.head, self.newest, epoch=epoch, version=str(next(self.ids)), read_at=clock
        )

    def renew(self, clock: int) -> None:
        tail = self.resolve(clock)
        if renewal_due(tail, clock):
            self.write_head(clock, tail.epoch)
            assert self.head is not None
            assert self.head.floor == tail.top
            renewed = self.resolve(clock)
            assert (renewed.epoch, renewed.top) == (tail.epoch, tail.top), (
                "renewal changes no position"
            )

    def append(self, clock: int, size: int, history_ttl_ms: int) -> None:
        tail = self.resolve(clock)
        batch = str(next(self.ids))
        made = append_item(
            "c",
            tail,
            [Pending.of("0")] * size,
            batch=batch,
            node="n",
            now=clock,
            history_ttl_ms=history_ttl_ms,
        )
        assert made.offset not in {item.offset for item in self.items}, "the key is free"
        for offset in range(made.offset, made.last + 1):
            assert self.bound.setdefault((made.epoch, offset), batch) == batch, (
                "I1: one content an offset"
            )
        before = [
            offset for epoch, offset in self.bound if epoch == made.epoch and offset < made.offset
        ]
        assert not before or max(before) == made.offset - 1, "I1: no hole"
        newest = self.newest
        assert newest is None or made.offset > newest.last, "I1: nothing goes beneath what is there"
        assert newest is None or made.expires_at >= newest.expires_at
        self.items.append(made)

    def delete(self, expired: int) -> None:
        deletable = [item for item in self.items if item.expires_at * 1000 < self.now]
        if deletable:
            self.items.remove(deletable[expired % len(deletable)])


SKEWS = st.sampled_from([0, 0, 1, -1, 60_000, MARGIN_MS // 2 - 1, 1 - MARGIN_MS // 2])
TTLS = st.sampled_from([0, MIN_RETENTION_MS, 3 * MIN_RETENTION_MS, 9 * MIN_RETENTION_MS])
STEPS = st.one_of(
    st.tuples(st.just("append"), SKEWS, st.integers(1, 3), TTLS),
    st.tuples(st.just("renew"), SKEWS, st.just(0), st.just(0)),
    st.tuples(
        st.just("wait"),
        st.sampled_from(
            [HOUR_MS // 4, 6 * HOUR_MS, 23 * HOUR_MS, MIN_RETENTION_MS, 4 * MIN_RETENTION_MS]
        ),
        st.just(0),
        st.just(0),
    ),
    st.tuples(st.just("delete"), st.integers(0, 9), st.just(0), st.just(0)),
    st.tuples(st.just("delete newest"), st.just(-1), st.just(0), st.just(0)),
)


@settings(max_examples=200)
@given(st.lists(STEPS, max_size=40))
def test_no_offset_is_used_twice_whatever_is_deleted(
    steps: list[tuple[str, int, int, int]],
) -> None:
    model = Model()
    for kind, amount, size, history_ttl_ms in steps:
        match kind:
            case "append":
                model.append(model.now + amount, size, history_ttl_ms)
            case "renew":
                model.renew(model.now + amount)
            case "wait":
                model.now += amount
            case _:
                model.delete(amount)


def test_a_quiet_channel_keeps_its_epoch_as_long_as_it_is_renewed() -> None:
    model = Model()
    model.append(model.now, 2, 0)
    first = model.resolve(model.now)
    for _ in range(100):
        model.now += 8 * HOUR_MS
        model.delete(-1)
        model.renew(model.now)
    assert model.items == []
    assert model.resolve(model.now).position == first.position
    model.append(model.now, 1, 0)
    assert model.items[0].offset == 3


def test_a_forgotten_channel_gets_another_epoch_and_goes_on_behind_its_floor() -> None:
    model = Model()
    model.append(model.now, 2, 0)
    first = model.resolve(model.now)
    model.now += MIN_RETENTION_MS
    second = model.resolve(model.now)
    assert second.epoch != first.epoch
    assert second.top == 2
    model.head = replace(model.head, epoch="g2.x") if model.head else None
    assert model.resolve(model.now).epoch not in {first.epoch, second.epoch, "g2.x"}
