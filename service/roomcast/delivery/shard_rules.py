"""The rules of topic shards: which ones a node should hear, which it hears, and what to do next.

Theory of operation. A topic shard is wanted while a channel of it is open on this node. A wanted
one is joined: the node's queue is subscribed to its topic, and a greeting of the node's own through
that topic proves it, as for the base topic. Until then, what is published in its channels is read
from the log: their ends are looked at again and again, with growing pauses, and once more after the
proof, since everything from then on is heard. A topic shard that nobody wants for a while is left.

What is proved may be lost later. Each canary goes through the base topic and every topic shard. So
behind a canary from the base topic one must come through each that was proved, as soon as what a
node writes must come round. So must the node's own appends. When it does not, the topic shard is
doubted: it is joined anew, and its channels are looked at until something comes.

The stream Lambda decides what it publishes to which topic, and its envelopes say by how many topic
shards it goes. If that is 1, everything comes through the base topic, and nothing is missed. If it
is neither 1 nor this node's number, the two of them do not agree on the topic of a channel. Then
all channels are looked at, again and again, until they do.

Pure. Seconds are monotonic; `chance` is random, in [0, 1).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Final

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.delivery.canary_rules import Rounds
from roomcast.delivery.shards import SHARDS_MAX, is_for_all, shard_of

__all__ = [
    "IDLE_S",
    "LOOK_PAUSE_MAX_S",
    "STEPS_AT_ONCE",
    "STEP_PAUSE_S",
    "TOLD_AFTER_S",
    "Act",
    "ShardPlan",
    "Step",
]

# How long a topic shard is heard after its last channel closed. Clients come back, and a
# subscription takes a moment to take effect.
IDLE_S: Final = 300.0
# Pause between two steps of a node, jittered by half. SNS allows 100 calls to subscribe a second
# per account and region: fifty nodes that start together make some 25.
STEP_PAUSE_S: Final = 2.0
# Steps at once. One that hangs does so for 25 s, and the others go on.
STEPS_AT_ONCE: Final = 4
# The longest pause between two looks at what is not heard: about as often as a node looks that
# hears no canary.
LOOK_PAUSE_MAX_S: Final = 30.0
_LOOKS: Final = Backoff(1.0, LOOK_PAUSE_MAX_S, FROM_HALF)
# What was heard and is late is looked at with the longest pause from the start.
_LOOKS_OF_LATE: Final = 6
# Pause after a step that failed.
_RETRIES: Final = Backoff(1.0, 60.0, FROM_HALF)
# Pause between two proofs of a topic shard whose topic works, and to which nothing is published.
_PROOFS_OF_LATE: Final = Backoff(60.0, 960.0, FROM_HALF)
# For how long a topic shard may go unheard until the node says that it is degraded.
TOLD_AFTER_S: Final = 15.0
# Canaries that are remembered, to know which of them came.
_CANARIES_MAX: Final = 8


class Act(Enum):
    """The kind of a step."""

    # Subscribe the queue, if it is not, and prove it by a greeting.
    JOIN = "join"
    # Unsubscribe the queue.
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `queue` numbers the node's queues: the outcome counts for that one only."""

    act: Act
    shard: int
    queue: int


@dataclass(slots=True)
class _Shard:
    """The state of one topic shard."""

    # Open channels, and when the last one closed.
    channels: int = 0
    idle_since_s: float = -inf
    # Whether the queue may be subscribed, and whether a greeting proved that it is.
    is_subscribed: bool = False
    is_proved: bool = False
    # Whether a step is under way; when the next one may begin; failures and proofs in a row.
    is_busy: bool = False
    not_before_s: float = -inf
    failures: int = 0
    proofs_of_late: int = 0
    # Since when it may miss something; None = it does not. When to look next, and looks so far.
    unheard_since_s: float | None = None
    look_at_s: float = inf
    looks: int = 0
    # What must come through it, and the canaries that did.
    rounds: Rounds = field(default_factory=Rounds)
    canaries: deque[int] = field(default_factory=lambda: deque(maxlen=_CANARIES_MAX))


