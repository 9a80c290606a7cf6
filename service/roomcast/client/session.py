"""One connection's side of the protocol: which command is allowed in which state, and what must be done for it.

Theory of operation. A connection is NEW until its `connect` command, CONNECTING while that is being
authenticated, then CONNECTED until it is CLOSED. What breaks that order closes it (3501). A command is answered
at once where its state and the channel's options decide (errors, unsupported methods); otherwise it becomes an
effect for the shell to carry out, which comes back with the outcome.

    state       command                  effect                              then
    NEW         connect                  Authenticate                        CONNECTING
    NEW         any other, or too large  Close 3501                          CLOSED
    CONNECTING  any                      (the shell does not read further)
    CONNECTED   connect                  Close 3501                          CLOSED
    CONNECTED   any that is too large    an error
    CONNECTED   subscribe                Authorize, AskSubscribe, Subscribe       subscription is pending
                                         or an error
    CONNECTED   unsubscribe              Leave
    CONNECTED   refresh, sub_refresh     Refresh, SubRefresh, an error,      then Renew or Close
                                         or Close 3501
    CONNECTED   publish                  AskPublish, Publish or an error
    CONNECTED   rpc                      Call, Publish or an error
    CONNECTED   history, presence, …     ReadHistory, … or an error
    CONNECTED   send                     Close 3508                          CLOSED
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from roomcast.auth.claims import ConnectionClaims, ServerSubscription, SubscriptionClaims
from roomcast.delivery.forms import FOSSIL
from roomcast.hooks.events import ConnectReply, PublishReply, SubscribeReply, Unchanged
from roomcast.wire.capabilities import Capability, Grant, granted
from roomcast.wire.channels import ChannelOptions, ChannelRules, is_valid_name, personal_channel
from roomcast.wire.codes import Closing, Disconnect, Error, Failing
from roomcast.wire.json import (
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
from roomcast.wire.publication import ClientInfo, Json, StreamPosition

__all__ = [
    "CONNECT_BYTES_A_CHANNEL",
    "CONNECT_BYTES_MIN",
    "Admission",
    "AskPublish",
    "AskSubscribe",
    "Authenticate",
    "Authorize",
    "Call",
    "Close",
    "Effect",
    "Fail",
    "Ignore",
    "Leave",
    "Policy",
    "Publish",
    "ReadHistory",
    "ReadPresence",
    "Refresh",
    "Renew",
    "Session",
    "State",
    "SubRefresh",
    "Subscribe",
]


# A `connect` is decoded before anybody knows who sends it: what it may hold is a token (8 KiB at most), as much again for
# the application's data, names, and for each channel that it may have where it was there.
CONNECT_BYTES_MIN: Final = 16 * 1024
CONNECT_BYTES_A_CHANNEL: Final = 352


@dataclass(frozen=True, slots=True)
class Policy:
    """What every connection of this node is held to.

    `insecure`: no token is needed and every channel operation is allowed that the channel's options provide.
    `message_size_limit`: bytes of one command. `personal_namespace`: of the channels that users are subscribed to as
    they connect; None = they are not. `asks_subscribe`, `asks_publish`: the application has a hook for it; `has_methods`: it
    has methods that clients may call.
    """

    rules: ChannelRules
    insecure: bool
    allow_anonymous: bool
    channel_limit: int
    message_size_limit: int
    personal_namespace: str | None = None
    asks_subscribe: bool = False
    asks_publish: bool = False
    has_methods: bool = False

    @property
    def connect_bounds(self) -> Bounds:
        """Of what is decoded before `connect` was answered."""
        most = CONNECT_BYTES_MIN + self.channel_limit * CONNECT_BYTES_A_CHANNEL
        return Bounds(min(self.message_size_limit, most), self.channel_limit)

    @property
    def bounds(self) -> Bounds:
        """Of what is decoded afterwards."""
        return Bounds(self.message_size_limit, self.channel_limit)


class State(Enum):
    """Of a connection; see the table above."""

    NEW = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    CLOSED = auto()


# ---- effects


@dataclass(frozen=True, slots=True)
class Ignore:
    """Nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer command `id` with `error`."""

    id: int
    error: Failing


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection."""

    why: Closing


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Verify `token`, ask the connect hook if there is one, let `admitted` decide, then call `connected` or `refused`.

    An empty token: who it is may be known to the hook, else it is an anonymous connection. `since`: where the client
    wants to recover its server-side subscriptions from. `data`, `name`, `version`: what it says to the hook.
    """

    id: int
    token: str
    since: Mapping[str, StreamPosition] = field(default_factory=dict)
    data: Json = None
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Authorize:
    """Verify the subscription token for (`channel`, `user`), then call `authorized`."""

    id: int
    user: str
    request: SubscribeRequest


@dataclass(frozen=True, slots=True)
class AskSubscribe:
    """Ask the subscribe hook, then call `answered`; or `left` when it says no. The subscription is pending meanwhile."""

    id: int
    request: SubscribeRequest


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to `channel`, and call `left` if that does not come to be.

    `positioned`: the reply carries a position and order is kept (channels with history). `since` is set only
    with it. `join_leave`: join and leave pushes go to this subscription. `numbered`, `delta`: it gets its channel's
    number for the name, and differences of publications. `expires_at`: s since 1970 when its token
    must be refreshed, None = never.

    `is_server_side`: no command asked for it, `id` means nothing, `data` goes to the client with the news, and the
    client can neither refresh nor end it. `ends_at`: s since 1970 when it ends though nobody can refresh it, and its client
    is not told before; None = never.
    """

    id: int
    channel: str
    options: ChannelOptions
    positioned: bool
    recoverable: bool
    since: StreamPosition | None
    reject_unrecovered: bool
    join_leave: bool
    info: ClientInfo
    expires_at: int | None = None
    is_server_side: bool = False
    data: Json = None
    ends_at: int | None = None
    numbered: bool = False
    delta: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """End the subscription if there is one, then answer."""

    id: int
    channel: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish `data` in the name of `info`, then answer.

    `rpc`: it came as a call, and the answer has the position. `key`: its idempotency key. `text`: of the data, to be kept.
    """

    id: int
    channel: str
    options: ChannelOptions
    data: Json
    info: ClientInfo
    rpc: bool = False
    key: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class AskPublish:
    """Ask the publish hook, then do what `decided` returns. `otherwise`: what the channel's rules come to.

    Everything was decided as the command came: a publication waits for its hook, and what follows it does not.
    """

    id: int
    allowed: Publish
    otherwise: Publish | Fail

    def decided(self, reply: PublishReply | None) -> Publish | Fail:
        """`reply` None = no opinion."""
        if reply is None:
            return self.otherwise
        if isinstance(reply.data, Unchanged):
            return self.allowed
        return replace(self.allowed, data=reply.data, text=None)


@dataclass(frozen=True, slots=True)
class Call:
    """Call the application's `method`, then answer with what it returns."""

    id: int
    method: str
    data: Json


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Read what the request asks for, then answer."""

    id: int
    options: ChannelOptions
    request: HistoryRequest


@dataclass(frozen=True, slots=True)
class ReadPresence:
    """`stats`: only the numbers are wanted."""

    id: int
    channel: str
    stats: bool


@dataclass(frozen=True, slots=True)
class Refresh:
    """Verify the connection token, then call `refreshed`."""

    id: int
    token: str


@dataclass(frozen=True, slots=True)
class SubRefresh:
    """Verify the subscription token, then call `sub_refreshed`. `channel` "": the one that the token names."""

    id: int
    channel: str
    token: str


@dataclass(frozen=True, slots=True)
class Renew:
    """The subscription to `channel`, or the connection (None), lasts until `expires_at` now; then answer."""

    id: int
    channel: str | None
    expires_at: int | None


Effect = (
    Ignore
    | Fail
    | Close
    | Authenticate
    | Authorize
    | AskSubscribe
    | Subscribe
    | Leave
    | Publish
    | AskPublish
    | Call
    | ReadHistory
    | ReadPresence
    | Refresh
    | SubRefresh
    | Renew
)


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may connect. `data`: for the answer. `ends_at`: s since 1970 when the connection ends though nobody can
    refresh it, and its client is not told before; None = never.
    """

    claims: ConnectionClaims
    data: Json = None
    ends_at: int | None = None


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What a subscription's own token gave it. `expires`: its client was told when to refresh it."""

    allow: frozenset[Capability]
    expires: bool


