"""The types that server and application exchange: events, replies, and errors to raise.

This is part of the public interface: applications import all of it from `roomcast.hooks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from roomcast.auth.claims import ServerSubscription
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.codes import (
    REASON_BYTES_MAX,
    Disconnect,
    DisconnectCode,
    Error,
    ErrorCode,
    is_reason,
)
from roomcast.wire.publication import Json, Payload

__all__ = [
    "ERROR_CODE_MAX",
    "ERROR_CODE_MIN",
    "MESSAGE_CHARS_MAX",
    "UNCHANGED",
    "Carrier",
    "ConnectEvent",
    "ConnectReply",
    "Disconnected",
    "PublishEvent",
    "PublishReply",
    "RefreshEvent",
    "RefreshReply",
    "Refused",
    "RpcEvent",
    "SubRefreshEvent",
    "SubRefreshReply",
    "SubscribeEvent",
    "SubscribeReply",
    "Unchanged",
]

# The protocol leaves these error codes and close codes to applications.
ERROR_CODE_MIN: Final = 400
ERROR_CODE_MAX: Final = 1999
_CLOSE_CODE_MIN, _CLOSE_CODE_MAX = 4000, 4999
# A message is for the developer of a client.
MESSAGE_CHARS_MAX: Final = 255

_ERROR_CODES: Final = frozenset(error.value.code for error in Error)
# 3000 is for logs, and never sent.
_CLOSE_CODES: Final = frozenset(
    each.value.code for each in Disconnect if each is not Disconnect.CONNECTION_CLOSED
)


class Unchanged(Enum):
    """The type of UNCHANGED."""

    UNCHANGED = auto()


UNCHANGED: Final = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class Carrier:
    """How a client's commands come.

    `transport`: websocket, http_stream, sse, or one of these behind "uni_". `protocol`: json or
    protobuf. `headers`: of the request that opened the connection, and `emulated`: what
    the client gives as such in its `connect`, which may be anything. Of both, those that the
    configuration passes on to hooks over HTTP and no others; names in small letters.
    """

    transport: str = "websocket"
    protocol: str = "json"
    headers: Mapping[str, str] = field(default_factory=dict)
    emulated: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConnectEvent:
    """A client connects. `client` is the connection's id.

    `user`, `info`, `meta`: from the verified token. Without a token (`has_token`) they are empty.
    `data`, `name` and `version`: from the client, unverified. `carrier`: how it came.
    """

    client: str
    user: str
    has_token: bool
    info: Json = None
    meta: Json = None
    data: Json = None
    name: str = ""
    version: str = ""
    carrier: Carrier = field(default_factory=Carrier)


@dataclass(frozen=True, slots=True)
class ConnectReply:
    """The client may connect.

    `user`: the user, if there was no token. "" = not set. `expires_at`: only with `user`: when the
    refresh hook is asked, in s since 1970. Without one, the connection is closed (3005); the client
    then reconnects, and this hook is called again. None = never. `info`: shown to other clients,
    unless the token has some. `data`: for the client. `subs`: channels to subscribe it to at once,
    in addition to the token's. `caps`: further capabilities, in addition to the token's. `meta`:
    for later hooks of the connection, unless the token has some; no client sees it.
    """

    user: str = ""
    expires_at: int | None = None
    info: Json = None
    data: Json = None
    subs: Mapping[str, ServerSubscription] = field(default_factory=dict)
    caps: tuple[Grant, ...] = ()
    meta: Json = None


@dataclass(frozen=True, slots=True)
class RefreshEvent:
    """The time of a client's connection is over. `meta`: of its token, or of the connect hook."""

    client: str
    user: str
    info: Json = None
    meta: Json = None
    carrier: Carrier = field(default_factory=Carrier)


@dataclass(frozen=True, slots=True)
class RefreshReply:
    """The connection goes on.

    `expires_at`: until when, in s since 1970; the hook is then called again. `info` and `meta`:
    instead of those so far; None = these stay.
    """

    expires_at: int
    info: Json = None
    meta: Json = None


@dataclass(frozen=True, slots=True)
class SubRefreshEvent:
    """The time of a client's subscription to `channel` is over."""

    client: str
    user: str
    info: Json
    channel: str
    meta: Json = None
    carrier: Carrier = field(default_factory=Carrier)


