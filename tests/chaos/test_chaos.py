"""Real processes among failing AWS calls, kills and lost queues:
what was acknowledged arrives once, in order.

ROOMCAST_CHAOS_S sets for how many seconds faults go on, ROOMCAST_CHAOS_SEED which (default:
a random seed, printed).
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable

import pytest

from tests.acceptance.peers import Event
from tests.chaos.checker import Checker
from tests.chaos.clients import CLIENTS
from tests.chaos.scenario import CONVERGENCE_S, DURATION_S, Outcome, run
from tests.requirements import Missing, find_node, required

SEED = int(os.environ.get("ROOMCAST_CHAOS_SEED", "0")) or secrets.randbelow(1_000_000)
# Start and end of everything, and until all is well twice, on a machine that does much else.
AROUND_S = 240.0

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(DURATION_S + 2 * CONVERGENCE_S + AROUND_S)]


def node_or_none() -> str | None:
    """Without Node.js the Python SDK stands in, unless ROOMCAST_REQUIRE demands it."""
    try:
        return find_node()
    except Missing:
        if "node" in required():
            raise
        return None


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return asyncio.run(run(SEED, DURATION_S, node_or_none(), print))


def test_nothing_is_lost_and_nothing_comes_twice(outcome: Outcome) -> None:
    print(f"\n{outcome.table()}")
    if outcome.violations:
        print(outcome.report)
    assert outcome.violations == []


def test_the_run_was_worth_its_time(outcome: Outcome) -> None:
    """A run in which nothing went wrong, or nothing got through, proves nothing."""
    checker = outcome.checker
    assert checker.acknowledged > DURATION_S
    assert checker.delivered > checker.acknowledged
    assert checker.recovered > 0
    assert outcome.faults > DURATION_S
    assert outcome.kills > 0
    # Each kind of client had its part.
    heard = {who for who, event in outcome.events if event["event"] == "publication"}
    assert all(any(f"({sdk})" in who for who in heard) for sdk in CLIENTS)


def again(outcome: Outcome, change: Callable[[list[tuple[str, Event]]], None]) -> list[str]:
    """What a checker says that is told the same, but for `change`."""
    events = list(outcome.events)
    change(events)
    checker = Checker(outcome.checker.bounds)
    for subscriber, event in events:
        checker.happened(subscriber, event)
    # It was not told who published what.
    return [each for each in checker.finish(outcome.log) if not each.startswith("I2 invented")]


def publications(events: list[tuple[str, Event]]) -> list[int]:
    return [index for index, (_, event) in enumerate(events) if event["event"] == "publication"]


def test_the_checker_agrees_with_itself(outcome: Outcome) -> None:
    assert again(outcome, lambda events: None) == []


def test_one_delivery_less_is_noticed(outcome: Outcome) -> None:
    def drop(events: list[tuple[str, Event]]) -> None:
        indexes = publications(events)
        del events[indexes[len(indexes) // 2]]

    assert again(outcome, drop)


def test_the_last_delivery_less_is_noticed(outcome: Outcome) -> None:
    def drop(events: list[tuple[str, Event]]) -> None:
        del events[publications(events)[-1]]

    assert again(outcome, drop)


def test_one_delivery_more_is_noticed(outcome: Outcome) -> None:
    def repeat(events: list[tuple[str, Event]]) -> None:
        index = publications(events)[-2]
        events.insert(index, events[index])

    assert again(outcome, repeat)


def test_two_deliveries_in_the_wrong_order_are_noticed(outcome: Outcome) -> None:
    def swap(events: list[tuple[str, Event]]) -> None:
        first = publications(events)[0]
        who, channel = events[first][0], events[first][1]["channel"]
        second = next(
            index
            for index in publications(events)[1:]
            if events[index][0] == who and events[index][1]["channel"] == channel
        )
        events[first], events[second] = events[second], events[first]

    assert again(outcome, swap)
