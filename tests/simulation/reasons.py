"""Why a client may be told that it cannot go on from its position:
only for what is in the log and in the bounds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from roomcast.delivery.recovery import RING_BYTES_MAX
from roomcast.log.channel_log import READ_DEADLINE_S

__all__ = [
    "SILENCE_S",
    "Position",
    "Readable",
    "Reason",
    "Terms",
    "Truth",
    "why_lost",
    "why_unrecovered",
]

Position = tuple[str, int]

# Reads of one hole that fail in a row before subscribers may be told (docs/guarantees.md, I3);
# each is tried for READ_DEADLINE_S.
_GAP_FAILURES: Final = 20
SILENCE_S: Final = _GAP_FAILURES * READ_DEADLINE_S


class Reason(StrEnum):
    """What `recovered: false`, or the end of a subscription with 2500, may rest on."""

    EPOCH = "another epoch"
    AHEAD = "ahead of the log"
    COUNT = "more publications than a recovery brings"
    BYTES = "more bytes than a recovery brings"
    AGE = "older than what is shown"
    TRIMMED = "removed from the history"
    HOLE = "not in the log any more, or broken in it"
    SILENCE = "the log did not answer"


@dataclass(frozen=True, slots=True)
class Readable:
    """One publication that a reader of the log finds: `ts` of its append (ms),
    `size` of its JSON in bytes.
    """

    ts: int
    size: int


@dataclass(frozen=True, slots=True)
class Truth:
    """What a channel's log is at one moment. `epoch`: the one that a reader finds;
    `top`: where it ends; `readable`: all that a reader of this epoch finds, by offset.
    `is_ending`: whether some node's clock says that another one begins.
    """

    epoch: str
    top: int
    trim: int
    readable: Mapping[int, Readable]
    is_ending: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What the node that speaks allows, what its clock says,
    and for how long all of its reads of the channel failed.
    """

    publications_max: int
    history_size: int
    history_ttl_ms: int
    now_ms: int
    unanswered_s: float = 0.0


def why_unrecovered(
    since: Position, answered: Position, truth: Truth, terms: Terms
) -> Collection[Reason]:
    """All that justifies telling a client that stands at `since` that it cannot recover,
    by a node at `answered`.

    Exact: the node decides in the moment in which it answers. A node that lags in
    an epoch that is over has no reason to refuse a client of the one that is not.
    That more was published while the log was read than a ring holds is no reason of its own:
    then it is too much for a recovery as well.
    """
    epoch, offset = since
    if epoch != truth.epoch:
        return {Reason.EPOCH}
    if answered[0] != epoch:
        return {Reason.EPOCH} if truth.is_ending else ()
    missed = range(offset + 1, answered[1] + 1)
    reasons = set()
    if offset > truth.top:
        reasons.add(Reason.AHEAD)
    if len(missed) > min(terms.publications_max, terms.history_size):
        reasons.add(Reason.COUNT)
    if missed and offset < truth.trim:
        reasons.add(Reason.TRIMMED)
    found = [truth.readable.get(each) for each in missed]
    # A node that is behind the client cannot go across a hole either.
    behind = range(answered[1] + 1, min(offset, truth.top) + 1)
    if None in found or any(each not in truth.readable for each in behind):
        reasons.add(Reason.HOLE)
    if found and found[0] is not None and found[0].ts < terms.now_ms - terms.history_ttl_ms:
        reasons.add(Reason.AGE)
    if sum(each.size for each in found if each is not None) > RING_BYTES_MAX:
        reasons.add(Reason.BYTES)
    return reasons


def why_lost(stands: Position, truth: Truth, terms: Terms) -> Collection[Reason]:
    """All that justifies ending a subscription that stands at `stands` with 2500."""
    epoch, offset = stands
    if epoch != truth.epoch:
        return {Reason.EPOCH}
    reasons = {Reason.EPOCH} if truth.is_ending else set()
    if any(each not in truth.readable for each in range(offset + 1, truth.top + 1)):
        reasons.add(Reason.HOLE)
    if terms.unanswered_s >= SILENCE_S:
        reasons.add(Reason.SILENCE)
    return reasons
