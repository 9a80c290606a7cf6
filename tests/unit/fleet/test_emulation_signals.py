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
    Answer,
    MalformedEmulationSignal,
    Outcome,
    Posted,
    answer_of,
    answer_signal,
    posted_of,
    posted_signal,
)
from roomcast.log.item import OFFSET_MAX


@given(st.text(max_size=64), st.lists(st.binary(max_size=50), max_size=5))
def test_commands_arrive_as_they_were_sent(session: str, frames: list[bytes]) -> None:
    posted = Posted(session, tuple(frames), 7)
    [(body, _)] = pack([signal_text(posted_signal("a", "id", posted))], signals=True)
    [signal] = parse(body).signals
    assert signal.kind in EMULATION_KINDS
    assert posted_of(signal) == posted


@pytest.mark.parametrize("outcome", Outcome)
def test_an_answer_arrives_as_it_was_sent(outcome: Outcome) -> None:
    signal = answer_signal("b", "id", "asked", Answer(outcome, 3))
    assert signal.kind in EMULATION_KINDS
    assert answer_of(signal) == ("asked", Answer(outcome, 3))


def test_as_many_bytes_as_may_be_sent_fit_a_message() -> None:
    frames = (b"\xff" * (FRAMES_BYTES_MAX // 2),) * 2
    text = signal_text(posted_signal("a" * 255, "i" * 64, Posted("s" * 64, frames, OFFSET_MAX)))
    assert len(text.encode()) < ENVELOPE_BYTES_MAX - 100


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"session": "s"},
        {"session": "s", "frames": []},
        {"session": "s", "frames": [], "number": 0},
        {"session": "s", "frames": [], "number": "1"},
        {"session": "s", "frames": [], "number": OFFSET_MAX + 1},
        {"session": "s" * 65, "frames": [], "number": 1},
        {"session": 1, "frames": [], "number": 1},
        {"session": "s", "frames": "AA==", "number": 1},
        {"session": "s", "frames": [1], "number": 1},
        {"session": "s", "frames": ["A"], "number": 1},
        {"session": "s", "frames": ["é"], "number": 1},
        {"session": "s", "frames": ["AA=\n="], "number": 1},
    ],
)
def test_what_no_node_sends(body: Any) -> None:
    signal = replace(posted_signal("a", "id", Posted("s", (), 1)), body=body)
    with pytest.raises(MalformedEmulationSignal):
        posted_of(signal)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"commands": 1, "outcome": "taken", "taken": 1},
        {"commands": "x", "outcome": "perhaps", "taken": 1},
        {"commands": "x" * 65, "outcome": "taken", "taken": 1},
        {"commands": "x", "outcome": [], "taken": 1},
        {"commands": "x", "outcome": "taken"},
        {"commands": "x", "outcome": "taken", "taken": -1},
    ],
)
def test_what_no_node_answers(body: Any) -> None:
    signal = replace(answer_signal("a", "id", "asked", Answer(Outcome.TAKEN)), body=body)
    with pytest.raises(MalformedEmulationSignal):
        answer_of(signal)
