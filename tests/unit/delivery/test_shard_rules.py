"""Which topic shards a node hears, and that nothing is missed for good while that changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import inf
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.canary_rules import CANARY_CHANNEL, ROUND_S
from roomcast.delivery.shard_rules import (
    IDLE_S,
    LOOK_PAUSE_MAX_S,
    STEP_PAUSE_S,
    STEPS_AT_ONCE,
    TOLD_AFTER_S,
    Act,
    ShardPlan,
    Step,
)
from roomcast.delivery.shards import shard_of

SHARDS: Final = 4
CHANNELS: Final = tuple(f"room:{number}" for number in range(8))
CANARY_S: Final = 30.0
# From a loss to a look: a canary and a half, its way round, and the longest pause between looks.
BOUND_S: Final = 1.5 * CANARY_S + 1.5 * ROUND_S + LOOK_PAUSE_MAX_S


def channel_of(shard: int, shards: int = SHARDS) -> str:
    return next(
        name for name in (f"c{number}" for number in range(1000)) if shard_of(name, shards) == shard
    )


class World:
    """One node's plan, and what is really so: subscriptions, and what it has missed."""

    def __init__(self, shards: int = SHARDS, lambda_shards: int | None = None) -> None:
        self.plan = ShardPlan(shards)
        self.now_s = 0.0
        self.lambda_shards = shards if lambda_shards is None else lambda_shards
        self.open: set[str] = set()
        self.subscribed: set[int] = set()
        self.missed: set[str] = set()
        self.under_way: list[Step] = []
        self.begun: list[tuple[float, Step]] = []
        self.looks: list[tuple[float, int | None]] = []
        self.canary = 0

    # ---- what happens

    def opens(self, channel: str) -> None:
        if channel not in self.open:
            self.open.add(channel)
            self.plan.opened(channel, self.now_s)
            self.turn()

    def closes(self, channel: str) -> None:
        if channel in self.open:
            self.open.discard(channel)
            self.missed.discard(channel)
            self.plan.closed(channel, self.now_s)
            self.turn()

    def publish(self, channel: str) -> None:
        """Somebody publishes."""
        shards = self.lambda_shards
        shard = shard_of(channel, shards) if shards > 1 else None
        if shard is None or shard in self.subscribed:
            self.plan.came(shard, shards, 0, self.now_s, 0.5)
        elif channel in self.open:
            self.missed.add(channel)
        self.turn()

    def emit(self, *, base_first: bool = True) -> None:
        """A canary comes."""
        self.canary += 1
        homes: list[int | None] = [*sorted(self.subscribed & set(range(self.lambda_shards)))]
        if self.lambda_shards == 1:
            homes = []
        for shard in [None, *homes] if base_first else [*homes, None]:
            self.plan.came(shard, self.lambda_shards, self.canary, self.now_s, 0.5)
        self.turn()

    def replace_queue(self) -> None:
        """And the listener has everything looked at."""
        self.subscribed.clear()
        self.missed.clear()
        self.plan.replaced(self.now_s)
        self.turn()

    def finish(self, *, succeeds: bool = True) -> None:
        """The oldest step that is under way ends."""
        if self.under_way:
            step = self.under_way.pop(0)
            is_current = step.queue == self.plan._queue
            if succeeds and is_current:
                (self.subscribed.add if step.act is Act.JOIN else self.subscribed.discard)(
                    step.shard
                )
            self.plan.done(step, self.now_s, 0.5, succeeded=succeeds)
            self.turn()

    def advance(self, seconds: float, *, works: bool = False) -> None:
        """Time passes. `works`: each step ends at once, and well."""
        end_s = self.now_s + seconds
        while True:
            self.turn()
            while works and self.under_way:
                self.finish()
            due_s = self.plan.next_s()
            if due_s > end_s:
                break
            self.now_s = max(self.now_s, due_s)
        self.now_s = end_s

    def turn(self) -> None:
        """What the keeper does when something is due."""
        if self.plan.next_s() > self.now_s:
            return
        for shard in self.plan.take_looks(self.now_s, 0.5):
            self.looks.append((self.now_s, shard))
            self.missed = {
                channel
                for channel in self.missed
                if shard is not None and self.plan.of(channel) != shard
            }
        while (step := self.plan.take_step(self.now_s, 0.5)) is not None:
            assert step.shard not in {other.shard for other in self.under_way}
            self.under_way.append(step)
            self.begun.append((self.now_s, step))
        assert len(self.under_way) <= STEPS_AT_ONCE
        assert self.plan.next_s() > self.now_s, "the keeper does not spin"

    def settle(self, rounds: int = 6) -> None:
        """Nothing fails any more."""
        for _ in range(rounds):
            self.advance(CANARY_S, works=True)
            self.emit()
        self.advance(1.0, works=True)


