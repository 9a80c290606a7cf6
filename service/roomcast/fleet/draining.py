"""Has one node of the fleet drain and end, as SIGTERM has, whichever node is asked for it.

The order goes straight to the queue of that node, which answers in the same way. So who gives it
knows that the node heard it; and it may be given again, to hear how many connections are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Final

import structlog

from roomcast.delivery.envelope import Signal
from roomcast.fleet.asking import Asking
from roomcast.fleet.drain_signals import (
    Drains,
    MalformedDrain,
    answer_of,
    answer_signal,
    drain_signal,
    node_of,
)
from roomcast.fleet.lease_record import NODE_CHARS_MAX
from roomcast.fleet.mailbox import Mailbox, NodeUnknown
from roomcast.log.appender import Full
from roomcast.ports import NewId

__all__ = ["ANSWERS_MAX", "ANSWER_S", "ASKED_MAX", "Draining"]

# Seconds to wait for the other node's answer. SQS takes some 20 ms each way; a node that is busy,
# or whose queue is behind, takes longer.
ANSWER_S: Final = 5.0
# Orders of this node that wait for their answer. People give them, one at a time.
ASKED_MAX: Final = 64
# Answers to other nodes that are under way.
ANSWERS_MAX: Final = 64

_log = structlog.get_logger(__name__)


class Draining:
    """One a node."""

    def __init__(
        self,
        mailbox: Mailbox,
        new_id: NewId,
        lease: Callable[[], str],
        connections: Sized,
        end: Callable[[], None],
    ) -> None:
        """`lease`: the id of this node's present lease. `connections`: those of its clients. `end`
        has it drain and end; idempotent.
        """
        self._asking = Asking[Drains](mailbox, ANSWER_S, ANSWERS_MAX, _not_answered)
        self._new_id = new_id
        self._lease = lease
        self._connections = connections
        self._end = end
        self._has_begun = False

    def is_here(self, node: str) -> bool:
        """Whether `node` is the id of this node's present lease."""
        return node == self._lease()

    async def drain(self, node: str) -> Drains:
        """Have the node with this lease drain and end. Idempotent. Returns when it has begun.

        Raises NodeUnknown; Full: too many orders wait; and other PortErrors: perhaps it drains.
        """
        if self.is_here(node):
            return self._begin(node)
        if not node or len(node) > NODE_CHARS_MAX:
            raise NodeUnknown("no node has such an id")
        if len(self._asking) >= ASKED_MAX:
            raise Full("too many orders to drain wait")
        signal = drain_signal(self._lease(), self._new_id(), node)
        return await self._asking.ask(node, signal, in_order=True)

    def heard(self, signal: Signal) -> None:
        """Take the order of another node, or its answer."""
        try:
            if signal.kind == "drains":
                self._asking.answered(*answer_of(signal))
            elif self.is_here(node_of(signal)):
                answer = self._begin(signal.node)
                self._asking.answer(
                    signal.node, answer_signal(self._lease(), self._new_id(), signal.id, answer)
                )
        except MalformedDrain as error:
            _log.warning("drain_malformed", kind=signal.kind, reason=str(error))

    async def finish(self) -> None:
        """Wait until other nodes are answered. The caller bounds the time."""
        await self._asking.finish()

    def _begin(self, by: str) -> Drains:
        connections = len(self._connections)
        if not self._has_begun:
            self._has_begun = True
            _log.warning("drain_ordered", by=by, connections=connections)
            self._end()
        return Drains(connections)


def _not_answered(node: str, reason: str) -> None:
    _log.warning("drain_not_answered", to=node, reason=reason)
