"""What the application's own code is asked about the client: whether it may connect, subscribe and publish, and its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from roomcast.auth.claims import ConnectionClaims
from roomcast.client.peer import Peer
from roomcast.client.services import ANSWER_LIMIT_S, Services
from roomcast.client.session import (
    AskPublish,
    AskSubscribe,
    Authenticate,
    Call,
    Close,
    Effect,
    Fail,
    Publish,
)
from roomcast.hooks.calls import CALLS_UNDER_WAY_MAX, refused
from roomcast.hooks.events import (
    ConnectEvent,
    ConnectReply,
    Disconnected,
    PublishEvent,
    Refused,
    RpcEvent,
    SubscribeEvent,
)
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = ["ASKS_UNDER_WAY_MAX", "ASK_LIMIT_S", "Asking"]

# Subscribes and calls of one connection that wait for the application's code at once: one client must not take all that
# a node may have.
ASKS_UNDER_WAY_MAX: Final = 32
# For what comes before the call and the call together.
ASK_LIMIT_S: Final = ANSWER_LIMIT_S
assert ASKS_UNDER_WAY_MAX < CALLS_UNDER_WAY_MAX, "no client takes all of them"


class Asking:
    """Asks, and says what is to be done then. To be used only for hooks that there are: the session knows which."""

    __slots__ = ("_hooks", "_peer", "_places")

    def __init__(self, services: Services, peer: Peer) -> None:
        self._hooks = services.hooks
        self._peer = peer
        self._places = asyncio.Semaphore(ASKS_UNDER_WAY_MAX)

    @property
    def wait_s(self) -> float:
        """For how long something may wait before the application is asked, so that it is answered in time."""
        return max(0.0, ASK_LIMIT_S - self._hooks.timeout_s)

    @property
    def is_asked_to_connect(self) -> bool:
        """Whether there is a connect hook."""
        return self._hooks.hooks.connect is not None

    async def connect(
        self, effect: Authenticate, claims: ConnectionClaims | None
    ) -> ConnectReply | Fail | Close | None:
        """`claims` None = it has no token."""
        by_token = claims or ConnectionClaims("", None)
        event = ConnectEvent(
            self._peer.client,
            by_token.user,
            has_token=claims is not None,
            info=by_token.info,
            meta=by_token.meta,
            data=effect.data,
            name=effect.name,
            version=effect.version,
        )
        try:
            return await self._hooks.connect(event)
        except (Refused, Disconnected) as no:
            return _no(effect.id, no)

    async def subscribe(self, effect: AskSubscribe) -> Effect:
        """Whether the client may subscribe."""
        session, request = self._peer.session, effect.request
        try:
            async with self._place():
                event = SubscribeEvent(
                    self._peer.client, *self._as_seen(), request.channel, request.data
                )
                reply = await self._hooks.subscribe(event)
        except (Refused, Disconnected) as no:
            session.left(request.channel)
            return _no(effect.id, no)
        return session.answered(effect, reply)

    async def publish(self, effect: AskPublish) -> Publish | Fail | Close:
        """Whether the client may publish, and what then. The caller keeps the order of publications."""
        allowed = effect.allowed
        event = PublishEvent(self._peer.client, *self._as_seen(), allowed.channel, allowed.data)
        try:
            return effect.said(await self._hooks.publish(event))
        except (Refused, Disconnected) as no:
            return _no(effect.id, no)

    async def call(self, effect: Call) -> None:
        """Answer a call of a method."""
        try:
            async with self._place():
                event = RpcEvent(self._peer.client, *self._as_seen(), effect.method, effect.data)
                answer = await self._hooks.rpc(event)
        except Refused as no:
            self._peer.fail(effect.id, no.error)
        except Disconnected as no:
            self._peer.close(no.why)
        else:
            self._peer.reply(effect.id, "rpc", {"data": answer})

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Raises Refused when there is none in time: its client would have given up before the answer."""
        try:
            async with asyncio.timeout(self.wait_s):
                await self._places.acquire()
        except TimeoutError:
            raise refused(Error.TOO_MANY_REQUESTS) from None
        try:
            yield
        finally:
            self._places.release()

    def _as_seen(self) -> tuple[str, Json]:
        """The user, and what others see of it."""
        info = self._peer.session.info
        return info.user, info.conn_info


def _no(command_id: int, no: Refused | Disconnected) -> Fail | Close:
    return Fail(command_id, no.error) if isinstance(no, Refused) else Close(no.why)
