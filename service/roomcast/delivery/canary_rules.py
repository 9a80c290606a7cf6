"""The rules of canaries: who emits one, and what a missing one means.

A canary is a record that goes through the whole pipeline to every node, once an interval. One of
the nodes writes it for all.

Canaries are numbered, and the number only grows. A node that has heard no new one for an interval
emits the next. A conditional write of that number elects one node. Numbers are compared with each
other and never with a clock. So a node whose clock is wrong, or that was suspended, changes nothing
for the others.

Another program that can write to the table or the topic can make up a number. An invalid number is
ignored. One that is too high is forgotten when no other follows it: after a silence, a lower number
counts as new again.

When a node has heard no canary for some intervals, either the node or the pipeline is at fault. Its
own greeting through the topic tells whether its queue works. The leases of other nodes tell whether
those heard newer canaries.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Final

from roomcast.log.item import LogItem
from roomcast.log.rules import MIN_RETENTION_MS, new_epoch
from roomcast.wire.names import RESERVED_PREFIX
from roomcast.wire.publication import Record

__all__ = [
    "CANARY_CHANNEL",
    "MISSED_INTERVALS",
    "NUMBER_MAX",
    "REPEATS_MAX",
    "ROUND_S",
    "CanarySchedule",
    "Greeting",
    "Hearing",
    "Latency",
    "Rounds",
    "canary_item",
    "is_number",
    "latency",
    "next_number",
]

CANARY_CHANNEL: Final = RESERVED_PREFIX + "canary"
# Intervals without a canary before a node looks for a fault. A node emits after one to one and a
# half intervals. If that failed (the node died, DynamoDB throttled, the number was taken), it or
# another tries after a half to three quarters more.
MISSED_INTERVALS: Final = 2.5
# The greatest number of a canary. The shortest interval is a second, and one a second since 1970
# gets there in 2286.
NUMBER_MAX: Final = 10_000_000_000
# Numbers heard lately, which do not count as new again. SQS may repeat a message, and keeps it for
# 300 s at most.
REPEATS_MAX: Final = 300
# The way round takes 0.3 s, and 1 s once in a hundred times. A stream that divides its shards, or a
# Lambda that starts, takes some seconds: those are no fault.
ROUND_S: Final = 10.0
# By up to this part of an interval, or of the way round, a turn or a doubt comes later than it
# might: so that one node is first, and the rest hear it.
_JITTER: Final = 0.5


class Hearing(Enum):
    """Whether this node hears the pipeline."""

    # Canaries come.
    WELL = "well"
    # None comes, and as far as this node can tell, none comes to others. Publications are found by
    # reading the log.
    SILENT = "silent"
    # Others hear canaries and this node does not.
    DEAF = "deaf"


class Greeting(Enum):
    """The outcome of a greeting that a node sent to itself through the topic."""

    HEARD = "heard"
    # The topic took it, but the queue did not bring it.
    NOT_HEARD = "not heard"
    # The topic did not take it. That says nothing about the queue.
    NOT_SENT = "not sent"


@dataclass(frozen=True, slots=True)
class Latency:
    """How long the newest canary took, in ms.

    From its write to the Lambda, and from there to this node.

    The clocks of three machines measure it, so small figures may be negative.
    """

    to_lambda_ms: int
    to_node_ms: int


def is_number(number: int) -> bool:
    """Whether a canary may have this number."""
    return 0 < number <= NUMBER_MAX


def next_number(known: int, now_ms: int, interval_ms: int) -> int:
    """The number to emit after `known`, the greatest that this node knows; 0 = it knows none.

    Only a node that knows none uses the clock. So a fleet that starts anew begins above the numbers
    that it emitted before. If a clock was wrong then or is wrong now, the number may be taken: see
    `CanarySchedule.emitting`.
    """
    if 0 < known < NUMBER_MAX:
        return known + 1
    return min(max(1, now_ms // interval_ms), NUMBER_MAX)


def canary_item(number: int, *, node: str, batch: str, now: int, generation: str) -> LogItem:
    """The item of canary `number`. The number is its key, so only one node can write it."""
    return LogItem(
        channel=CANARY_CHANNEL,
        offset=number,
        last=number,
        epoch=new_epoch(generation, "canary"),
        pubs='[{"data":{}}]',
        batch=batch,
        node=node,
        ts=now,
        expires_at=(now + MIN_RETENTION_MS) // 1000,
    )


def latency(record: Record, lambda_at: int, now: int) -> Latency:
    """The latency of one canary. `lambda_at`: when the Lambda had it (ms), 0 = unknown."""
    return Latency(to_lambda_ms=(lambda_at or now) - record.ts, to_node_ms=now - (lambda_at or now))


class CanarySchedule:
    """The canaries that one node heard, and when it must emit one or look for a fault.

    Seconds are monotonic; `chance` is random, in [0, 1).
    """

    __slots__ = (
        "_doubt_at_s",
        "_elsewhere",
        "_emit_at_s",
        "_heard_at_s",
        "_interval_s",
        "_repeats",
        "known",
        "newest",
    )

    def __init__(self, interval_s: float, now_s: float, chance: float) -> None:
        self._interval_s = interval_s
        # The number of the newest canary heard, 0 = none yet; and the numbers heard lately, in the
        # order of their coming.
        self.newest = 0
        self._repeats: deque[int] = deque(maxlen=REPEATS_MAX)
        # The greatest number that is known to be in the table, heard or not.
        self.known = 0
        self._listen_from(now_s, chance)

    def _listen_from(self, now_s: float, chance: float) -> None:
        later_s = _JITTER * chance * self._interval_s
        self._heard_at_s = now_s
        self._emit_at_s = now_s + self._interval_s + later_s
        self._doubt_at_s = now_s + MISSED_INTERVALS * self._interval_s + later_s
        # The newest canary elsewhere, by the first look at the leases in this silence; None = no
        # look yet.
        self._elsewhere: int | None = None

    # ---- emitting

    @property
    def next_turn_s(self) -> float:
        """When there is something to do, if no canary is heard before."""
        return min(self._emit_at_s, self._doubt_at_s)

    def must_emit(self, now_s: float) -> bool:
        """Whether no new canary was heard for an interval and this node emitted none."""
        return now_s >= self._emit_at_s

    def emitting(self, now_s: float, chance: float) -> None:
        """This node tries to emit now.

        If it fails and hears none, it tries again after half an interval.

        Within half an interval it would hear the canary of a faster node. But a number may have
        been taken long ago, by a canary that this node did not hear. Then its next canary gets a
        higher number, before the silence is long enough to look for a fault.
        """
        self._emit_at_s = now_s + (1 + _JITTER * chance) * self._interval_s / 2

    def emitted(self, number: int, now_s: float, chance: float) -> None:
        """This node's canary `number` is in the table."""
        self.taken(number)
        self._emit_at_s = max(self._emit_at_s, now_s + (1 + _JITTER * chance) * self._interval_s)

    def taken(self, number: int) -> None:
        """Canary `number` is in the table, from this node or another.

        The greatest number does not count, because no other can follow it.
        """
        if number < NUMBER_MAX:
            self.known = max(self.known, number)

    # ---- hearing

    def hear(self, number: int, now_s: float, chance: float) -> bool:
        """A canary came. False = it is an older one, a repeat, or has an invalid number.

        After a long silence, a lower number counts as new, and the numbers go on from it. The
        higher one before the silence was made up, since no other followed it.
        """
        if not is_number(number):
            return False
        is_repeat = number in self._repeats
        if not is_repeat:
            self._repeats.append(number)
        if number > self.newest:
            self.taken(number)
        elif self.is_overdue(now_s) and not is_repeat:
            self.known = number
        else:
            return False
        self.newest = number
        self._listen_from(now_s, chance)
        return True

    def silence_s(self, now_s: float) -> float:
        """Seconds since a new canary came."""
        return now_s - self._heard_at_s

    def is_overdue(self, now_s: float) -> bool:
        """Whether the silence is long enough to look for a fault."""
        return self.silence_s(now_s) >= MISSED_INTERVALS * self._interval_s

    def must_doubt(self, now_s: float) -> bool:
        """Whether the silence is long enough, and a look for the fault is due."""
        return now_s >= self._doubt_at_s

    def doubted(self, now_s: float, chance: float) -> None:
        """This node looks for the fault now.

        After a long silence the numbers themselves may be wrong, so the next one comes from the
        clock.
        """
        if self.is_overdue(now_s):
            self.known = 0
        self._doubt_at_s = now_s + (1 + _JITTER * chance) * self._interval_s

    def judge(self, *, greeting: Greeting, newest_elsewhere: int | None) -> Hearing:
        """Judge what the missing canary means.

        `newest_elsewhere`: the newest canary that another node heard; None = not known.

        A greeting goes through topic and queue only. If this node hears it, its queue works, and
        the table's stream or the Lambda is silent. In an outage of the topic, the last canary
        reached some nodes and not others. So the others' newest number counts only if it goes on
        growing while this node hears nothing. Then this node is deaf.
        """
        before = self._elsewhere
        if newest_elsewhere is not None and before is None:
            self._elsewhere = newest_elsewhere
        if (
            greeting is Greeting.HEARD
            or newest_elsewhere is None
            or newest_elsewhere <= self.newest
        ):
            return Hearing.SILENT
        grows = before is not None and newest_elsewhere > before
        return Hearing.DEAF if grows else Hearing.SILENT


