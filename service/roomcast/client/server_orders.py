"""Carries out the application's orders for one client, in turn with the client's own commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Final

import structlog

from roomcast.client.lifetime import Lifetime
from roomcast.client.peer import Peer
from roomcast.client.subscribe import Subscribing
from roomcast.client.subscriptions import Subscriptions
from roomcast.client.work import Work
from roomcast.fleet.order_signals import RefreshOrder, SubscribeOrder
from roomcast.ports import Clock
from roomcast.wire.codes import Disconnect
from roomcast.wire.encoding import refresh_push

__all__ = ["ORDERS_UNDER_WAY_MAX", "ClientOrders"]

# Orders for one connection that may wait, for each other or for the network. More are dropped.
ORDERS_UNDER_WAY_MAX: Final = 1000

_log = structlog.get_logger(__name__)


class ClientOrders:
    """Carries out orders for one connection, once its `connect` is answered."""

    __slots__ = (
        "_clock",
        "_lifetime",
        "_peer",
        "_subscribing",
        "_subscriptions",
        "_under_way",
        "_work",
    )

    def __init__(
        self,
        clock: Clock,
        peer: Peer,
        lifetime: Lifetime,
        work: Work,
        subscriptions: Subscriptions,
        subscribing: Subscribing,
    ) -> None:
        self._clock = clock
        self._peer = peer
        self._lifetime = lifetime
        self._work = work
        self._subscriptions = subscriptions
        self._subscribing = subscribing
        self._under_way = 0

    def subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None:
        """Subscribe to a channel as soon as one of `places` is free.

        A subscription that exists stays as it is.
        """
        self._in_turn(order.channel, partial(self._subscribe, order, places))

    async def _subscribe(self, order: SubscribeOrder, places: asyncio.Semaphore) -> None:
        async with places:
            effect = self._peer.session.subscribe_by_server(
                order.channel, order.sub, order.since, order.expires_at
            )
            if effect is None:
                _log.info("order_passed_over", client=self._peer.client, channel=order.channel)
                return
            await self._subscribing.subscribe(effect)
            if order.expires_at is not None and order.channel in self._subscriptions:
                self._lifetime.end_at(order.channel, order.expires_at)

    def unsubscribe(self, channel: str) -> None:
        """End the subscription to `channel`, client-side or server-side; "" = every one."""
        for name in [channel] if channel else list(self._peer.session.channels):
            self._in_turn(name, partial(self._unsubscribe, name))

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
        if order.expires_at is not None and self._peer.session.is_renewed:
            # A hook is asked then, and not the client.
            self._lifetime.end_at(None, order.expires_at)
            lasts: dict[str, object] = {}
        else:
            lasts = self._lifetime.last_until(None, order.expires_at)
        if self._peer.is_welcome:
            self._peer.send(refresh_push(lasts))

    def _in_turn(self, channel: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do `work` after the changes that are under way for `channel`, and before later ones."""
        if self._under_way >= ORDERS_UNDER_WAY_MAX:
            _log.warning("order_shed", client=self._peer.client, channel=channel)
            return
        self._under_way += 1
        self._work.track_change(channel, work).add_done_callback(self._done)

    def _done(self, _task: asyncio.Task[None]) -> None:
        self._under_way -= 1
