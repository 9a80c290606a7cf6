"""When which channel is looked at: each at its own time, all when asked,
and none forgotten or looked at for nothing.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.delivery.tail_checks import TailChecks

EVERY_S: Final = 300.0
# The latest that a look may come after the last one.
LATEST_S: Final = 1.25 * EVERY_S


def alike(_channel: str) -> int:
    """There is one topic for all."""
    return 0


def opened(*names: str, at_s: float = 0.0, chance: float = 0.0) -> TailChecks:
    tails = TailChecks(EVERY_S, alike)
    for name in names:
        tails.opened(name, at_s, chance)
    return tails


def taken(tails: TailChecks, now_s: float) -> list[str]:
    names = []
    while (name := tails.take(now_s)) is not None:
        names.append(name)
    return names


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1e6))
def test_a_look_comes_around_its_interval(chance: float, now_s: float) -> None:
    tails = opened("a", at_s=now_s, chance=chance)
    due_s = tails.next_s()
    assert now_s + 0.75 * EVERY_S - 1e-6 <= due_s <= now_s + LATEST_S + 1e-6
    assert tails.take(due_s - 0.001) is None
    assert tails.take(due_s) == "a"
    assert (tails.take(inf), tails.next_s()) == (None, inf), "under way"
    tails.done("a", due_s, chance, answered=True)
    assert due_s + 0.75 * EVERY_S - 1e-6 <= tails.next_s()


def test_channels_that_open_together_are_looked_at_one_by_one() -> None:
    tails = TailChecks(EVERY_S, alike)
    for number in range(100):
        tails.opened(f"channel-{number}", 0.0, number / 100)
    looked_at = Counter[int]()
    for now_s in range(1, round(LATEST_S) + 1):
        for name in taken(tails, now_s):
            looked_at[now_s] += 1
            tails.done(name, now_s, 0.5, answered=True)
    assert looked_at.total() == 100
    assert max(looked_at.values()) <= 2


def test_a_look_that_failed_is_repeated_sooner_but_not_at_once() -> None:
    tails = opened("a")
    tails.ask(0.0)
    assert tails.take(0.0) == "a"
    tails.done("a", 0.0, 0.0, answered=False)
    assert 10 <= tails.next_s() <= 60
    often = TailChecks(1.0, alike)
    often.opened("a", 0.0, 0.0)
    often.take(1.0)
    often.done("a", 1.0, 0.5, answered=False)
    assert often.next_s() == 2.0, "no later than otherwise"


def test_all_are_looked_at_when_it_is_asked_for() -> None:
    tails = opened("a", "b", "c")
    tails.ask(1.0)
    assert (tails.asked, tails.next_s()) == (3, -inf)
    assert taken(tails, 1.0) == ["a", "b", "c"]
    assert tails.asked == 0


def test_to_ask_again_while_they_wait_costs_nothing() -> None:
    tails = opened("a", "b", "c")
    for _ in range(5):
        tails.ask(1.0)
    assert taken(tails, 1.0) == ["a", "b", "c"]


def test_to_ask_again_while_some_are_looked_at_costs_one_more_look_at_those() -> None:
    """And those that wait do not lose their place, or the last of them would wait for ever."""
    tails = opened("a", "b", "c", "d")
    tails.ask(1.0)
    assert [tails.take(1.0), tails.take(1.0)] == ["a", "b"]
    tails.done("a", 2.0, 0.0, answered=True)
    for _ in range(5):
        tails.ask(2.0)
    assert taken(tails, 2.0) == ["c", "d", "a", "b"]


def test_what_is_closed_is_not_looked_at() -> None:
    tails = opened("a", "b")
    tails.ask(1.0)
    tails.closed("a")
    tails.closed("a")
    assert taken(tails, inf) == ["b"]
    tails.closed("b")
    tails.done("b", 2.0, 0.0, answered=True)
    assert (len(tails), tails.next_s()) == (0, inf)


def test_what_opens_after_all_were_asked_for_needs_no_look_unless_its_read_began_before() -> None:
    tails = TailChecks(EVERY_S, alike)
    tails.ask(10.0)
    tails.opened("before", 9.0, 0.0)
    tails.opened("since", 11.0, 0.0)
    assert taken(tails, 12.0) == ["before"]


def by_letter(channel: str) -> int:
    """Of two topic shards: "a" and "b" are of the first, and all others of the other."""
    return 0 if channel in "ab" else 1


def test_those_of_one_topic_shard_can_be_asked_for_alone() -> None:
    tails = TailChecks(EVERY_S, by_letter)
    for name in "acbd":
        tails.opened(name, 0.0, 0.0)
    tails.ask(10.0, 1)
    assert taken(tails, 10.0) == ["c", "d"]
    tails.ask(11.0, 0)
    tails.ask(11.0)
    assert taken(tails, 11.0) == ["a", "b", "c", "d"]


def test_what_opens_after_its_topic_shard_was_asked_for_needs_a_look_if_its_read_began_before() -> (
    None
):
    """The read of a position and the proof of its topic shard go on beside each other."""
    tails = TailChecks(EVERY_S, by_letter)
    tails.ask(10.0, 1)
    for name, read_at_s in (("a", 9.0), ("c", 9.0), ("d", 10.1)):
        tails.opened(name, read_at_s, 0.0)
    assert taken(tails, 11.0) == ["c"]


class Rooms(RuleBasedStateMachine):
    """Channels open and close, looks begin, end and are asked for, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.tails = TailChecks(EVERY_S, alike)
        self.now_s = 0.0
        self.open: dict[str, float] = {}  # since when nobody began a look at it
        self.under_way: list[str] = []
        self.owed: set[str] = set()

    @rule(name=st.sampled_from("abcdef"), chance=st.floats(0, 1, exclude_max=True))
    def opens(self, name: str, chance: float) -> None:
        if name not in self.open:
            self.tails.opened(name, self.now_s, chance)
            self.open[name] = self.now_s
            if name in taken_asked(self.tails):
                self.owed.add(name)

    @rule(name=st.sampled_from("abcdef"))
    def closes(self, name: str) -> None:
        self.tails.closed(name)
        self.open.pop(name, None)
        self.owed.discard(name)

    @rule()
    def asks(self) -> None:
        self.tails.ask(self.now_s)
        self.owed |= set(self.open)

    @rule(seconds=st.floats(0.1, 200))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def looks(self) -> None:
        name = self.tails.take(self.now_s)
        if name is None:
            assert not self.owed
            return
        assert name in self.open
        assert name in self.owed or not self.owed, "what is asked for comes first"
        self.owed.discard(name)
        self.open[name] = self.now_s
        self.under_way.append(name)

    @precondition(lambda self: self.under_way)
    @rule(chance=st.floats(0, 1, exclude_max=True), answered=st.booleans())
    def ends(self, chance: float, answered: bool) -> None:
        name = self.under_way.pop(0)
        self.tails.done(name, self.now_s, chance, answered=answered)
        if name in self.open:
            self.open[name] = self.now_s

    @invariant()
    def nothing_is_forgotten(self) -> None:
        assert len(self.tails) == len(self.open)
        assert self.tails.asked == len(self.owed)
        waits = [since for name, since in self.open.items() if name not in self.under_way]
        if waits:
            assert self.tails.next_s() <= min(waits) + LATEST_S

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        assert len(self.tails._heap) <= 2 * len(self.open) + 66


def taken_asked(tails: TailChecks) -> set[str]:
    return set(tails._asked)


TestRooms = Rooms.TestCase


def test_what_comes_and_goes_leaves_nothing() -> None:
    tails = opened("a", "b")
    for number in range(10_000):
        tails.opened(f"channel-{number}", float(number), 0.5)
        tails.closed(f"channel-{number}")
    assert len(tails) == 2
    assert len(tails._heap) < 100
    assert taken(tails, EVERY_S) == ["a", "b"]
