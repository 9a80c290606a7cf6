"""service/roomcast/bench/ledger.py: what is lost, missed while away, repeated, out of order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from roomcast.bench.ledger import Ledger, Missing
from roomcast.bench.plan import Plan

URLS = ("ws://a:1/x", "ws://b:1/x")


def ledger(**changes: Any) -> Ledger:
    """Two clients in one channel, each at an address of its own."""
    return Ledger(replace(Plan(URLS, "r", clients=2, publishers=2, channels=1), **changes))


def subscribed(told: Ledger, position: tuple[str, int] | None = ("e", 0)) -> Ledger:
    for client in range(2):
        told.subscribed(client, 0, position)
        told.came(client, 1000)
    return told


def published(told: Ledger, publisher: int = 0, at_s: float = 1.0, channel: int = 0) -> int:
    number = told.publishes(channel, publisher, at_s, 0.0)
    told.acknowledges(channel, number, at_s + 0.002)
    return number


def test_everything_came() -> None:
    told = subscribed(ledger())
    for offset in (1, 2):
        number = published(told, at_s=offset)
        told.delivered(0, 0, number, offset, offset + 0.003)
        told.delivered(1, 0, number, offset, offset + 0.030)
    assert told.missing() == Missing()
    assert (told.sent, told.received, told.unanswered, told.awaited) == (2, 4, 0, 0)
    assert (told.repeated, told.out_of_order, told.swapped(), told.foreign) == (0, 0, 0, 0)
    assert (told.same_us.count, told.other_us.count) == (2, 2)
    assert 2990 <= told.same_us.least <= told.same_us.most <= 3010
    assert 29_900 <= told.other_us.most <= 30_100
    assert 1990 <= told.acknowledged_us.most <= 2010
    assert told.connect_us.most == 1000
    assert (told.first_sent_s, told.last_received_s) == (1, 2.03)


def test_what_did_not_come_is_lost() -> None:
    told = subscribed(ledger())
    first, second = published(told), published(told)
    told.delivered(0, 0, first, 1, 1.1)
    told.delivered(0, 0, second, 2, 1.1)
    assert told.missing() == Missing(lost=2)
    told.delivered(1, 0, second, 2, 1.1)
    assert told.missing() == Missing(lost=1)


def test_what_was_not_acknowledged_is_owed_to_nobody() -> None:
    told = subscribed(ledger())
    told.publishes(0, 0, 1.0, 0.0)
    told.publishes(0, 0, 1.0, 0.0)
    told.refuses("publish: too many requests (111)")
    assert told.missing() == Missing()
    assert (told.unanswered, told.awaited, told.refused) == (1, 1, 1)
    told.abandons(1)
    assert (told.unanswered, told.awaited) == (1, 0)


def test_what_was_sent_before_somebody_came_is_not_owed() -> None:
    told = ledger()
    told.subscribed(0, 0, ("e", 0))
    published(told)
    told.subscribed(1, 0, ("e", 1))
    second = published(told)
    told.delivered(0, 0, 0, 1, 1.1)
    told.delivered(0, 0, second, 2, 1.1)
    assert told.missing() == Missing(lost=1)


def test_who_is_away_misses() -> None:
    told = subscribed(ledger())
    told.delivered(0, 0, published(told), 1, 1.1)
    told.went(1, "shutdown (3001)")
    assert told.gone == {1}
    assert told.missing() == Missing(away=1)
    told.subscribed(1, 0, ("e", 1))
    told.came(1, 5)
    assert (told.gone, told.reconnects, told.connect_us.count) == (set(), 1, 2)
    assert told.missing() == Missing(away=1)
    third = published(told)
    assert told.missing() == Missing(lost=2, away=1)
    told.delivered(1, 0, third, 2, 1.1)
    told.delivered(0, 0, third, 2, 1.1)
    assert told.missing() == Missing(away=1)
    assert told.out_of_order == 0


def test_what_is_recovered_is_owed() -> None:
    told = subscribed(ledger())
    first = published(told)
    told.delivered(0, 0, first, 1, 1.1)
    told.went(1, "shutdown (3001)")
    second = published(told)
    told.delivered(0, 0, second, 2, 1.1)
    assert told.position(1, 0) == ("e", 0)
    told.subscribed(1, 0, ("e", 2), recovered=True)
    assert told.missing() == Missing(lost=2)
    told.delivered(1, 0, first, 1, 1.1)
    told.delivered(1, 0, second, 2, 1.1)
    assert told.missing() == Missing()
    assert told.out_of_order == 0
    assert told.position(1, 0) == ("e", 2)


def test_an_ended_subscription_misses() -> None:
    told = subscribed(ledger())
    told.unsubscribed(1, 0)
    told.delivered(0, 0, published(told), 1, 1.1)
    assert told.missing() == Missing(away=1)


def test_repeats() -> None:
    told = subscribed(ledger())
    number = published(told)
    for _ in range(3):
        told.delivered(0, 0, number, 1, 1.1)
    assert (told.received, told.repeated, told.out_of_order) == (1, 2, 0)


def test_an_order_that_is_not_that_of_the_log() -> None:
    told = subscribed(ledger())
    first, second, third = (published(told) for _ in range(3))
    for number, offset in ((first, 1), (third, 3), (second, 2)):
        told.delivered(0, 0, number, offset, 1.1)
    assert told.out_of_order == 2


def test_an_offset_with_two_contents() -> None:
    told = subscribed(ledger())
    first, second = published(told), published(told)
    told.delivered(0, 0, first, 1, 1.1)
    told.delivered(1, 0, second, 1, 1.1)
    assert told.out_of_order == 1


def test_publications_that_overtook_each_other() -> None:
    told = subscribed(ledger())
    first, second = published(told, publisher=0), published(told, publisher=0)
    told.delivered(0, 0, second, 1, 1.1)
    told.delivered(0, 0, first, 2, 1.1)
    assert (told.out_of_order, told.swapped()) == (0, 1)
    # Those of different clients, and of the API, have no order among each other.
    told = subscribed(ledger(apis=("http://a:1",)))
    third, fourth = published(told, publisher=0), published(told, publisher=1)
    fifth, sixth = published(told, publisher=-1), published(told, publisher=-1)
    for offset, number in enumerate((fourth, third, sixth, fifth), 1):
        told.delivered(0, 0, number, offset, 1.1)
    assert (told.out_of_order, told.swapped()) == (0, 0)


def test_without_history_there_is_no_order() -> None:
    told = subscribed(ledger(), None)
    first, second = published(told), published(told)
    told.delivered(0, 0, second, None, 1.1)
    told.delivered(0, 0, first, None, 1.1)
    assert (told.received, told.out_of_order, told.swapped()) == (2, 0, 0)
    assert told.position(0, 0) is None


def test_what_somebody_else_publishes() -> None:
    told = subscribed(ledger())
    told.passed(0, 0, 1)
    told.delivered(0, 0, published(told), 2, 1.1)
    told.delivered(0, 0, 99, 3, 1.1)
    assert (told.foreign, told.out_of_order, told.received) == (2, 0, 1)


def test_the_latest_of_all() -> None:
    told = ledger()
    told.publishes(0, 0, 1.0, 0.25)
    told.publishes(0, 0, 2.0, 0.125)
    assert told.late_us == 250_000


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=40))
def test_expected_is_what_came_and_what_is_missing(
    outcomes: list[tuple[bool, bool, bool]],
) -> None:
    """Whatever is acknowledged, and comes to one, to the other, to both or to nobody."""
    told = subscribed(ledger())
    lost = 0
    for acknowledged, *came in outcomes:
        number = told.publishes(0, 0, 1.0, 0.0)
        if acknowledged:
            told.acknowledges(0, number, 1.0)
        for client, comes in enumerate(came):
            if comes:
                told.delivered(client, 0, number, None, 1.1)
            elif acknowledged:
                lost += 1
    assert told.missing() == Missing(lost=lost)