@dataclass(frozen=True, slots=True)
class SubRefreshReply:
    """The subscription goes on.

    `expires_at`: until when, in s since 1970; the hook is then called again. None = for good.
    """

    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class SubscribeEvent:
    """A client without a subscription token subscribes to `channel`.

    `data`: from the client's request.
    """

    client: str
    user: str
    info: Json
    channel: str
    data: Json = None
    meta: Json = None
    carrier: Carrier = field(default_factory=Carrier)


@dataclass(frozen=True, slots=True)
class SubscribeReply:
    """The client may subscribe.

    `info`: shown to others in the channel, in addition to the connection's info. `data`: for the
    client, in a binary channel bytes as well. `expires_at`: when the sub_refresh hook is asked, in
    s since 1970. Without one, the subscription ends; the client then subscribes again, and this
    hook is called again. None = never. `override`: replaces options of the channel. `allow`:
    further capabilities in the channel.
    `server_tags_filter`: the client gets the publications whose tags pass, whatever it asks for: an
    object of the protocol's FilterNode.
    """

    info: Json = None
    data: Payload = None
    expires_at: int | None = None
    override: ChannelOverride = field(default_factory=ChannelOverride)
    allow: frozenset[Capability] = frozenset()
    server_tags_filter: Json = None


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """A client publishes `data` to `channel`: a JSON value or, in a binary channel, bytes."""

    client: str
    user: str
    info: Json
    channel: str
    data: Payload
    meta: Json = None
    carrier: Carrier = field(default_factory=Carrier)


@dataclass(frozen=True, slots=True)
class PublishReply:
    """The client may publish: its own data, or `data` instead. That is bytes in a binary channel,
    and an object where only objects may be published.

    `tags`: go with the publication. `version`, `version_epoch`: of the publication, as in the
    server API; 0 = it has none. `skip_history`: subscribers get it, and the channel's log does not.
    """

    data: Payload | Unchanged = UNCHANGED
    tags: Mapping[str, str] | None = None
    version: int = 0
    version_epoch: str = ""
    skip_history: bool = False


@dataclass(frozen=True, slots=True)
class RpcEvent:
    """A client calls `method` with `data`."""

    client: str
    user: str
    info: Json
    method: str
    data: Json
    meta: Json = None
    carrier: Carrier = field(default_factory=Carrier)


class Refused(Exception):
    """A hook raises it to answer the command with this error.

    `code`: 400 to 1999 belong to the application. The protocol's own codes keep their meaning for
    SDKs. `temporary`: SDKs repeat the command by themselves. Clients see `message`. Raises
    ValueError for an invalid code or message.
    """

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        if not _is_code(code) or not (
            ERROR_CODE_MIN <= code <= ERROR_CODE_MAX or code in _ERROR_CODES
        ):
            raise ValueError(
                f"an error's code is from {ERROR_CODE_MIN} to {ERROR_CODE_MAX}, or one of the "
                "protocol's"
            )
        if (
            not isinstance(message, str)
            or not 0 < len(message) <= MESSAGE_CHARS_MAX
            or not _is_text(message)
        ):
            raise ValueError(f"an error's message is text of 1 to {MESSAGE_CHARS_MAX} characters")
        super().__init__(f"{code} {message}")
        self.error = ErrorCode(code, message, bool(temporary))


class Disconnected(Exception):
    """A hook raises it to close the connection.

    `code`: after 4000 to 4499 the client reconnects, after 4500 to 4999 it does not. The protocol's
    own codes are allowed too. Clients see `reason`. Raises ValueError for a code or reason that a
    close frame cannot hold.
    """

    def __init__(self, code: int, reason: str) -> None:
        if not _is_code(code) or not (
            _CLOSE_CODE_MIN <= code <= _CLOSE_CODE_MAX or code in _CLOSE_CODES
        ):
            raise ValueError(
                f"a close's code is from {_CLOSE_CODE_MIN} to {_CLOSE_CODE_MAX}, or one of the "
                "protocol's"
            )
        if not isinstance(reason, str) or not is_reason(reason):
            raise ValueError(
                f"a close's reason is text of at most {REASON_BYTES_MAX} bytes, and no JSON"
            )
        super().__init__(f"{code} {reason}")
        self.why = DisconnectCode(code, reason)


def _is_code(code: object) -> bool:
    return isinstance(code, int) and not isinstance(code, bool)


def _is_text(text: str) -> bool:
    """Whether the text can be encoded: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
