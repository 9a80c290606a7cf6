"""The checker sees every way in which the invariants can break."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.checker import Bounds, Checker, Entry

pytestmark = pytest.mark.chaos

WHO = "ann"
# Of 5 publications, a client that saw one may be told.
BOUNDS = Bounds(publications_max=3, ttl_s=60.0)
LOG = {"red": [Entry("e", number, f"p-{number}") for number in range(1, 6)]}


def subscribed(offset: int, *, recovered: bool | None = None, epoch: str = "e") -> dict[str, Any]:
    return {
        "event": "subscribed",
        "channel": "red",
        "was_recovering": recovered is not None,
        "recovered": bool(recovered),
        "position": {"offset": offset, "epoch": epoch},
    }


def publication(offset: int, content: str | None = None) -> dict[str, Any]:
    return {
        "event": "publication",
        "channel": "red",
        "offset": offset,
        "data": content or f"p-{offset}",
    }


AWAY = {"event": "subscribing", "channel": "red", "code": 1}
LOST = {**AWAY, "code": 2500}
GOOD = [subscribed(0), publication(1), publication(2), AWAY, subscribed(2, recovered=True)] + [
    publication(number) for number in (3, 4, 5)
]


def checked(
    events: list[dict[str, Any]],
    log: dict[str, list[Entry]] = LOG,
    acknowledged: tuple[int, ...] = (1, 2, 3, 4, 5),
    took_s: float = 0.0,
) -> list[str]:
    """Violations, after p-1 to p-5 were published one after the other;
    it took so long until anybody came.
    """
    now_s = 0.0
    checker = Checker(lambda channel: BOUNDS, lambda: now_s)
    for number in range(1, 6):
        checker.publishing("red", f"p-{number}")
        if number in acknowledged:
            checker.acknowledge(f"p-{number}")
    now_s = took_s
    for event in events:
        checker.happened(WHO, event)
    return [violation.partition(":")[0] for violation in checker.finish(log)]


def test_what_is_right_is_not_a_violation() -> None:
    assert checked(GOOD) == []


def test_what_was_not_acknowledged_may_be_in_the_log_or_not() -> None:
    without = {"red": LOG["red"][:-1]}
    assert checked(GOOD, acknowledged=(1, 2)) == []
    assert checked(GOOD[:-1], without, acknowledged=(1, 2, 3, 4)) == []


def test_who_was_told_of_a_loss_goes_on_from_the_new_position() -> None:
    told = [*GOOD[:2], AWAY, subscribed(5, recovered=False)]
    assert checked(told) == []


def test_who_misses_as_much_as_a_recovery_brings_is_not_refused() -> None:
    told = [*GOOD[:4], subscribed(5, recovered=False)]
    assert checked(told) == ["I3 refused without a reason"]
    assert checked(told, took_s=BOUNDS.ttl_s) == ["I3 refused without a reason"]
    assert checked(told, took_s=BOUNDS.ttl_s + 1) == []


def test_nobody_is_refused_by_an_instance_that_has_seen_less() -> None:
    told = [*GOOD, AWAY, subscribed(4, recovered=False), publication(5)]
    assert checked(told) == ["I3 refused without a reason"]


def test_another_epoch_must_be_in_the_log() -> None:
    told = [*GOOD[:4], subscribed(5, recovered=False, epoch="f")]
    assert "I3 refused without a reason" in checked(told)
    other = {"red": [*LOG["red"][:4], Entry("f", 5, "p-5")]}
    assert checked(told, other) == []


def test_a_hole_in_the_log_is_a_reason() -> None:
    with_hole = {"red": [*LOG["red"][:3], *LOG["red"][4:]]}
    violations = checked(
        [*GOOD[:4], subscribed(5, recovered=False)], with_hole, acknowledged=(1, 2, 3, 5)
    )
    assert violations == ["I1"]
    violations = checked(
        [*GOOD[:3], LOST, subscribed(5, recovered=False)], with_hole, acknowledged=()
    )
    assert violations == ["I1"]


def test_a_subscription_does_not_end_for_nothing() -> None:
    assert checked([*GOOD[:4], GOOD[4], LOST, *GOOD[4:]]) == ["I3 ended without a reason"]


def test_a_burst_keeps_its_order() -> None:
    def order(contents: list[str], acknowledged: list[str]) -> list[str]:
        checker = Checker(lambda channel: BOUNDS)
        checker.burst(contents)
        for content in contents:
            checker.publishing("red", content)
        for content in acknowledged:
            checker.acknowledge(content)
        log = {"red": [Entry("e", 1, "p-2"), Entry("e", 2, "p-1")]}
        return [violation.partition(":")[0] for violation in checker.finish(log)]

    assert order(["p-2", "p-1"], ["p-2", "p-1"]) == []
    assert order(["p-1", "p-2"], ["p-2", "p-1"]) == ["order"]
    # They may have gone through two connections.
    assert order(["p-1", "p-2"], ["p-2"]) == []


@pytest.mark.parametrize(
    "events, kind",
    [
        ([*GOOD[:2], *GOOD[3:]], "I3 recovered"),
        ([*GOOD[:6], *GOOD[7:]], "I3 hole"),
        ([*GOOD[:7], *GOOD[6:]], "I3 twice"),
        ([*GOOD[:5], GOOD[6], GOOD[5], GOOD[7]], "I3 hole"),
        (GOOD[:-1], "I3 behind"),
        ([GOOD[1], *GOOD], "I4 early"),
        ([*GOOD[:4], *GOOD[5:]], "I4 early"),
        ([*GOOD[:4], subscribed(0), *GOOD[1:3], *GOOD[5:]], "I3 fresh"),
        ([*GOOD[:4], subscribed(2, recovered=True, epoch="f"), *GOOD[5:]], "I3 recovered"),
        ([*GOOD[:7], publication(5, "p-4")], "I3 content"),
        ([*GOOD, {"event": "unsubscribed", "channel": "red", "code": 103}], "I3 unsubscribed"),
        ([{**GOOD[0], "position": None}], "I4 no position"),
    ],
)
def test_what_a_subscriber_must_not_see(events: list[dict[str, Any]], kind: str) -> None:
    assert kind in checked(events)


@pytest.mark.parametrize(
    "log, kind",
    [
        ([*LOG["red"][:4], Entry("e", 5, "another")], "I2 lost"),
        ([*LOG["red"], Entry("e", 6, "p-1")], "I2 twice"),
        ([*LOG["red"], Entry("e", 6, "nobody's")], "I2 invented"),
        ([*LOG["red"][:4], Entry("e", 6, "p-5")], "I1"),
        ([Entry("e", 1, "p-2"), Entry("e", 2, "p-1"), *LOG["red"][2:]], "I2 order"),
    ],
)
def test_what_the_log_must_not_hold(log: list[Entry], kind: str) -> None:
    assert kind in checked(GOOD, {"red": log})
