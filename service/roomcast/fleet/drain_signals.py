"""Signals by which one node has another one drain, and the other says that it does.

Both go from one node to one other, through its queue. A node heeds the first only if it names its
present lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from roomcast.delivery.envelope import Signal
from roomcast.fleet.lease_record import NODE_CHARS_MAX
from roomcast.log.item import OFFSET_MAX
from roomcast.wire.names import RESERVED_PREFIX
from roomcast.wire.shapes import OBJECT, checked, text, whole

__all__ = [
    "DRAIN_KINDS",
    "Drains",
    "MalformedDrain",
    "answer_of",
    "answer_signal",
    "drain_signal",
    "node_of",
]

DRAIN_KINDS: Final = frozenset({"drain", "drains"})
_CHANNEL: Final = RESERVED_PREFIX + "drain"
_NAME: Final = text(NODE_CHARS_MAX)
_CONNECTIONS: Final = whole(0, OFFSET_MAX)


class MalformedDrain(ValueError):
    """A signal of these kinds with a malformed body."""


@dataclass(frozen=True, slots=True)
class Drains:
    """The answer of a node that drains. `connections`: those that it still has."""

    connections: int


def drain_signal(node: str, signal_id: str, other: str) -> Signal:
    """By which `node` has `other` drain. Both are ids of leases. The answer names `signal_id`."""
    return Signal("drain", signal_id, node, _CHANNEL, {"node": other})


def node_of(signal: Signal) -> str:
    """The node that is to drain. Raises MalformedDrain."""
    node = checked(signal.body, "the body", OBJECT, MalformedDrain).get("node")
    if not _NAME.fits(node):
        raise MalformedDrain("an order to nobody")
    return node


def answer_signal(node: str, signal_id: str, asked: str, answer: Drains) -> Signal:
    """The answer of `node` to the signal with the id `asked`."""
    body = {"drain": asked, "connections": answer.connections}
    return Signal("drains", signal_id, node, _CHANNEL, body)


def answer_of(signal: Signal) -> tuple[str, Drains]:
    """The id of the answered signal, and the answer. Raises MalformedDrain."""
    body = checked(signal.body, "the body", OBJECT, MalformedDrain)
    asked, connections = body.get("drain"), body.get("connections")
    if not (_NAME.fits(asked) and _CONNECTIONS.fits(connections)):
        raise MalformedDrain("an answer to nothing")
    return asked, Drains(connections)
