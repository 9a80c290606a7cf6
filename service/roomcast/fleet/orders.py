"""Sends orders of the application to all nodes, and carries them out on this one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from roomcast.delivery.broadcaster import can_be_sent
from roomcast.delivery.envelope import Signal
from roomcast.delivery.signal_bus import SignalBus
from roomcast.fleet.order_signals import (
    DisconnectOrder,
    MalformedOrder,
    Order,
    RefreshOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
    order_of,
    order_signal,
)
from roomcast.fleet.roster import Present
from roomcast.log.appender import Full, TooLarge
from roomcast.ports import NewId
from roomcast.wire.codes import Closing

__all__ = ["JOINS_AT_ONCE", "Orders", "Subject", "Subjects"]

# Subscriptions by order that a node makes at once. One order may be for thousands of connections.
# Nobody waits for it, but other clients wait for the table.
JOINS_AT_ONCE: Final = 32

_log = structlog.get_logger(__name__)


class Subject(Present, Protocol):
    """A connection that takes orders. None of its methods raises."""

    def close(self, why: Closing) -> None: ...

    def order_subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None: ...

    def order_unsubscribe(self, channel: str) -> None: ...

    def order_refresh(self, order: RefreshOrder) -> None: ...


class Subjects(Protocol):
    """The connections of this node."""

    def find(self, target: Target) -> Sequence[Subject]: ...


class Orders:
    """One a node. `bus` brings orders to this node and the others.

    Orders are best effort, as all signals are. A node that does not get an order does not carry it
    out. There is no answer about the connections that were found. And two orders may arrive in
    another order than they were given.
    """

    def __init__(self, subjects: Subjects, bus: SignalBus, new_id: NewId, *, node: str) -> None:
        self._subjects = subjects
        self._bus = bus
        self._new_id = new_id
        self._node = node
        self._places = asyncio.Semaphore(JOINS_AT_ONCE)

    def give(self, order: Order) -> None:
        """Have `order` carried out, on this node at once.

        Raises Full and TooLarge: then no node does.
        """
        signal = order_signal(order, self._node, self._new_id())
        if self._bus.send(signal):
            return
        if not can_be_sent(signal):
            raise TooLarge("an order that exceeds a signal")
        raise Full("too many signals wait to be sent")

    def heard(self, signal: Signal) -> None:
        """Carry out the order in `signal`."""
        try:
            order = order_of(signal)
        except MalformedOrder as error:
            _log.warning("order_malformed", kind=signal.kind, node=signal.node, reason=str(error))
            return
        found = self._subjects.find(order.target)
        if found:
            _log.info("order", kind=signal.kind, connections=len(found), **_named(order.target))
        for connection in found:
            self._carry_out(order, connection)

    def _carry_out(self, order: Order, connection: Subject) -> None:
        match order:
            case DisconnectOrder(_, why, whitelist):
                if connection.client not in whitelist:
                    connection.close(why)
            case UnsubscribeOrder():
                connection.order_unsubscribe(order.channel)
            case RefreshOrder():
                connection.order_refresh(order)
            case SubscribeOrder():
                connection.order_subscribe(order, self._places)


def _named(target: Target) -> dict[str, str]:
    return {"client": target.client} if target.client else {"user": target.user or ""}
