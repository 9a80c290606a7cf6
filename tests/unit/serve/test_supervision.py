"""service/roomcast/serve/supervision.py: who listens, and what follows an end."""

from __future__ import annotations

import signal

import pytest

from roomcast.serve.supervision import (
    DEATHS_MAX,
    DEATHS_WITHIN_S,
    GiveUp,
    Leave,
    Restart,
    Supervision,
)

KILLED = -signal.SIGKILL


def begun(number: int) -> Supervision:
    rules = Supervision(number)
    for index in range(number):
        rules.started(index)
    return rules


# ---- who listens


def test_nobody_listens_before_all_can() -> None:
    rules = Supervision(3)
    rules.started(0)
    rules.started(1)
    assert rules.listeners() == frozenset()
    rules.started(2)
    assert rules.listeners() == {0, 1, 2}


def test_one_that_fails_at_its_first_start_holds_up_nobody() -> None:
    rules = Supervision(2)
    rules.started(0)
    assert isinstance(rules.ended(1, 1, 0.0, 0.5), Restart)
    assert rules.listeners() == {0}
    rules.started(1)
    assert rules.listeners() == {0, 1}


def test_one_that_takes_long_is_not_waited_for_any_longer() -> None:
    rules = Supervision(2)
    rules.started(0)
    rules.waited_enough()
    assert rules.listeners() == {0}


def test_one_that_is_not_ready_gets_no_new_clients() -> None:
    rules = begun(3)
    rules.judged(1, ready=False)
    assert rules.listeners() == {0, 2}
    rules.judged(1, ready=True)
    assert rules.listeners() == {0, 1, 2}


def test_if_none_is_ready_all_listen() -> None:
    rules = begun(2)
    rules.judged(0, ready=False)
    rules.judged(1, ready=False)
    assert rules.listeners() == {0, 1}
    rules.ended(0, KILLED, 0.0, 0.5)
    assert rules.listeners() == {1}


def test_what_a_dead_one_said_of_itself_is_not_taken_for_the_next_one() -> None:
    rules = begun(2)
    rules.ended(0, KILLED, 0.0, 0.5)
    # It may be read only now.
    rules.judged(0, ready=True)
    assert rules.listeners() == {1}


# ---- what follows an end


@pytest.mark.parametrize("code", [0, 1, 2])
def test_what_keeps_the_first_from_serving_ends_all_as_it_ended(code: int) -> None:
    assert Supervision(4).ended(0, code, 0.0, 0.5) == GiveUp(code, "")


@pytest.mark.parametrize("code", [KILLED, 3])
def test_a_first_one_that_said_nothing_is_told_of(code: int) -> None:
    verdict = Supervision(4).ended(0, code, 0.0, 0.5)
    assert isinstance(verdict, GiveUp)
    assert verdict.code == 1
    assert str(code) in verdict.why


def test_one_that_ended_in_order_is_left_alone() -> None:
    assert begun(2).ended(0, 0, 0.0, 0.5) == Leave()


@pytest.mark.parametrize("code", [1, 2, KILLED])
def test_one_that_fails_later_is_started_again(code: int) -> None:
    assert begun(2).ended(0, code, 0.0, 1.0) == Restart(0.5)
    assert begun(2).ended(0, code, 0.0, 0.0) == Restart(0.25)


def test_pauses_grow_up_to_the_last_failure_that_is_suffered() -> None:
    rules = begun(2)
    verdicts = [rules.ended(0, KILLED, float(each), 1.0) for each in range(DEATHS_MAX)]
    assert verdicts[:-1] == [
        Restart(pause_s) for pause_s in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0)
    ]
    last = verdicts[-1]
    assert isinstance(last, GiveUp)
    assert last.code == 1
    assert f"process 0 failed {DEATHS_MAX} times" in last.why


def test_failures_are_forgotten_in_time_and_are_those_of_one_process() -> None:
    rules = begun(2)
    apart_s = DEATHS_WITHIN_S / (DEATHS_MAX - 1) + 1.0
    for each in range(5 * DEATHS_MAX):
        assert isinstance(rules.ended(each % 2, KILLED, each * apart_s / 2, 0.5), Restart)
    assert rules.ended(0, KILLED, 1e6, 1.0) == Restart(0.5)


# ---- who releases the machine


def test_the_machine_is_released_by_one_when_all_that_are_left_ask() -> None:
    rules = begun(3)
    assert rules.releaser() is None
    rules.asks(2)
    rules.asks(0)
    assert rules.releaser() is None
    rules.asks(1)
    assert rules.releaser() == 0


def test_one_that_is_gone_is_not_waited_for() -> None:
    rules = begun(3)
    rules.asks(1)
    rules.over(0)
    rules.asks(2)
    assert rules.releaser() == 1
    rules.over(1)
    rules.over(2)
    assert rules.releaser() is None, "nobody is left"


def test_one_that_is_to_be_started_again_is_waited_for() -> None:
    rules = begun(2)
    rules.asks(0)
    rules.asks(1)
    rules.ended(1, KILLED, 0.0, 0.5)
    assert rules.releaser() is None
    rules.started(1)
    rules.asks(1)
    assert rules.releaser() == 0