EVENTS: Final = st.one_of(
    st.tuples(st.just(World.opens), st.sampled_from(CHANNELS)),
    st.tuples(st.just(World.closes), st.sampled_from(CHANNELS)),
    st.tuples(st.just(World.publish), st.sampled_from(CHANNELS)),
    st.tuples(st.just(World.advance), st.sampled_from((0.1, 1.0, 5.0, 40.0, 400.0))),
    st.tuples(st.sampled_from((World.emit, World.replace_queue))),
    st.tuples(st.just(lambda world: world.finish(succeeds=True))),
    st.tuples(st.just(lambda world: world.finish(succeeds=False))),
    st.tuples(st.just(lambda world: world.emit(base_first=False))),
    st.tuples(
        st.just(lambda world, shard: world.subscribed.discard(shard)),
        st.integers(0, SHARDS - 1),
    ),
)


@given(
    st.lists(EVENTS, max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from((1, 2, SHARDS, 8))), max_size=3),
)
def test_nothing_is_missed_for_good(
    events: list[tuple[Callable[..., None], object]], changes: list[tuple[int, int]]
) -> None:
    """Whatever is opened, closed, lost and refused, and however the Lambda's number changes: once
    all works again, what was missed was looked at, and what is wanted is heard.
    """
    world = World()
    numbers = dict(changes)
    for index, (happens, *arguments) in enumerate(events):
        if index in numbers:
            world.lambda_shards = numbers[index]
            world.publish(CHANNELS[0])
            # A number that nobody hears of is one under which nothing may be published.
            world.emit()
        happens(world, *arguments)
    world.lambda_shards = SHARDS
    world.settle()
    assert not world.missed
    assert world.plan.trouble(world.now_s) == ""
    assert world.plan.wanted == len({shard_of(channel, SHARDS) for channel in world.open})
    wanted = {shard_of(channel, SHARDS) for channel in world.open}
    assert wanted <= world.subscribed
    world.advance(IDLE_S + 60.0, works=True)
    assert world.subscribed == wanted
    for (before_s, _), (after_s, _) in zip(world.begun, world.begun[1:], strict=False):
        assert after_s - before_s >= STEP_PAUSE_S / 2


# ---- one topic shard


def test_a_topic_shard_is_joined_with_its_first_channel_and_left_long_after_the_last() -> None:
    world = World()
    world.emit()
    world.opens("a")
    [(_, step)] = world.begun
    assert (step.act, step.shard) == (Act.JOIN, shard_of("a", SHARDS))
    world.finish()
    world.advance(1000.0)
    assert len(world.begun) == 1
    world.closes("a")
    world.advance(IDLE_S - 1.0)
    assert len(world.begun) == 1
    world.advance(2.0)
    assert [each.act for _, each in world.begun] == [Act.JOIN, Act.LEAVE]
    world.finish()
    assert world.plan.next_s() == inf


def test_who_comes_back_soon_finds_the_topic_shard_heard() -> None:
    world = World()
    world.emit()
    world.opens("a")
    world.finish()
    world.closes("a")
    world.advance(IDLE_S - 1.0)
    looks = len(world.looks)
    world.opens("a")
    world.advance(100.0)
    assert (len(world.begun), len(world.looks)) == (1, looks)


def test_until_it_is_heard_its_channels_are_looked_at_with_growing_pauses() -> None:
    world = World()
    world.opens("a")
    world.advance(300.0)
    assert {shard for _, shard in world.looks} == {shard_of("a", SHARDS)}
    times = [at_s for at_s, _ in world.looks]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert times[0] <= 1.0
    assert pauses == sorted(pauses)
    assert pauses[-1] <= LOOK_PAUSE_MAX_S
    assert len(times) < 25, "not one after the other"


def test_there_is_one_look_behind_the_proof() -> None:
    """What was published before it was heard, and behind the last look."""
    world = World()
    world.opens("a")
    world.publish("a")
    assert world.missed == {"a"}
    world.finish()
    assert not world.missed
    assert [at_s for at_s, _ in world.looks] == [0.0]


def test_the_greeting_that_is_not_heard_is_tried_again() -> None:
    world = World()
    world.opens("a")
    for _ in range(20):
        world.finish(succeeds=False)
        world.advance(70.0)
    assert len(world.begun) == 21
    assert world.plan.trouble(world.now_s)


