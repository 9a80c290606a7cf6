"""One connection's side of the protocol: which command is allowed in which state, and what must be done for it.

Theory of operation. A connection is NEW until its `connect` command, CONNECTING while that is being
authenticated, then CONNECTED until it is CLOSED. What breaks that order closes it (3501). A command is answered
at once where its state and the channel's options decide (errors, unsupported methods); otherwise it becomes an
effect for the shell to carry out, which comes back with the outcome.

    state       command                  effect                              then
    NEW         connect                  Authenticate                        CONNECTING
    NEW         any other                Close 3501                          CLOSED
    CONNECTING  any                      (the shell does not read further)
    CONNECTED   connect                  Close 3501                          CLOSED
    CONNECTED   subscribe                Authorize, Join or an error         subscription is pending
    CONNECTED   unsubscribe              Leave
    CONNECTED   publish, history, …      Publish, ReadHistory, … or an error
    CONNECTED   send                     Close 3508                          CLOSED
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from service.core.channels import ChannelOptions, ChannelRules, is_valid_name
from service.core.codes import Disconnect, Error
from service.core.protocol import (
    Command,
    ConnectRequest,
    HistoryRequest,
    InvalidRequest,
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
from service.core.publication import ClientInfo, Json, StreamPosition

__all__ = [
    "Authenticate",
    "Authorize",
    "Close",
    "Effect",
    "Fail",
    "Ignore",
    "Join",
    "Leave",
    "Policy",
    "Publish",
    "ReadHistory",
    "ReadPresence",
    "Session",
    "State",
]


@dataclass(frozen=True, slots=True)
class Policy:
    """What every connection of this node is held to.

    `insecure`: no token is needed and every channel operation is allowed that the channel's options provide.
    `message_size_limit`: bytes of one command.
    """

    rules: ChannelRules
    insecure: bool
    allow_anonymous: bool
    channel_limit: int
    message_size_limit: int


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
    error: Error


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection."""

    why: Disconnect


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Verify `token`, then call `connected` or `refused`. An empty token: an anonymous connection."""

    id: int
    token: str


@dataclass(frozen=True, slots=True)
class Authorize:
    """Verify the subscription token for (`channel`, `user`), then call `authorized`."""

    id: int
    user: str
    request: SubscribeRequest


@dataclass(frozen=True, slots=True)
class Join:
    """Subscribe to `channel`, then call `subscribed` or `left`.

    `positioned`: the reply carries a position and order is kept (channels with history). `since` is set only
    with it. `join_leave`: join and leave pushes go to this subscription.
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


