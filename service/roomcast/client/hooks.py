"""Calls the application's hooks for one client: connect, subscribe, publish and its methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from roomcast.auth.claims import ConnectionClaims
from roomcast.client.effects import (
    AskPublish,
    AskSubscribe,
    Authenticate,
    Call,
    Close,
    Effect,
    Fail,
    Publish,
)
from roomcast.client.peer import Peer
from roomcast.client.services import ANSWER_LIMIT_S, Services
from roomcast.hooks.calls import CALLS_UNDER_WAY_MAX, refused
from roomcast.hooks.events import (
    ConnectEvent,
    ConnectReply,
    Disconnected,
    PublishEvent,
    RefreshEvent,
    RefreshReply,
    Refused,
    RpcEvent,
    SubRefreshEvent,
    SubRefreshReply,
    SubscribeEvent,
)
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = ["ASKS_UNDER_WAY_MAX", "ASK_LIMIT_S", "ClientHooks"]

# Subscribes and calls of one connection that may wait for the application's code at once. One
# client must not take all of a node's hook calls.
ASKS_UNDER_WAY_MAX: Final = 32
# Seconds for the wait before a call and the call together.
ASK_LIMIT_S: Final = ANSWER_LIMIT_S
assert ASKS_UNDER_WAY_MAX < CALLS_UNDER_WAY_MAX, "no client takes all of them"


class ClientHooks:
    """Calls the hooks, and returns the effects of their replies.

    `has_connect` tells whether there is a connect hook. For the other hooks, the session knows.
    """

    __slots__ = ("_hooks", "_peer", "_places")

    def __init__(self, services: Services, peer: Peer) -> None:
        self._hooks = services.hooks
        self._peer = peer
        # Made when the application's code is first called.
        self._places: asyncio.Semaphore | None = None

    @property
    def wait_s(self) -> float:
        """How long a command may wait for its hook call and still be answered in time."""
        return max(0.0, ASK_LIMIT_S - self._hooks.timeout_s)

    @property
    def has_connect(self) -> bool:
        """Whether there is a connect hook."""
        return self._hooks.hooks.connect is not None

    async def connect(
        self, effect: Authenticate, claims: ConnectionClaims | None
    ) -> ConnectReply | Fail | Close | None:
        """Ask whether the client may connect. `claims` None: it has no token.

        Returns None when the hook has no opinion.
        """
        by_token = claims or ConnectionClaims("", None)
        peer = self._peer
        if effect.headers and (emulated := self._hooks.passed.of_connect(effect.headers)):
            peer.carrier = replace(peer.carrier, emulated=emulated)
        event = ConnectEvent(
            peer.client,
            by_token.user,
            has_token=claims is not None,
            info=by_token.info,
            meta=by_token.meta,
            data=effect.data,
            name=effect.name,
            version=effect.version,
            carrier=peer.carrier,
        )
        try:
            return await self._hooks.connect(event)
        except (Refused, Disconnected) as refusal:
            return _effect_of(effect.id, refusal)

    async def subscribe(self, effect: AskSubscribe) -> Effect:
        """Ask whether the client may subscribe. If so, the effect is a Subscribe."""
        session, request = self._peer.session, effect.request
        try:
            async with self._place():
                event = SubscribeEvent(
                    self._peer.client,
                    *self._user_and_info(),
                    request.channel,
                    request.data,
                    meta=session.meta,
                    carrier=self._peer.carrier,
                )
                reply = await self._hooks.subscribe(event)
        except (Refused, Disconnected) as refusal:
            session.left(request.channel)
            return _effect_of(effect.id, refusal)
        return session.answered(effect, reply)

    async def publish(self, effect: AskPublish) -> Publish | Fail | Close:
        """Ask whether the client may publish, and what. The caller keeps publications in order."""
        allowed = effect.allowed
        event = PublishEvent(
            self._peer.client,
            *self._user_and_info(),
            allowed.channel,
            allowed.data,
            meta=self._peer.session.meta,
            carrier=self._peer.carrier,
        )
        try:
            return effect.decided(await self._hooks.publish(event))
        except (Refused, Disconnected) as refusal:
            return _effect_of(effect.id, refusal)

    async def call(self, effect: Call) -> None:
        """Call a method, and answer with what it returns."""
        try:
            async with self._place():
                event = RpcEvent(
                    self._peer.client,
                    *self._user_and_info(),
                    effect.method,
                    effect.data,
                    meta=self._peer.session.meta,
                    carrier=self._peer.carrier,
                )
                result = await self._hooks.rpc(event)
        except Refused as refusal:
            self._peer.fail(effect.id, refusal.error)
        except Disconnected as refusal:
            self._peer.close(refusal.why)
        else:
            self._peer.reply(effect.id, "rpc", {"data": result})

    async def refresh(self) -> RefreshReply | None:
        """Ask whether the connection goes on. None: no. Raises Refused and Disconnected."""
        peer = self._peer
        event = RefreshEvent(
            peer.client, *self._user_and_info(), meta=peer.session.meta, carrier=peer.carrier
        )
        return await self._hooks.refresh(event)

    async def sub_refresh(self, channel: str) -> SubRefreshReply | None:
        """The same for the subscription to `channel`."""
        peer = self._peer
        async with self._place():
            event = SubRefreshEvent(
                peer.client,
                *self._user_and_info(),
                channel,
                meta=peer.session.meta,
                carrier=peer.carrier,
            )
            return await self._hooks.sub_refresh(event)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Hold a place for a call. Raises Refused when none is free before the client gives up."""
        if self._places is None:
            self._places = asyncio.Semaphore(ASKS_UNDER_WAY_MAX)
        places = self._places
        try:
            async with asyncio.timeout(self.wait_s):
                await places.acquire()
        except TimeoutError:
            raise refused(Error.TOO_MANY_REQUESTS) from None
        try:
            yield
        finally:
            places.release()

    def _user_and_info(self) -> tuple[str, Json]:
        """The user, and the info that others see."""
        info = self._peer.session.info
        return info.user, info.conn_info


def _effect_of(command_id: int, refusal: Refused | Disconnected) -> Fail | Close:
    if isinstance(refusal, Refused):
        return Fail(command_id, refusal.error)
    return Close(refusal.why)
