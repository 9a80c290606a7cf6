"""What the session of a connection wants done: one kind of effect for each.

The session (session.py) decides, and returns an effect. The connection (connection.py) carries it
out, and hands the outcome to that method of the session which the effect names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from roomcast.hooks.events import PublishReply, Unchanged
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Closing, Failing
from roomcast.wire.json import HistoryRequest, SubscribeRequest
from roomcast.wire.publication import ClientInfo, Json, StreamPosition

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
    """Verify `token`, call the connect hook, ask `admitted`, then call `connected` or `refused`.

    An empty token: the hook may know who it is, else the connection is anonymous. `since`: where
    the client wants to recover its server-side subscriptions from. `data`, `name`, `version`: for
    the hook.
    """

    id: int
    token: str
    since: Mapping[str, StreamPosition] = field(default_factory=dict)
    data: Json = None
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Authorize:
    """Verify the request's subscription token, then call `authorized`."""

    id: int
    user: str
    request: SubscribeRequest


@dataclass(frozen=True, slots=True)
class AskSubscribe:
    """Call the subscribe hook, then `answered`; or `left`, when it refuses.

    The subscription is pending meanwhile.
    """

    id: int
    request: SubscribeRequest


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to `channel`, and call `left` if that does not come to be.

    `positioned`: the reply carries a position and order is kept (channels with history). `since` is
    set only with it. `join_leave`: join and leave pushes go to this subscription. `numbered`,
    `delta`: its pushes have its channel's number for the name, and differences of publications.
    `expires_at`: s since 1970 when its token must be refreshed, None = never.

    `is_server_side`: the server subscribes the client, which can neither refresh nor end it. `id`
    means nothing then, and `data` goes with the push. `ends_at`: s since 1970 when the subscription
    ends without a word before, since nobody can refresh it; None = never.
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

    `rpc`: it came as a call, and the answer has the position. `key`: its idempotency key. `text`:
    of the data, to be kept.
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
    """Call the publish hook, then do what `decided` returns.

    Both outcomes are decided as the command comes: a publication waits for its hook, and the
    commands that follow it do not. `otherwise`: what the channel's rules come to.
    """

    id: int
    allowed: Publish
    otherwise: Publish | Fail

    def decided(self, reply: PublishReply | None) -> Publish | Fail:
        """What is to be done by the hook's `reply`. None = no opinion."""
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
    """Read who is in `channel`, or with `stats` how many, then answer."""

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
    """Verify the subscription token, then call `sub_refreshed`.

    `channel` "": the one that the token names.
    """

    id: int
    channel: str
    token: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Let `channel`, or the connection (None), last until `expires_at`, then answer."""

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