_NO_TICKET: Final = _Ticket(frozenset(), expires=False)


class Session:
    """The state of one connection. `client` is its id, unique over all nodes."""

    def __init__(self, client: str, policy: Policy) -> None:
        self.client = client
        self.state = State.NEW
        self.user = ""
        self._conn_info: Json = None
        self._policy = policy
        self._caps: tuple[Grant, ...] = ()
        self._hook_says = ConnectReply()
        # Whether the client was told when to refresh its token.
        self._expires = False
        # Channels subscribed to or about to be, and those of them that came by a token.
        self.channels: set[str] = set()
        self._tickets: dict[str, _Ticket] = {}

    @property
    def info(self) -> ClientInfo:
        return ClientInfo(self.user, self.client, self._conn_info)

    # ---- what the client says

    def command(self, command: Command) -> Effect:
        """What to do for `command`, as the state stands now."""
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
        said = command.request
        return Authenticate(command.id, said.token, said.since, said.data, said.name, said.version)

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
        if channel in self.channels:
            return Fail(command_id, Error.ALREADY_SUBSCRIBED)
        if len(self.channels) >= self._policy.channel_limit:
            return Fail(command_id, Error.LIMIT_EXCEEDED)
        options = self._policy.rules.options(channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        if request.token and not self._policy.insecure:
            return Authorize(command_id, self.user, request)
        if self._policy.asks_subscribe and self._is_open_to_hook(channel, options):
            self.channels.add(channel)
            return AskSubscribe(command_id, request)
        if not self._may_subscribe(channel, options):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return self._subscribe_effect(command_id, request, options, None)

    def _subscribe_effect(
        self,
        command_id: int,
        request: SubscribeRequest,
        options: ChannelOptions,
        claims: SubscriptionClaims | None,
    ) -> Subscribe:
        self.channels.add(request.channel)
        if claims is not None:
            options = claims.override.over(options)
            self._tickets[request.channel] = _Ticket(claims.allow, claims.expires_at is not None)
        may_recover = self._may_recover(request.channel, options)
        since = request.since if may_recover else None
        recoverable = options.has_history and (
            options.force_recovery or (request.recoverable and may_recover)
        )
        positioned = options.has_history and (
            recoverable
            or options.force_positioning
            or (request.positioned and self._may_be_positioned(request.channel, options))
            or since is not None
        )
        wants_join_leave = options.force_push_join_leave or (
            request.join_leave and self._may_see_presence(request.channel, options, subscribed=True)
        )
        return Subscribe(
            id=command_id,
            channel=request.channel,
            options=options,
            positioned=positioned,
            recoverable=recoverable,
            since=since if positioned else None,
            reject_unrecovered=request.reject_unrecovered,
            join_leave=options.join_leave and wants_join_leave,
            info=ClientInfo(
                self.user, self.client, self._conn_info, claims.info if claims else None
            ),
            expires_at=claims.expires_at if claims else None,
            numbered=request.numbered and options.allow_channel_compaction,
            # Without a log nothing says which publication came before.
            delta=request.delta in options.allowed_delta_types and options.has_history,
        )

    def _sub_refresh(self, command_id: int, channel: str, token: str) -> Effect:
        """Some SDKs leave the channel out: the token names it."""
        if not token or (channel and not is_valid_name(channel)):
            return Fail(command_id, Error.BAD_REQUEST)
        if channel and (refusal := self._not_refreshable(command_id, channel)):
            return refusal
        return SubRefresh(command_id, channel, token)

    def _not_refreshable(self, command_id: int, channel: str) -> Effect | None:
        if channel not in self.channels:
            return Fail(command_id, Error.PERMISSION_DENIED)
        if not self._tickets.get(channel, _NO_TICKET).expires:
            return self.close(Disconnect.BAD_REQUEST)
        return None

    def _publish(self, command_id: int, request: PublishRequest) -> Effect:
        if refusal := self._named(command_id, request.channel):
            return refusal
        if request.type != 0:
            return Fail(command_id, Error.NOT_AVAILABLE)
        options = self._policy.rules.options(request.channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        return self._may_publish(
            Publish(
                command_id, request.channel, options, request.data, self.info, text=request.text
            )
        )

    def _rpc_publish(self, command_id: int, request: RpcPublishRequest) -> Effect:
        if refusal := self._named(command_id, request.channel):
            return refusal
        options = self._policy.rules.options(request.channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        effect = self._may_publish(
            Publish(
                command_id,
                request.channel,
                options,
                request.data,
                self.info,
                rpc=True,
                key=request.key,
            )
        )
        if not isinstance(effect, Fail) and not options.has_history:
            # Without a log there is neither a position to tell nor a key to keep.
            return Fail(command_id, Error.NOT_AVAILABLE)
        return effect

    def _may_publish(self, effect: Publish) -> Publish | Fail | AskPublish:
        options = effect.options
        otherwise: Publish | Fail = effect
        if not self._may(
            effect.channel,
            options,
            Capability.PUBLISH,
            subscribed=effect.channel in self.channels,
            client=options.allow_publish_for_client,
            subscriber=options.allow_publish_for_subscriber,
            anonymous=options.allow_publish_for_anonymous,
        ):
            otherwise = Fail(effect.id, Error.PERMISSION_DENIED)
        return AskPublish(effect.id, effect, otherwise) if self._policy.asks_publish else otherwise

    def _history(self, command_id: int, request: HistoryRequest) -> Effect:
        if refusal := self._named(command_id, request.channel):
            return refusal
        options = self._policy.rules.options(request.channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        if not options.has_history:
            return Fail(command_id, Error.NOT_AVAILABLE)
        if not self._may_read_history(
            request.channel, options, subscribed=request.channel in self.channels
        ):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return ReadHistory(command_id, options, request)

    def _presence(self, command_id: int, channel: str, *, stats: bool) -> Effect:
        if refusal := self._named(command_id, channel):
            return refusal
        options = self._policy.rules.options(channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        if not options.presence:
            return Fail(command_id, Error.NOT_AVAILABLE)
        if not self._may_see_presence(channel, options, subscribed=channel in self.channels):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return ReadPresence(command_id, channel, stats)

    def _named(self, command_id: int, channel: str) -> Effect | None:
        """The refusal of a channel name that no channel can have (empty: 3501 as the protocol says; else 107)."""
        if not channel:
            return self.close(Disconnect.BAD_REQUEST)
        return None if is_valid_name(channel) else Fail(command_id, Error.BAD_REQUEST)

    def _is_open_to_hook(self, channel: str, options: ChannelOptions) -> bool:
        """Not where a token, or a list of users, decides."""
        if self._policy.insecure:
            return True
        return not channel.startswith("$") and options.users_of(channel) is None

    def _may_subscribe(self, channel: str, options: ChannelOptions) -> bool:
        if self._policy.insecure:
            return True
        if channel.startswith("$"):
            return False
        if (users := options.users_of(channel)) is not None:
            # To be in the list is enough.
            open_to_client = bool(self.user) and self.user in users
        else:
            open_to_client = options.allow_subscribe_for_client and (
                bool(self.user) or options.allow_subscribe_for_anonymous
            )
        return open_to_client or Capability.SUBSCRIBE in granted(self._caps, channel)

    def _may_read_history(self, channel: str, options: ChannelOptions, *, subscribed: bool) -> bool:
        return self._may(
            channel,
            options,
            Capability.HISTORY,
            subscribed=subscribed,
            client=options.allow_history_for_client,
            subscriber=options.allow_history_for_subscriber,
            anonymous=options.allow_history_for_anonymous,
        )

    def _may_see_presence(self, channel: str, options: ChannelOptions, *, subscribed: bool) -> bool:
        return self._may(
            channel,
            options,
            Capability.PRESENCE,
            subscribed=subscribed,
            client=options.allow_presence_for_client,
            subscriber=options.allow_presence_for_subscriber,
            anonymous=options.allow_presence_for_anonymous,
        )

    def _may_recover(self, channel: str, options: ChannelOptions) -> bool:
        """Whether a subscriber gets what it says it missed: that is history, of a place that it chooses."""
        return (
            options.force_recovery
            or options.allow_recovery
            or self._may_read_history(channel, options, subscribed=True)
        )

    def _may_be_positioned(self, channel: str, options: ChannelOptions) -> bool:
        return options.allow_positioning or self._may_read_history(
            channel, options, subscribed=True
        )

    def _may(
        self,
        channel: str,
        options: ChannelOptions,
        capability: Capability,
        *,
        subscribed: bool,
        client: bool,
        subscriber: bool,
        anonymous: bool,
    ) -> bool:
        """`client`: whoever has a user; `subscriber`: who has one and is `subscribed`; `anonymous`: those without a user
        as well. Else by the subscription's token, or the connection's. In a user-limited channel, a client is who is listed.
        """
        if self._policy.insecure:
            return True
        is_somebody = bool(self.user) or anonymous
        if is_somebody and subscriber and subscribed:
            return True
        users = options.users_of(channel)
        if is_somebody and client and (users is None or self.user in users):
            return True
        allowed = self._tickets.get(channel, _NO_TICKET).allow
        return capability in allowed or capability in granted(self._caps, channel)

    # ---- how it went

    def may_connect_without_token(self) -> bool:
        return self._policy.insecure or self._policy.allow_anonymous

    def admitted(
        self, claims: ConnectionClaims | None, reply: ConnectReply | None
    ) -> Admission | Error:
        """Who connects, by what its token and the connect hook say. `claims` None = no token; `reply` None = no hook, or
        no opinion. A token that names its user is never overruled: what the hook says of other things is added.
        """
        self._hook_says = says = reply or ConnectReply()
        if claims is None and not says.user and not self.may_connect_without_token():
            return Error.UNAUTHORIZED
        by_both = self._with_hook(claims or ConnectionClaims(says.user, None))
        return Admission(by_both, says.data, says.expires_at if claims is None else None)

    def _with_hook(self, claims: ConnectionClaims) -> ConnectionClaims:
        """What a token says, and what the connect hook said once, for as long as the connection lasts."""
        says = self._hook_says
        return replace(
            claims,
            info=says.info if claims.info is None else claims.info,
            subs={**says.subs, **claims.subs},
            caps=(*claims.caps, *says.caps),
        )

    def connected(
        self, user: str, info: Json, *, caps: Iterable[Grant] = (), expires: bool = False
    ) -> None:
        """The connect command is answered: further commands are welcome. `expires`: and one of them is `refresh`."""
        assert self.state is State.CONNECTING, "connect is answered once"
        self.state = State.CONNECTED
        self.user = user
        self._conn_info = info
        self._caps = tuple(caps)
        self._expires = expires

    def refused(self) -> None:
        """The connect command was answered with an error: any further command closes the connection."""
        self.state = State.CLOSED

    def authorized(self, effect: Authorize, claims: SubscriptionClaims) -> Effect:
        """The subscription token of `effect` is genuine."""
        channel = effect.request.channel
        if self.state is not State.CONNECTED:
            # Closed while the token was verified.
            return Ignore()
        if not self._is_ours(claims, channel):
            return self.close(Disconnect.INVALID_TOKEN)
        options = self._policy.rules.options(channel)
        if options is None or channel in self.channels:
            return Fail(effect.id, Error.BAD_REQUEST)
        return self._subscribe_effect(effect.id, effect.request, options, claims)

    def answered(self, effect: AskSubscribe, reply: SubscribeReply | None) -> Effect:
        """The subscribe hook has no objection to `effect`; None = no opinion, so the channel's rules decide."""
        channel = effect.request.channel
        if self.state is not State.CONNECTED:
            return Ignore()
        options = self._policy.rules.options(channel)
        assert options is not None, "it was known when the hook was asked"
        if reply is None:
            if not self._may_subscribe(channel, options):
                self.left(channel)
                return Fail(effect.id, Error.PERMISSION_DENIED)
            return self._subscribe_effect(effect.id, effect.request, options, None)
        claims = SubscriptionClaims(
            self.user, channel, None, reply.info, override=reply.override, allow=reply.allow
        )
        join = self._subscribe_effect(effect.id, effect.request, options, claims)
        return replace(join, data=reply.data, ends_at=reply.expires_at)

    def refreshed(self, effect: Refresh, claims: ConnectionClaims) -> Effect:
        """The connection token of `effect` is genuine. What it says of subscriptions is for the next connection."""
        if self.state is not State.CONNECTED:
            return Ignore()
        if claims.user != self.user:
            return self.close(Disconnect.INVALID_TOKEN)
        by_both = self._with_hook(claims)
        self._conn_info = by_both.info
        self._caps = by_both.caps
        return Renew(effect.id, None, claims.expires_at)

    def sub_refreshed(self, effect: SubRefresh, claims: SubscriptionClaims) -> Effect:
        """The subscription token of `effect` is genuine. The channel's options stay as they were at the subscribe."""
        if self.state is not State.CONNECTED:
            return Ignore()
        if not self._is_ours(claims, effect.channel or claims.channel):
            return self.close(Disconnect.INVALID_TOKEN)
        # It may have ended while the token was verified.
        if refusal := self._not_refreshable(effect.id, claims.channel):
            return refusal
        self._tickets[claims.channel] = _Ticket(claims.allow, expires=True)
        return Renew(effect.id, claims.channel, claims.expires_at)

    def _is_ours(self, claims: SubscriptionClaims, channel: str) -> bool:
        """Whether a subscription token was made for `channel`, this user, and this connection if for one."""
        return (claims.channel, claims.user) == (channel, self.user) and claims.client in (
            "",
            self.client,
        )

    def refreshed_by_server(self, info: Json) -> None:
        """The application has set how long the connection lasts. `info` None = what others see of it stays."""
        if info is not None:
            self._conn_info = info

    # ---- what the server wants it to be subscribed to

    def subscribe_at_connect(
        self, subs: Mapping[str, ServerSubscription], since: Mapping[str, StreamPosition]
    ) -> tuple[Subscribe, ...] | Error | Disconnect:
        """The subscriptions of the token and the personal channel, or what the connect command comes to instead."""
        wanted = dict(subs)
        if self._policy.personal_namespace is not None:
            personal = personal_channel(self.user, self._policy.personal_namespace)
            if personal is not None:
                wanted.setdefault(personal, ServerSubscription())
        if len(wanted) > self._policy.channel_limit:
            return Disconnect.CHANNEL_LIMIT
        if any(self._policy.rules.options(channel) is None for channel in wanted):
            return Error.UNKNOWN_CHANNEL
        joins = (
            self.subscribe_by_server(channel, sub, self._granted_since(channel, sub, since))
            for channel, sub in wanted.items()
        )
        return tuple(join for join in joins if join is not None)

    def _granted_since(
        self, channel: str, sub: ServerSubscription, since: Mapping[str, StreamPosition]
    ) -> StreamPosition | None:
        """Where a server-side subscription is recovered from by its client's wish."""
        configured = self._policy.rules.options(channel)
        if configured is None or not self._may_recover(channel, sub.override.over(configured)):
            return None
        return since.get(channel)

    def subscribe_by_server(
        self,
        channel: str,
        sub: ServerSubscription,
        since: StreamPosition | None,
        expires_at: int | None = None,
    ) -> Subscribe | None:
        """A subscription by the server's wish; then call `left` if it does not come to be.

        None: it is subscribed already, its namespace is not known here, or it has as many as it may have.
        """
        configured = self._policy.rules.options(channel)
        is_full = len(self.channels) >= self._policy.channel_limit
        if (
            self.state is not State.CONNECTED
            or configured is None
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
            since=since if positioned else None,
            reject_unrecovered=False,
            join_leave=options.join_leave and options.force_push_join_leave,
            info=ClientInfo(self.user, self.client, self._conn_info, sub.info),
            expires_at=expires_at,
            is_server_side=True,
            data=sub.data,
        )

    def left(self, channel: str) -> None:
        """The subscription ended, or did not come to be."""
        self.channels.discard(channel)
        self._tickets.pop(channel, None)

    def close(self, why: Disconnect) -> Close:
        self.state = State.CLOSED
        return Close(why)