def test_what_was_proved_and_lost_is_noticed_within_a_bound() -> None:
    """As on the base topic: a canary that did not come this way is late as soon."""
    world = World()
    world.opens("a")
    world.settle()
    world.subscribed.clear()
    world.publish("a")
    lost_s = world.now_s
    while world.missed:
        assert world.now_s - lost_s <= BOUND_S
        world.advance(CANARY_S / 2, works=True)
        world.emit()
    assert world.subscribed, "and it was subscribed anew"


def test_a_node_notices_that_its_own_appends_do_not_come_round() -> None:
    world = World()
    world.opens("a")
    world.settle()
    world.subscribed.clear()
    world.plan.wrote("a", world.now_s, 0.0)
    world.publish("a")
    world.advance(ROUND_S + 0.1)
    assert not world.missed


def test_a_canary_that_came_through_the_topic_shard_first_is_not_expected_again() -> None:
    world = World()
    world.emit()
    world.opens("a")
    world.finish()
    looks = len(world.looks)
    for _ in range(5):
        world.advance(CANARY_S, works=True)
        world.emit(base_first=False)
    assert (len(world.looks), len(world.begun)) == (looks, 1)


def test_a_topic_shard_to_which_nothing_is_published_is_looked_at_and_proved_rarely() -> None:
    """The Lambda may not publish there: greetings come, canaries do not."""
    world = World()
    world.opens("a")
    world.settle()
    begun = len(world.begun)
    for _ in range(40):
        world.canary += 1
        world.plan.came(None, SHARDS, world.canary, world.now_s, 0.5)
        world.advance(CANARY_S, works=True)
    assert world.plan.trouble(world.now_s)
    assert len(world.begun) - begun < 8
    since_s = world.now_s - 10 * CANARY_S
    assert sum(at_s > since_s for at_s, _ in world.looks) >= 8
    world.emit()
    assert not world.plan.trouble(world.now_s)


def test_trouble_is_told_when_it_lasts() -> None:
    world = World()
    world.opens("a")
    world.advance(TOLD_AFTER_S - 0.1)
    assert world.plan.trouble(world.now_s) == ""
    world.advance(0.2)
    assert world.plan.trouble(world.now_s) == (
        f"topic shards that are not heard: {shard_of('a', SHARDS)}"
    )


def test_those_with_the_most_channels_are_joined_first() -> None:
    world = World()
    for shard in range(SHARDS):
        for number in range(1 + shard):
            world.plan.opened(channel_of(shard) + "x" * 0 if not number else channel_of(shard), 0.0)
    world.advance(60.0, works=True)
    assert [step.shard for _, step in world.begun] == [3, 2, 1, 0]


def test_another_queue_is_subscribed_anew_and_old_outcomes_do_not_count() -> None:
    world = World()
    world.emit()
    world.opens("a")
    [old] = world.under_way
    world.plan.replaced(world.now_s)
    world.plan.done(old, world.now_s, 0.5, succeeded=True)
    world.under_way.clear()
    assert world.plan.heard == 0
    world.advance(5.0, works=True)
    assert world.plan.heard == 1


def test_who_comes_while_it_is_left_has_it_joined_again() -> None:
    world = World()
    world.emit()
    world.opens("a")
    world.finish()
    world.closes("a")
    world.advance(IDLE_S + 1.0)
    world.opens("a")
    assert world.plan.heard == 0
    world.finish()
    world.publish("a")
    assert world.missed == {"a"}
    world.advance(5.0, works=True)
    assert not world.missed
    assert [step.act for _, step in world.begun] == [Act.JOIN, Act.LEAVE, Act.JOIN]


def test_while_the_queue_is_replaced_no_step_begins() -> None:
    world = World()
    world.plan.replacing()
    world.opens("a")
    world.advance(30.0)
    assert world.begun == []
    assert world.looks
    world.replace_queue()
    assert len(world.begun) == 1


def test_behind_a_proof_of_what_is_late_there_is_a_look_too() -> None:
    """It may have been lost: what was published until the proof was not heard."""
    world = World()
    world.opens("a")
    world.settle()
    world.subscribed.clear()
    world.canary += 1
    world.plan.came(None, SHARDS, world.canary, world.now_s, 0.0)
    world.advance(ROUND_S + 0.1)
    world.publish("a")
    assert world.missed == {"a"}
    world.finish()
    assert not world.missed


# ---- the Lambda's number


def test_a_lambda_that_publishes_to_the_base_topic_is_heard_by_all() -> None:
    """Nodes first, then the Lambda: they subscribe, and miss nothing if they cannot."""
    world = World(SHARDS, lambda_shards=1)
    world.emit()
    world.opens("a")
    world.finish(succeeds=False)
    world.advance(100.0)
    assert world.looks == []
    assert world.plan.trouble(world.now_s) == ""
    assert len(world.begun) > 1, "it goes on to subscribe"
    assert world.plan.is_on_base("a")


