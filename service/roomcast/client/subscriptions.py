"""The client's subscriptions, and how each of them ends.

A subscription is made, and then added in the tick in which the client is told. Any of five things
ends it: the client's `unsubscribe`, an order, the expiry of its token, the loss of the channel by
the hub, or the end of the connection. Then its presence entry is removed, and others in the channel
are told that it left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice

import structlog

from roomcast.client.effects import Subscribe
from roomcast.client.lifetime import Lifetime
from roomcast.client.peer import Peer
from roomcast.client.services import Services, Socket
from roomcast.delivery import signals
from roomcast.delivery.forms import form
from roomcast.delivery.ports import Sink
from roomcast.delivery.tags_filters import TagsFilter
from roomcast.ports import PortError
from roomcast.wire.codes import Disconnect, Unsubscribe
from roomcast.wire.encoding import unsubscribe_push
from roomcast.wire.publication import ClientInfo
from roomcast.wire.tags_filter import Filter, both

__all__ = ["Subscription", "Subscriptions"]

_log = structlog.get_logger(__name__)


class Subscription:
    """One channel of one connection, as the hub sees it.

    `join_leave`: it gets join and leave pushes. `has_join_leave`: others get its own. `filter`: the
    one that the client asked for.
    """

    __slots__ = (
        "_subscriptions",
        "filter",
        "form",
        "has_join_leave",
        "has_presence",
        "info",
        "is_server_side",
        "join_leave",
        "sink",
    )

    def __init__(self, subscriptions: Subscriptions, socket: Socket, effect: Subscribe) -> None:
        self._subscriptions = subscriptions
        self.sink: Sink = socket
        self.filter = effect.filter
        self.form = form(
            numbered=effect.numbered,
            delta=effect.delta,
            binary=socket.is_binary,
            tags_filter=subscriptions.shared_filter(effect.filter, effect.server_filter),
        )
        self.info = effect.info
        self.join_leave = effect.join_leave
        self.has_join_leave = effect.options.join_leave
        self.has_presence = effect.options.has_entries
        self.is_server_side = effect.is_server_side

    def lost(self, channel: str) -> None:
        """The hub has ended it: the channel cannot be continued."""
        self._subscriptions.lost(channel, self)


class Subscriptions:
    """The subscriptions of one client, by channel. One from `make` counts from `add` on."""

    __slots__ = ("_current", "_exits", "_lifetime", "_peer", "_services")

    def __init__(self, services: Services, peer: Peer, lifetime: Lifetime) -> None:
        self._services = services
        self._peer = peer
        self._lifetime = lifetime
        self._current: dict[str, Subscription] = {}
        # Presence exits under way, by channel. The next entry to a channel waits for its exit.
        self._exits: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, channel: str) -> bool:
        return channel in self._current

    def __getitem__(self, channel: str) -> Subscription:
        return self._current[channel]

    def __len__(self) -> int:
        return len(self._current)

    # ---- filters

    def shared_filter(self, asked: Filter | None, by_server: Filter | None) -> TagsFilter | None:
        """What passes both the filter that the client asked for and the server's."""
        return self._services.dispatcher.shared_filter(both(by_server, asked))

    def change_server_filter(self, channel: str, server_filter: Filter) -> bool:
        """From now on, the subscription to `channel` gets what passes `server_filter`, as far as
        the client wants it. False: there are too many filters, and it has the one that it had.
        """
        if (subscription := self._current.get(channel)) is None:
            return True
        dispatcher, had = self._services.dispatcher, subscription.form
        new = self.shared_filter(subscription.filter, server_filter)
        if new is had.filter:
            return True
        if not dispatcher.has_room_for(channel, new):
            return False

        def change() -> None:
            subscription.form = replace(had, filter=new)

        dispatcher.change_filter(channel, subscription, change)
        return True

    # ---- they begin

    def make(self, effect: Subscribe) -> Subscription:
        """A subscription for `effect`, which does not count yet."""
        return Subscription(self, self._peer.socket, effect)

    def add(self, subscriptions: Mapping[str, Subscription]) -> None:
        """The client has just been told of `subscriptions`, which are by channel."""
        self._current |= subscriptions

    def has(self, channel: str, subscription: Subscription) -> bool:
        """Whether `subscription` is the client's present one to `channel`."""
        return self._current.get(channel) is subscription

    def is_exiting(self, channel: str) -> bool:
        """Whether `exited` would wait."""
        return channel in self._exits

    async def exited(self, channel: str) -> None:
        """Wait until the presence entry of an earlier subscription to `channel` is gone."""
        if (pending := self._exits.get(channel)) is not None:
            await asyncio.wait([pending])

    def abandon(self, effect: Subscribe, *, entered: bool) -> None:
        """The subscription of `effect` failed. `entered`: it may have a presence entry."""
        self._peer.session.left(effect.channel)
        if entered:
            self._exit_presence(effect.channel, effect.info)

    def announce(self, channel: str, subscription: Subscription) -> None:
        """Signal the join, if the channel has join pushes and `subscription` has not ended yet."""
        if subscription.has_join_leave and self.has(channel, subscription):
            node, signal_id = self._services.node, self._services.new_id()
            self._services.signal(signals.join(node, signal_id, channel, subscription.info))

    # ---- they end

    def leave(self, channel: str) -> None:
        """End the subscription to `channel`, if there is one. Idempotent."""
        subscription = self._current.pop(channel, None)
        if subscription is None:
            return
        self._services.dispatcher.leave(channel, subscription)
        self._left(channel, subscription)

    def leave_some(self, most: int) -> int:
        """The connection has ended: leave the channels that it was in first, `most` of them.

        Returns how many it left.
        """
        leaving = list(islice(self._current, most))
        for channel in leaving:
            self.leave(channel)
        return len(leaving)

    def leave_by_client(self, channel: str) -> None:
        """Leave, as the client wishes. A server-side subscription stays."""
        subscription = self._current.get(channel)
        if subscription is None or not subscription.is_server_side:
            self.leave(channel)

    def leave_by_order(self, channel: str) -> None:
        """Leave, as the application ordered, and tell the client by a push."""
        if channel in self._current:
            # What was published before the order goes out before it.
            self._services.dispatcher.flush(channel)
            self.leave(channel)
            self._peer.send(unsubscribe_push(channel, Unsubscribe.SERVER))

    def expire(self, channel: str) -> None:
        """No new token came for the subscription to `channel`. A push makes the client fetch one.

        For a server-side subscription the client has no token. The close makes it reconnect.
        """
        if (subscription := self._current.get(channel)) is None:
            return
        _log.info("subscription_expired", client=self._peer.client, channel=channel)
        if subscription.is_server_side:
            self._peer.close(Disconnect.SUBSCRIPTION_EXPIRED)
            return
        self._services.dispatcher.flush(channel)
        self.leave(channel)
        self._peer.send(unsubscribe_push(channel, Unsubscribe.EXPIRED))

    def lost(self, channel: str, subscription: Subscription) -> None:
        """The hub ended `subscription`. A push makes the client subscribe again and recover.

        A server-side subscription is only made again as the client connects, so the close makes it
        reconnect.
        """
        if not self.has(channel, subscription):
            return
        if subscription.is_server_side:
            self._peer.close(Disconnect.INSUFFICIENT_STATE)
            return
        del self._current[channel]
        self._left(channel, subscription)
        self._peer.send(unsubscribe_push(channel, Unsubscribe.INSUFFICIENT_STATE))

    def _left(self, channel: str, subscription: Subscription) -> None:
        self._lifetime.forget(channel)
        self._peer.session.left(channel)
        if subscription.has_presence:
            self._exit_presence(channel, subscription.info)
        if subscription.has_join_leave:
            node, signal_id = self._services.node, self._services.new_id()
            self._services.signal(signals.leave(node, signal_id, channel, subscription.info))

    def _exit_presence(self, channel: str, info: ClientInfo) -> None:
        task = self._services.background(self._exit(channel, info))
        if task is None:
            self._services.presence.exit_later(channel, info)
            return
        self._exits[channel] = task
        task.add_done_callback(partial(self._forget_exit, channel))

    async def _exit(self, channel: str, info: ClientInfo) -> None:
        try:
            await self._services.presence.exit(channel, info)
        except PortError as error:
            # The entry expires with this node's lease at the latest.
            _log.warning("presence_exit_failed", channel=channel, reason=str(error))

    def _forget_exit(self, channel: str, task: asyncio.Task[None]) -> None:
        if self._exits.get(channel) is task:
            del self._exits[channel]
