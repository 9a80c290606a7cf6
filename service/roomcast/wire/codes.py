"""Error, unsubscribe and disconnect codes: one table each, with the meaning for a client.

Numbers and texts are those of the Centrifuge protocol, so that the published SDKs act on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = [
    "CLOSE_CODE_MAX",
    "CLOSE_CODE_MIN",
    "NEEDS_PROTOBUF",
    "REASON_BYTES_MAX",
    "Closing",
    "Disconnect",
    "DisconnectCode",
    "Error",
    "ErrorCode",
    "Failing",
    "Unsubscribe",
    "UnsubscribeCode",
    "code_of",
    "error_of",
    "is_reason",
]

# Close codes that are not the WebSocket protocol's own (RFC 6455 §7.4.2), and the greatest length
# of a close frame's reason (§5.5).
CLOSE_CODE_MIN: Final = 3000
CLOSE_CODE_MAX: Final = 4999
REASON_BYTES_MAX: Final = 123


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """`temporary`: an SDK repeats the same command by itself."""

    code: int
    message: str
    temporary: bool = False


class Error(Enum):
    """The errors of replies."""

    # The server failed or was too slow. It is unknown whether a publication is in the log.
    INTERNAL = ErrorCode(100, "internal server error", temporary=True)
    # The table refused a publication, and would refuse it again. It is certainly not in the log.
    REFUSED = ErrorCode(100, "internal server error")
    # No token where one is needed.
    UNAUTHORIZED = ErrorCode(101, "unauthorized")
    # The channel's namespace is not configured.
    UNKNOWN_CHANNEL = ErrorCode(102, "unknown channel")
    # The channel's options or the token do not allow it.
    PERMISSION_DENIED = ErrorCode(103, "permission denied")
    # An RPC method that is not registered.
    METHOD_NOT_FOUND = ErrorCode(104, "method not found")
    # A second subscription of one connection to one channel.
    ALREADY_SUBSCRIBED = ErrorCode(105, "already subscribed")
    # A size or a count over its bound: command, publication, channels of a connection.
    LIMIT_EXCEEDED = ErrorCode(106, "limit exceeded")
    # A command whose fields do not make sense.
    BAD_REQUEST = ErrorCode(107, "bad request")
    # The feature is off for this channel, or not part of this release.
    NOT_AVAILABLE = ErrorCode(108, "not available")
    # A token that was valid once: the SDK asks the application for a new one.
    TOKEN_EXPIRED = ErrorCode(109, "token expired")
    # The connection expired while the command was running.
    EXPIRED = ErrorCode(110, "expired")
    # A queue or a rate is full, or the table does not take the write. This attempt certainly did
    # not happen. An earlier one with the same idempotency key may have.
    TOO_MANY_REQUESTS = ErrorCode(111, "too many requests", temporary=True)
    # A history or recovery position of another epoch.
    UNRECOVERABLE_POSITION = ErrorCode(112, "unrecoverable position")


# NOT_AVAILABLE, in words: a JSON connection in a binary channel could neither get nor send bytes.
NEEDS_PROTOBUF: Final = ErrorCode(108, "not available: the channel is binary, and needs Protobuf")

# The reason to refuse a command: the server's or the application's.
Failing = Error | ErrorCode


def error_of(why: Failing) -> ErrorCode:
    """The code of the error reply."""
    return why.value if isinstance(why, Error) else why


@dataclass(frozen=True, slots=True)
class DisconnectCode:
    """SDKs reconnect unless `terminal` (3500–3999, and 4500–4999 for applications)."""

    code: int
    reason: str

    @property
    def terminal(self) -> bool:
        return 3500 <= self.code < 4000 or 4500 <= self.code < 5000


class Disconnect(Enum):
    """The reasons of the server to close a connection: code and reason of the close frame."""

    # The peer is gone already: for logs, never sent.
    CONNECTION_CLOSED = DisconnectCode(3000, "connection closed")
    # This node is draining, and another one takes over.
    SHUTDOWN = DisconnectCode(3001, "shutdown")
    # The server failed, and the connection is unusable.
    SERVER_ERROR = DisconnectCode(3004, "internal server error")
    # The connection's token ran out and was not refreshed in time.
    EXPIRED = DisconnectCode(3005, "connection expired")
    # A server-side subscription with a time limit expired.
    SUBSCRIPTION_EXPIRED = DisconnectCode(3006, "subscription expired")
    # The peer reads more slowly than its channels deliver: its outgoing queue passed the bound.
    SLOW = DisconnectCode(3008, "slow")
    # Publications are missing in a server-side subscription and cannot be recovered.
    INSUFFICIENT_STATE = DisconnectCode(3010, "insufficient state")
    # No answer to a ping.
    NO_PONG = DisconnectCode(3012, "no pong")
    # More commands than a connection may send.
    TOO_MANY_REQUESTS = DisconnectCode(3013, "too many requests")
    # The connection token is not valid.
    INVALID_TOKEN = DisconnectCode(3500, "invalid token")
    # A frame or command that breaks the protocol.
    BAD_REQUEST = DisconnectCode(3501, "bad request")
    # No successful connect in time.
    STALE = DisconnectCode(3502, "stale")
    # The application's default for a disconnect.
    FORCE_NO_RECONNECT = DisconnectCode(3503, "force disconnect")
    # More connections than allowed on this node or for this user.
    CONNECTION_LIMIT = DisconnectCode(3504, "connection limit")
    # More server-side subscriptions than allowed for a connection.
    CHANNEL_LIMIT = DisconnectCode(3505, "channel limit")
    # A JSON connection that the server would subscribe to a binary channel as it connects.
    INAPPROPRIATE_PROTOCOL = DisconnectCode(3506, "inappropriate protocol")
    # The connection may not do this at all.
    PERMISSION_DENIED = DisconnectCode(3507, "permission denied")
    # A command without a reply that is not part of this release (`send`).
    NOT_AVAILABLE = DisconnectCode(3508, "not available")


# The reason to close a connection: the server's or the application's.
Closing = Disconnect | DisconnectCode


def code_of(why: Closing) -> DisconnectCode:
    """The code of the close frame."""
    return why.value if isinstance(why, Disconnect) else why


def is_reason(text: str) -> bool:
    """Whether a close frame can carry the text as its reason.

    It must be short enough and valid Unicode. It must not be JSON, which older SDKs read as
    instructions.
    """
    try:
        if len(text.encode()) > REASON_BYTES_MAX:
            return False
        json.loads(text)
    except UnicodeEncodeError:
        return False
    except (ValueError, RecursionError):
        return True
    return False


@dataclass(frozen=True, slots=True)
class UnsubscribeCode:
    """Below 2500 an SDK stays unsubscribed. From 2500 on it subscribes again and recovers from its
    position.
    """

    code: int
    reason: str


class Unsubscribe(Enum):
    """The reasons of the server to end a subscription: the unsubscribe push."""

    # The application requested it.
    SERVER = UnsubscribeCode(2000, "server unsubscribe")
    # Publications are missing and cannot be recovered, or the epoch changed: the client must start
    # again from the log.
    INSUFFICIENT_STATE = UnsubscribeCode(2500, "insufficient state")
    # The subscription's token expired.
    EXPIRED = UnsubscribeCode(2501, "subscription expired")
