"""What the application orders for the client: carried out in turn with what the client does itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Final

import structlog

from roomcast.client.expiry import Expiry
from roomcast.client.peer import Peer
from roomcast.client.subscribe import Joins
from roomcast.client.subscriptions import Subscriptions
from roomcast.client.tasks import Tasks
from roomcast.client.turns import Turns
from roomcast.fleet.order_signals import RefreshOrder, SubscribeOrder
from roomcast.ports import Clock
from roomcast.wire.codes import Disconnect
from roomcast.wire.json import refresh_push

__all__ = ["ORDERS_UNDER_WAY_MAX", "ClientOrders"]

# Orders for one connection that wait, for each other or for the network. More are not carried out.
ORDERS_UNDER_WAY_MAX: Final = 1000

_log = structlog.get_logger(__name__)


class ClientOrders:
    """Those for one connection. Nothing is carried out before `connect` is answered."""

    __slots__ = (
        "_clock",
        "_expiry",
        "_joins",
        "_peer",
        "_subscriptions",
        "_tasks",
        "_turns",
        "_under_way",
    )

    def __init__(
        self,
        clock: Clock,
        peer: Peer,
        expiry: Expiry,
        subscriptions: Subscriptions,
        joins: Joins,
        tasks: Tasks,
        turns: Turns,
    ) -> None:
        self._clock = clock
        self._peer = peer
        self._expiry = expiry
        self._subscriptions = subscriptions
        self._joins = joins
        self._tasks = tasks
        self._turns = turns
        self._under_way = 0

    def subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None:
        """Subscribe to a channel, as soon as there is one of `places`. Whoever is subscribed stays as they are."""
        self._in_order(order.channel, partial(self._subscribe, order, places))

    async def _subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None:
        async with places:
            join = self._peer.session.server_join(
                order.channel, order.sub, order.since, order.expires_at
            )
            if join is None:
                _log.info("order_passed_over", client=self._peer.client, channel=order.channel)
                return
            await self._joins.join(join)
            if order.expires_at is not None and order.channel in self._subscriptions:
                self._expiry.end_at(order.channel, order.expires_at)

    def unsubscribe(self, channel: str) -> None:
        """End the subscription to `channel`, whoever made it; "" = every one."""
        for name in [channel] if channel else list(self._peer.session.channels):
            self._in_order(name, partial(self._unsubscribe, name))

    async def _unsubscribe(self, channel: str) -> None:
        self._subscriptions.leave_by_order(channel)

    def refresh(self, order: RefreshOrder) -> None:
        """Set how long the connection lasts."""
        if order.expired or (
            order.expires_at is not None and order.expires_at <= self._clock.now_ms() / 1000
        ):
            self._peer.close(Disconnect.EXPIRED)
            return
        self._peer.session.refreshed_by_server(order.info)
        lasts = self._expiry.last_until(None, order.expires_at)
        if self._peer.is_welcome:
            self._peer.send(refresh_push(lasts))

    def _in_order(self, channel: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do `work` after what is under way for `channel`, and before what comes."""
        if self._under_way >= ORDERS_UNDER_WAY_MAX:
            _log.warning("order_shed", client=self._peer.client, channel=channel)
            return
        self._under_way += 1
        task = self._tasks.track(self._after(self._turns.before(channel), work))
        task.add_done_callback(self._done)
        self._turns.take(channel, task)

    async def _after(
        self, change: asyncio.Future[None] | None, work: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        if change is not None:
            await asyncio.wait([change])
        await work()

    def _done(self, _task: asyncio.Task[None]) -> None:
        self._under_way -= 1
