"""Sends signals to all nodes, and registers this node's listeners by kind of signal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from roomcast.delivery.envelope import Signal

__all__ = ["NodeBus", "SignalBus", "SignalListener", "SignalListeners"]


class SignalBus(Protocol):
    """The way of a node's parts to send signals to all nodes."""

    def send(self, signal: Signal) -> bool:
        """Send to the other nodes and this one's clients, or to nobody: False = it was dropped."""


class SignalListener(Protocol):
    """The listener of a kind of signals."""

    def __call__(self, signal: Signal, /) -> None: ...


class SignalListeners(dict[str, SignalListener]):
    """By kind, the listeners of signals that are for the node and not for a channel."""

    def add(self, kinds: Iterable[str], listener: SignalListener) -> None:
        """Each kind has one listener."""
        for kind in kinds:
            assert kind not in self, kind
            self[kind] = listener


class OtherNodes(Protocol):
    """The broadcaster."""

    def send(self, signal: Signal) -> bool: ...


class OwnClients(Protocol):
    """The intake."""

    def deliver_own(self, signal: Signal) -> None: ...


class NodeBus:
    """A SignalBus: the broadcaster for the others, the intake for this node."""

    def __init__(self, others: OtherNodes, own: OwnClients) -> None:
        self._others = others
        self._own = own

    def send(self, signal: Signal) -> bool:
        accepted = self._others.send(signal)
        if accepted:
            self._own.deliver_own(signal)
        return accepted
