"""Verifies the client's tokens, and returns the effect of each."""

from __future__ import annotations

import structlog

from roomcast.auth.claims import (
    ConnectionClaims,
    SubscriptionClaims,
    TokenEarly,
    TokenError,
    TokenExpired,
    TokenUnverifiable,
)
from roomcast.client.effects import (
    Authenticate,
    Authorize,
    Close,
    Effect,
    Fail,
    Refresh,
    Renew,
    SubRefresh,
)
from roomcast.client.lifetime import Lifetime
from roomcast.client.peer import Peer
from roomcast.client.services import Services
from roomcast.client.subscriptions import Subscriptions
from roomcast.client.work import Work
from roomcast.wire.codes import Disconnect, Error

__all__ = ["Tokens"]

_log = structlog.get_logger(__name__)


class Tokens:
    """Verifies tokens, and returns the effects."""

    __slots__ = ("_lifetime", "_peer", "_services", "_subscriptions", "_work")

    def __init__(
        self,
        services: Services,
        peer: Peer,
        lifetime: Lifetime,
        work: Work,
        subscriptions: Subscriptions,
    ) -> None:
        self._services = services
        self._peer = peer
        self._lifetime = lifetime
        self._work = work
        self._subscriptions = subscriptions

    async def authenticate(self, effect: Authenticate) -> ConnectionClaims | Fail | Close | None:
        """The claims of the connection token. None: the client has none."""
        verifier, session = self._services.verifier, self._peer.session
        if effect.token and (verifier.enabled or not self._services.policy.insecure):
            try:
                return await self._connection(effect.token)
            except (TokenExpired, TokenEarly, TokenUnverifiable) as error:
                session.refused()
                return Fail(effect.id, self._not_now(error))
            except TokenError as error:
                self._log_refused(error)
                return Close(Disconnect.INVALID_TOKEN)
        return None

    async def authorize(self, effect: Authorize) -> Effect:
        """Verify the token of a subscribe."""
        try:
            claims = await self._subscription(effect.request.token)
        except (TokenExpired, TokenEarly, TokenUnverifiable) as error:
            return Fail(effect.id, self._not_now(error))
        except TokenError as error:
            self._log_refused(error)
            return Fail(effect.id, Error.PERMISSION_DENIED)
        return self._peer.session.authorized(effect, claims)

    async def refresh(self, effect: Refresh) -> Effect:
        """Verify a new token for the connection."""
        try:
            claims = await self._connection(effect.token)
        except TokenExpired:
            # The client reconnects, gets error 109, and fetches another token.
            return Close(Disconnect.EXPIRED)
        except (TokenEarly, TokenUnverifiable) as error:
            return Fail(effect.id, self._not_now(error))
        except TokenError as error:
            self._log_refused(error)
            return Close(Disconnect.INVALID_TOKEN)
        return self._peer.session.refreshed(effect, claims)

    async def sub_refresh(self, effect: SubRefresh) -> Effect:
        """Verify a new token for a subscription."""
        try:
            claims = await self._subscription(effect.token)
        except TokenExpired as error:
            # By this error alone, an SDK would end the subscription. The push before it makes the
            # SDK subscribe again with another token.
            self._subscriptions.expire(effect.channel)
            return Fail(effect.id, self._not_now(error))
        except (TokenEarly, TokenUnverifiable) as error:
            return Fail(effect.id, self._not_now(error))
        except TokenError as error:
            self._log_refused(error)
            return Fail(effect.id, Error.PERMISSION_DENIED)
        # A command that names its channel has waited before. A subscription that is yet to be made
        # would not get the filter of this token.
        await self._work.turn(claims.channel)
        return self._peer.session.sub_refreshed(effect, claims)

    def renew(self, effect: Renew) -> None:
        """Prolong the connection or a subscription, and answer."""
        if (
            effect.channel is not None
            and effect.server_filter is not None
            and not self._subscriptions.change_server_filter(effect.channel, effect.server_filter)
        ):
            # A subscription must not go on with more than its token says.
            self._subscriptions.expire(effect.channel)
            self._peer.fail(effect.id, Error.LIMIT_EXCEEDED)
            return
        lasts = self._lifetime.last_until(effect.channel, effect.expires_at)
        if effect.channel is None:
            # An SDK takes its client id from this reply, even if it is missing here.
            about = {"client": self._peer.client, "version": self._services.version}
            self._peer.reply(effect.id, "refresh", about | lasts)
        else:
            self._peer.reply(effect.id, "sub_refresh", lasts)

    async def _connection(self, token: str) -> ConnectionClaims:
        """Raises TokenError."""
        await self._services.tokens.wait()
        return await self._services.verifier.connection(token, self._now_s())

    async def _subscription(self, token: str) -> SubscriptionClaims:
        """Raises TokenError."""
        await self._services.tokens.wait()
        return await self._services.verifier.subscription(token, self._now_s())

    def _now_s(self) -> float:
        return self._services.clock.now_ms() / 1000

    def _not_now(self, error: TokenExpired | TokenEarly | TokenUnverifiable) -> Error:
        """The error that makes an SDK try again, with another token or with the same one."""
        match error:
            case TokenExpired():
                return Error.TOKEN_EXPIRED
            case TokenEarly():
                _log.warning("token_early", client=self._peer.client, early_s=round(error.early_s))
            case TokenUnverifiable():
                _log.info("token_unverifiable", client=self._peer.client, reason=error.reason)
        return Error.INTERNAL

    def _log_refused(self, error: TokenError) -> None:
        _log.info("token_refused", client=self._peer.client, reason=str(error))
