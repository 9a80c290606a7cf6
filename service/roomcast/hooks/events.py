"""What passes between server and application: events, replies, and ways to say no.

Part of the public interface: applications import all of it from `roomcast.hooks`.
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
from roomcast.wire.publication import Json

__all__ = [
    "ERROR_CODE_MAX",
    "ERROR_CODE_MIN",
    "MESSAGE_CHARS_MAX",
    "UNCHANGED",
    "ConnectEvent",
    "ConnectReply",
    "Disconnected",
    "PublishEvent",
    "PublishReply",
    "Refused",
    "RpcEvent",
    "SubscribeEvent",
    "SubscribeReply",
    "Unchanged",
]

# The protocol leaves these error codes to applications, and these codes of closes.
ERROR_CODE_MIN: Final = 400
ERROR_CODE_MAX: Final = 1999
_CLOSE_CODE_MIN, _CLOSE_CODE_MAX = 4000, 4999
# A message is for whoever debugs a client.
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
class ConnectEvent:
    """Somebody connects. `client` is the connection's id.

    `user`, `info`, `meta`: of the token, which was verified; without one (`has_token`) there are
    none. `data`, `name` and `version`: what the client said, and nobody has verified.
    """

    client: str
    user: str
    has_token: bool
    info: Json = None
    meta: Json = None
    data: Json = None
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ConnectReply:
    """It may connect.

    `user`: who it is, where there was no token; "" = nothing is said of it. `expires_at`: only with
    `user`: s since 1970 when the connection is closed (3005), so that its client comes back and the
    hook is asked again; None = never. `info`: what other clients see of it, unless the token has
    some. `data`: for the client. `subs`: channels that it is subscribed to at once, beside the
    token's; `caps`: what it may do, beyond the token's.
    """

    user: str = ""
    expires_at: int | None = None
    info: Json = None
    data: Json = None
    subs: Mapping[str, ServerSubscription] = field(default_factory=dict)
    caps: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class SubscribeEvent:
    """A client without a subscription token wants to subscribe to `channel`.

    `data`: what it said with that.
    """

    client: str
    user: str
    info: Json
    channel: str
    data: Json = None


@dataclass(frozen=True, slots=True)
class SubscribeReply:
    """It may subscribe.

    `info`: what others in the channel see of it, beside what they see of the connection. `data`:
    for the client. `expires_at`: s since 1970 when the subscription ends, so that its client
    subscribes again and the hook is asked again; None = never. `override`: instead of the channel's
    options. `allow`: what else it may do in the channel.
    """

    info: Json = None
    data: Json = None
    expires_at: int | None = None
    override: ChannelOverride = field(default_factory=ChannelOverride)
    allow: frozenset[Capability] = frozenset()


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """A client wants to publish `data` in `channel`."""

    client: str
    user: str
    info: Json
    channel: str
    data: Json


@dataclass(frozen=True, slots=True)
class PublishReply:
    """It may publish: what it sent, or `data` instead."""

    data: Json | Unchanged = UNCHANGED


@dataclass(frozen=True, slots=True)
class RpcEvent:
    """A client calls `method` with `data`."""

    client: str
    user: str
    info: Json
    method: str
    data: Json


class Refused(Exception):
    """Raise it in a hook: the command is answered with this error.

    `code`: 400 to 1999 is the application's; the protocol's own mean to SDKs what they always mean.
    `temporary`: SDKs try the same again by themselves. `message` is seen by clients. Raises
    ValueError for what is no such error.
    """

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        if not _is_code(code) or not (
            ERROR_CODE_MIN <= code <= ERROR_CODE_MAX or code in _ERROR_CODES
        ):
            raise ValueError(
                f"an error's code is from {ERROR_CODE_MIN} to {ERROR_CODE_MAX}, or one of the protocol's"
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
    """Raise it in a hook: the connection is closed.

    `code`: 4000 to 4499 and the client comes back, 4500 to 4999 and it does not; or one of the
    protocol's. `reason` is seen by clients. Raises ValueError for what a close frame cannot say.
    """

    def __init__(self, code: int, reason: str) -> None:
        if not _is_code(code) or not (
            _CLOSE_CODE_MIN <= code <= _CLOSE_CODE_MAX or code in _CLOSE_CODES
        ):
            raise ValueError(
                f"a close's code is from {_CLOSE_CODE_MIN} to {_CLOSE_CODE_MAX}, or one of the protocol's"
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
    """Whether it can be sent: half a character cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
