"""What was written must come round."""

from __future__ import annotations

from math import inf

from roomcast.delivery.rounds import ROUND_S, Rounds


def test_what_comes_round_in_time_is_not_late() -> None:
    rounds = Rounds()
    assert rounds.due_s == inf
    rounds.wrote(0.0, 0.0)
    assert rounds.due_s == ROUND_S
    assert not rounds.must_tell(ROUND_S - 0.1)
    rounds.came()
    assert (rounds.due_s, rounds.is_late) == (inf, False)
    assert not rounds.must_tell(ROUND_S)


def test_the_oldest_write_counts() -> None:
    rounds = Rounds()
    for second in range(9):
        rounds.wrote(float(second), 0.0)
    assert rounds.must_tell(ROUND_S)
    assert rounds.late_s(ROUND_S + 2) == ROUND_S + 2


def test_lateness_is_told_once_until_something_comes() -> None:
    rounds = Rounds()
    rounds.wrote(0.0, 0.0)
    assert rounds.must_tell(ROUND_S)
    rounds.wrote(ROUND_S, 0.0)
    assert not rounds.must_tell(10 * ROUND_S)
    assert rounds.is_late
    rounds.came()
    assert (rounds.is_late, rounds.late_s(20 * ROUND_S)) == (False, 0.0)
    rounds.wrote(20 * ROUND_S, 0.0)
    assert rounds.must_tell(21 * ROUND_S)


def test_nodes_do_not_ask_together() -> None:
    rounds = Rounds()
    rounds.wrote(0.0, 0.99)
    assert ROUND_S < rounds.due_s < 1.5 * ROUND_S