class ShardPlan:
    """The topic shards of one node. `shards`: their number, 1 = there are none."""

    def __init__(self, shards: int) -> None:
        assert 1 <= shards <= SHARDS_MAX, "I7: bounded"
        self.number = shards
        self._shards = [_Shard() for _ in range(shards if shards > 1 else 0)]
        # The number by which the stream Lambda goes; None = not known yet.
        self.told: int | None = None
        # Canaries that came through the base topic.
        self._canaries: deque[int] = deque(maxlen=_CANARIES_MAX)
        # The number of this node's queue, and whether it is just being replaced.
        self._queue = 0
        self._is_replaced = False
        self._under_way = 0
        self._step_not_before_s = -inf
        # When to look at all channels, and how often that was done for the same reason.
        self._all_look_at_s = inf
        self._all_looks = 0

    # ---- what is so

    @property
    def agrees(self) -> bool:
        """Whether records come through the topics on which this node expects them, or the base."""
        return self.told in (None, 1, self.number)

    @property
    def wanted(self) -> int:
        """The number of topic shards with open channels."""
        return sum(one.channels > 0 for one in self._shards)

    @property
    def heard(self) -> int:
        """The number of topic shards that are proved, and of which nothing is late."""
        return sum(one.is_proved and not one.rounds.is_late for one in self._shards)

    def has_heard(self, shard: int, canary: int) -> bool:
        """Whether the canary with this number came through `shard`, lately."""
        return canary in self._shards[shard].canaries

    def of(self, channel: str) -> int:
        """The topic shard of `channel`; 0 when there are none."""
        return shard_of(channel, self.number) if self._shards else 0

    def trouble(self, now_s: float) -> str:
        """What this node may not hear, as a text; "" = nothing for long."""
        if not self.agrees:
            return (
                f"the stream Lambda publishes to {self.told} topic shards,"
                f" and aws.topic_shards is {self.number}"
            )
        unheard = [
            str(number)
            for number, one in enumerate(self._shards)
            if one.unheard_since_s is not None and now_s - one.unheard_since_s >= TOLD_AFTER_S
        ]
        return f"topic shards that are not heard: {', '.join(unheard)}" if unheard else ""

    # ---- channels

    def opened(self, channel: str, now_s: float) -> None:
        """`channel` has its first subscriber. Called before its position is read."""
        if self._shards:
            one = self._shards[self.of(channel)]
            one.channels += 1
            self._settle(one, now_s)

    def closed(self, channel: str, now_s: float) -> None:
        """`channel` has no subscriber any more."""
        if self._shards:
            one = self._shards[self.of(channel)]
            one.channels -= 1
            assert one.channels >= 0, "what closes was open"
            if not one.channels:
                one.idle_since_s = now_s
            self._settle(one, now_s)

    # ---- what is written and heard

    def is_on_base(self, channel: str) -> bool:
        """Whether the records of `channel` come through the base topic, as far as is known."""
        return is_for_all(channel) or (self.told or self.number) == 1

    def wrote(self, channel: str, now_s: float, chance: float) -> bool:
        """This node has written a record of `channel`, which is not on the base topic.

        Returns whether something may be due sooner than before.
        """
        if not self._shards or self.told != self.number:
            return False
        one = self._shards[self.of(channel)]
        before_s = one.rounds.due_s
        if one.is_proved:
            one.rounds.wrote(now_s, chance)
        return one.rounds.due_s < before_s

    def came(
        self, shard: int | None, shards: int, canary: int, now_s: float, chance: float
    ) -> bool:
        """An envelope with records came from a Lambda that goes by `shards` topic shards.

        `shard`: the one it came through, None = the base topic. `canary`: the number of the canary
        in it, 0 = there is none. Returns whether something may be due sooner than before.
        """
        is_news = shards != self.told and self._tell(shards, now_s)
        if shards != self.number or not self._shards:
            return is_news
        if shard is not None:
            one = self._shards[shard]
            if canary:
                one.canaries.append(canary)
            if one.rounds.came():
                one.proofs_of_late = 0
                self._settle(one, now_s)
                return True
        elif canary and canary not in self._canaries:
            self._canaries.append(canary)
            for one in self._shards:
                if one.is_proved and canary not in one.canaries:
                    one.rounds.wrote(now_s, chance)
            return True
        return is_news

    def _tell(self, shards: int, now_s: float) -> bool:
        """The Lambda goes by another number than before. Returns whether that changes anything."""
        before, self.told = self.told, shards
        for one in self._shards:
            # What was expected there stays expected: whoever told the number before did publish
            # there, and the new one may be made up. If nothing comes, a few proofs are in vain.
            self._settle(one, now_s)
        if before is None and self.agrees:
            return bool(self._shards)
        # It may have gone by this number for a while, and published where nobody here heard it.
        # Envelopes may come out of order, so that the numbers alternate: that must neither cause a
        # look each time nor postpone one.
        self._all_look_at_s = min(self._all_look_at_s, now_s + _LOOKS.pause_s(1))
        for one in self._shards:
            if one.unheard_since_s is None:
                one.look_at_s = inf
        return True

    # ---- the queue

    def replacing(self) -> None:
        """The queue is about to be replaced: no step may begin until it is."""
        self._is_replaced = True

    def replaced(self, now_s: float) -> None:
        """The node has another queue, which is subscribed to the base topic only."""
        self._queue += 1
        self._is_replaced = False
        for one in self._shards:
            one.is_subscribed = one.is_proved = False
            one.rounds = Rounds()
            one.not_before_s, one.failures = now_s, 0
            self._settle(one, now_s)

    # ---- what to do next

    def next_s(self) -> float:
        """When there is something to do, if nothing happens before; infinity = nothing is."""
        looks_s = min((one.look_at_s for one in self._shards), default=inf)
        due_s = min((one.rounds.due_s for one in self._shards), default=inf)
        steps_s = inf
        if self._under_way < STEPS_AT_ONCE and not self._is_replaced:
            first_s = min((self._step_at_s(one) for one in self._shards), default=inf)
            steps_s = max(first_s, self._step_not_before_s)
        return min(looks_s, due_s, steps_s, self._all_look_at_s)

    def take_looks(self, now_s: float, chance: float) -> list[int | None]:
        """The topic shards whose channels are to be looked at now; None = all channels are."""
        looks: list[int | None] = []
        for number, one in enumerate(self._shards):
            if one.rounds.must_tell(now_s):
                one.is_proved, one.not_before_s = False, now_s
                self._settle(one, now_s)
                if one.channels:
                    one.look_at_s, one.looks = now_s, _LOOKS_OF_LATE
            if one.look_at_s <= now_s:
                looks.append(number)
                one.look_at_s = inf
                if one.unheard_since_s is not None:
                    one.looks += 1
                    one.look_at_s = now_s + _LOOKS.pause_s(one.looks, chance)
        if self._all_look_at_s <= now_s:
            looks, self._all_look_at_s = [None], inf
            if self.agrees:
                self._all_looks = 0
            else:
                self._all_looks += 1
                self._all_look_at_s = now_s + _LOOKS.pause_s(self._all_looks, chance)
        return looks

    def take_step(self, now_s: float, chance: float) -> Step | None:
        """The step to begin now, if one is due. It is under way until `done`."""
        if now_s < self._step_not_before_s or self._under_way >= STEPS_AT_ONCE:
            return None
        if self._is_replaced:
            return None
        due = [number for number, one in enumerate(self._shards) if self._step_at_s(one) <= now_s]
        if not due:
            return None
        # Those with the most channels first.
        number = max(due, key=lambda each: self._shards[each].channels)
        one = self._shards[number]
        one.is_busy = True
        self._under_way += 1
        self._step_not_before_s = now_s + STEP_PAUSE_S * (0.5 + chance)
        if one.channels:
            one.is_subscribed = True
            return Step(Act.JOIN, number, self._queue)
        # Whoever opens a channel from here on does not hear it.
        one.is_proved = False
        return Step(Act.LEAVE, number, self._queue)

    def done(self, step: Step, now_s: float, chance: float, *, succeeded: bool) -> None:
        """The step is over. A join `succeeded` when its greeting was heard."""
        one = self._shards[step.shard]
        one.is_busy = False
        self._under_way -= 1
        if step.queue != self._queue:
            return
        if not succeeded:
            one.failures += 1
            one.not_before_s = now_s + _RETRIES.pause_s(one.failures, chance)
        else:
            one.failures, one.not_before_s = 0, now_s
            if step.act is Act.JOIN:
                one.is_proved = True
                if one.rounds.is_late:
                    one.look_at_s = now_s
                    one.proofs_of_late += 1
                    pause_s = _PROOFS_OF_LATE.pause_s(one.proofs_of_late, chance)
                    one.not_before_s = now_s + pause_s
            else:
                one.is_subscribed = False
                one.rounds = Rounds()
        self._settle(one, now_s)

    def _step_at_s(self, one: _Shard) -> float:
        """When its next step is due; infinity = none is."""
        if one.is_busy:
            return inf
        if one.channels:
            is_heard = one.is_proved and not one.rounds.is_late
            return inf if is_heard else one.not_before_s
        return max(one.idle_since_s + IDLE_S, one.not_before_s) if one.is_subscribed else inf

    def _settle(self, one: _Shard, now_s: float) -> None:
        """Note whether it may miss something as it is now, and plan looks accordingly."""
        is_heard = not one.channels or self.told == 1 or (one.is_proved and not one.rounds.is_late)
        if is_heard and one.unheard_since_s is not None:
            one.unheard_since_s, one.looks = None, 0
            # Once more, for what was published before it was heard.
            one.look_at_s = now_s if one.channels else inf
        elif not is_heard and one.unheard_since_s is None:
            one.unheard_since_s, one.looks = now_s, 0
            one.look_at_s = now_s + _LOOKS.pause_s(1)
