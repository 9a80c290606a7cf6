"""Asks the application whether a connection or a subscription goes on whose time is over.

The client is told nothing: neither in advance nor of the answer, unless it is no.
"""

from __future__ import annotations

from typing import Final

import structlog

from roomcast.client.hooks import ClientHooks
from roomcast.client.lifetime import Lifetime
from roomcast.client.peer import Peer
from roomcast.client.services import Services
from roomcast.client.subscriptions import Subscriptions
from roomcast.client.work import Work
from roomcast.hooks.events import Disconnected, Refused
from roomcast.wire.codes import Disconnect

__all__ = ["AGAIN_S", "Renewing"]

# Seconds after which the application is asked again when it could not answer, as in Centrifugo. It
# is half of that to half as much again, so that those that came together do not stay together.
AGAIN_S: Final = 60.0

_log = structlog.get_logger(__name__)


class Renewing:
    """Asks for one connection. It lasts until the answer, which is bounded in time."""

    __slots__ = ("_hooks", "_lifetime", "_peer", "_services", "_subscriptions", "_work")

    def __init__(
        self,
        services: Services,
        peer: Peer,
        lifetime: Lifetime,
        work: Work,
        subscriptions: Subscriptions,
        hooks: ClientHooks,
    ) -> None:
        self._services = services
        self._peer = peer
        self._lifetime = lifetime
        self._work = work
        self._subscriptions = subscriptions
        self._hooks = hooks

    def ask(self, name: str | None) -> bool:
        """Ask about channel `name`, or about the connection (None). False: there is no such hook,
        or nothing to ask about.
        """
        session = self._peer.session
        if name is None:
            if session.is_renewed:
                self._work.track(self._connection())
            return session.is_renewed
        is_asked = name in self._subscriptions and session.is_subscription_renewed(name)
        if is_asked:
            self._work.track(self._subscription(name))
        return is_asked

    async def _connection(self) -> None:
        try:
            reply = await self._hooks.refresh()
        except Disconnected as refusal:
            self._peer.close(refusal.why)
        except Refused as refusal:
            if refusal.error.temporary:
                self._again(None)
            else:
                self._peer.close(Disconnect.EXPIRED)
        else:
            if reply is None or self._is_over(reply.expires_at):
                self._peer.close(Disconnect.EXPIRED)
                return
            self._peer.session.refreshed_by_server(reply.info, reply.meta)
            self._lifetime.end_at(None, reply.expires_at)

    async def _subscription(self, channel: str) -> None:
        subscription = self._subscriptions[channel]
        goes_on, expires_at = False, None
        try:
            reply = await self._hooks.sub_refresh(channel)
            if reply is not None:
                expires_at = reply.expires_at
                goes_on = expires_at is None or not self._is_over(expires_at)
        except Disconnected as refusal:
            self._peer.close(refusal.why)
            return
        except Refused as refusal:
            if refusal.error.temporary and self._subscriptions.has(channel, subscription):
                self._again(channel)
                return
        if not self._subscriptions.has(channel, subscription):
            # It ended meanwhile, and another one may be there.
            return
        if not goes_on:
            self._subscriptions.expire(channel)
        elif expires_at is not None:
            self._lifetime.end_at(channel, expires_at)

    def _again(self, name: str | None) -> None:
        """Nobody could say. What was allowed goes on for a while."""
        self._lifetime.end_in(name, AGAIN_S * (0.5 + self._services.random()))

    def _is_over(self, expires_at: int) -> bool:
        return expires_at <= self._services.clock.now_ms() / 1000
