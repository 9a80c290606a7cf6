"""service/roomcast/delivery/greetings.py: a late greeting proves the queue, an unsent none."""

from __future__ import annotations

import pytest

from roomcast.delivery.greetings import GREETINGS_MAX, Greetings


def test_a_greeting_that_comes_back_proves_the_queue() -> None:
    greetings = Greetings()
    first, second = greetings.sent("1"), greetings.sent("2")
    assert not greetings.hears
    greetings.greeted("1")
    assert greetings.hears
    assert (first.is_set(), second.is_set()) == (True, False)


@pytest.mark.parametrize("signal_id", ["unknown", "0"])
def test_what_is_not_remembered_proves_nothing(signal_id: str) -> None:
    greetings = Greetings()
    for number in range(GREETINGS_MAX + 1):
        greetings.sent(str(number))
    greetings.greeted(signal_id)
    assert not greetings.hears
    greetings.greeted("1")
    assert greetings.hears


def test_whatever_only_the_topic_can_have_brought_proves_as_much() -> None:
    greetings = Greetings()
    greetings.heard()
    assert greetings.hears
