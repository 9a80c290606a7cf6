"""Effects: the decisions of a connection's session, as data.

The session (session.py) decides, and returns an effect. The connection (connection.py) carries it
out, and hands the outcome to the session's method that the effect names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace

from roomcast.frozen import frozen
from roomcast.hooks.events import PublishReply, Unchanged
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Closing, Error, Failing
from roomcast.wire.commands import HistoryRequest, SubscribeRequest
from roomcast.wire.publication import ClientInfo, Json, Payload, StreamPosition
from roomcast.wire.tags_filter import Filter
from roomcast.wire.versions import Version, version_of

__all__ = [
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
    "Publish",
    "ReadHistory",
    "ReadPresence",
    "Refresh",
    "Renew",
    "SubRefresh",
    "Subscribe",
]


@frozen
class Ignore:
    """Nothing is to be done."""


@frozen
class Fail:
    """Answer command `id` with `error`."""

    id: int
    error: Failing


@frozen
class Close:
    """Close the connection."""

    why: Closing


@frozen
class Authenticate:
    """Verify `token`, call the connect hook, ask `admitted`, then call `connected` or `refused`.

    With an empty token, the hook may name the user; otherwise the connection is anonymous. `since`:
    the positions from which the client wants to recover its server-side subscriptions. `data`,
    `name`, `version` and `headers` are for the hook.
    """

    id: int
    token: str
    since: Mapping[str, StreamPosition] = field(default_factory=dict)
    data: Json = None
    name: str = ""
    version: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@frozen
class Authorize:
    """Verify the request's subscription token, then call `authorized`."""

    id: int
    user: str
    request: SubscribeRequest


@frozen
class AskSubscribe:
    """Call the subscribe hook, then `answered`; or `left`, if the hook refuses.

    The subscription is pending meanwhile.
    """

    id: int
    request: SubscribeRequest


@frozen
class Subscribe:
    """Subscribe to `channel`, and call `left` if that fails.

    `positioned`: the reply carries a position and order is kept (channels with history). `since` is
    set only with it. `join_leave`: join and leave pushes go to this subscription. `numbered`: its
    pushes carry the channel's number instead of the name. `delta`: they carry the differences
    between publications. `expires_at`: s since 1970 when its token must be refreshed, None = never.

    `is_server_side`: the server subscribes the client, which can neither refresh nor end the
    subscription. `id` then has no meaning, and `data` goes with the push: a JSON value or, in a
    binary channel, bytes. `ends_at`: s since 1970 when the subscription ends, or a hook says
    whether it does; None = never. The client cannot refresh it, and is not told in advance.

    `filter`: which publications it gets, by the client's wish; `server_filter`: by the server's
    word. It gets what passes both. None = all.
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
    data: Payload = None
    ends_at: int | None = None
    numbered: bool = False
    delta: bool = False
    filter: Filter | None = None
    server_filter: Filter | None = None


@frozen
class Leave:
    """End the subscription if there is one, then answer."""

    id: int
    channel: str


@frozen
class Publish:
    """Publish `data`, a JSON value or bytes, in the name of `info`, then answer.

    `rpc`: the command was a call, and the answer has the position. `key`: the idempotency key.
    `text`: the JSON text of the data as it came, which is kept. `tags`, `version`: from the publish
    hook.
    """

    id: int
    channel: str
    options: ChannelOptions
    data: Payload
    info: ClientInfo
    rpc: bool = False
    key: str | None = None
    text: str | None = None
    tags: Mapping[str, str] | None = None
    version: Version | None = None


@frozen
class AskPublish:
    """Call the publish hook, then do what `decided` returns.

    Both outcomes are decided when the command comes, because the commands behind it do not wait for
    the hook. `otherwise`: the outcome by the channel's rules.
    """

    id: int
    allowed: Publish
    otherwise: Publish | Fail

    def decided(self, reply: PublishReply | None) -> Publish | Fail:
        """The effect of the hook's `reply`. None = the hook has no opinion."""
        if reply is None:
            return self.otherwise
        allowed = replace(self.allowed, tags=reply.tags) if reply.tags else self.allowed
        if reply.version:
            allowed = replace(allowed, version=version_of(reply.version, reply.version_epoch))
        if reply.skip_history and allowed.options.has_history:
            if allowed.rpc:
                # Its answer is a position in the log, and it has none.
                return Fail(self.id, Error.NOT_AVAILABLE)
            allowed = replace(allowed, options=replace(allowed.options, history_size=0))
        if isinstance(reply.data, Unchanged):
            return allowed
        if not allowed.options.takes(reply.data):
            return Fail(self.id, Error.BAD_REQUEST)
        return replace(allowed, data=reply.data, text=None)


@frozen
class Call:
    """Call the application's `method`, then answer with what it returns."""

    id: int
    method: str
    data: Json


@frozen
class ReadHistory:
    """Read what the request asks for, then answer."""

    id: int
    options: ChannelOptions
    request: HistoryRequest


@frozen
class ReadPresence:
    """Read the members of `channel`, or with `stats` their number, then answer."""

    id: int
    channel: str
    stats: bool


@frozen
class Refresh:
    """Verify the connection token, then call `refreshed`."""

    id: int
    token: str


@frozen
class SubRefresh:
    """Verify the subscription token, then call `sub_refreshed`.

    `channel` "" = the channel that the token names.
    """

    id: int
    channel: str
    token: str


@frozen
class Renew:
    """Let `channel`, or the connection (None), last until `expires_at`, then answer.

    `server_filter`: a channel's new one; None = the one that it has.
    """

    id: int
    channel: str | None
    expires_at: int | None
    server_filter: Filter | None = None


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
