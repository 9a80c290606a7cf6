"""What justifies telling a client that it cannot go on, at its edges:
a checker that accepts too much sees nothing.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from roomcast.delivery.recovery import RING_BYTES_MAX
from tests.simulation.reasons import (
    SILENCE_S,
    Position,
    Readable,
    Reason,
    Terms,
    Truth,
    why_lost,
    why_unrecovered,
)

TTL_MS = 60_000
NOW_MS = 1_000_000
TERMS = Terms(publications_max=5, history_size=8, history_ttl_ms=TTL_MS, now_ms=NOW_MS)
# Offsets 1 to 10, all young and small.
LOG = Truth(
    "e", top=10, trim=0, readable={offset: Readable(NOW_MS, 100) for offset in range(1, 11)}
)


def without(*offsets: int) -> Truth:
    return replace(
        LOG,
        readable={offset: LOG.readable[offset] for offset in LOG.readable if offset not in offsets},
    )


def changed(offset: int, ts: int = NOW_MS, size: int = 100) -> Truth:
    return replace(LOG, readable={**LOG.readable, offset: Readable(ts, size)})


@pytest.mark.parametrize(
    "since, answered, truth, terms, reasons",
    [
        (("e", 5), ("e", 10), LOG, TERMS, set()),
        (("e", 10), ("e", 10), LOG, TERMS, set()),
        # Of another epoch is who is not of the last one; the node may be that, too.
        (("f", 5), ("e", 10), LOG, TERMS, {Reason.EPOCH}),
        (("e", 5), ("d", 10), LOG, TERMS, set()),
        (("e", 5), ("f", 10), replace(LOG, is_ending=True), TERMS, {Reason.EPOCH}),
        (("e", 5), ("e", 10), replace(LOG, is_ending=True), TERMS, set()),
        # Ahead of the log is not ahead of the node.
        (("e", 11), ("e", 10), LOG, TERMS, {Reason.AHEAD}),
        (("e", 10), ("e", 8), LOG, TERMS, set()),
        (("e", 10), ("e", 8), without(9), TERMS, {Reason.HOLE}),
        (("e", 10), ("e", 8), without(8), TERMS, set()),
        # Both counts bind.
        (("e", 4), ("e", 10), LOG, TERMS, {Reason.COUNT}),
        (("e", 4), ("e", 10), LOG, replace(TERMS, publications_max=6), set()),
        (
            ("e", 4),
            ("e", 10),
            LOG,
            replace(TERMS, publications_max=6, history_size=5),
            {Reason.COUNT},
        ),
        # What is hidden must have been missed.
        (("e", 7), ("e", 10), replace(LOG, trim=7), TERMS, set()),
        (("e", 7), ("e", 10), replace(LOG, trim=8), TERMS, {Reason.TRIMMED}),
        (("e", 10), ("e", 10), replace(LOG, trim=11), TERMS, set()),
        (("e", 7), ("e", 10), without(7), TERMS, set()),
        (("e", 7), ("e", 10), without(8), TERMS, {Reason.HOLE}),
        (("e", 7), ("e", 10), without(10), TERMS, {Reason.HOLE}),
        # Age counts at the first one.
        (("e", 7), ("e", 10), changed(8, ts=NOW_MS - TTL_MS), TERMS, set()),
        (("e", 7), ("e", 10), changed(8, ts=NOW_MS - TTL_MS - 1), TERMS, {Reason.AGE}),
        (("e", 7), ("e", 10), changed(9, ts=NOW_MS - TTL_MS - 1), TERMS, set()),
        (("e", 7), ("e", 10), changed(9, size=RING_BYTES_MAX - 200), TERMS, set()),
        (("e", 7), ("e", 10), changed(9, size=RING_BYTES_MAX - 199), TERMS, {Reason.BYTES}),
    ],
)
def test_a_recovery_is_refused_for_what_is_in_the_log_and_in_the_bounds(
    since: Position, answered: Position, truth: Truth, terms: Terms, reasons: set[Reason]
) -> None:
    assert set(why_unrecovered(since, answered, truth, terms)) == reasons


@pytest.mark.parametrize(
    "stands, truth, terms, reasons",
    [
        (("e", 8), LOG, TERMS, set()),
        (("d", 8), LOG, TERMS, {Reason.EPOCH}),
        (("e", 8), replace(LOG, is_ending=True), TERMS, {Reason.EPOCH}),
        (("e", 8), without(8), TERMS, set()),
        (("e", 8), without(10), TERMS, {Reason.HOLE}),
        (("e", 8), LOG, replace(TERMS, unanswered_s=SILENCE_S - 1), set()),
        (("e", 8), LOG, replace(TERMS, unanswered_s=SILENCE_S), {Reason.SILENCE}),
    ],
)
def test_a_subscription_ends_for_a_hole_another_epoch_or_a_silent_log(
    stands: Position, truth: Truth, terms: Terms, reasons: set[Reason]
) -> None:
    assert set(why_lost(stands, truth, terms)) == reasons