class Rounds:
    """What one node has written must come round, through stream, Lambda, topic and queue.

    Soon, or something is wrong. Whatever comes through the queue from the table shows that all of
    them work. So only the oldest write counts behind which nothing came.

    Times are monotonic seconds; `chance` is random, in [0, 1).
    """

    __slots__ = ("_is_told", "_since_s", "due_s")

    def __init__(self) -> None:
        # Since when something is on its way, None = nothing is.
        self._since_s: float | None = None
        # When it is late; infinite when nothing is on its way, or when it was said that it is late.
        self.due_s = inf
        self._is_told = False

    @property
    def is_late(self) -> bool:
        """It was said that what is on its way is late, and nothing has come since."""
        return self._is_told

    def wrote(self, now_s: float, chance: float) -> None:
        """Something is in the table as of now."""
        if self._since_s is None:
            self._since_s = now_s
            self.due_s = now_s + ROUND_S * (1 + _JITTER * chance)

    def came(self) -> bool:
        """Something came round. Returns whether it was said to be late."""
        was_told = self._is_told
        self._since_s, self.due_s, self._is_told = None, inf, False
        return was_told

    def must_tell(self, now_s: float) -> bool:
        """It is late as of now; once for each time that nothing comes."""
        if now_s < self.due_s:
            return False
        self.due_s, self._is_told = inf, True
        return True

    def late_s(self, now_s: float) -> float:
        """For how long what is late has been on its way; 0 when nothing is late."""
        return now_s - self._since_s if self._is_told and self._since_s is not None else 0.0
