"""Carries out `connect`: checks who the client is, makes the server's subscriptions and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from roomcast.auth.claims import ConnectionClaims
from roomcast.client import comings
from roomcast.client.effects import Authenticate, Close, Fail
from roomcast.client.hooks import ClientHooks
from roomcast.client.lifetime import Lifetime
from roomcast.client.peer import Peer
from roomcast.client.services import Services
from roomcast.client.session import Admission
from roomcast.client.subscribe import Subscribing, limit_from_now
from roomcast.client.tokens import Tokens
from roomcast.client.work import Work
from roomcast.fleet.order_signals import ReplaceOrder, Target
from roomcast.fleet.orders import Subject
from roomcast.hooks.events import ConnectReply
from roomcast.log.appender import Full, TooLarge
from roomcast.observe.counters import Limit
from roomcast.wire.codes import Disconnect, Error, Failing
from roomcast.wire.publication import ClientInfo

__all__ = ["Connecting"]

_log = structlog.get_logger(__name__)


class Connecting:
    """Carries out `connect`, once.

    `subject`: the connection as orders find it in the roster, once the client is connected.
    """

    __slots__ = (
        "_hooks",
        "_lifetime",
        "_peer",
        "_services",
        "_subject",
        "_subscribing",
        "_tokens",
        "_work",
    )

    def __init__(
        self,
        services: Services,
        subject: Subject,
        peer: Peer,
        lifetime: Lifetime,
        work: Work,
        tokens: Tokens,
        hooks: ClientHooks,
        subscribing: Subscribing,
    ) -> None:
        self._services = services
        self._subject = subject
        self._peer = peer
        self._lifetime = lifetime
        self._work = work
        self._tokens = tokens
        self._hooks = hooks
        self._subscribing = subscribing

    async def connect(self, effect: Authenticate) -> None:
        """Returns when the command is answered, or the connection closed."""
        match await self._tokens.authenticate(effect):
            case Fail(command_id, error):
                self._peer.fail(command_id, error)
            case Close(why):
                self._peer.close(why)
            case claims if self._hooks.has_connect and not self._peer.has_ended:
                # A task of the connection: it is cancelled when the connection ends.
                await asyncio.wait([self._work.track(self._ask(effect, claims))])
            case claims:
                await self._let_in(effect, claims, None, limit_from_now())

    async def _ask(self, effect: Authenticate, claims: ConnectionClaims | None) -> None:
        limit_s = limit_from_now()
        match await self._hooks.connect(effect, claims):
            case Fail(command_id, error):
                self._refuse(command_id, error)
            case Close(why):
                self._peer.close(why)
            case reply:
                await self._let_in(effect, claims, reply, limit_s)

    async def _let_in(
        self,
        effect: Authenticate,
        by_token: ConnectionClaims | None,
        reply: ConnectReply | None,
        limit_s: float,
    ) -> None:
        if self._peer.has_ended:
            return
        session, roster = self._peer.session, self._services.roster
        admission = session.admitted(by_token, reply)
        if isinstance(admission, Error):
            self._refuse(effect.id, admission)
            return
        claims = admission.claims
        most = self._services.limits.user_connections
        is_alone = self._services.policy.single_connection and bool(claims.user)
        if most and not is_alone and claims.user and roster.of_user(claims.user) >= most:
            self._services.counters.limited(Limit.USER_CONNECTIONS)
            self._peer.close(Disconnect.CONNECTION_LIMIT)
            return
        session.connected(
            claims.user, claims.info, caps=claims.caps, expires=claims.expires_at is not None
        )
        if is_alone:
            self._subject.since_ms = self._services.clock.now_ms()
        # From here on, orders find the connection.
        roster.enter(self._subject)
        if is_alone and not self._has_replaced_others(claims.user):
            self._refuse(effect.id, Error.INTERNAL)
            return
        effects = session.subscribe_at_connect(claims.subs, effect.since)
        if isinstance(effects, Disconnect):
            self._peer.close(effects)
        elif isinstance(effects, Error):
            self._refuse(effect.id, effects)
        elif effects:
            answer = _Answer(self, effect.id, admission)
            await self._subscribing.subscribe_all(effects, answer, limit_s)
        else:
            self.welcome(effect.id, admission, {})

    def _has_replaced_others(self, user: str) -> bool:
        """Whether the user's other connections are told to go. Nobody waits for it."""
        client = self._peer.client
        order = ReplaceOrder(Target(user), client, self._subject.since_ms)
        try:
            sent = self._services.give(order)
        except (Full, TooLarge) as error:
            _log.warning("connect_failed", client=client, reason=str(error))
            return False
        sent.add_done_callback(self._others_told)
        return True

    def _others_told(self, sent: asyncio.Future[None]) -> None:
        if sent.cancelled() or sent.exception() is not None:
            # Nodes may not know of this connection, and keep an older one: it has to come again.
            self._peer.close(Disconnect.SERVER_ERROR)

    def failed(self, command_id: int, reason: str) -> None:
        """One of the server's subscriptions could not be made."""
        _log.warning("connect_failed", client=self._peer.client, reason=reason)
        self._refuse(command_id, Error.INTERNAL)

    def _refuse(self, command_id: int, error: Failing) -> None:
        """Answer `connect` with `error`. The client is not connected."""
        self._services.roster.leave(self._subject)
        self._peer.session.refused()
        self._peer.fail(command_id, error)

    def welcome(
        self, command_id: int, admission: Admission, subs: Mapping[str, Mapping[str, object]]
    ) -> None:
        """Answer, and ping from now on. `subs`: the result of each subscription, by channel."""
        self._peer.is_welcome = True
        self._lifetime.connected()
        lasts = self._lifetime.last_until(None, admission.claims.expires_at)
        if admission.ends_at is not None:
            self._lifetime.end_at(None, admission.ends_at)
        self._peer.reply(
            command_id,
            "connect",
            {
                "client": self._peer.client,
                "version": self._services.version,
                **lasts,
                **({} if admission.data is None else {"data": admission.data}),
                **({"subs": subs} if subs else {}),
                "ping": round(self._services.limits.ping_interval_s) or 1,
                **self._way_back(),
            },
        )
        self._lifetime.begin_pings(self._services.random())
        comings.connected(self._peer.client, self._peer.session.user)
        if (entries := self._services.entries) is not None:
            entries.connected(ClientInfo(self._peer.session.user, self._peer.client))

    def _way_back(self) -> Mapping[str, object]:
        """How the client sends more than `connect`. No pong is asked for where it is a request."""
        if session := self._peer.socket.session:
            return {"session": session, "node": self._services.presence.node}
        return {"pong": True}


class _Answer:
    """The answer to command `command_id`, once its subscriptions are made."""

    __slots__ = ("_admission", "_command_id", "_connecting")

    def __init__(self, connecting: Connecting, command_id: int, admission: Admission) -> None:
        self._connecting = connecting
        self._command_id = command_id
        self._admission = admission

    def send(self, subs: Mapping[str, Mapping[str, object]]) -> None:
        self._connecting.welcome(self._command_id, self._admission, subs)

    def refuse(self, reason: str) -> None:
        self._connecting.failed(self._command_id, reason)
