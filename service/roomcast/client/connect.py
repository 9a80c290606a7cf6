"""How the client connects: who it is, what the server subscribes it to, and the answer with all of that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import structlog

from roomcast.auth.claims import ConnectionClaims
from roomcast.client.ask import Asking
from roomcast.client.expiry import Expiry
from roomcast.client.heartbeat import Heartbeat
from roomcast.client.peer import Peer
from roomcast.client.services import Services
from roomcast.client.session import Admission, Authenticate, Close, Fail, Join
from roomcast.client.subscribe import Joins, limit_from_now, reason_of
from roomcast.client.subscriptions import Subscriptions
from roomcast.client.tasks import Tasks
from roomcast.client.tokens import Tokens
from roomcast.client.turns import Turns
from roomcast.fleet.orders import Subject
from roomcast.hooks.events import ConnectReply
from roomcast.observe.counters import Limit
from roomcast.ports import PortError
from roomcast.wire.codes import Disconnect, Error, Failing

__all__ = ["Connecting"]

_log = structlog.get_logger(__name__)


class Connecting:
    """Carries out `connect`, once. `subject`: what orders find in the roster, once the client has said who it is."""

    __slots__ = (
        "_asking",
        "_expiry",
        "_heartbeat",
        "_joins",
        "_peer",
        "_services",
        "_subject",
        "_subscriptions",
        "_tasks",
        "_tokens",
        "_turns",
    )

    def __init__(
        self,
        services: Services,
        subject: Subject,
        peer: Peer,
        expiry: Expiry,
        heartbeat: Heartbeat,
        tokens: Tokens,
        asking: Asking,
        subscriptions: Subscriptions,
        joins: Joins,
        tasks: Tasks,
        turns: Turns,
    ) -> None:
        self._services = services
        self._subject = subject
        self._peer = peer
        self._expiry = expiry
        self._heartbeat = heartbeat
        self._tokens = tokens
        self._asking = asking
        self._subscriptions = subscriptions
        self._joins = joins
        self._tasks = tasks
        self._turns = turns

    async def connect(self, effect: Authenticate) -> None:
        """Returns when the command is answered, or the connection closed."""
        match await self._tokens.authenticate(effect):
            case Fail(command_id, error):
                self._peer.fail(command_id, error)
            case Close(why):
                self._peer.close(why)
            case claims if self._asking.is_asked_to_connect and not self._peer.has_ended:
                # A task of the connection's: it is given up when that ends.
                await asyncio.wait([self._tasks.track(self._ask(effect, claims))])
            case claims:
                await self._let_in(effect, claims, None, limit_from_now())

    async def _ask(self, effect: Authenticate, claims: ConnectionClaims | None) -> None:
        limit_s = limit_from_now()
        match await self._asking.connect(effect, claims):
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
        if most and claims.user and roster.of_user(claims.user) >= most:
            self._services.counters.limited(Limit.USER_CONNECTIONS)
            self._peer.close(Disconnect.CONNECTION_LIMIT)
            return
        session.connected(
            claims.user, claims.info, caps=claims.caps, expires=claims.expires_at is not None
        )
        # From here on orders find it.
        roster.enter(self._subject)
        joins = session.joins_at_connect(claims.subs, effect.since)
        if isinstance(joins, Disconnect):
            self._peer.close(joins)
        elif isinstance(joins, Error):
            self._refuse(effect.id, joins)
        elif joins:
            await self._join_all(effect.id, admission, joins, limit_s)
        else:
            self._welcome(effect.id, admission, {})

    async def _join_all(
        self, command_id: int, admission: Admission, joins: Sequence[Join], limit_s: float
    ) -> None:
        """Make the server's subscriptions and answer `connect`, all in one tick, or be refused and have none."""
        subscriptions = {join.channel: self._subscriptions.make(join) for join in joins}
        settled = asyncio.get_running_loop().create_future()
        self._turns.take_first(subscriptions, settled)
        try:
            welcome = partial(self._welcome, command_id, admission)
            await self._joins.join_all(joins, subscriptions, welcome, limit_s)
        except (PortError, TimeoutError) as error:
            _log.warning("connect_failed", client=self._peer.client, reason=reason_of(error))
            self._refuse(command_id, Error.INTERNAL)
        finally:
            settled.set_result(None)
            for join in joins:
                if not self._subscriptions.has(join.channel, subscriptions[join.channel]):
                    self._subscriptions.not_joined(join, entered=join.options.presence)
        for channel, subscription in subscriptions.items():
            if self._subscriptions.has(channel, subscription):
                self._subscriptions.tell_join(channel, subscription)

    def _refuse(self, command_id: int, error: Failing) -> None:
        """It wanted to be connected, and will not be."""
        self._services.roster.leave(self._subject)
        self._peer.session.refused()
        self._peer.fail(command_id, error)

    def _welcome(
        self, command_id: int, admission: Admission, subs: Mapping[str, Mapping[str, object]]
    ) -> None:
        self._peer.is_welcome = True
        self._heartbeat.connected()
        lasts = self._expiry.last_until(None, admission.claims.expires_at)
        if admission.ends_at is not None:
            self._expiry.end_at(None, admission.ends_at)
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
                "pong": True,
            },
        )
        self._heartbeat.begin(self._services.random())
        _log.info("client_connected", client=self._peer.client, user=self._peer.session.user)
