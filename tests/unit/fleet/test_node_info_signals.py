"""service/roomcast/fleet/node_info_signals.py: answers are added up and bounded.

A result says whether it is complete.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.broadcaster import SIGNAL_BYTES_MAX
from roomcast.delivery.envelope import Signal, pack, parse, signal_text
from roomcast.fleet.node_info_signals import (
    CHANNELS_MAX,
    COUNTED_MAX,
    PATTERN_CHARS_MAX,
    SURVEY_KINDS,
    UNEXPECTED_MAX,
    Answer,
    Answers,
    MalformedAnswer,
    answer_of,
    answer_signal,
    bounded,
    fits,
    pattern_of,
    survey_signal,
)
from roomcast.wire.names import CHANNEL_BYTES_MAX, is_valid_name

NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=8)
COUNTS = st.dictionaries(NAMES, st.integers(1, 10_000), max_size=5)


def sent(signal: Signal) -> Signal:
    [(body, _)] = pack([signal_text(signal)], signals=True)
    [arrived] = parse(body).signals
    return arrived


@given(NAMES, st.builds(Answer, NAMES, COUNTS, st.booleans()))
def test_questions_and_answers_survive_their_way(pattern: str, answer: Answer) -> None:
    question = sent(survey_signal("a", "7", pattern))
    assert (question.node, question.id, pattern_of(question)) == ("a", "7", pattern)
    reply = sent(answer_signal(answer, "b", "1", question.id))
    assert reply.node == "b"
    assert answer_of(reply) == ("7", answer)
    assert {question.kind, reply.kind} == SURVEY_KINDS
    assert not is_valid_name(question.channel)


@pytest.mark.parametrize(
    "body", [None, {}, {"pattern": 5}, [], {"pattern": "*" * (PATTERN_CHARS_MAX + 1)}]
)
def test_what_is_no_question(body: Any) -> None:
    with pytest.raises(MalformedAnswer):
        pattern_of(Signal("survey", "1", "a", "", body))


GOOD: dict[str, Any] = {"survey": "7", "lease": "l", "channels": {"c": 1}, "whole": True}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "wrong",
    [None, 5, [1], {"c": True}, {"c": "1"}, {"c": 0}, {"c": -1}, {"c": 2**31}, {"c": 2**64}],
)
def test_what_is_no_answer(name: str, wrong: Any) -> None:
    assert answer_of(Signal("answer", "1", "a", "", GOOD)) == ("7", Answer("l", {"c": 1}))
    with pytest.raises(MalformedAnswer):
        answer_of(Signal("answer", "1", "a", "", GOOD | {name: wrong}))
    with pytest.raises(MalformedAnswer):
        answer_of(Signal("answer", "1", "a", "", wrong))


@pytest.mark.parametrize("char", ['"', "a", "~"])
def test_the_fullest_answer_fits_a_signal(char: str) -> None:
    names = ((f"{number:05d}".ljust(CHANNEL_BYTES_MAX, char), 2**31) for number in range(10_000))
    channels, whole = bounded(names)
    assert not whole
    assert len(channels) > 100
    signal = answer_signal(Answer("l" * 80, channels, whole), "n" * 80, "i" * 32, "s" * 32)
    assert len(signal_text(signal).encode()) <= SIGNAL_BYTES_MAX
    assert bounded([("c", 1)]) == ({"c": 1}, True)


def test_nodes_add_up() -> None:
    answers = Answers(frozenset({"a", "b"}))
    assert set(answers.missing) == {"a", "b"}
    answers.add(Answer("a", {"one": 1, "two": 2}))
    assert answers.result() == ({"two": 2, "one": 1}, False)
    # A repeat counts once, and who was not expected counts too.
    answers.add(Answer("a", {"one": 1}))
    answers.add(Answer("c", {"one": 5}))
    assert answers.result() == ({"one": 6, "two": 2}, False)
    answers.add(Answer("b", {}))
    assert answers.result() == ({"one": 6, "two": 2}, True)


def test_answers_that_nobody_expected_are_bounded() -> None:
    """A node may have begun to live meanwhile; a crowd of them has been made up."""
    answers = Answers(frozenset({"a"}))
    for number in range(3 * UNEXPECTED_MAX):
        answers.add(Answer(f"forged-{number}", {f"c{number}": 1}))
    answers.add(Answer("a", {"c": 1}))
    channels, whole = answers.result()
    assert (len(channels), whole) == (UNEXPECTED_MAX + 1, True)


def test_what_was_left_out_is_told() -> None:
    cut = Answers(frozenset({"a"}))
    cut.add(Answer("a", {"c": 1}, whole=False))
    assert cut.result() == ({"c": 1}, False)
    many = Answers(frozenset({"a"}))
    many.add(Answer("a", {f"c{number}": number for number in range(1, CHANNELS_MAX + 2)}))
    channels, whole = many.result()
    assert (len(channels), whole, "c1" in channels) == (CHANNELS_MAX, False, False)


def test_of_very_many_channels_so_many_are_counted() -> None:
    """Of a large fleet they would fill memory, and take long to sort in one turn."""
    nodes = [f"n{number}" for number in range(5)]
    answers = Answers(frozenset(nodes))
    for node in nodes:
        answers.add(Answer(node, {f"{node}:{number}": 1 for number in range(6000)}))
        answers.add(Answer(node, {"twice": 1}))
    assert len(answers._channels) == COUNTED_MAX
    more = Answers(frozenset(nodes))
    for node in nodes:
        more.add(Answer(node, {"everywhere": 2, **{f"{node}:{n}": 1 for n in range(5999)}}))
    channels, whole = more.result()
    assert (channels["everywhere"], len(channels), whole) == (10, CHANNELS_MAX, False)


@pytest.mark.parametrize(
    "channel, pattern, expected",
    [
        ("chat:a", "", True),
        ("chat:a", "chat:*", True),
        ("news", "chat:*", False),
        ("Chat:a", "chat:*", False),
        ("ab", "a?", True),
        ("ac", "a[bc]", True),
        ("ad", "a[bc]", False),
        ("a" * 255, "*a" * 127, True),
        ("a" * 255, "*a" * 126 + "*b", False),
    ],
)
def test_patterns(channel: str, pattern: str, expected: bool) -> None:
    assert fits(channel, pattern) is expected