@dataclass(frozen=True, slots=True)
class Leave:
    """End the subscription if there is one, then answer."""

    id: int
    channel: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish `data` in the name of `info`, then answer.

    `rpc`: it came as a call, and the answer has the position. `key`: its idempotency key.
    """

    id: int
    channel: str
    options: ChannelOptions
    data: Json
    info: ClientInfo
    rpc: bool = False
    key: str | None = None


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


Effect = (
    Ignore | Fail | Close | Authenticate | Authorize | Join | Leave | Publish | ReadHistory | ReadPresence
)


class Session:
    """The state of one connection. `client` is its id, unique over all nodes."""

    def __init__(self, client: str, policy: Policy) -> None:
        self.client = client
        self.state = State.NEW
        self.user = ""
        self._conn_info: Json = None
        self._policy = policy
        # Channels subscribed to or about to be.
        self.channels: set[str] = set()

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
        # What has no id has no answer: see SendRequest.
        if command.id and command.size > self._policy.message_size_limit:
            return Fail(command.id, Error.LIMIT_EXCEEDED)
        return self._connected_command(command.id, request)

    def _connect(self, command: Command) -> Effect:
        if not isinstance(command.request, ConnectRequest):
            return self.close(Disconnect.BAD_REQUEST)
        if command.size > self._policy.message_size_limit:
            return self.close(Disconnect.BAD_REQUEST)
        self.state = State.CONNECTING
        return Authenticate(command.id, command.request.token)

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
            case InvalidRequest("connect" | "send") | ConnectRequest():
                return self.close(Disconnect.BAD_REQUEST)
            case InvalidRequest():
                return Fail(command_id, Error.BAD_REQUEST)
            case SendRequest():
                return self.close(Disconnect.NOT_AVAILABLE)
            case RpcRequest() | PingRequest() | RefreshRequest() | SubRefreshRequest():
                return Fail(command_id, Error.NOT_AVAILABLE)
        raise AssertionError(f"a request that the session does not know: {type(request).__name__}")

    def _subscribe(self, command_id: int, request: SubscribeRequest) -> Effect:
        channel = request.channel
        if refusal := self._named(command_id, channel):
            return refusal
        if request.type != 0:
            return Fail(command_id, Error.NOT_AVAILABLE)
        if channel in self.channels:
            return Fail(command_id, Error.ALREADY_SUBSCRIBED)
        if len(self.channels) >= self._policy.channel_limit:
            return Fail(command_id, Error.LIMIT_EXCEEDED)
        options = self._policy.rules.options(channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        if request.token and not self._policy.insecure:
            return Authorize(command_id, self.user, request)
        if not self._may_subscribe(channel, options):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return self._join(command_id, request, options, None)

    def _join(
        self, command_id: int, request: SubscribeRequest, options: ChannelOptions, chan_info: Json
    ) -> Join:
        self.channels.add(request.channel)
        recoverable = options.has_history and (options.force_recovery or request.recoverable)
        positioned = options.has_history and (
            recoverable or options.force_positioning or request.positioned or request.since is not None
        )
        wants_join_leave = request.join_leave or options.force_push_join_leave
        return Join(
            id=command_id,
            channel=request.channel,
            options=options,
            positioned=positioned,
            recoverable=recoverable,
            since=request.since if positioned else None,
            reject_unrecovered=request.reject_unrecovered,
            join_leave=options.join_leave and wants_join_leave,
            info=ClientInfo(self.user, self.client, self._conn_info, chan_info),
        )

    def _publish(self, command_id: int, request: PublishRequest) -> Effect:
        if refusal := self._named(command_id, request.channel):
            return refusal
        if request.type != 0:
            return Fail(command_id, Error.NOT_AVAILABLE)
        options = self._policy.rules.options(request.channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        if not self._may(
            request.channel,
            client=options.allow_publish_for_client,
            subscriber=options.allow_publish_for_subscriber,
            anonymous=options.allow_publish_for_anonymous,
        ):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return Publish(command_id, request.channel, options, request.data, self.info)

    def _rpc_publish(self, command_id: int, request: RpcPublishRequest) -> Effect:
        effect = self._publish(command_id, PublishRequest(request.channel, request.data))
        if not isinstance(effect, Publish):
            return effect
        if not effect.options.has_history:
            # Without a log there is neither a position to tell nor a key to keep.
            return Fail(command_id, Error.NOT_AVAILABLE)
        return replace(effect, rpc=True, key=request.key)

    def _history(self, command_id: int, request: HistoryRequest) -> Effect:
        if refusal := self._named(command_id, request.channel):
            return refusal
        options = self._policy.rules.options(request.channel)
        if options is None:
            return Fail(command_id, Error.UNKNOWN_CHANNEL)
        if not options.has_history:
            return Fail(command_id, Error.NOT_AVAILABLE)
        if not self._may(
            request.channel,
            client=options.allow_history_for_client,
            subscriber=options.allow_history_for_subscriber,
            anonymous=options.allow_history_for_anonymous,
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
        if not self._may(
            channel,
            client=options.allow_presence_for_client,
            subscriber=options.allow_presence_for_subscriber,
            anonymous=options.allow_presence_for_anonymous,
        ):
            return Fail(command_id, Error.PERMISSION_DENIED)
        return ReadPresence(command_id, channel, stats)

    def _named(self, command_id: int, channel: str) -> Effect | None:
        """The refusal of a channel name that no channel can have (empty: 3501 as the protocol says; else 107)."""
        if not channel:
            return self.close(Disconnect.BAD_REQUEST)
        return None if is_valid_name(channel) else Fail(command_id, Error.BAD_REQUEST)

    def _may_subscribe(self, channel: str, options: ChannelOptions) -> bool:
        if self._policy.insecure:
            return True
        if channel.startswith("$"):
            return False
        return options.allow_subscribe_for_client and (
            bool(self.user) or options.allow_subscribe_for_anonymous
        )

    def _may(self, channel: str, *, client: bool, subscriber: bool, anonymous: bool) -> bool:
        """`client`: anybody with a user; `anonymous`: those without too; `subscriber`: who is in the channel."""
        if self._policy.insecure:
            return True
        if subscriber and channel in self.channels:
            return True
        return client and (bool(self.user) or anonymous)

    # ---- how it went

    def may_connect_without_token(self) -> bool:
        return self._policy.insecure or self._policy.allow_anonymous

    def connected(self, user: str, info: Json) -> None:
        """The connect command is answered: further commands are welcome."""
        assert self.state is State.CONNECTING, "connect is answered once"
        self.state = State.CONNECTED
        self.user = user
        self._conn_info = info

    def refused(self) -> None:
        """The connect command was answered with an error: any further command closes the connection."""
        self.state = State.CLOSED

    def authorized(self, effect: Authorize, channel: str, user: str, chan_info: Json) -> Effect:
        """The subscription token of `effect` is genuine and names `channel` and `user`."""
        if self.state is not State.CONNECTED:
            # Closed while the token was verified.
            return Ignore()
        if channel != effect.request.channel or user != self.user:
            return self.close(Disconnect.INVALID_TOKEN)
        options = self._policy.rules.options(channel)
        if options is None or channel in self.channels:
            return Fail(effect.id, Error.BAD_REQUEST)
        return self._join(effect.id, effect.request, options, chan_info)

    def left(self, channel: str) -> None:
        """The subscription ended, or did not come to be."""
        self.channels.discard(channel)

    def close(self, why: Disconnect) -> Close:
        self.state = State.CLOSED
        return Close(why)
