"""Signals go to all nodes or to nobody, and each kind has one listener."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from roomcast.delivery.envelope import Signal
from roomcast.delivery.signal_bus import NodeBus, SignalListeners

SIGNAL = Signal("kind", "1", "a", "room", None)


class Ends:
    """The broadcaster and the intake in one."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.delivered: list[Signal] = []

    def send(self, signal: Signal) -> bool:
        return self.takes

    def deliver_own(self, signal: Signal) -> None:
        self.delivered.append(signal)


@pytest.mark.parametrize("takes", [True, False])
def test_a_signal_that_is_shed_reaches_nobody(takes: bool) -> None:
    ends = Ends(takes=takes)
    assert NodeBus(ends, ends).send(SIGNAL) is takes
    assert ends.delivered == [SIGNAL] * takes


def test_each_kind_has_one_listener() -> None:
    listeners, heard = SignalListeners(), list[Signal]()
    append: Callable[[Signal], None] = heard.append
    listeners.add({"one", "two"}, append)
    assert set(listeners) == {"one", "two"}
    assert len(listeners) == 2
    assert listeners.get("other") is None
    listeners["two"](SIGNAL)
    assert heard == [SIGNAL]
    with pytest.raises(AssertionError):
        listeners.add({"two"}, append)
