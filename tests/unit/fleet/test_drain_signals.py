"""service/roomcast/fleet/drain_signals.py: what nodes send each other when one is to drain."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roomcast.delivery.envelope import pack, parse, signal_text
from roomcast.fleet.drain_signals import (
    DRAIN_KINDS,
    Drains,
    answer_of,
    answer_signal,
    drain_signal,
    node_of,
)
from roomcast.fleet.lease_record import NODE_CHARS_MAX


@given(st.text(max_size=NODE_CHARS_MAX))
def test_an_order_arrives_as_it_was_sent(node: str) -> None:
    [(body, _)] = pack([signal_text(drain_signal("a", "id", node))], signals=True)
    [signal] = parse(body).signals
    assert signal.kind in DRAIN_KINDS
    assert node_of(signal) == node


@given(st.integers(0, 2**53 - 1))
def test_an_answer_arrives_as_it_was_sent(connections: int) -> None:
    signal = answer_signal("b", "id", "asked", Drains(connections))
    assert signal.kind in DRAIN_KINDS
    assert answer_of(signal) == ("asked", Drains(connections))
