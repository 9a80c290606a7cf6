"""Decides what one connection may do in which state. It is pure: the connection carries it out.

Theory of operation. The session takes each command, and returns an effect (effects.py). What
depends on state and options alone is decided at once: a refusal is the effect Fail or Close. Other
decisions need a token to be verified, a hook's reply or the network. The connection gets that, and
hands the outcome to the method that the effect names. So the session never waits, and holds the
whole state of the connection:

    NEW ── connect ──> CONNECTING ── connected() ──> CONNECTED
     └─────────────────────┴──────── close(), refused() ──┴──> CLOSED

    state       command                  effect                              then
    NEW         connect                  Authenticate                        CONNECTING
    NEW         any other, or too large  Close 3501                          CLOSED
    CONNECTING  any                      Close 3501; the connection does     CLOSED
                                         not read further meanwhile
    CONNECTED   connect                  Close 3501                          CLOSED
    CONNECTED   any that is too large    an error
    CONNECTED   subscribe                Authorize, AskSubscribe, Subscribe  it is in `channels`
                                         or an error
    CONNECTED   unsubscribe              Leave
    CONNECTED   refresh, sub_refresh     Refresh, SubRefresh, an error,      Renew or Close
                                         or Close 3501
    CONNECTED   publish                  AskPublish, Publish or an error
    CONNECTED   rpc                      Call, AskPublish, Publish or an
                                         error
    CONNECTED   history, presence, …     ReadHistory, … or an error
    CONNECTED   send                     Close 3508                          CLOSED

A channel is in `channels` from its Subscribe on (with a hook, from its AskSubscribe on) until
`left()`: a second subscribe meanwhile is an error, and so is one beyond the limit of channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from typing import Final

from roomcast.auth.claims import ConnectionClaims, ServerSubscription, SubscriptionClaims
from roomcast.client.effects import (
    AskPublish,
    AskSubscribe,
    Authenticate,
    Authorize,
    Call,
    Close,
    Effect,
    Fail,
    Ignore,
    Leave,
    Publish,
    ReadHistory,
    ReadPresence,
    Refresh,
    Renew,
    SubRefresh,
    Subscribe,
)
from roomcast.client.permissions import Permissions
from roomcast.delivery.forms import FOSSIL
from roomcast.frozen import frozen
from roomcast.hooks.events import ConnectReply, SubscribeReply
from roomcast.wire.capabilities import Grant
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import NEEDS_PROTOBUF, Disconnect, Error
from roomcast.wire.commands import (
    Bounds,
    Command,
    ConnectRequest,
    HistoryRequest,
    InvalidRequest,
    OversizedRequest,
    PingRequest,
    Pong,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    RpcPublishRequest,
    RpcRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from roomcast.wire.names import is_valid_name, personal_channel
from roomcast.wire.publication import ClientInfo, Json, Payload, StreamPosition

__all__ = [
    "CONNECT_BYTES_A_CHANNEL",
    "CONNECT_BYTES_MIN",
    "Admission",
    "Policy",
    "Session",
    "State",
]

# Bytes of a `connect`, which is decoded before its sender is known. They hold a token (8 KiB at
# most), as much again for the application's data and the names, and a position in each channel that
# the client may have.
CONNECT_BYTES_MIN: Final = 16 * 1024
CONNECT_BYTES_A_CHANNEL: Final = 352
# What there is without a connect hook.
_NO_OPINION: Final = ConnectReply()


@dataclass(frozen=True)
class Policy:
    """The policy for every connection of this node.

    `insecure`: no token is needed, and every operation that a channel's options provide is allowed.
    `message_size_limit`: bytes of one command. `personal_namespace`: the namespace of the personal
    channels to which users are subscribed as they connect; None = there are none.
    `single_connection`: a user's new connection closes the others. `asks_subscribe`,
    `asks_publish`: the application has this hook for every channel; otherwise the options of a
    channel say so. `has_methods`: the application has methods that clients may call. `refreshes`: a
    hook says whether a connection goes on whose time is over; `refreshes_subscriptions`: the same
    for subscriptions in every channel. `keeps_meta`: a hook may want what came in `meta`.
    """

    rules: ChannelRules
    insecure: bool
    allow_anonymous: bool
    channel_limit: int
    message_size_limit: int
    personal_namespace: str | None = None
    single_connection: bool = False
    asks_subscribe: bool = False
    asks_publish: bool = False
    has_methods: bool = False
    refreshes: bool = False
    refreshes_subscriptions: bool = False
    keeps_meta: bool = False

    @cached_property
    def connect_bounds(self) -> Bounds:
        """Bounds of the first command, which must be `connect`."""
        most = CONNECT_BYTES_MIN + self.channel_limit * CONNECT_BYTES_A_CHANNEL
        return Bounds(min(self.message_size_limit, most), self.channel_limit)

    @cached_property
    def bounds(self) -> Bounds:
        """Bounds of all later commands."""
        return Bounds(self.message_size_limit, self.channel_limit)


class State(Enum):
    """The state of a connection; see the table above."""

    NEW = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    CLOSED = auto()


@frozen
class Admission:
    """A client that may connect. `data`: for the answer.

    `ends_at`: s since 1970 when the connection ends, or a hook says whether it does; None = never.
    The client cannot refresh it, and is not told in advance.
    """

    claims: ConnectionClaims
    data: Json = None
    ends_at: int | None = None


class Session:
    """The state of one connection.

    `client`: its id, unique over all nodes. `is_binary`: it speaks Protobuf. `bounds`: the bounds
    of the next command. `channels`: the channels that the client is subscribed to, or about to be.
    `meta`: what hooks know of the connection and no client sees.
    """

    __slots__ = (
        "_conn_info",
        "_expires",
        "_hook_reply",
        "_is_binary",
        "_permissions",
        "_policy",
        "_refreshable",
        "bounds",
        "channels",
        "client",
        "meta",
        "state",
    )

    def __init__(self, client: str, policy: Policy, *, is_binary: bool = False) -> None:
        self.client = client
        self._is_binary = is_binary
        self.state = State.NEW
        self.bounds = policy.connect_bounds
        self.channels: set[str] = set()
        self.meta: Json = None
        self._policy = policy
        self._permissions = Permissions(insecure=policy.insecure)
        self._conn_info: Json = None
        # The connect hook's reply. It holds beside the claims of every token, also of later ones.
        self._hook_reply = _NO_OPINION
        # Whether the connection can be refreshed, and which subscriptions can be.
        self._expires = False
        self._refreshable: set[str] = set()

    @property
    def user(self) -> str:
        """The user that connected. "": none yet, or an anonymous client."""
        return self._permissions.user

    @property
    def info(self) -> ClientInfo:
        """What others see of the client, without the info that a subscription adds."""
        return ClientInfo(self.user, self.client, self._conn_info)

    # ---- commands

    def command(self, command: Command) -> Effect:
        """The effect of `command` in the present state."""
        request = command.request
        if isinstance(request, Pong):
            return Ignore() if self.state is State.CONNECTED else self.close(Disconnect.BAD_REQUEST)
        if self.state is State.NEW:
            return self._connect(command)
        if self.state is not State.CONNECTED:
            return self.close(Disconnect.BAD_REQUEST)
        return self._connected_command(command.id, request)

    def _connect(self, command: Command) -> Effect:
        if not isinstance(command.request, ConnectRequest):
            return self.close(Disconnect.BAD_REQUEST)
        self.state = State.CONNECTING
        self.bounds = self._policy.bounds
        asked = command.request
        return Authenticate(
            command.id,
            asked.token,
            asked.since,
            asked.data,
            asked.name,
            asked.version,
            asked.headers,
        )

    def _connected_command(self, command_id: int, request: object) -> Effect:
        match request:
            case SubscribeRequest():
                return self._subscribe(command_id, request)
            case UnsubscribeRequest(channel):
                return self._named(command_id, channel) or Leave(command_id, channel)
            case PublishRequest():
                return self._publish(command_id, request)
            case RpcPublishRequest():
                return self._rpc_publish(command_id, request)
            case HistoryRequest():
                return self._history(command_id, request)
            case PresenceRequest(channel):
                return self._presence(command_id, channel, stats=False)
            case PresenceStatsRequest(channel):
                return self._presence(command_id, channel, stats=True)
            case OversizedRequest():
                return Fail(command_id, Error.LIMIT_EXCEEDED)
            case InvalidRequest("connect" | "send") | ConnectRequest():
                return self.close(Disconnect.BAD_REQUEST)
            case InvalidRequest():
                return Fail(command_id, Error.BAD_REQUEST)
            case SendRequest():
                return self.close(Disconnect.NOT_AVAILABLE)
            case RefreshRequest(token):
                return (
                    Refresh(command_id, token)
                    if self._expires
                    else self.close(Disconnect.BAD_REQUEST)
                )
            case SubRefreshRequest(channel, token):
                return self._sub_refresh(command_id, channel, token)
            case RpcRequest(method, data) if self._policy.has_methods:
                return Call(command_id, method, data)
            case RpcRequest() | PingRequest():
                return Fail(command_id, Error.NOT_AVAILABLE)
        raise AssertionError(f"a request that the session does not know: {type(request).__name__}")

    def _subscribe(self, command_id: int, request: SubscribeRequest) -> Effect:
        channel = request.channel
        if refusal := self._named(command_id, channel):
            return refusal
        if request.type != 0:
            return Fail(command_id, Error.NOT_AVAILABLE)
        if request.delta not in ("", FOSSIL):
            return self.close(Disconnect.BAD_REQUEST)
        if request.filter is not None and request.delta:
            return Fail(command_id, Error.BAD_REQUEST)
        if channel in self.channels:
            return Fail(command_id, Error.ALREADY_SUBSCRIBED)
        if len(self.channels) >= self._policy.channel_limit:
            return Fail(command_id, Error.LIMIT_EXCEEDED)
        options = self._policy.rules.options(channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        if not options.takes_name(channel):
            return Fail(command_id, Error.BAD_REQUEST)
        if options.is_binary and not self._is_binary:
            return Fail(command_id, NEEDS_PROTOBUF)
        if request.filter is not None and not options.allow_tags_filter:
            return Fail(command_id, Error.BAD_REQUEST)
        if request.token and not self._policy.insecure:
            return Authorize(command_id, self.user, request)
        asks = self._policy.asks_subscribe or options.subscribe_proxy_enabled
        if asks and self._permissions.is_open_to_hook(channel, options):
            self.channels.add(channel)
            return AskSubscribe(command_id, request)
        if not self._permissions.may_subscribe(channel, options):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return self._granted(command_id, request, options, None)

    def _granted(
        self,
        command_id: int,
        request: SubscribeRequest,
        options: ChannelOptions,
        claims: SubscriptionClaims | None,
    ) -> Subscribe:
        """The subscription that the client gets. `claims`: from its token or the hook."""
        self.channels.add(request.channel)
        if claims is not None:
            options = claims.override.over(options)
            self._permissions.grant_in(request.channel, claims.allow)
            if claims.expires_at is not None and not self._renews(options):
                self._refreshable.add(request.channel)
        may_recover = self._permissions.may_recover(request.channel, options)
        since = request.since if may_recover else None
        recoverable = options.has_history and (
            options.force_recovery or (request.recoverable and may_recover)
        )
        positioned = options.has_history and (
            recoverable
            or options.force_positioning
            or (
                request.positioned and self._permissions.may_be_positioned(request.channel, options)
            )
            or since is not None
        )
        wants_join_leave = options.force_push_join_leave or (
            request.join_leave
            and self._permissions.may_see_presence(request.channel, options, subscribed=True)
        )
        server_filter = claims.server_tags_filter if claims else None
        expires_at = claims.expires_at if claims else None
        renews = expires_at is not None and self._renews(options)
        return Subscribe(
            id=command_id,
            channel=request.channel,
            options=options,
            positioned=positioned,
            recoverable=recoverable,
            since=_since(since, options, is_automatic=recoverable) if positioned else None,
            # As in Centrifugo: who wants the newest publication gets in without one as well.
            reject_unrecovered=request.reject_unrecovered and not options.recovers_newest,
            join_leave=options.join_leave and wants_join_leave,
            info=ClientInfo(
                self.user, self.client, self._conn_info, claims.info if claims else None
            ),
            expires_at=None if renews else expires_at,
            ends_at=expires_at if renews else None,
            numbered=request.numbered and options.allow_channel_compaction,
            # Without a log, nobody knows which publication came before. Nor has a client got it
            # if a filter held it back.
            delta=request.delta in options.allowed_delta_types
            and options.has_history
            and server_filter is None,
            filter=request.filter,
            server_filter=server_filter,
        )

    def _sub_refresh(self, command_id: int, channel: str, token: str) -> Effect:
        """The channel may be "": some SDKs leave it out, since the token names it."""
        if not token or (channel and not is_valid_name(channel)):
            return Fail(command_id, Error.BAD_REQUEST)
        if channel and (refusal := self._not_refreshable(command_id, channel)):
            return refusal
        return SubRefresh(command_id, channel, token)

    def _not_refreshable(self, command_id: int, channel: str) -> Effect | None:
        if channel not in self.channels:
            return Fail(command_id, Error.PERMISSION_DENIED)
        if channel not in self._refreshable:
            return self.close(Disconnect.BAD_REQUEST)
        return None

    def _publish(self, command_id: int, request: PublishRequest) -> Effect:
        if request.type != 0:
            return self._named(command_id, request.channel) or Fail(command_id, Error.NOT_AVAILABLE)
        options = self._options(command_id, request.channel)
        if not isinstance(options, ChannelOptions):
            return options
        data, text = request.data, request.text
        # Asked for first: most channels have none, and take any JSON.
        if options.publication_data_format or isinstance(data, bytes):
            if options.is_binary:
                if request.raw is None:
                    return Fail(command_id, NEEDS_PROTOBUF)
                data, text = request.raw, None
            elif not options.takes(data):
                return Fail(command_id, Error.BAD_REQUEST)
        return self._publish_or_ask(
            Publish(command_id, request.channel, options, data, self.info, text=text)
        )

    def _rpc_publish(self, command_id: int, request: RpcPublishRequest) -> Effect:
        options = self._options(command_id, request.channel)
        if not isinstance(options, ChannelOptions):
            return options
        if options.is_binary and not self._is_binary:
            return Fail(command_id, NEEDS_PROTOBUF)
        data = request.data if request.raw is None else request.raw
        if not options.takes(data):
            return Fail(command_id, Error.BAD_REQUEST)
        effect = self._publish_or_ask(
            Publish(
                command_id,
                request.channel,
                options,
                data,
                self.info,
                rpc=True,
                key=request.key,
            )
        )
        if not isinstance(effect, Fail) and not options.has_history:
            # Without a log there is no position to return and no key to keep.
            return Fail(command_id, Error.NOT_AVAILABLE)
        return effect

    def _publish_or_ask(self, effect: Publish) -> Publish | Fail | AskPublish:
        """`effect` if it is allowed. A publish hook is asked in any case."""
        channel = effect.channel
        subscribed = channel in self.channels
        if self._permissions.may_publish(channel, effect.options, subscribed=subscribed):
            otherwise: Publish | Fail = effect
        else:
            otherwise = Fail(effect.id, Error.PERMISSION_DENIED)
        asks = self._policy.asks_publish or effect.options.publish_proxy_enabled
        return AskPublish(effect.id, effect, otherwise) if asks else otherwise

    def _history(self, command_id: int, request: HistoryRequest) -> Effect:
        channel = request.channel
        options = self._options(command_id, channel)
        if not isinstance(options, ChannelOptions):
            return options
        if not options.has_history:
            return Fail(command_id, Error.NOT_AVAILABLE)
        if options.is_binary and not self._is_binary:
            return Fail(command_id, NEEDS_PROTOBUF)
        subscribed = channel in self.channels
        if not self._permissions.may_read_history(channel, options, subscribed=subscribed):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return ReadHistory(command_id, options, request)

    def _presence(self, command_id: int, channel: str, *, stats: bool) -> Effect:
        options = self._options(command_id, channel)
        if not isinstance(options, ChannelOptions):
            return options
        if not options.presence:
            return Fail(command_id, Error.NOT_AVAILABLE)
        subscribed = channel in self.channels
        if not self._permissions.may_see_presence(channel, options, subscribed=subscribed):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return ReadPresence(command_id, channel, stats)

    def _options(self, command_id: int, channel: str) -> ChannelOptions | Effect:
        """The options of `channel`, or the refusal of a channel that does not exist."""
        if not channel:
            return self.close(Disconnect.BAD_REQUEST)
        found = self._policy.rules.find(channel)
        return found if isinstance(found, ChannelOptions) else Fail(command_id, found)

    def _named(self, command_id: int, channel: str) -> Effect | None:
        """The refusal of an invalid channel name: 3501 for an empty one, else error 107."""
        if not channel:
            return self.close(Disconnect.BAD_REQUEST)
        return None if is_valid_name(channel) else Fail(command_id, Error.BAD_REQUEST)

    # ---- outcomes of what was asked for

    def may_connect_without_token(self) -> bool:
        """Whether a client without a token may connect if no hook names its user."""
        return self._policy.insecure or self._policy.allow_anonymous

    def admitted(
        self, claims: ConnectionClaims | None, reply: ConnectReply | None
    ) -> Admission | Error:
        """The client that connects, by its token and the connect hook.

        `claims` None: no token. `reply` None: no hook, or it has no opinion. The hook adds to a
        token, and never changes the token's user.
        """
        self._hook_reply = reply = reply or _NO_OPINION
        if claims is None and not reply.user and not self.may_connect_without_token():
            return Error.UNAUTHORIZED
        by_both = self._with_hook(claims or ConnectionClaims(reply.user, None))
        ends_at = reply.expires_at if claims is None else None
        if self._policy.refreshes and by_both.expires_at is not None:
            ends_at, by_both = by_both.expires_at, replace(by_both, expires_at=None)
        if self._policy.keeps_meta:
            self.meta = by_both.meta
        return Admission(by_both, reply.data, ends_at)

    def _with_hook(self, claims: ConnectionClaims) -> ConnectionClaims:
        """A token's claims and the connect hook's reply, which holds for later tokens too."""
        reply = self._hook_reply
        if reply is _NO_OPINION:
            return claims
        return replace(
            claims,
            info=reply.info if claims.info is None else claims.info,
            meta=reply.meta if claims.meta is None else claims.meta,
            subs={**reply.subs, **claims.subs},
            caps=(*claims.caps, *reply.caps),
        )

    def connected(
        self, user: str, info: Json, *, caps: Iterable[Grant] = (), expires: bool = False
    ) -> None:
        """The client may send other commands now. `expires`: `refresh` is one of them."""
        assert self.state is State.CONNECTING, "connect is answered once"
        self.state = State.CONNECTED
        self._permissions.user = user
        self._permissions.grant(caps)
        self._conn_info = info
        self._expires = expires

    def refused(self) -> None:
        """`connect` was answered with an error. Any further command closes the connection."""
        self.state = State.CLOSED

    def authorized(self, effect: Authorize, claims: SubscriptionClaims) -> Effect:
        """The subscription token of `effect` was verified."""
        channel = effect.request.channel
        if self.state is not State.CONNECTED:
            # The connection was closed while the token was verified.
            return Ignore()
        if not self._is_ours(claims, channel):
            return self.close(Disconnect.INVALID_TOKEN)
        options = self._policy.rules.options(channel)
        if options is None or channel in self.channels:
            return Fail(effect.id, Error.BAD_REQUEST)
        return self._granted(effect.id, effect.request, options, claims)

    def answered(self, effect: AskSubscribe, reply: SubscribeReply | None) -> Effect:
        """The subscribe hook allows `effect`. None: no opinion, so the channel's rules decide."""
        channel = effect.request.channel
        if self.state is not State.CONNECTED:
            return Ignore()
        options = self._policy.rules.options(channel)
        assert options is not None, "it was known when the hook was asked"
        if reply is None:
            if not self._permissions.may_subscribe(channel, options):
                self.left(channel)
                return Fail(effect.id, Error.PERMISSION_DENIED)
            return self._granted(effect.id, effect.request, options, None)
        claims = SubscriptionClaims(
            self.user,
            channel,
            None,
            reply.info,
            override=reply.override,
            allow=reply.allow,
            server_tags_filter=reply.server_tags_filter,
        )
        subscribe = self._granted(effect.id, effect.request, options, claims)
        return replace(subscribe, data=reply.data, ends_at=reply.expires_at)

    def refreshed(self, effect: Refresh, claims: ConnectionClaims) -> Effect:
        """The connection token of `effect` was verified. Its `subs` wait for the next connect."""
        if self.state is not State.CONNECTED:
            return Ignore()
        if claims.user != self.user:
            return self.close(Disconnect.INVALID_TOKEN)
        by_both = self._with_hook(claims)
        self._conn_info = by_both.info
        self._permissions.grant(by_both.caps)
        return Renew(effect.id, None, claims.expires_at)

    def sub_refreshed(self, effect: SubRefresh, claims: SubscriptionClaims) -> Effect:
        """The subscription token of `effect` was verified. The options stay as they were, and so
        does a filter that the new token does not replace.
        """
        if self.state is not State.CONNECTED:
            return Ignore()
        if not self._is_ours(claims, effect.channel or claims.channel):
            return self.close(Disconnect.INVALID_TOKEN)
        # The subscription may have ended while the token was verified.
        if refusal := self._not_refreshable(effect.id, claims.channel):
            return refusal
        self._permissions.grant_in(claims.channel, claims.allow)
        return Renew(effect.id, claims.channel, claims.expires_at, claims.server_tags_filter)

    def _is_ours(self, claims: SubscriptionClaims, channel: str) -> bool:
        """Whether a subscription token is for `channel`, this user and any client or this one."""
        return (claims.channel, claims.user) == (channel, self.user) and claims.client in (
            "",
            self.client,
        )

    def refreshed_by_server(self, info: Json, meta: Json = None) -> None:
        """The application ordered a refresh, or a hook allowed it. `info` None: others see the same
        info as before. `meta` None: hooks get the same.
        """
        if info is not None:
            self._conn_info = info
        if meta is not None and self._policy.keeps_meta:
            self.meta = meta

    @property
    def is_renewed(self) -> bool:
        """Whether a hook says if the connection goes on when its time is over."""
        return self._policy.refreshes and self.state is State.CONNECTED

    def is_subscription_renewed(self, channel: str) -> bool:
        """The same for the subscription to `channel`."""
        options = self._policy.rules.options(channel)
        return options is not None and self._renews(options) and self.state is State.CONNECTED

    def _renews(self, options: ChannelOptions) -> bool:
        return self._policy.refreshes_subscriptions or options.sub_refresh_proxy_enabled

    # ---- subscriptions by the server

    def subscribe_at_connect(
        self, subs: Mapping[str, ServerSubscription], since: Mapping[str, StreamPosition]
    ) -> tuple[Subscribe, ...] | Error | Disconnect:
        """The subscriptions of token and hook and the personal channel, or why `connect` fails."""
        wanted = dict(subs)
        if self._policy.personal_namespace is not None:
            personal = personal_channel(self.user, self._policy.personal_namespace)
            if personal is not None:
                wanted.setdefault(personal, ServerSubscription())
        if len(wanted) > self._policy.channel_limit:
            return Disconnect.CHANNEL_LIMIT
        found = [self._policy.rules.options(channel) for channel in wanted]
        if None in found:
            return Error.UNKNOWN_CHANNEL
        if not self._is_binary and any(options and options.is_binary for options in found):
            return Disconnect.INAPPROPRIATE_PROTOCOL
        given = zip(wanted.values(), found, strict=True)
        if any(options and _is_misplaced(sub.data, options) for sub, options in given):
            return Disconnect.INVALID_TOKEN
        effects = (
            self.subscribe_by_server(channel, sub, self._granted_since(channel, sub, since))
            for channel, sub in wanted.items()
        )
        return tuple(effect for effect in effects if effect is not None)

    def _granted_since(
        self, channel: str, sub: ServerSubscription, since: Mapping[str, StreamPosition]
    ) -> StreamPosition | None:
        """The position from which a server-side subscription is recovered, if the client may."""
        configured = self._policy.rules.options(channel)
        if configured is None or not self._permissions.may_recover(
            channel, sub.override.over(configured)
        ):
            return None
        return since.get(channel)

    def subscribe_by_server(
        self,
        channel: str,
        sub: ServerSubscription,
        since: StreamPosition | None,
        expires_at: int | None = None,
    ) -> Subscribe | None:
        """Subscribe the client to `channel`. `expires_at`: s since 1970 when it ends.

        None: the client is not connected, is subscribed already, or is at its limit of channels;
        the channel's namespace is not known here; it is binary, and the client speaks JSON; or it
        is not, and `sub` has bytes for the client.
        """
        configured = self._policy.rules.options(channel)
        is_full = len(self.channels) >= self._policy.channel_limit
        if (
            self.state is not State.CONNECTED
            or configured is None
            or (configured.is_binary and not self._is_binary)
            or _is_misplaced(sub.data, configured)
            or channel in self.channels
            or is_full
        ):
            return None
        self.channels.add(channel)
        options = sub.override.over(configured)
        recoverable = options.has_history and options.force_recovery
        positioned = options.has_history and (
            recoverable or options.force_positioning or since is not None
        )
        return Subscribe(
            id=0,
            channel=channel,
            options=options,
            positioned=positioned,
            recoverable=recoverable,
            since=_since(since, options, is_automatic=recoverable, is_wanted=sub.cache_recover)
            if positioned
            else None,
            reject_unrecovered=False,
            join_leave=options.join_leave and options.force_push_join_leave,
            info=ClientInfo(self.user, self.client, self._conn_info, sub.info),
            expires_at=expires_at,
            is_server_side=True,
            data=sub.raw if configured.is_binary and sub.raw is not None else sub.data,
            server_filter=sub.server_tags_filter,
        )

    def left(self, channel: str) -> None:
        """The subscription ended, or could not be made."""
        self.channels.discard(channel)
        self._refreshable.discard(channel)
        self._permissions.left(channel)

    def close(self, why: Disconnect) -> Close:
        """Close the connection. Nothing is allowed any more."""
        self.state = State.CLOSED
        return Close(why)


def _is_misplaced(data: Payload, options: ChannelOptions) -> bool:
    """Whether `data`, which goes with a subscription, is bytes though the channel has JSON."""
    return isinstance(data, bytes) and not options.is_binary


def _since(
    asked: StreamPosition | None,
    options: ChannelOptions,
    *,
    is_automatic: bool,
    is_wanted: bool = False,
) -> StreamPosition | None:
    """The position to recover from. `asked`: by the client; None = it did not ask.

    `is_automatic`: the newest publication may come without that, if the channel's options say so,
    or the application (`is_wanted`).
    """
    if asked is not None or not (is_automatic and options.recovers_newest):
        return asked
    return StreamPosition("", 0) if options.auto_cache_recover or is_wanted else None
