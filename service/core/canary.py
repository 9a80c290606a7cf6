"""The canary's rules: one record a time slot, written by whoever is first, through the whole pipeline to every node.

A node that has heard no canary for some slots asks: is it me, or is it the pipeline? Its own greeting through the
topic tells whether its queue hears; other nodes' leases tell whether they heard newer canaries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from service.core.channels import RESERVED_PREFIX
from service.core.log import MIN_RETENTION_MS, new_epoch
from service.core.log_item import LogItem
from service.core.publication import Record

__all__ = [
    "CANARY_CHANNEL",
    "MISSED_SLOTS",
    "Greeting",
    "Hearing",
    "Latency",
    "Vigil",
    "canary_item",
    "latency",
    "slot_at",
]

CANARY_CHANNEL: Final = RESERVED_PREFIX + "canary"
# Slots without a canary before a node doubts: one may be late (its writer died, DynamoDB throttled), two are not.
MISSED_SLOTS: Final = 2.5


class Hearing(Enum):
    """Whether this node hears the pipeline."""

    # Canaries come.
    WELL = "well"
    # None comes, to anybody as far as this node can tell: publications are found by reading the log.
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
    """How long the newest canary took, in ms: from its write to the Lambda, and from there to this node.

    Clocks of three machines: small figures may be negative.
    """

    to_lambda_ms: int
    to_node_ms: int


def slot_at(now_ms: int, interval_ms: int) -> int:
    """The number of the time slot; the same on all nodes as far as their clocks agree."""
    return now_ms // interval_ms


def canary_item(slot: int, *, node: str, batch: str, now: int, generation: str) -> LogItem:
    """The record of `slot`: the key is the slot, so only one node can write it."""
    return LogItem(
        channel=CANARY_CHANNEL,
        offset=slot,
        last=slot,
        epoch=new_epoch(generation, "canary"),
        pubs='[{"data":{}}]',
        batch=batch,
        node=node,
        ts=now,
        expires_at=(now + MIN_RETENTION_MS) // 1000,
    )


def latency(record: Record, published_at: int, now: int) -> Latency:
    """`published_at`: when the Lambda published (ms), 0 = unknown."""
    return Latency(to_lambda_ms=(published_at or now) - record.ts, to_node_ms=now - (published_at or now))


class Vigil:
    """What one node heard. Seconds are monotonic."""

    __slots__ = ("_heard_at_s", "_interval_s", "slot")

    def __init__(self, interval_s: float, now_s: float) -> None:
        self._interval_s = interval_s
        self._heard_at_s = now_s
        # The newest slot heard; 0 = none yet.
        self.slot = 0

    def hear(self, slot: int, now_s: float) -> bool:
        """A canary came; False = an older one, or the same again."""
        if slot <= self.slot:
            return False
        self.slot, self._heard_at_s = slot, now_s
        return True

    def silence_s(self, now_s: float) -> float:
        """How long no canary has come."""
        return now_s - self._heard_at_s

    def is_overdue(self, now_s: float) -> bool:
        """Long enough to ask what is wrong."""
        return self.silence_s(now_s) > MISSED_SLOTS * self._interval_s

    def judge(self, *, greeting: Greeting, newest_elsewhere: int) -> Hearing:
        """What an overdue canary means. `newest_elsewhere`: the newest slot that another live node heard.

        A greeting comes through topic and queue only: who hears it has ears, and it is the table's stream or the
        Lambda that is silent. Who does not, while others hear canaries, is deaf.
        """
        if greeting is Greeting.HEARD or newest_elsewhere <= self.slot:
            return Hearing.SILENT
        return Hearing.DEAF