@pytest.mark.parametrize("own, lambdas", [(1, 4), (8, 4), (4, 8)])
def test_a_lambda_that_goes_by_another_number_is_told_and_made_up_for(
    own: int, lambdas: int
) -> None:
    world = World(own, lambda_shards=lambdas)
    world.opens("a")
    world.opens("b")
    world.advance(10.0, works=True)
    world.emit()
    world.advance(120.0, works=True)
    before = len(world.looks)
    world.missed = {"a", "b"}
    world.advance(LOOK_PAUSE_MAX_S, works=True)
    assert not world.missed
    assert world.looks[-1][1] is None
    assert len(world.looks) - before <= 3
    assert f"{lambdas} topic shards" in world.plan.trouble(world.now_s)
    assert not world.plan.is_on_base("a"), "what it wrote is not expected on the base topic"
    world.lambda_shards = 1
    world.emit()
    assert world.plan.trouble(world.now_s) == ""


def test_when_the_lambda_takes_to_topic_shards_all_is_looked_at_once() -> None:
    """It may have published to one before this node was subscribed, and before a canary said so."""
    world = World(SHARDS, lambda_shards=1)
    world.emit()
    world.opens("a")
    world.lambda_shards = SHARDS
    world.publish("a")
    world.finish()
    world.advance(20.0)
    assert world.missed == {"a"}
    world.emit()
    world.advance(2.0)
    assert not world.missed
    assert [shard for _, shard in world.looks].count(None) == 1


def test_numbers_that_alternate_do_not_cause_a_look_each_time() -> None:
    world = World()
    world.opens("a")
    world.advance(10.0, works=True)
    looks = len(world.looks)
    for turn in range(200):
        world.lambda_shards = (1, SHARDS)[turn % 2]
        world.emit()
        world.advance(0.05, works=True)
    assert 10 <= len(world.looks) - looks <= 45


def test_numbers_that_alternate_do_not_postpone_what_is_due() -> None:
    """Where a topic shard cannot be joined while the Lambda is changed."""
    world = World(SHARDS, lambda_shards=1)
    world.emit()
    world.opens("a")
    world.finish(succeeds=False)
    for turn in range(200):
        world.lambda_shards = (SHARDS, 1)[turn % 2]
        world.emit()
        world.finish(succeeds=False)
        world.advance(0.05)
    assert 8 <= [shard for _, shard in world.looks].count(None) <= 20
    assert len(world.looks) <= 45


@pytest.mark.parametrize("forged", [1, 2])
def test_numbers_that_alternate_hide_no_topic_shard_that_fell_silent(forged: int) -> None:
    """Somebody tells another number behind each canary: the canary counts all the same."""
    world = World()
    world.opens("a")
    world.settle()
    world.subscribed.clear()
    for _ in range(3):
        world.emit()
        world.plan.came(None, forged, 0, world.now_s, 0.5)
        world.advance(CANARY_S, works=True)
    assert world.subscribed == {shard_of("a", SHARDS)}
    world.emit()
    assert world.plan.heard == 1


def test_what_the_lambda_leaves_late_is_proved_rarely_and_troubles_nobody() -> None:
    """It goes by 1 from here on, and what this node wrote before comes through the base topic."""
    world = World()
    world.opens("a")
    world.settle()
    world.plan.wrote("a", world.now_s, 0.0)
    world.lambda_shards = 1
    begun, looks = len(world.begun), len(world.looks)
    for _ in range(40):
        world.emit()
        world.advance(CANARY_S, works=True)
        assert world.plan.trouble(world.now_s) == ""
    assert len(world.begun) - begun < 8
    assert len(world.looks) - looks < 10, "nobody looks on"
    world.lambda_shards = SHARDS
    world.emit()
    assert (world.plan.heard, world.plan.trouble(world.now_s)) == (1, "")


def test_without_topic_shards_there_is_nothing_to_do() -> None:
    world = World(1)
    world.opens("a")
    world.emit()
    world.publish("a")
    world.closes("a")
    world.replace_queue()
    assert (world.looks, world.begun, world.plan.next_s()) == ([], [], inf)
    assert world.plan.is_on_base("a")
    assert (world.plan.wanted, world.plan.heard, world.plan.of("a")) == (0, 0, 0)


def test_canaries_are_on_the_base_topic_whatever_the_number() -> None:
    for shards in (1, SHARDS):
        assert ShardPlan(shards).is_on_base(CANARY_CHANNEL)
    assert not ShardPlan(SHARDS).is_on_base("a")
