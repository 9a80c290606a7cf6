"""Gives orders of the application to the nodes that they are for, and carries them out on this
one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, Protocol

import structlog

from roomcast.concurrency import Budget
from roomcast.delivery.broadcaster import signal_bytes
from roomcast.delivery.envelope import Signal
from roomcast.fleet.order_post import OrderPost
from roomcast.fleet.order_signals import (
    DisconnectOrder,
    MalformedOrder,
    Order,
    RefreshOrder,
    ReplaceOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
    order_of,
    order_signal,
)
from roomcast.fleet.roster import Present
from roomcast.log.appender import Full, TooLarge
from roomcast.ports import NewId
from roomcast.wire.codes import Closing, Disconnect

__all__ = [
    "CONNECTIONS_WAITING_MAX",
    "JOINS_AT_ONCE",
    "WORK_A_TURN",
    "Orders",
    "Subject",
    "Subjects",
]

# Subscriptions by order that a node makes at once. One order may be for thousands of connections.
# Nobody waits for it, but other clients wait for the table.
JOINS_AT_ONCE: Final = 32
# Connections, and their subscriptions, for which orders are carried out before other tasks have
# their turn: some 5 ms.
WORK_A_TURN: Final = 200
# Connections for which orders wait for their turn, which takes seconds. Another order is refused.
CONNECTIONS_WAITING_MAX: Final = 100_000

_log = structlog.get_logger(__name__)


class Subject(Present, Protocol):
    """A connection that takes orders. None of its methods raises.

    `since_ms`: when it connected, in ms since 1970, where a user has one connection; else 0.
    """

    since_ms: int

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more orders."""

    @property
    def subscriptions(self) -> int:
        """How many it has."""

    def close(self, why: Closing) -> None: ...

    def order_subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None: ...

    def order_unsubscribe(self, channel: str) -> None: ...

    def order_refresh(self, order: RefreshOrder) -> None: ...


class Subjects(Protocol):
    """The connections of this node."""

    def find(self, target: Target) -> Sequence[Subject]: ...


class Orders:
    """One a node. `post` brings orders to the others.

    There is no answer about the connections that were found. And two orders may arrive in another
    order than they were given.

    An order is for the connections that are here when it arrives. Orders are carried out one after
    the other, from the moment of their arrival on, WORK_A_TURN in a turn of the event loop.
    """

    def __init__(self, subjects: Subjects, post: OrderPost, new_id: NewId, *, node: str) -> None:
        self._subjects = subjects
        self._post = post
        self._new_id = new_id
        self._node = node
        self._places = asyncio.Semaphore(JOINS_AT_ONCE)
        # Orders that are not carried out yet, each with the connections that are left; and how many
        # connections that are in all.
        self._waiting: deque[tuple[Order, Iterator[Subject]]] = deque()
        self._left = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._budget = Budget(WORK_A_TURN, self._carry_on)

    def give(self, order: Order) -> asyncio.Future[None]:
        """Have `order` carried out, on this node from now on. Raises Full and TooLarge: then no
        node does.

        The future is done when the others are sure to hear of it, as far as they have the
        connections. It raises PortError: perhaps they do.
        """
        signal, target = order_signal(order, self._node, self._new_id()), order.target
        size = signal_bytes(signal)
        if size is None:
            raise TooLarge("an order that exceeds a signal")
        if self._is_full:
            raise Full("orders wait for too many connections")
        if target.is_for_one and self._subjects.find(target):
            # Nobody else has it.
            sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            sent.set_result(None)
        else:
            sent = self._post.send(signal, size, target)
        self.heard(signal)
        return sent

    def heard(self, signal: Signal) -> None:
        """Carry out the order in `signal`."""
        try:
            order = order_of(signal)
        except MalformedOrder as error:
            _log.warning("order_malformed", kind=signal.kind, node=signal.node, reason=str(error))
            return
        found = self._subjects.find(order.target)
        if isinstance(order, ReplaceOrder):
            found = [each for each in found if each.client != order.newest]
        if not found:
            return
        about = {"kind": signal.kind, "connections": len(found), **_named(order.target)}
        if self._is_full:
            _log.warning("order_shed", **about)
            return
        _log.info("order", **about)
        self._waiting.append((order, iter(found)))
        self._left += len(found)
        self._idle.clear()
        self._carry_on()

    async def sent(self) -> None:
        """Wait until all given orders were sent. The caller bounds the time."""
        await self._post.finish()

    async def carried_out(self) -> None:
        """Wait until no order waits any more. The caller bounds the time."""
        await self._idle.wait()

    @property
    def _is_full(self) -> bool:
        return self._left >= CONNECTIONS_WAITING_MAX

    def _carry_on(self) -> None:
        """Carry out orders until this turn is used up, and the rest in turns that follow."""
        while self._waiting and self._budget.left > 0:
            order, connections = self._waiting[0]
            connection = next(connections, None)
            if connection is None:
                self._waiting.popleft()
                continue
            self._left -= 1
            if not connection.has_ended:
                self._budget.take(1 + connection.subscriptions)
                self._carry_out(order, connection)
        if not self._waiting:
            self._idle.set()

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
            case ReplaceOrder():
                self._replace(order, connection)

    def _replace(self, order: ReplaceOrder, connection: Subject) -> None:
        """Close the older of two connections of a user, here or where it is."""
        if (connection.since_ms, connection.client) < (order.since_ms, order.newest):
            connection.close(Disconnect.CONNECTION_LIMIT)
            return
        # Its own order may have been there before the other one came. So that one learns of it now.
        target = Target(connection.user, order.newest)
        with suppress(Full, TooLarge):
            self.give(ReplaceOrder(target, connection.client, connection.since_ms))


def _named(target: Target) -> dict[str, str]:
    return {"client": target.client} if target.client else {"user": target.user or ""}
