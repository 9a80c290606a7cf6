"""The canary's rules.

One record an interval goes through the whole pipeline to every node. Whoever is first writes it.

Canaries are numbered, and the number only grows. Who has heard no new one for an interval emits the
next, and a conditional write of that number elects the one whose it is. Numbers are compared with
each other and never with a clock: a node whose clock is wrong, or that has slept, changes nothing
for the others.

Another program that can write to the table or the topic can make up a number. One that no canary
has is passed over; one that is too high is forgotten when nothing follows it: after a silence, a
lower number is news again.

A node that has heard no canary for some intervals asks: is it me, or is it the pipeline? Its own
greeting through the topic tells whether its queue hears; other nodes' leases tell whether they
heard newer canaries.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Final

from roomcast.log.item import LogItem
from roomcast.log.rules import MIN_RETENTION_MS, new_epoch
from roomcast.wire.channels import RESERVED_PREFIX
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
# Intervals without a canary before a node doubts. Somebody's turn to emit comes after one to one
# and a half; if that was in vain (its writer died, DynamoDB throttled, the number was taken),
# another comes within a half to three quarters.
MISSED_INTERVALS: Final = 2.5
# No canary has a greater number: one a second since 1970, the shortest interval there is, comes to
# that in 2286.
NUMBER_MAX: Final = 10_000_000_000
# Numbers heard lately, which are no news a second time: SQS keeps a message for 300 s at most, and
# brings it again.
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
    # None comes, to anybody as far as this node can tell: publications are found by reading the
    # log.
    SILENT = "silent"
    # Others hear what this node does not.
    DEAF = "deaf"


class Greeting(Enum):
    """What became of a greeting that a node sent to itself through the topic."""

    HEARD = "heard"
    # The topic took it; the queue did not bring it.
    NOT_HEARD = "not heard"
    # The topic did not take it: that says nothing of the queue.
    NOT_SENT = "not sent"


@dataclass(frozen=True, slots=True)
class Latency:
    """How long the newest canary took, in ms.

    From its write to the Lambda, and from there to this node.

    Clocks of three machines: small figures may be negative.
    """

    to_lambda_ms: int
    to_node_ms: int


def is_number(number: int) -> bool:
    """Whether a canary may have it."""
    return 0 < number <= NUMBER_MAX


def next_number(known: int, now_ms: int, interval_ms: int) -> int:
    """The number to emit behind `known`, the greatest that this node knows of; 0 = it knows none.

    Only then the clock is asked, so that a fleet that starts anew begins above what it emitted
    before. If it does not, because a clock was wrong then or is now, the number may be taken: see
    `CanarySchedule.emitting`.
    """
    if 0 < known < NUMBER_MAX:
        return known + 1
    return min(max(1, now_ms // interval_ms), NUMBER_MAX)


def canary_item(number: int, *, node: str, batch: str, now: int, generation: str) -> LogItem:
    """The record of canary `number`: the number is the key, so only one node can write it."""
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


def latency(record: Record, published_at: int, now: int) -> Latency:
    """`published_at`: when the Lambda published (ms), 0 = unknown."""
    return Latency(
        to_lambda_ms=(published_at or now) - record.ts, to_node_ms=now - (published_at or now)
    )


class CanarySchedule:
    """What one node heard, and when it is to emit or to doubt.

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
        # The number of the newest canary heard; 0 = none yet. And those heard lately, in the order
        # in which they came.
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
        # What the leases said when this silence was first looked into; None = that was not yet.
        self._elsewhere: int | None = None

    # ---- emitting

    @property
    def next_turn_s(self) -> float:
        """When there is something to do, if nothing is heard before."""
        return min(self._emit_at_s, self._doubt_at_s)

    def must_emit(self, now_s: float) -> bool:
        """Nobody's new canary was heard for an interval, nor did this node emit one."""
        return now_s >= self._emit_at_s

    def emitting(self, now_s: float, chance: float) -> None:
        """This node tries to emit now.

        In vain, it tries again after half an interval if it hears nothing by then.

        That is time to hear who was faster. But who holds a number may have emitted it long ago,
        without this node hearing it: then the next canary goes behind it, before the silence
        becomes a doubt.
        """
        self._emit_at_s = now_s + (1 + _JITTER * chance) * self._interval_s / 2

    def emitted(self, number: int, now_s: float, chance: float) -> None:
        """This node's canary `number` is in the table."""
        self.taken(number)
        self._emit_at_s = max(self._emit_at_s, now_s + (1 + _JITTER * chance) * self._interval_s)

    def taken(self, number: int) -> None:
        """Canary `number` is in the table, whoever emitted it.

        The last there is does not count: nothing can be emitted behind it.
        """
        if number < NUMBER_MAX:
            self.known = max(self.known, number)

    # ---- hearing

    def hear(self, number: int, now_s: float, chance: float) -> bool:
        """A canary came; False = an older one, the same again, or none.

        In a silence that is overdue a lower number is news as well, and the numbers go on from
        there: what was heard before it was no canary, since nothing followed.
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
        """How long no new canary has come."""
        return now_s - self._heard_at_s

    def is_overdue(self, now_s: float) -> bool:
        """Long enough to ask what is wrong."""
        return self.silence_s(now_s) >= MISSED_INTERVALS * self._interval_s

    def must_doubt(self, now_s: float) -> bool:
        """It is overdue, and time to ask (again)."""
        return now_s >= self._doubt_at_s

    def doubted(self, now_s: float, chance: float) -> None:
        """What was wrong was asked now.

        After a long silence the numbers may be what is wrong: the next canary goes by the clock.
        """
        if self.is_overdue(now_s):
            self.known = 0
        self._doubt_at_s = now_s + (1 + _JITTER * chance) * self._interval_s

    def judge(self, *, greeting: Greeting, newest_elsewhere: int | None) -> Hearing:
        """What an overdue canary means.

        `newest_elsewhere`: the newest that another live node heard; None = not known.

        A greeting comes through topic and queue only: who hears it has ears, and it is the table's
        stream or the Lambda that is silent. In an outage of the topic the last canary reached some
        nodes and not others, so what others heard counts only if it goes on growing while this node
        hears nothing: then this node is deaf.
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
