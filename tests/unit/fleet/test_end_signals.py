"""The signal that ends the nodes of one task."""

from __future__ import annotations

import pytest

from roomcast.delivery.envelope import Signal, pack, parse, signal_text
from roomcast.fleet.end_signals import END_KIND, end_signal, ends
from roomcast.wire.publication import Json


def test_it_ends_the_nodes_of_its_task_only() -> None:
    body, _ = next(pack([signal_text(end_signal("task-1"))], signals=True))
    [signal] = parse(body).signals
    assert signal.kind == END_KIND
    assert ends(signal, "task-1")
    assert not ends(signal, "task-2")


@pytest.mark.parametrize("body", [None, [], "task-1", {}, {"instance": None}, {"instance": 1}])
def test_a_malformed_one_ends_nobody(body: Json) -> None:
    assert not ends(Signal(END_KIND, "id", "reaper", "", body), "task-1")
