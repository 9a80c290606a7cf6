"""service/roomcast/fleet/emulation_signals.py: what nodes send each other for emulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX, pack, parse, signal_text
from roomcast.fleet.emulation_signals import (
    EMULATION_KINDS,
    FRAMES_BYTES_MAX,
    MalformedEmulationSignal,
    Outcome,
    Posted,
    answer_of,
    answer_signal,
    posted_of,
    posted_signal,
)


@given(st.text(max_size=64), st.lists(st.binary(max_size=50), max_size=5))
def test_commands_arrive_as_they_were_sent(session: str, frames: list[bytes]) -> None:
    posted = Posted(session, tuple(frames))
    [(body, _)] = pack([signal_text(posted_signal("a", "id", posted))], signals=True)
    [signal] = parse(body).signals
    assert signal.kind in EMULATION_KINDS
    assert posted_of(signal) == posted


@pytest.mark.parametrize("outcome", Outcome)
def test_an_answer_arrives_as_it_was_sent(outcome: Outcome) -> None:
    signal = answer_signal("b", "id", "asked", outcome)
    assert signal.kind in EMULATION_KINDS
    assert answer_of(signal) == ("asked", outcome)


def test_as_many_bytes_as_may_be_sent_fit_a_message() -> None:
    frames = (b"\xff" * (FRAMES_BYTES_MAX // 2),) * 2
    text = signal_text(posted_signal("a" * 255, "i" * 64, Posted("s" * 64, frames)))
    assert len(text.encode()) < ENVELOPE_BYTES_MAX - 100


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"session": "s"},
        {"session": "s" * 65, "frames": []},
        {"session": 1, "frames": []},
        {"session": "s", "frames": "AA=="},
        {"session": "s", "frames": [1]},
        {"session": "s", "frames": ["A"]},
        {"session": "s", "frames": ["é"]},
        {"session": "s", "frames": ["AA=\n="]},
    ],
)
def test_what_no_node_sends(body: Any) -> None:
    signal = replace(posted_signal("a", "id", Posted("s", ())), body=body)
    with pytest.raises(MalformedEmulationSignal):
        posted_of(signal)


@pytest.mark.parametrize(
    "body",
    [None, {}, {"commands": 1, "outcome": "taken"}, {"commands": "x", "outcome": "perhaps"},
     {"commands": "x" * 65, "outcome": "taken"}, {"commands": "x", "outcome": []}],
)  # fmt: skip
def test_what_no_node_answers(body: Any) -> None:
    signal = replace(answer_signal("a", "id", "asked", Outcome.TAKEN), body=body)
    with pytest.raises(MalformedEmulationSignal):
        answer_of(signal)
